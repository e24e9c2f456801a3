"""What all batches of a recording share."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.cpu.flatness import settle_by_reference
from flowreg_gpu.cpu.preprocess import preprocess
from flowreg_gpu.model.preprocessing import Preprocessing
from flowreg_gpu.options import Options

__all__ = ["Job"]


@dataclasses.dataclass(frozen=True)
class Job:
    """What all batches of a recording share.

    Parameters
    ----------
    options : Options
        The solver 'auto' gives way to the one that the reference asks for.
    reference : (H, W, C) float32
        Raw reference.
    reference_planes : (C, H, W) float32 or None
        The same, normalised and filtered; None leaves that to the executor.
    preprocessing : Preprocessing or None
        What to do with the frames; None where they, and the reference, come with their own preprocessed planes.
    weight, mean_weight : (C, H, W) and (C,) float32
        Channel weights of the data term, and of the mean image of the pre-alignment.
    """

    options: Options
    reference: NDArray[np.float32]
    reference_planes: NDArray[np.float32] | None
    preprocessing: Preprocessing | None
    weight: NDArray[np.float32]
    mean_weight: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.reference_planes is None and self.preprocessing is None:
            raise ValueError("the job has neither reference_planes nor preprocessing")
        if self.options.solver == "auto":
            settled = settle_by_reference(self.options, self.planes_on_host, self.weight)
            object.__setattr__(self, "options", settled)

    @functools.cached_property
    def planes_on_host(self) -> NDArray[np.float32]:
        """The reference (C, H, W), normalised and filtered, made here where the job comes without."""
        if self.reference_planes is not None:
            return self.reference_planes
        assert self.preprocessing is not None
        planes: NDArray[np.float32] = preprocess(self.reference[None], self.preprocessing.without_time())
        return planes

    @property
    def halo(self) -> int:
        """Frames that a batch has before and after those it registers."""
        return 0 if self.preprocessing is None else self.preprocessing.halo

    def check_planes(self, planes: NDArray[np.float32] | None) -> None:
        """Raise ValueError where a batch is preprocessed twice or not at all."""
        if (planes is None) == (self.preprocessing is None):
            raise ValueError("a batch needs either the job's preprocessing or planes of its own")
