"""`flowreg-gpu register`: a recording from file to file."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

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
from flowreg_gpu.cli.trace import displacement_trace
from flowreg_gpu.registration.files import FileRegistration
from flowreg_gpu.registration.summary import Summary

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
        "--report",
        nargs="?",
        const="",
        metavar="FILE",
        help="write a page that shows what the registration has done, .html (beside OUT); needs flowreg-gpu[report]",
    )
    parser.add_argument("--figures", metavar="FOLDER", help="with --report, write its pictures as PNG files, too")
    parser.add_argument("--verify-motion", action="store_true", help="measure the motion that is left in some frames")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON, and no text")
    parser.add_argument(
        "--memory", metavar="SIZE", help="limit of process, workers and shared memory, e.g. 2GB: for smaller batches"
    )
    add_execution(parser)
    add_options(parser)


def run(chosen: argparse.Namespace) -> int:
    """Check everything, register, and say what came out; the exit status."""
    try:
        inputs, output = chosen_files(chosen)
        report = _report(chosen, inputs, output)
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
            verify_motion=chosen.verify_motion,
        )
    except (ValueError, TypeError, OSError, ModuleNotFoundError) as error:
        return say(error, WRONG_USAGE)

    say_text = (lambda *lines: None) if chosen.json else tell

    def work() -> int:
        with registration, ProgressBar(not chosen.no_progress) as bar:
            if registration.resumed_at:
                say_text(f"going on after {registration.resumed_at} frames of an earlier run")
            say_text(registration.registration.memory)
            summary = registration.run(bar)
        say_text(summary, *displacement_trace(summary.statistics["mean_disp"]))
        say_text(f"registered: {output}", f"statistics: {registration.statistics_file}")
        if chosen.flow:
            say_text(f"flow: {chosen.flow}")
        if report is not None:
            _write_report(chosen, report, inputs, output, summary)
            say_text(f"report: {report}")
        if chosen.json:
            tell(json.dumps(summary.to_dict(), indent=1))
        return FAILED if summary.changed_inputs else 0

    return attempt(work)


def _report(chosen: argparse.Namespace, inputs: list[str], output: str) -> Path | None:
    """Where the report goes, checked; None where none is asked for. Only then, the libraries that draw are loaded."""
    if chosen.report is None:
        if chosen.figures is not None:
            raise ValueError("--figures needs --report: they are its pictures")
        return None
    from flowreg_gpu.report.write import check_report, report_name

    report = Path(chosen.report or report_name(output))
    check_report(report, inputs, overwrite=chosen.overwrite)
    return report


def _write_report(chosen: argparse.Namespace, report: Path, inputs: list[str], output: str, summary: Summary) -> None:
    from flowreg_gpu.report.write import write_report

    write_report(
        report,
        output,
        inputs,
        chosen.flow,
        summary=summary,
        figures=chosen.figures,
        axes=chosen.axes,
        channels=chosen.channels,
        overwrite=chosen.overwrite,
    )
