"""Flags of the command line: those of `flowreg_gpu.Options`, made from its fields, and those of several commands."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from flowreg_gpu.executors import EXECUTORS
from flowreg_gpu.options import Options

__all__ = ["add_execution", "add_keeping", "add_options", "chosen_options"]

Value = TypeVar("Value")


def add_execution(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say who does the work; they never change a result."""
    parser.add_argument(
        "--executor", default="auto", help=f"{', '.join(sorted(EXECUTORS))}, or auto, the best there is (%(default)s)"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="workers of the executor (one per CPU)")
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")


def add_keeping(parser: argparse.ArgumentParser) -> None:
    """Add the flag without which no file is replaced."""
    parser.add_argument("--overwrite", action="store_true", help="replace outputs, complete or partial, that exist")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add --options, and a flag for every parameter of `Options`."""
    group = parser.add_argument_group("flow model", "Names, meaning and defaults are those of flowreg_gpu.Options.")
    group.add_argument("--options", metavar="FILE", help="TOML or JSON file of options; the ones below override it")
    for field in dataclasses.fields(Options):
        flags = [f"--{field.name.replace('_', '-')}", *([f"--{field.name}"] if "_" in field.name else [])]
        parse = _PARSERS[str(field.type)]
        group.add_argument(*flags, dest=f"option_{field.name}", type=parse, metavar="X", help=_help(field))


def chosen_options(chosen: argparse.Namespace) -> Options:
    """The options of the file, if one was given, with those of the flags in their place.

    Raises
    ------
    ValueError, TypeError, OSError
        As `Options.from_file` and `Options.replace`.
    """
    flags = {field.name: getattr(chosen, f"option_{field.name}") for field in dataclasses.fields(Options)}
    options = Options.from_file(chosen.options) if chosen.options else Options()
    return options.replace(**{name: value for name, value in flags.items() if value is not None})


def _help(field: dataclasses.Field[Any]) -> str:
    """Choices, description, and the default in brackets."""
    *most, last = field.metadata["choices"] or ("",)
    choices = f"{', '.join(most)} or {last}: " if most else ""
    default = field.metadata["none"] if field.default is None else _text(field.default)
    return f"{choices}{field.metadata['description']} ({default})"


def _text(value: Any) -> str:
    """A default as one would type it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


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
    """Parse '0.7,0.3'."""
    return tuple(float(item) for item in text.split(","))


def _unwrap(values: tuple[Value, ...]) -> Value | tuple[Value, ...]:
    return values[0] if len(values) == 1 else values


def _switch(text: str) -> bool:
    """Parse 'true' or 'false'."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is not true or false")
    return text.lower() == "true"


#: How the text of a flag is parsed, by the annotation of its field.
_PARSERS: dict[str, Callable[[str], Any]] = {
    "bool": _switch,
    "float": float,
    "float | tuple[float, float]": _numbers,
    "int": int,
    "int | None": int,
    "int | tuple[int, int]": _whole_numbers,
    "Sequence[float] | Sequence[Sequence[float]]": _rows,
    "str": str,
    "tuple[float, ...] | None": _several,
    "Weight": _several,
}
