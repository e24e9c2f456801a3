"""Frames that are worth being looked at."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["frames_to_play", "worst_frames"]

RUN = 4  # frames that are played one after the other


def frames_to_play(displacement: NDArray[np.float64], flagged: NDArray[np.bool_], count: int) -> NDArray[np.intp]:
    """Numbers of `count` frames, rising: half of them spread over the recording, and runs where it moves most.

    Parameters
    ----------
    displacement : (T,) float64
        Mean of each frame, pixels.
    flagged : (T,) bool
        Frames that show nothing of the motion; they are left out where there are enough others.
    count : int
        All frames where there are no more.
    """
    good = np.flatnonzero(~flagged) if np.count_nonzero(~flagged) >= count else np.arange(len(displacement))
    if len(good) <= count:
        return good
    spread = good[np.linspace(0, len(good) - 1, count // 2).round().astype(np.intp)]
    chosen = set(spread.tolist())
    apart = max(len(good) // count, RUN)
    starts: list[int] = []
    for place in np.argsort(-displacement[good], kind="stable"):  # from the one that moved most
        if len(chosen) >= count:
            break
        first = min(max(int(place) - RUN // 2, 0), len(good) - RUN)
        if all(abs(first - start) >= apart for start in starts):
            starts.append(first)
            chosen.update(good[first : first + RUN].tolist())
    return np.array(sorted(chosen)[:count], np.intp) if len(chosen) >= count else np.array(sorted(chosen), np.intp)


def worst_frames(displacement: NDArray[np.float64], flagged: NDArray[np.bool_], count: int) -> NDArray[np.intp]:
    """Numbers of `count` frames, rising, that moved most (T,), none of them flagged, at least a run apart."""
    worst: list[int] = []
    for number in np.argsort(-np.where(flagged, -np.inf, displacement), kind="stable"):
        if len(worst) == count or flagged[number]:
            break
        if all(abs(int(number) - other) >= RUN for other in worst):
            worst.append(int(number))
    return np.array(sorted(worst), np.intp)
