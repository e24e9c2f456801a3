"""Any function of a frame over a stack of any length, in worker processes.

Frames stream through two rings in shared memory: chunks of them are read into the one, the workers put their results
into the other, and these are written in the order of the frames. Frame i lies at i modulo the length of a ring, so that
only numbers of frames are sent. All chunks are on their way independently: no worker waits for the others.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
import pickle
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowreg_gpu.workers.blocks import free_shared_memory
from flowreg_gpu.workers.dispatch import Dispatch
from flowreg_gpu.workers.pool import FramePool

__all__ = ["FrameFunction", "FrameKind", "FrameSink", "FrameSource", "describe_result", "stream_frames"]

FrameFunction = Callable[[NDArray[Any]], ArrayLike]

_CHUNK_BYTES, _LONGEST_CHUNK = 2**23, 64  # frames and results of a chunk where the caller does not say how many
_DESCRIPTION_BYTES = 2**16


class FrameKind(NamedTuple):
    """Shape and dtype of a frame, or of a result."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class FrameSource(Protocol):
    """Where frames come from."""

    n_frames: int
    kind: FrameKind
    threaded: bool  # whether another thread than the caller's may read

    def read(self, first: int, out: NDArray[Any]) -> None:
        """Read frames from `first` on into `out` (n, ...)."""


class FrameSink(Protocol):
    """Where results go, in the order of the frames."""

    threaded: bool  # whether another thread than the caller's may write

    def write(self, results: NDArray[Any]) -> None:
        """Take the next results (n, ...)."""


def describe_result(pool: FramePool, func: FrameFunction, source: FrameSource, timeout: float | None) -> FrameKind:
    """Shape and dtype of what a worker gets from `func` for the first frame.

    Raises
    ------
    Exception
        As `stream_frames`.
    """
    source.read(0, pool.allocate("frames", (1, *source.kind.shape), source.kind.dtype))
    description = pool.allocate("description", (_DESCRIPTION_BYTES,), np.uint8)
    pool.run(_Describe(func), range(1), timeout=timeout)
    kind: FrameKind = pickle.loads(description.tobytes())
    pool.release("frames")  # the rings may need all there is
    return kind


def stream_frames(
    pool: FramePool,
    func: FrameFunction,
    source: FrameSource,
    sink: FrameSink,
    result: FrameKind,
    *,
    progress: Callable[[int], None] | None = None,
    chunk: int | None = None,
    timeout: float | None = None,
) -> None:
    """Have the workers of a pool apply `func` to every frame of a source, and the results go to a sink.

    Parameters
    ----------
    pool : FramePool
    func : callable
        ``func(frame) -> array``; importable. Its frame is a read-only view.
    source : FrameSource
        With one frame at least.
    sink : FrameSink
    result : FrameKind
        What results are to be. They may be cast as ``same_kind`` allows.
    progress : callable, optional
        Called with the number of newly computed frames.
    chunk : int, optional
        Frames that a worker gets at a time, at most; by default some megabytes.
    timeout : float, optional
        Seconds that a frame may take.

    Raises
    ------
    TypeError
        `func` cannot be sent to the workers, returns None or Python objects, or what cannot be cast.
    ValueError
        A result has another shape.
    TimeoutError
        A frame takes too long.
    RuntimeError
        A worker dies, or there is too little shared memory for a frame of each.
    Exception
        What `func` raises, with the number of the frame in its message (see `name_frame`), what source or sink raise.
        Where `func` fails, the first frame that does is named, and chunks before its own have gone to the sink; after
        other errors, as many as were finished, from the first on and without a gap.
    """
    if chunk is None:
        per_worker = source.n_frames // (4 * pool.n_workers)
        fitting = _CHUNK_BYTES // max(source.kind.nbytes + result.nbytes, 1)
        chunk = max(min(fitting, per_worker, _LONGEST_CHUNK), 1)
    slots, chunk = _fit(pool.n_workers, min(chunk, source.n_frames), source.kind.nbytes + result.nbytes)
    frames = pool.allocate("frames", (slots * chunk, *source.kind.shape), source.kind.dtype)
    results = pool.allocate("results", (slots * chunk, *result.shape), result.dtype)
    chunks = (range(source.n_frames)[first : first + chunk] for first in range(0, source.n_frames, chunk))
    with (
        pool.dispatching(_Map(func), progress, timeout, in_order=True) as dispatch,
        _bell() as (bell, ring),
        _Beside("read", source.threaded, ring) as reading,
        _Beside("write", sink.threaded, ring) as writing,
    ):
        stream = _Stream(source, sink, frames, results, reading, writing)
        stream.run(dispatch, chunks, slots, bell)


