"""The reference image: given, read from a file, or built from frames of the recording."""

from __future__ import annotations

import itertools
import operator
import os
import warnings
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeGuard

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.cpu.preprocess import preprocess, subtract_background
from flowreg_gpu.engine.batch import Batch, Progress, unflagged
from flowreg_gpu.engine.job import Job
from flowreg_gpu.executors.base import BaseExecutor
from flowreg_gpu.io import FrameReader, read_image
from flowreg_gpu.model.preprocessing import Defects, Preprocessing, normalization
from flowreg_gpu.options import AUTO, Options, check_plain
from flowreg_gpu.registration.bad_frames import BadFrames
from flowreg_gpu.registration.still_frames import choose_still_frames

__all__ = [
    "DEFAULT_FRAMES",
    "BuiltReference",
    "ReferenceLike",
    "Selection",
    "build_reference",
    "default_frames",
    "is_auto",
    "is_file",
    "read_window",
    "resolve_reference",
    "window_numbers",
]

ReferenceLike = NDArray[Any] | str | os.PathLike[str] | slice | Sequence[int] | None

# Reference frames are filtered more and registered more smoothly than the recording (algorithm of Flow-Registration).
EXTRA_SIGMA = (1.0, 1.0, 0.5)
EXTRA_ALPHA = 2.0


# Frames that make the reference unless the caller names others: after the first ones, in which shutters open and
# animals settle, and as many as average the noise out. Where fewer than LEAST_FRAMES of them are there, all frames do.
DEFAULT_FRAMES = range(50, 500)
LEAST_FRAMES = 10


def default_frames(n_frames: int) -> range:
    """`DEFAULT_FRAMES`, as many as the recording has; all of its frames where it has fewer than ten of those."""
    frames = DEFAULT_FRAMES[: max(n_frames - DEFAULT_FRAMES.start, 0)]
    return frames if len(frames) >= LEAST_FRAMES else range(n_frames)


def is_auto(reference: ReferenceLike) -> bool:
    """Whether the frames of the reference are to be chosen by the recording; a file of that name is './auto'."""
    return isinstance(reference, str) and reference == AUTO


def is_file(reference: ReferenceLike) -> TypeGuard[str | os.PathLike[str]]:
    """Whether the reference is read from a file."""
    return isinstance(reference, str | os.PathLike) and not is_auto(reference)


def resolve_reference(
    reference: ReferenceLike, reader: FrameReader, bad_frames: BadFrames
) -> NDArray[np.float32] | list[int]:
    """Return the reference image (H, W, C) float32, or the frames that it has to be built from, without bad ones.

    None takes those of `default_frames`, 'auto' those of `choose_still_frames`. Where the caller named the frames, a
    RuntimeWarning says how many of them are bad.

    Raises
    ------
    ValueError
        Wrong shape or channel count, masked, complex, NaN or infinite pixels, or frames that the recording does not
        have or that are all bad.
    FileNotFoundError
        A named file that does not exist.
    """
    if reference is None:
        return _good_frames(list(default_frames(reader.n_frames)), reader, bad_frames)
    if is_auto(reference):
        return choose_still_frames(reader, bad_frames)
    if isinstance(reference, slice):
        frames = list(range(reader.n_frames)[reference])
        if not frames:
            raise ValueError(f"reference={reference!r} holds none of the {reader.n_frames} frames")
        return _without_bad(frames, reader, bad_frames)
    if isinstance(reference, str | os.PathLike):
        return _check_image(read_image(reference), reader, f"reference {os.fspath(reference)!r}")
    if isinstance(reference, np.ndarray):
        return _check_image(reference, reader, "reference")
    try:
        if any(isinstance(index, bool | np.bool_) for index in reference):  # not frames 0 and 1
            raise TypeError
        frames = [operator.index(index) for index in reference]
    except TypeError:
        raise TypeError(
            f"reference={reference!r} is not 'auto', an image, a file, a slice or a sequence of integers"
        ) from None
    outside = [index for index in frames if not 0 <= index < reader.n_frames]
    if outside or not frames:
        raise ValueError(f"reference frames {outside or frames} are not among 0 to {reader.n_frames - 1}")
    return _without_bad(frames, reader, bad_frames)


