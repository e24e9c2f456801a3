"""Draw docs/demo.png: the demo's movie averaged over time before and after registration, and the truth.

Usage: python docs/make_picture.py (needs Pillow)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

import flowreg_gpu as fg
from flowreg_gpu.synthetic import make_movie

motion = make_movie()
registered, _ = fg.register(motion.movie, motion.reference, "threading")
cut = (slice(20, 148), slice(20, 148))
panels = [motion.movie.mean(axis=0), registered.mean(axis=0), motion.reference]
high = np.percentile(motion.reference[cut], 99.7, axis=(0, 1))
rows = []
for panel in panels:
    shade = np.clip((panel[cut] - 100) / (high - 100), 0, 1) ** 0.8
    # cells in green, fibres in magenta
    colour = np.stack([shade[..., 1], shade[..., 0], shade[..., 1]], axis=-1)
    rows.append(
        np.pad(
            np.kron((255 * colour).astype(np.uint8), np.ones((2, 2, 1), np.uint8)),
            ((0, 0), (0, 8), (0, 0)),
            constant_values=255,
        )
    )
Image.fromarray(np.concatenate(rows, axis=1)[:, :-8]).save(Path(__file__).with_name("demo.png"), optimize=True)
