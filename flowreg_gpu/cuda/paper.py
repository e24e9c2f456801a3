"""A device of shapes alone: it does no work, and counts the bytes that real memory would have to hold."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from flowreg_gpu.cuda.device import Buffer, Event, Index, Kernel, Stream

__all__ = ["PaperDevice"]

_Result = TypeVar("_Result")


class _Memory:
    """Bytes that are in use as long as this object lives."""

    __slots__ = ("_device", "_nbytes")

    def __init__(self, device: PaperDevice, nbytes: int) -> None:
        self._device, self._nbytes = device, nbytes
        device.live_bytes += nbytes
        device.peak_bytes = max(device.peak_bytes, device.live_bytes)

    def __del__(self) -> None:
        self._device.live_bytes -= self._nbytes


class _PaperBuffer:
    """Shape and dtype of a buffer or of a view of one; its memory is in use until the last of them is gone."""

    __slots__ = ("_array", "_memory")

    def __init__(self, array: NDArray[Any], memory: _Memory) -> None:
        self._array, self._memory = array, memory

    @property
    def shape(self) -> tuple[int, ...]:
        return self._array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._array.dtype

    @property
    def nbytes(self) -> int:
        return self._array.nbytes

    def __getitem__(self, index: Index | tuple[Index, ...]) -> _PaperBuffer:
        return _PaperBuffer(self._array[index], self._memory)

    def reshape(self, shape: tuple[int, ...]) -> _PaperBuffer:
        return _PaperBuffer(self._array.reshape(shape), self._memory)


class PaperDevice:
    """See `Device`; what is queued is done at once, and does nothing.

    Parameters
    ----------
    shared_memory, multiprocessors : int
        Of the device that it stands for; those of an H100 where they are not given.

    Attributes
    ----------
    live_bytes, peak_bytes : int
        Bytes of the buffers that are in use, and the most there were; the latter may be set.
    """

    name = "paper"

    def __init__(self, shared_memory: int = 227 * 1024, multiprocessors: int = 132) -> None:
        self.shared_memory, self.multiprocessors = shared_memory, multiprocessors
        self.live_bytes = self.peak_bytes = 0

    def empty(self, shape: Sequence[int], dtype: DTypeLike) -> Buffer:
        """A buffer of that shape; all elements of the array that stands for it lie in one place."""
        dtype = np.dtype(dtype)
        memory = _Memory(self, math.prod(shape) * dtype.itemsize)
        return _PaperBuffer(np.broadcast_to(np.empty((), dtype), tuple(shape)), memory)

    def pinned(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        """Host memory."""
        return np.empty(shape, dtype)

    def copy(self, destination: Any, source: Any, stream: Stream = None) -> None:
        """Do nothing."""

    def stream(self) -> Stream:
        """A stream on which nothing is queued."""

    def event(self) -> Event:
        """An event that is over."""

    def record(self, event: Event, stream: Stream = None) -> None:
        """Do nothing."""

    def wait(self, event: Event, stream: Stream = None) -> None:
        """Do nothing."""

    def synchronize(self, event: Event | None = None) -> None:
        """Do nothing."""

    def free_memory(self) -> int:
        """As much as anybody may ask for."""
        return sys.maxsize

    def release_memory(self) -> None:
        """Do nothing."""

    def kernel(self, file: str, expression: str) -> Kernel:
        """A kernel that does nothing."""
        return lambda *args, **keywords: None

    def fft2(self, images: Buffer, inverse: bool = False) -> Buffer:
        """A buffer like the images; what the transform needs beside it is not counted."""
        return self.empty(images.shape, images.dtype)

    def capture_graph(self, work: Callable[[], _Result]) -> tuple[_Result, Callable[[], None]]:
        """The result of `work`, and a function that does nothing and keeps the memory that `work` needs in use."""
        earlier, self.peak_bytes = self.peak_bytes, self.live_bytes
        result = work()
        kept = _Memory(self, self.peak_bytes - self.live_bytes)
        self.peak_bytes = max(earlier, self.peak_bytes)
        return result, functools.partial(_replay, kept)


def _replay(kept: _Memory) -> None:
    """Do nothing."""
