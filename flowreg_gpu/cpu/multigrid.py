"""The rule multigrid: V-cycles on cell-centred grids, for quadratic smoothness.

A cycle refreshes psi and solves the linear system that this gives a little further: a sweep of the rule block, the
same for what is left on a grid of half the size, and another sweep. The system is discretised anew on the coarser
grid: its data term is the mean over the pixels' area, its alpha / h^2 follows from the true ratio of the sizes. What is
left of the right-hand side is averaged likewise, and the correction interpolated linearly. A pixel I of a coarser side
covers the pixels 2 I and 2 I + 1 and, where the finer side is odd, a part of 2 I - 1 and only a part of 2 I + 1.

All planes lie in rows sorted by colour: first the red pixels ((x + y) even), then the black ones, each with a ghost on
either side. Pixel i of a colour is x = 2 i + parity, parity = (y + colour) % 2; its neighbours above and below are
pixel i of the other colour, those left and right pixels i - 1 + parity and i + parity. Increments have ghost rows, too.
In a row, the pixels with even x are one colour and those with odd x the other, so that neighbours 2 I - 1, 2 I and
2 I + 1 are contiguous lines, too. Arrays are flat and offsets unsigned, since numba tests other indices for being
negative.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.cpu.jit import compiled, fma, inlined
from flowreg_gpu.cpu.relaxation import (
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
from flowreg_gpu.model.relaxation import COARSEST_SWEEPS, plan_grids

__all__ = ["relax_in_cycles"]

_COARSEST_SWEEPS = COARSEST_SWEEPS
_U = np.uint64


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
    channels, last = tensor.shape[0], sizes.shape[0] - 1
    fixed = _sort_level(tensor, weight, flow, edges[0, 0], edges[0, 1])
    # a row of `systems`: data term 11, 22, 12, right-hand sides of u and v
    systems = [np.zeros((h, 5 * 2 * ((w + 1) // 2 + 2)), np.float32) for h, w in sizes]
    increments = [np.zeros((2, h + 2, 2 * ((w + 1) // 2 + 2)), np.float32) for h, w in sizes]
    means = [_mean_weights(sizes[k, axis], sizes[k + 1, axis]) for k in range(last) for axis in range(2)]
    linear = [_linear_weights(sizes[k, axis], sizes[k + 1, axis]) for k in range(last) for axis in range(2)]
    for cycle in range(cycles):
        refreshed = (cycle + 1) % lag == 0
        for k in range(last + 1):
            cx, cy = edges[k, 0], edges[k, 1]
            if k == 0 and (refreshed or cycle == 0):
                _refresh(fixed, channels, psi_data if refreshed else (ONE, ZERO, ZERO), systems[0], increments[0])
            _relax(systems[k], increments[k], sizes[k, 1], cx, cy, omega, 1 if k < last else _COARSEST_SWEEPS)
            if k < last:
                _restrict(
                    systems[k], increments[k], sizes[k, 1], cx, cy, means[2 * k], means[2 * k + 1], systems[k + 1],
                    increments[k + 1], sizes[k + 1, 1],
                )  # fmt: skip
        for k in range(last - 1, -1, -1):
            _correct(increments[k + 1], sizes[k + 1, 1], linear[2 * k], linear[2 * k + 1], increments[k], sizes[k, 1])
            _relax(systems[k], increments[k], sizes[k, 1], edges[k, 0], edges[k, 1], omega, 1)
    _unsort(increments[0], out)


@compiled
def _mean_weights(fine, coarse):
    """Shares (3 coarse,) of pixels s I - 1, s I and s I + 1 in pixel I of a coarser side; s is 2, 1 if not halved."""
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

    (2, 3, half) flat: those at even, then those at odd j.
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
def _refresh(fixed, channels, psi, system, increment):
    """Data term and right-hand sides of the finest grid, with psi of the present increment."""
    tensor, weight, laplacian = fixed
    height, pitch = increment.shape[1] - 2, increment.shape[2]
    flat = increment.reshape(increment.size)
    total = np.empty(4 * pitch, np.float32)
    for y in range(height):
        row = system[y]
        _accumulate_row(
            tensor, weight, laplacian, flat, y * pitch, height * pitch, (y + 1) * pitch, (height + 2) * pitch, pitch,
            channels, psi, total, row[3 * pitch :],
        )  # fmt: skip
        _copy_line(total, 0, 1, row, 0, 1, 3 * pitch)


@compiled
def _relax(system, increment, width, cx, cy, omega, sweeps):
    """Sweeps of the rule block, black one row behind red."""
    height, pitch = increment.shape[1] - 2, increment.shape[2]
    half, keep = pitch // 2 - 2, ONE - omega
    flat = increment.reshape(increment.size)
    plane = (height + 2) * pitch
    ring = np.empty((2, 5 * pitch), np.float32)
    for _ in range(sweeps):
        for step in range(height + 1):
            if step < height:
                row, coefficients = system[step], ring[step % 2]
                _invert_row(row, pitch, TWO * (cx + cy), omega, coefficients)
                _copy_line(row, 3 * pitch, 1, coefficients, 3 * pitch, 1, 2 * pitch)
            for colour in range(max(0, step - height + 1), min(2, step + 1)):
                y = step - colour
                parity, begin, other = _colour(y, colour, half)
                _set_ghosts(increment, y + 1, width, half, parity, begin, other)
                here = (y + 1) * pitch
                _relax_row(flat, plane, here, pitch, half, begin, other, parity, ring[y % 2], cx, cy, keep)


@compiled
def _restrict(
    system, increment, width, cx, cy, weights_y, weights_x, coarse_system, coarse_increment, coarse_width
):  # fmt: skip
    """Data term and right-hand sides of the coarser grid: means of this one's data term and of what is left here."""
    height, pitch = increment.shape[1] - 2, increment.shape[2]
    coarse_height, coarse_pitch = coarse_increment.shape[1] - 2, coarse_increment.shape[2]
    half, coarse_half = pitch // 2 - 2, coarse_pitch // 2 - 2
    step = 1 if height == coarse_height else 2
    flat = increment.reshape(increment.size)
    residual = np.zeros(2 * pitch, np.float32)
    # sums over rows: u, v, 11, 22, 12, each its pixels with even and then those with odd x
    sums = np.empty(5 * pitch, np.float32)
    line = np.zeros(2 * coarse_half, np.float32)
    coarse_increment[:] = ZERO
    for coarse_y in range(coarse_height):
        sums[:] = ZERO
        for tap in range(3):
            y, share = step * coarse_y - 1 + tap, weights_y[tap * coarse_height + coarse_y]
            if share == ZERO:
                continue
            row = system[y]
            for colour in range(2):
                parity, begin, other = _colour(y, colour, half)
                _set_ghosts(increment, y + 1, width, half, parity, begin, other)
            for colour in range(2):
                parity, begin, other = _colour(y, colour, half)
                at = parity * (half + 2) + 1
                _residual_row(
                    flat, (height + 2) * pitch, (y + 1) * pitch, pitch, half, begin, other, parity, row, cx, cy,
                    residual,
                )  # fmt: skip
                for k in range(2):
                    _add_line(residual, k * pitch + begin, share, sums, k * pitch + at, half)
                for k in range(2, 5):
                    _add_line(row, (k - 2) * pitch + begin, share, sums, k * pitch + at, half)
        target = coarse_system[coarse_y]
        for k in range(5):
            even, odd = k * pitch + 1, k * pitch + half + 3
            if coarse_width != width:
                _mean_line(sums, even, odd, weights_x, coarse_width, line)
            for colour in range(2):
                parity, begin, _ = _colour(coarse_y, colour, coarse_half)
                at, count = (k + 3 if k < 2 else k - 2) * coarse_pitch + begin, (coarse_width - parity + 1) // 2
                if coarse_width == width:
                    _copy_line(sums, odd if parity else even, 1, target, at, 1, count)
                else:
                    _copy_line(line, parity, 2, target, at, 1, count)


