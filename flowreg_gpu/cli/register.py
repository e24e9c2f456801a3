"""`flowreg-gpu register`: a recording from file to file."""

from __future__ import annotations

import argparse

from flowreg_gpu.cli.options import add_execution, add_options, chosen_options, parse_reference, whole_number
from flowreg_gpu.cli.progress import ProgressBar
from flowreg_gpu.cli.status import WRONG_USAGE, attempt, say
from flowreg_gpu.registration.files import FileRegistration
from flowreg_gpu.registration.reference import DEFAULT_FRAMES

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.description = "Register a TIFF recording to a reference; several inputs are one recording."
    parser.add_argument("input", nargs="+", metavar="IN", help="TIFF, ImageJ, OME-TIFF or ScanImage recording")
    parser.add_argument("output", metavar="OUT", help="registered TIFF, with the input's shape, axes and dtype")
    frames = f"{DEFAULT_FRAMES.start}:{DEFAULT_FRAMES.stop}"
    parser.add_argument(
        "--reference", metavar="R", help=f"image file, taken as it is, or frames START:STOP, averaged ({frames})"
    )
    parser.add_argument("--flow", metavar="FILE", help="keep the flow: .h5, .hdf5, .tif or .tiff")
    parser.add_argument("--axes", help="axes of the stored array where the file is silent, e.g. TCYX")
    parser.add_argument("--channels", type=whole_number, metavar="N", help="channels of an interleaved stack")
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
    add_execution(parser)
    add_options(parser)


def run(chosen: argparse.Namespace) -> int:
    """Check everything, register, and say what came out; the exit status."""
    try:
        registration = FileRegistration(
            chosen.input,
            chosen.output,
            chosen.flow,
            axes=chosen.axes,
            channels=chosen.channels,
            reference=parse_reference(chosen.reference),
            executor=chosen.executor,
            options=chosen_options(chosen),
            n_workers=chosen.workers,
            batch=chosen.batch,
            verify=chosen.verify,
        )
    except (ValueError, TypeError, OSError, ModuleNotFoundError) as error:
        return say(error, WRONG_USAGE)

    def work() -> None:
        with registration, ProgressBar(not chosen.no_progress) as bar:
            summary = registration.run(bar)
        print(summary)
        print(f"registered: {chosen.output}\nstatistics: {registration.statistics_file}")
        if chosen.flow:
            print(f"flow: {chosen.flow}")

    return attempt(work)
