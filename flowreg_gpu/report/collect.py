"""What a report shows, from the files before and after registration: one pass over some of their frames.

Frames are chosen by their numbers and by the statistics, and read once, in their order, so that memory and time do not
grow with the recording: a thousand frames for the images, some hundred that are measured, and a few dozen that are
played.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import flowreg_gpu
from flowreg_gpu import diagnostics
from flowreg_gpu.cpu.flatness import flat_pixels
from flowreg_gpu.engine.job import Job
from flowreg_gpu.io import FlowReader, FrameReader
from flowreg_gpu.quality.measures import Quality
from flowreg_gpu.quality.play import frames_to_play, worst_frames
from flowreg_gpu.quality.sharp_lines import most_structured_lines
from flowreg_gpu.quality.verdict import Verdict, judge, list_frames
from flowreg_gpu.registration.measuring import FramePair, measure_quality, read_pairs, sample_numbers
from flowreg_gpu.registration.summary import Summary
from flowreg_gpu.registration.verification import spread_frames
from flowreg_gpu.report.data import Images, Kymograph, ReportData, Strip, WorstFlow

__all__ = ["collect"]

# Frames of which mean and maximum are taken, that are played, and whose flow is shown.
IMAGE_FRAMES, PLAYED_FRAMES, WORST_FLOWS = 1000, 48, 3
# Largest side of the frames that are played, and of the flows that are shown, in pixels.
PLAYED_SIDE, FLOW_SIDE = 384, 64


def collect(
    original: FrameReader,
    registered: FrameReader,
    summary: Summary | None = None,
    flow: FlowReader | None = None,
    *,
    title: str,
    files: dict[str, str],
    motion: bool = False,
    warnings: Sequence[str] = (),
) -> ReportData:
    """Read what a report shows.

    Parameters
    ----------
    original, registered : FrameReader
        The recording before and after registration.
    summary : Summary or None
        Of the run; None where only the frames are known.
    flow : FlowReader or None
        Of all frames, for the flows of those that moved most.
    title : str
        Of the page.
    files : dict of str to str
        What they are, and their names.
    motion : bool
        Whether motion that is left is measured, where it has not been.
    warnings : sequence of str
        Of the run.
    """
    n_frames = registered.n_frames
    statistics = {} if summary is None else summary.statistics
    used = np.ones(n_frames, np.bool_) if summary is None else ~summary.flagged
    if not used.any():
        used = np.ones(n_frames, np.bool_)
    moved = statistics.get("mean_disp", np.zeros(n_frames))
    played = frames_to_play(moved, ~used, PLAYED_FRAMES)
    measured = sample_numbers(used, registered.n_channels * registered.height * registered.width)
    good = np.flatnonzero(used)
    seen = good[spread_frames(len(good), min(IMAGE_FRAMES, len(good)))]
    images, pairs, frames = _Images(), [], _Played(played)
    wanted, sampled = set(seen.tolist()), set(measured.tolist())
    for pair in read_pairs(original, registered, np.union1d(np.union1d(seen, measured), played)):
        if pair.number in wanted:
            images.add(pair)
        if pair.number in sampled:
            pairs.append(pair)
        frames.add(pair)
    job = None
    if summary is not None and summary.options is not None:
        job = Job.from_raw(options=summary.options, reference=summary.reference)
    quality = _quality(pairs, summary, job, motion)
    before, after = images.result()
    return ReportData(
        title=title,
        verdict=_verdict(summary, quality),
        measures=tuple(_measures(summary, quality)),
        shape=registered.shape,
        rate=None,
        before=before,
        after=after,
        image_frames=len(seen),
        strip=frames.result(),
        statistics=statistics,
        window=None if summary is None or summary.options is None else summary.options.buffer_size,
        flat=None if job is None else flat_pixels(job.reference_planes, job.weight, job.options.const_assumption),
        field=None if summary is None else summary.field,
        worst=() if flow is None else tuple(_worst_flows(flow, moved, ~used)),
        kymographs=tuple(_kymographs(pairs, after.mean)),
        facts=_facts(summary, registered, files),
        warnings=tuple(warnings),
    )


class _Images:
    """Mean and maximum of frames that come one after the other."""

    def __init__(self) -> None:
        self._count = 0
        self._sums: list[NDArray[np.float64]] = []
        self._largest: list[NDArray[Any]] = []

    def add(self, pair: FramePair) -> None:
        frames = (pair.before, pair.after)
        if not self._count:
            self._sums = [frame.astype(np.float64) for frame in frames]
            self._largest = [frame.copy() for frame in frames]
        else:
            for total, largest, frame in zip(self._sums, self._largest, frames, strict=True):
                total += frame
                np.fmax(largest, frame, out=largest)
        self._count += 1

    def result(self) -> tuple[Images, Images]:
        """Of the frames before and after registration."""
        before, after = (
            Images((total / self._count).astype(np.float32), largest.astype(np.float32))
            for total, largest in zip(self._sums, self._largest, strict=True)
        )
        return before, after


class _Played:
    """Frames that are played, made smaller where they are large."""

    def __init__(self, numbers: NDArray[np.intp]) -> None:
        self._numbers, self._wanted = numbers, set(numbers.tolist())
        self._before: list[NDArray[np.float32]] = []
        self._after: list[NDArray[np.float32]] = []

    def add(self, pair: FramePair) -> None:
        if pair.number in self._wanted:
            self._before.append(_smaller(pair.before))
            self._after.append(_smaller(pair.after))

    def result(self) -> Strip:
        return Strip(self._numbers, np.stack(self._before), np.stack(self._after))


def _smaller(frame: NDArray[Any]) -> NDArray[np.float32]:
    """A frame (H, W, C), averaged over blocks of pixels so that no side is longer than what is played."""
    height, width, channels = frame.shape
    block = -(-max(height, width) // PLAYED_SIDE)
    tall, wide = min(block, height), min(block, width)
    rows, columns = height // tall, width // wide
    blocks = frame[: rows * tall, : columns * wide].reshape(rows, tall, columns, wide, channels)
    smaller: NDArray[np.float32] = blocks.mean(axis=(1, 3), dtype=np.float32)
    return smaller


def _quality(pairs: Sequence[FramePair], summary: Summary | None, job: Job | None, motion: bool) -> Quality:
    """The summary's measures, or new ones."""
    if summary is None or job is None:
        return measure_quality(pairs)
    if summary.quality is not None and not (motion and summary.quality.residual_motion is None):
        return summary.quality
    return measure_quality(pairs, job, from_reference=summary.from_reference, motion=motion)


