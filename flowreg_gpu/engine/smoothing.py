"""Gaussian filter of raw frames in space and time, in the dtype of the file: on the CPU, or on a device."""

from __future__ import annotations

import contextlib
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.cpu.preprocess import preprocess
from flowreg_gpu.cpu.store import store as store_on_cpu
from flowreg_gpu.cuda.device import Buffer, Device, DeviceError, DeviceMemoryError
from flowreg_gpu.cuda.operations import CudaOperations
from flowreg_gpu.cuda.preprocess import normalize, upload_settings
from flowreg_gpu.cuda.staging import SLOTS, PinnedArrays, Staging
from flowreg_gpu.cuda.store import store
from flowreg_gpu.engine.cuda_stream import LARGEST_GRID
from flowreg_gpu.engine.memory import device_batch
from flowreg_gpu.model.preprocessing import Preprocessing

__all__ = ["CpuSmoother", "DeviceSmoother", "Smoother", "smoothing"]


def smoothing(sigma: NDArray[np.float64], height: int, width: int) -> Preprocessing:
    """The filter of sigma (C, 3) = rows, columns, time without any normalisation."""
    channels = len(sigma)
    return Preprocessing.build(np.zeros(channels, np.float32), np.ones(channels, np.float32), sigma, height, width)


class Smoother(Protocol):
    """Who filters a batch, and where."""

    backend: str
    batch_bytes: int  # of frames and results that a batch should hold

    def smooth(self, frames: NDArray[Any]) -> NDArray[Any]:
        """Filtered frames (n, H, W, C) of raw frames (n + 2 halo, H, W, C), in their dtype.

        Integers are rounded to nearest even and saturated. The result is valid until the call after the next.
        """

    def close(self) -> None:
        """Release threads or device memory."""


class CpuSmoother:
    """Filters frames in threads; the kernels release the GIL."""

    batch_bytes = 2**26

    def __init__(self, filtering: Preprocessing, n_workers: int) -> None:
        self._filtering = filtering
        self._threads = ThreadPoolExecutor(n_workers, "flowreg-smooth")
        self.backend = f"CPU, {n_workers} thread{'s' if n_workers > 1 else ''}"

    def smooth(self, frames: NDArray[Any]) -> NDArray[Any]:
        """See `Smoother`."""
        taps = 2 * self._filtering.halo + 1
        # kernels are compiled for contiguous arrays that may be written, though they do not write these
        frames = np.require(frames, None, ["C", "A", "W"])
        smoothed = np.empty_like(frames[taps - 1 :])

        def smooth_frame(index: int) -> None:
            store_on_cpu(preprocess(frames[index : index + taps], self._filtering), smoothed[index])

        for _ in self._threads.map(smooth_frame, range(len(smoothed))):
            pass
        return smoothed

    def close(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(cancel_futures=True)


class DeviceSmoother:
    """Filters frames on a device, in parts that its memory holds, with transfers beside the computation.

    Parameters
    ----------
    device : Device
    filtering : Preprocessing
    batch : int, optional
        Frames on the device at a time; None chooses by its free memory.

    Raises
    ------
    DeviceError
        A fault of the device, here or in `smooth`.
    """

    batch_bytes = 2**29

    def __init__(self, device: Device, filtering: Preprocessing, batch: int | None = None) -> None:
        self._device, self._filtering, self._limit = device, filtering, batch
        self._settings = upload_settings(device, filtering)
        self._operations = CudaOperations(device)
        self._operations.prepare_smoothing(filtering.spatial)
        self._pinned = PinnedArrays(device)
        self._turn = 0
        self.backend = device.name

    def smooth(self, frames: NDArray[Any]) -> NDArray[Any]:
        """See `Smoother`."""
        halo = self._filtering.halo
        self._turn = 1 - self._turn  # the last result may still be being written
        shape = len(frames) - 2 * halo, *frames.shape[1:]
        smoothed = self._pinned.get(f"smoothed {self._turn}", shape, frames.dtype)
        while True:
            step = min(self._largest_part(frames), len(smoothed))
            try:
                self._run_parts(frames, smoothed, step)
                return smoothed
            except DeviceMemoryError:
                if step == 1:
                    raise
            finally:
                # after a fault, what is still queued uses memory that was let go
                with contextlib.suppress(DeviceError):
                    self._device.synchronize()
            self._halve(step)

    def close(self) -> None:
        """Give the device's memory back."""
        with contextlib.suppress(DeviceError):
            self._device.release_memory()

    def _run_parts(self, frames: NDArray[Any], smoothed: NDArray[Any], step: int) -> None:
        """Queue one part after the other, at most one ahead of the one that is waited for."""
        halo = self._filtering.halo
        staging = Staging(self._device, [((step + 2 * halo, *frames.shape[1:]), frames.dtype)])
        waiting = 0
        for first in range(0, len(smoothed), step):
            stop = min(first + step, len(smoothed))
            (raw,) = staging.upload([frames[first : stop + 2 * halo]])
            result = self._smooth_part(raw)
            staging.release()
            staging.download([(smoothed[first:stop], result)])
            waiting += 1
            if waiting > 1:
                staging.wait_download()
                waiting -= 1
        staging.wait_download()

    def _smooth_part(self, raw: Buffer) -> Buffer:
        # no name for what is filtered in time: it would keep that memory
        planes = self._operations.smooth(normalize(self._device, raw, self._settings), self._filtering.spatial)
        return store(self._device, planes, raw.dtype)

    def _largest_part(self, frames: NDArray[Any]) -> int:
        """Frames that the device takes at a time."""
        channels = frames.shape[-1]
        if self._limit is None:
            pixels, itemsize = frames[0].size, frames.itemsize
            # frames that are uploaded, planes before and after each filter, results of this part and of the last
            frame_bytes = pixels * ((SLOTS + 2) * itemsize + 3 * np.dtype(np.float32).itemsize)
            self._limit = device_batch(self._device.free_memory(), frame_bytes, self._device.multiprocessors)
        limit: int = min(self._limit, LARGEST_GRID // channels)
        return max(limit, 1)

    def _halve(self, step: int) -> None:
        self._limit = step // 2
        self._device.release_memory()
        warnings.warn(
            f"{step} frames do not fit into the memory of {self._device.name}; going on with {self._limit} at a time",
            RuntimeWarning,
            stacklevel=3,
        )
