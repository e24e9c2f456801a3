"""The rule multigrid: V-cycles on cell-centred grids, for quadratic smoothness.

A cycle refreshes psi and solves the linear system that this gives a little further: a sweep of the rule block, the
same for the residual on a grid of half the size, and another sweep. The system is discretised anew on the coarser
grid: its data term is the mean over the area of its pixels, its alpha / h^2 follows from the true ratio of the sizes.
The residual is averaged likewise, and the correction interpolated linearly. Pixel I of a coarser side covers the
pixels 2 I and 2 I + 1 of the finer one; where the finer side is odd, it covers a part of 2 I - 1 and only a part of
2 I + 1.

Increments and systems of all grids lie in lanes (`flowreg_gpu.cpu.lanes`), sorted by colour. In a row, the pixels with
even x are one colour and those with odd x the other, so that the pixels 2 I - 1, 2 I and 2 I + 1 of all I are
contiguous lines, too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.cpu.jit import compiled, fma
from flowreg_gpu.cpu.lanes import (
    LANES,
    U,
    add_data_term,
    aligned,
    around,
    invert_row,
    join_rows,
    line_lengths,
    relax_row,
    set_ghosts,
    sort_rows,
)
from flowreg_gpu.cpu.relaxation import ONE, TWO, ZERO
from flowreg_gpu.model.relaxation import COARSEST_SWEEPS, plan_grids

__all__ = ["relax_in_cycles"]

_COARSEST_SWEEPS = COARSEST_SWEEPS


def relax_in_cycles(
    tensor: NDArray[np.float32],
    weight: NDArray[np.float32],
    flow: NDArray[np.float32],
    edge: tuple[np.float32, np.float32],
    omega: np.float32,
    cycles: int,
    lag: int,
    psi_data: tuple[np.float32, ...],
) -> NDArray[np.float32]:
    """Return the increment (2, h, w) float32; arguments as in `solver.solve`, `edge` is alpha / h^2 along x and y."""
    height, width = flow.shape[1:]
    grids = plan_grids(height, width, edge)
    sizes = np.array([(grid.height, grid.width) for grid in grids])
    edges = np.array([grid.edge for grid in grids], np.float32)
    out = np.empty(flow.shape, np.float32)
    _relax_in_cycles(tensor, weight, flow, sizes, edges, omega, cycles, lag, psi_data, out)
    return out


@compiled
def _relax_in_cycles(tensor, weight, flow, sizes, edges, omega, cycles, lag, psi_data, out):
    """Write the increment to `out`; sizes (grids, 2) int64 and edges (grids, 2) float32 of the grids, finest first."""
    channels, _, height, width = tensor.shape
    last = sizes.shape[0] - 1
    fixed = aligned(2 * height * (7 * channels + 2) * line_lengths(width)[0])
    sort_rows(tensor, weight, flow, edges[0, 0], edges[0, 1], 0, height, line_lengths(width)[0], fixed)
    systems = [_zeros(h * 2 * 5 * line_lengths(w)[0]) for h, w in sizes]
    increments = [
        _zeros(4 * (h + 3) * line_lengths(w)[1]).reshape(2, 2, (h + 3) * line_lengths(w)[1]) for h, w in sizes
    ]
    means = [_mean_weights(sizes[k, axis], sizes[k + 1, axis]) for k in range(last) for axis in range(2)]
    linear = [_linear_weights(sizes[k, axis], sizes[k + 1, axis]) for k in range(last) for axis in range(2)]
    for cycle in range(cycles):
        refreshed = (cycle + 1) % lag == 0
        for k in range(last + 1):
            if k == 0 and (refreshed or cycle == 0):
                psi = psi_data if refreshed else (ONE, ZERO, ZERO)
                _refresh(fixed, channels, height, width, psi, increments[0], systems[0])
            _relax(systems[k], sizes[k], edges[k], omega, 1 if k < last else _COARSEST_SWEEPS, increments[k])
            if k < last:
                _restrict(
                    systems[k], sizes[k], edges[k], means[2 * k], means[2 * k + 1], increments[k], sizes[k + 1],
                    systems[k + 1],
                )  # fmt: skip
                increments[k + 1][:] = ZERO
        for k in range(last - 1, -1, -1):
            _correct(increments[k + 1], sizes[k + 1], linear[2 * k], linear[2 * k + 1], sizes[k], increments[k])
            _relax(systems[k], sizes[k], edges[k], omega, 1, increments[k])
    flat = out.reshape(out.size)
    for k in range(2):
        join_rows(
            increments[0][k, 0], increments[0][k, 1], height, width, line_lengths(width)[1], flat, k * height * width
        )


@compiled
def _zeros(size):
    out = aligned(size)
    out[:] = ZERO
    return out


@compiled
def _mean_weights(fine, coarse):
    """Weights (3 coarse,) of the pixels s I - 1, s I and s I + 1 in the mean over pixel I of a coarser side.

    s is 2, and 1 where the side is not halved.
    """
    weights = np.zeros((3, coarse), np.float32)
    for i in range(coarse):
        weights[1, i] = np.float32(coarse) / np.float32(fine)
        if fine == 2 * coarse:
            weights[2, i] = weights[1, i]
        elif fine > coarse:
            weights[0, i] = np.float32(i) / np.float32(fine)
            weights[2, i] = np.float32(coarse - 1 - i) / np.float32(fine)
    return weights.reshape(3 * coarse)


@compiled
def _linear_weights(fine, coarse):
    """Weights of the coarse pixels j // s - 1, j // s and j // s + 1 in the interpolation at pixel j of a finer side.

    (2, 3, half) flat: those at even, then those at odd j; s as in `_mean_weights`.
    """
    half = (fine + 1) // 2
    weights = np.zeros((2, 3, half), np.float32)
    step = 1 if fine == coarse else 2
    for j in range(fine):
        offset = np.float32((2 * j + 1) * coarse - fine - 2 * fine * (j // step)) / np.float32(2 * fine)
        weights[j % 2, 0, j // 2] = max(-offset, ZERO)
        weights[j % 2, 1, j // 2] = ONE - abs(offset)
        weights[j % 2, 2, j // 2] = max(offset, ZERO)
    return weights.reshape(6 * half)


@compiled
def _refresh(fixed, channels, height, width, psi, increment, systems):
    """Write the systems of the finest grid, with psi of the present increment."""
    lanes, pitch = line_lengths(width)
    size, fixed_size = 5 * lanes, (7 * channels + 2) * lanes
    for colour in range(2):
        u, v = increment[0, colour], increment[1, colour]
        for y in range(height):
            line = 2 * y + colour
            add_data_term(fixed, line * fixed_size, lanes, channels, u, v, (y + 2) * pitch, psi, systems, line * size)


@compiled
def _relax(systems, grid, edge, omega, sweeps, increment):
    """Sweeps of the rule block on a grid (height, width), black one row behind red."""
    height, width = grid[0], grid[1]
    lanes, pitch = line_lengths(width)
    cx, cy, keep, smooth = edge[0], edge[1], ONE - omega, TWO * (edge[0] + edge[1])
    red_u, black_u, red_v, black_v = increment[0, 0], increment[0, 1], increment[1, 0], increment[1, 1]
    size = 5 * lanes
    ring = aligned(4 * size)  # coefficients of the row of red and of the one before, of both colours each
    for _ in range(sweeps):
        for step in range(height + 1):
            if step < height:
                row, at = (step + 2) * pitch, step % 2 * 2 * size
                invert_row(systems, step * 2 * size, 2 * lanes, smooth, omega, ring, at)
                set_ghosts(red_u, red_v, black_u, black_v, row, step % 2, height, width, pitch)
                relax_row(red_u, red_v, black_u, black_v, row, step % 2, lanes, pitch, cx, cy, keep, ring, at)
            if step > 0:
                row, at, parity = (step + 1) * pitch, (step - 1) % 2 * 2 * size + size, step % 2
                set_ghosts(black_u, black_v, red_u, red_v, row, parity, height, width, pitch)
                relax_row(black_u, black_v, red_u, red_v, row, parity, lanes, pitch, cx, cy, keep, ring, at)


@compiled
def _restrict(systems, grid, edge, weights_y, weights_x, increment, coarse_grid, coarse_systems):
    """Write the systems of a coarser grid: means of the finer one's data term and of its residual."""
    height, width, coarse_height, coarse_width = grid[0], grid[1], coarse_grid[0], coarse_grid[1]
    lanes, pitch = line_lengths(width)
    size, coarse_size = 5 * lanes, 5 * line_lengths(coarse_width)[0]
    red_u, black_u, red_v, black_v = increment[0, 0], increment[0, 1], increment[1, 0], increment[1, 1]
    step = 1 if height == coarse_height else 2
    even_sums, odd_sums = aligned(size), aligned(size)  # over rows, of the pixels with even and with odd x
    even, odd, line = np.zeros(lanes + 1, np.float32), np.zeros(lanes + 1, np.float32), np.zeros(2 * lanes, np.float32)
    for coarse_y in range(coarse_height):
        even_sums[:] = ZERO
        odd_sums[:] = ZERO
        for tap in range(3):
            y, weight = step * coarse_y - 1 + tap, weights_y[tap * coarse_height + coarse_y]
            if weight == ZERO:
                continue
            row, at, parity = (y + 2) * pitch, 2 * y * size, y % 2
            red_sums, black_sums = (even_sums, odd_sums) if parity == 0 else (odd_sums, even_sums)
            set_ghosts(red_u, red_v, black_u, black_v, row, parity, height, width, pitch)
            _add_residual_row(
                systems, at, red_u, red_v, black_u, black_v, row, parity, lanes, pitch, edge, weight, red_sums
            )
            set_ghosts(black_u, black_v, red_u, red_v, row, 1 - parity, height, width, pitch)
            _add_residual_row(
                systems, at + size, black_u, black_v, red_u, red_v, row, 1 - parity, lanes, pitch, edge, weight,
                black_sums,
            )  # fmt: skip
        at = 2 * coarse_y * coarse_size
        if coarse_width == width:
            for parity in range(2):
                colour = (coarse_y + parity) % 2
                _copy_line(odd_sums if parity else even_sums, coarse_systems, at + colour * coarse_size, coarse_size)
            continue
        for k in range(5):
            _quantity(even_sums, k, lanes, even)
            _quantity(odd_sums, k, lanes, odd)
            _mean_line(even, odd, weights_x, coarse_width, line)
            for colour in range(2):
                _set_quantity(line, (coarse_y + colour) % 2, coarse_width, coarse_systems, at + colour * coarse_size, k)