@inlined
def _colour(y, colour, half):
    """Parity of the pixels of a colour in row y, where they begin, and where those of the other colour do."""
    return (y + colour) % 2, colour * (half + 2) + 1, (1 - colour) * (half + 2) + 1


@compiled
def _residual_row(increment, plane, row, pitch, half, begin, other, parity, system, cx, cy, residual):
    """What is left of the right-hand sides of one colour of a row."""
    u, v = _U(row + begin), _U(plane + row + begin)
    left, right = _U(row + other + parity - 1), _U(row + other + parity)
    above, below, v_plane = _U(row - pitch + other), _U(row + pitch + other), _U(plane)
    d11, d22, d12 = _U(begin), _U(begin + pitch), _U(begin + 2 * pitch)
    bu, bv = _U(begin + 3 * pitch), _U(begin + 4 * pitch)
    smooth = TWO * (cx + cy)
    left_u, left_v = _U(begin), _U(pitch + begin)
    for i in range(half):
        x = _U(i)
        su = weighted_sum(
            increment[left + x], increment[right + x], increment[above + x], increment[below + x], cx, cy,
            system[bu + x],
        )  # fmt: skip
        su = fma(-(smooth + system[d11 + x]), increment[u + x], su)
        residual[left_u + x] = fma(-system[d12 + x], increment[v + x], su)
    for i in range(half):
        x = _U(i)
        sv = weighted_sum(
            increment[v_plane + left + x], increment[v_plane + right + x], increment[v_plane + above + x],
            increment[v_plane + below + x], cx, cy, system[bv + x],
        )  # fmt: skip
        sv = fma(-(smooth + system[d22 + x]), increment[v + x], sv)
        residual[left_v + x] = fma(-system[d12 + x], increment[u + x], sv)


