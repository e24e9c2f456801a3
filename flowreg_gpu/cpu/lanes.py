"""Rows of a pyramid level in lanes: the layout that the rules block and multigrid relax in, and its row kernels.

Red-black relaxation updates the red pixels ((x + y) even) from the black ones and the black ones from the red. The
colours are stored apart, so that a half-sweep reads and writes contiguous memory: pixel i of a colour in row y is
x = 2 i + parity, parity = (y + colour) % 2. Its neighbours above and below are pixel i of the other colour, those left
and right the pixels i - 1 + parity and i + parity of the other colour.

Three kinds of arrays, all flat and float32; `lanes` is the number of pixels of one colour in a row, rounded up to a
multiple of `LANES`:

* increments, one array per component (u, v) and colour: row y begins at (y + 2) `pitch`. There are ghost rows above and
  below, and a ghost pixel at either end of a row (the left one is the last pixel of the row before). A ghost holds what
  a missing neighbour counts as: the pixel's own value before its update;
* `fixed`, what does not change while a level is relaxed: per row and colour 7 C + 2 lines of `lanes`, namely J11, J22,
  J33, J12, J13, J23 of every channel, the weights of the channels, the Laplacian of u and that of v;
* systems and coefficients, per row and colour 5 `lanes`: for each `LANES` pixels five quantities one after the other.
  A system is the data term 11, 22, 12 and the right-hand sides of u and v; coefficients are the inverse of each pixel's
  2 x 2 system times omega (11, 12, 22) and the same right-hand sides.

Why this layout: numba tests every index for being negative and every slice for its bounds, unless an index is unsigned;
with flat arrays and unsigned offsets the sweeps of a 64 x 64 level take 0.4 of the time. Loops of a fixed length over
quantities that lie next to each other vectorise without a remainder, and LLVM sees that what they write does not
overlap. Pixels that only fill the last lanes are computed, but no other pixel depends on them.
"""

from __future__ import annotations

import numpy as np

from flowreg_gpu.cpu.jit import compiled, fma, inlined
from flowreg_gpu.cpu.relaxation import (
    ZERO,
    constant_laplacian,
    data_energy,
    invert,
    psi_of,
    update,
    weighted_sum,
)

__all__ = [
    "LANES",
    "U",
    "add_data_term",
    "aligned",
    "around",
    "invert_row",
    "join_rows",
    "line_lengths",
    "relax_row",
    "set_ghosts",
    "sort_rows",
]

U = np.uint64
LANES = 16  # float32 in a cache line of 64 bytes


@inlined
def line_lengths(width):
    """`lanes` and `pitch` of a level of `width` pixels: those of a colour in a row, and the same with two ghosts."""
    half = (width + 1) // 2
    return (half + LANES - 1) // LANES * LANES, (half + 2 + LANES - 1) // LANES * LANES


