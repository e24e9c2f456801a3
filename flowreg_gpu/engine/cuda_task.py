"""What is done with a batch of frames on a device: preprocess, flow, warp, statistics (the twin of cpu_task.py)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from flowreg_gpu.cuda import descend
from flowreg_gpu.cuda.device import Buffer, Device, DeviceError, DeviceMemoryError
from flowreg_gpu.cuda.launch import upload
from flowreg_gpu.cuda.operations import CudaOperations
from flowreg_gpu.cuda.preprocess import normalize, upload_settings
from flowreg_gpu.cuda.solver import scratch_planes
from flowreg_gpu.cuda.statistics import describe_flow, describe_frames, prepare_reference
from flowreg_gpu.cuda.warp import warp_frames
from flowreg_gpu.engine.batch import STATISTICS
from flowreg_gpu.engine.job import Job
from flowreg_gpu.model.estimator import FlowEstimator
from flowreg_gpu.model.plan import plan_descents, plan_levels
from flowreg_gpu.model.relaxation import choose_relaxation
from flowreg_gpu.options import Options

__all__ = ["DeviceResult", "DeviceTask", "frame_bytes"]


class DeviceResult(NamedTuple):
    """Results of a batch on the device: (n, H, W, C) in the frames' dtype, (n, 2, H, W) float32, (n, 8) float64."""

    registered: Buffer
    flow: Buffer
    statistics: Buffer


class _Recording(NamedTuple):
    """Launches that bring `source` and `start` to `flow`, in memory of their own."""

    size: tuple[Any, ...]
    source: Buffer
    start: Buffer
    flow: Buffer
    replay: Callable[[], None]


class DeviceTask:
    """Register batches to one reference on a device; what all batches share is uploaded and computed here, once.

    Parameters
    ----------
    device : Device
    job : Job
    graphs : bool
        Whether launches that come again are recorded as a graph.
    """

    def __init__(self, device: Device, job: Job, graphs: bool = True) -> None:
        self._device, self._job = device, job
        self._operations = CudaOperations(device)
        self._settings: Any = None
        if job.preprocessing is not None:
            self._settings = upload_settings(device, job.preprocessing)
            self._operations.prepare_smoothing(job.preprocessing.spatial)
        self._reference = upload(device, np.ascontiguousarray(job.reference, np.float32))
        self._reference_sums = prepare_reference(device, self._reference)
        # what uses FFT plans, which come and go with memory of their own, is not recorded
        self._graphs = graphs and not job.options.cc_initialization
        self._recorded: _Recording | None = None
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

    def run(self, frames: Buffer, start: Buffer, planes: Buffer | None = None) -> DeviceResult:
        """Queue the registration of raw frames (n + 2 halo, H, W, C) from a start flow (1, 2, H, W).

        `planes` (n, C, H, W) are the preprocessed frames, where the job has no preprocessing. The result's flow is
        valid until the next batch.
        """
        device, halo = self._device, self._job.halo
        source = frames if planes is None else planes
        frames = frames[halo : frames.shape[0] - halo]
        statistics = device.empty((frames.shape[0], len(STATISTICS)), np.float64)
        describe_frames(device, frames, self._reference, self._reference_sums, statistics, "correlation_before")
        flow = self._flow(source, start)
        describe_flow(device, flow, statistics)  # constant frames and flows that are not finite: zero
        registered = warp_frames(device, frames, flow, self._reference, self._job.options.interpolation_method)
        describe_frames(device, registered, self._reference, self._reference_sums, statistics, "correlation_after")
        return DeviceResult(registered, flow, statistics)

    def _flow(self, source: Buffer, start: Buffer) -> Buffer:
        """Flow of raw frames, or of planes where the job has no preprocessing.

        The launches of a size that comes again, the largest that does, are recorded and replayed as one.
        """
        size = source.shape, source.dtype.str
        recorded = self._recorded
        if self._graphs and size in self._seen and (recorded is None or size > recorded.size):
            recorded = self._record(source, start)
        self._seen.add(size)
        if recorded is not None and size != recorded.size:
            recorded = None
        if recorded is None:
            try:
                return self._estimate(source, start)
            except DeviceMemoryError:
                if self._recorded is None:
                    raise
                self.forget()
                return self._estimate(source, start)
        self._device.copy(recorded.source, source)
        self._device.copy(recorded.start, start)
        recorded.replay()
        return recorded.flow

    def _estimate(self, source: Buffer, start: Buffer) -> Buffer:
        planes = source
        if self._job.preprocessing is not None:
            # no name for what is normalized: it would keep that memory while the flow is computed
            planes = self._operations.smooth(
                normalize(self._device, source, self._settings), self._job.preprocessing.spatial
            )
        flow: Buffer = self._estimator.flow(planes, start)
        return flow

    def _record(self, source: Buffer, start: Buffer) -> _Recording | None:
        """A recording in place of the last one; None, and never again, where the device cannot make it."""
        device = self._device
        self.forget()  # a recording takes memory of its own
        try:
            source, start = device.empty(source.shape, source.dtype), device.empty(start.shape, start.dtype)
            flow, replay = device.record_graph(lambda: self._estimate(source, start))
        except DeviceError as error:
            self._graphs = False
            warnings.warn(f"{error}; going on without a CUDA graph", RuntimeWarning, stacklevel=2)
        else:
            self._recorded = _Recording((source.shape, source.dtype.str), source, start, flow, replay)
        return self._recorded

    def forget(self) -> None:
        """Let the recording go, and give memory that is not in use back."""
        if self._recorded is not None:
            self._device.synchronize()
        self._recorded = None
        self._seen.clear()
        self._device.release_memory()


