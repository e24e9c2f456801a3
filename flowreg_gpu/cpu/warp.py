"""Backward warp: registered(y, x) = image(y + v, x + u), cubic, linear or nearest.

A target outside the image (x < 0, x >= W, y < 0 or y >= H) is taken from the reference. Inside, coordinates are
clamped to [0, W - 1] x [0, H - 1] and the interpolation kernel sees replicated borders. Sub-pixel positions are
exact (OpenCV's remap rounds them to 1/32 pixel).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.cpu.jit import compiled, inlined
from flowreg_gpu.resampling import CUBIC_A

__all__ = ["warp", "warp_frame"]

_TAPS = {"cubic": 4, "linear": 2, "nearest": 1}
_A = np.float32(CUBIC_A)
_ZERO = np.float32(0)
_HALF = np.float32(0.5)
_ONE = np.float32(1)


def warp(
    moving: NDArray[np.float32],
    flow: NDArray[np.float32],
    reference: NDArray[np.float32],
    spacing: tuple[float, float] = (1.0, 1.0),
    interpolation: str = "cubic",
) -> NDArray[np.float32]:
    """Warp planes (C, h, w) float32 by flow (2, h, w) in full-resolution pixels, grid spacing (hx, hy)."""
    out = np.empty_like(moving)
    scale_x, scale_y = np.float32(1 / spacing[0]), np.float32(1 / spacing[1])
    channels_last = (1, 2, 0)
    _warp(
        moving.transpose(channels_last),
        flow,
        reference.transpose(channels_last),
        scale_x,
        scale_y,
        _TAPS[interpolation],
        out.transpose(channels_last),
    )
    return out


def warp_frame(
    frame: NDArray[Any],
    flow: NDArray[np.float32],
    reference: NDArray[np.float32],
    interpolation: str,
    out: NDArray[Any],
) -> None:
    """Warp a raw frame (H, W, C) into `out`, in its dtype; integers are rounded to nearest even and saturated."""
    if np.issubdtype(frame.dtype, np.integer):
        low, high = float(np.iinfo(frame.dtype).min), float(np.iinfo(frame.dtype).max)
        warped = np.empty(frame.shape, np.float32)
        # numba would compute float32 times integer in float64, which the GPU does not
        _warp(frame.astype(np.float32), flow, reference, _ONE, _ONE, _TAPS[interpolation], warped)
        _round_saturate(warped, np.float32(low), np.float32(high), out)
    else:
        _warp(frame, flow, reference, _ONE, _ONE, _TAPS[interpolation], out)


@compiled
def _round_saturate(values, low, high, out):
    for y in range(values.shape[0]):
        for x in range(values.shape[1]):
            for channel in range(values.shape[2]):
                out[y, x, channel] = min(max(np.rint(values[y, x, channel]), low), high)


@inlined
def _cubic_weights(t):
    """Weights of the four taps at distances 1 + t, t, 1 - t, 2 - t (cubic convolution, a = -0.75)."""
    s = _ONE - t
    far_left = ((_A * (t + _ONE) - np.float32(5) * _A) * (t + _ONE) + np.float32(8) * _A) * (t + _ONE) - np.float32(
        4
    ) * _A
    near_left = ((_A + np.float32(2)) * t - (_A + np.float32(3))) * t * t + _ONE
    near_right = ((_A + np.float32(2)) * s - (_A + np.float32(3))) * s * s + _ONE
    return far_left, near_left, near_right, _ONE - far_left - near_left - near_right


@compiled
def _warp(image, flow, reference, scale_x, scale_y, taps, out):
    height, width, channels = image.shape
    last_x, last_y = np.float32(width - 1), np.float32(height - 1)
    for i in range(height):
        for j in range(width):
            x = np.float32(j) + flow[0, i, j] * scale_x
            y = np.float32(i) + flow[1, i, j] * scale_y
            # written so that a NaN target counts as outside
            if not (x >= _ZERO and x < np.float32(width) and y >= _ZERO and y < np.float32(height)):
                for channel in range(channels):
                    out[i, j, channel] = reference[i, j, channel]
                continue
            x, y = min(x, last_x), min(y, last_y)
            if taps == 1:
                nearest_x, nearest_y = int(np.rint(x)), int(np.rint(y))
                for channel in range(channels):
                    out[i, j, channel] = image[nearest_y, nearest_x, channel]
                continue
            x0, y0 = int(x), int(y)
            tx, ty = x - np.float32(x0), y - np.float32(y0)
            if taps == 2:
                x1, y1 = min(x0 + 1, width - 1), min(y0 + 1, height - 1)
                for channel in range(channels):
                    top = (_ONE - tx) * image[y0, x0, channel] + tx * image[y0, x1, channel]
                    bottom = (_ONE - tx) * image[y1, x0, channel] + tx * image[y1, x1, channel]
                    out[i, j, channel] = (_ONE - ty) * top + ty * bottom
                continue
            wx0, wx1, wx2, wx3 = _cubic_weights(tx)
            wy = _cubic_weights(ty)
            xa, xb, xc = max(x0 - 1, 0), min(x0 + 1, width - 1), min(x0 + 2, width - 1)
            for channel in range(channels):
                total = _ZERO
                for k in range(4):
                    row = min(max(y0 - 1 + k, 0), height - 1)
                    total += wy[k] * (
                        wx0 * image[row, xa, channel]
                        + wx1 * image[row, x0, channel]
                        + wx2 * image[row, xb, channel]
                        + wx3 * image[row, xc, channel]
                    )
                out[i, j, channel] = total
