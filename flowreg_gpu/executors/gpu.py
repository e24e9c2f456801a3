"""Registration on an NVIDIA GPU, or on the CPU's processes where there is none."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.executors.base import BaseExecutor, BatchResult, Job, Progress
from flowreg_gpu.executors.multiprocessing import MultiprocessingExecutor

__all__ = ["GPUExecutor", "GPUStatus", "gpu_status"]


class GPUStatus(NamedTuple):
    """Whether frames can be registered on a GPU here, and the reason in one sentence."""

    usable: bool
    reason: str


def gpu_status() -> GPUStatus:
    """Say whether a GPU would be used, and why or why not."""
    return GPUStatus(False, "this version of flowreg_gpu has no CUDA kernels yet")


class GPUExecutor(BaseExecutor):
    """Registers batches on a GPU; without a usable one it says so once and uses worker processes.

    Parameters
    ----------
    n_workers : int or None
        Number of worker processes of the fallback.
    fallback : bool
        False raises RuntimeError instead of falling back.
    """

    name = "gpu"
    parallel = True
    description = "Fallback: processes with shared memory"

    def __init__(self, n_workers: int | None = None, *, fallback: bool = True) -> None:
        super().__init__(n_workers)
        usable, reason = gpu_status()
        if not usable:
            if not fallback:
                raise RuntimeError(f"executor='gpu' cannot be used: {reason}")
            warnings.warn(
                f"executor='gpu' cannot be used ({reason}); using 'multiprocessing'", RuntimeWarning, stacklevel=2
            )
        self._fallback = MultiprocessingExecutor(n_workers)

    @property
    def backend(self) -> str:
        """Name of the executor that does the work."""
        return self._fallback.backend

    def setup(self) -> None:
        """Start the workers of the fallback."""
        self._fallback.setup()

    def cleanup(self) -> None:
        """Stop the workers of the fallback and unlink its shared memory."""
        self._fallback.cleanup()

    def start_recording(self, job: Job) -> None:
        """Take what all following batches share."""
        self._fallback.start_recording(job)

    def register_batch(
        self,
        frames: NDArray[Any],
        start: NDArray[np.float32],
        planes: NDArray[np.float32] | None = None,
        progress: Progress | None = None,
    ) -> BatchResult:
        """Register one batch; see `BaseExecutor.register_batch`."""
        return self._fallback.register_batch(frames, start, planes, progress)


GPUExecutor.register()
