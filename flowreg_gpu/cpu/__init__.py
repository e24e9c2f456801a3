"""The operations of the flow model on the CPU: numba kernels, single-threaded, releasing the GIL.

This module is the backend that `flowreg_gpu.model.estimator.FlowEstimator` takes as its operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.cpu.median import median5x5
from flowreg_gpu.cpu.motion_tensor import motion_tensor
from flowreg_gpu.cpu.prealign import phase_shift, prepare_alignment
from flowreg_gpu.cpu.pyramid import resize
from flowreg_gpu.cpu.solver import solve
from flowreg_gpu.cpu.warp import warp, warp_frame
from flowreg_gpu.model.resampling import TapTable

__all__ = [
    "add",
    "add_smoothed",
    "descend",
    "linearize",
    "median5x5",
    "motion_tensor",
    "phase_shift",
    "prepare_alignment",
    "prepare_descent",
    "pyramid",
    "resize",
    "smoothed_sum",
    "solve",
    "warp",
    "warp_frame",
    "warp_linear",
    "zero_flow",
]


def pyramid(
    planes: NDArray[np.float32], tables: Sequence[tuple[TapTable, TapTable] | None]
) -> list[NDArray[np.float32]]:
    """Planes (C, H, W) at every level, by its tables (rows, columns); where there are none, the planes themselves."""
    return [planes if pair is None else resize(planes, pair) for pair in tables]


def warp_linear(
    moving: NDArray[np.float32], flow: NDArray[np.float32], reference: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Warp planes (C, H, W) of full resolution linearly by flow (2, H, W)."""
    return warp(moving, flow, reference, interpolation="linear")


def prepare_descent(descent: Any, height: int, width: int) -> None:
    """Nothing to make."""


def descend(descent: Any, reference: Any, weight: Any, moving: Any, flow: NDArray[np.float32]) -> tuple[Any, int]:
    """No level at once: the flow, and 0."""
    return flow, 0


def linearize(
    reference: NDArray[np.float32],
    moving: NDArray[np.float32],
    flow: NDArray[np.float32],
    tables: tuple[TapTable, TapTable] | None,
    spacing: tuple[float, float],
    const_assumption: str,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Flow (2, h, w), upsampled by the tables if there are any, and motion tensor (C, 6, h, w) of the warped planes."""
    if tables is not None:
        flow = resize(flow, tables)
    return flow, motion_tensor(reference, warp(moving, flow, reference, spacing), *spacing, const_assumption)


def add(planes: NDArray[np.float32], increment: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sum of flow planes (2, h, w) and an increment (2, h, w) or (2, 1, 1)."""
    return planes + increment


def add_smoothed(flow: NDArray[np.float32], increment: NDArray[np.float32]) -> NDArray[np.float32]:
    """Flow plus the 5x5 median of an increment, (2, h, w) each."""
    return flow + median5x5(increment)


def smoothed_sum(flow: NDArray[np.float32], increment: NDArray[np.float32]) -> NDArray[np.float32]:
    """5x5 median of flow plus increment, (2, h, w) each."""
    return median5x5(flow + increment)


def zero_flow(planes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Zero flow (2, h, w) of the size of the planes."""
    return np.zeros((2, *planes.shape[1:]), np.float32)