def _without_bad(frames: list[int], reader: FrameReader, bad_frames: BadFrames) -> list[int]:
    """The good ones of the frames that the caller named; a RuntimeWarning says how many are not."""
    good = _good_frames(frames, reader, bad_frames)
    if len(good) < len(frames):
        warnings.warn(
            f"{len(frames) - len(good)} of the {len(frames)} frames of the reference are bad and left out",
            RuntimeWarning,
            stacklevel=6,
        )
    return good


def _good_frames(frames: list[int], reader: FrameReader, bad_frames: BadFrames) -> list[int]:
    """The frames that are not bad; ValueError where there is none, or one holds NaN or infinite pixels."""
    good = []
    for index in frames:
        frame = reader.read(index, index + 1)[0]
        if bad_frames.contains(index, frame):
            continue
        nonfinite = np.count_nonzero(~np.isfinite(frame)) if reader.dtype.kind == "f" else 0
        if nonfinite:
            raise ValueError(f"frame {index} of the reference holds {nonfinite} NaN or infinite pixels, expected none")
        good.append(index)
    if not good:
        raise ValueError(f"all {len(frames)} frames of the reference are bad: name others, or an image")
    return good


def _check_image(image: NDArray[Any], reader: FrameReader, name: str) -> NDArray[np.float32]:
    check_plain(image, name)
    if image.dtype.kind not in "buif":
        raise ValueError(f"{name} has dtype {image.dtype}, expected real numbers")
    image = image[..., None] if image.ndim == 2 else image
    if image.shape != reader.shape[1:]:
        raise ValueError(f"{name} has shape {image.shape}, expected {reader.shape[1:]} (rows, columns, channels)")
    bad = int(np.count_nonzero(~np.isfinite(image)))
    if bad:
        raise ValueError(f"{name} holds {bad} NaN or infinite pixels, expected none")
    return np.ascontiguousarray(image, np.float32)


def window_numbers(start: int, stop: int, halo: int, n_frames: int) -> NDArray[np.intp]:
    """Numbers start - halo to stop + halo, mirrored at the ends of the recording (half-sample symmetric)."""
    numbers = np.mod(np.arange(start - halo, stop + halo), 2 * n_frames)
    mirrored: NDArray[np.intp] = np.minimum(numbers, 2 * n_frames - 1 - numbers)
    return mirrored


def read_window(reader: FrameReader, start: int, stop: int, halo: int) -> NDArray[Any]:
    """The frames of `window_numbers`."""
    first, last = max(start - halo, 0), min(stop + halo, reader.n_frames)
    frames = reader.read(first, last)
    if last - first == stop - start + 2 * halo:
        return frames
    wanted = window_numbers(start, stop, halo, reader.n_frames)
    if wanted.min() >= first and wanted.max() < last:
        mirrored: NDArray[Any] = frames[wanted - first]
        return mirrored
    # a recording shorter than the filter: the mirror reaches further than the window itself
    return np.concatenate([reader.read(index, index + 1) for index in wanted])


class Selection(FrameReader):
    """Some frames of a recording, as float32, without defects: in an average they would leave traces."""

    def __init__(self, reader: FrameReader, frames: Sequence[int], defects: Defects | None = None) -> None:
        self._reader, self._frames, self._defects = reader, frames, defects
        self.n_frames, self.height, self.width, self.n_channels = len(frames), *reader.shape[1:]
        self.dtype, self.has_channel_axis = np.dtype(np.float32), reader.has_channel_axis

    def _load(self, start: int, stop: int) -> NDArray[Any]:
        out = np.empty((stop - start, *self.shape[1:]), np.float32)
        for k, index in enumerate(self._frames[start:stop]):
            out[k] = self._reader.read(index, index + 1)[0]
            if self._defects is not None:
                self._defects.replace(out[k])
        return out


class BuiltReference(NamedTuple):
    """A reference (H, W, C) float32, in the frames' values, and the same without the frames that were to be left out.

    Where no frame is left for the latter, it is the reference.
    """

    image: NDArray[np.float32]
    disjoint: NDArray[np.float32]


