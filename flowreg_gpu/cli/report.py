"""`flowreg-gpu report`: a page that shows what a registration has done."""

from __future__ import annotations

import argparse
import json

from flowreg_gpu.cli.options import add_keeping, add_layout
from flowreg_gpu.cli.status import WRONG_USAGE, attempt, say, tell
from flowreg_gpu.report.page import figures_of
from flowreg_gpu.report.write import report_name, write_report

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.description = (
        "Show what a registration has done: one page to look at in a browser, with a verdict in words. The statistics "
        "that register wrote beside its output are used where they are there."
    )
    parser.add_argument("registered", metavar="REGISTERED", help="registered TIFF recording")
    parser.add_argument("--original", nargs="+", metavar="IN", required=True, help="the recording before registration")
    parser.add_argument("--flow", metavar="FILE", help="flow that register kept: shows that of the worst frames")
    parser.add_argument("-o", "--output", metavar="FILE", help="the page, .html (beside REGISTERED)")
    parser.add_argument("--figures", metavar="FOLDER", help="write the pictures as PNG files, too")
    parser.add_argument("--verify-motion", action="store_true", help="measure the motion that is left in some frames")
    parser.add_argument("--json", action="store_true", help="print verdict and measures as JSON")
    parser.add_argument("--paths", action="store_true", help="name files with their folders in the page")
    add_layout(parser)
    add_keeping(parser)


def run(chosen: argparse.Namespace) -> int:
    """Read, write the page, and say the verdict; the exit status."""
    target = chosen.output or report_name(chosen.registered)

    def work() -> int:
        try:
            data = write_report(
                target,
                chosen.registered,
                chosen.original,
                chosen.flow,
                figures=chosen.figures,
                verify_motion=chosen.verify_motion,
                axes=chosen.axes,
                channels=chosen.channels,
                paths=chosen.paths,
                overwrite=chosen.overwrite,
            )
        except (ValueError, TypeError, OSError, ModuleNotFoundError) as error:
            return say(error, WRONG_USAGE)
        if chosen.json:
            tell(json.dumps(figures_of(data), indent=1))
        else:
            tell(data.verdict, f"report: {target}")
        return 0

    return attempt(work)
