"""Frames to and from the device beside the computation: pinned buffers, two more streams, events between them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from flowreg_gpu.cuda.device import Buffer, Device, Event

__all__ = ["SLOTS", "PinnedArrays", "Staging"]

SLOTS = 2  # uploads that can be under way or in use at a time: one is filled while the other is used


class PinnedArrays:
    """Page-locked host arrays by name; one that is asked for again in a size that fits keeps its memory."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._memory: dict[str, NDArray[np.uint8]] = {}

    def get(self, name: str, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        """Array of unspecified contents, valid until the name is asked for again."""
        dtype = np.dtype(dtype)
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        memory = self._memory.pop(name, None)
        if memory is None or memory.nbytes < nbytes:
            memory = self._device.pinned((nbytes,), np.uint8)
        self._memory[name] = memory
        return memory[:nbytes].view(dtype).reshape(tuple(shape))


class _Slot:
    """A pinned array, its twin on the device, and until when either is in use."""

    def __init__(self, device: Device, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self.host = device.pinned(shape, dtype)
        self.buffer = device.empty(shape, dtype)
        self.uploaded, self.consumed = device.event(), device.event()
        device.record(self.consumed)  # the pool may have given out memory that earlier work still uses


class Staging:
    """A ring of slots for uploads, and downloads that are waited for in order.

    Parameters
    ----------
    device : Device
    shapes : sequence of (shape, dtype)
        The arrays that one upload consists of, as large as they get; an upload may fill a part of the first axis.
    slots : int
        Uploads that can be under way or in use at a time.
    """

    def __init__(self, device: Device, shapes: Sequence[tuple[tuple[int, ...], DTypeLike]], slots: int = SLOTS) -> None:
        self._device = device
        self._up, self._down = device.stream(), device.stream()
        self._ring = deque([_Slot(device, shape, dtype) for shape, dtype in shapes] for _ in range(slots))
        self._downloads: deque[tuple[Event, Sequence[Buffer]]] = deque()

    def upload(self, arrays: Sequence[NDArray[Any]]) -> list[Buffer]:
        """Copy arrays into the next slot; what is queued for computation from now on sees them on the device."""
        self._ring.rotate(-1)
        buffers = []
        for slot, array in zip(self._ring[0], arrays, strict=True):
            host, buffer = slot.host[: len(array)], slot.buffer[: len(array)]
            self._device.synchronize(slot.uploaded)
            np.copyto(host, array)
            self._device.wait(slot.consumed, self._up)
            self._device.copy(buffer, host, self._up)
            self._device.record(slot.uploaded, self._up)
            self._device.wait(slot.uploaded)
            buffers.append(buffer)
        return buffers

    def release(self) -> None:
        """Say that all that uses the last upload is queued."""
        for slot in self._ring[0]:
            self._device.record(slot.consumed)

    def download(self, pairs: Sequence[tuple[NDArray[Any], Buffer]]) -> None:
        """Copy what has been queued for computation to pinned arrays; `wait_download` says when they hold it."""
        computed, finished = self._device.event(), self._device.event()
        self._device.record(computed)
        self._device.wait(computed, self._down)
        for host, buffer in pairs:
            self._device.copy(host, buffer, self._down)
        self._device.record(finished, self._down)
        self._downloads.append((finished, [buffer for _, buffer in pairs]))

    def wait_download(self) -> None:
        """Wait for the oldest download, and let its buffers go."""
        finished, _ = self._downloads[0]
        self._device.synchronize(finished)
        self._downloads.popleft()