def build_reference(
    reader: FrameReader,
    frames: Sequence[int],
    options: Options,
    executor: BaseExecutor,
    batch: int,
    progress: Progress | None = None,
    left_out: Collection[int] = (),
    defects: Defects | None = None,
) -> BuiltReference:
    """Average of the frames after registering them to their mean, and that of all but some of them.

    Frames that are constant, or whose flow diverges, are not averaged; where all of them are, it is the mean.
    """
    selection = Selection(reader, frames, defects)
    n_frames, height, width, channels = selection.shape
    if n_frames == 1:
        image: NDArray[np.float32] = selection.read(0, 1)[0]
        return BuiltReference(image, image)
    sigma = options.sigma_per_channel(channels) + np.array(EXTRA_SIGMA)
    raw = Preprocessing.build(np.zeros(channels, np.float32), np.ones(channels, np.float32), sigma, height, width)
    mean_raw, mean_planes, low, high = _filtered_extent(selection, raw, batch, executor.n_workers)
    minimum, scale = normalization(low, high, options.channel_normalization)
    x, y = options.alpha_xy
    preprocessing = Preprocessing.build(minimum, scale, sigma, height, width, options.highpass, defects)
    normalized = (mean_planes - minimum[:, None, None]) * scale[:, None, None]
    job = Job.from_preprocessed(
        options=options.replace(alpha=(x + EXTRA_ALPHA, y + EXTRA_ALPHA), interpolation_method="cubic"),
        reference=mean_raw,
        reference_planes=subtract_background(normalized, preprocessing),
        preprocessing=preprocessing,
    )
    executor.start_recording(job)
    start = np.zeros((2, height, width), np.float32)
    total, count = np.zeros((height, width, channels)), 0
    total_left_out, count_left_out = np.zeros_like(total), 0
    for begin in range(0, n_frames, batch):
        end = min(begin + batch, n_frames)
        window = read_window(selection, begin, end, raw.halo)
        result = executor.register_batch(Batch(window, start, job.halo, keep_flow=False, progress=progress))
        usable = unflagged(result.statistics)
        numbers = frames[begin:end]
        for number, registered in itertools.compress(zip(numbers, result.registered, strict=True), usable):
            total += registered  # one by one: the batch must not matter
            count += 1
            if number in left_out:
                total_left_out += registered
                count_left_out += 1
        del window, result  # their memory, before another batch is read
    image = (total / count).astype(np.float32) if count else mean_raw
    if count == count_left_out:
        return BuiltReference(image, image)
    return BuiltReference(image, ((total - total_left_out) / (count - count_left_out)).astype(np.float32))


def _filtered_extent(
    reader: FrameReader, preprocessing: Preprocessing, batch: int, n_threads: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Mean of the raw frames, and mean, channel-wise minimum and maximum of the filtered ones."""
    n_frames, height, width, channels = reader.shape
    total, total_planes = np.zeros((height, width, channels)), np.zeros((channels, height, width))
    low, high = np.full(channels, np.inf, np.float32), np.full(channels, -np.inf, np.float32)
    halo = preprocessing.halo
    with ThreadPoolExecutor(n_threads) as threads:
        for begin in range(0, n_frames, batch):
            frames = read_window(reader, begin, min(begin + batch, n_frames), halo)
            windows = [frames[index : index + 2 * halo + 1] for index in range(len(frames) - 2 * halo)]
            for first in range(0, len(windows), 4 * n_threads):  # so many filtered frames may wait
                some = windows[first : first + 4 * n_threads]
                filtered = threads.map(preprocess, some, itertools.repeat(preprocessing))
                for window, planes in zip(some, filtered, strict=True):  # in order, for the sums
                    total += window[halo]
                    total_planes += planes
                    low, high = np.minimum(low, planes.min(axis=(1, 2))), np.maximum(high, planes.max(axis=(1, 2)))
    return (total / n_frames).astype(np.float32), (total_planes / n_frames).astype(np.float32), low, high
