"""The smoothness that suits a recording: the one whose flow best predicts pixels that it has not seen.

In some frames, the rows are divided into two halves. The flow of one half is estimated as in the run, the other half is
warped by it and compared with the reference. Where `alpha` is too small, the flow follows the noise of its own half,
which the other does not share; where it is too large, motion is left in both (cross-validation, Stone 1974). That is
tried for some values, and the best one between them is taken.

- A half consists of runs of `RUN` rows, and only the middle of a run is compared: it lies apart from the rows that the
  flow has seen, whose noise may be correlated with that of their neighbours. Neighbours along a row, whose noise
  resonant scanners correlate, are always in the same half.
- What a flow takes from outside the frame is filled with the half itself. If it were filled with the reference, a wild
  flow would fit perfectly.
- Tiles of the frame are judged by log(1 - r^2), r their correlation with the reference: brightness has no effect, and a
  tile in which cells are active has no more say than others.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.cpu import warp
from flowreg_gpu.cpu.preprocess import preprocess_rows
from flowreg_gpu.cpu.tiles import tile_correlations, tile_grid
from flowreg_gpu.engine.batch import Batch
from flowreg_gpu.engine.job import Job
from flowreg_gpu.executors import BaseExecutor
from flowreg_gpu.model.preprocessing import Preprocessing
from flowreg_gpu.model.relaxation import STIFFNESS
from flowreg_gpu.options import Options

__all__ = [
    "AlphaChoice",
    "AlphaTrial",
    "Trial",
    "Tuner",
    "Tuning",
    "Unseen",
    "choose_alpha",
    "sample_frames",
    "sample_size",
    "tune",
    "undecided",
]

# Frames that are looked at, by the flow of one half each for every value tried: so many frames choose better than half
# as many by the flows of both halves. Large frames have many tiles, so that fewer of them do.
MOST_SAMPLES, LEAST_SAMPLES, SAMPLE_PIXELS = 11, 4, 4 * 2**20
# Rows of a run; odd, so that one is in the middle.
RUN = 3
# A filter that is narrower along the columns leaves gaps between the runs.
LEAST_ROW_SIGMA = 0.8
# Values tried for gradient constancy, the middle ones first, then outwards while it gets better; those of the other
# data terms are smaller by their `STIFFNESS`.
ALPHAS = (1.5, 4.0, 10.0, 25.0, 80.0, 250.0)
FIRST = [1, 2, 3]
# Fewer tiles say nothing; then it is this.
LEAST_TILES, UNDECIDED_ALPHA = 8, 8.0
LEAST_UNEXPLAINED = 1e-9  # of 1 - r^2: images without noise


@dataclasses.dataclass(frozen=True)
class AlphaChoice:
    """An `alpha` that was chosen by the recording.

    Attributes
    ----------
    alpha : float
    low, high : float
        Smallest and largest choice where one of the frames is left out.
    alphas, unexplained : tuple of float
        The values tried, and what they leave unexplained of the pixels that the flow has not seen: the mean over tiles
        of log(1 - r^2), relative to the mean of all values; the lower, the better.
    frames : tuple of int
        The frames that were looked at.
    tiles : int
        Tiles of them that could be compared. Where there are fewer than 8, `alpha` is 8 and nothing was tried.
    """

    alpha: float
    low: float
    high: float
    alphas: tuple[float, ...] = ()
    unexplained: tuple[float, ...] = ()
    frames: tuple[int, ...] = ()
    tiles: int = 0

    def __str__(self) -> str:
        if not self.alphas:
            return f"alpha: {self.alpha:g}, since too little of the recording can be compared to choose it"
        return (
            f"alpha: {self.alpha:g}, chosen by {len(self.frames)} frames "
            f"(between {self.low:g} and {self.high:g} without one of them)"
        )


@dataclasses.dataclass(frozen=True)
class Unseen:
    """Correlation with the reference of pixels that the flow has not seen, in frames spread over the recording.

    The flow of one half of the rows of each frame is measured on the other half, against a reference that the frame has
    no part in where the program has built it. No flow that follows noise does well here.

    Attributes
    ----------
    before, after : float
        Mean of the frames, before and after registration.
    frames : tuple of int
    gains : tuple of float
        What registration adds to the correlation of each frame, against the same pixels, warped as well, and a
        reference that is warped with them. So the smoothing of the interpolation, which raises any correlation, is in
        both.
    """

    before: float
    after: float
    frames: tuple[int, ...]
    gains: tuple[float, ...] = ()

    def __str__(self) -> str:
        return (
            f"correlation with the reference, of pixels that the flow did not see: "
            f"{self.before:.4f} before, {self.after:.4f} after ({len(self.frames)} frames)"
        )


@dataclasses.dataclass(frozen=True)
class AlphaTrial:
    """What one `alpha` does to the frames that are looked at.

    Attributes
    ----------
    alpha : float
    unexplained : float
        Of pixels that the flow has not seen; see `AlphaChoice`.
    correlation : float
        Of these pixels with the reference, after registration.
    displacement : float
        Mean over pixels and frames, pixels.
    seconds : float
        Wall-clock time of a frame, with this executor.
    """

    alpha: float
    unexplained: float
    correlation: float
    displacement: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class Tuning:
    """Every `alpha` that is ever tried, and which one would be chosen; `str` makes a table of it.

    Attributes
    ----------
    choice : AlphaChoice
    before : float
        Correlation with the reference before registration, of the pixels that the flows have not seen.
    trials : tuple of AlphaTrial
    """

    choice: AlphaChoice
    before: float
    trials: tuple[AlphaTrial, ...]

    def __str__(self) -> str:
        best = min((trial.unexplained for trial in self.trials), default=0.0)
        lines = [
            f"{trial.alpha:7g}  {trial.unexplained - best:11.5f}  {trial.correlation:11.4f}  "
            f"{trial.displacement:8.2f} px  {1000 * trial.seconds:8.1f} ms"
            for trial in self.trials
        ]
        head = "  alpha  unexplained  correlation  displacement  a frame"
        return "\n".join([head, *lines, f"correlation before registration: {self.before:.4f}", str(self.choice)])


def sample_size(height: int, width: int) -> int:
    """Frames of this size that are looked at."""
    return int(np.clip(SAMPLE_PIXELS // (height * width), LEAST_SAMPLES, MOST_SAMPLES))


def sample_frames(candidates: Sequence[int], count: int) -> list[int]:
    """`count` of the candidates, or all of them where there are fewer: from the middle of as many equal parts."""
    count = min(count, len(candidates))
    return [candidates[(2 * k + 1) * len(candidates) // (2 * count)] for k in range(count)]


class Trial(NamedTuple):
    """What the flows of one `alpha` predict of the halves that they have not seen.

    Attributes
    ----------
    unexplained : (frames, tiles) float64
        log(1 - r^2), summed over the channels.
    outside : (frames, tiles) bool
        Whether the flow takes a pixel of the tile from outside the frame.
    """

    unexplained: NDArray[np.float64]
    outside: NDArray[np.bool_]


def _weighted_correlation(
    first: NDArray[np.float32], second: NDArray[np.float32], weight: NDArray[np.float32]
) -> float:
    """Pearson correlation of two images over weighted pixels, all (H, W); 0 where one is constant."""
    pixels = weight > 0
    values = np.stack([first[pixels], second[pixels]]).astype(np.float64)
    covariance = np.cov(values, aweights=weight[pixels])
    norm = math.sqrt(covariance[0, 0] * covariance[1, 1])
    return float(covariance[0, 1] / norm) if norm > 0 else 0.0


class Tuner:
    """Measures what flows of halves of some frames predict of the other halves.

    Parameters
    ----------
    windows : iterable of int and (2 halo + 1, H, W, C)
        Numbers of frames, and the raw frames in the middle of those that the filter in time needs, without NaN.
    job : Job
        For the filter and the reference, which is best one that these frames have no part in.
    options : Options
        Of the run, but for what is to be chosen.
    executor : BaseExecutor
        Estimates the flows. Its recording is another one afterwards.
    batch : int
        Halves that it gets at a time.
    progress : callable or None
        Called with the numbers of flows that are estimated, and that have been asked for so far.

    Attributes
    ----------
    options : Options
    frames : tuple of int
        Numbers of the frames.
    most_tiles : int
        Tiles of all the frames.
    """

    def __init__(
        self,
        windows: Iterable[tuple[int, NDArray[Any]]],
        job: Job,
        options: Options,
        executor: BaseExecutor,
        batch: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.options = options
        self._job, self._executor, self._batch, self._progress = job, executor, batch, progress
        assert job.preprocessing is not None
        channels, height, width = job.reference_planes.shape
        sigma = self.options.sigma_per_channel(channels)
        sigma[:, 0] = np.maximum(sigma[:, 0], LEAST_ROW_SIGMA)
        in_space = Preprocessing.build(job.preprocessing.minimum, job.preprocessing.scale, sigma, height, width).spatial
        filters = dataclasses.replace(job.preprocessing, spatial=in_space)
        turn = np.arange(height) % (2 * RUN)
        halves = np.stack([turn < RUN, turn >= RUN])
        middles = np.stack([turn == first + RUN // 2 for first in (0, RUN)])
        # planes (C, H, W) of every frame: the flow sees one half of the first frame, the other half of the next one
        self._seen: list[NDArray[np.float32]] = []
        self._unseen: list[NDArray[np.float32]] = []
        frames = []
        for k, (number, window) in enumerate(windows):
            frames.append(number)
            self._seen.append(preprocess_rows(window, halves[k % 2], filters))
            self._unseen.append(preprocess_rows(window, halves[1 - k % 2], filters))
        self.frames = tuple(frames)
        compared = np.broadcast_to(middles[::-1, :, None], (2, height, width))  # of the half that is not seen
        self._compared = np.ascontiguousarray(compared, np.float32)
        self.most_tiles = math.prod(tile_grid(height, width)) * len(frames)
        self._used = job.mean_weight > 0  # channels
        self._trials: dict[float, Trial] = {}
        self._finished = self._asked = 0

    def flows(self, options: Options) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Index of every frame, and the flow (2, H, W) of its half that is seen."""
        job = Job.from_preprocessed(
            options=options,
            reference=self._job.reference,
            reference_planes=self._job.reference_planes,
        )
        self._executor.start_recording(job)
        self._asked += len(self.frames)
        start = np.zeros((2, *self._job.reference.shape[:2]), np.float32)
        for first in range(0, len(self._seen), self._batch):
            planes = np.stack(self._seen[first : first + self._batch])
            frames = np.ascontiguousarray(np.moveaxis(planes, 1, -1))
            result = self._executor.register_batch(Batch(frames, start, planes=planes, progress=self._count))
            assert result.flow is not None
            for index, flow in enumerate(result.flow, first):
                yield index, np.ascontiguousarray(np.moveaxis(flow, -1, 0))

    def _count(self, finished: int) -> None:
        self._finished += finished
        if self._progress is not None:
            self._progress(self._finished, self._asked)

    def trial(self, alpha: float) -> Trial:
        """What the flows of an `alpha` predict; it is tried once."""
        if alpha not in self._trials:
            self._trials[alpha] = self._try(alpha)
        return self._trials[alpha]

    def _try(self, alpha: float) -> Trial:
        unexplained, outside = [], []
        for index, flow in self.flows(self.options.replace(alpha=alpha)):
            warped, weight = self._warped(index, flow)
            correlations, left = tile_correlations(warped, self._job.reference_planes, weight, flow)
            used = np.maximum(correlations[self._used].reshape(np.count_nonzero(self._used), -1), 0)
            unexplained.append(np.log(np.maximum(1 - used**2, LEAST_UNEXPLAINED)).sum(axis=0))
            outside.append(left.ravel())
        return Trial(np.stack(unexplained), np.stack(outside))

    def _warped(self, index: int, flow: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The half of a frame that its flow has not seen, warped by it, and the weight (H, W) of its pixels."""
        planes, rows = self._unseen[index], self._compared[index % 2][None]
        return warp(planes, flow, planes), warp(rows, flow, rows, interpolation="linear")[0]

    def unseen(self, options: Options) -> Unseen:
        """Correlation of unseen pixels with the reference, by the flows of these options."""
        before, after, gains, reference = [], [], [], self._job.reference_planes
        for index, flow in self.flows(options):
            before.append(self._correlation(self._unseen[index], reference, self._compared[index % 2]))
            warped, weight = self._warped(index, flow)
            after.append(self._correlation(warped, reference, weight))
            gains.append(after[-1] - self._correlation(warped, warp(reference, flow, reference), weight))
        return Unseen(float(np.mean(before)), float(np.mean(after)), self.frames, tuple(gains))

    def _correlation(
        self, planes: NDArray[np.float32], references: NDArray[np.float32], weight: NDArray[np.float32]
    ) -> float:
        """Correlation of planes with those of a reference, (C, H, W), over weighted pixels (H, W); mean of channels."""
        total = 0.0
        for image, reference, share in zip(planes, references, self._job.mean_weight, strict=True):
            total += float(share) * _weighted_correlation(image, reference, weight)
        return total


def tune(tuner: Tuner) -> Tuning:
    """Try every value, and describe what it does."""
    choice, trials = choose_alpha(tuner), []
    alphas = _alphas(tuner.options)
    unexplained, _ = _curves([tuner.trial(alpha) for alpha in alphas])
    relative = unexplained.mean(axis=0) if len(unexplained) else np.zeros(len(alphas))
    for alpha, rest in zip(alphas, relative, strict=True):
        began = time.perf_counter()
        displacement = np.mean([np.hypot(*flow).mean() for _, flow in tuner.flows(tuner.options.replace(alpha=alpha))])
        seconds = (time.perf_counter() - began) / len(tuner.frames)
        unseen = tuner.unseen(tuner.options.replace(alpha=alpha))
        trials.append(AlphaTrial(float(alpha), float(rest), unseen.after, float(displacement), seconds))
    return Tuning(choice, unseen.before, tuple(trials))


def _alphas(options: Options) -> NDArray[np.float64]:
    """The values that are tried with a data term."""
    return np.array(ALPHAS) / STIFFNESS[options.const_assumption]


def choose_alpha(tuner: Tuner) -> AlphaChoice:
    """Try values until the best of them has a worse one on either side, and take the best between these."""
    if tuner.most_tiles < LEAST_TILES:
        return undecided(tuner.options, tuner.frames)
    alphas = _alphas(tuner.options)
    trials: dict[int, Trial] = {}
    missing = FIRST
    while missing:
        trials |= {index: tuner.trial(alphas[index]) for index in missing}
        tried = sorted(trials)
        curves, tiles = _curves([trials[index] for index in tried])
        if tiles < LEAST_TILES:
            return undecided(tuner.options, tuner.frames, tiles)
        best = tried[int(np.argmin(curves.mean(axis=0)))]
        missing = [index for index in (best - 1, best + 1) if 0 <= index < len(alphas) and index not in trials]
    chosen = _lowest(alphas[tried], curves.mean(axis=0))
    others = [_lowest(alphas[tried], np.delete(curves, k, axis=0).mean(axis=0)) for k in range(len(curves))]
    return AlphaChoice(
        chosen,
        min(others) if len(curves) > 1 else chosen,
        max(others) if len(curves) > 1 else chosen,
        tuple(alphas[tried].tolist()),
        tuple(curves.mean(axis=0).tolist()),
        tuner.frames,
        tiles,
    )


def undecided(options: Options, frames: Sequence[int] = (), tiles: int = 0) -> AlphaChoice:
    """The choice where there is too little to compare."""
    alpha = UNDECIDED_ALPHA / STIFFNESS[options.const_assumption]
    return AlphaChoice(alpha, alpha, alpha, frames=tuple(frames), tiles=tiles)


def _curves(trials: Sequence[Trial]) -> tuple[NDArray[np.float64], int]:
    """What every frame leaves unexplained at the values tried, (frames, values), relative to their mean; tiles used.

    A tile counts where no flow takes it from outside the frame, so that all values are judged by the same tiles; frames
    without any are left out.
    """
    unexplained = np.stack([trial.unexplained for trial in trials], axis=-1)  # (frames, tiles, values)
    usable = ~np.logical_or.reduce([trial.outside for trial in trials])
    relative = unexplained - unexplained.mean(axis=-1, keepdims=True)
    curves = [tiles[use].mean(axis=0) for tiles, use in zip(relative, usable, strict=True) if use.any()]
    return np.array(curves), int(np.count_nonzero(usable))


def _lowest(alphas: NDArray[np.float64], curve: NDArray[np.float64]) -> float:
    """Where a parabola in log(alpha) through the lowest value and its neighbours is lowest, to two digits.

    No more of them is known, and so machines that round otherwise agree.
    """
    k = int(np.argmin(curve))
    alpha = alphas[k]
    if 0 < k < len(curve) - 1:
        (left, middle, right), (a, b, c) = np.log(alphas[k - 1 : k + 2]), curve[k - 1 : k + 2]
        rise, fall = (middle - left) * (b - c), (middle - right) * (b - a)
        if rise != fall:  # else it is level
            alpha = np.exp(middle - 0.5 * ((middle - left) * rise - (middle - right) * fall) / (rise - fall))
    return float(f"{alpha:.2g}")
