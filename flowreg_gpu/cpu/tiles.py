"""Correlation of two images tile by tile, over weighted pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.cpu.jit import compiled

__all__ = ["tile_correlations", "tile_grid"]

# Pixels along the side of a tile, and from the frame's border to the first one: there the filter sees mirrored pixels.
TILE, BORDER = 16, 8


def tile_grid(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of tiles in a frame; 0 where it is too small."""
    rows, columns = (max(size - 2 * BORDER, 0) // TILE for size in (height, width))
    return rows, columns


def tile_correlations(
    image: NDArray[np.float32], reference: NDArray[np.float32], weight: NDArray[np.float32], flow: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Correlate planes in tiles of 16 x 16 pixels, 8 px or more from the border.

    Parameters
    ----------
    image, reference : (C, H, W) float32
    weight : (H, W) float32
        Of each pixel, 0 or more.
    flow : (2, H, W) float32
        The one that `image` was warped by, pixels.

    Returns
    -------
    correlations : (C, rows, columns) float64
        Weighted Pearson correlation; 0 where one of both is constant.
    outside : (rows, columns) bool
        Whether the flow takes a pixel of the tile from outside the frame.
    """
    channels, height, width = image.shape
    rows, columns = tile_grid(height, width)
    correlations = np.zeros((channels, rows, columns))
    outside = np.zeros((rows, columns), np.bool_)
    top, left = (height - rows * TILE) // 2, (width - columns * TILE) // 2
    _correlate(image, reference, weight, flow, top, left, correlations, outside)
    return correlations, outside


@compiled
def _correlate(image, reference, weight, flow, top, left, correlations, outside):
    """Write the correlations and flags of `tile_correlations`; the first tile begins at pixel (top, left)."""
    channels, height, width = image.shape
    for row in range(outside.shape[0]):
        for column in range(outside.shape[1]):
            y_first, x_first = top + row * TILE, left + column * TILE
            for y in range(y_first, y_first + TILE):
                for x in range(x_first, x_first + TILE):
                    u, v = x + flow[0, y, x], y + flow[1, y, x]
                    if not (0 <= u < width and 0 <= v < height):
                        outside[row, column] = True
            for channel in range(channels):
                correlations[channel, row, column] = _tile_correlation(
                    image[channel], reference[channel], weight, y_first, x_first
                )


@compiled
def _tile_correlation(image, reference, weight, top, left):
    """Weighted Pearson correlation of the tile at (top, left) of two planes (H, W) float32, in float64."""
    total = a_sum = b_sum = aa = bb = ab = 0.0
    # sums of differences to a pixel of the tile: their squares do not cancel
    a_first, b_first = np.float64(image[top, left]), np.float64(reference[top, left])
    for y in range(top, top + TILE):
        for x in range(left, left + TILE):
            w = np.float64(weight[y, x])
            a, b = np.float64(image[y, x]) - a_first, np.float64(reference[y, x]) - b_first
            total += w
            a_sum += w * a
            b_sum += w * b
            aa += w * a * a
            bb += w * b * b
            ab += w * a * b
    if total == 0.0:
        return 0.0
    a_variance, b_variance = aa - a_sum * a_sum / total, bb - b_sum * b_sum / total
    if not (a_variance > 0.0 and b_variance > 0.0):
        return 0.0
    return (ab - a_sum * b_sum / total) / np.sqrt(a_variance * b_variance)
