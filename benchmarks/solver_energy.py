"""Share of the reachable energy decrease that each relaxation misses, on the levels of the real movie above 90 px.

Usage: python benchmarks/solver_energy.py [--movie FILE]

The energy is that of algorithm.md, section 5, on frozen motion tensors; the levels are those that the coarse-to-fine
descent meets with the rule `sor`. E* is the lowest energy of three relaxations iterated 3000 sweeps.
"""

from __future__ import annotations

import argparse
import types
from pathlib import Path
from typing import Any

import machine
import numpy as np
import tifffile

machine.import_checkout()

from flowreg_gpu import Options, cpu  # noqa: E402
from flowreg_gpu.cpu.preprocess import preprocess  # noqa: E402
from flowreg_gpu.flow import FlowEstimator  # noqa: E402
from flowreg_gpu.preprocess import Preprocessing, normalization  # noqa: E402
from flowreg_gpu.relaxation import Relaxation, choose_relaxation  # noqa: E402

MOVIE = Path(__file__).resolve().parents[2] / "shared" / "data" / "two_photon_20x128x256.tif"
CASES = [("gc", 1.5), ("gc", 4.0), ("gc", 15.0), ("gc", 100.0), ("cs", 4.0), ("gray", 0.1), ("gray", 4.0)]
SMALLEST_SIDE = 90


def energy(level: dict[str, Any], increment: np.ndarray, a_data: float = 0.45) -> float:
    """Energy of one level in float64."""
    tensor, (du, dv) = level["tensor"].astype(float), increment.astype(float)
    form = (
        tensor[:, 0] * du**2
        + tensor[:, 1] * dv**2
        + tensor[:, 2]
        + 2 * (tensor[:, 3] * du * dv + tensor[:, 4] * du + tensor[:, 5] * dv)
    )
    data = (level["weight"] * (np.maximum(form, 0) + 1e-5) ** a_data).sum()
    total = level["flow"].astype(float) + increment
    (alpha_x, alpha_y), (hx, hy) = level["alpha"], level["spacing"]
    smoothness = (
        alpha_x / hx**2 * (np.diff(total, axis=2) ** 2).sum() + alpha_y / hy**2 * (np.diff(total, axis=1) ** 2).sum()
    )
    return 0.5 * float(data + smoothness)


def collect_levels(movie: np.ndarray, options: Options) -> list[dict[str, Any]]:
    """Arguments of every solve above SMALLEST_SIDE pixels, for frames 0 and 5 against the mean of frames 8-15."""
    levels: list[dict[str, Any]] = []

    def solve(tensor: Any, weight: Any, flow: Any, alpha: Any, spacing: Any, relaxation: Relaxation) -> Any:
        if max(flow.shape[1:]) > SMALLEST_SIDE:
            level = {"tensor": tensor, "weight": weight, "flow": flow.copy(), "alpha": alpha, "spacing": spacing}
            levels.append(level)
        return cpu.solve(tensor, weight, flow, alpha, spacing, relaxation)

    operations = types.SimpleNamespace(**{name: getattr(cpu, name) for name in cpu.__all__})
    operations.solve = solve
    reference = movie[8:16].mean(axis=0, dtype=np.float64)[..., None].astype(np.float32)
    height, width, _ = reference.shape
    extremes = (reference.min(axis=(0, 1)), reference.max(axis=(0, 1)))
    preprocessing = Preprocessing.build(*normalization(*extremes, "joint"), np.array([[1, 1, 0.1]]), height, width)
    weight = np.ones((1, height, width), np.float32)
    estimator = FlowEstimator(
        operations, preprocess(reference[None], preprocessing), weight, np.ones(1, np.float32), height, width, options
    )
    for frame in movie[[0, 5]]:
        estimator.flow(preprocess(frame[None, ..., None], preprocessing), np.zeros((2, height, width), np.float32))
    return levels


def run(level: dict[str, Any], relaxation: Relaxation) -> float:
    """Energy after a relaxation."""
    names = ("tensor", "weight", "flow", "alpha", "spacing")
    return energy(level, cpu.solve(*(level[name] for name in names), relaxation))


def main() -> None:
    """Print the table and write results/solver_energy.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--movie", type=Path, default=MOVIE)
    movie = tifffile.imread(parser.parse_args().movie)
    rows = []
    print("missing share of the reachable decrease (1: as bad as not solving)\n")
    print(f"{'data':5}{'alpha':>7}  {'relaxation':34}{'median':>9}{'largest':>9}")
    for term, alpha in CASES:
        options = Options(alpha=alpha, const_assumption=term, solver="sor")
        levels = collect_levels(movie, options)
        starts = [energy(level, np.zeros_like(level["flow"])) for level in levels]
        converged = [
            min(run(level, Relaxation("block", omega, 3000, 10, 0.45, 1.0)) for omega in (1.9, 1.95, 1.98))
            for level in levels
        ]
        auto = [choose_relaxation(options.replace(solver="auto"), *level["flow"].shape[1:]) for level in levels]
        table = {
            "sor, as upstream": [choose_relaxation(options, 512, 512)] * len(levels),
            "block 1.6, 10 sweeps": [Relaxation("block", 1.6, 10, 2, 0.45, 1.0)] * len(levels),
            "block 1.6, 20 sweeps": [Relaxation("block", 1.6, 20, 2, 0.45, 1.0)] * len(levels),
            f"auto ({auto[-1].omega}, {auto[-1].sweeps} sweeps)": auto,
        }
        for name, relaxations in table.items():
            missing = [
                (run(level, relaxation) - best) / (start - best)
                for level, relaxation, start, best in zip(levels, relaxations, starts, converged, strict=True)
            ]
            rows.append(
                {
                    "data": term,
                    "alpha": alpha,
                    "relaxation": name,
                    "median": np.median(missing),
                    "largest": max(missing),
                }
            )
            print(f"{term:5}{alpha:7}  {name:34}{np.median(missing):9.4f}{max(missing):9.4f}")
    machine.save("solver_energy", {"rows": rows})


if __name__ == "__main__":
    main()
