"""Measures of registered movies against the end-point error, for smoothness from far too little to far too much.

Usage: python benchmarks/measures.py [--seed 4]

Movies of `choice_cases.py` and of `flowreg_gpu.synthetic`, whose motion is known, are registered with five values of
`alpha`. For each measure: in how many movies it is best where the error is least; how much larger the error is where it
is best; and of the registrations that have made the error larger, how many it calls an improvement.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import measurement

measurement.import_checkout()

import numpy as np  # noqa: E402
import tifffile  # noqa: E402
from choice_cases import CONDITIONS, make_case  # noqa: E402

import flowreg_gpu as fg  # noqa: E402
from flowreg_gpu.engine.job import Job  # noqa: E402
from flowreg_gpu.io import TiffReader  # noqa: E402
from flowreg_gpu.registration.measuring import measure_quality, read_pairs  # noqa: E402
from flowreg_gpu.synthetic import end_point_error, make_movie  # noqa: E402

ALPHAS = (0.5, 1.5, 8.0, 60.0, 250.0)
MOVIES = (
    ("cells", 0),
    ("one-photon", 0),
    ("row noise", 0),
    ("still", 0),
    ("still", 1),
    ("fibres", 0),
    ("real residuals", 0),
    ("activity", 0),
)
# Each grows with what it takes for a better registration; those of a change are above 0 for an improvement.
CHANGES: dict[str, Callable[[dict[str, Any]], float]] = {
    "unseen pixels": lambda row: row["unseen"],
    "correlation with the reference": lambda row: row["correlation"][1] - row["correlation"][0],
    "leave-one-out correlation": lambda row: row["leave_one_out"][1] - row["leave_one_out"][0],
    "crispness": lambda row: row["crispness"] - 1,
    "component motion, change": lambda row: row["component_motion"][0] - row["component_motion"][1],
}
LEVELS: dict[str, Callable[[dict[str, Any]], float]] = {
    "component motion, after": lambda row: -row["component_motion"][1],
    "residual motion, median": lambda row: -row["residual_motion"][0],
    "residual motion, 99th percentile": lambda row: -row["residual_motion"][1],
}


def known_movies(seed: int) -> Iterator[tuple[str, Any]]:
    """Names, and movies with `movie`, `flow` and `reference`."""
    for condition, turn in MOVIES:
        case = make_case(list(CONDITIONS).index(condition) + turn * len(CONDITIONS), seed)
        yield case.name, case
    yield "synthetic", make_movie()


def measure(known: Any, alpha: float) -> dict[str, Any]:
    """Register a movie, and measure all its frames."""
    movie = known.movie if known.movie.ndim == 4 else known.movie[..., None]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        source, target, flow_file = (Path(folder, name) for name in ("in.tif", "out.tif", "flow.tif"))
        tifffile.imwrite(source, np.moveaxis(movie, -1, 1), photometric="minisblack", metadata={"axes": "TCYX"})
        summary = fg.register_file(
            source, target, "threading", known.reference, flow_file, quality="balanced", bidirectional=None, alpha=alpha
        )
        flow, used = tifffile.imread(flow_file), np.flatnonzero(~summary.flagged)
        with TiffReader(source) as before, TiffReader(target) as after:
            pairs = list(read_pairs(before, after, used))
    job = Job.from_raw(options=summary.options, reference=summary.reference)
    quality = measure_quality(pairs, job, motion=True)
    correlations = [float(summary.statistics[f"correlation_{when}"][used].mean()) for when in ("before", "after")]
    return {
        "alpha": alpha,
        "error": [
            float(end_point_error(estimate[used], known.flow[used])) for estimate in (np.zeros_like(known.flow), flow)
        ],
        "unseen": float(np.mean(summary.choices.unseen.gains)),
        "correlation": correlations,
        "leave_one_out": [quality.leave_one_out.before, quality.leave_one_out.after],
        "crispness": quality.crispness.after / quality.crispness.before,
        "component_motion": [quality.component_motion.before, quality.component_motion.after],
        "residual_motion": list(quality.residual_motion),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=4)
    seed = parser.parse_args().seed
    movies = {}
    for name, known in known_movies(seed):
        movies[name] = [measure(known, alpha) for alpha in ALPHAS]
        print(name, *movies[name], sep="\n  ", flush=True)
    rows = [row for found in movies.values() for row in found]
    harmed = [row for row in rows if row["error"][1] > row["error"][0]]
    cells = []
    for measure_name, value in {**CHANGES, **LEVELS}.items():
        chosen = [max(found, key=value)["error"][1] for found in movies.values()]
        least = [min(row["error"][1] for row in found) for found in movies.values()]
        flattered = f"{sum(value(row) > 0 for row in harmed)}" if measure_name in CHANGES else ""
        same = sum(error == best for error, best in zip(chosen, least, strict=True))
        excess = max(error / best for error, best in zip(chosen, least, strict=True))
        cells.append((measure_name, str(same), f"{excess:.1f}", flattered))
    columns = (
        "measure", f"best where the error is least, of {len(movies)}", "error where it is best, over the least",
        f"better though the error has grown, of {len(harmed)}",
    )  # fmt: skip
    print("\n".join(measurement.table(columns, cells)))
    measurement.save("measures", {"seed": seed, "movies": movies})


if __name__ == "__main__":
    main()
