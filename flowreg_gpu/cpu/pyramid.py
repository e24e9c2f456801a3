"""Separable filtering with tap tables: pyramid resampling and Gaussian smoothing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.cpu.jit import compiled
from flowreg_gpu.resampling import TapTable

__all__ = ["resize"]

_ZERO = np.float32(0)


def resize(
    planes: NDArray[np.float32], tables: tuple[TapTable, TapTable], out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Filter planes (C, H, W) float32 along rows, then columns; (C, h, w) float32 as the tables say."""
    rows, columns = tables
    if out is None:
        out = np.empty((planes.shape[0], rows.index.shape[0], columns.index.shape[0]), np.float32)
    _separable(planes, rows.index, rows.weight, columns.index, columns.weight, out)
    return out


@compiled
def _separable(planes, row_index, row_weight, column_index, column_weight, out):
    channels, _, width = planes.shape
    new_height, row_taps = row_index.shape
    new_width, column_taps = column_index.shape
    line = np.empty(width, np.float32)
    # unsigned, so that numba does not test every index for being negative
    columns, shares = column_index.reshape(column_index.size), column_weight.reshape(column_weight.size)
    for channel in range(channels):
        for i in range(new_height):
            # 1. weighted sum of input rows
            source = planes[channel, row_index[i, 0]]
            share = row_weight[i, 0]
            for x in range(width):
                line[x] = share * source[x]
            for tap in range(1, row_taps):
                source = planes[channel, row_index[i, tap]]
                share = row_weight[i, tap]
                for x in range(width):
                    line[x] += share * source[x]
            # 2. weighted sum along that row
            target = out[channel, i]
            at = np.uint64(0)
            for j in range(new_width):
                total = _ZERO
                for _ in range(column_taps):
                    total += shares[at] * line[np.uint64(columns[at])]
                    at += np.uint64(1)
                target[j] = total
