"""Frames that jump further than the pyramid reaches: are they to be aligned rigidly before the flow?

That is decided once a recording, by frames spread over it. Each of them is compared with the reference as it lies, and
as phase correlation would move it. Where the latter is far and clearly better, it is registered with the alignment and
without, and only what the alignment makes clearly better counts: most motion is found without.

Frames that jump between those that were looked at are found in the run: a frame that correlates far less than usual is
tested in the same way, registered once more with the alignment, and the better result is kept. That is a function of
the frame, its start flow and what was measured before the run; so neither batches nor workers nor an interruption
matter.

What counts is the correlation of 16 x 16 tiles of the filtered images. A tile knows no vignette, and an active cell is
in few of them. Pixels from outside the frame are the frame's own here: where they are the reference's, as in registered
frames, the correlation is best where the flow leads out of the frame.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.cpu import phase_shift, prepare_alignment, resize, warp
from flowreg_gpu.cpu.preprocess import preprocess
from flowreg_gpu.cpu.statistics import correlation
from flowreg_gpu.cpu.tiles import tile_correlations, tile_grid
from flowreg_gpu.engine.batch import STATISTICS, Batch, BatchResult, FlowField, Progress, unflagged
from flowreg_gpu.engine.job import Job
from flowreg_gpu.executors import BaseExecutor, SequentialExecutor
from flowreg_gpu.model.relaxation import STIFFNESS
from flowreg_gpu.model.resampling import resampling_tables
from flowreg_gpu.registration.verification import spread_frames

__all__ = ["SAMPLES", "AlignmentChoice", "JumpTest", "SecondAttempt", "choose_alignment"]

#: Frames that are looked at, spread over the recording.
SAMPLES = 32
Read = Callable[[int], NDArray[Any] | None]
# Those with the longest jumps that are registered with the alignment and without, and frames that say how well frames
# of the recording correlate once they are registered.
TRIALS, USUAL = 3, 5
# A jump is at least so long, in pixels; the pyramid finds shorter ones in frames of any size.
LEAST_JUMP = 5.0
# Largest side of the images for that, in pixels: with more, no more jumps are found, but in four times the time.
IMAGE_SIDE = 128
# One image is clearly better than another where the tiles correlate so much better on average, by so many standard
# errors; fewer tiles say nothing. Of 2 200 frames of noise or of another scene, moved to where phase correlation finds
# them most alike, none reaches both; 1 in 80 reaches three standard errors.
GAIN, CERTAIN, LEAST_TILES = 0.1, 5.0, 10
# A registered frame is compared, and not moved any more; so it needs fewer standard errors.
CERTAIN_MISSED = 3.0
# Frames that correlate less than this part of what is usual are tested in the run. A test costs little.
SUSPICIOUS = 0.85
# `alpha` where it is chosen by the recording later on, for gradient constancy.
TRIAL_ALPHA = 4.0


@dataclasses.dataclass(frozen=True)
class AlignmentChoice:
    """Whether the frames of a recording are aligned rigidly before the flow, by what it shows.

    Attributes
    ----------
    aligned : bool
    longest : float
        Of the jumps, in the frames that were looked at, that are found with the alignment only; 0 where there is none.
    frames : tuple of int
        Numbers of those among the frames that were registered in both ways.
    suspicious : float or None
        Correlation with the raw reference below which a registered frame may have jumped; None where none is tested in
        the run: all are aligned, all have been looked at, or the frames are too small to tell.
    """

    aligned: bool
    longest: float = 0.0
    frames: tuple[int, ...] = ()
    suspicious: float | None = None

    def __str__(self) -> str:
        if not self.aligned:
            return "frames do not jump: not aligned rigidly first"
        return f"frames jump by up to {self.longest:.0f} px: aligned rigidly first"


def is_clearly_better(gain: NDArray[np.float64], certain: float = CERTAIN) -> bool:
    """Whether tiles (n,) correlate clearly better in one image than in another, by their differences."""
    if len(gain) < LEAST_TILES:
        return False
    mean, error = gain.mean(), gain.std(ddof=1) / math.sqrt(len(gain))
    return bool(mean >= max(GAIN, certain * error))


class JumpTest:
    """Tells whether frames lie far from where they are expected, by phase correlation, and where.

    Parameters
    ----------
    job : Job
        Its reference and channel weights are used.
    """

    def __init__(self, job: Job) -> None:
        _, height, width = job.reference_planes.shape
        self._weight = job.mean_weight
        self._tables = resampling_tables(height, width, min(height, IMAGE_SIDE), min(width, IMAGE_SIDE))
        # whole pixels of these images do; what is found serves the test alone
        self._aligner = prepare_alignment(job.reference_planes, self._weight, self._tables, 1)
        self._reference = self._image(job.reference_planes)
        self._ones = np.ones(self._reference.shape[1:], np.float32)
        self._unmoved = np.zeros((2, *self._ones.shape), np.float32)

    def _image(self, planes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Weighted mean of planes (C, H, W), reduced: (1, h, w)."""
        mean = np.einsum("c,chw->hw", self._weight.astype(np.float64), planes).astype(np.float32)
        return resize(mean[None], self._tables)

    def jump(self, planes: NDArray[np.float32], start: NDArray[np.float32]) -> float:
        """Length in pixels of the jump of filtered planes (C, H, W) from a start flow (2, H, W); 0 for no jump."""
        expected = warp(planes, start, planes, interpolation="linear") if start.any() else planes
        return self._jump(planes, start, expected, expected, CERTAIN)

    def is_missed(self, planes: NDArray[np.float32], registered: NDArray[np.float32]) -> bool:
        """Whether filtered planes (C, H, W) have jumped, and lie better where they are only moved than `registered`."""
        unmoved = np.zeros((2, *planes.shape[1:]), np.float32)
        return self._jump(planes, unmoved, planes, registered, CERTAIN_MISSED) > 0

    def _jump(
        self,
        planes: NDArray[np.float32],
        start: NDArray[np.float32],
        expected: NDArray[np.float32],
        rival: NDArray[np.float32],
        certain: float,
    ) -> float:
        """Length of the jump of planes from where they are expected, if it is clearly better than a rival."""
        shift = phase_shift(self._aligner, expected)
        length = float(np.hypot(*shift.ravel().astype(np.float64)))
        if length < LEAST_JUMP:
            return 0.0
        # pixels from outside are the frame's own where they were, and gain nothing
        moved = warp(planes, start + shift, planes, interpolation="linear")
        return length if is_clearly_better(self._tiles(moved) - self._tiles(rival), certain) else 0.0

    def _tiles(self, planes: NDArray[np.float32]) -> NDArray[np.float64]:
        """Correlation (n,) of the tiles of the image of planes with the reference's."""
        correlations, _ = tile_correlations(self._image(planes), self._reference, self._ones, self._unmoved)
        return correlations.ravel()


