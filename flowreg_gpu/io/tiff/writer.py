"""Recordings into TIFF files that are laid out before the first frame comes."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
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
    ) -> None:
        n_frames, height, width, n_channels = (layout.size(axis) for axis in "TYXC")
        super().__init__((n_frames, height, width, n_channels), supported_dtype(dtype, os.fspath(path)))
        self._layout = layout
        n_bytes = math.prod(layout.shape) * self.dtype.itemsize
        n_bytes += count_planes(axes, stored_shape) * BYTES_PER_IFD + sum(len(value) for *_, value, _ in extratags)
        with self._reserve(path, n_bytes):
            self._offset = self._lay_out(axes, tuple(stored_shape), metadata, extratags, n_bytes > CLASSIC_LIMIT)

    def _lay_out(
        self,
        axes: str,
        shape: tuple[int, ...],
        metadata: TiffMetadata,
        extratags: Sequence[tuple[int, int, int, bytes, bool]],
        is_large: bool,
    ) -> int:
        """Write everything but the pixels; return the offset of the pixels."""
        one_page = is_large and metadata.kind == "imagej"
        if one_page:
            # ImageJ has no BigTIFF: above 4 GB it describes one page and lets the others follow it.
            axes = axes.replace("I", "T")
        arguments = description_arguments(metadata, axes, shape, self.dtype)
        arguments |= display_arguments(metadata, axes, shape, self.dtype)
        arguments["extratags"] = [*arguments.get("extratags", ()), *extratags]
        if one_page:
            shape = tuple(n for axis, n in zip(axes, shape, strict=True) if axis in "YXS")
        is_big = is_large and not one_page
        with tifffile.TiffWriter(self._pending.path, bigtiff=is_big, ome=is_ome(metadata, axes)) as tif:
            offset, _ = tif.write(None, shape=shape, dtype=self.dtype, returnoffset=True, **arguments)
        if one_page:
            os.truncate(self._pending.path, offset + math.prod(self._layout.shape) * self.dtype.itemsize)
        return int(offset)

    def _store(self, frames: NDArray[Any], start: int) -> None:
        time = self._layout.axes.index("T")
        n_outer = math.prod(self._layout.shape[:time])
        frame_bytes = math.prod(self._layout.shape[time + 1 :]) * self.dtype.itemsize
        block = self._layout.from_frames(frames)
        if not (block.flags.c_contiguous and block.dtype.isnative):
            block = np.empty(block.shape, self.dtype)
            copy_by_channel(frames, self._layout.to_frames(block))
        block = block.reshape(n_outer, -1)
        # Where channels (or rows) are slower than time, the frames of each are a slab of their own.
        for i, slab in enumerate(block):
            self._write_bytes(self._offset + (i * self.n_frames + start) * frame_bytes, slab)


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

    Raises
    ------
    ValueError
        `path` is a file of `like`, or `like` has frames of another shape.
    FileNotFoundError, PermissionError, IsADirectoryError
        The folder does not exist, takes no new file, or `path` is a folder.
    OSError
        ``errno.ENOSPC``: the file would not fit on the disk.

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
    ) -> None:
        if like is None:
            layout = Layout("TYX", (n_frames, height, width))
            if n_channels > 1:
                layout = Layout("TCYX", (n_frames, n_channels, height, width))
            kind = "shaped" if np.dtype(dtype) == np.int16 else "imagej"
            super().__init__(path, layout, dtype, layout.axes, layout.shape, TiffMetadata(kind))
            return
        if (height, width, n_channels) != like.shape[1:]:
            size = (height, width, n_channels)
            raise ValueError(f"frames of shape {size} cannot be written like {like.paths[0]}, {like.shape[1:]}")
        check_output(path, like.paths)
        super().__init__(path, like.layout.with_frames(n_frames), dtype, *like.stored_as(n_frames), like.metadata)
