"""How far each solver converges, and what that costs: energy, distance to the converged flow, end-point error, time.

Usage: python benchmarks/solver_energy.py [--movie FILE]

The frames are those of a real movie and synthetic ones with photon noise, as they are and with 65 % of the frame flat,
as dark as their darkest pixel. The energy is that of the model's level (flowreg_gpu/cpu/solver.py) on frozen motion
tensors, on the levels above 90 px that the coarse-to-fine descent meets with the solver `auto`. 'missing' is the part
of the reachable decrease that a solve leaves undone (1: as bad as not solving), 'distance' that of its increment to the
converged one, mean in px; the end-point error is that of whole descents, on the pixels with structure.
"""

from __future__ import annotations

import argparse
import itertools
import time
import types
from pathlib import Path
from typing import Any, NamedTuple

import measurement

measurement.use_one_core()
measurement.import_checkout()

import numpy as np  # noqa: E402
import tifffile  # noqa: E402
from scipy.ndimage import gaussian_filter  # noqa: E402

from flowreg_gpu import Options, cpu  # noqa: E402
from flowreg_gpu.cpu.flatness import flat_fraction  # noqa: E402
from flowreg_gpu.model.estimator import FlowEstimator  # noqa: E402
from flowreg_gpu.model.relaxation import (  # noqa: E402
    COARSE_SIDE,
    Relaxation,
    choose_relaxation,
    choose_solver,
    edge_weights,
    sweep_equivalents,
)
from flowreg_gpu.synthetic import make_movie  # noqa: E402

MOVIE = Path(__file__).resolve().parents[2] / "shared" / "data" / "two_photon_20x128x256.tif"
CASES = [("gc", 1.5), ("gc", 4.0), ("gc", 15.0), ("gc", 100.0), ("gray", 4.0), ("cs", 4.0)]
SOLVERS = ("sor", "block", "multigrid", "auto")
FLAT = (0.0, 0.65)
MARGIN = 10  # pixels at the edges, where content enters and leaves
# The lowest energy of these counts as converged. The first has psi = 1 for nine sweeps, the second never.
FAR = (Relaxation("block", 1.95, 1500, 10, 0.45, 1.0), Relaxation("multigrid", 1.2, 60, 1, 0.45, 1.0))


class Frames(NamedTuple):
    """Preprocessed frames (n, 1, H, W) and reference (1, H, W), the true flow (n, H, W, 2), and what is flat (H, W)."""

    name: str
    reference: np.ndarray
    frames: np.ndarray
    truth: np.ndarray | None
    flat: np.ndarray


class Level(NamedTuple):
    """Arguments of a solve."""

    tensor: np.ndarray
    weight: np.ndarray
    flow: np.ndarray
    alpha: tuple[float, float]
    spacing: tuple[float, float]


def data_sets(movie: np.ndarray) -> list[Frames]:
    """Two frames each of the real movie and of known motion, without and with large flat parts."""
    motion = make_movie(16, 256, 256, photons=60.0, seed=1)
    chosen = [2, 15]
    images = {
        "real": (movie[8:16].mean(axis=0, dtype=np.float64), movie[[0, 5]].astype(np.float64), None),
        "synthetic": (
            motion.reference[..., 0].astype(np.float64),
            motion.movie[chosen, ..., 0].astype(np.float64),
            motion.flow[chosen],
        ),
    }
    sets = []
    for (name, (reference, frames, truth)), fraction in itertools.product(images.items(), FLAT):
        low, high = reference.min(), reference.max()
        flat = islands(*reference.shape, fraction)
        planes = [
            gaussian_filter((np.where(flat, low, image) - low) / (high - low), 1).astype(np.float32)[None]
            for image in (reference, *frames)
        ]
        sets.append(Frames(f"{name}, {fraction:.0%} flat", planes[0], np.stack(planes[1:]), truth, flat))
    return sets


def islands(height: int, width: int, fraction: float) -> np.ndarray:
    """Smooth islands (H, W) that cover a fraction of the pixels."""
    field = gaussian_filter(np.random.default_rng(3).standard_normal((height, width)), height / 8)
    return field < np.quantile(field, fraction)


def energy(level: Level, increment: np.ndarray, a_data: float = 0.45) -> float:
    """Energy of one level in float64."""
    tensor, (du, dv) = level.tensor.astype(float), increment.astype(float)
    form = (
        tensor[:, 0] * du**2
        + tensor[:, 1] * dv**2
        + tensor[:, 2]
        + 2 * (tensor[:, 3] * du * dv + tensor[:, 4] * du + tensor[:, 5] * dv)
    )
    data = (np.maximum(level.weight, 0) * (np.maximum(form, 0) + 1e-5) ** a_data).sum()
    total = level.flow.astype(float) + increment
    (alpha_x, alpha_y), (hx, hy) = level.alpha, level.spacing
    smoothness = (
        alpha_x / hx**2 * (np.diff(total, axis=2) ** 2).sum() + alpha_y / hy**2 * (np.diff(total, axis=1) ** 2).sum()
    )
    return 0.5 * float(data + smoothness)


