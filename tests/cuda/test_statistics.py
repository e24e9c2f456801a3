"""Per-frame statistics on the (emulated) device against the CPU."""

import numpy as np
import pytest

from flowreg_gpu.cpu.statistics import correlation, flow_statistics, leaves_frame
from flowreg_gpu.cuda.preprocess import C_TYPES
from flowreg_gpu.cuda.statistics import (
    COLUMNS,
    CORRELATIONS,
    PART,
    describe_flow,
    describe_frames,
    part_grid,
    prepare_reference,
)
from flowreg_gpu.engine.batch import STATISTICS
from tests import tolerances
from tests.emulation import EmulatedDevice
from tests.movies import smooth_flow, to_planes


@pytest.fixture(scope="module")
def device():
    return EmulatedDevice(order="both")


def random_frames(count, height, width, channels, dtype=np.uint16, seed=0):
    """Frames (T, H, W, C) and a reference (H, W, C) that correlates with them, without a common scale."""
    rng, dtype = np.random.default_rng(seed), np.dtype(dtype)
    base = rng.random((height, width, channels))
    frames = 100 * (base + 0.5 * rng.random((count, *base.shape))) - (
        40 if np.issubdtype(dtype, np.signedinteger) else 0
    )
    return frames.astype(dtype), (7000 + 30 * base).astype(np.float32)


def random_flows(count, height, width, seed=0):
    """Flows (T, 2, H, W) float32 of a few pixels, which do not leave the frame."""
    rng = np.random.default_rng(seed)
    flows = [
        to_planes(smooth_flow(height, width, 3.0, rng.uniform(-5, 5, 2)) + rng.standard_normal((height, width, 2)))
        for _ in range(count)
    ]
    flows = np.stack(flows)
    return flows * np.float32(min(1, 0.9 * min(height, width) / np.abs(flows).max()))


def describe(device, frames, reference, flow, registered=None):
    """Statistics (T, 8) and the settled flow; the registered frames are the frames unless given."""
    statistics = device.empty((len(frames), COLUMNS), np.float64)
    raw, settled = device.to_device(reference), device.to_device(flow)
    sums = prepare_reference(device, raw)
    describe_frames(device, device.to_device(frames), raw, sums, statistics, "correlation_before")
    describe_flow(device, settled, statistics)
    after = device.to_device(frames if registered is None else registered)
    describe_frames(device, after, raw, sums, statistics, "correlation_after")
    return device.to_host(statistics), device.to_host(settled)


def correlations(device, frames, reference):
    """Column 'correlation_before' and column 'constant'."""
    statistics, _ = describe(device, frames, reference, np.zeros((len(frames), 2, 2, 2), np.float32))
    return statistics[:, 6], statistics[:, 8]


def test_columns():
    assert len(STATISTICS) == COLUMNS
    assert {name: STATISTICS.index(name) for name in CORRELATIONS} == CORRELATIONS


def test_grid():
    assert part_grid(PART, 3) == (1, 1, 3)
    assert part_grid(PART + 1, 5) == (2, 1, 5)
    assert part_grid(512 * 512, 2)[0] * PART == 512 * 512


@pytest.mark.parametrize("dtype", C_TYPES)
@pytest.mark.parametrize("size", [(17, 31, 3), (16, 16, 1), (97, 41, 2), (1, 5, 4)])
def test_correlation(device, size, dtype):
    frames, reference = random_frames(3, *size, dtype)
    found, constant = correlations(device, frames, reference)
    expected = [correlation(frame, reference) for frame in frames]
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerances.DEVICE_STATISTICS)
    assert not constant.any()


@pytest.mark.parametrize("first", [65000, 0, 65535])
def test_correlation_on_a_high_background(device, first):
    """Ten grey values on top of 65 000, whatever the first pixel, which the sums are taken about."""
    rng = np.random.default_rng(3)
    frames = rng.integers(65000, 65010, (2, 97, 41, 1)).astype(np.uint16)
    reference = (frames[0] + rng.integers(0, 5, frames[0].shape)).astype(np.float32)
    frames[:, 0, 0] = first
    found, _ = correlations(device, frames, reference)
    expected = [correlation(frame, reference) for frame in frames]
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerances.DEVICE_STATISTICS)


def test_correlation_of_special_images(device):
    image = np.random.default_rng(4).random((16, 18, 2)).astype(np.float32)
    flat = np.full_like(image, 0.1)
    spoilt = image.copy()
    spoilt[3, 4, 1] = np.nan
    frames = np.stack([image, 2 - 3 * image, flat, spoilt, np.full_like(image, np.nan)])
    found, constant = correlations(device, frames, image)
    np.testing.assert_allclose(found, [1, -1, 0, 0, 0], rtol=0, atol=1e-6)
    assert found[2:].tolist() == [0, 0, 0]
    assert constant.tolist() == [0, 0, 1, 0, 0] == [frame.min() == frame.max() for frame in frames]
    assert not correlations(device, frames, flat)[0].any()


@pytest.mark.parametrize("dtype", C_TYPES)
@pytest.mark.parametrize("where", [0, 4095, 4096, -1])
def test_one_pixel_makes_a_frame_not_constant(device, dtype, where):
    """In any part; also for float64 values whose sums are not exact."""
    frames = np.full((3, 71, 59, 1), 117.1).astype(dtype)
    frames[1].ravel()[where] += 1
    _, constant = correlations(device, frames, random_frames(1, 71, 59, 1)[1])
    assert constant.tolist() == [1, 0, 1]


