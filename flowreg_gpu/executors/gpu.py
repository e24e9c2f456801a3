"""Registration on an NVIDIA GPU, or on the CPU's processes where there is none."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any, NamedTuple

import numpy as np

from flowreg_gpu.cuda.device import CudaDevice, Device, DeviceError, device_facts
from flowreg_gpu.engine.batch import Batch, BatchResult
from flowreg_gpu.engine.cuda_stream import BatchState, DeviceStream
from flowreg_gpu.engine.job import WarpJob
from flowreg_gpu.executors.base import BaseExecutor
from flowreg_gpu.executors.cpu import CPUExecutor
from flowreg_gpu.executors.processes import MultiprocessingExecutor
from flowreg_gpu.executors.threads import ThreadingExecutor
from flowreg_gpu.options import positive_integer
from flowreg_gpu.workers.spawning import obstacle_to_workers

__all__ = ["GPUExecutor", "GPUStatus", "gpu_status"]

_CONTEXT_BYTES = 500_000_000  # of the host's memory, for CUDA's context, NVRTC and cuFFT; no GPU has been measured yet


class GPUStatus(NamedTuple):
    """Whether frames can be registered on a GPU here, and the reason in one sentence."""

    usable: bool
    reason: str


def gpu_status(device: int = 0) -> GPUStatus:
    """Say whether a GPU would be used, and why or why not."""
    try:
        facts = device_facts(device)
    except DeviceError as error:
        return GPUStatus(False, str(error))
    return GPUStatus(True, f"{facts.name}, compute capability {facts.capability[0]}.{facts.capability[1]}")


class GPUExecutor(BaseExecutor):
    """Registers batches in a GPU's memory; without a usable GPU it says so once and uses worker processes.

    Raw frames go to the device once, in the file's integers, and registered frames come back; upload, computation
    and download overlap. Where memory runs out, the device's batch is halved. After a fault of the device the rest
    of the frames is registered by worker processes. A script that may have to fall back must start its work under
    ``if __name__ == "__main__":``.

    Parameters
    ----------
    n_workers : int or None
        Number of worker processes of the fallback.
    device : int or Device
        Number of the GPU, as CUDA counts them.
    batch : int or None
        Frames on the device at a time; None chooses by its free memory. Never changes the result.
    fallback : bool
        False raises RuntimeError instead of falling back.

    Raises
    ------
    ValueError, TypeError
        `n_workers` or `batch` below 1 or no integer.
    RuntimeError
        No usable GPU and `fallback` False.
    """

    name = "gpu"
    parallel = True
    description = "Batches in the memory of an NVIDIA GPU"
    features = ("cuda", "batched", "overlapped-transfers")

    def __init__(
        self,
        n_workers: int | None = None,
        *,
        device: int | Device = 0,
        batch: int | None = None,
        fallback: bool = True,
    ) -> None:
        super().__init__(n_workers)
        self._batch = None if batch is None else positive_integer("batch", batch)
        self._may_fall_back = fallback
        self._index: int | None = int(device) if isinstance(device, int | np.integer) else None
        self._device: Device | None = None if isinstance(device, int | np.integer) else device
        self._stream: DeviceStream | None = None
        self._job: WarpJob | None = None
        self._fallback: CPUExecutor | None = None
        self._registered = 0  # frames, on the device
        if self._index is not None:
            usable, reason = gpu_status(self._index)
            if not usable:
                self._fall_back(DeviceError(reason), stacklevel=3)

    def _fall_back(self, error: DeviceError, stacklevel: int = 4) -> None:
        """Warn, and have the CPU do the work from now on; RuntimeError where that is not wanted."""
        if not self._may_fall_back:
            raise RuntimeError(f"executor='gpu' cannot be used: {error}") from error
        obstacle = obstacle_to_workers()
        if obstacle is None:
            self._fallback = MultiprocessingExecutor(self.n_workers, fallback=True)
        else:
            self._fallback = ThreadingExecutor(self.n_workers)
        rest = f"after {self._registered} frames, going on with" if self._registered else "using"
        because = "" if obstacle is None else f" ({obstacle})"
        warnings.warn(
            f"executor='gpu' cannot be used ({error}); {rest} {self._fallback.name!r}{because}",
            RuntimeWarning,
            stacklevel=stacklevel,
        )
        self._stream = None

    @property
    def batch_bytes(self) -> int:
        """More than on the CPU: a device takes some hundred frames at a time."""
        return 2**30 if self._fallback is None else self._fallback.batch_bytes

    def batch_memory(self, frames: int, results: int) -> int:
        """Pinned memory: two sets of results by turns, and two parts of the frames."""
        return 2 * (frames + results) if self._fallback is None else self._fallback.batch_memory(frames, results)

    def working_memory(self, frame: int) -> int:
        """CUDA's context and libraries, or the workers of the fallback."""
        return _CONTEXT_BYTES if self._fallback is None else self._fallback.working_memory(frame)

    @property
    def backend(self) -> str:
        """Name of the executor that does the work, of both where the device failed on the way."""
        if self._fallback is None:
            return self.name
        return f"{self.name}, then {self._fallback.backend}" if self._registered else self._fallback.backend

    @property
    def keeps_results(self) -> bool:
        """Whether the arrays of a result stay as they are while the next batch is computed: the device's do."""
        return self._fallback is None

    def get_info(self) -> dict[str, Any]:
        """What `BaseExecutor.get_info` says, with the device, or the executor in its place."""
        info = super().get_info()
        if self._fallback is None:
            info["description"] += f" in reserve for {self._ready_device().name}"
        else:
            info["description"] = f"No usable GPU. {self._fallback.get_info()['description']}"
        return info

    def _ready_device(self) -> Device:
        if self._device is None:
            assert self._index is not None
            self._device = CudaDevice(self._index)
        return self._device

    def setup(self) -> None:
        """Take the device, or start the workers of the fallback."""
        if self._fallback is None:
            try:
                self._ready_device()
            except DeviceError as error:
                self._fall_back(error)
        if self._fallback is not None:
            self._fallback.setup()

    def cleanup(self) -> None:
        """Give the device's memory back, or stop the workers of the fallback and unlink its shared memory."""
        self._stream = self._job = None
        if self._fallback is not None:
            self._fallback.cleanup()
        elif self._device is not None:
            with contextlib.suppress(DeviceError):
                self._device.release_memory()

    def start_recording(self, job: WarpJob) -> None:
        """Take what all following batches share."""
        self._job = job
        if self._fallback is None:
            try:
                if self._stream is None:
                    self._stream = DeviceStream(self._ready_device(), self._batch)
                self._stream.start_recording(job)
            except DeviceError as error:
                self._fall_back(error)
        if self._fallback is not None:
            self._fallback.start_recording(job)

    def register_batch(self, batch: Batch) -> BatchResult:
        """Register one batch; see `BaseExecutor.register_batch`."""
        if self._job is None:
            raise RuntimeError("register_batch was called before start_recording")
        self._job.check(batch)
        if self._fallback is not None:
            return self._fallback.register_batch(batch)
        assert self._stream is not None
        if batch.planes is not None and len(batch.planes) != batch.count:
            raise ValueError(f"planes hold {len(batch.planes)} frames, expected {batch.count}")
        state = BatchState(batch)
        try:
            result = self._stream.run(state)
            self._registered += batch.count
            return result
        except DeviceError as error:
            self._registered += state.finished
            self._fall_back(error)
            return self._finish(state)

    def _finish(self, state: BatchState) -> BatchResult:
        """Register what a device left undone, and again what it did not hand in for the mean flow or the field."""
        assert self._fallback is not None
        assert self._job is not None
        batch = state.batch
        first = 0 if batch.field is not None else min(state.finished, batch.count - batch.averaged)
        again = state.finished - first

        def progress(finished: int) -> None:
            nonlocal again
            known = min(again, finished)
            again -= known
            if batch.progress is not None and finished > known:
                batch.progress(finished - known)

        self._fallback.start_recording(self._job)
        rest = self._fallback.register_batch(batch.part(first, batch.count, progress))
        if first == 0:
            return rest
        assert state.result is not None
        registered, flow, statistics = state.result
        return BatchResult(
            np.concatenate([registered[:first], rest.registered]),
            None if flow is None or rest.flow is None else np.concatenate([flow[:first], rest.flow]),
            np.concatenate([statistics[:first], rest.statistics]),
        )


GPUExecutor.register()
