"""The operations on the emulated device against their CPU twins.

The kernels are compiled without contraction to fused multiply-adds, as the CPU's are, and sum in the same order: the
two agree to the last bit.
"""

import numpy as np
import pytest
from emulation import EmulatedDevice
from scipy.ndimage import gaussian_filter
from synthetic import smooth_flow, to_planes

from flowreg_gpu import cpu
from flowreg_gpu.cpu.pyramid import resize as cpu_resize
from flowreg_gpu.cuda import flow as flow_planes
from flowreg_gpu.cuda import solver
from flowreg_gpu.cuda.launch import BLOCK, LINE, frame_stride, line_grid, pixel_grid
from flowreg_gpu.cuda.operations import CudaOperations
from flowreg_gpu.cuda.preprocess import C_TYPES
from flowreg_gpu.cuda.warp import valid_mask, warp_frames
from flowreg_gpu.relaxation import Relaxation
from flowreg_gpu.resampling import gaussian_table, resampling_tables

SIZES = [(17, 31), (5, 3), (33, 8), (64, 65)]
SPACING, ALPHA = (1.1, 1.3), (1.5, 4.0)


@pytest.fixture(scope="module")
def device():
    """Every launch is run with threads and blocks in both orders, and must not care."""
    return EmulatedDevice(order="both")


@pytest.fixture(scope="module")
def operations(device):
    return CudaOperations(device)


def planes(frames, channels, height, width, seed=0):
    """Smooth images (n, C, H, W) float32 of 0 to 1."""
    noise = np.random.default_rng(seed).standard_normal((frames, channels, height, width))
    images = gaussian_filter(noise, (0, 0, 1.5, 1.5))
    return ((images - images.min()) / np.ptp(images)).astype(np.float32)


def flows(frames, height, width, seed=0):
    """Flows (n, 2, H, W) float32, some of whose targets lie outside."""
    rng = np.random.default_rng(seed)
    return np.stack(
        [to_planes(smooth_flow(height, width, 1.0, rng.uniform(-3, 3, 2))) + rng.normal(0, 0.3) for _ in range(frames)]
    )


def each(function, *batches):
    """The CPU's operation on one frame after the other; what all share has one frame."""
    count = max(map(len, batches))
    return np.stack([function(*(batch[k % len(batch)] for batch in batches)) for k in range(count)])


def assert_same(device, buffer, expected):
    assert buffer.dtype == expected.dtype
    np.testing.assert_array_equal(device.to_host(buffer), expected)


def test_grids():
    assert pixel_grid(33, 8, 5) == (2, 1, 5)
    assert pixel_grid(1, 9, 1) == (1, 2, 1)
    assert line_grid(257, 3) == (2, 1, 3)
    assert line_grid(256) == (1, 1, 1)
    assert BLOCK[0] * BLOCK[1] == LINE[0] == 256


def test_frame_stride(device):
    assert frame_stride(device.empty((3, 2, 5, 7), np.float32)) == 70
    assert frame_stride(device.empty((1, 2, 5, 7), np.float32)) == 0  # shared by all frames


# Pyramid


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("size", "new"), [((17, 31), (9, 13)), ((33, 8), (33, 8)), ((20, 30), (41, 37))])
def test_resize(device, operations, channels, size, new):
    images, tables = planes(2, channels, *size), resampling_tables(*size, *new)
    expected = each(lambda image: cpu_resize(image, tables), images)
    assert_same(device, operations.resize(device.to_device(images), tables), expected)


def test_smooth_filters_every_channel_with_its_own_tables(device, operations):
    images = planes(2, 3, 19, 23)
    tables = [(gaussian_table(19, sigma), gaussian_table(23, 2 * sigma)) for sigma in (0.0, 1.0, 2.5)]
    expected = each(
        lambda image: np.concatenate([cpu_resize(image[c : c + 1], pair) for c, pair in enumerate(tables)]), images
    )
    assert_same(device, operations.smooth(device.to_device(images), tables), expected)


def test_tables_are_uploaded_once(device):
    operations = CudaOperations(device)
    image, tables = device.to_device(planes(1, 1, 17, 31)), resampling_tables(17, 31, 9, 13)
    operations.resize(image, tables)
    held = device.live_bytes
    operations.resize(image, tables)
    assert device.live_bytes == held


# Motion tensor


@pytest.mark.parametrize("const_assumption", ["gc", "gray", "cs"])
@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_motion_tensor(device, operations, const_assumption, height, width, channels):
    reference, moving = planes(1, channels, height, width), planes(2, channels, height, width, seed=1)
    expected = each(lambda a, b: cpu.motion_tensor(a, b, *SPACING, const_assumption), reference, moving)
    tensor = operations.motion_tensor(device.to_device(reference), device.to_device(moving), *SPACING, const_assumption)
    assert_same(device, tensor, expected)


# Solver

