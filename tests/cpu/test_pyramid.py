"""Resampling, Gaussian filter and the plan of the pyramid."""

import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from flowreg_gpu.cpu.pyramid import resize
from flowreg_gpu.model.plan import plan_levels
from flowreg_gpu.model.resampling import cubic_table, gaussian_table, resampling_tables
from flowreg_gpu.options import Options
from tests import tolerances
from tests.oracles.interpolation import cubic_weight

# (height, width) -> (height, width): down, up, both, odd, tiny, beyond one reflection of the boundary
RESIZINGS = [
    ((40, 50), (32, 40)),
    ((31, 47), (13, 20)),
    ((65, 47), (8, 6)),
    ((8, 6), (65, 47)),
    ((13, 20), (31, 47)),
    ((33, 40), (33, 17)),
    ((24, 30), (10, 45)),
    ((16, 16), (16, 16)),
    ((24, 60), (3, 8)),
    ((2, 3), (5, 1)),
    ((1, 4), (3, 4)),
    ((19, 21), (150, 131)),  # more rows than are turned at once
]


def image(*shape):
    return np.random.default_rng(sum(shape)).random(shape).astype(np.float32)


def reflected(index, size):
    while not 0 <= index < size:
        index = -1 - index if index < 0 else 2 * size - 1 - index
    return index


def naive_matrix(size, new_size, scale):
    """The formula of section 2, tap by tap: row i holds the weights of the input samples in output sample i."""
    sigma = 0.6 / scale if scale < 1 else 0.0
    radius = math.ceil(2 * sigma)
    gauss = {m: math.exp(-(m**2) / (2 * sigma**2)) if sigma else 1.0 for m in range(-radius, radius + 1)}
    matrix = np.zeros((new_size, size))
    for i in range(new_size):
        x = (i + 0.5) / (new_size / size) - 0.5
        first = math.floor(x - 2) - radius
        for tap in range(first, first + 2 * radius + 4):
            weight = sum(g * cubic_weight(x - tap - m) for m, g in gauss.items())
            matrix[i, reflected(tap, size)] += weight
        matrix[i] /= matrix[i].sum()
    return matrix


@pytest.mark.parametrize(("size", "new_size"), RESIZINGS)
def test_resize_follows_the_formula(size, new_size):
    planes = image(2, *size)
    scale = min(new_size[0] / size[0], new_size[1] / size[1])
    rows, columns = (naive_matrix(*sizes, scale) for sizes in zip(size, new_size, strict=True))
    found = resize(planes, resampling_tables(*size, *new_size))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, rows @ planes.astype(float) @ columns.T, rtol=0, atol=tolerances.FILTER)


@pytest.mark.parametrize(("size", "new_size"), RESIZINGS)
def test_resampling_tables(size, new_size):
    for n, n_new, table in zip(size, new_size, resampling_tables(*size, *new_size), strict=True):
        assert table.index.shape == table.weight.shape
        assert len(table.index) == n_new
        assert (table.index.dtype, table.weight.dtype) == (np.int32, np.float32)
        assert table.index.min() >= 0
        assert table.index.max() < n
        np.testing.assert_allclose(table.weight.sum(axis=1, dtype=float), 1, rtol=0, atol=tolerances.FILTER)


def test_tables_are_built_once():
    for first, second in zip(resampling_tables(40, 50, 13, 27), resampling_tables(40, 50, 13, 27), strict=True):
        assert first is second


def test_resize_to_the_same_size_is_the_identity():
    planes = image(1, 17, 23)
    np.testing.assert_array_equal(resize(planes, resampling_tables(17, 23, 17, 23)), planes)


def test_resize_keeps_constants_and_ramps():
    constant = np.full((1, 40, 50), 0.3, np.float32)
    np.testing.assert_allclose(resize(constant, resampling_tables(40, 50, 13, 27)), 0.3, rtol=tolerances.FILTER)
    # The centre of output pixel j is at 2 (j + 0.5) - 0.5; the dropped last tap of the Gaussian's support (section 2)
    # leaves a bias of 0.02 pixel.
    ramp = np.tile(np.arange(50, dtype=np.float32), (1, 40, 1))
    half = resize(ramp, resampling_tables(40, 50, 20, 25))[0, 10, 5:-5]
    np.testing.assert_allclose(half, 2 * np.arange(5, 20) + 0.5, rtol=0, atol=0.02)


@pytest.mark.parametrize(("size", "new_size"), [(8, 31), (31, 128), (39, 97), (7, 7), (1, 5)])
def test_cubic_table(size, new_size):
    """Plain interpolation at the sample positions of section 2: four taps, whatever the scale."""
    expected = np.zeros((new_size, size))
    for i in range(new_size):
        x = (i + 0.5) / (new_size / size) - 0.5
        for tap in range(math.floor(x) - 1, math.floor(x) + 3):
            expected[i, reflected(tap, size)] += cubic_weight(x - tap)
    table = cubic_table(size, new_size)
    found = np.zeros((new_size, size))
    np.add.at(found, (np.arange(new_size)[:, None], table.index), table.weight)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerances.FILTER)


