"""What is done with one frame on a CPU: preprocess, flow, warp, statistics; the last two where the flow is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu import cpu
from flowreg_gpu.cpu.preprocess import preprocess
from flowreg_gpu.cpu.statistics import correlation, flow_statistics, leaves_frame
from flowreg_gpu.model.estimator import FlowEstimator
from flowreg_gpu.model.preprocessing import Preprocessing
from flowreg_gpu.options import Options

__all__ = ["RegistrationTask", "WarpTask"]


@dataclasses.dataclass
class WarpTask:
    """Warp frame `index` of a batch by its flow.

    Inputs and outputs lie in named arrays, shared where workers are processes. Arrays read: `frames` (n, H, W, C), the
    file's dtype; `reference` (H, W, C) float32, raw; `given_flow` (n, 2, H, W) float32. Arrays written: `registered`
    (n, H, W, C), `statistics` (n, 10) float64.
    """

    options: Options

    @property
    def halo(self) -> int:
        """Frames that a batch has before and after those it registers."""
        return 0

    def prepare(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Compute what all frames share; once per process. A warp needs nothing."""

    def __call__(self, arrays: Mapping[str, NDArray[Any]], index: int) -> None:
        """Register one frame."""
        frame, reference = arrays["frames"][index + self.halo], arrays["reference"]
        constant = frame.min() == frame.max()
        flow = np.zeros((2, *frame.shape[:2]), np.float32) if constant else self._flow(arrays, index)
        diverged = leaves_frame(flow)
        if diverged:
            flow = cpu.zero_flow(flow)
        registered = arrays["registered"][index]
        cpu.warp_frame(frame, flow, reference, self.options.interpolation_method, registered)
        self._keep_flow(arrays, index, flow)
        arrays["statistics"][index] = (
            *flow_statistics(flow),
            correlation(frame, reference),
            correlation(registered, reference),
            constant,
            diverged,
        )

    def _flow(self, arrays: Mapping[str, NDArray[Any]], index: int) -> NDArray[np.float32]:
        """Flow (2, H, W) of a frame that is not constant."""
        flow: NDArray[np.float32] = arrays["given_flow"][index]
        return flow

    def _keep_flow(self, arrays: Mapping[str, NDArray[Any]], index: int, flow: NDArray[np.float32]) -> None:
        """Hand the flow to the caller, who has it already where it was given."""


@dataclasses.dataclass
class RegistrationTask(WarpTask):
    """Register frame `index` of a batch: estimate its flow, then as `WarpTask`.

    Arrays read: `frames` (n + 2 halo, H, W, C), the file's dtype; `reference` (H, W, C) float32, raw;
    `reference_planes` and `weight` (C, H, W) float32; `mean_weight` (C,) float32; `start` (2, H, W) float32; and
    `planes` (n, C, H, W) float32 where `preprocessing` is None. Arrays written: `registered` (n, H, W, C),
    `statistics` (n, 10) float64, and `flow` (m, H, W, 2) float32: of the last m frames, those whose flow is wanted.
    """

    preprocessing: Preprocessing | None
    _estimator: FlowEstimator | None = dataclasses.field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_estimator": None}

    @property
    def halo(self) -> int:
        """Frames that a batch has before and after those it registers."""
        return 0 if self.preprocessing is None else self.preprocessing.halo

    def prepare(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Compute what all frames share; once per process."""
        height, width, _ = arrays["reference"].shape
        self._estimator = FlowEstimator(
            cpu,
            arrays["reference_planes"],
            arrays["weight"],
            arrays["mean_weight"],
            height,
            width,
            self.options,
        )

    def _flow(self, arrays: Mapping[str, NDArray[Any]], index: int) -> NDArray[np.float32]:
        assert self._estimator is not None  # the executors call prepare first
        if self.preprocessing is None:
            planes = arrays["planes"][index]
        else:
            planes = preprocess(arrays["frames"][index : index + 2 * self.preprocessing.halo + 1], self.preprocessing)
        flow: NDArray[np.float32] = self._estimator.flow(planes, arrays["start"])
        return flow

    def _keep_flow(self, arrays: Mapping[str, NDArray[Any]], index: int, flow: NDArray[np.float32]) -> None:
        row = index - (len(arrays["registered"]) - len(arrays["flow"]))
        if row >= 0:
            np.stack(tuple(flow), axis=-1, out=arrays["flow"][row])  # four times as fast as copying a transposed view
