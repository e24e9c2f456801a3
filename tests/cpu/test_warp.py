"""Backward warp: interpolation, boundary, dtypes, and the public function."""

import math

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

import flowreg_gpu
from flowreg_gpu.cpu.warp import warp, warp_frame
from tests import tolerances
from tests.movies import smooth_flow, to_planes
from tests.oracles.interpolation import cubic_weight

METHODS = ("cubic", "linear", "nearest")
DTYPES = ("uint8", "uint16", "int16", "float32")


def frame_of(dtype, *shape, seed=0):
    """Random pixels over the whole range of the type."""
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.random(shape).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)


def dyadic_flow(height, width, largest, seed=0):
    """Flow planes (2, H, W) in multiples of 1/64 px, never half a pixel, so that float32 holds every target."""
    steps = np.random.default_rng(seed).integers(-64 * largest, 64 * largest, (2, height, width), endpoint=True)
    steps[steps % 32 == 0] += 1
    return (steps / 64).astype(np.float32)


def targets(flow):
    y, x = np.mgrid[: flow.shape[1], : flow.shape[2]].astype(float)
    return y + flow[1], x + flow[0]


def outside(y, x):
    height, width = y.shape
    return (x < 0) | (x >= width) | (y < 0) | (y >= height)


def naive_cubic(image, y, x):
    """One value at (y, x): 4x4 cubic convolution with replicated borders, coordinates clamped to the image."""
    height, width = image.shape
    y, x = min(y, height - 1), min(x, width - 1)
    total = 0.0
    for row in range(math.floor(y) - 1, math.floor(y) + 3):
        for column in range(math.floor(x) - 1, math.floor(x) + 3):
            value = image[min(max(row, 0), height - 1), min(max(column, 0), width - 1)]
            total += cubic_weight(y - row) * cubic_weight(x - column) * value
    return total


def interpolate(image, y, x, method):
    """Float64 image at clamped coordinates, by SciPy or, for the cubic kernel, which SciPy lacks, naively."""
    height, width = image.shape
    if method == "cubic":
        return np.vectorize(lambda a, b: naive_cubic(image, a, b))(y, x)
    clamped = np.stack([np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)])
    return map_coordinates(image, clamped, order={"linear": 1, "nearest": 0}[method], mode="nearest")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(16, 16), (31, 47), (5, 3), (1, 9), (9, 2), (1, 1)])
def test_interpolation(size, method):
    image, reference = frame_of("float32", 2, *size), frame_of("float32", 2, *size, seed=1)
    flow = dyadic_flow(*size, 3)
    y, x = targets(flow)
    beyond = outside(y, x)
    expected = [interpolate(plane, y.clip(0), x.clip(0), method) for plane in image.astype(float)]
    found = warp(image, flow, reference, interpolation=method)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[:, beyond], reference[:, beyond])
    np.testing.assert_allclose(found, np.where(beyond, reference, expected), rtol=0, atol=tolerances.INTERPOLATION)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(33, 70), (20, 17), (19, 3)])
def test_neighbours_have_no_influence(size, method):
    """Pixels of a smooth flow, which are computed many at a time, are those of a flow that is rough around them."""
    image, reference = frame_of("float32", 2, *size), frame_of("float32", 2, *size, seed=1)
    smooth = to_planes(smooth_flow(*size, 2.0, (0.7, -1.3)))
    rough = smooth + np.random.default_rng(2).uniform(-3, 3, smooth.shape).astype(np.float32)
    mixed = rough.copy()
    mixed[:, 1::3, ::2] = smooth[:, 1::3, ::2]
    found = warp(image, mixed, reference, interpolation=method)
    expected = warp(image, smooth, reference, interpolation=method)
    np.testing.assert_array_equal(found[:, 1::3, ::2], expected[:, 1::3, ::2])
    assert not np.array_equal(found, expected)


@pytest.mark.parametrize("method", METHODS)
def test_grid_spacing(method):
    """On a level whose pixels are 1.5 wide and 2 high, a flow of (3, -4) pixels is 2 columns and -2 rows."""
    image, reference = frame_of("float32", 1, 12, 14), frame_of("float32", 1, 12, 14, seed=1)
    flow = np.broadcast_to(np.array([3, -4], np.float32).reshape(2, 1, 1), (2, 12, 14)).copy()
    found = warp(image, flow, reference, (1.5, 2.0), method)
    np.testing.assert_array_equal(found[0, 2:, :-2], image[0, :-2, 2:])
    np.testing.assert_array_equal(found[0, :2], reference[0, :2])
    np.testing.assert_array_equal(found[0, :, -2:], reference[0, :, -2:])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [*DTYPES, "float64"])
