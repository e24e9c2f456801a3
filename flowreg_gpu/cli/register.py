"""`flowreg-gpu register`: a recording from file to file."""

from __future__ import annotations

import argparse

from flowreg_gpu.cli.options import (
    add_execution,
    add_files,
    add_options,
    add_reading,
    chosen_files,
    chosen_options,
    parse_bad_frames,
    parse_reference,
    whole_number,
)
from flowreg_gpu.cli.progress import ProgressBar
from flowreg_gpu.cli.status import FAILED, WRONG_USAGE, attempt, say, tell
from flowreg_gpu.registration.files import FileRegistration

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.description = "Register a TIFF recording to a reference; several inputs are one recording."
    add_files(parser, "registered")
    parser.add_argument(
        "--resume", action="store_true", help="go on with a run of the same arguments that ended early, if there is one"
    )
    add_reading(parser)
    parser.add_argument("--flow", metavar="FILE", help="keep the flow: .h5, .hdf5, .tif or .tiff")
    parser.add_argument(
        "--batch", type=whole_number, metavar="N", help="frames computed at a time; never changes the result"
    )
    parser.add_argument(
        "--verify",
        type=whole_number,
        default=0,
        metavar="N",
        help="register N spread frames on the CPU too, and compare",
    )
    parser.add_argument(
        "--memory", metavar="SIZE", help="limit of process, workers and shared memory, e.g. 2GB: for smaller batches"
    )
    add_execution(parser)
    add_options(parser)


def run(chosen: argparse.Namespace) -> int:
    """Check everything, register, and say what came out; the exit status."""
    try:
        inputs, output = chosen_files(chosen)
        registration = FileRegistration(
            inputs,
            output,
            chosen.flow,
            axes=chosen.axes,
            channels=chosen.channels,
            reference=parse_reference(chosen.reference),
            executor=chosen.executor,
            options=chosen_options(chosen),
            n_workers=chosen.workers,
            batch=chosen.batch,
            verify=chosen.verify,
            bad_frames=parse_bad_frames(chosen.bad_frames),
            memory=chosen.memory,
            resume=chosen.resume,
            overwrite=chosen.overwrite,
        )
    except (ValueError, TypeError, OSError, ModuleNotFoundError) as error:
        return say(error, WRONG_USAGE)

    def work() -> int:
        with registration, ProgressBar(not chosen.no_progress) as bar:
            if registration.resumed_at:
                tell(f"going on after {registration.resumed_at} frames of an earlier run")
            tell(registration.registration.memory)
            summary = registration.run(bar)
        tell(summary, f"registered: {output}", f"statistics: {registration.statistics_file}")
        if chosen.flow:
            tell(f"flow: {chosen.flow}")
        return FAILED if summary.changed_inputs else 0

    return attempt(work)
