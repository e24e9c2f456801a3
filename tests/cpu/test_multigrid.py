"""The rule multigrid against a plain one in float64, its convergence, and where 'auto' takes it."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from flowreg_gpu import Options, estimate_flow
from flowreg_gpu.cpu.flatness import flat_fraction
from flowreg_gpu.cpu.motion_tensor import motion_tensor
from flowreg_gpu.cpu.solver import solve
from flowreg_gpu.model.relaxation import Relaxation, choose_relaxation, choose_solver, plan_grids
from tests import tolerances
from tests.cpu.test_solver import data_energy, direct_solution, level_energy, problem, relative, robust
from tests.movies import end_point_error, frame_pair, smooth_flow, to_planes


def mean_matrix(fine, coarse):
    """Overlaps of coarse with fine pixels, of a side of length 1, over the length of a coarse one: (coarse, fine)."""
    edges, wide = np.arange(fine + 1) / fine, np.arange(coarse + 1) / coarse
    overlap = np.minimum(edges[None, 1:], wide[1:, None]) - np.maximum(edges[None, :-1], wide[:-1, None])
    return np.maximum(overlap, 0) * coarse


def linear_matrix(fine, coarse):
    """Interpolation between the centres of coarse pixels, constant beyond the outermost: (fine, coarse)."""
    centres, wide = (np.arange(fine) + 0.5) / fine, (np.arange(coarse) + 0.5) / coarse
    return np.stack([np.interp(centres, wide, unit) for unit in np.eye(coarse)], axis=-1)


def both_axes(rows, columns, planes):
    return np.einsum("ij,kl,...jl->...ik", rows, columns, planes)


def around(planes, cx, cy):
    padded = np.pad(planes, ((0, 0), (1, 1), (1, 1)), "edge")
    return cx * (padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:]) + cy * (padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1])


def apply_block(matrix, vector):
    return np.einsum("ijyx,jyx->iyx", matrix, vector)


def plain_sweeps(matrix, right, increment, grid, omega, count):
    """Red-black sweeps in place; `matrix` (2, 2, h, w) has the weights of the edges on its diagonal."""
    inverse = np.moveaxis(np.linalg.inv(np.moveaxis(matrix, (0, 1), (-2, -1))), (-2, -1), (0, 1))
    colours = np.add.outer(np.arange(grid.height), np.arange(grid.width)) % 2
    for _ in range(count):
        for colour in range(2):
            new = apply_block(inverse, around(increment, *map(float, grid.edge)) + right)
            increment += omega * np.where(colours == colour, new - increment, 0)


def plain_cycle(data, right, increment, grids, omega):
    """One V(1,1) in place; `data` (2, 2, h, w) is the data term alone."""
    grid, *coarser = grids
    cx, cy = map(float, grid.edge)
    matrix = data + 2 * (cx + cy) * np.eye(2)[..., None, None]
    if not coarser:
        plain_sweeps(matrix, right, increment, grid, omega, 8)
        return
    plain_sweeps(matrix, right, increment, grid, omega, 1)
    sides = [(grid.height, coarser[0].height), (grid.width, coarser[0].width)]
    average = [mean_matrix(*pair) for pair in sides]
    left = right + around(increment, cx, cy) - apply_block(matrix, increment)
    correction = np.zeros((2, coarser[0].height, coarser[0].width))
    plain_cycle(both_axes(*average, data), both_axes(*average, left), correction, coarser, omega)
    increment += both_axes(*(linear_matrix(*pair) for pair in sides), correction)
    plain_sweeps(matrix, right, increment, grid, omega, 1)


def plain_solve(tensor, weight, flow, alpha, spacing, relaxation):
    """Section 5 of the model by V-cycles: (2, H, W) float64."""
    _, omega, cycles, lag, a_data, _, beta = relaxation
    tensor, weight, flow = (item.astype(float) for item in (tensor, weight, flow))
    cx, cy = (a / h**2 for a, h in zip(alpha, spacing, strict=True))
    grids = plan_grids(*flow.shape[1:], (np.float32(cx), np.float32(cy)))
    increment, psi = np.zeros_like(flow), np.ones_like(weight)
    j11, j22, _, j12, j13, j23 = np.moveaxis(tensor, 1, 0)
    for cycle in range(cycles):
        if (cycle + 1) % lag == 0:
            psi = robust(np.maximum(data_energy(tensor, *increment), 0), a_data, beta)
        share = psi * np.maximum(weight, 0)
        data = np.array([[(share * one).sum(0) for one in row] for row in ((j11, j12), (j12, j22))])
        pull = np.stack([(share * one).sum(0) for one in (j13, j23)])
        right = around(flow, cx, cy) - 2 * (cx + cy) * flow - pull
        plain_cycle(data, right, increment, grids, omega)
    return increment


# name: (channels, alpha, spacing, (omega, cycles, lag), a_data, beta)
CASES = {
    "one cycle": (1, (4.0, 4.0), (1.0, 1.0), (1.0, 1, 2), 0.45, 1.0),
    "psi from the start": (1, (4.0, 4.0), (1.0, 1.0), (1.0, 3, 1), 0.45, 1.0),
    "psi every other cycle": (2, (4.0, 4.0), (1.0, 1.0), (1.0, 5, 2), 0.45, 1.0),
    "over-relaxed, three channels": (3, (4.0, 4.0), (1.0, 1.0), (1.2, 3, 1), 0.45, 1.0),
    "anisotropic": (1, (0.5, 60.0), (1.25, 2.5), (1.0, 3, 1), 0.45, 1.0),
    "anisotropic the other way": (2, (60.0, 0.5), (2.5, 1.25), (1.0, 3, 1), 0.8, 1.0),
    "quadratic": (1, (2.0, 3.0), (1.0, 1.5), (1.0, 3, 1), 1.0, 1.0),
    "first stage of gnc": (2, (2.0, 3.0), (1.0, 1.5), (1.0, 3, 1), 0.45, 0.0),
    "middle stage of gnc": (2, (2.0, 3.0), (1.0, 1.5), (1.0, 3, 1), 0.45, 0.3),
}


@pytest.mark.parametrize("size", [(9, 12), (32, 17), (23, 40)])
@pytest.mark.parametrize("case", CASES)
def test_cases(case, size):
    channels, alpha, spacing, (omega, cycles, lag), a_data, beta = CASES[case]
    arguments = (*problem(*size, channels, seed=4), alpha, spacing)
    kept = [item.copy() for item in arguments[:3]]
    relaxation = Relaxation("multigrid", omega, cycles, lag, a_data, 1.0, beta)
    found = solve(*arguments, relaxation)
    assert (found.shape, found.dtype) == ((2, *size), np.float32)
    assert relative(found, plain_solve(*arguments, relaxation)) <= tolerances.SWEEPS
    for item, before in zip(arguments, kept, strict=False):
        np.testing.assert_array_equal(item, before)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 3), (4, 4), (5, 4), (10, 10), (3, 50), (50, 3)])
def test_small_and_narrow_levels(size):
    arguments = (*problem(*size), (2.0, 2.0), (1.0, 1.0))
    relaxation = Relaxation("multigrid", 1.0, 3, 1, 0.45, 1.0)
    assert relative(solve(*arguments, relaxation), plain_solve(*arguments, relaxation)) <= tolerances.SWEEPS


def test_zero_and_negative_weights_leave_a_pixel_to_its_neighbours():
    tensor, weight, flow = problem(19, 22, 2, seed=5)
    weight[:, 3:6, 4:8] = 0
    weight[:, 9, 9] = -0.01
    arguments = ((2.0, 2.0), (1.0, 1.0), Relaxation("multigrid", 1.0, 3, 1, 0.45, 1.0))
    found = solve(tensor, weight, flow, *arguments)
    assert relative(found, plain_solve(tensor, weight, flow, *arguments)) <= tolerances.SWEEPS
    tensor[:, :, 4, 5] *= 100
    tensor[:, :, 9, 9] *= 100
    np.testing.assert_array_equal(solve(tensor, weight, flow, *arguments), found)


def test_sides_are_halved_until_both_are_small():
    one = np.float32(1)
    sizes = [(grid.height, grid.width) for grid in plan_grids(97, 128, (one, one))]
    assert sizes == [(97, 128), (49, 64), (25, 32), (13, 16), (7, 8), (4, 4)]
    grid = plan_grids(97, 128, (one, one))[1]
    np.testing.assert_allclose(grid.edge, (1 / 4, (49 / 97) ** 2), rtol=1e-6)
    assert plan_grids(4, 3, (one, one)) == [(4, 3, (one, one))]


def test_an_axis_with_weak_coupling_is_not_halved_yet():
    sizes = [(grid.height, grid.width) for grid in plan_grids(64, 64, (np.float32(1), np.float32(16)))]
    assert sizes[:4] == [(64, 64), (32, 64), (16, 64), (8, 32)]


def flat_mask(height, width, share, seed=3):
    """Smooth islands (H, W) that cover a share of the pixels."""
    field = gaussian_filter(np.random.default_rng(seed).standard_normal((height, width)), height / 8)
    return field < np.quantile(field, share)


def level_of(size, flat, alpha, term="gc"):
    """Arguments of a solve of noisy frames, of which a share is masked."""
    reference, moving = frame_pair(smooth_flow(*size, 0.6, (0.3, -0.2)), noise=0.02, seed=2)
    tensor = motion_tensor(to_planes(reference), to_planes(moving), 1.0, 1.0, term)
    weight = np.ones((1, *size), np.float32)
    weight[:, flat_mask(*size, flat)] = 0
    return tensor, weight, np.zeros((2, *size), np.float32), (alpha, alpha), (1.0, 1.0)


@pytest.mark.parametrize("alpha", [(2.0, 2.0), (4.0, 100.0)], ids=str)
@pytest.mark.parametrize("flat", [0.0, 0.65])
@pytest.mark.parametrize("size", [(64, 96), (97, 129)])
def test_every_cycle_leaves_less_than_half_of_the_error(size, flat, alpha):
    """With frozen psi: the error against a direct solution, mean of the cycles two to five."""
    tensor, weight, flow, _, spacing = level_of(size, flat, 1.0)
    expected = direct_solution(tensor, weight, flow, alpha, spacing)
    errors = [
        np.linalg.norm(
            solve(tensor, weight, flow, alpha, spacing, Relaxation("multigrid", 1.2, n, 1, 1.0, 1.0)) - expected
        )
        for n in (1, 5)
    ]
    assert (errors[1] / errors[0]) ** 0.25 < 0.5


def test_converges_to_the_linear_system():
    arguments = (*problem(33, 24, channels=2, seed=6), (3.0, 5.0), (1.25, 1.5))
    found = solve(*arguments, Relaxation("multigrid", 1.0, 30, 1, 1.0, 1.0))
    assert relative(found, direct_solution(*arguments)) <= tolerances.LINEAR_SYSTEM


def missing_share(arguments, relaxation):
    """Share of the reachable decrease of the energy that a relaxation leaves undone."""
    converged = solve(*arguments, Relaxation("multigrid", 1.2, 60, 1, 0.45, 1.0))
    start, reached, least = (
        level_energy(*arguments, 0.45, increment)
        for increment in (np.zeros_like(converged), solve(*arguments, relaxation), converged)
    )
    return (reached - least) / (start - least)


@pytest.mark.parametrize(("alpha", "flat"), [(100.0, 0.65), (1000.0, 0.0), (1000.0, 0.65)])
def test_reaches_what_block_does_not(alpha, flat):
    arguments = level_of((131, 160), flat, alpha)
    by_block, by_multigrid = (
        missing_share(arguments, choose_relaxation(Options(alpha=alpha, solver=solver), 131, 160))
        for solver in ("block", "multigrid")
    )
    assert by_block > 0.1
    assert by_multigrid < tolerances.ENERGY_FINE


def test_flat_images():
    """Without any structure the increment smooths the flow; a constant flow stays as it is."""
    size = (29, 33)
    tensor, weight = np.zeros((1, 6, *size), np.float32), np.ones((1, *size), np.float32)
    relaxation = Relaxation("multigrid", 1.2, 8, 1, 0.45, 1.0)
    still = np.ones((2, *size), np.float32)
    assert not solve(tensor, weight, still, (2.0, 2.0), (1.0, 1.0), relaxation).any()
    rough = np.random.default_rng(0).standard_normal((2, *size)).astype(np.float32)
    found = rough + solve(tensor, weight, rough, (2.0, 2.0), (1.0, 1.0), relaxation)
    assert found.std(axis=(1, 2)).max() < 1e-3


# Where it is taken


@pytest.mark.parametrize("term", ["gc", "gray", "cs"])
def test_share_without_structure(term):
    size = (64, 80)
    textured, _ = frame_pair(smooth_flow(*size), noise=0.02)
    reference, weight = to_planes(textured), np.ones((1, *size), np.float32)
    structured = flat_fraction(reference, weight, term)
    assert structured < 0.1
    mask = flat_mask(*size, 0.65)
    masked = np.where(mask, np.float32(0), weight)
    assert 0.65 <= flat_fraction(reference, masked, term) <= 0.7
    saturated = np.where(mask, np.float32(1), reference)
    assert 0.5 <= flat_fraction(saturated, weight, term) <= 0.7
    assert flat_fraction(np.full_like(reference, 0.3), weight, term) == 1
    both = np.concatenate([reference, saturated])
    assert flat_fraction(both, np.full_like(both, 0.5), term) < structured + 0.01


@pytest.mark.parametrize(
    ("options", "flat", "solver"),
    [
        ({}, 0.0, "block"),
        ({}, 0.9, "block"),
        ({"alpha": 100}, 0.0, "block"),
        ({"alpha": 100}, 0.4, "block"),
        ({"alpha": 100}, 0.6, "multigrid"),
        ({"alpha": (1, 100)}, 0.6, "multigrid"),
        ({"alpha": 201}, 0.0, "multigrid"),
        ({"alpha": 4}, 1.0, "multigrid"),
        ({"alpha": 0.1, "const_assumption": "gray"}, 0.0, "block"),
        ({"alpha": 4, "const_assumption": "gray"}, 0.0, "multigrid"),
        ({"alpha": 4, "const_assumption": "cs"}, 0.65, "block"),
        ({"alpha": 4, "a_smooth": 0.5}, 0.9, "sor"),
        ({"alpha": 100, "solver": "block"}, 0.9, "block"),
        ({"alpha": 100, "solver": "sor"}, 0.9, "sor"),
        ({"solver": "multigrid"}, 0.0, "multigrid"),
    ],
    ids=str,
)
def test_auto(options, flat, solver):
    assert choose_solver(Options(**options), flat).solver == solver
    rule = choose_relaxation(choose_solver(Options(**options), flat), 97, 128).rule
    assert rule == solver
    if solver != "sor":  # coarse levels decide which minimum is reached
        assert choose_relaxation(choose_solver(Options(**options), flat), 72, 90).rule == "block"


@pytest.mark.parametrize(("masked", "solver"), [(False, "block"), (True, "multigrid")])
def test_auto_looks_at_the_reference(masked, solver):
    reference, moving = frame_pair(smooth_flow(96, 112), noise=0.02)
    weight = np.where(flat_mask(96, 112, 0.65) & masked, 0.0, 1.0)
    found, expected = (
        estimate_flow(reference, moving, alpha=100, weight=weight, solver=name) for name in ("auto", solver)
    )
    np.testing.assert_array_equal(found, expected)
    other = {"block": "multigrid", "multigrid": "block"}[solver]
    assert (found != estimate_flow(reference, moving, alpha=100, weight=weight, solver=other)).any()


@pytest.mark.parametrize(
    ("options", "channels"),
    [({}, 1), ({"alpha": (1, 4)}, 2), ({"const_assumption": "gray", "alpha": 0.1}, 1), ({"a_data": 1}, 1)],
    ids=str,
)
def test_known_motion(options, channels):
    truth = smooth_flow(96, 112)
    found = estimate_flow(*frame_pair(truth, channels, seed=1), solver="multigrid", **options)
    assert end_point_error(found, truth, 8) <= tolerances.KNOWN_MOTION


def test_graduated_non_convexity():
    reference, moving = frame_pair(smooth_flow(96, 112), noise=0.02)
    options = {"gnc_schedule": (0, 1), "warping_steps": 1, "solver": "multigrid", "alpha": 4}
    found = estimate_flow(reference, moving, **options)
    by_block = estimate_flow(reference, moving, **{**options, "solver": "block"})
    assert np.abs(found - by_block).mean() < 0.02
    assert (found != by_block).any()
