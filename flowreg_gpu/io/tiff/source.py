"""Recordings, displacement fields and reference images in TIFF files.

tifffile tells what a file means (ImageJ, OME, ScanImage, axes, metadata) and decodes compressed pages. Uncompressed
pixels are read and written here, by seek and read on an ordinary file: mapped pages would count as memory in use, and
a full disk under a mapped file kills the process where a write raises OSError.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import struct
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO
from xml.etree import ElementTree

import numpy as np
import tifffile
from numpy.typing import DTypeLike, NDArray

from flowreg_gpu.io.base import (
    FLOW_CONVENTION,
    FrameReader,
    PathLike,
    ReservedFileWriter,
    check_output,
    supported_dtype,
)

# Offsets of a classic TIFF have 32 bits; the margin is for tags that cannot be foreseen.
CLASSIC_LIMIT = 2**32 - 2**25
# Tags of one page as tifffile writes them: some 20 entries of 12 or 20 bytes and their values.
BYTES_PER_IFD = 512
DECODING_THREADS = min(8, os.cpu_count() or 1)
# Threads that read stored pixels, and what each takes at a time; they wait for the disk, not for a core.
READING_THREADS, PART_BYTES = 4, 2**23
HINT = 'name the axes, e.g. axes="TCYX", or the number of interleaved channels, e.g. channels=2'


@dataclasses.dataclass(frozen=True)
class Layout:
    """Order in which the pixels of a recording follow each other.

    Attributes
    ----------
    axes : str
        T, Y and X, and C where there are channels, slowest first.
    shape : tuple of int
        Length of each axis.
    """

    axes: str
    shape: tuple[int, ...]

    def size(self, axis: str) -> int:
        """Length of an axis, 1 if it is not there."""
        return self.shape[self.axes.index(axis)] if axis in self.axes else 1

    def with_frames(self, n_frames: int) -> Layout:
        """Return the same order for another number of frames."""
        return Layout(self.axes, tuple(n_frames if a == "T" else n for a, n in zip(self.axes, self.shape, strict=True)))

    def to_frames(self, block: NDArray[Any]) -> NDArray[Any]:
        """View a block in this order as (n, H, W, C)."""
        order = [self.axes.index(axis) for axis in "TYXC" if axis in self.axes]
        frames: NDArray[Any] = block.transpose(order)
        return frames if "C" in self.axes else frames[..., np.newaxis]

    def from_frames(self, frames: NDArray[Any]) -> NDArray[Any]:
        """View (n, H, W, C) as a block in this order."""
        block = frames if "C" in self.axes else frames[..., 0]
        transposed: NDArray[Any] = block.transpose(["TYXC".index(axis) for axis in self.axes])
        return transposed


@dataclasses.dataclass(frozen=True)
class TiffMetadata:
    """What a file says besides its pixels, as far as a file alike can say it again.

    Attributes
    ----------
    kind : str
        'imagej', 'ome', 'scanimage', 'shaped' (tifffile's own), 'plain' (pages and nothing more) or another name that
        tifffile gives a format.
    description, software, artist : str
        Tags of the first page, empty if missing.
    resolution : ((int, int), (int, int)) or None
        Pixels per unit along x and y, as fractions.
    resolutionunit : int or None
        1 (none), 2 (inch) or 3 (centimetre).
    imagej, ome, shaped : dict
        Metadata of these formats: ImageJ's description lines and Info, Labels, Ranges, LUTs, ...; OME's pixel sizes,
        time increment, units and channels; tifffile's JSON.
    photometric, extrasamples, colormap
        How the samples of a pixel are to be shown.
    """

    kind: str
    description: str = ""
    software: str = ""
    artist: str = ""
    resolution: tuple[tuple[int, int], tuple[int, int]] | None = None
    resolutionunit: int | None = None
    imagej: dict[str, Any] = dataclasses.field(default_factory=dict)
    ome: dict[str, Any] = dataclasses.field(default_factory=dict)
    shaped: dict[str, Any] = dataclasses.field(default_factory=dict)
    photometric: int = 1
    extrasamples: tuple[int, ...] = ()
    colormap: NDArray[np.uint16] | None = None


# --- the chain of pages -------------------------------------------------------------------------------------------

# Bytes of one value of each TIFF field type.
_TYPE_SIZES = np.array([0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8] + [0] * 65517, np.float64)
# Width, length, bits, compression, samples, rows per strip, planes, predictor, tile width and length, sample format.
_FORMAT_TAGS = np.zeros(65536, bool)
_FORMAT_TAGS[[256, 257, 258, 259, 277, 278, 284, 317, 322, 323, 339]] = True


def _read_page_chain(path: str) -> list[tuple[int, bytes]]:
    """Return the position and the format tags of every page, and refuse a damaged file.

    tifffile takes the pages it can reach and goes on, so that a file cut short would be a shorter recording; and it
    supposes that the pages of some formats are alike.
    """
    size = os.path.getsize(path)
    if size == 0:
        raise ValueError(f"{path}: the file is empty, expected a TIFF file")
    with open(path, "rb") as file:
        header = file.read(16)
        order = {b"II": "<", b"MM": ">"}.get(header[:2], "")
        version = struct.unpack(order + "H", header[2:4])[0] if order and len(header) >= 4 else 0
        if version not in (42, 43):
            raise ValueError(f"{path}: not a TIFF file, it begins with {header[:4]!r}")
        pointer, count, position = ("I", "H", 4) if version == 42 else ("Q", "Q", 8)
        fields = (("code", "H"), ("type", "H"), ("count", pointer), ("value", pointer))
        entry = np.dtype([(name, order + code) for name, code in fields])
        pages: dict[int, bytes] = {}
        try:
            (offset,) = struct.unpack_from(order + pointer, header, position)
            while offset and offset not in pages:
                file.seek(offset)
                (n_tags,) = struct.unpack(order + count, file.read(struct.calcsize(count)))
                tags = np.frombuffer(file.read(min(n_tags, 65536) * entry.itemsize), entry, n_tags).copy()
                pages[offset] = _page_format(tags, size)
                (offset,) = struct.unpack(order + pointer, file.read(struct.calcsize(pointer)))
        except (struct.error, ValueError, OverflowError) as error:
            problem = f"the file has {size} bytes, and page {len(pages)} is not within them"
            raise ValueError(f"{path}: the file is truncated or damaged: {problem}") from error
    return list(pages.items())


def _page_format(tags: NDArray[Any], size: int) -> bytes:
    """Return what two pages have in common if they are decoded alike; ValueError if a value lies beyond the file."""
    n_bytes = _TYPE_SIZES[tags["type"]] * tags["count"]
    elsewhere = n_bytes > tags.dtype["value"].itemsize
    if np.any(elsewhere & (tags["value"] + n_bytes > size)):
        raise ValueError("tag value beyond the end of the file")
    tags["value"][elsewhere] = 0
    return bytes(tags[_FORMAT_TAGS[tags["code"]]].tobytes())


# --- what a file holds --------------------------------------------------------------------------------------------


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


def _drop_singletons(axes: str, shape: Sequence[int]) -> tuple[str, tuple[int, ...]]:
    kept = [(axis, size) for axis, size in zip(axes, shape, strict=True) if size > 1 or axis in "YX"]
    return "".join(axis for axis, _ in kept), tuple(size for _, size in kept)


def _name_axes(path: str, axes: str, shape: Sequence[int]) -> Layout:
    """Decide which stored axis is time and which is the channel."""
    stored = f"axes {axes!r} of shape {tuple(shape)}"
    axes, shape = _drop_singletons(axes, shape)
    if axes.count("Y") != 1 or axes.count("X") != 1:
        raise ValueError(f"{path}: {stored} do not hold Y and X once each; {HINT}")
    channel = [axis for axis in axes if axis in "CS"]
    stack = [axis for axis in axes if axis not in "CSYX"]
    if len(channel) > 1:
        raise ValueError(f"{path}: {stored} hold channels twice; {HINT}")
    if "T" in stack and "Z" in stack:
        raise ValueError(f"{path}: {stored} hold a volume over time, expected single planes; register plane by plane")
    if len(stack) > 1:
        raise ValueError(f"{path}: {stored} could be read in several ways; {HINT}")
    names = dict.fromkeys(stack, "T") | dict.fromkeys(channel, "C")
    named = "".join(names.get(axis, axis) for axis in axes)
    return Layout(named, shape) if stack else Layout("T" + named, (1, *shape))


def _split_channels(path: str, axes: str, shape: Sequence[int], channels: int) -> Layout:
    """Take a stack of pages as frames of interleaved channels."""
    axes, shape = _drop_singletons(axes, shape)
    if not axes.endswith("YX") or channels < 1:
        raise ValueError(f"{path}: {channels=} cannot split axes {axes!r} of shape {shape}, expected pages of Y and X")
    n_pages = math.prod(shape[:-2])
    if n_pages % channels:
        raise ValueError(f"{path}: {n_pages} pages cannot be split into frames of {channels} channels")
    if channels == 1:
        return Layout("TYX", (n_pages, *shape[-2:]))
    return Layout("TCYX", (n_pages // channels, channels, *shape[-2:]))


def _scanimage_axes(path: str, page: Any, n_pages: int) -> tuple[str, tuple[int, ...]]:
    """Return axes and shape of a ScanImage file from its header.

    tifffile labels channels in BigTIFF files only, and takes the number of frames from the header, where it is the one
    that was asked for and not the one that this file holds. Pages are interleaved: channels first, then frames.
    """
    header = page.software if page.software.startswith("SI.") else page.description
    saved = re.search(r"channels?Saved?\s*=\s*(\[[^\]]*\]|\d+)", header)
    if saved:
        channels = len(re.findall(r"\d+", saved.group(1)))
    else:
        channels = len(re.findall(r"savingChannel\d+\s*=\s*(?:1|true)", header))
    if channels < 1:
        raise ValueError(f"{path}: the ScanImage header does not tell which channels were saved; {HINT}")
    if n_pages % channels:
        raise ValueError(f"{path}: {n_pages} pages are not frames of {channels} channels; the recording is incomplete")
    is_volume = re.search(r"(hStackManager\.enable|hFastZ\.enable|fastZEnable)\s*=\s*(1|true)", header)
    planes = [int(n) for n in re.findall(r"(?:actualNumSlices|numSlices|stackNumSlices)\s*=\s*(\d+)", header)]
    if is_volume and max(planes, default=1) > 1 and n_pages > channels * max(planes):
        raise ValueError(
            f"{path}: ScanImage recorded {max(planes)} planes over time, expected single planes; register plane by "
            f"plane, or read all pages as one stack with channels={channels}"
        )
    if channels == 1:
        return "T" + page.axes, (n_pages, *page.shape)
    return "TC" + page.axes, (n_pages // channels, channels, *page.shape)


# --- metadata -----------------------------------------------------------------------------------------------------

_OME_PIXELS = ("PhysicalSizeX", "PhysicalSizeY", "PhysicalSizeZ", "TimeIncrement")
_OME_CHANNEL = ("Name", "Color", "Fluor", "EmissionWavelength", "ExcitationWavelength")


def _ome_metadata(xml: str) -> dict[str, Any]:
    """Return pixel sizes, time increment and channels of the first image, as tifffile's writer takes them."""
    image = next(element for element in ElementTree.fromstring(xml) if element.tag.endswith("}Image"))
    pixels = next(element for element in image if element.tag.endswith("}Pixels"))
    metadata: dict[str, Any] = {}
    if "Name" in image.attrib:
        metadata["Name"] = image.attrib["Name"]
    for element in image:
        name = element.tag.rpartition("}")[2]
        if name in ("AcquisitionDate", "Description") and element.text:
            metadata[name] = element.text
    for key in (*_OME_PIXELS, *(f"{key}Unit" for key in _OME_PIXELS), "SignificantBits"):
        if key in pixels.attrib:
            metadata[key] = pixels.attrib[key]
    channels = [element.attrib for element in pixels if element.tag.endswith("}Channel")]
    names = (*_OME_CHANNEL, "EmissionWavelengthUnit", "ExcitationWavelengthUnit")
    shared = [key for key in names if channels and all(key in channel for channel in channels)]
    if shared:
        metadata["Channel"] = {key: [channel[key] for channel in channels] for key in shared}
    return metadata


def _read_metadata(tif: tifffile.TiffFile, page: Any, kind: str) -> TiffMetadata:
    tags = page.tags
    resolution = None
    if 282 in tags and 283 in tags and all(tags[code].value[1] for code in (282, 283)):
        resolution = (tuple(tags[282].value), tuple(tags[283].value))
    shaped = {}
    if kind == "shaped" and page.shaped_description.startswith("{"):
        shaped = json.loads(page.shaped_description)
    return TiffMetadata(
        kind=kind,
        description=page.imagej_description if kind == "imagej" else page.description,
        software=page.software,
        artist=str(tags.valueof(315) or ""),
        resolution=resolution,
        resolutionunit=int(tags[296].value) if 296 in tags else None,
        imagej=dict(tif.imagej_metadata or {}) if kind == "imagej" else {},
        ome=_ome_metadata(tif.ome_metadata) if kind == "ome" else {},
        shaped={key: value for key, value in shaped.items() if key not in ("shape", "truncated")},
        photometric=int(page.photometric),
        extrasamples=tuple(int(sample) for sample in page.extrasamples),
        colormap=page.colormap,
    )


# --- one file -----------------------------------------------------------------------------------------------------


class _TiffSource:
    """Frames of one file: where its pages are, and in which order their pixels follow each other."""

    def __init__(self, path: str, axes: str | None, channels: int | None) -> None:
        self.path = path
        if not os.path.exists(path):
            raise FileNotFoundError(f"{path}: there is no such file, expected a TIFF file")
        chain = _read_page_chain(path)
        try:
            self._tif = tifffile.TiffFile(path)
        except Exception as error:  # tifffile raises whatever a malformed file leads to
            raise ValueError(f"{path}: not a readable TIFF file: {error}") from error
        self._file: BinaryIO | None = None
        try:
            self._describe(chain, axes, channels)
            if self._offsets is None:
                # A missing codec is found before work starts.
                self._decode(self._pages[0])
        except (ValueError, OSError):
            raise
        except Exception as error:  # the same, for tifffile reads many tags only when they are asked for
            raise ValueError(f"{path}: the file is damaged: {error!r}") from error
        finally:
            self._tif.filehandle.close()

    # What the file is

    def _describe(self, chain: list[tuple[int, bytes]], axes: str | None, channels: int | None) -> None:
        series, pages = _main_series(
            self.path, self._tif, [page_format for _, page_format in chain], axes is not None or channels is not None
        )
        page = series.keyframe
        if page.dtype is None:
            raise ValueError(f"{self.path}: samples of {page.bitspersample} bits are not supported")
        self.dtype = supported_dtype(page.dtype, self.path)
        self._file_dtype = self.dtype.newbyteorder(self._tif.byteorder)
        self.is_multifile = bool(series.is_multifile)
        kind = "plain" if pages or series.kind in ("uniform", "generic") else series.kind
        self.metadata = _read_metadata(self._tif, page, kind)
        if kind == "scanimage":
            # tifffile guesses where the pages of a classic file are, and loses the last one.
            pages = [page, *(self._page_at(chain, i, page) for i in range(1, len(chain)))]
        self._locate_pages(series, pages, chain)

        self.stored_axes, self.stored_shape = series.axes, tuple(series.shape)
        if pages:
            self.stored_axes, self.stored_shape = "I" + page.axes, (len(pages), *page.shape)
        if kind == "scanimage" and axes is None and channels is None:
            self.stored_axes, self.stored_shape = _scanimage_axes(self.path, page, len(pages))
        self._set_layout(_full_shape(series), axes, channels)
        self._n_page_axes = self._count_page_axes(page)

    def _set_layout(self, full_shape: Sequence[int], axes: str | None, channels: int | None) -> None:
        if axes is not None and channels is not None:
            raise ValueError(f"{self.path}: {axes=} and {channels=} exclude each other, expected one of them")
        named = self.stored_axes if axes is None else axes.upper()
        if channels is not None:
            self.layout = _split_channels(self.path, self.stored_axes, self.stored_shape, channels)
        else:
            shapes = {len(shape): shape for shape in (full_shape, self.stored_shape)}
            if len(named) not in shapes:
                raise ValueError(f"{self.path}: {axes=} do not match the stored shape {self.stored_shape}")
            self.layout = _name_axes(self.path, named, shapes[len(named)])
        self.has_channel_axis = channels is not None or any(axis in "CS" for axis in named)

    def _count_page_axes(self, page: Any) -> int:
        """Count the axes of the layout that lie within one page."""
        shape = self.layout.shape
        for n_axes in range(1, len(shape) + 1):
            if math.prod(shape[-n_axes:]) == math.prod(page.shape):
                return n_axes
        raise ValueError(f"{self.path}: pages of shape {page.shape} do not fit axes {self.layout.axes!r} of {shape}")

    # Where its pixels are

    def _locate_pages(self, series: Any, pages: list[Any], chain: list[tuple[int, bytes]]) -> None:
        """Find the pages and, if their pixels are stored as they are, the offset of each."""
        page = series.keyframe
        self._pages: list[Any] = []
        self._offsets: NDArray[np.int64] | None = None
        n_pages = math.prod(series.shape) // math.prod(page.shape)
        if not pages and self._is_one_block(series, n_pages, chain):
            self._offsets = series.dataoffset + np.arange(n_pages, dtype=np.int64) * page.nbytes
            self._check_end(series.dataoffset + n_pages * page.nbytes, self.path)
            return
        if not pages:
            pages = list(series)
            missing = n_pages - sum(p is not None for p in pages)
            if missing:
                raise ValueError(f"{self.path}: {missing} of the {n_pages} pages described are missing")
        self._pages = self._compare_pages(pages, dict(chain))
        for p in self._pages:
            ends = [offset + n_bytes for offset, n_bytes in zip(p.dataoffsets, p.databytecounts, strict=False)]
            self._check_end(max(ends, default=0), p.parent.filehandle.path)
        if not self.is_multifile and all(_is_raw(p) for p in self._pages):
            self._offsets = np.array([p.dataoffsets[0] for p in self._pages], np.int64)
            self._pages = []

    def _is_one_block(self, series: Any, n_pages: int, chain: list[tuple[int, bytes]]) -> bool:
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
        last = self._page_at(chain, first + n_pages - 1, series.keyframe)
        return bool(last.dataoffsets[0] == series.dataoffset + (n_pages - 1) * series.keyframe.nbytes)

    def _page_at(self, chain: list[tuple[int, bytes]], i: int, first: Any) -> Any:
        """Return page `i` of the file, in short (its offsets only) where its format is that of the first page."""
        offset, page_format = chain[i]
        if page_format == chain[first.index][1]:
            return tifffile.TiffFrame(self._tif, i, offset=offset, keyframe=first)
        self._tif.filehandle.seek(offset)
        return tifffile.TiffPage(self._tif, i)

    def _compare_pages(self, pages: list[Any], formats: dict[int, bytes]) -> list[Any]:
        """Return the pages, those that tifffile wrongly takes for copies of the first one read in full."""
        first = pages[0]
        expected = formats.get(first.offset)
        compared = []
        for i, page in enumerate(pages):
            if formats.get(page.offset, expected) != expected or (_is_raw(first) and not _is_raw(page)):
                page = page.aspage()
            if (page.shape, page.dtype) != (first.shape, first.dtype):
                found = f"page 0 is {first.shape} {first.dtype}, page {i} is {page.shape} {page.dtype}"
                raise ValueError(f"{self.path}: the pages have different shapes or types: {found}")
            compared.append(page)
        return compared

    def _check_end(self, end: int, path: str) -> None:
        size = os.path.getsize(path)
        if end > size:
            raise ValueError(f"{path}: the file is truncated: its pixels end at byte {end}, the file at byte {size}")

    # Reading

    def open(self) -> None:
        """Open the file, if it is not open."""
        if self._offsets is not None and self._file is None:
            self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115 (closed by close)
        elif self._offsets is None and self._tif.filehandle.closed:
            self._tif.filehandle.open()
            self._tif.filehandle.set_lock(True)

    def close(self) -> None:
        """Close the file; `open` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._tif.filehandle.close()

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return frames as a new (n, H, W, C) array, C-contiguous and in native byte order."""
        page_axes = self.layout.axes[-self._n_page_axes :]
        page_shape = self.layout.shape[-self._n_page_axes :]
        lead_axes, lead_shape = self.layout.axes[: -self._n_page_axes], self.layout.shape[: -self._n_page_axes]
        frames = slice(start, stop)
        indices = np.arange(math.prod(lead_shape)).reshape(lead_shape)
        indices = indices[tuple(frames if axis == "T" else slice(None) for axis in lead_axes)]
        # Frames may even vary within a page: then every page is read, and a part of each is kept.
        part = tuple(frames if axis == "T" else slice(None) for axis in page_axes)
        part_shape = tuple(stop - start if axis == "T" else n for axis, n in zip(page_axes, page_shape, strict=True))
        block = np.empty((indices.size, *part_shape), self._file_dtype)
        if self._offsets is None:
            self._decode_pages(indices.ravel(), block, page_shape, part)
        elif part_shape == page_shape:
            self._read_pages(self._offsets[indices.ravel()], block)
        else:
            page = np.empty((1, *page_shape), self._file_dtype)
            for i, offset in enumerate(self._offsets[indices.ravel()]):
                self._read_pages(np.array([offset]), page)
                block[i] = page[0][part]
        if not block.dtype.isnative:
            block = block.byteswap(inplace=True).view(self.dtype)
        stored = self.layout.to_frames(block.reshape(*indices.shape, *part_shape))
        return stored if stored.flags.c_contiguous else _copied(stored, np.empty(stored.shape, self.dtype))

    def _read_pages(self, offsets: NDArray[np.int64], block: NDArray[Any]) -> None:
        """Read pages stored as they are, in parts side by side: one reader alone leaves a disk waiting."""
        step = max(PART_BYTES // block[0].nbytes, 1)
        if len(offsets) <= step or not hasattr(os, "preadv"):
            self._read_part(offsets, block)
            return

        def read(first: int) -> None:
            self._read_part(offsets[first : first + step], block[first : first + step])

        with ThreadPoolExecutor(READING_THREADS) as pool:
            for _ in pool.map(read, range(0, len(offsets), step)):
                pass

    def _read_part(self, offsets: NDArray[np.int64], block: NDArray[Any]) -> None:
        """Read pages, those that follow each other in the file at once."""
        gaps = np.flatnonzero(np.diff(offsets) != block[0].nbytes) + 1
        for first, last in zip([0, *gaps], [*gaps, len(offsets)], strict=True):
            self._read_bytes(int(offsets[first]), block[first:last])

    def _read_bytes(self, offset: int, block: NDArray[Any]) -> None:
        missing = block.reshape(-1).view(np.uint8).data
        # A system call returns at most 2 GiB.
        while missing:
            n_read = self._read_some(offset, missing)
            if not n_read:
                raise OSError(f"{self.path}: the file ends {len(missing)} bytes early; was it changed while in use?")
            missing, offset = missing[n_read:], offset + n_read

    def _read_some(self, offset: int, target: memoryview) -> int:
        """Read what one system call gives; where the file stands is left alone, if the system can."""
        assert self._file is not None  # open() comes first
        if hasattr(os, "preadv"):
            return os.preadv(self._file.fileno(), [target], offset)
        self._file.seek(offset)
        return int(self._file.readinto(target))  # type: ignore[attr-defined]

    def _decode_pages(
        self, indices: NDArray[np.intp], block: NDArray[Any], page_shape: tuple[int, ...], part: tuple[slice, ...]
    ) -> None:
        def decode(i: int) -> None:
            block[i] = self._decode(self._pages[indices[i]]).reshape(page_shape)[part]

        # a file of a set is opened for each of its pages
        with ThreadPoolExecutor(1 if self.is_multifile else DECODING_THREADS) as pool:
            for _ in pool.map(decode, range(len(indices))):
                pass

    def _decode(self, page: Any) -> NDArray[Any]:
        handle = page.parent.filehandle
        was_closed = handle.closed
        if was_closed:
            handle.open()
        try:
            return np.asarray(page.asarray(maxworkers=1))
        except Exception as error:  # codecs raise exceptions of their own
            raise ValueError(
                f"{self.path}: page {page.index} cannot be decoded: {error}; compressed files may need "
                'pip install "flowreg-gpu[compressed]"'
            ) from error
        finally:
            if was_closed:
                handle.close()


def _copied(frames: NDArray[Any], target: NDArray[Any]) -> NDArray[Any]:
    """Copy (n, H, W, C) channel by channel, which is faster than by pixels where channels lie apart in either array."""
    for channel in range(frames.shape[-1]):
        target[..., channel] = frames[..., channel]
    return target


def _full_shape(series: Any) -> tuple[int, ...]:
    """Shape of a series with its axes of length one, as far as tifffile still knows them (up to 2026.4)."""
    return tuple(series.get_shape(False) if hasattr(series, "get_shape") else series.shape)


def _is_raw(page: Any) -> bool:
    """Tell whether the pixels of a page are stored as they are, one strip after the other."""
    offsets, n_bytes = page.dataoffsets, page.databytecounts
    adjacent = all(offsets[i] + n_bytes[i] == offsets[i + 1] for i in range(len(offsets) - 1))
    return bool(page.keyframe.is_final and offsets and offsets[0] > 0 and adjacent)


# --- reading ------------------------------------------------------------------------------------------------------


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
        self._sources = [_TiffSource(path, axes, channels) for path in self.paths]
        first = self._sources[0]
        for source in self._sources[1:]:
            _check_alike(first, source)
        # Frames of file i are starts[i] to starts[i + 1].
        self._starts = np.cumsum([0, *(source.layout.size("T") for source in self._sources)])
        self._open_source: _TiffSource | None = None

        self.layout = first.layout.with_frames(int(self._starts[-1]))
        self.n_frames, self.height, self.width, self.n_channels = (self.layout.size(axis) for axis in "TYXC")
        self.dtype = first.dtype
        self.has_channel_axis = first.has_channel_axis
        self.metadata = first.metadata
        self.kind = first.metadata.kind
        self.axes, self.stored_shape = self.stored_as(self.n_frames)

    def stored_as(self, n_frames: int) -> tuple[str, tuple[int, ...]]:
        """Return axes and shape that the file would have with another number of frames."""
        first = self._sources[0]
        own, axes, shape = first.layout.size("T"), first.stored_axes, first.stored_shape
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
        layout = first.layout.with_frames(n_frames)
        return layout.axes, layout.shape

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


def _check_alike(first: _TiffSource, other: _TiffSource) -> None:
    """Raise ValueError unless two files can be parts of one recording."""
    for source in (first, other):
        if source.is_multifile:
            raise ValueError(f"{source.path}: the file already includes the other files of its set; give it alone")
    for name, axis in (("height", "Y"), ("width", "X"), ("channels", "C")):
        expected, found = first.layout.size(axis), other.layout.size(axis)
        if found != expected:
            raise ValueError(f"{other.path}: {name} is {found}, expected {expected} as in {first.path}")
    if other.dtype != first.dtype:
        raise ValueError(f"{other.path}: dtype is {other.dtype}, expected {first.dtype} as in {first.path}")


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


# --- writing ------------------------------------------------------------------------------------------------------


def _imagej_description(metadata: TiffMetadata, axes: str, shape: Sequence[int]) -> str:
    """Return ImageJ's description with the counts of `shape`; its other lines are kept."""
    sizes = dict(zip(axes, shape, strict=True))
    counts = {"images": math.prod(size for axis, size in sizes.items() if axis not in "YXS")}
    counts |= {key: sizes.get(axis, 1) for key, axis in (("channels", "C"), ("slices", "Z"), ("frames", "T"))}
    lines = metadata.description.splitlines()
    if not lines:
        lines = ["ImageJ=1.11a", "hyperstack=true", "mode=grayscale", "loop=false"]
    kept = [line for line in lines[1:] if line.partition("=")[0] not in counts]
    return "\n".join([lines[0], *(f"{key}={n}" for key, n in counts.items() if key == "images" or n > 1), *kept, ""])


def _is_ome(metadata: TiffMetadata, axes: str) -> bool:
    """Tell whether OME can hold the axes: it has no name for some that other software adds."""
    return metadata.kind == "ome" and set(axes) <= set("TZCYXS")


def _description_arguments(
    metadata: TiffMetadata, axes: str, shape: Sequence[int], dtype: np.dtype[Any]
) -> dict[str, Any]:
    """Return the arguments of tifffile's writer that make the file one of the same kind."""
    if metadata.kind == "imagej":
        keys = ("Info", "Ranges", "LUTs", "Plot", "ROI", "Overlays", "Properties")
        kept = {key: metadata.imagej[key] for key in keys if key in metadata.imagej}
        labels = metadata.imagej.get("Labels", [])
        labels = [labels] if isinstance(labels, str) else labels
        if len(labels) == _count_planes(axes, shape):
            kept["Labels"] = labels
        description = _imagej_description(metadata, axes, shape).encode()
        tags = tifffile.imagej_metadata_tag(kept, "<" if sys.byteorder == "little" else ">")
        return {"metadata": None, "description": description, "extratags": tags}
    if metadata.kind == "plain":
        return {"metadata": None, "description": metadata.description.encode() or None}
    if _is_ome(metadata, axes):
        ome = {key: value for key, value in metadata.ome.items() if key != "SignificantBits" or dtype.kind == "u"}
        return {"metadata": {**ome, "axes": axes}}
    if metadata.kind == "shaped":
        # tifffile names axes Q, I, S, Y and X by itself: naming them would make them other axes than they were.
        named = "axes" in metadata.shaped or bool(set(axes) & set("TC"))
        return {"metadata": {**metadata.shaped, "axes": axes} if named else metadata.shaped}
    arguments: dict[str, Any] = {"metadata": {"axes": axes}}
    if metadata.kind == "scanimage":
        arguments["description"] = metadata.description.encode() or None
        arguments["extratags"] = [(315, 2, None, metadata.artist.encode(), True)] if metadata.artist else []
    return arguments


def _display_arguments(metadata: TiffMetadata, axes: str, shape: Sequence[int], dtype: np.dtype[Any]) -> dict[str, Any]:
    """Return the arguments of tifffile's writer that say how pixels are shown and how large they are."""
    arguments: dict[str, Any] = {"photometric": metadata.photometric if metadata.photometric in (0, 1) else 1}
    if axes.endswith(("YXS", "YXC")) or "SYX" in axes:
        samples = shape[axes.index("SYX")] if "SYX" in axes else shape[-1]
        arguments["planarconfig"] = "separate" if "SYX" in axes else "contig"
        if metadata.photometric == 2 and samples in (3, 4):
            arguments["photometric"] = 2
    elif metadata.colormap is not None and metadata.colormap.shape == (3, 256**dtype.itemsize) and dtype.kind == "u":
        arguments |= {"photometric": 3, "colormap": metadata.colormap}
    if metadata.resolution is not None:
        arguments |= {"resolution": metadata.resolution, "resolutionunit": metadata.resolutionunit}
    if metadata.software and metadata.software.isascii():
        arguments["software"] = metadata.software
    return arguments


def _count_planes(axes: str, shape: Sequence[int]) -> int:
    samples = axes.endswith("YXC")
    return math.prod(n for axis, n in zip(axes, shape, strict=True) if axis not in ("YXSC" if samples else "YXS"))


class _ReservedTiffWriter(ReservedFileWriter):
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
    """

    def __init__(
        self,
        path: PathLike,
        layout: Layout,
        dtype: DTypeLike,
        axes: str,
        stored_shape: Sequence[int],
        metadata: TiffMetadata,
    ) -> None:
        n_frames, height, width, n_channels = (layout.size(axis) for axis in "TYXC")
        super().__init__((n_frames, height, width, n_channels), supported_dtype(dtype, os.fspath(path)))
        self._layout = layout
        n_bytes = math.prod(layout.shape) * self.dtype.itemsize
        n_bytes += _count_planes(axes, stored_shape) * BYTES_PER_IFD
        with self._reserve(path, n_bytes):
            self._offset = self._lay_out(axes, tuple(stored_shape), metadata, n_bytes > CLASSIC_LIMIT)

    def _lay_out(self, axes: str, shape: tuple[int, ...], metadata: TiffMetadata, is_large: bool) -> int:
        """Write everything but the pixels; return the offset of the pixels."""
        one_page = is_large and metadata.kind == "imagej"
        if one_page:
            # ImageJ has no BigTIFF: above 4 GB it describes one page and lets the others follow it.
            axes = axes.replace("I", "T")
        arguments = _description_arguments(metadata, axes, shape, self.dtype)
        arguments |= _display_arguments(metadata, axes, shape, self.dtype)
        if one_page:
            shape = tuple(n for axis, n in zip(axes, shape, strict=True) if axis in "YXS")
        is_big = is_large and not one_page
        with tifffile.TiffWriter(self._pending.path, bigtiff=is_big, ome=_is_ome(metadata, axes)) as tif:
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
            _copied(frames, self._layout.to_frames(block))
        block = block.reshape(n_outer, -1)
        # Where channels (or rows) are slower than time, the frames of each are a slab of their own.
        for i, slab in enumerate(block):
            self._write_bytes(self._offset + (i * self.n_frames + start) * frame_bytes, slab)


class TiffWriter(_ReservedTiffWriter):
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


class TiffFlowWriter(_ReservedTiffWriter):
    """Displacement fields as a TIFF file of axes TYXC: (T, H, W, 2) float32.

    Parameters
    ----------
    path : str or path-like
        The file appears there at `close`, and only if every frame was written.
    n_frames, height, width : int
        Size of the recording.
    """

    def __init__(self, path: PathLike, n_frames: int, height: int, width: int) -> None:
        shape = (n_frames, height, width, 2)
        metadata = TiffMetadata("shaped", shaped={"axes": "TYXC", "convention": FLOW_CONVENTION})
        super().__init__(path, Layout("TYXC", shape), np.float32, "TYXC", shape, metadata)
