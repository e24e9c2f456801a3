"""Executors: who registers the frames of a batch, and where."""

from __future__ import annotations

from typing import Any

from flowreg_gpu.executors.base import EXECUTORS, BaseExecutor
from flowreg_gpu.executors.gpu import GPUExecutor, gpu_status
from flowreg_gpu.executors.processes import MultiprocessingExecutor
from flowreg_gpu.executors.sequential import SequentialExecutor
from flowreg_gpu.executors.threads import ThreadingExecutor

__all__ = [
    "EXECUTORS",
    "BaseExecutor",
    "GPUExecutor",
    "MultiprocessingExecutor",
    "SequentialExecutor",
    "ThreadingExecutor",
    "best_executor",
    "create_executor",
    "gpu_status",
]


def best_executor() -> str:
    """Name of the executor that 'auto' stands for: the GPU where it is usable, else processes."""
    return "gpu" if gpu_status().usable else "multiprocessing"


def create_executor(executor: str | BaseExecutor, n_workers: int | None = None) -> BaseExecutor:
    """Return an executor by name, 'auto' being `best_executor`. An instance is returned as is.

    Raises
    ------
    ValueError
        An unknown name, or `n_workers` given with an instance or below 1.
    """
    if isinstance(executor, BaseExecutor):
        if n_workers is not None:
            raise ValueError(f"n_workers={n_workers} was given beside an executor that has {executor.n_workers}")
        return executor
    if executor == "auto":
        executor = best_executor()
        if executor == MultiprocessingExecutor.name:  # nobody has asked for processes where they cannot be used
            return MultiprocessingExecutor(n_workers, fallback=True)
    if executor not in EXECUTORS:
        raise ValueError(f"executor={executor!r} is not one of auto, {', '.join(EXECUTORS)}")
    kind: Any = EXECUTORS[executor]
    created: BaseExecutor = kind(n_workers)
    return created
