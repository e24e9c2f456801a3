"""Bad frames: those that the caller names, and those that show no image, or an image in a part of the frame only.

Found are frames that are black, constant or saturated, that were taken while a shutter was closed (dark noise), or that
are half lit since it closed on the way. Whatever is in doubt is no bad frame: activity, bleaching, a lamp that changes
its brightness, motion and noise leave an image behind.

What is usual is learnt from frames spread over the recording, chosen by their numbers alone, before the run. Then every
frame is judged by itself as it is read, so that neither batches nor workers matter, and nothing is read twice.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import operator
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.cpu.statistics import correlation
from flowreg_gpu.engine.batch import BatchResult, find_nonfinite
from flowreg_gpu.io import FrameReader
from flowreg_gpu.registration.summary import COLUMNS
from flowreg_gpu.registration.verification import spread_frames

__all__ = [
    "BadFrames",
    "BadFramesLike",
    "Brightness",
    "BrightnessRule",
    "ReadFrames",
    "measure_brightness",
    "replace_nonfinite",
]

BadFramesLike = str | os.PathLike[str] | slice | Sequence[int] | NDArray[Any] | None

# Frames that say what is usual, spread over the recording, and fewer of them than which say nothing.
SAMPLES, LEAST_SAMPLES = 200, 5
# Blocks along a side of the frame, and pixels along the side of a block: the noise of so many pixels averages out, and
# motion of some pixels changes their means little.
MOST_BLOCKS, LEAST_SIDE = 16, 4
LARGEST = 1e60  # sum of a block, whose fourth power can be computed
# A part of the image is dark where its structure has surely (so many standard deviations of what the noise makes of it)
# fallen below a quarter of what is usual there, and its mean by a half of what its blocks usually differ by, or by all
# of that at a side, where tissue may move out of sight. So activity does not count: where the structure is that of some
# bright cells, the mean hardly changes when they are silent. Brightness that falls to a fifth of the first frame's, by
# bleaching or by a lamp, does not count either, since what is usual is the median.
LOST_STRUCTURE, CERTAIN = 0.25, 3.0
LOST_LIGHT, LOST_LIGHT_AT_SIDES = 0.5, 1.0
# It is dim, and not dark, where what is left is an image: structure well above the noise and of this part of the usual
# one at least, or with this correlation with the usual image.
IMAGE, DIM, LIKENESS = 0.6, 0.03, 0.6
# A part can be judged where some of what its blocks usually differ by is structure and not noise.
STRUCTURE, LEAST_BLOCKS = 0.05, 12
# A frame is saturated where more than half of its values are the highest there is, and hardly any is otherwise.
SATURATED, USUALLY_SATURATED = 0.5, 0.1


class Brightness(NamedTuple):
    """Means of the blocks of a frame, and its extremes; pixels that are not finite are left out.

    Attributes
    ----------
    halves : (2, rows, columns, C) float64
        Mean of the even and of the odd columns of every block: structure is in both, noise differs. NaN where there is
        no finite pixel.
    lowest, highest : float
        Over all pixels and channels; NaN where none is finite.
    saturation : float
        Part of the values that equal the highest.
    """

    halves: NDArray[np.float64]
    lowest: float
    highest: float
    saturation: float

    @property
    def blank(self) -> bool:
        """Whether the frame is constant, or has no finite pixel."""
        return not self.lowest < self.highest


def replace_nonfinite(frames: NDArray[Any], reference: NDArray[np.float32], halo: int) -> int:
    """Replace NaN and infinite pixels by the reference's, in place; their number outside the halo."""
    nonfinite = find_nonfinite(frames)
    if nonfinite is None:
        return 0
    np.copyto(frames, reference, where=nonfinite)
    return int(np.count_nonzero(nonfinite[halo : len(frames) - halo]))


def measure_brightness(frame: NDArray[Any]) -> Brightness:
    """Brightness of a frame (H, W, C) in at most 16 x 16 blocks of at least 4 x 4 pixels."""
    lowest, highest, finite = float(frame.min()), float(frame.max()), None
    if not np.isfinite(highest - lowest):
        finite = np.isfinite(frame)
        lowest, highest = (float(frame[finite].min()), float(frame[finite].max())) if finite.any() else (np.nan, np.nan)
        frame = np.where(finite, frame, 0)
    sums, counts = _sums(frame), _counts(frame.shape) if finite is None else _sums(finite)
    means = np.where(counts > 0, np.clip(sums, -LARGEST, LARGEST) / np.maximum(counts, 1), np.nan)
    return Brightness(means, lowest, highest, np.count_nonzero(frame == highest) / frame.size)