RULES = {
    "block": Relaxation("block", 1.8, 7, 2, 0.45, 1.0),
    "block, robust smoothness": Relaxation("block", 1.8, 7, 2, 0.45, 0.5),
    "block, half graduated": Relaxation("block", 1.95, 11, 5, 0.45, 0.5, 0.5),
    "sor": Relaxation("sor", 1.95, 12, 5, 0.45, 1.0),
    "sor, robust smoothness": Relaxation("sor", 1.95, 12, 5, 0.45, 0.5),
    "sor, more sweeps than diagonals": Relaxation("sor", 1.95, 50, 5, 0.45, 1.0),
    "sor, never refreshed": Relaxation("sor", 1.95, 3, 5, 0.45, 0.5),
    "sor, refreshed at once": Relaxation("sor", 1.5, 3, 1, 0.45, 0.5),
    "quadratic": Relaxation("block", 1.6, 6, 2, 1.0, 1.0),
    "convex stage": Relaxation("sor", 1.95, 6, 2, 0.45, 0.5, 0.0),
}


def solver_case(height, width, channels, frames=2):
    reference, moving = planes(1, channels, height, width), planes(frames, channels, height, width, seed=1)
    tensor = each(lambda a, b: cpu.motion_tensor(a, b, *SPACING, "gc"), reference, moving)
    weight = np.full((1, channels, height, width), 1 / channels, np.float32)
    weight[..., : width // 2] *= 0.25
    weight[..., 0, :] = -0.01  # as the resampling of a mask leaves it
    return tensor, weight, flows(frames, height, width)


@pytest.fixture(params=["whole", "tiles", "small tiles", "colours"])
def block_kernels(request, monkeypatch):
    """All ways of the rule block: small levels whole, large ones in tiles, the plain kernels as the yardstick."""
    if request.param != "whole":
        monkeypatch.setattr(solver, "SHARED_MEMORY", 0)
    if request.param == "small tiles":
        monkeypatch.setattr(solver, "TILE", (7, 5))
    if request.param == "colours":
        monkeypatch.setattr(solver, "TILE_SWEEPS", 0)


def solve_both(device, operations, tensor, weight, flow, relaxation):
    expected = each(lambda j, w, f: cpu.solve(j, w, f, ALPHA, SPACING, relaxation), tensor, weight, flow)
    given = [device.to_device(item) for item in (tensor, weight, flow)]
    return operations.solve(*given, ALPHA, SPACING, relaxation), expected


@pytest.mark.usefixtures("block_kernels")
@pytest.mark.parametrize("rule", RULES)
def test_solver_rules(device, operations, rule):
    assert_same(device, *solve_both(device, operations, *solver_case(23, 37, 2), RULES[rule]))


@pytest.mark.usefixtures("block_kernels")
@pytest.mark.parametrize("rule", ["block", "sor", "sor, robust smoothness"])
@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("channels", [1, 3, 4, 6])
def test_solver_sizes(device, operations, rule, height, width, channels):
    assert_same(device, *solve_both(device, operations, *solver_case(height, width, channels), RULES[rule]))


@pytest.mark.usefixtures("block_kernels")
@pytest.mark.parametrize("rule", ["block", "sor, robust smoothness"])
def test_solver_with_a_shared_flow(device, operations, rule):
    tensor, weight, flow = solver_case(23, 37, 1)
    assert_same(device, *solve_both(device, operations, tensor, weight, flow[:1], RULES[rule]))


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("height", "width", "sweeps"), [(70, 9, 7), (6, 700, 41)])
def test_cpu_solver_row_after_row(device, operations, height, width, sweeps, channels):
    """The CPU keeps few of many sorted rows, and relaxes wide rows in several passes."""
    relaxation = Relaxation("block", 1.7, sweeps, 2, 0.45, 1.0)
    assert_same(device, *solve_both(device, operations, *solver_case(height, width, channels), relaxation))


@pytest.mark.parametrize(("side", "fits"), [(90, True), (91, False)])
def test_levels_that_are_relaxed_in_one_launch(side, fits):
    device = EmulatedDevice()
    solve_both(device, CudaOperations(device), *solver_case(side, side, 1), Relaxation("block", 1.8, 1, 2, 0.45, 1.0))
    assert (("solver.cu", "relax_level<1, false>") in device.launches) == fits


def test_solver_at_extreme_stiffness(device, operations):
    """x^p over many octaves: the same series on both sides."""
    tensor, weight, flow = solver_case(23, 37, 1)
    for factor in (1e-12, 1e12):
        assert_same(device, *solve_both(device, operations, tensor * np.float32(factor), weight, flow, RULES["block"]))


# Median, sums


@pytest.mark.parametrize(("height", "width"), [*SIZES, (3, 3), (6, 40)])
def test_median(device, operations, height, width):
    images = planes(2, 2, height, width)
    assert_same(device, operations.median5x5(device.to_device(images)), each(cpu.median5x5, images))


