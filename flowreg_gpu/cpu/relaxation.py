"""What the relaxations of a pyramid level share: powers, the Laplacian of the flow, and rows sorted by colour.

Rows sorted by colour hold first the red pixels ((x + y) even), then the black ones, each with a ghost on either side,
so that a half-sweep touches nothing but what it needs. Pixel i of a colour is x = 2 i + parity,
parity = (y + colour) % 2; its neighbours above and below are pixel i of the other colour, those left and right pixels
i - 1 + parity and i + parity. Increments have ghost rows, too.

numba tests every index for being negative and every slice for its bounds, unless an index is unsigned; with flat
arrays and unsigned offsets the sweeps of a 64 x 64 level take 0.4 of the time.
"""

from __future__ import annotations

import numpy as np

from flowreg_gpu.cpu.jit import compiled, inlined

__all__ = [
    "HALF",
    "ONE",
    "PSI_EPS",
    "TWO",
    "ZERO",
    "accumulate_row",
    "constant_laplacian",
    "invert_row",
    "power",
    "relax_row",
    "set_ghosts",
    "sort_level",
    "sort_row",
    "unsort",
]

ZERO = np.float32(0)
ONE = np.float32(1)
TWO = np.float32(2)
HALF = np.float32(0.5)
PSI_EPS = np.float32(1e-5)

# log2(1 + t) = t (L0 + L1 t + ...) for 1 + t in [sqrt(1/2), sqrt(2)), error 3e-7; 2^f = 1 + f (E0 + E1 f + ...) for
# |f| <= 1/2, relative error 9e-8. Minimax fits, summed in pairs, which leaves short chains of dependent operations.
_L0, _L1, _L2 = np.float32(1.44269967), np.float32(-0.721375883), np.float32(0.480465025)
_L3, _L4, _L5 = np.float32(-0.35896185), np.float32(0.297262609), np.float32(-0.272698015)
_L6 = np.float32(0.170634523)
_E0, _E1, _E2 = np.float32(0.693147004), np.float32(0.240222424), np.float32(0.0555073358)
_E3, _E4 = np.float32(0.00967151299), np.float32(0.00132647273)
_ROUND = np.float32(3 * 2**22)  # added to a small number, leaves the nearest integer in the last bits
_SQRT_HALF_BITS = np.int32(0x3F3504F3)
_MANTISSA = np.int32(0x007FFFFF)
_SHIFT = np.int32(23)
_EXPONENT = np.int32(127 - 0x4B400000)  # bias, less the bits of _ROUND
_U = np.uint64


@inlined
def power(x, exponent):
    """x^exponent for normal x > 0, relative error about 1e-6: arithmetic only, so that loops vectorise."""
    # numba widens every integer operation to 64 bits, hence the casts
    bits = np.int32(np.float32(x).view(np.int32) - _SQRT_HALF_BITS)
    whole = np.int32(bits >> _SHIFT)
    mantissa = np.int32(np.int32(bits & _MANTISSA) + _SQRT_HALF_BITS).view(np.float32)
    t = mantissa - ONE
    t2 = t * t
    log2 = np.float32(whole) + t * (((_L0 + _L1 * t) + t2 * (_L2 + _L3 * t)) + (t2 * t2) * ((_L4 + _L5 * t) + t2 * _L6))
    y = exponent * log2
    rounded = y + _ROUND
    f = y - (rounded - _ROUND)
    f2 = f * f
    fraction = ONE + f * (((_E0 + _E1 * f) + f2 * (_E2 + _E3 * f)) + (f2 * f2) * _E4)
    return fraction * np.int32(np.int32(np.float32(rounded).view(np.int32) + _EXPONENT) << _SHIFT).view(np.float32)


@compiled
def constant_laplacian(flow, cx, cy, y, bu, bv):
    _, height, width = flow.shape
    above, below = max(y - 1, 0), min(y + 1, height - 1)
    for k in range(2):
        up, here, down = flow[k, above], flow[k, y], flow[k, below]
        out = bu if k == 0 else bv
        out[0] = cx * (here[min(1, width - 1)] - here[0]) + cy * (up[0] - TWO * here[0] + down[0])
        for x in range(1, width - 1):
            out[x] = cx * (here[x - 1] - TWO * here[x] + here[x + 1]) + cy * (up[x] - TWO * here[x] + down[x])
        x = width - 1
        if x > 0:
            out[x] = cx * (here[x - 1] - here[x]) + cy * (up[x] - TWO * here[x] + down[x])


