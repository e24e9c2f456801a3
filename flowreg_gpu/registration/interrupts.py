"""Interrupts that wait until a file's last read or write is over."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, FunctionType
from typing import Any, cast

__all__ = ["DeferredInterrupts"]

_Handler = Callable[[int, "FrameType | None"], Any]


class DeferredInterrupts:
    """Holds Ctrl-C back while the main thread runs a function that must not be left early.

    A ``try`` within that function does not do it: Python handles a signal between any two instructions, also between
    the call of the function and its first statement, and between the ``except`` that caught one interrupt and the next
    ``try``. This handler of the signal therefore looks at the frames that it interrupts.

    In other threads, where Python handles no signals, and where the program ignores Ctrl-C, nothing is changed.

    Parameters
    ----------
    *functions : function
        Those that must not be left early.
    """

    def __init__(self, *functions: Callable[..., Any]) -> None:
        self._codes = {cast(FunctionType, function).__code__ for function in functions}
        self._before: _Handler | None = None
        self._pending = False

    def install(self) -> None:
        """Take the place of the program's handler, which is called at once, or by `deliver`."""
        handler = signal.getsignal(signal.SIGINT)
        if callable(handler) and threading.current_thread() is threading.main_thread():
            self._before = handler
            signal.signal(signal.SIGINT, self._handle)

    def remove(self) -> None:
        """Give the program's handler its place back."""
        if self._before is not None and signal.getsignal(signal.SIGINT) == self._handle:
            signal.signal(signal.SIGINT, self._before)

    def deliver(self) -> None:
        """Hand the program's handler the interrupt that was held back, if there was one."""
        if self._pending and self._before is not None:
            self._pending = False
            self._before(signal.SIGINT, None)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        caller = frame
        while caller is not None:
            if caller.f_code in self._codes:
                self._pending = True
                return
            caller = caller.f_back
        if self._before is not None:
            self._before(number, frame)
