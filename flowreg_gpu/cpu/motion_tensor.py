"""Motion tensors of the three data terms.

A tensor holds J11, J22, J33, J12, J13, J23 of one channel, so that the squared, normalised residual of an
increment (du, dv) is J11 du^2 + J22 dv^2 + 2 J12 du dv + 2 J13 du + 2 J23 dv + J33 (Bruhn, Weickert and
Schnoerr 2005). Spatial derivatives are those of the mean of the two frames, temporal ones their difference.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.cpu.jit import compiled

__all__ = ["motion_tensor"]

_HALF = np.float32(0.5)
_ONE = np.float32(1)
_TWO = np.float32(2)
_TIKHONOV = np.float32(1e-6)  # keeps the normalisation of the gradient term finite where the image is flat
_CENSUS_EPS2 = np.float32((0.1 / 255) ** 2)  # a tenth of a grey level of 8-bit images, here scaled to 0-1
_CENSUS_FACTOR = np.float32(2 / 8)  # of each of the 8 neighbours


def motion_tensor(
    reference: NDArray[np.float32], moving: NDArray[np.float32], hx: float, hy: float, const_assumption: str
) -> NDArray[np.float32]:
    """Tensor (C, 6, h, w) float32 of planes (C, h, w) with grid spacings hx, hy (full-resolution pixels)."""
    channels, height, width = reference.shape
    out = np.empty((channels, 6, height, width), np.float32)
    fill = {"gc": _gradient_constancy, "gray": _brightness_constancy, "cs": _census_constancy}[const_assumption]
    if const_assumption != "gc":
        edge = ((0, 0), (1, 1), (1, 1))
        reference, moving = np.pad(reference, edge, "symmetric"), np.pad(moving, edge, "symmetric")
    fill(reference, moving, np.float32(hx), np.float32(hy), out)
    return out


@compiled
def _gradient_constancy(first, second, hx, hy, out):
    """Write the tensors (C, 6, h, w) of planes (C, h, w), all float32, for the constancy of the gradient.

    Each component of the gradient is normalised by its own gradient (Zimmer, Bruhn, Weickert 2011): with
    r_x = 1 / (f_xx^2 + f_xy^2 + 1e-6) and r_y = 1 / (f_xy^2 + f_yy^2 + 1e-6),
    J = r_x (f_xx, f_xy, f_xt) (f_xx, f_xy, f_xt)^T + r_y (f_xy, f_yy, f_yt) (f_xy, f_yy, f_yt)^T.
    """
    channels, height, width = first.shape
    # mean and change of the two frames; row y is kept in row y % 3, with a pixel repeated at either end
    mean, change = np.empty((3, width + 2), np.float32), np.empty((3, width + 2), np.float32)
    for channel in range(channels):
        for below in range(height + 1):
            if below < height:
                _mean_and_change(first[channel, below], second[channel, below], mean[below % 3], change[below % 3])
            y = below - 1
            if y >= 0:
                a, b, c = max(y - 1, 0) % 3, y % 3, min(below, height - 1) % 3
                _gradient_row(
                    mean[a], mean[b], mean[c], change[a], change[b], change[c], hx, hy,
                    out[channel, 0, y], out[channel, 1, y], out[channel, 2, y],
                    out[channel, 3, y], out[channel, 4, y], out[channel, 5, y],
                )  # fmt: skip


@compiled
def _mean_and_change(first, second, mean, change):
    """Mean and difference of two rows (w,), with a pixel repeated at either end (w + 2,), float32."""
    width = first.size
    for x in range(width):
        mean[x + 1] = _HALF * (first[x] + second[x])
        change[x + 1] = second[x] - first[x]
    for line in (mean, change):
        line[0] = line[1]
        line[width + 1] = line[width]


@compiled
def _gradient_row(
    above, here, below, change_above, change_here, change_below, hx, hy, j11, j22, j33, j12, j13, j23
):  # fmt: skip
    """One row of `_gradient_constancy`: rows (w + 2,) of mean and change in, rows (w,) of the tensor out."""
    cx, cy = _HALF / hx, _HALF / hy
    cxx, cyy, cxy = _ONE / (hx * hx), _ONE / (hy * hy), _HALF / hx * (_HALF / hy)
    for x in range(j11.size):
        # 1. derivatives
        fxx = cxx * (here[x] - _TWO * here[x + 1] + here[x + 2])
        fyy = cyy * (above[x + 1] - _TWO * here[x + 1] + below[x + 1])
        fxy = cxy * ((below[x + 2] - below[x]) - (above[x + 2] - above[x]))
        fxt = cx * (change_here[x + 2] - change_here[x])
        fyt = cy * (change_below[x + 1] - change_above[x + 1])
        # 2. normalised products
        rx = _ONE / (fxx * fxx + fxy * fxy + _TIKHONOV)
        ry = _ONE / (fxy * fxy + fyy * fyy + _TIKHONOV)
        j11[x] = rx * fxx * fxx + ry * fxy * fxy
        j22[x] = rx * fxy * fxy + ry * fyy * fyy
        j33[x] = rx * fxt * fxt + ry * fyt * fyt
        j12[x] = rx * fxx * fxy + ry * fxy * fyy
        j13[x] = rx * fxx * fxt + ry * fxy * fyt
        j23[x] = rx * fxy * fxt + ry * fyy * fyt


@compiled
def _brightness_constancy(first, second, hx, hy, out):
    """Write the tensors (C, 6, h, w) of padded planes (C, h + 2, w + 2) for the constancy of the brightness.

    J = (f_x, f_y, f_t) (f_x, f_y, f_t)^T (Horn and Schunck 1981); all arrays are float32.
    """
    for channel in range(out.shape[0]):
        for y in range(out.shape[2]):
            for k in range(6):
                out[channel, k, y] = 0
        _add_gray_tensor(first[channel], second[channel], hx, hy, _ONE, out[channel])


@compiled
def _add_gray_tensor(first, second, hx, hy, factor, out):
    """Add `factor` times the products of (fx, fy, ft) of two planes (h + 2, w + 2) to a tensor (6, h, w), float32."""
    _, height, width = out.shape
    cx, cy = _HALF / hx, _HALF / hy
    gradient = np.empty((3, width), np.float32)
    fx, fy, ft = gradient[0], gradient[1], gradient[2]
    for y in range(height):
        a0, a1, a2 = first[y], first[y + 1], first[y + 2]
        b0, b1, b2 = second[y], second[y + 1], second[y + 2]
        for x in range(width):
            fx[x] = cx * _HALF * ((a1[x + 2] - a1[x]) + (b1[x + 2] - b1[x]))
            fy[x] = cy * _HALF * ((a2[x + 1] - a0[x + 1]) + (b2[x + 1] - b0[x + 1]))
            ft[x] = b1[x + 1] - a1[x + 1]
        j11, j22, j33, j12, j13, j23 = out[0, y], out[1, y], out[2, y], out[3, y], out[4, y], out[5, y]
        for x in range(width):
            j11[x] += factor * fx[x] * fx[x]
            j22[x] += factor * fy[x] * fy[x]
            j33[x] += factor * ft[x] * ft[x]
            j12[x] += factor * fx[x] * fy[x]
            j13[x] += factor * fx[x] * ft[x]
            j23[x] += factor * fy[x] * ft[x]


@compiled
def _census_constancy(first, second, hx, hy, out):
    """Write the tensors (C, 6, h, w) of padded planes (C, h + 2, w + 2) for the constancy of the census signature.

    J is the sum of the tensors of brightness constancy of the smoothed signatures of all 8 neighbours, times 2 / 8
    (Hafner, Demetz, Weickert 2013); all arrays are float32.
    """
    channels, _, height, width = out.shape
    signature = np.empty((2, height + 2, width + 2), np.float32)
    for channel in range(channels):
        out[channel] = 0
        for dy in range(-1, 2):
            for dx in range(-1, 2):
                if dy == 0 and dx == 0:
                    continue
                reciprocal = np.float32(_ONE / np.sqrt((dx * hx) ** 2 + (dy * hy) ** 2))
                _census_signature(first[channel], dy, dx, reciprocal, signature[0])
                _census_signature(second[channel], dy, dx, reciprocal, signature[1])
                _add_gray_tensor(signature[0], signature[1], hx, hy, _CENSUS_FACTOR, out[channel])


@compiled
def _census_signature(image, dy, dx, reciprocal, out):
    """Write the smoothed signature (h, w) float32 of an image (h, w) for the neighbour at (dy, dx).

    s = (1 + r / sqrt(r^2 + eps^2)) / 2, r = (neighbour - centre) / distance, `reciprocal` being 1 / distance. Only the
    inner pixels have all neighbours; the border of the signature repeats them.
    """
    height, width = image.shape
    for y in range(1, height - 1):
        neighbour_row, centre_row, line = image[y + dy], image[y], out[y]
        for x in range(1, width - 1):
            r = (neighbour_row[x + dx] - centre_row[x]) * reciprocal
            line[x] = _HALF * (_ONE + r / np.sqrt(r * r + _CENSUS_EPS2))
        line[0] = line[1]
        line[width - 1] = line[width - 2]
    out[0] = out[1]
    out[height - 1] = out[height - 2]
