"""What a measurement or a report says of the machine on which it was made; nothing is imported to find out."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

__all__ = ["describe", "nvidia_driver", "one_line", "version"]

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
