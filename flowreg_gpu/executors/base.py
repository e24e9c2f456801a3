"""The interface of all executors."""

from __future__ import annotations

import abc
import contextlib
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any, ClassVar, TypeVar

from flowreg_gpu.engine.batch import Batch, BatchResult
from flowreg_gpu.engine.job import WarpJob
from flowreg_gpu.executors.process_batch import ProcessBatch
from flowreg_gpu.options import positive_integer
from flowreg_gpu.workers.pool import default_workers

__all__ = ["EXECUTORS", "BaseExecutor"]

_Executor = TypeVar("_Executor", bound="BaseExecutor")

#: Executors by name, as `BaseExecutor.register` enters them.
EXECUTORS: dict[str, type[BaseExecutor]] = {}


class BaseExecutor(ProcessBatch, abc.ABC):
    """Registers batches of frames; the interface is the one of pyflowreg's executors.

    Parameters
    ----------
    n_workers : int or None
        Number of workers; None takes one per CPU that this process may use.

    Raises
    ------
    ValueError
        `n_workers` below 1.
    """

    name: ClassVar[str]
    parallel: ClassVar[bool] = False
    description: ClassVar[str] = ""
    features: ClassVar[tuple[str, ...]] = ()

    @property
    def batch_bytes(self) -> int:
        """Bytes of frames, registered frames and kept flows that a batch holds unless the caller says otherwise."""
        return 2**28

    def batch_memory(self, frames: int, results: int) -> int:
        """Bytes of the host's memory that a batch takes here, beside its `frames` bytes, which the caller holds.

        `results` are the bytes of its registered frames and of the flows that are wanted.
        """
        return results

    def working_memory(self, frame: int) -> int:
        """Bytes of the host's memory that the workers take, whatever the batch; each needs `frame` bytes for one."""
        return self.n_workers * frame

    @property
    def keeps_results(self) -> bool:
        """Whether the arrays of a result stay as they are while the next batch is computed."""
        return False

    def __init__(self, n_workers: int | None = None) -> None:
        self.n_workers = default_workers() if n_workers is None else positive_integer("n_workers", n_workers)
        self._used = threading.Lock()

    @property
    def backend(self) -> str:
        """Name of the executor that does the work: another one where this one has fallen back."""
        return self.name

    def setup(self) -> None:
        """Acquire workers or devices; called by the context manager, and by the first batch where it was not."""

    def cleanup(self) -> None:
        """Release everything; may be called twice, and the executor may be used again afterwards."""

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the executor for one run: all runs would share its arrays, and their frames be mixed.

        Raises
        ------
        RuntimeError
            A run of another thread, or the run whose callback this is, has it.
        """
        if not self._used.acquire(blocking=False):
            raise RuntimeError(
                f"this {type(self).__name__} is in use by another run, and serves one at a time: "
                "each thread needs an executor of its own"
            )
        try:
            yield
        finally:
            self._used.release()

    def __enter__(self: _Executor) -> _Executor:
        with self.in_use():
            self.setup()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self.in_use():  # else the memory of another thread's run would be released under it
            self.cleanup()

    @classmethod
    def register(cls) -> None:
        """Make this executor known by its name."""
        EXECUTORS[cls.name] = cls

    def get_info(self) -> dict[str, Any]:
        """Name, type, number of workers, whether they run in parallel, a description, and features."""
        return {
            "name": self.name,
            "type": type(self).__name__,
            "n_workers": self.n_workers,
            "parallel": self.parallel,
            "description": f"{self.description}, {self.n_workers} worker{'s' if self.n_workers > 1 else ''}",
            "features": list(self.features),
        }

    @abc.abstractmethod
    def start_recording(self, job: WarpJob) -> None:
        """Take what all following batches share; its arrays must not change until the next job.

        The frames are registered where it is a `Job`, else warped by flows that come with them.
        """

    @abc.abstractmethod
    def register_batch(self, batch: Batch) -> BatchResult:
        """Register one batch of the recording begun with `start_recording`.

        Raises
        ------
        RuntimeError
            No recording was begun.
        ValueError
            The batch does not fit the job.
        """
