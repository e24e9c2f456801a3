"""Recordings whose motion is known exactly, made in many conditions: what a choice of options is measured on.

A scene on a canvas larger than the frame is warped by a known flow, lit, and recorded with photon noise. Every number
depends on the seed alone, so that a fresh set of cases is one argument away.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import measurement

measurement.import_checkout()

import numpy as np  # noqa: E402
import tifffile  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from scipy.ndimage import convolve1d, gaussian_filter, gaussian_filter1d, zoom  # noqa: E402

from flowreg_gpu.registration.pair import warp  # noqa: E402

FRAMES = 40
MARGIN = 16  # pixels of the canvas beyond each side of the frame
OFFSET, GAIN = 100.0, 20.0  # digital units: those of no light, and those of a photon
AVERAGED = 30  # frames in a reference that is not clean
LIGHT = (5.0, 20.0, 60.0, 150.0, 400.0)  # photons in the brightest pixel
AMPLITUDES = (0.5, 1.0, 2.0, 4.0, 7.0)  # largest displacement along each axis, px
SIZES = ((128, 128), (144, 176), (160, 160), (176, 144))
REAL = ("two-photon", "mouse", "kidney", "zebrafish")
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


class Recipe(NamedTuple):
    """What a condition is made of; a scene or an amplitude of several is drawn for each case."""

    scenes: tuple[str, ...] = ("cells", "fibres")
    motion: str = "smooth"  # 'smooth', 'lines' (as a line scan sees it) or 'still'
    noise: str = "white"  # 'white', 'x 2', 'x 3', 'both axes' or 'real'
    rows: float = 0.0  # deviation of the offset of a line over that of a pixel's noise
    band: float = 0.0  # lines over which the offset of a line persists
    activity: bool = False
    gain: float = 0.0  # largest relative change of a frame's brightness
    vignette: bool = False
    channels: int = 1


class Case(NamedTuple):
    """A recording and what is known of it.

    ``movie(t, y + v, x + u)`` shows what ``clean(y, x)`` shows, for (u, v) of ``flow[t]``. `reference` is `clean`, or
    the mean of as noisy frames of the motionless scene.
    """

    name: str
    condition: str
    movie: NDArray[np.uint16]  # (T, H, W, C)
    flow: NDArray[np.float32]  # (T, H, W, 2), px
    clean: NDArray[np.float32]  # (H, W, C), digital units
    reference: NDArray[np.float32]  # (H, W, C), digital units


CONDITIONS = {
    "cells": Recipe(("cells",)),
    "fibres": Recipe(("fibres",)),
    "sparse": Recipe(("sparse",)),
    "one-photon": Recipe(("one-photon",), vignette=True),
    "real means": Recipe(REAL),
    "line by line": Recipe(motion="lines"),
    "line by line, real means": Recipe(REAL, motion="lines"),
    "noise along x, 2 taps": Recipe(noise="x 2"),
    "noise along x, 3 taps": Recipe(noise="x 3"),
    "noise along both axes": Recipe(noise="both axes"),
    "real residuals": Recipe(REAL, noise="real"),
    "row noise": Recipe(rows=0.6),
    "row noise in bands": Recipe(rows=0.6, band=4.0),
    "activity": Recipe(("cells", "sparse", "mouse"), activity=True),
    "gain": Recipe(gain=0.3),
    "vignette": Recipe(vignette=True),
    "two channels": Recipe(channels=2),
    "still": Recipe(("cells", "one-photon", "fibres", "two-photon"), motion="still"),
    "still, row noise": Recipe(("cells", "one-photon", "fibres", "sparse"), motion="still", rows=0.6),
}


def make_cases(seed: int = 0, data: Path = DATA) -> Iterator[Case]:
    """Yield a case for every condition and light, the conditions in turn, so that the first N differ most.

    Parameters
    ----------
    seed : int
        Another one makes as many other cases.
    data : Path
        Folder with the real movies; their scenes are replaced by drawn ones where it does not exist.
    """
    for number in range(len(LIGHT) * len(CONDITIONS)):
        yield make_case(number, seed, data)


def make_case(number: int, seed: int = 0, data: Path = DATA) -> Case:
    """Make one of the cases that `make_cases` yields."""
    turn, place = divmod(number, len(CONDITIONS))
    condition, recipe = list(CONDITIONS.items())[place]
    photons = LIGHT[(turn + place) % len(LIGHT)]
    amplitude = 0.0 if recipe.motion == "still" else AMPLITUDES[(2 * turn + place + seed) % len(AMPLITUDES)]
    rng = np.random.default_rng([seed, number])
    scene = recipe.scenes[turn % len(recipe.scenes)]
    if scene in REAL and not data.is_dir():
        scene = "cells"
    canvas = _scene(rng, scene, recipe.channels, data)
    height, width = (side - 2 * MARGIN for side in canvas.shape[:2])
    inverse, flow = _lines(rng, canvas, amplitude) if recipe.motion == "lines" else _smooth(rng, canvas, amplitude)
    light = photons * _vignette(height, width)[..., None] if recipe.vignette else photons
    glow = _activity(rng, canvas) if recipe.activity else np.zeros((FRAMES, *canvas.shape[:2], 1), np.float32)
    brightness = 1 + recipe.gain * rng.uniform(-1, 1, FRAMES)
    noise = _Noise(rng, recipe, data)
    movie = np.empty((FRAMES, height, width, recipe.channels), np.uint16)
    for t in range(FRAMES):
        shown = canvas * (1 + glow[t])
        movie[t] = noise.record(brightness[t] * light * _inner(warp(shown, inverse[t], shown)))
    still = light * _inner(canvas)
    clean = (OFFSET + GAIN * still).astype(np.float32)
    averaged = bool(number % 2)
    reference = np.mean([noise.record(still) for _ in range(AVERAGED)], axis=0, dtype=np.float32) if averaged else clean
    name = (
        f"{number:02d} {condition}: {scene}, {photons:g} photons, {amplitude:g} px, {'mean' if averaged else 'clean'}"
    )
    return Case(name, condition, movie, _inner(flow), clean, reference)


def _inner(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the frame's part of a canvas (..., Hc, Wc, channels)."""
    return np.ascontiguousarray(image[..., MARGIN:-MARGIN, MARGIN:-MARGIN, :])


