"""Crispness of an image."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.quality.pixels import PART_VALUES, check_frames, check_valid

__all__ = ["crispness"]


def crispness(image: NDArray[Any], valid: NDArray[np.bool_] | None = None) -> float:
    """Length of the gradient of an image over all pixels and channels.

    The Frobenius norm of the gradient's magnitude, sqrt(sum over y, x of I_y^2 + I_x^2), by differences of the two
    neighbours, one-sided at the edges: as NoRMCorre and CaImAn define the crispness of a mean image (Pnevmatikakis and
    Giovannucci, J. Neurosci. Methods 291, 2017, section 2.4).

    It has no scale of its own. It grows with the brightness of the image, with the root of the number of pixels, and
    with noise: compare means of the same frames of one recording, before and after, over the same pixels. It also
    grows where a flow bends noise into place.

    Parameters
    ----------
    image : (H, W, C), real
        Mean of a movie. Pixels that are NaN or infinite, or beside one that is, are left out.
    valid : (H, W) bool or None
        Pixels that are used; so are their neighbours, that is, a pixel counts where all of them are valid.

    Returns
    -------
    float
        Values of the image per pixel.

    Raises
    ------
    ValueError, TypeError
        Where shapes or dtypes are not as above.

    Examples
    --------
    >>> import numpy as np
    >>> ramp = 3 * np.arange(5.0).reshape(1, 5, 1) * np.ones((4, 1, 1))
    >>> round(crispness(ramp) ** 2, 6)  # 3^2 at each of 20 pixels
    180.0
    """
    check_frames(image, "H, W, C")
    height, width, channels = image.shape
    valid = check_valid(valid, height, width)
    rows = max(PART_VALUES // (width * channels), 1)
    squares = 0.0
    for top in range(0, height, rows):
        first, last = max(top - 1, 0), min(top + rows + 1, height)  # a row above and below for the differences
        planes = image[first:last].astype(np.float64)
        planes[~(np.isfinite(planes) & valid[first:last, :, None])] = np.nan
        found = (_derivative(planes, 0) ** 2 + _derivative(planes, 1) ** 2)[top - first :][:rows]
        squares += float(found[np.isfinite(found) & np.isfinite(planes[top - first :][:rows])].sum())
    return float(np.sqrt(squares))


def _derivative(planes: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Along an axis; 0 where the image is a single line."""
    if planes.shape[axis] == 1:
        return np.zeros_like(planes)
    derivative: NDArray[np.float64] = np.gradient(planes, axis=axis)
    return derivative
