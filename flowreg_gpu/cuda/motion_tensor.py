"""Motion tensors of the three data terms."""

from __future__ import annotations

import numpy as np

from flowreg_gpu.cuda.device import Buffer, Device
from flowreg_gpu.cuda.launch import BLOCK, frame_stride, pixel_grid

__all__ = ["EXPRESSIONS", "FILE", "motion_tensor"]

FILE = "motion_tensor.cu"
_KERNELS = {"gc": "gradient_constancy", "gray": "brightness_constancy", "cs": "census_constancy"}
EXPRESSIONS = tuple(_KERNELS.values())


def motion_tensor(
    device: Device, reference: Buffer, moving: Buffer, hx: float, hy: float, const_assumption: str
) -> Buffer:
    """Tensor (n, C, 6, h, w) float32 of planes (1 or n, C, h, w) and (n, C, h, w) with grid spacings hx, hy."""
    frames, channels, height, width = moving.shape
    out = device.empty((frames, channels, 6, height, width), np.float32)
    device.kernel(FILE, _KERNELS[const_assumption])(
        pixel_grid(width, height, frames * channels),
        BLOCK,
        (
            reference,
            moving,
            np.int32(channels),
            np.int32(height),
            np.int32(width),
            np.int64(frame_stride(reference)),
            *_factors(hx, hy, const_assumption),
            out,
        ),
    )
    return out


def _factors(hx: float, hy: float, const_assumption: str) -> tuple[np.float32, ...]:
    """Factors of the differences: 1/(2 hx), 1/(2 hy), and what the data term needs beside them."""
    x, y, one, half = np.float32(hx), np.float32(hy), np.float32(1), np.float32(0.5)
    first = (half / x, half / y)
    if const_assumption == "gc":
        return (*first, one / (x * x), one / (y * y), half / x * (half / y))
    if const_assumption == "cs":
        return (*first, one / x, one / y, np.float32(1 / np.hypot(np.float64(x), np.float64(y))))
    return first
