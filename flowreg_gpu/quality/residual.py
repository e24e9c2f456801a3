"""Figures of motion that is left."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["displacement_figures"]


def displacement_figures(flows: NDArray[np.float32]) -> tuple[float, float]:
    """Median and 99th percentile of the displacement of all pixels of flows (k, 2, H, W), in pixels."""
    lengths = np.hypot(flows[:, 0], flows[:, 1])
    median, largest = np.percentile(lengths, (50, 99))
    return float(median), float(largest)
