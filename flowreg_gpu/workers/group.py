"""The workers of a pool: started and stopped together, with orders to them and reports from them."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Collection, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from flowreg_gpu.workers.blocks import Block, send_block
from flowreg_gpu.workers.messages import Failure, Order, Preparation, Report
from flowreg_gpu.workers.worker import (
    GRACE_SECONDS,
    Worker,
    environment,
    signals_blocked,
    start_worker,
    stop_workers,
)

__all__ = ["GUARD_HINT", "WorkerGroup"]

GUARD_HINT = 'a script must start workers under `if __name__ == "__main__":`, because every worker imports the script'


class WorkerGroup:
    """Worker processes that are started and stopped together.

    Parameters
    ----------
    number : int
        Of processes.
    variables : dict of str to str
        What they find in their environment.
    memory_hint : str
        What helps where memory runs out; ends the message about a worker that was killed.

    Attributes
    ----------
    workers : list of Worker
        Empty until `start`, and after `stop`.
    """

    def __init__(self, number: int, variables: dict[str, str], memory_hint: str) -> None:
        self._number, self._variables, self._memory_hint = number, variables, memory_hint
        self.workers: list[Worker] = []

    def start(self) -> None:
        """Start the workers, and wait until they are ready."""
        with self.stopping_on_error():
            with environment(self._variables), signals_blocked():
                for _ in range(self._number):
                    self.workers.append(start_worker())
            self._await_idle()
            for worker in self.workers:
                worker.ready = True

    @contextlib.contextmanager
    def stopping_on_error(self) -> Iterator[None]:
        """Stop the workers on a dead one, an interrupt, a raising callback: nobody knows what is in the pipes."""
        try:
            yield
        except BaseException:
            stop_workers(self.workers)
            raise

    def prepare(self, preparation: Preparation, blocks: Sequence[Block]) -> Failure | None:
        """Have every worker prepare a task, and wait for that; `blocks` are those of its arrays."""
        with self.stopping_on_error():
            for worker in self.workers:
                self.send(worker, preparation, blocks)
            return self._await_idle()

    def send(self, worker: Worker, order: Preparation | Order | None, blocks: Sequence[Block] = ()) -> None:
        """Send an order to a worker; RuntimeError where it is dead."""
        try:
            worker.connection.send(order)
            for block in blocks:
                send_block(worker.connection, worker.process.pid, block)
        except OSError as error:
            raise RuntimeError(self._death(worker)) from error

    def _await_idle(self) -> Failure | None:
        failure = None
        busy = set(self.workers)
        while busy:
            for worker, report in self.reports(busy):
                busy.discard(worker)
                failure = failure or report.failure
        return failure

    def reports(
        self, workers: Collection[Worker], also: Sequence[Connection[Any, Any]] = (), timeout: float | None = None
    ) -> list[tuple[Worker, Report]]:
        """Wait until workers report, one of `also` can be read, or the time is over; at most one report of each.

        Raises
        ------
        RuntimeError
            A worker is dead.
        """
        source = {worker.connection: worker for worker in workers} | {
            worker.process.sentinel: worker for worker in workers
        }
        reports = []
        ready = wait([*source, *also], timeout)
        for worker in {source[item] for item in ready if item in source}:
            try:
                if not worker.connection.poll():  # dead, but what its task has forked holds the pipe
                    raise EOFError
                reports.append((worker, worker.connection.recv()))
            except (EOFError, OSError) as error:
                raise RuntimeError(self._death(worker)) from error
        return reports

    def _death(self, worker: Worker) -> str:
        worker.process.join(GRACE_SECONDS)  # its pipe ends before its exit code is known
        code = worker.process.exitcode
        how = f"was killed by {_signal_name(-code)}" if code is not None and code < 0 else f"ended with exit {code=}"
        told = f"worker process {worker.process.pid} {how}"
        if not worker.ready:
            return f"{told} before it was ready: {GUARD_HINT}; its own message is on stderr"
        if worker.frames:
            first, last = worker.frames[0], worker.frames[-1]
            which = f"frame {first}" if first == last else f"frames {first} to {last}"
            told += f" while it handled {which}"
        return (
            f"{told} (SIGKILL is mostly the system's answer to memory running out): try fewer workers "
            f"(n_workers={self._number}) or {self._memory_hint}"
        )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no names
        return f"signal {number}"
