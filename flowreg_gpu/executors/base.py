"""The interface of all executors."""

from __future__ import annotations

import abc
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
    #: Bytes of frames, registered frames and flows that a batch of a recording holds unless the caller says otherwise.
    batch_bytes: int = 2**28

    @property
    def keeps_results(self) -> bool:
        """Whether the arrays of a result stay as they are while the next batch is computed."""
        return False

    def __init__(self, n_workers: int | None = None) -> None:
        self.n_workers = default_workers() if n_workers is None else positive_integer("n_workers", n_workers)

    @property
    def backend(self) -> str:
        """Name of the executor that does the work: another one where this one has fallen back."""
        return self.name

    def setup(self) -> None:
        """Acquire workers or devices; called by the context manager, and by the first batch where it was not."""

    def cleanup(self) -> None:
        """Release everything; may be called twice, and the executor may be used again afterwards."""

    def __enter__(self: _Executor) -> _Executor:
        self.setup()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
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
