"""Correlation of frames with the mean of the other ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["leave_one_out"]

_CHUNK_VALUES = 2**22  # float64 values of a part of the frames


def leave_one_out(frames: NDArray[Any], weights: NDArray[np.floating[Any]] | None = None) -> NDArray[np.float64]:
    """Correlation of each frame with the mean of the others.

    Pearson's r over the pixels of a channel, and the mean of the channels. With x a frame and S the sum of all,
    less their means over pixels, cov(x, S - x) = x S - x x and var(S - x) = S S - 2 x S + x x: the sum is all that is
    needed. Noise that the frame shares with the reference does not count, since the frame is not in the mean; noise
    that a flow has bent towards the reference does.

    Parameters
    ----------
    frames : (n, H, W, C), real
        At least two.
    weights : (C,) or None
        Of the channels; None takes them alike.

    Returns
    -------
    (n,) float64
        0 for a channel of a frame that is constant, or whose others are.
    """
    n, _, _, channels = frames.shape
    shares = np.full(channels, 1 / channels) if weights is None else np.asarray(weights, np.float64) / np.sum(weights)
    correlations = np.zeros(n)
    for channel, share in enumerate(shares):
        own, with_sum, all_sum = np.zeros(n), np.zeros(n), 0.0
        means = np.array([frame[..., channel].mean(dtype=np.float64) for frame in frames])
        for part in _row_parts(frames[..., channel]):
            part -= means[:, None]
            total = part.sum(axis=0)
            own += np.einsum("ij,ij->i", part, part)
            with_sum += part @ total
            all_sum += float(total @ total)
        covariance = with_sum - own
        norm = np.sqrt(np.maximum(own * (all_sum - 2 * with_sum + own), 0))
        correlations += share * np.divide(covariance, norm, out=np.zeros(n), where=norm > 0)
    return correlations


def _row_parts(frames: NDArray[Any]) -> Iterator[NDArray[np.float64]]:
    """Frames (n, H, W), some rows at a time, as (n, pixels)."""
    n, height, width = frames.shape
    rows = max(_CHUNK_VALUES // (n * width), 1)
    for first in range(0, height, rows):
        yield frames[:, first : first + rows].reshape(n, -1).astype(np.float64)
