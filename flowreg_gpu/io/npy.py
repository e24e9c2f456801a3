"""Arrays of any shape in NumPy's files."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike, NDArray

from flowreg_gpu.io.base import PathLike
from flowreg_gpu.io.reserved import ReservedFileWriter

__all__ = ["NpyWriter"]


class NpyWriter(ReservedFileWriter):
    """An array whose first axis is time, as a .npy file; it is written as frames of one row and one channel.

    Parameters
    ----------
    path : str or path-like
        The file appears there at `close`, and only if every frame was written.
    stored_shape : (T, ...)
        Shape of the array, each size at least 1.
    dtype : dtype
    """

    def __init__(self, path: PathLike, stored_shape: Sequence[int], dtype: DTypeLike) -> None:
        super().__init__((stored_shape[0], 1, math.prod(stored_shape[1:]), 1), dtype)
        header = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": tuple(map(int, stored_shape)),
        }
        self._frame_bytes = self.width * self.dtype.itemsize
        with self._reserve(path, self.n_frames * self._frame_bytes):
            with open(self._pending.path, "wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                self._offset = file.tell()
            os.truncate(self._pending.path, self._offset + self.n_frames * self._frame_bytes)

    def _store(self, frames: NDArray[np.generic], start: int) -> None:
        self._write_bytes(self._offset + start * self._frame_bytes, np.ascontiguousarray(frames))
