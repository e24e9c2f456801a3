"""What a report shows: small arrays and figures, whatever the size of the recording."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.quality.measures import FlowMap
from flowreg_gpu.quality.verdict import Verdict

__all__ = ["Images", "Kymograph", "ReportData", "Strip", "WorstFlow"]


class Images(NamedTuple):
    """Mean and maximum of some frames, before or after registration.

    Attributes
    ----------
    mean, maximum : (H, W, C) float32
        In the values of the file; maximum over frames of the pixel.
    """

    mean: NDArray[np.float32]
    maximum: NDArray[np.float32]


class Strip(NamedTuple):
    """Frames that are played: those that moved most, and others spread over the recording.

    Attributes
    ----------
    numbers : (K,) int
        Of the frames, rising.
    before, after : (K, h, w, C) float32
        In the values of the file; averaged over blocks of pixels where frames are large.
    """

    numbers: NDArray[np.intp]
    before: NDArray[np.float32]
    after: NDArray[np.float32]


@dataclasses.dataclass(frozen=True, eq=False)
class Kymograph:
    """A line of pixels over time.

    Attributes
    ----------
    axis : str
        'row' or 'column'.
    index : int
        Of the row or column.
    channel : int
    numbers : (K,) int
        Of the frames, rising.
    before, after : (K, W or H) float32
    """

    axis: str
    index: int
    channel: int
    numbers: NDArray[np.intp]
    before: NDArray[np.float32]
    after: NDArray[np.float32]


class WorstFlow(NamedTuple):
    """Flow (2, h, w) float32 of a frame, pixels of the recording; every `step`-th pixel of it."""

    number: int
    step: int
    flow: NDArray[np.float32]


@dataclasses.dataclass(frozen=True, eq=False)
class ReportData:
    """Everything that a report shows.

    Attributes
    ----------
    title : str
        Name of the registered file, without its folder.
    verdict : Verdict
    measures : tuple of (str, str, str, str)
        Rows of a table: name of the measure, before, after, what it means; figures as they are to be read.
    shape : (T, H, W, C)
    rate : float or None
        Frames per second, where it is known.
    before, after : Images
    image_frames : int
        Frames that these images are made of.
    strip : Strip
    statistics : dict of str to (T,)
        As in `Summary.statistics`; some may be missing where only files are known.
    window : int or None
        Frames that share a start flow.
    flat : (H, W) bool or None
        Pixels of the reference without structure, whose flow is not to be trusted.
    field : FlowMap or None
    worst : tuple of WorstFlow
        Of the frames that moved most.
    kymographs : tuple of Kymograph
    facts : dict of str to dict of str to str, number, bool or None
        Sections 'recording', 'options', 'run', 'versions': names and values. No folders, unless asked for.
    warnings : tuple of str
    """

    title: str
    verdict: Verdict
    measures: tuple[tuple[str, str, str, str], ...]
    shape: tuple[int, int, int, int]
    rate: float | None
    before: Images
    after: Images
    image_frames: int
    strip: Strip
    statistics: dict[str, NDArray[Any]]
    window: int | None = None
    flat: NDArray[np.bool_] | None = None
    field: FlowMap | None = None
    worst: tuple[WorstFlow, ...] = ()
    kymographs: tuple[Kymograph, ...] = ()
    facts: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()
