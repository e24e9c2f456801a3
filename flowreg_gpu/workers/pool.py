"""One spawned pool and one set of shared-memory blocks for a whole recording, for any function of its frames.

The stacks lie in shared memory; what the pool sends are a pickled task and the descriptors of the blocks, once, and
then ranges of frame indices. The workers send back counts of finished frames.
"""

from __future__ import annotations

import contextlib
import math
import operator
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from multiprocessing import process
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from flowreg_gpu.options import positive_integer
from flowreg_gpu.workers.blocks import ArrayPlace, Block, SharedMemoryError, new_block
from flowreg_gpu.workers.dispatch import Dispatch
from flowreg_gpu.workers.group import GUARD_HINT, WorkerGroup
from flowreg_gpu.workers.messages import FrameTask, Preparation, pickled_task
from flowreg_gpu.workers.spawning import obstacle_to_workers
from flowreg_gpu.workers.worker import stop_workers

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
    memory_hint : str
        What the caller can do where memory runs out; ends messages about that.

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
    The workers are spawned at the first `run` and stay until `close`. One thread at a time uses a pool: a call that
    finds another under way raises RuntimeError.

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

    def __init__(
        self, n_workers: int | None = None, threads_per_worker: int = 1, *, memory_hint: str = "smaller arrays"
    ) -> None:
        self.n_workers = default_workers() if n_workers is None else positive_integer("n_workers", n_workers)
        threads = str(positive_integer("threads_per_worker", threads_per_worker))
        self._memory_hint = memory_hint
        variables = {**dict.fromkeys(THREAD_VARIABLES, threads), **_ALLOCATOR_VARIABLES}
        self._group = WorkerGroup(self.n_workers, variables, memory_hint)
        self._blocks: dict[str, Block] = {}
        self._arrays: dict[str, NDArray[Any]] = {}
        self._sent_task: FrameTask | None = None
        self._lock = threading.Lock()
        self._user: int | None = None  # the thread that holds the lock
        # not a method: the finalizer must not keep the pool alive
        self._finalizer = weakref.finalize(self, _shut_down, self._group, self._blocks, os.getpid())

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
            If there is not enough shared memory (a `SharedMemoryError`; nothing is left under `name` then), or the
            pool is closed, or in use by another call.
        TypeError
            If `dtype` holds Python objects.
        ValueError
            If `shape` has negative entries.

        Notes
        -----
        Earlier arrays of that name no longer belong to the pool: they share memory with the new one if the block was
        reused, else they keep the memory of the old block from being freed. Arrays stay readable after `close`.
        """
        kind = np.dtype(dtype)
        shape = tuple(operator.index(length) for length in shape)
        if kind.hasobject:
            raise TypeError(f"{name!r}: dtype={kind} holds Python objects, which cannot be shared between processes")
        if any(length < 0 for length in shape):
            raise ValueError(f"{name!r}: {shape=} has negative entries")
        with self._in_use():
            array = self._arrays.get(name)
            if array is None or array.shape != shape or array.dtype != kind:
                del array
                self._replace(name, shape, kind)
            return self._arrays[name]

    def _replace(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """Make an array, in the block that is there if it is large enough."""
        self._sent_task = None  # it was prepared with other arrays
        size = math.prod(shape) * dtype.itemsize
        if name in self._blocks and size > len(self._blocks[name].mapping):
            self._release(name)
        if name not in self._blocks:
            try:
                self._blocks[name] = new_block(name, size)
            except SharedMemoryError as error:
                raise SharedMemoryError(f"{error}; try {self._memory_hint}") from error
        self._arrays[name] = np.ndarray(shape, dtype, self._blocks[name].mapping)

    def release(self, name: str) -> None:
        """Let go of an array: its memory is free when the caller has let go of it, too.

        Raises
        ------
        KeyError
            There is no array of that name.
        RuntimeError
            A worker is dead, or the pool is closed, or in use by another call.
        """
        with self._in_use():
            self._release(name)

    def start(self) -> None:
        """Start the workers and wait until they are ready; `run` does so if they are not running.

        Raises
        ------
        RuntimeError
            If a worker ends before it is ready, if this process is a worker that imports an unguarded main script, or
            if the pool is closed.
        """
        with self._in_use():
            self._start()

    def _start(self) -> None:
        if not self._group.workers:
            self._sent_task = None
            self._group.start()

    def run(
        self,
        task: FrameTask,
        indices: range,
        progress: Callable[[int], None] | None = None,
        timeout: float | None = None,
    ) -> None:
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
        timeout : float, optional
            Seconds that a frame may take.

        Raises
        ------
        TypeError
            If the task cannot be pickled, or not be loaded in a worker.
        TimeoutError
            If a frame takes too long. The workers are stopped then.
        RuntimeError
            If a worker dies (the next run starts new ones), or the pool is closed, or in use by another call.
        Exception
            What the task raised, with the worker's traceback as its cause. Frames that had been begun are finished
            then, the others not begun; the pool remains usable.
        """
        if not indices:
            self._check_usable()
            return
        chunks = _chunks(indices, self.n_workers)
        with self.dispatching(task, progress, timeout) as dispatch:
            while True:
                while dispatch.accepts and (chunk := next(chunks, None)) is not None:
                    dispatch.order(chunk)
                if not dispatch.works:
                    break
                dispatch.wait()

    @contextlib.contextmanager
    def dispatching(
        self,
        task: FrameTask,
        progress: Callable[[int], None] | None = None,
        timeout: float | None = None,
        in_order: bool = False,
    ) -> Iterator[Dispatch]:
        """Have the workers prepare a task; the block hands frames out. What `run` does, for frames that come by and by.

        Parameters and exceptions are those of `run`; `in_order` says whether chunks before one that failed are
        finished. Leaving the block waits until all workers are idle, and raises what the task raised.
        """
        with self._in_use():
            # not before the task is pickled: one that cannot be sent needs no workers
            preparation = None
            if task is not self._sent_task or not self._group.workers:
                preparation = Preparation(pickled_task(task), self._array_places())
            self._start()
            if preparation is not None:
                failure = self._group.prepare(preparation, list(self._blocks.values()))
                if failure is not None:
                    raise failure.exception()
                self._sent_task = task
            dispatch = Dispatch(self._group, progress, timeout, in_order)
            with self._group.stopping_on_error():
                yield dispatch
                dispatch.drain()
            if dispatch.failure is not None:
                raise dispatch.failure.exception()

    def close(self) -> None:
        """End the workers and let go of the blocks; arrays stay readable. May be called again.

        Raises
        ------
        RuntimeError
            If another thread uses the pool.
        """
        if self._user not in (None, threading.get_ident()):  # an interrupted call of this thread may still hold it
            raise RuntimeError("the pool cannot be closed: another thread uses it")
        self._finalizer()
        self._arrays.clear()
        self._sent_task = None

    def _check_usable(self) -> None:
        if not self._finalizer.alive:
            raise RuntimeError("the pool is closed")
        if getattr(process.current_process(), "_inheriting", False):
            # also before a block is made: otherwise each worker would first read in the recording
            raise RuntimeError(f"a worker process is about to start workers while it is being started: {GUARD_HINT}")
        if not self._group.workers and (obstacle := obstacle_to_workers()) is not None:
            raise RuntimeError(f"workers cannot be started: {obstacle}")

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        """Hold the pool for one call; RuntimeError where another holds it, or it cannot be used at all."""
        self._check_usable()
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("the pool is in use by another call, in another thread or around this one")
        try:
            self._user = threading.get_ident()
            yield
        finally:
            self._user = None
            self._lock.release()

    def _release(self, name: str) -> None:
        del self._arrays[name]
        self._blocks.pop(name).close()
        self._sent_task = None
        # as long as a worker maps the old block, its memory is not free for a larger one
        self._group.prepare(Preparation(None, []), [])

    def _array_places(self) -> list[ArrayPlace]:
        """Of all arrays, in the order of the blocks."""
        return [
            ArrayPlace(name, self._arrays[name].shape, self._arrays[name].dtype, len(block.mapping), block.tag)
            for name, block in self._blocks.items()
        ]


def _chunks(indices: range, n_workers: int) -> Iterator[range]:
    """Cut ever shorter chunks, a quarter of what each worker would get of the rest, so that all end together."""
    while indices:
        length = min(max(len(indices) // (4 * n_workers), 1), _LONGEST_CHUNK)
        yield indices[:length]
        indices = indices[length:]


def _shut_down(group: WorkerGroup, blocks: dict[str, Block], owner: int) -> None:
    if os.getpid() != owner:  # a forked copy of the pool
        return
    try:
        stop_workers(group.workers)
    finally:
        while blocks:
            blocks.popitem()[1].close()
