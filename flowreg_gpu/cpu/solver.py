"""Relaxation of one pyramid level: the increment (du, dv) of the flow for a frozen motion tensor.

Minimises, with lagged robust weights psi (Brox, Bruhn, Papenberg, Weickert 2004),

    E = 1/2 sum_edges c |grad(u + du, v + dv)|^2 + 1/2 sum_k weight_k (J_k-form(du, dv) + 1e-5)^a_data,

c = alpha / h^2 (times psi_smooth where a_smooth < 1). Two rules, one set of coefficients:

* `sor`: over-relaxed Gauss-Seidel, u and v one after the other, columns outermost;
* `block`: red-black, u and v of a pixel solved together.

A missing neighbour at the edge is the pixel's own value before its update. The increments carry one ghost
column on either side for it; ghost rows are not needed, the row index is clamped instead.

Where the smoothness is quadratic, `block` keeps the colours apart, the red pixels ((x + y) even) and the black ones, so
that it touches nothing but what it needs. Pixel i of a colour is x = 2 i + parity, parity = (y + colour) % 2; its
neighbours above and below are pixel i of the other colour, those left and right pixels i - 1 + parity and i + parity.
As psi depends on the pixel alone, all sweeps go over the level together, each half-sweep one row behind the one before
and refreshing psi on the way, while the rows are in the cache.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.cpu.jit import compiled, fma, inlined
from flowreg_gpu.cpu.multigrid import relax_in_cycles
from flowreg_gpu.cpu.relaxation import (
    HALF,
    ONE,
    TWO,
    ZERO,
    constant_laplacian,
    data_energy,
    invert,
    psi_of,
    update,
    weighted_sum,
)
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
    omega, ordered = np.float32(relaxation.omega), relaxation.rule == "sor"
    edges = edge_weights(alpha, spacing)
    if not ordered and psi_smooth[1] == 0:
        if relaxation.rule == "multigrid":
            return relax_in_cycles(tensor, weight, flow, edges, omega, relaxation.sweeps, relaxation.lag, psi_data)
        out = np.empty(flow.shape, np.float32)
        _relax_sorted(tensor, weight, flow, *edges, omega, relaxation.sweeps, relaxation.lag, psi_data, out)
        return out
    if ordered:  # columns outermost: work on the transposed level, where a column is a contiguous line
        tensor, weight, flow = (np.ascontiguousarray(item.swapaxes(-1, -2)) for item in (tensor, weight, flow))
        edges, spacing = edges[::-1], spacing[::-1]
    height, width = flow.shape[1:]
    increment = np.zeros((2, height, width + 2), np.float32)
    _relax(
        tensor,
        weight,
        flow,
        *edges,
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


@compiled
def _relax(tensor, weight, flow, cx, cy, hx, hy, omega, sweeps, lag, psi_data, psi_smooth, ordered, increment):
    _, height, width = flow.shape
    du, dv = increment[0], increment[1]
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
                energy = data_energy(j11[x], j22[x], j33[x], j12[x], j13[x], j23[x], du_row[x], dv_row[x])
                psi_row[x] = psi_of(energy, psi)
            # one array written per loop: LLVM gives up vectorising where more than eight pairs might overlap;
            # at the edge of a mask the cubic resampling overshoots below zero, which would make the system indefinite
            for x in range(width):
                psi_row[x] *= share[x] if share[x] > ZERO else ZERO
            for x in range(width):
                d11[x] = fma(psi_row[x], j11[x], d11[x])
            for x in range(width):
                d22[x] = fma(psi_row[x], j22[x], d22[x])
            for x in range(width):
                d12[x] = fma(psi_row[x], j12[x], d12[x])
            for x in range(width):
                bu[x] = fma(-psi_row[x], j13[x], bu[x])
            for x in range(width):
                bv[x] = fma(-psi_row[x], j23[x], bv[x])
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
                k0[x], k1[x], k2[x] = invert(d11[x], d22[x], d12[x], smooth[x], omega)


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
            total = fma(w_right, flow[k, y, right] - here, w_left * (flow[k, y, left] - here))
            total = fma(w_down, flow[k, below, x] - here, fma(w_up, flow[k, above, x] - here, total))
            if k == 0:
                bu[x] = total
            else:
                bv[x] = total


@compiled
def _refresh_smoothness(flow, du, dv, cx, cy, hx, hy, psi, edge_x, edge_y):
    """psi_smooth of the gradient of u + du, v + dv, averaged onto the edges; outside an edge: the pixel's own."""
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


