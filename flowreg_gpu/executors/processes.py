"""Worker processes that share the frames in memory."""

from __future__ import annotations

from typing import Any

from numpy.typing import DTypeLike, NDArray

from flowreg_gpu.engine.batch import Progress
from flowreg_gpu.engine.cpu_task import RegistrationTask
from flowreg_gpu.executors.cpu import CPUExecutor
from flowreg_gpu.workers.pool import FramePool

__all__ = ["MultiprocessingExecutor"]


class MultiprocessingExecutor(CPUExecutor):
    """Registers frames in spawned processes; one pool and one set of shared-memory blocks for the recording.

    A script that uses it must start its work under ``if __name__ == "__main__":``.
    """

    name = "multiprocessing"
    parallel = True
    description = "Processes with shared memory"
    features = ("zero-copy", "shared-memory", "true-parallelism")

    def __init__(self, n_workers: int | None = None) -> None:
        super().__init__(n_workers)
        self._pool: FramePool | None = None

    def setup(self) -> None:
        """Start the workers, which takes a second or so, once."""
        if self._pool is None:
            hint = 'a smaller batch or executor="threading"'
            self._pool = FramePool(self.n_workers, memory_hint=hint)
            self._pool.start()

    def cleanup(self) -> None:
        """Stop the workers and unlink the shared memory."""
        if self._pool is not None:
            self._pool.close()
        self._pool = self._job = self._task = None

    def _ready_pool(self) -> FramePool:
        if self._pool is None:
            self.setup()
        assert self._pool is not None
        return self._pool

    def _allocate(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        return self._ready_pool().allocate(name, shape, dtype)

    def _run(self, task: RegistrationTask, indices: range, progress: Progress | None) -> None:
        self._ready_pool().run(task, indices, progress)


MultiprocessingExecutor.register()