def _verdict(summary: Summary | None, quality: Quality) -> Verdict:
    found = None if summary is None else dataclasses.replace(summary, quality=quality).verdict
    return found or judge(quality.gains, {}, seen=True, quality=quality)


def _measures(summary: Summary | None, quality: Quality) -> Iterator[tuple[str, str, str, str]]:
    """Rows of the table of measures: name, before, after, what it means."""
    unseen = None if summary is None else summary.choices.unseen
    if unseen is not None:
        yield (
            "correlation of pixels that the flow did not see",
            f"{unseen.before:.4f}",
            f"{unseen.after:.4f}",
            f"With the reference, in {len(unseen.frames)} frames that have no part in it: flows of every other three "
            "rows, measured on the rows between. The verdict rests on it; no flow that follows noise improves it.",
        )
    pair = quality.leave_one_out
    yield (
        "correlation of a frame with the mean of the others",
        f"{pair.before:.4f}",
        f"{pair.after:.4f}",
        f"Mean of {len(quality.frames)} frames. A flow that follows noise improves it, too.",
    )
    pair = quality.crispness
    yield (
        "crispness of the mean image",
        f"{pair.before:.4g}",
        f"{pair.after:.4g}",
        "Length of its gradient, over all pixels. A flow that follows noise may improve it, too.",
    )
    if quality.component_motion is not None:
        pair = quality.component_motion
        yield (
            "motion of principal components",
            f"{pair.before:.2f} px",
            f"{pair.after:.2f} px",
            "Between frames that have most and least of a component; the largest of the first five.",
        )
    if quality.residual_motion is not None:
        median, largest = quality.residual_motion
        yield (
            "motion that is left",
            "",
            f"{median:.2f} px, 99th percentile {largest:.2f} px",
            "Registered frames, registered again at a fourth of the resolution.",
        )
    if quality.from_reference is not None:
        yield (
            "pixels taken from the reference",
            "",
            f"{100 * quality.from_reference:.2f} %",
            "They lay outside their frames; what they show is no signal.",
        )