@compiled
def aligned(size):
    """Return `size` uninitialised float32 from the beginning of a cache line, so that no `LANES` of them lie in two."""
    buffer = np.empty(size + 16, np.float32)
    begin = -(buffer.ctypes.data // 4) % 16
    return buffer[begin : begin + size]


@compiled
def sort_rows(tensor, weight, flow, cx, cy, begin, end, lanes, fixed):
    """Fill `fixed` for rows `begin` to `end` of a level.

    From tensor (C, 6, h, w), weight (C, h, w) and flow (2, h, w), whose Laplacian is taken with the edge weights cx and
    cy. If `fixed` holds fewer than h rows, row y replaces an earlier one.
    """
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
    """Write the pixels at even and at odd x of a row of `count` planes to `out`, zeros into what is left of the lanes.

    The row begins at `begin` in the first plane and `step` further in each next one.
    """
    for k in range(count):
        a, b, row = even + k * lanes, odd + k * lanes, begin + k * step
        for i in range(width // 2):
            out[U(a + i)] = planes[U(row + 2 * i)]
            out[U(b + i)] = planes[U(row + 2 * i + 1)]
        for i in range(width // 2, lanes):
            out[U(a + i)] = ZERO
            out[U(b + i)] = ZERO
        if width % 2 == 1:
            out[U(a + width // 2)] = planes[U(row + width - 1)]


@compiled
def join_rows(red, black, height, width, pitch, out, begin):
    """Write one component of an increment pixel by pixel, (h, w) from `begin` in the flat `out`."""
    for y in range(height):
        at, to = (y + 2) * pitch, begin + y * width
        first, second = (red, black) if y % 2 == 0 else (black, red)
        for i in range(width // 2):
            out[U(to + 2 * i)] = first[U(at + i)]
            out[U(to + 2 * i + 1)] = second[U(at + i)]
        if width % 2 == 1:
            out[U(to + width - 1)] = first[U(at + width // 2)]


@compiled
def set_ghosts(u, v, other_u, other_v, row, parity, height, width, pitch):
    """Write the ghosts that one colour (u, v) of a row needs: its own pixels, where the other colour's are looked for.

    `row` is where the row begins in the increments. To be called right before each update of the row.
    """
    last = (width - 1 - parity) // 2
    if parity == 0:
        other_u[U(row - 1)] = u[U(row)]
        other_v[U(row - 1)] = v[U(row)]
    if 2 * last + parity == width - 1:
        other_u[U(row + last + parity)] = u[U(row + last)]
        other_v[U(row + last + parity)] = v[U(row + last)]
    if row == 2 * pitch:
        for i in range(pitch - 1):
            other_u[U(row - pitch + i)] = u[U(row + i)]
            other_v[U(row - pitch + i)] = v[U(row + i)]
    if row == (height + 1) * pitch:
        for i in range(pitch - 1):
            other_u[U(row + pitch + i)] = u[U(row + i)]
            other_v[U(row + pitch + i)] = v[U(row + i)]


@inlined
def around(other, here, parity, pitch, cx, cy, right_side):
    """`weighted_sum` of the pixel that lies at `here` in its own colour, with its neighbours of the other colour."""
    return weighted_sum(
        other[U(here + parity - 1)], other[U(here + parity)], other[U(here - pitch)], other[U(here + pitch)], cx, cy,
        right_side,
    )  # fmt: skip


@compiled
def relax_row(u, v, other_u, other_v, row, parity, lanes, pitch, cx, cy, keep, coefficients, at):
    """Update one colour (u, v) of a row in place: x <- (1 - omega) x + omega A^-1 (b + weighted sum of neighbours).

    A is the pixel's 2 x 2 system (rule block), `keep` is 1 - omega, and the coefficients of the row begin at `at`.
    """
    for x in range(0, lanes, LANES):
        begin, k = row + x, at + 5 * x
        for i in range(LANES):
            here = begin + i
            su = around(other_u, here, parity, pitch, cx, cy, coefficients[U(k + 3 * LANES + i)])
            sv = around(other_v, here, parity, pitch, cx, cy, coefficients[U(k + 4 * LANES + i)])
            k0, k1, k2 = (
                coefficients[U(k + i)], coefficients[U(k + LANES + i)], coefficients[U(k + 2 * LANES + i)],
            )  # fmt: skip
            u[U(here)], v[U(here)] = update(keep, k0, k1, k2, su, sv, u[U(here)], v[U(here)])


@inlined
def _channel_added(fixed, j, w, lanes, a, b, psi, d11, d22, d12, bu, bv):
    """A pixel's system (11, 22, 12, right-hand sides) and the data term of one channel at the increment (a, b).

    The channel's tensor begins at `j` in `fixed`, its weight lies at `w`. At the edge of a mask the cubic resampling
    makes weights below zero, which would make the system indefinite: they count as zero.
    """
    j11, j22, j33 = fixed[U(j)], fixed[U(j + lanes)], fixed[U(j + 2 * lanes)]
    j12, j13, j23 = fixed[U(j + 3 * lanes)], fixed[U(j + 4 * lanes)], fixed[U(j + 5 * lanes)]
    weight = fixed[U(w)]
    p = psi_of(data_energy(j11, j22, j33, j12, j13, j23, a, b), psi) * (weight if weight > ZERO else ZERO)
    return fma(p, j11, d11), fma(p, j22, d22), fma(p, j12, d12), fma(-p, j13, bu), fma(-p, j23, bv)


@inlined
def _write_system(systems, k, d11, d22, d12, bu, bv):
    systems[U(k)] = d11
    systems[U(k + LANES)] = d22
    systems[U(k + 2 * LANES)] = d12
    systems[U(k + 3 * LANES)] = bu
    systems[U(k + 4 * LANES)] = bv


@compiled
def add_data_term(fixed, here, lanes, channels, u, v, row, psi, systems, at):
    """Write the system of every pixel of one colour of a row, with psi of the present increment (u, v).

    With p_k = psi_k weight_k of channel k: sum p J11, sum p J22, sum p J12, Laplacian of u - sum p J13, Laplacian of
    v - sum p J23. `here`, `row` and `at` are where the row begins in `fixed`, in u and v, and in `systems`.
    """
    j, w = here, here + 6 * channels * lanes
    laplacian = w + channels * lanes
    # 1. the first channel, upon the right-hand sides of the smoothness
    for begin in range(0, lanes, LANES):
        for i in range(LANES):
            x = begin + i
            d11, d22, d12, bu, bv = _channel_added(
                fixed, j + x, w + x, lanes, u[U(row + x)], v[U(row + x)], psi, ZERO, ZERO, ZERO,
                fixed[U(laplacian + x)], fixed[U(laplacian + lanes + x)],
            )  # fmt: skip
            _write_system(systems, at + 5 * begin + i, d11, d22, d12, bu, bv)
    # 2. the others
    for _ in range(channels - 1):
        j += 6 * lanes
        w += lanes
        for begin in range(0, lanes, LANES):
            for i in range(LANES):
                x, k = begin + i, at + 5 * begin + i
                d11, d22, d12, bu, bv = _channel_added(
                    fixed, j + x, w + x, lanes, u[U(row + x)], v[U(row + x)], psi, systems[U(k)],
                    systems[U(k + LANES)], systems[U(k + 2 * LANES)], systems[U(k + 3 * LANES)],
                    systems[U(k + 4 * LANES)],
                )  # fmt: skip
                _write_system(systems, k, d11, d22, d12, bu, bv)


@compiled
def invert_row(systems, here, lanes, smooth, omega, coefficients, at):
    """Write the coefficients of `lanes` pixels, from `at`, given their systems from `here`; `smooth` is 2 (cx + cy)."""
    for begin in range(0, lanes, LANES):
        a, b = here + 5 * begin, at + 5 * begin
        for i in range(LANES):
            k0, k1, k2 = invert(
                systems[U(a + i)], systems[U(a + LANES + i)], systems[U(a + 2 * LANES + i)], smooth, omega
            )
            _write_system(coefficients, b + i, k0, k1, k2, systems[U(a + 3 * LANES + i)], systems[U(a + 4 * LANES + i)])
