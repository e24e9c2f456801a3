"""`flowreg-gpu register`: a recording from file to file."""

from __future__ import annotations

import argparse

from flowreg_gpu.cli.options import add_execution, add_keeping, add_options, chosen_options, whole_number
from flowreg_gpu.cli.progress import ProgressBar
from flowreg_gpu.cli.status import FAILED, WRONG_USAGE, attempt, say, tell
from flowreg_gpu.registration.files import FileRegistration
from flowreg_gpu.registration.reference import DEFAULT_FRAMES

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.description = "Register a TIFF recording to a reference; several inputs are one recording."
    parser.add_argument(
        "files",
        nargs="+",
        metavar="IN",
        help="TIFF, ImageJ, OME-TIFF or ScanImage recording; without -o, the last is OUT",
    )
    parser.add_argument("-o", "--output", metavar="OUT", help="registered TIFF, with the input's shape, axes and dtype")
    add_keeping(parser)
    parser.add_argument(
        "--resume", action="store_true", help="go on with a run of the same arguments that ended early, if there is one"
    )
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
    parser.add_argument(
        "--memory", metavar="SIZE", help="limit of process, workers and shared memory, e.g. 2GB: for smaller batches"
    )
    add_execution(parser)
    add_options(parser)


def run(chosen: argparse.Namespace) -> int:
    """Check everything, register, and say what came out; the exit status."""
    try:
        inputs, output = _files(chosen)
        registration = FileRegistration(
            inputs,
            output,
            chosen.flow,
            axes=chosen.axes,
            channels=chosen.channels,
            reference=_reference(chosen.reference),
            executor=chosen.executor,
            options=chosen_options(chosen),
            n_workers=chosen.workers,
            batch=chosen.batch,
            verify=chosen.verify,
            memory=chosen.memory,
            resume=chosen.resume,
            overwrite=chosen.overwrite,
        )
    except (ValueError, TypeError, OSError, ModuleNotFoundError) as error:
        return say(error, WRONG_USAGE)

    def work() -> int:
        with registration, ProgressBar(not chosen.no_progress) as bar:
            tell(registration.registration.memory)
            if registration.resumed_at:
                tell(f"going on after {registration.resumed_at} frames of an earlier run")
            summary = registration.run(bar)
        tell(summary, f"registered: {output}", f"statistics: {registration.statistics_file}")
        if chosen.flow:
            tell(f"flow: {chosen.flow}")
        return FAILED if summary.changed_inputs else 0

    return attempt(work)


def _files(chosen: argparse.Namespace) -> tuple[list[str], str]:
    """Inputs and output."""
    if chosen.output is not None:
        return chosen.files, chosen.output
    *inputs, output = chosen.files
    if not inputs:
        raise ValueError(f"{output!r} is the only file named, expected an input and an output: IN -o OUT")
    if chosen.overwrite and len(inputs) > 1:
        # register raw_*.tif --overwrite, with OUT forgotten, would replace a recording
        raise ValueError("with several inputs, --overwrite needs the output named by -o OUT")
    return inputs, output


def _reference(text: str | None) -> str | slice | None:
    """Frames 'START:STOP' (either may be missing), else a file."""
    if text is None or ":" not in text:
        return text
    parts = text.split(":")
    if len(parts) != 2 or not all(part.strip().lstrip("-").isdigit() or not part.strip() for part in parts):
        return text  # a file whose name has a colon
    start, stop = (int(part) if part.strip() else None for part in parts)
    return slice(start, stop)
