"""Signals that end a command: the run keeps what is finished, and the exit status tells the signal."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

__all__ = ["Stopped", "raise_if_stopped", "stopping_on_signals"]

# Ctrl-C; what clusters send before the time is up; what a closed terminal sends, where there is such a signal.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")

_received: list[int] = []  # the signal that ends the command


class Stopped(KeyboardInterrupt):
    """A signal came: like Ctrl-C, it passes everything that handles ordinary errors."""

    def __init__(self, number: int) -> None:
        name = signal.Signals(number).name
        super().__init__("interrupted" if name == "SIGINT" else f"stopped by {name}")
        self.status = 128 + number


@contextlib.contextmanager
def stopping_on_signals(until_exit: bool = False) -> Iterator[None]:
    """Raise `Stopped` in the main thread at the first signal; ignore those that follow, while results are kept.

    Signals that the caller's caller ignores, as nohup does, stay ignored. `until_exit` goes on ignoring what follows
    the first signal after the context, while Python ends the process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [number for name in _NAMES if (number := getattr(signal, name, None)) is not None]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        for number in numbers:
            if before[number] is not signal.SIG_IGN:
                signal.signal(number, _stop)
        yield
    finally:
        if not (until_exit and _received):
            _received.clear()
            for number, handler in before.items():
                signal.signal(number, handler)


def _stop(number: int, frame: Any) -> None:
    if not _received:
        _received.append(number)
        raise Stopped(number)


def raise_if_stopped() -> None:
    """Raise once more: Python drops what a handler raises within a destructor or a callback of a library."""
    if _received:
        raise Stopped(_received[0])
