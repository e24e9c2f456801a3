"""Separable filtering of planes with tap tables: pyramid resampling and Gaussian smoothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.cuda.device import DEFAULT_SHARED_MEMORY, Buffer, Device
from flowreg_gpu.cuda.launch import LINE, upload
from flowreg_gpu.cuda.structs import SPAN, filled, struct
from flowreg_gpu.model.resampling import TapTable

__all__ = [
    "EXPRESSIONS",
    "FILE",
    "STRUCTS",
    "DeviceTables",
    "Pyramid",
    "Taps",
    "pyramid",
    "resize",
    "smooth",
    "source_strips",
    "upload_tables",
    "upload_taps",
]

FILE = "pyramid.cu"
EXPRESSIONS = ("resample",)

TILE = (32, 8)  # pixels (x, y) of an output that a block makes at most
TILE_SOURCE = 512  # input columns times output rows beyond which a tile gets fewer rows: two a thread

_INTEGERS = (
    *("first_block", "tiles_x", "tile_height", "tile_width", "height", "width"),
    *("row_taps", "first_row_tap", "column_taps", "first_column_tap", "first_pixel", "first_strip"),
)
LEVEL = struct(**dict.fromkeys(_INTEGERS, np.int32))
STRUCTS = {"Level": LEVEL, "Span": SPAN}


class Taps(NamedTuple):
    """Taps (int32) and weights (float32): rows (new_height, taps), columns (taps, new_width), level after level."""

    row_index: Buffer
    row_weight: Buffer
    column_index: Buffer
    column_weight: Buffer


class DeviceTables(NamedTuple):
    """Tap tables of one or several levels on the device.

    `sizes` are the levels' (h, w); `levels` and `strips` hold what pyramid.cu calls Level and Span; `blocks` and the
    bytes of `shared_memory` are the launch's.
    """

    sizes: list[tuple[int, int]]
    taps: Taps
    levels: Buffer
    strips: Buffer
    blocks: int
    shared_memory: int


def upload_tables(device: Device, tables: Sequence[tuple[TapTable, TapTable]]) -> DeviceTables:
    """Copy the tables (rows, columns) of some levels to the device, and lay their tiles out."""
    levels, strips, floats = [], [], 0
    blocks = n_row_taps = n_column_taps = pixels = n_strips = 0  # before this level
    for rows, columns in tables:
        (height, row_taps), (width, column_taps) = rows.index.shape, columns.index.shape
        tile_width, tile_height, own = _tiles(columns.index)
        levels.append(
            filled(
                LEVEL,
                first_block=blocks,
                tiles_x=len(own),
                tile_height=tile_height,
                tile_width=tile_width,
                height=height,
                width=width,
                row_taps=row_taps,
                first_row_tap=n_row_taps,
                column_taps=column_taps,
                first_column_tap=n_column_taps,
                first_pixel=pixels,
                first_strip=n_strips,
            )
        )
        strips.append(own)
        floats = max(floats, tile_height * int(own["count"].max()))
        blocks, n_strips = blocks + len(own) * -(-height // tile_height), n_strips + len(own)
        n_row_taps, n_column_taps = n_row_taps + rows.index.size, n_column_taps + columns.index.size
        pixels += height * width
    return DeviceTables(
        [(len(rows.index), len(columns.index)) for rows, columns in tables],
        upload_taps(device, tables),
        upload(device, np.stack(levels).view(np.int32)),
        upload(device, np.concatenate(strips).view(np.int32)),
        blocks,
        4 * floats,
    )


def upload_taps(device: Device, tables: Sequence[tuple[TapTable, TapTable]]) -> Taps:
    """Copy the taps of some levels to the device."""
    rows, columns = zip(*tables, strict=True)
    arrays: tuple[list[NDArray[Any]], ...] = (
        [table.index for table in rows],
        [table.weight for table in rows],
        [table.index.T for table in columns],
        [table.weight.T for table in columns],
    )
    return Taps(*(upload(device, np.concatenate([array.ravel() for array in some])) for some in arrays))


def source_strips(index: NDArray[np.int32], width: int, halo: int = 0) -> NDArray[Any]:
    """Input columns, of dtype `SPAN`, of every strip of `width` output columns and a halo; `index` (w, taps)."""
    begins = range(0, len(index), width)
    parts = [index[max(begin - halo, 0) : begin + width + halo] for begin in begins]
    return np.array([(part.min(), np.ptp(part) + 1) for part in parts], SPAN)


def _tiles(index: NDArray[np.int32]) -> tuple[int, int, NDArray[Any]]:
    """Width and height of a level's tiles, and its strips; `index` (w, taps)."""
    width, height = TILE
    strips = source_strips(index, width)
    while 4 * strips["count"].max() > DEFAULT_SHARED_MEMORY and width > 1:  # a tile that needs more gets narrower
        width //= 2
        strips = source_strips(index, width)
    return width, min(max(TILE_SOURCE // int(strips["count"].max()), 1), height), strips


class Pyramid:
    """Planes at the levels of a pyramid: buffers (n, C, h, w) float32 by index.

    Parameters
    ----------
    planes : (n, C, H, W) float32
        At full resolution.
    memory : buffer, float32
        The other levels, one behind the other.
    sizes : sequence of (h, w), or None at full resolution
    """

    def __init__(self, planes: Buffer, memory: Buffer, sizes: Sequence[tuple[int, int] | None]) -> None:
        self.planes = planes
        self._memory = memory
        self._levels: list[Buffer] = []
        self._ends = [0]
        n_planes = planes.shape[:2]
        for size in sizes:
            begin = end = self._ends[-1]
            if size is not None:
                end += math.prod((*n_planes, *size))
            self._levels.append(planes if size is None else memory[begin:end].reshape((*n_planes, *size)))
            self._ends.append(end)

    def __getitem__(self, index: int) -> Buffer:
        return self._levels[index]

    def first(self, count: int) -> Buffer:
        """What the first levels take of the memory; if that is none, any buffer."""
        return self._memory[: self._ends[count]] if self._ends[count] else self.planes


def pyramid(
    device: Device, planes: Buffer, tables: DeviceTables | None, sizes: Sequence[tuple[int, int] | None]
) -> Pyramid:
    """Planes (n, C, H, W) float32 at all levels; `tables` are those of the levels that are not at full resolution."""
    if tables is None:
        return Pyramid(planes, planes, sizes)
    return Pyramid(planes, _resampled(device, planes, tables), sizes)


def resize(device: Device, planes: Buffer, tables: DeviceTables) -> Buffer:
    """Filter planes (n, C, H, W) float32 along rows, then columns; (n, C, h, w) float32 as the tables say."""
    resized: Buffer = _resampled(device, planes, tables).reshape((*planes.shape[:2], *tables.sizes[0]))
    return resized


def smooth(device: Device, planes: Buffer, tables: Sequence[DeviceTables]) -> Buffer:
    """Filter every channel of planes (n, C, H, W) float32 with its own tables, which keep the size."""
    frames, channels, height, width = planes.shape
    out = device.empty(planes.shape, np.float32)
    for channel, own in enumerate(tables):
        _resample(device, planes[:, channel], frames, channels * height * width, own, out[:, channel], channels)
    return out


def _resampled(device: Device, planes: Buffer, tables: DeviceTables) -> Buffer:
    """All levels of planes (n, C, H, W), one behind the other."""
    frames, channels, height, width = planes.shape
    out = device.empty((frames * channels * sum(h * w for h, w in tables.sizes),), np.float32)
    _resample(device, planes, frames * channels, height * width, tables, out, 1)
    return out


def _resample(
    device: Device, planes: Buffer, n_planes: int, stride: int, tables: DeviceTables, out: Buffer, spread: int
) -> None:
    """Filter n planes that begin `stride` elements apart, to planes of every level that lie `spread` planes apart."""
    device.kernel(FILE, "resample")(
        (tables.blocks, 1, n_planes),
        LINE,
        (
            planes,
            tables.levels,
            tables.strips,
            *tables.taps,
            np.int32(planes.shape[-1]),
            np.int32(len(tables.sizes)),
            np.int32(spread),
            np.int64(stride),
            out,
        ),
        shared_mem=tables.shared_memory,
    )
