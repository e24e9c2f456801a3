"""Arrays of any shape in NumPy's files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

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
    overwrite : bool
        Whether an older file, and an older partial file, are replaced.
    resume_at : int, optional
        Frames that the partial file holds already; None begins a new one.

    Raises
    ------
    FileNotFoundError, PermissionError, FileExistsError, OSError
        As `PendingFile`.
    """

    def __init__(
        self,
        path: PathLike,
        stored_shape: Sequence[int],
        dtype: DTypeLike,
        *,
        overwrite: bool = False,
        resume_at: int | None = None,
    ) -> None:
        super().__init__((stored_shape[0], 1, math.prod(stored_shape[1:]), 1), dtype)
        self._stored_shape = tuple(map(int, stored_shape))
        self._frame_bytes = self.width * self.dtype.itemsize
        self._reserve(path, self.n_frames * self._frame_bytes, overwrite, resume_at)

    def _lay_out(self) -> None:
        descr = np.lib.format.dtype_to_descr(self.dtype)
        header = {"descr": descr, "fortran_order": False, "shape": self._stored_shape}
        with open(self.pending.path, "r+b") as file:
            np.lib.format.write_array_header_1_0(file, header)
            self._offset = file.tell()
            file.truncate(self._offset + self.n_frames * self._frame_bytes)

    def _find_places(self) -> None:
        with open(self.pending.path, "rb") as file:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            self._offset = file.tell()

    def _places(self, frame: int) -> Iterator[tuple[int, int]]:
        yield self._offset + frame * self._frame_bytes, self._frame_bytes

    def _store(self, frames: NDArray[np.generic], start: int) -> None:
        self._write_bytes(self._offset + start * self._frame_bytes, np.ascontiguousarray(frames))
