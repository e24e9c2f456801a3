"""Separable filtering of planes with tap tables: pyramid resampling and Gaussian smoothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flowreg_gpu.cuda.device import Buffer, Device
from flowreg_gpu.cuda.launch import BLOCK, pixel_grid, upload
from flowreg_gpu.resampling import TapTable

__all__ = ["EXPRESSIONS", "FILE", "DeviceTable", "resize", "smooth", "upload_table"]

FILE = "pyramid.cu"
EXPRESSIONS = ("filter_rows", "filter_columns", "filter_both")

# Taps of rows times taps of columns up to which one kernel does both: those of an upsampling.
FEW_TAPS = 16


class DeviceTable(NamedTuple):
    """A tap table on the device: `taps` (taps, n_out) int32 into the input, `weight` (taps, n_out) float32."""

    taps: Buffer
    weight: Buffer


def upload_table(device: Device, table: TapTable) -> DeviceTable:
    """Copy a table to the device, tap by tap."""
    return DeviceTable(
        upload(device, np.ascontiguousarray(table.index.T)), upload(device, np.ascontiguousarray(table.weight.T))
    )


def resize(device: Device, planes: Buffer, rows: DeviceTable, columns: DeviceTable) -> Buffer:
    """Filter planes (n, C, H, W) float32 along rows, then columns; (n, C, h, w) float32 as the tables say."""
    frames, channels, height, width = planes.shape
    new_height, new_width = rows.taps.shape[1], columns.taps.shape[1]
    out = device.empty((frames, channels, new_height, new_width), np.float32)
    _filter(device, planes, frames * channels, height * width, rows, columns, out, new_height * new_width)
    return out


def smooth(device: Device, planes: Buffer, tables: Sequence[tuple[DeviceTable, DeviceTable]]) -> Buffer:
    """Filter every channel of planes (n, C, H, W) float32 with its own tables, which keep the size."""
    frames, channels, height, width = planes.shape
    out = device.empty(planes.shape, np.float32)
    stride = channels * height * width
    for channel, (rows, columns) in enumerate(tables):
        _filter(device, planes[:, channel], frames, stride, rows, columns, out[:, channel], stride)
    return out


def _filter(
    device: Device,
    planes: Buffer,
    n_planes: int,
    stride: int,
    rows: DeviceTable,
    columns: DeviceTable,
    out: Buffer,
    out_stride: int,
) -> None:
    """Filter n planes that begin `stride` elements apart, to planes `out_stride` elements apart."""
    width = planes.shape[-1]
    (row_taps, new_height), (column_taps, new_width) = rows.taps.shape, columns.taps.shape
    if row_taps * column_taps <= FEW_TAPS:
        device.kernel(FILE, "filter_both")(
            pixel_grid(new_width, new_height, n_planes),
            BLOCK,
            (
                planes,
                *rows,
                *columns,
                np.int32(width),
                np.int32(new_height),
                np.int32(new_width),
                np.int32(row_taps),
                np.int32(column_taps),
                np.int64(stride),
                np.int64(out_stride),
                out,
            ),
        )
        return
    lines = device.empty((n_planes, new_height, width), np.float32)
    device.kernel(FILE, "filter_rows")(
        pixel_grid(width, new_height, n_planes),
        BLOCK,
        (
            planes,
            rows.taps,
            rows.weight,
            np.int32(width),
            np.int32(new_height),
            np.int32(row_taps),
            np.int64(stride),
            np.int64(new_height * width),
            lines,
        ),
    )
    device.kernel(FILE, "filter_columns")(
        pixel_grid(new_width, new_height, n_planes),
        BLOCK,
        (
            lines,
            columns.taps,
            columns.weight,
            np.int32(new_height),
            np.int32(width),
            np.int32(new_width),
            np.int32(column_taps),
            np.int64(new_height * width),
            np.int64(out_stride),
            out,
        ),
    )
