"""The coarsest levels of the pyramid in one launch, a block of threads a frame."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.cuda.device import Buffer, Device
from flowreg_gpu.cuda.launch import CHANNELS, GROUP, OPT_IN_SHARED_MEMORY, frame_stride, upload
from flowreg_gpu.cuda.motion_tensor import HALO, TERMS, factors
from flowreg_gpu.cuda.pyramid import Pyramid, Taps, upload_taps
from flowreg_gpu.cuda.solver import is_robust
from flowreg_gpu.cuda.structs import filled, struct
from flowreg_gpu.model.plan import Descent, Level
from flowreg_gpu.model.relaxation import Relaxation, edge_weights, robust_coefficients

__all__ = ["EXPRESSIONS", "FILE", "SIZES", "STRUCTS", "Levels", "descend", "upload_levels"]

FILE = "descend.cu"
EXPRESSIONS = tuple(f"descend<{term}, {channels}>" for term in TERMS.values() for channels in CHANNELS)

_INTEGERS = (
    *("height", "width", "first_pixel"),
    *("coarser_height", "coarser_width", "row_taps", "first_row_tap", "column_taps", "first_column_tap"),
    *("tensor_rows", "median_rows", "smoothed", "sum_first", "in_shared", "sweeps", "lag"),
)
_FLOATS = ("scale_x", "scale_y", "cx", "cy", "c1", "c2", "c3", "along", "across", "omega")
LEVEL = struct(**dict.fromkeys(_INTEGERS, np.int32), **dict.fromkeys(_FLOATS, np.float32))
STRUCTS = {"Level": LEVEL}


def sorted_width(width: int) -> int:
    """Floats of a row that is sorted by colour: two even numbers."""
    return -(-width // 4) * 4


SIZES = {f"2 * half_of({width})": sorted_width(width) for width in range(1, 9)}


class Levels(NamedTuple):
    """The coarsest levels of a descent on the device, as one launch takes them: `number` of them.

    `size` (h, w) is that of the last one, which is the largest; a block has `shared_memory` bytes.
    """

    number: int
    size: tuple[int, int]
    shared_memory: int
    table: Buffer
    taps: Taps


def upload_levels(device: Device, descent: Descent, full: tuple[int, ...]) -> Levels | None:
    """Describe as many levels as fit to the device; None where the coarsest does not. `full` is the frames' (H, W)."""
    halo = HALO[descent.const_assumption]
    levels = _taken(descent)
    if not levels:
        return None
    shared_memory = max(_block_bytes(device, level.height, level.width) for level in levels)
    described: list[NDArray[Any]] = []
    coarser = 0, 0
    pixels = row_taps = column_taps = 0  # before this level
    for level, relaxation in zip(levels, descent.relaxations, strict=False):
        height, width = level.height, level.width
        by_rows, by_columns = (table.index for table in level.from_coarser)
        upsampled = bool(described)  # the flow comes in the size of the first level
        tensor_rows, median_rows = _tile_rows(height, width, coarser[1], halo, shared_memory)
        along, across = edge_weights(level.alpha, level.spacing)
        cx, cy, c1, c2, c3 = factors(*level.spacing, descent.const_assumption)
        described.append(
            filled(
                LEVEL,
                height=height,
                width=width,
                first_pixel=-1 if (height, width) == full else pixels,
                coarser_height=coarser[0],
                coarser_width=coarser[1],
                row_taps=by_rows.shape[1] * upsampled,
                first_row_tap=row_taps,
                column_taps=by_columns.shape[1] * upsampled,
                first_column_tap=column_taps,
                tensor_rows=tensor_rows,
                median_rows=median_rows,
                smoothed=level.smoothed,
                sum_first=descent.graduated,
                in_shared=_in_shared(device, height, width),
                sweeps=relaxation.sweeps,
                lag=relaxation.lag,
                scale_x=1 / level.spacing[0],
                scale_y=1 / level.spacing[1],
                cx=cx,
                cy=cy,
                c1=c1,
                c2=c2,
                c3=c3,
                along=along,
                across=across,
                omega=relaxation.omega,
            )
        )
        coarser, pixels = (height, width), pixels + height * width
        row_taps, column_taps = row_taps + by_rows.size, column_taps + by_columns.size
    return Levels(
        len(levels),
        coarser,
        shared_memory,
        upload(device, np.stack(described).view(np.int32)),
        upload_taps(device, [level.from_coarser for level in levels]),
    )


