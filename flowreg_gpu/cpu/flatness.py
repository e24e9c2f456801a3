"""The fraction of the reference without structure, from which no flow can be estimated; it decides the solver."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.cpu.motion_tensor import motion_tensor
from flowreg_gpu.model.relaxation import STIFFNESS, choose_solver
from flowreg_gpu.options import Options

__all__ = ["choose_solver_by_reference", "flat_fraction", "flat_pixels"]

# 1 % of J11 + J22 at structure: gradient constancy normalises each of its two terms, so that the sum is about 2 there
FLAT = 0.02


def flat_pixels(
    reference: NDArray[np.float32], weight: NDArray[np.float32], const_assumption: str
) -> NDArray[np.bool_]:
    """Return the pixels (H, W) without data term: masked, dark, saturated or otherwise constant.

    A pixel counts where J11 + J22 of the reference with itself, weighted and summed over the channels, is below 1 % of
    its value at structure; `STIFFNESS` brings the other data terms to the scale of gradient constancy. The reference
    (C, H, W) float32 is preprocessed, the weight (C, H, W) float32 at full resolution.
    """
    tensor = motion_tensor(reference, reference, 1.0, 1.0, const_assumption)
    trace = (weight * (tensor[:, 0] + tensor[:, 1])).sum(axis=0)
    flat: NDArray[np.bool_] = trace * STIFFNESS[const_assumption] < FLAT
    return flat


def flat_fraction(reference: NDArray[np.float32], weight: NDArray[np.float32], const_assumption: str) -> float:
    """Return the fraction (0 to 1) of the pixels that `flat_pixels` finds."""
    return float(np.mean(flat_pixels(reference, weight, const_assumption)))


def choose_solver_by_reference(
    options: Options, reference: NDArray[np.float32], weight: NDArray[np.float32]
) -> Options:
    """Return the options with a solver for a preprocessed reference (C, H, W) and its weight (C, H, W), both float32.

    The flat fraction is computed only where `choose_solver` would use it.
    """
    matters = options.solver == "auto" and options.a_smooth == 1
    return choose_solver(options, flat_fraction(reference, weight, options.const_assumption) if matters else 0.0)
