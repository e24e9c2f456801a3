"""Hot and dead pixels of the sensor, and the high-pass: what the flow sees, and what is written."""

import numpy as np
import pytest
import tifffile
from scipy.ndimage import gaussian_filter

import flowreg_gpu as fg
from flowreg_gpu.cpu.preprocess import preprocess
from flowreg_gpu.engine.job import Job
from flowreg_gpu.io import ArrayReader, TiffReader
from flowreg_gpu.model.preprocessing import Defects
from flowreg_gpu.options import Options
from flowreg_gpu.registration.bad_frames import BadFrames
from flowreg_gpu.registration.hot_pixels import find_hot_pixels
from flowreg_gpu.registration.loop import Registration
from flowreg_gpu.synthetic import end_point_error, make_movie
from tests.emulation import EmulatedDevice

FAST = {"alpha": 4, "quality": "fast", "cc_initialization": False}


def found(movie):
    reader = ArrayReader(movie)
    return find_hot_pixels(reader, BadFrames("auto", reader)).tolist()


@pytest.fixture(scope="module")
def movie():
    """Frames (T, H, W, 2), the same with hot and dead pixels, their places, and the true flow."""
    frames, truth, flow = make_movie(20, 96, 96, photons=40)
    frames, truth = frames + np.uint16(8000), truth + 8000
    rng = np.random.default_rng(7)
    places = np.unravel_index(rng.permutation(np.arange(0, 96 * 96, 7))[:40], (96, 96))
    spoiled = frames.copy()
    spoiled[:, places[0][:30], places[1][:30], 0] += 8000
    spoiled[:, places[0][30:], places[1][30:], 0] = 0
    pixels = sorted([int(y), int(x), 0] for y, x in zip(*places, strict=True))
    return frames, spoiled, pixels, truth, flow


def test_they_are_found(movie):
    frames, spoiled, pixels, _, _ = movie
    assert found(frames) == []
    assert found(spoiled) == pixels
    assert found(spoiled[:7]) == []  # too few to tell
    spoiled = spoiled.copy()
    spoiled[:, ::2, ::2, 1] += 3000  # a quarter of all: whatever that is
    assert found(spoiled) == []


def test_at_the_border(movie):
    frames = movie[0].copy()
    frames[:, 0, 0, 1] += 3000
    frames[:, 95, 40, 0] += 3000
    frames[:, 50, 95, 0] = 0
    assert found(frames) == [[0, 0, 1], [50, 95, 0], [95, 40, 0]]


