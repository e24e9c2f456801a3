"""`flowreg-gpu smooth` as a user types it."""

from pathlib import Path

import numpy as np
import pytest
import tifffile

import flowreg_gpu as fg
from flowreg_gpu.cli.main import main


@pytest.fixture
def recording(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    movie = np.random.default_rng(3).integers(0, 900, (6, 24, 30)).astype(np.uint16)
    tifffile.imwrite("in.tif", movie, imagej=True, metadata={"axes": "TYX"})
    return movie


def smooth(*arguments):
    return main(["smooth", *arguments, "--executor", "threading", "--no-progress"])


@pytest.mark.parametrize("sigma", [None, ("2", "0.5", "0.7")])
def test_equals_the_python_call(recording, capsys, sigma):
    given = [] if sigma is None else ["--sigma", *sigma]
    assert smooth("in.tif", "out.tif", *given, "--workers", "1", "--batch", "4") == 0
    assert capsys.readouterr() == ("smoothed: out.tif (CPU, 1 thread)\n", "")
    fg.smooth_file("in.tif", "expected.tif", (1, 1, 0) if sigma is None else tuple(map(float, sigma)))
    np.testing.assert_array_equal(tifffile.imread("out.tif"), tifffile.imread("expected.tif"))
    assert not np.array_equal(tifffile.imread("out.tif"), recording)


def test_axes_and_channels_where_the_file_is_silent(recording, tmp_path):
    tifffile.imwrite("pages.tif", recording, metadata=None, photometric="minisblack")
    assert smooth("pages.tif", "out.tif", "--channels", "2", "--sigma", "0", "0", "1") == 0
    found = tifffile.imread("out.tif").reshape(recording.shape)
    tifffile.imwrite("odd.tif", recording[1::2], imagej=True, metadata={"axes": "TYX"})
    fg.smooth_file("odd.tif", "expected.tif", (0, 0, 1))
    np.testing.assert_array_equal(found[1::2], tifffile.imread("expected.tif"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["in.tif", "in.tif", "--overwrite"], "is the input"),
        (["in.tif", "there.tif"], "--overwrite"),
        (["missing.tif", "out.tif"], "no such file"),
        (["in.tif", "out.png"], "does not end in .tif"),
        (["in.tif", "out.tif", "--sigma", "1", "1", "1e9"], "is not between"),
        (["in.tif", "out.tif", "--batch", "0"], "batch=0"),
    ],
)
def test_wrong_usage(recording, capsys, arguments, told):
    Path("there.tif").write_bytes(b"precious")
    assert smooth(*arguments) == 2
    out, err = capsys.readouterr()
    assert told in err
    assert err.count("\n") == 1
    assert out == ""
    assert Path("there.tif").read_bytes() == b"precious"
    assert not Path("out.tif").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--sigma", "1", "1"], "expected 3 arguments"),
        (["--sigma", "1", "x", "0"], "'x' is not a number from 0 on"),
        (["--sigma", "1", "-1", "0"], "'-1' is not a number from 0 on"),
        (["--sigma", "nan", "1", "0"], "'nan' is not a number from 0 on"),
        (["--workers", "two"], "'two' is not a whole number"),
    ],
)
def test_arguments_that_cannot_be_parsed(recording, capsys, arguments, told):
    with pytest.raises(SystemExit) as ended:
        smooth("in.tif", "out.tif", *arguments)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_a_run_that_fails(recording, monkeypatch, capsys):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flowreg_gpu.io.reserved.ReservedFileWriter._write_bytes", fail)
    assert smooth("in.tif", "out.tif") == 1
    assert "No space left on device" in capsys.readouterr().err
    assert sorted(path.name for path in Path().iterdir()) == ["in.tif"]
