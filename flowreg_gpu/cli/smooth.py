"""`flowreg-gpu smooth`: a Gaussian filter in space and time, from file to file."""

from __future__ import annotations

import argparse
import math

from flowreg_gpu.cli.options import add_keeping, add_layout, whole_number
from flowreg_gpu.cli.progress import ProgressBar
from flowreg_gpu.cli.status import WRONG_USAGE, attempt, say, tell
from flowreg_gpu.registration.smoothing import SMOOTHING_EXECUTORS, FileSmoothing

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.description = (
        "Filter a TIFF recording by a Gaussian in space and time, on a GPU where there is one, else on all cores; "
        "the result is the same."
    )
    parser.add_argument("input", metavar="IN", help="TIFF, ImageJ, OME-TIFF or ScanImage recording")
    parser.add_argument("output", metavar="OUT", help="filtered TIFF, with the input's shape, axes and dtype")
    parser.add_argument(
        "--sigma",
        nargs=3,
        type=_deviation,
        default=(1.0, 1.0, 0.0),
        metavar=("ROWS", "COLUMNS", "TIME"),
        help="standard deviations in pixels and frames; 0 does not filter (1 1 0)",
    )
    add_layout(parser)
    parser.add_argument(
        "--batch", type=whole_number, metavar="N", help="frames filtered at a time; never changes the result"
    )
    parser.add_argument(
        "--executor",
        choices=SMOOTHING_EXECUTORS,
        default="auto",
        help="who does the work; never changes the result (auto)",
    )
    parser.add_argument("--workers", type=whole_number, metavar="N", help="threads (one per CPU)")
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")
    add_keeping(parser)


def run(chosen: argparse.Namespace) -> int:
    """Check everything, filter, and say where the result is; the exit status."""
    try:
        smoothing = FileSmoothing(
            chosen.input,
            chosen.output,
            chosen.sigma,
            chosen.executor,
            axes=chosen.axes,
            channels=chosen.channels,
            n_workers=chosen.workers,
            batch=chosen.batch,
            overwrite=chosen.overwrite,
        )
    except (ValueError, TypeError, OSError) as error:
        return say(error, WRONG_USAGE)

    def work() -> None:
        with smoothing, ProgressBar(not chosen.no_progress) as bar:
            smoothing.run(bar)
        tell(f"smoothed: {chosen.output} ({smoothing.backend})")

    return attempt(work)


def _deviation(text: str) -> float:
    """Parse a standard deviation."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on")
    return value
