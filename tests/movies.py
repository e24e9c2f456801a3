"""Frames and movies with known motion. Scene and flow are analytic, so that no interpolation enters the truth."""

from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter, shift


def texture(y, x, seed=0, shortest=6.0, longest=40.0, waves=80):
    """Smooth random texture at any coordinates (pixels): plane waves of random direction, about 0 to 1.

    Parameters
    ----------
    y, x : arrays of one shape
        Where to evaluate it.
    shortest, longest : float
        Wavelengths in pixels.
    """
    rng = np.random.default_rng(seed)
    angle, phase = rng.uniform(0, 2 * np.pi, (2, waves))
    frequency = 2 * np.pi / np.exp(rng.uniform(np.log(shortest), np.log(longest), waves))
    total = np.zeros(np.shape(y))
    for ky, kx, p in zip(frequency * np.sin(angle), frequency * np.cos(angle), phase, strict=True):
        total += np.cos(ky * y + kx * x + p)
    return 0.5 + total / (4 * np.sqrt(waves))


def smooth_flow(height, width, amplitude=2.0, offset=(0.7, -0.4)):
    """Flow (H, W, 2) of a few pixels: a shift `offset` (u, v) and one slow wave of `amplitude` / 2 px in u and v."""
    y, x = np.mgrid[:height, :width].astype(float)
    u = offset[0] + amplitude / 2 * np.sin(2 * np.pi * (y / height + 0.3 * x / width) + 0.3)
    v = offset[1] + amplitude / 2 * np.cos(2 * np.pi * (x / width - 0.2 * y / height) + 1.1)
    return np.stack([u, v], axis=-1)


def constant_flow(height, width, u, v):
    """Flow (H, W, 2) of a shift by u columns and v rows."""
    return np.tile(np.array([u, v], float), (height, width, 1))


def frame_pair(flow, channels=1, noise=0.0, seed=0, **waves):
    """Reference and moving frame (H, W, C) float32 with moving(y + v, x + u) = reference(y, x), before noise.

    Every channel has its own texture; `noise` is the standard deviation of Gaussian noise, which differs in the two.
    """
    height, width = flow.shape[:2]
    y, x = np.mgrid[:height, :width].astype(float)
    seeds = [1000 * seed + channel for channel in range(channels)]
    reference = np.stack([texture(y + flow[..., 1], x + flow[..., 0], s, **waves) for s in seeds], axis=-1)
    moving = np.stack([texture(y, x, s, **waves) for s in seeds], axis=-1)
    rng = np.random.default_rng(seed)
    reference, moving = (frame + noise * rng.standard_normal(frame.shape) for frame in (reference, moving))
    return reference.astype(np.float32), moving.astype(np.float32)


def grain_pair(height, width, u, v, sigma=1.0, seed=0):
    """Reference and moving frame (H, W) float32 of a rigid shift, with structure at all scales down to `sigma` px.

    Both are cut from one large image, so that content enters and leaves at the edges. Whole shifts are exact,
    fractions are made by splines of degree 5.
    """
    border = int(max(abs(u), abs(v))) + 12
    shape = height + 2 * border, width + 2 * border
    scene = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), sigma, mode="wrap")
    scene = (scene - scene.min()) / (scene.max() - scene.min())
    whole_u, whole_v = int(np.floor(u)), int(np.floor(v))
    moved = scene
    if (u, v) != (whole_u, whole_v):
        moved = shift(scene, (v - whole_v, u - whole_u), order=5, mode="grid-wrap")
    rows, columns = slice(border, border + height), slice(border, border + width)
    moving = np.roll(moved, (whole_v, whole_u), axis=(0, 1))[rows, columns]
    return scene[rows, columns].astype(np.float32), moving.astype(np.float32)


def small_movie(n_frames=6, height=32, width=40, channels=2, dtype="uint16", noise=0.01, seed=0):
    """Movie (T, H, W, C), its reference (H, W, C) float32 without motion, and the true flows (T, H, W, 2).

    Pixel values fill a part of the range of `dtype` (floats: 0 to 1). All frames show the same texture, displaced by
    smooth flows that differ from frame to frame.
    """
    y, x = np.mgrid[:height, :width].astype(float)
    rng = np.random.default_rng(seed)
    # frames are displaced by the inverse of the flow: p + flow(p) = q solved for p, a contraction as flows are smooth
    frames, flows = [], []
    for t in range(n_frames):
        offset, amplitude = (1.5 * np.sin(1.3 * t), 1.2 * np.cos(0.9 * t)), 0.8

        def displaced(y, x, offset=offset, amplitude=amplitude):
            u = offset[0] + amplitude * np.sin(2 * np.pi * y / height)
            return u, offset[1] + amplitude * np.cos(2 * np.pi * x / width)

        py, px = y, x
        for _ in range(40):
            u, v = displaced(py, px)
            py, px = y - v, x - u
        frames.append(np.stack([texture(py, px, seed + 10 * c) for c in range(channels)], axis=-1))
        flows.append(np.stack(displaced(y, x), axis=-1))
    movie = np.stack(frames) + noise * rng.standard_normal((n_frames, height, width, channels))
    reference = np.stack([texture(y, x, seed + 10 * c) for c in range(channels)], axis=-1)
    if np.dtype(dtype).kind != "f":
        scale = 0.5 * np.iinfo(dtype).max
        movie, reference = np.clip(np.rint(movie * scale), 0, None), reference * scale
    return movie.astype(dtype), reference.astype(np.float32), np.stack(flows)


def to_planes(image):
    """(H, W, C) or (H, W) as contiguous planes (C, H, W) float32."""
    image = np.asarray(image)
    image = image[..., None] if image.ndim == 2 else image
    return np.ascontiguousarray(image.transpose(2, 0, 1), np.float32)


# Pixels at the edges of a recording that comparisons with the true flow leave out: the scene enters and leaves there.
EDGE = 6

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