# Scenes: canvas (Hc, Wc, C) in 0-1, without noise


def _scene(rng: np.random.Generator, name: str, channels: int, data: Path) -> NDArray[np.float32]:
    """Return the canvas of a scene; a second channel is blurred and four times as dim."""
    if name in REAL:
        canvas = _real(rng, name, data)
    else:
        height, width = (side + 2 * MARGIN for side in SIZES[rng.integers(len(SIZES))])
        canvas = {"cells": _cells, "sparse": _sparse, "fibres": _fibres, "one-photon": _one_photon}[name](
            rng, height, width
        )
    canvas = np.clip(canvas / canvas.max(), 0, None).astype(np.float32)
    planes = [canvas, gaussian_filter(canvas, 3) / 4][:channels]
    return np.stack(planes, axis=-1)


def _cells(rng: np.random.Generator, height: int, width: int, area: int = 450, dark: float = 0.08) -> np.ndarray:
    """Ring-shaped cells, one for each `area` pixels, on neuropil."""
    y, x = np.mgrid[0:height, 0:width]
    image = dark * (1 + 0.3 * _unit(gaussian_filter(rng.standard_normal((height, width)), 1.5)))
    for _ in range(max(4, height * width // area)):
        cy, cx, radius, rim = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(2.5, 6), rng.uniform(1, 2)
        image += rng.uniform(0.3, 1) * np.exp(-0.5 * ((np.hypot(y - cy, x - cx) - 0.7 * radius) / rim) ** 2)
    return image


def _sparse(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A few cells in the dark."""
    return _cells(rng, height, width, area=2500, dark=0.03)


def _fibres(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Wavy fibres of different widths."""
    y, x = np.mgrid[0:height, 0:width]
    image = np.full((height, width), 0.06)
    for _ in range((height + width) // 20):
        angle, offset, bend = rng.uniform(0, np.pi), rng.uniform(-0.6, 0.6) * max(height, width), rng.uniform(2, 8)
        along = (x - width / 2) * np.cos(angle) + (y - height / 2) * np.sin(angle)
        across = (y - height / 2) * np.cos(angle) - (x - width / 2) * np.sin(angle)
        line = across - offset - bend * np.sin(along / rng.uniform(15, 35))
        image += rng.uniform(0.2, 0.8) * np.exp(-0.5 * (line / rng.uniform(1, 2.5)) ** 2)
    return image


def _one_photon(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Blurred cells in a haze that is brighter than they are."""
    haze = gaussian_filter(rng.standard_normal((height, width)), 20, mode="reflect")
    haze = (haze - haze.min()) / np.ptp(haze)
    cells = gaussian_filter(_cells(rng, height, width, area=900), 2.5)
    return 0.35 + 0.3 * haze + 0.35 * cells / cells.max()


def _real(rng: np.random.Generator, name: str, data: Path) -> np.ndarray:
    """Mean of a real movie, enlarged where it is small, at most 192 px each way."""
    if name == "two-photon":
        image = zoom(tifffile.imread(data / "two_photon_20x128x256.tif")[8:16].mean(axis=0), 1.5)
    elif name == "mouse":
        image = zoom(tifffile.imread(data / "mouse_200x64x64.tif").mean(axis=0), 3)
    elif name == "kidney":
        image = tifffile.imread(data / "kidney_thorlabs_5x2x256x256.tif").mean(axis=0)[rng.integers(2)]
    else:
        image = zoom(tifffile.imread(data / "zebrafish_lightsheet_20x2x76x87.tif").mean(axis=0)[rng.integers(2)], 2)
    image = gaussian_filter(image, 0.7)  # removes most of what noise is left in the mean
    top, left = (int(rng.integers(max(1, side - 191))) for side in image.shape)
    image = image[top : top + 192, left : left + 192]
    low, high = np.percentile(image, (0.5, 99.9))
    return np.clip((image - low) / (high - low), 0, 1.2) + 0.03


def _vignette(height: int, width: int) -> NDArray[np.float32]:
    """Illumination (H, W) that falls to 0.25 in the corners and does not move with the scene."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    return np.exp(np.log(0.25) * (x**2 + y**2) / 2).astype(np.float32)


def _activity(rng: np.random.Generator, canvas: NDArray[np.float32]) -> NDArray[np.float32]:
    """Relative change of brightness (T, Hc, Wc, 1): places that double or triple for some frames."""
    height, width = canvas.shape[:2]
    y, x = np.mgrid[0:height, 0:width]
    likely = np.clip(canvas[..., 0] - np.median(canvas[..., 0]), 0, None).ravel().astype(float)
    change = np.zeros((FRAMES, height, width, 1), np.float32)
    for place in rng.choice(likely.size, height * width // 1500, p=likely / likely.sum()):
        cy, cx = divmod(int(place), width)
        spot = rng.uniform(1, 2) * np.exp(-((((y - cy) ** 2 + (x - cx) ** 2) / 6**2) ** 2))
        start, length = rng.integers(FRAMES), rng.integers(4, 16)
        change[start : start + length, ..., 0] = np.maximum(change[start : start + length, ..., 0], spot)
    return change


# Motion: the inverse flow, which draws the frames, and the flow, both (T, Hc, Wc, 2) on the canvas


def _smooth(
    rng: np.random.Generator, canvas: NDArray[np.float32], amplitude: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A drift and a bending that swings; at most `amplitude` px along each axis."""
    height, width = canvas.shape[:2]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    drift = amplitude * 0.55 * _unit(gaussian_filter1d(rng.standard_normal((FRAMES, 2)), 3, axis=0, mode="reflect"))
    swing = amplitude * 0.45 * np.sin(2 * np.pi * (np.arange(FRAMES) / rng.uniform(9, 17) + rng.uniform()))
    waves = rng.uniform(0.5, 1.2, 2) * 2 * np.pi / np.array([height, width])
    slant, phase = rng.uniform(-0.5, 0.5), rng.uniform(0, 2 * np.pi, FRAMES // 8)

    def motion(t: int, y: np.ndarray, x: np.ndarray) -> NDArray[np.float32]:
        shift = phase[t // 8 % len(phase)]
        u = drift[t, 0] + swing[t] * np.sin(waves[0] * (y + slant * x) + shift)
        v = drift[t, 1] + swing[t] * np.cos(waves[1] * (x + slant * y) - shift)
        return np.stack([u, v], axis=-1).astype(np.float32)

    flow = np.stack([motion(t, y, x) for t in range(FRAMES)])
    inverse = np.zeros_like(flow)
    for t in range(FRAMES):
        for _ in range(15):  # fixed-point iteration; the flow's gradient is below 0.3
            inverse[t] = -motion(t, y + inverse[t, ..., 1], x + inverse[t, ..., 0])
    return inverse, flow


def _lines(
    rng: np.random.Generator, canvas: NDArray[np.float32], amplitude: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Motion while the lines are scanned one after the other: each has one displacement, at most `amplitude` px."""
    height, width = canvas.shape[:2]
    steps = rng.standard_normal((2, FRAMES * height, 2))
    slow = _unit(gaussian_filter1d(steps[0], 3 * height, axis=0))
    fast = _unit(gaussian_filter1d(steps[1], rng.uniform(10, 30), axis=0))
    path = amplitude * (0.5 * slow + 0.5 * fast)  # (lines, 2)
    steepest = np.abs(np.diff(path[:, 1])).max()
    path[:, 1] *= min(1.0, 0.5 / max(steepest, 1e-6))  # no line overtakes another
    recorded = path.reshape(FRAMES, height, 2).astype(np.float32)
    rows = np.arange(height, dtype=np.float64)
    flow = np.empty((FRAMES, height, 2), np.float32)
    for t in range(FRAMES):
        v = np.zeros(height)
        for _ in range(40):  # the line that shows row y is y + v
            v = np.interp(rows + v, rows, recorded[t, :, 1])
        flow[t] = np.stack([np.interp(rows + v, rows, recorded[t, :, 0]), v], axis=-1)
    shape = (FRAMES, height, width, 2)
    return np.ascontiguousarray(np.broadcast_to(-recorded[:, :, None], shape)), np.broadcast_to(flow[:, :, None], shape)


def _unit(values: np.ndarray) -> np.ndarray:
    """Return values whose largest magnitude along the first axis is 1."""
    unit: np.ndarray = values / np.abs(values).max(axis=0)
    return unit


# Noise


class _Noise:
    """Records frames: photons (H, W, C) become digital units, with noise as the recipe has it."""

    def __init__(self, rng: np.random.Generator, recipe: Recipe, data: Path) -> None:
        self._rng, self._recipe = rng, recipe
        self._residuals = _residuals(data) if recipe.noise == "real" and data.is_dir() else None

    def record(self, photons: np.ndarray) -> NDArray[np.uint16]:
        photons = np.clip(photons, 0, None)
        deviation = float(np.sqrt(photons.mean()))
        noise = self._correlated(self._rng.poisson(photons) - photons, np.sqrt(photons))
        if self._recipe.rows:
            offsets = self._rng.standard_normal((photons.shape[0], 1, photons.shape[2]))
            if self._recipe.band:
                offsets = gaussian_filter1d(offsets, self._recipe.band, axis=0)
                offsets /= offsets.std()
            noise = noise + self._recipe.rows * deviation * offsets
        return np.clip(np.rint(OFFSET + GAIN * (photons + noise)), 0, 65535).astype(np.uint16)

    def _correlated(self, noise: np.ndarray, deviation: np.ndarray) -> np.ndarray:
        """Return noise of the same variance whose neighbours share some of it."""
        kind = self._recipe.noise
        if self._residuals is not None:
            return deviation * self._tiles(*noise.shape)
        for axis in {"white": (), "real": (), "x 2": (1,), "x 3": (1,), "both axes": (0, 1)}[kind]:
            taps = 3 if kind == "x 3" else 2
            noise = convolve1d(noise, np.full(taps, taps**-0.5), axis=axis, mode="mirror")
        return noise

    def _tiles(self, height: int, width: int, channels: int) -> np.ndarray:
        """Return real residuals (H, W, C), tiles of different frames side by side."""
        residuals = self._residuals
        assert residuals is not None
        side = residuals.shape[1]
        down, across = -(-height // side), -(-width // side)
        chosen = residuals[self._rng.integers(len(residuals), size=(channels, down, across))]
        tiled = chosen.transpose(1, 3, 2, 4, 0).reshape(down * side, across * side, channels)
        return tiled[:height, :width]


def _residuals(data: Path) -> np.ndarray:
    """Differences of successive frames (n, 60, 60) of the mouse movie, over their deviation at each pixel."""
    movie = tifffile.imread(data / "mouse_200x64x64.tif").astype(float)[:, 2:-2, 2:-2]
    differences = np.diff(movie, axis=0)
    differences /= differences.std(axis=0)
    return differences
