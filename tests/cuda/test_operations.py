"""The operations on the emulated device against their CPU twins.

The kernels are compiled without contraction to fused multiply-adds, as the CPU's are, write the same ones and sum in
the same order: the two agree to the last bit.
"""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from flowreg_gpu import cpu
from flowreg_gpu.cpu.pyramid import resize as cpu_resize
from flowreg_gpu.cuda import descend, motion_tensor, multigrid, pyramid, solver, strips
from flowreg_gpu.cuda import flow as flow_planes
from flowreg_gpu.cuda.descend import upload_levels
from flowreg_gpu.cuda.launch import BLOCK, GROUP, LINE, OPT_IN_SHARED_MEMORY, frame_stride, line_grid, pixel_grid
from flowreg_gpu.cuda.operations import CudaOperations
from flowreg_gpu.cuda.preprocess import C_TYPES
from flowreg_gpu.cuda.warp import warp_frames
from flowreg_gpu.model.estimator import FlowEstimator
from flowreg_gpu.model.plan import plan_descents, plan_levels
from flowreg_gpu.model.relaxation import Relaxation, choose_relaxation
from flowreg_gpu.model.resampling import gaussian_table, resampling_tables
from flowreg_gpu.options import Options
from tests.emulation import EmulatedDevice
from tests.movies import smooth_flow, to_planes

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


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("size", "levels"),
    [
        ((33, 70), [(5, 9), (9, 9), (33, 20), None, (21, 41), (33, 66)]),
        ((64, 65), [(64, 65), (1, 1), (90, 40)]),
        ((17, 31), [None]),
        ((17, 31), [(20, 40)]),
    ],
)
def test_pyramid(device, operations, channels, size, levels):
    """Every level as the CPU makes it, in one launch; coarse, fine, larger ones, and the image itself."""
    images = planes(2, channels, *size)
    tables = [level and resampling_tables(*size, *level) for level in levels]
    buffer, before = device.to_device(images), device.launches.total()
    found = operations.pyramid(buffer, tables)
    assert device.launches.total() - before == (levels != [None])
    for one, pair in zip(found, tables, strict=True):
        if pair is None:
            assert one is buffer
        else:
            assert_same(device, one, each(lambda image, pair=pair: cpu_resize(image, pair), images))


@pytest.mark.parametrize("limit", [0, 100, 400])
def test_narrower_tiles_where_the_taps_span_much(device, monkeypatch, limit):
    monkeypatch.setattr(pyramid, "DEFAULT_SHARED_MEMORY", limit)
    images, tables = planes(2, 1, 21, 90), resampling_tables(21, 90, 8, 35)
    found = CudaOperations(device).resize(device.to_device(images), tables)
    assert_same(device, found, each(lambda image: cpu_resize(image, tables), images))


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


# Upsampling, warp and motion tensor


@pytest.fixture(params=[32, 9], ids=["one tile or a few", "small tiles"])
def tile(request, monkeypatch):
    monkeypatch.setattr(motion_tensor, "TILE", request.param)


def linearize_both(device, reference, moving, flow, *settings):
    """Flow and tensor by the device, which must be those of the CPU's plain functions, one after the other."""
    operations = CudaOperations(device)  # which has no tables of another tile
    expected = [
        each(lambda a, b, f, k=k: cpu.linearize(a, b, f, *settings)[k], reference, moving, flow) for k in range(2)
    ]
    if len(flow) == 1:
        expected[0] = expected[0][:1]
    for found, plain in zip(
        operations.linearize(*map(device.to_device, (reference, moving, flow)), *settings), expected, strict=True
    ):
        assert_same(device, found, plain)


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("const_assumption", ["gc", "gray", "cs"])
@pytest.mark.parametrize(("height", "width"), [*SIZES, (1, 2), (29, 33)])
@pytest.mark.parametrize("channels", [1, 3])
def test_linearize(device, const_assumption, height, width, channels):
    images = planes(1, channels, height, width), planes(2, channels, height, width, seed=1)
    linearize_both(device, *images, flows(2, height, width), None, SPACING, const_assumption)


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("const_assumption", ["gc", "gray", "cs"])
@pytest.mark.parametrize(
    ("above", "size"), [((14, 25), (17, 31)), ((17, 31), (17, 31)), ((8, 27), (8, 33)), ((64, 65), (9, 11))], ids=str
)
@pytest.mark.parametrize("frames", [1, 2], ids=["shared flow", "flow per frame"])
def test_linearize_about_a_resampled_flow(device, const_assumption, above, size, frames):
    """From the coarser level, from one of the same size or width, and the start flow reduced to the coarsest level."""
    images, tables = (planes(1, 2, *size), planes(2, 2, *size, seed=1)), resampling_tables(*above, *size)
    linearize_both(device, *images, flows(frames, *above), tables, SPACING, const_assumption)


