"""The loop over a recording: frames from a reader through an executor to writers, a batch at a time.

While a batch is computed, the next is read and the one before is written: at most two batches of frames and two of
results are held, besides what the executor keeps of its own.
"""

from __future__ import annotations

import contextlib
import functools
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.engine.batch import Batch, BatchResult, FlowField, FlowMean, Progress
from flowreg_gpu.engine.job import Job
from flowreg_gpu.executors import BaseExecutor, create_executor
from flowreg_gpu.io import FrameReader, FrameWriter
from flowreg_gpu.model.preprocessing import Defects
from flowreg_gpu.options import Options, check_size, merge_options, positive_integer
from flowreg_gpu.quality.measures import FlowMap
from flowreg_gpu.registration.bad_frames import BadFrames, BadFramesLike, ReadFrames
from flowreg_gpu.registration.choices import Choices, ReferenceChoice
from flowreg_gpu.registration.hot_pixels import find_hot_pixels
from flowreg_gpu.registration.journal import Checkpoint, Journal
from flowreg_gpu.registration.jumps import SAMPLES, AlignmentChoice, SecondAttempt, choose_alignment
from flowreg_gpu.registration.memory import RunMemory, parse_memory
from flowreg_gpu.registration.overlap import ReadAhead, WriteBehind
from flowreg_gpu.registration.reference import (
    BuiltReference,
    ReferenceLike,
    build_reference,
    is_auto,
    read_window,
    resolve_reference,
    window_numbers,
)
from flowreg_gpu.registration.scan_offset import ScanOffset, ScanReader, estimate_scan_offset
from flowreg_gpu.registration.start_flow import StartFlow
from flowreg_gpu.registration.summary import COLUMNS, Summary
from flowreg_gpu.registration.tuning import Tuner, Tuning, choose_alpha, sample_frames, sample_size, tune, undecided
from flowreg_gpu.registration.verification import Verifier, spread_frames

__all__ = ["FrameCounter", "Registration", "StageProgress", "flow_map"]

#: Called with the stage ("reference", "alignment", "choices", "start", "frames"), frames finished in it, and frames in
#: it.
StageProgress = Callable[[str, int, int], None]


