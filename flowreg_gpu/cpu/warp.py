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
_ONE = np.float32(1)
_U = np.uint64


def warp(
    moving: NDArray[np.float32],
    flow: NDArray[np.float32],
    reference: NDArray[np.float32],
    spacing: tuple[float, float] = (1.0, 1.0),
    interpolation: str = "cubic",
) -> NDArray[np.float32]:
    """Warp planes (C, h, w) float32 by flow (2, h, w) in full-resolution pixels, grid spacing (hx, hy)."""
    out = np.empty(moving.shape, np.float32)
    channels, height, width = moving.shape
    scale = (np.float32(1 / spacing[0]), np.float32(1 / spacing[1]))
    _warp(
        *map(_flat, (moving, flow, reference)), height, width, channels, 1, height * width, *scale,
        _TAPS[interpolation], _flat(out),
    )  # fmt: skip
    return out


def warp_frame(
    frame: NDArray[Any],
    flow: NDArray[np.float32],
    reference: NDArray[np.float32],
    interpolation: str,
    out: NDArray[Any],
) -> None:
    """Warp a raw frame (H, W, C) into `out`, in its dtype; integers are rounded to nearest even and saturated."""
    height, width, channels = frame.shape
    integers = np.issubdtype(frame.dtype, np.integer)
    # numba would compute float32 times integer in float64, which the GPU does not
    image = frame.astype(np.float32) if integers else frame
    warped = np.empty(image.shape, image.dtype)
    _warp(
        *map(_flat, (image, flow, reference)), height, width, channels, channels, 1, _ONE, _ONE,
        _TAPS[interpolation], _flat(warped),
    )  # fmt: skip
    if integers:
        limits = np.iinfo(frame.dtype)
        _round_saturate(warped, np.float32(limits.min), np.float32(limits.max), out)
    else:
        out[...] = warped


def _flat(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array).reshape(-1)


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


# Flat arrays and unsigned offsets: numba tests every other index for being negative. Pixel (y, x) of a channel lies at
# (y width + x) pixel_step + channel channel_step, so that planes and raw frames are read alike; flows are planes.


@compiled
def _warp(
    image, flow, reference, height, width, channels, pixel_step, channel_step, scale_x, scale_y, taps, out
):  # fmt: skip
    row_step = width * pixel_step
    column, row = np.empty(width, np.int32), np.empty(width, np.int32)
    shares_x, shares_y = np.empty(4 * width, np.float32), np.empty(4 * width, np.float32)
    for i in range(height):
        # 1. where the pixels of this row are taken from; -1: from outside
        _place(flow, i * width, 0, 1, scale_x, width, width, taps, column, shares_x)
        _place(flow, (height + i) * width, i, 0, scale_y, height, width, taps, row, shares_y)
        # 2. what is there
        for j in range(width):
            x, y = np.int64(column[_U(j)]), np.int64(row[_U(j)])
            at = i * row_step + j * pixel_step
            if x < 0 or y < 0:
                for channel in range(channels):
                    out[_U(at + channel * channel_step)] = reference[_U(at + channel * channel_step)]
            elif taps == 1:
                source = y * row_step + x * pixel_step
                for channel in range(channels):
                    out[_U(at + channel * channel_step)] = image[_U(source + channel * channel_step)]
            elif taps == 2:
                tx, ty = shares_x[_U(j)], shares_y[_U(j)]
                right = (min(x + 1, width - 1) - x) * pixel_step
                below = (min(y + 1, height - 1) - y) * row_step
                for channel in range(channels):
                    source = y * row_step + x * pixel_step + channel * channel_step
                    top = (_ONE - tx) * image[_U(source)] + tx * image[_U(source + right)]
                    bottom = (_ONE - tx) * image[_U(source + below)] + tx * image[_U(source + below + right)]
                    out[_U(at + channel * channel_step)] = (_ONE - ty) * top + ty * bottom
            elif 1 <= x < width - 2 and 1 <= y < height - 2:
                source = (y - 1) * row_step + (x - 1) * pixel_step
                for channel in range(channels):
                    a = _U(source + channel * channel_step)
                    b, c, d = a + _U(row_step), a + _U(2 * row_step), a + _U(3 * row_step)
                    total = shares_y[_U(j)] * _line(image, a, _U(pixel_step), shares_x, j, width)
                    total += shares_y[_U(width + j)] * _line(image, b, _U(pixel_step), shares_x, j, width)
                    total += shares_y[_U(2 * width + j)] * _line(image, c, _U(pixel_step), shares_x, j, width)
                    total += shares_y[_U(3 * width + j)] * _line(image, d, _U(pixel_step), shares_x, j, width)
                    out[_U(at + channel * channel_step)] = total
            else:
                for channel in range(channels):
                    total = _ZERO
                    for k in range(4):
                        begin = min(max(y - 1 + k, 0), height - 1) * row_step + channel * channel_step
                        line = _ZERO
                        for m in range(4):
                            tap = _U(begin + min(max(x - 1 + m, 0), width - 1) * pixel_step)
                            line += shares_x[_U(m * width + j)] * image[tap]
                        total += shares_y[_U(k * width + j)] * line
                    out[_U(at + channel * channel_step)] = total


@inlined
def _line(image, begin, step, shares, j, width):
    return (
        shares[_U(j)] * image[begin]
        + shares[_U(width + j)] * image[begin + step]
        + shares[_U(2 * width + j)] * image[begin + step + step]
        + shares[_U(3 * width + j)] * image[begin + step + step + step]
    )


@compiled
def _place(flow, offset, first, step, scale, size, width, taps, index, shares):
    """Positions first + step j + scale flow along an axis of `size` pixels: whole part, and shares of the taps.

    Whole part -1 where the position lies outside or is NaN. The nearest pixel has no shares, linear interpolation one,
    of the second pixel.
    """
    last, limit = np.float32(size - 1), np.float32(size)
    for j in range(width):
        position = np.float32(first + step * j) + flow[_U(offset + j)] * scale
        inside = (position >= _ZERO) & (position < limit)
        clamped = min(position, last) if inside else _ZERO
        if taps == 1:
            clamped = np.rint(clamped)
        whole = np.int32(clamped)
        index[_U(j)] = whole if inside else np.int32(-1)
        shares[_U(j)] = clamped - np.float32(whole)
    if taps == 4:
        for j in range(width):
            far_left, near_left, near_right, far_right = _cubic_weights(shares[_U(j)])
            shares[_U(j)] = far_left
            shares[_U(width + j)] = near_left
            shares[_U(2 * width + j)] = near_right
            shares[_U(3 * width + j)] = far_right
