"""What every source and every sink of frames has in common."""

from __future__ import annotations

import abc
import os
import threading
import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from flowreg_gpu.options import FRAME_DTYPES

PathLike: TypeAlias = str | os.PathLike[str]
_Reader = TypeVar("_Reader", bound="FrameReader")
_Writer = TypeVar("_Writer", bound="FrameWriter")

# How a flow is stored and what it means; written into every file of flows.
FLOW_CONVENTION = (
    "u = flow[..., 0] columns (x), v = flow[..., 1] rows (y); registered(y, x) = frame(y + v, x + u); pixels"
)

#: Types of frames in files: those that programs of microscopes write.
SUPPORTED_DTYPES = tuple(dtype for dtype in FRAME_DTYPES if dtype.name not in ("int8", "float64"))


def supported_dtype(
    dtype: DTypeLike, source: str, supported: Sequence[np.dtype[Any]] = SUPPORTED_DTYPES
) -> np.dtype[Any]:
    """Return `dtype` in native byte order, or raise ValueError if frames of that type cannot be registered."""
    native: np.dtype[Any] = np.dtype(dtype).newbyteorder("=")
    if native not in supported:
        allowed = ", ".join(d.name for d in supported)
        raise ValueError(f"{source}: dtype {native.name} is not supported, expected one of {allowed}")
    return native


class FrameReader(abc.ABC):
    """A recording read a few frames at a time.

    Attributes
    ----------
    n_frames, height, width, n_channels : int
        Size of the recording.
    dtype : numpy.dtype
        Type of the frames, native byte order; one of `SUPPORTED_DTYPES`.
    has_channel_axis : bool
        Whether the source had an explicit channel axis, be it of length one.
    threaded : bool
        Whether frames may be read in another thread than the one that made the reader; one thread at a time does.
    """

    n_frames: int
    height: int
    width: int
    n_channels: int
    dtype: np.dtype[Any]
    has_channel_axis: bool
    threaded: bool = False

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the recording, (T, H, W, C)."""
        return self.n_frames, self.height, self.width, self.n_channels

    @property
    def parts(self) -> list[range]:
        """Frames of every file of the recording."""
        return [range(self.n_frames)]

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return frames `start` to `stop` (excluded) as a new array.

        Returns
        -------
        frames : (stop - start, H, W, C) array of `dtype`
            C-contiguous, native byte order, never a view of the source.

        Raises
        ------
        ValueError
            The range is empty or leaves the recording.
        """
        if not 0 <= start < stop <= self.n_frames:
            raise ValueError(f"frames {start} to {stop} were asked for, the recording has frames 0 to {self.n_frames}")
        return self._load(start, stop)

    @abc.abstractmethod
    def _load(self, start: int, stop: int) -> NDArray[Any]:
        """Read a range that was checked."""

    def close(self) -> None:  # noqa: B027 (an array has nothing to close)
        """Release the source; a reader may be closed twice."""

    def __enter__(self: _Reader) -> _Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class FrameWriter(abc.ABC):
    """A sink that takes the frames of a recording in order.

    As a context manager it commits when the block ends well and aborts when the block raises.

    Parameters
    ----------
    shape : (T, H, W, C)
        Frames that will be written in all.
    dtype : dtype
        Type of the frames; frames of another type are refused, not converted.

    Attributes
    ----------
    threaded : bool
        Whether frames may be written in another thread than the one that made the writer; one thread at a time does.
    """

    threaded: bool = False

    def __init__(self, shape: Sequence[int], dtype: DTypeLike) -> None:
        if len(shape) != 4 or min(shape) < 1:
            raise ValueError(f"shape {tuple(shape)} is not (T, H, W, C) with every size at least 1")
        self.n_frames, self.height, self.width, self.n_channels = (int(size) for size in shape)
        self.dtype = np.dtype(dtype).newbyteorder("=")
        self.n_written = 0
        self._open = True
        # A run that is interrupted gives its writers up while a thread may still write: the file must not be closed
        # under that thread. Reentrant, for close() may abort.
        self._lock = threading.RLock()

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the recording, (T, H, W, C)."""
        return self.n_frames, self.height, self.width, self.n_channels

    def write(self, frames: NDArray[Any]) -> None:
        """Append frames.

        Parameters
        ----------
        frames : (n, H, W, C) array of `dtype`

        Raises
        ------
        ValueError
            Shape or dtype differ from what was announced, or there are more frames than announced.
        RuntimeError
            The writer was closed or aborted.
        OSError
            The frames could not be stored, e.g. for want of disk space.
        """
        with self._lock:
            if not self._open:
                raise RuntimeError(f"frames cannot be written after close() or abort(), {self.n_written} were written")
            if frames.shape[1:] != self.shape[1:] or frames.ndim != 4:
                expected = ", ".join(map(str, self.shape[1:]))
                raise ValueError(f"frames have shape {frames.shape}, expected (n, {expected})")
            if frames.dtype.newbyteorder("=") != self.dtype:
                raise ValueError(f"frames have dtype {frames.dtype}, expected {self.dtype}")
            if self.n_written + len(frames) > self.n_frames:
                raise ValueError(f"{self.n_written} + {len(frames)} frames are more than the {self.n_frames} announced")
            self._store(frames, self.n_written)
            self.n_written += len(frames)

    def close(self) -> None:
        """Commit the recording; a second call does nothing.

        Raises
        ------
        RuntimeError
            Fewer frames were written than announced; nothing is left under the final name.
        OSError
            The file could not be completed; it can still be kept, or aborted.
        """
        with self._lock:
            if not self._open:
                return
            if self.n_written != self.n_frames:
                self.abort()
                raise RuntimeError(f"{self.n_written} frames were written, {self.n_frames} were announced")
            self._commit()
            self._open = False

    def abort(self) -> None:
        """Give up: leave nothing under the final name; a second call does nothing.

        It waits for frames that another thread is writing.
        """
        with self._lock:
            if self._open:
                self._open = False
                self._discard()

    def keep_partial(self) -> list[str]:
        """Give up, but keep the frames written so far in files with ``.partial`` before the extension; their names.

        The list is empty where there is nothing to keep, or it cannot be kept.
        """
        with self._lock:
            if not self._open or not self.n_written:
                self.abort()
                return []
            self._open = False
            return self._keep()

    def _keep(self) -> list[str]:
        """Keep the frames written so far, of which there are some, and return the names of their files."""
        self._discard()
        return []

    @abc.abstractmethod
    def _store(self, frames: NDArray[Any], start: int) -> None:
        """Store frames that were checked; `start` is the index of the first."""

    @abc.abstractmethod
    def _commit(self) -> None:
        """Make the complete recording visible."""

    @abc.abstractmethod
    def _discard(self) -> None:
        """Remove what was stored."""

    def __enter__(self: _Writer) -> _Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.close()
        finally:
            self.abort()


def keep_partials(writers: Sequence[FrameWriter], hint: str = "") -> None:
    """Have the writers of a run that failed keep what they have; then a RuntimeWarning names every file.

    `hint` says what can be done with the frames.
    """
    kept = [(writer, writer.keep_partial()) for writer in writers]
    for writer, paths in kept:
        for path in paths:
            finished = f"{writer.n_written} of {writer.n_frames} frames were finished"
            warnings.warn(f"{finished} and are kept in {path!r}{hint}", RuntimeWarning, stacklevel=3)
