"""What choices of options are worth where the motion is known: end-point errors of `auto`, of alphas, and of rivals.

Usage: python benchmarks/choices.py [--cases N] [--seed 0] [--workers 2] [--data FOLDER] [--suite2p PYTHON]

For every case of choice_cases.py, 12 frames spread over the recording are registered to its reference at 12 alphas from
1 to 200, at 1.5, 4 and 8, and at the alpha that the recording chooses ('auto', by all its frames). Errors are mean
end-point errors in px, 10 px off the border. 'ratio' is the error at `auto` over the lowest of the grid; a still scene
has none, its displacements are counted instead.

Rivals, in the same run: OpenCV's DIS, preset medium, on the same filtered frames in 8 bits (pip install
"opencv-contrib-python<5"), and suite2p's non-rigid registration with blocks of 64 px, in an interpreter of its own
(pip install "suite2p==1.1.*" in another environment, and --suite2p its python). One that is not there is left out.
"""

from __future__ import annotations

import argparse
import multiprocessing
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import measurement

measurement.import_checkout()

import choice_cases  # noqa: E402
import numpy as np  # noqa: E402
from choice_cases import Case  # noqa: E402
from scipy.ndimage import gaussian_filter  # noqa: E402

import flowreg_gpu as fg  # noqa: E402
from flowreg_gpu.io import ArrayReader  # noqa: E402
from flowreg_gpu.options import PRESETS  # noqa: E402
from flowreg_gpu.registration.loop import Registration  # noqa: E402
from flowreg_gpu.registration.start_flow import FIRST_FLOWS  # noqa: E402
from flowreg_gpu.synthetic import end_point_error, make_movie  # noqa: E402

MARGIN, MEASURED = 10, 12
GRID = tuple(float(f"{alpha:.4g}") for alpha in np.geomspace(1, 200, 12))
FIXED = (1.5, 4.0, 8.0)
COLUMNS = ("auto", "best", "1.5", "4", "8", "DIS", "suite2p")

Rival = Callable[[np.ndarray, np.ndarray], np.ndarray]  # frames (T, H, W, C) and reference (H, W, C) to flow
_rivals: dict[str, Rival] = {}  # of a worker process


