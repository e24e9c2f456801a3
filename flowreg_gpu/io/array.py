"""Recordings in memory (or any array that can be sliced), read and written as files are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from flowreg_gpu.io.base import SUPPORTED_DTYPES, FrameReader, FrameWriter, supported_dtype
from flowreg_gpu.options import check_plain


class ArrayReader(FrameReader):
    """Frames of an array.

    Parameters
    ----------
    array : (T, H, W) or (T, H, W, C) array-like
        Has `shape` and `dtype` and can be sliced along its first axis: NumPy, memory-mapped, HDF5 or Zarr arrays.
        Only the frames asked for are copied.

    Raises
    ------
    ValueError
        Neither three nor four axes, an axis of length zero, masked or complex values, or an unsupported dtype.

    Examples
    --------
    >>> import numpy as np
    >>> reader = ArrayReader(np.zeros((5, 18, 21), np.uint16))
    >>> reader.shape, reader.read(1, 3).shape
    ((5, 18, 21, 1), (2, 18, 21, 1))
    """

    def __init__(self, array: Any) -> None:
        check_plain(array, "array")
        self.threaded = isinstance(array, np.ndarray)  # what reads as it is indexed may be bound to its thread
        if self.threaded:
            # A subclass may compute as it is indexed, and once more when that result is indexed again: sbxreader's map
            # of a Scanbox file turns the brightness round each time (findings/sbxreader_polarity.sh). What counts is
            # what the caller sees.
            array = np.asarray(array)
        shape = tuple(int(size) for size in array.shape)
        if len(shape) not in (3, 4) or min(shape) < 1:
            raise ValueError(f"array has shape {shape}, expected (T, H, W) or (T, H, W, C) with every size at least 1")
        self.dtype = supported_dtype(array.dtype, "array", (*SUPPORTED_DTYPES, np.dtype(np.float64)))
        self.n_frames, self.height, self.width = shape[:3]
        self.has_channel_axis = len(shape) == 4
        self.n_channels = shape[3] if self.has_channel_axis else 1
        self._array = array

    def _load(self, start: int, stop: int) -> NDArray[Any]:
        frames = np.array(self._array[start:stop], dtype=self.dtype, order="C")
        return frames.reshape(stop - start, *self.shape[1:])


class ArrayWriter(FrameWriter):
    """Frames into an array.

    Parameters
    ----------
    shape : (T, H, W) or (T, H, W, C)
    dtype : dtype
    out : array of `shape` and `dtype`, optional
        Where the frames go; allocated if not given. What was written stays there after `abort`.

    Attributes
    ----------
    array : array of `shape` and `dtype`

    Raises
    ------
    ValueError
        `out` differs from `shape` or `dtype`.
    """

    threaded = True

    def __init__(self, shape: Sequence[int], dtype: DTypeLike, out: NDArray[Any] | None = None) -> None:
        shape = tuple(int(size) for size in shape)
        super().__init__((*shape, 1) if len(shape) == 3 else shape, dtype)
        if out is not None and (out.shape != shape or out.dtype != self.dtype):
            raise ValueError(f"out has shape {out.shape} and dtype {out.dtype}, expected {shape} and {self.dtype}")
        self.array = np.empty(shape, self.dtype) if out is None else out

    def _store(self, frames: NDArray[Any], start: int) -> None:
        self.array[start : start + len(frames)] = frames.reshape(len(frames), *self.array.shape[1:])

    def _commit(self) -> None:
        """Nothing to do: the frames are where they belong."""

    def _discard(self) -> None:
        """Nothing to do: the array belongs to the caller."""
