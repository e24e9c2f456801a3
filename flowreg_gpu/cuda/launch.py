"""Grids of the launchers, and copies of host arrays on the device."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from flowreg_gpu.cuda.device import Buffer, Device

__all__ = [
    "BLOCK",
    "CHANNELS",
    "GROUP",
    "LINE",
    "OPT_IN_SHARED_MEMORY",
    "SIZES",
    "frame_stride",
    "line_grid",
    "pixel_grid",
    "upload",
]

#: Threads (x, y) of a block where a thread owns a pixel, of one where it owns an element of a line, and of one that
#: works on a level, or a strip of it, with many barriers.
BLOCK = (32, 8)
LINE = (256,)
GROUP = (512,)
#: What every kernel file calls them, for the tests; see `structs`.
SIZES = {"LINE_THREADS": LINE[0], "GROUP_THREADS": GROUP[0]}

CHANNELS = (1, 2, 3, 4)  # that kernels are specialised for; more are compiled when they are met
#: Bytes of shared memory that a block may have on every GPU from Turing on, if the launch opts in to more than the
#: default; most GPUs have more, as `Device.shared_memory` says.
OPT_IN_SHARED_MEMORY = 64 * 1024


def pixel_grid(width: int, height: int, depth: int) -> tuple[int, int, int]:
    """Blocks that cover (width, height) pixels with one thread each, `depth` times."""
    return -(-width // BLOCK[0]), -(-height // BLOCK[1]), depth


def line_grid(count: int, depth: int = 1) -> tuple[int, int, int]:
    """Blocks that cover `count` elements with one thread each, `depth` times."""
    return -(-count // LINE[0]), 1, depth


def upload(device: Device, array: NDArray[Any]) -> Buffer:
    """Copy a contiguous host array to the device."""
    buffer = device.empty(array.shape, array.dtype)
    device.copy(buffer, array)
    return buffer


def frame_stride(buffer: Buffer) -> int:
    """Elements from one frame (first axis) to the next; 0 where all frames share one."""
    stride = 1
    for size in buffer.shape[1:]:
        stride *= size
    return stride if buffer.shape[0] > 1 else 0
