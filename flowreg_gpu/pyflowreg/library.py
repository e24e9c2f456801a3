"""The installed pyflowreg: found when it is needed, and asked for what is used of it, whatever its version."""

from __future__ import annotations

import importlib
import importlib.metadata
import operator
import sys
import warnings
from typing import Any

__all__ = ["INSTALL", "check_opencv", "part"]

INSTALL = 'pip install "pyflowreg>=0.1.0a9" "opencv-contrib-python<5"'


def part(module: str, name: str) -> Any:
    """Return an object of pyflowreg, `name` within one of its modules.

    Raises
    ------
    ImportError
        pyflowreg is not installed, cannot be imported, or lacks the object; the message names the command that helps.
    """
    try:
        return operator.attrgetter(name)(importlib.import_module(f"pyflowreg.{module}"))
    except ModuleNotFoundError as error:
        if error.name == "pyflowreg":
            raise ImportError(f"pyflowreg is not installed; install it with: {INSTALL}", name="pyflowreg") from error
        raise _unusable(error) from error
    except (ImportError, AttributeError) as error:
        raise _unusable(error) from error


def _unusable(error: Exception) -> ImportError:
    try:
        version = importlib.metadata.version("pyflowreg")
    except importlib.metadata.PackageNotFoundError:
        version = "of unknown version"
    return ImportError(
        f"pyflowreg {version} cannot be used ({error}); install one that can with: {INSTALL}", name="pyflowreg"
    )


def check_opencv(stacklevel: int = 3) -> None:
    """Warn of OpenCV 5, which pyflowreg has imported by now."""
    version = str(getattr(sys.modules.get("cv2"), "__version__", "0"))
    if int(version.partition(".")[0]) >= 5:
        warnings.warn(
            f"OpenCV {version} warps float64 images wrongly near the border: what pyflowreg computes itself is damaged "
            f"there, what flowreg_gpu computes is not; the remedy is: {INSTALL}",
            RuntimeWarning,
            stacklevel=stacklevel,
        )