def frame_bytes(
    height: int, width: int, channels: int, itemsize: int, options: Options, *, own_planes: bool = False
) -> int:
    """Largest device memory that each frame of a batch takes while batches follow each other, in bytes.

    Beside staging (two slots of raw frames, and the results of the batch before on their way to the host), the flow
    takes most while the finest level is solved, with the preprocessed frame, its pyramid, and the solver's flow,
    tensor, increment and scratch; where that level is coarse, while frames are filtered or all coarse levels solved. A
    recorded graph keeps that memory while results are made. `own_planes` says that the preprocessed frames are uploaded
    too.
    """
    pixels, float32 = height * width, 4
    plan = plan_levels(height, width, options)
    levels = plan.levels
    areas = [level.height * level.width for level in levels]
    raw, planes, flow = channels * itemsize, float32 * channels, 2 * float32
    staging = 3 * raw + flow + (2 * planes if own_planes else 0)
    held = 0 if own_planes else planes
    if options.cc_initialization:
        held += planes + 2 * flow  # aligned frame, rigid flow, zero flow
    if options.gnc_schedule is not None:
        held += flow  # of the stage before
    pyramid = planes * sum(area for area in areas if area != pixels)
    finest = levels[-1]
    relaxation = choose_relaxation(options, finest.height, finest.width)
    scratch = scratch_planes(finest.height, finest.width, channels, finest.alpha, finest.spacing, relaxation)
    solver = math.ceil((flow + 6 * planes + flow + float32 * scratch) * areas[-1])
    own_start = options.cc_initialization or options.gnc_schedule is not None
    descending = descend.frame_bytes(plan_descents(plan, options)[0], channels, own_start)
    # or the flow is brought to full size
    solving = held * pixels + pyramid + max(solver, descending, flow * (areas[-1] + pixels))
    filtering = 0 if own_planes else 2 * planes * pixels
    finishing = (raw + max(flow, planes)) * pixels
    if options.cc_initialization:
        return staging * pixels + max(solving, filtering, flow * pixels + finishing)
    recorded = planes if own_planes else raw  # the copy that a recording reads; it keeps what it takes
    return (staging + recorded) * pixels + max(solving, filtering) + finishing
