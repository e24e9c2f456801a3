"""The page: complete, alone, safe, and small."""

import dataclasses
import json
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from flowreg_gpu.quality.measures import FlowMap
from flowreg_gpu.quality.verdict import Verdict
from flowreg_gpu.report import page
from flowreg_gpu.report.data import Images, Kymograph, ReportData, Strip, WorstFlow
from flowreg_gpu.report.figures import MAP_SIDE, draw_figures, save_figures
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
        "field": FlowMap(n_frames, rng.normal(0, 1, (2, height, width)).astype(np.float32), image()[..., 0], outside),
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
    found = Page(render_page(data))
    assert found.sections == SECTIONS
    assert found.sources
    assert all(source.startswith("data:") for source in found.sources)
    words = " ".join(" ".join(found.words).split())
    for text in ("movie.tif", "better", "A reason.", "An advice.", "crispness", "something was odd", "alpha"):
        assert text in words
    embedded = json.loads(found.scripts["report"])
    assert embedded["verdict"] == {"word": "better", "reasons": ["A reason."], "advice": ["An advice."]}
    assert embedded["strip"]["numbers"] == data.strip.numbers.tolist()
    assert embedded["facts"]["options"] == {"alpha": 4.0}


def test_the_area_of_the_time_axis():
    """A click at either end of the axis is the first or the last frame."""
    embedded = json.loads(Page(render_page(made_up())).scripts["report"])
    assert 0 < embedded["trace"]["left"] < 0.2 < 0.8 < embedded["trace"]["right"] <= 1
    assert 0 < embedded["trace"]["top"] < 0.2 < 0.7 < embedded["trace"]["bottom"] < 1
    assert embedded["trace"]["frames"] == 40
    assert embedded["trace"]["rate"] == 30


def test_what_is_said_of_the_frames_that_are_played():
    data = made_up((4, 32, 48, 1), played=4)
    data.statistics["mean_disp"][:] = [1.26, 2, np.nan, 3]
    for name in ("bad", "constant", "diverged"):
        data.statistics[name][:] = False
    data.statistics["bad"][1] = True
    notes = json.loads(Page(render_page(data)).scripts["report"])["strip"]["notes"]
    assert notes == ["moved by 1.3 px on average", "left as it was", "", "moved by 3.0 px on average"]


def test_dark_frames_do_not_squeeze_the_others():
    """Limits are those of the frames that have a flow, and every flagged frame is shaded."""
    data = made_up()
    for name in ("bad", "constant", "diverged"):
        data.statistics[name][:] = False
    data.statistics["bad"][[7, 30]] = True
    for name in ("correlation_before", "correlation_after"):
        data.statistics[name][:] = np.linspace(0.8, 0.9, 40)
        data.statistics[name][[7, 30]] = -1
    axis = draw_figures(data)["traces"].axes[2]
    assert axis.get_ylim() == pytest.approx((0.795, 0.905))
    shaded = [patch.get_extents().transformed(axis.transData.inverted()).extents[[0, 2]] for patch in axis.patches]
    np.testing.assert_allclose(shaded, [[6.5, 7.5], [29.5, 30.5]], atol=1e-6)


def test_the_page_says_what_is_not_there():
    words = " ".join(" ".join(Page(render_page(made_up(statistics={}, field=None, worst=()))).words).split())
    assert "The flow per pixel was not kept: register with --report" in words
    assert "The statistics of the run are not there" in words


def test_names_are_no_markup():
    name = "<script>alert('x')</script>&.tif"
    data = made_up(title=name, facts={"recording": {"original": name, "</script>": name}}, warnings=(name,))
    text = render_page(data)
    assert "<script>alert" not in text
    found = Page(text)
    assert found.sections == SECTIONS
    assert json.loads(found.scripts["report"])["title"] == name


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
    found = Page(render_page(data))
    expected = SECTIONS if data.kymographs else [name for name in SECTIONS if name != "kymographs"]
    assert found.sections == expected
    text = found.scripts["report"]
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.mark.parametrize("value", [0.0, -5.0, np.nan])
def test_images_of_one_value(value):
    image = np.full((32, 48, 1), value, np.float32)
    same = Images(image, image)
    assert Page(render_page(made_up(before=same, after=same))).sections == SECTIONS