def test_zero_flow_is_the_identity(dtype, method):
    frame = frame_of(dtype, 17, 23, 2)
    found = flowreg_gpu.warp(frame, np.zeros((17, 23, 2)), frame[::-1].astype(np.float32), method)
    assert found.dtype == frame.dtype
    np.testing.assert_array_equal(found, frame)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("u", "v"), [(3, 0), (-2, 5), (0, -4), (22, 16), (-22, -16)])
def test_whole_pixels_are_exact(u, v, dtype, method):
    frame, reference = frame_of(dtype, 17, 23), frame_of(dtype, 17, 23, seed=1)
    expected = reference.copy()
    for y in range(17):
        for x in range(23):
            if 0 <= y + v < 17 and 0 <= x + u < 23:
                expected[y, x] = frame[y + v, x + u]
    flow = np.tile(np.float32([u, v]), (17, 23, 1))
    np.testing.assert_array_equal(flowreg_gpu.warp(frame, flow, reference, method), expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("axis", [0, 1])
def test_edge_of_the_frame(axis, method):
    """Targets in [0, n) are the frame's, those beyond the last pixel's centre replicated; all else the reference's."""
    frame, reference = frame_of("float32", 9, 9), frame_of("float32", 9, 9, seed=1)
    below = np.nextafter(np.float32(9), np.float32(0)) - np.float32(4)
    for target, inside in ((-4, True), (np.float32(4.0) + 0.25, True), (below, True), (-4 - 2**-10, False), (5, False)):
        flow = np.zeros((9, 9, 2), np.float32)
        flow[4, 4, 1 - axis] = target
        found = flowreg_gpu.warp(frame, flow, reference, method)[4, 4]
        line = frame[:, 4] if axis == 0 else frame[4]
        replicated = line[0] if target < 0 else line[-1]
        assert found == (replicated if inside else reference[4, 4]), target


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, -1e30])
def test_targets_nowhere_are_the_reference(value, method):
    frame, reference = frame_of("uint16", 8, 8), frame_of("uint16", 8, 8, seed=1)
    for component in (0, 1):
        flow = np.zeros((8, 8, 2), np.float32)
        flow[2, 3, component] = value
        expected = frame.copy()
        expected[2, 3] = reference[2, 3]
        np.testing.assert_array_equal(flowreg_gpu.warp(frame, flow, reference, method), expected)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
def test_halves_go_to_the_nearest_even(dtype):
    frame = np.tile(np.arange(0, 20).astype(dtype), (16, 1))
    if dtype == "int16":
        frame -= 10
    flow = np.tile(np.float32([0.5, 0]), (16, 20, 1))
    found = flowreg_gpu.warp(frame, flow, frame, "linear")
    expected = np.rint(frame[0, :-1] + 0.5)
    np.testing.assert_array_equal(found[:, :-1], np.tile(expected, (16, 1)))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
@pytest.mark.parametrize("axis", [0, 1])
def test_overshoot_saturates(dtype, axis):
    """The cubic kernel overshoots a step between the extremes by 3/32 of its height half a pixel away from it."""
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    frame = np.full((16, 16), low, dtype)
    frame[:, 8:] = high
    flow = np.tile(np.float32([0.5, 0]), (16, 16, 1))
    middle = np.rint((low + high) / 2)
    expected = np.array([low] * 7 + [middle] + [high] * 8, dtype)
    if axis == 0:
        frame, flow = np.ascontiguousarray(frame.T), flow[..., ::-1]
    found = flowreg_gpu.warp(frame, flow, frame)
    np.testing.assert_array_equal(found[8] if axis == 1 else found[:, 8], expected)
    # the same in floats does overshoot, or the test above would show nothing
    loose = flowreg_gpu.warp(frame.astype(np.float32), flow, frame)
    assert loose.max() > high + 0.05 * (high - low)
    assert loose.min() < low - 0.05 * (high - low)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
def test_integers_are_the_rounded_floats(dtype):
    frame, reference = frame_of(dtype, 31, 21, 2), frame_of(dtype, 31, 21, 2, seed=1)
    flow = np.moveaxis(dyadic_flow(31, 21, 2), 0, -1)
    y, x = targets(np.moveaxis(flow, -1, 0))
    exact = np.stack([interpolate(frame[..., c].astype(float), y.clip(0), x.clip(0), "cubic") for c in (0, 1)], axis=-1)
    exact = np.where(outside(y, x)[..., None], reference, exact).clip(np.iinfo(dtype).min, np.iinfo(dtype).max)
    found = flowreg_gpu.warp(frame, flow, reference).astype(float)
    assert np.abs(found - exact).max() <= 0.5 + tolerances.INTERPOLATION * np.iinfo(dtype).max


