"""The coarse-to-fine driver, written once for the CPU and the GPU; the operations are given to it.

The flow of a frame is estimated on a pyramid of levels (`flowreg_gpu.model.plan`): a *descent* goes from the coarsest
level to the finest. On each level the flow is upsampled from the next coarser one, the frame is warped with it, the
data term is linearized around it, and the increment that minimises the energy is added (Brox, Bruhn, Papenberg,
Weickert 2004). There is one descent, or with graduated non-convexity one per stage, each starting from the flow of the
stage before.

Flow convention, here and everywhere: a flow holds u (displacement along x, across columns) and v (along y, across
rows), in full-resolution pixels on every level. It points from a pixel of the reference to the place in the frame where
the same structure lies, and the registered frame is ``registered(y, x) = frame(y + v, x + u)``: where a structure has
moved 2 pixels to the right, u = 2. Public arrays are (H, W, 2) or (T, H, W, 2) with u first; inside, flows are planes
(2, H, W) and images planes (C, H, W).

The driver never looks into images and flows: it takes them from one operation and passes them to the next. So they may
be arrays of the host (one frame, in `flowreg_gpu.cpu`) or buffers of a device that hold a whole batch of frames.
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
    """The operations that a backend has to offer: all arithmetic of the model on images and flows.

    There are two implementations, which agree to the last bit: the module `flowreg_gpu.cpu`, on NumPy arrays and one
    frame at a time, and `flowreg_gpu.cuda.operations`, on buffers of a device and a batch of frames at a time. The
    shapes below are those of one frame; everything is float32, and no operation changes its inputs.
    """

    def resize(self, planes: Image, tables: Tables) -> Image:
        """Resample planes (C, H, W) along rows and columns with tap tables, to (C, h, w)."""

    def pyramid(self, planes: Image, tables: Sequence[Tables | None]) -> Pyramid:
        """Return the planes of every level, by its tables; where these are None, the planes themselves."""

    def warp_linear(self, moving: Image, flow: Flow, reference: Image) -> Image:
        """Warp planes of full resolution by the flow, linearly; pixels from outside are those of the reference."""

    def prepare_descent(self, descent: Descent, height: int, width: int) -> None:
        """Prepare, once for all frames, what depends on the descent alone; full resolution is (height, width)."""

    def descend(
        self, descent: Descent, reference: Pyramid, weight: Pyramid, moving: Pyramid, flow: Flow
    ) -> tuple[Flow, int]:
        """Return the flow after the first `n` (coarsest) levels of a descent, and n.

        A backend computes as many levels at once as it can, possibly none: then it returns the flow as it is and 0.
        The driver computes the finer levels one by one. Pyramids begin with the coarsest level.
        """

    def linearize(
        self,
        reference: Image,
        moving: Image,
        flow: Flow,
        tables: Tables | None,
        spacing: tuple[float, float],
        const_assumption: str,
    ) -> tuple[Flow, Image]:
        """Return the flow (2, h, w), upsampled by the tables if there are any, and the motion tensor (C, 6, h, w).

        The tensor is that of the reference and the moving planes (C, h, w), warped cubically by this flow; pixels from
        outside are those of the reference.
        """

    def solve(
        self,
        tensor: Image,
        weight: Image,
        flow: Flow,
        alpha: tuple[float, float],
        spacing: tuple[float, float],
        relaxation: Relaxation,
    ) -> Flow:
        """Return the increment (2, h, w) of the flow on one level that the relaxation finds for this motion tensor."""

    def add_smoothed(self, flow: Flow, increment: Flow) -> Flow:
        """Return flow plus the 5x5 median of an increment, mirror boundary."""

    def smoothed_sum(self, flow: Flow, increment: Flow) -> Flow:
        """Return the 5x5 median of flow plus increment, mirror boundary."""

    def add(self, planes: Image, increment: Image) -> Image:
        """Return the sum of planes and an increment of the same shape, or of (2, 1, 1): a rigid displacement."""

    def zero_flow(self, planes: Image) -> Flow:
        """Return a zero flow (2, h, w) of the size of planes (C, h, w)."""

    def prepare_alignment(self, reference: Image, weight: NDArray[np.float32], tables: Tables, upsampling: int) -> Any:
        """Prepare, once for all frames, the rigid alignment to this reference; the weights (C,) sum to 1."""

    def phase_shift(self, aligner: Any, moving: Image) -> Flow:
        """Return the rigid displacement (2, 1, 1) of planes against the reference, to be added to a flow."""


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
        if options.prealigns:
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
        """All descents: one, or one per stage of the graduated non-convexity."""
        pyramid = self._operations.pyramid(moving, self._tables)
        for descent in self._descents:
            flow = self._descend(descent, pyramid, flow)
        return flow

    def _descend(self, descent: Descent, pyramid: Pyramid, flow: Flow) -> Flow:
        """All levels of one descent, coarsest first."""
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
