"""Crispness of an image."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["crispness"]


def crispness(image: NDArray[Any]) -> float:
    """Length of the gradient of an image (H, W, C) over all pixels: its Frobenius norm, by central differences.

    The mean of a movie that is registered well is crisp (Pnevmatikakis & Giovannucci, J. Neurosci. Methods 291, 2017).
    It grows with the size and the brightness of the image, and with its noise, so that only means of as many frames of
    one recording can be compared.
    """
    planes = np.asarray(image, np.float64)
    down, right = np.gradient(planes, axis=(0, 1))
    return float(np.sqrt((down**2 + right**2).sum()))
