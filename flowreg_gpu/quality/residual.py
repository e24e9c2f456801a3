"""Figures of motion that is left, and of pixels that the registered frames have from elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.quality.pixels import check_frames, check_valid

__all__ = ["displacement_figures", "share_from_reference"]


def displacement_figures(flows: NDArray[np.float32], valid: NDArray[np.bool_] | None = None) -> tuple[float, float]:
    """Median and 99th percentile of the displacement, over all pixels of all flows.

    Of registered frames that are registered again, this is the motion that registration has left: the median where the
    tissue is, and the percentile where it is worst. The displacement is sqrt(u^2 + v^2).

    Parameters
    ----------
    flows : (k, 2, H, W) float
        (u, v) in pixels; vectors that are NaN or infinite are left out.
    valid : (H, W) bool or None
        Pixels that are used; None takes all.

    Returns
    -------
    median, percentile : float
        In pixels; NaN where there is no pixel.

    Raises
    ------
    ValueError, TypeError
        Where shapes or dtypes are not as above.

    Examples
    --------
    >>> import numpy as np
    >>> flows = np.zeros((1, 2, 10, 20), np.float32)
    >>> flows[:, 0, 0], flows[:, 1, 0] = 3, 4  # one row of ten
    >>> displacement_figures(flows)
    (0.0, 5.0)
    """
    if flows.shape[1:2] != (2,):
        raise ValueError(f"{flows.shape=} is not (k, 2, H, W)")
    if not len(flows):
        return float("nan"), float("nan")
    check_frames(flows, "k, 2, H, W")
    used = check_valid(valid, *flows.shape[2:])
    lengths = np.hypot(flows[:, 0], flows[:, 1])[:, used]
    lengths = lengths[np.isfinite(lengths)]
    if not lengths.size:
        return float("nan"), float("nan")
    median, percentile = np.percentile(lengths, (50, 99), overwrite_input=True)
    return float(median), float(percentile)


def share_from_reference(outside: NDArray[Any], count: int) -> float:
    """Part of the registered pixels that the reference gave, since the flow led out of their frames.

    Parameters
    ----------
    outside : (H, W), integers
        Number of frames in which the flow leads out of the frame at this pixel.
    count : int
        Frames altogether.

    Returns
    -------
    float
        0 to 1: sum of `outside` over `count` H W; 0 without frames.

    Raises
    ------
    ValueError, TypeError
        Where `outside` is not of integers from 0 to `count`.

    Examples
    --------
    >>> import numpy as np
    >>> share_from_reference(np.array([[4, 0], [0, 0]]), 4)
    0.25
    """
    check_frames(outside, "H, W")
    if outside.dtype.kind not in "iu":
        raise TypeError(f"{outside.dtype=} is not of integers")
    if outside.min() < 0 or outside.max() > count:
        raise ValueError(f"outside holds {outside.min()} to {outside.max()}, which is not 0 to {count=}")
    return float(outside.sum(dtype=np.int64)) / (count * outside.size) if count else 0.0
