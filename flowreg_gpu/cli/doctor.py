"""`flowreg-gpu doctor`: what this machine offers and what would be used."""

from __future__ import annotations

import argparse

from flowreg_gpu.cli.status import tell
from flowreg_gpu.diagnostics import report

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command has no arguments."""


def run(chosen: argparse.Namespace) -> int:
    """Print the report; the exit status."""
    tell(report())
    return 0