# The rule block with quadratic smoothness, on rows sorted by colour.
#
# numba tests every index for being negative and every slice for its bounds, unless an index is unsigned; with flat
# arrays and unsigned offsets the sweeps of a 64 x 64 level take 0.4 of the time. The quantities of `_LANES` pixels of
# one colour lie next to each other: loops of a fixed length over them vectorise without a remainder, and LLVM sees
# that what they write does not overlap. Pixels that fill the last lanes are computed, but no other depends on them.
_U = np.uint64
_LANES = 16
_TOGETHER = 3 * 2**19  # bytes of the rows that sweeps work on together, so that they stay in the cache
_AHEAD = 8  # rows sorted at a time


@compiled
def _relax_sorted(tensor, weight, flow, cx, cy, omega, sweeps, lag, psi_data, out):
    channels, _, height, width = tensor.shape
    half = (width + 1) // 2
    lanes = (half + _LANES - 1) // _LANES * _LANES
    # increments per component and colour, with ghost rows and a ghost at either end of a row, of which the left one is
    # the last pixel of the row before
    pitch = (half + 2 + _LANES - 1) // _LANES * _LANES
    increment = _aligned(4 * (height + 3) * pitch).reshape(2, 2, (height + 3) * pitch)
    increment[:] = ZERO
    # what the refreshes read, sorted; if all sweeps are done together, no more than they need at a time
    row_size = 2 * (7 * channels + 2) * lanes
    together = max(_TOGETHER // (8 * (row_size + 10 * lanes + 4 * pitch)) // lag, 1) * lag
    kept = min(height, 2 * sweeps + _AHEAD) if together > sweeps else height
    fixed = _aligned(kept * row_size)
    ring = _aligned((together // lag + 1) * 4 * lag * 5 * lanes)
    sums = _aligned(5 * lanes)
    first = 0
    while first < sweeps:
        last = min(max(first + together - (1 if first == 0 else 0), 1), sweeps)
        _sweep_sorted(
            tensor, weight, flow, fixed, increment[0, 0], increment[1, 0], increment[0, 1], increment[1, 1], lanes,
            pitch, cx, cy, omega, first, last, lag, psi_data, sums, ring,
        )  # fmt: skip
        first = last
    flat = out.reshape(out.size)
    for k in range(2):
        _join(increment[k, 0], increment[k, 1], height, width, pitch, flat, k * height * width)


@compiled
def _aligned(size):
    """Uninitialised float32 at the beginning of a cache line, so that no `_LANES` of them lie in two."""
    buffer = np.empty(size + 16, np.float32)
    begin = -(buffer.ctypes.data // 4) % 16
    return buffer[begin : begin + size]


@compiled
def _join(red, black, height, width, pitch, out, begin):
    for y in range(height):
        at, to = (y + 2) * pitch, begin + y * width
        first, second = (red, black) if y % 2 == 0 else (black, red)
        for i in range(width // 2):
            out[_U(to + 2 * i)] = first[_U(at + i)]
            out[_U(to + 2 * i + 1)] = second[_U(at + i)]
        if width % 2 == 1:
            out[_U(to + width - 1)] = first[_U(at + width // 2)]


@compiled
def _sort(tensor, weight, flow, cx, cy, begin, end, lanes, fixed):
    """Per row and colour: the tensors, the weights, and the Laplacian of the flow."""
    channels, _, height, width = tensor.shape
    tensors, weights = tensor.reshape(tensor.size), weight.reshape(weight.size)
    lines = np.empty(2 * width, np.float32)
    size = (7 * channels + 2) * lanes
    kept = fixed.size // (2 * size)
    for y in range(begin, end):
        constant_laplacian(flow, cx, cy, y, lines[:width], lines[width:])
        even, odd = (2 * (y % kept) + y % 2) * size, (2 * (y % kept) + 1 - y % 2) * size
        _split(tensors, y * width, height * width, 6 * channels, width, lanes, fixed, even, odd)
        even, odd = even + 6 * channels * lanes, odd + 6 * channels * lanes
        _split(weights, y * width, height * width, channels, width, lanes, fixed, even, odd)
        _split(lines, 0, width, 2, width, lanes, fixed, even + channels * lanes, odd + channels * lanes)


@compiled
def _split(planes, begin, step, count, width, lanes, out, even, odd):
    """The pixels at even and odd x of a row of `count` planes; what is left of the lanes is zero."""
    for k in range(count):
        a, b, row = even + k * lanes, odd + k * lanes, begin + k * step
        for i in range(width // 2):
            out[_U(a + i)] = planes[_U(row + 2 * i)]
            out[_U(b + i)] = planes[_U(row + 2 * i + 1)]
        for i in range(width // 2, lanes):
            out[_U(a + i)] = ZERO
            out[_U(b + i)] = ZERO
        if width % 2 == 1:
            out[_U(a + width // 2)] = planes[_U(row + width - 1)]


@compiled
def _sweep_sorted(
    tensor, weight, flow, fixed, red_u, red_v, black_u, black_v, lanes, pitch, cx, cy, omega, first, last, lag,
    psi_data, sums, ring,
):  # fmt: skip
    """Sweeps `first` to `last`, each half-sweep one row behind the one before; psi is refreshed on the way."""
    channels, _, height, width = tensor.shape
    keep, smooth = ONE - omega, TWO * (cx + cy)
    half_sweeps, depth = 2 * (last - first), 2 * lag
    # tables, as divisions take as long as relaxing a short row: where the coefficients of a row and of a half-sweep and
    # the row's tensors lie, and which half-sweeps refresh psi
    size, fixed_size = 5 * lanes, (7 * channels + 2) * lanes
    groups, kept = ring.size // (2 * depth * size), fixed.size // (2 * fixed_size)
    ring_row, ring_group = np.empty(height, np.int64), np.empty(half_sweeps, np.int64)
    fixed_row, refreshes = np.empty(height, np.int64), np.empty(half_sweeps, np.bool_)
    for y in range(height):
        ring_row[y] = 2 * size * (y % depth)
        fixed_row[y] = 2 * fixed_size * (y % kept)
    for n in range(half_sweeps):
        sweep = first + n // 2
        group = (sweep + 1) // lag
        ring_group[n] = (2 * depth * (group % groups) + n % 2) * size
        refreshes[n] = sweep == 0 or sweep + 1 == group * lag
    for step in range(height + half_sweeps - 1):
        if first == 0 and step < height and step % _AHEAD == 0:
            _sort(tensor, weight, flow, cx, cy, step, min(step + _AHEAD, height), lanes, fixed)
        for n in range(max(0, step - height + 1), min(half_sweeps, step + 1)):
            y, colour = step - n, n & 1
            at = ring_row[_U(y)] + ring_group[_U(n)]
            here, refresh = fixed_row[_U(y)] + colour * fixed_size, refreshes[_U(n)]
            psi = (ONE, ZERO, ZERO) if 2 * first + n < 2 * (lag - 1) else psi_data
            row, parity = (y + 2) * pitch, (y + colour) & 1
            if colour == 0:
                if refresh:
                    _fold_row(fixed, here, red_u, red_v, row, channels, lanes, smooth, omega, psi, sums, ring, at)
                _set_ghosts(red_u, red_v, black_u, black_v, row, parity, height, width, pitch)
                _relax_row(red_u, red_v, black_u, black_v, row, parity, lanes, pitch, cx, cy, keep, ring, at)
            else:
                if refresh:
                    _fold_row(
                        fixed, here, black_u, black_v, row, channels, lanes, smooth, omega, psi, sums, ring, at
                    )  # fmt: skip
                _set_ghosts(black_u, black_v, red_u, red_v, row, parity, height, width, pitch)
                _relax_row(black_u, black_v, red_u, red_v, row, parity, lanes, pitch, cx, cy, keep, ring, at)


@compiled
def _set_ghosts(u, v, other_u, other_v, row, parity, height, width, pitch):
    """Write the pixels of one colour at the edges where the neighbours of the other colour are looked for."""
    last = (width - 1 - parity) // 2
    if parity == 0:
        other_u[_U(row - 1)] = u[_U(row)]
        other_v[_U(row - 1)] = v[_U(row)]
    if 2 * last + parity == width - 1:
        other_u[_U(row + last + parity)] = u[_U(row + last)]
        other_v[_U(row + last + parity)] = v[_U(row + last)]
    if row == 2 * pitch:
        for i in range(pitch - 1):
            other_u[_U(row - pitch + i)] = u[_U(row + i)]
            other_v[_U(row - pitch + i)] = v[_U(row + i)]
    if row == (height + 1) * pitch:
        for i in range(pitch - 1):
            other_u[_U(row + pitch + i)] = u[_U(row + i)]
            other_v[_U(row + pitch + i)] = v[_U(row + i)]


@compiled
def _relax_row(u, v, other_u, other_v, row, parity, lanes, pitch, cx, cy, keep, coefficients, at):
    """Update the pixels of one colour in one row, in place."""
    for x in range(0, lanes, _LANES):
        begin, k = row + x, at + 5 * x
        left, right, above, below = begin + parity - 1, begin + parity, begin - pitch, begin + pitch
        for i in range(_LANES):
            su = weighted_sum(
                other_u[_U(left + i)], other_u[_U(right + i)], other_u[_U(above + i)], other_u[_U(below + i)], cx, cy,
                coefficients[_U(k + 3 * _LANES + i)],
            )  # fmt: skip
            sv = weighted_sum(
                other_v[_U(left + i)], other_v[_U(right + i)], other_v[_U(above + i)], other_v[_U(below + i)], cx, cy,
                coefficients[_U(k + 4 * _LANES + i)],
            )  # fmt: skip
            k0, k1, k2 = (
                coefficients[_U(k + i)], coefficients[_U(k + _LANES + i)], coefficients[_U(k + 2 * _LANES + i)],
            )  # fmt: skip
            u[_U(begin + i)], v[_U(begin + i)] = update(keep, k0, k1, k2, su, sv, u[_U(begin + i)], v[_U(begin + i)])


@inlined
def _tensor(fixed, at, lanes):
    """J11, J22, J33, J12, J13, J23 of one pixel."""
    return (
        fixed[_U(at)],
        fixed[_U(at + lanes)],
        fixed[_U(at + 2 * lanes)],
        fixed[_U(at + 3 * lanes)],
        fixed[_U(at + 4 * lanes)],
        fixed[_U(at + 5 * lanes)],
    )


@inlined
def _share(tensor, weight, a, b, psi):
    """psi of the data term at the increment (a, b), times the weight."""
    j11, j22, j33, j12, j13, j23 = tensor
    return psi_of(data_energy(j11, j22, j33, j12, j13, j23, a, b), psi) * (weight if weight > ZERO else ZERO)


@compiled
def _fold_row(fixed, here, u, v, row, channels, lanes, smooth, omega, psi, sums, coefficients, at):
    """`_refresh` for the pixels of one colour in one row; `here` and `row` are where it begins in `fixed` and u, v.

    `sums` (5 lanes) holds what the channels add up to: 11, 22, 12 and the right-hand sides of `_LANES` pixels each.
    """
    j, w, laplacian = here, here + 6 * channels * lanes, here + 7 * channels * lanes
    # 1. smoothness: right-hand sides
    for begin in range(0, lanes, _LANES):
        k = 5 * begin
        for i in range(3 * _LANES):
            sums[_U(k + i)] = ZERO
        for i in range(_LANES):
            sums[_U(k + 3 * _LANES + i)] = fixed[_U(laplacian + begin + i)]
            sums[_U(k + 4 * _LANES + i)] = fixed[_U(laplacian + lanes + begin + i)]
    # 2. data term, summed over the channels but the last
    for _ in range(channels - 1):
        for begin in range(0, lanes, _LANES):
            k = 5 * begin
            for i in range(_LANES):
                x = begin + i
                tensor = _tensor(fixed, j + x, lanes)
                share = _share(tensor, fixed[_U(w + x)], u[_U(row + x)], v[_U(row + x)], psi)
                j11, j22, _, j12, j13, j23 = tensor
                sums[_U(k + i)] = fma(share, j11, sums[_U(k + i)])
                sums[_U(k + _LANES + i)] = fma(share, j22, sums[_U(k + _LANES + i)])
                sums[_U(k + 2 * _LANES + i)] = fma(share, j12, sums[_U(k + 2 * _LANES + i)])
                sums[_U(k + 3 * _LANES + i)] = fma(-share, j13, sums[_U(k + 3 * _LANES + i)])
                sums[_U(k + 4 * _LANES + i)] = fma(-share, j23, sums[_U(k + 4 * _LANES + i)])
        j += 6 * lanes
        w += lanes
    # 3. the last one, and what the sweeps need
    for begin in range(0, lanes, _LANES):
        k = 5 * begin
        to = at + k
        for i in range(_LANES):
            x = begin + i
            tensor = _tensor(fixed, j + x, lanes)
            share = _share(tensor, fixed[_U(w + x)], u[_U(row + x)], v[_U(row + x)], psi)
            j11, j22, _, j12, j13, j23 = tensor
            d11, d22 = fma(share, j11, sums[_U(k + i)]), fma(share, j22, sums[_U(k + _LANES + i)])
            k0, k1, k2 = invert(d11, d22, fma(share, j12, sums[_U(k + 2 * _LANES + i)]), smooth, omega)
            coefficients[_U(to + i)] = k0
            coefficients[_U(to + _LANES + i)] = k1
            coefficients[_U(to + 2 * _LANES + i)] = k2
            coefficients[_U(to + 3 * _LANES + i)] = fma(-share, j13, sums[_U(k + 3 * _LANES + i)])
            coefficients[_U(to + 4 * _LANES + i)] = fma(-share, j23, sums[_U(k + 4 * _LANES + i)])
