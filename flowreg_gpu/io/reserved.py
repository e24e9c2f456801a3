"""Writers whose file is laid out before the first frame comes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.io.base import FrameWriter, PathLike
from flowreg_gpu.io.pending import PendingFile, partial_name

__all__ = ["ReservedFileWriter"]


class ReservedFileWriter(FrameWriter):
    """A writer whose file is laid out before the first frame comes; frames are then written to their places.

    The library of the format only makes the layout. Pixels go by ordinary system calls, so that a full disk is an
    OSError that belongs to the frames that caused it: mapped files end the process instead, and HDF5, which writes
    late, crashes the interpreter on exit.
    """

    threaded = True
    _pending: PendingFile
    _file: BinaryIO

    @contextlib.contextmanager
    def _reserve(self, path: PathLike, n_bytes: int) -> Iterator[None]:
        """Make the pending file; the block lays it out, then it is opened for the frames."""
        self._pending = PendingFile(path, n_bytes)
        try:
            yield
            self._file = open(self._pending.path, "r+b", buffering=0)  # noqa: SIM115 (closed by close or abort)
        except BaseException:
            self._pending.discard()
            raise

    def _write_bytes(self, offset: int, slab: NDArray[Any]) -> None:
        """Write a C-contiguous array at an offset of the file."""
        self._file.seek(offset)
        remaining = slab.reshape(-1).view(np.uint8).data
        # A system call writes at most 2 GiB.
        while remaining:
            remaining = remaining[self._file.write(remaining) :]

    def _keep(self) -> list[str]:
        """Keep the frames written so far; the others are zero."""
        self._close_file()
        path = partial_name(self._pending.final_path)
        try:
            os.replace(self._pending.path, path)
        except OSError:
            self._pending.discard()
            return []
        return [path]

    def _commit(self) -> None:
        self._file.close()
        self._pending.commit()

    def _discard(self) -> None:
        self._close_file()
        self._pending.discard()

    def _close_file(self) -> None:
        # Some file systems report a full disk on closing, which by now changes nothing.
        with contextlib.suppress(OSError):
            self._file.close()
