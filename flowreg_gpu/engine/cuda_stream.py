"""Batches of the host through a device: in parts that its memory holds, with transfers beside the computation."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections import deque
from collections.abc import Hashable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from flowreg_gpu.cuda.device import Buffer, Device, DeviceError, DeviceMemoryError
from flowreg_gpu.cuda.flow import add_field, add_frames, interleave
from flowreg_gpu.cuda.launch import upload
from flowreg_gpu.cuda.paper import PaperDevice
from flowreg_gpu.cuda.staging import PinnedArrays, Staging
from flowreg_gpu.engine.batch import STATISTICS, Batch, BatchResult, unflagged
from flowreg_gpu.engine.cuda_task import DeviceWarp, device_task
from flowreg_gpu.engine.job import WarpJob
from flowreg_gpu.engine.memory import device_batch, frame_bytes, memory_key

__all__ = ["BatchState", "DeviceStream"]

LARGEST_GRID = 65535  # planes of a launch


@dataclasses.dataclass
class BatchState:
    """A batch on its way through the device, and how far it has come.

    The first `finished` frames of `result` are right, also after a fault.
    """

    batch: Batch
    finished: int = 0
    result: BatchResult | None = None

    def advance(self, finished: int) -> None:
        """Count frames as finished up to this one."""
        new, self.finished = finished - self.finished, finished
        if self.batch.progress is not None:
            self.batch.progress(new)


class DeviceStream:
    """Registers batches of one recording on a device.

    Parameters
    ----------
    device : Device
    batch : int or None
        Frames on the device at a time; None chooses by its free memory.
    """

    def __init__(self, device: Device, batch: int | None) -> None:
        self._device, self._chosen_batch = device, batch
        self._pinned = PinnedArrays(device)
        self._staging: Staging | None = None
        self._staging_key: tuple[Any, ...] = ()
        self._staging_frames = 0
        self._turn = 0
        self._frame_bytes: dict[tuple[Hashable, ...], int] = {}  # by `memory_key`
        self._task: DeviceWarp | None = None

    def start_recording(self, job: WarpJob) -> None:
        """Upload and compute what all batches share."""
        self._job = job
        if self._task is not None:
            self._task.forget()
        self._task = device_task(self._device, job)
        self._limit = self._chosen_batch

    def _allocate_result(self, batch: Batch) -> BatchResult:
        """Pinned arrays for the results of a batch, in two sets by turns: the last one may still be being written."""
        self._turn = 1 - self._turn

        def pinned(name: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
            return self._pinned.get(f"{name} {self._turn}", (batch.count, *shape), dtype)

        shape = batch.frames.shape[1:]
        return BatchResult(
            pinned("registered", shape, batch.frames.dtype),
            pinned("flow", (*shape[:2], 2), np.float32) if batch.keep_flow and batch.flow is None else None,
            pinned("statistics", (len(STATISTICS),), np.float64),
        )

    def run(self, state: BatchState) -> BatchResult:
        """Register a batch; the result is valid until the one after the next.

        Raises
        ------
        DeviceError
            A fault; `state` says what is finished, and the batch's mean and field are as they were.
        """
        batch = state.batch
        try:
            result = state.result = self._allocate_result(batch)
            start = None
            if batch.start is not None:
                start = upload(self._device, np.ascontiguousarray(batch.start[None], np.float32))
            sums = self._upload_sums(batch)
            while state.finished < batch.count:
                try:
                    self._run_parts(state, result, start, sums)
                except DeviceMemoryError as error:
                    self._halve(error)
            self._download_sums(batch, sums, result)
            return result
        except BaseException:
            # what is still queued uses memory that is let go here
            with contextlib.suppress(DeviceError):
                self._device.synchronize()
            self._staging = None
            raise

    def _run_parts(self, state: BatchState, result: BatchResult, start: Buffer | None, sums: dict[str, Buffer]) -> None:
        """Queue one part after the other, at most one ahead of the one that is waited for."""
        batch = state.batch
        step = min(self._largest_part(batch), batch.count - state.finished)
        staging = self._ready_staging(batch, step)
        stops: deque[int] = deque()

        def collect(ahead: int) -> None:
            while len(stops) > ahead:
                staging.wait_download()
                state.advance(stops.popleft())

        for first in range(state.finished, batch.count, step):
            stop = min(first + step, batch.count)
            try:
                self._queue(batch, range(first, stop), result, staging, start, sums)
            except DeviceError:
                with contextlib.suppress(DeviceError):
                    collect(ahead=0)  # what was queued before the fault
                raise
            stops.append(stop)
            collect(ahead=1)
        collect(ahead=0)

    def _queue(
        self,
        batch: Batch,
        part: range,
        result: BatchResult,
        staging: Staging,
        start: Buffer | None,
        sums: dict[str, Buffer],
    ) -> None:
        """Queue upload, registration and download of the frames of a part."""
        assert self._task is not None
        first, stop = part.start, part.stop
        raw, *own = staging.upload(batch.inputs(first, stop))
        registered, flow, statistics = self._task.run(raw, start, *own)
        staging.release()
        downloads = [(result.registered[first:stop], registered), (result.statistics[first:stop], statistics)]
        if result.flow is not None:
            downloads.append((result.flow[first:stop], interleave(self._device, flow)))
        local = max(batch.count - batch.averaged - first, 0)
        if "mean" in sums and local < stop - first:
            add_frames(self._device, flow, local, sums["mean"])
        if "field" in sums:
            add_field(self._device, flow, sums["field"])
        staging.download(downloads)

    def _largest_part(self, batch: Batch) -> int:
        """Frames that the device takes at a time."""
        channels = batch.frames.shape[-1]
        if self._limit is None:
            key = memory_key(self._job, batch.frames.dtype)
            if key not in self._frame_bytes:
                paper = PaperDevice(self._device.shared_memory, self._device.multiprocessors)
                self._frame_bytes[key] = frame_bytes(self._job, batch.frames.dtype, paper)
            free_memory, multiprocessors = self._device.free_memory(), self._device.multiprocessors
            self._limit = device_batch(free_memory, self._frame_bytes[key], multiprocessors)
        limit: int = min(self._limit, LARGEST_GRID // max(channels, 2))
        return limit

    def _ready_staging(self, batch: Batch, step: int) -> Staging:
        """The ring of the last batch, if it fits."""
        inputs = batch.inputs(0, step)
        key = (batch.halo, *((item.shape[1:], item.dtype) for item in inputs))
        if self._staging is None or key != self._staging_key or step > self._staging_frames:
            self._staging = None  # its memory first
            self._staging = Staging(self._device, [(item.shape, item.dtype) for item in inputs])
            self._staging_key, self._staging_frames = key, step
        return self._staging

    def _halve(self, error: DeviceMemoryError) -> None:
        """Halve the device's batch after it ran out of memory; the fault stands where it cannot be halved."""
        assert self._limit is not None
        if self._limit == 1:
            raise error
        assert self._task is not None
        self._staging = None
        self._task.forget()
        warnings.warn(
            f"{self._limit} frames do not fit into the memory of {self._device.name}; going on with "
            f"{self._limit // 2} at a time",
            RuntimeWarning,
            stacklevel=2,
        )
        self._limit //= 2

    def _upload_sums(self, batch: Batch) -> dict[str, Buffer]:
        """Sums so far that this batch adds to: of its mean (2, H, W) float64, and of its field (4, H, W) int64."""
        if batch.start is None:
            return {}
        size, known = batch.start.shape[1:], {}
        if batch.mean is not None and batch.averaged:
            known["mean"] = np.zeros((2, *size)) if batch.mean.total is None else batch.mean.total
        if batch.field is not None:
            known["field"] = np.zeros((4, *size), np.int64) if batch.field.sums is None else batch.field.sums
        return {name: upload(self._device, array) for name, array in known.items()}

    def _download_sums(self, batch: Batch, sums: dict[str, Buffer], result: BatchResult) -> None:
        """Hand the sums in: all of them or, after a fault, none, since whoever goes on adds to all of them again."""
        hosts = {name: self._pinned.get(name, buffer.shape, buffer.dtype) for name, buffer in sums.items()}
        for name, host in hosts.items():
            self._device.copy(host, sums[name])
        if hosts:
            self._device.synchronize()
        if batch.mean is not None and "mean" in hosts:
            batch.mean.total = hosts["mean"].copy()
            batch.mean.count += int(np.count_nonzero(unflagged(result.statistics[batch.count - batch.averaged :])))
        if batch.field is not None and "field" in hosts:
            batch.field.sums = hosts["field"].copy()
            batch.field.count += int(np.count_nonzero(unflagged(result.statistics)))
