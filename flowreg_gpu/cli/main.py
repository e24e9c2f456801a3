"""The command `flowreg-gpu`: its commands, each in a module of its own that is loaded when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import warnings
from collections.abc import Sequence
from typing import Any

import flowreg_gpu
from flowreg_gpu.cli.status import INTERRUPTED, say, warn
from flowreg_gpu.cli.stop import Stopped, stopping_on_signals

__all__ = ["main"]

#: Commands, which are modules of this package with `add_arguments` and `run`, and a line about each.
COMMANDS = {
    "register": "register a TIFF recording",
    "tune": "try every smoothness on some frames, and say which one would be chosen",
    "report": "show what a registration has done: a page with a verdict",
    "apply": "warp a recording, such as another channel, by a saved flow",
    "demo": "make a movie with known motion, register it, and measure the error",
    "smooth": "filter a recording by a Gaussian in space and time",
    "clean": "remove what runs that died have left",
    "doctor": "say what this machine offers and what would be used",
    "benchmark": "measure every executor on this machine, and pyflowreg where it is installed",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status; without arguments it is the process's own, which then ends."""
    try:
        with (
            stopping_on_signals(until_exit=arguments is None),
            warnings.catch_warnings(),
        ):  # also of the libraries that a command's module loads
            warnings.simplefilter("always", RuntimeWarning)
            warnings.showwarning = _show_warning
            chosen = _parser().parse_args(arguments)
            status: int = chosen.run(chosen)
    except Stopped as signal:  # also while a command's module is loaded and its input is checked
        return say(signal, signal.status)
    except KeyboardInterrupt:
        return say(RuntimeError("interrupted"), INTERRUPTED)
    return status


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    warn(message)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flowreg-gpu", description="Remove motion from fluorescence-microscopy movies by dense optical flow."
    )
    parser.add_argument("--version", action="version", version=f"flowreg-gpu {flowreg_gpu.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=_CommandParser)
    for name, description in COMMANDS.items():
        commands.add_parser(name, help=description, command=name)
    return parser


class _CommandParser(argparse.ArgumentParser):
    """Parser of one command; its module is loaded, and says which arguments there are, when the command is met."""

    def __init__(self, *, command: str, **keywords: Any) -> None:
        super().__init__(**keywords)
        self._command: str | None = command

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, with the arguments that the command's module adds."""
        if self._command is not None:
            module = importlib.import_module(f"flowreg_gpu.cli.{self._command}")
            module.add_arguments(self)
            self.set_defaults(run=module.run)
            self._command = None
        return super().parse_known_args(args, namespace)