@pytest.mark.parametrize("channels", [None, 1, 2, 3])
@pytest.mark.parametrize("frames", [None, 1, 4])
def test_public_shapes(frames, channels):
    """Every layout is the stack of what its frames and channels give alone."""
    height, width = 18, 21
    shape = (*(() if frames is None else (frames,)), height, width, *(() if channels is None else (channels,)))
    movie, reference = frame_of("uint16", *shape), frame_of("uint16", *shape[frames is not None :], seed=1)
    flow = np.stack([np.moveaxis(dyadic_flow(height, width, 2, seed=t), 0, -1) for t in range(frames or 1)])
    kept = [item.copy() for item in (movie, reference, flow)]
    found = flowreg_gpu.warp(movie, flow if frames else flow[0], reference)
    assert (found.shape, found.dtype) == (movie.shape, movie.dtype)
    stack, still = movie.reshape(-1, height, width, channels or 1), reference.reshape(height, width, -1)
    for t in range(frames or 1):
        for c in range(channels or 1):
            expected = np.empty((height, width, 1), np.uint16)
            planes = np.ascontiguousarray(np.moveaxis(flow[t], -1, 0))
            one = still[..., c : c + 1].astype(np.float32)
            warp_frame(np.ascontiguousarray(stack[t, :, :, c : c + 1]), planes, one, "cubic", expected)
            np.testing.assert_array_equal(found.reshape(stack.shape)[t, :, :, c], expected[..., 0])
    for item, before in zip((movie, reference, flow), kept, strict=True):
        np.testing.assert_array_equal(item, before)


def test_public_takes_views_and_read_only_input():
    movie = frame_of("uint16", 3, 2, 18, 21)
    flow = np.moveaxis(np.stack([dyadic_flow(18, 21, 2, seed=t) for t in range(3)]), 1, -1)
    channels_last = movie.transpose(0, 2, 3, 1)
    still = np.ascontiguousarray(channels_last[0])
    expected = flowreg_gpu.warp(np.ascontiguousarray(channels_last), np.ascontiguousarray(flow), still)
    for item in (movie, flow):
        item.flags.writeable = False
    np.testing.assert_array_equal(flowreg_gpu.warp(channels_last, flow, channels_last[0]), expected)
    np.testing.assert_array_equal(flowreg_gpu.warp(channels_last, flow.astype(float), channels_last[0]), expected)


def test_single_channel_takes_a_plain_reference():
    frame = frame_of("uint8", 16, 18, 1)
    flow = np.moveaxis(dyadic_flow(16, 18, 2), 0, -1)
    found = flowreg_gpu.warp(frame, flow, frame[::-1, :, 0])
    np.testing.assert_array_equal(found, flowreg_gpu.warp(frame, flow, frame[::-1]))


@pytest.mark.parametrize(
    ("frames", "flow", "reference", "method", "message"),
    [
        ((16, 18), (16, 18), (16, 18), "cubic", r"flow has shape \(16, 18\), expected \(H, W, 2\)"),
        ((16, 18), (16, 18, 3), (16, 18), "cubic", r"flow has shape \(16, 18, 3\)"),
        ((16, 18), (2, 16, 18), (16, 18), "cubic", r"flow has shape \(2, 16, 18\)"),
        ((16, 18), (18, 16, 2), (16, 18), "cubic", r"frames have shape \(16, 18\), expected \(18, 16\)"),
        ((3, 16, 18), (4, 16, 18, 2), (16, 18), "cubic", r"frames have shape \(3, 16, 18\), expected \(4, 16, 18\)"),
        ((16, 18, 2, 2), (16, 18, 2), (16, 18), "cubic", r"frames have shape \(16, 18, 2, 2\)"),
        ((16, 18), (16, 18, 2), (16, 17), "cubic", r"reference has shape \(16, 17\), expected \(16, 18, 1\)"),
        ((16, 18, 2), (16, 18, 2), (16, 18), "cubic", r"reference has shape \(16, 18\), expected \(16, 18, 2\)"),
        ((16, 18), (16, 18, 2), (16, 18), "lanczos", "interpolation_method='lanczos' is not one of"),
    ],
)
def test_errors(frames, flow, reference, method, message):
    with pytest.raises(ValueError, match=message):
        flowreg_gpu.warp(np.zeros(frames), np.zeros(flow), np.zeros(reference), method)
