"""The chain of pages of a TIFF file, read without tifffile, which takes what it can reach and goes on."""

from __future__ import annotations

import os
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["read_page_chain"]

# Bytes of one value of each TIFF field type.
_TYPE_SIZES = np.array([0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8] + [0] * 65517, np.float64)
# Width, length, bits, compression, samples, rows per strip, planes, predictor, tile width and length, sample format.
_FORMAT_TAGS = np.zeros(65536, bool)
_FORMAT_TAGS[[256, 257, 258, 259, 277, 278, 284, 317, 322, 323, 339]] = True


def read_page_chain(path: str) -> list[tuple[int, bytes]]:
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
                if offset > size:  # beyond what a system call takes, too
                    raise ValueError(f"page at {offset}")
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
