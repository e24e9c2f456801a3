"""Pages of memory maps, which count as memory in use until the system needs them."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["release_pages"]


def release_pages(array: NDArray[Any]) -> None:
    """Give the pages of a memory map that an array covers back to the system; their contents stay in the file.

    Whoever goes once through a map that is larger than memory calls it for every part that is done. Nothing happens for
    other arrays, for maps with changes that are not to reach the file, and where the system cannot do it.
    """
    if not isinstance(array, np.memmap) or array.mode not in ("r", "r+", "w+") or not array.flags.c_contiguous:
        return
    mapping: Any = array
    while mapping is not None and not isinstance(mapping, mmap.mmap):
        mapping = mapping.base
    if mapping is None or not array.nbytes or not hasattr(mapping, "madvise"):
        return
    begin = array.ctypes.data - np.frombuffer(mapping, np.uint8).ctypes.data
    first = begin // mmap.PAGESIZE * mmap.PAGESIZE
    mapping.madvise(mmap.MADV_DONTNEED, first, begin + array.nbytes - first)