def descend(
    device: Device,
    levels: Levels,
    descent: Descent,
    reference: Pyramid,
    weight: Pyramid,
    moving: Pyramid,
    flow: Buffer,
) -> Buffer:
    """Bring a flow through the coarsest levels.

    Parameters
    ----------
    levels : Levels
        Of `descent`.
    reference, weight, moving : Pyramid
        Of (1, C, H, W), (1, C, H, W) and (n, C, H, W) float32.
    flow : (1 or n, 2, h, w) float32
        Of the coarsest level's size, in full-resolution pixels.

    Returns
    -------
    (n, 2, h, w) float32
        Of the last of the levels.
    """
    frames, channels = moving.planes.shape[:2]
    relaxation = descent.relaxations[0]  # which has the psi of all
    height, width = levels.size
    apart = 0 if _in_shared(device, height, width) else 5 * height * sorted_width(width)
    scratch = device.empty((frames, (6 * channels + 4) * height * width + apart), np.float32)
    out = device.empty((frames, 2, height, width), np.float32)
    device.kernel(FILE, f"descend<{TERMS[descent.const_assumption]}, {channels}>")(
        (1, 1, frames),
        GROUP,
        (
            *(moving.first(levels.number), reference.first(levels.number), weight.first(levels.number)),
            *(moving.planes, reference.planes, weight.planes),
            flow,
            levels.table,
            *levels.taps,
            np.int32(levels.number),
            np.int32(descent.linearizations),
            np.int32(height * width),
            np.int64(frame_stride(flow)),
            np.int64(frame_stride(scratch)),
            *robust_coefficients(relaxation.a_data, relaxation.beta),
            scratch,
            out,
        ),
        shared_mem=levels.shared_memory,
    )
    return out


def _taken(descent: Descent) -> tuple[Level, ...]:
    """The levels that one launch takes."""
    halo = HALO[descent.const_assumption]
    fitting = itertools.takewhile(
        lambda pair: _fits(pair[0].height, pair[0].width, pair[1], halo),
        zip(descent.levels, descent.relaxations, strict=True),
    )
    return tuple(level for level, _ in fitting)


def _bytes(height: int, width: int, planes: int) -> int:
    """Bytes of so many planes of a level of one frame in rows that are sorted by colour."""
    return 4 * planes * height * sorted_width(width)


def _in_shared(device: Device, height: int, width: int) -> bool:
    """Whether the coefficients lie in shared memory, as the increment does."""
    return _bytes(height, width, 2 + 5) <= device.shared_memory


def _block_bytes(device: Device, height: int, width: int) -> int:
    """Bytes of shared memory, enough for the relaxation; the other steps take as many rows at a time as fit."""
    return max(_bytes(height, width, 2 + 5) if _in_shared(device, height, width) else 0, OPT_IN_SHARED_MEMORY)


def _fits(height: int, width: int, relaxation: Relaxation, halo: int) -> bool:
    """Whether a level is relaxed by the rule block with quadratic smoothness, and small enough."""
    if relaxation.rule != "block" or is_robust(relaxation) or _bytes(height, width, 2) > OPT_IN_SHARED_MEMORY:
        return False
    return min(_tile_rows(height, width, width, halo, OPT_IN_SHARED_MEMORY)) > 0


def _tile_rows(height: int, width: int, coarser_width: int, halo: int, shared_memory: int) -> tuple[int, int]:
    """Rows that fit at a time when the tensor is formed, and when the median is taken; none are 0 or less."""
    with_halo = shared_memory // (4 * (2 * width + max(width, 2 * coarser_width)))
    median_rows = shared_memory // (4 * 5 * (width + 1 + 4))
    return height if with_halo >= height else with_halo - 2 * halo, min(median_rows, height)