class _Trials:
    """Registers single frames from zero, with the alignment or without.

    Parameters
    ----------
    job, read, executor, batch
        As in `choose_alignment`.
    """

    def __init__(self, job: Job, read: Read, executor: BaseExecutor, batch: int) -> None:
        self._job, self._read, self._executor, self._batch = job, read, executor, batch
        self._ones = np.ones(job.reference.shape[:2], np.float32)

    def better_aligned(self, numbers: Sequence[int]) -> list[int]:
        """Those of the frames that are registered clearly better with the alignment than without."""
        windows = self._windows(numbers)
        flows, aligned_flows = (self._register(windows, aligned)[0] for aligned in (False, True))
        return [
            number
            for (number, (_, planes)), flow, aligned_flow in zip(windows.items(), flows, aligned_flows, strict=True)
            if self._is_better(planes, flow, aligned_flow)
        ]

    def correlations(self, numbers: Sequence[int]) -> list[float]:
        """Correlations with the raw reference of frames that are registered without alignment."""
        return self._register(self._windows(numbers), False)[1]

    def _windows(self, numbers: Sequence[int]) -> dict[int, tuple[NDArray[Any], NDArray[np.float32]]]:
        """By their numbers, raw frames (H, W, C) and their planes."""
        assert self._job.preprocessing is not None
        windows = {}
        for number in numbers:
            window = self._read(number)
            if window is not None:
                windows[number] = window[self._job.halo], preprocess(window, self._job.preprocessing)
        return windows

    def _register(
        self, windows: Mapping[int, tuple[NDArray[Any], NDArray[np.float32]]], aligned: bool
    ) -> tuple[list[NDArray[np.float32]], list[float]]:
        """Flows (2, H, W), and the correlations of the registered frames with the raw reference."""
        job, options = self._job, self._job.options.replace(cc_initialization=aligned)
        if options.is_auto("alpha"):
            options = options.replace(alpha=TRIAL_ALPHA / STIFFNESS[options.const_assumption])
        self._executor.start_recording(
            Job.from_preprocessed(options=options, reference=job.reference, reference_planes=job.reference_planes)
        )
        start = np.zeros((2, *job.reference.shape[:2]), np.float32)
        flows: list[NDArray[np.float32]] = []
        correlations: list[float] = []
        pairs = list(windows.values())
        for first in range(0, len(pairs), self._batch):
            frames, planes = (np.stack(part) for part in zip(*pairs[first : first + self._batch], strict=True))
            result = self._executor.register_batch(Batch(frames, start, planes=planes))
            assert result.flow is not None
            flows += [np.array(np.moveaxis(flow, -1, 0), order="C") for flow in result.flow]
            # by the CPU, whatever the executor: devices sum in another order
            correlations += [correlation(registered, job.reference) for registered in result.registered]
        return flows, correlations

    def _is_better(
        self, planes: NDArray[np.float32], flow: NDArray[np.float32], aligned_flow: NDArray[np.float32]
    ) -> bool:
        """Whether planes are registered clearly better by the second flow."""
        job, means, usable = self._job, [], np.array(True)
        for candidate in (flow, aligned_flow):
            warped = warp(planes, candidate, planes)
            correlations, outside = tile_correlations(warped, job.reference_planes, self._ones, candidate)
            means.append(np.tensordot(job.mean_weight.astype(np.float64), correlations, axes=1))
            usable = usable & ~outside
        return is_clearly_better((means[1] - means[0])[usable])