@pytest.mark.parametrize("size", [(2, 2), (2, 3), (3, 2), (17, 31), (16, 16), (97, 41)])
def test_flow_statistics(device, size):
    flow = random_flows(3, *size)
    frames, reference = random_frames(3, *size, 1)
    statistics, settled = describe(device, frames, reference, flow)
    for row, planes in zip(statistics, flow, strict=True):
        expected = flow_statistics(planes)
        np.testing.assert_allclose(row[:6], expected, rtol=0, atol=tolerances.DEVICE_STATISTICS * expected[1])
    assert not statistics[:, 8:].any()
    np.testing.assert_array_equal(settled, flow)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [(0, 0, 0), (1, 70, 58), (0, 40, 30), (1, 0, 58)])
def test_flow_that_is_not_finite(device, where, value):
    """One pixel is enough, in either component; the other frames keep their flow."""
    flow = random_flows(3, 71, 59)
    flow[(1, *where)] = value
    frames, reference = random_frames(3, 71, 59, 1)
    statistics, settled = describe(device, frames, reference, flow)
    assert statistics[:, 8:].tolist() == [[0, 0], [0, 1], [0, 0]]
    assert [leaves_frame(planes) for planes in flow] == [False, True, False]
    assert not statistics[1, :6].any()
    assert not settled[1].any()
    np.testing.assert_array_equal(settled[::2], flow[::2])
    for row, planes in zip(statistics[::2], flow[::2], strict=True):
        expected = flow_statistics(planes)
        np.testing.assert_allclose(row[:6], expected, rtol=0, atol=tolerances.DEVICE_STATISTICS * expected[1])


@pytest.mark.parametrize("where", [(0, 0), (70, 58), (40, 30)])
@pytest.mark.parametrize("sign", [-1, 1])
def test_flow_that_leaves_the_frame(device, where, sign):
    """One displacement as long as the frame is enough, the next smaller number is not: the verdict of the CPU."""
    height, width = 71, 59
    flow = random_flows(5, height, width)
    below = [np.nextafter(np.float32(size), np.float32(0)) for size in (width, height)]
    for frame, u, v in ((1, width, 0), (2, below[0], below[1]), (3, 0, height), (4, 3e38, -3e38)):
        flow[(frame, slice(None), *where)] = sign * u, sign * v
    frames, reference = random_frames(5, height, width, 1)
    statistics, settled = describe(device, frames, reference, flow)
    assert statistics[:, 9].tolist() == [0, 1, 0, 1, 1] == [leaves_frame(planes) for planes in flow]
    assert not statistics[[1, 3, 4], :6].any()
    assert not settled[[1, 3, 4]].any()
    np.testing.assert_array_equal(settled[[0, 2]], flow[[0, 2]])
    np.testing.assert_allclose(statistics[2, :6], flow_statistics(flow[2]), rtol=1e-9)


@pytest.mark.parametrize("value", [1.5, np.nan])
def test_constant_frames_have_no_flow_and_have_not_diverged(device, value):
    flow = random_flows(3, 17, 31)
    flow[1, 0, 3, 4] = value
    frames, reference = random_frames(3, 17, 31, 2)
    frames[1] = 9
    statistics, settled = describe(device, frames, reference, flow)
    assert statistics[1].tolist() == [0, 0, 0, 0, 0, 0, 0, 0, 1, 0]
    assert not settled[1].any()
    np.testing.assert_array_equal(settled[::2], flow[::2])


def test_registered_frames_have_a_column_of_their_own(device):
    frames, reference = random_frames(2, 17, 31, 2)
    registered, _ = random_frames(2, 17, 31, 2, seed=1)
    frames[1] = 5
    registered[0] = 6  # says nothing about the raw frame
    statistics, _ = describe(device, frames, reference, random_flows(2, 17, 31), registered)
    expected = [[correlation(item, reference) for item in pair] for pair in zip(frames, registered, strict=True)]
    np.testing.assert_allclose(statistics[:, 6:8], expected, rtol=0, atol=tolerances.DEVICE_STATISTICS)
    assert statistics[:, 8].tolist() == [0, 1]


def test_batches_do_not_matter(device):
    """To the last bit."""
    frames, reference = random_frames(3, 97, 41, 2)
    flow = random_flows(3, 97, 41)
    statistics, settled = describe(device, frames, reference, flow)
    for t in range(3):
        one = slice(t, t + 1)
        alone, alone_settled = describe(device, frames[one], reference, flow[one])
        np.testing.assert_array_equal(alone, statistics[one])
        np.testing.assert_array_equal(alone_settled, settled[one])


def test_arguments_that_do_not_fit(device):
    frames, reference = (device.to_device(item) for item in random_frames(2, 8, 9, 1))
    statistics, sums = device.empty((2, COLUMNS), np.float64), prepare_reference(device, reference)
    with pytest.raises(ValueError, match="column='mean_disp', expected one of correlation_before, correlation_after"):
        describe_frames(device, frames, reference, sums, statistics, "mean_disp")
    with pytest.raises(ValueError, match=r"frames are \(1, 8, 9, 1\)"):
        describe_frames(device, frames[:1], reference, sums, statistics, "correlation_after")
    wide = device.to_device(np.ones((2, 8, 9, 1), np.uint32))
    with pytest.raises(TypeError, match="frames are uint32"):
        describe_frames(device, wide, reference, sums, statistics, "correlation_after")
    with pytest.raises(ValueError, match=r"flow is \(2, 2, 1, 9\)"):
        describe_flow(device, device.to_device(np.zeros((2, 2, 1, 9), np.float32)), statistics)
