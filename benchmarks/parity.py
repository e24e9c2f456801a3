"""GPU against CPU: the same frames through the executors 'sequential' and 'gpu', case by case.

Usage: python benchmarks/parity.py [--device emulated|cuda] [--movie FILE] [--movie-frames N] [--json FILE]

The emulated device of the tests runs the kernels' text on the CPU, so that the table can be made without a GPU. Frames
are synthetic, and those of the two-photon movie where it is found. Exit status 1 where a case is beyond the limits:

- flow: median difference at most 0.001 px, 99th percentile at most 0.03 px;
- registered integers: equal on at least 99.9 % of the pixels, and never off by more than 1 where the flows agree to
  0.0001 px. Floats count as integers of 4096 steps over the range of the reference.

Written beside the JSON: the table as Markdown.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import measurement
import numpy as np
import tifffile

measurement.import_checkout()

import flowreg_gpu as fg  # noqa: E402
from flowreg_gpu.cuda.device import CudaDevice, Device, DeviceError  # noqa: E402
from tests.movies import LEVELS, recording  # noqa: E402

MOVIE = Path(__file__).resolve().parents[2] / "shared" / "data" / "two_photon_20x128x256.tif"
RESULTS = Path(__file__).parent / "results"

MEDIAN, PERCENTILE_99 = 0.001, 0.03  # pixels: what the rounding of float32 may do
EQUAL_SHARE, LARGEST = 0.999, 1  # of the registered pixels, in units of integers
SAME_FLOW = 1e-4  # pixels: less than one unit where neighbouring pixels differ by 10 000
FLOAT_STEPS = 4095

FRAMES, BATCH = 5, 3  # frames of a synthetic recording: two parts on the device
COLUMNS = ("case", "motion", "median", "p99", "largest", "equal", "off by", "verdict")


@dataclasses.dataclass(frozen=True)
class Case:
    """Frames and options. `given` frames go through `process_batch`, with a start flow that is not zero."""

    name: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    shape: tuple[int, int, int] = (48, 56, 1)  # H, W, C
    dtype: str = "uint16"
    amplitude: float = 1.0
    given: bool = False


class Frames(NamedTuple):
    """Frames (T, H, W, C) and reference (H, W, C)."""

    frames: np.ndarray
    reference: np.ndarray


def weight_map(height: int, width: int, channels: int) -> np.ndarray:
    """Weights (H, W, C) with a step in each channel."""
    y, x = np.mgrid[:height, :width]
    return np.stack([0.2 + 0.8 * (x > width / 3), 0.2 + 0.8 * (y < height / 4)][:channels], axis=-1)


def _synthetic_cases() -> Iterator[Case]:
    solvers = ("block", "sor")
    for term, solver, a_smooth in itertools.product(("gc", "gray", "cs"), solvers, (1.0, 0.5)):
        options = {"const_assumption": term, "solver": solver, "a_smooth": a_smooth}
        yield Case(f"{term}, {solver}, a_smooth {a_smooth:g}", options)
    for quality, solver in itertools.product(("balanced", "fast"), solvers):
        yield Case(f"{quality}, {solver}", {"quality": quality, "solver": solver})
    yield Case("alpha (2, 9)", {"alpha": (2, 9)})
    yield Case("sigma in time 1", {"sigma": (1, 1, 1)})
    yield Case("linear interpolation", {"interpolation_method": "linear"})
    for channels, solver in itertools.product((2, 3), solvers):
        yield Case(f"{channels} channels, {solver}", {"solver": solver}, shape=(48, 56, channels))
    yield Case("2 channels, weight 1-D", {"weight": (0.8, 0.2)}, shape=(48, 56, 2))
    yield Case("2 channels, weight map", {"weight": weight_map(48, 56, 2)}, shape=(48, 56, 2))
    yield Case("1 channel, weight map", {"weight": weight_map(48, 56, 1)[..., 0]})
    for channels in (1, 2):
        shape = (48, 56, channels)
        yield Case(f"start flow, channels {channels}", shape=shape, given=True)
        yield Case(f"pre-alignment, channels {channels}", {"cc_initialization": True}, shape, amplitude=2.5)
        small = {"cc_initialization": True, "cc_hw": (32, 40), "cc_up": 5}
        yield Case(f"pre-alignment, small, 1/5 px, channels {channels}", small, shape, amplitude=2.5)
    yield Case("GNC", {"gnc_schedule": (0, 0.5, 1), "warping_steps": 2, "min_level": 2})
    yield Case("GNC, sor", {"gnc_schedule": (0, 0.5, 1), "warping_steps": 2, "min_level": 4, "solver": "sor"})
    for (height, width), solver in itertools.product(((97, 131), (24, 200)), (*solvers, "multigrid")):
        yield Case(f"{height}x{width}, {solver}", {"solver": solver}, shape=(height, width, 1))
    for dtype in LEVELS:
        yield Case(f"{dtype}, 2 channels", shape=(48, 56, 2), dtype=dtype)
    yield Case("int8, start flow", dtype="int8", given=True)


SYNTHETIC = tuple(_synthetic_cases())

#: Of the two-photon movie; alpha as in upstream's examples for such recordings.
REAL = (
    *(
        Case(f"movie, {term}, {solver}", {"alpha": 4, "const_assumption": term, "solver": solver})
        for term, solver in itertools.product(("gc", "gray", "cs"), ("block", "sor"))
    ),
    Case("movie, gray, multigrid", {"alpha": 4, "const_assumption": "gray", "solver": "multigrid"}),
    Case("movie, alpha 1.5"),
    Case("movie, balanced", {"alpha": 4, "quality": "balanced"}),
    Case("movie, fast", {"alpha": 4, "quality": "fast"}),
    Case("movie, a_smooth 0.5", {"alpha": 4, "a_smooth": 0.5}),
    Case("movie, pre-alignment", {"alpha": 4, "cc_initialization": True, "cc_up": 10}),
)


def make_device(kind: str) -> Device:
    """The first GPU ('cuda'), or the emulated device of the tests."""
    if kind == "cuda":
        return CudaDevice()
    from tests.emulation import EmulatedDevice

    return EmulatedDevice()


def synthetic_frames(case: Case) -> Frames:
    """Small frames with known motion; int8 is uint8 less 128."""
    height, width, channels = case.shape
    made_as = "uint8" if case.dtype == "int8" else case.dtype
    made = recording(FRAMES, height, width, channels, made_as, amplitude=case.amplitude)
    if case.dtype == "int8":
        return Frames(*((item ^ 128).view(np.int8) for item in (made.frames, made.truth)))
    return Frames(made.frames, made.truth)


def load_movie(path: Path, count: int) -> Frames:
    """The first frames of the two-photon movie; the reference is the mean of frames 8 to 15."""
    movie = tifffile.imread(path)[..., None]
    return Frames(movie[:count], movie[8:16].mean(axis=0, dtype=np.float64).astype(np.float32))


def register(case: Case, given: Frames, executor: fg.BaseExecutor) -> tuple[np.ndarray, np.ndarray]:
    """Registered frames and flow."""
    frames, reference = given
    if not case.given:
        return fg.register(frames, reference.astype(np.float32), executor, **case.options)
    low, high = float(reference.min()), float(reference.max())
    planes, reference_planes = ((item.astype(np.float64) - low) / (high - low) for item in given)
    start = np.broadcast_to(np.array([0.6, -0.4]), (*reference.shape[:2], 2))
    return executor.process_batch(frames, planes, reference, reference_planes, start, flow_params=case.options)


def compare(case: Case, given: Frames, device: Device) -> dict[str, Any]:
    """One row: differences of the device's results to the CPU's, and whether they are within the limits."""
    with fg.SequentialExecutor() as cpu:
        expected, expected_flow = register(case, given, cpu)
    with fg.GPUExecutor(device=device, batch=BATCH, fallback=False) as gpu:
        registered, flow = register(case, given, gpu)
    distance = np.linalg.norm(flow - expected_flow, axis=-1)
    integers = registered.dtype.kind in "iu"
    unit = 1.0 if integers else float(np.ptp(given.reference)) / FLOAT_STEPS
    off = np.abs(registered.astype(np.float64) - expected) / unit
    row = {
        "case": case.name,
        "motion": float(np.linalg.norm(expected_flow, axis=-1).mean()),
        "median": float(np.median(distance)),
        "p99": float(np.percentile(distance, 99)),
        "largest": float(distance.max()),
        "equal": float(np.mean(off < 0.5)),
        "off by": float(off.max()),
    }
    off_where_same = off[distance <= SAME_FLOW].max(initial=0)
    within = (
        row["motion"] > 0
        and row["median"] <= MEDIAN
        and row["p99"] <= PERCENTILE_99
        and row["equal"] >= EQUAL_SHARE
        and off_where_same <= LARGEST
    )
    return {**row, "verdict": "ok" if within else "FAILED"}


def run(device: Device, pairs: Iterable[tuple[Case, Frames]], until: float = np.inf) -> Iterator[dict[str, Any]]:
    """Rows of the cases, in their order, as far as the time goes (`until` is a time of `time.monotonic`)."""
    for case, given in pairs:
        if time.monotonic() > until:
            return
        try:
            yield compare(case, given, device)
        except (RuntimeError, AssertionError) as error:  # of the device, and of the emulation
            yield {"case": case.name, "verdict": f"FAILED: {error}"}


def pairs(movie: Frames | None) -> Iterator[tuple[Case, Frames]]:
    """Every case with its frames, those of the movie where there is one."""
    for case in SYNTHETIC:
        yield case, synthetic_frames(case)
    if movie is not None:
        for case in REAL:
            yield case, movie


def cells(row: dict[str, Any]) -> list[str]:
    """A row as text."""
    if "median" not in row:
        return [row["case"], *[""] * (len(COLUMNS) - 2), row["verdict"]]
    differences = [f"{row[name]:.1e}" if row[name] else "0" for name in ("median", "p99", "largest")]
    return [
        row["case"],
        f"{row['motion']:.2f}",
        *differences,
        f"{100 * row['equal']:.3f} %",
        f"{row['off by']:.3g}",
        row["verdict"],
    ]


def aligned(texts: Sequence[str]) -> str:
    """A line of the printed table."""
    return f"{texts[0]:42}" + "".join(f"{text:>11}" for text in texts[1:])


def conclusion(rows: list[dict[str, Any]], expected: int) -> str:
    """The last line: all within the limits, or which are not."""
    failed = [row["case"] for row in rows if row["verdict"] != "ok"]
    if failed:
        return f"{len(failed)} of {len(rows)} beyond the limits: {'; '.join(failed)}"
    if len(rows) < expected:
        return f"{len(rows)} of {expected} cases run, all within the limits; no time for the others"
    return f"all {len(rows)} within the limits"


def save(path: Path, device: Device, rows: list[dict[str, Any]], last: str) -> None:
    """Write the JSON, and the table beside it."""
    facts = measurement.describe()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps({"machine": facts, "device": device.name, "rows": rows, "conclusion": last}, indent=1) + "\n"
    )
    lines = [
        f"# GPU against CPU, {device.name}",
        "",
        f"{measurement.one_line(facts)}. Motion and differences of the flow in pixels; registered pixels: fraction "
        "that is equal, largest difference in units of integers (floats: 1/4095 of the reference's range).",
        "",
        *measurement.table(COLUMNS, map(cells, rows)),
        "",
        last,
    ]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")


def main() -> None:
    """Print the table, write it, and exit with 1 where a case fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("emulated", "cuda"), default="emulated")
    parser.add_argument("--movie", type=Path, default=MOVIE, help="two-photon movie (beside the repository)")
    parser.add_argument("--movie-frames", type=int, help="frames of the movie (emulated: 4, cuda: 20)")
    parser.add_argument("--json", type=Path, help="where the figures go (results/parity_DEVICE.json)")
    chosen = parser.parse_args()
    try:
        device = make_device(chosen.device)
    except DeviceError as error:
        sys.exit(f"no usable GPU: {error}")
    movie = None
    if chosen.movie.exists():
        movie = load_movie(chosen.movie, chosen.movie_frames or (4 if chosen.device == "emulated" else 20))
    else:
        print(f"{chosen.movie} is not there: synthetic frames only")
    rows: list[dict[str, Any]] = []
    print(aligned(COLUMNS))
    for row in run(device, pairs(movie)):
        rows.append(row)
        print(aligned(cells(row)), flush=True)
    last = conclusion(rows, len(rows))
    print(f"\n{device.name}: {last}")
    save(chosen.json or RESULTS / f"parity_{chosen.device}.json", device, rows, last)
    sys.exit(any(row["verdict"] != "ok" for row in rows))


if __name__ == "__main__":
    main()
