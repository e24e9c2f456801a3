"""Recordings into TIFF files that are laid out before the first frame comes."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tifffile
from numpy.typing import DTypeLike, NDArray

from flowreg_gpu.io.base import PathLike, supported_dtype
from flowreg_gpu.io.pending import check_output
from flowreg_gpu.io.reserved import ReservedFileWriter
from flowreg_gpu.io.tiff.layout import Layout, copy_by_channel
from flowreg_gpu.io.tiff.metadata import (
    TiffMetadata,
    count_planes,
    description_arguments,
    display_arguments,
    is_ome,
)
from flowreg_gpu.io.tiff.reader import TiffReader

__all__ = ["ReservedTiffWriter", "TiffWriter"]

# Offsets of a classic TIFF have 32 bits; the margin is for tags that cannot be foreseen.
CLASSIC_LIMIT = 2**32 - 2**25
# Tags of one page as tifffile writes them: some 20 entries of 12 or 20 bytes and their values.
BYTES_PER_IFD = 512


class ReservedTiffWriter(ReservedFileWriter):
    """Frames into a TIFF file whose pages are laid out before the first frame comes.

    The pixels are one uncompressed block, so that frames of any order of axes are written to their places.

    Parameters
    ----------
    path : str or path-like
    layout : Layout
        Order of the pixels in the block.
    dtype : dtype
    axes, stored_shape : str, tuple of int
        The same block as ``tifffile.imread`` is to return it.
    metadata : TiffMetadata
    extratags : sequence of (code, type, count, value, once)
        Further tags, as tifffile takes them.
    overwrite, resume_at : bool, int or None
        As in `TiffWriter`.
    """

    def __init__(
        self,
        path: PathLike,
        layout: Layout,
        dtype: DTypeLike,
        axes: str,
        stored_shape: Sequence[int],
        metadata: TiffMetadata,
        extratags: Sequence[tuple[int, int, int, bytes, bool]] = (),
        *,
        overwrite: bool,
        resume_at: int | None,
    ) -> None:
        n_frames, height, width, n_channels = (layout.size(axis) for axis in "TYXC")
        super().__init__((n_frames, height, width, n_channels), supported_dtype(dtype, os.fspath(path)))
        self._layout = layout
        self._stored = axes, tuple(stored_shape), metadata
        self._extratags = extratags
        self._reserve(path, self._file_size(), overwrite, resume_at)

    def _file_size(self) -> int:
        """Bytes of the file, as far as they can be foreseen."""
        axes, shape, _ = self._stored
        n_bytes: int = math.prod(self._layout.shape) * self.dtype.itemsize
        n_bytes += sum(len(value) for _, _, _, value, _ in self._extratags)
        return n_bytes + count_planes(axes, shape) * BYTES_PER_IFD

    def _lay_out(self) -> None:
        axes, shape, metadata = self._stored
        is_large = self._file_size() > CLASSIC_LIMIT
        one_page = is_large and metadata.kind == "imagej"
        if one_page:
            # ImageJ has no BigTIFF: above 4 GB it describes one page and lets the others follow it.
            axes = axes.replace("I", "T")
        arguments = description_arguments(metadata, axes, shape, self.dtype)
        arguments |= display_arguments(metadata, axes, shape, self.dtype)
        arguments["extratags"] = [*arguments.get("extratags", ()), *self._extratags]
        if one_page:
            shape = tuple(n for axis, n in zip(axes, shape, strict=True) if axis in "YXS")
        is_big = is_large and not one_page
        with tifffile.TiffWriter(self.pending.path, bigtiff=is_big, ome=is_ome(metadata, axes)) as tif:
            offset, _ = tif.write(None, shape=shape, dtype=self.dtype, returnoffset=True, **arguments)
        if one_page:
            os.truncate(self.pending.path, offset + math.prod(self._layout.shape) * self.dtype.itemsize)
        self._offset = int(offset)

    def _find_places(self) -> None:
        with tifffile.TiffFile(self.pending.path) as tif:
            self._offset = int(tif.pages.first.dataoffsets[0])

    def _slabs(self) -> tuple[int, int]:
        """Slabs of frames that follow each other in the file, and bytes of a frame in each.

        Where channels (or rows) are slower than time, the frames of each are a slab of their own.
        """
        time = self._layout.axes.index("T")
        shape = self._layout.shape
        return math.prod(shape[:time]), math.prod(shape[time + 1 :]) * self.dtype.itemsize

    def _places(self, frame: int) -> Iterator[tuple[int, int]]:
        n_slabs, frame_bytes = self._slabs()
        for i in range(n_slabs):
            yield self._offset + (i * self.n_frames + frame) * frame_bytes, frame_bytes

    def _store(self, frames: NDArray[Any], start: int) -> None:
        n_slabs, _ = self._slabs()
        block = self._layout.from_frames(frames)
        if not (block.flags.c_contiguous and block.dtype.isnative):
            block = np.empty(block.shape, self.dtype)
            copy_by_channel(frames, self._layout.to_frames(block))
        for slab, (offset, _) in zip(block.reshape(n_slabs, -1), self._places(start), strict=True):
            self._write_bytes(offset, slab)


class TiffWriter(ReservedTiffWriter):
    """A registered recording as one TIFF file, of the kind of the file it came from.

    Parameters
    ----------
    path : str or path-like
        The file appears there at `close`, and only if every frame was written.
    n_frames, height, width, n_channels : int
        Size of the recording.
    dtype : dtype
        uint8, uint16, int16 or float32.
    like : TiffReader, optional
        ``tifffile.imread`` of the file returns the axes and, for as many frames, the shape of this one; ImageJ, OME
        and other metadata, resolution and colours are kept. Without it the file is an ImageJ hyperstack with axes TYX
        or TCYX (of dtype int16, which ImageJ lacks: tifffile's own format).
    overwrite : bool
        Whether an older file, and an older partial file, are replaced.
    resume_at : int, optional
        Frames that the partial file holds already; None begins a new one.

    Raises
    ------
    ValueError
        `path` is a file of `like`, or `like` has frames of another shape.
    FileNotFoundError, PermissionError, IsADirectoryError, FileExistsError, OSError
        As `PendingFile`.

    Notes
    -----
    Pixels are written uncompressed; files above 4 GB are BigTIFF, those of ImageJ have one page description for all
    pages, as ImageJ writes them.
    """

    def __init__(
        self,
        path: PathLike,
        *,
        n_frames: int,
        height: int,
        width: int,
        n_channels: int,
        dtype: DTypeLike,
        like: TiffReader | None = None,
        overwrite: bool = False,
        resume_at: int | None = None,
    ) -> None:
        how: Any = {"overwrite": overwrite, "resume_at": resume_at}
        if like is None:
            layout = Layout("TYX", (n_frames, height, width))
            if n_channels > 1:
                layout = Layout("TCYX", (n_frames, n_channels, height, width))
            kind = "shaped" if np.dtype(dtype) == np.int16 else "imagej"
            super().__init__(path, layout, dtype, layout.axes, layout.shape, TiffMetadata(kind), **how)
            return
        if (height, width, n_channels) != like.shape[1:]:
            size = (height, width, n_channels)
            raise ValueError(f"frames of shape {size} cannot be written like {like.paths[0]}, {like.shape[1:]}")
        check_output(path, like.paths, overwrite=overwrite)
        layout = like.layout.with_frames(n_frames)
        super().__init__(path, layout, dtype, *like.stored_as(n_frames), like.metadata, **how)
