"""Relaxation of one pyramid level: the increment (du, dv) of the flow for a frozen motion tensor.

Minimises, with lagged robust weights psi (Brox, Bruhn, Papenberg, Weickert 2004),

    E = 1/2 sum_edges c |grad(u + du, v + dv)|^2 + 1/2 sum_k weight_k (J_k-form(du, dv) + 1e-5)^a_data,

c = alpha / h^2 (times psi_smooth where a_smooth < 1). Two rules, one set of coefficients:

* `sor`: over-relaxed Gauss-Seidel, u and v one after the other, columns outermost;
* `block`: red-black, u and v of a pixel solved together.

A missing neighbour at the edge is the pixel's own value before its update. The increments carry one ghost
column on either side for it; ghost rows are not needed, the row index is clamped instead.

Where the smoothness is quadratic, `block` works on rows that are sorted by colour (relaxation.py). All sweeps up to
the next refresh of psi go over the level together, each half-sweep one row behind the one before, while the rows are
in the cache.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.cpu.jit import compiled
from flowreg_gpu.cpu.multigrid import relax_in_cycles
from flowreg_gpu.cpu.relaxation import (
    HALF,
    ONE,
    PSI_EPS,
    TWO,
    ZERO,
    accumulate_row,
    constant_laplacian,
    invert_row,
    power,
    relax_row,
    set_ghosts,
    sort_level,
    unsort,
)
from flowreg_gpu.relaxation import Relaxation, edge_weights, robust_weight

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
        _single(robust_weight(exponent, relaxation.beta)) for exponent in (relaxation.a_data, relaxation.a_smooth)
    )
    omega, ordered = np.float32(relaxation.omega), relaxation.rule == "sor"
    if not ordered and psi_smooth[1] == 0:
        edges = edge_weights(alpha, spacing)
        if relaxation.rule == "multigrid":
            return relax_in_cycles(tensor, weight, flow, edges, omega, relaxation.sweeps, relaxation.lag, psi_data)
        out = np.empty(flow.shape, np.float32)
        _relax_sorted(tensor, weight, flow, *edges, omega, relaxation.sweeps, relaxation.lag, psi_data, out)
        return out
    if ordered:  # columns outermost: work on the transposed level, where a column is a contiguous line
        tensor, weight, flow = (np.ascontiguousarray(item.swapaxes(-1, -2)) for item in (tensor, weight, flow))
        alpha, spacing = alpha[::-1], spacing[::-1]
    height, width = flow.shape[1:]
    increment = np.zeros((2, height, width + 2), np.float32)
    _relax(
        tensor,
        weight,
        flow,
        np.float32(alpha[0]),
        np.float32(alpha[1]),
        np.float32(spacing[0]),
        np.float32(spacing[1]),
        omega,
        relaxation.sweeps,
        relaxation.lag,
        psi_data,
        psi_smooth,
        ordered,
        increment,
    )
    inner = increment[:, :, 1:-1]
    return np.ascontiguousarray(inner.swapaxes(-1, -2) if ordered else inner)


def _single(psi: tuple[float, float, float]) -> tuple[np.float32, ...]:
    return tuple(map(np.float32, psi))


@compiled
def _relax(
    tensor, weight, flow, alpha_x, alpha_y, hx, hy, omega, sweeps, lag, psi_data, psi_smooth, ordered, increment
):
    _, height, width = flow.shape
    du, dv = increment[0], increment[1]
    cx, cy = alpha_x / (hx * hx), alpha_y / (hy * hy)
    coefficients = np.empty((5, height, width), np.float32)
    variable = psi_smooth[1] != 0
    # edge_x[y, x] joins x - 1 and x, edge_y[y, x] joins y - 1 and y; used where the smoothness is robust
    edge_x = np.full((height, width + 1), cx) if variable else np.empty((0, 0), np.float32)
    edge_y = np.full((height + 1, width), cy) if variable else np.empty((0, 0), np.float32)
    before_first_refresh = (ONE, ZERO, ZERO)
    _refresh(tensor, weight, flow, du, dv, cx, cy, edge_x, edge_y, omega, before_first_refresh, ordered, coefficients)
    for sweep in range(sweeps):
        if (sweep + 1) % lag == 0:
            if variable:
                _refresh_smoothness(flow, du, dv, cx, cy, hx, hy, psi_smooth, edge_x, edge_y)
            _refresh(tensor, weight, flow, du, dv, cx, cy, edge_x, edge_y, omega, psi_data, ordered, coefficients)
        if ordered:
            _sweep_ordered(coefficients, cx, cy, edge_x, edge_y, omega, du, dv)
        else:
            _sweep_colour(coefficients, edge_x, edge_y, omega, 0, du, dv)
            _sweep_colour(coefficients, edge_x, edge_y, omega, 1, du, dv)


@compiled
def _refresh(tensor, weight, flow, du, dv, cx, cy, edge_x, edge_y, omega, psi, ordered, coefficients):
    """Fold psi, tensor, Laplacian of the flow and omega into five coefficients per pixel.

    `block`: the inverse of the pixel's 2x2 system times omega (11, 12, 22), right-hand sides of u and v.
    `sor`: omega over the diagonal of u, right-hand side of u, the coupling, the same two of v.
    """
    channels, _, height, width = tensor.shape
    constant, factor, exponent = psi
    total = np.empty((5, width), np.float32)
    d11, d22, d12, bu, bv = total[0], total[1], total[2], total[3], total[4]
    psi_row, smooth = np.empty(width, np.float32), np.empty(width, np.float32)
    variable = edge_x.size > 0
    for y in range(height):
        # 1. smoothness: diagonal and right-hand sides
        if variable:
            _variable_laplacian(flow, edge_x, edge_y, y, smooth, bu, bv)
        else:
            constant_laplacian(flow, cx, cy, y, bu, bv)
            smooth[:] = TWO * (cx + cy)
        d11[:] = ZERO
        d22[:] = ZERO
        d12[:] = ZERO
        # 2. data term, summed over the channels
        du_row, dv_row = du[y, 1 : width + 1], dv[y, 1 : width + 1]
        for channel in range(channels):
            j11, j22, j33 = tensor[channel, 0, y], tensor[channel, 1, y], tensor[channel, 2, y]
            j12, j13, j23 = tensor[channel, 3, y], tensor[channel, 4, y], tensor[channel, 5, y]
            share = weight[channel, y]
            for x in range(width):
                a, b = du_row[x], dv_row[x]
                energy = j11[x] * a * a + j22[x] * b * b + TWO * (j12[x] * a * b + j13[x] * a + j23[x] * b) + j33[x]
                positive = energy if energy > ZERO else ZERO
                psi_row[x] = constant + factor * power(positive + PSI_EPS, exponent)
            # one array written per loop: LLVM gives up vectorising where more than eight pairs might overlap;
            # at the edge of a mask the cubic resampling overshoots below zero, which would make the system indefinite
            for x in range(width):
                psi_row[x] *= share[x] if share[x] > ZERO else ZERO
            for x in range(width):
                d11[x] += psi_row[x] * j11[x]
            for x in range(width):
                d22[x] += psi_row[x] * j22[x]
            for x in range(width):
                d12[x] += psi_row[x] * j12[x]
            for x in range(width):
                bu[x] -= psi_row[x] * j13[x]
            for x in range(width):
                bv[x] -= psi_row[x] * j23[x]
        # 3. what the sweeps need
        k0, k1, k2 = coefficients[0, y], coefficients[1, y], coefficients[2, y]
        coefficients[3, y] = bu
        coefficients[4, y] = bv
        if ordered:
            for x in range(width):
                k0[x] = omega / (smooth[x] + d11[x])
            for x in range(width):
                k1[x] = omega / (smooth[x] + d22[x])
            k2[:] = d12
        else:
            for x in range(width):
                # the data part alone may have rank 1: its determinant is kept apart and from going below zero
                data = d11[x] * d22[x] - d12[x] * d12[x]
                determinant = smooth[x] * (smooth[x] + d11[x] + d22[x]) + (data if data > ZERO else ZERO)
                scale = omega / determinant
                k0[x] = scale * (smooth[x] + d22[x])
                k1[x] = -scale * d12[x]
                k2[x] = scale * (smooth[x] + d11[x])


@compiled
def _variable_laplacian(flow, edge_x, edge_y, y, diagonal, bu, bv):
    _, height, width = flow.shape
    above, below = max(y - 1, 0), min(y + 1, height - 1)
    for x in range(width):
        left, right = max(x - 1, 0), min(x + 1, width - 1)
        w_left, w_right, w_up, w_down = edge_x[y, x], edge_x[y, x + 1], edge_y[y, x], edge_y[y + 1, x]
        diagonal[x] = w_left + w_right + w_up + w_down
        for k in range(2):
            here = flow[k, y, x]
            total = (
                w_left * (flow[k, y, left] - here)
                + w_right * (flow[k, y, right] - here)
                + w_up * (flow[k, above, x] - here)
                + w_down * (flow[k, below, x] - here)
            )
            if k == 0:
                bu[x] = total
            else:
                bv[x] = total


@compiled
def _refresh_smoothness(flow, du, dv, cx, cy, hx, hy, psi, edge_x, edge_y):
    """psi_smooth of the gradient of u + du, v + dv, averaged onto the edges; outside an edge: the pixel's own."""
    _, height, width = flow.shape
    constant, factor, exponent = psi
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
            weight[y, x] = constant + factor * power(ux * ux + uy * uy + vx * vx + vy * vy + PSI_EPS, exponent)
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
def _sweep_colour(coefficients, edge_x, edge_y, omega, colour, du, dv):
    """Update the pixels with (x + y) % 2 == colour; whole rows are computed, as that vectorises, half is kept."""
    _, height, width = coefficients.shape
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
            su = left[x] * u[x] + right[x] * u[x + 2] + up[x] * u_up[x + 1] + down[x] * u_down[x + 1] + bu[x]
            sv = left[x] * v[x] + right[x] * v[x + 2] + up[x] * v_up[x + 1] + down[x] * v_down[x + 1] + bv[x]
            new_u[x] = keep * u[x + 1] + i11[x] * su + i12[x] * sv
            new_v[x] = keep * v[x + 1] + i12[x] * su + i22[x] * sv
        for x in range((y + colour) % 2, width, 2):
            u[x + 1] = new_u[x]
            v[x + 1] = new_v[x]


