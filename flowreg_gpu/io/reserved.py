"""Writers whose file is laid out before the first frame comes."""

from __future__ import annotations

import abc
import contextlib
import errno
import os
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.io.base import FrameWriter, PathLike
from flowreg_gpu.io.pending import PendingFile

__all__ = ["ReservedFileWriter", "sync_file"]


class ReservedFileWriter(FrameWriter):
    """A writer whose file is laid out before the first frame comes; frames are then written to their places.

    The library of the format only makes the layout. Pixels go by ordinary system calls, so that a full disk is an
    OSError that belongs to the frames that caused it: mapped files end the process instead, and HDF5, which writes
    late, crashes the interpreter on exit.

    A run may go on with the partial file of one that ended early: the places are found in that file again.
    """

    threaded = True
    pending: PendingFile
    _file: BinaryIO

    def _reserve(self, path: PathLike, n_bytes: int, overwrite: bool, resume_at: int | None) -> None:
        """Lay out a new partial file of `n_bytes`, or find the places of an old one with `resume_at` frames in it."""
        resume = resume_at is not None
        self.pending = PendingFile(path, 0 if resume else n_bytes, overwrite=overwrite, resume=resume)
        try:
            if resume:
                self._find_places()
                self.n_written = int(resume_at or 0)
            else:
                self._lay_out()
            self._file = open(self.pending.path, "r+b", buffering=0)  # noqa: SIM115 (closed by close or abort)
        except BaseException:
            if resume:
                self.pending.keep()
            else:
                self.pending.discard()
            raise

    @abc.abstractmethod
    def _lay_out(self) -> None:
        """Write everything but the pixels to the partial file, and note the places of the frames."""

    @abc.abstractmethod
    def _find_places(self) -> None:
        """Note the places of the frames in a partial file that was laid out before."""

    @abc.abstractmethod
    def _places(self, frame: int) -> Iterator[tuple[int, int]]:
        """Offset and length, in bytes, of every part of a frame in the file."""

    def sync(self) -> None:
        """Wait until the disk has what was written: then it survives a loss of power."""
        with self._lock:
            sync_file(self._file)

    def checksum(self, frame: int) -> int:
        """CRC-32 of the bytes of a frame in the file."""
        with self._lock:
            checksum = 0
            for offset, length in self._places(frame):
                self._file.seek(offset)
                checksum = zlib.crc32(self._file.read(length), checksum)
            return checksum

    def take_back(self) -> None:
        """Give the complete file, which has its final name, its partial name again."""
        self.pending.take_back()

    def _write_bytes(self, offset: int, slab: NDArray[np.generic]) -> None:
        """Write a C-contiguous array at an offset of the file."""
        if os.fstat(self._file.fileno()).st_nlink == 0:
            raise FileNotFoundError(errno.ENOENT, "the output was deleted while it was written", self.pending.path)
        self._file.seek(offset)
        remaining = slab.reshape(-1).view(np.uint8).data
        # A system call writes at most 2 GiB.
        while remaining:
            remaining = remaining[self._file.write(remaining) :]

    def _keep(self) -> list[str]:
        """Keep the frames written so far; the others are zero."""
        self._close_file()
        return [self.pending.keep()]

    def _commit(self) -> None:
        self._file.close()
        self.pending.commit()

    def _discard(self) -> None:
        self._close_file()
        self.pending.discard()

    def _close_file(self) -> None:
        # Some file systems report a full disk on closing, which by now changes nothing.
        with contextlib.suppress(OSError):
            self._file.close()


def sync_file(file: BinaryIO) -> None:
    """Wait until the disk has what was written to an open file."""
    getattr(os, "fdatasync", os.fsync)(file.fileno())  # macOS and Windows have the second only
