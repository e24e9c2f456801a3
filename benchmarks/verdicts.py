"""Verdicts on movies with known motion: does 'better' mean a smaller end-point error, and 'worse' a larger one?

Usage: python benchmarks/verdicts.py [--seed 0]

Twenty registrations of movies of `choice_cases.py`, as they are or changed: good ones, some of movies that do not
move, and some that are wrong on purpose. What is right by the end-point error without and with registration: 'better'
where it is smaller, 'worse' where it is larger, and 'unchanged' as well where that is a tenth or 0.15 px at most. A
verdict that is 'better' where the error has grown is a mistake that must not be.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import measurement

measurement.import_checkout()

import numpy as np  # noqa: E402
import tifffile  # noqa: E402
from choice_cases import CONDITIONS, Case, make_case  # noqa: E402

import flowreg_gpu as fg  # noqa: E402
from flowreg_gpu.synthetic import end_point_error  # noqa: E402

QUALITY = "balanced"


class Trial(NamedTuple):
    """A case by the number of its condition and of its turn, what is changed in it, and options."""

    name: str
    condition: str
    turn: int = 0
    change: Callable[[Case], Case] = lambda case: case
    options: dict[str, Any] = {}  # noqa: RUF012  # never changed


def _jumps(every: int) -> Callable[[Case], Case]:
    """Frames that lie 40 px from where they were; more of them than one in two where `every` is 1."""

    def change(case: Case) -> Case:
        movie, flow = case.movie.copy(), case.flow.copy()
        for t in range(len(movie)):
            if t % every == 0:
                movie[t] = np.roll(movie[t], 40, axis=1)
                flow[t] = np.roll(flow[t], 40, axis=1)
                flow[t, ..., 0] += 40
        return case._replace(movie=movie, flow=flow)

    return change


def _foreign(case: Case) -> Case:
    """The reference of another scene."""
    height, width = case.movie.shape[1:3]
    other = make_case(3 * len(CONDITIONS), 11).clean
    repeated = np.tile(other, (1 + height // other.shape[0], 1 + width // other.shape[1], 1))
    return case._replace(reference=np.ascontiguousarray(repeated[:height, :width]))


def _flicker(case: Case) -> Case:
    """A lamp that changes its brightness by a half from frame to frame."""
    light = np.where(np.arange(len(case.movie)) % 2, 0.6, 1.4)[:, None, None, None]
    return case._replace(movie=(100 + (case.movie.astype(np.float64) - 100) * light).clip(0, 65535).astype(np.uint16))


def _bad_frames(case: Case) -> Case:
    """Eight frames without light."""
    movie = case.movie.copy()
    movie[10:18] = np.random.default_rng(0).poisson(5, movie[10:18].shape) + 95
    return case._replace(movie=movie)


ROUGH, FIXED = {"alpha": 0.5}, {"alpha": 1.5}
TRIALS = (
    Trial("cells, 5 photons", "cells"),
    Trial("fibres, 7 px", "fibres"),
    Trial("one-photon, 1 px", "one-photon"),
    Trial("line by line", "line by line"),
    Trial("two channels", "two channels"),
    Trial("row noise", "row noise"),
    Trial("real residuals", "real residuals"),
    Trial("active cells", "activity"),
    Trial("eight dark frames", "fibres", 0, _bad_frames),
    Trial("lamp flickers", "fibres", 0, _flicker),
    Trial("one frame in ten jumps by 40 px", "fibres", 0, _jumps(10)),
    Trial("one frame in ten jumps, not aligned", "fibres", 0, _jumps(10), {"cc_initialization": False}),
    Trial("every second frame jumps, not aligned", "fibres", 0, _jumps(2), {"cc_initialization": False}),
    Trial("still", "still"),
    Trial("still, row noise", "still, row noise"),
    Trial("still, one-photon", "still", 1),
    Trial("still, alpha 0.5", "still", 0, options=ROUGH),
    Trial("one-photon, still, alpha 1.5", "still", 1, options=FIXED),
    Trial("still, row noise, alpha 1.5", "still, row noise", 0, options=FIXED),
    Trial("reference of another scene", "still", 0, _foreign, FIXED),
)


def right_words(before: float, after: float) -> set[str]:
    """The verdicts that end-point errors without and with registration allow."""
    word = "better" if after < before else "worse"
    return {"unchanged", word} if abs(after - before) <= max(0.1 * before, 0.15) else {word}


def measure(trial: Trial, seed: int) -> dict[str, Any]:
    """Register the trial's movie from file to file, and compare the verdict with the truth."""
    number = list(CONDITIONS).index(trial.condition) + trial.turn * len(CONDITIONS)
    case = trial.change(make_case(number, seed))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        source, target, flow_file = (Path(folder, name) for name in ("in.tif", "out.tif", "flow.tif"))
        tifffile.imwrite(source, np.moveaxis(case.movie, -1, 1), photometric="minisblack", metadata={"axes": "TCYX"})
        summary = fg.register_file(
            source,
            target,
            "threading",
            case.reference,
            flow_file,
            quality=QUALITY,
            bidirectional=None,
            **trial.options,
        )
        flow = tifffile.imread(flow_file)
    used = ~summary.statistics["bad"]
    before = end_point_error(np.zeros_like(case.flow[used]), case.flow[used])
    after = end_point_error(flow[used], case.flow[used])
    return {
        "trial": trial.name,
        "before": before,
        "after": after,
        "right": sorted(right_words(before, after)),
        "verdict": summary.verdict.word,
        "reasons": summary.verdict.reasons,
        "advice": summary.verdict.advice,
        "gain": float(np.mean(summary.choices.unseen.gains)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    rows = []
    for trial in TRIALS:
        rows.append(measure(trial, chosen.seed))
        row = rows[-1]
        right = " or ".join(row["right"])
        print(f"{row['trial']}: {row['before']:.3f} to {row['after']:.3f} px, {row['verdict']} ({right})")
        for line in (*row["reasons"], *row["advice"]):
            print(f"    {line}")
    columns = ("registration", "error before, px", "after, px", "by the error", "verdict")
    cells = [
        (r["trial"], f"{r['before']:.2f}", f"{r['after']:.2f}", " or ".join(r["right"]), r["verdict"]) for r in rows
    ]
    print("\n".join(measurement.table(columns, cells)))
    same = sum(row["verdict"] in row["right"] for row in rows)
    mistaken = [row["trial"] for row in rows if row["verdict"] == "better" and row["after"] > row["before"]]
    print(
        f"{same} of {len(rows)} verdicts are those of the error; better, but worse by the error: {mistaken or 'none'}"
    )
    measurement.save("verdicts", {"seed": chosen.seed, "trials": rows})


if __name__ == "__main__":
    main()
