"""ScanImage files: axes and shape from the header and the pages, because tifffile misreads some of these files."""

from __future__ import annotations

import re
from typing import Any

from flowreg_gpu.io.tiff.layout import HINT

__all__ = ["scanimage_axes"]


def scanimage_axes(path: str, page: Any, n_pages: int) -> tuple[str, tuple[int, ...]]:
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
