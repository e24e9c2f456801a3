"""What all batches of a recording share."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.cpu.flatness import choose_solver_by_reference
from flowreg_gpu.cpu.preprocess import preprocess
from flowreg_gpu.engine.batch import Batch
from flowreg_gpu.model.preprocessing import Defects, Preprocessing, channel_weights, normalization
from flowreg_gpu.options import Options

__all__ = ["Job", "WarpJob"]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class WarpJob:
    """What all batches of a recording share whose frames come with their flow, so that they are warped only.

    Attributes
    ----------
    options : Options
        Of which the interpolation matters.
    reference : (H, W, C) float32
        Raw reference.
    """

    options: Options
    reference: NDArray[np.float32]

    @property
    def halo(self) -> int:
        """Frames that a batch has before and after those it registers."""
        return 0

    def check(self, batch: Batch) -> None:
        """Raise ValueError for a batch without the flow of its frames, or with anything else that a flow is made of."""
        size = (batch.count, 2, *batch.frames.shape[1:3])
        if batch.flow is None or batch.flow.shape != size:
            found = None if batch.flow is None else batch.flow.shape
            raise ValueError(f"the batch has a flow of shape {found}, expected {size}")
        if batch.planes is not None or batch.halo != 0:
            raise ValueError("a batch that is warped by a given flow has neither planes nor a halo")


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Job(WarpJob):
    """What all batches of a recording share whose flow is estimated; made by `from_raw` or `from_preprocessed`.

    Attributes
    ----------
    options : Options
        With the solver that the reference asks for, where it was 'auto'.
    reference : (H, W, C) float32
        Raw reference.
    reference_planes : (C, H, W) float32
        The same, normalised and filtered.
    preprocessing : Preprocessing or None
        What to do with the frames; None where they come with preprocessed planes of their own.
    weight, mean_weight : (C, H, W) and (C,) float32
        Channel weights of the data term, and of the mean image of the pre-alignment.
    """

    reference_planes: NDArray[np.float32]
    preprocessing: Preprocessing | None
    weight: NDArray[np.float32]
    mean_weight: NDArray[np.float32]

    @classmethod
    def from_raw(cls, *, options: Options, reference: NDArray[np.float32], defects: Defects | None = None) -> Job:
        """Job for raw frames, normalised by the extremes of the raw reference (H, W, C) and filtered by `options`.

        Defects of the sensor are replaced in what the flow sees, and do not count for the extremes.
        """
        height, width, channels = reference.shape
        sound = reference
        if defects is not None:
            sound = reference.copy()
            defects.replace(sound)
        low, high = sound.min(axis=(0, 1)), sound.max(axis=(0, 1))
        preprocessing = Preprocessing.build(
            *normalization(low, high, options.channel_normalization),
            options.sigma_per_channel(channels),
            height,
            width,
            options.highpass,
            defects,
        )
        planes = preprocess(reference[None], preprocessing.without_time())
        return cls.from_preprocessed(
            options=options, reference=reference, reference_planes=planes, preprocessing=preprocessing
        )

    @classmethod
    def from_preprocessed(
        cls,
        *,
        options: Options,
        reference: NDArray[np.float32],
        reference_planes: NDArray[np.float32],
        preprocessing: Preprocessing | None = None,
    ) -> Job:
        """Job for a reference (H, W, C) that comes with its preprocessed planes (C, H, W).

        Frames come preprocessed too, unless `preprocessing` says what to do with them.
        """
        height, width, channels = reference.shape
        weight, mean_weight = channel_weights(options, height, width, channels)
        return cls(
            options=choose_solver_by_reference(options, reference_planes, weight),
            reference=reference,
            reference_planes=reference_planes,
            preprocessing=preprocessing,
            weight=weight,
            mean_weight=mean_weight,
        )

    @property
    def halo(self) -> int:
        """Frames that a batch has before and after those it registers."""
        return 0 if self.preprocessing is None else self.preprocessing.halo

    def check(self, batch: Batch) -> None:
        """Raise ValueError for a batch that is preprocessed twice or not at all, has another halo, or no start flow."""
        if batch.start is None or batch.flow is not None:
            raise ValueError("a batch whose flow is estimated needs a start flow, and no flow of its own")
        if (batch.planes is None) == (self.preprocessing is None):
            raise ValueError("a batch needs either the job's preprocessing or planes of its own")
        if batch.halo != self.halo:
            raise ValueError(f"the batch has a halo of {batch.halo} frames, expected {self.halo}")
