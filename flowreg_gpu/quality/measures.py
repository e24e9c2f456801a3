"""The measures of a registration, as figures."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BeforeAfter", "FlowMap", "Quality"]


@dataclasses.dataclass(frozen=True, eq=False)
class FlowMap:
    """The flow of a recording per pixel, over the frames that have one.

    Attributes
    ----------
    count : int
        Frames.
    mean : (2, H, W) float32
        Mean of (u, v), pixels.
    deviation : (H, W) float32
        Root mean square of the distance to that mean, pixels.
    outside : (H, W) int
        Frames in which the registered pixel comes from outside the frame.
    """

    count: int
    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]
    outside: NDArray[np.int64]

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Pixels (H, W) that every frame covers."""
        valid: NDArray[np.bool_] = self.outside == 0
        return valid


@dataclasses.dataclass(frozen=True)
class BeforeAfter:
    """A measure of the movie before and after registration."""

    before: float
    after: float


@dataclasses.dataclass(frozen=True, eq=False)
class Quality:
    """How well a movie is registered, by some frames spread over it.

    None of these measures decides alone: a flow that follows noise improves the correlations, and lessens the motion of
    components; one that is too stiff lessens `residual_motion` (docs/quality-control.md). The verdict rests on pixels
    that the flow has not seen (`Unseen`).

    Attributes
    ----------
    frames : (n,) int
        Numbers of the frames.
    mean_before, mean_after : (H, W, C) float32
        Their means.
    correlations_before, correlations_after : (n,) float64
        Of each of them with the mean of the others; see `leave_one_out`.
    crispness : BeforeAfter
        Of their mean; see `flowreg_gpu.quality.crispness`.
    tested, displaced : int, (m,) int
        Frames that were compared with the reference by phase correlation, too, and the numbers of those that have
        jumped by five pixels or more and lie better where they are only moved than where the registration has them.
    from_reference : float or None
        Part of all registered pixels that lay outside the frame and are the reference's; None where it is not known.
    component_motion : BeforeAfter or None
        Largest over principal components of the mean displacement, in pixels, between the frames that have most of a
        component and those that have least; see `principal_extremes`. None where it was not measured.
    residual_motion : (float, float) or None
        Median and 99th percentile, in pixels, of the displacement of registered frames that are registered again at a
        coarse scale. None where it was not measured.
    """

    frames: NDArray[np.intp]
    mean_before: NDArray[np.float32]
    mean_after: NDArray[np.float32]
    correlations_before: NDArray[np.float64]
    correlations_after: NDArray[np.float64]
    crispness: BeforeAfter
    tested: int = 0
    displaced: NDArray[np.intp] = dataclasses.field(default_factory=lambda: np.empty(0, np.intp))
    from_reference: float | None = None
    component_motion: BeforeAfter | None = None
    residual_motion: tuple[float, float] | None = None

    @property
    def leave_one_out(self) -> BeforeAfter:
        """Mean correlation of a frame with the mean of the other ones."""
        return BeforeAfter(float(np.mean(self.correlations_before)), float(np.mean(self.correlations_after)))

    @property
    def gains(self) -> list[float]:
        """What registration adds to the correlation of each frame with the mean of the others."""
        gains: list[float] = (self.correlations_after - self.correlations_before).tolist()
        return gains

    def to_dict(self) -> dict[str, Any]:
        """The figures, as JSON can hold them."""
        pairs = {"leave_one_out": self.leave_one_out, "crispness": self.crispness}
        if self.component_motion is not None:
            pairs["component_motion"] = self.component_motion
        return {
            "frames": len(self.frames),
            **{name: dataclasses.asdict(pair) for name, pair in pairs.items()},
            "tested": self.tested,
            "displaced": self.displaced.tolist(),
            "from_reference": self.from_reference,
            "residual_motion": self.residual_motion,
        }
