"""What a report shows, from files."""

import numpy as np
import pytest
import tifffile

import flowreg_gpu as fg
from flowreg_gpu.report import collect as collecting
from flowreg_gpu.report.write import report_name, write_report


def collected(folder, **arguments):
    arguments = {"registered": folder / "out.tif", "original": folder / "in.tif", **arguments}
    return write_report(None, **arguments)


def test_images_are_those_of_the_frames(registered):
    folder, summary = registered
    data = collected(folder)
    for side, name in ((data.before, "in.tif"), (data.after, "out.tif")):
        frames = np.moveaxis(tifffile.imread(folder / name), 1, -1)
        np.testing.assert_allclose(side.mean, frames.mean(axis=0), rtol=1e-5)
        np.testing.assert_array_equal(side.maximum, frames.max(axis=0))
    assert data.shape == (24, 64, 80, 2)
    assert data.image_frames == 24
    assert data.window == summary.options.buffer_size
    assert data.flat.shape == (64, 80)


def test_frames_that_are_played(registered):
    folder, _ = registered
    data = collected(folder)
    frames = np.moveaxis(tifffile.imread(folder / "in.tif"), 1, -1)
    np.testing.assert_array_equal(data.strip.before, frames[data.strip.numbers])
    frames = np.moveaxis(tifffile.imread(folder / "out.tif"), 1, -1)
    np.testing.assert_array_equal(data.strip.after, frames[data.strip.numbers])


def test_worst_flows_and_kymographs(registered):
    folder, summary = registered
    data = collected(folder, flow=folder / "flow.h5")
    worst = int(summary.statistics["mean_disp"].argmax())
    assert worst in [flow.number for flow in data.worst]
    frames = np.moveaxis(tifffile.imread(folder / "out.tif"), 1, -1)
    assert {line.axis for line in data.kymographs} == {"row", "column"}
    for line in data.kymographs:
        part = frames[line.numbers, line.index] if line.axis == "row" else frames[line.numbers, :, line.index]
        np.testing.assert_array_equal(line.after, part[..., line.channel])


def test_the_statistics_beside_the_output_tell_what_the_summary_tells(registered):
    folder, summary = registered
    stored, given = collected(folder), collected(folder, summary=summary)
    assert stored.verdict == given.verdict == summary.verdict
    assert stored.measures == given.measures
    assert stored.facts["options"] == given.facts["options"]
    assert "seconds" in given.facts["run"]
    for name, values in summary.statistics.items():
        np.testing.assert_array_equal(stored.statistics[name], values)


def test_frames_alone(registered, tmp_path):
    """Of a movie that another program has registered there are no statistics."""
    folder, _ = registered
    other = tmp_path / "other.tif"
    other.write_bytes((folder / "out.tif").read_bytes())
    data = collected(folder, registered=other)
    assert data.verdict.word == "better"
    assert "can flatter" in str(data.verdict)
    assert data.statistics == {}
    data = collected(folder, registered=folder / "in.tif")
    assert data.verdict.word == "unchanged"


def test_motion_that_is_left(registered):
    folder, _ = registered
    names = [row[0] for row in collected(folder).measures]
    measured = collected(folder, verify_motion=True)
    assert [row[0] for row in measured.measures if row[0] not in names] == [
        "motion of principal components",
        "motion that is left",
    ]


def test_large_recordings_are_read_in_part(registered, monkeypatch):
    monkeypatch.setattr(collecting, "IMAGE_FRAMES", 6)
    monkeypatch.setattr(collecting, "PLAYED_FRAMES", 4)
    monkeypatch.setattr(collecting, "PLAYED_SIDE", 40)
    folder, _ = registered
    data = collected(folder)
    assert data.image_frames == 6
    assert len(data.strip.numbers) == 4
    assert data.strip.before.shape == (4, 32, 40, 2)


def test_folders_are_named_only_where_asked(registered):
    folder, _ = registered
    assert str(folder) not in str(collected(folder).facts)
    assert str(folder) in str(collected(folder, paths=True).facts)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"original": "short.tif"}, r"the registered recording is \(24, 64, 80, 2\).*expected \(23, 64, 80, 2\)"),
        ({"registered": "missing.tif"}, "missing.tif"),
        ({"flow": "short.tif"}, "short.tif"),
    ],
)
def test_files_that_do_not_belong_together(registered, tmp_path, changed, told):
    folder, _ = registered
    movie = tifffile.imread(folder / "in.tif")[:23]
    tifffile.imwrite(tmp_path / "short.tif", movie, imagej=True, metadata={"axes": "TCYX"})
    with pytest.raises((ValueError, OSError), match=told):
        collected(folder, **{name: tmp_path / value for name, value in changed.items()})


def test_a_page_that_is_not_replaced(registered, tmp_path):
    folder, _ = registered
    page = tmp_path / "page.html"
    page.write_text("mine")
    with pytest.raises(FileExistsError, match="only overwrite=True"):
        fg.write_report(page, folder / "out.tif", folder / "in.tif")
    assert page.read_text() == "mine"
    with pytest.raises(ValueError, match=r"does not end in .html"):
        fg.write_report(tmp_path / "page.pdf", folder / "out.tif", folder / "in.tif")
    with pytest.raises(ValueError, match="is the input"):
        fg.write_report(tmp_path / "in.html", tmp_path / "in.html", folder / "in.tif")
    assert report_name("a/b.tif").as_posix() == "a/b_report.html"
