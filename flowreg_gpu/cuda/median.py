"""5x5 median of planes, exact, mirror boundary."""

from __future__ import annotations

import numpy as np

from flowreg_gpu.cuda.device import Buffer, Device
from flowreg_gpu.cuda.launch import BLOCK, pixel_grid

__all__ = ["EXPRESSIONS", "FILE", "median5x5"]

FILE = "median.cu"
EXPRESSIONS = ("median5x5",)


def median5x5(device: Device, planes: Buffer) -> Buffer:
    """Median over a 5x5 window of planes (n, C, H, W) float32; H, W >= 3; whole-sample symmetric boundary."""
    frames, channels, height, width = planes.shape
    out = device.empty(planes.shape, np.float32)
    device.kernel(FILE, "median5x5")(
        pixel_grid(width, height, frames * channels), BLOCK, (planes, np.int32(height), np.int32(width), out)
    )
    return out
