"""Arithmetic of the relaxations of a pyramid level: psi, the system of a pixel, and the Laplacian of the flow."""

from __future__ import annotations

import numpy as np

from flowreg_gpu.cpu.jit import compiled, fma, inlined

__all__ = [
    "HALF",
    "ONE",
    "TWO",
    "ZERO",
    "constant_laplacian",
    "data_energy",
    "invert",
    "psi_of",
    "update",
    "weighted_sum",
]

ZERO = np.float32(0)
ONE = np.float32(1)
TWO = np.float32(2)
HALF = np.float32(0.5)
PSI_EPS = np.float32(1e-5)

# log2(1 + t) = t (L0 + L1 t + ...) for 1 + t in [sqrt(1/2), sqrt(2)), error 3e-7; 2^f = 1 + f (E0 + E1 f + ...) for
# |f| <= 1/2, relative error 9e-8. Minimax fits.
_L0, _L1, _L2 = np.float32(1.44269967), np.float32(-0.721375883), np.float32(0.480465025)
_L3, _L4, _L5 = np.float32(-0.35896185), np.float32(0.297262609), np.float32(-0.272698015)
_L6 = np.float32(0.170634523)
_E0, _E1, _E2 = np.float32(0.693147004), np.float32(0.240222424), np.float32(0.0555073358)
_E3, _E4 = np.float32(0.00967151299), np.float32(0.00132647273)
_ROUND = np.float32(3 * 2**22)  # added to a small number, leaves the nearest integer in the last bits
_SQRT_HALF_BITS = np.int32(0x3F3504F3)
_MANTISSA = np.int32(0x007FFFFF)
_SHIFT = np.int32(23)


@inlined
def power(x, exponent):
    """x^exponent for normal x > 0, relative error about 1e-6: arithmetic only, so that loops vectorise."""
    # numba widens every integer operation to 64 bits, hence the casts
    bits = np.int32(np.float32(x).view(np.int32) - _SQRT_HALF_BITS)
    whole = np.float32(np.int32(bits >> _SHIFT))
    t = np.int32(np.int32(bits & _MANTISSA) + _SQRT_HALF_BITS).view(np.float32) - ONE
    series = fma(fma(fma(fma(fma(fma(_L6, t, _L5), t, _L4), t, _L3), t, _L2), t, _L1), t, _L0)
    log2 = fma(t, series, whole)
    rounded = fma(exponent, log2, _ROUND)
    f = fma(exponent, log2, _ROUND - rounded)
    fraction = fma(fma(fma(fma(fma(_E4, f, _E3), f, _E2), f, _E1), f, _E0), f, ONE)
    # times 2^rounded: the integer, in the last bits, goes to the exponent's
    scale = np.int32(np.float32(rounded).view(np.int32) << _SHIFT)
    return np.int32(np.float32(fraction).view(np.int32) + scale).view(np.float32)


@inlined
def psi_of(x, psi):
    """psi = constant + factor (x + 1e-5)^power, where `psi` is (constant, factor, power), float32."""
    constant, factor, exponent = psi
    return fma(factor, power(x + PSI_EPS, exponent), constant)


@inlined
def data_energy(j11, j22, j33, j12, j13, j23, u, v):
    """J11 u^2 + J22 v^2 + 2 J12 u v + 2 J13 u + 2 J23 v + J33 of the motion tensor J, not below 0."""
    mixed = fma(j12, v, j13)
    energy = fma(u, fma(j11, u, mixed + mixed), fma(v, fma(j22, v, j23 + j23), j33))
    return energy if energy > ZERO else ZERO


@inlined
def invert(d11, d22, d12, diagonal, omega):
    """Inverse (11, 12, 22), times omega, of a pixel's 2 x 2 system: data term + `diagonal` (of its edges) times 1."""
    # the data part alone may have rank 1: its determinant is kept apart and from going below zero
    data = fma(d11, d22, -(d12 * d12))
    first, second = diagonal + d11, diagonal + d22
    scale = omega / fma(diagonal, first + d22, data if data > ZERO else ZERO)
    return scale * second, -scale * d12, scale * first


@inlined
def weighted_sum(left, right, above, below, cx, cy, right_side):
    """Right-hand side of a pixel and the weighted sum of its neighbours, where the smoothness is quadratic."""
    return fma(cx, left + right, fma(cy, above + below, right_side))


@inlined
def update(keep, k0, k1, k2, su, sv, u, v):
    """u and v of a pixel by the rule block: keep (u, v) + K (su, sv), K being omega times the inverse of its system."""
    return fma(k0, su, fma(k1, sv, keep * u)), fma(k1, su, fma(k2, sv, keep * v))


@compiled
def constant_laplacian(flow, cx, cy, y, bu, bv):
    """Write row y of cx (f(x - 1) - 2 f + f(x + 1)) + cy (f(y - 1) - 2 f + f(y + 1)) of both components of a flow.

    From flow (2, h, w) to bu and bv (w,), float32; beyond the edge lies the pixel's own value.
    """
    _, height, width = flow.shape
    above, below = max(y - 1, 0), min(y + 1, height - 1)
    for k in range(2):
        up, here, down = flow[k, above], flow[k, y], flow[k, below]
        out = bu if k == 0 else bv
        out[0] = fma(cx, here[min(1, width - 1)] - here[0], cy * (fma(-TWO, here[0], up[0]) + down[0]))
        for x in range(1, width - 1):
            across = cy * (fma(-TWO, here[x], up[x]) + down[x])
            out[x] = fma(cx, fma(-TWO, here[x], here[x - 1]) + here[x + 1], across)
        x = width - 1
        if x > 0:
            out[x] = fma(cx, here[x - 1] - here[x], cy * (fma(-TWO, here[x], up[x]) + down[x]))
