"""Separable filtering with tap tables: pyramid resampling and Gaussian smoothing.

The taps along a row differ from pixel to pixel, those along a column from row to row only. So rows are summed first,
`_BLOCK` of them, and turned on their side: along their columns the other pass is a sum of rows again, which vectorises.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.cpu.jit import compiled
from flowreg_gpu.model.resampling import TapTable

__all__ = ["resize"]

_U = np.uint64
_BLOCK = 128  # 64 rows take 15 % longer (benchmarks/ATTEMPTS.md)
_TILE = 16  # float32 in a cache line of 64 bytes


def resize(
    planes: NDArray[np.float32], tables: tuple[TapTable, TapTable], out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Filter planes (C, H, W) float32 along rows, then columns; (C, h, w) float32 as the tables say."""
    rows, columns = tables
    if out is None:
        out = np.empty((planes.shape[0], rows.index.shape[0], columns.index.shape[0]), np.float32)
    _separable(np.ascontiguousarray(planes), rows.index, rows.weight, columns.index, columns.weight, out)
    return out


@compiled
def _separable(planes, row_index, row_weight, column_index, column_weight, out):
    """Write the filtered planes: out[c, i, j] = sum_m w_j,m sum_k w_i,k planes[c, y_i,k, x_j,m], rows summed first.

    From planes (C, H, W) float32 and the tables of the rows (h, taps) and columns (w, taps), index int32 and weight
    float32, to `out` (C, h, w) float32.
    """
    channels, height, width = planes.shape
    _, new_height, new_width = out.shape
    block = min(_BLOCK, new_height)
    summed = np.empty(block * width, np.float32)
    sideways, filtered = np.empty(width * block, np.float32), np.empty(new_width * block, np.float32)
    for channel in range(channels):
        plane = planes[channel].reshape(height * width)
        target = out[channel].reshape(new_height * new_width)
        for begin in range(0, new_height, block):
            count = min(block, new_height - begin)
            _sum_rows(plane, width, row_index[begin : begin + count], row_weight[begin : begin + count], summed)
            _transpose(summed, count, width, sideways)
            _sum_rows(sideways, count, column_index, column_weight, filtered)
            _transpose(filtered, new_width, count, target[begin * new_width :])


@compiled
def _sum_rows(rows, width, index, weight, out):
    """Row i of the result is the sum over k of weight[i, k] times row index[i, k], in this order.

    `rows` and `out` are flat, float32, of rows of `width` pixels; index (n, taps) int32 and weight (n, taps) float32.
    """
    taps = index.shape[1]
    for i in range(index.shape[0]):
        to = i * width
        # 1. the first taps
        a, w = index[i, 0] * width, weight[i, 0]
        for x in range(width):
            out[_U(to + x)] = w * rows[_U(a + x)]
        k = 1
        # 2. three more at a time, then one
        while k + 2 < taps:
            a, b, c = index[i, k] * width, index[i, k + 1] * width, index[i, k + 2] * width
            w, s, t = weight[i, k], weight[i, k + 1], weight[i, k + 2]
            for x in range(width):
                out[_U(to + x)] = out[_U(to + x)] + w * rows[_U(a + x)] + s * rows[_U(b + x)] + t * rows[_U(c + x)]
            k += 3
        while k < taps:
            a, w = index[i, k] * width, weight[i, k]
            for x in range(width):
                out[_U(to + x)] += w * rows[_U(a + x)]
            k += 1


@compiled
def _transpose(rows, height, width, out):
    """Transpose flat rows (height, width) float32 into `out` (width, height).

    In tiles: whole columns of a width that is a power of two would share a few lines of the cache.
    """
    for top in range(0, height, _TILE):
        for left in range(0, width, _TILE):
            for x in range(left, min(left + _TILE, width)):
                for y in range(top, min(top + _TILE, height)):
                    out[_U(x * height + y)] = rows[_U(y * width + x)]
