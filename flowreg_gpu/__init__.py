"""Motion correction of fluorescence-microscopy movies by dense variational optical flow."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Public names and the modules that hold them. They are loaded on first use, so that importing the package is quick
# and imports neither cupy nor numba nor pyflowreg.
_HOMES = {
    "BaseExecutor": "executors.base",
    "GPUExecutor": "executors.gpu",
    "MultiprocessingExecutor": "executors.processes",
    "Options": "options",
    "SequentialExecutor": "executors.sequential",
    "Summary": "registration.summary",
    "ThreadingExecutor": "executors.threads",
    "estimate_flow": "registration.pair",
    "gpu_status": "executors.gpu",
    "map_frames": "workers.map_frames",
    "register": "registration.api",
    "register_file": "registration.api",
    "warp": "registration.pair",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