@pytest.mark.parametrize("sigma", [0.7, 1.0, 1.5])
@pytest.mark.parametrize("photons", [0.05, 1, 1000])
def test_spots_of_light_are_none(sigma, photons):
    """Beads that do not move, from counted photons to bright ones."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:80, :80]
    scene = np.full((80, 80), 0.02)
    for _ in range(20):
        at_y, at_x = rng.uniform(3, 76, 2)
        scene += np.exp(-((y - at_y) ** 2 + (x - at_x) ** 2) / (2 * sigma**2))
    assert found(np.clip(100 + 20 * rng.poisson(photons * scene, (30, 80, 80)), 0, 65535).astype(np.uint16)) == []


def test_no_false_alarm_in_real_movies(shared_data):
    for path in sorted(shared_data.glob("*.tif")):
        axes = {"axes": "TZYX"} if "lightsheet" in path.name else {}
        if axes:
            continue  # planes of a volume
        with TiffReader(path) as reader:
            assert find_hot_pixels(reader, BadFrames("auto", reader)).tolist() == [], path.name


def test_frames_without_an_image_say_nothing(movie):
    """Neither bad frames nor those that cannot be read."""
    frames = movie[0].copy()
    frames[:10, 30, 30] = 60000
    frames[10:] = 0  # black: only ten frames are left, all of them with the pixel
    assert found(frames) == [[30, 30, 0], [30, 30, 1]]

    nonfinite = movie[1].astype(np.float32)
    nonfinite[:5, 3, 4] = np.nan
    assert found(nonfinite) == found(movie[1])  # by the other frames
    nonfinite[:, 3, 4] = np.inf
    assert found(nonfinite) == []

    class Broken(ArrayReader):
        def _load(self, start, stop):
            raise OSError("unplugged")

    reader = Broken(frames)
    assert find_hot_pixels(reader, BadFrames(None, reader)).tolist() == []


def test_neighbours_take_their_place():
    """The mean of the good ones, in planes and in frames."""
    pixels = np.array([[0, 0, 0], [5, 6, 1], [5, 7, 1]])
    defects = Defects.build(pixels, 20, 30)
    frame = np.random.default_rng(0).random((20, 30, 2), np.float32)
    expected = frame.copy()
    expected[0, 0, 0] = frame[[0, 1, 1], [1, 0, 1], 0].mean()
    for y, x, other in ((5, 6, 7), (5, 7, 6)):
        near = [frame[i, j, 1] for i in (4, 5, 6) for j in (x - 1, x, x + 1) if (i, j) not in ((y, x), (5, other))]
        expected[y, x, 1] = np.mean(near)
    planes = Job.from_raw(options=Options(sigma=(0, 0, 0)), reference=frame, defects=defects)
    found = frame.copy()
    defects.replace(found)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    low, high = expected.min(), expected.max()
    shown = preprocess(frame[None], planes.preprocessing)
    np.testing.assert_allclose(shown.transpose(1, 2, 0), (expected - low) / (high - low), rtol=1e-4, atol=1e-6)
    everywhere = np.argwhere(np.ones((4, 4, 1), bool))
    assert len(Defects.build(everywhere, 4, 4).position) == 0  # no neighbour is left


def test_the_flow_does_not_hold_on_to_them(movie):
    frames, spoiled, pixels, _, flow = movie

    def error(recording, hot_pixels):
        reader = ArrayReader(recording[..., :1])
        summary = Registration(reader, None, "threading", Options(**FAST, hot_pixels=hot_pixels)).run()
        assert len(summary.hot_pixels) == (len(pixels) if hot_pixels and recording is spoiled else 0)
        _, estimated = fg.register(recording[..., :1], None, "threading", hot_pixels=hot_pixels, **FAST)
        estimated -= estimated.mean(axis=0) - flow.mean(axis=0)  # the reference is not the truth
        return end_point_error(estimated, flow)

    clean = error(frames, True)
    assert error(frames, False) == clean  # where there are none, nothing changes
    assert error(spoiled, False) > 1.3 * clean
    assert error(spoiled, True) < 1.1 * clean


def test_what_is_written_keeps_them(movie, tmp_path):
    _, spoiled, pixels, truth, _ = movie
    tifffile.imwrite(tmp_path / "in.tif", spoiled[..., 0], photometric="minisblack")
    summary = fg.register_file(
        tmp_path / "in.tif", tmp_path / "out.tif", "sequential", truth[..., 0], tmp_path / "flow.tif", **FAST
    )
    assert summary.hot_pixels.tolist() == pixels
    assert f"hot or dead pixels, replaced in what the flow sees: {len(pixels)}" in str(summary)
    flow = tifffile.imread(tmp_path / "flow.tif")
    warped = fg.warp(spoiled[..., 0], flow, truth[..., 0])
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif"), warped)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"highpass": 6},
        {"highpass": 6, "hot_pixels": False, "sigma": (1, 1, 0.5)},
        {"highpass": 400, "alpha": "auto"},
    ],
)
def test_equal_for_every_executor(movie, options):
    _, spoiled, _, _, _ = movie
    cut = np.ascontiguousarray(spoiled[:12, :64, :70])
    results = []
    for executor, batch in (
        (fg.SequentialExecutor(), 5), (fg.MultiprocessingExecutor(2), 12),
        (fg.GPUExecutor(device=EmulatedDevice(), batch=4, fallback=False), 4),
    ):  # fmt: skip
        with executor:
            results.append(fg.register(cut, slice(0, 4), executor, batch=batch, **FAST | options))
    for registered, flow in results[1:]:
        np.testing.assert_array_equal(registered, results[0][0])
        np.testing.assert_array_equal(flow, results[0][1])


# High-pass


@pytest.mark.parametrize(("sigma", "size"), [(4, (60, 70)), (12, (90, 120)), (30, (64, 64)), (400, (40, 50))])
def test_highpass_takes_a_gaussian_mean_away(sigma, size):
    """What is much wider is gone, what is much narrower is left; like SciPy's Gaussian in between."""
    rng = np.random.default_rng(2)
    y, x = np.mgrid[: size[0], : size[1]]
    wide = 5 * np.exp(-((y - size[0] / 2) ** 2 + (x - size[1] / 2) ** 2) / (2 * (6.0 * sigma) ** 2))
    fine = gaussian_filter(rng.standard_normal(size), 1)
    image = (wide + fine)[..., None].astype(np.float32)
    job = Job.from_raw(options=Options(highpass=sigma, sigma=(0, 0, 0)), reference=image)
    found = job.reference_planes[0] / job.preprocessing.scale[0]
    expected = image[..., 0] - gaussian_filter(image[..., 0].astype(float), sigma, mode="reflect", truncate=2)
    inner = (slice(3, -3), slice(3, -3))
    difference = np.abs(found - expected)[inner]
    assert difference.max() < 0.15 * np.ptp(fine)
    assert np.corrcoef(found[inner].ravel(), fine[inner].ravel())[0, 1] > 0.9


def test_highpass_and_haze_that_does_not_move():
    """Brightness constancy takes fixed haze for tissue at rest; without it, it does not."""
    frames, truth, flow = make_movie(8, 96, 96, photons=2000)
    y, x = np.mgrid[:96, :96]
    haze = 30000 * np.exp(-((y - 48) ** 2 + (x - 48) ** 2) / (2 * 30.0**2))
    frames = np.clip(frames[..., 0] * 0.5 + haze, 0, 65535).astype(np.uint16)
    reference = (truth[..., 0] * 0.5 + haze).astype(np.float32)

    def error(highpass):
        options = {"alpha": 0.02, "const_assumption": "gray", "highpass": highpass, "cc_initialization": False}
        return end_point_error(fg.register(frames, reference, "threading", **options)[1], flow)

    assert error(8) < 0.7 * error(None)


@pytest.mark.parametrize("value", [1, 501, float("nan"), "8", True])
def test_wrong_highpass(value):
    with pytest.raises((ValueError, TypeError), match="highpass"):
        Options(highpass=value)
