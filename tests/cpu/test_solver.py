"""Relaxation of one level against plain loops in float64, a direct solution, and the energy that it minimises."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import spsolve

from flowreg_gpu.cpu.motion_tensor import motion_tensor
from flowreg_gpu.cpu.relaxation import power
from flowreg_gpu.cpu.solver import solve
from flowreg_gpu.model.relaxation import Relaxation, choose_relaxation
from flowreg_gpu.options import Options
from tests import tolerances
from tests.movies import frame_pair, smooth_flow, to_planes

EPS = 1e-5
RULES = ("sor", "block")


def problem(height, width, channels=1, seed=0):
    """Random positive semi-definite tensors, weight maps and flow, float32: (tensor, weight, flow)."""
    rng = np.random.default_rng(seed)
    gradients = rng.standard_normal((2, 3, channels, height, width)) * np.array([1, 1, 0.5]).reshape(3, 1, 1, 1)
    fx, fy, ft = np.moveaxis(gradients, 1, 0)
    tensor = np.stack([(a * b).sum(0) for a, b in ((fx, fx), (fy, fy), (ft, ft), (fx, fy), (fx, ft), (fy, ft))], axis=1)
    weight = rng.uniform(0.2, 1, (channels, height, width))
    flow = rng.standard_normal((2, height, width))
    return tuple(item.astype(np.float32) for item in (tensor, weight, flow))


def data_energy(tensor, du, dv):
    """E_k of section 5, per channel: (C, H, W)."""
    j11, j22, j33, j12, j13, j23 = np.moveaxis(tensor.astype(float), 1, 0)
    return j11 * du**2 + j22 * dv**2 + 2 * (j12 * du * dv + j13 * du + j23 * dv) + j33


def robust(energy, a, beta):
    return np.ones_like(energy) if a == 1 else (1 - beta) + beta * a * (energy + EPS) ** (a - 1)


def smoothness(flow, du, dv, spacing, a, beta):
    """psi_smooth (H, W): central differences where beyond the edge lies the pixel's own value."""
    total = 0
    for component in (flow[0] + du, flow[1] + dv):
        padded = np.pad(component, 1, "edge")
        total = total + ((padded[1:-1, 2:] - padded[1:-1, :-2]) / (2 * spacing[0])) ** 2
        total = total + ((padded[2:, 1:-1] - padded[:-2, 1:-1]) / (2 * spacing[1])) ** 2
    return robust(total, a, beta)


def plain_solve(tensor, weight, flow, alpha, spacing, relaxation):
    """Section 5, pixel by pixel: (2, H, W) float64."""
    rule, omega, sweeps, lag, a_data, a_smooth, beta = relaxation
    tensor, weight, flow = (item.astype(float) for item in (tensor, weight, flow))
    height, width = flow.shape[1:]
    du, dv = np.zeros((2, height, width))
    psi, psi_smooth = np.ones_like(weight), np.ones((height, width))
    share = {"x": alpha[0] / spacing[0] ** 2, "y": alpha[1] / spacing[1] ** 2}
    j11, j22, _, j12, j13, j23 = np.moveaxis(tensor, 1, 0)
    order = [(y, x) for x in range(width) for y in range(height)]
    if rule == "block":
        order.sort(key=lambda pixel: (pixel[0] + pixel[1]) % 2)
    for sweep in range(sweeps):
        if (sweep + 1) % lag == 0:
            psi = robust(np.maximum(data_energy(tensor, du, dv), 0), a_data, beta)
            if a_smooth < 1:
                psi_smooth = smoothness(flow, du, dv, spacing, a_smooth, beta)
        for y, x in order:
            diagonal, sum_u, sum_v = 0.0, 0.0, 0.0
            for axis, ny, nx in (("x", y, x - 1), ("x", y, x + 1), ("y", y - 1, x), ("y", y + 1, x)):
                ny, nx = min(max(ny, 0), height - 1), min(max(nx, 0), width - 1)
                c = share[axis] * (psi_smooth[y, x] + psi_smooth[ny, nx]) / 2
                diagonal += c
                sum_u += c * (flow[0, ny, nx] + du[ny, nx] - flow[0, y, x])
                sum_v += c * (flow[1, ny, nx] + dv[ny, nx] - flow[1, y, x])
            robustly = weight[:, y, x] * psi[:, y, x]
            a11, a22 = diagonal + robustly @ j11[:, y, x], diagonal + robustly @ j22[:, y, x]
            a12 = robustly @ j12[:, y, x]
            b1, b2 = sum_u - robustly @ j13[:, y, x], sum_v - robustly @ j23[:, y, x]
            if rule == "sor":
                du[y, x] = (1 - omega) * du[y, x] + omega * (b1 - a12 * dv[y, x]) / a11
                dv[y, x] = (1 - omega) * dv[y, x] + omega * (b2 - a12 * du[y, x]) / a22
            else:
                new_u, new_v = np.linalg.solve([[a11, a12], [a12, a22]], [b1, b2])
                du[y, x] += omega * (new_u - du[y, x])
                dv[y, x] += omega * (new_v - dv[y, x])
    return np.stack([du, dv])


def level_energy(tensor, weight, flow, alpha, spacing, a_data, increment):
    """Twice the energy of one level with quadratic smoothness."""
    du, dv = increment.astype(float)
    data = (weight * (np.maximum(data_energy(tensor, du, dv), 0) + EPS) ** a_data).sum()
    total = flow.astype(float) + increment
    along_x = alpha[0] / spacing[0] ** 2 * (np.diff(total, axis=2) ** 2).sum()
    return data + along_x + alpha[1] / spacing[1] ** 2 * (np.diff(total, axis=1) ** 2).sum()


def relative(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


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


def direct_solution(tensor, weight, flow, alpha, spacing):
    """Minimiser of the quadratic energy by a sparse direct solver."""
    height, width = flow.shape[1:]
    size = height * width
    index = np.arange(size).reshape(height, width)
    laplacian = csr_matrix((size, size))
    for axis, c in ((1, alpha[0] / spacing[0] ** 2), (0, alpha[1] / spacing[1] ** 2)):
        first, second = np.delete(index, -1, axis).ravel(), np.delete(index, 0, axis).ravel()
        edges = np.arange(first.size)
        ones = np.ones(first.size)
        difference = csr_matrix((np.r_[ones, -ones], (np.r_[edges, edges], np.r_[first, second])), (first.size, size))
        laplacian = laplacian + c * difference.T @ difference
    j11, j22, _, j12, j13, j23 = ((weight * plane).sum(0).ravel() for plane in np.moveaxis(tensor.astype(float), 1, 0))
    rows, columns = np.r_[index.ravel(), index.ravel() + size], np.r_[index.ravel(), index.ravel() + size]
    system = csr_matrix((np.r_[j11, j22], (rows, columns)), (2 * size, 2 * size))
    coupling = np.r_[index.ravel(), index.ravel() + size], np.r_[index.ravel() + size, index.ravel()]
    system = system + csr_matrix((np.r_[j12, j12], coupling), (2 * size, 2 * size))
    blocks = laplacian.tocoo()
    both = np.r_[blocks.row, blocks.row + size], np.r_[blocks.col, blocks.col + size]
    system = system + csr_matrix((np.r_[blocks.data, blocks.data], both), (2 * size, 2 * size))
    pull = -np.r_[laplacian @ flow[0].ravel().astype(float), laplacian @ flow[1].ravel().astype(float)]
    return spsolve(system.tocsc(), pull - np.r_[j13, j23]).reshape(2, height, width)


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
