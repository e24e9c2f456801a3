"""The offset between even and odd lines of frames that were scanned to and fro: estimated once, and taken away.

The lines of one direction lag behind those of the other by a delay of the electronics: all odd lines are displaced
along x against the even ones. They are moved back as frames are read, before anything else sees them, so that executors
and devices get the same frames.

Neighbouring lines show nearly the same. The offset is where the cross-correlation of the odd lines with the even lines
above and below them is highest; what is slanted adds on one side what it takes off on the other. It is taken of the
mean of some frames, and of bands of rows as well: they hold different structure, and tell by what they differ by how
sure it is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.io import FrameReader
from flowreg_gpu.model.resampling import cubic_kernel
from flowreg_gpu.registration.verification import spread_frames

if TYPE_CHECKING:  # it imports the summary, which shows an offset
    from flowreg_gpu.registration.bad_frames import BadFrames

__all__ = ["NO_OFFSET", "ScanOffset", "ScanReader", "estimate_scan_offset"]

# Frames whose mean is looked at, spread over the recording, and at least in each of its files.
SAMPLES, LEAST_SAMPLES = 60, 5
# Files differ where their offsets do by so many pixels.
DRIFT = 0.3
# Bands of rows, and the least rows of each.
BANDS, LEAST_ROWS = 12, 8
# Largest offset that is looked for, in pixels and as part of the width.
LARGEST, LARGEST_PART = 20, 1 / 8
# An offset is corrected where it is at least so many pixels, and so many times its standard error.
LEAST_OFFSET, CERTAIN = 0.15, 6.0
# ... and where this part of the bands agrees with it to half a pixel.
AGREEING = 0.75
FINENESS = 8  # places for each pixel at which the correlation is computed
# Lines are compared again where they have been moved back: far apart, their ends have no partners, which draws to zero.
ROUNDS = 3


@dataclasses.dataclass(frozen=True)
class ScanOffset:
    """Displacement along x of the odd lines against the even ones.

    Attributes
    ----------
    pixels : float
        To two digits after the point; 0 where there is none.
    error : float
        Its standard error; 0 where it was given.
    """

    pixels: float
    error: float = 0.0

    def __str__(self) -> str:
        sure = f" +- {self.error:.2f}" if self.error else ""
        return f"odd lines were displaced by {self.pixels:g}{sure} px, and are moved back"


NO_OFFSET = ScanOffset(0.0)


def estimate_scan_offset(reader: FrameReader, bad_frames: BadFrames) -> ScanOffset:
    """The offset of a recording; none where it is small, or not sure.

    Where the recording is in several files whose offsets differ, a RuntimeWarning says so. Frames that cannot be read
    are left out: the run says so in its turn.
    """
    parts, everything = reader.parts, range(reader.n_frames)
    offset = _estimate(reader, bad_frames, everything, SAMPLES)
    if len(parts) > 1:
        samples = max(SAMPLES // len(parts), LEAST_SAMPLES)
        sure = [found for part in parts if (found := _estimate(reader, bad_frames, part, samples)).pixels]
        lowest, highest = (extreme(sure, key=_pixels, default=NO_OFFSET) for extreme in (min, max))
        if _pixels(highest) - _pixels(lowest) > max(DRIFT, CERTAIN * math.hypot(lowest.error, highest.error)):
            warnings.warn(
                f"the scan offset drifts over the files, from {lowest.pixels:g} to {highest.pixels:g} px: all are "
                f"corrected by {offset.pixels:g} px; register them one by one, or give each its own (bidirectional)",
                RuntimeWarning,
                stacklevel=5,
            )
    return offset


def _pixels(offset: ScanOffset) -> float:
    return offset.pixels


def _estimate(reader: FrameReader, bad_frames: BadFrames, frames: range, samples: int) -> ScanOffset:
    """The offset of some frames of a recording, by so many of them."""
    total, count = np.zeros(reader.shape[1:]), 0
    for index in spread_frames(len(frames), min(samples, len(frames))):
        number = frames[index]
        with contextlib.suppress(Exception):
            frame = reader.read(number, number + 1)[0]
            if not bad_frames.contains(number, frame) and np.isfinite(frame).all():
                total += frame
                count += 1
    bands = min(BANDS, reader.height // LEAST_ROWS)
    reach = int(min(LARGEST, LARGEST_PART * reader.width))
    if not count or bands < 4 or reach < 1:
        return NO_OFFSET
    edges = np.arange(bands + 1) * reader.height // bands // 2 * 2
    offset = 0.0
    for _ in range(ROUNDS):
        image = total.copy()
        image[1::2] = _moved(total[1::2], offset)
        curves = np.stack([_correlations(image[a:b], reach) for a, b in itertools.pairwise(edges)])
        curves = curves[curves[:, reach * FINENESS] > 0]  # bands without structure say nothing
        if len(curves) < 4:
            return NO_OFFSET
        each = offset + np.array([_highest(curve, reach) for curve in curves])
        offset += _highest(curves.mean(axis=0), reach)
        if abs(offset) >= reach:
            return NO_OFFSET
    # the standard deviation of the bands, were they normally distributed, without wild ones
    error = 1.4826 * float(np.median(np.abs(each - np.median(each)))) / math.sqrt(len(each))
    agreeing = float(np.mean(np.abs(each - offset) < 0.5))
    sure = abs(offset) >= max(LEAST_OFFSET, CERTAIN * error) and agreeing >= AGREEING
    return ScanOffset(round(offset, 2), round(error, 3)) if sure else NO_OFFSET


def _correlations(image: NDArray[np.float64], reach: int) -> NDArray[np.float64]:
    """Cross-correlation of the odd lines of (h, W, C) with the even ones around them, -reach to reach px, per variance.

    The lines are compared without their mean, and fade out towards their ends.
    """
    width = image.shape[1]
    window = np.hanning(width + 2)[1:-1, None]
    lines = (image - image.mean(axis=1, keepdims=True)) * window
    size = 2 ** math.ceil(math.log2(width + 2 * reach))
    spectrum = np.fft.rfft(lines, size, axis=1)
    odd, even = spectrum[1::2], spectrum[0::2]
    power = odd[: len(even)] * np.conj(even[: len(odd)])
    power = power.sum(axis=(0, 2)) + (odd[: len(even) - 1] * np.conj(even[1 : len(odd) + 1])).sum(axis=(0, 2))
    curve = np.fft.irfft(power, size * FINENESS)  # zeros beyond: interpolated between the pixels
    places = np.arange(-reach * FINENESS, reach * FINENESS + 1)
    variance = np.sum(lines**2)
    correlations: NDArray[np.float64] = curve[places] / variance if variance > 0 else np.zeros(len(places))
    return correlations


def _highest(curve: NDArray[np.float64], reach: int) -> float:
    """Where a parabola through the highest place and its neighbours is highest, pixels."""
    k = int(np.argmax(curve))
    place = float(k)
    if 0 < k < len(curve) - 1:
        bend = curve[k - 1] - 2 * curve[k] + curve[k + 1]
        place += 0.5 * (curve[k - 1] - curve[k + 1]) / bend if bend < 0 else 0.0
    return place / FINENESS - reach


class ScanReader(FrameReader):
    """A recording whose odd lines are moved back by an offset along x.

    Cubic interpolation (Keys 1981, a = -0.75), border pixels repeated; integers are rounded and saturated.

    Parameters
    ----------
    reader : FrameReader
    offset : float
        Displacement of the odd lines against the even ones, pixels.
    """

    def __init__(self, reader: FrameReader, offset: float) -> None:
        self._reader, self._offset = reader, offset
        self.n_frames, self.height, self.width, self.n_channels = reader.shape
        self.dtype, self.has_channel_axis, self.threaded = reader.dtype, reader.has_channel_axis, reader.threaded

    def _load(self, start: int, stop: int) -> NDArray[Any]:
        frames = self._reader.read(start, stop)
        for frame in frames:
            moved = _moved(frame[1::2].astype(np.float64 if self.dtype == np.float64 else np.float32), self._offset)
            if self.dtype.kind in "iu":
                limits = np.iinfo(self.dtype)
                moved = np.clip(np.rint(moved), limits.min, limits.max)
            frame[1::2] = moved
        return frames


def _moved(lines: NDArray[np.floating[Any]], offset: float) -> NDArray[np.floating[Any]]:
    """Lines (h, W, C) moved back by an offset: the new pixel x is the old one at x + offset."""
    whole = math.floor(offset)
    reach = abs(whole) + 2
    padded = np.pad(lines, ((0, 0), (reach, reach), (0, 0)), mode="edge")
    moved = np.zeros_like(lines)
    for k in range(-1, 3):
        weight = cubic_kernel(np.array(offset - whole - k))
        if not weight:  # a whole offset: pixels are copied, and their neighbours may be NaN
            continue
        first = reach + whole + k
        moved += lines.dtype.type(weight) * padded[:, first : first + lines.shape[1]]
    return moved
