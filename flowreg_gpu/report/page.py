"""The page of a report: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import dataclasses
import io
import itertools
import math
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from flowreg_gpu.io import PathLike, PendingFile
from flowreg_gpu.quality.verdict import flagged_frames
from flowreg_gpu.report.data import ReportData
from flowreg_gpu.report.figures import (
    draw_flows,
    draw_kymographs,
    draw_maps,
    draw_traces,
    fit,
    shared_contrast,
    to_svg,
)

__all__ = ["figures_of", "write_page"]

# Largest side of an image of the page in pixels, and bytes that all images, and all frames that are played, may take.
IMAGE_SIDE, IMAGE_BYTES, STRIP_BYTES = 1024, 3_000_000, 5_000_000
# Of WebP, and every k-th pixel of every k-th row, tried in this order until the pictures fit.
_QUALITIES, _STEPS = (85, 50, 20), (1, 2, 4, 8, 16)


def write_page(path: PathLike, data: ReportData, *, overwrite: bool = False) -> None:
    """Write the page; it appears under its name when it is complete.

    Raises
    ------
    FileExistsError
        The file is there already, and `overwrite` is False.
    """
    text = render_page(data)
    with PendingFile(path, len(text), overwrite=overwrite) as pending:
        Path(pending.path).write_text(text, encoding="utf-8")


def render_page(data: ReportData) -> str:
    """The page as text."""
    template = files("flowreg_gpu.report").joinpath("report.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    traces = draw_traces(data) if data.statistics else None
    return environment.from_string(template).render(
        data=data,
        colour={"better": "good", "worse": "bad"}.get(data.verdict.word, "even"),
        channels=_channels(data),
        traces=None if traces is None else Markup(to_svg(traces, parts=True)),
        maps=_drawn(draw_maps(data)),
        flows=_drawn(draw_flows(data.worst)),
        kymographs=_drawn(draw_kymographs(data.kymographs)),
        embedded={
            **figures_of(data),
            "strip": _strip(data),
            "trace": None if traces is None else _plot_area(traces, data),
        },
    )


def _drawn(figures: dict[str, Figure]) -> dict[str, Markup]:
    return {name: Markup(to_svg(figure)) for name, figure in figures.items()}


def figures_of(data: ReportData) -> dict[str, Any]:
    """Verdict, measures and facts, as JSON can hold them."""
    return {
        "title": data.title,
        "verdict": dataclasses.asdict(data.verdict),
        "measures": [dict(zip(("name", "before", "after", "meaning"), row, strict=True)) for row in data.measures],
        "shape": list(data.shape),
        "facts": _finite(data.facts),
        "warnings": list(data.warnings),
    }


def _finite(value: Any) -> Any:
    """The same without NaN and infinity, which JSON has no words for."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, np.generic):
        value = value.item()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _grey(image: NDArray[np.float32], contrast: tuple[float, float]) -> NDArray[np.uint8]:
    """An image (h, w) in 256 greys."""
    low, high = contrast
    scaled = np.clip((np.nan_to_num(image, nan=low) - low) / (high - low), 0, 1)
    grey: NDArray[np.uint8] = (255 * scaled + 0.5).astype(np.uint8)
    return grey


def _encode(pictures: list[NDArray[np.uint8]], limit: int) -> list[str]:
    """Pictures (h, w) or (h, w, 3) as WebP in data URLs, as fine as `limit` bytes for all of them allow."""
    encoded: list[bytes] = []
    for step, quality in itertools.product(_STEPS, _QUALITIES):
        encoded = [_to_webp(picture[::step, ::step], quality) for picture in pictures]
        if sum(map(len, encoded)) <= limit:
            break
    return [f"data:image/webp;base64,{base64.b64encode(content).decode()}" for content in encoded]


def _to_webp(pixels: NDArray[np.uint8], quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "WEBP", quality=quality, method=4)
    return buffer.getvalue()


def _channels(data: ReportData) -> list[dict[str, Any]]:
    """For each channel, mean and maximum before and after with one contrast, and what has changed in the mean."""
    n_channels = data.before.mean.shape[-1]
    channels = []
    for channel in range(n_channels):
        pictures = []
        for kind in ("mean", "maximum"):
            pair = [fit(getattr(side, kind)[..., channel], IMAGE_SIDE) for side in (data.before, data.after)]
            contrast = shared_contrast(*pair)
            pictures += [_grey(image, contrast) for image in pair]
        change = fit(data.after.mean[..., channel] - data.before.mean[..., channel], IMAGE_SIDE)
        largest = max(-shared_contrast(change)[0], shared_contrast(change)[1], 1e-6)
        colours = colormaps["coolwarm"](_grey(change, (-largest, largest)))[..., :3]
        urls = _encode([*pictures, (255 * colours).astype(np.uint8)], IMAGE_BYTES // n_channels)
        views = {"mean": urls[:2], "maximum": urls[2:4]}
        channels.append({"views": views, "difference": urls[4], "largest": f"{largest:.3g}"})
    return channels


def _strip(data: ReportData) -> dict[str, Any]:
    """Frames that are played: for each channel, those before and those after registration."""
    strip = data.strip
    _, height, width, n_channels = strip.before.shape
    frames = []
    for channel in range(n_channels):
        sides = [side[..., channel] for side in (strip.before, strip.after)]
        contrast = shared_contrast(*sides)
        urls = _encode([_grey(frame, contrast) for side in sides for frame in side], STRIP_BYTES // n_channels)
        frames.append([urls[: len(urls) // 2], urls[len(urls) // 2 :]])
    return {
        "numbers": strip.numbers.tolist(),
        "notes": _notes(data),
        "width": width,
        "height": height,
        "frames": frames,
    }


def _notes(data: ReportData) -> list[str]:
    """Of each frame that is played: how far it was moved, or that it was left as it was."""
    flagged, moved = flagged_frames(data.statistics, data.shape[0]), data.statistics.get("mean_disp")
    notes = []
    for number in data.strip.numbers:
        if flagged[number]:
            notes.append("left as it was")
        elif moved is not None and math.isfinite(moved[number]):
            notes.append(f"moved by {moved[number]:.1f} px on average")
        else:
            notes.append("")
    return notes


def _plot_area(figure: Figure, data: ReportData) -> dict[str, float | None]:
    """Where the time axis lies in the figure, in parts of its size from its upper left corner; frames, and rate."""
    left, bottom, right, _ = figure.axes[-1].get_position().extents
    top = figure.axes[0].get_position().extents[3]
    area = {"left": left, "right": right, "top": 1 - top, "bottom": 1 - bottom}
    return {**{name: float(part) for name, part in area.items()}, "frames": data.shape[0], "rate": data.rate}
