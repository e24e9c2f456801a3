"""Sum of a flow and an increment with a 5x5 median, exact, mirror boundary."""

from __future__ import annotations

import numpy as np

from flowreg_gpu.cuda.device import Buffer, Device
from flowreg_gpu.cuda.launch import BLOCK, LINE, frame_stride, pixel_grid

__all__ = ["EXPRESSIONS", "FILE", "add_smoothed", "smoothed_sum"]

FILE = "median.cu"
EXPRESSIONS = ("add_smoothed<false>", "add_smoothed<true>")


def add_smoothed(device: Device, flow: Buffer, increment: Buffer) -> Buffer:
    """Flow (1 or n, 2, h, w) plus the median over a 5x5 window of an increment (n, 2, h, w), float32; h, w >= 3."""
    return _smooth(device, flow, increment, "add_smoothed<false>")


def smoothed_sum(device: Device, flow: Buffer, increment: Buffer) -> Buffer:
    """Median over a 5x5 window of flow (1 or n, 2, h, w) plus increment (n, 2, h, w), float32; h, w >= 3."""
    return _smooth(device, flow, increment, "add_smoothed<true>")


def _smooth(device: Device, flow: Buffer, increment: Buffer, expression: str) -> Buffer:
    frames, components, height, width = increment.shape
    out = device.empty(increment.shape, np.float32)
    device.kernel(FILE, expression)(
        pixel_grid(width, height, frames * components),
        LINE,
        (flow, increment, np.int32(height), np.int32(width), np.int64(frame_stride(flow)), out),
        shared_mem=5 * 4 * BLOCK[1] * (BLOCK[0] + 4),
    )
    return out
