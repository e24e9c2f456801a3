"""The recording loop: frames from a reader through an executor to writers, a batch at a time.

While a batch is computed, the next is read and the one before is written: at most two batches of frames and two of
results are held, besides what the executor keeps of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.engine.batch import STATISTICS, BatchResult, FlowMean, find_nonfinite
from flowreg_gpu.engine.job import Job
from flowreg_gpu.executors import BaseExecutor, create_executor
from flowreg_gpu.io import (
    ArrayReader,
    ArrayWriter,
    FrameReader,
    FrameWriter,
    PathLike,
    PendingFile,
    TiffReader,
    TiffWriter,
    check_output,
    keep_partials,
    open_flow_writer,
    partial_name,
)
from flowreg_gpu.model.preprocessing import Preprocessing, channel_weights, normalization
from flowreg_gpu.options import Options, check_size, merge_options, positive_integer
from flowreg_gpu.registration.overlap import ReadAhead, WriteBehind
from flowreg_gpu.registration.reference import ReferenceLike, build_reference, read_window, resolve_reference
from flowreg_gpu.registration.verification import Verification, Verifier, spread_frames

__all__ = ["FileRegistration", "Registration", "Summary", "register", "register_file"]

# w_init: flows averaged for the first start flow, and at the end of a window of `buffer_size` frames
FIRST_FLOWS, LAST_FLOWS = 22, 20

#: Called with the stage ("reference", "start", "frames"), frames finished in it, and frames in it.
StageProgress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a registration did.

    Attributes
    ----------
    n_frames : int
    seconds : float
        Wall-clock time from the first frame read to the last written.
    executor : str
        Name of the executor that did the work.
    reference : (H, W, C) float32
        The raw reference used.
    statistics : dict of str to (T,) float64
        mean_disp, max_disp, mean_translation in pixels, mean_div in pixels per pixel; correlation_before and
        correlation_after with the raw reference.
    constant_frames, diverged_frames, nonfinite_pixels : int
        Frames without any structure and frames whose flow left the range of float32 (zero flow both), and NaN or
        infinite pixels (taken from the reference).
    verification : Verification or None
        Comparison with the CPU, where it was asked for.
    """

    n_frames: int
    seconds: float
    executor: str
    reference: NDArray[np.float32]
    statistics: dict[str, NDArray[np.float64]]
    constant_frames: int
    diverged_frames: int
    nonfinite_pixels: int
    verification: Verification | None = None

    @property
    def frames_per_second(self) -> float:
        """Frames per second of wall-clock time."""
        return self.n_frames / self.seconds

    def __str__(self) -> str:
        statistics = self.statistics
        lines = [
            f"{self.n_frames} frames in {self.seconds:.1f} s ({self.frames_per_second:.1f} frames/s, {self.executor})",
            f"displacement: mean {statistics['mean_disp'].mean():.2f} px, "
            f"largest {statistics['max_disp'].max():.2f} px",
            f"correlation with the reference: {statistics['correlation_before'].mean():.4f} before, "
            f"{statistics['correlation_after'].mean():.4f} after",
        ]
        if self.constant_frames:
            lines.append(f"constant frames, left as they were: {self.constant_frames}")
        if self.diverged_frames:
            lines.append(f"frames whose flow diverged, left as they were: {self.diverged_frames}")
        if self.nonfinite_pixels:
            lines.append(f"NaN or infinite pixels, taken from the reference: {self.nonfinite_pixels}")
        if self.verification is not None:
            lines.append(str(self.verification))
        return "\n".join(lines)


