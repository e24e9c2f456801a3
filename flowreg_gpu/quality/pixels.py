"""The pixels of a stack of frames, some at a time, so that no copy of the stack in floating-point numbers is held."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Part", "check_frames", "check_valid", "pixel_parts", "used_pixels"]

PART_VALUES = 2**20  # of the frames at a time: 8 MiB as float64

Part = tuple[slice, slice]  # rows and columns


def check_frames(frames: NDArray[Any], dimensions: str) -> None:
    """Raise where frames are not real numbers of these dimensions, 'n, H, W, C' say, or where there are none."""
    if frames.ndim != len(dimensions.split(", ")):
        raise ValueError(f"{frames.shape=} is not ({dimensions})")
    if 0 in frames.shape:
        raise ValueError(f"{frames.shape=} holds no pixel")
    if frames.dtype.kind not in "biuf":
        raise TypeError(f"{frames.dtype=} is not of real numbers")


def check_valid(valid: NDArray[np.bool_] | None, height: int, width: int) -> NDArray[np.bool_]:
    """Return the pixels (H, W) that are used, all of them for None; raise where they are not of the frame."""
    if valid is None:
        return np.ones((height, width), np.bool_)
    if valid.shape != (height, width) or valid.dtype != np.bool_:
        raise ValueError(f"valid of shape {valid.shape} and dtype {valid.dtype} is not ({height}, {width}) bool")
    return valid


def pixel_parts(n: int, height: int, width: int) -> Iterator[Part]:
    """Parts of the frame that cover it, each of about a million values in n frames."""
    columns = min(max(PART_VALUES // n, 1), width)
    rows = max(PART_VALUES // (n * columns), 1)
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            yield slice(top, top + rows), slice(left, left + columns)


def used_pixels(frames: NDArray[Any], valid: NDArray[np.bool_], part: Part) -> NDArray[np.float64]:
    """Return those pixels (n, m) of a part of frames (n, H, W) that are valid, and finite in every frame."""
    rows, columns = part
    values = frames[:, rows, columns]
    used = valid[part]
    if frames.dtype.kind == "f":
        used = used & np.isfinite(values).all(axis=0)
    return values[:, used].astype(np.float64)
