"""Draw docs/demo.png, the demo's movie before and after registration and the truth, and docs/alpha.png, its flows.

Usage: python docs/make_pictures.py (needs Pillow)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import flowreg_gpu as fg
from flowreg_gpu.synthetic import end_point_error, make_movie

CUT = (slice(20, 148), slice(20, 148))


def save(panels: list[NDArray[np.uint8]], name: str) -> None:
    """Write panels (h, w, 3) side by side, twice as large, with white between."""
    large = [np.kron(panel, np.ones((2, 2, 1), np.uint8)) for panel in panels]
    spaced = [np.pad(panel, ((0, 0), (0, 8), (0, 0)), constant_values=255) for panel in large]
    image = np.concatenate(spaced, axis=1)[:, :-8]
    Image.fromarray(image).save(Path(__file__).with_name(name), optimize=True)


def draw_demo() -> None:
    """Cells in green, fibres in magenta."""
    motion = make_movie()
    registered, _ = fg.register(motion.movie, motion.reference, "threading")
    high = np.percentile(motion.reference[CUT], 99.7, axis=(0, 1))
    panels = []
    for image in (motion.movie.mean(axis=0), registered.mean(axis=0), motion.reference):
        shade = np.clip((image[CUT] - 100) / (high - 100), 0, 1) ** 0.8
        panels.append((255 * np.stack([shade[..., 1], shade[..., 0], shade[..., 1]], axis=-1)).astype(np.uint8))
    save(panels, "demo.png")


def draw_flows() -> None:
    """The displacement of a dim frame along x for some values of alpha, and the truth: blue left, red right."""
    motion = make_movie(12, photons=20)
    frame, panels = 7, []
    movie, reference = motion.movie[..., :1], motion.reference[..., :1]
    for alpha in (1.5, "auto", 1000):
        _, flow = fg.register(movie, reference, "threading", alpha=alpha, cc_initialization=False)
        print(alpha, f"{end_point_error(flow, motion.flow):.3f} px")
        panels.append(flow[frame])
    panels.append(motion.flow[frame])
    middle, largest = np.median(motion.flow[frame][..., 0]), np.abs(motion.flow[frame][..., 0]).max()
    save([colours((flow[CUT][..., 0] - middle) / largest) for flow in panels], "alpha.png")


def colours(value: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Blue for -1, white for 0, red for 1."""
    strength = np.clip(np.abs(value), 0, 1)[..., None]
    hue = np.where(value[..., None] < 0, np.array([30, 80, 200]), np.array([200, 50, 30]))
    return (255 + strength * (hue - 255.0)).astype(np.uint8)


draw_demo()
draw_flows()
