"""A recording in one TIFF file or several, and reference images."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.io.base import FrameReader, PathLike
from flowreg_gpu.io.tiff.source import TiffSource

__all__ = ["TiffReader", "read_image"]


class TiffReader(FrameReader):
    """A recording in one TIFF file, or in several that follow each other in time.

    Only the frames asked for are read. Axes named T, or the only axis of unknown meaning, are time; C or S (samples of
    a pixel) are channels.

    Parameters
    ----------
    path_or_paths : str or path-like, or sequence of them
        Files in order of time; they agree in height, width, channels and dtype.
    axes : str, optional
        Meaning of the stored axes where the file does not tell or is wrong, e.g. "TCYX".
    channels : int, optional
        Number of channels of a stack of pages in which channels alternate.

    Attributes
    ----------
    axes, stored_shape : str, tuple of int
        What ``tifffile.imread`` returns; for several files the axis of time is their sum.
    kind : str
        'imagej', 'ome', 'scanimage', 'shaped', 'plain' or another name that tifffile gives a format.
    metadata : TiffMetadata
        Of the first file.
    paths : tuple of str

    Raises
    ------
    FileNotFoundError
        A file is missing.
    ValueError
        A file is empty, truncated, not a TIFF file, of an unsupported dtype, or its axes cannot be told; files
        disagree. The message names the file.

    Examples
    --------
    >>> with TiffReader("recording.tif") as reader:  # doctest: +SKIP
    ...     first = reader.read(0, 10)  # (10, H, W, C)
    """

    threaded = True

    def __init__(
        self, path_or_paths: PathLike | Sequence[PathLike], *, axes: str | None = None, channels: int | None = None
    ) -> None:
        paths = [path_or_paths] if isinstance(path_or_paths, str | os.PathLike) else list(path_or_paths)
        if not paths:
            raise ValueError("no file was given, expected at least one TIFF file")
        self.paths = tuple(os.fspath(path) for path in paths)
        self._sources = [TiffSource(path, axes, channels) for path in self.paths]
        first = self._sources[0]
        for source in self._sources[1:]:
            _check_alike(first, source)
        # Frames of file i are starts[i] to starts[i + 1].
        self._starts = np.cumsum([0, *(source.page_map.layout.size("T") for source in self._sources)])
        self._open_source: TiffSource | None = None

        self.layout = first.page_map.layout.with_frames(int(self._starts[-1]))
        self.n_frames, self.height, self.width, self.n_channels = (self.layout.size(axis) for axis in "TYXC")
        self.dtype = first.page_map.dtype
        self.has_channel_axis = first.page_map.has_channel_axis
        self.metadata = first.page_map.metadata
        self.kind = first.page_map.metadata.kind
        self.axes, self.stored_shape = self.stored_as(self.n_frames)

    def stored_as(self, n_frames: int) -> tuple[str, tuple[int, ...]]:
        """Return axes and shape that the file would have with another number of frames."""
        first = self._sources[0]
        own, axes, shape = first.page_map.layout.size("T"), first.page_map.stored_axes, first.page_map.stored_shape
        if n_frames == own:
            return axes, shape
        time = [i for i, (axis, size) in enumerate(zip(axes, shape, strict=True)) if axis not in "CSYX" and size > 1]
        if own == 1 and not time:
            time = [i for i, axis in enumerate(axes) if axis == "T"]
        if not time and own == 1:
            return ("I" if self.kind == "plain" else "T") + axes, (n_frames, *shape)
        if len(time) == 1 and shape[time[0]] % own == 0:
            i = time[0]
            return axes, (*shape[:i], shape[i] // own * n_frames, *shape[i + 1 :])
        layout = first.page_map.layout.with_frames(n_frames)
        return layout.axes, layout.shape

    @property
    def parts(self) -> list[range]:
        """Frames of every file of the recording."""
        return [range(int(first), int(stop)) for first, stop in itertools.pairwise(self._starts)]

    def _load(self, start: int, stop: int) -> NDArray[Any]:
        first = int(np.searchsorted(self._starts, start, "right")) - 1
        last = int(np.searchsorted(self._starts, stop, "left"))
        if last - first == 1:
            return self._read_source(first, start, stop)
        frames = np.empty((stop - start, *self.shape[1:]), self.dtype)
        for i in range(first, last):
            begin, end = max(start, int(self._starts[i])), min(stop, int(self._starts[i + 1]))
            frames[begin - start : end - start] = self._read_source(i, begin, end)
        return frames

    def _read_source(self, i: int, start: int, stop: int) -> NDArray[Any]:
        """Read frames of one file; one file is open at a time, for a recording may have thousands of them."""
        source = self._sources[i]
        if self._open_source is not source:
            self.close()
            source.open()
            self._open_source = source
        return source.read(start - int(self._starts[i]), stop - int(self._starts[i]))

    def close(self) -> None:
        """Close the file; reading opens it again."""
        if self._open_source is not None:
            self._open_source.close()
            self._open_source = None


def _check_alike(first: TiffSource, other: TiffSource) -> None:
    """Raise ValueError unless two files can be parts of one recording."""
    for source in (first, other):
        if source.page_map.is_multifile:
            raise ValueError(f"{source.path}: the file already includes the other files of its set; give it alone")
    for name, axis in (("height", "Y"), ("width", "X"), ("channels", "C")):
        expected, found = first.page_map.layout.size(axis), other.page_map.layout.size(axis)
        if found != expected:
            raise ValueError(f"{other.path}: {name} is {found}, expected {expected} as in {first.path}")
    if other.page_map.dtype != first.page_map.dtype:
        raise ValueError(
            f"{other.path}: dtype is {other.page_map.dtype}, expected {first.page_map.dtype} as in {first.path}"
        )


def read_image(path: PathLike) -> NDArray[Any]:
    """Return a reference image as (H, W, C).

    Raises
    ------
    ValueError
        The file holds more than one frame, or cannot be read.
    """
    with TiffReader(path) as reader:
        if reader.n_frames > 1:
            raise ValueError(f"{os.fspath(path)}: the file holds {reader.n_frames} frames, expected a single image")
        return np.ascontiguousarray(reader.read(0, 1)[0])
