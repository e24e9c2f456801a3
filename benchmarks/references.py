"""References of frames 50 to 499 and of frames that the recording chooses, on movies with known motion.

Usage: python benchmarks/references.py [--frames 800] [--size 112] [--photons 15] [--seeds 0 1]

For each case and seed a movie is made and registered by either rule. The reference defines the coordinates, of which
the true flow knows nothing: so from the error of the flow, its median over the frames is taken away, pixel by pixel.
What is reported is the median over the frames of what is left, in pixels, and which frames were chosen.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable

import measurement
import numpy as np
from numpy.typing import NDArray

measurement.import_checkout()

import flowreg_gpu as fg  # noqa: E402
from flowreg_gpu.io import ArrayReader, ArrayWriter  # noqa: E402
from flowreg_gpu.registration.loop import Registration  # noqa: E402
from flowreg_gpu.synthetic import make_movie  # noqa: E402

OPTIONS = {"alpha": 4, "quality": "balanced", "cc_initialization": False}
BORDER, MARGIN = 32, 10
Places, Light = NDArray[np.intp], NDArray[np.float64]


def _nothing(places: Places, light: Light) -> None:
    pass


def _drift(places: Places, light: Light) -> None:
    places[:, 1] += np.linspace(-8, 8, len(places)).round().astype(int)


def _jump(first: int, stop: int) -> Callable[[Places, Light], None]:
    def displace(places: Places, light: Light) -> None:
        places[first:stop] += (-14, 20)

    return displace


def _bleach(places: Places, light: Light) -> None:
    light *= np.exp(-1.2 * np.arange(len(light)) / len(light))


def _dark(places: Places, light: Light) -> None:
    light[80:330] = 0.15


CASES: dict[str, Callable[[Places, Light], None]] = {
    "still": _nothing,
    "slow drift by 16 px": _drift,
    "bleaching to 30 %": _bleach,
    "frames 80 to 329 dark (15 %)": _dark,
    "frames 50 to 249 displaced by 24 px": _jump(50, 250),
    "frames 50 to 399 displaced by 24 px": _jump(50, 400),
}


def make(
    change: Callable[[Places, Light], None], n_frames: int, size: int, photons: float, seed: int
) -> tuple[NDArray[np.uint16], NDArray[np.float32]]:
    """Frames (T, size, size) and the flow (T, size, size, 2) that undoes their motion.

    They are cut from larger frames, where it takes away the drift of these, but for fractions of a pixel.
    """
    scene = make_movie(n_frames, size + 2 * BORDER, size + 2 * BORDER, photons=1000, seed=seed)
    places = -scene.flow.mean(axis=(1, 2))[:, ::-1].round().astype(int)
    light = np.ones(n_frames)
    change(places, light)
    np.clip(places, -BORDER, BORDER, out=places)
    rng = np.random.default_rng(seed)
    frames = np.empty((n_frames, size, size), np.uint16)
    flow = scene.flow[:, BORDER:-BORDER, BORDER:-BORDER].copy()
    for t, (y, x) in enumerate(places):
        rows, columns = (slice(BORDER - offset, BORDER - offset + size) for offset in (y, x))
        clean = np.clip(scene.movie[t, rows, columns, 0] - 100.0, 0, None) / 20 / 1000  # of the brightest pixel
        frames[t] = 100 + 20 * rng.poisson(photons * light[t] * clean)
        flow[t] += (x, y)
    return frames, flow


def measure(frames: NDArray[np.uint16], truth: NDArray[np.float32], reference: str | None) -> tuple[float, str]:
    """Error in pixels of a registration by either rule, and which frames were chosen."""
    flow = ArrayWriter(truth.shape, np.float32)
    registration = Registration(ArrayReader(frames), reference, "threading", fg.Options(**OPTIONS))
    summary = registration.run(None, flow)
    inner = slice(MARGIN, -MARGIN)
    errors = flow.array[:, inner, inner] - truth[:, inner, inner]
    errors -= np.median(errors, axis=0)
    return float(np.median(np.linalg.norm(errors, axis=-1).mean(axis=(1, 2)))), str(summary.choices.reference or "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=800)
    parser.add_argument("--size", type=int, default=112, help="rows and columns")
    parser.add_argument("--photons", type=float, default=15.0, help="in the brightest pixel")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")  # of frames that are bad
    rows = []
    for case, change in CASES.items():
        for seed in chosen.seeds:
            frames, truth = make(change, chosen.frames, chosen.size, chosen.photons, seed)
            (default, _), (auto, said) = (measure(frames, truth, reference) for reference in (None, "auto"))
            rows.append({"case": case, "seed": seed, "default": default, "auto": auto, "chosen": said})
            print(f"{case}, seed {seed}: {default:.3f} px by default, {auto:.3f} px with auto; {said}", flush=True)
    measurement.save("references", {"arguments": vars(chosen), "options": OPTIONS, "cases": rows})


if __name__ == "__main__":
    main()
