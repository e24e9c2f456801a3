"""What this machine offers to the registration, and what would be used."""

from __future__ import annotations

import os
import platform
import shutil

import flowreg_gpu
from flowreg_gpu.cuda.device import device_facts
from flowreg_gpu.executors import best_executor, gpu_status
from flowreg_gpu.executors.device_stream import device_batch
from flowreg_gpu.executors.device_task import frame_bytes
from flowreg_gpu.executors.frame_pool import default_workers
from flowreg_gpu.machine import nvidia_driver, version
from flowreg_gpu.options import Options

__all__ = ["report"]

_COMMON = "512 x 512, one channel, uint16, quality"  # what most recordings are


def report() -> str:
    """A table of one fact per line."""
    facts = {
        "flowreg_gpu": flowreg_gpu.__version__,
        "Python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "CPU": f"{default_workers()} of {os.cpu_count()} cores usable",
        "memory": _memory(),
        "shared memory": _shared_memory(),
        **_gpu(),
        "NVIDIA driver": nvidia_driver() or "not found in /proc",
        "CuPy": _version("cupy-cuda13x", "cupy-cuda12x", "cupy"),
        "numpy": _version("numpy"),
        "numba": _version("numba"),
        "tifffile": _version("tifffile"),
        "compressed TIFF": _version("imagecodecs"),
        "HDF5": _version("h5py"),
        "pyflowreg": _version("pyflowreg"),
        "device memory": f"{_frame_bytes() / 1e6:.1f} MB per frame of {_COMMON}",
        "would be used": f"executor {best_executor()!r} with {default_workers()} workers",
    }
    width = max(map(len, facts))
    return "\n".join(f"{name:<{width}}  {fact}" for name, fact in facts.items())


def _gpu() -> dict[str, str]:
    """Facts of the first GPU, or why it is not used."""
    usable, reason = gpu_status()
    if not usable:
        return {"GPU": f"not used: {reason}"}
    facts = device_facts()
    batch = device_batch(facts.free_memory, _frame_bytes(), facts.multiprocessors)
    return {
        "GPU": f"usable: {reason}",
        "GPU memory": f"{facts.free_memory / 2**30:.1f} of {facts.total_memory / 2**30:.1f} GiB free",
        "GPU batch": f"{batch} frames of {_COMMON}",
        "CUDA": f"{facts.driver} of the driver, {facts.runtime} of CuPy {facts.cupy}, {facts.nvrtc} of NVRTC",
    }


def _frame_bytes() -> int:
    return frame_bytes(512, 512, 1, 2, Options())


def _version(*packages: str) -> str:
    """Version of the first package that is installed."""
    found = (f"{package} {number}" for package in packages if (number := version(package)) is not None)
    return next(found, f"not installed ({' or '.join(packages)})")


def _memory() -> str:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):  # not on Windows
        return "unknown"
    return f"{total / 2**30:.1f} GiB"


def _shared_memory() -> str:
    if not os.path.isdir("/dev/shm"):
        return "as large as memory allows"
    return f"{shutil.disk_usage('/dev/shm').free / 2**30:.1f} GiB free"
