"""The command `flowreg-gpu`; `main` runs it."""

from flowreg_gpu.cli.main import main

__all__ = ["main"]
