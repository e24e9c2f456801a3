"""Motion correction of fluorescence-microscopy movies by dense variational optical flow."""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "BaseExecutor",
    "GPUExecutor",
    "MultiprocessingExecutor",
    "Options",
    "SequentialExecutor",
    "Summary",
    "ThreadingExecutor",
    "__version__",
    "apply_file",
    "estimate_flow",
    "gpu_status",
    "map_frames",
    "register",
    "register_file",
    "smooth_file",
    "warp",
    "write_report",
]

if TYPE_CHECKING:  # what type checkers and editors see; tests/typed_api.py holds them to it
    from flowreg_gpu.executors.base import BaseExecutor
    from flowreg_gpu.executors.gpu import GPUExecutor, gpu_status
    from flowreg_gpu.executors.processes import MultiprocessingExecutor
    from flowreg_gpu.executors.sequential import SequentialExecutor
    from flowreg_gpu.executors.threads import ThreadingExecutor
    from flowreg_gpu.options import Options
    from flowreg_gpu.registration.api import apply_file, register, register_file
    from flowreg_gpu.registration.map_frames import map_frames
    from flowreg_gpu.registration.pair import estimate_flow, warp
    from flowreg_gpu.registration.smoothing import smooth_file
    from flowreg_gpu.registration.summary import Summary
    from flowreg_gpu.report.write import write_report
else:
    # Public names and the modules that hold them. A name is loaded on first use, so that importing the package is
    # quick and imports neither cupy nor numba nor pyflowreg.
    _HOMES = {
        "BaseExecutor": "executors.base",
        "GPUExecutor": "executors.gpu",
        "MultiprocessingExecutor": "executors.processes",
        "Options": "options",
        "SequentialExecutor": "executors.sequential",
        "Summary": "registration.summary",
        "ThreadingExecutor": "executors.threads",
        "apply_file": "registration.api",
        "estimate_flow": "registration.pair",
        "gpu_status": "executors.gpu",
        "map_frames": "registration.map_frames",
        "register": "registration.api",
        "register_file": "registration.api",
        "smooth_file": "registration.smoothing",
        "warp": "registration.pair",
        "write_report": "report.write",
    }

    # Type checkers must not see this function: with it, every misspelt name would be a name of type Any.
    def __getattr__(name):
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