def test_median_of_equal_values_and_large_ones(device, operations):
    rng = np.random.default_rng(2)
    images = rng.integers(0, 3, (2, 2, 21, 34)).astype(np.float32) * np.float32(1e30)
    assert_same(device, operations.median5x5(device.to_device(images)), each(cpu.median5x5, images))


@pytest.mark.parametrize(("frames", "other"), [(2, 2), (1, 2), (2, 1), (1, 1)])
@pytest.mark.parametrize("size", [(17, 31), (1, 1)])
def test_add(device, operations, frames, other, size):
    first = planes(frames, 2, 17, 31)
    second = np.random.default_rng(1).standard_normal((other, 2, *size)).astype(np.float32)
    assert_same(device, operations.add(device.to_device(first), device.to_device(second)), first + second)


def test_zero_flow(device, operations):
    assert_same(device, operations.zero_flow(device.to_device(planes(3, 1, 17, 31))), np.zeros((3, 2, 17, 31), "f4"))


@pytest.mark.parametrize("first", [0, 1, 3])
def test_sum_of_flows(device, first):
    flow, total = flows(4, 17, 31), np.random.default_rng(0).standard_normal((2, 17, 31))
    buffer = device.to_device(total)
    flow_planes.add_frames(device, device.to_device(flow), first, buffer)
    for one in flow[first:]:
        total = total + one
    assert_same(device, buffer, total)


def test_interleave(device):
    flow = flows(3, 17, 31)
    expected = np.ascontiguousarray(np.moveaxis(flow, 1, -1))
    assert_same(device, flow_planes.interleave(device, device.to_device(flow)), expected)


# Warp


@pytest.mark.parametrize("interpolation", ["cubic", "linear", "nearest"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shared", [True, False], ids=["shared flow", "flow per frame"])
def test_warp(device, operations, interpolation, channels, shared):
    moving, reference = planes(2, channels, 23, 37), planes(1, channels, 23, 37, seed=1)
    flow = flows(1 if shared else 2, 23, 37)
    expected = each(lambda m, f, r: cpu.warp(m, f, r, SPACING, interpolation), moving, flow, reference)
    given = map(device.to_device, (moving, flow, reference))
    assert_same(device, operations.warp(*given, SPACING, interpolation), expected)


def raw_frames(dtype, shape, seed=0):
    """Frames over the whole range of the dtype, so that cubic overshoot has to saturate."""
    rng = np.random.default_rng(seed)
    if dtype.kind == "f":
        return (1000 * rng.standard_normal(shape)).astype(dtype)
    limits = np.iinfo(dtype)
    return np.where(rng.random(shape) < 0.5, limits.min, limits.max).astype(dtype)


def warp_both(device, frames, flow, reference, interpolation):
    expected = np.empty_like(frames)
    for frame, one, out in zip(frames, flow, expected, strict=True):
        cpu.warp_frame(frame, one, reference, interpolation, out)
    given = map(device.to_device, (frames, flow, reference))
    return warp_frames(device, *given, interpolation), expected


@pytest.mark.parametrize("interpolation", ["cubic", "linear", "nearest"])
@pytest.mark.parametrize("dtype", list(C_TYPES), ids=str)
@pytest.mark.parametrize("channels", [1, 2])
def test_warp_of_raw_frames(device, interpolation, dtype, channels):
    frames = raw_frames(dtype, (2, 23, 37, channels))
    reference = raw_frames(dtype, (23, 37, channels), seed=1).astype(np.float32)
    assert_same(device, *warp_both(device, frames, flows(2, 23, 37), reference, interpolation))


def test_warp_takes_what_lies_outside_from_the_reference(device):
    """Beyond any edge, at the last fraction of a pixel, and where the flow is NaN or infinite."""
    frames, reference = raw_frames(np.dtype("u2"), (1, 23, 37, 1)), raw_frames(np.dtype("u2"), (23, 37, 1), 1)
    flow = np.zeros((1, 2, 23, 37), np.float32)
    flow[0, 0, 3] = np.linspace(-40, 40, 37)
    flow[0, 1, :, 5] = np.linspace(-30, 30, 23)
    flow[0, 0, 7, -3:] = 0.99, 1.5, 0.999
    flow[0, 0, 9, :4] = np.nan, np.inf, -np.inf, 1e30
    buffer, expected = warp_both(device, frames, flow, reference.astype(np.float32), "cubic")
    assert_same(device, buffer, expected)
    outside = (9, slice(0, 4))
    np.testing.assert_array_equal(expected[0][outside], reference[outside])
    y, x = np.mgrid[:23, :37]
    inside = (x + flow[0, 0] >= 0) & (x + flow[0, 0] < 37) & (y + flow[0, 1] >= 0) & (y + flow[0, 1] < 23)
    assert_same(device, valid_mask(device, device.to_device(flow)), inside[None].astype(np.uint8))
    assert not inside.all()
