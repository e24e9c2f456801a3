"""The emulated device: streams, events and launches."""

from __future__ import annotations

import collections
import functools
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from flowreg_gpu.cuda.device import Kernel
from flowreg_gpu.cuda.source import kernel_source
from tests.emulation.compiler import EmulationError, compile_kernel
from tests.emulation.launch import MOST_SHARED_BYTES, CompiledKernel
from tests.emulation.memory import Allocation, Buffer, Memory, Record, array_of, poison

__all__ = ["EmulatedDevice", "Event", "Stream"]

_FREE_WITHOUT_LIMIT = 2**33
_Result = TypeVar("_Result")


class _Operation(NamedTuple):
    """What is queued: a call, and the device memory that it touches."""

    call: Callable[[], object]
    memory: tuple[Allocation, ...] = ()


class Stream:
    """Operations in the order in which they were queued."""

    def __init__(self) -> None:
        self.queue: collections.deque[_Operation] = collections.deque()
        self.working = False  # an operation runs; it is a wait if another is looked at meanwhile


class Event:
    """Stands for its latest record; over where it has none."""

    def __init__(self) -> None:
        self.latest: Record | None = None


class EmulatedDevice:
    """Runs the kernels on the CPU behind the protocol `flowreg_gpu.cuda.device.Device`, and checks them.

    Fresh memory is poisoned, arguments must be of the parameters' types, every launch is followed by a look at the
    guards around its buffers, and every block's shared memory is poisoned and guarded.

    Parameters
    ----------
    memory : int, optional
        Bytes that `empty` can give out; without limit where None.
    order : {'forward', 'reversed', 'both'}
        Order in which the blocks, and the threads of each between two barriers, run. 'both' runs every launch twice
        from the same contents of what it may write, and raises where the results differ in a single bit.
    lazy : bool
        Queue what is asked for and run it only when `synchronize` demands it, and then no more than that: what was
        recorded before the event, and what that waits for. A wait that is missing shows, since too little runs.
        Without an event everything runs, stream by stream: first the compute stream, then the others in the order in
        which they were made; the other way round where `order` is 'reversed'. Memory that is used on a stream beside
        the compute stream after its last Buffer is gone, with nothing that keeps the compute stream from reusing
        it, is an error.
    contraction : bool
        Let the compiler contract a * b + c, as NVRTC does by default.

    Attributes
    ----------
    launches : collections.Counter
        Number of launches by (file, expression), counted when they are asked for.
    shared_memory, multiprocessors : int
        Bytes that a block can have, and blocks that run at a time: as on an H100, or what a test says.
    """

    name = "emulated device"
    shared_memory, multiprocessors = MOST_SHARED_BYTES, 132

    def __init__(
        self,
        memory: int | None = None,
        order: Literal["forward", "reversed", "both"] = "forward",
        lazy: bool = False,
        contraction: bool = False,
    ) -> None:
        if order not in ("forward", "reversed", "both"):
            raise ValueError(f"{order=}, expected 'forward', 'reversed' or 'both'")
        self.launches: collections.Counter[tuple[str, str]] = collections.Counter()
        self._order = order
        self._lazy = lazy
        self._contraction = contraction
        self._compute = Stream()
        self._streams = [self._compute]
        self._memory = Memory(memory, self._released)
        self._capture: list[Callable[[], None]] | None = None
        self._asked = 0  # number of launches
        self._faults: dict[int, BaseException] = {}
        self._lock = threading.RLock()

    # ---- Memory ----

    @property
    def live_bytes(self) -> int:
        """Bytes of the Buffers that the program holds; what only a queue still needs does not count."""
        return self._memory.live

    @property
    def peak_bytes(self) -> int:
        """The most that `live_bytes` was since the start or `reset_peak`."""
        return self._memory.peak

    def reset_peak(self) -> None:
        """Let `peak_bytes` begin anew at `live_bytes`."""
        self._memory.peak = self._memory.live

    def empty(self, shape: Sequence[int], dtype: DTypeLike) -> Buffer:
        """Poisoned memory between guards: NaN of all bits set for floats and complex, bytes 0xA5 for the rest."""
        return self._memory.empty(shape, dtype)

    def pinned(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        """Host memory, poisoned as `empty`'s."""
        array: NDArray[Any] = np.empty(shape, dtype)
        poison(array.reshape(-1).view(np.uint8), array.dtype)
        return array

    def free_memory(self) -> int:
        """Bytes that `empty` could still give out; 2**33 where there is no limit."""
        return _FREE_WITHOUT_LIMIT if self._memory.limit is None else self._memory.limit - self._memory.live

    def release_memory(self) -> None:
        """Nothing to do: memory that no Buffer holds is free."""

    def to_device(self, array: NDArray[Any]) -> Buffer:
        """For tests: a Buffer that has the array's contents already."""
        buffer = self.empty(array.shape, array.dtype)
        array_of(buffer)[...] = array
        return buffer

    def to_host(self, buffer: Buffer) -> NDArray[Any]:
        """For tests: a Buffer's contents, once all that is queued has run."""
        self.synchronize()
        return np.array(array_of(buffer))

    def _released(self, allocation: Allocation) -> None:
        if self._lazy and self._capture is None:
            allocation.released = Record(self._compute)
            self._compute.queue.append(_Operation(allocation.released.reach))

    # ---- Queues ----

    def copy(self, destination: Any, source: Any, stream: Stream | None = None) -> None:
        """Queue a copy, which reads its source when it runs; see `Device`."""
        buffers = [one for one in (destination, source) if isinstance(one, Buffer)]
        if not buffers:
            raise EmulationError("copy was given no Buffer, expected at least one")
        if destination.shape != source.shape or destination.dtype != source.dtype:
            raise ValueError(f"cannot copy {source.dtype} {source.shape} to {destination.dtype} {destination.shape}")
        to, of = (array_of(one) if isinstance(one, Buffer) else one for one in (destination, source))
        if not (to.flags.c_contiguous and of.flags.c_contiguous):
            raise ValueError("cannot copy arrays that are not contiguous")
        call = functools.partial(np.copyto, to, of)
        if len(buffers) == 2 and self._captured(stream, functools.partial(self._enqueue, call, None)):
            return
        self._enqueue(call, stream, buffers)

    def stream(self) -> Stream:
        """A new stream beside the compute stream."""
        with self._lock:
            self._streams.append(Stream())
            return self._streams[-1]

    def event(self) -> Event:
        """A new event, which counts as over until it is first recorded."""
        return Event()

    def record(self, event: Event, stream: Stream | None = None) -> None:
        """Make the event stand for all that is queued on the stream by now."""
        event.latest = Record(stream or self._compute)
        self._enqueue(event.latest.reach, stream)

    def wait(self, event: Event, stream: Stream | None = None) -> None:
        """Let what is queued on the stream from now on wait for the event's latest record."""
        if event.latest is not None:
            self._enqueue(functools.partial(self._run_until, event.latest), stream)

    def synchronize(self, event: Event | None = None) -> None:
        """Run what the event stands for, or everything; an operation that raises is over, what follows stays queued."""
        with self._lock:
            if self._capture is not None:
                raise EmulationError("nothing can be waited for while launches are captured")
            if event is None:
                for stream in self._streams[:: -1 if self._order == "reversed" else 1]:
                    while stream.queue:
                        self._run_next(stream)
            elif event.latest is not None:
                self._run_until(event.latest)

    def _enqueue(self, call: Callable[[], object], stream: Stream | None, buffers: Iterable[Buffer] = ()) -> None:
        with self._lock:
            if self._capture is not None:
                raise EmulationError("only launches and copies from buffer to buffer can be captured")
            memory = tuple(buffer.allocation for buffer in buffers)
            (stream or self._compute).queue.append(_Operation(call, memory))
            if not self._lazy:
                self.synchronize()

    def _run_until(self, record: Record) -> None:
        while not record.over:
            self._run_next(record.stream)

    def _run_next(self, stream: Stream) -> None:
        operation = stream.queue[0]
        if stream is not self._compute:
            self._let_memory_go(operation)
            if not stream.queue or stream.queue[0] is not operation:
                return  # the compute stream waited for it
            if any(memory.released and memory.released.over for memory in operation.memory):
                stream.queue.popleft()
                raise EmulationError(
                    "memory is used on a stream beside the compute stream when it may be another's; keep a reference "
                    "until that is done, or let the compute stream wait for it"
                )
        stream.queue.popleft()
        working, stream.working = stream.working, True
        try:
            operation.call()
        finally:
            stream.working = working

    def _let_memory_go(self, operation: _Operation) -> None:
        """Run the compute stream ahead to where memory without Buffers may be another's, unless it waits already."""
        for memory in operation.memory:
            if memory.released and not self._compute.working:
                self._run_until(memory.released)

    # ---- Kernels ----

    def kernel(self, file: str, expression: str) -> Kernel:
        """The kernel of a name expression in a file of `kernels`; see `Device`."""
        return self._kernel(kernel_source(file), file, expression)

    def kernel_from_text(self, text: str, expression: str) -> Kernel:
        """The same of a text, which counts in `launches` as the file '<text>'."""
        return self._kernel(f'#line 1 "<text>"\n{text}', "<text>", expression)

    def fail_at(self, n: int, error: BaseException) -> None:
        """Let the n-th launch from now, 1 for the next, raise an error when it runs."""
        self._faults[self._asked + n] = error

    def fft2(self, images: Buffer, inverse: bool = False) -> Buffer:
        """Two-dimensional Fourier transform of every image; see `Device`."""
        if images.dtype not in (np.float64, np.complex128) or len(images.shape) < 2:
            raise EmulationError(f"fft2 was given {images!r}, expected float64 or complex128 (..., h, w)")
        spectra = self.empty(images.shape, np.complex128)
        to, of = array_of(spectra), array_of(images)
        transform = np.fft.ifft2 if inverse else np.fft.fft2
        self._enqueue(lambda: np.copyto(to, transform(of)), None, (images, spectra))
        return spectra

    def _kernel(self, text: str, file: str, expression: str) -> Kernel:
        kernel = _compiled(text, file, expression, self._contraction)

        def launch(
            grid: Sequence[int],
            block: Sequence[int],
            args: Sequence[Any],
            shared_mem: int = 0,
            stream: Stream | None = None,
        ) -> None:
            kernel.check(grid, block, args, shared_mem)
            buffers = [argument for argument in args if isinstance(argument, Buffer)]
            borrowed = [argument.borrowed() if isinstance(argument, Buffer) else argument.copy() for argument in args]
            call = functools.partial(self._run, kernel, tuple(grid), tuple(block), borrowed, shared_mem)
            if not self._captured(stream, functools.partial(self._launch, (file, expression), call)):
                self._launch((file, expression), call, stream, buffers)

        return launch

    def _launch(
        self,
        key: tuple[str, str],
        call: Callable[[], object],
        stream: Stream | None = None,
        buffers: Iterable[Buffer] = (),
    ) -> None:
        with self._lock:
            self.launches[key] += 1
            self._asked += 1
            if self._asked in self._faults:
                call = functools.partial(_fail, self._faults.pop(self._asked))
            self._enqueue(call, stream, buffers)

    # ---- Graphs ----

    def capture_graph(self, work: Callable[[], _Result]) -> tuple[_Result, Callable[[], None]]:
        """Capture launches and copies; see `Device`. The memory of a graph counts until its replay is gone."""
        if self._capture is not None:
            raise EmulationError("a capture was begun within another")
        self._capture = graph = []
        try:
            result, memory = self._memory.reserve(work)
        finally:
            self._capture = None
        return result, functools.partial(self._replay, graph, memory)

    def _captured(self, stream: Stream | None, call: Callable[[], None]) -> bool:
        """Note a call on the compute stream, while that is captured."""
        if self._capture is None or stream is not None:
            return False
        self._capture.append(call)
        return True

    def _replay(self, graph: Sequence[Callable[[], None]], memory: object) -> None:
        """Queue a captured graph; `memory` is what it holds."""
        for call in graph:
            call()

    def _run(
        self, kernel: CompiledKernel, grid: Sequence[int], block: Sequence[int], args: Sequence[Any], shared_mem: int
    ) -> None:
        if self._order != "both":
            kernel.run(grid, block, args, shared_mem, reverse=self._order == "reversed")
            return
        written = kernel.written(args)
        before = [allocation.contents.copy() for allocation in written.values()]
        kernel.run(grid, block, args, shared_mem, reverse=False)
        forward = [allocation.contents.copy() for allocation in written.values()]
        for allocation, contents in zip(written.values(), before, strict=True):
            allocation.contents[:] = contents
        kernel.run(grid, block, args, shared_mem, reverse=True)
        for (number, allocation), contents in zip(written.items(), forward, strict=True):
            if not np.array_equal(contents, allocation.contents):
                itemsize = args[number].dtype.itemsize
                differing = (contents != allocation.contents).reshape(-1, itemsize).any(axis=1).sum()
                raise EmulationError(
                    f"{kernel.name}: {differing} of {contents.size // itemsize} elements of argument {number} depend "
                    "on the order of threads and blocks"
                )


@functools.cache
def _compiled(text: str, file: str, expression: str, contraction: bool) -> CompiledKernel:
    """A kernel, compiled and loaded once in a process."""
    return CompiledKernel(compile_kernel(text, expression, contraction), f"{file} {expression}")


def _fail(error: BaseException) -> None:
    raise error
