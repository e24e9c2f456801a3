"""Frames of a run registered once more on the CPU, to see that the device computed what it should."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.engine.batch import Batch, BatchResult
from flowreg_gpu.engine.job import Job
from flowreg_gpu.executors import SequentialExecutor

__all__ = ["Verification", "Verifier", "spread_frames"]

# Two backends of this model that round differently agree this well, in pixels (algorithm of Flow-Registration).
MEDIAN_LIMIT, PERCENTILE_LIMIT = 0.001, 0.03


@dataclasses.dataclass(frozen=True)
class Verification:
    """How a run's flow and frames compare with the CPU's.

    Attributes
    ----------
    frames : tuple of int
        The frames compared.
    median, percentile_99 : float
        Of the length of the flow difference over all their pixels, in pixels.
    equal : float
        Share of registered values that are the same.
    """

    frames: tuple[int, ...]
    median: float
    percentile_99: float
    equal: float

    @property
    def passed(self) -> bool:
        """Whether the flows agree as closely as two backends should."""
        return self.median <= MEDIAN_LIMIT and self.percentile_99 <= PERCENTILE_LIMIT

    def __str__(self) -> str:
        return (
            f"verified on the CPU: {len(self.frames)} frames, flow difference median {self.median:.2g} px, "
            f"99th percentile {self.percentile_99:.2g} px; {100 * self.equal:.3f} % of the registered values equal"
        )


def spread_frames(n_frames: int, count: int) -> list[int]:
    """`count` different frames from the first to the last."""
    return [round(k * (n_frames - 1) / max(count - 1, 1)) for k in range(count)]


class Verifier:
    """Registers chosen frames on the CPU beside a run.

    Parameters
    ----------
    job : Job
    frames : sequence of int
        Numbers of the frames in the recording.
    """

    def __init__(self, job: Job, frames: Sequence[int]) -> None:
        self._frames = tuple(frames)
        self._halo = job.halo
        self._executor = SequentialExecutor()
        self._executor.start_recording(job)
        self._compared: list[int] = []
        self._differences: list[NDArray[np.float32]] = []
        self._equal: list[float] = []

    def compare(self, first: int, frames: NDArray[Any], start: NDArray[np.float32], result: BatchResult) -> None:
        """Register the chosen ones among a batch that begins with frame `first`, with its start flow."""
        assert result.flow is not None
        count = len(result.registered)
        for index in (number - first for number in self._frames if first <= number < first + count):
            own = self._executor.register_batch(Batch(frames[index : index + 2 * self._halo + 1], start, self._halo))
            assert own.flow is not None
            difference = (result.flow[index] - own.flow[0]).reshape(-1, 2)
            self._compared.append(first + index)
            self._differences.append(np.hypot(difference[:, 0], difference[:, 1]))
            self._equal.append(float(np.mean(result.registered[index] == own.registered[0])))

    def summary(self) -> Verification | None:
        """What was found; None where an earlier run had finished all chosen frames."""
        if not self._compared:
            return None
        median, percentile = np.percentile(np.concatenate(self._differences), (50, 99))
        return Verification(tuple(self._compared), float(median), float(percentile), float(np.mean(self._equal)))
