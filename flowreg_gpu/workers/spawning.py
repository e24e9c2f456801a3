"""Whether this process can start workers at all."""

from __future__ import annotations

import os
import sys
from multiprocessing import process, spawn

__all__ = ["obstacle_to_workers"]


def obstacle_to_workers() -> str | None:
    """Why this process cannot start workers, as part of a sentence; None where nothing is known against it.

    A process that is itself being started by its parent is none of these cases: it has imported a main script that
    starts workers without a guard, and `FramePool` says so.
    """
    current = process.current_process()
    if getattr(current, "_inheriting", False):
        return None
    if current.daemon:
        return "this process is a daemonic worker, as those of multiprocessing.Pool are, and may start no processes"
    executable = spawn.get_executable()
    if not executable or not os.path.exists(executable):
        return f"workers are started with Python, and {executable!r} is no program: is Python embedded in another one?"
    script = _main_script()
    if script is not None and not os.path.exists(script):
        return f"workers import the main script, and {script!r} is no file: was it read from standard input?"
    return None


def _main_script() -> str | None:
    """The file that every worker would run first, as multiprocessing.spawn finds it; None where there is none."""
    main = sys.modules.get("__main__")
    if getattr(getattr(main, "__spec__", None), "name", None) is not None:  # imported by its name
        return None
    script = getattr(main, "__file__", None)
    folder = getattr(process, "ORIGINAL_DIR", None)
    return script if script is None or folder is None else os.path.join(folder, script)
