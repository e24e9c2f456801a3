"""`flowreg-gpu apply`: a recording warped by a saved flow, from file to file."""

from __future__ import annotations

import argparse

from flowreg_gpu.cli.options import add_execution, add_files, add_layout, chosen_files, parse_reference, whole_number
from flowreg_gpu.cli.progress import ProgressBar
from flowreg_gpu.cli.status import FAILED, WRONG_USAGE, attempt, say, tell
from flowreg_gpu.registration.apply import FlowApplication

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.description = (
        "Warp a recording by the flow that 'flowreg-gpu register --flow' saved: another channel, or the same frames. "
        "Several inputs are one recording, of as many frames, rows and columns as the flow."
    )
    parser.add_argument("flow", metavar="FLOW", help="saved flow: .h5, .hdf5, .tif or .tiff")
    add_files(parser, "warped")
    parser.add_argument(
        "--reference",
        metavar="R",
        help="what lies outside a frame comes from it: image file, taken as it is, frames START:STOP, averaged, or "
        "auto (the one saved with the flow, if it was found on this recording; else as for register)",
    )
    parser.add_argument("--interpolation", metavar="X", help="cubic, linear or nearest (that of the flow's recording)")
    add_layout(parser)
    parser.add_argument("--batch", type=whole_number, metavar="N", help="frames computed at a time (by their size)")
    add_execution(parser)


def run(chosen: argparse.Namespace) -> int:
    """Check everything, warp, and say what came out; the exit status."""
    try:
        inputs, output = chosen_files(chosen)
        application = FlowApplication(
            chosen.flow,
            inputs,
            output,
            reference=parse_reference(chosen.reference),
            interpolation=chosen.interpolation,
            axes=chosen.axes,
            channels=chosen.channels,
            executor=chosen.executor,
            n_workers=chosen.workers,
            batch=chosen.batch,
            overwrite=chosen.overwrite,
        )
    except (ValueError, TypeError, OSError, ModuleNotFoundError) as error:
        return say(error, WRONG_USAGE)

    def work() -> int:
        with application, ProgressBar(not chosen.no_progress) as bar:
            summary = application.run(bar)
        tell(summary)
        tell(f"reference: {application.reference_source}", f"warped: {output}")
        return FAILED if summary.changed_inputs else 0

    return attempt(work)
