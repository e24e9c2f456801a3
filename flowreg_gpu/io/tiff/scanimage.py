"""ScanImage files: axes and shape from the header and the pages, because tifffile misreads some of these files."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from typing import Any

from flowreg_gpu.io.tiff.layout import HINT

__all__ = ["PAGES_READ", "scanimage_axes"]

# Pages whose descriptions tell how many of them make a frame: some frames of the most channels that are recorded.
PAGES_READ = 32
# In a page's description, as text ("frameNumbers = 1") or as JSON ('"frameNumbers": 1').
_FRAME_NUMBER = re.compile(r"\bframeNumbers\"?\s*[=:]\s*(\d+)")


def scanimage_axes(path: str, page: Any, n_pages: int, descriptions: Iterable[str]) -> tuple[str, tuple[int, ...]]:
    """Return axes and shape of a ScanImage file from its header.

    tifffile labels channels in BigTIFF files only, and takes the number of frames from the header, where it is the one
    that was asked for and not the one that this file holds. Pages are interleaved: channels first, then frames.

    Parameters
    ----------
    path : str
        For messages.
    page : tifffile.TiffPage
        The first one.
    n_pages : int
    descriptions : iterable of str
        Those of the first `PAGES_READ` pages, which have to agree with the header.

    Raises
    ------
    ValueError
        The header does not tell the channels, or the pages are others, or they are a volume over time.
    """
    header = page.software if page.software.startswith("SI.") else page.description
    saved = re.search(r"channels?Saved?\s*=\s*(\[[^\]]*\]|\d+)", header)
    if saved:
        channels = len(re.findall(r"\d+", saved.group(1)))
    else:
        channels = len(re.findall(r"savingChannel\d+\s*=\s*(?:1|true)", header))
    if channels < 1:
        raise ValueError(f"{path}: the ScanImage header does not tell which channels were saved; {HINT}")
    counted = _channels_by_frame_numbers(descriptions)
    if counted not in (None, channels):
        raise ValueError(
            f"{path}: the ScanImage header names {channels} saved channel(s), but by their frame numbers, {counted} "
            f"page(s) make a frame; channels={counted} (--channels {counted}) reads them so"
        )
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


def _channels_by_frame_numbers(descriptions: Iterable[str]) -> int | None:
    """How many pages in a row have the number of the same frame; None where they have none, or it differs.

    ScanImage writes the channels of a frame one after the other, each with the number of the frame.
    """
    found = [_FRAME_NUMBER.search(description) for description in descriptions]
    numbers = [match[1] for match in found if match]
    runs = [len(list(run)) for _, run in itertools.groupby(numbers)]
    complete = set(runs[:-1])  # the last one may go on
    return complete.pop() if len(numbers) == len(found) and len(complete) == 1 else None
