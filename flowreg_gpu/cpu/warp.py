"""Backward warp: registered(y, x) = image(y + v, x + u), cubic, linear or nearest.

A target outside the image (x < 0, x >= W, y < 0 or y >= H) is taken from the reference. Inside, coordinates are
clamped to [0, W - 1] x [0, H - 1] and the interpolation kernel sees replicated borders. Sub-pixel positions are
exact (OpenCV's remap rounds them to 1/32 pixel).

Flows are smooth, so that neighbouring pixels are mostly taken from neighbouring ones. The kernel therefore computes
`_RUN` pixels of a row at a time as if they all lay as far from their sources as the first does, which vectorises, and
goes on at the first one that does not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.cpu.jit import compiled, inlined
from flowreg_gpu.cpu.store import store
from flowreg_gpu.model.resampling import CUBIC_A

__all__ = ["lies_inside", "warp", "warp_frame"]

_TAPS = {"cubic": 4, "linear": 2, "nearest": 1}
_A = np.float32(CUBIC_A)
_ZERO = np.float32(0)
_ONE = np.float32(1)
_U = np.uint64
_RUN = 16  # chosen by measurement: benchmarks/ATTEMPTS.md, "warp: 16 pixels at a time"
_ALONE = np.int64(-(2**62))  # offset of a pixel whose taps are not all inside


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
    image = np.stack(tuple(np.moveaxis(frame, -1, 0)), dtype=np.float32 if integers else frame.dtype)
    warped = np.empty_like(image)
    _warp(
        *map(_flat, (image, flow, reference)), height, width, channels, channels, 1, _ONE, _ONE,
        _TAPS[interpolation], _flat(warped),
    )  # fmt: skip
    store(warped, out)


def _flat(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array).reshape(-1)


@inlined
def lies_inside(position, limit):
    """Whether a position along an axis of `limit` pixels, both float32, lies inside; NaN does not."""
    return (position >= _ZERO) & (position < limit)


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


# Flat arrays and unsigned offsets: numba tests every other index for being negative. Pixel (y, x) of a channel of the
# reference lies at (y width + x) pixel_step + channel channel_step, so that planes and raw frames are read alike.


@compiled
def _warp(
    image, flow, reference, height, width, channels, pixel_step, channel_step, scale_x, scale_y, taps, out
):  # fmt: skip
    """Write image(y + v scale_y, x + u scale_x) of every channel to `out`, planes (C, H, W) of the image's dtype, flat.

    From image (C, H, W) float32 or float64, flow (2, H, W) float32 and the reference, all flat. `taps` is 4 (cubic), 2
    (linear) or 1 (nearest).
    """
    pitch = width + _RUN
    column, row = np.empty(width, np.int32), np.empty(width, np.int32)
    offset = np.empty(pitch, np.int64)
    weights_x, weights_y = np.empty(4 * pitch, np.float32), np.empty(4 * pitch, np.float32)
    line = np.empty(pitch, image.dtype)
    before, after = (taps - 1) // 2, taps // 2
    for y in range(height):
        # 1. where the pixels of this row are taken from
        _place(flow, y * width, 0, 1, scale_x, width, width, pitch, taps, column, weights_x)
        _place(flow, (height + y) * width, y, 0, scale_y, height, width, pitch, taps, row, weights_y)
        _offsets(column, row, height, width, before, after, offset)
        for channel in range(channels):
            # 2. what is there
            plane, last = channel * height * width, image.size - after * width - after - _RUN
            outside = y * width * pixel_step + channel * channel_step
            x = 0
            while x < width:
                here = offset[_U(x)]
                source = plane + here + x
                if here == _ALONE or source > last:
                    line[_U(x)] = _single(
                        image, plane, column[_U(x)], row[_U(x)], height, width, weights_x, weights_y, pitch, x, taps,
                        reference[_U(outside + x * pixel_step)],
                    )  # fmt: skip
                    x += 1
                    continue
                if taps == 4:
                    _cubic_run(image, source - width - 1, width, weights_x, weights_y, pitch, x, line)
                elif taps == 2:
                    _linear_run(image, source, width, weights_x, weights_y, x, line)
                else:
                    for i in range(_RUN):
                        line[_U(x + i)] = image[_U(source + i)]
                count = 1
                while count < _RUN and offset[_U(x + count)] == here:
                    count += 1
                x += count
            for x in range(width):
                out[_U(plane + y * width + x)] = line[_U(x)]


@compiled
def _cubic_run(image, a, width, weights_x, weights_y, pitch, x, line):
    """Pixels x to x + `_RUN` of a row, cubically; `a` is where the first tap of the first one lies in the image."""
    for i in range(_RUN):
        j = x + i
        total = weights_y[_U(j)] * _line(image, a + i, weights_x, j, pitch)
        total += weights_y[_U(pitch + j)] * _line(image, a + width + i, weights_x, j, pitch)
        total += weights_y[_U(2 * pitch + j)] * _line(image, a + 2 * width + i, weights_x, j, pitch)
        total += weights_y[_U(3 * pitch + j)] * _line(image, a + 3 * width + i, weights_x, j, pitch)
        line[_U(j)] = total


@inlined
def _line(image, begin, weights, j, pitch):
    """Weighted sum of the four taps of pixel j in one row of the image."""
    return (
        weights[_U(j)] * image[_U(begin)]
        + weights[_U(pitch + j)] * image[_U(begin + 1)]
        + weights[_U(2 * pitch + j)] * image[_U(begin + 2)]
        + weights[_U(3 * pitch + j)] * image[_U(begin + 3)]
    )


@compiled
def _linear_run(image, a, width, weights_x, weights_y, x, line):
    """Pixels x to x + `_RUN` of a row, linearly; `a` is where the upper left tap of the first one lies in the image."""
    for i in range(_RUN):
        tx, ty = weights_x[_U(x + i)], weights_y[_U(x + i)]
        top = (_ONE - tx) * image[_U(a + i)] + tx * image[_U(a + i + 1)]
        bottom = (_ONE - tx) * image[_U(a + width + i)] + tx * image[_U(a + width + i + 1)]
        line[_U(x + i)] = (_ONE - ty) * top + ty * bottom


@compiled
def _single(image, plane, x, y, height, width, weights_x, weights_y, pitch, j, taps, outside):
    """One pixel whose taps are partly or wholly outside: taps at the border, or the reference's value `outside`."""
    if x < 0 or y < 0:
        return image.dtype.type(outside)
    if taps == 1:
        return image[_U(plane + y * width + x)]
    if taps == 2:
        tx, ty = weights_x[_U(j)], weights_y[_U(j)]
        a, b = plane + y * width, plane + min(y + 1, height - 1) * width
        right = min(x + 1, width - 1)
        top = (_ONE - tx) * image[_U(a + x)] + tx * image[_U(a + right)]
        bottom = (_ONE - tx) * image[_U(b + x)] + tx * image[_U(b + right)]
        return (_ONE - ty) * top + ty * bottom
    total = image.dtype.type(0)
    for k in range(4):
        begin = plane + min(max(y - 1 + k, 0), height - 1) * width
        line = image.dtype.type(0)
        for m in range(4):
            line += weights_x[_U(m * pitch + j)] * image[_U(begin + min(max(x - 1 + m, 0), width - 1))]
        total += weights_y[_U(k * pitch + j)] * line
    return total


