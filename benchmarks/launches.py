"""Kernel launches of a registration, timed one by one on a GPU; `flowreg_gpu.benchmark.schedule` counts them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flowreg_gpu.benchmark.schedule import Launch
from flowreg_gpu.cuda.device import Device

Events = tuple[Any, Any]  # CUDA events before and after a launch


class LaunchTimer:
    """Puts events around launches on the compute stream, without a stop of the host between them.

    A GPU that waits for its launches would count the wait as the kernel's time. So the compute stream is held, every
    `HELD` launches, by a kernel that spins until the host has queued the next ones: fewer than the queue takes.

    Attributes
    ----------
    groups, late : int
        Groups of `HELD` launches, and those that the host had not queued when the spinning ended.
    """

    HELD = 64
    CYCLES = 20_000_000  # 10 ms at 2 GHz; a host needs some 40 us to queue a launch and its events
    SPIN = r"""
    extern "C" __global__ void spin(long long cycles) {
      long long start = clock64();
      while (clock64() - start < cycles) {}
    }
    """

    def __init__(self, device: Device) -> None:
        import cupy

        self._cuda, self._device = cupy.cuda, device
        self._spin = cupy.RawKernel(self.SPIN, "spin")
        self._stream = device.stream()
        self.restart()

    def restart(self) -> None:
        """Begin with a new group, and count anew."""
        self._timed = self.groups = self.late = 0
        self._spun: Any = None

    def __call__(self, launch: Callable[[], Any]) -> Events:
        if self._timed % self.HELD == 0:
            self._hold()
        self._timed += 1
        before, after = self._cuda.Event(), self._cuda.Event()
        self._device.record(before)
        launch()
        self._device.record(after)
        return before, after

    def _hold(self) -> None:
        self.groups += 1
        self.late += self._spun is not None and self._spun.done
        finished, self._spun = self._cuda.Event(), self._cuda.Event()
        self._device.record(finished)
        self._device.wait(finished, self._stream)
        with self._stream:
            self._spin((1,), (1,), (np.int64(self.CYCLES),))
        self._device.record(self._spun, self._stream)
        self._device.wait(self._spun)

    def seconds(self, launch: Launch) -> float:
        """Time of a launch, once the device is synchronised."""
        assert launch.events is not None
        return 1e-3 * float(self._cuda.get_elapsed_time(*launch.events))


def summarise(launches: Sequence[Launch], frames: int, timer: LaunchTimer | None = None) -> list[dict[str, Any]]:
    """One row per kernel, the longest (without times: the one of most bytes) first.

    `largest_rate` is the rate of the launches with the most bytes alone, those at full resolution: the small levels
    of the pyramid are bound by the launch, not by the memory.
    """
    rows = []
    for kernel in dict.fromkeys(launch.kernel for launch in launches):
        own = [launch for launch in launches if launch.kernel == kernel]
        nbytes = sum(launch.nbytes for launch in own)
        row = {"kernel": kernel, "launches": len(own), "bytes_per_frame": nbytes / frames}
        if timer is not None:
            most = max(launch.nbytes for launch in own)
            seconds = sum(map(timer.seconds, own))
            largest = statistics.median(timer.seconds(launch) for launch in own if launch.nbytes == most)
            row |= {"seconds_per_frame": seconds / frames, "rate": nbytes / seconds, "largest_rate": most / largest}
        rows.append(row)
    return sorted(rows, key=lambda row: -row.get("seconds_per_frame", row["bytes_per_frame"]))
