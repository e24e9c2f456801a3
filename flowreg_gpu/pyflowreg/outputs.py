"""What a run hands out besides its result: files by pyflowreg's writers, batches to callbacks, statistics."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from flowreg_gpu.io import FrameReader, FrameWriter, PathLike, PendingFile, keep_partials
from flowreg_gpu.pyflowreg.library import part
from flowreg_gpu.pyflowreg.video import VideoSink
from flowreg_gpu.registration.loop import Registration
from flowreg_gpu.registration.summary import Summary

__all__ = ["BatchCallback", "Outputs", "ProgressCallback"]

#: Called with a batch and the numbers of its first frame and of the first one after it.
BatchCallback = Callable[[NDArray[Any], int, int], None]
#: Called with finished and all frames.
ProgressCallback = Callable[[int, int], None]
Taker = Callable[[NDArray[Any]], None]

STATISTICS = ("mean_disp", "max_disp", "mean_div", "mean_translation")


class Outputs(contextlib.ExitStack):
    """Everything that takes the frames and flows of a run; leaving it removes what was not completed.

    Attributes
    ----------
    registered, flow : list of callable
        Called with every batch (n, H, W, C) or (n, H, W, 2), in this order.
    """

    def __init__(self, reader: FrameReader, inputs: Sequence[PathLike] = ()) -> None:
        super().__init__()
        self._reader, self._inputs = reader, inputs
        self._sinks: list[VideoSink] = []
        self.registered: list[Taker] = []
        self.flow: list[Taker] = []

    def _sink(self, writer: Any, channels: int, dtype: DTypeLike) -> VideoSink:
        sink = VideoSink(writer, (*self._reader.shape[:3], channels), dtype, self._inputs)
        self.callback(sink.abort)
        self._sinks.append(sink)
        return sink

    def add_video(self, writer: Any) -> None:
        """Have the registered frames written."""
        self.registered.append(self._sink(writer, self._reader.n_channels, self._reader.dtype).write)

    def add_flow(self, folder: Path) -> None:
        """Have the flows written to ``w.h5``, datasets u and v."""
        self.flow.append(self._sink(_hdf5(folder / "w.h5", dataset_names=["u", "v"]), 2, np.float32).write)

    def add_masks(self, folder: Path) -> None:
        """Have the valid masks written to ``idx.hdf``."""
        sink = self._sink(_hdf5(folder / "idx.hdf", dataset_name="idx"), 1, np.uint8)
        self.flow.append(lambda flow: sink.write(valid_masks(flow)))

    def add_callbacks(self, registered: BatchCallback | None, flow: BatchCallback | None, size: int) -> None:
        """Have functions called with batches of `size` frames, after everything added before has its frames."""
        for takers, callback in ((self.registered, registered), (self.flow, flow)):
            if callback is not None:
                takers.append(CallbackBatches(callback, size, self._reader.n_frames).take)

    def run(self, registration: Registration, progress: ProgressCallback | None) -> Summary:
        """Run the registration; the files appear under their names, the video last, when it has succeeded."""

        def report(stage: str, finished: int, total: int) -> None:
            if stage == "frames" and progress is not None:
                progress(finished, total)

        shape = self._reader.shape
        flow_writer = FrameTee((*shape[:3], 2), np.float32, self.flow) if self.flow else None
        try:
            summary = registration.run(FrameTee(shape, self._reader.dtype, self.registered), flow_writer, report)
            for sink in self._sinks:
                sink.close()
        except BaseException:
            keep_partials(self._sinks)
            raise
        return summary

    def write_meta(self, folder: Path, summary: Summary, reference: NDArray[np.float64]) -> None:
        """Write ``statistics.npz`` and ``reference_frame.npy``."""
        folder.mkdir(parents=True, exist_ok=True)
        statistics = {name: summary.statistics[name] for name in STATISTICS}
        with PendingFile(folder / "statistics.npz", overwrite=True) as pending, open(pending.path, "wb") as file:
            np.savez(file, **statistics)  # type: ignore[arg-type]  # the stub mistakes names for flags
        with PendingFile(folder / "reference_frame.npy", overwrite=True) as pending, open(pending.path, "wb") as file:
            np.save(file, reference)


def _hdf5(path: Path, **names: Any) -> Any:
    path.parent.mkdir(parents=True, exist_ok=True)
    return part("util.io.factory", "get_video_file_writer")(str(path), "HDF5", **names)


class FrameTee(FrameWriter):
    """Hands the frames to several takers, in order."""

    def __init__(self, shape: Sequence[int], dtype: DTypeLike, takers: Sequence[Taker]) -> None:
        super().__init__(shape, dtype)
        self._takers = takers

    def _store(self, frames: NDArray[Any], start: int) -> None:
        for take in self._takers:
            take(frames)

    def _commit(self) -> None:
        """Nothing to do: the takers keep the frames."""

    def _discard(self) -> None:
        """Nothing to do: the takers keep the frames."""


class CallbackBatches:
    """Calls a function with batches of `size` frames of their own, however many frames arrive at a time."""

    def __init__(self, callback: BatchCallback, size: int, n_frames: int) -> None:
        self._callback, self._size, self._n_frames = callback, size, n_frames
        self._first = self._filled = 0
        self._batch: NDArray[Any] | None = None

    def take(self, frames: NDArray[Any]) -> None:
        """Add frames; what the callback raises is passed on."""
        while len(frames):
            if self._batch is None:
                count = min(self._size, self._n_frames - self._first)
                self._batch, self._filled = np.empty((count, *frames.shape[1:]), frames.dtype), 0
            taken = frames[: len(self._batch) - self._filled]
            self._batch[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            frames = frames[len(taken) :]
            if self._filled == len(self._batch):
                batch, first = self._batch, self._first
                self._batch, self._first = None, first + len(batch)
                self._callback(batch, first, self._first)


def valid_masks(flow: NDArray[np.float32]) -> NDArray[np.uint8]:
    """255 where a flow (n, H, W, 2) points into the frame, otherwise 0; (n, H, W, 1)."""
    _, height, width, _ = flow.shape
    x = np.arange(width) + flow[..., 0].astype(np.float64)
    y = np.arange(height)[:, None] + flow[..., 1].astype(np.float64)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    masks: NDArray[np.uint8] = np.where(inside[..., None], np.uint8(255), np.uint8(0))
    return masks