def _fit(n_workers: int, chunk: int, frame_bytes: int) -> tuple[int, int]:
    """Slots of the rings and frames of each: as wanted, or what half of the free shared memory holds.

    Two slots for each worker, one of them read or written, and two more keep all of them busy; one each must be.
    """
    free = free_shared_memory()
    while chunk > 1 and (2 * n_workers + 2) * chunk * frame_bytes > free // 2:
        chunk //= 2
    slots = 2 * n_workers + 2
    if slots * chunk * frame_bytes > free // 2:
        slots = max(free // 2 // frame_bytes, n_workers)
    if slots * chunk * frame_bytes > free:
        needed = f"{slots * frame_bytes / 2**20:.1f} MB of shared memory, {free / 2**20:.1f} MB are free"
        raise RuntimeError(f"a frame and its result for each of the workers need {needed}: try fewer ({n_workers=})")
    return slots, chunk


@contextlib.contextmanager
def _bell() -> Iterator[tuple[Connection[Any, Any], Callable[[], None]]]:
    """What the loop waits for beside the workers, and a function for other threads that ends its waiting."""
    receive, send = Pipe(duplex=False)
    with receive, send:
        yield receive, lambda: send.send_bytes(b"!")


class _Beside:
    """Makes calls for chunks, one at a time, in a thread, or in this one where `threaded` is False.

    Leaving it waits for the call under way.
    """

    def __init__(self, name: str, threaded: bool, ring: Callable[[], None]) -> None:
        self._thread = ThreadPoolExecutor(1, f"flowreg-{name}") if threaded else None
        self._ring = ring
        self._call: Future[range] | None = None

    def __enter__(self) -> _Beside:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._thread.shutdown()

    @property
    def free(self) -> bool:
        """Whether there is no call, not even one whose end was not noticed."""
        return self._call is None

    def start(self, call: Callable[[range], None], chunk: range) -> None:
        """Make a call, and ring when it is over."""

        def make() -> range:
            call(chunk)
            return chunk

        if self._thread is None:
            self._call = Future()
            try:
                self._call.set_result(make())
            except Exception as error:
                self._call.set_exception(error)
        else:
            # the caller's numpy.errstate (from NumPy 2 on) and, where they are the context's, its warning filters
            self._call = self._thread.submit(contextvars.copy_context().run, make)
        self._call.add_done_callback(lambda call: self._ring())

    def finished(self) -> range | None:
        """The chunk of a call that is over, once; what the call raised is raised here, each time."""
        return self.wait() if self._call is not None and self._call.done() else None

    def wait(self) -> range | None:
        """The chunk of the call, if there is one, when it is over."""
        if self._call is None:
            return None
        chunk = self._call.result()
        self._call = None
        return chunk


class _Stream:
    """Chunks on their way: read, computed, written, each step beside the others."""

    def __init__(
        self,
        source: FrameSource,
        sink: FrameSink,
        frames: NDArray[Any],
        results: NDArray[Any],
        reading: _Beside,
        writing: _Beside,
    ) -> None:
        self._source, self._sink, self._frames, self._results = source, sink, frames, results
        self._reading, self._writing = reading, writing
        self._done: dict[int, range] = {}  # computed and not written, by their first frame
        self._next = 0  # the frame that is written next

    def run(self, dispatch: Dispatch, chunks: Iterator[range], slots: int, bell: Connection[Any, Any]) -> None:
        """Bring all chunks through; return early where the task failed."""
        ready: deque[range] = deque()
        following = next(chunks, None)
        try:
            while dispatch.failure is None:
                if (chunk := self._reading.finished()) is not None:
                    ready.append(chunk)
                if self._writing.finished() is not None:
                    slots += 1
                if self._next == self._source.n_frames and self._writing.free:
                    return
                if following is not None and slots and self._reading.free:
                    self._reading.start(self._read, following)
                    slots, following = slots - 1, next(chunks, None)
                while ready and dispatch.accepts:
                    dispatch.order(ready.popleft())
                if self._writing.free and self._next in self._done:
                    self._write_next()
                dispatch.wait([bell])
                self._collect(dispatch)
                while bell.poll():
                    bell.recv_bytes()
            dispatch.drain()
        except BaseException:
            with contextlib.suppress(Exception):  # the first error counts
                self._write_rest(dispatch)
            raise
        self._write_rest(dispatch)

    def _collect(self, dispatch: Dispatch) -> None:
        self._done.update({chunk.start: chunk for chunk in dispatch.finished()})

    def _read(self, chunk: range) -> None:
        self._source.read(chunk.start, _part(self._frames, chunk))

    def _write_next(self) -> None:
        chunk = self._done.pop(self._next)
        self._next = chunk.stop
        self._writing.start(lambda chunk: self._sink.write(_part(self._results, chunk)), chunk)

    def _write_rest(self, dispatch: Dispatch) -> None:
        """Write what is finished, up to the first gap; nothing more after an error of writing."""
        self._collect(dispatch)
        self._writing.wait()
        while self._next in self._done:
            self._write_next()
            self._writing.wait()


def _part(ring: NDArray[Any], chunk: range) -> NDArray[Any]:
    first = chunk.start % len(ring)
    return ring[first : first + len(chunk)]


@dataclass
class _Map:
    """The task: results of `func` on the frames of a ring into another."""

    func: FrameFunction

    def prepare(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Nothing to set up."""

    def __call__(self, arrays: Mapping[str, NDArray[Any]], index: int) -> None:
        """Handle one frame."""
        result, ring = self.result(arrays["frames"], index), arrays["results"]
        expected = FrameKind(ring.shape[1:], ring.dtype)
        if result.shape != expected.shape:  # copyto would broadcast
            raise ValueError(f"frame {index}: func returned shape {result.shape}, expected {expected.shape}")
        if not np.can_cast(result.dtype, expected.dtype, "same_kind"):
            told = f"func returned {result.dtype}, which cannot become {expected.dtype}: let func round and convert"
            raise TypeError(f"frame {index}: {told}")
        np.copyto(ring[index % len(ring), ...], result, casting="same_kind")

    def result(self, ring: NDArray[Any], index: int) -> NDArray[Any]:
        """What `func` returns for a frame, as an array."""
        frame = ring[index % len(ring), ...]
        frame.flags.writeable = False
        try:
            returned = self.func(frame)
            result = np.asarray(returned)
        except Exception as error:
            raise name_frame(index, error) from error
        if returned is None:
            raise TypeError(f"frame {index}: func returned None, expected an array; does it lack a return?")
        if result.dtype.hasobject:
            raise TypeError(f"frame {index}: func returned Python objects ({result.dtype}), expected numbers")
        return result


class _Describe(_Map):
    """The task: shape and dtype of the result of the first frame into "description"."""

    def __call__(self, arrays: Mapping[str, NDArray[Any]], index: int) -> None:
        """Handle the frame."""
        result = self.result(arrays["frames"], index)
        pickled = np.frombuffer(pickle.dumps(FrameKind(result.shape, result.dtype)), np.uint8)
        arrays["description"][: len(pickled)] = pickled


def name_frame(index: int, error: Exception) -> Exception:
    """The exception with the number of its frame in the message.

    Its type stays where that can be made from a message. Otherwise it is the nearest base class for which that holds,
    so that who catches the type's family catches this too, with the type's name in the message; at last a RuntimeError.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(error.errno, f"frame {index}: {error.strerror}", error.filename)  # Python finds the subclass
    for kind in type(error).__mro__[: type(error).__mro__.index(Exception)]:
        told = str(error) if kind is type(error) else f"{type(error).__qualname__}: {error}"
        with contextlib.suppress(Exception):
            named: Exception = kind(f"frame {index}: {told}")
            if f"frame {index}: " in str(named):
                return named
    return RuntimeError(f"frame {index}: {type(error).__qualname__}: {error}")
