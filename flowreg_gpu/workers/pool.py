"""One spawned pool and one set of shared-memory blocks for a whole recording, for any function of its frames.

The stacks lie in shared memory; what the pool sends are a pickled task with the names of the blocks, once, and then
ranges of frame indices. The workers send back counts of finished frames.
"""

from __future__ import annotations

import contextlib
import math
import operator
import os
import signal
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import process
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from flowreg_gpu.options import positive_integer
from flowreg_gpu.workers.blocks import ArrayPlace, Block, new_block, unlink_block
from flowreg_gpu.workers.messages import Failure, FrameTask, Preparation, Report, pickled_task
from flowreg_gpu.workers.worker import (
    GRACE_SECONDS,
    Worker,
    environment,
    interrupt_blocked,
    start_worker,
    stop_workers,
)

__all__ = ["THREAD_VARIABLES", "FramePool", "default_workers"]

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
)

# glibc gives blocks above a threshold back to the system when they are freed, and the next frame's faults its pages in
# again, a tenth of the time of a frame. Other C libraries do not know these names.
_ALLOCATOR_VARIABLES = {"MALLOC_MMAP_THRESHOLD_": str(2**28), "MALLOC_TRIM_THRESHOLD_": str(2**28)}

_LONGEST_CHUNK = 16  # frames; with longer ones, an order would not cost noticeably less
_GUARD_HINT = 'a script must start workers under `if __name__ == "__main__":`, because every worker imports the script'


