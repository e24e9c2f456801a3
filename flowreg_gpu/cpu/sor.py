"""The rule sor, and the rule block where the smoothness is robust: relaxation of rows in their own order.

`sor` is over-relaxed Gauss-Seidel, u and v one after the other, columns outermost. psi_smooth of a pixel depends on its
neighbours, so that psi is refreshed for the whole level between two sweeps. psi and the data term are computed in lanes
(`flowreg_gpu.cpu.lanes`), with all pixels of a row in the place of one colour; the sweeps read planes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.cpu.jit import compiled, fma
from flowreg_gpu.cpu.lanes import LANES, U, add_data_term, aligned
from flowreg_gpu.cpu.relaxation import HALF, ONE, TWO, ZERO, constant_laplacian, invert, psi_of, update

__all__ = ["relax_in_order"]


def relax_in_order(
    tensor: NDArray[np.float32],
    weight: NDArray[np.float32],
    flow: NDArray[np.float32],
    edge: tuple[np.float32, np.float32],
    spacing: tuple[float, float],
    omega: np.float32,
    sweeps: int,
    lag: int,
    psi_data: tuple[np.float32, ...],
    psi_smooth: tuple[np.float32, ...],
    ordered: bool,
) -> NDArray[np.float32]:
    """Return the increment (2, h, w) float32 by the rule sor where `ordered`, else by block.

    Arguments as in `solver.solve`; `edge` is alpha / h^2 along x and y.
    """
    channels = len(tensor)
    tensors = tensor.reshape(6 * channels, *flow.shape[1:])
    if ordered:  # columns outermost: work on the transposed level, where a column is a contiguous line
        tensors, weight = tensors.swapaxes(-1, -2), weight.swapaxes(-1, -2)
        flow, edge, spacing = np.ascontiguousarray(flow.swapaxes(-1, -2)), edge[::-1], spacing[::-1]
    height, width = flow.shape[1:]
    lanes = -(-width // LANES) * LANES
    fixed = np.zeros((height, 7 * channels + 2, lanes), np.float32)
    for k, plane in enumerate((*tensors, *weight)):
        fixed[:, k, :width] = plane
    increment = np.zeros((2, height, lanes + 2), np.float32)
    hx, hy = map(np.float32, spacing)
    _relax(fixed, flow, *edge, hx, hy, omega, sweeps, lag, psi_data, psi_smooth, ordered, increment)
    inner = increment[:, :, 1 : width + 1]
    return np.ascontiguousarray(inner.swapaxes(-1, -2) if ordered else inner)


@compiled
def _relax(fixed, flow, cx, cy, hx, hy, omega, sweeps, lag, psi_data, psi_smooth, ordered, increment):
    """Fill the increment (2, h, lanes + 2), a ghost before each row and at least one after it.

    From `fixed` (h, 7 C + 2, lanes), whose last two lines are for the Laplacian, and flow (2, h, w).
    """
    _, height, width = flow.shape
    du, dv = increment[0], increment[1]
    coefficients = np.empty((5, height, fixed.shape[2]), np.float32)
    variable = psi_smooth[1] != 0
    # edge_x[y, x] joins x - 1 and x, edge_y[y, x] joins y - 1 and y; used where the smoothness is robust
    edge_x = np.full((height, width + 1), cx) if variable else np.empty((0, 0), np.float32)
    edge_y = np.full((height + 1, width), cy) if variable else np.empty((0, 0), np.float32)
    before_first_refresh = (ONE, ZERO, ZERO)
    if not variable:
        for y in range(height):
            constant_laplacian(flow, cx, cy, y, fixed[y, -2], fixed[y, -1])
    _refresh(fixed, flow, du, dv, cx, cy, edge_x, edge_y, omega, before_first_refresh, ordered, coefficients)
    for sweep in range(sweeps):
        if (sweep + 1) % lag == 0:
            if variable:
                _refresh_smoothness(flow, du, dv, cx, cy, hx, hy, psi_smooth, edge_x, edge_y)
            _refresh(fixed, flow, du, dv, cx, cy, edge_x, edge_y, omega, psi_data, ordered, coefficients)
        if ordered:
            _sweep_ordered(coefficients, cx, cy, edge_x, edge_y, omega, width, du, dv)
        else:
            _sweep_colour(coefficients, edge_x, edge_y, omega, 0, width, du, dv)
            _sweep_colour(coefficients, edge_x, edge_y, omega, 1, width, du, dv)


@compiled
def _refresh(fixed, flow, du, dv, cx, cy, edge_x, edge_y, omega, psi, ordered, coefficients):
    """Fold psi, tensor, Laplacian of the flow and omega into five coefficients (5, h, lanes) of a pixel.

    `block`: the inverse of the pixel's 2x2 system times omega (11, 12, 22), right-hand sides of u and v.
    `sor`: omega over the diagonal of u, the same of v, the coupling, right-hand sides of u and v.
    """
    height, planes, lanes = fixed.shape
    channels, pitch = planes // 7, du.shape[1]
    flat, u, v = fixed.reshape(fixed.size), du.reshape(du.size), dv.reshape(dv.size)
    system, smooth = aligned(5 * lanes), np.full(lanes, TWO * (cx + cy))
    for y in range(height):
        if edge_x.size > 0:
            _variable_laplacian(flow, edge_x, edge_y, y, smooth, fixed[y, -2], fixed[y, -1])
        add_data_term(flat, y * planes * lanes, lanes, channels, u, v, y * pitch + 1, psi, system, 0)
        if ordered:
            _scale_row(system, smooth, omega, coefficients, y)
        else:
            _invert_row(system, smooth, omega, coefficients, y)


@compiled
def _scale_row(system, smooth, omega, coefficients, y):
    """Write row y of the coefficients of sor from its systems (5 lanes) and diagonals of the smoothness (lanes,)."""
    k0, k1, k2 = coefficients[0, y], coefficients[1, y], coefficients[2, y]
    bu, bv = coefficients[3, y], coefficients[4, y]
    for begin in range(0, smooth.size, LANES):
        k = 5 * begin
        for i in range(LANES):
            x = U(begin + i)
            k0[x] = omega / (smooth[x] + system[U(k + i)])
            k1[x] = omega / (smooth[x] + system[U(k + LANES + i)])
            k2[x] = system[U(k + 2 * LANES + i)]
            bu[x] = system[U(k + 3 * LANES + i)]
            bv[x] = system[U(k + 4 * LANES + i)]


@compiled
def _invert_row(system, smooth, omega, coefficients, y):
    """Write row y of the coefficients of block from its systems (5 lanes) and diagonals of the smoothness (lanes,)."""
    k0, k1, k2 = coefficients[0, y], coefficients[1, y], coefficients[2, y]
    bu, bv = coefficients[3, y], coefficients[4, y]
    for begin in range(0, smooth.size, LANES):
        k = 5 * begin
        for i in range(LANES):
            x = U(begin + i)
            k0[x], k1[x], k2[x] = invert(
                system[U(k + i)], system[U(k + LANES + i)], system[U(k + 2 * LANES + i)], smooth[x], omega
            )
            bu[x] = system[U(k + 3 * LANES + i)]
            bv[x] = system[U(k + 4 * LANES + i)]


@compiled
def _variable_laplacian(flow, edge_x, edge_y, y, diagonal, bu, bv):
    """Write row y of the sum over the edges of a pixel of weight times difference of the flow, and of the weights.

    From flow (2, h, w), edge_x (h, w + 1) and edge_y (h + 1, w) to `diagonal`, `bu`, `bv`, of which w are written.
    """
    _, height, width = flow.shape
    above, below = max(y - 1, 0), min(y + 1, height - 1)
    for x in range(width):
        left, right = max(x - 1, 0), min(x + 1, width - 1)
        w_left, w_right, w_up, w_down = edge_x[y, x], edge_x[y, x + 1], edge_y[y, x], edge_y[y + 1, x]
        diagonal[x] = w_left + w_right + w_up + w_down
        for k in range(2):
            here = flow[k, y, x]
            total = fma(w_right, flow[k, y, right] - here, w_left * (flow[k, y, left] - here))
            total = fma(w_down, flow[k, below, x] - here, fma(w_up, flow[k, above, x] - here, total))
            if k == 0:
                bu[x] = total
            else:
                bv[x] = total


@compiled
def _refresh_smoothness(flow, du, dv, cx, cy, hx, hy, psi, edge_x, edge_y):
    """Write the weights of the edges: alpha / h^2 times the mean of psi_smooth of the two pixels that an edge joins.

    psi_smooth is taken of |grad(u + du)|^2 + |grad(v + dv)|^2, by central differences. At the border of the image it is
    the pixel's own. To edge_x (h, w + 1), which joins x - 1 and x, and edge_y (h + 1, w), which joins y - 1 and y.
    """
    _, height, width = flow.shape
    rx, ry = HALF / hx, HALF / hy
    weight = np.empty((height, width), np.float32)
    for y in range(height):
        above, below = max(y - 1, 0), min(y + 1, height - 1)
        for x in range(width):
            left, right = max(x - 1, 0), min(x + 1, width - 1)
            ux = rx * (flow[0, y, right] + du[y, right + 1] - flow[0, y, left] - du[y, left + 1])
            uy = ry * (flow[0, below, x] + du[below, x + 1] - flow[0, above, x] - du[above, x + 1])
            vx = rx * (flow[1, y, right] + dv[y, right + 1] - flow[1, y, left] - dv[y, left + 1])
            vy = ry * (flow[1, below, x] + dv[below, x + 1] - flow[1, above, x] - dv[above, x + 1])
            weight[y, x] = psi_of(fma(vy, vy, fma(vx, vx, fma(uy, uy, ux * ux))), psi)
    for y in range(height):
        edge_x[y, 0] = cx * weight[y, 0]
        for x in range(1, width):
            edge_x[y, x] = cx * HALF * (weight[y, x - 1] + weight[y, x])
        edge_x[y, width] = cx * weight[y, width - 1]
    for x in range(width):
        edge_y[0, x] = cy * weight[0, x]
        edge_y[height, x] = cy * weight[height - 1, x]
    for y in range(1, height):
        for x in range(width):
            edge_y[y, x] = cy * HALF * (weight[y - 1, x] + weight[y, x])


@compiled
def _sweep_colour(coefficients, edge_x, edge_y, omega, colour, width, du, dv):
    """Update the pixels with (x + y) % 2 == colour by the rule block, in place.

    From coefficients (5, h, lanes) of `_invert_row` and the edges' weights. Whole rows are computed, as that
    vectorises, and every second result is kept.
    """
    height = coefficients.shape[1]
    keep = ONE - omega
    new_u, new_v = np.empty(width, np.float32), np.empty(width, np.float32)
    for y in range(height):
        u, v = du[y], dv[y]
        above, below = max(y - 1, 0), min(y + 1, height - 1)
        u_up, v_up, u_down, v_down = du[above], dv[above], du[below], dv[below]
        for line in (u, v):
            line[0] = line[1]
            line[width + 1] = line[width]
        i11, i12, i22 = coefficients[0, y], coefficients[1, y], coefficients[2, y]
        bu, bv = coefficients[3, y], coefficients[4, y]
        left, right, up, down = edge_x[y, :-1], edge_x[y, 1:], edge_y[y], edge_y[y + 1]
        for x in range(width):
            su = fma(
                down[x], u_down[x + 1], fma(up[x], u_up[x + 1], fma(right[x], u[x + 2], fma(left[x], u[x], bu[x])))
            )
            sv = fma(
                down[x], v_down[x + 1], fma(up[x], v_up[x + 1], fma(right[x], v[x + 2], fma(left[x], v[x], bv[x])))
            )
            new_u[x], new_v[x] = update(keep, i11[x], i12[x], i22[x], su, sv, u[x + 1], v[x + 1])
        for x in range((y + colour) % 2, width, 2):
            u[x + 1] = new_u[x]
            v[x + 1] = new_v[x]


@compiled
def _sweep_ordered(coefficients, cx, cy, edge_x, edge_y, omega, width, du, dv):
    """Update all pixels by the rule sor, line after line, in place; from coefficients (5, h, lanes) of `_scale_row`.

    Of a line of u: x <- (1 - omega) x + omega / a11 (b - a12 v + weighted sum of its neighbours). All of it but the
    neighbour before, which is already updated, is computed in a loop that vectorises, then the recurrence. Then the
    line of v, which uses the new u.
    """
    height = coefficients.shape[1]
    keep = ONE - omega
    variable = edge_x.size > 0
    known, ahead = np.empty(width, np.float32), np.empty(width, np.float32)
    for y in range(height):
        coupling = coefficients[2, y]
        for k in range(2):
            now, other = (du, dv) if k == 0 else (dv, du)
            line, other_line, up, down = now[y], other[y], now[max(y - 1, 0)], now[min(y + 1, height - 1)]
            line[0] = line[1]
            line[width + 1] = line[width]
            scale, rhs = coefficients[k, y], coefficients[3 + k, y]
            if variable:
                left, right, w_up, w_down = edge_x[y, :-1], edge_x[y, 1:], edge_y[y], edge_y[y + 1]
                for x in range(width):
                    around = fma(right[x], line[x + 2], fma(-coupling[x], other_line[x + 1], rhs[x]))
                    around = fma(w_down[x], down[x + 1], fma(w_up[x], up[x + 1], around))
                    known[x] = fma(scale[x], around, keep * line[x + 1])
                    ahead[x] = scale[x] * left[x]
            else:
                for x in range(width):
                    around = fma(cy, up[x + 1] + down[x + 1], fma(-coupling[x], other_line[x + 1], rhs[x]))
                    known[x] = fma(scale[x], fma(cx, line[x + 2], around), keep * line[x + 1])
                    ahead[x] = scale[x] * cx
            value = line[0]
            for x in range(width):
                value = fma(ahead[x], value, known[x])
                line[x + 1] = value
