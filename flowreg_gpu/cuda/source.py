"""Finds the CUDA C++ sources and makes one text of a file and its headers."""

from __future__ import annotations

import functools
import re
from pathlib import Path

__all__ = ["kernel_files", "kernel_source", "kernels_folder"]

_INCLUDE = re.compile(r'\s*#\s*include\s*"(?P<name>[^"]+)"')


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


def kernel_files() -> list[str]:
    """Names of the files that hold kernels, sorted."""
    return sorted(path.name for path in kernels_folder().glob("*.cu"))


@functools.cache
def kernel_source(file: str) -> str:
    """Text of a kernel file with its headers in place, so that a compiler's cache sees an edited header.

    `#line` directives keep the file names and line numbers of error messages right.

    Raises
    ------
    FileNotFoundError
        `file`, or a header that it includes, is not in the folder `kernels`.
    """
    return "\n".join(_inlined(file, set())) + "\n"


def _inlined(file: str, seen: set[str]) -> list[str]:
    """Lines of a file; every header once, where it is first included."""
    seen.add(file)
    lines = [f'#line 1 "{file}"']
    for number, line in enumerate((kernels_folder() / file).read_text(encoding="utf-8").splitlines(), 1):
        included = _INCLUDE.match(line)
        if included is None:
            lines.append("" if line.strip() == "#pragma once" else line)  # meaningless in one text, a warning
        else:
            if included["name"] not in seen:
                lines += _inlined(included["name"], seen)
            lines.append(f'#line {number + 1} "{file}"')
    return lines