def choose_alignment(
    job: Job,
    read: Read,
    n_frames: int,
    executor: BaseExecutor,
    batch: int,
    progress: Progress | None = None,
) -> AlignmentChoice:
    """Decide by some frames of a recording whether its frames are to be aligned rigidly before the flow.

    Parameters
    ----------
    job : Job
        For raw frames, with the options of the run, of which `alpha` may be 'auto' still.
    read : callable
        Returns, by its number, a raw frame in the middle of those that the filter in time needs, without NaN:
        (2 halo + 1, H, W, C); or None where it is bad.
    n_frames : int
        Frames of the recording.
    executor : BaseExecutor
        Registers frames; the choice does not depend on it. Its recording is another one afterwards.
    batch : int
        Frames that it gets at a time.
    progress : callable or None
        Called with the number of frames, among `SAMPLES`, newly looked at.
    """
    if math.prod(tile_grid(*job.reference.shape[:2])) < LEAST_TILES:
        return AlignmentChoice(False)
    jumps = _measure_jumps(job, read, n_frames, progress or (lambda finished: None))
    trials = _Trials(job, read, executor, batch)
    longest = sorted((number for number in jumps if jumps[number]), key=lambda number: (-jumps[number], number))
    found = trials.better_aligned(longest[:TRIALS]) if longest else []
    if found:
        return AlignmentChoice(True, round(max(jumps[number] for number in found), 1), tuple(sorted(found)))
    if not jumps or n_frames <= SAMPLES:
        return AlignmentChoice(False)
    numbers = list(jumps)
    correlations = trials.correlations([numbers[(2 * k + 1) * len(numbers) // (2 * USUAL)] for k in range(USUAL)])
    usual = sorted(correlations)[1] if len(correlations) > 1 else 0.0  # one may be out of the ordinary
    return AlignmentChoice(False, suspicious=round(SUSPICIOUS * usual, 4) if usual > 0 else None)


def _measure_jumps(job: Job, read: Read, n_frames: int, progress: Progress) -> dict[int, float]:
    """Jumps in pixels, by their numbers, of the good ones among frames spread over the recording."""
    assert job.preprocessing is not None
    test, jumps = JumpTest(job), {}
    zero = np.zeros((2, *job.reference.shape[:2]), np.float32)
    for number in spread_frames(n_frames, min(SAMPLES, n_frames)):
        window = read(number)
        if window is not None:
            jumps[number] = test.jump(preprocess(window, job.preprocessing), zero)
        progress(1)
    return jumps


class SecondAttempt:
    """Registers frames of a run once more that may have jumped, with rigid alignment, on the CPU.

    Parameters
    ----------
    job : Job
        Of the run, without alignment.
    suspicious : float
        Frames that correlate less than this with the raw reference, once they are registered, are tested.
    """

    def __init__(self, job: Job, suspicious: float) -> None:
        self._job, self._suspicious = job, suspicious
        self._test = JumpTest(job)
        self._executor: SequentialExecutor | None = None

    @classmethod
    def after(cls, choice: AlignmentChoice | None, job: Job) -> SecondAttempt | None:
        """What the choice for a recording asks for; None where its frames need no second attempt."""
        return None if choice is None or choice.suspicious is None else cls(job, choice.suspicious)

    def improve(self, batch: Batch, result: BatchResult) -> NDArray[np.bool_]:
        """Replace results of a batch, in place, where another attempt is better; say for which frames: (n,) bool."""
        replaced = np.zeros(batch.count, bool)
        after = STATISTICS.index("correlation_after")
        # a device's statistics may be rounded otherwise; `_attempt` decides
        low = unflagged(result.statistics) & (result.statistics[:, after] < self._suspicious + 1e-6)
        for index in np.flatnonzero(low):
            field = None if batch.field is None else FlowField()
            known = correlation(result.registered[index], self._job.reference)
            attempt = self._attempt(batch, int(index), known, field)
            if attempt is None:
                continue
            if batch.field is not None and field is not None:
                batch.field.replace(self._first_flow(batch, int(index)), field)
            result.registered[index], result.statistics[index] = attempt.registered[0], attempt.statistics[0]
            if result.flow is not None and attempt.flow is not None:
                result.flow[index] = attempt.flow[0]
            replaced[index] = True
        self._executor = None  # and its memory
        return replaced

    def _first_flow(self, batch: Batch, index: int) -> FlowField:
        """What a frame has added to the field without alignment: its flow is estimated once more."""
        executor, field = SequentialExecutor(), FlowField()
        executor.start_recording(self._job)
        executor.register_batch(self._alone(batch, index, field))
        return field

    def _alone(self, batch: Batch, index: int, field: FlowField | None) -> Batch:
        """Frame `index` of a batch; the sum of flows, from which the next window starts, has had its first flow."""
        return dataclasses.replace(batch.part(index, index + 1, None), mean=None, averaged=0, field=field)

    def _attempt(self, batch: Batch, index: int, known: float, field: FlowField | None) -> BatchResult | None:
        """Frame `index` of a batch with alignment, if it has jumped and then correlates more than `known`.

        Its flow is added to the field.
        """
        if known >= self._suspicious:
            return None
        job, single = self._job, self._alone(batch, index, field)
        assert job.preprocessing is not None
        assert batch.start is not None
        if not self._test.jump(preprocess(single.frames, job.preprocessing), batch.start):
            return None
        if self._executor is None:
            self._executor = SequentialExecutor()
            aligned = job.options.replace(cc_initialization=True)
            self._executor.start_recording(dataclasses.replace(job, options=aligned))
        result = self._executor.register_batch(single)
        better = unflagged(result.statistics)[0] and correlation(result.registered[0], job.reference) > known
        return result if better else None
