"""`flowreg-gpu demo`: a movie with known motion, registered and measured; the first thing to run after installing."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile

from flowreg_gpu.cli.options import add_execution, add_keeping
from flowreg_gpu.cli.progress import ProgressBar
from flowreg_gpu.cli.status import WRONG_USAGE, attempt, say, tell
from flowreg_gpu.executors import BaseExecutor, create_executor
from flowreg_gpu.io import check_output
from flowreg_gpu.registration.api import register_file
from flowreg_gpu.registration.loop import StageProgress
from flowreg_gpu.registration.summary import Summary
from flowreg_gpu.synthetic import end_point_error, make_movie

__all__ = ["DemoResult", "add_arguments", "run", "run_demo"]


class DemoResult(NamedTuple):
    """Files that the demo wrote, its summary, and end-point errors (pixels) without and with registration."""

    movie: Path
    registered: Path
    true_flow: Path
    summary: Summary
    error_before: float
    error_after: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "--output", default="flowreg_gpu_demo", metavar="FOLDER", help="where the files go (%(default)s)"
    )
    add_keeping(parser)
    add_execution(parser)


def run(chosen: argparse.Namespace) -> int:
    """Make the movie, register it, and print the error; the exit status."""
    try:
        executor = create_executor(chosen.executor, chosen.workers)
        _files(chosen.output, chosen.overwrite)
    except (ValueError, OSError) as error:
        return say(error, WRONG_USAGE)
    tell("two-channel movie with known motion; the first run compiles the CPU kernels, half a minute")

    def work() -> None:
        with executor, ProgressBar(not chosen.no_progress) as bar:
            result = run_demo(chosen.output, executor, progress=bar, overwrite=chosen.overwrite)
        tell(
            result.summary,
            f"end-point error: {result.error_before:.3f} px without, {result.error_after:.3f} px with registration",
            f"movie: {result.movie}",
            f"registered: {result.registered}",
            f"true flow: {result.true_flow}",
        )

    return attempt(work)


def run_demo(
    folder: str | os.PathLike[str],
    executor: str | BaseExecutor = "auto",
    n_workers: int | None = None,
    progress: StageProgress | None = None,
    *,
    overwrite: bool = False,
) -> DemoResult:
    """Write a movie with known motion into `folder`, register it from file to file, and measure the flow.

    Raises
    ------
    OSError
        The folder cannot be made or written, or holds one of the files and `overwrite` is False.
    """
    source, registered, flow_file, true_file = _files(folder, overwrite)
    movie, reference, truth = make_movie()
    tifffile.imwrite(source, movie.transpose(0, 3, 1, 2), imagej=True, metadata={"axes": "TCYX"})
    tifffile.imwrite(true_file, truth, metadata={"axes": "TYXC"}, photometric="minisblack")
    summary = register_file(
        source,
        registered,
        executor,
        reference,
        flow_file,
        n_workers=n_workers,
        overwrite=overwrite,
        progress=progress,
    )
    after = end_point_error(tifffile.imread(flow_file), truth)
    return DemoResult(source, registered, true_file, summary, end_point_error(np.zeros_like(truth), truth), after)


def _files(folder: str | os.PathLike[str], overwrite: bool) -> list[Path]:
    """Movie, registered movie, flow and true flow in a folder, which is made; FileExistsError where one is there."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / name for name in ("demo.tif", "demo_registered.tif", "demo_flow.tif", "demo_true_flow.tif")]
    for file in files:
        check_output(file, overwrite=overwrite)
    return files
