"""Frames that make a good reference: well correlated, at rest, bright, and spread over the recording.

Frames from all over the recording, chosen by their numbers alone, are reduced in size and band-passed. A first
reference is the mean of some that are alike as they are, though they are far apart in time. Every frame is then
compared with a reference that it has no part in, by the peak of their cross-correlation: its height says how much of
the frame is that image, and its place where the tissue lies. The frames chosen by that make the second reference, by
which the choice is made.

A bright frame has less noise, and so correlates better; one that was taken while the tissue moved or left the plane
correlates less. Brightness itself does not count, or activity would.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.io import FrameReader
from flowreg_gpu.registration.bad_frames import BadFrames
from flowreg_gpu.registration.verification import spread_frames

__all__ = ["MOST_FRAMES", "choose_still_frames", "select"]

# Frames that are looked at, chosen at most, and chosen at least where there are as many, or a part of those looked at.
SAMPLES, MOST_FRAMES, LEAST_FRAMES, LEAST_PART = 200, 150, 10, 0.4
# Parts of the recording, which take turns in giving their best frame.
PARTS = 20
# Pixels along the longer side of a reduced frame, and least ones along the shorter.
LONGER_SIDE, SHORTER_SIDE = 128, 16
# Band of the reduced frames: Gaussians of that many pixels, and of that part of a side.
FINEST, COARSEST = 1.0, 1 / 16
# Part of a side by which a frame may be displaced.
LARGEST_SHIFT = 0.25
# A frame shows the tissue where it correlates at least this well, in units of what the better ones do. Its place is
# known then, though the part that it has in common with the reference may be too small to tell its noise.
FOUND = 0.5
# A frame lowers the noise of a mean only where it has less than twice the noise of the others (in units of its signal);
# that of the others is what this part of the frames does not exceed. Differences below the last number are no noise.
NOISIER, USUAL, LEAST_NOISE = 2.0, 0.4, 0.01
# Frames are at rest within so many pixels of the place where the tissue lies mostly.
REST = 4.0
# What distance from the median place costs: of two places, one where the tissue is found twice as well is taken.
OFF_CENTRE = 0.5


def choose_still_frames(reader: FrameReader, bad_frames: BadFrames) -> list[int]:
    """Numbers of good frames that are alike, at rest, and spread over the recording, at most `MOST_FRAMES`.

    Raises
    ------
    ValueError
        None of the frames that are looked at is good and finite.
    """
    sampled = _read_samples(reader, bad_frames)
    numbers, images = np.array(sampled.numbers), sampled.images
    if len(numbers) <= 2:
        return [int(number) for number in numbers]
    parts = numbers * PARTS // reader.n_frames
    weight, chosen = _most_alike(images, parts)
    for _ in range(2):
        correlation, place = _compare(images, weight, chosen)
        chosen = select(correlation, place * sampled.factor, parts)
    return [int(number) for number in numbers[chosen]]


class _Samples(NamedTuple):
    """Numbers of frames, their reduced images (n, C, h, w) of norm 1 a channel, and the pixels along a side of one."""

    numbers: list[int]
    images: NDArray[np.float64]
    factor: int


def _read_samples(reader: FrameReader, bad_frames: BadFrames) -> _Samples:
    """Frames from all over the recording, without those that cannot be part of a reference."""
    _, height, width, _ = reader.shape
    factor = max(min(-(-max(height, width) // LONGER_SIDE), min(height, width) // SHORTER_SIDE), 1)
    numbers, images = [], []
    candidates = spread_frames(reader.n_frames, min(SAMPLES, reader.n_frames))
    bad = nonfinite = 0
    for number in candidates:
        try:
            frame = reader.read(number, number + 1)[0]
        except Exception:  # the run says so in its turn, and keeps the frames before
            continue
        if bad_frames.contains(number, frame):
            bad += 1
        elif frame.dtype.kind == "f" and not np.isfinite(frame).all():
            nonfinite += 1
        else:
            numbers.append(number)
            images.append(_band_passed(_reduced(frame, factor)))
    if not numbers:
        unreadable = len(candidates) - bad - nonfinite
        raise ValueError(
            f"reference='auto' finds no frame: of {len(candidates)} that were looked at, {bad} are bad, {nonfinite} "
            f"hold NaN or infinite pixels, and {unreadable} cannot be read; name frames, or an image"
        )
    return _Samples(numbers, np.stack(images), factor)


def _reduced(frame: NDArray[np.generic], factor: int) -> NDArray[np.float64]:
    """Means of blocks of a frame (H, W, C), as planes (C, h, w); what is left over at the ends is left out."""
    height, width = (size // factor for size in frame.shape[:2])
    blocks = frame[: height * factor, : width * factor].reshape(height, factor, width, factor, -1)
    means: NDArray[np.float64] = blocks.mean(axis=(1, 3), dtype=np.float64).transpose(2, 0, 1)
    return means


def _band_passed(planes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Planes (C, h, w) without their mean, tapered to the sides, of the band that shows cells, and of norm 1 or 0."""
    height, width = planes.shape[1:]
    largest = np.abs(planes).max(axis=(1, 2), keepdims=True)
    planes = planes / np.where(largest > 0, largest, 1)
    taper = np.minimum(2 * np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1]), 1)
    centred = (planes - planes.mean(axis=(1, 2), keepdims=True)) * taper
    squared = np.fft.fftfreq(height)[:, None] ** 2 + np.fft.rfftfreq(width) ** 2
    coarse = max(COARSEST * max(height, width), 3 * FINEST)
    fine, coarse = (np.exp(-2 * (np.pi * sigma) ** 2 * squared) for sigma in (FINEST, coarse))
    filtered = np.fft.irfft2(np.fft.rfft2(centred) * (fine - coarse), s=(height, width))
    norm = np.sqrt((filtered**2).sum(axis=(1, 2), keepdims=True))
    return np.where(
        norm > 1e-9, filtered / np.where(norm > 0, norm, 1), 0
    )  # less is what rounding leaves of a constant


