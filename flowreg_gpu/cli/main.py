"""The command `flowreg-gpu`: register, demo, doctor, benchmark.

Exit status: 0 success, 1 a run that failed, 2 wrong usage or unreadable input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import flowreg_gpu

__all__ = ["main"]

Value = TypeVar("Value")

FAILED, WRONG_USAGE, INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("always", RuntimeWarning)
        warnings.showwarning = _show_warning
        run: Callable[[argparse.Namespace], int] = chosen.run
        return run(chosen)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"flowreg-gpu: warning: {message}", file=sys.stderr)


def _say(error: BaseException, status: int) -> int:
    text = str(error) or type(error).__name__
    print(f"flowreg-gpu: error: {text}", file=sys.stderr)
    return status


def _attempt(run: Callable[[], None]) -> int:
    """Do the work that was checked; its faults are one line and an exit status."""
    try:
        run()
    except KeyboardInterrupt:
        return _say(RuntimeError("interrupted"), INTERRUPTED)
    except Exception as error:
        return _say(error, FAILED)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flowreg-gpu", description="Remove motion from fluorescence-microscopy movies by dense optical flow."
    )
    parser.add_argument("--version", action="version", version=f"flowreg-gpu {flowreg_gpu.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_register(commands)
    demo = commands.add_parser("demo", help="make a movie with known motion, register it, and measure the error")
    demo.add_argument("--output", default="flowreg_gpu_demo", metavar="FOLDER", help="where the files go (%(default)s)")
    _add_execution(demo)
    demo.set_defaults(run=_demo)
    doctor = commands.add_parser("doctor", help="say what this machine offers and what would be used")
    doctor.set_defaults(run=_doctor)
    _add_benchmark(commands)
    return parser


def _add_execution(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--executor", default="auto", help="gpu, multiprocessing, threading, sequential, or auto (the best there is)"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="workers of the executor (one per CPU)")
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")


def _add_register(commands: Any) -> None:
    parser = commands.add_parser(
        "register",
        help="register a TIFF recording",
        description="Register a TIFF recording to a reference; several inputs are one recording.",
    )
    parser.add_argument("input", nargs="+", metavar="IN", help="TIFF, ImageJ, OME-TIFF or ScanImage recording")
    parser.add_argument("output", metavar="OUT", help="registered TIFF, with the input's shape, axes and dtype")
    parser.add_argument(
        "--reference", metavar="R", help="image file, taken as it is, or frames START:STOP, averaged (50:500)"
    )
    parser.add_argument("--flow", metavar="FILE", help="keep the flow: .h5, .hdf5, .tif or .tiff")
    parser.add_argument("--axes", help="axes of the stored array where the file is silent, e.g. TCYX")
    parser.add_argument("--channels", type=int, metavar="N", help="channels of an interleaved stack")
    parser.add_argument("--batch", type=int, metavar="N", help="frames computed at a time; never changes the result")
    parser.add_argument(
        "--verify", type=int, default=0, metavar="N", help="register N spread frames on the CPU too, and compare"
    )
    _add_execution(parser)
    model = parser.add_argument_group("flow model", "Names, meaning and defaults are those of flowreg_gpu.Options.")
    model.add_argument("--options", metavar="FILE", help="TOML or JSON file of options; the ones below override it")
    for name, (parse, description) in _OPTIONS.items():
        flags = [f"--{name.replace('_', '-')}", *([f"--{name}"] if "_" in name else [])]
        model.add_argument(*flags, dest=f"option_{name}", type=parse, metavar="X", help=description)
    parser.set_defaults(run=_register)


def _add_benchmark(commands: Any) -> None:
    parser = commands.add_parser(
        "benchmark",
        help="measure every executor on this machine, and pyflowreg where it is installed",
        description="Register a movie with known motion from file to file with every executor, compare the results "
        "with those of the sequential one, and print one table.",
    )
    parser.add_argument("--frames", type=int, metavar="N", help="of every recording (what takes some seconds)")
    parser.add_argument("--size", type=_size, default=(512, 512), metavar="HxW", help="of the frames (512x512)")
    parser.add_argument("--channels", type=int, default=1, metavar="C", help="1 or 2 (%(default)s)")
    parser.add_argument(
        "--quality", nargs="+", action="extend", metavar="Q", help="quality, balanced, fast, or all (quality)"
    )
    parser.add_argument(
        "--executor",
        nargs="+",
        action="extend",
        metavar="NAME",
        help="gpu, multiprocessing, threading, sequential, pyflowreg, flowreg_cuda, flowreg_torch (all that can run)",
    )
    parser.add_argument("--workers", type=int, metavar="N", help="workers of each executor (one per CPU)")
    parser.add_argument("--json", metavar="FILE", help="keep all figures, options and versions")
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")
    parser.set_defaults(run=_benchmark)


def _size(text: str) -> tuple[int, int]:
    """Parse '512x512', rows first."""
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is not rows x columns, e.g. 512x512")
    return int(sides[0]), int(sides[1])


def _numbers(text: str) -> float | tuple[float, ...]:
    """Parse '4' or '2,6'."""
    return _unwrap(_several(text))


def _whole_numbers(text: str) -> int | tuple[int, ...]:
    """Parse '256' or '128,256'."""
    return _unwrap(tuple(int(item) for item in text.split(",")))


def _rows(text: str) -> tuple[float, ...] | tuple[tuple[float, ...], ...]:
    """Parse '1,1,0.1' or, per channel, '1,1,0.1;2,2,0.1'."""
    rows: tuple[tuple[float, ...], ...] = tuple(_several(row) for row in text.split(";"))
    return rows[0] if len(rows) == 1 else rows


def _several(text: str) -> tuple[float, ...]:
    return tuple(float(item) for item in text.split(","))


def _unwrap(values: tuple[Value, ...]) -> Value | tuple[Value, ...]:
    return values[0] if len(values) == 1 else values


def _switch(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is not true or false")
    return text.lower() == "true"


_OPTIONS: dict[str, tuple[Callable[[str], Any], str]] = {
    "alpha": (_numbers, "weight of the smoothness, one number or X,Y (1.5)"),
    "quality": (str, "quality, balanced or fast: finest level 0, 4 or 6 (quality)"),
    "min_level": (int, "finest pyramid level solved (from quality)"),
    "levels": (int, "largest number of pyramid levels (100)"),
    "eta": (float, "ratio of the sizes of neighbouring levels (0.8)"),
    "iterations": (int, "sweeps per level, solver sor (50)"),
    "update_lag": (int, "sweeps per refresh of the robust weights, solver sor (5)"),
    "a_smooth": (float, "exponent of the smoothness penalty (1)"),
    "a_data": (float, "exponent of the data penalty (0.45)"),
    "const_assumption": (str, "data term: gc (gradient), gray (brightness) or cs (census)"),
    "solver": (str, "auto, block, multigrid or sor (auto)"),
    "weight": (_several, "weight of each channel, e.g. 0.7,0.3"),
    "gnc_schedule": (_several, "stages of graduated non-convexity, e.g. 0,0.5,1"),
    "warping_steps": (int, "warps per level and stage of gnc_schedule (10)"),
    "sigma": (_rows, "Gaussian filter ROWS,COLUMNS,TIME; per channel with ; between (1,1,0.1)"),
    "channel_normalization": (str, "joint or separate (joint)"),
    "interpolation_method": (str, "cubic, linear or nearest (cubic)"),
    "cc_initialization": (_switch, "true: align frames rigidly first"),
    "cc_hw": (_whole_numbers, "largest side of the images of that alignment (256)"),
    "cc_up": (int, "its sub-pixel factor (1)"),
    "update_initialization_w": (_switch, "false: every frame starts from the first start flow"),
    "buffer_size": (int, "frames that share a start flow (400)"),
}


def _register(chosen: argparse.Namespace) -> int:
    from flowreg_gpu.options import Options
    from flowreg_gpu.registration.files import FileRegistration

    overrides = {
        name: getattr(chosen, f"option_{name}") for name in _OPTIONS if getattr(chosen, f"option_{name}") is not None
    }
    try:
        options = (Options.from_file(chosen.options) if chosen.options else Options()).replace(**overrides)
        registration = FileRegistration(
            chosen.input,
            chosen.output,
            chosen.flow,
            axes=chosen.axes,
            channels=chosen.channels,
            reference=_reference(chosen.reference),
            executor=chosen.executor,
            options=options,
            n_workers=chosen.workers,
            batch=chosen.batch,
            verify=chosen.verify,
        )
    except (ValueError, TypeError, OSError, ModuleNotFoundError) as error:
        return _say(error, WRONG_USAGE)

    def run() -> None:
        with registration, _ProgressBar(not chosen.no_progress) as bar:
            summary = registration.run(bar)
        print(summary)
        print(f"registered: {chosen.output}\nstatistics: {registration.statistics_file}")
        if chosen.flow:
            print(f"flow: {chosen.flow}")

    return _attempt(run)


def _reference(text: str | None) -> str | slice | None:
    """Frames 'START:STOP' (either may be missing), else a file."""
    if text is None or ":" not in text:
        return text
    parts = text.split(":")
    if len(parts) != 2 or not all(part.strip().lstrip("-").isdigit() or not part.strip() for part in parts):
        return text  # a file whose name has a colon
    start, stop = (int(part) if part.strip() else None for part in parts)
    return slice(start, stop)


def _demo(chosen: argparse.Namespace) -> int:
    from flowreg_gpu.executors import create_executor
    from flowreg_gpu.synthetic import run_demo

    try:
        executor = create_executor(chosen.executor, chosen.workers)
    except ValueError as error:
        return _say(error, WRONG_USAGE)
    print("two-channel movie with known motion; the first run compiles the CPU kernels, half a minute")

    def run() -> None:
        with executor, _ProgressBar(not chosen.no_progress) as bar:
            result = run_demo(chosen.output, executor, progress=bar)
        print(result.summary)
        print(f"end-point error: {result.error_before:.3f} px without, {result.error_after:.3f} px with registration")
        print(f"movie: {result.movie}\nregistered: {result.registered}\ntrue flow: {result.true_flow}")

    return _attempt(run)


def _doctor(chosen: argparse.Namespace) -> int:
    from flowreg_gpu.diagnostics import report

    print(report())
    return 0


def _benchmark(chosen: argparse.Namespace) -> int:
    from tqdm import tqdm

    from flowreg_gpu.benchmark.run import Settings, run_benchmark
    from flowreg_gpu.io import check_output
    from flowreg_gpu.options import PRESETS

    qualities = dict.fromkeys(chosen.quality or ("quality",))
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
            check_output(chosen.json)
    except (ValueError, TypeError, OSError) as error:
        return _say(error, WRONG_USAGE)

    def run() -> None:
        # None: only where standard error is a terminal
        with tqdm(unit="row", disable=True if chosen.no_progress else None, leave=False) as bar:

            def progress(row: str, finished: int, total: int) -> None:
                bar.total = total
                bar.set_description(row)
                bar.update(finished - bar.n)

            report = run_benchmark(settings, progress)
        print(report)
        if chosen.json is not None:
            report.save(chosen.json)
            print(f"\nfigures: {chosen.json}")
        if report.failures:
            raise RuntimeError("; ".join(report.failures))

    return _attempt(run)


class _ProgressBar:
    """One bar per stage, with frames per second and the time left, on a terminal's standard error."""

    _TITLES = {"reference": "building the reference", "start": "first start flow", "frames": "registering"}  # noqa: RUF012

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._stage = ""
        self._bar: Any = None

    def __call__(self, stage: str, finished: int, total: int) -> None:
        from tqdm import tqdm

        if stage != self._stage:
            self._close()
            self._stage = stage
            disable = None if self._enabled else True  # None: only where standard error is a terminal
            self._bar = tqdm(total=total, desc=self._TITLES[stage], unit="frame", disable=disable)
        self._bar.update(finished - self._bar.n if not self._bar.disable else 0)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> _ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
