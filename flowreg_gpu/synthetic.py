"""Movies whose motion is known, and how far a flow is from it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.registration.pair import warp

__all__ = ["KnownMotion", "end_point_error", "make_movie"]

MARGIN = 24  # pixels rendered beyond each side of the frame, so that motion brings in true structure


class KnownMotion(NamedTuple):
    """Movie (T, H, W, 2) uint16, its motionless image (H, W, 2) float32, and the flow (T, H, W, 2) that undoes it."""

    movie: NDArray[np.uint16]
    reference: NDArray[np.float32]
    flow: NDArray[np.float32]


def end_point_error(flow: NDArray[np.float32], truth: NDArray[np.float32], margin: int = 10) -> float:
    """Mean length of flow - truth, both (T, H, W, 2), in pixels, `margin` pixels away from the edges."""
    inner = (slice(None), slice(margin, -margin), slice(margin, -margin))
    return float(np.linalg.norm(flow[inner] - truth[inner], axis=-1).mean())


def make_movie(
    frames: int = 40, height: int = 256, width: int = 256, photons: float = 60.0, seed: int = 0
) -> KnownMotion:
    """Make cells and fibres that drift and bend, recorded with photon noise.

    Parameters
    ----------
    frames, height, width : int
    photons : float
        Photons in the brightest pixel of a channel; the fewer, the noisier.
    seed : int

    Returns
    -------
    KnownMotion
        ``movie(t, y + v, x + u)`` shows what the reference shows at (y, x).
    """
    rng = np.random.default_rng(seed)
    gain = min(20.0, 60000 / photons)  # digital units per photon; the brightest pixel stays below saturation
    canvas = _tissue(rng, height + 2 * MARGIN, width + 2 * MARGIN)
    inner = (slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
    y, x = np.mgrid[0 : canvas.shape[0], 0 : canvas.shape[1]].astype(np.float32)
    drift = np.cumsum(rng.normal(0, 0.35, (frames, 2)), axis=0)
    drift -= drift.mean(axis=0)
    movie = np.empty((frames, height, width, 2), np.uint16)
    truth = np.empty((frames, height, width, 2), np.float32)
    for t in range(frames):
        # the frame is the canvas seen through the inverse of the flow, found by fixed-point iteration
        inverse = np.zeros((*x.shape, 2), np.float32)
        for _ in range(12):
            inverse = -_motion(t, drift[t], y + inverse[..., 1], x + inverse[..., 0], height, width)
        seen = warp(canvas, inverse, canvas)[inner]
        truth[t] = _motion(t, drift[t], y, x, height, width)[inner]
        movie[t] = np.clip(100 + gain * rng.poisson(photons * np.clip(seen, 0, None)), 0, 65535)
    return KnownMotion(movie, (100 + gain * photons * canvas[inner]).astype(np.float32), truth)


def _motion(
    t: int, drift: NDArray[np.float64], y: NDArray[np.float32], x: NDArray[np.float32], height: int, width: int
) -> NDArray[np.float32]:
    """Flow (H, W, 2) of frame t at any coordinates: a drift and a swinging, bending wave."""
    phase, swing = 2 * np.pi * t / 23, 2.0 * np.sin(2 * np.pi * t / 17)
    u = drift[0] + swing * np.sin(2 * np.pi * y / height + phase)
    v = drift[1] + 0.7 * swing * np.cos(2 * np.pi * (x / width + 0.5 * y / height) - phase)
    return np.stack([u, v], axis=-1).astype(np.float32)


def _tissue(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    """Ring-shaped cells (channel 0) and fibres (channel 1), (H, W, 2) in 0-1."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    cells, fibres = np.full((2, height, width), 0.08, np.float32)
    for _ in range(height * width // 450):
        cy, cx, radius = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(3, 6)
        near = (slice(max(0, int(cy) - 20), int(cy) + 21), slice(max(0, int(cx) - 20), int(cx) + 21))
        distance = np.hypot(y[near] - cy, x[near] - cx)
        cells[near] += rng.uniform(0.3, 1) * np.exp(-0.5 * ((distance - 0.7 * radius) / 1.5) ** 2)
    for _ in range((height + width) // 20):
        angle, offset, bend = rng.uniform(0, np.pi), rng.uniform(-0.6, 0.6) * max(height, width), rng.uniform(2, 8)
        along = (x - width / 2) * np.cos(angle) + (y - height / 2) * np.sin(angle)
        across = (y - height / 2) * np.cos(angle) - (x - width / 2) * np.sin(angle)
        line = across - offset - bend * np.sin(along / 25)
        fibres += rng.uniform(0.2, 0.8) * np.exp(-0.5 * (line / 1.6) ** 2)
    return np.stack([cells / cells.max(), fibres / fibres.max()], axis=-1)
