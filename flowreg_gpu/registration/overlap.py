"""Reading and writing beside the computation: one batch ahead and one behind it, each in a thread of its own."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.io import FrameWriter

__all__ = ["ReadAhead", "WriteBehind"]

Value = TypeVar("Value")
_Self = TypeVar("_Self", bound="_Beside")


class _Beside:
    """Makes calls in a thread, one at a time; leaving it waits for the one under way, also through interrupts.

    That call uses a file that the caller closes next, and takes as long as one batch. One interrupt cannot be held up:
    Python may raise it before the first instruction of `__exit__`, and then nothing waits. A writer is safe all the
    same: it has a lock, and is closed after the call. A reader fails in its thread, and what it read is not used.
    """

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, f"flowreg-{name}")
        self._call: Future[Any] | None = None
        self._busy = threading.Lock()
        self._left = False

    def _start(self, call: Callable[..., Any], *arguments: Any) -> None:
        # the caller's numpy.errstate (from NumPy 2 on) and, where they are the context's, its warning filters
        context = contextvars.copy_context()
        self._call = self._thread.submit(self._make, context.run, call, *arguments)

    def _make(self, run: Callable[..., Any], *arguments: Any) -> Any:
        with self._busy:
            return None if self._left else run(*arguments)

    def _finish(self) -> Any:
        """Wait for the call; what it returned, or raise what it raised."""
        assert self._call is not None
        value = self._call.result()
        self._call = None
        return value

    def _begin(self) -> None:
        """Make the first call, if it needs nothing of the caller."""

    def __enter__(self: _Self) -> _Self:
        try:
            self._begin()
            return self
        except BaseException as error:
            self._leave(error)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._leave(error)

    def _leave(self, error: BaseException | None) -> None:
        interrupt = None
        while not self._left:
            try:
                if self._call is not None:
                    wait([self._call])
                with self._busy:  # an interrupt within _start may have lost the call
                    self._left = True
            except KeyboardInterrupt as another:
                interrupt = another
        self._thread.shutdown()
        if interrupt is not None and not isinstance(error, KeyboardInterrupt):
            raise interrupt


class ReadAhead(_Beside, Generic[Value]):
    """What `read` returns for one batch after the other; the next is read while the caller works on the last.

    Parameters
    ----------
    read : callable
        Called with the first frame of a batch and the one after its last.
    spans : iterable of (int, int)
        These numbers, batch by batch.
    threaded : bool
        False reads in the caller's thread, when the batch is asked for.
    """

    def __init__(self, read: Callable[[int, int], Value], spans: Iterable[tuple[int, int]], threaded: bool) -> None:
        super().__init__("read")
        self._read, self._spans, self._threaded = read, iter(spans), threaded

    def _begin(self) -> None:
        self._advance()

    def _advance(self) -> None:
        span = next(self._spans, None) if self._threaded else None
        if span is not None:
            self._start(self._read, *span)

    def next(self) -> Value:
        """The next batch; what reading it raised is raised here."""
        if not self._threaded:
            return self._read(*next(self._spans))
        value: Value = self._finish()
        self._advance()
        return value


class WriteBehind(_Beside):
    """Hands batches to writers in a thread while the caller computes the next ones.

    Leaving it waits for the last batch. An error of writing is raised at the next batch or then; it came before any
    error of the caller, and takes its place unless that is an interrupt.

    Parameters
    ----------
    writers : sequence of FrameWriter or None
        Written to in this order, in the caller's thread unless all of them allow for another.
    """

    def __init__(self, writers: Sequence[FrameWriter | None]) -> None:
        super().__init__("write")
        self._writers = writers
        self._threaded = all(writer.threaded for writer in writers if writer is not None)

    def write(self, arrays: Sequence[NDArray[Any] | None], lent: bool, then: Callable[[], None] | None = None) -> None:
        """Write one array to each writer, and then make a call.

        `lent` arrays change when the caller computes the next batch.
        """
        items = zip(self._writers, arrays, strict=True)
        pairs = [(writer, array) for writer, array in items if writer is not None and array is not None]
        if not self._threaded:
            _store(pairs, then)
            return
        if self._call is not None:
            self._finish()  # first, for the memory of its arrays
        self._start(_store, [(writer, np.copy(array)) for writer, array in pairs] if lent else pairs, then)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, traceback)
        failure = None if self._call is None else self._call.exception()
        if failure is not None and failure is not error and (error is None or isinstance(error, Exception)):
            raise failure


def _store(pairs: Sequence[tuple[FrameWriter, NDArray[Any]]], then: Callable[[], None] | None) -> None:
    for writer, array in pairs:
        writer.write(array)
    if then is not None:
        then()
