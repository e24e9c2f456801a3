"""Correlation of frames with the mean of the other ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.quality.pixels import check_frames, check_valid, pixel_parts, used_pixels

__all__ = ["leave_one_out"]

# Of the squares that a variance is the difference of: what is smaller is rounding, and the variance is zero.
_ROUNDING = 1e-12


def leave_one_out(
    frames: NDArray[Any],
    weights: NDArray[np.floating[Any]] | None = None,
    valid: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:
    """Correlation of each frame with the mean of the others.

    Pearson's r over the pixels of a channel, and the mean of the channels. With x a frame and S the sum of all frames,
    less their means over pixels, the others sum to S - x, and with x y the sum over pixels of their products

        r = (x S - x x) / sqrt(x x (S S - 2 x S + x x)),

    so that S is all that is needed. NoRMCorre compares frames with the mean of all of them (Pnevmatikakis and
    Giovannucci, J. Neurosci. Methods 291, 2017); here the frame itself is not in the mean, since its own noise would
    raise r, the more the fewer frames there are. r still rises where a flow bends the noise of frames towards one
    reference.

    Parameters
    ----------
    frames : (n, H, W, C), real
        Pixels that are NaN or infinite in any frame are left out.
    weights : (C,) or None
        Of the channels, not negative; None takes them alike.
    valid : (H, W) bool or None
        Pixels that are compared; None takes all.

    Returns
    -------
    (n,) float64
        -1 to 1, without unit. 0 for a channel of a frame that is constant, or whose others are, and for a frame alone.

    Raises
    ------
    ValueError, TypeError
        Where shapes, dtypes or weights are not as above.

    Examples
    --------
    >>> import numpy as np
    >>> frames = np.arange(12.0).reshape(1, 3, 4, 1) * np.array([1, 2, -1]).reshape(3, 1, 1, 1)
    >>> leave_one_out(frames).round(6).tolist()
    [1.0, 0.0, -1.0]
    """
    check_frames(frames, "n, H, W, C")
    n, height, width, channels = frames.shape
    valid = check_valid(valid, height, width)
    correlations = np.zeros(n)
    for channel, share in enumerate(_shares(weights, channels)):
        correlations += share * _of_channel(frames[..., channel], valid)
    return correlations


def _shares(weights: NDArray[np.floating[Any]] | None, channels: int) -> NDArray[np.float64]:
    """Weights (C,) that sum to 1."""
    shares = np.ones(channels) if weights is None else np.asarray(weights, np.float64)
    if shares.shape != (channels,) or not (np.isfinite(shares) & (shares >= 0)).all() or not shares.any():
        raise ValueError(f"weights={shares.tolist()} are not {channels} weights of channels, 0 or more and not all 0")
    normalised: NDArray[np.float64] = shares / shares.sum()
    return normalised


def _of_channel(frames: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Correlations (n,) of frames (n, H, W)."""
    n, height, width = frames.shape
    pivots, means = _means(frames, valid)
    own, with_sum, all_sum = np.zeros(n), np.zeros(n), 0.0
    for part in pixel_parts(n, height, width):
        values = used_pixels(frames, valid, part)
        values -= pivots
        values -= means
        total = values.sum(axis=0)
        own += np.einsum("ij,ij->i", values, values)
        with_sum += values @ total
        all_sum += float(total @ total)
    others = all_sum - 2 * with_sum + own
    others[others <= _ROUNDING * (all_sum + own)] = 0
    norm = np.sqrt(own) * np.sqrt(others)
    correlations: NDArray[np.float64] = np.divide(with_sum - own, norm, out=np.zeros(n), where=norm > 0)
    return np.clip(correlations, -1, 1)


def _means(frames: NDArray[Any], valid: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One used pixel of every frame, (n, 1), and the mean of the frame less it, (n, 1).

    A constant frame less one of its pixels is zero exactly, and its variance, too.
    """
    n, height, width = frames.shape
    pivots, sums, count = np.zeros((n, 1)), np.zeros((n, 1)), 0
    for part in pixel_parts(n, height, width):
        values = used_pixels(frames, valid, part)
        if not count and values.size:
            pivots = values[:, :1].copy()
        sums += (values - pivots).sum(axis=1, keepdims=True)
        count += values.shape[1]
    return pivots, sums / max(count, 1)
