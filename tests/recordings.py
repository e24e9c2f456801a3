"""Small movies whose motion is known: a scene that can be evaluated anywhere, so that nothing is interpolated."""

from typing import NamedTuple

import numpy as np

from tests import movies

# Darkest and brightest pixel of a scene in each dtype: room on both sides for the overshoot of the cubic kernel.
LEVELS = {
    "uint8": (20, 230),
    "uint16": (300, 4000),
    "int16": (-1500, 3000),
    "float32": (-50.0, 900.0),
    "float64": (-50.0, 900.0),
}


class Recording(NamedTuple):
    """Frames (T, H, W) or (T, H, W, C), the still image that they show (H, W[, C]), and the true flow (T, H, W, 2)."""

    frames: np.ndarray
    truth: np.ndarray
    flow: np.ndarray


def scene(y, x, seed):
    """Some sixty round cells of a few pixels on a wavy background, at real coordinates; about 0 to 1."""
    rng = np.random.default_rng(seed)
    brightness = 0.15 + 0.1 * np.sin(x / 5 + seed) * np.cos(y / 7)
    for _ in range(60):
        cell_y, cell_x = rng.uniform(-8, 60), rng.uniform(-8, 68)
        size, peak = rng.uniform(1.3, 3.2), rng.uniform(0.2, 0.8)
        brightness = brightness + peak * np.exp(-((y - cell_y) ** 2 + (x - cell_x) ** 2) / (2 * size**2))
    return brightness / 1.6


def displacement(y, x, t, amplitude):
    """Flow (u, v) of frame t at pixels of the still image: a wandering shift and a smooth deformation.

    Frame 0 rests.
    """
    if t == 0:
        return np.zeros_like(x), np.zeros_like(y)
    u = 1.6 * np.sin(0.9 * t) + 0.4 * np.sin(0.7 * t + y / 9)
    v = -1.2 * np.cos(0.6 * t) + 0.4 * np.cos(0.5 * t + x / 11)
    return amplitude * u, amplitude * v


def recording(n_frames=10, height=48, width=56, channels=None, dtype="uint16", *, amplitude=1.0, noise=0.004, seed=1):
    """A movie with the flow that `flowreg_gpu` is to find: ``truth(y, x) = frame(y + v, x + u)``.

    `channels` None leaves out the channel axis; `noise` is Gaussian, in parts of the range of brightness.
    """
    rng = np.random.default_rng(1000 + seed)
    y, x = np.meshgrid(np.arange(height, dtype=float), np.arange(width, dtype=float), indexing="ij")
    seeds = [seed + 10 * channel for channel in range(channels or 1)]
    low, high = LEVELS[np.dtype(dtype).name]

    def image(at_y, at_x, noise):
        planes = np.stack([scene(at_y, at_x, seed) for seed in seeds], axis=-1)
        planes = low + (high - low) * (planes + noise * rng.standard_normal(planes.shape))
        return planes if channels else planes[..., 0]

    frames, flows = [], []
    for t in range(n_frames):
        from_y, from_x = y, x
        for _ in range(30):  # the point of the still image that lies at each pixel of the frame
            u, v = displacement(from_y, from_x, t, amplitude)
            from_y, from_x = y - v, x - u
        frames.append(image(from_y, from_x, noise))
        flows.append(np.stack(displacement(y, x, t, amplitude), axis=-1))
    truth = image(y, x, 0.0)
    return Recording(_cast(np.stack(frames), dtype), _cast(truth, dtype), np.stack(flows))


def _cast(values, dtype):
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return values.astype(dtype)


def end_point_error(flow, truth, margin=6):
    """Mean distance in pixels of two flows, the border left out, where the scene enters and leaves."""
    return movies.end_point_error(flow, truth, margin)
