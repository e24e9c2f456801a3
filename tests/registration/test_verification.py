"""`--verify`: frames of a run registered once more on the CPU."""

import re

import numpy as np
import pytest
import tifffile

import flowreg_gpu as fg
from flowreg_gpu.cli.main import main
from flowreg_gpu.registration.verification import Verification, spread_frames
from tests.emulation import EmulatedDevice
from tests.movies import recording

FAST = {"alpha": 4, "levels": 3, "min_level": 1}


@pytest.fixture
def movie(tmp_path):
    tifffile.imwrite(tmp_path / "movie.tif", recording(9, 26, 31).frames)
    return tmp_path / "movie.tif"


@pytest.mark.parametrize(
    ("n_frames", "count", "expected"),
    [(10, 1, [0]), (10, 2, [0, 9]), (9, 3, [0, 4, 8]), (5, 5, [0, 1, 2, 3, 4]), (1000, 4, [0, 333, 666, 999])],
)
def test_spread_frames(n_frames, count, expected):
    assert spread_frames(n_frames, count) == expected


def test_same_result(movie, tmp_path):
    """With windows of several start flows, a filter in time, and batches that do not begin with a frame compared."""
    executor = fg.GPUExecutor(device=EmulatedDevice(), batch=2)
    options = {**FAST, "buffer_size": 4, "sigma": (1, 1, 0.5)}
    summary = fg.register_file(movie, tmp_path / "out.tif", executor, slice(0, 2), batch=3, verify=4, **options)
    assert summary.verification == Verification((0, 3, 5, 8), 0.0, 0.0, 1.0)
    assert summary.verification.passed
    assert str(summary).splitlines()[-1] == (
        "verified on the CPU: 4 frames, flow difference median 0 px, 99th percentile 0 px; "
        "100.000 % of the registered values equal"
    )


class Wrong(fg.SequentialExecutor):
    """Its last frame is off by a quarter of a pixel."""

    name = "wrong"

    def register_batch(self, batch):
        result = super().register_batch(batch)
        if batch.keep_flow:
            result.flow[-1] += 0.25
        return result


def test_another_result(movie, tmp_path):
    with pytest.warns(RuntimeWarning, match="the result is not the CPU's: verified on the CPU: 1 frames"):
        summary = fg.register_file(
            movie, tmp_path / "out.tif", Wrong(), slice(0, 2), batch=1, verify=1, update_initialization_w=False, **FAST
        )
    assert summary.verification.median == pytest.approx(np.hypot(0.25, 0.25), rel=1e-5)
    assert not summary.verification.passed


def test_nothing_is_verified_unless_asked_for(movie, tmp_path):
    summary = fg.register_file(movie, tmp_path / "out.tif", "sequential", slice(0, 2), **FAST)
    assert summary.verification is None
    assert "verified" not in str(summary)


def test_command_line(movie, tmp_path, capsys):
    command = ["register", str(movie), str(tmp_path / "out.tif"), "--reference", "0:2", "--executor", "threading"]
    assert main([*command, "--levels", "3", "--min-level", "1", "--verify", "2"]) == 0
    assert re.search(r"^verified on the CPU: 2 frames, .*median 0 px", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    ("count", "message"), [(10, "verify=10 is more than the 9 frames"), (-1, "verify=-1 is below 1")]
)
def test_wrong_number(movie, tmp_path, count, message, capsys):
    with pytest.raises(ValueError, match=message):
        fg.register_file(movie, tmp_path / "out.tif", "sequential", verify=count)
    assert main(["register", str(movie), str(tmp_path / "out.tif"), "--verify", str(count)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.tif").exists()
