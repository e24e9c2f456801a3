"""A saved flow applied to a recording: the frames are warped by it, from file to file, a batch at a time."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.engine.batch import Batch, BatchResult, Progress, unflagged
from flowreg_gpu.engine.job import WarpJob
from flowreg_gpu.executors import BaseExecutor, create_executor
from flowreg_gpu.io import (
    FlowReader,
    FrameReader,
    PathLike,
    TiffReader,
    TiffWriter,
    check_output,
    keep_partials,
    open_flow_reader,
    partial_name,
    recording_digest,
)
from flowreg_gpu.options import Options, positive_integer
from flowreg_gpu.registration.bad_frames import BadFrames, ReadFrames
from flowreg_gpu.registration.files import check_extension, note_changed_inputs, stamp
from flowreg_gpu.registration.loop import FrameCounter, StageProgress
from flowreg_gpu.registration.overlap import ReadAhead, WriteBehind
from flowreg_gpu.registration.reference import ReferenceLike, Selection, is_auto, is_file, resolve_reference
from flowreg_gpu.registration.scan_offset import NO_OFFSET, ScanOffset, ScanReader
from flowreg_gpu.registration.summary import Summary

__all__ = ["FlowApplication"]


class FlowApplication:
    """A flow and a recording that have been checked; `run` warps the recording by the flow.

    A context manager: leaving it without `run` having finished leaves no file behind.

    Parameters
    ----------
    flow_file, source, target, reference, interpolation, axes, channels, executor, n_workers, batch, overwrite
        As in `apply_file`.

    Attributes
    ----------
    reference_source : str
        Where the reference comes from, in words.

    Raises
    ------
    ValueError, TypeError, OSError
        As in `apply_file`.
    """

    def __init__(
        self,
        flow_file: PathLike,
        source: PathLike | Sequence[PathLike],
        target: PathLike,
        *,
        reference: ReferenceLike = None,
        interpolation: str | None = None,
        axes: str | None = None,
        channels: int | None = None,
        executor: str | BaseExecutor = "gpu",
        n_workers: int | None = None,
        batch: int | None = None,
        overwrite: bool = False,
    ) -> None:
        check_extension(target)
        with contextlib.ExitStack() as stack:
            self._flow = stack.enter_context(open_flow_reader(flow_file))
            reader = stack.enter_context(TiffReader(source, axes=axes, channels=channels))
            _check_sizes(self._flow, reader)
            origin = self._flow.origin
            if interpolation is None:
                interpolation = "cubic" if origin is None else origin.interpolation
            self._options = Options(interpolation_method=interpolation)
            self._scan_offset = NO_OFFSET if origin is None else ScanOffset(origin.scan_offset)
            # the offset is that of the scan, and of all of its channels
            self._reader = ScanReader(reader, self._scan_offset.pixels) if self._scan_offset.pixels else reader
            own = origin is not None and origin.recording == recording_digest(reader)
            self.reference_source, self._reference = _choose_reference(reference, self._flow, self._reader, own)
            if batch is not None:
                positive_integer("batch", batch)
            self._owns_executor = not isinstance(executor, BaseExecutor)
            self.executor = create_executor(executor, n_workers)
            self.batch = batch or _default_batch(reader, self.executor)
            named = [os.fspath(reference)] if is_file(reference) else []
            self._inputs = {path: stamp(path) for path in (*reader.paths, self._flow.path, *named)}
            check_output(target, list(self._inputs), overwrite=overwrite)
            check_output(partial_name(target), list(self._inputs), overwrite=True)  # the writer knows whether it may
            self._writer = TiffWriter(
                target,
                n_frames=reader.n_frames,
                height=reader.height,
                width=reader.width,
                n_channels=reader.n_channels,
                dtype=reader.dtype,
                like=reader,
                overwrite=overwrite,
            )
            stack.callback(self._writer.abort)
            self._stack = stack.pop_all()

    def __enter__(self) -> FlowApplication:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, progress: StageProgress | None = None) -> Summary:
        """Warp the recording; the file appears under its name when it is complete."""
        report = progress or (lambda stage, finished, total: None)
        began = time.perf_counter()
        statistics: list[NDArray[np.float64]] = []
        try:
            with contextlib.ExitStack() as stack:
                if self._owns_executor:
                    stack.enter_context(self.executor)
                stack.enter_context(self.executor.in_use())
                reference = self._build_reference(report)
                count = FrameCounter(report, "frames", self._reader.n_frames)
                with WriteBehind([self._writer]) as writing:

                    def take(result: BatchResult, read: ReadFrames) -> None:
                        statistics.append(read.put_back(result, reference))
                        writing.write([result.registered], lent=not self.executor.keeps_results)

                    nonfinite = self._warp(self._reader, self._flow, reference, take, count)
            self._writer.close()
        except BaseException:
            keep_partials([self._writer])
            raise
        summary = Summary.from_statistics(
            np.concatenate(statistics),
            seconds=time.perf_counter() - began,
            executor=self.executor.backend,
            reference=reference,
            nonfinite_pixels=nonfinite,
            verification=None,
            scan_offset=self._scan_offset,
        )
        return note_changed_inputs(summary, self._inputs)

    def _build_reference(self, report: StageProgress) -> NDArray[np.float32]:
        """The reference: given, or the mean of frames that are warped by their flows, without those that are flagged.

        Outside a frame, that mean has the plain mean of the frames.
        """
        if not isinstance(self._reference, list):
            return self._reference
        frames, flows = Selection(self._reader, self._reference), Selection(self._flow, self._reference)
        total = np.zeros(frames.shape[1:])
        for index in range(frames.n_frames):
            total += frames.read(index, index + 1)[0]
        plain = (total / frames.n_frames).astype(np.float32)
        total[:] = 0
        counts: list[int] = []

        def take(result: BatchResult, read: ReadFrames) -> None:
            own = result.registered[unflagged(result.statistics)]
            for registered in own:  # one by one, so that the sum does not depend on the batch
                np.add(total, registered, out=total)
            counts.append(len(own))

        self._warp(frames, flows, plain, take, FrameCounter(report, "reference", frames.n_frames))
        return (total / sum(counts)).astype(np.float32) if any(counts) else plain

    def _warp(
        self,
        reader: FrameReader,
        flows: FrameReader,
        reference: NDArray[np.float32],
        take: Callable[[BatchResult, ReadFrames], None],
        count: Progress,
    ) -> int:
        """Warp all frames by their flows and hand them over, batch by batch; the number of replaced pixels."""
        self.executor.start_recording(WarpJob(options=self._options, reference=reference))

        spans = [(first, min(first + self.batch, reader.n_frames)) for first in range(0, reader.n_frames, self.batch)]
        nonfinite = 0
        with ReadAhead(
            lambda first, stop: _ready(reader.read(first, stop), flows.read(first, stop), reference),
            spans,
            reader.threaded and flows.threaded,
        ) as reading:
            for _ in spans:
                read, planes = reading.next()
                nonfinite += read.nonfinite
                batch = Batch(read.frames, None, flow=planes, keep_flow=False, progress=count)
                result = self.executor.register_batch(batch)
                take(result, read)
                del batch, read, planes, result  # their memory, before another batch is read
        return nonfinite


def _ready(
    frames: NDArray[Any], flow: NDArray[np.float32], reference: NDArray[np.float32]
) -> tuple[ReadFrames, NDArray[np.float32]]:
    """Frames that are ready to be warped, and their flows as planes (n, 2, H, W).

    Those whose flow is zero are bad: they were left as they were when the flow was found, and are so again.
    """
    planes = np.empty((len(frames), 2, *flow.shape[1:3]), np.float32)
    for component in range(2):
        planes[:, component] = flow[..., component]
    still: NDArray[np.bool_] = np.logical_not(planes.any(axis=(1, 2, 3)))
    return ReadFrames.prepare(frames, still, reference, 0), planes


def _default_batch(reader: FrameReader, executor: BaseExecutor) -> int:
    """Frames whose input, output and flow, as it is read and as planes, take the executor's bytes.

    They are as many for each worker, and enough to keep every one busy.
    """
    frame = reader.height * reader.width * (2 * reader.n_channels * reader.dtype.itemsize + 2 * 8)
    workers = executor.n_workers
    return int(np.clip(executor.batch_bytes // frame // workers * workers, 2 * workers, 1024))


def _check_sizes(flow: FlowReader, reader: TiffReader) -> None:
    """Raise ValueError unless there is a flow for every frame, and a vector for every pixel."""
    if flow.shape[:3] != reader.shape[:3]:
        sizes = ["{} frames of {} x {} pixels".format(*shape[:3]) for shape in (flow.shape, reader.shape)]
        raise ValueError(
            f"flow {flow.path!r} has {sizes[0]}, recording {reader.paths[0]!r} has {sizes[1]}: expected the same"
        )


def _choose_reference(
    reference: ReferenceLike, flow: FlowReader, reader: FrameReader, own: bool
) -> tuple[str, NDArray[np.float32] | list[int]]:
    """Where the reference comes from, and the image (H, W, C), or the frames that it is the mean of.

    `own` says whether the flow was found on this recording.
    """
    bad_frames = BadFrames(None, reader)  # those that the flow's run left as they were have no flow
    if reference is not None and not is_auto(reference):
        chosen = resolve_reference(reference, reader, bad_frames)
        return (f"mean of {len(chosen)} registered frames" if isinstance(chosen, list) else "as given"), chosen
    if reference is None and own:
        saved = flow.read_reference()
        if saved is not None:
            return "saved with the flow", resolve_reference(saved, reader, bad_frames)
    frames = resolve_reference(reference, reader, bad_frames)
    assert isinstance(frames, list)
    # frames that were left as they are were not fit to be registered, and are not fit for a mean
    moved = [index for index in frames if flow.read(index, index + 1).any()] or frames
    return f"mean of {len(moved)} registered frames", moved