@compiled
def _add_line(source, begin, share, target, at, count):
    begin, at = _U(begin), _U(at)
    for i in range(count):
        target[at + _U(i)] = fma(share, source[begin + _U(i)], target[at + _U(i)])


@compiled
def _copy_line(source, begin, stride, target, at, target_stride, count):
    for i in range(count):
        target[_U(at + i * target_stride)] = source[_U(begin + i * stride)]


@compiled
def _mean_line(sums, even, odd, weights, count, line):
    """Mean of a row of pixels, which lie as those with even and those with odd x, over those of a coarser grid."""
    before, here, after = _U(odd - 1), _U(even), _U(odd)
    w_before, w_here, w_after = _U(0), _U(count), _U(2 * count)
    for i in range(count):
        x = _U(i)
        mean = fma(weights[w_here + x], sums[here + x], weights[w_before + x] * sums[before + x])
        line[x] = fma(weights[w_after + x], sums[after + x], mean)


@compiled
def _correct(coarse, coarse_width, weights_y, weights_x, increment, width):
    """Add the correction of the coarser grid."""
    height, pitch = increment.shape[1] - 2, increment.shape[2]
    coarse_height, coarse_pitch = coarse.shape[1] - 2, coarse.shape[2]
    half, coarse_half = pitch // 2 - 2, coarse_pitch // 2 - 2
    step = 1 if height == coarse_height else 2
    sums = np.empty(coarse_pitch, np.float32)  # over rows: pixels with even x, then those with odd x
    line = np.zeros(2 * coarse_half + 2, np.float32)
    flat, coarse_flat = increment.reshape(increment.size), coarse.reshape(coarse.size)
    for y in range(height):
        for k in range(2):
            sums[:] = ZERO
            for tap in range(3):
                share = weights_y[((y % 2) * 3 + tap) * ((height + 1) // 2) + y // 2]
                if share == ZERO:
                    continue
                coarse_y = min(max(y // step - 1 + tap, 0), coarse_height - 1)
                row = (k * (coarse_height + 2) + coarse_y + 1) * coarse_pitch
                for colour in range(2):
                    parity, begin, _ = _colour(coarse_y, colour, coarse_half)
                    _add_line(coarse_flat, row + begin, share, sums, parity * (coarse_half + 2) + 1, coarse_half)
            if coarse_width != width:
                for parity in range(2):
                    _copy_line(sums, parity * (coarse_half + 2) + 1, 1, line, 1 + parity, 2, coarse_half)
                line[0], line[coarse_width + 1] = line[1], line[coarse_width]
            row = (k * (height + 2) + y + 1) * pitch
            for colour in range(2):
                parity, begin, _ = _colour(y, colour, half)
                if coarse_width == width:
                    _add_line(sums, parity * (half + 2) + 1, ONE, flat, row + begin, half)
                else:
                    count = (width - parity + 1) // 2
                    _add_linear(line, weights_x, parity * 3 * half, half, flat, row + begin, count)


@compiled
def _add_linear(line, weights, first, half, target, at, count):
    """Add what lies between the pixels of a line, which has one more on either side."""
    at, before, here, after = _U(at), _U(first), _U(first + half), _U(first + 2 * half)
    for i in range(count):
        x = _U(i)
        total = fma(weights[here + x], line[x + _U(1)], fma(weights[before + x], line[x], target[at + x]))
        target[at + x] = fma(weights[after + x], line[x + _U(2)], total)


# Rows sorted by colour


@compiled
def _sort_row(row, y, half, out):
    for colour in range(2):
        parity, begin = (y + colour) % 2, colour * (half + 2) + 1
        for i in range((row.shape[0] - parity + 1) // 2):
            out[begin + i] = row[2 * i + parity]


@compiled
def _sort_level(tensor, weight, flow, cx, cy):
    """Tensor, weight and Laplacian of the flow in sorted rows, flat; unused pixels at the end of a colour stay 0."""
    channels, _, height, width = tensor.shape
    half = (width + 1) // 2
    pitch = 2 * (half + 2)
    tensors = np.zeros((channels * 6, height, pitch), np.float32)
    weights = np.zeros((channels, height, pitch), np.float32)
    laplacian = np.zeros((2, height, pitch), np.float32)
    lines = np.empty((2, width), np.float32)
    for y in range(height):
        for channel in range(channels):
            for k in range(6):
                _sort_row(tensor[channel, k, y], y, half, tensors[6 * channel + k, y])
            _sort_row(weight[channel, y], y, half, weights[channel, y])
        constant_laplacian(flow, cx, cy, y, lines[0], lines[1])
        for k in range(2):
            _sort_row(lines[k], y, half, laplacian[k, y])
    return tensors.reshape(tensors.size), weights.reshape(weights.size), laplacian.reshape(laplacian.size)


@compiled
def _unsort(increment, out):
    """Write an increment (2, h, w) pixel by pixel from sorted rows with ghosts."""
    _, height, width = out.shape
    half = (width + 1) // 2
    for k in range(2):
        for y in range(height):
            for colour in range(2):
                parity, begin = (y + colour) % 2, colour * (half + 2) + 1
                for i in range((width - parity + 1) // 2):
                    out[k, y, 2 * i + parity] = increment[k, y + 1, begin + i]


@compiled
def _set_ghosts(increment, row, width, half, parity, begin, other):
    """Write the pixels of one colour at the edges where the neighbours of the other colour are looked for."""
    last = (width - 1 - parity) // 2
    for k in range(2):
        line = increment[k, row]
        if parity == 0:
            line[other - 1] = line[begin]
        if 2 * last + parity == width - 1:
            line[other + last + parity] = line[begin + last]
        if row == 1:
            for i in range(half):
                increment[k, 0, other + i] = line[begin + i]
        if row == increment.shape[1] - 2:
            for i in range(half):
                increment[k, row + 1, other + i] = line[begin + i]


@compiled
def _relax_row(increment, plane, row, pitch, half, begin, other, parity, coefficients, cx, cy, keep):
    """Update the pixels of one colour in one row, in place, from coefficients 11, 12, 22, u and v, pitch each."""
    u, v = _U(row + begin), _U(plane + row + begin)
    left, right = _U(row + other + parity - 1), _U(row + other + parity)
    above, below, v_plane = _U(row - pitch + other), _U(row + pitch + other), _U(plane)
    i11, i12, i22, bu, bv = (
        _U(begin), _U(begin + pitch), _U(begin + 2 * pitch), _U(begin + 3 * pitch), _U(begin + 4 * pitch),
    )  # fmt: skip
    for i in range(half):
        x = _U(i)
        su = weighted_sum(
            increment[left + x], increment[right + x], increment[above + x], increment[below + x], cx, cy,
            coefficients[bu + x],
        )  # fmt: skip
        sv = weighted_sum(
            increment[v_plane + left + x], increment[v_plane + right + x], increment[v_plane + above + x],
            increment[v_plane + below + x], cx, cy, coefficients[bv + x],
        )  # fmt: skip
        increment[u + x], increment[v + x] = update(
            keep, coefficients[i11 + x], coefficients[i12 + x], coefficients[i22 + x], su, sv, increment[u + x],
            increment[v + x],
        )  # fmt: skip


@compiled
def _accumulate_row(
    tensor, weight, laplacian, increment, here, plane, increment_here, increment_plane, pitch, channels, psi, total,
    right_sides,
):  # fmt: skip
    """Sum the data term of one sorted row over the channels, with psi of the present increment.

    `here` and `increment_here` are where the row begins in the planes. `total` gets 11, 22, 12 and scratch, pitch each;
    `right_sides` those of u and v, which begin with the Laplacian of the flow.
    """
    u, v = _U(increment_here), _U(increment_here + increment_plane)
    d11, d22, d12, share = _U(0), _U(pitch), _U(2 * pitch), _U(3 * pitch)
    bu, bv = _U(0), _U(pitch)
    lap_u, lap_v = _U(here), _U(here + plane)
    for i in range(3 * pitch):
        total[_U(i)] = ZERO
    for i in range(pitch):
        right_sides[bu + _U(i)] = laplacian[lap_u + _U(i)]
    for i in range(pitch):
        right_sides[bv + _U(i)] = laplacian[lap_v + _U(i)]
    # one array written per loop: LLVM gives up vectorising where more than eight pairs might overlap;
    # at the edge of a mask the cubic resampling overshoots below zero, which would make the system indefinite
    for channel in range(channels):
        j11 = _U(here + 6 * channel * plane)
        j22, j33 = j11 + _U(plane), j11 + _U(2 * plane)
        j12, j13, j23 = j11 + _U(3 * plane), j11 + _U(4 * plane), j11 + _U(5 * plane)
        own_weight = _U(here + channel * plane)
        for i in range(pitch):
            x = _U(i)
            energy = data_energy(
                tensor[j11 + x], tensor[j22 + x], tensor[j33 + x], tensor[j12 + x], tensor[j13 + x], tensor[j23 + x],
                increment[u + x], increment[v + x],
            )  # fmt: skip
            positive = weight[own_weight + x] if weight[own_weight + x] > ZERO else ZERO
            total[share + x] = psi_of(energy, psi) * positive
        for i in range(pitch):
            total[d11 + _U(i)] = fma(total[share + _U(i)], tensor[j11 + _U(i)], total[d11 + _U(i)])
        for i in range(pitch):
            total[d22 + _U(i)] = fma(total[share + _U(i)], tensor[j22 + _U(i)], total[d22 + _U(i)])
        for i in range(pitch):
            total[d12 + _U(i)] = fma(total[share + _U(i)], tensor[j12 + _U(i)], total[d12 + _U(i)])
        for i in range(pitch):
            right_sides[bu + _U(i)] = fma(-total[share + _U(i)], tensor[j13 + _U(i)], right_sides[bu + _U(i)])
        for i in range(pitch):
            right_sides[bv + _U(i)] = fma(-total[share + _U(i)], tensor[j23 + _U(i)], right_sides[bv + _U(i)])


@compiled
def _invert_row(total, pitch, smooth, omega, coefficients):
    """Write the inverse of each pixel's 2x2 system times omega (11, 12, 22) from its data term (11, 22, 12)."""
    for i in range(pitch):
        x = _U(i)
        coefficients[x], coefficients[_U(pitch) + x], coefficients[_U(2 * pitch) + x] = invert(
            total[x], total[_U(pitch) + x], total[_U(2 * pitch) + x], smooth, omega
        )
