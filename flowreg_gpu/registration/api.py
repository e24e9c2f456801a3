"""The calls that register a recording, in memory and from file to file, and the one that applies a saved flow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.executors import BaseExecutor
from flowreg_gpu.io import ArrayReader, ArrayWriter, PathLike
from flowreg_gpu.options import Options, check_plain, merge_options
from flowreg_gpu.registration.apply import FlowApplication
from flowreg_gpu.registration.bad_frames import BadFramesLike
from flowreg_gpu.registration.files import FileRegistration
from flowreg_gpu.registration.loop import Registration, StageProgress
from flowreg_gpu.registration.reference import ReferenceLike
from flowreg_gpu.registration.summary import Summary

__all__ = ["apply_file", "register", "register_file"]


def register(
    movie: NDArray[Any],
    reference: ReferenceLike = None,
    executor: str | BaseExecutor = "gpu",
    options: Options | None = None,
    *,
    n_workers: int | None = None,
    batch: int | None = None,
    bad_frames: BadFramesLike = "auto",
    progress: StageProgress | None = None,
    **overrides: Any,
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Remove the motion from a movie in memory.

    Parameters
    ----------
    movie : (T, H, W) or (T, H, W, C), uint8, uint16, int16, float32 or float64
        At least two frames of at least 16 x 16 pixels. Never modified.
    reference : (H, W) or (H, W, C) array, path, slice, sequence of int, 'auto', or None
        An image is taken as it is; frames are registered to their mean and averaged. None takes frames 50 to 499;
        'auto' takes up to 150 frames from all over the recording that are alike, at rest and bright.
    executor : {'gpu', 'multiprocessing', 'threading', 'sequential', 'auto'} or BaseExecutor
    options : Options or None
    n_workers : int or None
        Workers of the executor; None takes one per CPU.
    batch : int or None
        Frames computed at a time; never changes the result.
    progress : callable or None
        Called with stage, finished and total frames.
    bad_frames : {'auto'}, None, sequence of int, (T,) bool array, slice or path
        Frames that are left as they are, with zero flow, and used neither for the reference nor for start flows: found
        by what they show (black, constant, saturated, half lit, or dark since a shutter was closed), none, or these. A
        file has a number on every line, or is an array (.npy). Frames without a finite pixel always are.
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
        reader,
        reference,
        executor,
        merge_options(options, overrides),
        n_workers=n_workers,
        batch=batch,
        bad_frames=bad_frames,
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
    bad_frames: BadFramesLike = "auto",
    memory: int | str | None = None,
    verify_motion: bool = False,
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
        Where to keep the flow, float32 (T, H, W, 2): .h5, .hdf5, .tif or .tiff. `apply_file` takes it.
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
    verify_motion : bool
        Whether the motion that is left is measured, on some frames, for `Summary.quality`.
    executor, reference, options, n_workers, batch, bad_frames, progress, **overrides
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
        bad_frames=bad_frames,
        resume=resume,
        overwrite=overwrite,
        memory=memory,
        verify_motion=verify_motion,
    ) as registration:
        return registration.run(progress)


def apply_file(
    flow_file: PathLike,
    source: PathLike | Sequence[PathLike],
    target: PathLike,
    executor: str | BaseExecutor = "gpu",
    *,
    reference: ReferenceLike = None,
    interpolation: str | None = None,
    axes: str | None = None,
    channels: int | None = None,
    n_workers: int | None = None,
    batch: int | None = None,
    overwrite: bool = False,
    progress: StageProgress | None = None,
) -> Summary:
    """Warp a recording of any length by a saved flow, for example another channel of the one that was registered.

    For the recording that the flow was found on, the result is that of `register_file`, bit for bit.

    Parameters
    ----------
    flow_file : path
        Flow of every frame, float32 (T, H, W, 2), as `register_file` writes it: .h5, .hdf5, .tif or .tiff.
    source : path or sequence of paths
        TIFF recording of as many frames of the same height and width, of any number of channels.
    target : path
        TIFF with the input's shape, axes, dtype and metadata.
    reference : image, path, slice, sequence of int, 'auto', or None
        What lies outside a frame comes from it. An image is taken as it is; frames are warped by their flows and
        averaged. None takes the reference saved with the flow, if `source` is the recording that it was found on; else
        the frames that `register` would take, but for those whose flow is zero.
    interpolation : {'cubic', 'linear', 'nearest'} or None
        None takes the one that the flow was made with, or 'cubic' where the file does not say.
    overwrite : bool
        Whether `target` may replace a file.
    executor, axes, channels, n_workers, batch, progress
        As in `register_file`.

    Returns
    -------
    Summary
        With the displacements of the flow, and the correlations with the reference before and after.

    Raises
    ------
    ValueError, TypeError, OSError
        Files that do not fit together or cannot be read, or an output that cannot be written; raised before any work
        is done. A fault in the middle leaves what `register_file` leaves.
    """
    with FlowApplication(
        flow_file,
        source,
        target,
        reference=reference,
        interpolation=interpolation,
        axes=axes,
        channels=channels,
        executor=executor,
        n_workers=n_workers,
        batch=batch,
        overwrite=overwrite,
    ) as application:
        return application.run(progress)