@pytest.mark.parametrize("const_assumption", ["gc", "gray", "cs"])
def test_linearize_where_the_flow_leads_outside(device, const_assumption):
    """Beyond any edge, at the last fraction of a pixel, and where the flow is NaN or infinite."""
    flow = np.zeros((2, 2, 23, 37), np.float32)
    flow[:, 0, 3] = np.linspace(-50, 50, 37)
    flow[0, 1, :, 5] = np.linspace(-40, 40, 23)
    flow[:, 0, 7, -3:] = 0.99, 1.5, 0.999
    flow[1, 1, 9, :4] = np.nan, np.inf, -np.inf, 1e30
    images = planes(1, 2, 23, 37), planes(2, 2, 23, 37, seed=1)
    linearize_both(device, *images, flow, None, SPACING, const_assumption)
    linearize_both(device, *images, flow + np.float32(40), None, SPACING, const_assumption)


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


@pytest.fixture(params=["strips", "narrow strips", "colours"])
def block_kernels(request, monkeypatch, device):
    """All ways of the rule block: in strips, and the plain kernels as the yardstick."""
    chosen = solver._way
    if request.param == "colours":
        monkeypatch.setattr(solver, "_way", lambda *level: chosen(*level).replace("strips", "colours"))
    elif request.param == "narrow strips":
        for owner, name in ((device, "shared_memory"), (solver, "OPT_IN_SHARED_MEMORY")):
            monkeypatch.setattr(owner, name, 16 * 1024)
        monkeypatch.setattr(strips, "NARROWEST_STRIP", 2)
        monkeypatch.setattr(strips, "LARGEST_HALO", 9.0)
    else:
        monkeypatch.setattr(device, "multiprocessors", 1)


def solve_both(device, operations, tensor, weight, flow, relaxation, alpha=ALPHA):
    expected = each(lambda j, w, f: cpu.solve(j, w, f, alpha, SPACING, relaxation), tensor, weight, flow)
    given = [device.to_device(item) for item in (tensor, weight, flow)]
    return operations.solve(*given, alpha, SPACING, relaxation), expected


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


