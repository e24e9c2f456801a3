"""Per-frame statistics of a flow field and the correlation of images."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.cpu.jit import compiled

__all__ = ["correlation", "flow_statistics"]


def flow_statistics(flow: NDArray[np.float32]) -> tuple[float, float, float, float]:
    """Mean and largest displacement, mean divergence, mean translation of flow (2, H, W), H, W >= 2; pixels.

    Divergence is du/dx + dv/dy by central differences, one-sided at the edges; its mean over a line telescopes,
    so only the ends of every line enter. Mean translation is the length of the mean vector.
    """
    mean, largest, divergence, u, v = _flow_statistics(flow)
    return mean, largest, divergence, float(np.hypot(u, v))


@compiled
def _flow_statistics(flow):
    _, height, width = flow.shape
    total_length, largest, total_u, total_v, divergence = 0.0, 0.0, 0.0, 0.0, 0.0
    for y in range(height):
        for x in range(width):
            u, v = np.float64(flow[0, y, x]), np.float64(flow[1, y, x])
            length = np.sqrt(u * u + v * v)
            total_length += length
            largest = max(largest, length)
            total_u += u
            total_v += v
        # sum of np.gradient along a line: 3/2 of the last minus first difference pair, see the telescoped terms
        line = flow[0, y]
        divergence += 1.5 * (line[width - 1] - line[0]) - 0.5 * (line[width - 2] - line[1])
    for x in range(width):
        divergence += 1.5 * (flow[1, height - 1, x] - flow[1, 0, x]) - 0.5 * (flow[1, height - 2, x] - flow[1, 1, x])
    count = height * width
    return total_length / count, largest, divergence / count, total_u / count, total_v / count


def correlation(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Pearson correlation of two images of the same shape (H, W, C); 0 where one is constant."""
    return float(_correlation(first, second))


@compiled
def _correlation(first, second):
    height, width, channels = first.shape
    count = height * width * channels
    a_sum, b_sum = 0.0, 0.0
    for y in range(height):
        for x in range(width):
            for channel in range(channels):
                a_sum += np.float64(first[y, x, channel])
                b_sum += np.float64(second[y, x, channel])
    a_mean, b_mean = a_sum / count, b_sum / count
    ab, aa, bb = 0.0, 0.0, 0.0
    for y in range(height):
        for x in range(width):
            for channel in range(channels):
                a = np.float64(first[y, x, channel]) - a_mean
                b = np.float64(second[y, x, channel]) - b_mean
                ab += a * b
                aa += a * a
                bb += b * b
    return ab / np.sqrt(aa * bb) if aa > 0.0 and bb > 0.0 else 0.0
