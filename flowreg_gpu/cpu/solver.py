"""Relaxation of one pyramid level: the increment (du, dv) of the flow for a frozen motion tensor.

Minimises, with lagged robust weights psi (Brox, Bruhn, Papenberg, Weickert 2004),

    E = 1/2 sum_edges c |grad(u + du, v + dv)|^2 + 1/2 sum_k weight_k (J_k-form(du, dv) + 1e-5)^a_data,

c = alpha / h^2 (times psi_smooth where a_smooth < 1), J_k-form as in `flowreg_gpu.cpu.motion_tensor`. Three rules:

* `sor`: over-relaxed Gauss-Seidel, u and v one after the other, columns outermost (`flowreg_gpu.cpu.sor`);
* `block`: red-black, u and v of a pixel solved together (`flowreg_gpu.cpu.block`; where the smoothness is robust,
  `flowreg_gpu.cpu.sor`);
* `multigrid`: V-cycles whose sweeps are those of `block`, for quadratic smoothness (`flowreg_gpu.cpu.multigrid`).

A missing neighbour at the edge is the pixel's own value before its update.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.cpu.block import relax_red_black
from flowreg_gpu.cpu.multigrid import relax_in_cycles
from flowreg_gpu.cpu.sor import relax_in_order
from flowreg_gpu.model.relaxation import Relaxation, edge_weights, robust_coefficients

__all__ = ["solve"]


def solve(
    tensor: NDArray[np.float32],
    weight: NDArray[np.float32],
    flow: NDArray[np.float32],
    alpha: tuple[float, float],
    spacing: tuple[float, float],
    relaxation: Relaxation,
) -> NDArray[np.float32]:
    """Return the increment (2, h, w) float32 of `flow` (2, h, w), in full-resolution pixels.

    Parameters
    ----------
    tensor : (C, 6, h, w) float32
        J11, J22, J33, J12, J13, J23 per channel.
    weight : (C, h, w) float32
        Channel weights.
    alpha, spacing : (float, float)
        Smoothness weight and grid spacing along x and y.
    relaxation : Relaxation
    """
    psi_data, psi_smooth = (
        robust_coefficients(exponent, relaxation.beta) for exponent in (relaxation.a_data, relaxation.a_smooth)
    )
    omega, sweeps, lag = np.float32(relaxation.omega), relaxation.sweeps, relaxation.lag
    edges = edge_weights(alpha, spacing)
    if relaxation.rule == "sor" or psi_smooth[1] != 0:
        ordered = relaxation.rule == "sor"
        return relax_in_order(tensor, weight, flow, edges, spacing, omega, sweeps, lag, psi_data, psi_smooth, ordered)
    if relaxation.rule == "multigrid":
        return relax_in_cycles(tensor, weight, flow, edges, omega, sweeps, lag, psi_data)
    out = np.empty(flow.shape, np.float32)
    relax_red_black(tensor, weight, flow, *edges, omega, sweeps, lag, psi_data, out)
    return out