class Registration:
    """A registration whose input has been checked; `run` does the work.

    Parameters
    ----------
    reader : FrameReader
    reference : image, file, frames, 'auto' or None
        See `register`.
    executor : str or BaseExecutor
    options : Options
    n_workers : int or None
    batch : int or None
        Frames computed at a time; None chooses by their size. Never changes the result.
    verify : int
        Number of frames, spread over the recording, that are registered on the CPU too and compared.
    bad_frames : 'auto', None, numbers, bool array, slice or file
        See `register`.
    start_flow : StartFlow or None
        Policy of the start flows; None takes that of the options.
    least_frames : int
        Fewer frames are refused: a recording of one frame is mostly one whose axes were misread.
    memory : int, str or None
        Limit of the memory of process, workers and shared memory, in bytes or as '2GB': the batch is made smaller.
    keep_flow : bool
        False where `run` will get no writer for flows, so that they take no memory.
    measure_unseen : bool
        Whether the summary is to have the correlation of pixels that a flow has not seen; it takes the time of some
        frames.
    measure_field : bool
        Whether the summary is to have the flow of the recording per pixel, and the pixels that every frame covers.

    Attributes
    ----------
    memory : MemoryPlan
        The memory that the run will take, and the batch.
    scan_offset : ScanOffset
        Of the odd lines, which are moved back.

    Raises
    ------
    ValueError, TypeError, FileNotFoundError
        Input that cannot be registered.
    """

    def __init__(
        self,
        reader: FrameReader,
        reference: ReferenceLike = None,
        executor: str | BaseExecutor = "gpu",
        options: Options | None = None,
        *,
        n_workers: int | None = None,
        batch: int | None = None,
        verify: int = 0,
        bad_frames: BadFramesLike = "auto",
        start_flow: StartFlow | None = None,
        least_frames: int = 2,
        memory: int | str | None = None,
        keep_flow: bool = True,
        measure_unseen: bool = False,
        measure_field: bool = False,
    ) -> None:
        limit = None if memory is None else parse_memory(memory)
        self.options = merge_options(options, {})
        check_size(reader.height, reader.width)
        if reader.n_frames < least_frames:
            raise ValueError(
                f"the recording has {reader.n_frames} frame, expected at least {least_frames}; it was read with "
                f'{reader.n_channels} channels: if that is wrong, name its axes, e.g. axes="TYX"'
            )
        self.options.check_recording(*reader.shape[1:])
        self.reader = reader
        if batch is not None:
            positive_integer("batch", batch)
        if verify and positive_integer("verify", verify) > reader.n_frames:
            raise ValueError(f"verify={verify} is more than the {reader.n_frames} frames of the recording")
        self._verify, self._measures, self._measures_field = verify, measure_unseen, measure_field
        self._start_flow = start_flow or StartFlow.from_options(self.options)
        self._bad_frames = BadFrames(bad_frames, reader)
        self.scan_offset = self._find_scan_offset(reader)
        if self.scan_offset.pixels:
            self.reader = reader = ScanReader(reader, self.scan_offset.pixels)
        self._hot_pixels = np.empty((0, 3), np.intp)
        if self.options.hot_pixels and not self.scan_offset.pixels:  # a scanner's pixels are not those of a sensor
            self._hot_pixels = find_hot_pixels(reader, self._bad_frames)
        self._defects = Defects.build(self._hot_pixels, reader.height, reader.width) if len(self._hot_pixels) else None
        self._reference = resolve_reference(reference, reader, self._bad_frames)
        self._chooses_reference = is_auto(reference)
        self._owns_executor = not isinstance(executor, BaseExecutor)
        self.executor = create_executor(executor, n_workers)
        builds_reference = isinstance(self._reference, list)
        self.memory = RunMemory(
            reader,
            self.options,
            self.executor,
            keep_flow=keep_flow,
            measure_field=measure_field,
            verify=verify,
            builds_reference=builds_reference,
            chooses=self._looks_ahead or self.options.is_auto("cc_initialization"),
            measures=measure_unseen,
        ).plan(batch, self._start_flow.window, limit)
        self.batch = self.memory.batch

    def run(
        self,
        writer: FrameWriter | None = None,
        flow_writer: FrameWriter | None = None,
        progress: StageProgress | None = None,
        journal: Journal | None = None,
    ) -> Summary:
        """Register every frame, hand the results to the writers in order, and return the summary.

        With a journal, every batch is recorded in it once it is written, and the run goes on after its checkpoint.
        """
        report = progress or (lambda stage, finished, total: None)
        began = time.perf_counter()
        checkpoint = None if journal is None else journal.checkpoint
        with self._using_executor():
            reference, choices = self._prepared(journal, report)
            job = self._job(reference, choices.options(self.options))
            second = SecondAttempt.after(choices.alignment, job)
            verifier = Verifier(job, spread_frames(self.reader.n_frames, self._verify)) if self._verify else None
            self.executor.start_recording(job)
            if checkpoint is None:
                empty = np.empty((0, len(COLUMNS)))
                field = FlowField() if self._measures_field else None
                checkpoint = Checkpoint(0, self._first_start(job, report), FlowMean(), 0, empty, field)
            statistics, nonfinite, field = self._run_windows(
                job, checkpoint, (writer, flow_writer), verifier, second, report, journal
            )
        return Summary.from_statistics(
            statistics,
            seconds=time.perf_counter() - began,
            executor=self.executor.backend,
            reference=job.reference,
            nonfinite_pixels=nonfinite,
            verification=None if verifier is None else verifier.summary(),
            resumed_at=checkpoint.finished,
            choices=choices,
            hot_pixels=self._hot_pixels,
            scan_offset=self.scan_offset,
            options=job.options,
            field=None if field is None else flow_map(field),
        )

    def _find_scan_offset(self, reader: FrameReader) -> ScanOffset:
        """Given, or estimated; none where lines are not scanned to and fro."""
        if isinstance(self.options.bidirectional, str):
            return estimate_scan_offset(reader, self._bad_frames)
        return ScanOffset(self.options.bidirectional)

    def tune(self, progress: StageProgress | None = None) -> Tuning:
        """Try every `alpha` on some frames, and say what it does; nothing is registered.

        Raises
        ------
        ValueError
            No frame that could be looked at.
        """
        report = progress or (lambda stage, finished, total: None)
        with self._using_executor():
            samples = self._samples()
            reference, alignment = self._aligned_reference(samples, report)
            options = Choices(alignment=alignment).options(self.options)
            tuner = self._tuner(reference.disjoint, samples, options, report)
            if tuner is None:
                raise ValueError("none of the frames can be looked at: they are bad, or cannot be read")
            return tune(tuner)

    @contextlib.contextmanager
    def _using_executor(self) -> Iterator[None]:
        """The executor is for this alone, and ends with it where it was made for it."""
        with contextlib.ExitStack() as stack:
            if self._owns_executor:
                stack.enter_context(self.executor)
            stack.enter_context(self.executor.in_use())
            yield

    def _prepared(self, journal: Journal | None, report: StageProgress) -> tuple[NDArray[np.float32], Choices]:
        """The journal's reference and choices, else new ones, which are noted there."""
        if journal is not None and journal.reference is not None:
            return journal.reference, Choices.from_dict(journal.choices)
        samples = self._samples()
        reference, alignment = self._aligned_reference(samples, report)
        choices = self._choose(reference.disjoint, samples, alignment, report)
        if journal is not None:
            journal.begin(reference.image, choices.to_dict())
        return reference.image, choices

    @property
    def _looks_ahead(self) -> bool:
        """Whether some frames are looked at before the run."""
        return self._measures or self.options.is_auto("alpha")

    def _samples(self) -> list[int]:
        """Frames that the recording is judged by: good ones, and none of the reference where there are enough."""
        if not self._looks_ahead:
            return []
        in_reference = set(self._reference) if isinstance(self._reference, list) else set()
        spare = [number for number in range(self.reader.n_frames) if number not in in_reference]
        most = sample_size(self.reader.height, self.reader.width)
        candidates = spare if len(spare) >= most else range(self.reader.n_frames)
        good = []
        for number in sample_frames(candidates, 2 * most):
            with contextlib.suppress(Exception):  # the run says so in its turn, and keeps the frames before
                if not self._bad_frames.contains(number, self.reader.read(number, number + 1)[0]):
                    good.append(number)
        return sample_frames(good, min(most, max(self.reader.n_frames // 2, 1)))

    def _aligned_reference(
        self, left_out: Sequence[int], report: StageProgress
    ) -> tuple[BuiltReference, AlignmentChoice | None]:
        """The reference, and whether frames are aligned rigidly; then those of the reference are, too."""
        reference = self._build_reference(left_out, None, report)
        alignment = self._choose_alignment(reference.image, report)
        if alignment is not None and alignment.aligned:
            reference = self._build_reference(left_out, alignment, report)
        return reference, alignment

    def _build_reference(
        self, left_out: Sequence[int], alignment: AlignmentChoice | None, report: StageProgress
    ) -> BuiltReference:
        if not isinstance(self._reference, list):
            return BuiltReference(self._reference, self._reference)
        count = FrameCounter(report, "reference", len(self._reference))
        size = self.memory.reference_batch
        options = Choices(undecided(self.options), alignment=alignment).options(self.options)
        return build_reference(
            self.reader, self._reference, options, self.executor, size, count, left_out, self._defects
        )

    def _choose_alignment(self, reference: NDArray[np.float32], report: StageProgress) -> AlignmentChoice | None:
        """Whether frames are aligned rigidly first, where that is left to the recording."""
        if not self.options.is_auto("cc_initialization"):
            return None
        job = Job.from_raw(options=self.options, reference=reference, defects=self._defects)

        def read(number: int) -> NDArray[Any] | None:
            with contextlib.suppress(Exception):  # as in `_samples`
                window = self._read(job, number, number + 1)
                return None if window.bad[0] else window.frames
            return None

        n_frames = self.reader.n_frames
        count = FrameCounter(report, "alignment", min(SAMPLES, n_frames))
        return choose_alignment(job, read, n_frames, self.executor, self.memory.reference_batch, count)

    def _choose(
        self,
        reference: NDArray[np.float32],
        samples: Sequence[int],
        alignment: AlignmentChoice | None,
        report: StageProgress,
    ) -> Choices:
        """What is left to the recording, and what can be measured on pixels that a flow has not seen."""
        options = Choices(alignment=alignment).options(self.options)
        tuner = self._tuner(reference, samples, options, report) if samples else None
        alpha = None
        if options.is_auto("alpha"):
            alpha = undecided(options) if tuner is None else choose_alpha(tuner)
        unseen = None
        if tuner is not None and self._measures:
            unseen = tuner.unseen(Choices(alpha).options(options))
        frames = None
        if self._chooses_reference and isinstance(self._reference, list):
            frames = ReferenceChoice(tuple(self._reference))
        return Choices(alpha, unseen, alignment, frames)

    def _tuner(
        self, reference: NDArray[np.float32], samples: Sequence[int], options: Options, report: StageProgress
    ) -> Tuner | None:
        """Measures the frames `samples` against a reference without them; None where none of them can be read."""
        job = Job.from_raw(options=options, reference=reference, defects=self._defects)

        def windows() -> Iterator[tuple[int, NDArray[Any]]]:
            for number in samples:
                try:
                    window = self._read(job, number, number + 1).frames
                except Exception:  # as in `_samples`
                    continue
                yield number, window

        size, count = self.memory.reference_batch, functools.partial(report, "choices")
        tuner = Tuner(windows(), job, options, self.executor, size, count)
        return tuner if tuner.frames else None

    def _job(self, reference: NDArray[np.float32], options: Options) -> Job:
        low, high = reference.min(axis=(0, 1)), reference.max(axis=(0, 1))
        job, constant = Job.from_raw(options=options, reference=reference, defects=self._defects), low == high
        if np.all(constant):
            warnings.warn(f"the reference is constant ({low.tolist()}): the flow is zero", RuntimeWarning, stacklevel=4)
        elif options.weight is not None:
            used = job.mean_weight > 0
            alone = "" if np.any(used & ~constant) else ", and no other has weight: the flow is zero"
            for channel in np.flatnonzero(constant & used):
                warnings.warn(
                    f"the weight of channel {channel} has no effect: the channel is constant in the reference "
                    f"({low[channel]:g}){alone}",
                    RuntimeWarning,
                    stacklevel=4,
                )
        return job

    def _first_start(self, job: Job, report: StageProgress) -> NDArray[np.float32]:
        """Start flow (2, H, W) of the first window."""
        n_frames, height, width, _ = self.reader.shape
        frames = self._start_flow.first_frames(n_frames)
        zero = np.zeros((2, height, width), np.float32)
        if not frames:
            return zero
        window = _Window(frames, zero, FlowMean(), len(frames), False, FrameCounter(report, "start", len(frames)))
        with self._reading(job, [frames]) as reading:
            deque(self._batches(job, window, reading), maxlen=0)  # the mean is what is wanted
        return window.mean.planes(zero)

    def _run_windows(
        self,
        job: Job,
        checkpoint: Checkpoint,
        writers: tuple[FrameWriter | None, FrameWriter | None],
        verifier: Verifier | None,
        second: SecondAttempt | None,
        report: StageProgress,
        journal: Journal | None,
    ) -> tuple[NDArray[np.float64], int, FlowField | None]:
        """Register all frames after a checkpoint, and hand registered frames and flows to the writers.

        A window is registered in batches of what memory holds. Returns the statistics (T, 12) of all frames, the number
        of NaN or infinite pixels, and the flow field where it is measured.
        """
        finished, start, mean, nonfinite, known, field = checkpoint
        averaged = self._start_flow.last
        keep_flow = writers[1] is not None or verifier is not None
        count = FrameCounter(report, "frames", self.reader.n_frames, finished)
        statistics = [known]
        windows = self._windows_after(finished)
        with self._reading(job, windows) as reading, WriteBehind(writers) as writing:
            for frames in windows:
                if frames.start % self._start_flow.window == 0:  # not in the middle of the checkpoint's window
                    start, mean = mean.planes(start), FlowMean()
                window = _Window(frames, start, mean, averaged, keep_flow, count, field)
                for first, batch, read, result in self._batches(job, window, reading):
                    if verifier is not None:
                        verifier.compare(first, batch.frames, start, result)
                    realigned = False if second is None else second.improve(batch, result)
                    rows = read.put_back(result, job.reference)
                    rows[:, COLUMNS.index("realigned")] = realigned
                    nonfinite += read.nonfinite
                    noted = None if field is None or journal is None else field.copy()
                    state = Checkpoint(first + len(rows), start, mean.copy(), nonfinite, rows, noted)
                    writing.write(
                        (result.registered, result.flow),
                        lent=not self.executor.keeps_results,
                        then=None if journal is None else functools.partial(journal.record, state),
                    )
                    statistics.append(rows)
                    del batch, read, result  # their memory, before another batch is read
        return np.concatenate(statistics), nonfinite, field

    def _windows_after(self, finished: int) -> list[range]:
        """Frames of every window that are not finished."""
        windows = self._start_flow.windows(self.reader.n_frames)
        return [range(max(frames.start, finished), frames.stop) for frames in windows if frames.stop > finished]

    def _spans(self, frames: range) -> list[range]:
        """Frames of every batch of a window."""
        return [frames[first : first + self.batch] for first in range(0, len(frames), self.batch)]

    def _reading(self, job: Job, windows: Sequence[range]) -> ReadAhead[ReadFrames]:
        """Frames with halo of every batch of the windows."""

        spans = [(span.start, span.stop) for frames in windows for span in self._spans(frames)]
        return ReadAhead(functools.partial(self._read, job), spans, self.reader.threaded)

    def _read(self, job: Job, first: int, stop: int) -> ReadFrames:
        """Frames `first` to `stop` with halo, without bad ones and pixels that are not finite."""
        frames = read_window(self.reader, first, stop, job.halo)
        bad = self._bad_frames.among(window_numbers(first, stop, job.halo, self.reader.n_frames), frames)
        return ReadFrames.prepare(frames, bad, job.reference, job.halo)

    def _batches(
        self, job: Job, window: _Window, reading: ReadAhead[ReadFrames]
    ) -> Iterator[tuple[int, Batch, ReadFrames, BatchResult]]:
        """Register a window; yield first frame, batch, what was read for it, and result, batch by batch."""
        for span in self._spans(window.frames):
            read = reading.next()
            batch = Batch(
                read.frames,
                window.start,
                job.halo,
                keep_flow=window.keep_flow,
                mean=window.mean,
                averaged=min(max(span.stop - (window.frames.stop - window.averaged), 0), len(span)),
                field=window.field,
                progress=window.progress,
            )
            yield span.start, batch, read, self.executor.register_batch(batch)
            del batch, read  # as the caller does


def flow_map(field: FlowField) -> FlowMap:
    """A field as a summary has it."""
    return FlowMap(field.count, field.mean, field.deviation, field.outside)


class _Window(NamedTuple):
    """Frames that share a start flow; the flows of the last `averaged` ones are added to `mean`, all to `field`."""

    frames: range
    start: NDArray[np.float32]
    mean: FlowMean
    averaged: int
    keep_flow: bool
    progress: Progress
    field: FlowField | None = None


class FrameCounter:
    """Adds up the frames that an executor reports."""

    def __init__(self, report: StageProgress, stage: str, total: int, finished: int = 0) -> None:
        self._report, self._stage, self._total, self._finished = report, stage, total, finished

    def __call__(self, finished: int) -> None:
        self._finished += finished
        self._report(self._stage, self._finished, self._total)
