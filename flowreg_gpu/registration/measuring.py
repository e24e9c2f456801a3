"""Measures of a registration that is complete, from the frames before and after it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu import cpu
from flowreg_gpu.cpu.preprocess import preprocess
from flowreg_gpu.engine.job import Job
from flowreg_gpu.io import FrameReader
from flowreg_gpu.model.estimator import FlowEstimator
from flowreg_gpu.quality.correlation import leave_one_out
from flowreg_gpu.quality.crispness import crispness
from flowreg_gpu.quality.measures import BeforeAfter, Quality
from flowreg_gpu.quality.principal import principal_extremes
from flowreg_gpu.quality.residual import displacement_figures
from flowreg_gpu.registration.bad_frames import replace_nonfinite
from flowreg_gpu.registration.jumps import SAMPLES, JumpTest
from flowreg_gpu.registration.verification import spread_frames

__all__ = ["FramePair", "measure_quality", "read_pairs", "sample_count", "sample_numbers"]

# Frames that are measured: of a recording, one in so many, so that they cost little beside it, and some of a short one;
# but at most what holds so many values before and after, or so few frames where frames are large.
ONE_IN, SOME_FRAMES, MOST_FRAMES, FEW_FRAMES, MOST_VALUES = 16, 16, 128, 8, 2**22
# Principal components whose motion is measured, and registered frames that are registered again.
COMPONENTS, AGAIN = 5, 8
# Finest level for motion that is left: noise makes no motion at a fourth of the resolution.
COARSE_LEVEL = 6


class FramePair(NamedTuple):
    """Frame `number` (H, W, C) before and after registration."""

    number: int
    before: NDArray[Any]
    after: NDArray[Any]


def sample_count(n_frames: int, values: int) -> int:
    """Frames that are measured of so many, with so many values each."""
    most = int(np.clip(MOST_VALUES // values, FEW_FRAMES, MOST_FRAMES))
    return min(max(n_frames // ONE_IN, SOME_FRAMES), most, n_frames)


def sample_numbers(used: NDArray[np.bool_], values: int) -> NDArray[np.intp]:
    """Numbers of the frames that are measured, among those that are used (T,), for so many values a frame."""
    good = np.flatnonzero(used)
    return good[spread_frames(len(good), sample_count(len(good), values))]


def read_pairs(original: FrameReader, registered: FrameReader, numbers: NDArray[np.intp]) -> Iterator[FramePair]:
    """Frames before and after registration, one after the other."""
    for number in map(int, numbers):
        yield FramePair(number, original.read(number, number + 1)[0], registered.read(number, number + 1)[0])


def measure_quality(
    pairs: Sequence[FramePair], job: Job | None = None, *, from_reference: float | None = None, motion: bool = False
) -> Quality:
    """Measure some frames before and after registration.

    Parameters
    ----------
    pairs : sequence of FramePair
        At least one.
    job : Job or None
        Of the run; None where only the frames are known.
    from_reference : float or None
        See `Quality`.
    motion : bool
        Whether the motion that is left is measured, too, where there is a job; the time of some twenty frames.
    """
    numbers = np.array([pair.number for pair in pairs])
    before, after = (np.stack([getattr(pair, name) for pair in pairs]) for name in ("before", "after"))
    if job is not None:
        for frames in (before, after):  # as the run does
            replace_nonfinite(frames, job.reference, halo=0)
    weights = None if job is None else job.mean_weight
    mean_before, mean_after = (frames.mean(axis=0, dtype=np.float64).astype(np.float32) for frames in (before, after))
    quality = Quality(
        numbers,
        mean_before,
        mean_after,
        leave_one_out(before, weights),
        leave_one_out(after, weights),
        BeforeAfter(crispness(mean_before), crispness(mean_after)),
        from_reference=from_reference,
    )
    if job is None:
        return quality
    tested = spread_frames(len(pairs), min(SAMPLES, len(pairs)))
    displaced = numbers[tested][_displaced(job, before[tested], after[tested])]
    quality = dataclasses.replace(quality, tested=len(tested), displaced=displaced)
    if not motion:
        return quality
    left = _Motion(job)
    return dataclasses.replace(
        quality,
        component_motion=BeforeAfter(left.of_components(before), left.of_components(after)),
        residual_motion=left.left(after),
    )


def _displaced(job: Job, before: NDArray[Any], after: NDArray[Any]) -> NDArray[np.bool_]:
    """Which frames (n, H, W, C) lie better where they are only moved than registered."""
    assert job.preprocessing is not None
    test, filters = JumpTest(job), job.preprocessing.without_time()
    pairs = ((preprocess(frame[None], filters) for frame in pair) for pair in zip(before, after, strict=True))
    return np.array([test.is_missed(*planes) for planes in pairs], np.bool_)


class _Motion:
    """Motion that is left in a movie, by optical flow at a coarse scale; lengths in pixels."""

    def __init__(self, job: Job) -> None:
        assert job.preprocessing is not None
        finest = max(job.options.finest_level, COARSE_LEVEL)
        self._options = job.options.replace(min_level=finest, cc_initialization=False)
        self._job, self._filters = job, job.preprocessing.without_time()
        self._channel = int(np.argmax(job.mean_weight))

    def of_components(self, frames: NDArray[Any]) -> float:
        """Largest mean displacement between extremes of the principal components of frames (n, H, W, C)."""
        channel = self._channel
        extremes = principal_extremes(frames[..., channel], COMPONENTS)
        options = self._options.replace(weight=None)
        lengths = [0.0]
        for low, high in zip(extremes.low, extremes.high, strict=True):
            job = Job.from_raw(options=options, reference=high[..., None])
            assert job.preprocessing is not None
            flow = _flow(job, preprocess(low[None, ..., None], job.preprocessing.without_time()))
            lengths.append(float(np.hypot(*flow).mean()))
        return max(lengths)

    def left(self, frames: NDArray[Any]) -> tuple[float, float]:
        """Median and 99th percentile of the displacement of some registered frames, registered again."""
        job = Job.from_preprocessed(
            options=self._options, reference=self._job.reference, reference_planes=self._job.reference_planes
        )
        chosen = frames[spread_frames(len(frames), min(AGAIN, len(frames)))]
        flows = [_flow(job, preprocess(frame[None], self._filters)) for frame in chosen]
        return displacement_figures(np.stack(flows))


def _flow(job: Job, planes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Flow (2, H, W) of filtered planes (C, H, W) to the job's reference."""
    height, width, _ = job.reference.shape
    estimator = FlowEstimator(cpu, job.reference_planes, job.weight, job.mean_weight, height, width, job.options)
    flow: NDArray[np.float32] = estimator.flow(planes, cpu.zero_flow(planes))
    return flow
