"""The two calls that register a recording: in memory, and from file to file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.executors import BaseExecutor
from flowreg_gpu.io import ArrayReader, ArrayWriter, PathLike
from flowreg_gpu.options import Options, check_plain, merge_options
from flowreg_gpu.registration.files import FileRegistration
from flowreg_gpu.registration.loop import Registration, StageProgress
from flowreg_gpu.registration.reference import ReferenceLike
from flowreg_gpu.registration.summary import Summary

__all__ = ["register", "register_file"]


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
    check_plain(movie, "movie")
    movie = np.asarray(movie)
    reader = ArrayReader(movie)
    registration = Registration(
        reader, reference, executor, merge_options(options, overrides), n_workers=n_workers, batch=batch
    )
    writer = ArrayWriter(movie.shape, reader.dtype)
    flow_writer = ArrayWriter((reader.n_frames, reader.height, reader.width, 2), np.float32)
    registration.run(writer, flow_writer, progress)
    return writer.array, flow_writer.array


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
    resume: bool = False,
    overwrite: bool = False,
    memory: int | str | None = None,
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
    resume : bool
        Go on with a run of the same arguments that ended early, for whatever reason, after the last batch that it
        wrote; the result is that of an uninterrupted run. Without one, begin.
    overwrite : bool
        Replace outputs, complete or partial, that exist.
    memory : int, str or None
        Most memory that process, workers and shared memory may take, in bytes or as '500MB', '2GB' or '1.5GiB': the
        batch is made smaller. On a GPU it is the memory of the host.
    executor, reference, options, n_workers, batch, progress, **overrides
        As in `register`.

    Returns
    -------
    Summary

    Raises
    ------
    ValueError, TypeError, OSError
        Input that cannot be registered, or an output that exists or cannot be written; raised before any work is
        done. A fault in the middle leaves nothing under the final names; the frames finished by then are kept in files
        with ``.partial`` before the extension, and a RuntimeWarning names them.
    """
    with FileRegistration(
        source,
        target,
        flow_file,
        axes=axes,
        channels=channels,
        reference=reference,
        executor=executor,
        options=merge_options(options, overrides),
        n_workers=n_workers,
        batch=batch,
        verify=verify,
        resume=resume,
        overwrite=overwrite,
        memory=memory,
    ) as registration:
        return registration.run(progress)
