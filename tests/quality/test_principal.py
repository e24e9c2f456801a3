"""Principal components against a singular value decomposition, and against suite2p's own function."""

import tracemalloc

import numpy as np
import pytest

from flowreg_gpu.quality import pixels
from flowreg_gpu.quality.principal import principal_extremes


def movie_of(n, height, width, seed=0):
    """Structure that is displaced and brightened in three independent rhythms, and noise, as int16."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    spots = rng.uniform(0, (height, width), (30, 2))
    scene = sum(500 * np.exp(-((y - v) ** 2 + (x - u) ** 2) / 8) for v, u in spots)
    down, right = np.gradient(scene)
    t = np.arange(n)[:, None, None]
    moved = scene + np.sin(t / 7) * right + 0.6 * np.cos(t / 3.3) * down + 0.3 * np.sin(t / 11) * scene * (y > x)
    brightness = 50 * rng.standard_normal((n, 1, 1))
    return (100 + moved + brightness + 5 * rng.standard_normal((n, height, width))).round().astype(np.int16)


def oracle(frames, valid, k, count):
    """Components by NumPy's SVD of the frames, less their means over time and over pixels."""
    n = len(frames)
    values = frames[:, valid].astype(np.float64)
    values = values - values.mean(axis=0)
    values = values - values.mean(axis=1, keepdims=True)
    courses = np.linalg.svd(values, full_matrices=False)[0][:, :k]
    low, high = np.empty((2, k, *frames.shape[1:]))
    for i in range(k):
        courses[:, i] *= np.sign(courses[np.abs(courses[:, i]).argmax(), i])
        order = np.argsort(courses[:, i])
        low[i], high[i] = frames[order[:count]].mean(axis=0), frames[order[n - count :]].mean(axis=0)
    return low, high, courses


@pytest.mark.parametrize("part", [500, 2**20])
@pytest.mark.parametrize(("n", "count"), [(40, None), (41, 7), (2, None)])
def test_is_that_of_a_singular_value_decomposition(monkeypatch, n, count, part):
    monkeypatch.setattr(pixels, "PART_VALUES", part)
    frames = movie_of(n, 31, 44)
    valid = np.random.default_rng(1).random((31, 44)) < 0.8
    k = min(3, n - 1)
    found = principal_extremes(frames, k, count, valid)
    low, high, courses = oracle(frames, valid, k, count or n // 2)
    assert [array.dtype for array in found] == [np.float32] * 3
    np.testing.assert_allclose(found.time_courses, courses, atol=1e-6)
    np.testing.assert_allclose(found.low, low, atol=1e-3)
    np.testing.assert_allclose(found.high, high, atol=1e-3)


@pytest.mark.parametrize("n", [200, 330])
def test_is_that_of_suite2p(n):
    """suite2p 1.1's images and courses up to the sign, where it computes them exactly: of some hundred frames."""
    metrics = pytest.importorskip("suite2p.registration.metrics", reason="suite2p is not installed")
    frames, k = movie_of(n, 64, 60), 3
    low, high, _, courses = metrics.pclowhigh(frames.copy(), min(300, n // 2), k, 0)
    found = principal_extremes(frames, k)
    same = (courses * found.time_courses).sum(axis=0) > 0
    np.testing.assert_allclose(found.time_courses, np.where(same, courses, -courses), atol=1e-4)
    same = same[:, None, None]
    np.testing.assert_allclose(found.low, np.where(same, low, high), atol=1e-2)
    np.testing.assert_allclose(found.high, np.where(same, high, low), atol=1e-2)


def test_brightness_of_whole_frames_is_no_component():
    frames = movie_of(60, 32, 32)
    brighter = frames + np.random.default_rng(3).integers(0, 3000, (60, 1, 1))
    found, right = principal_extremes(brighter, 3), principal_extremes(frames, 3)
    np.testing.assert_allclose(found.time_courses, right.time_courses, atol=1e-6)


def test_shows_motion_between_extremes():
    """A spot that swings by 4 px along x lies to one side in `low`, and to the other one in `high`."""
    y, x = np.mgrid[:40, :50]
    frames = np.stack([np.exp(-((y - 20) ** 2 + (x - 25 - 4 * np.sin(t / 5)) ** 2) / 20) for t in range(63)])
    low, high, _ = principal_extremes(frames, 1, 10)
    places = [(image[0] * x).sum() / image[0].sum() for image in (low, high)]
    assert abs(places[1] - places[0]) > 7


def test_at_most_300_frames_are_behind_an_image():
    frames = movie_of(620, 8, 9)
    found, right = principal_extremes(frames, 2), principal_extremes(frames, 2, 300)
    np.testing.assert_array_equal(found.low, right.low)
    assert not np.array_equal(found.low, principal_extremes(frames, 2, 310).low)


def test_frames_that_do_not_differ_have_no_component():
    assert principal_extremes(np.full((5, 6, 7), 0.1)).low.shape == (0, 6, 7)
    assert principal_extremes(movie_of(1, 6, 7)).time_courses.shape == (1, 0)
    two_kinds = np.concatenate([np.zeros((4, 6, 7)), np.tile(np.arange(42.0).reshape(6, 7), (4, 1, 1))])
    assert principal_extremes(two_kinds).high.shape == (1, 6, 7)


def test_pixels_that_are_not_finite_say_nothing():
    frames = movie_of(30, 20, 21).astype(np.float32)
    valid = np.ones((20, 21), bool)
    valid[3, 4] = valid[0, 0] = False
    right = principal_extremes(frames, 3, valid=valid)
    frames[2, 3, 4], frames[29, 0, 0] = np.nan, np.inf
    found = principal_extremes(frames, 3)
    np.testing.assert_array_equal(found.time_courses, right.time_courses)
    np.testing.assert_array_equal(found.low[:, valid], right.low[:, valid])
    assert not (np.isfinite(found.low) & np.isfinite(found.high))[:, ~valid].any()


def test_memory_stays_small():
    frames = np.random.default_rng(0).integers(0, 1000, (100, 400, 512), np.uint16)  # 41 MB, 164 MB in float64
    tracemalloc.start()
    principal_extremes(frames, 5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64e6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frames": np.zeros((3, 4, 5, 1))}, r"frames.shape=\(3, 4, 5, 1\) is not \(n, H, W\)"),
        ({"n_components": 0}, "n_components=0 is not 1 or more"),
        ({"n_extremes": 0}, "n_extremes=0 is not 1 to the number of frames, 3"),
        ({"n_extremes": 4}, "n_extremes=4 is not 1 to"),
        ({"valid": np.ones((3, 5), bool)}, r"valid of shape \(3, 5\)"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        principal_extremes(**{"frames": np.zeros((3, 4, 5)), **arguments})
