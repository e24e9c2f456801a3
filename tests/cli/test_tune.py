"""`flowreg-gpu tune`: a table of what each smoothness does, as text and as JSON."""

import json
import re

import numpy as np
import pytest
import tifffile

from flowreg_gpu.cli import main
from flowreg_gpu.registration.tuning import ALPHAS
from flowreg_gpu.synthetic import make_movie

OPTIONS = ["--quality", "fast", "--executor", "sequential", "--no-progress"]


@pytest.fixture(scope="module")
def movie(tmp_path_factory):
    frames, _, _ = make_movie(16, 72, 88, photons=40)
    path = tmp_path_factory.mktemp("tune") / "in.tif"
    tifffile.imwrite(path, frames.transpose(0, 3, 1, 2), imagej=True, metadata={"axes": "TCYX"})
    return path


def test_table(movie, capsys):
    assert main(["tune", str(movie), "--reference", "0:16", *OPTIONS]) == 0
    head, *rows, before, choice = capsys.readouterr().out.splitlines()
    assert head.split() == ["alpha", "unexplained", "correlation", "displacement", "a", "frame"]
    assert [float(row.split()[0]) for row in rows] == list(ALPHAS)
    assert all(re.fullmatch(r" *[\d.]+ +[\d.]+ +0\.\d{4} +\d+\.\d\d px +[\d.]+ ms", row) for row in rows)
    unexplained = [float(row.split()[1]) for row in rows]
    assert min(unexplained) == 0
    assert re.fullmatch(r"correlation before registration: 0\.\d{4}", before)
    chosen = float(re.match(r"alpha: ([\d.]+), chosen by 8 frames", choice)[1])
    nearest = int(np.argmin(unexplained))
    assert ALPHAS[max(nearest - 1, 0)] <= chosen <= ALPHAS[min(nearest + 1, len(ALPHAS) - 1)]
    assert [path.name for path in movie.parent.iterdir()] == ["in.tif"]


def test_json_says_what_register_chooses(movie, capsys, tmp_path):
    """`--alpha` makes no difference: it is what is asked for."""
    assert main(["tune", str(movie), "--reference", "0:16", "--alpha", "3", "--json", *OPTIONS]) == 0
    tuning = json.loads(capsys.readouterr().out)
    assert [trial["alpha"] for trial in tuning["trials"]] == list(ALPHAS)
    assert all(trial["seconds"] > 0 for trial in tuning["trials"])
    assert tuning["trials"][0]["displacement"] > tuning["trials"][-1]["displacement"]
    assert main(["register", str(movie), "-o", str(tmp_path / "out.tif"), "--reference", "0:16", *OPTIONS]) == 0
    choice = tuning["choice"]
    told = f"alpha: {choice['alpha']:g}, chosen by 8 frames (between {choice['low']:g} and {choice['high']:g} "
    assert told in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["missing.tif"], "missing.tif: there is no such file"),
        (["IN", "--reference", "90:99"], "holds none of the 16 frames"),
        (["IN", "--quality", "best"], "quality='best' is not one of quality, balanced, fast"),
        (["IN", "--bad-frames", "16"], "frames [16] are not among 0 to 15"),
    ],
)
def test_wrong_usage(movie, capsys, arguments, told):
    arguments = [str(movie) if name == "IN" else name for name in arguments]
    assert main(["tune", *arguments, "--executor", "sequential", "--no-progress"]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_a_recording_without_a_good_frame(tmp_path, capsys):
    """Every frame is constant: the reference is found, and nothing can be looked at."""
    tifffile.imwrite(tmp_path / "in.tif", np.full((6, 40, 40), 7, np.uint16), photometric="minisblack")
    tifffile.imwrite(tmp_path / "reference.tif", np.eye(40, dtype=np.float32))
    arguments = ["tune", str(tmp_path / "in.tif"), "--reference", str(tmp_path / "reference.tif"), *OPTIONS]
    assert main(arguments) == 1
    assert "none of the frames can be looked at" in capsys.readouterr().err
