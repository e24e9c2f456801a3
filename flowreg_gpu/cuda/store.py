"""Planes to raw frames, in the dtype of a file."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from flowreg_gpu.cuda.device import Buffer, Device
from flowreg_gpu.cuda.launch import LINE, line_grid
from flowreg_gpu.cuda.preprocess import C_TYPES

__all__ = ["EXPRESSIONS", "FILE", "store"]

FILE = "store.cu"
EXPRESSIONS = tuple(f"store<{kind}>" for kind in C_TYPES.values())


def store(device: Device, planes: Buffer, dtype: DTypeLike) -> Buffer:
    """Raw frames (n, H, W, C) of planes (n, C, H, W) float32; integers are rounded to nearest even and saturated."""
    count, channels, height, width = planes.shape
    dtype = np.dtype(dtype)
    frames = device.empty((count, height, width, channels), dtype)
    device.kernel(FILE, f"store<{C_TYPES[dtype]}>")(
        line_grid(height * width, count), LINE, (planes, np.int32(height * width), np.int32(channels), frames)
    )
    return frames
