"""A batch of frames: what is asked of an executor, and what comes back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.cpu.field import FLOW_STEPS, add_flows
from flowreg_gpu.options import FRAME_DTYPES

__all__ = [
    "FLAGS",
    "STATISTICS",
    "Batch",
    "BatchResult",
    "FlowField",
    "FlowMean",
    "Progress",
    "check_warpable",
    "find_nonfinite",
    "unflagged",
]

Progress = Callable[[int], None]


#: Columns of the array `statistics`: displacements and divergence in pixels and pixels per pixel, correlations with
#: the raw reference, and flags: 1 where the frame was constant, and where its flow had left the frame and diverged.
STATISTICS = (
    "mean_disp",
    "max_disp",
    "mean_div",
    "mean_translation",
    "translation_x",
    "translation_y",
    "correlation_before",
    "correlation_after",
    "constant",
    "diverged",
)


#: The columns that are flags.
FLAGS = slice(STATISTICS.index("constant"), None)


def unflagged(statistics: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which frames have a flow of their own, (n,), by their statistics (n, 10): those without any flag."""
    own: NDArray[np.bool_] = np.all(statistics[:, FLAGS] == 0, axis=1)
    return own


class FlowField:
    """What the flows of a recording are at every pixel, summed as whole numbers, so that their order does not matter.

    Flagged frames are left out: their flow is zero, so that the sums may hold it, and they do not count.

    Attributes
    ----------
    count : int
        Frames.
    sums : (4, H, W) int64 or None
        Of u, of v and of u^2 + v^2, each of u and v rounded to 1/256 px; and the frames whose registered pixel comes
        from outside the frame. None where nothing was added.
    """

    def __init__(self) -> None:
        self.count = 0
        self.sums: NDArray[np.int64] | None = None

    def add(self, flows: NDArray[np.float32], statistics: NDArray[np.float64]) -> None:
        """Add flows (n, H, W, 2) of frames with these statistics (n, 10)."""
        self.sums = np.zeros((4, *flows.shape[1:3]), np.int64) if self.sums is None else self.sums
        add_flows(flows, self.sums)
        self.count += int(np.count_nonzero(unflagged(statistics)))

    def replace(self, old: FlowField, new: FlowField) -> None:
        """Take what was added for some frames away, and add something else for as many."""
        assert self.sums is not None
        for field, sign in ((old, -1), (new, 1)):
            assert field.sums is not None
            self.sums += sign * field.sums
            self.count += sign * field.count

    def copy(self) -> FlowField:
        """The field as it is now."""
        copied = FlowField()
        copied.count, copied.sums = self.count, None if self.sums is None else self.sums.copy()
        return copied

    @property
    def mean(self) -> NDArray[np.float32]:
        """Mean flow (2, H, W), pixels; zero where no frame counts."""
        return (self._sums[:2] / (FLOW_STEPS * max(self.count, 1))).astype(np.float32)

    @property
    def deviation(self) -> NDArray[np.float32]:
        """Standard deviation of the flow (H, W) about its mean: root mean square of the distance, pixels."""
        count = max(self.count, 1)
        mean = self._sums[:2] / count
        variance = self._sums[2] / count - (mean**2).sum(axis=0)
        deviation: NDArray[np.float32] = (np.sqrt(np.maximum(variance, 0)) / FLOW_STEPS).astype(np.float32)
        return deviation

    @property
    def outside(self) -> NDArray[np.int64]:
        """Frames (H, W) whose registered pixel comes from outside the frame."""
        outside: NDArray[np.int64] = self._sums[3]
        return outside

    @property
    def _sums(self) -> NDArray[np.int64]:
        if self.sums is None:
            raise ValueError("the flow field is empty: no frame was added")
        return self.sums


