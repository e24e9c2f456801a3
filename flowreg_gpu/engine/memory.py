"""How much of a device's memory a frame takes, and how many frames it takes at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable

import numpy as np
from numpy.typing import DTypeLike

from flowreg_gpu.cuda.device import Buffer
from flowreg_gpu.cuda.flow import interleave
from flowreg_gpu.cuda.paper import PaperDevice
from flowreg_gpu.cuda.staging import SLOTS
from flowreg_gpu.engine.cuda_task import DeviceWarp, device_task
from flowreg_gpu.engine.job import Job, WarpJob
from flowreg_gpu.model.preprocessing import Preprocessing, channel_weights
from flowreg_gpu.model.relaxation import choose_solver
from flowreg_gpu.options import Options

__all__ = ["LARGEST_BATCH", "MEMORY_FRACTION", "blank_job", "device_batch", "frame_bytes", "memory_key"]

#: Part of the free memory that the frames on the device may take. The rest is for what all frames share (reference and
#: weights with their pyramids, tables), for the work areas of cuFFT, for the gaps that a pool leaves between blocks of
#: different sizes, and for other programs. Too small a part means smaller batches, too large a part means a batch that
#: is begun again with half as many frames.
MEMORY_FRACTION = 0.6
#: Frames beyond which the time of the launches, some 50 a batch, hardly counts. On GPUs with more multiprocessors a
#: batch has a frame for each.
LARGEST_BATCH = 128

_FEWER, _MORE = 4, 8  # frames of the two batches whose difference is what a frame takes: any would do
_BATCHES = 3  # that follow each other: the first is plain, the second captured as a graph, the third replayed


def device_batch(free_memory: int, bytes_per_frame: int, multiprocessors: int) -> int:
    """Frames that the device takes at a time: one to each of its multiprocessors, or to some, or several to all."""
    frames = max(1, min(int(MEMORY_FRACTION * free_memory) // bytes_per_frame, max(LARGEST_BATCH, multiprocessors)))
    return max(frames // multiprocessors * multiprocessors, min(frames, multiprocessors))


def frame_bytes(job: WarpJob, dtype: DTypeLike, device: PaperDevice | None = None) -> int:
    """Device memory that each frame of a batch takes while batches follow each other, in bytes.

    The job's task runs on paper, once for some frames and once for more: what they add to the peak is theirs. That
    holds staging, the results of the batch before, which are on their way to the host, and what a captured graph keeps.

    Parameters
    ----------
    job : Job or WarpJob
        Of which the sizes and options matter alone.
    dtype : dtype
        Of the raw frames.
    device : PaperDevice, optional
        With the shared memory and the multiprocessors of the device that it stands for.
    """
    device = PaperDevice() if device is None else device
    task = device_task(device, job)
    fewer, more = (_peak_bytes(device, task, job, frames, dtype) for frames in (_FEWER, _MORE))
    return -(-(more - fewer) // (_MORE - _FEWER))


def memory_key(job: WarpJob, dtype: DTypeLike) -> tuple[Hashable, ...]:
    """What `frame_bytes` depends on: jobs with the same key, on one device, have frames of the same size.

    pyflowreg's executors begin a recording with every batch, and each count takes ten milliseconds.
    """
    if not isinstance(job, Job):
        return job.reference.shape, np.dtype(dtype)
    names = (field.name for field in dataclasses.fields(job.options) if field.name != "weight")  # shared by all frames
    filtering = job.preprocessing
    taps = () if filtering is None else tuple(table.index.shape for pair in filtering.spatial for table in pair)
    options = tuple(getattr(job.options, name) for name in names)
    return job.reference.shape, np.dtype(dtype), filtering is None, job.halo, taps, options


def blank_job(height: int, width: int, channels: int, options: Options) -> Job:
    """A job for raw frames of a size, with an empty reference that counts as structured: to count, not to compute."""
    weight, mean_weight = channel_weights(options, height, width, channels)
    minimum, scale = np.zeros((2, channels), np.float32)
    return Job(
        options=choose_solver(options),
        reference=np.zeros((height, width, channels), np.float32),
        reference_planes=np.zeros((channels, height, width), np.float32),
        preprocessing=Preprocessing.build(minimum, scale, options.sigma_per_channel(channels), height, width),
        weight=weight,
        mean_weight=mean_weight,
    )


def _peak_bytes(device: PaperDevice, task: DeviceWarp, job: WarpJob, frames: int, dtype: DTypeLike) -> int:
    """Most bytes in use at a time while batches of so many frames go through the task, as `DeviceStream` sends them."""
    height, width, channels = job.reference.shape
    task.forget()
    device.peak_bytes = device.live_bytes
    start = device.empty((1, 2, height, width), np.float32)
    inputs = [((frames + 2 * job.halo, height, width, channels), dtype)]
    if not isinstance(job, Job):
        inputs.append(((frames, 2, height, width), np.float32))
    elif job.preprocessing is None:
        inputs.append(((frames, channels, height, width), np.float32))
    staging = [[device.empty(*item) for item in inputs] for _ in range(SLOTS)]

    def registered(raw: Buffer, *own: Buffer) -> list[Buffer]:
        result = task.run(raw, start, *own)
        flow = [interleave(device, result.flow)] if isinstance(job, Job) else []
        return [result.registered, result.statistics, *flow]

    downloads: list[Buffer] = []
    for _ in range(_BATCHES):
        downloads = registered(*staging[0])  # those of the batch before are in use until these are queued
    peak = device.peak_bytes
    del downloads
    return peak
