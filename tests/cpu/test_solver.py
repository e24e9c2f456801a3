"""Relaxation of one level against plain loops in float64, a direct solution, and the energy that it minimises."""

import numpy as np
import pytest

from flowreg_gpu.cpu.motion_tensor import motion_tensor
from flowreg_gpu.cpu.relaxation import power
from flowreg_gpu.cpu.solver import solve
from flowreg_gpu.model.relaxation import Relaxation, choose_relaxation
from flowreg_gpu.options import Options
from tests import tolerances
from tests.movies import frame_pair, smooth_flow, to_planes
from tests.oracles.relaxation import direct_solution, level_energy, plain_solve, problem, relative

RULES = ("sor", "block")


SIZES = [(7, 9), (8, 6), (1, 9), (9, 1), (2, 3), (3, 2), (1, 1), (13, 11)]


@pytest.mark.parametrize("a_smooth", [1.0, 0.5])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rule", RULES)
def test_sizes(rule, size, a_smooth):
    arguments = (*problem(*size), (2.0, 2.0), (1.0, 1.0))
    relaxation = Relaxation(rule, 1.8, 6, 2, 0.45, a_smooth)
    found = solve(*arguments, relaxation)
    assert (found.shape, found.dtype) == ((2, *size), np.float32)
    assert relative(found, plain_solve(*arguments, relaxation)) <= tolerances.SWEEPS


