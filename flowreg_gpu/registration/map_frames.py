"""Any function of a frame over arrays and files of any size, in worker processes."""

from __future__ import annotations

import contextlib
import math
import operator
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import DTypeLike, NDArray

from flowreg_gpu.io import (
    FrameReader,
    FrameWriter,
    PathLike,
    TiffReader,
    TiffWriter,
    check_output,
    keep_partials,
    partial_name,
)
from flowreg_gpu.io.mapped import release_pages
from flowreg_gpu.io.npy import NpyWriter
from flowreg_gpu.options import positive_integer
from flowreg_gpu.workers.map_frames import FrameFunction, FrameKind, describe_result, stream_frames
from flowreg_gpu.workers.pool import FramePool, default_workers

__all__ = ["map_frames"]

_Out = TypeVar("_Out")
_PATH = (str, os.PathLike)
_COMMON_DTYPES = (np.uint8, np.uint16, np.float32)  # that every kind of TIFF file has
# Arrays that may be read and written in another thread; what is bound to its thread is used in the caller's.
_THREADED = ("numpy", "h5py", "zarr")


@overload
def map_frames(
    func: FrameFunction,
    stack: Any,
    out: None = None,
    n_workers: int | None = None,
    progress: Callable[[int], None] | None = None,
    chunk: int | None = None,
    dtype: DTypeLike | None = None,
    shape: int | Sequence[int] | None = None,
    timeout: float | None = None,
    *,
    overwrite: bool = False,
) -> NDArray[Any]: ...
@overload
def map_frames(
    func: FrameFunction,
    stack: Any,
    out: _Out,
    n_workers: int | None = None,
    progress: Callable[[int], None] | None = None,
    chunk: int | None = None,
    dtype: DTypeLike | None = None,
    shape: int | Sequence[int] | None = None,
    timeout: float | None = None,
    *,
    overwrite: bool = False,
) -> _Out: ...
def map_frames(
    func: FrameFunction,
    stack: Any,
    out: Any = None,
    n_workers: int | None = None,
    progress: Callable[[int], None] | None = None,
    chunk: int | None = None,
    dtype: DTypeLike | None = None,
    shape: int | Sequence[int] | None = None,
    timeout: float | None = None,
    *,
    overwrite: bool = False,
) -> Any:
    """Apply a function to every frame of a stack, in worker processes.

    The stack may be larger than memory: frames stream through a few blocks of shared memory, some for each worker,
    while others are read and written. None is pickled, and none is held longer than it takes.

    Parameters
    ----------
    func : callable
        ``func(frame) -> array``. It gets a read-only view of a frame, (H, W), or (H, W, C) where the recording has a
        channel axis, and must be importable, so no lambda. Shape and dtype of what it returns may be others than the
        frame's, and are the same for all frames.
    stack : array_like (frames, ...), path, sequence of paths, or FrameReader
        The frames, along axis 0; never modified. What has `shape`, `dtype` and can be sliced is read a chunk at a time:
        arrays, memory maps, datasets of HDF5 and Zarr. A path is that of a TIFF file, or a .npy file.
    out : array (frames, ...) or path, optional
        Where the results go, cast as ``same_kind`` allows; also a memory map or a dataset, or `stack` itself. A path
        ends in .tif or .tiff (results of (H, W) or (H, W, C), with the metadata of a TIFF stack whose frames have that
        shape) or in .npy. By default, a new array.
    n_workers : int, optional
        Number of processes; by default the CPUs that this process may use. Results do not depend on it.
    progress : callable, optional
        Called with the number of newly finished frames.
    chunk : int, optional
        Frames that a worker gets at a time, at most; by default about 8 MB of them. Results do not depend on it.
    dtype, shape : optional
        Of one result. Where either is missing and `out` is no array, `func` is called for the first frame once more,
        to learn it.
    timeout : float, optional
        Seconds that `func` may take for a frame.
    overwrite : bool
        Whether a path `out` may replace a file that exists, complete or partial.

    Returns
    -------
    ndarray, shape (frames, ...), or `out`
        The results, or `out` if given.

    Raises
    ------
    ValueError
        The stack has no frames, a number is out of range, `out` has another shape, or results of different shapes.
    TypeError
        `func` is not importable, or returns None, Python objects, or what cannot be cast.
    FileExistsError
        `out` is a file that exists, complete or partial, and `overwrite` is False.
    TimeoutError
        `func` takes too long for a frame; the workers are ended.
    RuntimeError
        A worker dies, or there is too little shared memory for a frame of each.
    Exception
        What `func` raises, with the frame in its message (``frame 17: ...``) and the worker's traceback as its cause.
        The type is kept where it can be made from a message alone, else it is the nearest base class that can, or a
        RuntimeError.

    Notes
    -----
    After an exception, an array `out` has the results of some of the frames, from the first on and without a gap; the
    others are as they were. A path `out` has nothing under its name; what was finished is kept with ``.partial`` before
    the extension, and a RuntimeWarning says so.

    Examples
    --------
    In a script, call it under ``if __name__ == "__main__":``, because the workers import the script.

    >>> import numpy as np
    >>> from flowreg_gpu import map_frames
    >>> movie = np.arange(12.0).reshape(3, 2, 2)
    >>> map_frames(np.mean, movie, n_workers=2)
    array([1.5, 5.5, 9.5])
    """
    if not callable(func):
        raise TypeError(f"{func=} is not callable")
    if timeout is not None and not timeout > 0:
        raise ValueError(f"{timeout=} is not above 0 seconds")
    chunk = None if chunk is None else positive_integer("chunk", chunk)
    with _open_source(stack) as source:
        n_workers = min(default_workers(), source.n_frames) if n_workers is None else n_workers
        shape, dtype = _expected_result(out, source, shape, dtype)
        if isinstance(out, _PATH):
            _check_path(out, source, overwrite)
        with FramePool(n_workers, memory_hint="a smaller chunk") as pool:
            if shape is None or dtype is None:
                found = describe_result(pool, func, source, timeout)
                shape = found.shape if shape is None else shape
                dtype = found.dtype if dtype is None else dtype
            result = FrameKind(shape, np.dtype(dtype))
            with _open_sink(out, source, result, overwrite) as sink:
                stream_frames(
                    pool,
                    func,
                    source,
                    sink,
                    result,
                    progress=progress,
                    chunk=chunk,
                    timeout=timeout,
                )
        return sink.out if out is None else out


