"""Backward warp of planes and of raw frames; what lies outside a frame comes from the reference."""

from __future__ import annotations

import itertools

import numpy as np

from flowreg_gpu.cuda.device import Buffer, Device
from flowreg_gpu.cuda.launch import BLOCK, frame_stride, pixel_grid
from flowreg_gpu.cuda.preprocess import C_TYPES

__all__ = ["EXPRESSIONS", "FILE", "warp_frames", "warp_linear"]

FILE = "warp.cu"
_TAPS = {"cubic": 4, "linear": 2, "nearest": 1}
EXPRESSIONS = (
    "warp_linear",
    *(f"warp_frames<{kind}, {taps}>" for kind, taps in itertools.product(C_TYPES.values(), _TAPS.values())),
)


def warp_linear(device: Device, moving: Buffer, flow: Buffer, reference: Buffer) -> Buffer:
    """Warp planes (n, C, H, W) float32 linearly by flow (1 or n, 2, H, W); `reference` is (1 or n, C, H, W)."""
    frames, channels, height, width = moving.shape
    out = device.empty(moving.shape, np.float32)
    device.kernel(FILE, "warp_linear")(
        pixel_grid(width, height, frames),
        BLOCK,
        (
            moving,
            flow,
            reference,
            np.int32(channels),
            np.int32(height),
            np.int32(width),
            np.int64(frame_stride(flow)),
            np.int64(frame_stride(reference)),
            out,
        ),
    )
    return out


def warp_frames(device: Device, frames: Buffer, flow: Buffer, reference: Buffer, interpolation: str) -> Buffer:
    """Warp raw frames (n, H, W, C) by flow (n, 2, H, W), in their dtype; integers are rounded and saturated.

    `reference` is (H, W, C) float32.
    """
    count, height, width, channels = frames.shape
    out = device.empty(frames.shape, frames.dtype)
    device.kernel(FILE, f"warp_frames<{C_TYPES[frames.dtype]}, {_TAPS[interpolation]}>")(
        pixel_grid(width, height, count),
        BLOCK,
        (frames, flow, reference, np.int32(channels), np.int32(height), np.int32(width), out),
    )
    return out
