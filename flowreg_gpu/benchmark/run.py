"""The benchmark: known motion, every executor on it in a process of its own, verified against the sequential one."""

from __future__ import annotations

import dataclasses
import datetime
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

import flowreg_gpu
from flowreg_gpu.benchmark.process import run_apart
from flowreg_gpu.benchmark.report import Report
from flowreg_gpu.benchmark.rivals import BACKENDS, ON_GPU
from flowreg_gpu.benchmark.row import Task, checked_files, known_motion_file
from flowreg_gpu.benchmark.schedule import count_schedule
from flowreg_gpu.diagnostics import describe
from flowreg_gpu.engine.memory import LARGEST_BATCH
from flowreg_gpu.executors import EXECUTORS
from flowreg_gpu.options import PRESETS, Options, positive_integer
from flowreg_gpu.registration.verification import Verification
from flowreg_gpu.synthetic import end_point_error, make_movie

__all__ = ["Settings", "run_benchmark"]

YARDSTICK = "sequential"
DEFAULT_ROWS = (YARDSTICK, "threading", "multiprocessing", "gpu", "pyflowreg")
BASELINES = ("pyflowreg", YARDSTICK)  # of the ratios: the first that was measured
SEED = 1
UNIQUE = 8  # frames that are made; longer recordings repeat them
SMALLEST = 64  # pixels; the tissue of smaller frames is too sparse for its motion to be found
CHANNELS = 2  # that the tissue has
#: Share of the registered values that must be those of the sequential executor, but for a rounding of the last digit.
CLOSE = 0.99


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured.

    Parameters
    ----------
    height, width, channels : int
    qualities : tuple of str
        Presets.
    executors : tuple of str or None
        None takes all that can run.
    workers, frames : int or None
        None takes one worker per CPU, and as many frames as it takes for some seconds.

    Raises
    ------
    ValueError, TypeError
    """

    height: int = 512
    width: int = 512
    channels: int = 1
    qualities: tuple[str, ...] = ("quality",)
    executors: tuple[str, ...] | None = None
    workers: int | None = None
    frames: int | None = None

    def __post_init__(self) -> None:
        if min(self.height, self.width) < SMALLEST:
            raise ValueError(
                f"frames of {self.height} x {self.width} pixels are too small, expected at least {SMALLEST}"
            )
        if not 1 <= self.channels <= CHANNELS:
            raise ValueError(f"channels={self.channels} is not 1 or {CHANNELS}")
        if self.frames is not None and self.frames < UNIQUE:
            raise ValueError(f"frames={self.frames} is below {UNIQUE}, with which the error is measured")
        if self.workers is not None:
            positive_integer("workers", self.workers)
        for name in self.qualities:
            if name not in PRESETS:
                raise ValueError(f"quality={name!r} is not one of all, {', '.join(PRESETS)}")
        for name in self.executors or ():
            if name not in {**EXECUTORS, **BACKENDS}:
                raise ValueError(f"executor={name!r} is not one of {', '.join([*EXECUTORS, *BACKENDS])}")


#: Called with the row that is next, rows finished and rows in all.
Progress = Callable[[str, int, int], None]


def run_benchmark(settings: Settings, progress: Progress | None = None) -> Report:
    """Measure every row, in a temporary folder.

    Raises
    ------
    OSError
        The recordings cannot be written.
    RuntimeError
        The sequential executor, with which the others are compared, cannot run.
    """
    began = datetime.datetime.now(datetime.timezone.utc)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None  # not on Windows
    with tempfile.TemporaryDirectory(prefix="flowreg_gpu_benchmark_") as folder:
        without = _make_known_motion(Path(folder), settings)
        rows = _measure(settings, folder, without, progress or (lambda name, finished, total: None))
    return Report(
        {
            "flowreg_gpu": flowreg_gpu.__version__,
            "date": began.isoformat(timespec="seconds"),
            "machine": {**describe(), "load_average": load},
            "settings": {**dataclasses.asdict(settings), "dtype": "uint16", "seed": SEED, "unique_frames": UNIQUE},
            "end_point_error_without": without,
            "baseline": _add_ratios(rows),
            "rows": rows,
            "schedule": [_schedule(settings, quality) for quality in settings.qualities],
        }
    )


def _make_known_motion(folder: Path, settings: Settings) -> float:
    """Write the movie, its motionless image and its flow; return the end-point error of no registration at all."""
    known = make_movie(UNIQUE, settings.height, settings.width, seed=SEED)
    movie, reference = (item[..., : settings.channels] for item in (known.movie, known.reference))
    np.savez(known_motion_file(folder), movie=movie, reference=reference, flow=known.flow)
    return end_point_error(np.zeros_like(known.flow), known.flow)


def _measure(settings: Settings, folder: str, without: float, progress: Progress) -> list[dict[str, Any]]:
    """Rows of all presets; in each, the sequential executor makes what they are compared with, and compiles."""
    names = tuple(dict.fromkeys(settings.executors or (*DEFAULT_ROWS, *ON_GPU)))
    total = len(settings.qualities) * len(names)
    rows: list[dict[str, Any]] = []
    for finished, (quality, name) in enumerate((quality, name) for quality in settings.qualities for name in names):
        progress(f"{name}, {quality}", finished, total)
        task = Task(name, quality, settings.workers, settings.frames, folder)
        if name == names[0]:
            figures = run_apart(task._replace(executor=YARDSTICK, timed=False))
            if "failed" in figures:
                raise RuntimeError(
                    f"the executor {YARDSTICK!r}, with which all are compared, failed: {figures['failed']}"
                )
        measured = {row["executor"] for row in rows if "seconds" in row}
        if settings.executors is None and name in ON_GPU and not {"gpu", "pyflowreg"} <= measured:
            continue  # there is no GPU, or no pyflowreg, as other rows say
        figures = run_apart(task)
        if "seconds" in figures:
            figures = _verify(figures, task, without)
        rows.append({"quality": quality, "executor": name, **figures})
    progress("", total, total)
    return rows


def _verify(figures: dict[str, Any], task: Task, without: float) -> dict[str, Any]:
    """Check the flow, and that all of ours have the sequential executor's result; a wrong row has no other figures."""
    error = figures["end_point_error"]
    if not error < without:
        return {"failed": f"the flow is wrong: end-point error {error:.3f} px, {without:.3f} px without registration"}
    if task.executor in BACKENDS:
        return figures
    registered, flow = map(tifffile.imread, checked_files(task))
    expected, expected_flow = map(tifffile.imread, checked_files(task._replace(executor=YARDSTICK, timed=False)))
    distance = np.linalg.norm(flow - expected_flow, axis=-1)
    median, percentile = np.percentile(distance, (50, 99))
    equal = float(np.mean(registered == expected))
    verification = Verification(tuple(range(len(flow))), float(median), float(percentile), equal)
    close = float(np.mean(np.abs(registered.astype(np.int64) - expected) <= 1))
    if not (verification.passed and close >= CLOSE):
        return {"failed": f"the result is not that of {YARDSTICK!r}: {verification}"}
    return {**figures, "verification": dataclasses.asdict(verification)}


def _add_ratios(rows: list[dict[str, Any]]) -> str | None:
    """Enter how many times as fast as the baseline each row is; return the baseline."""
    timed = {(row["executor"], row["quality"]): row for row in rows if "seconds" in row}
    names = {name for name, _ in timed}
    baseline = next((name for name in BASELINES if name in names), None)
    for (_, quality), row in timed.items():
        base = timed.get((str(baseline), quality))
        row["ratio"] = None if base is None else row["frames_per_second"] / base["frames_per_second"]
    return baseline


def _schedule(settings: Settings, quality: str) -> dict[str, Any]:
    counted = count_schedule(
        settings.height, settings.width, settings.channels, Options.without_choices(quality=quality), LARGEST_BATCH
    )
    return {"quality": quality, **counted._asdict()}