@compiled
def _add_residual_row(
    systems, at, u, v, other_u, other_v, row, parity, lanes, pitch, edge, weight, sums
):  # fmt: skip
    """Add `weight` times the data term and the residual b - A x of one colour of a row to `sums` (5 lanes)."""
    cx, cy = edge[0], edge[1]
    smooth = TWO * (cx + cy)
    for x in range(0, lanes, LANES):
        begin, k, to = row + x, at + 5 * x, 5 * x
        for i in range(LANES):
            here = begin + i
            here_u, here_v = u[U(here)], v[U(here)]
            d11, d22, d12 = systems[U(k + i)], systems[U(k + LANES + i)], systems[U(k + 2 * LANES + i)]
            su = around(other_u, here, parity, pitch, cx, cy, systems[U(k + 3 * LANES + i)])
            sv = around(other_v, here, parity, pitch, cx, cy, systems[U(k + 4 * LANES + i)])
            residual_u = fma(-d12, here_v, fma(-(smooth + d11), here_u, su))
            residual_v = fma(-d12, here_u, fma(-(smooth + d22), here_v, sv))
            sums[U(to + i)] = fma(weight, d11, sums[U(to + i)])
            sums[U(to + LANES + i)] = fma(weight, d22, sums[U(to + LANES + i)])
            sums[U(to + 2 * LANES + i)] = fma(weight, d12, sums[U(to + 2 * LANES + i)])
            sums[U(to + 3 * LANES + i)] = fma(weight, residual_u, sums[U(to + 3 * LANES + i)])
            sums[U(to + 4 * LANES + i)] = fma(weight, residual_v, sums[U(to + 4 * LANES + i)])


