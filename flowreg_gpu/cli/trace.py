"""The displacement over time as a line of text."""

from __future__ import annotations

import shutil
import sys

import numpy as np
from numpy.typing import NDArray

__all__ = ["displacement_trace"]

_BARS = " ▁▂▃▄▅▆▇█"
_LEAST_COLUMNS, _MOST_COLUMNS = 60, 100


def displacement_trace(displacement: NDArray[np.float64]) -> list[str]:
    """The largest value of every part of a recording (T,), pixels, as bars; empty where no terminal shows it.

    That is where standard output is no terminal, has fewer than 60 columns, or cannot show the bars.
    """
    columns = min(shutil.get_terminal_size((0, 0)).columns, _MOST_COLUMNS)
    if sys.stdout is None or not sys.stdout.isatty() or columns < _LEAST_COLUMNS or not len(displacement):
        return []
    try:
        _BARS.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return []
    parts = np.array_split(np.nan_to_num(displacement), min(columns - 2, len(displacement)))
    largest = np.array([part.max() for part in parts])
    top = max(largest.max(), 1e-9)
    bars = "".join(_BARS[round(float(value / top) * (len(_BARS) - 1))] for value in largest)
    return [f"mean displacement of frames 0 to {len(displacement) - 1}, up to {top:.2f} px:", f"  {bars}"]
