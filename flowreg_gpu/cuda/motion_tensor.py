"""The data term at one pyramid level, linearised about the flow: upsampling, warp and motion tensor in one launch."""

from __future__ import annotations

import itertools

import numpy as np

from flowreg_gpu.cuda.device import Buffer, Device
from flowreg_gpu.cuda.launch import LINE, frame_stride
from flowreg_gpu.cuda.pyramid import DeviceTables, resize

__all__ = ["EXPRESSIONS", "FILE", "linearize"]

FILE = "motion_tensor.cu"
_TERMS = {"gc": "GradientConstancy", "gray": "BrightnessConstancy", "cs": "CensusConstancy"}
_HALO = {"gc": 1, "gray": 1, "cs": 2}
EXPRESSIONS = tuple(
    f"{kernel}<{term}>" for kernel, term in itertools.product(("linearize", "upsample_and_linearize"), _TERMS.values())
)

TILE = (32, 28)  # pixels (x, y); with a halo of 1, 1020 of them: just under four for each of 256 threads
FEW_TAPS = 16  # taps of rows times taps of columns that a pixel can sum by itself: those of an upsampling


def linearize(
    device: Device,
    reference: Buffer,
    moving: Buffer,
    flow: Buffer,
    tables: DeviceTables | None,
    spacing: tuple[float, float],
    const_assumption: str,
) -> tuple[Buffer, Buffer]:
    """Upsample a flow by the tables, if there are any, warp planes cubically, and form their motion tensor.

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
    if tables is not None and np.prod(tables.n_taps[0]) > FEW_TAPS:
        flow, tables = resize(device, flow, tables), None
    frames, channels, height, width = moving.shape
    tensor = device.empty((frames, channels, 6, height, width), np.float32)
    tile_width, tile_height = TILE
    halo = _HALO[const_assumption]
    grid = (-(-width // tile_width), -(-height // tile_height), frames)
    shared_memory = 3 * 4 * (tile_width + 2 * halo) * (tile_height + 2 * halo)
    common = (
        np.int32(channels),
        np.int32(height),
        np.int32(width),
        np.int32(tile_height),
        np.int32(tile_width),
        np.int64(frame_stride(reference)),
        np.int64(frame_stride(flow)),
        np.float32(1 / spacing[0]),
        np.float32(1 / spacing[1]),
        *_factors(*spacing, const_assumption),
        tensor,
    )
    if tables is None:
        device.kernel(FILE, f"linearize<{_TERMS[const_assumption]}>")(
            grid, LINE, (moving, reference, flow, *common), shared_mem=shared_memory
        )
        return flow, tensor
    upsampled = device.empty((flow.shape[0], 2, height, width), np.float32)
    sizes = map(np.int32, (*flow.shape[2:], *tables.n_taps[0]))
    device.kernel(FILE, f"upsample_and_linearize<{_TERMS[const_assumption]}>")(
        grid, LINE, (moving, reference, flow, *tables.taps, *sizes, *common, upsampled), shared_mem=shared_memory
    )
    return upsampled, tensor


def _factors(hx: float, hy: float, const_assumption: str) -> tuple[np.float32, ...]:
    """Factors of the differences: 1/(2 hx), 1/(2 hy), and three that the data term needs beside them."""
    x, y, one, half = np.float32(hx), np.float32(hy), np.float32(1), np.float32(0.5)
    own = {
        "gc": (one / (x * x), one / (y * y), half / x * (half / y)),
        "gray": (np.float32(0),) * 3,
        "cs": (one / x, one / y, np.float32(1 / np.hypot(np.float64(x), np.float64(y)))),
    }
    return half / x, half / y, *own[const_assumption]
