"""Registration from file to file: outputs checked before, complete or kept as partial files after."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import os
import platform
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import flowreg_gpu
from flowreg_gpu.engine.job import Job
from flowreg_gpu.io import (
    FlowOrigin,
    FlowWriter,
    PathLike,
    PendingFile,
    ReservedFileWriter,
    TiffReader,
    TiffWriter,
    check_output,
    keep_partials,
    open_flow_writer,
    partial_name,
    recording_digest,
)
from flowreg_gpu.options import AUTO
from flowreg_gpu.registration.choices import Choices
from flowreg_gpu.registration.journal import Journal, JournalError, journal_name
from flowreg_gpu.registration.loop import Registration, StageProgress, flow_map
from flowreg_gpu.registration.measuring import measure_quality, read_pairs, sample_numbers
from flowreg_gpu.registration.results import write_results
from flowreg_gpu.registration.summary import Summary

__all__ = ["FileRegistration", "check_extension", "note_changed_inputs", "stamp"]


def check_extension(target: PathLike) -> None:
    """Raise ValueError for an output that is not named as a TIFF file."""
    if Path(target).suffix.lower() not in (".tif", ".tiff"):
        raise ValueError(f"output {os.fspath(target)!r} does not end in .tif or .tiff")


class FileRegistration:
    """A registration from TIFF to TIFF whose input and output have been checked; `run` does the work.

    A context manager: leaving it without `run` having finished leaves nothing but what an earlier run had finished.

    Parameters
    ----------
    source, target, flow_file, axes, channels, resume, overwrite, verify_motion
        As in `register_file`.
    **arguments
        Those of `Registration`, but for its reader.

    Raises
    ------
    ValueError, TypeError, OSError
        As in `register_file`.
    """

    def __init__(
        self,
        source: PathLike | Sequence[PathLike],
        target: PathLike,
        flow_file: PathLike | None = None,
        *,
        axes: str | None = None,
        channels: int | None = None,
        resume: bool = False,
        overwrite: bool = False,
        verify_motion: bool = False,
        **arguments: Any,
    ) -> None:
        check_extension(target)
        self.statistics_file = statistics_name(target)
        self._target, self._axes, self._channels = target, axes, channels
        self._measures_motion = verify_motion
        self._overwrite = overwrite
        with contextlib.ExitStack() as stack:
            reader = stack.enter_context(TiffReader(source, axes=axes, channels=channels))
            self._inputs = {path: stamp(path) for path in _named_files(reader, arguments)}
            self.registration = Registration(reader, keep_flow=flow_file is not None, measure_unseen=True, **arguments)
            outputs = [target] if flow_file is None else [target, flow_file]
            given = _given(reader, self.registration, outputs, axes, channels, arguments)
            journal = _open_journal(target, resume, overwrite)
            if journal is not None:
                stack.callback(journal.close)
                journal.check(given)
            finishing = journal is not None and journal.complete
            self._check_outputs(outputs, finishing)
            if journal is None:
                PendingFile(self.statistics_file, overwrite=overwrite).discard()
            self._writers: list[ReservedFileWriter] = []
            if not finishing:
                self._open_writers(stack, reader, outputs, journal)
            if journal is None:
                journal = Journal.create(target, given, reader.shape, self._writers)
                stack.callback(journal.close)
            journal.attach(self._writers)
            self._journal = journal
            self._stack = stack.pop_all()

    @property
    def resumed_at(self) -> int:
        """Frames that the run which this one goes on with had finished."""
        checkpoint = self._journal.checkpoint
        return 0 if checkpoint is None else checkpoint.finished

    def _check_outputs(self, outputs: Sequence[PathLike], finishing: bool) -> None:
        """Refuse outputs, also those of a run that fails, in the place of an input or of each other."""
        if len(outputs) > 1 and Path(outputs[1]).resolve() == Path(outputs[0]).resolve():
            raise ValueError(f"flow_file={os.fspath(outputs[1])!r} is also the output")
        inputs = list(self._inputs)
        for output in (*outputs, self.statistics_file):
            check_output(output, inputs, overwrite=self._overwrite or finishing)
            check_output(partial_name(output), inputs, overwrite=True)  # whether it may exist, the writers know

    def _open_writers(
        self, stack: contextlib.ExitStack, reader: TiffReader, outputs: Sequence[PathLike], journal: Journal | None
    ) -> None:
        finished = None if journal is None else journal.checkpoint.finished if journal.checkpoint else 0
        how: Any = {"overwrite": self._overwrite, "resume_at": finished}
        n_frames, height, width, n_channels = reader.shape
        size: Any = {"n_frames": n_frames, "height": height, "width": width, "n_channels": n_channels}
        recording = TiffWriter(outputs[0], **size, dtype=reader.dtype, like=reader, **how)
        self._writers.append(recording)
        stack.callback(recording.keep_partial)  # after close(), or where nothing is finished, it keeps nothing
        for flow_file in outputs[1:]:
            interpolation = self.registration.options.interpolation_method
            offset = self.registration.scan_offset.pixels
            origin = FlowOrigin(recording_digest(reader), interpolation, n_channels, offset)
            flow = open_flow_writer(flow_file, n_frames, height, width, origin, **how)
            self._writers.append(flow)
            stack.callback(flow.keep_partial)

    def __enter__(self) -> FileRegistration:
        return self

    def __exit__(self, *_: object) -> None:
        if self._journal.checkpoint is None:  # nothing to go on with
            self._journal.remove()
        self._stack.close()

    def run(self, progress: StageProgress | None = None) -> Summary:
        """Register the recording; the files appear under their names when all of them are complete."""
        if not self._writers:
            return self._measured(self._finish_earlier_run())
        try:
            summary = self.registration.run(*self._pair(), progress, self._journal)
            for writer in self._writers:
                if isinstance(writer, FlowWriter):
                    writer.write_reference(summary.reference)
            self._commit(summary)
        except BaseException:
            known = self._journal.checkpoint is not None
            keep_partials(self._writers, "; resume=True (--resume) goes on with them" if known else "")
            raise
        return note_changed_inputs(self._measured(summary), self._inputs)

    def _measured(self, summary: Summary) -> Summary:
        """The summary with measures of some frames; a warning where they cannot be read: all is written."""
        used = ~summary.flagged
        if not used.any():
            return summary
        original = self.registration.reader
        numbers = sample_numbers(used, math.prod(original.shape[1:]))
        assert summary.options is not None
        job = Job.from_raw(options=summary.options, reference=summary.reference)
        try:
            with TiffReader(self._target, axes=self._axes, channels=self._channels) as registered:
                pairs = list(read_pairs(original, registered, numbers))
                quality = measure_quality(
                    pairs, job, from_reference=summary.from_reference, motion=self._measures_motion
                )
        except Exception as error:
            warnings.warn(f"the registered frames cannot be measured: {error}", RuntimeWarning, stacklevel=3)
            return summary
        return dataclasses.replace(summary, quality=quality)

    def _pair(self) -> tuple[ReservedFileWriter, ReservedFileWriter | None]:
        return self._writers[0], self._writers[1] if len(self._writers) > 1 else None

    def _commit(self, summary: Summary) -> None:
        """Give all outputs their names; where one cannot get its own, none has it."""
        written = os.path.exists(partial_name(self.statistics_file))  # by a run that died right after
        statistics = PendingFile(self.statistics_file, overwrite=self._overwrite, resume=written)
        try:
            with open(statistics.path, "wb") as file:
                write_results(file, summary, [os.path.basename(path) for path in self._inputs])
                os.fsync(file.fileno())
            self._journal.mark_complete()
        except BaseException:
            statistics.discard()
            raise
        renamed: list[PendingFile] = []
        try:
            statistics.commit()
            renamed.append(statistics)
            # the recording last: once it has its name, the run has succeeded
            for writer in reversed(self._writers):
                writer.close()
                renamed.append(writer.pending)
        except BaseException:
            statistics.keep()
            for pending in renamed:
                pending.take_back()
            raise
        self._journal.remove()

    def _finish_earlier_run(self) -> Summary:
        """Give the complete outputs of a run their names, those that it had not got to."""
        journal = self._journal
        assert journal.checkpoint is not None
        assert journal.reference is not None
        with contextlib.ExitStack() as stack:
            waiting = []
            for path in (self.statistics_file, *(final for final, _ in reversed(journal.header["outputs"]))):
                partial = partial_name(path)
                if not os.path.exists(partial):
                    continue
                if os.path.exists(path) and os.path.samefile(path, partial):  # it died within the rename
                    os.unlink(partial)
                    continue
                waiting.append(PendingFile(path, overwrite=self._overwrite, resume=True))
                stack.callback(waiting[-1].keep)
            for pending in waiting:
                pending.commit()
        journal.remove()
        return Summary.from_statistics(
            journal.checkpoint.statistics,
            seconds=0.0,
            executor=self.registration.executor.backend,
            reference=journal.reference,
            nonfinite_pixels=journal.checkpoint.nonfinite,
            verification=None,
            resumed_at=journal.checkpoint.finished,
            field=None if journal.checkpoint.field is None else flow_map(journal.checkpoint.field),
            choices=(choices := Choices.from_dict(journal.choices)),
            scan_offset=self.registration.scan_offset,
            options=choices.options(self.registration.options),
        )


def note_changed_inputs(summary: Summary, inputs: Mapping[str, list[Any]]) -> Summary:
    """The summary, with the files whose stamp has changed since the run began; a RuntimeWarning names them."""
    changed = tuple(path for path, before in inputs.items() if stamp(path) != before)
    for path in changed:
        warnings.warn(
            f"{path!r} was changed while it was registered: the output may mix old and new frames",
            RuntimeWarning,
            stacklevel=3,
        )
    return dataclasses.replace(summary, changed_inputs=changed)


def statistics_name(target: PathLike) -> Path:
    """The file of statistics beside an output; another one for each of x.tif, x.TIF and x.tiff."""
    path = Path(target)
    return path.with_name((path.stem if path.suffix == ".tif" else path.name) + "_statistics.npz")


def _named_files(reader: TiffReader, arguments: Mapping[str, Any]) -> list[str]:
    """The files that a run reads."""
    given = [arguments.get("reference"), arguments.get("bad_frames", AUTO)]
    named = [os.fspath(item) for item in given if isinstance(item, str | os.PathLike) and item != AUTO]
    return [*reader.paths, *named]


def stamp(path: PathLike) -> list[Any]:
    """Name, size and time of the last change of a file; only the name of one that was removed."""
    try:
        status = os.stat(path)
    except OSError:
        return [os.path.basename(path)]
    return [os.path.basename(path), status.st_size, status.st_mtime_ns]


def _open_journal(target: PathLike, resume: bool, overwrite: bool) -> Journal | None:
    """The journal to go on with; None for a new run. FileExistsError where one is there unasked."""
    path = journal_name(target)
    if not os.path.exists(path):
        return None
    if overwrite and not resume:
        return None  # replaced, where its run is dead: the partial file tells
    try:
        journal = Journal.open(path)
    except JournalError as error:
        raise JournalError(f"{error}; overwrite=True (--overwrite) begins anew") from error
    if resume:
        return journal
    finished = journal.checkpoint.finished if journal.checkpoint else 0
    n_bytes = sum(size for _, size in journal.header["outputs"])
    journal.close()
    raise FileExistsError(
        f"an earlier run left {finished} of {journal.header['shape'][0]} frames ({n_bytes / 1e9:.3g} GB) in "
        f"{partial_name(target)!r}: resume=True (--resume) goes on with it, overwrite=True (--overwrite) begins anew"
    )


def _given(
    reader: TiffReader,
    registration: Registration,
    outputs: Sequence[PathLike],
    axes: str | None,
    channels: int | None,
    arguments: Mapping[str, Any],
) -> dict[str, Any]:
    """All that the result depends on, by name, for the journal."""
    libraries = {name: version(name) for name in ("numpy", "numba")}
    options = registration.options
    return {
        "version": flowreg_gpu.__version__,
        **libraries,
        "machine": platform.machine(),
        "input": [stamp(path) for path in reader.paths],
        "shape": list(reader.shape),
        "dtype": reader.dtype.name,
        "axes": axes,
        "channels": channels,
        "outputs": [os.path.basename(path) for path in outputs],
        "reference": _noted(arguments.get("reference")),
        "bad_frames": _noted(arguments.get("bad_frames", "auto")),
        "measure_field": bool(arguments.get("measure_field", False)),
        **{field.name: _noted(getattr(options, field.name)) for field in dataclasses.fields(options)},
    }


def _noted(value: Any) -> Any:
    """A value as JSON can hold it: a file by its stamp, an array by its digest; 'auto' is no file."""
    if isinstance(value, np.ndarray):
        data = np.ascontiguousarray(value)
        return [list(data.shape), data.dtype.name, hashlib.sha256(data.tobytes()).hexdigest()]
    if isinstance(value, os.PathLike) or (isinstance(value, str) and value != AUTO and os.path.exists(value)):
        return stamp(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_noted(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)
