"""The offset between even and odd lines of a scan to and fro."""

import numpy as np
import pytest
import tifffile

import flowreg_gpu as fg
from flowreg_gpu.io import ArrayReader, TiffReader, open_flow_reader
from flowreg_gpu.options import Options
from flowreg_gpu.registration.bad_frames import BadFrames
from flowreg_gpu.registration.scan_offset import NO_OFFSET, ScanReader, estimate_scan_offset
from flowreg_gpu.synthetic import end_point_error, make_movie
from tests.emulation import EmulatedDevice

FAST = {"alpha": 4, "quality": "fast", "cc_initialization": False, "hot_pixels": False}


def estimated(movie):
    reader = ArrayReader(movie)
    return estimate_scan_offset(reader, BadFrames("auto", reader))


def displaced(movie, offset):
    """The movie (T, H, W[, C]) with its odd lines displaced by an offset."""
    moved = ScanReader(ArrayReader(movie.astype(np.float32)), -offset).read(0, len(movie))
    return np.clip(np.rint(moved), 0, 65535).astype(np.uint16).reshape(movie.shape)


@pytest.fixture(scope="module")
def movie():
    frames, truth, flow = make_movie(16, 112, 120, photons=60)
    return frames, truth, flow


# Moved lines


@pytest.mark.parametrize("offset", [3, -2, 0.5, 2.25, -0.75])
def test_odd_lines_are_moved_and_no_others(offset):
    x = np.arange(60.0)
    frames = np.zeros((2, 40, 60, 2), np.float32)
    frames[:] = (np.sin(x / 5) + 0.01 * x)[None, None, :, None]
    found = ScanReader(ArrayReader(frames), offset).read(0, 2)
    np.testing.assert_array_equal(found[:, 0::2], frames[:, 0::2])
    inner = slice(6, -6)
    expected = (np.sin((x + offset) / 5) + 0.01 * (x + offset))[inner]
    np.testing.assert_allclose(found[:, 1::2, inner, 0], np.broadcast_to(expected, (2, 20, 48)), atol=0.015)


def test_whole_offsets_copy_pixels():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 65536, (3, 20, 30, 1)).astype(np.uint16)
    found = ScanReader(ArrayReader(frames), 2).read(0, 3)
    np.testing.assert_array_equal(found[:, 1::2, :-2], frames[:, 1::2, 2:])
    np.testing.assert_array_equal(found[:, 1::2, -2:], np.repeat(frames[:, 1::2, -1:], 2, axis=2))
    broken = frames.astype(np.float32)
    broken[0, 3, 5] = np.nan
    found = ScanReader(ArrayReader(broken), -1).read(0, 1)
    assert np.argwhere(np.isnan(found)).tolist() == [[0, 3, 6, 0]]


def test_integers_are_rounded_and_saturated():
    frames = np.zeros((1, 20, 40, 1), np.uint8)
    frames[..., 20:, :] = 255  # cubic interpolation overshoots on both sides of the edge
    found = ScanReader(ArrayReader(frames), 0.5).read(0, 1)
    assert found.dtype == np.uint8
    assert found[0, 1, 17:22, 0].tolist() == [0, 0, 128, 255, 255]
    assert frames[0, 1, 18:22, 0].tolist() == [0, 0, 255, 255]  # the input is as it was


# The estimate


@pytest.mark.parametrize("offset", [0.3, -0.5, 1, 2.4, -5, 8])
def test_known_offsets(movie, offset):
    found = estimated(displaced(movie[0], offset))
    assert found.pixels == pytest.approx(offset, abs=0.1)
    assert 0 < found.error < 0.1


def test_no_false_alarm(movie, shared_data):
    frames, _, _ = movie
    assert estimated(frames) == NO_OFFSET
    for name in ("two_photon_20x128x256.tif", "mouse_200x64x64.tif", "kidney_thorlabs_5x2x256x256.tif"):
        with TiffReader(shared_data / name) as reader:
            assert estimate_scan_offset(reader, BadFrames("auto", reader)) == NO_OFFSET, name


@pytest.mark.parametrize("kind", ["stripes", "slanted", "noise", "row noise", "alternating rows", "constant", "dim"])
def test_what_is_no_offset(movie, kind):
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:112, :120]
    scene = movie[1][..., 0]
    images = {
        "stripes": 500 + 300 * (x % 2) + 0 * y,
        "slanted": 500 + 300 * np.sin((x + 0.7 * y) / 2.5),
        "noise": 500 + 0 * x,
        "row noise": scene + 300 * rng.standard_normal((112, 1)),
        "alternating rows": scene + 400 * (y % 2),
        "constant": 500 + 0 * x,
        "dim": 100 + (scene - 100) / 200,
    }
    noise = 0 if kind == "constant" else 20 * rng.standard_normal((12, 112, 120))
    frames = np.clip(np.rint(images[kind] + noise), 0, 65535).astype(np.uint16)
    frames = np.broadcast_to(frames, (12, 112, 120))
    assert estimated(frames) == NO_OFFSET


