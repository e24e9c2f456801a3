"""How one pyramid level is relaxed: what the solvers of both backends take, and how the options choose it."""

from __future__ import annotations

from typing import NamedTuple

from flowreg_gpu.options import Options

__all__ = ["Relaxation", "choose_relaxation", "robust_weight"]


class Relaxation(NamedTuple):
    """The rule, its over-relaxation, sweeps, and when psi is refreshed.

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


SOR_OMEGA = 1.95

# The solver 'block': (omega, sweeps, lag). Levels up to COARSE_SIDE pixels hold 3 % of the work and decide which
# minimum is reached, so they are always relaxed far. Above, the larger the smoothness weight against the data term,
# the larger omega has to be and the more sweeps are due: rows of (largest stiffness, relaxation).
# benchmarks/solver_energy.py prints the energy that these choices reach.
COARSE_SIDE = 90
COARSE = (1.95, 50, 5)
FINE = ((5.0, (1.7, 20, 2)), (40.0, (1.8, 30, 2)), (100.0, (1.9, 50, 2)), (float("inf"), (1.95, 100, 2)))
# Stiffness is alpha times this: the tensors of the other data terms are smaller, that of gray with images scaled to
# 0-1 by far.
STIFFNESS = {"gc": 1.0, "cs": 15.0, "gray": 500.0}


def choose_relaxation(options: Options, height: int, width: int, beta: float = 1.0) -> Relaxation:
    """Relaxation of a level of (height, width) pixels; `beta` is the stage of the graduated non-convexity.

    'auto' is 'block', but 'sor' where the smoothness is robust: there the converged flow of noisy frames is further
    from the truth than the early iterates of that rule (6 % of the end-point error, benchmarks/ATTEMPTS.md).
    """
    robust = (options.a_data, options.a_smooth, beta)
    if options.solver == "sor" or (options.solver == "auto" and options.a_smooth < 1):
        return Relaxation("sor", SOR_OMEGA, options.iterations, options.update_lag, *robust)
    if max(height, width) <= COARSE_SIDE:
        return Relaxation("block", *COARSE, *robust)
    stiffness = max(options.alpha_xy) * STIFFNESS[options.const_assumption]
    return Relaxation("block", *next(chosen for limit, chosen in FINE if stiffness <= limit), *robust)


def robust_weight(a: float, beta: float) -> tuple[float, float, float]:
    """Constant, factor and power of psi = constant + factor * (x + 1e-5)^power; a = 1 is quadratic, psi = 1."""
    if a == 1:
        return 1.0, 0.0, 0.0
    return 1 - beta, beta * a, a - 1
