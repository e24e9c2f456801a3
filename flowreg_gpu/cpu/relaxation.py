"""What the relaxations of a pyramid level share: powers, and the Laplacian of the flow."""

from __future__ import annotations

import numpy as np

from flowreg_gpu.cpu.jit import compiled, inlined

__all__ = ["HALF", "ONE", "PSI_EPS", "TWO", "ZERO", "constant_laplacian", "power"]

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
