"""Registration from file to file: outputs checked before, complete or kept as partial files after."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowreg_gpu.io import (
    PathLike,
    PendingFile,
    TiffReader,
    TiffWriter,
    check_output,
    keep_partials,
    open_flow_writer,
    partial_name,
)
from flowreg_gpu.registration.loop import Registration, StageProgress
from flowreg_gpu.registration.summary import Summary

__all__ = ["FileRegistration"]


class FileRegistration:
    """A registration from TIFF to TIFF whose input and output have been checked; `run` does the work.

    A context manager: leaving it without `run` having finished leaves no file behind.

    Parameters
    ----------
    source, target, flow_file, axes, channels
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
        **arguments: Any,
    ) -> None:
        self.statistics_file = Path(target).with_name(Path(target).stem + "_statistics.npz")
        if Path(target).suffix.lower() not in (".tif", ".tiff"):
            raise ValueError(f"output {os.fspath(target)!r} does not end in .tif or .tiff")
        with contextlib.ExitStack() as stack:
            reader = stack.enter_context(TiffReader(source, axes=axes, channels=channels))
            self.registration = Registration(reader, keep_flow=flow_file is not None, **arguments)
            reference = arguments.get("reference")
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
        with PendingFile(self.statistics_file) as pending, open(pending.path, "wb") as file:
            np.savez(file, **summary.statistics)  # type: ignore[arg-type]  # the stub mistakes names for flags