@compiled
def sort_row(row, y, half, out):
    for colour in range(2):
        parity, begin = (y + colour) % 2, colour * (half + 2) + 1
        for i in range((row.shape[0] - parity + 1) // 2):
            out[begin + i] = row[2 * i + parity]


@compiled
def sort_level(tensor, weight, flow, cx, cy):
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
                sort_row(tensor[channel, k, y], y, half, tensors[6 * channel + k, y])
            sort_row(weight[channel, y], y, half, weights[channel, y])
        constant_laplacian(flow, cx, cy, y, lines[0], lines[1])
        for k in range(2):
            sort_row(lines[k], y, half, laplacian[k, y])
    return tensors.reshape(tensors.size), weights.reshape(weights.size), laplacian.reshape(laplacian.size)


@compiled
def unsort(increment, out):
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
def set_ghosts(increment, row, width, half, parity, begin, other):
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
def relax_row(increment, plane, row, pitch, half, begin, other, parity, coefficients, cx, cy, keep):
    """Update the pixels of one colour in one row, in place, from coefficients 11, 12, 22, u and v, pitch each."""
    u, v = _U(row + begin), _U(plane + row + begin)
    left, right = _U(row + other + parity - 1), _U(row + other + parity)
    above, below, v_plane = _U(row - pitch + other), _U(row + pitch + other), _U(plane)
    i11, i12, i22, bu, bv = (
        _U(begin), _U(begin + pitch), _U(begin + 2 * pitch), _U(begin + 3 * pitch), _U(begin + 4 * pitch),
    )  # fmt: skip
    for i in range(half):
        x = _U(i)
        su = cx * (increment[left + x] + increment[right + x]) + cy * (increment[above + x] + increment[below + x])
        sv = cx * (increment[v_plane + left + x] + increment[v_plane + right + x]) + cy * (
            increment[v_plane + above + x] + increment[v_plane + below + x]
        )
        su += coefficients[bu + x]
        sv += coefficients[bv + x]
        coupling = coefficients[i12 + x]
        increment[u + x] = keep * increment[u + x] + coefficients[i11 + x] * su + coupling * sv
        increment[v + x] = keep * increment[v + x] + coupling * su + coefficients[i22 + x] * sv


@compiled
def accumulate_row(
    tensor, weight, laplacian, increment, here, plane, increment_here, increment_plane, pitch, channels, psi, total,
    right_sides,
):  # fmt: skip
    """Sum the data term of one sorted row over the channels, with psi of the present increment.

    `here` and `increment_here` are where the row begins in the planes. `total` gets 11, 22, 12 and scratch, pitch each;
    `right_sides` those of u and v, which begin with the Laplacian of the flow.
    """
    constant, factor, exponent = psi
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
            a, b = increment[u + x], increment[v + x]
            energy = (
                tensor[j11 + x] * a * a
                + tensor[j22 + x] * b * b
                + TWO * (tensor[j12 + x] * a * b + tensor[j13 + x] * a + tensor[j23 + x] * b)
                + tensor[j33 + x]
            )
            positive = energy if energy > ZERO else ZERO
            psi_here = constant + factor * power(positive + PSI_EPS, exponent)
            total[share + x] = psi_here * (weight[own_weight + x] if weight[own_weight + x] > ZERO else ZERO)
        for i in range(pitch):
            total[d11 + _U(i)] += total[share + _U(i)] * tensor[j11 + _U(i)]
        for i in range(pitch):
            total[d22 + _U(i)] += total[share + _U(i)] * tensor[j22 + _U(i)]
        for i in range(pitch):
            total[d12 + _U(i)] += total[share + _U(i)] * tensor[j12 + _U(i)]
        for i in range(pitch):
            right_sides[bu + _U(i)] -= total[share + _U(i)] * tensor[j13 + _U(i)]
        for i in range(pitch):
            right_sides[bv + _U(i)] -= total[share + _U(i)] * tensor[j23 + _U(i)]


@compiled
def invert_row(total, pitch, smooth, omega, coefficients):
    """Write the inverse of each pixel's 2x2 system times omega (11, 12, 22) from its data term (11, 22, 12)."""
    for i in range(pitch):
        x = _U(i)
        k11, k22, k12 = total[x], total[_U(pitch) + x], total[_U(2 * pitch) + x]
        # the data part alone may have rank 1: its determinant is kept apart and from going below zero
        data = k11 * k22 - k12 * k12
        determinant = smooth * (smooth + k11 + k22) + (data if data > ZERO else ZERO)
        scale = omega / determinant
        coefficients[x] = scale * (smooth + k22)
        coefficients[_U(pitch) + x] = -scale * k12
        coefficients[_U(2 * pitch) + x] = scale * (smooth + k11)