def _sums(frame: NDArray[Any]) -> NDArray[np.float64]:
    """Sums over the halves of the blocks of a frame, (2, rows, columns, C), in an order that its size alone decides."""
    rows, columns = (_edges(size) for size in frame.shape[:2])
    with np.errstate(over="ignore"):
        lines = np.stack([frame[a:b].sum(axis=0, dtype=np.float64) for a, b in itertools.pairwise(rows)])
    first = columns[:-1]
    return np.stack(
        [np.add.reduceat(lines[:, 0::2], (first + 1) // 2, axis=1), np.add.reduceat(lines[:, 1::2], first // 2, axis=1)]
    )


@functools.lru_cache(maxsize=4)
def _counts(shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Pixels of the halves of the blocks of a frame of this shape (H, W, C)."""
    return _sums(np.ones(shape, np.uint8))


def _edges(size: int) -> NDArray[np.intp]:
    """First sample of every block along a side, and the end of the last."""
    count = min(MOST_BLOCKS, max(size // LEAST_SIDE, 1))
    return np.arange(count + 1) * size // count


def _sides(rows: int, columns: int) -> list[NDArray[np.bool_]]:
    """A quarter, a half and three quarters of the blocks from every side: (rows, columns) each."""
    sides = []
    for axis, size in ((0, rows), (1, columns)):
        numbers = np.arange(size)
        for quarters in (1, 2, 3):
            count = (quarters * size + 2) // 4
            for inside in (numbers < count, numbers >= size - count):
                shape = (rows, 1) if axis == 0 else (1, columns)
                sides.append(np.broadcast_to(inside.reshape(shape), (rows, columns)))
    return sides


def _structure(halves: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Variance of blocks (..., 2, K, C) that both halves share, which is structure, and that of one half, with noise.

    Each is (..., C).
    """
    deviations = halves - halves.mean(axis=-2, keepdims=True)
    even, odd = deviations[..., 0, :, :], deviations[..., 1, :, :]
    shared = np.maximum((even * odd).mean(axis=-2), 0)
    whole: NDArray[np.float64] = 0.5 * ((even**2).mean(axis=-2) + (odd**2).mean(axis=-2))
    return shared, whole


class _Usual:
    """What is usual in a part of the image.

    Parameters
    ----------
    samples : (n, 2, K, C) float64
        Its blocks in frames spread over the recording.
    lost_light : float
        How much darker than usual it is when it is dark, in standard deviations of the usual structure.
    """

    def __init__(self, samples: NDArray[np.float64], lost_light: float) -> None:
        shared, whole = _structure(samples)
        self._image = np.median(samples.mean(axis=1), axis=0)  # (K, C)
        self._structure = np.median(shared, axis=0)  # (C,)
        dark = np.median(samples.mean(axis=(1, 2)), axis=0) - lost_light * np.sqrt(self._structure)
        self._judged = (np.median(shared - STRUCTURE * whole, axis=0) >= 0) & (self._structure > 0)
        #: (C,): what a dark part is not brighter than, where it can be judged
        self.dark = np.where(self._judged, dark, -np.inf)

    def is_lit(self, halves: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Frames of which the blocks (..., 2, K, C) have some of the usual structure, in any channel."""
        shared, _ = _structure(halves)
        lit: NDArray[np.bool_] = np.any(shared > LOST_STRUCTURE**2 * self._structure, axis=-1)
        return lit

    def is_dark(self, halves: NDArray[np.float64]) -> bool:
        """Whether there is no image in the blocks (2, K, C) of a frame, in every channel that can be judged."""
        dark = halves.mean(axis=(0, 1)) <= self.dark
        shared, whole = _structure(halves)
        most = shared + CERTAIN * (whole - shared) / np.sqrt(len(self._image))  # what structure there may be
        dark &= most <= LOST_STRUCTURE**2 * self._structure
        dark &= (shared < IMAGE * whole) | (shared < DIM**2 * self._structure)
        dark &= _likeness(halves.mean(axis=0), self._image) < LIKENESS
        return bool(self._judged.any() and np.all(dark[self._judged]))


def _likeness(blocks: NDArray[np.float64], image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Correlation (C,) of blocks (K, C) with those of an image."""
    blocks, image = blocks - blocks.mean(axis=0), image - image.mean(axis=0)
    norm = np.sqrt((blocks**2).sum(axis=0) * (image**2).sum(axis=0))
    correlations: NDArray[np.float64] = (blocks * image).sum(axis=0) / np.where(norm > 0, norm, 1)
    return correlations


class BrightnessRule:
    """Tells frames without an image from those with one.

    Parameters
    ----------
    samples : sequence of Brightness
        Of frames spread over the recording; some may be bad.
    """

    def __init__(self, samples: Sequence[Brightness]) -> None:
        samples = [sample for sample in samples if not sample.blank]
        self._whole: _Usual | None = None
        if len(samples) < LEAST_SAMPLES:
            return
        halves = np.stack([sample.halves for sample in samples])
        # blocks that are usually there: earlier registration may have left NaN at the edges
        self._known = np.isfinite(halves).all(axis=(1, 4)).mean(axis=0) > 0.5
        if not self._known.any():
            return
        halves = self._filled(halves)
        self._whole = _Usual(halves[..., self._known, :], LOST_LIGHT)
        self._sides = []
        for side in _sides(*self._known.shape):
            inside, outside = side & self._known, ~side & self._known
            if min(np.count_nonzero(inside), np.count_nonzero(outside)) >= LEAST_BLOCKS:
                usual = [_Usual(halves[..., part, :], LOST_LIGHT_AT_SIDES) for part in (inside, outside)]
                self._sides.append((inside, usual[0], outside, usual[1]))
        parts = [(self._known, self._whole), *((inside, usual) for inside, usual, _, _ in self._sides)]
        # of the known blocks in the mean of each part
        self._weights = np.stack([inside[self._known] / np.count_nonzero(inside) for inside, _ in parts])
        self._dark = np.stack([usual.dark for _, usual in parts])
        lit = self._whole.is_lit(halves[..., self._known, :])
        self._ceiling = max(
            (sample.highest for sample, has_image in zip(samples, lit, strict=True) if has_image), default=-np.inf
        )
        self._may_saturate = np.median([sample.saturation for sample in samples]) <= USUALLY_SATURATED

    def is_bad(self, frame: Brightness) -> bool:
        """Whether a frame of that brightness is black, constant, saturated, dark or half lit."""
        if frame.blank:
            return True
        if self._whole is None:
            return False
        if self._may_saturate and frame.saturation > SATURATED and frame.highest >= self._ceiling:
            return True
        halves = self._filled(frame.halves)
        means = np.einsum("pk,kc->pc", self._weights, halves[:, self._known].mean(axis=0))
        if not np.any(means <= self._dark):  # the common case
            return False
        return self._whole.is_dark(halves[:, self._known]) or any(
            usual.is_dark(halves[:, inside]) and bool(others.is_lit(halves[:, outside]))
            for inside, usual, outside, others in self._sides
        )

    def _filled(self, halves: NDArray[np.float64]) -> NDArray[np.float64]:
        """Blocks (..., 2, rows, columns, C) with the mean of the known ones where one of those is NaN."""
        known = halves[..., self._known, :]
        finite = np.isfinite(known)
        if finite.all():
            return halves
        sums = np.where(finite, known, 0).sum(axis=(-3, -2), keepdims=True)
        means = sums / np.maximum(finite.sum(axis=(-3, -2), keepdims=True), 1)  # (..., 1, 1, C)
        return np.where(np.isfinite(halves), halves, means[..., None, :])


class BadFrames:
    """The bad frames of a recording; frames without any finite pixel always are.

    Parameters
    ----------
    bad_frames : {'auto'}, None, sequence of int, (T,) bool array, slice or path
        Found by what they show, none, or these; a path is that of a text file with a number on every line, or of an
        array of numbers or of bool in a file .npy.
    reader : FrameReader

    Raises
    ------
    ValueError, TypeError, OSError
        Numbers that the recording does not have, all of them, or a file that cannot be read.
    """

    def __init__(self, bad_frames: BadFramesLike, reader: FrameReader) -> None:
        self._rule: BrightnessRule | None = None
        self._named = np.zeros(reader.n_frames, bool)
        if isinstance(bad_frames, str) and bad_frames == "auto":
            self._rule = BrightnessRule(_samples(reader))
        elif bad_frames is not None:
            self._named[_numbers(bad_frames, reader.n_frames)] = True
        if self._named.all():
            raise ValueError(f"bad_frames names all {reader.n_frames} frames of the recording")

    def contains(self, number: int, frame: NDArray[Any]) -> bool:
        """Whether a frame (H, W, C) of the recording is bad."""
        if self._named[number] or (frame.dtype.kind == "f" and not np.isfinite(frame).any()):
            return True
        return self._rule is not None and self._rule.is_bad(measure_brightness(frame))

    def among(self, numbers: NDArray[np.intp], frames: NDArray[Any]) -> NDArray[np.bool_]:
        """Which of the frames (n, H, W, C) with these numbers are bad: (n,)."""
        flags = [self.contains(int(number), frame) for number, frame in zip(numbers, frames, strict=True)]
        return np.array(flags, bool)


class ReadFrames(NamedTuple):
    """Frames of a batch with halo, ready to be registered, and what was changed in them.

    Attributes
    ----------
    frames : (n + 2 halo, H, W, C)
        Bad ones are constant, so that executors give them no flow, and have no other frame or mean start from it. Other
        frames in reach of the filter in time see that constant, the reference's mean, in their place.
    bad : (n,) bool
        Of the frames without halo, as the following.
    originals : (k, H, W, C)
        The bad ones as they were.
    nonfinite : int
        Pixels of the others that are not finite, and were replaced by the reference's.
    """

    frames: NDArray[Any]
    bad: NDArray[np.bool_]
    originals: NDArray[Any]
    nonfinite: int

    @classmethod
    def prepare(
        cls, frames: NDArray[Any], bad: NDArray[np.bool_], reference: NDArray[np.float32], halo: int
    ) -> ReadFrames:
        """Make frames (n + 2 halo, H, W, C), of which some are bad, ready in place."""
        inner = slice(halo, len(frames) - halo)
        originals = frames[inner][bad[inner]]
        if bad.any():
            limits = np.iinfo(frames.dtype) if frames.dtype.kind in "iu" else np.finfo(frames.dtype)
            frames[bad] = np.clip(reference.mean(dtype=np.float64), limits.min, limits.max)
        return cls(frames, bad[inner], originals, replace_nonfinite(frames, reference, halo))

    def put_back(self, result: BatchResult, reference: NDArray[np.float32]) -> NDArray[np.float64]:
        """Put the bad frames into the result as they were, and return its statistics with all columns: (n, 10)."""
        rows = np.column_stack([result.statistics, self.bad, np.zeros(len(self.bad))])
        result.registered[self.bad] = self.originals
        for row, frame in zip(np.flatnonzero(self.bad), self.originals, strict=True):
            finite = np.isfinite(frame)
            likeness = correlation(np.where(finite, frame, reference), reference) if finite.any() else 0.0
            rows[row, [COLUMNS.index(name) for name in ("correlation_before", "correlation_after")]] = likeness
            rows[row, COLUMNS.index("constant")] = frame.min() == frame.max()
        return rows


def _samples(reader: FrameReader) -> list[Brightness]:
    """Brightness of frames spread over the recording.

    Those that cannot be read are left out: the run says so in its turn, and keeps the frames that it has finished.
    """
    samples = []
    for number in spread_frames(reader.n_frames, min(SAMPLES, reader.n_frames)):
        with contextlib.suppress(Exception):
            samples.append(measure_brightness(reader.read(number, number + 1)[0]))
    return samples


def _numbers(bad_frames: Any, n_frames: int) -> NDArray[np.intp]:
    """Numbers of the frames that the caller names, checked."""
    name = "bad_frames"
    if isinstance(bad_frames, slice):
        return np.arange(n_frames)[bad_frames]
    if isinstance(bad_frames, str | os.PathLike):
        name = f"bad_frames {os.fspath(bad_frames)!r}"
        bad_frames = _read_numbers(Path(bad_frames))
    flags = np.asarray(bad_frames) if isinstance(bad_frames, np.ndarray | list) else None
    if flags is not None and flags.dtype == bool:
        if flags.shape != (n_frames,):
            raise ValueError(f"{name} has shape {flags.shape}, expected ({n_frames},) for True and False")
        return np.flatnonzero(flags)
    try:
        numbers = [operator.index(number) for number in bad_frames]
    except TypeError:
        expected = "'auto', None, numbers of frames, a slice, an array of True and False, or a file"
        raise TypeError(f"{name}={bad_frames!r} is not {expected}") from None
    outside = [number for number in numbers if not 0 <= number < n_frames]
    if outside:
        raise ValueError(f"{name}: frames {outside[:10]} are not among 0 to {n_frames - 1}")
    return np.array(numbers, np.intp)


def _read_numbers(path: Path) -> Any:
    """Numbers of frames, or True and False, of a file."""
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    lines = path.read_text(encoding="utf-8").splitlines()
    numbers = []
    for k, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if text:
            try:
                numbers.append(int(text))
            except ValueError:
                raise ValueError(
                    f"bad_frames {str(path)!r}: line {k}, {text[:50]!r}, is not a frame's number"
                ) from None
    return numbers
