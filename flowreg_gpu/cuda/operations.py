"""The operations of the flow model bound to a device: the backend that `FlowEstimator` takes.

Images are buffers (n, C, h, w) and flows (n, 2, h, w), float32, of a whole batch; n is 1 for what all frames share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.cuda import descend, median, motion_tensor, prealign, pyramid, solver, warp
from flowreg_gpu.cuda import flow as planes_arithmetic
from flowreg_gpu.cuda.device import Buffer, Device
from flowreg_gpu.cuda.pyramid import Pyramid
from flowreg_gpu.model.plan import Descent, Tables
from flowreg_gpu.model.relaxation import Relaxation

__all__ = ["CudaOperations"]

# Taps of rows times taps of columns of an upsampling that `linearize` does itself: cubic interpolation has 4 x 4, as
# from every level to the next finer one. Where there are more, as from the start flow to the coarsest level, the taps
# of a tile would span much of the flow, and mostly all frames share what they make.
FEW_TAPS = 16


class CudaOperations:
    """See `flowreg_gpu.model.estimator.Operations`.

    Parameters
    ----------
    device : Device
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self._tables: dict[tuple[Tables, ...], pyramid.DeviceTables] = {}
        self._upsamplings: dict[tuple[Tables, str], motion_tensor.Upsampling] = {}
        self._descents: dict[Descent, descend.Levels | None] = {}

    def _uploaded(self, *tables: Tables) -> pyramid.DeviceTables:
        if tables not in self._tables:
            self._tables[tables] = pyramid.upload_tables(self.device, tables)
        return self._tables[tables]

    def _upsampling(self, tables: Tables, const_assumption: str) -> motion_tensor.Upsampling | None:
        """None where there are too many taps, with the tables ready for `resize`."""
        if math.prod(table.index.shape[1] for table in tables) > FEW_TAPS:
            self._uploaded(tables)
            return None
        key = tables, const_assumption
        if key not in self._upsamplings:
            self._upsamplings[key] = motion_tensor.upload_upsampling(self.device, tables, const_assumption)
        return self._upsamplings[key]

    def _levels(self, descent: Descent, full: tuple[int, ...]) -> descend.Levels | None:
        if descent not in self._descents:
            self._descents[descent] = descend.upload_levels(self.device, descent, full)
        return self._descents[descent]

    def prepare_descent(self, descent: Descent, height: int, width: int) -> None:
        """Upload the tables of a descent."""
        done = 0
        levels = self._levels(descent, (height, width))
        if levels is not None:
            done = levels.number
            self._uploaded(descent.levels[0].from_coarser)
        for level in descent.levels[done:]:
            self._upsampling(level.from_coarser, descent.const_assumption)
        if descent.to_full is not None:
            self._uploaded(descent.to_full)

    def resize(self, planes: Buffer, tables: Tables) -> Buffer:
        """Filter planes along rows and columns with tap tables."""
        return pyramid.resize(self.device, planes, self._uploaded(tables))

    def pyramid(self, planes: Buffer, tables: Sequence[Tables | None]) -> Pyramid:
        """Planes at every level, by its tables; where there are none, the planes themselves."""
        given = [pair for pair in tables if pair is not None]
        sizes = [None if pair is None else (len(pair[0].index), len(pair[1].index)) for pair in tables]
        return pyramid.pyramid(self.device, planes, self._uploaded(*given) if given else None, sizes)

    def prepare_smoothing(self, tables: Sequence[Tables]) -> None:
        """Upload the tables of `smooth`."""
        for pair in tables:
            self._uploaded(pair)

    def smooth(self, planes: Buffer, tables: Sequence[Tables]) -> Buffer:
        """Filter every channel with its own tables, which keep the size."""
        return pyramid.smooth(self.device, planes, [self._uploaded(pair) for pair in tables])

    def warp_linear(self, moving: Buffer, flow: Buffer, reference: Buffer) -> Buffer:
        """Warp planes of full resolution backwards, linearly; what lies outside comes from the reference."""
        return warp.warp_linear(self.device, moving, flow, reference)

    def descend(
        self,
        descent: Descent,
        reference: Pyramid,
        weight: Pyramid,
        moving: Pyramid,
        flow: Buffer,
    ) -> tuple[Buffer, int]:
        """Flow after the coarsest levels, as many as one launch takes, and how many these are."""
        levels = self._levels(descent, moving.planes.shape[2:])
        if levels is None:
            return flow, 0
        flow = self.resize(flow, descent.levels[0].from_coarser)
        return descend.descend(self.device, levels, descent, reference, weight, moving, flow), levels.number

    def linearize(
        self,
        reference: Buffer,
        moving: Buffer,
        flow: Buffer,
        tables: Tables | None,
        spacing: tuple[float, float],
        const_assumption: str,
    ) -> tuple[Buffer, Buffer]:
        """Flow, upsampled by the tables if there are any, and motion tensor (n, C, 6, h, w) of the warped planes."""
        upsampling = None if tables is None else self._upsampling(tables, const_assumption)
        if tables is not None and upsampling is None:
            flow = self.resize(flow, tables)
        return motion_tensor.linearize(self.device, reference, moving, flow, upsampling, spacing, const_assumption)

    def solve(
        self,
        tensor: Buffer,
        weight: Buffer,
        flow: Buffer,
        alpha: tuple[float, float],
        spacing: tuple[float, float],
        relaxation: Relaxation,
    ) -> Buffer:
        """Increment of the flow on one level."""
        return solver.solve(self.device, tensor, weight, flow, alpha, spacing, relaxation)

    def add_smoothed(self, flow: Buffer, increment: Buffer) -> Buffer:
        """Flow plus the 5x5 median of an increment, mirror boundary."""
        return median.add_smoothed(self.device, flow, increment)

    def smoothed_sum(self, flow: Buffer, increment: Buffer) -> Buffer:
        """5x5 median of flow plus increment, mirror boundary."""
        return median.smoothed_sum(self.device, flow, increment)

    def add(self, planes: Buffer, increment: Buffer) -> Buffer:
        """Sum of two sets of planes; the second may be (n, 2, 1, 1)."""
        return planes_arithmetic.add(self.device, planes, increment)

    def zero_flow(self, planes: Buffer) -> Buffer:
        """Zero flow of the number and size of the planes."""
        frames, _, height, width = planes.shape
        flow = self.device.empty((frames, 2, height, width), np.float32)
        planes_arithmetic.fill(self.device, flow, 0.0)
        return flow

    def prepare_alignment(
        self, reference: Buffer, weight: NDArray[np.float32], tables: Tables, upsampling: int
    ) -> prealign.Aligner:
        """What the rigid alignments of all frames to this reference share."""
        return prealign.prepare_alignment(
            self.device, reference, weight, lambda image: self.resize(image, tables), upsampling
        )

    def phase_shift(self, aligner: prealign.Aligner, moving: Buffer) -> Buffer:
        """Rigid displacements (n, 2, 1, 1), to be added to a flow."""
        return prealign.phase_shift(self.device, aligner, moving)
