"""Facts of this machine: what `doctor` reports, and what a measurement says of where it was made."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import flowreg_gpu
from flowreg_gpu.cuda.device import device_facts
from flowreg_gpu.engine.memory import blank_job, device_batch, frame_bytes
from flowreg_gpu.executors import best_executor, gpu_status
from flowreg_gpu.options import Options
from flowreg_gpu.workers.pool import default_workers

__all__ = ["describe", "nvidia_driver", "one_line", "report", "version"]

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
    return frame_bytes(blank_job(512, 512, 1, Options()), "uint16")


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


# What a measurement says of the machine; nothing is imported to find out

PACKAGES = (
    "numpy",
    "numba",
    "tifffile",
    "scipy",
    "cupy-cuda12x",
    "cupy-cuda13x",
    "torch",
    "pyflowreg",
    "opencv-contrib-python",
    "opencv-python-headless",
)


def describe() -> dict[str, Any]:
    """CPU, cores, system, driver and versions."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "nvidia_driver": nvidia_driver(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def one_line(facts: dict[str, Any]) -> str:
    """What `describe` returns as text."""
    versions = ", ".join(f"{key} {value}" for key, value in facts["versions"].items() if value)
    return f"{facts['cpu']}, {facts['cores']} cores; Python {facts['python']}, {versions}"


def version(package: str) -> str | None:
    """Version of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def nvidia_driver() -> str | None:
    """What the driver says of itself, on Linux."""
    try:
        return Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
