"""5x5 median of planes, exact, mirror boundary."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.cpu.jit import compiled, inlined

__all__ = ["median5x5"]


def median5x5(planes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Median over a 5x5 window of planes (C, H, W) float32; H, W >= 3.

    The boundary is whole-sample symmetric (2 1 | 0 1 2). The column of five pixels through each pixel is sorted once
    and used by the five windows that contain it. Where the ranks of a window's five columns are sorted, too, only
    values on three diagonals of this 5 x 5 table can be its median (kernels/median.cuh says why).
    """
    out = np.empty_like(planes)
    _median5x5(planes, out)
    return out


@inlined
def _least(a, b):
    return a if a < b else b


@inlined
def _largest(a, b):
    return b if a < b else a


@inlined
def _order(a, b):
    return _least(a, b), _largest(a, b)


@inlined
def _sort5(a, b, c, d, e):
    a, b = _order(a, b)
    d, e = _order(d, e)
    c, e = _order(c, e)
    c, d = _order(c, d)
    b, e = _order(b, e)
    a, d = _order(a, d)
    a, c = _order(a, c)
    b, d = _order(b, d)
    b, c = _order(b, c)
    return a, b, c, d, e


@inlined
def _sort4(a, b, c, d):
    a, b = _order(a, b)
    c, d = _order(c, d)
    a, c = _order(a, c)
    b, d = _order(b, d)
    b, c = _order(b, c)
    return a, b, c, d


@inlined
def _between(value, low, high):
    """The middle one of three, where low <= high."""
    return _largest(_least(value, high), low)


@inlined
def _median3(a, b, c):
    a, b = _order(a, b)
    return _largest(a, _least(b, c))


@inlined
def _median5(a, b, c, d, e):
    a, b = _order(a, b)
    c, d = _order(c, d)
    return _median3(_largest(a, c), _least(b, d), e)


@compiled
def _median5x5(planes, out):
    """Write the medians of planes (C, H, W) to `out` (C, H, W), float32; H, W >= 3."""
    channels, height, width = planes.shape
    # rank k of the column through x, two mirrored columns on either side
    rank = np.empty((5, width + 4), np.float32)
    ends = np.array([(0, 4), (1, 3), (width + 2, width), (width + 3, width - 1)])
    for channel in range(channels):
        plane = planes[channel]
        for y in range(height):
            above2, above1 = abs(y - 2), abs(y - 1)
            below1 = y + 1 if y + 1 < height else 2 * height - 3 - y
            below2 = y + 2 if y + 2 < height else 2 * height - 4 - y
            r0, r1, r2, r3, r4 = plane[above2], plane[above1], plane[y], plane[below1], plane[below2]
            # 1. sort the column through every pixel of the row
            for x in range(width):
                a, b, c, d, e = _sort5(r0[x], r1[x], r2[x], r3[x], r4[x])
                rank[0, x + 2] = a
                rank[1, x + 2] = b
                rank[2, x + 2] = c
                rank[3, x + 2] = d
                rank[4, x + 2] = e
            for k in range(5):
                for target, source in ends:
                    rank[k, target] = rank[k, source]
            # 2. sort each rank across the five columns: four of them, and where the other one falls among these
            for x in range(width):
                _, _, a2, a3 = _sort4(rank[0, x + 1], rank[0, x + 2], rank[0, x + 3], rank[0, x + 4])
                _, b1, b2, b3 = _sort4(rank[1, x + 1], rank[1, x + 2], rank[1, x + 3], rank[1, x + 4])
                c0, c1, c2, c3 = _sort4(rank[2, x + 1], rank[2, x + 2], rank[2, x + 3], rank[2, x + 4])
                d0, d1, d2, _ = _sort4(rank[3, x + 1], rank[3, x + 2], rank[3, x + 3], rank[3, x + 4])
                e0, e1, _, _ = _sort4(rank[4, x + 1], rank[4, x + 2], rank[4, x + 3], rank[4, x + 4])
                a, b, c, d, e = rank[0, x], rank[1, x], rank[2, x], rank[3, x], rank[4, x]
                # 3. the largest, the middle one and the smallest of three diagonals, and the middle one of these
                low = _largest(
                    _largest(_between(a, a2, a3), _between(b, b1, b2)), _largest(_between(c, c0, c1), _least(d, d0))
                )
                middle = _median5(
                    _largest(a, a3), _between(b, b2, b3), _between(c, c1, c2), _between(d, d0, d1), _least(e, e0)
                )
                high = _least(
                    _least(_largest(b, b3), _between(c, c2, c3)), _least(_between(d, d1, d2), _between(e, e0, e1))
                )
                out[channel, y, x] = _median3(low, middle, high)
