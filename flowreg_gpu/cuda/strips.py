"""How a level is relaxed in strips of columns: the sweeps of each launch, the strip's width, its threads and memory.

The kernel is relax_strips in kernels/solver.cu; what its threads do is in kernels/strips.cuh.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from flowreg_gpu.cuda.launch import CHANNELS, GROUP
from flowreg_gpu.cuda.structs import PSI, SMOOTHNESS, struct
from flowreg_gpu.model.relaxation import Relaxation

__all__ = [
    "LARGEST_HALO",
    "NARROWEST_STRIP",
    "SIZES",
    "STRIP_PLAN",
    "Run",
    "plan_strips",
    "schedule_sweeps",
    "widest_strip",
]

NARROWEST_STRIP = 16  # pixels without halo; below, the halo is all the work
LARGEST_HALO = 0.25  # of a strip's width without it, where there is a choice: neighbours both load and relax the halo

_INTEGERS = (
    *("height", "width", "strip_height", "strip_width", "pitch", "is_first", "first", "more", "lag", "half_sweeps"),
    *("refreshes", "increment_rows", "fixed_rows", "colour_threads", "first_loading"),
)
STRIP_PLAN = struct(
    **dict.fromkeys(_INTEGERS, np.int32),
    omega=np.float32,
    flow_stride=np.int64,
    smoothness=SMOOTHNESS,
    first_psi=PSI,
    psi=PSI,
)


def fixed_floats(channels: int) -> int:
    """Floats of a pixel that a refresh reads: tensor and weight of each channel, Laplacian of the flow."""
    return 7 * channels + 2


def loaded_columns(channels: int) -> int:
    """Columns that a thread loads; more would not fit its registers."""
    return 2 if channels <= 2 else 1


SIZES = {
    f"{name}<{channels}>": of(channels)
    for channels in CHANNELS
    for name, of in (("FIXED_FLOATS", fixed_floats), ("LOADED_COLUMNS", loaded_columns))
}


class Run(NamedTuple):
    """Sweeps of one launch: `first` until psi is refreshed, then `more`. `unweighted`: psi is 1 in the first ones."""

    first: int
    more: int
    unweighted: bool

    @property
    def half_sweeps(self) -> int:
        """Sweeps of one colour."""
        return 2 * (self.first + self.more)

    @property
    def increment_rows(self) -> int:
        """Rows of the ring of increments: those that the half-sweeps are at."""
        return 2 * self.half_sweeps + 2

    def refreshes(self, lag: int) -> int:
        """Refreshes of psi, the start with psi = 1 among them."""
        return 1 + -(-self.more // lag)

    def fixed_rows(self, lag: int) -> int:
        """Rows of the ring of what a refresh reads: those up to the last refresh."""
        refreshes = self.refreshes(lag)
        last_refresh = 2 * (self.first + (refreshes - 2) * lag) if refreshes > 1 else 0
        return 2 * last_refresh + 2

    def floats(self, channels: int, lag: int) -> int:
        """Floats that a strip needs for each column; see the kernel."""
        coefficient_rows = 2 * self.half_sweeps
        return 2 * self.increment_rows + 5 * coefficient_rows + fixed_floats(channels) * self.fixed_rows(lag)

    def colour_threads(self, columns: int) -> int:
        """Threads that relax one colour of a strip with its halo, in whole warps as all others; see the kernel."""
        return _whole_warps(-(-columns // 8) * (self.first + self.more))

    def first_loading(self, columns: int, lag: int) -> int:
        """Number of the first thread that loads, behind those that relax and those that refresh."""
        return 2 * self.colour_threads(columns) + _whole_warps(2 * -(-columns // 8) * self.refreshes(lag))

    def threads(self, columns: int, channels: int, lag: int) -> int:
        """Threads that a strip with its halo needs."""
        return self.first_loading(columns, lag) + _whole_warps(-(-columns // loaded_columns(channels)))

    def most_columns(self, channels: int, lag: int, shared_memory: int) -> int:
        """Columns of the widest strip with its halo."""
        columns = shared_memory // (4 * self.floats(channels, lag)) // 8 * 8
        while self.threads(columns, channels, lag) > GROUP[0]:
            columns -= 8
        return columns

    def pitch(self, columns: int, channels: int, lag: int, shared_memory: int) -> int:
        """Floats of a row: quads of both colours, four by four where that costs little.

        Neighbouring threads of different half-sweeps then seldom ask for the same banks of shared memory.
        """
        pitch, wide = -(-columns // 8) * 8, -(-columns // 32) * 32
        fits = 4 * self.floats(channels, lag) * wide <= shared_memory
        costs = self.threads(wide, channels, lag) - self.threads(pitch, channels, lag)
        return wide if fits and costs == 0 else pitch


def _whole_warps(threads: int) -> int:
    return -(-threads // 32) * 32


def schedule_sweeps(relaxation: Relaxation, refreshes: int) -> list[Run]:
    """All sweeps, with up to so many refreshes of psi in a launch; the start with psi = 1 counts as one."""
    sweeps, lag = relaxation.sweeps, relaxation.lag
    runs, done = [], 0
    while done < sweeps:
        unweighted = done == 0 and lag > 1
        first = min(lag - unweighted, sweeps - done)
        more = min((refreshes - 1) * lag, sweeps - done - first)
        runs.append(Run(first, more, unweighted))
        done += first + more
    return runs


def widest_strip(width: int, channels: int, lag: int, schedule: list[Run], shared_memory: int) -> int:
    """Columns of a strip without its halo: an even number, or all."""
    widest = width
    for run in schedule:
        columns = run.most_columns(channels, lag, shared_memory)
        if columns < width:
            widest = min(widest, columns - 2 * run.half_sweeps)
    return widest


def plan_strips(width: int, channels: int, relaxation: Relaxation, shared_memory: int) -> tuple[int, list[Run]]:
    """Columns of a strip, and the launches: as few as the halo allows."""
    refreshes = -(-relaxation.sweeps // relaxation.lag) + 1
    while True:
        schedule = schedule_sweeps(relaxation, refreshes)
        widest = widest_strip(width, channels, relaxation.lag, schedule, shared_memory)
        if widest >= width:
            return width, schedule
        if widest >= NARROWEST_STRIP:
            strip = -(-width // -(-width // widest) // 2) * 2
            halo = 2 * max(run.half_sweeps for run in schedule)
            if refreshes == 1 or halo <= LARGEST_HALO * strip:
                return strip, schedule
        refreshes -= 1