class Registration:
    """A registration whose input has been checked; `run` does the work.

    Parameters
    ----------
    reader : FrameReader
    reference : image, file, frames or None
        See `register`.
    executor : str or BaseExecutor
    options : Options
    n_workers : int or None
    batch : int or None
        Frames computed at a time; None chooses by their size. Never changes the result.
    verify : int
        Number of frames, spread over the recording, that are registered on the CPU too and compared.

    Raises
    ------
    ValueError, TypeError, FileNotFoundError
        Input that cannot be registered.
    """

    least_frames: ClassVar[int] = 2

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
    ) -> None:
        self.options = merge_options(options, {})
        check_size(reader.height, reader.width)
        if reader.n_frames < self.least_frames:
            raise ValueError(
                f"the recording has {reader.n_frames} frame, expected at least 2; it was read with {reader.n_channels} "
                'channels: if that is wrong, name its axes, e.g. axes="TYX"'
            )
        self.options.check_recording(*reader.shape[1:])
        self.reader = reader
        if batch is not None:
            positive_integer("batch", batch)
        if verify and positive_integer("verify", verify) > reader.n_frames:
            raise ValueError(f"verify={verify} is more than the {reader.n_frames} frames of the recording")
        self._verify = verify
        self._reference = resolve_reference(reference, reader)
        self._owns_executor = not isinstance(executor, BaseExecutor)
        self.executor = create_executor(executor, n_workers)
        self.batch = batch or _default_batch(reader, self.executor, self.options.buffer_size)

    def run(
        self,
        writer: FrameWriter | None = None,
        flow_writer: FrameWriter | None = None,
        progress: StageProgress | None = None,
    ) -> Summary:
        """Register every frame, hand the results to the writers in order, and return the summary."""
        report = progress or (lambda stage, finished, total: None)
        began = time.perf_counter()
        with contextlib.ExitStack() as stack:
            if self._owns_executor:
                stack.enter_context(self.executor)
            reference = self._build_reference(report)
            job = self._job(reference)
            verifier = Verifier(job, spread_frames(self.reader.n_frames, self._verify)) if self._verify else None
            self.executor.start_recording(job)
            statistics, nonfinite = self._run_windows(job, writer, flow_writer, verifier, report)
        seconds = time.perf_counter() - began
        verification = None if verifier is None else verifier.summary()
        return self._summary(reference, statistics, nonfinite, seconds, verification)

    def _build_reference(self, report: StageProgress) -> NDArray[np.float32]:
        if not isinstance(self._reference, list):
            return self._reference
        count = _Counter(report, "reference", len(self._reference))
        return build_reference(self.reader, self._reference, self.options, self.executor, self.batch, count)

    def _job(self, reference: NDArray[np.float32]) -> Job:
        _, height, width, channels = self.reader.shape
        low, high = reference.min(axis=(0, 1)), reference.max(axis=(0, 1))
        if np.all(low == high):
            warnings.warn(f"the reference is constant ({low.tolist()}): the flow is zero", RuntimeWarning, stacklevel=4)
        minimum, scale = normalization(low, high, self.options.channel_normalization)
        sigma = self.options.sigma_per_channel(channels)
        preprocessing = Preprocessing.build(minimum, scale, sigma, height, width)
        return Job(
            self.options,
            reference,
            None,
            preprocessing,
            *channel_weights(self.options, height, width, channels),
        )

    def _run_windows(
        self,
        job: Job,
        writer: FrameWriter | None,
        flow_writer: FrameWriter | None,
        verifier: Verifier | None,
        report: StageProgress,
    ) -> tuple[NDArray[np.float64], int]:
        """Windows of `buffer_size` frames, which share a start flow; in each, batches of what memory holds.

        Returns the statistics (T, 8) of the frames and the number of NaN or infinite pixels.
        """
        n_frames, length = self.reader.n_frames, self.options.buffer_size
        windows = [range(begin, min(begin + length, n_frames)) for begin in range(0, n_frames, length)]
        start = self._first_start(job, report)
        count = _Counter(report, "frames", n_frames)
        keep_flow = flow_writer is not None or verifier is not None
        statistics, nonfinite = [], 0
        with self._reading(job, windows) as reading, WriteBehind((writer, flow_writer)) as writing:
            for frames in windows:
                mean = FlowMean()
                for batch in self._batches(job, frames, reading, start, mean, LAST_FLOWS, keep_flow, count):
                    result = batch.result
                    writing.write((result.registered, result.flow), lent=not self.executor.keeps_results)
                    if verifier is not None:
                        verifier.compare(batch.first, batch.frames, start, result)
                    statistics.append(result.statistics.copy())
                    nonfinite += batch.replaced
                    del batch, result  # their memory, before another batch is read
                if self.options.update_initialization_w:
                    start = mean.planes()
        return np.concatenate(statistics), nonfinite

    def _first_start(self, job: Job, report: StageProgress) -> NDArray[np.float32]:
        """Start flow (2, H, W) of the first window: the mean flow of its first frames, started from zero."""
        n_frames, height, width, _ = self.reader.shape
        frames = range(min(FIRST_FLOWS, self.options.buffer_size, n_frames))
        mean = FlowMean()
        zero = np.zeros((2, height, width), np.float32)
        count = _Counter(report, "start", len(frames))
        with self._reading(job, [frames]) as reading:
            # the mean is what is wanted
            deque(self._batches(job, frames, reading, zero, mean, len(frames), False, count), maxlen=0)
        return mean.planes()

    def _spans(self, frames: range) -> list[tuple[int, int]]:
        """First frame of every batch of a window, and the one after its last."""
        return [(first, min(first + self.batch, frames.stop)) for first in frames[:: self.batch]]

    def _reading(self, job: Job, windows: Sequence[range]) -> ReadAhead[tuple[NDArray[Any], int]]:
        """Frames with halo of every batch of the windows, and the number of NaN or infinite pixels replaced."""

        def read(first: int, stop: int) -> tuple[NDArray[Any], int]:
            frames = read_window(self.reader, first, stop, job.halo)
            return frames, _replace_nonfinite(frames, job.reference, job.halo)

        spans = [span for frames in windows for span in self._spans(frames)]
        return ReadAhead(read, spans, self.reader.threaded)

    def _batches(
        self,
        job: Job,
        frames: range,
        reading: ReadAhead[tuple[NDArray[Any], int]],
        start: NDArray[np.float32],
        mean: FlowMean,
        averaged: int,
        keep_flow: bool,
        count: _Counter,
    ) -> Iterator[_Batch]:
        """Register a window, adding the flows of its last `averaged` frames to `mean`; yield batch by batch."""
        for first, stop in self._spans(frames):
            batch, replaced = reading.next()
            result = self.executor.register_batch(
                batch,
                start,
                progress=count,
                keep_flow=keep_flow,
                mean=mean,
                averaged=min(max(stop - (frames.stop - averaged), 0), stop - first),
            )
            yield _Batch(first, batch, replaced, result)
            del batch, result  # as the caller does

    def _summary(
        self,
        reference: NDArray[np.float32],
        statistics: NDArray[np.float64],
        nonfinite: int,
        seconds: float,
        verification: Verification | None,
    ) -> Summary:
        columns = dict(zip(STATISTICS, statistics.T, strict=True))
        constant, diverged = int(columns.pop("constant").sum()), int(columns.pop("diverged").sum())
        problems = {
            "constant frames have no structure": constant,
            "frames have a flow beyond the range of float32 (are there pixels far above the reference's?)": diverged,
        }
        for problem, count in problems.items():
            if count:
                warnings.warn(f"{count} {problem}: their flow is zero", RuntimeWarning, stacklevel=4)
        if verification is not None and not verification.passed:
            warnings.warn(f"the result is not the CPU's: {verification}", RuntimeWarning, stacklevel=4)
        return Summary(
            self.reader.n_frames,
            seconds,
            self.executor.backend,
            reference,
            columns,
            constant,
            diverged,
            nonfinite,
            verification,
        )


