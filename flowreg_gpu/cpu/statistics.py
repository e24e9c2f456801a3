"""Per-frame statistics of a flow field and the correlation of images.

Sums are taken in float64, first along the columns, each on its own, so that the loops over a row vectorise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.cpu.jit import compiled

__all__ = ["correlation", "flow_statistics", "leaves_frame"]


def flow_statistics(flow: NDArray[np.float32]) -> tuple[float, float, float, float, float, float]:
    """Mean and largest displacement, mean divergence, and mean translation of flow (2, H, W), H, W >= 2; pixels.

    Divergence is du/dx + dv/dy by central differences, one-sided at the edges; its mean over a line telescopes,
    so only the ends of every line enter. Mean translation is the mean vector: its length, x and y.
    """
    mean, largest, divergence, u, v = _flow_statistics(flow)
    return mean, largest, divergence, float(np.hypot(u, v)), u, v


def leaves_frame(flow: NDArray[np.float32]) -> bool:
    """Whether a flow (2, H, W) has diverged: somewhere |u| >= W or |v| >= H, or it is not finite.

    Such a displacement ends outside the frame wherever it begins. The registered pixel would be the reference's, and
    its correlation perfect.
    """
    _, height, width = flow.shape
    u, v = np.abs(flow[0]).max(), np.abs(flow[1]).max()
    return not (u < width and v < height)  # no comparison with NaN is true


@compiled
def _flow_statistics(flow):
    """Mean and largest length, mean divergence, mean u and mean v of flow (2, H, W) float32, as float64."""
    _, height, width = flow.shape
    sums = np.zeros((4, width))
    divergence = 0.0
    for y in range(height):
        line = flow[0, y]
        _add_flow(line, flow[1, y], sums[0], sums[1], sums[2], sums[3])
        # sum of np.gradient along a line: 3/2 of the last minus first difference pair, see the telescoped terms
        divergence += 1.5 * (line[width - 1] - line[0]) - 0.5 * (line[width - 2] - line[1])
    for x in range(width):
        divergence += 1.5 * (flow[1, height - 1, x] - flow[1, 0, x]) - 0.5 * (flow[1, height - 2, x] - flow[1, 1, x])
    count = height * width
    return sums[0].sum() / count, sums[1].max(), divergence / count, sums[2].sum() / count, sums[3].sum() / count


@compiled
def _add_flow(u, v, lengths, largest, total_u, total_v):
    """Add a row (W,) float32 of a flow to the sums and maxima along the columns, (W,) float64 each."""
    for x in range(u.size):
        a, b = np.float64(u[x]), np.float64(v[x])
        length = np.sqrt(a * a + b * b)
        lengths[x] += length
        largest[x] = length if length > largest[x] else largest[x]  # a NaN stays in the sum of lengths
        total_u[x] += a
        total_v[x] += b


def correlation(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Pearson correlation of two images of the same shape (H, W, C); 0 where one is constant."""
    return float(_correlation(*(image.reshape(len(image), -1) for image in (first, second))))


@compiled
def _correlation(first, second):
    """Pearson correlation of two images (H, W C) of any real dtype, in float64.

    In one pass, with sums of a - a_0 and b - b_0, where a_0 and b_0 are the first pixels, as in kernels/statistics.cu,
    which says why that is exact enough.
    """
    height, width = first.shape
    sums = np.zeros((5, width))
    a_first, b_first = np.float64(first[0, 0]), np.float64(second[0, 0])
    for y in range(height):
        _add_moments(first[y], second[y], a_first, b_first, sums[0], sums[1], sums[2], sums[3], sums[4])
    a, b = sums[0].sum(), sums[1].sum()
    aa, bb = sums[2].sum() - a * a / first.size, sums[3].sum() - b * b / first.size
    ab = sums[4].sum() - a * b / first.size
    return ab / np.sqrt(aa * bb) if aa > 0.0 and bb > 0.0 else 0.0


@compiled
def _add_moments(first, second, a_first, b_first, a_sum, b_sum, aa, bb, ab):
    """Add two rows to the sums of a, b, a^2, b^2 and a b along the columns, (W C,) float64 each."""
    for x in range(first.size):
        a, b = np.float64(first[x]) - a_first, np.float64(second[x]) - b_first
        a_sum[x] += a
        b_sum[x] += b
        aa[x] += a * a
        bb[x] += b * b
        ab[x] += a * b