@pytest.mark.parametrize("width", [107, 168, 262, 410, 512, 1024, 2048])
def test_strips_move_few_bytes(width):
    """Below 12 bytes a pixel and sweep on an H100: what is read with the halo, and the increment that is written.

    The weights, which all frames share, come from the cache.
    """
    relaxation, shared_memory = choose_relaxation(Options(), width, width), 227 * 1024
    strip, runs = strips.plan_strips(width, 1, relaxation, shared_memory)
    assert len(runs) <= 4
    assert sum(run.first + run.more for run in runs) == relaxation.sweeps
    inner_edges = 2 * (-(-width // strip) - 1)
    nbytes = 0.0
    for number, run in enumerate(runs):
        halo = 2 * (run.first + run.more)
        read = 6 + 2 + (2 if number else 0)  # tensor, flow, increment
        nbytes += 4 * (read * (1 + inner_edges * halo / width) + 2)
        columns = min(strip + 2 * halo, width)
        pitch = run.pitch(columns, 1, relaxation.lag, shared_memory)
        assert pitch >= columns
        assert 4 * run.floats(1, relaxation.lag) * pitch <= shared_memory
        assert run.threads(pitch, 1, relaxation.lag) <= GROUP[0]
    assert nbytes / relaxation.sweeps < 12


@pytest.mark.parametrize("channels", [1, 2, 4, 8])
@pytest.mark.parametrize(("sweeps", "lag"), [(1, 1), (1, 2), (20, 2), (7, 3), (50, 5)])
def test_strips_on_the_smallest_gpu(channels, sweeps, lag):
    """Every launch fits, and all sweeps are done with psi refreshed in time."""
    relaxation = Relaxation("block", 1.7, sweeps, lag, 0.45, 1.0)
    assert solver._way(512, 512, channels, relaxation) == "strips"
    strip, runs = strips.plan_strips(512, channels, relaxation, OPT_IN_SHARED_MEMORY)
    assert strip % 2 == 0
    assert sum(run.first + run.more for run in runs) == sweeps
    done = 0
    for run in runs:
        refreshed = done + 1 if done or lag == 1 else lag  # the first sweep, counted from 1, with a psi of its own
        assert refreshed % lag == 0
        assert run.unweighted == (done == 0 and lag > 1)
        columns = strip + 4 * (run.first + run.more)
        pitch = run.pitch(columns, channels, lag, OPT_IN_SHARED_MEMORY)
        assert pitch >= columns
        assert 4 * run.floats(channels, lag) * pitch <= OPT_IN_SHARED_MEMORY
        assert run.threads(pitch, channels, lag) <= GROUP[0]
        done += run.first + run.more


CYCLES = {
    "V-cycles": (ALPHA, Relaxation("multigrid", 1.0, 2, 1, 0.45, 1.0)),
    "psi every other cycle, over-relaxed": (ALPHA, Relaxation("multigrid", 1.1, 3, 2, 0.8, 1.0, 0.5)),
    "joined along columns": ((0.1, 9.0), Relaxation("multigrid", 1.0, 2, 1, 0.45, 1.0)),
    "joined along rows": ((9.0, 0.1), Relaxation("multigrid", 1.0, 2, 2, 1.0, 1.0)),
}


@pytest.fixture(params=["large tiles", "tiles of 16 rows", "tiles of 4 rows"])
def cycle_kernels(request, monkeypatch, device):
    """Coarser grids in one launch, or in tiles that leave so many rows between the two halos of the finest grid."""
    if request.param == "large tiles":
        return
    monkeypatch.setattr(multigrid, "SMALL_PIXELS", 20)
    rows = 2 * (multigrid.CORRECTION_HALO + multigrid.RESTRICTION_HALO) + int(request.param.split()[2])
    shared_memory = multigrid.PIXEL_BYTES * multigrid.TILE_WIDTH * rows
    monkeypatch.setattr(device, "shared_memory", shared_memory)
    monkeypatch.setattr(multigrid, "OPT_IN_SHARED_MEMORY", shared_memory)


@pytest.mark.usefixtures("cycle_kernels")
@pytest.mark.parametrize(("height", "width"), [*SIZES, (23, 37), (40, 12), (9, 131)])
@pytest.mark.parametrize("case", CYCLES)
def test_multigrid(device, operations, case, height, width):
    alpha, relaxation = CYCLES[case]
    tensor, weight, flow = solver_case(height, width, 2)
    assert_same(device, *solve_both(device, operations, tensor, weight, flow, relaxation, alpha))
    assert_same(device, *solve_both(device, operations, tensor, weight, flow[:1], relaxation, alpha))


@pytest.mark.parametrize("channels", [1, 3, 4, 6])
def test_multigrid_channels(device, operations, channels):
    assert_same(device, *solve_both(device, operations, *solver_case(23, 37, channels), CYCLES["V-cycles"][1]))


def test_launches_of_multigrid():
    """Level of 197 x 250: one before; in a cycle one on the finest grid, two on the next, one for others; one after."""
    device = EmulatedDevice()
    relaxation = Relaxation("multigrid", 1.0, 3, 1, 0.45, 1.0)
    assert_same(device, *solve_both(device, CudaOperations(device), *solver_case(197, 250, 1), relaxation))
    launches = sum(count for (file, _), count in device.launches.items() if file == "multigrid.cu")
    assert launches == 1 + 3 * (1 + 2 + 1) + 1


def test_solver_at_extreme_stiffness(device, operations):
    """x^p over many octaves: the same series on both sides."""
    tensor, weight, flow = solver_case(23, 37, 1)
    for factor in (1e-12, 1e12):
        assert_same(device, *solve_both(device, operations, tensor * np.float32(factor), weight, flow, RULES["block"]))


# The coarsest levels in one launch


def flow_of(operations, reference, moving, weight, start, options):
    """Flow of preprocessed planes, where the operations keep them."""
    *_, channels, height, width = reference.shape
    mean_weight = np.full(channels, 1 / channels, np.float32)
    return FlowEstimator(operations, reference, weight, mean_weight, height, width, options).flow(moving, start)


DESCENTS = {
    "all levels": {},
    "not the finest": {"min_level": 2},
    "finest alone": {"levels": 1},
    "gray, multigrid": {"const_assumption": "gray", "solver": "multigrid", "alpha": (1.0, 2.5)},
    "cs": {"const_assumption": "cs"},
    "graduated": {"gnc_schedule": (0.0, 0.5, 1.0), "warping_steps": 2, "min_level": 3, "const_assumption": "cs"},
    "graduated, once": {"gnc_schedule": (0.0, 1.0), "warping_steps": 1, "a_data": 0.3},
}


@pytest.mark.parametrize(("height", "width"), [(33, 47), (6, 60), (40, 11)])
@pytest.mark.parametrize("apart", [False, True], ids=["in shared memory", "coefficients apart, tiles"])
@pytest.mark.parametrize("case", DESCENTS)
def test_descent(device, monkeypatch, case, apart, height, width):
    """Levels of odd sizes, some too small for the median; the last one at full resolution or not."""
    if apart:
        monkeypatch.setattr(device, "shared_memory", 0)
        monkeypatch.setattr(descend, "OPT_IN_SHARED_MEMORY", 13 * 1024)
    operations = CudaOperations(device)  # which has no levels of another layout
    options = Options(**DESCENTS[case])
    channels = 2 if case == "all levels" else 1
    given = [
        *(planes(1, channels, height, width), planes(2, channels, height, width, seed=1)),
        *(np.full((1, channels, height, width), 0.5, np.float32), flows(1, height, width)),
    ]
    launches = device.launches.copy()
    found = flow_of(operations, *map(device.to_device, given), options)
    launched = {kernel: count for (_, kernel), count in (device.launches - launches).items()}
    assert sum(count for kernel, count in launched.items() if "descend" in kernel) == len(options.gnc_schedule or [1])
    assert not any("linearize" in kernel or "relax" in kernel for kernel in launched)
    assert_same(device, found, each(lambda *frame: flow_of(cpu, *frame, options), *given))


@pytest.mark.parametrize("channels", [1, 3, 4, 6])
def test_descent_of_channels_and_start_flows(device, operations, channels):
    given = [
        *(planes(1, channels, 24, 21), planes(2, channels, 24, 21, seed=1)),
        *(np.full((1, channels, 24, 21), 0.5, np.float32), flows(2, 24, 21)),
    ]
    found = flow_of(operations, *map(device.to_device, given), Options())
    assert_same(device, found, each(lambda *frame: flow_of(cpu, *frame, Options()), *given))


@pytest.mark.parametrize(
    ("size", "options", "shared_memory", "last"),
    [
        ((512, 512), {}, 227 * 1024, (86, 86)),
        ((512, 512), {}, 64 * 1024, (86, 86)),
        ((89, 89), {}, 64 * 1024, (89, 89)),
        ((90, 90), {}, 227 * 1024, (72, 72)),
        ((512, 512), {"solver": "sor"}, 227 * 1024, None),
        ((512, 512), {"solver": "block", "a_smooth": 0.5}, 227 * 1024, None),
        ((512, 512), {"quality": "balanced"}, 227 * 1024, (86, 86)),
        ((40, 1600), {}, 227 * 1024, (13, 524)),
    ],
    ids=str,
)
def test_levels_of_one_launch(size, options, shared_memory, last):
    device, options = EmulatedDevice(), Options(**options)
    device.shared_memory = shared_memory
    (descent,) = plan_descents(plan_levels(*size, options), options)
    levels = upload_levels(device, descent, size)
    if last is None:
        assert levels is None
        return
    assert levels.size == last
    assert descent.levels[levels.number - 1].width == last[1]
    assert levels.shared_memory <= shared_memory


# Median, sums


@pytest.fixture(params=["add_smoothed", "smoothed_sum"])
def smoothing(request, device, operations):
    """Compare the operation with the CPU's."""

    def check(flow, increment):
        found = getattr(operations, request.param)(device.to_device(flow), device.to_device(increment))
        assert_same(device, found, each(getattr(cpu, request.param), flow, increment))

    return check


@pytest.mark.parametrize(("height", "width"), [*SIZES, (3, 3), (6, 40), (8, 32), (9, 33), (7, 31)])
@pytest.mark.parametrize("frames", [1, 2], ids=["shared flow", "flow per frame"])
def test_median(smoothing, height, width, frames):
    smoothing(flows(frames, height, width), planes(2, 2, height, width))


def test_median_of_equal_values_and_large_ones(smoothing):
    increment, flow = np.random.default_rng(2).integers(0, 3, (2, 2, 2, 21, 34)).astype(np.float32) * np.float32(1e30)
    smoothing(flow, increment)


def test_median_far_apart(smoothing):
    """Rough values: every element of a window is the median somewhere."""
    increment, flow = np.random.default_rng(3).standard_normal((2, 2, 2, 30, 70)).astype(np.float32)
    smoothing(flow, increment)


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


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("frames", [1, 2], ids=["shared flow", "flow per frame"])
def test_warp_of_planes(device, operations, channels, frames):
    moving, reference = planes(2, channels, 23, 37), planes(1, channels, 23, 37, seed=1)
    flow = flows(frames, 23, 37)
    expected = each(lambda m, f, r: cpu.warp(m, f, r, interpolation="linear"), moving, flow, reference)
    assert_same(device, operations.warp_linear(*map(device.to_device, (moving, flow, reference))), expected)


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
    y, x = np.mgrid[:23, :37]
    inside = (x + flow[0, 0] >= 0) & (x + flow[0, 0] < 37) & (y + flow[0, 1] >= 0) & (y + flow[0, 1] < 23)
    assert not inside[9, :4].any()
    np.testing.assert_array_equal(expected[0][~inside], reference[~inside])
