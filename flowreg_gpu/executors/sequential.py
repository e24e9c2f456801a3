"""One frame after the other, in this thread."""

from __future__ import annotations

from collections.abc import Callable

from flowreg_gpu.engine.batch import Progress
from flowreg_gpu.executors.cpu import LocalExecutor

__all__ = ["SequentialExecutor"]


class SequentialExecutor(LocalExecutor):
    """Registers one frame after the other; `n_workers` is always 1."""

    name = "sequential"
    description = "One frame after the other"

    def __init__(self, n_workers: int | None = None) -> None:
        super().__init__(n_workers)
        self.n_workers = 1

    def _run_frames(self, run_frame: Callable[[int], None], indices: range, progress: Progress) -> None:
        for index in indices:
            run_frame(index)
            progress(1)


SequentialExecutor.register()
