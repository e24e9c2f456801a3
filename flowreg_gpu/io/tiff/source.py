"""Frames of one TIFF file: stored pixels by system calls, compressed ones through tifffile.

Mapped pages would count as memory in use, so stored pixels are read by seek and read on an ordinary file.
"""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import numpy as np
import tifffile
from numpy.typing import NDArray

from flowreg_gpu.io.tiff.chain import read_page_chain
from flowreg_gpu.io.tiff.layout import copy_by_channel
from flowreg_gpu.io.tiff.pages import PageMap, map_pages

__all__ = ["TiffSource"]

# More threads than this hardly decode faster, and each holds a page.
DECODING_THREADS = min(8, os.cpu_count() or 1)
# Threads that read stored pixels, and what each takes at a time; they wait for the disk, not for a core.
READING_THREADS, PART_BYTES = 4, 2**23


def _names_a_file(error: Exception, path: str) -> bool:
    """Whether an error says what is wrong with which file, as ours and those of the system do."""
    if isinstance(error, OSError) and error.filename is not None:
        return True
    return isinstance(error, ValueError | OSError) and str(error).startswith(path)


class TiffSource:
    """Frames of one file.

    Parameters
    ----------
    path : str
    axes, channels : str, int or None
        As in `TiffReader`.

    Attributes
    ----------
    page_map : PageMap
        What the file holds.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It cannot be read; the message names it.
    """

    def __init__(self, path: str, axes: str | None, channels: int | None) -> None:
        self.path = path
        if not os.path.exists(path):
            raise FileNotFoundError(f"{path}: there is no such file, expected a TIFF file")
        chain = read_page_chain(path)
        try:
            self._tif = tifffile.TiffFile(path)
        except Exception as error:  # tifffile raises whatever a malformed file leads to
            raise ValueError(f"{path}: not a readable TIFF file: {error}") from error
        self._file: BinaryIO | None = None
        try:
            self.page_map: PageMap = map_pages(path, self._tif, chain, axes, channels)
            if self.page_map.offsets is None:
                # A missing codec is found before work starts.
                self._decode(self.page_map.pages[0])
        except Exception as error:  # tifffile reads many tags only when they are asked for, and raises as above
            if _names_a_file(error, path):
                raise
            kind = OSError if isinstance(error, OSError) else ValueError
            raise kind(f"{path}: the file is damaged: {error!r}") from error
        finally:
            self._tif.filehandle.close()

    def open(self) -> None:
        """Open the file, if it is not open."""
        if self.page_map.offsets is not None and self._file is None:
            self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115 (closed by close)
        elif self.page_map.offsets is None and self._tif.filehandle.closed:
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
        layout, n_page_axes = self.page_map.layout, self.page_map.n_page_axes
        page_axes, page_shape = layout.axes[-n_page_axes:], layout.shape[-n_page_axes:]
        lead_axes, lead_shape = layout.axes[:-n_page_axes], layout.shape[:-n_page_axes]
        frames = slice(start, stop)
        indices = np.arange(math.prod(lead_shape)).reshape(lead_shape)
        indices = indices[tuple(frames if axis == "T" else slice(None) for axis in lead_axes)]
        # Frames may even vary within a page: then every page is read, and a part of each is kept.
        part = tuple(frames if axis == "T" else slice(None) for axis in page_axes)
        part_shape = tuple(stop - start if axis == "T" else n for axis, n in zip(page_axes, page_shape, strict=True))
        block = np.empty((indices.size, *part_shape), self.page_map.file_dtype)
        if self.page_map.offsets is None:
            self._decode_pages(indices.ravel(), block, page_shape, part)
        elif part_shape == page_shape:
            self._read_pages(self.page_map.offsets[indices.ravel()], block)
        else:
            page = np.empty((1, *page_shape), self.page_map.file_dtype)
            for i, offset in enumerate(self.page_map.offsets[indices.ravel()]):
                self._read_pages(np.array([offset]), page)
                block[i] = page[0][part]
        if not block.dtype.isnative:
            block = block.byteswap(inplace=True).view(self.page_map.dtype)
        stored = layout.to_frames(block.reshape(*indices.shape, *part_shape))
        if stored.flags.c_contiguous:
            return stored
        return copy_by_channel(stored, np.empty(stored.shape, self.page_map.dtype))

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
        """Read what one system call returns; threads may do so side by side where the system reads at a position."""
        assert self._file is not None  # open() comes first
        if hasattr(os, "preadv"):
            return os.preadv(self._file.fileno(), [target], offset)
        self._file.seek(offset)
        return int(self._file.readinto(target))  # type: ignore[attr-defined]

    def _decode_pages(
        self, indices: NDArray[np.intp], block: NDArray[Any], page_shape: tuple[int, ...], part: tuple[slice, ...]
    ) -> None:
        def decode(i: int) -> None:
            block[i] = self._decode(self.page_map.pages[indices[i]]).reshape(page_shape)[part]

        # a file of a set is opened for each of its pages
        with ThreadPoolExecutor(1 if self.page_map.is_multifile else DECODING_THREADS) as pool:
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
