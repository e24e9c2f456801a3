"""Worker processes that share the frames in memory."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from flowreg_gpu.engine.batch import Batch, BatchResult, Progress
from flowreg_gpu.engine.cpu_task import WarpTask
from flowreg_gpu.engine.job import WarpJob
from flowreg_gpu.executors.cpu import CPUExecutor
from flowreg_gpu.executors.threads import ThreadingExecutor
from flowreg_gpu.workers.blocks import SharedMemoryError, free_shared_memory
from flowreg_gpu.workers.pool import FramePool
from flowreg_gpu.workers.spawning import obstacle_to_workers

__all__ = ["MultiprocessingExecutor"]

# A worker's own memory with Python, NumPy and numba's kernels; what it maps of libraries is the parent's as well.
_WORKER_BYTES = 95_000_000


class MultiprocessingExecutor(CPUExecutor):
    """Registers frames in spawned processes; one pool and one set of shared-memory blocks for the recording.

    A script that uses it must start its work under ``if __name__ == "__main__":``. Where shared memory does not hold
    a batch, it is registered in parts.

    Parameters
    ----------
    n_workers : int or None
        Number of processes; None takes one per CPU.
    fallback : bool
        True has threads do the work, with one warning, where processes cannot be started or shared memory does not
        hold two frames for each. False raises RuntimeError.
    """

    name = "multiprocessing"
    parallel = True
    description = "Processes with shared memory"
    features = ("zero-copy", "shared-memory", "true-parallelism")

    def __init__(self, n_workers: int | None = None, *, fallback: bool = False) -> None:
        super().__init__(n_workers)
        self._may_fall_back = fallback
        self._pool: FramePool | None = None
        self._threads: ThreadingExecutor | None = None
        self._held: dict[str, int] = {}  # bytes of each block, which grow and do not shrink

    @property
    def backend(self) -> str:
        """Name of the executor that does the work: threads' where processes cannot."""
        return self.name if self._threads is None else self._threads.backend

    def batch_memory(self, frames: int, results: int) -> int:
        """Shared memory: a copy of the frames, and the results."""
        return results if self._threads is not None else frames + results

    def working_memory(self, frame: int) -> int:
        """The workers' processes, each with a frame in work."""
        return self.n_workers * (frame if self._threads is not None else _WORKER_BYTES + frame)

    def setup(self) -> None:
        """Start the workers, which takes a second or so, once.

        Raises
        ------
        RuntimeError
            This process cannot start any.
        """
        if self._pool is not None or self._threads is not None:
            return
        obstacle = obstacle_to_workers()
        if obstacle is not None:
            self._fall_back(obstacle)
            return
        hint = 'a smaller batch or executor="threading"'
        self._pool = FramePool(self.n_workers, memory_hint=hint)
        self._pool.start()

    def _fall_back(self, reason: str) -> ThreadingExecutor:
        """Have threads do the work from now on; RuntimeError where that is not wanted."""
        if not self._may_fall_back:
            raise RuntimeError(f"executor='multiprocessing' cannot be used: {reason}; executor='threading' can")
        warnings.warn(f"worker processes cannot be used ({reason}); using 'threading'", RuntimeWarning, stacklevel=4)
        self.cleanup()
        self._threads = ThreadingExecutor(self.n_workers)
        return self._threads

    def cleanup(self) -> None:
        """Stop the workers and let go of the shared memory."""
        if self._pool is not None:
            self._pool.close()
        if self._threads is not None:
            self._threads.cleanup()
        self._pool = self._job = self._task = None
        self._held.clear()

    def start_recording(self, job: WarpJob) -> None:
        """Take what all following batches share."""
        self.setup()
        if self._threads is None:
            try:
                super().start_recording(job)
                return
            except SharedMemoryError as error:
                if not self._may_fall_back:
                    raise
                self._fall_back(str(error))
        assert self._threads is not None
        self._threads.start_recording(job)

    def register_batch(self, batch: Batch) -> BatchResult:
        """Register one batch, in parts where shared memory does not hold it; see `BaseExecutor.register_batch`."""
        if self._threads is not None:
            return self._threads.register_batch(batch)
        job = self._checked(batch)
        most = self._frames_that_fit(batch)
        if most < min(batch.count, 2 * self.n_workers) and self._may_fall_back:
            self._fall_back(f"shared memory holds {most} frames at a time").start_recording(job)
            return self.register_batch(batch)
        if most >= batch.count:
            return super().register_batch(batch)
        return self._register_parts(batch, max(most, 1))

    def _register_parts(self, batch: Batch, size: int) -> BatchResult:
        """Register `size` frames at a time, and put the results together."""
        registered, flows, statistics = [], [], []
        for first in range(0, batch.count, size):
            part = batch.part(first, min(first + size, batch.count), batch.progress)
            result = super().register_batch(part)
            registered.append(result.registered.copy())
            statistics.append(result.statistics.copy())
            if result.flow is not None:
                flows.append(result.flow.copy())
        return BatchResult(
            np.concatenate(registered), np.concatenate(flows) if flows else None, np.concatenate(statistics)
        )

    def _frames_that_fit(self, batch: Batch) -> int:
        """Frames of a batch that half of the shared memory holds; the rest is for others.

        It is their number where the blocks are there already.
        """
        frames = batch.count
        missing = self._missing_bytes(batch, frames)
        if missing == 0:
            return frames
        free = free_shared_memory() // 2
        while frames and missing > free:
            frames -= 1
            missing = self._missing_bytes(batch, frames)
        return frames

    def _missing_bytes(self, batch: Batch, frames: int) -> int:
        """Bytes that blocks for so many frames of a batch take beyond those that there are."""
        height, width = batch.frames.shape[1:3]
        sizes = {
            "frames": (frames + 2 * batch.halo) * batch.frames[0].nbytes,
            "registered": frames * batch.frames[0].nbytes,
            "flow": min(frames, batch.flows) * height * width * 2 * np.dtype(np.float32).itemsize,
            "planes": 0 if batch.planes is None else frames * batch.planes[0].nbytes,
            "given_flow": 0 if batch.flow is None else frames * batch.flow[0].nbytes,
            "start": 0 if batch.start is None else batch.start.nbytes,
        }
        return sum(max(size - self._held.get(name, 0), 0) for name, size in sizes.items())

    def _allocate(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        held = self._held.pop(name, 0)
        array = self._ready_pool().allocate(name, shape, dtype)
        self._held[name] = max(held, array.nbytes)
        return array

    def _ready_pool(self) -> FramePool:
        if self._pool is None:
            self.setup()
        assert self._pool is not None
        return self._pool

    def _run(self, task: WarpTask, indices: range, progress: Progress | None) -> None:
        self._ready_pool().run(task, indices, progress)


MultiprocessingExecutor.register()
