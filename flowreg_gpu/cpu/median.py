"""5x5 median of planes, exact, mirror boundary."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.cpu.jit import compiled, inlined

__all__ = ["median5x5"]


def median5x5(planes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Median over a 5x5 window of planes (C, H, W) float32; H, W >= 3.

    The boundary is whole-sample symmetric (2 1 | 0 1 2). Columns are sorted once and shared by the five
    windows that contain them; of the row- and column-sorted window only 13 values can be the median.
    """
    out = np.empty_like(planes)
    _median5x5(planes, out)
    return out


@inlined
def _order(a, b):
    return (a if a < b else b), (b if a < b else a)


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
def _median13(a, b, c, d, e, f, g, h, i, j, k, m, n):
    # Forgetful selection: among 8 of 13 values neither the smallest nor the largest can be the median; drop both,
    # take one more value, and so on. After a stage the first of the group is its smallest, the last its largest.
    a, b = _order(a, b)
    c, d = _order(c, d)
    e, f = _order(e, f)
    g, h = _order(g, h)
    a, c = _order(a, c)
    e, g = _order(e, g)
    a, e = _order(a, e)
    b, d = _order(b, d)
    f, h = _order(f, h)
    d, h = _order(d, h)
    # b c d e f g and i
    b, e = _order(b, e)
    c, f = _order(c, f)
    d, g = _order(d, g)
    b, c = _order(b, c)
    b, d = _order(b, d)
    b, i = _order(b, i)
    e, f = _order(e, f)
    f, g = _order(f, g)
    i, g = _order(i, g)
    # c d e f i and j
    c, e = _order(c, e)
    d, f = _order(d, f)
    i, j = _order(i, j)
    c, d = _order(c, d)
    c, i = _order(c, i)
    e, f = _order(e, f)
    j, f = _order(j, f)
    # d e i j and k
    d, e = _order(d, e)
    i, j = _order(i, j)
    d, i = _order(d, i)
    e, j = _order(e, j)
    d, k = _order(d, k)
    k, j = _order(k, j)
    # e i k and m
    e, i = _order(e, i)
    k, m = _order(k, m)
    e, k = _order(e, k)
    i, m = _order(i, m)
    # i k and n: the middle one
    i, k = _order(i, k)
    k, n = _order(k, n)
    i, k = _order(i, k)
    return k


@compiled
def _median5x5(planes, out):
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
            # 2. sort each rank across the five columns; what has more than 12 values surely above or surely
            #    below it drops out (6 each way)
            for x in range(width):
                _, _, _, a3, a4 = _sort5(rank[0, x], rank[0, x + 1], rank[0, x + 2], rank[0, x + 3], rank[0, x + 4])
                _, _, b2, b3, b4 = _sort5(rank[1, x], rank[1, x + 1], rank[1, x + 2], rank[1, x + 3], rank[1, x + 4])
                _, c1, c2, c3, _ = _sort5(rank[2, x], rank[2, x + 1], rank[2, x + 2], rank[2, x + 3], rank[2, x + 4])
                d0, d1, d2, _, _ = _sort5(rank[3, x], rank[3, x + 1], rank[3, x + 2], rank[3, x + 3], rank[3, x + 4])
                e0, e1, _, _, _ = _sort5(rank[4, x], rank[4, x + 1], rank[4, x + 2], rank[4, x + 3], rank[4, x + 4])
                # 3. median of the 13 left
                out[channel, y, x] = _median13(a3, a4, b2, b3, b4, c1, c2, c3, d0, d1, d2, e0, e1)
