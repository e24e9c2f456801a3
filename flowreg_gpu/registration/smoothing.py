"""Gaussian filter of a recording in space and time, from file to file."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import NDArray

from flowreg_gpu.cuda.device import CudaDevice, Device, DeviceError
from flowreg_gpu.engine.smoothing import CpuSmoother, DeviceSmoother, Smoother, smoothing
from flowreg_gpu.executors import gpu_status
from flowreg_gpu.io import PathLike, TiffReader, TiffWriter, check_output, keep_partials, partial_name
from flowreg_gpu.options import Options, positive_integer
from flowreg_gpu.registration.overlap import ReadAhead, WriteBehind
from flowreg_gpu.registration.reference import read_window
from flowreg_gpu.workers.pool import default_workers

__all__ = ["SMOOTHING_EXECUTORS", "FileSmoothing", "smooth_file"]

SMOOTHING_EXECUTORS = ("auto", "gpu", "threading", "sequential")


def smooth_file(
    source: PathLike | Sequence[PathLike],
    target: PathLike,
    sigma: Sequence[float] | Sequence[Sequence[float]] = (1.0, 1.0, 0.0),
    executor: str = "auto",
    *,
    axes: str | None = None,
    channels: int | None = None,
    n_workers: int | None = None,
    batch: int | None = None,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> None:
    """Filter a TIFF recording of any length by a Gaussian in space and time, a batch at a time.

    Parameters
    ----------
    source : path or sequence of paths
        TIFF, ImageJ, OME-TIFF or ScanImage recording; several files are one recording.
    target : path
        Filtered TIFF with the input's shape, axes, dtype and metadata.
    sigma : (3,) or (C, 3) floats
        Standard deviations (rows, columns, time) in pixels and frames, for all channels or for each. 0 does not filter.
    executor : {'auto', 'gpu', 'threading', 'sequential'}
        Who does the work; 'auto' is a GPU where there is one, else threads. The result has the same bits.
    axes, channels : str, int or None
        As in `register_file`.
    n_workers : int or None
        Threads; None takes one per CPU.
    batch : int or None
        Frames filtered at a time; never changes the result.
    overwrite : bool
        Whether `target` may replace a file that exists, complete or partial.
    progress : callable or None
        Called with "smooth", finished and total frames.

    Raises
    ------
    ValueError, TypeError, OSError
        Input that cannot be filtered or an output that cannot be written; raised before any work is done. After a fault
        in the middle there is nothing under the final name; the frames finished by then are kept in a file with
        ``.partial`` before the extension, and a RuntimeWarning names it.

    Notes
    -----
    The kernel ends at 4 sigma, as SciPy's; at the borders, and at the first and last frame, the recording is mirrored
    (half-sample symmetric, SciPy's 'reflect'). The arithmetic is float32; integers are rounded to nearest even and
    saturated.

    Examples
    --------
    >>> smooth_file("movie.tif", "smooth.tif", sigma=(1.5, 1.5, 0.5))  # doctest: +SKIP
    """
    work = FileSmoothing(
        source,
        target,
        sigma,
        executor,
        axes=axes,
        channels=channels,
        n_workers=n_workers,
        batch=batch,
        overwrite=overwrite,
    )
    with work:
        work.run(progress)


class FileSmoothing:
    """A filter from TIFF to TIFF whose input and output have been checked; `run` does the work.

    A context manager: leaving it without `run` having finished leaves nothing but the frames that are finished.

    Parameters
    ----------
    source, target, sigma, executor, axes, channels, n_workers, batch, overwrite
        As in `smooth_file`; `executor` may also be a `Device`.

    Attributes
    ----------
    backend : str
        Who does the work.
    """

    def __init__(
        self,
        source: PathLike | Sequence[PathLike],
        target: PathLike,
        sigma: Sequence[float] | Sequence[Sequence[float]] = (1.0, 1.0, 0.0),
        executor: str | Device = "auto",
        *,
        axes: str | None = None,
        channels: int | None = None,
        n_workers: int | None = None,
        batch: int | None = None,
        overwrite: bool = False,
    ) -> None:
        if os.path.splitext(target)[1].lower() not in (".tif", ".tiff"):
            raise ValueError(f"output {os.fspath(target)!r} does not end in .tif or .tiff")
        if isinstance(executor, str) and executor not in SMOOTHING_EXECUTORS:
            raise ValueError(f"{executor=} is not one of {', '.join(SMOOTHING_EXECUTORS)}")
        self._n_workers = default_workers() if n_workers is None else positive_integer("n_workers", n_workers)
        if executor == "sequential":
            self._n_workers = 1
        chosen_batch = None if batch is None else positive_integer("batch", batch)
        options = Options(sigma=sigma)
        with contextlib.ExitStack() as stack:
            reader = stack.enter_context(TiffReader(source, axes=axes, channels=channels))
            n_frames, height, width, n_channels = reader.shape
            self._filtering = smoothing(options.sigma_per_channel(n_channels), height, width)
            for path in (target, partial_name(target)):
                check_output(path, reader.paths, overwrite=overwrite)
            self._smoother = self._choose_smoother(executor)
            stack.callback(lambda: self._smoother.close())
            frame_bytes = 2 * height * width * n_channels * reader.dtype.itemsize
            self._batch = chosen_batch or max(self._smoother.batch_bytes // frame_bytes, self._n_workers)
            size: Any = {"n_frames": n_frames, "height": height, "width": width, "n_channels": n_channels}
            self._writer = TiffWriter(target, **size, dtype=reader.dtype, like=reader, overwrite=overwrite)
            stack.callback(lambda: keep_partials([self._writer]))  # after close(), it keeps nothing
            self._reader = reader
            self._stack = stack.pop_all()

    @property
    def backend(self) -> str:
        """Who does the work."""
        return self._smoother.backend

    def __enter__(self) -> FileSmoothing:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, progress: Callable[[str, int, int], None] | None = None) -> None:
        """Filter the recording; the file appears under its name when it is complete."""
        n_frames, halo = self._reader.n_frames, self._filtering.halo
        spans = [(first, min(first + self._batch, n_frames)) for first in range(0, n_frames, self._batch)]

        def read(first: int, stop: int) -> NDArray[Any]:
            return read_window(self._reader, first, stop, halo)

        with ReadAhead(read, spans, self._reader.threaded) as reading, WriteBehind([self._writer]) as writing:
            for _, stop in spans:
                writing.write([self._smooth(reading.next())], lent=False)
                if progress is not None:
                    progress("smooth", stop, n_frames)
        self._writer.close()

    def _smooth(self, frames: NDArray[Any]) -> NDArray[Any]:
        """Filter a batch, on the CPU from a fault of the device on."""
        try:
            return self._smoother.smooth(frames)
        except DeviceError as error:
            self._smoother.close()
            self._smoother = self._fall_back(error, "going on with")
            return self._smoother.smooth(frames)

    def _choose_smoother(self, executor: str | Device) -> Smoother:
        if isinstance(executor, str):
            usable, reason = gpu_status() if executor in ("auto", "gpu") else (False, "")
            if not usable and executor == "gpu":
                return self._fall_back(DeviceError(reason), "using")
            if not usable:
                return CpuSmoother(self._filtering, self._n_workers)
        try:
            return DeviceSmoother(CudaDevice(0) if isinstance(executor, str) else executor, self._filtering)
        except DeviceError as error:
            return self._fall_back(error, "using")

    def _fall_back(self, error: DeviceError, verb: str) -> Smoother:
        warnings.warn(f"the GPU cannot be used ({error}); {verb} threads", RuntimeWarning, stacklevel=4)
        return CpuSmoother(self._filtering, self._n_workers)
