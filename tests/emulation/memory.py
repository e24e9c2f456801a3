"""Memory of the emulated device: poisoned, between guards, and counted."""

from __future__ import annotations

import itertools
import math
import operator
import threading
import weakref
from collections.abc import Callable, Sequence
from types import EllipsisType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from flowreg_gpu.cuda.device import DeviceMemoryError

__all__ = ["Allocation", "Buffer", "Memory", "Record", "array_of", "poison"]

_GUARD_BYTES = 4096
_ALIGNMENT = 512  # CuPy's
_INTEGER_POISON = 0xA5
_numbers = itertools.count(1)

_Result = TypeVar("_Result")
Index = int | slice | EllipsisType


def poison(contents: NDArray[np.uint8], dtype: np.dtype[Any]) -> None:
    """Fill memory of a dtype: every bit set, which is NaN, for floats and complex numbers; bytes 0xA5 for the rest."""
    contents.fill(0xFF if dtype.kind in "fc" else _INTEGER_POISON)


class Allocation:
    """Bytes between two guards; exists as long as a Buffer or an operation that is queued refers to it.

    Attributes
    ----------
    contents : numpy.ndarray
        The bytes between the guards.
    released : Record or None
        The place in the compute stream where the last Buffer of the program's was gone: behind it, the memory may be
        another's.

    Notes
    -----
    The guards are filled with 32-bit words 0xFFCxxxxx, which are NaN as float32 and in pairs as float64; the other
    digits depend on place and allocation, so that a guard that is copied onto another shows.
    """

    def __init__(self, nbytes: int, dtype: np.dtype[Any]) -> None:
        raw = np.empty(_ALIGNMENT + 2 * _GUARD_BYTES + nbytes, np.uint8)
        start = -raw.__array_interface__["data"][0] % _ALIGNMENT
        words = np.arange(2 * _GUARD_BYTES // 4, dtype=np.uint32) + np.uint32(next(_numbers) * 0x9E377 & 0x3FFFFF)
        self._pattern = (words & np.uint32(0x3FFFFF) | np.uint32(0xFFC00000)).view(np.uint8)
        self._all = raw[start : start + 2 * _GUARD_BYTES + nbytes]
        self._all[:_GUARD_BYTES] = self._pattern[:_GUARD_BYTES]
        self._all[_GUARD_BYTES + nbytes :] = self._pattern[_GUARD_BYTES:]
        self.contents = self._all[_GUARD_BYTES : _GUARD_BYTES + nbytes]
        poison(self.contents, dtype)
        self.released: Record | None = None

    def damage(self) -> str:
        """'before', 'behind' or 'before and behind', where a guard is overwritten; '' otherwise."""
        before = not np.array_equal(self._all[:_GUARD_BYTES], self._pattern[:_GUARD_BYTES])
        behind = not np.array_equal(self._all[-_GUARD_BYTES:], self._pattern[_GUARD_BYTES:])
        return " and ".join(["before"] * before + ["behind"] * behind)

    def repair(self) -> None:
        """Restore the guards, so that one fault is reported once."""
        self._all[:_GUARD_BYTES] = self._pattern[:_GUARD_BYTES]
        self._all[-_GUARD_BYTES:] = self._pattern[_GUARD_BYTES:]


class Record:
    """A place in a stream's queue, over once everything before it is done."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.over = False

    def reach(self) -> None:
        self.over = True


class _Ownership:
    """What a Buffer and its views share; when the last of them is gone, the memory is given back."""

    __slots__ = ("__weakref__",)


class Buffer:
    """An array in the emulated device's memory, or a view of one.

    It has no arithmetic and does not become a NumPy array, as what runs on the device must be kernels.
    """

    __slots__ = ("_array", "_ownership", "allocation")
    __iter__ = None

    def __init__(self, array: NDArray[Any], allocation: Allocation, ownership: _Ownership | None) -> None:
        self._array = array
        self.allocation = allocation
        self._ownership = ownership

    @property
    def shape(self) -> tuple[int, ...]:
        return self._array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._array.dtype

    @property
    def nbytes(self) -> int:
        return self._array.nbytes

    def __getitem__(self, index: Index | tuple[Index, ...]) -> Buffer:
        indices = index if isinstance(index, tuple) else (index,)
        for one in indices:
            if not isinstance(one, (int, np.integer, slice, EllipsisType)):
                raise TypeError(f"a Buffer is indexed by integers, slices and ..., not by {one!r}")
        if Ellipsis not in indices:
            indices = (*indices, Ellipsis)  # an array of no dimensions instead of a scalar
        return Buffer(self._array[indices], self.allocation, self._ownership)

    def reshape(self, shape: tuple[int, ...]) -> Buffer:
        """A view of another shape."""
        if not self._array.flags.c_contiguous:  # CuPy would copy it
            raise ValueError(f"{self!r} is not contiguous")
        return Buffer(self._array.reshape(shape), self.allocation, self._ownership)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("a Buffer is in device memory; copy it to the host")

    def borrowed(self) -> Buffer:
        """The same for a queue, which does not own the memory."""
        return Buffer(self._array, self.allocation, None)

    def __repr__(self) -> str:
        return f"Buffer({self.dtype}, {self.shape})"


class Memory:
    """Gives out Buffers and counts their bytes, without guards.

    Parameters
    ----------
    limit : int, optional
        Bytes there are.
    on_release : callable
        Is given each Allocation when the last Buffer of it is gone, from whatever thread that happens in.

    Attributes
    ----------
    live, peak : int
        Bytes of the Buffers that exist, and the most there were.
    """

    def __init__(self, limit: int | None, on_release: Callable[[Allocation], None]) -> None:
        self.limit = limit
        self._on_release = on_release
        self.live = self.peak = 0
        self._lock = threading.RLock()  # the collector may free one Buffer while another is made

    def empty(self, shape: Sequence[int], dtype: DTypeLike) -> Buffer:
        """Poisoned memory; DeviceMemoryError where it does not suffice."""
        dtype, shape = np.dtype(dtype), tuple(map(operator.index, shape))
        nbytes = math.prod(shape) * dtype.itemsize
        with self._lock:
            if self.limit is not None and self.live + nbytes > self.limit:
                raise DeviceMemoryError(
                    f"out of memory on the emulated device: {nbytes} bytes asked for, {self.limit - self.live} of "
                    f"{self.limit} free"
                )
            self.live += nbytes
            self.peak = max(self.peak, self.live)
        allocation, ownership = Allocation(nbytes, dtype), _Ownership()
        weakref.finalize(ownership, self._give_back, allocation).atexit = False
        return Buffer(np.ndarray(shape, dtype, allocation.contents), allocation, ownership)

    def _give_back(self, allocation: Allocation) -> None:
        with self._lock:
            self.live -= allocation.contents.nbytes
        self._on_release(allocation)

    def reserve(self, work: Callable[[], _Result]) -> tuple[_Result, object]:
        """What `work` returns, and an object during whose life all memory counts that was in use in it at a time."""
        earlier, self.peak = self.peak, self.live
        try:
            result = work()
        finally:
            held, self.peak = self.peak - self.live, max(earlier, self.peak)
        reservation = _Ownership()
        self.live += held
        weakref.finalize(reservation, self._end_reservation, held).atexit = False
        return result, reservation

    def _end_reservation(self, held: int) -> None:
        with self._lock:
            self.live -= held


def array_of(buffer: Buffer) -> NDArray[Any]:
    """The NumPy array behind a Buffer, for the device's own use."""
    return buffer._array
