"""Principal components of a movie, and the frames that have most and least of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.quality.pixels import check_frames, check_valid, pixel_parts, used_pixels

__all__ = ["PrincipalExtremes", "principal_extremes"]

MOST_EXTREMES = 300  # frames behind an image, as suite2p has it

# Of the largest eigenvalue: what is smaller is rounding, and its component has no meaning.
_ROUNDING = 1e-10


class PrincipalExtremes(NamedTuple):
    """What frames show that have least and most of each component.

    Attributes
    ----------
    low, high : (k, H, W) float32
        Means of these frames, in their values.
    time_courses : (n, k) float32
        How much each frame has of each component; every column has the length 1.
    """

    low: NDArray[np.float32]
    high: NDArray[np.float32]
    time_courses: NDArray[np.float32]


def principal_extremes(
    frames: NDArray[Any],
    n_components: int = 30,
    n_extremes: int | None = None,
    valid: NDArray[np.bool_] | None = None,
) -> PrincipalExtremes:
    """Principal components over time, and the mean of the frames where they are least and most.

    Motion that is left makes strong components, whose extremes show the tissue at different places. These are the
    images of suite2p's registration metrics, `regPC` (`low`, `high`) and `tPC` (`time_courses`; Pachitariu et al.,
    bioRxiv 061507, 2017), by the definition of suite2p 1.1: of frames less the mean of each pixel over time, and less
    the mean of each frame over its pixels, so that brightness alone makes no component. Up to the signs, where suite2p
    computes components exactly; of more than a thousand frames it estimates them from random projections.

    Here they are eigenvectors of the scalar products of the frames (n, n), summed in float64 over parts of the pixels.
    As many images of as many frames are compared before and after; a component can be activity, or noise, too.

    Parameters
    ----------
    frames : (n, H, W), real
        Pixels that are NaN or infinite in any frame say nothing of the components, and are not finite in
        `low` or `high`.
    n_components : int
        At most; n frames have n - 1, and fewer where they do not differ.
    n_extremes : int or None
        Frames behind each image; None takes half of them, at most 300.
    valid : (H, W) bool or None
        Pixels that the components come from; `low` and `high` show the others as well.

    Returns
    -------
    PrincipalExtremes
        The strongest component first. The frame that has a component most, of either sign, is at its high end.

    Raises
    ------
    ValueError, TypeError
        Where shapes, dtypes or numbers are not as above.
    """
    check_frames(frames, "n, H, W")
    n, height, width = frames.shape
    valid = check_valid(valid, height, width)
    if n_components < 1:
        raise ValueError(f"{n_components=} is not 1 or more")
    count = min(MOST_EXTREMES, max(n // 2, 1)) if n_extremes is None else n_extremes
    if not 1 <= count <= n:
        raise ValueError(f"{n_extremes=} is not 1 to the number of frames, {n}")
    courses = _components(_products(frames, valid), n_components)
    images = _means(frames, _extremes(courses, count))
    return PrincipalExtremes(images[0], images[1], courses.astype(np.float32))


def _products(frames: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Scalar products (n, n) of frames less their means over time and over pixels."""
    n, height, width = frames.shape
    products, sums, count = np.zeros((n, n)), np.zeros(n), 0
    for part in pixel_parts(n, height, width):
        values = used_pixels(frames, valid, part)
        values -= values.mean(axis=0)
        products += values @ values.T
        sums += values.sum(axis=1)
        count += values.shape[1]
    return products - np.outer(sums, sums) / max(count, 1)


def _components(products: NDArray[np.float64], n_components: int) -> NDArray[np.float64]:
    """Courses (n, k) of the strongest components, the largest magnitude of each above zero."""
    n = len(products)
    values, vectors = np.linalg.eigh(products)
    k = min(n_components, n - 1, int(np.count_nonzero(values > _ROUNDING * max(values[-1], 0))))
    courses: NDArray[np.float64] = vectors[:, ::-1][:, :k]
    largest = np.abs(courses).argmax(axis=0)
    return courses * np.where(courses[largest, np.arange(k)] < 0, -1.0, 1.0)


def _extremes(courses: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Shares (2, k, n) of the frames in the means of those with least and with most of each component."""
    n, k = courses.shape
    order = np.argsort(courses, axis=0, kind="stable").T
    shares = np.zeros((2, k, n))
    for end, chosen in enumerate((order[:, :count], order[:, n - count :])):
        np.put_along_axis(shares[end], chosen, 1 / count, axis=1)
    return shares


def _means(frames: NDArray[Any], shares: NDArray[np.float64]) -> NDArray[np.float32]:
    """Means (2, k, H, W) of frames (n, H, W) by their shares (2, k, n)."""
    n, height, width = frames.shape
    images = np.empty((*shares.shape[:2], height, width), np.float32)
    for rows, columns in pixel_parts(n, height, width):
        with np.errstate(invalid="ignore"):  # pixels that are infinite
            images[..., rows, columns] = np.tensordot(shares, frames[:, rows, columns].astype(np.float64), axes=1)
    return images
