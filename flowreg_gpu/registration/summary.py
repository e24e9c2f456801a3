"""What a registration did: counts, times and the statistics of every frame."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.engine.batch import STATISTICS
from flowreg_gpu.options import Options
from flowreg_gpu.quality.measures import FlowMap, Quality
from flowreg_gpu.quality.residual import share_from_reference
from flowreg_gpu.quality.verdict import FLAGS, Verdict, flagged_frames, judge, list_frames
from flowreg_gpu.registration.choices import Choices
from flowreg_gpu.registration.scan_offset import NO_OFFSET, ScanOffset
from flowreg_gpu.registration.verification import Verification

__all__ = ["COLUMNS", "Summary"]

#: Columns of the statistics of a recording: those of its batches, 1 where the frame is bad, and 1 where it was
#: registered once more.
COLUMNS = (*STATISTICS, "bad", "realigned")


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a registration did.

    Attributes
    ----------
    n_frames : int
    seconds : float
        Wall-clock time from the first frame read to the last written.
    executor : str
        Name of the executor that did the work.
    reference : (H, W, C) float32
        The raw reference used.
    statistics : dict of str to (T,) float64 or bool
        mean_disp, max_disp, mean_translation in pixels, mean_div in pixels per pixel; correlation_before and
        correlation_after with the raw reference. The flags `constant`, `diverged` and `bad` are bool, and `realigned`:
        frames that were found to jump in the run, and were registered once more with rigid alignment.
    constant_frames, diverged_frames, nonfinite_pixels : int
        Frames without any structure, and frames whose flow left the frame: somewhere the absolute value of u was the
        width of the frame or more, that of v its height or more, or it was not finite (zero flow both); and NaN or
        infinite pixels (taken from the reference).
    verification : Verification or None
        Comparison with the CPU, where it was asked for.
    resumed_at : int
        Frames that an earlier run had finished, where this one went on with it.
    changed_inputs : tuple of str
        Files that were changed while they were read: the output may mix old and new frames.
    scan_offset : ScanOffset
        Displacement of odd lines, which were moved back; its `pixels` are 0 where there is none.
    hot_pixels : (K, 3) int
        Row, column and channel of the hot and dead pixels that were found.
    choices : Choices
        What was chosen by the recording, and the correlation of pixels that the flow has not seen.
    options : Options or None
        Of the run, with what was chosen in the place of 'auto'; None where frames were only warped.
    field : FlowMap or None
        The flow of the recording per pixel, where it was measured.
    quality : Quality or None
        Measures of some frames before and after; None where nothing was written, or they cannot be read again.
    """

    n_frames: int
    seconds: float
    executor: str
    reference: NDArray[np.float32]
    statistics: dict[str, NDArray[Any]]
    constant_frames: int
    diverged_frames: int
    nonfinite_pixels: int
    verification: Verification | None = None
    resumed_at: int = 0
    changed_inputs: tuple[str, ...] = ()
    choices: Choices = dataclasses.field(default_factory=Choices)
    scan_offset: ScanOffset = NO_OFFSET
    hot_pixels: NDArray[np.intp] = dataclasses.field(default_factory=lambda: np.empty((0, 3), np.intp))
    options: Options | None = None
    quality: Quality | None = None
    field: FlowMap | None = None

    @property
    def valid(self) -> NDArray[np.bool_] | None:
        """Pixels (H, W) that every frame covers; others show the reference in some frames. None if not measured."""
        return None if self.field is None else self.field.valid

    @property
    def from_reference(self) -> float | None:
        """Part of the registered pixels that lay outside their frames and are the reference's; None if not measured."""
        if self.field is None or not self.field.count:
            return None
        return share_from_reference(self.field.outside, self.field.count)

    @property
    def verdict(self) -> Verdict | None:
        """Better, unchanged or worse, and why; None where no frame was compared."""
        unseen, quality = self.choices.unseen, self.quality
        if unseen is not None:
            gains: Sequence[float] = unseen.gains
        elif quality is not None:
            gains = quality.gains
        else:
            return None
        return judge(
            gains,
            self.statistics,
            seen=unseen is None,
            quality=quality,
            alpha_given=self.choices.alpha is None,
            aligned=self.options is not None and self.options.prealigns,
        )

    @property
    def frames_per_second(self) -> float:
        """Frames registered by this run per second of wall-clock time."""
        return (self.n_frames - self.resumed_at) / max(self.seconds, 1e-9)

    @property
    def reference_frames(self) -> tuple[int, ...] | None:
        """Numbers of the frames that were chosen for the reference; None where it was not left to the recording."""
        return None if self.choices.reference is None else self.choices.reference.frames

    @property
    def bad_frames(self) -> NDArray[np.intp]:
        """Numbers of the frames that show no image, or only a part of it, or that the caller named."""
        return np.flatnonzero(self.statistics["bad"])

    @property
    def realigned_frames(self) -> NDArray[np.intp]:
        """Numbers of the frames that jump, and were registered once more with rigid alignment."""
        return np.flatnonzero(self.statistics["realigned"])

    @property
    def flagged(self) -> NDArray[np.bool_]:
        """Frames (T,) with any flag in `statistics`: their flow is zero, and the means in `str` leave them out."""
        return flagged_frames(self.statistics, self.n_frames)

    def to_dict(self) -> dict[str, Any]:
        """What the run did, as JSON can hold it; the statistics of the frames by their means over those not flagged."""
        used = {name: values[~self.flagged] for name, values in self.statistics.items() if values.dtype.kind == "f"}
        verdict = self.verdict
        return {
            "frames": self.n_frames,
            "seconds": self.seconds,
            "frames_per_second": self.frames_per_second,
            "executor": self.executor,
            "resumed_at": self.resumed_at,
            "verdict": None if verdict is None else dataclasses.asdict(verdict),
            "quality": None if self.quality is None else self.quality.to_dict(),
            "means": {name: float(values.mean()) if len(values) else None for name, values in used.items()},
            "largest_displacement": float(used["max_disp"].max(initial=0)),
            "bad_frames": self.bad_frames.tolist(),
            "realigned_frames": self.realigned_frames.tolist(),
            "constant_frames": self.constant_frames,
            "diverged_frames": self.diverged_frames,
            "nonfinite_pixels": self.nonfinite_pixels,
            "hot_pixels": len(self.hot_pixels),
            "scan_offset": float(self.scan_offset.pixels),
            "covered": None if self.valid is None else float(self.valid.mean()),
            "choices": self.choices.to_dict(),
            "options": None if self.options is None else self.options.to_dict(),
            "verification": None if self.verification is None else dataclasses.asdict(self.verification),
            "changed_inputs": list(self.changed_inputs),
        }

    def __str__(self) -> str:
        went_on = f", after {self.resumed_at} of an earlier run" if self.resumed_at else ""
        lines = [
            f"{self.n_frames - self.resumed_at} frames in {self.seconds:.1f} s "
            f"({self.frames_per_second:.1f} frames/s, {self.executor}){went_on}",
        ]
        used = {name: values[~self.flagged] for name, values in self.statistics.items()}
        if len(used["mean_disp"]):
            lines += [
                f"displacement: mean {used['mean_disp'].mean():.2f} px, largest {used['max_disp'].max():.2f} px",
                str(self.choices.unseen)
                if self.choices.unseen
                else f"correlation with the reference: {used['correlation_before'].mean():.4f} before, "
                f"{used['correlation_after'].mean():.4f} after",
            ]
        lines[1:1] = [str(choice) for choice in (self.choices.reference, self.choices.alpha) if choice is not None]
        if self.choices.alignment is not None and self.choices.alignment.aligned:
            lines.append(str(self.choices.alignment))
        if len(self.realigned_frames):
            numbers = list_frames(self.realigned_frames)
            lines.append(f"frames that jump, aligned rigidly: {len(self.realigned_frames)} ({numbers})")
        if self.scan_offset.pixels:
            lines.append(str(self.scan_offset))
        if len(self.hot_pixels):
            lines.append(f"hot or dead pixels, replaced in what the flow sees: {len(self.hot_pixels)}")
        if len(self.bad_frames):
            lines.append(f"bad frames, left as they were: {len(self.bad_frames)} ({list_frames(self.bad_frames)})")
        if self.constant_frames:
            lines.append(f"constant frames, left as they were: {self.constant_frames}")
        if self.diverged_frames:
            lines.append(f"frames whose flow diverged, left as they were: {self.diverged_frames}")
        if self.nonfinite_pixels:
            lines.append(f"NaN or infinite pixels, taken from the reference: {self.nonfinite_pixels}")
        verdict = self.verdict
        if verdict is not None:
            lines.append(str(verdict))
        if self.verification is not None:
            lines.append(str(self.verification))
        return "\n".join(lines)

    @classmethod
    def from_statistics(
        cls,
        statistics: NDArray[np.float64],
        *,
        seconds: float,
        executor: str,
        reference: NDArray[np.float32],
        nonfinite_pixels: int,
        verification: Verification | None,
        resumed_at: int = 0,
        choices: Choices | None = None,
        hot_pixels: NDArray[np.intp] | None = None,
        scan_offset: ScanOffset = NO_OFFSET,
        options: Options | None = None,
        field: FlowMap | None = None,
    ) -> Summary:
        """Summary of frames with the statistics (T, 12) of `COLUMNS`; a RuntimeWarning names what went wrong."""
        columns: dict[str, NDArray[Any]] = dict(zip(COLUMNS, statistics.T, strict=True))
        columns |= {name: columns[name] != 0 for name in (*FLAGS, "realigned")}
        constant, diverged = (int(np.count_nonzero(columns[name])) for name in ("constant", "diverged"))
        bad = np.flatnonzero(columns["bad"])
        problems = {
            f"bad frames ({list_frames(bad)}) are left as they are": len(bad),
            "constant frames have no structure": int(np.count_nonzero(columns["constant"] & ~columns["bad"])),
            "frames have a flow that leaves the frame (are there pixels far above the reference's?)": diverged,
        }
        for problem, count in problems.items():
            if count:
                warnings.warn(f"{count} {problem}: their flow is zero", RuntimeWarning, stacklevel=4)
        if verification is not None and not verification.passed:
            warnings.warn(f"the result is not the CPU's: {verification}", RuntimeWarning, stacklevel=4)
        return cls(
            len(statistics),
            seconds,
            executor,
            reference,
            columns,
            constant,
            diverged,
            nonfinite_pixels,
            verification,
            resumed_at,
            choices=choices or Choices(),
            scan_offset=scan_offset,
            hot_pixels=np.empty((0, 3), np.intp) if hot_pixels is None else hot_pixels,
            options=options,
            field=field,
        )
