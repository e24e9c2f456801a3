"""`flowreg-gpu apply` as a user types it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from flowreg_gpu.cli.main import main
from flowreg_gpu.registration.apply import FlowApplication
from tests.movies import recording

FAST = ["--alpha", "4", "--levels", "3", "--min-level", "1", "--interpolation-method", "linear"]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A folder with two channels in files of their own, the first of which has been registered."""
    monkeypatch.chdir(tmp_path)
    for name, seed in (("first.tif", 1), ("second.tif", 4)):
        frames = recording(6, 26, 31, seed=seed).frames
        tifffile.imwrite(name, frames, imagej=True, metadata={"axes": "TYX"})
    arguments = ["register", "first.tif", "registered.tif", "--reference", "0:4", "--flow", "flow.tif"]
    assert main([*arguments, *FAST, "--executor", "sequential"]) == 0
    capsys.readouterr()
    return tmp_path


def apply(*arguments: str) -> int:
    return main(["apply", *arguments, "--executor", "sequential"])


def test_the_recording_that_was_registered(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert apply("flow.tif", "first.tif", "again.tif", "--batch", "4") == 0
    out, err = capsys.readouterr()
    assert err == ""
    for part in (
        "6 frames in",
        "correlation with the reference",
        "reference: saved with the flow",
        "warped: again.tif",
    ):
        assert part in out
    assert "bad frames" not in out
    assert (files / "again.tif").read_bytes() == (files / "registered.tif").read_bytes()


def test_another_channel(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert apply("flow.tif", "second.tif", "out.tif", "--interpolation", "nearest") == 0
    assert "reference: mean of 6 registered frames" in capsys.readouterr().out
    assert apply("flow.tif", "second.tif", "named.tif", "--interpolation", "nearest", "--reference", "0:6") == 0
    assert (files / "named.tif").read_bytes() == (files / "out.tif").read_bytes()
    assert apply("flow.tif", "second.tif", "fewer.tif", "--reference", "0:2") == 0
    assert "reference: mean of 2 registered frames" in capsys.readouterr().out
    assert apply("flow.tif", "first.tif", "second.tif", "-o", "both.tif") == 2  # one recording of twelve frames
    assert "has 6 frames of 26 x 31 pixels, recording 'first.tif' has 12 frames" in capsys.readouterr().err


def test_frames_without_flow_are_counted(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flow = tifffile.imread("flow.tif")
    flow[[1, 4]] = 0
    tifffile.imwrite("edited.tif", flow, photometric="minisblack", metadata={"axes": "TYXC"})
    assert apply("edited.tif", "second.tif", "out.tif") == 0
    assert "bad frames, left as they were: 2 (1, 4)" in capsys.readouterr().out
    np.testing.assert_array_equal(tifffile.imread("out.tif")[[1, 4]], tifffile.imread("second.tif")[[1, 4]])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["flow.tif", "second.tif", "registered.tif"],
            "the output exists; only overwrite=True (--overwrite) replaces it",
        ),
        (["flow.tif", "second.tif", "second.tif"], "is the input"),
        (["flow.tif", "second.tif"], "is the only file named, expected an input and an output"),
        (
            ["flow.tif", "first.tif", "registered.tif", "second.tif", "--overwrite"],
            "with several inputs, --overwrite needs the output",
        ),
        (["flow.tif", "gone.tif", "out.tif"], "gone.tif"),
        (["gone.h5", "first.tif", "out.tif"], "gone.h5"),
        (["first.tif", "second.tif", "out.tif"], "expected a flow (T, H, W, 2) of float32"),
        (["flow.tif", "second.tif", "out.tif", "--interpolation", "lanczos"], "'lanczos' is not one of cubic"),
        (["flow.tif", "second.tif", "out.tif", "--reference", "90:95"], "holds none of the 6 frames"),
        (["flow.tif", "second.tif", "out.tif", "--channels", "4"], "4"),
    ],
)
def test_what_does_not_fit(files: Path, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.read_bytes() for path in files.iterdir()}
    assert apply(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert told in err
    assert err.startswith("flowreg-gpu: error: ")
    assert err.count("\n") == 1
    assert {path.name: path.read_bytes() for path in files.iterdir()} == before


def test_overwrite(files: Path) -> None:
    assert apply("flow.tif", "second.tif", "registered.tif", "--overwrite") == 0
    assert apply("flow.tif", "second.tif", "out.tif") == 0
    assert (files / "registered.tif").read_bytes() == (files / "out.tif").read_bytes()


def test_an_input_that_is_changed_meanwhile(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build = FlowApplication._build_reference

    def changing(self: FlowApplication, *arguments: Any) -> Any:
        with open("flow.tif", "ab") as file:
            file.write(bytes(8))
        return build(self, *arguments)

    monkeypatch.setattr(FlowApplication, "_build_reference", changing)
    assert apply("flow.tif", "second.tif", "out.tif") == 1
    assert "warning: 'flow.tif' was changed while it was registered" in capsys.readouterr().err
    assert (files / "out.tif").exists()
