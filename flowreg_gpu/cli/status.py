"""Exit status of the commands, and what they print.

0 success, 1 a run that failed or whose input was changed meanwhile, 2 wrong usage or unreadable input, 128 and the
number of the signal for a run that was stopped: 130 by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable

__all__ = ["FAILED", "INTERRUPTED", "WRONG_USAGE", "attempt", "say", "tell", "warn"]

FAILED, WRONG_USAGE, INTERRUPTED = 1, 2, 130


def tell(*lines: object) -> None:
    """Print results. A closed pipe or a full disk behind standard output does not undo them: a warning says so."""
    try:
        print(*lines, sep="\n", flush=True)
    except OSError as error:
        # Python flushes standard output again as it ends, and would fail there
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        warn(f"standard output takes no text ({error.strerror})")


def warn(message: object) -> None:
    """Print a warning in one line, where there is still a place for it."""
    _print_error(f"warning: {message}")


def say(error: BaseException, status: int) -> int:
    """Print an error in one line; `status`."""
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{error.strerror}: {error.filename!r}"  # without the number
    _print_error(f"error: {text}")
    return status


def _print_error(text: str) -> None:
    with contextlib.suppress(OSError):  # a terminal that was closed
        print(f"flowreg-gpu: {text}", file=sys.stderr, flush=True)


def attempt(work: Callable[[], int | None]) -> int:
    """Do the work that was checked; its faults are one line and an exit status. `main` catches signals."""
    try:
        return work() or 0
    except Exception as error:
        return say(error, FAILED)