@compiled
def _place(flow, offset, first, step, scale, size, width, pitch, taps, index, weights):
    """Positions first + step j + scale flow along an axis of `size` pixels: whole part, and weights of the taps.

    Whole part -1 where the position lies outside or is NaN. The nearest pixel has no weights, linear interpolation one,
    of the second pixel.
    """
    last, limit = np.float32(size - 1), np.float32(size)
    for j in range(width):
        position = np.float32(first + step * j) + flow[_U(offset + j)] * scale
        inside = lies_inside(position, limit)
        clamped = min(position, last) if inside else _ZERO
        if taps == 1:
            clamped = np.rint(clamped)
        whole = np.int32(clamped)
        index[_U(j)] = whole if inside else np.int32(-1)
        weights[_U(j)] = clamped - np.float32(whole)
    if taps == 4:
        for j in range(width):
            far_left, near_left, near_right, far_right = _cubic_weights(weights[_U(j)])
            weights[_U(j)] = far_left
            weights[_U(pitch + j)] = near_left
            weights[_U(2 * pitch + j)] = near_right
            weights[_U(3 * pitch + j)] = far_right


@compiled
def _offsets(column, row, height, width, before, after, offset):
    """How far in memory each pixel's source is from the pixel's place in the first row; `_ALONE` near the border."""
    for j in range(width):
        x, y = np.int64(column[_U(j)]), np.int64(row[_U(j)])
        inner = (x >= before) & (x < width - after) & (y >= before) & (y < height - after)
        offset[_U(j)] = y * width + x - j if inner else _ALONE
    for j in range(width, offset.size):
        offset[_U(j)] = _ALONE