def test_a_million_frames_make_a_small_page():
    n_frames = 10**6
    data = made_up((n_frames, 32, 48, 1), played=48)
    assert len(render_page(data)) < 3_000_000
    spike = made_up((n_frames, 32, 48, 1))
    spike.statistics["max_disp"][:] = 1
    spike.statistics["max_disp"][123_456] = 50
    line = draw_figures(spike)["traces"].axes[0].lines[0]
    assert line.get_ydata().max() == 50  # no frame that stands out is lost


def test_noise_stays_below_the_limit(monkeypatch):
    """Noise is what cannot be compressed: pictures become coarser until they fit."""
    monkeypatch.setattr(page, "STRIP_BYTES", 60_000)
    monkeypatch.setattr(page, "IMAGE_BYTES", 30_000)
    monkeypatch.setattr(page, "IMAGE_SIDE", 128)
    rng = np.random.default_rng(0)
    strip = rng.normal(100, 30, (2, 12, 128, 128, 3)).astype(np.float32)
    found = Page(render_page(made_up((12, 256, 256, 3), strip=Strip(np.arange(12), *strip), field=None)))
    frames = json.loads(found.scripts["report"])["strip"]["frames"]
    assert [[len(side) for side in sides] for sides in frames] == [[12, 12]] * 3
    assert sum(len(frame) for sides in frames for side in sides for frame in side) < 60_000 * 4 / 3 + 72 * 40
    assert len(found.scripts["views"]) < 30_000 * 4 / 3 + 15 * 40 + 1000


def test_the_limits_together_are_those_of_the_page():
    maps = 4 * 3 * MAP_SIDE**2  # as PNG, three bytes for a pixel at most
    assert 4 / 3 * (page.STRIP_BYTES + page.IMAGE_BYTES + maps) < 13_500_000  # leaves 1.5 MB for lines and text


def test_the_page_appears_when_it_is_complete(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "render_page", lambda data: f"<html>{data.title}</html>")
    write_page(tmp_path / "page.html", made_up())
    assert (tmp_path / "page.html").read_text(encoding="utf-8").endswith("</html>")
    with pytest.raises(FileExistsError):
        write_page(tmp_path / "page.html", made_up())
    write_page(tmp_path / "page.html", made_up(title="another"), overwrite=True)
    assert "another" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_figures(tmp_path):
    written = save_figures(tmp_path / "figures", made_up())
    lines = [f"{line}-5-channel-0-{when}" for line in ("column", "row") for when in ("after", "before")]
    maps = ["deviation", "displacement", "divergence", "trust"]
    assert sorted(path.stem for path in written) == sorted(["images", "traces", "flow-of-frame-3", *maps, *lines])
    for path in written:
        pixels = np.asarray(Image.open(path).convert("L"))
        assert pixels.min() < 128 < pixels.max()
    with pytest.raises(FileExistsError):
        save_figures(tmp_path / "figures", made_up())
    save_figures(tmp_path / "figures", made_up(), overwrite=True)


def test_a_real_page(registered, tmp_path):
    folder, summary = registered
    target = tmp_path / "page.html"
    write_report(target, folder / "out.tif", folder / "in.tif", folder / "flow.h5", figures=tmp_path / "figures")
    found = Page(target.read_text(encoding="utf-8"))
    assert found.sections == SECTIONS
    assert json.loads(found.scripts["report"])["verdict"]["word"] == summary.verdict.word == "better"
    assert len(json.loads(found.scripts["views"])) == 2
    assert dataclasses.asdict(summary.verdict)["word"] == "better"
