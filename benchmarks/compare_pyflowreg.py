"""Our flow beside pyflowreg's: known motion (end-point error of both) and real frames (image mismatch of both).

Usage: python benchmarks/compare_pyflowreg.py [--data FOLDER]

Known motion needs pyflowreg: pip install --pre "pyflowreg==0.1.0a9" "opencv-contrib-python<5". The real frames use
upstream's stored results (upstream_flow.npz) beside the movie. The release ignores `const_assumption`, so that gray and
cs appear among the real frames only (and, against our own `sor`, among the known motion).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import machine
import numpy as np
import tifffile
from scipy.ndimage import gaussian_filter

machine.import_checkout()

import flowreg_gpu as fg  # noqa: E402
from flowreg_gpu import cpu  # noqa: E402
from flowreg_gpu.demo import end_point_error, make_movie  # noqa: E402
from flowreg_gpu.flow import FlowEstimator  # noqa: E402
from flowreg_gpu.preprocess import channel_weights  # noqa: E402

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SOLVERS = ("sor", "auto")
KNOWN_MOTION: dict[str, dict[str, Any]] = {
    "gc, alpha 1.5": {},
    "gc, alpha 4": {"alpha": 4},
    "gc, alpha (2, 6)": {"alpha": (2, 6)},
    "gc, alpha 15": {"alpha": 15},
    "gc, balanced": {"min_level": 4},
    "gc, fast": {"min_level": 6},
    "gc, a_smooth 0.5": {"a_smooth": 0.5},
    "gc, two channels": {"weight": (0.7, 0.3)},
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
# upstream's release has no such data terms; our `sor`, which follows upstream's newest sources on real frames to
# 0.02 px, stands in for it
OTHER_DATA_TERMS: dict[str, dict[str, Any]] = {
    "gray, alpha 0.1": {"const_assumption": "gray", "alpha": 0.1},
    "cs, alpha 4": {"const_assumption": "cs", "alpha": 4},
}
MARGIN = 10


def known_motion() -> list[dict[str, Any]]:
    """End-point error on synthetic tissue: clean and with photon noise, four frames each."""
    from pyflowreg.core.optical_flow import get_displacement

    rows = []
    print(
        f"\nknown motion, 192x224: end-point error, px\n{'case':30}{'pyflowreg':>10}{'sor':>9}{'auto':>9}{'ratio':>9}"
    )
    for noise, photons in (("clean", 3e3), ("noisy", 60.0)):
        motion = make_movie(24, 192, 224, photons=photons, seed=1)
        low, high = motion.reference.min(), motion.reference.max()
        fixed, *frames = (
            gaussian_filter((image - low) / (high - low + 1e-8), (1, 1, 0))
            for image in (motion.reference, *motion.movie[[2, 9, 15, 21]].astype(np.float64))
        )
        truth = motion.flow[[2, 9, 15, 21]]
        for name, parameters in (KNOWN_MOTION | OTHER_DATA_TERMS).items():
            channels = 2 if "two channels" in name else 1
            options = {"alpha": 1.5, **parameters}
            first, *others = (image[..., :channels] for image in (fixed, *frames))
            flows = {
                solver: [fg.estimate_flow(first, frame, solver=solver, **options) for frame in others]
                for solver in SOLVERS
            }
            if name in KNOWN_MOTION:
                flows["pyflowreg"] = [get_displacement(first, frame, **upstream_options(options)) for frame in others]
            errors = {key: end_point_error(np.array(flow), truth, MARGIN) for key, flow in flows.items()}
            yardstick = errors.get("pyflowreg", errors["sor"])
            rows.append({"case": f"{name}, {noise}", **errors})
            print(
                f"{name + ', ' + noise:30}{errors.get('pyflowreg', np.nan):10.4f}{errors['sor']:9.4f}"
                f"{errors['auto']:9.4f}{errors['auto'] / yardstick:9.4f}"
            )
    return rows


def upstream_options(options: dict[str, Any]) -> dict[str, Any]:
    """The same parameters as pyflowreg takes them."""
    alpha = options["alpha"]
    upstream = {"levels": 100, "min_level": 0, "iterations": 50, "update_lag": 5, **options}
    upstream["alpha"] = alpha if isinstance(alpha, tuple) else (alpha, alpha)
    if "weight" in options:
        upstream["weight"] = np.array(options["weight"])
    return upstream


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
    results["known_motion"] = known_motion()
    machine.save("compare_pyflowreg", results)


if __name__ == "__main__":
    main()
