"""Planes to raw frames, in the dtype of a file."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.cpu.jit import compiled

__all__ = ["store"]

_U = np.uint64


def store(planes: NDArray[np.floating[Any]], out: NDArray[Any]) -> None:
    """Write planes (C, H, W) to a raw frame (H, W, C); integers are rounded to nearest even and saturated."""
    if np.issubdtype(out.dtype, np.integer):
        limits = np.iinfo(out.dtype)
        _round_saturate(planes, np.float32(limits.min), np.float32(limits.max), out)
    else:
        for channel, plane in enumerate(planes):
            out[..., channel] = plane


@compiled
def _round_saturate(planes, low, high, out):
    """Round planes (C, H, W) float32 to nearest even, limit them to [low, high] and write them to `out` (H, W, C)."""
    channels, height, width = planes.shape
    for channel in range(channels):
        for y in range(height):
            for x in range(width):
                value = np.rint(planes[_U(channel), _U(y), _U(x)])
                out[_U(y), _U(x), _U(channel)] = min(max(value, low), high)
