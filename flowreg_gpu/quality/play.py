"""Frames of a recording that are worth being looked at."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["frames_to_play", "worst_frames"]

RUN = 4  # frames that are played one after the other where it moves; and what worst frames are apart


def frames_to_play(displacement: NDArray[np.floating], flagged: NDArray[np.bool_], count: int) -> NDArray[np.intp]:
    """Choose frames that show what was registered: where it moved most, and what it was like elsewhere.

    About half of them are runs of four successive frames, those whose median displacement is largest, so that a single
    frame that stands out does not make a run; they are so far apart that they come from different parts of the
    recording. The others are spread evenly over what is left.

    Parameters
    ----------
    displacement : (T,) float
        Mean of each frame, pixels; what is not finite counts as 0.
    flagged : (T,) bool
        Frames without a flow of their own; left out, unless there is no other or the recording is short.
    count : int
        Of frames. All frames are returned where there are no more, and all that are not flagged where these are fewer.

    Returns
    -------
    (K,) int
        Their numbers, rising; K is `count` at most.

    Raises
    ------
    ValueError
        Where shapes or the number are not as above.
    """
    moved, usable = _usable(displacement, flagged, count)
    if len(moved) <= count:
        return np.arange(len(moved))
    if len(usable) <= count:
        return usable
    run = max(min(RUN, count // 2), 1)
    runs = count // 2 // run
    chosen = np.zeros(len(usable), np.bool_)
    if runs:
        typical = np.median(np.lib.stride_tricks.sliding_window_view(moved[usable], run), axis=-1)
        for start in _largest_apart(typical, runs, max(len(usable) // (2 * runs), run)):
            chosen[start : start + run] = True
    others = np.flatnonzero(~chosen)
    chosen[others[_spread(len(others), count - np.count_nonzero(chosen))]] = True
    return usable[chosen]


def worst_frames(displacement: NDArray[np.floating], flagged: NDArray[np.bool_], count: int) -> NDArray[np.intp]:
    """Choose the frames that moved most.

    Parameters
    ----------
    displacement : (T,) float
        Mean of each frame, pixels; what is not finite counts as 0.
    flagged : (T,) bool
        Frames without a flow of their own; never chosen.
    count : int
        Of frames.

    Returns
    -------
    (K,) int
        Their numbers, rising, at least four apart; fewer than `count` where no more are.

    Raises
    ------
    ValueError
        Where shapes or the number are not as above.
    """
    moved, _ = _usable(displacement, flagged, count)
    return np.sort(_largest_apart(np.where(flagged, -np.inf, moved), count, RUN))


def _usable(
    displacement: NDArray[np.floating], flagged: NDArray[np.bool_], count: int
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Finite displacements (T,), and the numbers of the frames that may be shown: all where all are flagged."""
    if displacement.ndim != 1 or displacement.shape != flagged.shape:
        raise ValueError(f"{displacement.shape=} and {flagged.shape=} are not both (T,)")
    if count < 1:
        raise ValueError(f"{count=} is not 1 or more")
    moved = np.where(np.isfinite(displacement), displacement, 0).astype(np.float64)
    return moved, np.flatnonzero(~flagged | flagged.all())


def _largest_apart(values: NDArray[np.float64], count: int, apart: int) -> NDArray[np.intp]:
    """Indices of the largest values, at most `count`, at least `apart` from each other; the first of equal ones.

    Those of minus infinity are left out.
    """
    left = values.copy()
    chosen: list[int] = []
    while len(chosen) < count and left.max(initial=-np.inf) > -np.inf:
        place = int(left.argmax())
        chosen.append(place)
        left[max(place - apart + 1, 0) : place + apart] = -np.inf
    return np.array(chosen, np.intp)


def _spread(n: int, count: int) -> NDArray[np.intp]:
    """Indices of `count` of n, evenly from the first to the last; `count` is n at most."""
    return np.arange(count) * (n - 1) // max(count - 1, 1)
