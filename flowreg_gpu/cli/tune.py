"""`flowreg-gpu tune`: what each smoothness would do to a recording, and which one would be chosen."""

from __future__ import annotations

import argparse
import dataclasses
import json

from flowreg_gpu.cli.options import (
    add_execution,
    add_options,
    add_reading,
    chosen_options,
    parse_bad_frames,
    parse_reference,
)
from flowreg_gpu.cli.progress import ProgressBar
from flowreg_gpu.cli.status import WRONG_USAGE, attempt, say, tell
from flowreg_gpu.io import TiffReader
from flowreg_gpu.registration.loop import Registration

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.description = (
        "Try every alpha on some frames of a recording: how much of the pixels that a flow has not seen it leaves "
        "unexplained (above the best; less is better), their correlation with the reference, the mean displacement, "
        "and the time of a frame. Nothing is written."
    )
    parser.add_argument("files", nargs="+", metavar="IN", help="TIFF, ImageJ, OME-TIFF or ScanImage recording")
    add_reading(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    add_execution(parser)
    add_options(parser)


def run(chosen: argparse.Namespace) -> int:
    """Check everything, try, and print a table; the exit status."""
    try:
        reader = TiffReader(chosen.files, axes=chosen.axes, channels=chosen.channels)
    except (ValueError, TypeError, OSError) as error:
        return say(error, WRONG_USAGE)
    with reader:
        try:
            registration = Registration(
                reader,
                parse_reference(chosen.reference),
                chosen.executor,
                chosen_options(chosen).replace(alpha="auto"),
                n_workers=chosen.workers,
                bad_frames=parse_bad_frames(chosen.bad_frames),
            )
        except (ValueError, TypeError, OSError, ModuleNotFoundError) as error:
            return say(error, WRONG_USAGE)

        def work() -> None:
            with ProgressBar(not chosen.no_progress) as bar:
                tuning = registration.tune(bar)
            tell(json.dumps(dataclasses.asdict(tuning), indent=1) if chosen.json else tuning)

        return attempt(work)
