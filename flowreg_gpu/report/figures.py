"""The pictures of a report, drawn by matplotlib."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from flowreg_gpu.io import PathLike, PendingFile
from flowreg_gpu.quality.verdict import flagged_frames
from flowreg_gpu.report.data import Kymograph, ReportData, WorstFlow

__all__ = [
    "draw_figures",
    "draw_flows",
    "draw_kymographs",
    "draw_maps",
    "draw_traces",
    "envelope",
    "fit",
    "limit_to",
    "save_figures",
    "shared_contrast",
    "to_png",
    "to_svg",
]

# Points of a line; with more frames, each point stands for several, by their smallest and largest value.
MOST_POINTS = 2000
# Largest side of a map and of a kymograph, in pixels, and arrows along a map.
MAP_SIDE, KYMOGRAPH_SIDE, ARROWS = 384, 1024, 20
_WINDOW_BORDERS = 60  # with more windows, their borders would hide the lines
_MOST_MARKS = 200  # shaded or dotted marks of frames; neighbours share one where there would be more
_STYLE = {"font.size": 9, "svg.fonttype": "none", "axes.spines.top": False, "axes.spines.right": False}
# Told apart by everybody, and on a light and on a dark page.
BLUE, ORANGE = "#3b82c4", "#e08214"
_GREEN, _PURPLE, _RED, _GREY = "#2a9d76", "#a66bbf", "#d5443a", "#8a8d92"


def draw_figures(data: ReportData) -> dict[str, Figure]:
    """All figures by their names, which are those of their files; those that the data have."""
    figures = {"images": draw_images(data)}
    if data.statistics:
        figures["traces"] = draw_traces(data)
    return {**figures, **draw_maps(data), **draw_flows(data.worst), **draw_kymographs(data.kymographs)}


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
        return _render(figure, "png", dpi=150, facecolor="white")


def to_svg(figure: Figure, *, parts: bool = False) -> str:
    """A figure as SVG, without background; what is black takes the colour of the page's text.

    With `parts`, the elements keep matplotlib's names (axes_1 ...), which may be there once in a page only.
    """
    with rc_context({**_STYLE, "svg.hashsalt": "report"}):
        text = _render(figure, "svg", transparent=True, metadata={"Date": None}).decode()
    text = text[text.index("<svg") :].replace("#000000", "currentColor")
    return text if parts else re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", text)


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


def fit(image: NDArray[Any], side: int) -> NDArray[Any]:
    """Every k-th pixel of an image (H, W, ...) whose larger side is above `side`."""
    step = -(-max(image.shape[:2]) // side)
    return image[::step, ::step]


# Over time


def draw_traces(data: ReportData) -> Figure:
    """Displacement, translation and correlation over time, with flagged frames and window borders."""
    rows = [
        ("how far pixels are moved, px", {"largest in the frame": "max_disp", "mean": "mean_disp"}, (ORANGE, BLUE)),
        ("the frame as a whole, px", {"x": "translation_x", "y": "translation_y"}, (_PURPLE, _GREEN)),
        (
            "correlation with the reference",
            {"before": "correlation_before", "after": "correlation_after"},
            (ORANGE, BLUE),
        ),
    ]
    rows = [row for row in rows if all(name in data.statistics for name in row[1].values())]
    flagged = flagged_frames(data.statistics, data.shape[0])
    with rc_context(_STYLE):
        figure = Figure(figsize=(10, 0.7 + 1.75 * max(len(rows), 1)), layout="constrained")
        axes = np.atleast_1d(figure.subplots(max(len(rows), 1), 1, sharex=True))
        for axis, (title, lines, colours) in zip(axes, rows, strict=False):
            for (name, column), colour in zip(lines.items(), colours, strict=True):
                axis.plot(*envelope(data.statistics[column]), color=colour, lw=1.2, label=name)
            axis.set_title(title, loc="left", fontsize=9, fontweight="bold")
            axis.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0, frameon=False, ncols=2, fontsize=9)
            limit_to(axis, [data.statistics[column] for column in lines.values()], ~flagged)
        for number, axis in enumerate(axes):
            _mark_frames(axis, data, flagged)
            axis.xaxis.set_gid(f"time-axis-{number}")
        axes[-1].set_xlim(-0.5, data.shape[0] - 0.5)
        axes[-1].set_xlabel("frame")
        if data.rate:
            _add_seconds(axes[-1], data.rate)
    return figure


def limit_to(axis: Any, columns: list[NDArray[Any]], used: NDArray[np.bool_]) -> None:
    """Limits by the frames that have a flow: what a dark frame correlates with would squeeze all others."""
    values = np.concatenate([np.asarray(column, np.float64)[used] for column in columns])
    values = values[np.isfinite(values)]
    if len(values):
        low, high = float(values.min()), float(values.max())
        margin = 0.05 * (high - low) or 0.05
        axis.set_ylim(low - margin, high + margin)


def _add_seconds(axis: Any, rate: float) -> None:
    seconds = axis.secondary_xaxis(-0.45, functions=(lambda frame: frame / rate, lambda time: time * rate))
    seconds.set_xlabel("seconds")
    seconds.xaxis.set_gid("time-axis-seconds")


def envelope(values: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Frames and values of a line; where there are many, the smallest and the largest of each of as many parts."""
    values = np.where(np.isfinite(values), values, np.nan).astype(np.float64)
    if len(values) <= MOST_POINTS:
        return np.arange(len(values), dtype=np.float64), values
    edges = np.linspace(0, len(values), MOST_POINTS // 2 + 1).astype(np.intp)
    smallest, largest = (np.fmin, np.fmax)
    pairs = np.stack([smallest.reduceat(values, edges[:-1]), largest.reduceat(values, edges[:-1])], axis=1)
    return np.repeat(edges[:-1].astype(np.float64), 2), pairs.ravel()


def _mark_frames(axis: Any, data: ReportData, flagged: NDArray[np.bool_]) -> None:
    """Shade frames without a flow of their own, dot those that were realigned, and draw window borders."""
    n_frames = data.shape[0]
    thinnest = n_frames / 1000  # a mark that is thinner is not seen
    for first, last in _runs(flagged):
        middle, half = (first + last) / 2, max((last - first + 1) / 2, thinnest)
        axis.axvspan(middle - half, middle + half, color=_RED, alpha=0.25, lw=0)
    if "realigned" in data.statistics:
        starts = [first for first, _ in _runs(np.asarray(data.statistics["realigned"], np.bool_))]
        _draw_lines(axis, starts, (0, 1), color=_GREEN, lw=1, ls=":")
    if data.window and data.window < n_frames <= _WINDOW_BORDERS * data.window:
        _draw_lines(axis, np.arange(data.window, n_frames, data.window) - 0.5, (0, 1), color=_GREY, lw=0.5, alpha=0.6)
    _draw_lines(axis, data.strip.numbers, (0, 0.05), color=_GREY, lw=1)


def _runs(marked: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and last of the frames that are marked one after the other, or so close that they look it."""
    numbers = np.flatnonzero(marked)
    if not len(numbers):
        return []
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > max(len(marked) // _MOST_MARKS, 1)) + 1)
    return [(int(run[0]), int(run[-1])) for run in runs]


def _draw_lines(axis: Any, frames: Any, heights: tuple[float, float], **style: Any) -> None:
    """Upright lines at some frames, between two parts of the height, as one path."""
    frames = np.asarray(frames, np.float64)
    times = np.stack([frames, frames, np.full(len(frames), np.nan)], axis=1).ravel()  # NaN ends a line
    axis.plot(times, np.tile([*heights, 0.0], len(frames)), transform=axis.get_xaxis_transform(), **style)


# Images


def draw_images(data: ReportData) -> Figure:
    """Mean and maximum image before and after, one row for each channel, with one contrast."""
    channels = data.before.mean.shape[-1]
    with rc_context(_STYLE):
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


def draw_maps(data: ReportData) -> dict[str, Figure]:
    """Maps of the field: mean displacement with arrows, its deviation, divergence, and where not to trust the flow."""
    field = data.field
    if field is None:
        return {}
    height, width = field.deviation.shape
    step = -(-max(height, width) // MAP_SIDE)
    mean = np.nan_to_num(field.mean[:, ::step, ::step])
    displacement, axis = _draw_map(np.hypot(*mean), "mean displacement, px", "viridis", (height, width))
    _draw_arrows(axis, mean, step)
    deviation, _ = _draw_map(field.deviation[::step, ::step], "standard deviation, px", "magma", (height, width))
    divergence, _ = _draw_map(
        _divergence(mean) / step, "divergence of the mean flow", "coolwarm", (height, width), signed=True
    )
    return {
        "displacement": displacement,
        "deviation": deviation,
        "divergence": divergence,
        "trust": _draw_trust(data, step),
    }


def draw_flows(worst: tuple[WorstFlow, ...]) -> dict[str, Figure]:
    """Flows of the frames that moved most, as arrows on their length."""
    figures = {}
    for flow in worst:
        planes = np.nan_to_num(flow.flow)
        size = (flow.step * planes.shape[1], flow.step * planes.shape[2])
        figure, axis = _draw_map(np.hypot(*planes), f"frame {flow.number}: displacement, px", "viridis", size)
        _draw_arrows(axis, planes, flow.step)
        figures[f"flow-of-frame-{flow.number}"] = figure
    return figures


def _draw_map(
    values: NDArray[Any], title: str, colours: str, size: tuple[int, int], *, signed: bool = False
) -> tuple[Figure, Any]:
    """Values of pixels as colours, with a bar that says which is which; the figure and its axes."""
    figure, axis = _new_map(title, size)
    finite = np.abs(values[np.isfinite(values)])
    largest = max(float(np.percentile(finite, 99.5)) if len(finite) else 0.0, 1e-6)
    low = -largest if signed else 0.0
    height, width = size
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    image = axis.imshow(values, cmap=colours, vmin=low, vmax=largest, extent=extent, interpolation="none")
    bar = figure.colorbar(image, ax=axis, fraction=0.05, pad=0.02)
    bar.outline.set_visible(False)
    return figure, axis


def _new_map(title: str, size: tuple[int, int]) -> tuple[Figure, Any]:
    height, width = size
    with rc_context(_STYLE):
        figure = Figure(figsize=(4.6, float(np.clip(3.7 * height / width, 1, 7)) + 0.4), layout="constrained")
        axis = figure.subplots()
    axis.set_title(title, loc="left", fontsize=9, fontweight="bold")
    axis.set_axis_off()
    return figure, axis


def _divergence(flow: NDArray[np.float32]) -> NDArray[np.float32]:
    if min(flow.shape[1:]) < 2:
        return np.zeros(flow.shape[1:], np.float32)
    divergence: NDArray[np.float32] = np.gradient(flow[0], axis=1) + np.gradient(flow[1], axis=0)
    return divergence


def _draw_arrows(axis: Any, flow: NDArray[np.float32], step: int) -> None:
    """Arrows from where a registered pixel is to where it comes from, the longest as long as two lie apart."""
    every = max(max(flow.shape[1:]) // ARROWS, 1)
    u, v = flow[:, every // 2 :: every, every // 2 :: every]
    y, x = np.mgrid[every // 2 : flow.shape[1] : every, every // 2 : flow.shape[2] : every] * step
    longest = max(float(np.hypot(u, v).max(initial=0)), 1e-6)
    axis.quiver(
        x, y, u, v, color="white", angles="xy", scale_units="xy", scale=longest / (1.4 * every * step), width=0.005
    )


def _draw_trust(data: ReportData, step: int) -> Figure:
    """The mean image, tinted where pixels come from outside their frames and where they have no structure."""
    field = data.field
    assert field is not None
    figure, axis = _new_map("where not to trust the flow", field.deviation.shape)
    image = data.after.mean[::step, ::step].mean(axis=-1)
    low, high = shared_contrast(image)
    grey = np.clip((np.nan_to_num(image, nan=low) - low) / (high - low), 0, 1)
    shown = np.repeat(grey[..., None], 3, axis=-1)
    outside = field.outside > 0
    flat = np.zeros_like(outside) if data.flat is None else data.flat
    tints = {"no structure": (flat & ~outside, (0.23, 0.55, 0.9)), "outside the frame": (outside, (0.85, 0.2, 0.15))}
    legend = []
    for name, (mask, colour) in tints.items():
        shrunk = mask[::step, ::step]
        shown[shrunk] = 0.45 * shown[shrunk] + 0.55 * np.array(colour)
        legend.append(Patch(color=colour, label=f"{name}: {100 * mask.mean():.1f} %"))
    axis.imshow(shown, interpolation="none")
    axis.legend(handles=legend, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2, frameon=False, fontsize=9)
    return figure


def draw_kymographs(kymographs: tuple[Kymograph, ...]) -> dict[str, Figure]:
    """Lines of pixels over time, before and after, with one contrast each."""
    figures = {}
    for kymograph in kymographs:
        low, high = shared_contrast(kymograph.before, kymograph.after)
        last = kymograph.before.shape[1] - 0.5
        extent = (kymograph.numbers[0] - 0.5, kymograph.numbers[-1] + 0.5, last, -0.5)
        for when in ("before", "after"):
            with rc_context(_STYLE):
                figure = Figure(figsize=(5.2, 3), layout="constrained")
                axis = figure.subplots()
            lines = fit(getattr(kymograph, when), KYMOGRAPH_SIDE)
            axis.imshow(lines.T, cmap="gray", vmin=low, vmax=high, aspect="auto", extent=extent, interpolation="none")
            title = f"{kymograph.axis} {kymograph.index}, {when} registration"
            axis.set_title(title, loc="left", fontsize=9, fontweight="bold")
            axis.set_xlabel("frame")
            axis.set_ylabel("x, px" if kymograph.axis == "row" else "y, px")
            figures[f"{kymograph.axis}-{kymograph.index}-channel-{kymograph.channel}-{when}"] = figure
    return figures
