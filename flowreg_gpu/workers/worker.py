"""A worker process: how the pool starts and stops it, and what it does with the orders in its pipe."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from numpy.typing import NDArray

from flowreg_gpu.workers.blocks import attach_arrays
from flowreg_gpu.workers.messages import Failure, FrameTask, Preparation, Report

__all__ = ["GRACE_SECONDS", "Worker", "environment", "signals_blocked", "start_worker", "stop_workers"]

GRACE_SECONDS = 2.0  # for a worker to end by itself, after its pipe was closed
_REPORT_SECONDS = 0.1  # between reports, so that a progress bar moves and the pipe is hardly used

#: What the terminal or a scheduler sends to a whole group of processes. It is the parent that ends the workers, once it
#: has what they have finished; where it is dead, its pipes end them.
_GROUP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@dataclass(eq=False)
class Worker:
    """A worker process as the pool sees it."""

    process: SpawnProcess
    connection: Connection[Any, Any]
    ready: bool = False
    frames: range = range(0)  # it was ordered to handle
    finished: int = 0  # of them
    since: float = 0.0  # monotonic time of that order, or of the last finished frame if each is reported


def start_worker() -> Worker:
    """Start a process that takes orders from a pipe."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    with theirs:  # closed here once the child has it, so that its death is an end of file
        worker = context.Process(target=_serve, args=(theirs,), name="flowreg-frames", daemon=True)
        worker.start()
    return Worker(worker, ours)


def stop_workers(workers: list[Worker]) -> None:
    """End workers and empty the list: they are asked by closing their pipes, and killed where they do not end."""
    for worker in workers:
        worker.connection.close()
    deadline = time.monotonic() + GRACE_SECONDS
    while workers:
        child = workers[-1].process
        child.join(max(deadline - time.monotonic(), 0))
        if child.is_alive():
            child.kill()
            child.join()
        workers.pop()
        child.close()


@contextlib.contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
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
def signals_blocked() -> Iterator[None]:
    """Hold Ctrl-C and the like back. Children inherit that: they are spared before they can handle it by themselves."""
    if sys.platform == "win32":
        yield
        return
    # multiprocessing starts this process with the first child, and then lets SIGINT and SIGTERM through
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _GROUP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection[Any, Any]) -> None:
    """Main function of a worker process."""
    _disregard_group_signals()
    with contextlib.suppress(EOFError, OSError):  # the parent has closed the pipe, or is dead
        _Server(connection).serve()


def _disregard_group_signals() -> None:
    """Handle the signals by doing nothing: programs that a task starts would inherit that they are ignored."""
    for number in _GROUP_SIGNALS:
        signal.signal(number, lambda number, frame: None)
        if sys.platform != "win32":
            signal.siginterrupt(number, False)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _GROUP_SIGNALS)


class _Server:
    """Obeys the orders in the pipe, until its end."""

    def __init__(self, connection: Connection[Any, Any]) -> None:
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
                if isinstance(order, Preparation):
                    self.prepare(order)
                else:
                    self.handle(*order)
            except Exception as error:
                failure = Failure.of(error)
            self.report(idle=True, failure=failure)

    def prepare(self, order: Preparation) -> None:
        self.task, self.arrays = None, {}
        if order.task is None:
            return
        self.arrays = attach_arrays(self.connection, order.arrays)
        try:
            task = pickle.loads(order.task)
        except Exception as error:
            raise TypeError(
                f"the task cannot be loaded in a worker ({error}): its functions and classes must be importable, "
                f"which what is defined in an interactive session is not"
            ) from error
        task.prepare(self.arrays)
        self.task = task

    def handle(self, frames: range, every_frame: bool) -> None:
        if self.task is None:
            raise RuntimeError(f"{frames=} were ordered without a task")
        for index in frames:
            if self.connection.poll():  # None, or the end of the pipe
                return
            self.task(self.arrays, index)
            self.finished += 1
            if every_frame or time.monotonic() - self.reported >= _REPORT_SECONDS:
                self.report(idle=False)

    def report(self, idle: bool, failure: Failure | None = None) -> None:
        self.connection.send(Report(self.finished, idle, failure))
        self.finished = 0
        self.reported = time.monotonic()
