"""The file of statistics beside an output: what a run found out and was made with, for later programs and reports."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

import flowreg_gpu
from flowreg_gpu.io import PathLike
from flowreg_gpu.options import Options
from flowreg_gpu.quality.measures import FlowMap
from flowreg_gpu.registration.choices import Choices
from flowreg_gpu.registration.scan_offset import ScanOffset
from flowreg_gpu.registration.summary import COLUMNS, Summary

__all__ = ["read_results", "write_results"]

# Arrays of the flow per pixel, and attributes of `FlowMap`.
_FIELD = {"flow_mean": "mean", "flow_deviation": "deviation", "flow_outside": "outside"}


def write_results(file: BinaryIO, summary: Summary, inputs: Sequence[str]) -> None:
    """Write the statistics of every frame, the reference, and what the run was made with; the inputs by name.

    Nothing in it tells an interrupted run from one that was not.
    """
    assert summary.options is not None  # that of a run that estimates flows
    run = {
        "version": flowreg_gpu.__version__,
        "inputs": list(inputs),
        "options": summary.options.to_dict(),
        "choices": summary.choices.to_dict(),
        "scan_offset": float(summary.scan_offset.pixels),
        "nonfinite_pixels": summary.nonfinite_pixels,
    }
    arrays: dict[str, NDArray[Any]] = {
        **summary.statistics,
        "reference": summary.reference,
        "hot_pixels": summary.hot_pixels,
        "run": np.array(json.dumps(run)),
    }
    if summary.field is not None:
        field = summary.field
        arrays |= {name: getattr(field, attribute) for name, attribute in _FIELD.items()}
        arrays |= {"flow_frames": np.array(field.count), "valid": field.valid}
    np.savez(file, **arrays)  # type: ignore[arg-type]  # the stub mistakes names for flags


def read_results(path: PathLike) -> Summary:
    """The summary of a run, from its file of statistics, without times, executor and measures.

    Raises
    ------
    OSError
        No such file.
    ValueError
        Another file, or one that an older version wrote.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        run = json.loads(str(arrays["run"]))
        statistics = {name: arrays[name] for name in COLUMNS}
        return Summary(
            len(statistics["mean_disp"]),
            0.0,
            "",
            arrays["reference"],
            statistics,
            int(np.count_nonzero(statistics["constant"])),
            int(np.count_nonzero(statistics["diverged"])),
            run["nonfinite_pixels"],
            choices=Choices.from_dict(run["choices"]),
            scan_offset=ScanOffset(run["scan_offset"]),
            hot_pixels=arrays["hot_pixels"],
            options=Options.from_dict(run["options"]),
            field=_field(arrays),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{str(path)!r} is no file of statistics of this version of flowreg-gpu: {error}") from error


def _field(arrays: dict[str, NDArray[Any]]) -> FlowMap | None:
    """The flow per pixel, where it was measured."""
    if "flow_frames" not in arrays:
        return None
    return FlowMap(int(arrays["flow_frames"]), **{attribute: arrays[name] for name, attribute in _FIELD.items()})
