"""What the executors that work on CPUs share."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from flowreg_gpu.engine.batch import STATISTICS, Batch, BatchResult, Progress
from flowreg_gpu.engine.cpu_task import RegistrationTask, WarpTask
from flowreg_gpu.engine.job import Job, WarpJob
from flowreg_gpu.executors.base import BaseExecutor

__all__ = ["CPUExecutor", "LocalExecutor"]

_WORKER_BATCH_BYTES = 8 * 2**20  # frames and registered frames


class CPUExecutor(BaseExecutor):
    """An executor that runs `RegistrationTask`, or `WarpTask`, on every frame, wherever its arrays lie."""

    def __init__(self, n_workers: int | None = None) -> None:
        super().__init__(n_workers)
        self._job: WarpJob | None = None
        self._task: WarpTask | None = None

    @property
    def batch_bytes(self) -> int:
        """Eight frames of 512 x 512 pixels in uint16 for each worker: with more, a run is not faster."""
        return self.n_workers * _WORKER_BATCH_BYTES

    @abc.abstractmethod
    def _allocate(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return an array of unspecified contents that the workers know by this name."""

    def _put(self, name: str, array: NDArray[Any], dtype: DTypeLike) -> None:
        """Make an array known to the workers by this name."""
        self._allocate(name, array.shape, dtype)[...] = array

    @abc.abstractmethod
    def _run(self, task: WarpTask, indices: range, progress: Progress | None) -> None:
        """Run the task on every index."""

    def start_recording(self, job: WarpJob) -> None:
        """Take what all following batches share."""
        self._put("reference", job.reference, np.float32)
        self._job, self._task = job, WarpTask(job.options)
        if isinstance(job, Job):
            for name in ("reference_planes", "weight", "mean_weight"):
                self._put(name, getattr(job, name), np.float32)
            self._task = RegistrationTask(job.options, job.preprocessing)

    def _checked(self, batch: Batch) -> WarpJob:
        """The job that a batch belongs to; RuntimeError or ValueError where it belongs to none."""
        if self._job is None:
            raise RuntimeError("register_batch was called before start_recording")
        self._job.check(batch)
        return self._job

    def register_batch(self, batch: Batch) -> BatchResult:
        """Register one batch; see `BaseExecutor.register_batch`."""
        self._checked(batch)
        assert self._task is not None  # it comes with the job
        frames, count = batch.frames, batch.count
        self._put("frames", frames, frames.dtype)
        for name, array in (("start", batch.start), ("planes", batch.planes), ("given_flow", batch.flow)):
            if array is not None:
                self._put(name, array, np.float32)
        registered = self._allocate("registered", (count, *frames.shape[1:]), frames.dtype)
        flow = self._allocate("flow", (batch.flows, *frames.shape[1:3], 2), np.float32)
        statistics = self._allocate("statistics", (count, len(STATISTICS)), np.float64)
        self._run(self._task, range(count), batch.progress)
        if batch.field is not None:
            batch.field.add(flow, statistics)
        if batch.mean is not None:
            batch.mean.add(flow[batch.flows - batch.averaged :], statistics[count - batch.averaged :])
        return BatchResult(registered, flow if batch.keep_flow and batch.flow is None else None, statistics)


class LocalExecutor(CPUExecutor):
    """A CPU executor whose workers share this process's memory."""

    def __init__(self, n_workers: int | None = None) -> None:
        super().__init__(n_workers)
        self._arrays: dict[str, NDArray[Any]] = {}
        self._prepared: WarpTask | None = None

    def cleanup(self) -> None:
        """Release the arrays."""
        self._arrays.clear()
        self._job = self._task = self._prepared = None

    def _allocate(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        array = self._arrays.get(name)
        if array is None or array.shape != shape or array.dtype != dtype:
            array = self._arrays[name] = np.empty(shape, dtype)
        return array

    def _put(self, name: str, array: NDArray[Any], dtype: DTypeLike) -> None:
        # kernels are compiled for contiguous arrays that may be written, though they do not write these
        self._arrays[name] = np.require(array, dtype, ["C", "A", "W"])

    def _keep(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        return self._arrays.pop(name)

    def _run(self, task: WarpTask, indices: range, progress: Progress | None) -> None:
        if task is not self._prepared:
            task.prepare(self._arrays)
            self._prepared = task
        try:
            self._run_frames(lambda index: task(self._arrays, index), indices, progress or (lambda finished: None))
        finally:
            for name in (
                "frames",
                "planes",
                "given_flow",
            ):  # so that their memory is free before the next batch is handed in
                self._arrays.pop(name, None)

    @abc.abstractmethod
    def _run_frames(self, run_frame: Callable[[int], None], indices: range, progress: Progress) -> None:
        """Call `run_frame` for every index, and `progress` in this thread."""