# Where frames come from


class _ArraySource:
    """Frames of what has `shape` and `dtype` and can be sliced."""

    def __init__(self, stack: Any) -> None:
        if np.ma.is_masked(stack):
            raise ValueError("stack is a masked array, and masks are not used: pass stack.filled(value)")
        if type(stack) is not np.memmap and (isinstance(stack, np.ndarray) or not _is_dataset(stack)):
            stack = np.asarray(stack)  # what a subclass shows, see io.ArrayReader
        if len(stack.shape) == 0 or stack.shape[0] == 0:
            raise ValueError(f"{stack.shape=}: expected one frame or more along axis 0")
        self.array = stack
        self.n_frames = int(stack.shape[0])
        self.kind = FrameKind(tuple(map(int, stack.shape[1:])), np.dtype(stack.dtype).newbyteorder("="))
        self.threaded = _is_threaded(stack)

    def read(self, first: int, out: NDArray[Any]) -> None:
        """Read frames from `first` on into `out` (n, ...)."""
        frames = self.array[first : first + len(out)]
        np.copyto(out, frames)
        release_pages(frames)


class _ReaderSource:
    """Frames of a recording: (H, W), or (H, W, C) where it has a channel axis."""

    def __init__(self, reader: FrameReader) -> None:
        self.reader = reader
        self.n_frames, self.threaded = reader.n_frames, reader.threaded
        self.kind = FrameKind(reader.shape[1:] if reader.has_channel_axis else reader.shape[1:3], reader.dtype)

    def read(self, first: int, out: NDArray[Any]) -> None:
        """Read frames from `first` on into `out` (n, ...)."""
        out[...] = self.reader.read(first, first + len(out)).reshape(out.shape)


_Source = _ArraySource | _ReaderSource


@contextlib.contextmanager
def _open_source(stack: Any) -> Iterator[_Source]:
    """Where the frames come from; files that are opened here are closed in the end."""
    paths = [stack] if isinstance(stack, _PATH) else stack
    named = isinstance(paths, list | tuple) and bool(paths) and all(isinstance(path, _PATH) for path in paths)
    if isinstance(stack, FrameReader):
        yield _ReaderSource(stack)
    elif named and len(paths) == 1 and os.fspath(paths[0]).lower().endswith(".npy"):
        yield _ArraySource(np.load(paths[0], mmap_mode="r"))
    elif named:
        with TiffReader(paths) as reader:
            yield _ReaderSource(reader)
    else:
        yield _ArraySource(stack)


def _is_dataset(stack: Any) -> bool:
    return all(hasattr(stack, name) for name in ("shape", "dtype", "__getitem__"))


def _is_threaded(array: Any) -> bool:
    return isinstance(array, np.ndarray) or type(array).__module__.partition(".")[0] in _THREADED


# What results are to be, and where they go


