"""What a batch costs a GPU, counted without one: launches, bytes and solver updates, from the code's own levels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.cuda.launch import upload
from flowreg_gpu.cuda.paper import PaperDevice
from flowreg_gpu.engine.cuda_task import DeviceTask
from flowreg_gpu.engine.job import Job
from flowreg_gpu.engine.memory import blank_job
from flowreg_gpu.model.plan import plan_levels
from flowreg_gpu.model.relaxation import choose_relaxation, edge_weights, sweep_equivalents
from flowreg_gpu.options import Options

__all__ = ["Launch", "LaunchLog", "Schedule", "computation", "count_schedule"]


class Schedule(NamedTuple):
    """Launches of a batch; per frame of it, bytes of the buffers of all launches, and pixels times sweeps solved."""

    batch: int
    launches: int
    bytes_per_frame: float
    updates_per_frame: int


def count_schedule(height: int, width: int, channels: int, options: Options, batch: int) -> Schedule:
    """Count what the registration of a batch of uint16 frames queues, but for what is done once, for the reference.

    The reference counts as structured throughout, where that matters to the solver.
    """
    log, job = LaunchLog(PaperDevice()), blank_job(height, width, channels, options)
    task = DeviceTask(log, job, graphs=False)
    frames, start = log.empty((batch, height, width, channels), np.uint16), log.empty((1, 2, height, width), np.float32)
    log.launches.clear()  # those of the reference
    task.run(frames, start)
    nbytes = sum(launch.nbytes for launch in log.launches)
    updates = 0.0
    for level in plan_levels(height, width, job.options).levels:
        size, edge = (level.height, level.width), edge_weights(level.alpha, level.spacing)
        updates += level.height * level.width * sweep_equivalents(*size, edge, choose_relaxation(job.options, *size))
    return Schedule(batch, len(log.launches), nbytes / batch, round(updates))


def computation(
    device: Any, frames: NDArray[np.uint16], reference: NDArray[np.float32], options: Options, graphs: bool = True
) -> Callable[[], Any]:
    """A call that queues the registration of frames (T, H, W, C) that lie on the device already."""
    task = DeviceTask(device, Job.from_raw(options=options, reference=reference), graphs)
    start = upload(device, np.zeros((1, 2, *reference.shape[:2]), np.float32))
    moving = upload(device, frames)
    return lambda: task.run(moving, start)


class Launch(NamedTuple):
    """One launch: name expression, bytes of the distinct buffers among its arguments, and events if it was timed.

    Every buffer counts once, as if it were either read or written in full. A buffer that is read and written moves
    twice that, and one whose lines still lie in the L2 cache moves nothing: the rate that follows is an estimate.
    """

    kernel: str
    nbytes: int
    events: Any


class LaunchLog:
    """A device that notes every launch; everything else is the device's own.

    Parameters
    ----------
    device : Device
    timer : callable or None
        Makes a launch and returns the events around it.
    """

    def __init__(self, device: Any, timer: Callable[[Callable[[], Any]], Any] | None = None) -> None:
        self._device = device
        self._timer = timer
        self.launches: list[Launch] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def _note(self, kernel: str, nbytes: int, launch: Callable[[], Any]) -> None:
        events = None
        if self._timer is None:
            launch()
        else:
            events = self._timer(launch)
        self.launches.append(Launch(kernel, nbytes, events))

    def kernel(self, file: str, expression: str) -> Callable[..., None]:
        """The device's kernel, whose launches are noted."""
        kernel = self._device.kernel(file, expression)

        def launch(grid: Any, block: Any, args: Any, shared_mem: int = 0, stream: Any = None) -> None:
            buffers = [argument for argument in args if not isinstance(argument, np.generic | np.ndarray)]
            nbytes = sum({id(buffer): buffer.nbytes for buffer in buffers}.values())
            self._note(expression, nbytes, lambda: kernel(grid, block, args, shared_mem, stream))

        return launch

    def fft2(self, images: Any, inverse: bool = False) -> Any:
        """The device's transform, noted as a launch."""
        transformed: list[Any] = []
        self._note("cuFFT", 2 * images.nbytes, lambda: transformed.append(self._device.fft2(images, inverse)))
        return transformed[0]
