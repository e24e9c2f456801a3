"""A summary as a notebook shows it: the verdict, the mean image before and after, and what happened over time."""

from __future__ import annotations

import base64

from markupsafe import Markup
from matplotlib.figure import Figure

from flowreg_gpu.registration.summary import Summary
from flowreg_gpu.report.figures import BLUE, ORANGE, envelope, limit_to, shared_contrast, to_png

__all__ = ["summary_figure", "summary_html"]

_COLOURS = {"better": "#1a7f45", "worse": "#b3261e"}


def summary_html(summary: Summary) -> str:
    """The verdict in words and `summary_figure`, as HTML that needs nothing else."""
    parts = []
    if summary.verdict is not None:
        word, colour = summary.verdict.word, _COLOURS.get(summary.verdict.word, "#8a6100")
        parts.append(Markup('<p><strong style="font-size: 1.4em; color: {}">{}</strong></p>').format(colour, word))
        lines = (*summary.verdict.reasons, *summary.verdict.advice)
        parts.append(
            Markup("<ul>{}</ul>").format(Markup("").join(Markup("<li>{}</li>").format(line) for line in lines))
        )
    told = f"{summary.n_frames} frames, {summary.seconds:.1f} s, {summary.executor}"
    parts.append(Markup("<p>{}</p>").format(told))
    picture = base64.b64encode(to_png(summary_figure(summary))).decode()
    alt = "mean image before and after registration, displacement and correlation over time"
    image = Markup('<img style="max-width: 900px; width: 100%" alt="{}" src="data:image/png;base64,{}">')
    return str(Markup("<div>{}</div>").format(Markup("").join([*parts, image.format(alt, picture)])))


def summary_figure(summary: Summary) -> Figure:
    """Displacement and correlation over time, and the mean image of channel 0 before and after, where it is known."""
    quality = summary.quality
    figure = Figure(figsize=(10, 3.6 if quality is None else 7.4), layout="constrained")
    parts = figure.subfigures(1 if quality is None else 2, 1, squeeze=False)[:, 0]
    if quality is not None:
        images = quality.mean_before[..., 0], quality.mean_after[..., 0]
        low, high = shared_contrast(*images)
        for axis, image, when in zip(parts[0].subplots(1, 2), images, ("before", "after"), strict=True):
            axis.imshow(image, cmap="gray", vmin=low, vmax=high)
            axis.set_title(f"mean image, {when}")
            axis.set_axis_off()
    rows = {
        "displacement, px": {"largest": "max_disp", "mean": "mean_disp"},
        "correlation with the reference": {"before": "correlation_before", "after": "correlation_after"},
    }
    axes = parts[-1].subplots(2, 1, sharex=True)
    for axis, (title, lines) in zip(axes, rows.items(), strict=True):
        for (name, column), colour in zip(lines.items(), (ORANGE, BLUE), strict=True):
            axis.plot(*envelope(summary.statistics[column]), color=colour, lw=1.2, label=name)
        axis.set_title(title, loc="left", fontsize=9)
        axis.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0, frameon=False, ncols=2, fontsize=9)
        limit_to(axis, [summary.statistics[column] for column in lines.values()], ~summary.flagged)
    axes[-1].set_xlabel("frame")
    return figure
