"""`flowreg-gpu benchmark`: every executor on this machine, and pyflowreg where it is installed."""

from __future__ import annotations

import argparse

from tqdm import tqdm

from flowreg_gpu.benchmark.rivals import BACKENDS
from flowreg_gpu.benchmark.run import Settings, run_benchmark
from flowreg_gpu.cli.options import add_keeping, whole_number
from flowreg_gpu.cli.status import WRONG_USAGE, attempt, say, tell
from flowreg_gpu.executors import EXECUTORS
from flowreg_gpu.io import check_output
from flowreg_gpu.options import PRESETS

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.description = (
        "Register a movie with known motion from file to file with every executor, compare the results "
        "with those of the sequential one, and print one table."
    )
    parser.add_argument("--frames", type=whole_number, metavar="N", help="of every recording (what takes some seconds)")
    height, width = size = Settings.height, Settings.width
    parser.add_argument("--size", type=_size, default=size, metavar="HxW", help=f"of the frames ({height}x{width})")
    parser.add_argument(
        "--channels", type=whole_number, default=Settings.channels, metavar="C", help="1 or 2 (%(default)s)"
    )
    parser.add_argument(
        "--quality",
        nargs="+",
        action="extend",
        metavar="Q",
        help=f"{', '.join(PRESETS)}, or all ({', '.join(Settings.qualities)})",
    )
    parser.add_argument(
        "--executor",
        nargs="+",
        action="extend",
        metavar="NAME",
        help=f"{', '.join([*sorted(EXECUTORS), *BACKENDS])} (all that can run)",
    )
    parser.add_argument("--workers", type=whole_number, metavar="N", help="workers of each executor (one per CPU)")
    parser.add_argument("--json", metavar="FILE", help="keep all figures, options and versions")
    add_keeping(parser)
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")


def _size(text: str) -> tuple[int, int]:
    """Parse '512x512', rows first."""
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is not rows x columns, e.g. 512x512")
    return int(sides[0]), int(sides[1])


def run(chosen: argparse.Namespace) -> int:
    """Measure, and print the table; the exit status."""
    qualities = dict.fromkeys(chosen.quality or Settings.qualities)
    try:
        settings = Settings(
            height=chosen.size[0],
            width=chosen.size[1],
            channels=chosen.channels,
            qualities=tuple(PRESETS if "all" in qualities else qualities),
            executors=tuple(chosen.executor) if chosen.executor else None,
            workers=chosen.workers,
            frames=chosen.frames,
        )
        if chosen.json is not None:
            check_output(chosen.json, overwrite=chosen.overwrite)
    except (ValueError, TypeError, OSError) as error:
        return say(error, WRONG_USAGE)

    def work() -> None:
        # None: only where standard error is a terminal
        with tqdm(unit="row", disable=True if chosen.no_progress else None, leave=False) as bar:

            def progress(row: str, finished: int, total: int) -> None:
                bar.total = total
                bar.set_description(row)
                bar.update(finished - bar.n)

            report = run_benchmark(settings, progress)
        tell(report)
        if chosen.json is not None:
            report.save(chosen.json, overwrite=chosen.overwrite)
            tell("", f"figures: {chosen.json}")
        if report.failures:
            raise RuntimeError("; ".join(report.failures))

    return attempt(work)
