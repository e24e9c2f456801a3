"""Where the CUDA C++ sources are."""

from __future__ import annotations

from pathlib import Path

__all__ = ["kernels_folder"]


def kernels_folder() -> Path:
    """Return the folder `kernels`: inside an installed package, or beside the package in a checkout.

    Raises
    ------
    FileNotFoundError
        In neither place.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "kernels", package.parent / "kernels"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"the folder 'kernels' is neither in {package} nor beside it; reinstall flowreg-gpu")
