"""Per-frame statistics on the device: a row (n, 10) float64 of each frame, and zero flow where there is none to keep.

Columns: mean_disp, max_disp, mean_div, mean_translation, translation_x, translation_y, correlation_before,
correlation_after, constant, diverged. A frame's row is the same to the last bit whatever batch the frame is in.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from flowreg_gpu.cuda.device import Buffer, Device
from flowreg_gpu.cuda.preprocess import C_TYPES
from flowreg_gpu.cuda.structs import struct

__all__ = [
    "EXPRESSIONS",
    "FILE",
    "SIZES",
    "STRUCTS",
    "ReferenceSums",
    "describe_flow",
    "describe_frames",
    "prepare_reference",
]

FILE = "statistics.cu"
EXPRESSIONS = (*(f"image_sums<{kind}>" for kind in C_TYPES.values()), "correlate", "flow_sums", "settle")

COLUMNS = 10
CORRELATIONS = {"correlation_before": 6, "correlation_after": 7}
SIZES = {"COLUMNS": COLUMNS, **{name.upper(): column for name, column in CORRELATIONS.items()}}

BLOCK = (256,)
PART = 16 * BLOCK[0]  # elements that a block adds up; with it the order of all sums is fixed
# what a block leaves of a part
IMAGE_SUMS = ("a", "aa", "ab")
FLOW_SUMS = ("length", "u", "v", "divergence", "largest", "leaving")
STRUCTS = {
    "ImageSums": struct(**dict.fromkeys(IMAGE_SUMS, np.float64)),
    "FlowSums": struct(**dict.fromkeys(FLOW_SUMS, np.float64)),
}


class ReferenceSums(NamedTuple):
    """What the correlation needs of a reference: `partial` (parts, 3) float64, its sums part by part."""

    partial: Buffer


def part_grid(count: int, frames: int) -> tuple[int, int, int]:
    """Blocks of `PART` elements that cover `count`, for every frame."""
    return -(-count // PART), 1, frames


def prepare_reference(device: Device, reference: Buffer) -> ReferenceSums:
    """Sums of the raw reference (H, W, C) float32; once per recording."""
    height, width, channels = reference.shape
    return ReferenceSums(_image_sums(device, reference, 1, height * width * channels, reference)[0])


def describe_frames(
    device: Device, frames: Buffer, reference: Buffer, sums: ReferenceSums, statistics: Buffer, column: str
) -> None:
    """Correlation of frames (n, H, W, C) with the reference (H, W, C) float32, into a column of `statistics`.

    Pearson's, over all pixels and channels; 0 where the frame or the reference is constant. The column is
    'correlation_before' for raw frames, which also writes the column `constant`, or 'correlation_after'.

    Raises
    ------
    TypeError
        A dtype that the kernels do not take.
    ValueError
        Shapes that do not fit together, or another column.
    """
    count = frames.shape[0]
    if frames.dtype not in C_TYPES:
        raise TypeError(f"frames are {frames.dtype}, expected one of {', '.join(map(str, C_TYPES))}")
    if frames.shape[1:] != reference.shape or statistics.shape != (count, COLUMNS):
        raise ValueError(f"frames are {frames.shape}, reference {reference.shape} and statistics {statistics.shape}")
    if column not in CORRELATIONS:
        raise ValueError(f"{column=}, expected one of {', '.join(CORRELATIONS)}")
    elements = int(np.prod(reference.shape))
    partial = _image_sums(device, frames, count, elements, reference)
    device.kernel(FILE, "correlate")(
        (1, 1, count),
        BLOCK,
        (
            partial,
            sums.partial,
            np.int32(partial.shape[1]),
            np.int32(elements),
            np.int32(CORRELATIONS[column]),
            statistics,
        ),
        shared_mem=BLOCK[0] * STRUCTS["ImageSums"].itemsize,
    )


def describe_flow(device: Device, flow: Buffer, statistics: Buffer) -> None:
    """Write the columns of the flow (n, 2, H, W) float32, H, W >= 2; see `flowreg_gpu.cpu.statistics`.

    Reads the column `constant`. The flow of a constant frame, and one that leaves the frame as
    `flowreg_gpu.cpu.statistics.leaves_frame` says, becomes zero in place; the latter is marked in the column
    `diverged`.

    Raises
    ------
    ValueError
        Shapes that do not fit together.
    """
    count, _, height, width = flow.shape
    if min(height, width) < 2 or statistics.shape != (count, COLUMNS):
        raise ValueError(
            f"flow is {flow.shape} and statistics {statistics.shape}, expected (n, 2, H, W), H, W >= 2, and (n, 10)"
        )
    grid = part_grid(height * width, count)
    partial = device.empty((count, grid[0], len(FLOW_SUMS)), np.float64)
    shared = BLOCK[0] * STRUCTS["FlowSums"].itemsize
    device.kernel(FILE, "flow_sums")(
        grid, BLOCK, (flow, np.int32(height), np.int32(width), np.int32(PART), partial), shared_mem=shared
    )
    device.kernel(FILE, "settle")(
        (1, 1, count),
        BLOCK,
        (partial, np.int32(grid[0]), np.int32(height * width), flow, statistics),
        shared_mem=shared,
    )


def _image_sums(device: Device, frames: Buffer, count: int, elements: int, reference: Buffer) -> Buffer:
    """Sums (n, parts, 3) of frames and of their products with the reference."""
    grid = part_grid(elements, count)
    partial = device.empty((count, grid[0], len(IMAGE_SUMS)), np.float64)
    device.kernel(FILE, f"image_sums<{C_TYPES[frames.dtype]}>")(
        grid,
        BLOCK,
        (frames, reference, np.int32(elements), np.int32(PART), partial),
        shared_mem=BLOCK[0] * STRUCTS["ImageSums"].itemsize,
    )
    return partial
