"""Facts of this machine: `describe` for a measurement, `report` for people, with what would be used here."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

import flowreg_gpu
from flowreg_gpu.cuda.device import device_facts
from flowreg_gpu.engine.memory import blank_job, device_batch, frame_bytes
from flowreg_gpu.executors import best_executor, gpu_status
from flowreg_gpu.options import Options
from flowreg_gpu.workers.blocks import free_shared_memory
from flowreg_gpu.workers.pool import default_workers

__all__ = ["describe", "one_line", "report"]

_COMMON = "512 x 512, one channel, uint16, quality"  # what most recordings are
#: Packages whose versions a measurement depends on.
_PACKAGES = (
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
    """CPU, cores, system, driver and versions, as JSON takes them; no package is imported to find out."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "nvidia_driver": _nvidia_driver(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def one_line(facts: dict[str, Any]) -> str:
    """What `describe` returns as text."""
    versions = ", ".join(f"{key} {value}" for key, value in facts["versions"].items() if value)
    return f"{facts['cpu']}, {facts['cores']} cores; Python {facts['python']}, {versions}"


def report() -> str:
    """A table of one fact per line: the machine, what is installed, and what would be used."""
    machine = describe()
    facts = {
        "flowreg_gpu": flowreg_gpu.__version__,
        "Python": f"{machine['python']} on {machine['system']}",
        "CPU": f"{default_workers()} of {machine['cores']} cores usable",
        "memory": _memory(),
        "shared memory": _shared_memory(),
        **_gpu(),
        "NVIDIA driver": machine["nvidia_driver"] or "not found in /proc",
        "CuPy": _installed("cupy-cuda13x", "cupy-cuda12x", "cupy"),
        "numpy": _installed("numpy"),
        "numba": _installed("numba"),
        "tifffile": _installed("tifffile"),
        "compressed TIFF": _installed("imagecodecs"),
        "HDF5": _installed("h5py"),
        "pyflowreg": _installed("pyflowreg"),
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


def _installed(*packages: str) -> str:
    """Name and version of the first package that is installed, or the names of those that are missing."""
    found = (f"{package} {number}" for package in packages if (number := _version(package)) is not None)
    return next(found, f"not installed ({' or '.join(packages)})")


def _memory() -> str:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):  # not on Windows
        return "unknown"
    return f"{total / 2**30:.1f} GiB"


def _shared_memory() -> str:
    free = free_shared_memory()
    return "as large as memory allows" if free == sys.maxsize else f"{free / 2**30:.1f} GiB free"


def _version(package: str) -> str | None:
    """Version of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _nvidia_driver() -> str | None:
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