def descend(data: Frames, options: Options) -> tuple[list[Level], np.ndarray]:
    """Levels above COARSE_SIDE that the flows of all frames meet, finest last of each, and the flows (n, H, W, 2)."""
    levels = []

    def solve(*arguments: Any) -> np.ndarray:
        *level, relaxation = arguments
        if max(level[2].shape[1:]) > COARSE_SIDE:
            levels.append(Level(*level)._replace(flow=level[2].copy()))
        increment: np.ndarray = cpu.solve(*level, relaxation)
        return increment

    operations = types.SimpleNamespace(**{name: getattr(cpu, name) for name in cpu.__all__})
    operations.solve = solve
    _, height, width = data.reference.shape
    weight = np.ones_like(data.reference)
    estimator = FlowEstimator(operations, data.reference, weight, np.ones(1, np.float32), height, width, options)
    start = np.zeros((2, height, width), np.float32)
    flows = [estimator.flow(frame, start) for frame in data.frames]
    return levels, np.moveaxis(np.stack(flows), 1, -1)


def seconds(level: Level, relaxations: dict[str, Relaxation], repetitions: int = 5) -> dict[str, float]:
    """Shortest time of a solve, the solvers one after the other."""
    best = dict.fromkeys(relaxations, np.inf)
    for _, (name, relaxation) in itertools.product(range(repetitions), relaxations.items()):
        start = time.perf_counter()
        cpu.solve(*level, relaxation)
        best[name] = min(best[name], time.perf_counter() - start)
    return best


def end_point_error(data: Frames, options: Options) -> float | None:
    """Mean over the pixels with structure, px; None where the truth is not known."""
    if data.truth is None:
        return None
    inside = (slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
    error = np.linalg.norm(descend(data, options)[1] - data.truth, axis=-1)[(slice(None), *inside)]
    return float(error[:, ~data.flat[inside]].mean())


def measure(data: Frames, term: str, alpha: float) -> list[dict[str, Any]]:
    """A row for each solver."""
    options = Options(alpha=alpha, const_assumption=term)
    flat = flat_fraction(data.reference, np.ones_like(data.reference), term)
    solvers = {name: choose_solver(options.replace(solver=name), flat) for name in SOLVERS}
    levels, _ = descend(data, solvers["auto"])
    relaxations = {
        name: [choose_relaxation(chosen, *level.flow.shape[1:]) for level in levels] for name, chosen in solvers.items()
    }
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in SOLVERS}
    for number, level in enumerate(levels):
        start = energy(level, np.zeros_like(level.flow))
        least, converged = min(
            ((energy(level, found), found) for found in (cpu.solve(*level, far) for far in FAR)),
            key=lambda pair: pair[0],
        )
        for name in SOLVERS:
            found = cpu.solve(*level, relaxations[name][number])
            missing = (energy(level, found) - least) / (start - least)
            figures[name].append((missing, float(np.hypot(*(found - converged)).mean())))
    edge = edge_weights(levels[-1].alpha, levels[-1].spacing)
    times = seconds(levels[-1], {name: chosen[-1] for name, chosen in relaxations.items()})
    return [
        {
            "frames": data.name,
            "data": term,
            "alpha": alpha,
            "solver": name,
            "rule": relaxations[name][-1].rule,
            "missing, median": float(np.median([missing for missing, _ in figures[name]])),
            "missing, largest": max(missing for missing, _ in figures[name]),
            "distance, px": float(np.mean([distance for _, distance in figures[name]])),
            "end-point error, px": end_point_error(data, solvers[name]),
            "sweep-equivalents": sweep_equivalents(*levels[-1].flow.shape[1:], edge, relaxations[name][-1]),
            "ms": 1e3 * times[name],
            "flat fraction": flat,
        }
        for name in SOLVERS
    ]


def main() -> None:
    """Print the table and write results/solver_energy.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--movie", type=Path, default=MOVIE)
    movie = tifffile.imread(parser.parse_args().movie)
    rows = []
    print(
        f"{'frames':20}{'data':>5}{'alpha':>6}  {'solver':18}{'missing':>9}{'largest':>9}{'distance':>9}"
        f"{'error':>8}{'sweeps':>8}{'ms':>7}"
    )
    for data, (term, alpha) in itertools.product(data_sets(movie), CASES):
        for row in measure(data, term, alpha):
            rows.append(row)
            solver = row["solver"] if row["solver"] != "auto" else f"auto: {row['rule']}"
            print(
                f"{data.name:20}{term:>5}{alpha:6g}  {solver:18}{row['missing, median']:9.4f}"
                f"{row['missing, largest']:9.4f}{row['distance, px']:9.4f}{row['end-point error, px'] or np.nan:8.4f}"
                f"{row['sweep-equivalents']:8.0f}{row['ms']:7.1f}",
                flush=True,
            )
    measurement.save("solver_energy", {"rows": rows})


if __name__ == "__main__":
    main()