def dis(frames: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """OpenCV's dense inverse search, preset medium; the channels are averaged."""
    import cv2

    cv2.setNumThreads(1)
    filtered = [gaussian_filter(image.mean(axis=-1, dtype=np.float32), 1) for image in (reference, *frames)]
    low, high = np.percentile(filtered[0], (0.1, 99.9))  # better than the extremes
    fixed, *moving = (
        np.clip(255 * (image - low) / (high - low), 0, 255).round().astype(np.uint8) for image in filtered
    )
    method = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return np.stack([method.calc(fixed, image, None) for image in moving])


class Suite2p:
    """suite2p in another interpreter, of the first channel; it ends with this process."""

    def __init__(self, python: str) -> None:
        script = Path(__file__).with_name("suite2p_flow.py")
        self._process = subprocess.Popen(
            [python, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._folder = tempfile.TemporaryDirectory()

    def __call__(self, frames: np.ndarray, reference: np.ndarray) -> np.ndarray:
        case = Path(self._folder.name) / "case.npz"
        np.savez(case, frames=frames[..., 0], reference=reference[..., 0])
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(case, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline().strip()
        if answer != "done":
            raise RuntimeError(f"suite2p: {answer or 'it does not run'}")
        flow: np.ndarray = np.load(case.with_suffix(".flow.npy"))
        return flow


def available_rivals(suite2p: str | None) -> dict[str, Rival]:
    """The rivals that can run here, tried on noise; a line says which cannot."""
    rivals: dict[str, Rival] = {"DIS": dis}
    if suite2p:
        rivals["suite2p"] = Suite2p(suite2p)
    else:
        print("suite2p is left out: no --suite2p")
    noise = np.random.default_rng(0).integers(0, 99, (3, 96, 96, 1)).astype(np.uint16)
    for name, rival in list(rivals.items()):
        try:
            rival(noise[1:], noise[0])
        except (ImportError, RuntimeError, OSError) as error:
            print(f"{name} is left out: {error}")
            del rivals[name]
    return rivals


def start_worker(suite2p: str | None, names: Iterable[str]) -> None:
    """Give a worker process its rivals."""
    if "DIS" in names:
        _rivals["DIS"] = dis
    if "suite2p" in names and suite2p:
        _rivals["suite2p"] = Suite2p(suite2p)


def chosen_alpha(case: Case) -> float:
    """The alpha that a recording chooses."""
    reader = ArrayReader(case.movie)
    chosen = Registration(reader, case.reference, "sequential", fg.Options(cc_initialization=False)).run().choices.alpha
    assert chosen is not None
    return chosen.alpha


def flow_of(frames: np.ndarray, reference: np.ndarray, alpha: float) -> np.ndarray:
    """Flow (T, H, W, 2) on one core."""
    return fg.register(frames, reference, "sequential", alpha=alpha, cc_initialization=False)[1]


def measure(number: int, seed: int, data: Path) -> dict[str, Any]:
    """Errors of one case, by method; where it is still, the mean and the largest displacement at `auto`."""
    case = choice_cases.make_case(number, seed, data)
    alpha = chosen_alpha(case)
    chosen = np.linspace(1, len(case.movie) - 2, MEASURED).round().astype(int)
    frames, truth = case.movie[chosen], case.flow[chosen]
    flows = {f"{value:g}": flow_of(frames, case.reference, value) for value in (*GRID, *FIXED)}
    flows["auto"] = flow_of(frames, case.reference, alpha)
    for name, rival in _rivals.items():
        flows[name] = rival(frames, case.reference)
    errors = {name: end_point_error(flow, truth, MARGIN) for name, flow in flows.items()}
    best = min(GRID, key=lambda value: errors[f"{value:g}"])
    errors["best"] = errors[f"{best:g}"]
    row = {"case": case.name, "condition": case.condition, "errors": errors, "best alpha": best}
    row |= {"alpha": alpha, "ratio": errors["auto"] / errors["best"]}
    if not truth.any():
        length = np.linalg.norm(flows["auto"], axis=-1)
        row["displacement"] = {"mean": float(length.mean()), "largest": float(length.max())}
    return row


def cost(quality: str) -> dict[str, float]:
    """Time of the choice in frames of the run at the chosen alpha, 512 x 512 pixels, one core."""
    movie, reference, _ = make_movie(40, 512, 512)
    reader, reference = ArrayReader(movie[..., :1]), reference[..., :1]
    options = fg.Options.without_choices(quality=quality, alpha="auto")
    Registration(reader, reference, "sequential", options).run()  # kernels are loaded
    chosen = Registration(reader, reference, "sequential", options).run()
    assert chosen.choices.alpha is not None
    alpha = chosen.choices.alpha.alpha
    given = Registration(reader, reference, "sequential", options.replace(alpha=alpha)).run()
    frame = given.seconds / (reader.n_frames + FIRST_FLOWS)
    return {"frames": (chosen.seconds - given.seconds) / frame, "ms a frame": 1000 * frame, "alpha": alpha}


def geometric(values: Iterable[float]) -> float:
    """Geometric mean."""
    return float(np.exp(np.mean(np.log(list(values)))))


def line(row: Mapping[str, Any]) -> str:
    """One case as text."""
    errors = "".join(f"{name:>9} {row['errors'][name]:.3f}" for name in COLUMNS if name in row["errors"])
    choice = f"  alpha {row['alpha']:.3g}, ratio {row['ratio']:.3f}" if "alpha" in row else ""
    return f"{row['case']:75}{errors}  best at {row['best alpha']:.3g}{choice}"


def by_condition(rows: list[dict[str, Any]]) -> list[str]:
    """Geometric means of the errors of each condition, as a table in Markdown."""
    names = [name for name in COLUMNS if name in rows[0]["errors"]]
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["condition"], []).append(row)
    groups["all"] = rows
    lines = []
    for condition, members in groups.items():
        cells = [f"{geometric(row['errors'][name] for row in members):.3f}" for name in names]
        ratios = [row["ratio"] for row in members if "ratio" in row]
        cells += [f"{geometric(ratios):.3f}", f"{max(ratios):.3f}"] if ratios else ["-", "-"]
        lines.append([condition, str(len(members)), *cells])
    return measurement.table(["condition", "cases", *names, "ratio", "worst"], lines)


def main() -> None:
    """Print every case and the table, and write results/choices.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    most = len(choice_cases.CONDITIONS) * len(choice_cases.LIGHT)
    parser.add_argument("--cases", type=int, default=most, help=f"how many, of {most}")
    parser.add_argument("--seed", type=int, default=0, help="another one makes other cases")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--data", type=Path, default=choice_cases.DATA, help="folder of the real movies")
    parser.add_argument("--suite2p", help="interpreter that has suite2p")
    arguments = parser.parse_args()
    names = list(available_rivals(arguments.suite2p))
    rows = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.workers, context, start_worker, (arguments.suite2p, names)) as pool:
        jobs = [pool.submit(measure, number, arguments.seed, arguments.data) for number in range(arguments.cases)]
        for job in jobs:
            rows.append(job.result())
            print(line(rows[-1]), flush=True)
    print("", *by_condition(rows), sep="\n")
    costs = {quality: cost(quality) for quality in PRESETS}
    for quality, found in costs.items():
        print(f"{quality}: the choice takes the time of {found['frames']:.0f} frames of {found['ms a frame']:.1f} ms")
    measurement.save("choices", {"seed": arguments.seed, "rows": rows, "cost": costs})


if __name__ == "__main__":
    main()