def test_resize_into_given_planes():
    planes, tables = image(2, 12, 15), resampling_tables(12, 15, 7, 9)
    out = np.full((2, 7, 9), np.nan, np.float32)
    assert resize(planes, tables, out) is out
    np.testing.assert_array_equal(out, resize(planes, tables))


@pytest.mark.parametrize("sigma", [(0.0, 0.0), (1.0, 1.0), (0.1, 2.0), (0.124, 0.126), (1.5, 0.0), (3.0, 4.0)])
@pytest.mark.parametrize("size", [(16, 16), (31, 47), (5, 3)])
def test_gaussian(sigma, size):
    planes = image(1, *size)
    tables = tuple(gaussian_table(n, s) for n, s in zip(size, sigma, strict=True))
    expected = gaussian_filter(planes[0].astype(float), sigma, mode="reflect", truncate=4)
    np.testing.assert_allclose(resize(planes, tables)[0], expected, rtol=0, atol=tolerances.FILTER)


# Worked out by hand from section 2, coarsest first.
SIZES = {
    # 24 * 0.8^5 = 7.9 and 200 * 0.8^14 = 8.8 are the first below 9.5: rows stay at 8 while columns shrink on
    (24, 200): "8x9 8x11 8x14 8x17 8x21 8x27 8x34 8x42 8x52 8x66 10x82 12x102 15x128 19x160 24x200",
    (97, 131): "8x9 8x11 10x14 13x18 16x22 20x27 25x34 32x43 40x54 50x67 62x84 78x105 97x131",
    (16, 16): "8x8 10x10 13x13 16x16",
}


def rules(height, width, eta, levels, min_level):
    """Section 2 restated: (index, rows, columns) coarsest first."""
    depth = []
    for size in (height, width):
        k = 1
        while not (round(size * eta**k) < 10 or k == levels):
            k += 1
        depth.append(k)
    depth = [min(d, 4 * min(depth)) for d in depth]
    if max(depth) <= min_level:
        min_level = max(max(depth) - 1, 0)
    return [
        (i, round(height * eta ** min(i, depth[0])), round(width * eta ** min(i, depth[1])))
        for i in range(max(depth), min_level - 1, -1)
    ]


@pytest.mark.parametrize("size", SIZES)
def test_plan_by_hand(size):
    plan = plan_levels(*size, Options())
    assert " ".join(f"{level.height}x{level.width}" for level in plan.levels) == SIZES[size]


def test_plan_of_a_square_frame():
    """512 x 512: 19 levels, 0.73 Mpixel in all, 95.6 % of it in the seven levels above 110 pixels (counted apart)."""
    levels = plan_levels(512, 512, Options()).levels
    pixels = np.array([level.height * level.width for level in levels])
    large = np.array([level.width > 110 for level in levels])
    assert len(levels) == 19
    assert pixels.sum() == pytest.approx(0.73e6, rel=0.01)
    assert large.sum() == 7
    assert pixels[large].sum() / pixels.sum() == pytest.approx(0.956, abs=0.0005)


@pytest.mark.parametrize("quality", ["quality", "balanced", "fast"])
@pytest.mark.parametrize("size", [(24, 200), (97, 131), (16, 16), (16, 600), (600, 16), (128, 256)])
@pytest.mark.parametrize("more", [{}, {"eta": 0.5}, {"levels": 3}, {"levels": 1}, {"min_level": 50}], ids=str)
def test_plan_follows_the_rules(size, quality, more):
    options = Options(quality=quality, alpha=(2, 6), **more)
    plan = plan_levels(*size, options)
    expected = rules(*size, options.eta, options.levels, options.finest_level)
    assert [(level.height, level.width) for level in plan.levels] == [item[1:] for item in expected]
    above = size
    for level, (index, rows, columns) in zip(plan.levels, expected, strict=True):
        assert level.spacing == pytest.approx((size[1] / columns, size[0] / rows))
        factor = 1 if index == expected[-1][0] else options.eta ** (-index / 2)
        assert level.alpha == pytest.approx((2 * factor, 6 * factor))
        for tables, source in ((level.from_full, size), (level.from_coarser, above)):
            assert [len(table.index) for table in tables] == [rows, columns]
            assert [int(table.index.max()) for table in tables] == [source[0] - 1, source[1] - 1]
        above = (rows, columns)
    if above == size:
        assert plan.to_full is None
    else:
        assert [len(table.index) for table in plan.to_full] == list(size)


def test_min_level_beyond_the_depth():
    """16 x 16 has a depth of 3: min_level 6 becomes 2, so that two levels are left."""
    plan = plan_levels(16, 16, Options(quality="fast", alpha=4))
    assert [(level.height, level.width) for level in plan.levels] == [(8, 8), (10, 10)]
    assert plan.levels[-1].alpha == (4, 4)
    assert plan.to_full is not None