@compiled
def _sweep_ordered(coefficients, cx, cy, edge_x, edge_y, omega, du, dv):
    """Gauss-Seidel line after line: all of u's line but its recurrence vectorises, then v's, which sees the new u."""
    _, height, width = coefficients.shape
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
                    around = right[x] * line[x + 2] + w_up[x] * up[x + 1] + w_down[x] * down[x + 1]
                    known[x] = keep * line[x + 1] + scale[x] * (around + rhs[x] - coupling[x] * other_line[x + 1])
                    ahead[x] = scale[x] * left[x]
            else:
                for x in range(width):
                    around = cx * line[x + 2] + cy * (up[x + 1] + down[x + 1])
                    known[x] = keep * line[x + 1] + scale[x] * (around + rhs[x] - coupling[x] * other_line[x + 1])
                    ahead[x] = scale[x] * cx
            value = line[0]
            for x in range(width):
                value = known[x] + ahead[x] * value
                line[x + 1] = value


@compiled
def _relax_sorted(tensor, weight, flow, cx, cy, omega, sweeps, lag, psi_data, out):
    channels, _, height, width = tensor.shape
    pitch = 2 * ((width + 1) // 2 + 2)
    fixed = sort_level(tensor, weight, flow, cx, cy)
    # the sweeps before the first refresh of psi, from it to the second, ...
    increment = np.zeros((2, height + 2, pitch), np.float32)
    total = np.empty(4 * pitch, np.float32)
    ring = np.empty((2 * lag + 1, 5 * pitch), np.float32)
    done, psi = 0, (ONE, ZERO, ZERO)
    count = min(lag - 1, sweeps)
    while done < sweeps:
        _sweep_sorted(fixed, channels, increment, width, cx, cy, omega, psi, 2 * count, total, ring)
        done += count
        psi = psi_data
        count = min(lag, sweeps - done)
    unsort(increment, out)


@compiled
def _sweep_sorted(fixed, channels, increment, width, cx, cy, omega, psi, half_sweeps, total, ring):
    """Refresh psi and do some half-sweeps: at every step, row y is refreshed and half-sweep k follows at row y - k."""
    tensor, weight, laplacian = fixed
    height, pitch = increment.shape[1] - 2, increment.shape[2]
    half, smooth, keep = pitch // 2 - 2, TWO * (cx + cy), ONE - omega
    flat = increment.reshape(increment.size)
    plane = (height + 2) * pitch
    for step in range(height + max(half_sweeps - 1, 0)):
        if step < height:
            coefficients = ring[step % ring.shape[0]]
            here = step * pitch
            accumulate_row(
                tensor, weight, laplacian, flat, here, height * pitch, here + pitch, plane, pitch, channels, psi, total,
                coefficients[3 * pitch :],
            )  # fmt: skip
            invert_row(total, pitch, smooth, omega, coefficients)
        for k in range(max(0, step - height + 1), min(half_sweeps, step + 1)):
            y, colour = step - k, k % 2
            parity = (y + colour) % 2
            begin, other = colour * (half + 2) + 1, (1 - colour) * (half + 2) + 1
            set_ghosts(increment, y + 1, width, half, parity, begin, other)
            coefficients = ring[y % ring.shape[0]]
            row = (y + 1) * pitch
            relax_row(flat, plane, row, pitch, half, begin, other, parity, coefficients, cx, cy, keep)
