"""The rule multigrid by V-cycles with dense matrices between the grids."""

import numpy as np

from flowreg_gpu.model.relaxation import plan_grids
from tests.oracles.relaxation import data_energy, robust


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