def test_frames_that_are_too_small():
    assert estimated(displaced(make_movie(4, 30, 40)[0], 2)) == NO_OFFSET


def test_drift_over_files(movie, tmp_path):
    frames, _, _ = movie
    paths = [tmp_path / f"{k}.tif" for k in range(3)]
    for path, offset in zip(paths, (1.0, 1.0, 2.0), strict=True):
        tifffile.imwrite(path, displaced(frames[..., 0], offset), photometric="minisblack")

    def offset_of(chosen):
        with TiffReader(chosen) as reader:
            return estimate_scan_offset(reader, BadFrames("auto", reader)).pixels

    assert offset_of(paths[:2]) == pytest.approx(1, abs=0.1)  # no warning
    with pytest.warns(RuntimeWarning, match=r"drifts over the files, from (0\.9|1)\d* to (1\.9|2)\d* px"):
        assert 0.9 < offset_of(paths) < 2.1
    with TiffReader(paths) as reader:
        assert reader.parts == [range(16), range(16, 32), range(32, 48)]


# A run


def test_the_flow_is_better(movie):
    """The reference shows the tissue as it is; the frames are scanned with an offset."""
    frames, truth, flow = movie
    frames, truth = displaced(frames[..., 0], 2.0), truth[..., 0]

    def error(bidirectional):
        options = {**FAST, "quality": "quality", "bidirectional": bidirectional}
        return end_point_error(fg.register(frames, truth, "threading", **options)[1], flow)

    assert error("auto") == pytest.approx(error(2.0), rel=0.03)
    assert error("auto") < 0.6 * error(0)
    assert error(None) == error(0)


def test_what_is_written(movie, tmp_path):
    frames = displaced(movie[0][..., 0], 1.5)
    tifffile.imwrite(tmp_path / "in.tif", frames, photometric="minisblack")
    summary = fg.register_file(
        tmp_path / "in.tif", tmp_path / "out.tif", "sequential", slice(0, 4), tmp_path / "flow.h5", **FAST
    )
    offset = summary.scan_offset.pixels
    assert offset == pytest.approx(1.5, abs=0.1)
    assert f"odd lines were displaced by {offset:g} +- " in str(summary)
    corrected = ScanReader(ArrayReader(frames), offset).read(0, len(frames))[..., 0]
    by_hand, _ = fg.register(corrected, slice(0, 4), "sequential", bidirectional=0, **FAST)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif"), by_hand)


def test_nothing_changes_where_there_is_none(movie):
    frames = movie[0]
    for ours, theirs in zip(
        fg.register(frames, slice(0, 4), "sequential", **FAST),
        fg.register(frames, slice(0, 4), "sequential", bidirectional=0, **FAST),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("extension", [".h5", ".tif"])
def test_apply_moves_lines_alike(movie, tmp_path, extension):
    """Of the recording itself, with the same bits, and of another channel."""
    frames = displaced(movie[0], 1.5)
    for channel in (0, 1):
        tifffile.imwrite(tmp_path / f"{channel}.tif", frames[..., channel], photometric="minisblack")
    flow_file = tmp_path / f"flow{extension}"
    summary = fg.register_file(tmp_path / "0.tif", tmp_path / "out.tif", "sequential", slice(0, 4), flow_file, **FAST)
    with open_flow_reader(flow_file) as flow:
        assert flow.origin.scan_offset == summary.scan_offset.pixels != 0
        flows = flow.read(0, flow.n_frames)
    again = fg.apply_file(flow_file, tmp_path / "0.tif", tmp_path / "again.tif", "sequential")
    assert again.scan_offset.pixels == summary.scan_offset.pixels
    assert (tmp_path / "again.tif").read_bytes() == (tmp_path / "out.tif").read_bytes()
    reference = movie[1][..., 1]
    fg.apply_file(flow_file, tmp_path / "1.tif", tmp_path / "second.tif", "sequential", reference=reference)
    corrected = ScanReader(ArrayReader(frames[..., 1]), summary.scan_offset.pixels).read(0, len(frames))[..., 0]
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "second.tif"), fg.warp(corrected, flows, reference))


def test_equal_for_every_executor(movie):
    frames = displaced(movie[0][:8, :64, :72], 2.3)
    results = []
    for executor in (
        fg.SequentialExecutor(),
        fg.MultiprocessingExecutor(2),
        fg.GPUExecutor(device=EmulatedDevice(), batch=3),
    ):
        with executor:
            results.append(fg.register(frames, slice(0, 4), executor, bidirectional=2.3, **FAST))
    for result in results[1:]:
        for ours, theirs in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("value", [101, "yes", float("nan"), True])
def test_wrong_offset(value):
    with pytest.raises((ValueError, TypeError), match="bidirectional"):
        Options(bidirectional=value)