def _expected_result(
    out: Any, source: _Source, shape: int | Sequence[int] | None, dtype: DTypeLike | None
) -> tuple[tuple[int, ...] | None, np.dtype[Any] | None]:
    """Shape and dtype of results as far as they are known, which an array `out` has to fit."""
    if shape is not None:
        shape = (shape,) if isinstance(shape, int | np.integer) else shape
        shape = tuple(operator.index(size) for size in shape)
        if min(shape, default=0) < 0:
            raise ValueError(f"{shape=} has negative entries")
    kind = None if dtype is None else np.dtype(dtype)
    if out is None or isinstance(out, _PATH):
        return shape, kind
    if not _is_dataset(out) or not out.shape:
        raise TypeError(f"out is {type(out).__name__}, expected an array of frames or a path")
    if out.shape[0] != source.n_frames:
        raise ValueError(f"{out.shape=} and the stack of {source.n_frames} frames differ in the number of frames")
    if isinstance(out, np.ndarray) and not out.flags.writeable:
        raise ValueError("out is read-only")
    if shape not in (None, tuple(out.shape[1:])) or kind not in (None, out.dtype):
        raise ValueError(f"{out.shape=} and {out.dtype=} do not go with {shape=}, {dtype=} of one result")
    if isinstance(source, _ArraySource):
        _check_overlap(source.array, out)
    return tuple(map(int, out.shape[1:])), np.dtype(out.dtype).newbyteorder("=")


def _check_overlap(stack: Any, out: Any) -> None:
    """Raise ValueError where results would overwrite frames that are still to be read."""
    if not isinstance(stack, np.ndarray) or not isinstance(out, np.ndarray) or not np.may_share_memory(stack, out):
        return
    same = stack.ctypes.data == out.ctypes.data and stack.strides == out.strides
    if not same or stack.shape != out.shape or stack.dtype != out.dtype:
        raise ValueError("out and stack share memory, but are not the same array")


def _check_path(out: PathLike, source: _Source, overwrite: bool) -> None:
    """Raise where a file cannot be written, before any work is done."""
    extension = os.path.splitext(out)[1].lower()
    if extension not in (".tif", ".tiff", ".npy"):
        raise ValueError(f"output {os.fspath(out)!r} has extension {extension!r}, expected .tif, .tiff or .npy")
    inputs: Sequence[PathLike] = ()
    if isinstance(source, _ReaderSource):
        inputs = getattr(source.reader, "paths", ())
    elif isinstance(source.array, np.memmap) and source.array.filename is not None:
        inputs = (source.array.filename,)
    for path in (out, partial_name(out)):
        check_output(path, inputs, overwrite=overwrite)


class _ArraySink:
    """Results into what can be sliced."""

    def __init__(self, out: Any) -> None:
        self.out, self._next = out, 0
        self.threaded = _is_threaded(out)

    def write(self, results: NDArray[Any]) -> None:
        """Take the next results (n, ...)."""
        first, self._next = self._next, self._next + len(results)
        self.out[first : self._next] = results
        if isinstance(self.out, np.memmap):
            release_pages(self.out[first : self._next])


class _FileSink:
    """Results into a file."""

    out = None

    def __init__(self, writer: FrameWriter) -> None:
        self._writer, self.threaded = writer, writer.threaded

    def write(self, results: NDArray[Any]) -> None:
        """Take the next results (n, ...)."""
        self._writer.write(results.reshape(len(results), *self._writer.shape[1:]))


@contextlib.contextmanager
def _open_sink(out: Any, source: _Source, result: FrameKind, overwrite: bool) -> Iterator[_ArraySink | _FileSink]:
    """Where the results go; a file is complete when the block ends well, or keeps what it has in a partial one."""
    if not isinstance(out, _PATH):
        yield _ArraySink(np.empty((source.n_frames, *result.shape), result.dtype) if out is None else out)
        return
    with _open_writer(out, source, result, overwrite) as writer:
        try:
            yield _FileSink(writer)
        except BaseException:
            keep_partials([writer])
            raise


def _open_writer(out: PathLike, source: _Source, result: FrameKind, overwrite: bool) -> FrameWriter:
    if os.path.splitext(out)[1].lower() == ".npy":
        return NpyWriter(out, (source.n_frames, *result.shape), result.dtype, overwrite=overwrite)
    if len(result.shape) not in (2, 3):
        raise ValueError(f"results of shape {result.shape} are no frames for a TIFF file, expected (H, W) or (H, W, C)")
    height, width, channels = *result.shape[:2], math.prod(result.shape[2:])
    like = None
    if isinstance(source, _ReaderSource) and isinstance(source.reader, TiffReader):
        same_size = source.reader.shape[1:] == (height, width, channels)
        # ImageJ, for one, has no int16: no other dtype is turned into that
        like = source.reader if same_size and result.dtype in (source.reader.dtype, *_COMMON_DTYPES) else None
    return TiffWriter(
        out,
        n_frames=source.n_frames,
        height=height,
        width=width,
        n_channels=channels,
        dtype=result.dtype,
        like=like,
        overwrite=overwrite,
    )
