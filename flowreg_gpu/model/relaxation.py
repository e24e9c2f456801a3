"""How one pyramid level is relaxed: what the solvers of both backends take, and how the options choose it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from flowreg_gpu.options import Options

__all__ = [
    "COARSEST_SWEEPS",
    "STIFFNESS",
    "Grid",
    "Relaxation",
    "choose_relaxation",
    "choose_solver",
    "edge_weights",
    "plan_grids",
    "robust_coefficients",
    "sweep_equivalents",
]


class Relaxation(NamedTuple):
    """The rule, its over-relaxation, sweeps, and when psi is refreshed.

    The rule is 'sor', 'block' or 'multigrid'; the sweeps of the last are V-cycles, and its smoothness is quadratic.
    psi is refreshed before sweep i (from 0) where (i + 1) % lag == 0. The robust weight is
    (1 - beta) + beta * a * (x + 1e-5)^(a - 1); `beta` is 1 but for graduated non-convexity.
    """

    rule: str
    omega: float
    sweeps: int
    lag: int
    a_data: float
    a_smooth: float
    beta: float = 1.0


SOR_OMEGA = 1.95  # upstream's, so that 'sor' follows its rule

# The solver 'block': (omega, sweeps, lag). On levels whose longer side has at most COARSE_SIDE pixels it is COARSE:
# upstream's omega, 50 sweeps and lag. These levels hold 3 % of the work and decide which minimum is reached, so they
# are always relaxed far: with omega 1.6 and 20 sweeps on every level the registered images of 'gray' match 17 % worse
# than upstream's. At a COARSE_SIDE of 110 the levels took 11 % more sweeps in all, and that of 105 pixels kept up to
# 0.07 of the energy that could be removed (benchmarks/ATTEMPTS.md, "How far to relax").
COARSE_SIDE = 90
COARSE = (1.95, 50, 5)
# On finer levels, the larger the smoothness weight against the data term (the stiffness), the larger omega has to be
# and the more sweeps are due. Rows of (largest stiffness, relaxation), chosen by measurement:
# benchmarks/solver_energy.py prints the energy and end-point error that they reach, benchmarks/ATTEMPTS.md lists what
# was tried beside them.
FINE = (
    (2.0, (1.72, 16, 2)),
    (5.0, (1.7, 20, 2)),
    (40.0, (1.8, 30, 2)),
    (100.0, (1.9, 50, 2)),
    (float("inf"), (1.95, 100, 2)),
)
# Stiffness is alpha times this factor of the data term: the motion tensors of 'cs' are smaller than those of 'gc', and
# those of 'gray' smaller still, as its images are scaled to 0-1 and its gradients are not normalised. Chosen by
# measurement (benchmarks/solver_energy.py).
STIFFNESS = {"gc": 1.0, "cs": 15.0, "gray": 500.0}

# The solver 'multigrid' on levels finer than COARSE_SIDE; up to it, it is 'block': (omega, cycles, lag). A cycle is a
# sweep on every grid from the finest to the second coarsest, COARSEST_SWEEPS on the coarsest, whose longer side has at
# most COARSEST_SIDE pixels, and a sweep on every grid back to the finest. At omega 1.2 a
# cycle leaves 0.47 of the error of partly masked frames, at omega 1 0.56; of the energy of 'gray' at alpha 4 that could
# be removed 6 cycles (omega 1) leave 3.3 %, 8 leave 1.2 % (benchmarks/ATTEMPTS.md, "V-cycles").
CYCLES = (1.2, 8, 1)
COARSEST_SIDE, COARSEST_SWEEPS = 4, 8
# 'auto' takes 'multigrid' where alpha over the fraction of pixels with structure is above this: there 'block' may leave
# more than 5 % of the energy (benchmarks/ATTEMPTS.md, table "Where `auto` takes it").
MULTIGRID_ALPHA = {"gc": 200.0, "cs": 50.0, "gray": 2.0}


def choose_solver(options: Options, flat: float = 0.0) -> Options:
    """Return the options with 'auto' replaced by a solver; `flat` is the fraction of the reference without structure.

    The solver is 'sor' where the smoothness is robust: there the converged flow of noisy frames is further from the
    truth than the early iterates of that rule (6 % of the end-point error, benchmarks/ATTEMPTS.md). It is 'multigrid'
    where the data term is weak, and 'block' anywhere else. It depends on options and reference alone, not on the frames
    or their batches, so that results do not depend on them either.
    """
    if options.solver != "auto":
        return options
    if options.a_smooth < 1:
        return options.replace(solver="sor")
    weak = max(options.alpha_xy) > MULTIGRID_ALPHA[options.const_assumption] * (1 - flat)
    return options.replace(solver="multigrid" if weak else "block")


def choose_relaxation(options: Options, height: int, width: int, beta: float = 1.0) -> Relaxation:
    """Relaxation of a level of (height, width) pixels; `beta` is the stage of the graduated non-convexity.

    Where the solver is still 'auto', the reference counts as structured throughout.
    """
    solver, robust = choose_solver(options).solver, (options.a_data, options.a_smooth, beta)
    if solver == "sor":
        return Relaxation("sor", SOR_OMEGA, options.iterations, options.update_lag, *robust)
    if max(height, width) <= COARSE_SIDE:
        return Relaxation("block", *COARSE, *robust)
    if solver == "multigrid":
        return Relaxation("multigrid", *CYCLES, *robust)
    stiffness = max(options.alpha_xy) * STIFFNESS[options.const_assumption]
    return Relaxation("block", *next(chosen for limit, chosen in FINE if stiffness <= limit), *robust)


def robust_coefficients(a: float, beta: float) -> tuple[np.float32, np.float32, np.float32]:
    """Constant, factor and power of psi = constant + factor * (x + 1e-5)^power; a = 1 is quadratic, psi = 1."""
    constant, factor, power = (1.0, 0.0, 0.0) if a == 1 else (1 - beta, beta * a, a - 1)
    return np.float32(constant), np.float32(factor), np.float32(power)


def edge_weights(alpha: tuple[float, float], spacing: tuple[float, float]) -> tuple[np.float32, np.float32]:
    """Weight alpha / h^2 of the edges along x and y."""
    hx, hy = map(np.float32, spacing)
    return np.float32(alpha[0]) / (hx * hx), np.float32(alpha[1]) / (hy * hy)


class Grid(NamedTuple):
    """One grid of the rule multigrid: its size, and alpha / h^2 along x and y."""

    height: int
    width: int
    edge: tuple[np.float32, np.float32]


def plan_grids(height: int, width: int, edge: tuple[np.float32, np.float32]) -> list[Grid]:
    """Grids of the rule multigrid, finest first: axes are halved, odd sizes rounded up, until both are at most 4.

    Semi-coarsening: an axis whose coupling (alpha / h^2) is below half the other's is not halved yet. Along it the
    sweeps hardly smooth the error, so that a coarser grid could not represent it. kernels/multigrid.cu does the same.
    """
    grids = [Grid(height, width, edge)]
    while max(height, width) > COARSEST_SIDE:
        along, across = (c if side > 1 else np.float32(0) for c, side in zip(edge, (width, height), strict=True))
        coarse_width = (width + 1) // 2 if 2 * along >= across else width
        coarse_height = (height + 1) // 2 if 2 * across >= along else height
        ratios = np.float32(width) / np.float32(coarse_width), np.float32(height) / np.float32(coarse_height)
        edge = (edge[0] / (ratios[0] * ratios[0]), edge[1] / (ratios[1] * ratios[1]))
        height, width = coarse_height, coarse_width
        grids.append(Grid(height, width, edge))
    return grids


def sweep_equivalents(height: int, width: int, edge: tuple[np.float32, np.float32], relaxation: Relaxation) -> float:
    """Work of a relaxation in sweeps of the level; a V-cycle is two sweeps and a residual on every grid."""
    if relaxation.rule != "multigrid":
        return relaxation.sweeps
    return relaxation.sweeps * 3 * sum(g.height * g.width for g in plan_grids(height, width, edge)) / (height * width)
