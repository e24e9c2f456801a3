"""A summary in a notebook."""

import dataclasses
from html.parser import HTMLParser

import numpy as np

from flowreg_gpu.quality.verdict import Verdict
from flowreg_gpu.registration.summary import Summary
from flowreg_gpu.report.notebook import summary_figure, summary_html


class Shown(HTMLParser):
    """Words, and sources of the pictures."""

    def __init__(self, text):
        super().__init__()
        self.words, self.sources = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name == "src"]

    def handle_data(self, data):
        self.words.append(data)


def test_the_verdict_and_a_picture(registered):
    _, summary = registered
    shown = Shown(summary_html(summary))
    assert shown.words[0] == summary.verdict.word == "better"
    assert summary.verdict.reasons[0] in shown.words
    assert len(shown.sources) == 1
    assert shown.sources[0].startswith("data:image/png;base64,")


def test_the_figure_shows_the_images_and_the_statistics(registered):
    _, summary = registered
    before, after, moved, correlation = summary_figure(summary).axes
    np.testing.assert_array_equal(before.images[0].get_array(), summary.quality.mean_before[..., 0])
    np.testing.assert_array_equal(after.images[0].get_array(), summary.quality.mean_after[..., 0])
    assert before.images[0].get_clim() == after.images[0].get_clim()
    for axis, names in ((moved, ("max_disp", "mean_disp")), (correlation, ("correlation_before", "correlation_after"))):
        for line, name in zip(axis.lines, names, strict=True):
            np.testing.assert_array_equal(line.get_ydata(), summary.statistics[name])


def test_a_summary_without_images(registered):
    _, summary = registered
    bare = dataclasses.replace(summary, quality=None)
    assert len(summary_figure(bare).axes) == 2
    assert len(Shown(summary_html(bare)).sources) == 1


def test_all_frames_are_flagged(registered):
    _, summary = registered
    statistics = {**summary.statistics, "bad": np.ones(summary.n_frames, np.bool_)}
    assert len(Shown(summary_html(dataclasses.replace(summary, statistics=statistics))).sources) == 1


def test_words_are_no_markup(registered, monkeypatch):
    _, summary = registered
    monkeypatch.setattr(Summary, "verdict", Verdict("worse", ("<script>alert('x')</script>",)))
    text = summary_html(summary)
    assert "<script>" not in text
    assert "<script>alert('x')</script>" in Shown(text).words
