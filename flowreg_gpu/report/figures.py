"""The pictures of a report, drawn by matplotlib."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray

from flowreg_gpu.io import PathLike, PendingFile
from flowreg_gpu.report.data import Kymograph, ReportData, WorstFlow

__all__ = ["draw_figures", "save_figures", "shared_contrast", "to_png", "to_svg"]

# Points of a line; with more frames, each point stands for several, by their smallest and largest value.
MOST_POINTS = 2000
# Largest side of a map, in pixels, and arrows along it.
MAP_SIDE, ARROWS = 512, 24
_WINDOW_BORDERS = 60  # with more windows, their borders would hide the lines
_STYLE = {"font.size": 9, "svg.fonttype": "none", "axes.spines.top": False, "axes.spines.right": False}


def draw_figures(data: ReportData) -> dict[str, Figure]:
    """Figures by their names: 'traces', 'images', 'field', 'worst', 'kymographs'; those that the data have."""
    figures = {}
    with rc_context(_STYLE):
        if data.statistics:
            figures["traces"] = _draw_traces(data)
        figures["images"] = _draw_images(data)
        if data.field is not None:
            figures["field"] = _draw_field(data)
        if data.worst:
            figures["worst"] = _draw_worst(data.worst)
        if data.kymographs:
            figures["kymographs"] = _draw_kymographs(data.kymographs)
    return figures


def save_figures(folder: PathLike, data: ReportData, *, overwrite: bool = False) -> list[Path]:
    """Write the figures as PNG files into a folder, which is made; their names.

    Raises
    ------
    FileExistsError
        One of them is there already, and `overwrite` is False.
    """
    folder, written = Path(folder), []
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in draw_figures(data).items():
        written.append(folder / f"{name}.png")
        with PendingFile(written[-1], overwrite=overwrite) as pending:
            Path(pending.path).write_bytes(to_png(figure))
    return written


def to_png(figure: Figure) -> bytes:
    """A figure as PNG, on white."""
    with rc_context(_STYLE):
        return _render(figure, "png", dpi=110, facecolor="white")


def to_svg(figure: Figure) -> str:
    """A figure as SVG, without background, whose text and axes have the colour of the page."""
    with rc_context({**_STYLE, "svg.hashsalt": "report"}):
        text = _render(figure, "svg", transparent=True, metadata={"Date": None}).decode()
    return text[text.index("<svg") :].replace("#000000", "currentColor")


def _render(figure: Figure, kind: str, **keywords: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, **keywords)
    return buffer.getvalue()


def shared_contrast(*images: NDArray[np.float32]) -> tuple[float, float]:
    """Darkest and brightest value to be shown, of all images together; 0.5 % of the values lie beyond either."""
    values = np.concatenate([image[np.isfinite(image)].ravel() for image in images])
    if not len(values):
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(values, (0.5, 99.5)))
    return (low, high) if high > low else (low, low + 1)


# Over time


def _draw_traces(data: ReportData) -> Figure:
    """Displacement, translation and correlation over time, with bad frames and window borders."""
    statistics = data.statistics
    figure = Figure(figsize=(10, 6), layout="constrained")
    rows = [
        ("displacement, px", {"mean": "mean_disp", "largest": "max_disp"}),
        ("translation, px", {"x": "translation_x", "y": "translation_y"}),
        ("correlation", {"before": "correlation_before", "after": "correlation_after"}),
    ]
    rows = [(label, lines) for label, lines in rows if all(name in statistics for name in lines.values())]
    axes = np.atleast_1d(figure.subplots(len(rows), 1, sharex=True))
    for axis, (label, lines) in zip(axes, rows, strict=True):
        for (name, column), colour in zip(lines.items(), ("C0", "C1"), strict=True):
            axis.plot(*_envelope(statistics[column]), color=colour, lw=1, label=name)
        axis.set_ylabel(label)
        axis.legend(loc="upper right", frameon=False, ncols=2, fontsize=8)
        axis.margins(x=0)
        _mark_frames(axis, data)
    axes[-1].set_xlabel("frame")
    if data.rate:
        rate = data.rate
        seconds = axes[0].secondary_xaxis("top", functions=(lambda frame: frame / rate, lambda time: time * rate))
        seconds.set_xlabel("seconds")
    axes[-1].set_xlim(-0.5, data.shape[0] - 0.5)
    return figure


def _envelope(values: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Frames and values of a line; where there are many, the smallest and the largest of each of as many parts."""
    values = np.where(np.isfinite(values), values, np.nan).astype(np.float64)
    if len(values) <= MOST_POINTS:
        return np.arange(len(values), dtype=np.float64), values
    edges = np.linspace(0, len(values), MOST_POINTS // 2 + 1).astype(np.intp)
    smallest, largest = (np.fmin, np.fmax)
    pairs = np.stack([smallest.reduceat(values, edges[:-1]), largest.reduceat(values, edges[:-1])], axis=1)
    return np.repeat(edges[:-1].astype(np.float64), 2), pairs.ravel()


def _mark_frames(axis: Any, data: ReportData) -> None:
    """Shade frames without a flow of their own, mark those that were realigned, and draw window borders."""
    statistics, n_frames = data.statistics, data.shape[0]
    flags = [statistics[name] for name in ("bad", "constant", "diverged") if name in statistics]
    if flags:
        flagged = np.flatnonzero(np.logical_or.reduce(flags))
        runs = np.split(flagged, np.flatnonzero(np.diff(flagged) > max(n_frames // 500, 1)) + 1)
        for run in runs[:200] if len(flagged) else []:
            axis.axvspan(run[0] - 0.5, run[-1] + 0.5, color="C3", alpha=0.25, lw=0)
    if "realigned" in statistics:
        for number in np.flatnonzero(statistics["realigned"])[:200]:
            axis.axvline(number, color="C2", lw=0.8, ls=":")
    if data.window and data.window < n_frames <= _WINDOW_BORDERS * data.window:
        for border in range(data.window, n_frames, data.window):
            axis.axvline(border - 0.5, color="0.6", lw=0.5)


# Images


def _draw_images(data: ReportData) -> Figure:
    """Mean and maximum image before and after, one row for each channel, with one contrast."""
    channels = data.before.mean.shape[-1]
    figure = Figure(figsize=(11, 2.9 * channels), layout="constrained")
    axes = figure.subplots(channels, 4, squeeze=False)
    for channel in range(channels):
        for place, kind in ((0, "mean"), (2, "maximum")):
            images = [getattr(side, kind)[..., channel] for side in (data.before, data.after)]
            low, high = shared_contrast(*images)
            for axis, image, when in zip(axes[channel, place : place + 2], images, ("before", "after"), strict=True):
                axis.imshow(image, cmap="gray", vmin=low, vmax=high)
                axis.set_title(f"{kind}, {when}" + (f", channel {channel}" if channels > 1 else ""))
                axis.set_axis_off()
    return figure


def _draw_field(data: ReportData) -> Figure:
    """Mean displacement with arrows, its deviation, divergence, and where the flow is not to be trusted."""
    field = data.field
    assert field is not None
    _, height, width = field.mean.shape
    step = -(-max(height, width) // MAP_SIDE)
    mean = np.nan_to_num(field.mean[:, ::step, ::step])
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    axes = figure.subplots(1, 4)
    maps = {
        "mean displacement, px": (np.hypot(*mean), "viridis", None),
        "standard deviation, px": (field.deviation[::step, ::step], "magma", None),
        "divergence of the mean": (_divergence(mean) / step, "coolwarm", 0.0),
    }
    for axis, (title, (values, colours, centre)) in zip(axes, maps.items(), strict=False):
        largest = max(float(np.nanpercentile(np.abs(values), 99.5)), 1e-6)
        low = 0.0 if centre is None else -largest
        image = axis.imshow(values, cmap=colours, vmin=low, vmax=largest, extent=extent, interpolation="nearest")
        figure.colorbar(image, ax=axis, shrink=0.75)
        axis.set_title(title)
        axis.set_axis_off()
    _draw_arrows(axes[0], mean, step)
    _draw_trust(axes[3], data, step, extent)
    return figure


def _divergence(flow: NDArray[np.float32]) -> NDArray[np.float32]:
    if min(flow.shape[1:]) < 2:
        return np.zeros(flow.shape[1:], np.float32)
    divergence: NDArray[np.float32] = np.gradient(flow[0], axis=1) + np.gradient(flow[1], axis=0)
    return divergence


def _draw_arrows(axis: Any, flow: NDArray[np.float32], step: int) -> None:
    """Arrows from where a registered pixel is to where it comes from, longer than they are so that they are seen."""
    every = max(max(flow.shape[1:]) // ARROWS, 1)
    u, v = flow[:, every // 2 :: every, every // 2 :: every]
    y, x = np.mgrid[every // 2 : flow.shape[1] : every, every // 2 : flow.shape[2] : every] * step
    axis.quiver(x, y, u, v, color="white", angles="xy", width=0.004)


def _draw_trust(axis: Any, data: ReportData, step: int, extent: tuple[float, ...]) -> None:
    """Pixels that come from outside their frames in red, pixels without structure in grey."""
    field = data.field
    assert field is not None
    shown = np.ones((*field.outside[::step, ::step].shape, 3))
    if data.flat is not None:
        shown[data.flat[::step, ::step]] = (0.6, 0.6, 0.6)
    share = field.outside[::step, ::step] / max(field.count, 1)
    outside = share > 0
    shown[outside] = np.stack([np.ones(outside.sum()), *[0.75 * (1 - np.sqrt(share[outside]))] * 2], axis=1)
    axis.imshow(shown, extent=extent, interpolation="nearest")
    axis.set_title("white: to be trusted")
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(True)


def _draw_worst(worst: tuple[WorstFlow, ...]) -> Figure:
    """Flows of the frames that moved most, as arrows on their length."""
    figure = Figure(figsize=(3.6 * len(worst), 3.4), layout="constrained")
    for axis, flow in zip(figure.subplots(1, len(worst), squeeze=False)[0], worst, strict=True):
        planes = np.nan_to_num(flow.flow)
        height, width = (flow.step * size for size in planes.shape[1:])
        extent = (-0.5, width - 0.5, height - 0.5, -0.5)
        image = axis.imshow(np.hypot(*planes), cmap="viridis", vmin=0, extent=extent, interpolation="nearest")
        figure.colorbar(image, ax=axis, shrink=0.8, label="displacement, px")
        _draw_arrows(axis, planes, flow.step)
        axis.set_title(f"frame {flow.number}")
        axis.set_axis_off()
    return figure


def _draw_kymographs(kymographs: tuple[Kymograph, ...]) -> Figure:
    """Lines of pixels over time, before and after, with one contrast each."""
    figure = Figure(figsize=(11, 2.6 * len(kymographs)), layout="constrained")
    axes = figure.subplots(len(kymographs), 2, squeeze=False)
    for row, kymograph in zip(axes, kymographs, strict=True):
        low, high = shared_contrast(kymograph.before, kymograph.after)
        last = kymograph.before.shape[1] - 0.5
        for axis, when in zip(row, ("before", "after"), strict=True):
            lines = getattr(kymograph, when)
            extent = (kymograph.numbers[0] - 0.5, kymograph.numbers[-1] + 0.5, last, -0.5)
            axis.imshow(lines.T, cmap="gray", vmin=low, vmax=high, aspect="auto", extent=extent)
            axis.set_title(f"{kymograph.axis} {kymograph.index}, {when}")
            axis.set_xlabel("frame")
            axis.set_ylabel("x" if kymograph.axis == "row" else "y")
    return figure
