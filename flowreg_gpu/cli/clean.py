"""`flowreg-gpu clean`: what runs that died have left is removed."""

from __future__ import annotations

import argparse

from flowreg_gpu.cli.status import WRONG_USAGE, attempt, say, tell
from flowreg_gpu.registration.leftovers import find_leftovers, remove_leftover
from flowreg_gpu.workers.blocks import leftover_blocks, remove_leftover_blocks

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.description = (
        "Remove the partial files and journals that runs which ended early have left in a folder, with the frames in "
        "them, and the shared memory of dead processes. Living runs are left alone."
    )
    parser.add_argument("folder", metavar="FOLDER", help="where the outputs were to go; folders in it are left alone")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be removed")


def run(chosen: argparse.Namespace) -> int:
    """Remove, and say what; the exit status."""
    try:
        leftovers, left_alone = find_leftovers(chosen.folder)
    except OSError as error:
        return say(error, WRONG_USAGE)
    verb = "would remove" if chosen.dry_run else "removed"

    def work() -> None:
        for leftover in leftovers:
            if not chosen.dry_run:
                remove_leftover(leftover)
            for path in (*leftover.files, leftover.journal):
                tell(f"{verb} {path}")
            tell(f"  {leftover.finished} of {leftover.n_frames} frames, {leftover.n_bytes / 1e6:.1f} MB on the disk")
        for line in left_alone:
            tell(f"left alone: {line}")
        for name in leftover_blocks() if chosen.dry_run else remove_leftover_blocks():
            tell(f"{verb} the shared memory {name}")
        if not leftovers and not left_alone:
            tell("no partial files")

    return attempt(work)
