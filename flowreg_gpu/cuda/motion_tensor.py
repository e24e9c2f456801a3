"""The data term at one pyramid level, linearised about the flow: upsampling, warp and motion tensor in one launch."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from flowreg_gpu.cuda.device import Buffer, Device
from flowreg_gpu.cuda.launch import LINE, frame_stride, upload
from flowreg_gpu.cuda.pyramid import Taps, source_strips, upload_taps
from flowreg_gpu.cuda.structs import SPAN
from flowreg_gpu.model.resampling import TapTable

__all__ = [
    "EXPRESSIONS",
    "FILE",
    "HALO",
    "SIZES",
    "STRUCTS",
    "TERMS",
    "Upsampling",
    "factors",
    "linearize",
    "upload_upsampling",
]

FILE = "motion_tensor.cu"
#: What the kernels call each data term, and how far it looks, in pixels.
TERMS = {"gc": "GradientConstancy", "gray": "BrightnessConstancy", "cs": "CensusConstancy"}
HALO = {"gc": 1, "gray": 1, "cs": 2}
SIZES = {f"{TERMS[name]}::HALO": halo for name, halo in HALO.items()}
STRUCTS = {"Span": SPAN}
EXPRESSIONS = tuple(
    f"{kernel}<{term}>" for kernel, term in itertools.product(("linearize", "upsample_and_linearize"), TERMS.values())
)

TILE = 32  # pixels of both sides with their halo: a warp takes a row, a thread four pixels of a column


class Upsampling(NamedTuple):
    """Tap tables of a flow on the device, the input columns (first, count) of every tile's taps, and the most of these.

    `n_taps` are the numbers of taps along rows and columns.
    """

    taps: Taps
    strips: Buffer
    n_taps: tuple[int, int]
    columns: int


def upload_upsampling(device: Device, tables: tuple[TapTable, TapTable], const_assumption: str) -> Upsampling:
    """Copy tables (rows, columns) to the device, for the tiles of `linearize`."""
    rows, columns = tables
    strips = source_strips(columns.index, TILE - 2 * HALO[const_assumption], HALO[const_assumption])
    n_taps = rows.index.shape[1], columns.index.shape[1]
    return Upsampling(
        upload_taps(device, [tables]), upload(device, strips.view(np.int32)), n_taps, int(strips["count"].max())
    )


def linearize(
    device: Device,
    reference: Buffer,
    moving: Buffer,
    flow: Buffer,
    upsampling: Upsampling | None,
    spacing: tuple[float, float],
    const_assumption: str,
) -> tuple[Buffer, Buffer]:
    """Upsample a flow, if it is one of another level, warp planes cubically, and form their motion tensor.

    Parameters
    ----------
    reference, moving : (1 or n, C, h, w), (n, C, h, w) float32
    flow : (1 or n, 2, H, W) float32
        In full-resolution pixels.
    spacing : (float, float)
        Grid spacing (hx, hy) in full-resolution pixels.
    const_assumption : {'gc', 'gray', 'cs'}

    Returns
    -------
    flow, tensor : (1 or n, 2, h, w), (n, C, 6, h, w) float32
    """
    frames, channels, height, width = moving.shape
    tensor = device.empty((frames, channels, 6, height, width), np.float32)
    tile, pixels = TILE - 2 * HALO[const_assumption], TILE * TILE
    grid = (-(-width // tile), -(-height // tile), frames)
    common = (
        np.int32(channels),
        np.int32(height),
        np.int32(width),
        np.int32(tile),
        np.int64(frame_stride(reference)),
        np.int64(frame_stride(flow)),
        np.float32(1 / spacing[0]),
        np.float32(1 / spacing[1]),
        *factors(*spacing, const_assumption),
        tensor,
    )
    if upsampling is None:
        device.kernel(FILE, f"linearize<{TERMS[const_assumption]}>")(
            grid, LINE, (moving, reference, flow, *common), shared_mem=4 * 3 * pixels
        )
        return flow, tensor
    upsampled = device.empty((flow.shape[0], 2, height, width), np.float32)
    sizes = map(np.int32, (*flow.shape[2:], *upsampling.n_taps))
    device.kernel(FILE, f"upsample_and_linearize<{TERMS[const_assumption]}>")(
        grid,
        LINE,
        (moving, reference, flow, *upsampling.taps, upsampling.strips, *sizes, *common, upsampled),
        shared_mem=4 * (2 * pixels + max(pixels, 2 * TILE * upsampling.columns)),
    )
    return upsampled, tensor


def factors(hx: float, hy: float, const_assumption: str) -> tuple[np.float32, ...]:
    """Factors of the differences: 1/(2 hx), 1/(2 hy), and three that the data term needs beside them."""
    x, y, one, half = np.float32(hx), np.float32(hy), np.float32(1), np.float32(0.5)
    own = {
        "gc": (one / (x * x), one / (y * y), half / x * (half / y)),
        "gray": (np.float32(0),) * 3,
        "cs": (one / x, one / y, np.float32(1 / np.hypot(np.float64(x), np.float64(y)))),
    }
    return half / x, half / y, *own[const_assumption]