class _Batch(NamedTuple):
    """A registered batch: number of its first frame, frames with halo, NaN or infinite pixels replaced, result."""

    first: int
    frames: NDArray[Any]
    replaced: int
    result: BatchResult


class _Counter:
    """Adds up the frames that an executor reports."""

    def __init__(self, report: StageProgress, stage: str, total: int) -> None:
        self._report, self._stage, self._total, self._finished = report, stage, total, 0

    def __call__(self, finished: int) -> None:
        self._finished += finished
        self._report(self._stage, self._finished, self._total)


def _default_batch(reader: FrameReader, executor: BaseExecutor, window: int) -> int:
    """Frames whose input, output and flow take the executor's bytes, but enough of them to keep every worker busy.

    Where a window takes several batches, they are even: each is read and written beside the computation of another.
    """
    frame = reader.height * reader.width * (2 * reader.n_channels * reader.dtype.itemsize + 8)
    most = int(np.clip(executor.batch_bytes // frame, 2 * executor.n_workers, 1024))
    window = min(window, reader.n_frames)
    return most if window <= most else -(-window // -(-window // most))


def _replace_nonfinite(frames: NDArray[Any], reference: NDArray[np.float32], halo: int) -> int:
    """Replace NaN and infinite pixels by the reference's, in place; their number outside the halo."""
    bad = find_nonfinite(frames)
    if bad is None:
        return 0
    np.copyto(frames, reference, where=bad)
    return int(np.count_nonzero(bad[halo : len(bad) - halo]))


def register(
    movie: NDArray[Any],
    reference: ReferenceLike = None,
    executor: str | BaseExecutor = "gpu",
    options: Options | None = None,
    *,
    n_workers: int | None = None,
    batch: int | None = None,
    progress: StageProgress | None = None,
    **overrides: Any,
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Remove the motion from a movie in memory.

    Parameters
    ----------
    movie : (T, H, W) or (T, H, W, C), uint8, uint16, int16, float32 or float64
        At least two frames of at least 16 x 16 pixels. Never modified.
    reference : (H, W) or (H, W, C) array, path, slice, sequence of int, or None
        An image is taken as it is; frames are registered to their mean and averaged. None takes frames 50 to 499.
    executor : {'gpu', 'multiprocessing', 'threading', 'sequential', 'auto'} or BaseExecutor
    options : Options or None
    n_workers : int or None
        Workers of the executor; None takes one per CPU.
    batch : int or None
        Frames computed at a time; never changes the result.
    progress : callable or None
        Called with stage, finished and total frames.
    **overrides
        Single options, as ``alpha=4``.

    Returns
    -------
    registered : shape and dtype of `movie`
        Integers are rounded and saturated. What the flow takes from outside a frame is the reference's.
    flow : (T, H, W, 2) float32
        u and v in pixels; ``registered(y, x) = movie(y + v, x + u)``.

    Raises
    ------
    ValueError, TypeError, FileNotFoundError
        Input that cannot be registered; raised before any work is done.

    Examples
    --------
    >>> import numpy as np
    >>> movie = np.random.default_rng(0).integers(0, 999, (3, 32, 40)).astype(np.uint16)
    >>> registered, flow = register(movie, reference=movie[0], executor="sequential")
    >>> registered.shape, flow.shape
    ((3, 32, 40), (3, 32, 40, 2))
    """
    movie = np.asarray(movie)
    reader = ArrayReader(movie)
    registration = Registration(
        reader, reference, executor, merge_options(options, overrides), n_workers=n_workers, batch=batch
    )
    writer = ArrayWriter(movie.shape, reader.dtype)
    flow_writer = ArrayWriter((reader.n_frames, reader.height, reader.width, 2), np.float32)
    registration.run(writer, flow_writer, progress)
    return writer.array, flow_writer.array


class FileRegistration:
    """A registration from TIFF to TIFF whose input and output have been checked; `run` does the work.

    Parameters and errors are those of `register_file`. A context manager: leaving it without `run` having
    finished leaves no file behind.
    """

    def __init__(
        self,
        source: PathLike | Sequence[PathLike],
        target: PathLike,
        executor: str | BaseExecutor = "gpu",
        reference: ReferenceLike = None,
        flow_file: PathLike | None = None,
        options: Options | None = None,
        *,
        axes: str | None = None,
        channels: int | None = None,
        n_workers: int | None = None,
        batch: int | None = None,
        verify: int = 0,
    ) -> None:
        self.statistics_file = Path(target).with_name(Path(target).stem + "_statistics.npz")
        if Path(target).suffix.lower() not in (".tif", ".tiff"):
            raise ValueError(f"output {os.fspath(target)!r} does not end in .tif or .tiff")
        with contextlib.ExitStack() as stack:
            reader = stack.enter_context(TiffReader(source, axes=axes, channels=channels))
            self.registration = Registration(
                reader, reference, executor, options, n_workers=n_workers, batch=batch, verify=verify
            )
            named = [reference] if isinstance(reference, str | os.PathLike) else []
            self._check_outputs(target, flow_file, [*reader.paths, *named])
            self._writer = TiffWriter(
                target,
                n_frames=reader.n_frames,
                height=reader.height,
                width=reader.width,
                n_channels=reader.n_channels,
                dtype=reader.dtype,
                like=reader,
            )
            stack.callback(self._writer.abort)
            self._flow_writer = None
            if flow_file is not None:
                self._flow_writer = open_flow_writer(flow_file, reader.n_frames, reader.height, reader.width)
                stack.callback(self._flow_writer.abort)
            self._stack = stack.pop_all()

    def _check_outputs(self, target: PathLike, flow_file: PathLike | None, inputs: list[PathLike]) -> None:
        """Refuse outputs, also those of a run that fails, in the place of an input or of each other."""
        outputs = [target] if flow_file is None else [target, flow_file]
        if flow_file is not None and Path(flow_file).resolve() == Path(target).resolve():
            raise ValueError(f"flow_file={os.fspath(flow_file)!r} is also the output")
        for output in (*outputs, *map(partial_name, outputs), self.statistics_file):
            check_output(output, inputs)

    def __enter__(self) -> FileRegistration:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, progress: StageProgress | None = None) -> Summary:
        """Register the recording; the files appear under their names when they are complete."""
        # the recording last: once it has its name, the run has succeeded
        writers = [self._writer] if self._flow_writer is None else [self._flow_writer, self._writer]
        try:
            summary = self.registration.run(self._writer, self._flow_writer, progress)
            for writer in writers:
                writer.close()
        except BaseException:
            keep_partials(writers)
            raise
        self._write_statistics(summary)
        return summary

    def _write_statistics(self, summary: Summary) -> None:
        pending = PendingFile(self.statistics_file)
        try:
            with open(pending.path, "wb") as file:
                np.savez(file, **summary.statistics)  # type: ignore[arg-type]  # the stub mistakes names for flags
            pending.commit()
        finally:
            pending.discard()


def register_file(
    source: PathLike | Sequence[PathLike],
    target: PathLike,
    executor: str | BaseExecutor = "gpu",
    reference: ReferenceLike = None,
    flow_file: PathLike | None = None,
    options: Options | None = None,
    *,
    axes: str | None = None,
    channels: int | None = None,
    n_workers: int | None = None,
    batch: int | None = None,
    verify: int = 0,
    progress: StageProgress | None = None,
    **overrides: Any,
) -> Summary:
    """Remove the motion from a TIFF recording of any length, a batch at a time.

    Parameters
    ----------
    source : path or sequence of paths
        TIFF, ImageJ, OME-TIFF or ScanImage recording; several files are one recording.
    target : path
        Registered TIFF with the input's shape, axes, dtype and metadata. Per-frame statistics are written beside
        it, as ``<name>_statistics.npz``.
    flow_file : path or None
        Where to keep the flow, float32 (T, H, W, 2): .h5, .hdf5, .tif or .tiff.
    axes, channels : str, int or None
        Axes of the stored array ('TCYX'), and number of channels of an interleaved stack, where the file is silent.
    verify : int
        Number of frames, spread over the recording, that are registered on the CPU too; the summary says how they
        compare, and a RuntimeWarning if the flows differ more than rounding explains.
    executor, reference, options, n_workers, batch, progress, **overrides
        As in `register`.

    Returns
    -------
    Summary

    Raises
    ------
    ValueError, TypeError, OSError
        Input that cannot be registered or an output that cannot be written; raised before any work is done. A
        fault in the middle leaves nothing under the final names; the frames finished by then are kept in files with
        ``.partial`` before the extension, and a RuntimeWarning names them.
    """
    with FileRegistration(
        source,
        target,
        executor,
        reference,
        flow_file,
        merge_options(options, overrides),
        axes=axes,
        channels=channels,
        n_workers=n_workers,
        batch=batch,
        verify=verify,
    ) as registration:
        return registration.run(progress)
