"""How much of the reference has no structure that a flow could hold on to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.cpu.motion_tensor import motion_tensor
from flowreg_gpu.model.relaxation import STIFFNESS, settle_solver
from flowreg_gpu.options import Options

__all__ = ["flat_share", "settle_by_reference"]

# 1 % of what gradient constancy gives at structure, where J11 + J22 = 2
FLAT = 0.02


def flat_share(reference: NDArray[np.float32], weight: NDArray[np.float32], const_assumption: str) -> float:
    """Share of the pixels without data term: masked, or dark, saturated or otherwise constant around them.

    A pixel is one of them where J11 + J22 of the reference alone, weighted and summed over the channels, is below 1 %
    of what structure gives. The reference (C, H, W) is preprocessed, the weight (C, H, W) at full resolution.
    """
    tensor = motion_tensor(reference, reference, 1.0, 1.0, const_assumption)
    trace = (weight * (tensor[:, 0] + tensor[:, 1])).sum(axis=0)
    return float(np.mean(trace * STIFFNESS[const_assumption] < FLAT))


def settle_by_reference(options: Options, reference: NDArray[np.float32], weight: NDArray[np.float32]) -> Options:
    """`settle_solver` for a preprocessed reference (C, H, W) and its weight, which are looked at where they count."""
    counts = options.solver == "auto" and options.a_smooth == 1
    return settle_solver(options, flat_share(reference, weight, options.const_assumption) if counts else 0.0)