def _worst_flows(flow: FlowReader, moved: NDArray[np.float64], flagged: NDArray[np.bool_]) -> Iterator[WorstFlow]:
    step = -(-max(flow.height, flow.width) // FLOW_SIDE)
    for number in map(int, worst_frames(moved, flagged, WORST_FLOWS)):
        planes = np.moveaxis(flow.read(number, number + 1)[0, ::step, ::step], -1, 0)
        yield WorstFlow(number, step, np.ascontiguousarray(planes))


def _kymographs(pairs: Sequence[FramePair], mean: NDArray[np.float32]) -> Iterator[Kymograph]:
    """The lines of the registered mean with most structure, over the frames that were measured."""
    numbers = np.array([pair.number for pair in pairs])
    for axis, index in most_structured_lines(mean[..., 0]):
        line = (index, slice(None), 0) if axis == "row" else (slice(None), index, 0)
        before, after = (
            np.stack([getattr(pair, name)[line] for pair in pairs]).astype(np.float32) for name in ("before", "after")
        )
        yield Kymograph(axis, index, 0, numbers, before, after)


def _facts(summary: Summary | None, registered: FrameReader, files: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Tables of names and values."""
    n_frames, height, width, channels = registered.shape
    machine = diagnostics.describe()
    facts: dict[str, dict[str, Any]] = {
        "recording": {
            **files,
            "frames": n_frames,
            "height, width": f"{height}, {width}",
            "channels": channels,
            "dtype": registered.dtype.name,
        }
    }
    if summary is not None and summary.options is not None:
        facts["options"] = {name: _fact(value) for name, value in vars(summary.options).items()}
    if summary is not None:
        facts["run"] = dict(_run_facts(summary))
    facts["versions"] = {
        "flowreg-gpu": flowreg_gpu.__version__,
        "Python": machine["python"],
        "system": machine["system"],
        "CPU": machine["cpu"],
        **{name: found for name, found in machine["versions"].items() if found},
    }
    return facts


def _run_facts(summary: Summary) -> Iterator[tuple[str, Any]]:
    """What the run did; times and executor where it is the run itself that asks."""
    if summary.seconds:
        yield "executor", summary.executor
        yield "seconds", round(summary.seconds, 1)
        yield "frames per second", round(summary.frames_per_second, 1)
    choices = summary.choices
    for name, choice in (("alpha", choices.alpha), ("alignment", choices.alignment), ("reference", choices.reference)):
        if choice is not None:
            yield name, str(choice).removeprefix(f"{name}: ")
    yield "bad frames", list_frames(summary.bad_frames) or "none"
    yield "realigned frames", list_frames(summary.realigned_frames) or "none"
    yield "constant, diverged frames", f"{summary.constant_frames}, {summary.diverged_frames}"
    yield "NaN or infinite pixels", summary.nonfinite_pixels
    yield "hot or dead pixels", len(summary.hot_pixels)
    yield "scan offset, px", summary.scan_offset.pixels


def _fact(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return f"array {value.shape}"
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
