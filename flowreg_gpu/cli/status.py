"""Exit status of the commands, and the one line that says what went wrong.

0 success, 1 a run that failed, 2 wrong usage or unreadable input, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

__all__ = ["FAILED", "INTERRUPTED", "WRONG_USAGE", "attempt", "say"]

FAILED, WRONG_USAGE, INTERRUPTED = 1, 2, 130


def say(error: BaseException, status: int) -> int:
    """Print an error in one line; `status`."""
    text = str(error) or type(error).__name__
    print(f"flowreg-gpu: error: {text}", file=sys.stderr)
    return status


def attempt(work: Callable[[], None]) -> int:
    """Do the work that was checked; its faults are one line and an exit status. `main` catches interrupts."""
    try:
        work()
    except Exception as error:
        return say(error, FAILED)
    return 0
