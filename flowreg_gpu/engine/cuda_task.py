"""What is done with a batch of frames on a device: preprocess, flow, warp, statistics (the twin of cpu_task.py).

Where the flow is known, the last two alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from flowreg_gpu.cuda.device import Buffer, Device, DeviceError, DeviceMemoryError
from flowreg_gpu.cuda.launch import upload
from flowreg_gpu.cuda.operations import CudaOperations
from flowreg_gpu.cuda.preprocess import normalize, upload_settings
from flowreg_gpu.cuda.statistics import describe_flow, describe_frames, prepare_reference
from flowreg_gpu.cuda.warp import warp_frames
from flowreg_gpu.engine.batch import STATISTICS
from flowreg_gpu.engine.job import Job, WarpJob
from flowreg_gpu.model.estimator import FlowEstimator

__all__ = ["DeviceResult", "DeviceTask", "DeviceWarp", "device_task"]


class DeviceResult(NamedTuple):
    """Results of a batch on the device: (n, H, W, C) in the frames' dtype, (n, 2, H, W) float32, (n, 10) float64."""

    registered: Buffer
    flow: Buffer
    statistics: Buffer


class _CapturedGraph(NamedTuple):
    """Launches that bring `source` and `start` to `flow`, in memory of their own."""

    size: tuple[Any, ...]
    source: Buffer
    start: Buffer
    flow: Buffer
    replay: Callable[[], None]


class DeviceWarp:
    """Warp batches by their flows on a device; what all batches share is uploaded and computed here, once.

    Parameters
    ----------
    device : Device
    job : WarpJob
    """

    def __init__(self, device: Device, job: WarpJob) -> None:
        self._device, self._interpolation, self._halo = device, job.options.interpolation_method, job.halo
        self._reference = upload(device, np.ascontiguousarray(job.reference, np.float32))
        self._reference_sums = prepare_reference(device, self._reference)

    def run(self, frames: Buffer, start: Buffer | None, own: Buffer | None = None) -> DeviceResult:
        """Queue the registration of raw frames (n + 2 halo, H, W, C) from a start flow (1, 2, H, W).

        `own` is what comes with each frame: its flow (n, 2, H, W); or, for `DeviceTask`, the preprocessed planes (n, C,
        H, W), where the job has no preprocessing. The result's flow is valid until the next batch.
        """
        device, halo = self._device, self._halo
        source = frames if own is None else own
        frames = frames[halo : frames.shape[0] - halo]
        statistics = device.empty((frames.shape[0], len(STATISTICS)), np.float64)
        describe_frames(device, frames, self._reference, self._reference_sums, statistics, "correlation_before")
        flow = self._flow(source, start)
        describe_flow(device, flow, statistics)  # constant frames and flows that leave the frame: zero
        registered = warp_frames(device, frames, flow, self._reference, self._interpolation)
        describe_frames(device, registered, self._reference, self._reference_sums, statistics, "correlation_after")
        return DeviceResult(registered, flow, statistics)

    def _flow(self, source: Buffer, start: Buffer | None) -> Buffer:
        """Flow of every frame: what came with it."""
        return source

    def forget(self) -> None:
        """Give memory that is not in use back."""
        self._device.release_memory()


class DeviceTask(DeviceWarp):
    """Register batches to one reference on a device: estimate their flows, then as `DeviceWarp`.

    Parameters
    ----------
    device : Device
    job : Job
    graphs : bool
        Whether launches that come again are captured as a graph.
    """

    def __init__(self, device: Device, job: Job, graphs: bool = True) -> None:
        super().__init__(device, job)
        self._job = job
        self._operations = CudaOperations(device)
        self._settings: Any = None
        if job.preprocessing is not None:
            self._settings = upload_settings(device, job.preprocessing)
            background = job.preprocessing.background
            self._operations.prepare_smoothing([*job.preprocessing.spatial, *(background or ())])
        # what uses FFT plans, which come and go with memory of their own, is not captured
        self._graphs = graphs and not job.options.prealigns
        self._captured: _CapturedGraph | None = None
        self._seen: set[tuple[Any, ...]] = set()
        height, width, _ = job.reference.shape
        self._estimator = FlowEstimator(
            self._operations,
            upload(device, np.ascontiguousarray(job.reference_planes[None], np.float32)),
            upload(device, np.ascontiguousarray(job.weight[None], np.float32)),
            job.mean_weight,
            height,
            width,
            job.options,
        )

    def _flow(self, source: Buffer, start: Buffer | None) -> Buffer:
        """Flow of raw frames, or of planes where the job has no preprocessing.

        The launches of a size that comes again, the largest that does, are captured as a graph and replayed as one.
        """
        assert start is not None  # the job has checked the batch
        size = source.shape, source.dtype.str
        captured = self._captured
        if self._graphs and size in self._seen and (captured is None or size > captured.size):
            captured = self._capture(source, start)
        self._seen.add(size)
        if captured is not None and size != captured.size:
            captured = None
        if captured is None:
            try:
                return self._estimate(source, start)
            except DeviceMemoryError:
                if self._captured is None:
                    raise
                self.forget()
                return self._estimate(source, start)
        self._device.copy(captured.source, source)
        self._device.copy(captured.start, start)
        captured.replay()
        return captured.flow

    def _estimate(self, source: Buffer, start: Buffer) -> Buffer:
        planes, operations, preprocessing = source, self._operations, self._job.preprocessing
        if preprocessing is not None:
            # no name for what is normalized: it would keep that memory while the flow is computed
            planes = operations.smooth(normalize(self._device, source, self._settings), preprocessing.spatial)
            if preprocessing.background is not None:
                down, up = preprocessing.background
                planes = operations.add(planes, operations.resize(operations.resize(planes, down), up))
        flow: Buffer = self._estimator.flow(planes, start)
        return flow

    def _capture(self, source: Buffer, start: Buffer) -> _CapturedGraph | None:
        """A captured graph in place of the last one; None, and never again, where the device cannot make it."""
        device = self._device
        self.forget()  # a captured graph takes memory of its own
        try:
            source, start = device.empty(source.shape, source.dtype), device.empty(start.shape, start.dtype)
            flow, replay = device.capture_graph(lambda: self._estimate(source, start))
        except DeviceError as error:
            self._graphs = False
            warnings.warn(f"{error}; going on without a CUDA graph", RuntimeWarning, stacklevel=2)
        else:
            self._captured = _CapturedGraph((source.shape, source.dtype.str), source, start, flow, replay)
        return self._captured

    def forget(self) -> None:
        """Let the captured graph go, and give memory that is not in use back."""
        if self._captured is not None:
            self._device.synchronize()
        self._captured = None
        self._seen.clear()
        super().forget()


def device_task(device: Device, job: WarpJob) -> DeviceWarp:
    """The task that a job asks for."""
    return DeviceTask(device, job) if isinstance(job, Job) else DeviceWarp(device, job)
