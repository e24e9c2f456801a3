"""The page: complete, alone, safe, and small."""

import dataclasses
import json
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from flowreg_gpu.quality.verdict import Verdict
from flowreg_gpu.report.data import Field, Images, Kymograph, ReportData, Strip, WorstFlow
from flowreg_gpu.report.figures import draw_figures, save_figures
from flowreg_gpu.report.page import render_page, write_page
from flowreg_gpu.report.write import write_report

SECTIONS = ["verdict", "measures", "images", "movie", "time", "field", "kymographs", "facts"]


class Page(HTMLParser):
    """Sections, sources and scripts of a page."""

    def __init__(self, text):
        super().__init__()
        self.sections, self.sources, self.scripts, self.words, self._script = [], [], {}, [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        if tag == "section":
            self.sections.append(named["id"])
        self.sources += [named[name] for name in ("src", "href") if name in named]
        if tag == "script":
            self._script = named.get("id", "code")

    def handle_endtag(self, tag):
        if tag == "script":
            self._script = None

    def handle_data(self, data):
        if self._script is None:
            self.words.append(data)
        else:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data


def made_up(shape=(40, 32, 48, 1), seed=0, played=5, **changed):
    """Data of a recording that was never made."""
    rng = np.random.default_rng(seed)
    n_frames, height, width, channels = shape

    def image():
        return rng.normal(100, 30, (height, width, channels)).astype(np.float32)

    strip = rng.normal(100, 30, (2, min(played, n_frames), min(height, 64), min(width, 64), channels))
    numbers = np.linspace(0, n_frames - 1, strip.shape[1]).astype(np.intp)
    outside = np.zeros((height, width), np.int64)
    outside[:3] = 7
    names = ("mean_disp", "max_disp", "translation_x", "translation_y", "correlation_before", "correlation_after")
    statistics = {name: rng.uniform(0, 1, n_frames) for name in names}
    statistics |= {name: rng.uniform(0, 1, n_frames) > 0.9 for name in ("bad", "constant", "diverged", "realigned")}
    values = {
        "title": "movie.tif",
        "verdict": Verdict("better", ("A reason.",), ("An advice.",)),
        "measures": (("crispness", "1.0", "2.0", "the more, the better"),),
        "shape": shape,
        "rate": 30.0,
        "before": Images(image(), image()),
        "after": Images(image(), image()),
        "image_frames": n_frames,
        "strip": Strip(numbers, *strip.astype(np.float32)),
        "statistics": statistics,
        "window": 10,
        "flat": rng.uniform(0, 1, (height, width)) > 0.9,
        "field": Field(n_frames, rng.normal(0, 1, (2, height, width)).astype(np.float32), image()[..., 0], outside),
        "worst": (WorstFlow(3, 2, rng.normal(0, 1, (2, height // 2, width // 2)).astype(np.float32)),),
        "kymographs": tuple(
            Kymograph(axis, 5, 0, numbers, *rng.normal(9, 1, (2, len(numbers), size)).astype(np.float32))
            for axis, size in (("row", width), ("column", height))
        ),
        "facts": {"recording": {"original": "in.tif"}, "options": {"alpha": 4.0}},
        "warnings": ("something was odd",),
    }
    return ReportData(**{**values, **changed})


def test_everything_is_there_and_nothing_is_fetched():
    data = made_up()
    page = Page(render_page(data))
    assert page.sections == SECTIONS
    assert page.sources
    assert all(source.startswith("data:") for source in page.sources)
    words = " ".join(" ".join(page.words).split())
    for text in ("movie.tif", "better", "A reason.", "An advice.", "crispness", "something was odd", "alpha"):
        assert text in words
    embedded = json.loads(page.scripts["report"])
    assert embedded["verdict"] == {"word": "better", "reasons": ["A reason."], "advice": ["An advice."]}
    assert embedded["strip"]["numbers"] == data.strip.numbers.tolist()
    assert embedded["facts"]["options"] == {"alpha": 4.0}


def test_the_area_of_the_time_axis():
    """A click at either end of the axis is the first or the last frame."""
    embedded = json.loads(Page(render_page(made_up())).scripts["report"])
    assert 0 < embedded["trace"]["left"] < 0.2 < 0.8 < embedded["trace"]["right"] <= 1
    assert embedded["trace"]["frames"] == 40


def test_names_are_no_markup():
    name = "<script>alert('x')</script>&.tif"
    data = made_up(title=name, facts={"recording": {"original": name, "</script>": name}}, warnings=(name,))
    text = render_page(data)
    assert "<script>alert" not in text
    page = Page(text)
    assert page.sections == SECTIONS
    assert json.loads(page.scripts["report"])["title"] == name


@pytest.mark.parametrize(
    "changed",
    [
        {"shape": (2, 16, 16, 1)},
        {"shape": (3, 2048, 100, 1)},
        {"shape": (12, 40, 40, 3)},
        {"played": 1},
        {"statistics": {}, "field": None, "worst": (), "kymographs": (), "flat": None, "window": None, "rate": None},
        {"statistics": {"mean_disp": np.full(40, np.nan), "max_disp": np.full(40, np.nan)}},
        {"facts": {"run": {"factor": float("nan"), "other": np.float32(np.inf)}}},
    ],
)
def test_odd_data(changed):
    data = made_up(**changed)
    page = Page(render_page(data))
    expected = SECTIONS if data.kymographs else [name for name in SECTIONS if name != "kymographs"]
    assert page.sections == expected
    text = page.scripts["report"]
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.mark.parametrize("value", [0.0, -5.0, np.nan])
def test_images_of_one_value(value):
    image = np.full((32, 48, 1), value, np.float32)
    same = Images(image, image)
    assert Page(render_page(made_up(before=same, after=same))).sections == SECTIONS


def test_a_million_frames_make_a_small_page():
    n_frames = 10**6
    data = made_up((n_frames, 32, 48, 1), played=48)
    page = render_page(data)
    assert len(page) < 3_000_000
    spike = made_up((n_frames, 32, 48, 1))
    spike.statistics["max_disp"][:] = 1
    spike.statistics["max_disp"][123_456] = 50
    line = draw_figures(spike)["traces"].axes[0].lines[1]
    assert line.get_ydata().max() == 50  # no frame that stands out is lost


def test_large_frames_stay_below_the_limit():
    rng = np.random.default_rng(0)
    strip = rng.normal(100, 30, (2, 48, 384, 384, 1)).astype(np.float32)  # noise is what cannot be compressed
    assert len(render_page(made_up(strip=Strip(np.arange(48), *strip)))) < 15_000_000


def test_the_page_appears_when_it_is_complete(tmp_path, monkeypatch):
    write_page(tmp_path / "page.html", made_up())
    assert (tmp_path / "page.html").read_text(encoding="utf-8").endswith("</html>")
    with pytest.raises(FileExistsError):
        write_page(tmp_path / "page.html", made_up())
    write_page(tmp_path / "page.html", made_up(title="another"), overwrite=True)
    assert "another" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_figures(tmp_path):
    written = save_figures(tmp_path / "figures", made_up())
    assert sorted(path.stem for path in written) == ["field", "images", "kymographs", "traces", "worst"]
    for path in written:
        pixels = np.asarray(Image.open(path).convert("L"))
        assert pixels.min() < 128 < pixels.max()
    with pytest.raises(FileExistsError):
        save_figures(tmp_path / "figures", made_up())
    save_figures(tmp_path / "figures", made_up(), overwrite=True)


def test_a_real_page(registered, tmp_path):
    folder, summary = registered
    page = tmp_path / "page.html"
    write_report(page, folder / "out.tif", folder / "in.tif", folder / "flow.h5", figures=tmp_path / "figures")
    found = Page(page.read_text(encoding="utf-8"))
    assert found.sections == SECTIONS
    assert json.loads(found.scripts["report"])["verdict"]["word"] == summary.verdict.word == "better"
    assert len(json.loads(found.scripts["views"])) == 2
    assert dataclasses.asdict(summary.verdict)["word"] == "better"
