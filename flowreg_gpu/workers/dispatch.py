"""Frames on their way through the workers: who handles which, and what became of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from flowreg_gpu.workers.group import WorkerGroup
from flowreg_gpu.workers.messages import Failure, Order
from flowreg_gpu.workers.worker import Worker

__all__ = ["Dispatch"]


class Dispatch:
    """Hands chunks of frames to workers that have prepared a task.

    Parameters
    ----------
    group : WorkerGroup
        All of its workers are idle.
    progress : callable or None
        Called with the number of newly finished frames, while the workers go on.
    timeout : float or None
        Seconds that a frame may take.
    in_order : bool
        Whether chunks before one that failed are finished; chunks are then ordered in the order of their frames, and
        the failure is that of the first frame that fails.

    Attributes
    ----------
    failure : Failure or None
        An exception of the task, the first that was reported. Frames that had been begun are then finished, the others
        not begun.
    """

    def __init__(
        self,
        group: WorkerGroup,
        progress: Callable[[int], None] | None = None,
        timeout: float | None = None,
        in_order: bool = False,
    ) -> None:
        self._group, self._progress, self._timeout, self._in_order = group, progress, timeout, in_order
        self._idle, self._busy = list(group.workers), set[Worker]()
        self._finished: list[range] = []
        self.failure: Failure | None = None
        self._failed = range(0)  # the chunk that it belongs to

    @property
    def accepts(self) -> bool:
        """Whether a worker is idle, and nothing has failed."""
        return bool(self._idle) and self.failure is None

    @property
    def works(self) -> bool:
        """Whether a worker is busy."""
        return bool(self._busy)

    def order(self, frames: range) -> None:
        """Give a chunk to an idle worker."""
        worker = self._idle.pop()
        worker.frames, worker.finished, worker.since = frames, 0, time.monotonic()
        self._busy.add(worker)
        self._group.send(worker, Order(frames, every_frame=self._timeout is not None))

    def finished(self) -> list[range]:
        """The chunks that are finished, once."""
        chunks, self._finished = self._finished, []
        return chunks

    def wait(self, also: Sequence[Connection[Any, Any]] = ()) -> None:
        """Wait until a busy worker reports or one of `also` can be read.

        Raises
        ------
        TimeoutError
            A frame takes too long; its worker is killed.
        RuntimeError
            A worker is dead.
        """
        for worker, report in self._group.reports(self._busy, also, self._seconds_left()):
            worker.finished += report.finished
            worker.since = time.monotonic()
            if report.failure is not None and self._comes_first(worker.frames):
                self.failure, self._failed = report.failure, worker.frames
                self._stop_others(worker)
            if report.idle:
                self._busy.discard(worker)
                self._idle.append(worker)
                if worker.finished == len(worker.frames):
                    self._finished.append(worker.frames)
                worker.frames = range(0)
            if report.finished and self._progress is not None:
                self._progress(report.finished)
        self._check_time()

    def _comes_first(self, frames: range) -> bool:
        return self.failure is None or (self._in_order and frames.start < self._failed.start)

    def _stop_others(self, failed: Worker) -> None:
        """Have the other workers begin no further frame."""
        for worker in self._busy - {failed}:
            if not self._in_order or worker.frames.start > failed.frames.start:
                self._group.send(worker, None)

    def drain(self) -> None:
        """Wait until all workers are idle."""
        while self.works:
            self.wait()

    def _seconds_left(self) -> float | None:
        """Until the first frame has taken too long."""
        if self._timeout is None or not self._busy:
            return None
        return max(min(worker.since for worker in self._busy) + self._timeout - time.monotonic(), 0)

    def _check_time(self) -> None:
        if self._timeout is None:
            return
        now = time.monotonic()
        for worker in self._busy:
            # a report that is already in the pipe says that the frame was finished in time
            if now - worker.since >= self._timeout and not worker.connection.poll():
                worker.process.kill()
                frame = worker.frames[min(worker.finished, len(worker.frames) - 1)]
                raise TimeoutError(
                    f"frame {frame}: not finished after {self._timeout:g} s (timeout), its worker was ended"
                )
