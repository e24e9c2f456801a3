"""Lines of an image that show motion well."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["most_structured_lines"]


def most_structured_lines(image: NDArray[Any]) -> list[tuple[str, int]]:
    """The row and the column of an image (H, W) with most structure: ('row', index), ('column', index).

    That is the squared difference of pixels two apart along the line, averaged over three lines, away from the edges of
    the image, where motion brings other tissue in.
    """
    values, lines = np.asarray(image, np.float64), []
    for name, along in (("row", values), ("column", values.T)):
        smooth = np.stack([np.convolve(line, np.ones(3) / 3, "same") for line in along])
        structure = np.square(smooth[:, 3:-1] - smooth[:, 1:-3]).sum(axis=1)
        structure = np.convolve(structure, np.ones(3), "same")
        margin = len(structure) // 8
        lines.append((name, margin + int(np.argmax(structure[margin : len(structure) - margin]))))
    return lines
