"""Sum of a flow and an increment with a 5x5 median, exact, mirror boundary."""

from __future__ import annotations

import numpy as np

from flowreg_gpu.cuda.device import Buffer, Device
from flowreg_gpu.cuda.launch import LINE, frame_stride

__all__ = ["EXPRESSIONS", "FILE", "SIZES", "add_smoothed", "smoothed_sum"]

FILE = "median.cu"
EXPRESSIONS = ("add_smoothed<false>", "add_smoothed<true>")

TILE = (32, 14)  # pixels (x, y) that a block makes
SIZES = {"TILE_WIDTH": TILE[0], "TILE_HEIGHT": TILE[1]}


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
        (-(-width // TILE[0]), -(-height // TILE[1]), frames * components),
        LINE,
        (flow, increment, np.int32(height), np.int32(width), np.int64(frame_stride(flow)), out),
        shared_mem=5 * 4 * TILE[1] * (TILE[0] + 4),
    )
    return out
