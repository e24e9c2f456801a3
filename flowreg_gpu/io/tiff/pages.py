"""Where the pixels of a TIFF file are, found from what tifffile and the chain of pages say."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from flowreg_gpu.io.base import supported_dtype
from flowreg_gpu.io.tiff.layout import HINT, Layout, choose_layout, count_page_axes
from flowreg_gpu.io.tiff.metadata import TiffMetadata, read_metadata
from flowreg_gpu.io.tiff.scanimage import PAGES_READ, scanimage_axes

__all__ = ["PageMap", "map_pages"]

Chain = list[tuple[int, bytes]]  # position and format of every page, see read_page_chain


@dataclasses.dataclass(frozen=True, eq=False)
class PageMap:
    """Where the pages of a file are, and in which order their pixels follow each other.

    Attributes
    ----------
    dtype, file_dtype : numpy.dtype
        Of the pixels, in native byte order and as they are stored.
    stored_axes, stored_shape : str, tuple of int
        What ``tifffile.imread`` returns.
    layout : Layout
        The same as frames and channels.
    has_channel_axis : bool
        Whether there is an explicit channel axis, be it of length one.
    n_page_axes : int
        Number of the last axes of the layout that lie within one page.
    is_multifile : bool
        Whether the pages lie in several files of an OME set.
    metadata : TiffMetadata
    offsets : (n_pages,) int64 or None
        Positions in the file where the pixels of every page begin, stored as they are; None where pages are decoded.
    pages : tuple of tifffile.TiffPage or TiffFrame
        The pages to decode; empty where there are offsets.
    """

    dtype: np.dtype[Any]
    file_dtype: np.dtype[Any]
    stored_axes: str
    stored_shape: tuple[int, ...]
    layout: Layout
    has_channel_axis: bool
    n_page_axes: int
    is_multifile: bool
    metadata: TiffMetadata
    offsets: NDArray[np.int64] | None
    pages: tuple[Any, ...]


def map_pages(path: str, tif: tifffile.TiffFile, chain: Chain, axes: str | None, channels: int | None) -> PageMap:
    """Find the recording in an open file.

    Parameters
    ----------
    path : str
        For messages, and to see whether the file is complete.
    tif : tifffile.TiffFile
    chain : list of (int, bytes)
        Of `read_page_chain`.
    axes, channels : str, int or None
        As in `TiffReader`.

    Raises
    ------
    ValueError
        The file is damaged or incomplete, its axes cannot be told, or its samples are not supported.
    """
    is_told = axes is not None or channels is not None
    series, pages = _main_series(path, tif, [page_format for _, page_format in chain], is_told)
    page = series.keyframe
    if page.dtype is None:
        raise ValueError(f"{path}: samples of {page.bitspersample} bits are not supported")
    dtype = supported_dtype(page.dtype, path)
    kind = "plain" if pages or series.kind in ("uniform", "generic") else series.kind
    metadata = read_metadata(tif, page, kind)
    if kind == "scanimage":
        # tifffile guesses where the pages of a classic file are, and loses the last one.
        pages = [page, *(_page_at(tif, chain, i, page) for i in range(1, len(chain)))]
    located, offsets = _locate_pages(path, tif, series, pages, chain)

    stored_axes, stored_shape = series.axes, tuple(series.shape)
    if pages:
        stored_axes, stored_shape = "I" + page.axes, (len(pages), *page.shape)
    if kind == "scanimage" and not is_told:
        descriptions = (_full_page_at(tif, chain, i).description for i in range(min(len(chain), PAGES_READ)))
        stored_axes, stored_shape = scanimage_axes(path, page, len(pages), descriptions)
    layout, has_channel_axis = choose_layout(path, stored_axes, stored_shape, _full_shape(series), axes, channels)
    return PageMap(
        dtype=dtype,
        file_dtype=dtype.newbyteorder(tif.byteorder),
        stored_axes=stored_axes,
        stored_shape=stored_shape,
        layout=layout,
        has_channel_axis=has_channel_axis,
        n_page_axes=count_page_axes(path, layout, page.shape),
        is_multifile=bool(series.is_multifile),
        metadata=metadata,
        offsets=offsets,
        pages=tuple(located),
    )


# The series that holds the recording


def _main_series(path: str, tif: tifffile.TiffFile, formats: Sequence[bytes], is_told: bool) -> tuple[Any, list[Any]]:
    """Return the series that holds the recording, and its pages if they are spread over series of one page each.

    `is_told` says that the caller named the axes or the number of channels.
    """
    try:
        series = list(tif.series)
    except Exception as error:  # tifffile raises whatever a malformed file leads to
        other = next((i for i, page_format in enumerate(formats) if page_format != formats[0]), None)
        if other is None:
            raise ValueError(f"{path}: the file is damaged: {error}") from error
        tif.pages.useframes = False
        shapes = f"page 0 is {tif.pages[0].shape}, page {other} is {tif.pages[other].shape}"
        raise ValueError(f"{path}: the pages have different shapes or types: {shapes}") from error
    if not series:
        raise ValueError(f"{path}: the file holds no image")
    _check_description(path, tif, series[0], is_told)
    images = [s for s in series if not s.keyframe.is_reduced] or series[:1]
    if len(images) == 1:
        return images[0], []
    if any((s.shape, s.dtype) != (images[0].shape, images[0].dtype) for s in images):
        found = ", ".join(f"{s.axes} {s.shape} {s.dtype}" for s in images[:4])
        raise ValueError(f"{path}: the pages have different shapes or types, expected one recording: {found}")
    if images[0].size != images[0].keyframe.size:
        raise ValueError(f"{path}: the file holds {len(images)} recordings of shape {images[0].shape}, expected 1")
    return images[0], [s.keyframe for s in images]


def _check_description(path: str, tif: tifffile.TiffFile, series: Any, is_told: bool) -> None:
    """Raise ValueError where tifffile gave up on a description and took the pages as they come."""
    if series.kind in ("generic", "uniform"):
        if tif.is_imagej or tif.is_shaped:
            raise ValueError(f"{path}: the file is truncated or damaged, its description tells of more than it holds")
        if tif.is_ome and not is_told:
            raise ValueError(f"{path}: the OME description does not describe the pages of this file; {HINT}")
    if series.kind == "imagej":
        n_described = int(tif.imagej_metadata.get("images", 1))
        if series.size == math.prod(series.keyframe.shape) < n_described * math.prod(series.shape[-2:]):
            raise ValueError(f"{path}: ImageJ's description tells of {n_described} images, but not of what they are")


def _full_shape(series: Any) -> tuple[int, ...]:
    """Shape of a series with its axes of length one, as far as tifffile still knows them (up to 2026.4)."""
    return tuple(series.get_shape(False) if hasattr(series, "get_shape") else series.shape)


# Its pages


def _locate_pages(
    path: str, tif: tifffile.TiffFile, series: Any, pages: list[Any], chain: Chain
) -> tuple[list[Any], NDArray[np.int64] | None]:
    """Return the pages to decode, or, where pixels are stored as they are, no pages and the offset of each.

    `pages` are those of the recording, where they are spread over series of one page each.
    """
    page = series.keyframe
    n_pages = math.prod(series.shape) // math.prod(page.shape)
    if not pages and _is_one_block(tif, series, n_pages, chain):
        _check_end(series.dataoffset + n_pages * page.nbytes, path)
        return [], series.dataoffset + np.arange(n_pages, dtype=np.int64) * page.nbytes
    if not pages:
        pages = list(series)
        missing = n_pages - sum(p is not None for p in pages)
        if missing:
            raise ValueError(f"{path}: {missing} of the {n_pages} pages described are missing")
    pages = _compare_pages(path, pages, dict(chain))
    for p in pages:
        ends = [offset + n_bytes for offset, n_bytes in zip(p.dataoffsets, p.databytecounts, strict=False)]
        _check_end(max(ends, default=0), p.parent.filehandle.path)
    if not series.is_multifile and all(_is_raw(p) for p in pages):
        return [], np.array([p.dataoffsets[0] for p in pages], np.int64)
    return pages, None


def _is_one_block(tif: tifffile.TiffFile, series: Any, n_pages: int, chain: Chain) -> bool:
    """Tell whether all pages lie one after the other.

    tifffile supposes it of files with ImageJ's or its own description; where the pages are listed, they decide.
    """
    if series.dataoffset is None or series.is_multifile:
        return False
    first = series.keyframe.index
    listed = chain[first : first + n_pages]
    if len(listed) < n_pages or series.keyframe.is_subifd:
        return True
    if any(page_format != listed[0][1] for _, page_format in listed):
        return False
    last = _page_at(tif, chain, first + n_pages - 1, series.keyframe)
    return bool(last.dataoffsets[0] == series.dataoffset + (n_pages - 1) * series.keyframe.nbytes)


def _page_at(tif: tifffile.TiffFile, chain: Chain, i: int, first: Any) -> Any:
    """Return page `i` of the file, in short (its offsets only) where its format is that of the first page."""
    offset, page_format = chain[i]
    if page_format == chain[first.index][1]:
        return tifffile.TiffFrame(tif, i, offset=offset, keyframe=first)
    return _full_page_at(tif, chain, i)


def _full_page_at(tif: tifffile.TiffFile, chain: Chain, i: int) -> tifffile.TiffPage:
    """Return page `i` of the file with all of its tags."""
    tif.filehandle.seek(chain[i][0])
    return tifffile.TiffPage(tif, i)


def _compare_pages(path: str, pages: list[Any], formats: dict[int, bytes]) -> list[Any]:
    """Return the pages, those that tifffile wrongly takes for copies of the first one read in full."""
    first = pages[0]
    expected = formats.get(first.offset)
    compared = []
    for i, page in enumerate(pages):
        if formats.get(page.offset, expected) != expected or (_is_raw(first) and not _is_raw(page)):
            page = page.aspage()
        if (page.shape, page.dtype) != (first.shape, first.dtype):
            found = f"page 0 is {first.shape} {first.dtype}, page {i} is {page.shape} {page.dtype}"
            raise ValueError(f"{path}: the pages have different shapes or types: {found}")
        compared.append(page)
    return compared


def _check_end(end: int, path: str) -> None:
    """Raise ValueError where pixels end, at byte `end`, behind the end of the file."""
    size = os.path.getsize(path)
    if end > size:
        raise ValueError(f"{path}: the file is truncated: its pixels end at byte {end}, the file at byte {size}")


def _is_raw(page: Any) -> bool:
    """Tell whether the pixels of a page are stored as they are, one strip after the other."""
    offsets, n_bytes = page.dataoffsets, page.databytecounts
    adjacent = all(offsets[i] + n_bytes[i] == offsets[i + 1] for i in range(len(offsets) - 1))
    return bool(page.keyframe.is_final and offsets and offsets[0] > 0 and adjacent)
