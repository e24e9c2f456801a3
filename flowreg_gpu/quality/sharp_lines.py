"""Lines of an image that show motion well."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.quality.pixels import check_frames

__all__ = ["most_structured_lines"]

# A line is so far from another one along the same axis, in pixels and in parts of the image, whatever is more.
APART, APART_SHARE = 16, 1 / 16
# Lines at the edges are left out, since motion brings other tissue there.
EDGE_SHARE = 1 / 8


def most_structured_lines(image: NDArray[Any], count: int = 2) -> list[tuple[str, int]]:
    """Rows and columns of an image with most structure along them, whose kymographs show motion.

    The structure of a line is the variance along it of the difference of its pixels two apart, in the image that
    [1, 2, 1] / 4 has smoothed along both axes, so that a grain of noise counts little and an edge much.

    Parameters
    ----------
    image : (H, W), real
        Pixels that are NaN or infinite count as the mean of the others.
    count : int
        Of lines. Fewer are returned where no more are far enough apart: 16 pixels and a sixteenth of the image.

    Returns
    -------
    list of (str, int)
        'row' or 'column', and its index. The best row and the best column come first, the better one before the other,
        then others by their structure. Where lines are alike, the one next to the middle is first.

    Raises
    ------
    ValueError, TypeError
        Where shapes, dtypes or the number are not as above.
    """
    check_frames(image, "H, W")
    if count < 1:
        raise ValueError(f"{count=} is not 1 or more")
    values = image.astype(np.float64)
    finite = np.isfinite(values)
    values[~finite] = values[finite].mean() if finite.any() else 0.0
    smooth = _smooth(_smooth(values).T).T
    ranked = sorted(
        (-structure, axis, index)
        for axis, lines in (("row", smooth), ("column", smooth.T))
        for structure, index in _best_lines(lines, count)
    )
    best_of_axis = {axis: (axis, index) for _, axis, index in reversed(ranked)}
    others = [(axis, index) for _, axis, index in ranked if (axis, index) not in best_of_axis.values()]
    first, *_ = ranked
    firsts = sorted(best_of_axis.values(), key=lambda line: line[0] != first[1])
    return (firsts + others)[:count]


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """[1, 2, 1] / 4 down the rows, the edges repeated."""
    padded = np.pad(values, ((1, 1), (0, 0)), mode="edge")
    smoothed: NDArray[np.float64] = (padded[:-2] + 2 * values + padded[2:]) / 4
    return smoothed


def _best_lines(lines: NDArray[np.float64], count: int) -> list[tuple[float, int]]:
    """Structure and index of the best rows of `lines`, at most `count`, away from the edges and from each other."""
    n = len(lines)
    structure = (lines[:, 2:] - lines[:, :-2]).var(axis=1) if lines.shape[1] > 2 else np.zeros(n)
    margin, apart = int(EDGE_SHARE * n), max(APART, int(APART_SHARE * n))
    inner = range(margin, n - margin)
    chosen: list[int] = []
    for index in sorted(inner, key=lambda index: (-structure[index], abs(2 * index - n + 1), index)):
        if len(chosen) < count and all(abs(index - other) >= apart for other in chosen):
            chosen.append(index)
    return [(float(structure[index]), index) for index in chosen]
