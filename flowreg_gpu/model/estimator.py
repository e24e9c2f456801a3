"""The coarse-to-fine driver, written once; the operations (CPU or GPU) are given to it.

Flow convention, here and everywhere: a flow holds u (displacement along x, columns) and v (along y, rows) in
full-resolution pixels, and the registered frame is ``registered(y, x) = frame(y + v, x + u)``. Public arrays are
(H, W, 2) or (T, H, W, 2) with u first; inside, planes (2, H, W).

The driver treats images and flows as opaque handles: it passes them from operation to operation and never looks
inside, so that they may live on another device, and stand for a whole batch of frames there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.model.plan import Descent, Tables, plan_descents, plan_levels
from flowreg_gpu.model.relaxation import Relaxation
from flowreg_gpu.model.resampling import resampling_tables
from flowreg_gpu.options import Options

__all__ = ["FlowEstimator", "Operations"]

Image = Any  # planes (C, h, w), float32, wherever the operations keep them
Pyramid = Any  # a sequence of images
Flow = Any  # planes (2, h, w), float32


class Operations(Protocol):
    """What a backend offers: `flowreg_gpu.cpu` on arrays of the host, a CUDA device on its own."""

    def resize(self, planes: Image, tables: Tables) -> Image:
        """Filter planes along rows and columns with tap tables."""

    def pyramid(self, planes: Image, tables: Sequence[Tables | None]) -> Pyramid:
        """Planes at every level, by its tables; where there are none, the planes themselves."""

    def warp_linear(self, moving: Image, flow: Flow, reference: Image) -> Image:
        """Warp planes of full resolution backwards, linearly; what lies outside comes from the reference."""

    def prepare_descent(self, descent: Descent, height: int, width: int) -> None:
        """Make what all frames share that is not of the reference, once; (height, width) is full resolution."""

    def descend(
        self, descent: Descent, reference: Pyramid, weight: Pyramid, moving: Pyramid, flow: Flow
    ) -> tuple[Flow, int]:
        """Flow after the coarsest levels, as many as the backend does at once, and how many these are."""

    def linearize(
        self,
        reference: Image,
        moving: Image,
        flow: Flow,
        tables: Tables | None,
        spacing: tuple[float, float],
        const_assumption: str,
    ) -> tuple[Flow, Image]:
        """Flow, upsampled by the tables if there are any, and motion tensor (C, 6, h, w) of the planes warped cubically
        with it; what lies outside comes from the reference."""

    def solve(
        self,
        tensor: Image,
        weight: Image,
        flow: Flow,
        alpha: tuple[float, float],
        spacing: tuple[float, float],
        relaxation: Relaxation,
    ) -> Flow:
        """Increment of the flow on one level."""

    def add_smoothed(self, flow: Flow, increment: Flow) -> Flow:
        """Flow plus the 5x5 median of an increment, mirror boundary."""

    def smoothed_sum(self, flow: Flow, increment: Flow) -> Flow:
        """5x5 median of flow plus increment, mirror boundary."""

    def add(self, planes: Image, increment: Image) -> Image:
        """Sum of two sets of planes; the second may be (2, 1, 1)."""

    def zero_flow(self, planes: Image) -> Flow:
        """Zero flow of the size of the planes."""

    def prepare_alignment(self, reference: Image, weight: NDArray[np.float32], tables: Tables, upsampling: int) -> Any:
        """What the rigid alignments of all frames to this reference share."""

    def phase_shift(self, aligner: Any, moving: Image) -> Flow:
        """Rigid displacement, to be added to a flow."""


class FlowEstimator:
    """Flow of any number of frames to one reference; what depends on the reference alone is computed once.

    Parameters
    ----------
    operations : Operations
        Backend.
    reference : planes (C, H, W), float32
        Preprocessed reference, where the backend keeps it.
    weight : planes (C, H, W), float32
        Channel weights at full resolution, likewise.
    mean_weight : (C,) float32
        Weight of each channel in the image that the rigid pre-alignment sees; sums to 1.
    height, width : int
        Size of the frames in pixels.
    options : Options
    """

    def __init__(
        self,
        operations: Operations,
        reference: Image,
        weight: Image,
        mean_weight: NDArray[np.float32],
        height: int,
        width: int,
        options: Options,
    ) -> None:
        self._operations = operations
        self._reference = reference
        plan = plan_levels(height, width, options)
        self._descents = plan_descents(plan, options)
        # at full resolution the tables would only copy
        full = (height, width)
        self._tables = [None if (level.height, level.width) == full else level.from_full for level in plan.levels]
        for descent in self._descents:
            operations.prepare_descent(descent, height, width)
        self._references = operations.pyramid(reference, self._tables)
        self._weights = operations.pyramid(weight, self._tables)
        self._aligner = None
        if options.cc_initialization:
            limit_y, limit_x = options.cc_hw if isinstance(options.cc_hw, tuple) else (options.cc_hw, options.cc_hw)
            tables = resampling_tables(height, width, min(height, limit_y), min(width, limit_x))
            self._aligner = operations.prepare_alignment(reference, mean_weight, tables, options.cc_up)

    def flow(self, moving: Image, start: Flow) -> Flow:
        """Flow (2, H, W) of preprocessed planes (C, H, W) to the reference, from a start flow (2, H, W)."""
        if self._aligner is None:
            return self._coarse_to_fine(moving, start)
        operations = self._operations
        aligned = operations.warp_linear(moving, start, self._reference)
        start = operations.add(start, operations.phase_shift(self._aligner, aligned))
        aligned = operations.warp_linear(moving, start, self._reference)
        return operations.add(start, self._coarse_to_fine(aligned, operations.zero_flow(start)))

    def _coarse_to_fine(self, moving: Image, flow: Flow) -> Flow:
        """All levels from coarse to fine, once, or once per stage of the graduated non-convexity."""
        pyramid = self._operations.pyramid(moving, self._tables)
        for descent in self._descents:
            flow = self._descend(descent, pyramid, flow)
        return flow

    def _descend(self, descent: Descent, pyramid: Pyramid, flow: Flow) -> Flow:
        operations, references, weights = self._operations, self._references, self._weights
        flow, done = operations.descend(descent, references, weights, pyramid, flow)
        for number in range(done, len(descent.levels)):
            level, relaxation = descent.levels[number], descent.relaxations[number]
            add: Callable[[Flow, Flow], Flow] = operations.add
            if level.smoothed:
                add = operations.smoothed_sum if descent.graduated else operations.add_smoothed
            tables: Tables | None = level.from_coarser
            for _ in range(descent.linearizations):
                flow, tensor = operations.linearize(
                    references[number], pyramid[number], flow, tables, level.spacing, descent.const_assumption
                )
                increment = operations.solve(tensor, weights[number], flow, level.alpha, level.spacing, relaxation)
                del tensor  # most of a device's memory
                flow = add(flow, increment)
                del increment
                tables = None
        return flow if descent.to_full is None else operations.resize(flow, descent.to_full)
