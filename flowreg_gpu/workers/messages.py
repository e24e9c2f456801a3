"""What the pool and its workers say to each other through pipes; frames never pass through them.

To a worker go a `Preparation`, which the descriptors of its blocks follow, an `Order`, or None: begin no further frame.
It answers with reports.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray

from flowreg_gpu.workers.blocks import ArrayPlace

__all__ = ["Failure", "FrameTask", "Order", "Preparation", "Report", "WorkerTraceback", "pickled_task"]


class FrameTask(Protocol):
    """What the workers do with a frame; pickled, so of an importable class with picklable attributes."""

    def prepare(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Set up, once per process after the task or the blocks changed (for example, build a reference pyramid).

        Parameters
        ----------
        arrays : mapping of str to ndarray
            The arrays made by `FramePool.allocate`, by name.
        """

    def __call__(self, arrays: Mapping[str, NDArray[Any]], index: int) -> None:
        """Handle one frame and write the results into the output arrays.

        Parameters
        ----------
        arrays : mapping of str to ndarray
            The arrays made by `FramePool.allocate`, by name.
        index : int
            Which frame.
        """


def pickled_task(task: FrameTask) -> bytes:
    """The task as bytes; TypeError where a worker could not load it."""
    try:
        return pickle.dumps(task, pickle.HIGHEST_PROTOCOL)
    except (pickle.PicklingError, AttributeError, TypeError, ValueError) as error:
        raise TypeError(
            f"task={task!r} cannot be sent to the workers ({error}): its functions and classes must be importable, "
            f"that is defined at the level of a module, not lambdas or local ones"
        ) from error


class Preparation(NamedTuple):
    """A task and the arrays it works on."""

    task: bytes | None  # pickled; None: let go of task and arrays
    arrays: list[ArrayPlace]


class Order(NamedTuple):
    """Frames to handle."""

    frames: range
    every_frame: bool  # whether each is to be reported when it is finished, else a few times a second


class WorkerTraceback(Exception):
    """The traceback of an exception in a worker, as text; the cause of that exception in the parent."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


class Failure(NamedTuple):
    """An exception of a task, with its traceback as text."""

    pickled: bytes
    trace: str

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """The failure that an exception is; one that cannot be pickled becomes a RuntimeError."""
        trace = "".join(traceback.format_exception(error))
        try:
            pickled = pickle.dumps(error)
            pickle.loads(pickled)  # an __init__ with other arguments fails only here
        except Exception:
            pickled = pickle.dumps(RuntimeError(f"{type(error).__qualname__}: {error}"))
        return cls(pickled, trace)

    def exception(self) -> Exception:
        """The exception, with the worker's traceback as its cause."""
        error: Exception = pickle.loads(self.pickled)
        error.__cause__ = WorkerTraceback(self.trace)
        return error


class Report(NamedTuple):
    """What a worker has done."""

    finished: int  # frames, since the last report
    idle: bool
    failure: Failure | None
