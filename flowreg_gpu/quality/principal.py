"""Principal components of a movie, and the frames that have most and least of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["PrincipalExtremes", "principal_extremes"]

_CHUNK_VALUES = 2**23  # float32 values of a part of the frames


class PrincipalExtremes(NamedTuple):
    """Means of the frames with least and most of each component, (k, H, W) float32, and its course (n, k) float32."""

    low: NDArray[np.float32]
    high: NDArray[np.float32]
    time_courses: NDArray[np.float32]


def principal_extremes(
    frames: NDArray[Any], n_components: int = 30, n_extremes: int | None = None
) -> PrincipalExtremes:
    """Principal components over time, and the mean frames where they are least and most.

    Motion that is left makes strong components, and their extremes show the tissue at different places. suite2p's
    registration metrics look at the same images (there `regPC` and `tPC`; Pachitariu et al., bioRxiv 061507, 2017).
    Here they come from the eigenvectors of the frames' scalar products, so that no movie of floating-point numbers is
    held.

    Parameters
    ----------
    frames : (n, H, W), real
    n_components : int
        At most; there are n - 1.
    n_extremes : int or None
        Frames behind each of both images; None takes the half of them, at most 300.

    Returns
    -------
    PrincipalExtremes
        The courses have the length of their singular values. The sign of a component is such that the largest part of
        its course is above zero.
    """
    n = len(frames)
    count = min(300, n // 2) if n_extremes is None else n_extremes
    products, mean_frame = np.zeros((n, n)), frames.mean(axis=0, dtype=np.float64).astype(np.float32)
    for _, part in _centred_rows(frames, mean_frame):
        products += part @ part.T
    values, vectors = np.linalg.eigh(products)
    k = min(n_components, n - 1)
    values, vectors = values[::-1][:k], vectors[:, ::-1][:, :k]
    largest = np.abs(vectors).argmax(axis=0)
    vectors = vectors * np.where(vectors[largest, np.arange(k)] < 0, -1.0, 1.0)
    courses = (vectors * np.sqrt(np.maximum(values, 0))).astype(np.float32)
    order = np.argsort(courses, axis=0, kind="stable")
    chosen = np.zeros((2, k, n), np.float32)
    for component in range(k):
        chosen[0, component, order[:count, component]] = 1 / count
        chosen[1, component, order[n - count :, component]] = 1 / count
    images = np.empty((2, k, *frames.shape[1:]), np.float32)
    for rows, part in _centred_rows(frames, mean_frame):
        images[:, :, rows] = (chosen @ part).reshape(2, k, -1, frames.shape[2]) + mean_frame[rows]
    return PrincipalExtremes(images[0], images[1], courses)


def _centred_rows(frames: NDArray[Any], mean_frame: NDArray[np.float32]) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Some rows of all frames at a time, as (n, pixels) float32, without their mean over the frames."""
    n, height, width = frames.shape
    count = max(_CHUNK_VALUES // (n * width), 1)
    for first in range(0, height, count):
        rows = slice(first, first + count)
        yield rows, (frames[:, rows].astype(np.float32) - mean_frame[rows]).reshape(n, -1)
