"""Flags of the command line: those of `flowreg_gpu.Options`, made from its fields, and those of several commands."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from flowreg_gpu.executors import EXECUTORS
from flowreg_gpu.options import AUTO, Options
from flowreg_gpu.registration.reference import DEFAULT_FRAMES

__all__ = [
    "add_execution",
    "add_files",
    "add_keeping",
    "add_layout",
    "add_options",
    "add_reading",
    "chosen_files",
    "chosen_options",
    "parse_bad_frames",
    "parse_reference",
    "whole_number",
]

Value = TypeVar("Value")


def add_execution(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say who does the work; they never change a result."""
    parser.add_argument(
        "--executor", default="auto", help=f"{', '.join(sorted(EXECUTORS))}, or auto, the best there is (%(default)s)"
    )
    parser.add_argument("--workers", type=whole_number, metavar="N", help="workers of the executor (one per CPU)")
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")


def add_files(parser: argparse.ArgumentParser, result: str) -> None:
    """Add the inputs and the output, which holds a `result`, and whether that may replace a file."""
    parser.add_argument(
        "files",
        nargs="+",
        metavar="IN",
        help="TIFF, ImageJ, OME-TIFF or ScanImage recording; without -o, the last is OUT",
    )
    parser.add_argument("-o", "--output", metavar="OUT", help=f"{result} TIFF, with the input's shape, axes and dtype")
    add_keeping(parser)


def add_keeping(parser: argparse.ArgumentParser) -> None:
    """Add the flag without which no file is replaced."""
    parser.add_argument("--overwrite", action="store_true", help="replace outputs, complete or partial, that exist")


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how a recording is read, and what its reference is."""
    frames = f"{DEFAULT_FRAMES.start}:{DEFAULT_FRAMES.stop}"
    parser.add_argument(
        "--reference",
        metavar="R",
        help="image file, taken as it is, or frames START:STOP, averaged; auto chooses frames that are alike and at "
        f"rest ({frames})",
    )
    parser.add_argument(
        "--bad-frames",
        default="auto",
        metavar="B",
        help="frames left as they are: auto finds those without an image; none; a file with a number on every line; or "
        "numbers and ranges, e.g. 7,50:60 (%(default)s)",
    )
    add_layout(parser)


def add_layout(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how the pages of a recording are meant."""
    parser.add_argument("--axes", help="axes of the stored array where the file is silent, e.g. TCYX")
    parser.add_argument("--channels", type=whole_number, metavar="N", help="channels of an interleaved stack")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add --options, and a flag for every parameter of `Options`."""
    group = parser.add_argument_group("flow model", "Names, meaning and defaults are those of flowreg_gpu.Options.")
    group.add_argument("--options", metavar="FILE", help="TOML or JSON file of options; the ones below override it")
    for field in dataclasses.fields(Options):
        flags = [f"--{field.name.replace('_', '-')}", *([f"--{field.name}"] if "_" in field.name else [])]
        group.add_argument(*flags, dest=f"option_{field.name}", type=_parser(field), metavar="X", help=_help(field))


def chosen_files(chosen: argparse.Namespace) -> tuple[list[str], str]:
    """Inputs and output; ValueError where one is missing, or where an input could be taken for the output."""
    if chosen.output is not None:
        return chosen.files, chosen.output
    *inputs, output = chosen.files
    if not inputs:
        raise ValueError(f"{output!r} is the only file named, expected an input and an output: IN -o OUT")
    if chosen.overwrite and len(inputs) > 1:
        # raw_*.tif --overwrite, with OUT forgotten, would replace a recording
        raise ValueError("with several inputs, --overwrite needs the output named by -o OUT")
    return inputs, output


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


def parse_reference(text: str | None) -> str | slice | None:
    """'auto', or frames 'START:STOP' (either may be missing), else a file, './auto' for one of that name."""
    if text is None or ":" not in text:
        return text
    parts = text.split(":")
    if len(parts) != 2 or not all(part.strip().lstrip("-").isdigit() or not part.strip() for part in parts):
        return text  # a file whose name has a colon
    start, stop = (int(part) if part.strip() else None for part in parts)
    return slice(start, stop)


def parse_bad_frames(text: str) -> str | list[int] | None:
    """'auto', 'none', or numbers and ranges 'I,J,A:B'; anything else is a file."""
    if text in ("auto", "none"):
        return text if text == "auto" else None
    numbers: list[int] = []
    for item in text.split(","):
        parts = item.split(":")
        if len(parts) > 2 or not all(part.strip().isdecimal() for part in parts):
            return text
        start = int(parts[0])
        numbers += range(start, int(parts[1])) if len(parts) == 2 else [start]
    return numbers


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


def whole_number(text: str) -> int:
    """Parse '8', of a flag that argparse then names."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def _parser(field: dataclasses.Field[Any]) -> Callable[[str], Any]:
    """What turns the text of a flag into a value; where it cannot, argparse is told what the flag takes."""
    parse, form = _FORMS[str(field.type).removesuffix(" | str")]
    limits = field.metadata["limits"]
    expected = form if limits is None else f"{form}, from {limits[0]:g} to {limits[1]:g}"
    words = [AUTO] if field.default == AUTO else []
    expected = ", nor ".join([expected, *map(repr, words)])

    def parse_or_explain(text: str) -> Any:
        try:
            return text if text in words else parse(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {expected}") from None

    return parse_or_explain


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
        raise ValueError(text)
    return text.lower() == "true"


#: How the text of a flag is parsed, and what it has to be, by the annotation of its field.
_FORMS: dict[str, tuple[Callable[[str], Any], str]] = {
    "bool": (_switch, "true or false"),
    "float": (float, "a number"),
    "float | None": (float, "a number"),
    "float | tuple[float, float]": (_numbers, "one number, or two with a comma between"),
    "int": (int, "a whole number"),
    "int | None": (int, "a whole number"),
    "int | tuple[int, int]": (_whole_numbers, "one whole number, or two with a comma between"),
    "Sequence[float] | Sequence[Sequence[float]]": (
        _rows,
        "three numbers with commas between, or such a triple for each channel with semicolons between",
    ),
    "str": (str, "a word"),
    "tuple[float, ...] | None": (_several, "numbers with commas between"),
    "Weight": (_several, "numbers with commas between, one for each channel"),
}
