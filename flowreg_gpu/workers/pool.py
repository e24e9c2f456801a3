"""One spawned pool and one set of shared-memory blocks for a whole recording, for any function of its frames.

Frames never pass through a pipe. The stacks lie in shared memory; what the parent sends are a pickled task with the
names of the blocks, once, and then ranges of frame indices. The workers send back counts of finished frames.
"""

import contextlib
import errno
import math
import mmap
import operator
import os
import pickle
import secrets
import signal
import sys
import time
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing import get_context, process
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.shared_memory import SharedMemory
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

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

_LONGEST_CHUNK = 16  # frames
_REPORT_SECONDS = 0.1
_GRACE_SECONDS = 2.0  # for a worker to end by itself, after its pipe was closed
_GUARD_HINT = 'a script must start workers under `if __name__ == "__main__":`, because every worker imports the script'


class FrameTask(Protocol):
    """What the workers do with a frame; pickled, so of an importable class with picklable attributes."""

    def prepare(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Set up, once per process after the task or the blocks changed (for example, build a reference pyramid).

        Parameters
        ----------
        arrays : mapping of str to ndarray
            The arrays made by `FramePool.allocate`, by name.
        """

    def __call__(self, arrays: Mapping[str, NDArray[Any]], index: int) -> None:
        """Handle one frame and write the results into the output arrays.

        Parameters
        ----------
        arrays : mapping of str to ndarray
            The arrays made by `FramePool.allocate`, by name.
        index : int
            Which frame.
        """


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
        self.n_workers = default_workers() if n_workers is None else _positive("n_workers", n_workers)
        self._threads = _positive("threads_per_worker", threads_per_worker)
        self._workers: list[_Worker] = []
        self._blocks: dict[str, _Block] = {}
        self._arrays: dict[str, NDArray[Any]] = {}
        self._sent_task: FrameTask | None = None
        # not a method: the finalizer must not keep the pool alive
        self._finalizer = weakref.finalize(self, _shut_down, self._workers, self._blocks, os.getpid())

    def __enter__(self) -> "FramePool":
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
            self._blocks[name] = _new_block(name, size)
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
            with _environment(variables), _interrupt_blocked():
                for _ in range(self.n_workers):
                    self._workers.append(_started_worker())
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
        preparation = None if task is self._sent_task else _Preparation(_pickled_task(task), self._array_places())
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
            _stop(self._workers)
            raise

    def _release(self, name: str) -> None:
        del self._arrays[name]
        _unlink(self._blocks.pop(name))
        if self._workers:
            # as long as a worker maps the old block, its memory is not free for the larger one
            with self._stopping_on_error():
                self._prepare(_Preparation(None, []))

    def _array_places(self) -> "list[_ArrayPlace]":
        return [
            _ArrayPlace(name, self._blocks[name].memory.name, array.shape, array.dtype)
            for name, array in self._arrays.items()
        ]

    def _prepare(self, preparation: "_Preparation") -> "_Failure | None":
        for worker in self._workers:
            self._order(worker, preparation)
        return self._await_idle()

    def _await_idle(self) -> "_Failure | None":
        failure = None
        busy = set(self._workers)
        while busy:
            for worker, report in self._reports(busy):
                busy.discard(worker)
                failure = failure or report.failure
        return failure

    def _hand_out(self, indices: range, progress: Callable[[int], None]) -> "_Failure | None":
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

    def _order(self, worker: "_Worker", order: "_Preparation | range | None") -> None:
        try:
            worker.connection.send(order)
        except OSError as error:
            raise RuntimeError(self._death(worker)) from error

    def _reports(self, workers: "Iterable[_Worker]") -> "list[tuple[_Worker, _Report]]":
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

    def _death(self, worker: "_Worker") -> str:
        worker.process.join(_GRACE_SECONDS)  # its pipe ends before its exit code is known
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
    """Cut ever shorter chunks, a quarter of an even share of what is left, so that all workers end together."""
    while indices:
        length = min(max(len(indices) // (4 * n_workers), 1), _LONGEST_CHUNK)
        yield indices[:length]
        indices = indices[length:]


# Blocks of shared memory


class _Block(NamedTuple):
    memory: SharedMemory  # closed: for its name and unlink()
    mapping: mmap.mmap


class _ArrayPlace(NamedTuple):
    name: str
    block: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def attach(self) -> NDArray[Any]:
        if sys.version_info >= (3, 13):
            memory = SharedMemory(self.block, track=False)
        else:
            # Registers the block once more, with the tracker that this process shares with the parent. There names
            # are a set, so that the parent's unlink() clears it, being called when no worker attaches.
            memory = SharedMemory(self.block)
        try:
            array: NDArray[Any] = np.ndarray(self.shape, self.dtype, _mapping(memory))
            return array
        finally:
            memory.close()


def _mapping(memory: SharedMemory) -> mmap.mmap:
    """Map the block anew, for as long as an array refers to the mapping.

    Under an array on `SharedMemory.buf`, close() either fails (BufferError) or unmaps what the array reads.
    """
    if sys.platform == "win32":
        return mmap.mmap(-1, memory.size, tagname=memory.name)
    return mmap.mmap(memory._fd, memory.size)  # type: ignore[attr-defined]


def _new_block(name: str, size: int) -> _Block:
    # a name that tells whose it is; macOS allows 30 characters
    memory = SharedMemory(f"flowreg_{os.getpid()}_{secrets.token_hex(4)}", create=True, size=max(size, 1))
    try:
        _reserve(memory, name)
        return _Block(memory, _mapping(memory))
    except BaseException:
        memory.unlink()
        raise
    finally:
        memory.close()


def _reserve(memory: SharedMemory, name: str) -> None:
    """Take the pages now: with /dev/shm full, a later write would end the process (SIGBUS)."""
    if not hasattr(os, "posix_fallocate"):  # macOS and Windows: no file system, so no size of its own
        return
    fd = memory._fd  # type: ignore[attr-defined]
    space = os.fstatvfs(fd)
    free = space.f_bavail * space.f_frsize
    try:
        os.posix_fallocate(fd, 0, memory.size)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL) and memory.size <= free:
            return  # a file system that cannot reserve
        raise RuntimeError(
            f"shared memory for {name!r}: {memory.size / 2**20:.1f} MB needed, {free / 2**20:.1f} MB free "
            f'({error.strerror}); try a smaller batch or executor="threading"'
        ) from error


def _unlink(block: _Block) -> None:
    with contextlib.suppress(FileNotFoundError):  # removed by someone else
        block.memory.unlink()


# Processes, as the parent sees them


@dataclass(eq=False)
class _Worker:
    process: SpawnProcess
    connection: "Connection[Any, Any]"
    ready: bool = False


def _started_worker() -> _Worker:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    with theirs:  # closed here once the child has it, so that its death is an end of file
        worker = context.Process(target=_serve, args=(theirs,), name="flowreg-frames", daemon=True)
        worker.start()
    return _Worker(worker, ours)


def _stop(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.connection.close()
    deadline = time.monotonic() + _GRACE_SECONDS
    while workers:
        child = workers[-1].process
        child.join(max(deadline - time.monotonic(), 0))
        if child.is_alive():
            child.kill()
            child.join()
        workers.pop()
        child.close()


def _shut_down(workers: list[_Worker], blocks: dict[str, _Block], owner: int) -> None:
    if os.getpid() != owner:  # a forked copy of the pool
        return
    try:
        _stop(workers)
    finally:
        while blocks:
            _unlink(blocks.popitem()[1])


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set variables for the processes started meanwhile: they hold before a child imports NumPy."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _interrupt_blocked() -> Iterator[None]:
    """Hold Ctrl-C back. Children inherit that, so that they are spared before they can ignore it by themselves."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _pickled_task(task: FrameTask) -> bytes:
    try:
        return pickle.dumps(task, pickle.HIGHEST_PROTOCOL)
    except (pickle.PicklingError, AttributeError, TypeError, ValueError) as error:
        raise TypeError(
            f"task={task!r} cannot be sent to the workers ({error}): its functions and classes must be importable, "
            f"that is defined at the level of a module, not lambdas or local ones"
        ) from error


def _positive(name: str, value: int) -> int:
    if operator.index(value) < 1:
        raise ValueError(f"{name}={value} is less than 1")
    return operator.index(value)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no names
        return f"signal {number}"


# What the pipes carry. To a worker: a _Preparation, a range of frames to handle, or None: begin no further frame.


class _Preparation(NamedTuple):
    task: bytes | None  # pickled; None: let go of task and arrays
    arrays: list[_ArrayPlace]


class WorkerTraceback(Exception):
    """The traceback of an exception in a worker, as text; the cause of that exception in the parent."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


class _Failure(NamedTuple):
    pickled: bytes
    trace: str

    @classmethod
    def of(cls, error: Exception) -> "_Failure":
        trace = "".join(traceback.format_exception(error))
        try:
            pickled = pickle.dumps(error)
            pickle.loads(pickled)  # an __init__ with other arguments fails only here
        except Exception:
            pickled = pickle.dumps(RuntimeError(f"{type(error).__qualname__}: {error}"))
        return cls(pickled, trace)

    def exception(self) -> Exception:
        error: Exception = pickle.loads(self.pickled)
        error.__cause__ = WorkerTraceback(self.trace)
        return error


class _Report(NamedTuple):
    finished: int  # frames, since the last report
    idle: bool
    failure: _Failure | None


# The worker's side


def _serve(connection: "Connection[Any, Any]") -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; it is the parent that ends the workers
    with contextlib.suppress(EOFError, OSError):  # the parent has closed the pipe, or is dead
        _Server(connection).serve()


class _Server:
    """Obeys the orders in the pipe, until its end."""

    def __init__(self, connection: "Connection[Any, Any]") -> None:
        self.connection = connection
        self.task: FrameTask | None = None
        self.arrays: dict[str, NDArray[Any]] = {}
        self.finished = 0  # and not reported
        self.reported = time.monotonic()

    def serve(self) -> None:
        self.report(idle=True)
        while True:
            order = self.connection.recv()
            if order is None:  # came after the last frame
                continue
            failure = None
            try:
                if isinstance(order, _Preparation):
                    self.prepare(order)
                else:
                    self.handle(order)
            except Exception as error:
                failure = _Failure.of(error)
            self.report(idle=True, failure=failure)

    def prepare(self, order: _Preparation) -> None:
        self.task, self.arrays = None, {}
        if order.task is None:
            return
        self.arrays = {place.name: place.attach() for place in order.arrays}
        try:
            task = pickle.loads(order.task)
        except Exception as error:
            raise TypeError(
                f"the task cannot be loaded in a worker ({error}): its functions and classes must be importable, "
                f"which what is defined in an interactive session is not"
            ) from error
        task.prepare(self.arrays)
        self.task = task

    def handle(self, indices: range) -> None:
        if self.task is None:
            raise RuntimeError(f"frames {indices} were ordered without a task")
        for index in indices:
            if self.connection.poll():  # None, or the end of the pipe
                return
            self.task(self.arrays, index)
            self.finished += 1
            if time.monotonic() - self.reported >= _REPORT_SECONDS:
                self.report(idle=False)

    def report(self, idle: bool, failure: _Failure | None = None) -> None:
        self.connection.send(_Report(self.finished, idle, failure))
        self.finished = 0
        self.reported = time.monotonic()
