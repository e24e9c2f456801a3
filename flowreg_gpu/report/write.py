"""A report from files: what `flowreg-gpu report` and `register --report` do."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from flowreg_gpu.io import FrameReader, PathLike, TiffReader, check_output, open_flow_reader
from flowreg_gpu.registration.files import statistics_name
from flowreg_gpu.registration.results import read_results
from flowreg_gpu.registration.scan_offset import ScanReader
from flowreg_gpu.registration.summary import Summary
from flowreg_gpu.report.collect import collect
from flowreg_gpu.report.data import ReportData
from flowreg_gpu.report.figures import save_figures
from flowreg_gpu.report.page import write_page

__all__ = ["check_report", "report_name", "write_report"]


def report_name(registered: PathLike) -> Path:
    """Where the report of a registered recording goes unless it is named: beside it."""
    path = Path(registered)
    return path.with_name(f"{path.stem}_report.html")


def check_report(target: PathLike, inputs: Sequence[PathLike] = (), *, overwrite: bool = False) -> None:
    """Raise ValueError or FileExistsError for a page that cannot be written."""
    if Path(target).suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"report {os.fspath(target)!r} does not end in .html or .htm")
    check_output(target, [os.fspath(path) for path in inputs], overwrite=overwrite)


def write_report(
    target: PathLike | None,
    registered: PathLike,
    original: PathLike | Sequence[PathLike],
    flow: PathLike | None = None,
    *,
    summary: Summary | None = None,
    figures: PathLike | None = None,
    verify_motion: bool = False,
    axes: str | None = None,
    channels: int | None = None,
    paths: bool = False,
    overwrite: bool = False,
    warnings: Sequence[str] = (),
) -> ReportData:
    """Write a page that shows what a registration has done, in one file that needs no network.

    Some frames of both recordings are read, in one pass: a thousand at most, whatever their number.

    Parameters
    ----------
    target : path or None
        The page, .html; None writes figures only.
    registered, original : path, or sequence of paths for the latter
        The recording after and before registration, TIFF.
    flow : path or None
        Flow of every frame, as `register_file` writes it: the page shows that of the frames that moved most.
    summary : Summary or None
        What `register_file` has returned. None takes the file of statistics beside `registered`; where there is none,
        the page shows the frames alone.
    figures : path or None
        Folder for the same pictures as PNG files.
    verify_motion : bool
        Whether the motion that is left is measured, where `summary` does not have it; the time of some twenty frames.
    axes, channels : str, int or None
        As in `register_file`.
    paths : bool
        Whether the page names files with their folders.
    overwrite : bool
        Whether files may be replaced.
    warnings : sequence of str
        Of the run, for the page.

    Returns
    -------
    ReportData
        What the page shows.

    Raises
    ------
    ValueError, OSError
        Recordings that do not belong together or cannot be read, or a page that exists or cannot be written.
    ModuleNotFoundError
        A library that draws is not installed.
    """
    sources = [original] if isinstance(original, str | os.PathLike) else list(original)
    inputs = [registered, *sources, *([] if flow is None else [flow])]
    if target is not None:
        check_report(target, inputs, overwrite=overwrite)
    summary = summary or _stored_summary(registered)
    with contextlib.ExitStack() as stack:
        before: FrameReader = stack.enter_context(TiffReader(sources, axes=axes, channels=channels))
        after = stack.enter_context(TiffReader(registered, axes=axes, channels=channels))
        flows = None if flow is None else stack.enter_context(open_flow_reader(flow))
        if summary is not None and summary.scan_offset.pixels:
            before = ScanReader(before, summary.scan_offset.pixels)
        _check_sizes(before, after, summary)
        data = collect(
            before,
            after,
            summary,
            flows,
            title=Path(registered).name,
            files=_named(registered, sources, flow, paths),
            motion=verify_motion,
            warnings=warnings,
        )
    if target is not None:
        write_page(target, data, overwrite=overwrite)
    if figures is not None:
        save_figures(figures, data, overwrite=overwrite)
    return data


def _stored_summary(registered: PathLike) -> Summary | None:
    path = statistics_name(registered)
    return read_results(path) if path.exists() else None


def _check_sizes(before: FrameReader, after: FrameReader, summary: Summary | None) -> None:
    """Raise ValueError unless the recordings are one, before and after registration."""
    if after.shape != before.shape:
        raise ValueError(
            f"the registered recording is {after.shape} (T, H, W, C), expected {before.shape} as the original"
        )
    if summary is not None and summary.n_frames != after.n_frames:
        raise ValueError(f"the statistics are of {summary.n_frames} frames, expected {after.n_frames}")


def _named(registered: PathLike, sources: Sequence[PathLike], flow: PathLike | None, paths: bool) -> dict[str, str]:
    """What the files are, and their names."""

    def name(path: PathLike) -> str:
        return os.path.abspath(path) if paths else os.path.basename(os.fspath(path))

    named = {"original": ", ".join(map(name, sources)), "registered": name(registered)}
    return named if flow is None else {**named, "flow": name(flow)}
