"""Our flow beside pyflowreg's: known motion (end-point error of both) and real frames (image mismatch of both).

Usage: python benchmarks/compare_pyflowreg.py [--data FOLDER]

Both programs get the same preprocessed frames through the `process_batch` of their sequential executors, on one core,
which needs pyflowreg: pip install --pre "pyflowreg==0.1.0a9" "opencv-contrib-python<5". The release has no other data
term than gc and no graduated non-convexity; for these, upstream's stored results (upstream_flow.npz, made by its newer
sources) lie beside the movie, and on known motion our own `sor`, which follows them to 0.02 px, stands in.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import measurement

measurement.use_one_core()
measurement.import_checkout()

import numpy as np  # noqa: E402
import tifffile  # noqa: E402
from pyflowreg_flow import sequential_executor  # noqa: E402
from scipy.ndimage import gaussian_filter  # noqa: E402

import flowreg_gpu as fg  # noqa: E402
from flowreg_gpu import cpu  # noqa: E402
from flowreg_gpu.model.estimator import FlowEstimator  # noqa: E402
from flowreg_gpu.model.preprocessing import channel_weights  # noqa: E402
from flowreg_gpu.synthetic import end_point_error, make_movie  # noqa: E402

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SOLVERS = ("sor", "auto")
CASES: dict[str, dict[str, Any]] = {
    "alpha 1.5": {},
    "alpha 4": {"alpha": 4},
    "alpha (2, 6)": {"alpha": (2, 6)},
    "alpha 15": {"alpha": 15},
    "balanced": {"min_level": 4},
    "fast": {"min_level": 6},
    "a_smooth 0.5": {"a_smooth": 0.5},
    "two channels": {"weight": (0.7, 0.3)},
    "two channels, weight maps": {"weight": "maps"},
    "pre-alignment": {"cc_initialization": True},
    "pre-alignment, two channels": {"cc_initialization": True, "weight": (0.7, 0.3)},
}
# not in upstream's release
OTHER_DATA_TERMS: dict[str, dict[str, Any]] = {
    "gray, alpha 0.1": {"const_assumption": "gray", "alpha": 0.1},
    "census, alpha 4": {"const_assumption": "cs", "alpha": 4},
}
REAL_FRAMES: dict[str, dict[str, Any]] = {
    "gc_alpha4": {},
    "gc_alpha1_5": {"alpha": 1.5},
    "gc_alpha2_6": {"alpha": (2, 6)},
    "gc_balanced": {"quality": "balanced"},
    "gc_fast": {"quality": "fast"},
    "gray_alpha4": {"const_assumption": "gray"},
    "gray_alpha0_1": {"const_assumption": "gray", "alpha": 0.1},
    "cs_alpha4": {"const_assumption": "cs"},
    "gc_asmooth0_5": {"a_smooth": 0.5},
    "gc_two_channels": {"weight": (0.7, 0.3)},
    "gc_weight_map": {},
    "gc_init": {},
    "gc_gnc": {"gnc_schedule": (0, 0.5, 1), "warping_steps": 3, "min_level": 4},
}
MARGIN = 10


class Frames(NamedTuple):
    """Preprocessed frames (T, H, W, 2) and reference (H, W, 2), and the true flow (T, H, W, 2) where it is known."""

    name: str
    reference: np.ndarray
    frames: np.ndarray
    truth: np.ndarray | None


def data_sets(folder: Path) -> list[Frames]:
    """Synthetic tissue, clean and with photon noise, and the real movie, four frames each."""
    sets = []
    for noise, photons in (("clean", 3e3), ("noisy", 60.0)):
        motion = make_movie(24, 192, 224, photons=photons, seed=1)
        chosen = [2, 9, 15, 21]
        images = filtered(motion.reference, motion.movie[chosen].astype(np.float64))
        sets.append(Frames(f"known motion, {noise}", *images, motion.flow[chosen]))
    file = folder / "two_photon_20x128x256.tif"
    if file.exists():
        movie = tifffile.imread(file).astype(np.float64)
        reference, frames = filtered(movie[8:16].mean(axis=0)[..., None], movie[[0, 5, 17, 19], ..., None])
        second = [
            gaussian_filter(1 - images, (*[0] * (images.ndim - 3), 1.5, 1.5, 0)) for images in (reference, frames)
        ]
        pairs = zip((reference, frames), second, strict=True)
        sets.append(Frames("real movie", *(np.concatenate(pair, axis=-1) for pair in pairs), None))
    return sets


def filtered(reference: np.ndarray, frames: np.ndarray) -> list[np.ndarray]:
    """Reference and frames, normalised by the reference and smoothed by a Gaussian of one pixel."""
    low, high = reference.min(), reference.max()
    scaled = [(images - low) / (high - low + 1e-8) for images in (reference, frames)]
    return [gaussian_filter(images, (*[0] * (images.ndim - 3), 1, 1, 0)) for images in scaled]


def side_by_side(data: Frames) -> list[dict[str, Any]]:
    """A row per case: flow difference, error or mismatch of both, and seconds a frame of both."""
    measure = "mismatch" if data.truth is None else "error, px"
    print(f"\n{data.name}, {data.frames.shape[1]} x {data.frames.shape[2]}: difference to pyflowreg's flow in px")
    print(
        f"{'case':28}{'sor: median':>12}{'p99':>7}{'auto: median':>14}{'p99':>7}   {measure + ': theirs':>18}"
        f"{'sor':>9}{'auto':>9}{'ratio':>8}   {'s/frame: theirs':>15}{'sor':>8}{'auto':>8}"
    )
    rows = []
    for name, parameters in (CASES | (OTHER_DATA_TERMS if data.truth is not None else {})).items():
        row: dict[str, Any] = {"data": data.name, "case": name}
        flows = {}
        for program in ("pyflowreg", "sor", "auto"):
            if program == "pyflowreg" and name in OTHER_DATA_TERMS:
                continue
            flows[program], seconds = registered(program, data, parameters)
            row[program] = {"seconds": seconds, "error": error(data, flows[program], parameters)}
        for program in ("sor", "auto"):
            difference = np.linalg.norm(flows[program] - flows.get("pyflowreg", flows["sor"]), axis=-1)
            row[program] |= dict(zip(("median", "p99"), map(float, np.percentile(difference, (50, 99))), strict=True))
        rows.append(row)
        print_row(row)
    return rows


def print_row(row: dict[str, Any]) -> None:
    """One line; figures of a program that has none are left out."""
    theirs, sor, auto = row.get("pyflowreg", {"error": np.nan, "seconds": np.nan}), row["sor"], row["auto"]
    ratio = auto["error"] / (theirs["error"] if "pyflowreg" in row else sor["error"])
    print(
        f"{row['case']:28}{sor['median']:12.4f}{sor['p99']:7.3f}{auto['median']:14.4f}{auto['p99']:7.3f}   "
        f"{theirs['error']:18.5f}{sor['error']:9.5f}{auto['error']:9.5f}{ratio:8.4f}   "
        f"{theirs['seconds']:15.3f}{sor['seconds']:8.4f}{auto['seconds']:8.4f}"
    )


def registered(program: str, data: Frames, parameters: dict[str, Any]) -> tuple[np.ndarray, float]:
    """Flow (T, H, W, 2) and seconds a frame, after one frame that compiles what has to be."""
    parameters = {"alpha": 1.5, "iterations": 50, "update_lag": 5, "levels": 100, "min_level": 0, **parameters}
    channels = 2 if "weight" in parameters else 1
    if "weight" in parameters:
        parameters["weight"] = weights(parameters["weight"], data.reference.shape[:2])
    frames, reference = data.frames[..., :channels], data.reference[..., :channels]
    start = np.zeros((*reference.shape[:2], 2), np.float32)
    if program == "pyflowreg":
        executor, keywords = sequential_executor()
        alpha = parameters["alpha"]
        parameters["alpha"] = alpha if isinstance(alpha, tuple) else (alpha, alpha)
    else:
        executor, keywords = fg.SequentialExecutor(), {}
        parameters["solver"] = program
    keywords["flow_params"] = parameters

    def run(count: int) -> np.ndarray:
        batch = np.ascontiguousarray(frames[:count])
        flow: np.ndarray = executor.process_batch(batch, batch, reference, reference, start, **keywords)[1]
        return flow

    run(1)
    began = time.perf_counter()
    flow = run(len(frames))
    return flow, (time.perf_counter() - began) / len(frames)


def weights(weight: Any, size: tuple[int, int]) -> np.ndarray:
    """Channel weights; 'maps' are two opposite ramps."""
    if weight != "maps":
        return np.array(weight)
    ramp = np.broadcast_to(np.linspace(0.2, 0.8, size[1]), size)
    return np.stack([ramp, 1 - ramp], axis=-1)


def error(data: Frames, flow: np.ndarray, parameters: dict[str, Any]) -> float:
    """Mean end-point error in pixels, or image mismatch of the filtered frames where the motion is not known."""
    if data.truth is not None:
        return float(end_point_error(flow, data.truth, MARGIN))
    channels = 2 if "weight" in parameters else 1
    planes = [
        np.ascontiguousarray(image[..., :channels].transpose(2, 0, 1), np.float32)
        for image in (data.reference, *data.frames)
    ]
    return mismatch(planes, [one.transpose(2, 0, 1) for one in flow])


def real_frames(folder: Path) -> list[dict[str, Any]]:
    """Flow difference to upstream's stored flows, and image mismatch relative to theirs, frames 0 and 5."""
    stored = np.load(folder / "upstream_flow.npz")
    movie = tifffile.imread(folder / "two_photon_20x128x256.tif").astype(np.float64)
    raw = movie[8:16].mean(axis=0)
    low, high = raw.min(), raw.max()
    images = [gaussian_filter((image - low) / (high - low + 1e-8), 1) for image in (raw, movie[0], movie[5])]
    rows = []
    print("\nreal frames: flow difference to pyflowreg (px), image mismatch over pyflowreg's")
    print(f"{'case':18}{'sor: median':>12}{'p99':>8}{'mismatch':>10}{'auto: median':>14}{'p99':>8}{'mismatch':>10}")
    for name, parameters in REAL_FRAMES.items():
        two = name in ("gc_two_channels", "gc_weight_map")
        planes = [
            np.stack([image, gaussian_filter(1 - image, 1.5)][: 2 if two else 1]).astype(np.float32) for image in images
        ]
        start = stored["uv"].transpose(2, 0, 1) if name == "gc_init" else np.zeros((2, *raw.shape))
        weight = {"weight": stored["weight_map"]} if name == "gc_weight_map" else {}
        row: dict[str, Any] = {"case": name}
        for solver in SOLVERS:
            options = fg.Options(**{"alpha": 4, **parameters, **weight, "solver": solver})
            weights = channel_weights(options, *raw.shape, len(planes[0]))
            estimator = FlowEstimator(cpu, planes[0], *weights, *raw.shape, options)
            flows = [estimator.flow(plane, start.astype(np.float32)) for plane in planes[1:]]
            theirs = [flow.transpose(2, 0, 1) for flow in stored[name]]
            difference = np.linalg.norm(np.array(flows) - theirs, axis=1)
            row[solver] = {
                "median": float(np.median(difference)),
                "p99": float(np.percentile(difference, 99)),
                "mismatch": mismatch(planes, flows) / mismatch(planes, theirs),
            }
        rows.append(row)
        figures = [
            f"{row[s]['median']:{w}.4f}{row[s]['p99']:8.3f}{row[s]['mismatch']:10.4f}"
            for s, w in (("sor", 12), ("auto", 14))
        ]
        print(f"{name:18}{''.join(figures)}")
    return rows


def mismatch(planes: list[np.ndarray], flows: list[np.ndarray]) -> float:
    """Mean absolute difference of the warped, filtered frames to the filtered reference."""
    inner = (slice(None), slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
    warped = [
        cpu.warp(plane, np.ascontiguousarray(flow, np.float32), planes[0])
        for plane, flow in zip(planes[1:], flows, strict=True)
    ]
    return float(np.mean([np.abs(image - planes[0])[inner].mean() for image in warped]))


def main() -> None:
    """Print both tables and write results/compare_pyflowreg.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    folder = parser.parse_args().data
    results: dict[str, Any] = {}
    if (folder / "upstream_flow.npz").exists():
        results["real_frames"] = real_frames(folder)
    else:
        print(f"no upstream_flow.npz in {folder}: real frames left out")
    results["side_by_side"] = [row for data in data_sets(folder) for row in side_by_side(data)]
    measurement.save("compare_pyflowreg", results)


if __name__ == "__main__":
    main()