class FlowMean:
    """Mean of the flows that batches hand in, summed frame by frame in float64, so that the batch does not matter.

    Flagged frames are left out: their flow is zero, so that the sum may hold it, and they do not count.
    """

    def __init__(self) -> None:
        self.count = 0
        self.total: NDArray[np.float64] | None = None

    def add(self, flows: NDArray[np.float32], statistics: NDArray[np.float64]) -> None:
        """Add flows (n, H, W, 2) of frames with these statistics (n, 10)."""
        for flow in np.moveaxis(flows, -1, 1):
            self.total = flow.astype(np.float64) if self.total is None else self.total + flow
        self.count += int(np.count_nonzero(unflagged(statistics)))

    def copy(self) -> FlowMean:
        """The mean as it is now."""
        copied = FlowMean()
        copied.count, copied.total = self.count, self.total  # add() makes a new array
        return copied

    def planes(self, otherwise: NDArray[np.float32]) -> NDArray[np.float32]:
        """Mean (2, H, W), or another flow where no frame counts."""
        return (self.total / self.count).astype(np.float32) if self.total is not None and self.count else otherwise


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """Frames to register together, and what is wanted of them.

    Parameters
    ----------
    frames : (n + 2 halo, H, W, C)
        Raw frames, with the frames before and after that the job's temporal filter needs.
    start : (2, H, W) float32 or None
        Start flow of all frames, pixels; None where they have a flow of their own.
    halo : int
        Frames before and after those to register; that of the job.
    planes : (n, C, H, W) float32 or None
        Preprocessed frames, where the job has no preprocessing.
    flow : (n, 2, H, W) float32 or None
        Flow of every frame, pixels, where the job is to warp only; it is not returned.
    keep_flow : bool
        False lets the executor leave the flow out of its result.
    mean, averaged : FlowMean or None, int
        Where to add the flows of the last `averaged` frames; those of flagged ones do not count.
    field : FlowField or None
        Where to add the flows of all frames that are estimated.
    progress : callable or None
        Called with the number of newly finished frames, also while the batch runs.
    """

    frames: NDArray[Any]
    start: NDArray[np.float32] | None
    halo: int = 0
    planes: NDArray[np.float32] | None = None
    flow: NDArray[np.float32] | None = None
    keep_flow: bool = True
    mean: FlowMean | None = None
    averaged: int = 0
    field: FlowField | None = None
    progress: Progress | None = None

    @property
    def count(self) -> int:
        """Frames to register."""
        return len(self.frames) - 2 * self.halo

    @property
    def flows(self) -> int:
        """Frames, the last ones, whose flow is wanted: by the caller, for the field, or for the mean."""
        if (self.keep_flow or self.field is not None) and self.flow is None:
            return self.count
        return 0 if self.mean is None else self.averaged

    def inputs(self, first: int, stop: int) -> list[NDArray[Any]]:
        """Raw frames with halo, and planes or flow where there are any, that frames `first` to `stop` need."""
        own = [array[first:stop] for array in (self.planes, self.flow) if array is not None]
        return [self.frames[first : stop + 2 * self.halo], *own]

    def part(self, first: int, stop: int, progress: Progress | None) -> Batch:
        """The frames from `first` to `stop`, with those of their flows that are averaged, and another callback."""
        frames = self.frames[first : stop + 2 * self.halo]
        planes, flow = (None if array is None else array[first:stop] for array in (self.planes, self.flow))
        averaged = max(stop - max(first, self.count - self.averaged), 0)
        return dataclasses.replace(self, frames=frames, planes=planes, flow=flow, averaged=averaged, progress=progress)


class BatchResult(NamedTuple):
    """Result of a batch; the arrays are valid until the executor's next batch, or the one after it (`keeps_results`).

    `registered` (n, H, W, C) has the frames' dtype, `flow` (n, H, W, 2) is float32 in pixels and may be None where it
    was not asked for, `statistics` (n, 10) float64 has the columns `STATISTICS`.
    """

    registered: NDArray[Any]
    flow: NDArray[np.float32] | None
    statistics: NDArray[np.float64]


def check_warpable(dtype: np.dtype[Any], name: str) -> None:
    """Raise ValueError for frames whose values the warp cannot keep: float32 arithmetic holds 24 bits."""
    if dtype.newbyteorder("=") not in FRAME_DTYPES:
        allowed = ", ".join(kind.name for kind in FRAME_DTYPES)
        raise ValueError(f"{name} has dtype {dtype}, which is not supported, expected one of {allowed}")


def find_nonfinite(frames: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Where frames hold NaN or infinite pixels, which integers cannot; None where they hold none."""
    if frames.dtype.kind != "f":
        return None
    bad: NDArray[np.bool_] = ~np.isfinite(frames)
    return bad if bad.any() else None