def default_workers() -> int:
    """Return the number of CPUs this process may use.

    Returns
    -------
    int
        Number of CPUs in the affinity mask, or of the machine where there is no such mask.

    Examples
    --------
    >>> default_workers() >= 1
    True
    """
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class FramePool:
    """Worker processes and shared-memory blocks that live as long as a recording is processed.

    Parameters
    ----------
    n_workers : int, optional
        Number of processes; by default `default_workers()`.
    threads_per_worker : int
        Thread limit of OpenMP, BLAS, numexpr and Numba in each worker.

    Attributes
    ----------
    n_workers : int
        Number of processes.

    Raises
    ------
    ValueError
        If a number is less than 1.

    Notes
    -----
    The workers are spawned at the first `run` and stay until `close`. Use one pool from one thread only.

    Examples
    --------
    A task is an object of a class at the module level::

        class Invert:
            def prepare(self, arrays):
                self.top = arrays["movie"].max()

            def __call__(self, arrays, index):
                arrays["inverted"][index] = self.top - arrays["movie"][index]

        if __name__ == "__main__":
            with FramePool(n_workers=2) as pool:
                movie = pool.allocate("movie", (500, 512, 512), "uint16")
                inverted = pool.allocate("inverted", movie.shape, movie.dtype)
                for movie[:] in batches:
                    pool.run(Invert(), range(len(movie)))
    """

    n_workers: int

    def __init__(self, n_workers: int | None = None, threads_per_worker: int = 1) -> None:
        self.n_workers = default_workers() if n_workers is None else positive_integer("n_workers", n_workers)
        self._threads = positive_integer("threads_per_worker", threads_per_worker)
        self._workers: list[Worker] = []
        self._blocks: dict[str, Block] = {}
        self._arrays: dict[str, NDArray[Any]] = {}
        self._sent_task: FrameTask | None = None
        # not a method: the finalizer must not keep the pool alive
        self._finalizer = weakref.finalize(self, _shut_down, self._workers, self._blocks, os.getpid())

    def __enter__(self) -> FramePool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def allocate(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Make an array that the workers see too, or reuse the block of that name if it is large enough.

        Parameters
        ----------
        name : str
            Key of the array in the mapping that tasks get.
        shape : tuple of int
            Shape of the array.
        dtype : dtype-like
            Type of the array; not of Python objects.

        Returns
        -------
        ndarray
            View of shared memory. Its values are unspecified.

        Raises
        ------
        RuntimeError
            If there is not enough shared memory (nothing is left under `name` then), or the pool is closed.
        TypeError
            If `dtype` holds Python objects.
        ValueError
            If `shape` has negative entries.

        Notes
        -----
        Earlier arrays of that name no longer belong to the pool: they share memory with the new one if the block was
        reused, else they keep the memory of the old block from being freed. Arrays stay readable after `close`.
        """
        self._check_usable()
        kind = np.dtype(dtype)
        shape = tuple(operator.index(length) for length in shape)
        if kind.hasobject:
            raise TypeError(f"{name!r}: dtype={kind} holds Python objects, which cannot be shared between processes")
        if any(length < 0 for length in shape):
            raise ValueError(f"{name!r}: {shape=} has negative entries")
        array = self._arrays.get(name)
        if array is not None and array.shape == shape and array.dtype == kind:
            return array

        self._sent_task = None  # it was prepared with other arrays
        size = math.prod(shape) * kind.itemsize
        if array is not None and size > len(self._blocks[name].mapping):
            del array
            self._release(name)
        if name not in self._blocks:
            self._blocks[name] = new_block(name, size)
        self._arrays[name] = np.ndarray(shape, kind, self._blocks[name].mapping)
        return self._arrays[name]

    def start(self) -> None:
        """Start the workers and wait until they are ready; `run` does so if they are not running.

        Raises
        ------
        RuntimeError
            If a worker ends before it is ready, if this process is a worker that imports an unguarded main script, or
            if the pool is closed.
        """
        self._check_usable()
        if self._workers:
            return
        with self._stopping_on_error():
            variables = {**dict.fromkeys(THREAD_VARIABLES, str(self._threads)), **_ALLOCATOR_VARIABLES}
            with environment(variables), interrupt_blocked():
                for _ in range(self.n_workers):
                    self._workers.append(start_worker())
            self._await_idle()
            for worker in self._workers:
                worker.ready = True

    def run(self, task: FrameTask, indices: range, progress: Callable[[int], None] | None = None) -> None:
        """Let the workers handle frames.

        Parameters
        ----------
        task : FrameTask
            Sent, and prepared, only if it is another object than in the last run or if `allocate` changed an array
            since. What is changed inside of a task afterwards does not reach the workers: make a new one.
        indices : range
            The frames to handle.
        progress : callable, optional
            Called with the number of newly finished frames, in this process, while the workers go on.

        Raises
        ------
        TypeError
            If the task cannot be pickled, or not be loaded in a worker.
        RuntimeError
            If a worker dies (the next run starts new ones), or the pool is closed.
        Exception
            What the task raised, with the worker's traceback as its cause. Frames that had been begun are finished
            then, the others not begun; the pool remains usable.
        """
        self._check_usable()
        if not indices:
            return
        preparation = None if task is self._sent_task else Preparation(pickled_task(task), self._array_places())
        self.start()
        with self._stopping_on_error():
            failure = None if preparation is None else self._prepare(preparation)
            if failure is None:
                self._sent_task = task
                failure = self._hand_out(indices, progress or (lambda finished: None))
        if failure is not None:
            raise failure.exception()

    def close(self) -> None:
        """End the workers and remove the blocks; arrays stay readable. May be called again."""
        self._finalizer()
        self._arrays.clear()
        self._sent_task = None

    def _check_usable(self) -> None:
        if not self._finalizer.alive:
            raise RuntimeError("the pool is closed")
        if getattr(process.current_process(), "_inheriting", False):
            # also before a block is made: otherwise each worker would first read in the recording
            raise RuntimeError(f"a worker process is about to start workers while it is being started: {_GUARD_HINT}")

    @contextlib.contextmanager
    def _stopping_on_error(self) -> Iterator[None]:
        """Stop the workers on a dead worker, an interrupt, a raising `progress`: nobody knows what is in the pipes."""
        try:
            yield
        except BaseException:
            self._sent_task = None
            stop_workers(self._workers)
            raise

    def _release(self, name: str) -> None:
        del self._arrays[name]
        unlink_block(self._blocks.pop(name))
        if self._workers:
            # as long as a worker maps the old block, its memory is not free for the larger one
            with self._stopping_on_error():
                self._prepare(Preparation(None, []))

    def _array_places(self) -> list[ArrayPlace]:
        return [
            ArrayPlace(name, self._blocks[name].memory.name, array.shape, array.dtype)
            for name, array in self._arrays.items()
        ]

    def _prepare(self, preparation: Preparation) -> Failure | None:
        for worker in self._workers:
            self._order(worker, preparation)
        return self._await_idle()

    def _await_idle(self) -> Failure | None:
        failure = None
        busy = set(self._workers)
        while busy:
            for worker, report in self._reports(busy):
                busy.discard(worker)
                failure = failure or report.failure
        return failure

    def _hand_out(self, indices: range, progress: Callable[[int], None]) -> Failure | None:
        """Give chunks to idle workers until all are handled or one failed; return with all workers idle."""
        chunks = _chunks(indices, self.n_workers)
        failure = None
        busy = set()
        for worker, chunk in zip(self._workers, chunks, strict=False):
            self._order(worker, chunk)
            busy.add(worker)
        while busy:
            for worker, report in self._reports(busy):
                if report.idle:
                    busy.discard(worker)
                if report.failure is not None and failure is None:
                    failure = report.failure
                    for other in busy:
                        self._order(other, None)
                if report.idle and failure is None and (following := next(chunks, None)) is not None:
                    self._order(worker, following)
                    busy.add(worker)
                if report.finished:
                    progress(report.finished)
        return failure

    def _order(self, worker: Worker, order: Preparation | range | None) -> None:
        try:
            worker.connection.send(order)
        except OSError as error:
            raise RuntimeError(self._death(worker)) from error

    def _reports(self, workers: Iterable[Worker]) -> list[tuple[Worker, Report]]:
        """Wait until workers report or die; at most one report of each."""
        source = {worker.connection: worker for worker in workers} | {
            worker.process.sentinel: worker for worker in workers
        }
        reports = []
        for worker in {source[item] for item in wait(list(source))}:  # type: ignore[index]
            try:
                if not worker.connection.poll():  # dead, but what its task has forked holds the pipe
                    raise EOFError
                reports.append((worker, worker.connection.recv()))
            except (EOFError, OSError) as error:
                raise RuntimeError(self._death(worker)) from error
        return reports

    def _death(self, worker: Worker) -> str:
        worker.process.join(GRACE_SECONDS)  # its pipe ends before its exit code is known
        code = worker.process.exitcode
        how = f"was killed by {_signal_name(-code)}" if code is not None and code < 0 else f"ended with exit {code=}"
        told = f"worker process {worker.process.pid} {how}"
        if not worker.ready:
            return f"{told} before it was ready: {_GUARD_HINT}; its own message is on stderr"
        return (
            f"{told} (SIGKILL is mostly the system's answer to memory running out): try fewer workers "
            f'(n_workers={self.n_workers}), a smaller batch, or executor="threading"'
        )


def _chunks(indices: range, n_workers: int) -> Iterator[range]:
    """Cut ever shorter chunks, a quarter of what each worker would get of the rest, so that all end together."""
    while indices:
        length = min(max(len(indices) // (4 * n_workers), 1), _LONGEST_CHUNK)
        yield indices[:length]
        indices = indices[length:]


def _shut_down(workers: list[Worker], blocks: dict[str, Block], owner: int) -> None:
    if os.getpid() != owner:  # a forked copy of the pool
        return
    try:
        stop_workers(workers)
    finally:
        while blocks:
            unlink_block(blocks.popitem()[1])


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no names
        return f"signal {number}"