def _most_alike(images: NDArray[np.float64], parts: NDArray[np.intp]) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """What the channels (C,) count, by how well frames usually correlate in them, and frames that are alike.

    These are the frame that has the highest correlation with its likes in half of the `parts` (n,) of the recording,
    and these likes, one a part: frames of one moment, as when cells are active, are like each other and like no others.
    """
    n_frames, n_channels = images.shape[:2]
    others = ~np.eye(n_frames, dtype=bool)
    flat = images.reshape(n_frames, n_channels, -1).transpose(1, 0, 2)
    correlations = flat @ flat.transpose(0, 2, 1)  # (C, n, n)
    usual = np.maximum([np.median(of_channel[others]) for of_channel in correlations], 0)
    weight = usual / usual.sum() if usual.any() else np.full(n_channels, 1 / n_channels)
    likeness = np.tensordot(weight, correlations, axes=1).round(6)  # what libraries round otherwise is a tie
    likeness[~others] = -1
    # (n, parts): the frame of every part that is most like a frame, and how much it is
    members = [np.flatnonzero(parts == part) for part in np.unique(parts)]
    likes = np.stack([of_part[np.argmax(likeness[:, of_part], axis=1)] for of_part in members], axis=1)
    like = np.take_along_axis(likeness, likes, axis=1)
    best_parts = np.argsort(-like, axis=1, kind="stable")[:, : -(-len(members) // 2)]
    best = int(np.argmax(np.take_along_axis(like, best_parts, axis=1).mean(axis=1).round(6)))
    return weight, np.unique([best, *likes[best, best_parts[best]]])


def _compare(
    images: NDArray[np.float64], weight: NDArray[np.float64], members: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Correlation (n,) of every frame with the mean of the members, without itself, and its place (n, 2), rows first.

    Both are those of the peak of the cross-correlation; the place is in pixels of the reduced images.
    """
    n_frames, _, height, width = images.shape
    total = images[members].sum(axis=0)
    rows, columns = (np.abs(np.fft.fftfreq(size)) <= LARGEST_SHIFT for size in (height, width))
    within = np.outer(rows, columns)
    inside = np.isin(np.arange(n_frames), members)
    correlation, place = np.empty(n_frames), np.empty((n_frames, 2))
    for k, image in enumerate(images):
        reference = total - image if inside[k] else total
        norm = np.sqrt((reference**2).sum(axis=(1, 2), keepdims=True))
        reference = reference / np.where(norm > 0, norm, 1)
        cross = np.tensordot(weight, np.fft.rfft2(image) * np.fft.rfft2(reference).conj(), axes=1)
        surface = np.where(within, np.fft.irfft2(cross, s=(height, width)), -np.inf)
        height_of_peak, place[k] = _peak(surface)
        correlation[k] = height_of_peak / _part_in_common(image, reference, weight, place[k])
    return correlation.round(6), place.round(3)


def _peak(surface: NDArray[np.float64]) -> tuple[float, tuple[float, ...]]:
    """Height of the peak of a surface whose ends meet, and its place, between pixels by a parabola along each axis."""
    at = tuple(int(index) for index in np.unravel_index(int(np.argmax(surface)), surface.shape))
    height, place = surface[at], []
    for axis, (index, size) in enumerate(zip(at, surface.shape, strict=True)):
        line = np.take(surface, at[1 - axis], axis=1 - axis)
        before, after = line[index - 1], line[(index + 1) % size]
        bend = before - 2 * surface[at] + after
        fraction = 0.5 * (before - after) / bend if np.isfinite(bend) and bend < 0 else 0.0
        height -= 0.25 * (before - after) * fraction if fraction else 0.0
        place.append(fraction + (index if index <= size // 2 else index - size))
    return float(height), tuple(place)


def _part_in_common(
    image: NDArray[np.float64],
    reference: NDArray[np.float64],
    weight: NDArray[np.float64],
    place: NDArray[np.float64],
) -> float:
    """How much of two images of norm 1, (C, h, w), lies where both show the same, if one is displaced: 1 if none is."""
    norms = []
    for planes, shift in ((image, place), (reference, -place)):
        top, left = (max(round(offset), 0) for offset in shift)
        bottom, right = (size + min(round(offset), 0) for offset, size in zip(shift, planes.shape[1:], strict=True))
        norms.append(np.sqrt((planes[:, top:bottom, left:right] ** 2).sum(axis=(1, 2))))
    common = float(weight @ (norms[0] * norms[1]))
    return common if common > 0 else 1.0


def select(correlation: NDArray[np.float64], place: NDArray[np.float64], parts: NDArray[np.intp]) -> NDArray[np.intp]:
    """Indexes of frames with little noise, at rest, and from as many parts of the recording as have such frames.

    Parameters
    ----------
    correlation : (n,)
        With a reference that the frame has no part in.
    place : (n, 2)
        Where the tissue lies, in pixels.
    parts : (n,) int
        Of the recording, in which the frames lie.
    """
    found = np.flatnonzero(correlation >= FOUND * np.quantile(correlation, 0.75))
    least = min(len(found), max(LEAST_FRAMES, int(LEAST_PART * len(correlation))))
    distances = np.hypot(*np.moveaxis(place[found, None] - place[found], -1, 0))
    reach = np.sort(distances, axis=1)[:, least - 1]
    off_centre = np.hypot(*(place[found] - np.median(place[found], axis=0)).T)
    centre = int(np.argmin((reach + OFF_CENTRE * off_centre).round(3)))
    still = found[distances[centre] <= max(reach[centre], REST)]
    noise = 1 / np.maximum(correlation, 1e-3) ** 2 - 1  # variance of what is not the reference, in units of what is
    clear = still[noise[still] <= NOISIER * np.quantile(noise[still], USUAL) + LEAST_NOISE]
    # the best of every part first, then the second best ones
    best_first = clear[np.argsort(noise[clear], kind="stable")]
    turn = np.array([np.count_nonzero(parts[best_first[:k]] == parts[index]) for k, index in enumerate(best_first)])
    return np.sort(best_first[np.argsort(turn, kind="stable")][:MOST_FRAMES])
