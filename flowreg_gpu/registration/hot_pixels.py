"""Hot and dead pixels of a sensor: those that differ from all their neighbours in nearly every frame.

They stay where they are while the tissue moves, and the flow would hold on to them. Found are single pixels. What the
optics show is wider than a pixel, so that a bright spot has bright neighbours; noise changes from frame to frame.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.io import FrameReader
from flowreg_gpu.registration.bad_frames import BadFrames
from flowreg_gpu.registration.verification import spread_frames

__all__ = ["find_hot_pixels"]

# Frames that are looked at, spread over the recording, and fewer than which say nothing.
SAMPLES, LEAST_SAMPLES = 60, 8
# A hot or dead pixel is beyond all its neighbours in this part of the frames ...
PERSISTENT = 0.9
# ... and in their mean it lies beyond them by so many times what they differ by among themselves. A spot of light whose
# standard deviation is 0.7 px, narrower than optics and pixels make it, reaches 2.8.
OUTSTANDING = 4.0
# Where more pixels than this part of them stand out, it is not the sensor.
MOST = 0.01


def find_hot_pixels(reader: FrameReader, bad_frames: BadFrames) -> NDArray[np.intp]:
    """Row, column and channel of every hot or dead pixel, (K, 3), in rising order.

    Frames with NaN are left out, and those that cannot be read: the run says so in its turn.
    """
    total, count = np.zeros(reader.shape[1:]), 0
    above, below = np.zeros((2, *reader.shape[1:]), np.uint8)  # numbers of frames
    for number in spread_frames(reader.n_frames, min(SAMPLES, reader.n_frames)):
        with contextlib.suppress(Exception):
            frame = reader.read(number, number + 1)[0]
            if bad_frames.contains(number, frame) or not np.isfinite(frame).all():
                continue
            frame = frame.astype(np.float32)
            low, high = _neighbours(frame)
            above += frame > high
            below += frame < low
            total += frame
            count += 1
    nowhere = np.empty((0, 3), np.intp)
    if count < LEAST_SAMPLES:
        return nowhere
    mean = total / count
    low, high = _neighbours(mean)
    spread = OUTSTANDING * (high - low)
    hot = (above >= PERSISTENT * count) & (mean - high > spread)
    dead = (below >= PERSISTENT * count) & (low - mean > spread)
    found = np.argwhere(hot | dead)
    return found if len(found) <= MOST * mean.size else nowhere


def _neighbours(image: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Smallest and largest of the eight neighbours of every pixel of an image (H, W, C); fewer at the border."""
    extremes = []
    for extreme, outside in ((np.minimum, np.inf), (np.maximum, -np.inf)):
        padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), constant_values=outside)
        rows = extreme(padded[:-2], padded[2:])  # the neighbours above and below
        threes = extreme(rows, padded[1:-1])
        extremes.append(extreme(extreme(threes[:, :-2], threes[:, 2:]), rows[:, 1:-1]))
    return extremes[0], extremes[1]