# name: (channels, alpha, spacing, (omega, sweeps, lag), a_data, a_smooth, beta)
CASES = {
    "one sweep": (1, (4.0, 4.0), (1.0, 1.0), (1.95, 1, 5), 0.45, 1.0, 1.0),
    "psi from the start": (1, (4.0, 4.0), (1.0, 1.0), (1.95, 1, 1), 0.45, 1.0, 1.0),
    "before the refresh": (1, (4.0, 4.0), (1.0, 1.0), (1.95, 4, 5), 0.45, 0.5, 1.0),
    "refresh in the last sweep": (1, (4.0, 4.0), (1.0, 1.0), (1.95, 5, 5), 0.45, 0.5, 1.0),
    "two channels": (2, (1.5, 1.5), (1.0, 1.0), (1.7, 6, 2), 0.45, 1.0, 1.0),
    "three channels": (3, (1.5, 1.5), (1.0, 1.0), (1.7, 6, 3), 0.45, 0.5, 1.0),
    "anisotropic": (1, (0.5, 6.0), (1.25, 2.5), (1.8, 6, 2), 0.45, 1.0, 1.0),
    "anisotropic and robust": (2, (6.0, 0.5), (2.5, 1.25), (1.8, 6, 2), 0.45, 0.5, 1.0),
    "quadratic": (1, (2.0, 3.0), (1.0, 1.5), (1.5, 6, 2), 1.0, 1.0, 1.0),
    "other exponents": (1, (2.0, 3.0), (1.0, 1.5), (1.5, 6, 2), 0.8, 0.3, 1.0),
    "first stage of gnc": (2, (2.0, 3.0), (1.0, 1.5), (1.8, 6, 2), 0.45, 0.5, 0.0),
    "middle stage of gnc": (2, (2.0, 3.0), (1.0, 1.5), (1.8, 6, 2), 0.45, 0.5, 0.3),
    "gnc with constant smoothness": (1, (2.0, 3.0), (1.0, 1.5), (1.8, 6, 2), 0.45, 1.0, 0.6),
    "gnc with a quadratic data term": (1, (2.0, 3.0), (1.0, 1.5), (1.8, 6, 2), 1.0, 0.5, 0.6),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rule", RULES)
def test_cases(rule, case):
    channels, alpha, spacing, (omega, sweeps, lag), *exponents = CASES[case]
    arguments = (*problem(9, 12, channels, seed=4), alpha, spacing)
    kept = [item.copy() for item in arguments[:3]]
    relaxation = Relaxation(rule, omega, sweeps, lag, *exponents)
    found = solve(*arguments, relaxation)
    assert relative(found, plain_solve(*arguments, relaxation)) <= tolerances.SWEEPS
    for item, before in zip(arguments, kept, strict=False):
        np.testing.assert_array_equal(item, before)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("a_smooth", [1.0, 0.5])
def test_zero_weight_leaves_a_pixel_to_its_neighbours(rule, a_smooth):
    tensor, weight, flow = problem(9, 12, 2, seed=5)
    weight[:, 3:6, 4:8] = 0
    relaxation = Relaxation(rule, 1.8, 6, 2, 0.45, a_smooth)
    found = solve(tensor, weight, flow, (2.0, 2.0), (1.0, 1.0), relaxation)
    expected = plain_solve(tensor, weight, flow, (2.0, 2.0), (1.0, 1.0), relaxation)
    assert relative(found, expected) <= tolerances.SWEEPS
    tensor[:, :, 4, 5] *= 100
    np.testing.assert_array_equal(solve(tensor, weight, flow, (2.0, 2.0), (1.0, 1.0), relaxation), found)


@pytest.mark.parametrize("size", [(31, 17), (1, 21), (24, 25)])
@pytest.mark.parametrize("rule", RULES)
def test_quadratic_case_converges_to_the_linear_system(rule, size):
    arguments = (*problem(*size, channels=2, seed=6), (3.0, 5.0), (1.25, 1.5))
    found = solve(*arguments, Relaxation(rule, 1.5, 300, 5, 1.0, 1.0))
    assert relative(found, direct_solution(*arguments)) <= tolerances.LINEAR_SYSTEM


@pytest.mark.parametrize(
    ("term", "alpha"), [("gc", 1.5), ("gc", 4.0), ("gc", 15.0), ("gc", 200.0), ("cs", 4.0), ("gray", 0.1)]
)
@pytest.mark.parametrize(
    ("size", "missing"), [((97, 128), tolerances.ENERGY_FINE), ((64, 80), tolerances.ENERGY_COARSE)]
)
def test_energy(size, missing, term, alpha):
    """What choose_relaxation picks comes close to the energy of thousands of sweeps, on fine and on coarse levels."""
    reference, moving = frame_pair(smooth_flow(*size, 0.6, (0.3, -0.2)), noise=0.02, seed=2)
    tensor = motion_tensor(to_planes(reference), to_planes(moving), 1.0, 1.0, term)
    weight, flow = np.ones((1, *size), np.float32), np.zeros((2, *size), np.float32)
    arguments = (tensor, weight, flow, (alpha, alpha), (1.0, 1.0))
    chosen = choose_relaxation(Options(alpha=alpha, const_assumption=term), *size)
    converged = Relaxation("block", 1.9, 2000, 2, chosen.a_data, chosen.a_smooth)
    start, reached, least = (
        level_energy(*arguments, chosen.a_data, increment)
        for increment in (np.zeros_like(flow), solve(*arguments, chosen), solve(*arguments, converged))
    )
    assert least < start
    assert (reached - least) / (start - least) <= missing


@pytest.mark.parametrize("rule", RULES)
def test_robust_solution_is_a_minimum(rule):
    """No small change, of one pixel or of all, lowers the energy of a converged solution."""
    tensor, weight, flow = problem(15, 18, 2, seed=7)
    arguments = (tensor, weight, flow, (2.0, 3.0), (1.0, 1.5))
    found = solve(*arguments, Relaxation(rule, 1.5, 2000, 2, 0.45, 1.0)).astype(float)
    least = level_energy(*arguments, 0.45, found)
    rng = np.random.default_rng(0)
    for _ in range(200):
        step = np.zeros_like(found)
        step[rng.integers(2), rng.integers(15), rng.integers(18)] = rng.choice([-1, 1]) * 0.01
        assert level_energy(*arguments, 0.45, found + step) > least
        assert level_energy(*arguments, 0.45, found + 0.003 * rng.standard_normal(found.shape)) > least


@pytest.mark.parametrize("a_smooth", [1.0, 0.5])
@pytest.mark.parametrize("rule", RULES)
def test_flat_images(rule, a_smooth):
    """Without any structure the increment smooths the flow; a constant flow stays as it is."""
    size = (9, 13)
    tensor, weight = np.zeros((1, 6, *size), np.float32), np.ones((1, *size), np.float32)
    relaxation = Relaxation(rule, 1.95, 50, 5, 0.45, a_smooth)
    still = np.ones((2, *size), np.float32)
    assert not solve(tensor, weight, still, (2.0, 2.0), (1.0, 1.0), relaxation).any()
    rough = np.random.default_rng(0).standard_normal((2, *size)).astype(np.float32)
    found = rough + solve(tensor, weight, rough, (2.0, 2.0), (1.0, 1.0), relaxation)
    assert np.all(np.isfinite(found))
    assert found.std(axis=(1, 2)).max() < 0.2 * rough.std()


@pytest.mark.parametrize("exponent", [-0.99, -0.9, -0.55, -0.5, -0.1])
def test_power(exponent):
    x = np.exp(np.linspace(np.log(1e-6), np.log(1e6), 3001)).astype(np.float32)
    x = np.concatenate(
        [x, np.float32(2.0) ** np.arange(-19, 20, dtype=np.float32), np.float32([0.70710677, 0.7071068])]
    )
    found = np.array([power(item, np.float32(exponent)) for item in x], float)
    expected = x.astype(float) ** float(np.float32(exponent))
    assert np.abs(found / expected - 1).max() <= tolerances.POWER