@compiled
def _copy_line(source, target, at, count):
    """Copy the first `count` values to `at`."""
    for i in range(count):
        target[U(at + i)] = source[U(i)]


@compiled
def _quantity(sums, k, lanes, line):
    """Copy quantity k of 5 of the pixels of a row from lanes into a line, after its first element."""
    for x in range(0, lanes, LANES):
        for i in range(LANES):
            line[U(1 + x + i)] = sums[U(5 * x + k * LANES + i)]


@compiled
def _set_quantity(line, parity, width, systems, at, k):
    """Write quantity k of 5 of the pixels parity, parity + 2, ... of a line of `width` into lanes, from `at`."""
    for i in range((width - parity + 1) // 2):
        systems[U(at + 5 * LANES * (i // LANES) + k * LANES + i % LANES)] = line[U(2 * i + parity)]


@compiled
def _mean_line(even, odd, weights, count, line):
    """Mean of the pixels of a row over the `count` pixels of a coarser one.

    `even` and `odd` hold the pixels with even and with odd x, after an element that counts nothing.
    """
    w_here, w_after = U(count), U(2 * count)
    for i in range(count):
        x = U(i)
        mean = fma(weights[w_here + x], even[U(1 + i)], weights[x] * odd[x])
        line[x] = fma(weights[w_after + x], odd[U(1 + i)], mean)


@compiled
def _correct(coarse, coarse_grid, weights_y, weights_x, grid, increment):
    """Add the increment `coarse` of the coarser grid, interpolated linearly, to that of the finer one."""
    height, width, coarse_height, coarse_width = grid[0], grid[1], coarse_grid[0], coarse_grid[1]
    pitch, coarse_pitch = line_lengths(width)[1], line_lengths(coarse_width)[1]
    plane, coarse_plane = (height + 3) * pitch, (coarse_height + 3) * coarse_pitch
    half, coarse_half = (width + 1) // 2, (coarse_width + 1) // 2
    step = 1 if height == coarse_height else 2
    sums = np.empty(2 * coarse_half, np.float32)  # over rows: pixels with even x, then those with odd x
    line = np.zeros(2 * coarse_half + 2, np.float32)
    flat, coarse_flat = increment.reshape(increment.size), coarse.reshape(coarse.size)
    for y in range(height):
        for k in range(2):
            sums[:] = ZERO
            for tap in range(3):
                weight = weights_y[((y % 2) * 3 + tap) * ((height + 1) // 2) + y // 2]
                if weight == ZERO:
                    continue
                coarse_y = min(max(y // step - 1 + tap, 0), coarse_height - 1)
                row = 2 * k * coarse_plane + (coarse_y + 2) * coarse_pitch
                for colour in range(2):
                    parity = (coarse_y + colour) % 2
                    _add_line(coarse_flat, row + colour * coarse_plane, weight, sums, parity * coarse_half, coarse_half)
            if coarse_width != width:
                _interleave(sums, coarse_half, line)
                line[0], line[coarse_width + 1] = line[1], line[coarse_width]
            for colour in range(2):
                parity, row = (y + colour) % 2, (2 * k + colour) * plane + (y + 2) * pitch
                if coarse_width == width:
                    _add_line(sums, parity * half, ONE, flat, row, half)
                else:
                    _add_linear(line, weights_x, parity * 3 * half, half, flat, row, (width - parity + 1) // 2)


@compiled
def _add_line(source, begin, weight, target, at, count):
    """Add `weight` times `count` values."""
    for i in range(count):
        target[U(at + i)] = fma(weight, source[U(begin + i)], target[U(at + i)])


@compiled
def _interleave(sums, half, line):
    """Write the pixels with even and those with odd x, `half` of each, in turns, after the first element of a line."""
    for i in range(half):
        line[U(1 + 2 * i)] = sums[U(i)]
        line[U(2 + 2 * i)] = sums[U(half + i)]


@compiled
def _add_linear(line, weights, first, half, target, at, count):
    """Add what lies between the pixels of a line, which has one more on either side."""
    at, before, here, after = U(at), U(first), U(first + half), U(first + 2 * half)
    for i in range(count):
        x = U(i)
        total = fma(weights[here + x], line[x + U(1)], fma(weights[before + x], line[x], target[at + x]))
        target[at + x] = fma(weights[after + x], line[x + U(2)], total)
