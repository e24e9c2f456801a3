"""Arithmetic of flow planes: sums, means over frames, and the layout that users get."""

from __future__ import annotations

import numpy as np

from flowreg_gpu.cuda.device import Buffer, Device
from flowreg_gpu.cuda.launch import LINE, frame_stride, line_grid

__all__ = ["EXPRESSIONS", "FILE", "add", "add_field", "add_frames", "fill", "interleave"]

FILE = "flow.cu"
EXPRESSIONS = ("fill", "add", "add_frames", "add_field", "interleave")


def fill(device: Device, planes: Buffer, value: float) -> None:
    """Set all of some float32 planes to one value."""
    count = int(np.prod(planes.shape))
    device.kernel(FILE, "fill")(line_grid(count), LINE, (np.float32(value), np.int64(count), planes))


def add(device: Device, planes: Buffer, increment: Buffer) -> Buffer:
    """Sum (n, C, h, w) of planes and an increment, each (1 or n, C, h, w); the increment may be (1 or n, C, 1, 1)."""
    frames, channels = max(planes.shape[0], increment.shape[0]), planes.shape[1]
    plane, increment_plane = (int(np.prod(item.shape[2:])) for item in (planes, increment))
    out = device.empty((frames, *planes.shape[1:]), np.float32)
    device.kernel(FILE, "add")(
        line_grid(plane * channels, frames),
        LINE,
        (
            planes,
            increment,
            np.int64(plane),
            np.int64(increment_plane),
            np.int32(channels),
            np.int64(frame_stride(planes)),
            np.int64(frame_stride(increment)),
            out,
        ),
    )
    return out


def add_frames(device: Device, flow: Buffer, first: int, total: Buffer) -> None:
    """Add the flows (n, 2, H, W) from frame `first` on, one after the other, to `total` (2, H, W) float64."""
    count = int(np.prod(total.shape))
    device.kernel(FILE, "add_frames")(
        line_grid(count), LINE, (flow, np.int32(first), np.int32(flow.shape[0]), np.int64(count), total)
    )


def add_field(device: Device, flow: Buffer, sums: Buffer) -> None:
    """Add the flows (n, 2, H, W) to the sums (4, H, W) int64 of a `FlowField`."""
    frames, _, height, width = flow.shape
    device.kernel(FILE, "add_field")(
        line_grid(height * width), LINE, (flow, np.int32(frames), np.int32(height), np.int32(width), sums)
    )


def interleave(device: Device, flow: Buffer) -> Buffer:
    """Flow planes (n, 2, H, W) as (n, H, W, 2), u first."""
    frames, _, height, width = flow.shape
    out = device.empty((frames, height, width, 2), np.float32)
    device.kernel(FILE, "interleave")(line_grid(height * width, frames), LINE, (flow, np.int64(height * width), out))
    return out
