"""What a registration has done, in words: better, unchanged or worse, why, and what to try.

The word rests on pixels that the flow has not seen, in frames spread over the recording: whether registration adds to
their correlation with a reference that these frames have no part in. Whole frames cannot decide: a flow that follows
noise makes them more like any reference. Where only the frames before and after are known, the correlation of each
frame with the mean of the others takes its place, and the verdict says that it can flatter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.quality.measures import Quality

__all__ = ["FLAGS", "Verdict", "flagged_frames", "judge", "list_frames"]

#: Statistics that flag a frame.
FLAGS = ("constant", "diverged", "bad")
# Frames that agree with the mean, at least; so one frame alone cannot carry it.
AGREEING = 2 / 3
# Frames that are lost correlate so much less with the reference than usual, in parts of it and in standard deviations.
LOST, LOST_DEVIATIONS = 0.85, 5.0
# With more of them, a recording is not better, whatever the others are: where a frame is lost, its flow is far off.
MOST_LOST = 0.05
# Below this mean displacement, pixels, nothing has moved that anybody would see.
LEAST_DISPLACEMENT = 0.1
# Frames that correlate so little with the reference before registration, and after it, in parts of their correlation
# with each other, show something else than it.
FOREIGN_BEFORE, FOREIGN_AFTER = 0.3, 0.8
# Where frames alone decide, their correlation grows with any flow; so the mean must be crisper by this factor, too.
CRISPER = 1.02
# Of the registered pixels; with more from the reference, the registered movie shows less than the recording.
MUCH_FROM_REFERENCE = 0.05


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a registration has done to a recording.

    Attributes
    ----------
    word : str
        'better', 'unchanged' or 'worse'.
    reasons : tuple of str
        Sentences: what that rests on, and where measures disagree.
    advice : tuple of str
        Sentences: what was noticed in some frames, and what to try.
    """

    word: str
    reasons: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join([f"verdict: {self.word}", *(f"  {line}" for line in (*self.reasons, *self.advice))])


def judge(
    gains: Sequence[float],
    statistics: Mapping[str, NDArray[Any]],
    *,
    seen: bool = False,
    quality: Quality | None = None,
    alpha_given: bool = False,
    aligned: bool = False,
) -> Verdict:
    """Say what a registration has done.

    Parameters
    ----------
    gains : sequence of float
        What registration adds to the correlation of frames spread over the recording with a reference that they have no
        part in.
    statistics : dict of str to (T,)
        As in `Summary.statistics`; where only files are known, it may be empty.
    seen : bool
        Whether the gains are of pixels that the flow has seen.
    quality : Quality or None
        Measures of frames before and after.
    alpha_given, aligned : bool
        Whether the caller gave `alpha`, and whether frames were aligned rigidly before the flow.
    """
    used = ~flagged_frames(statistics, len(statistics.get("mean_disp", ())))
    sign = _significant(np.asarray(gains, np.float64))
    word = {1: "better", 0: "unchanged", -1: "worse"}[sign]
    reasons = [_gain_in_words(gains, sign, seen)]
    moved = float(statistics["mean_disp"][used].mean()) if used.any() else None
    if word == "worse" and moved is not None and moved < LEAST_DISPLACEMENT:
        word = "unchanged"
        reasons.append(f"The frames are moved by {moved:.2f} px on average, which nobody would see.")
    lost, foreign = _lost_frames(statistics, used), _is_foreign(statistics, used, quality)
    displaced = 0.0 if quality is None or not quality.tested else len(quality.displaced) / quality.tested
    if seen and word == "better" and not _is_crisper(quality):
        word = "unchanged"
        reasons.append("The mean image is not crisper than before, so that this may be noise alone.")
    if foreign:
        word = "worse" if sign >= 0 else word
        reasons.append("The flow bends the frames towards another scene.")
    elif word == "better" and (len(lost) > MOST_LOST * np.count_nonzero(used) or displaced > MOST_LOST):
        word = "unchanged"
        reasons.append("Other frames are not registered at all, so that the recording as a whole is not better.")
    reasons += _disagreement(statistics, used, sign)
    advice = [
        *_advice_on_frames(statistics, lost, quality, aligned),
        *_advice_on_fit(word, sign, alpha_given, foreign),
    ]
    share = 0.0 if quality is None else quality.from_reference or 0.0
    if share > MUCH_FROM_REFERENCE:
        advice.append(
            f"{100 * share:.0f} % of the registered pixels lay outside their frames and are the "
            "reference's: leave them out of the analysis (--crop valid)."
        )
    return Verdict(word, tuple(reasons), tuple(advice))


def list_frames(numbers: NDArray[np.intp], most: int = 10) -> str:
    """Numbers of frames in rising order, runs as 'first-last', at most so many of them: '3, 7-12, 40 and more'."""
    if not len(numbers):
        return ""
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    told = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs[:most])
    return told + (" and more" if len(runs) > most else "")


def flagged_frames(statistics: Mapping[str, NDArray[Any]], n_frames: int) -> NDArray[np.bool_]:
    """Frames (T,) that have no flow of their own, by those of the flags that there are."""
    flagged = np.zeros(n_frames, np.bool_)
    for name in FLAGS:
        if name in statistics:
            flagged |= np.asarray(statistics[name], np.bool_)
    return flagged


def _significant(gains: NDArray[np.float64]) -> int:
    """Whether the gains are above (1) or below zero (-1), and most frames agree; 0 where chance could be it.

    By Student's t or by the signed ranks (Wilcoxon 1945), of which the former sees small and alike gains, the latter
    gains of different size; both at the level of 5 %. 2 + 8 / (n - 1)^2 is close to the quantile of t.
    """
    n = len(gains)
    if n < 2:
        return 0
    sign = int(np.sign(gains.mean()))
    certain = abs(gains.mean()) > (2 + 8 / (n - 1) ** 2) * gains.std(ddof=1) / np.sqrt(n)
    if n >= 6:
        ranks = np.argsort(np.argsort(np.abs(gains))) + 1
        certain |= sign * (np.sign(gains) * ranks).sum() > 2 * np.sqrt(n * (n + 1) * (2 * n + 1) / 6)
    return sign if certain and np.count_nonzero(np.sign(gains) == sign) >= AGREEING * n else 0


def _gain_in_words(gains: Sequence[float], sign: int, seen: bool) -> str:
    if len(gains) < 2:
        return "Too few frames could be compared to tell."
    where = (
        "Frames correlate {} with the mean of the other frames (which can flatter: the flow has seen these pixels)"
        if seen
        else "Pixels that the flow did not see correlate {} with the reference"
    )
    how = {1: "better", 0: "neither clearly better nor worse", -1: "worse"}[sign]
    better = int(np.count_nonzero(np.asarray(gains) > 0))
    return f"{where.format(how)}: {np.mean(gains):+.4f} on average, better in {better} of {len(gains)} frames."


def _lost_frames(statistics: Mapping[str, NDArray[Any]], used: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Numbers of the frames that correlate far less with the reference than usual, also after registration."""
    if np.count_nonzero(used) < 5 or "correlation_after" not in statistics:
        return np.empty(0, np.intp)
    after = statistics["correlation_after"]
    usual = np.median(after[used])
    deviation = 1.4826 * np.median(np.abs(after[used] - usual))
    return np.flatnonzero(used & (after < LOST * usual) & (after < usual - LOST_DEVIATIONS * deviation))


def _is_foreign(statistics: Mapping[str, NDArray[Any]], used: NDArray[np.bool_], quality: Quality | None) -> bool:
    """Whether the frames agree with each other, but not with the reference."""
    if quality is None or not used.any():
        return False
    before, after = (statistics[f"correlation_{name}"][used].mean() for name in ("before", "after"))
    own = quality.leave_one_out
    return bool(before < FOREIGN_BEFORE * own.before and after < FOREIGN_AFTER * own.after)


def _is_crisper(quality: Quality | None) -> bool:
    """Whether the mean image has become clearly crisper."""
    return quality is not None and quality.crispness.after > CRISPER * quality.crispness.before


def _disagreement(statistics: Mapping[str, NDArray[Any]], used: NDArray[np.bool_], sign: int) -> Iterator[str]:
    """Where whole frames say something else than pixels that the flow has not seen."""
    if not used.any():
        return
    before, after = (float(statistics[f"correlation_{name}"][used].mean()) for name in ("before", "after"))
    if sign < 0 and after > before:
        yield (
            f"Whole frames correlate better with the reference ({before:.4f} before, {after:.4f} after): "
            "the flow bends their noise towards it, which is no motion."
        )
    elif sign > 0 and after < before:
        yield (
            f"Whole frames correlate less with the reference ({before:.4f} before, {after:.4f} after): were they part "
            "of it where they lay?"
        )


def _advice_on_frames(
    statistics: Mapping[str, NDArray[Any]], lost: NDArray[np.intp], quality: Quality | None, aligned: bool
) -> Iterator[str]:
    if quality is not None and len(quality.displaced):
        yield (
            f"{len(quality.displaced)} of {quality.tested} frames that were tested have jumped, and are not registered "
            f"({list_frames(quality.displaced)}): cc_initialization=True (--cc-initialization true) aligns them first."
        )
    elif len(lost):
        cure = (
            "they may have left the plane, or the reference"
            if aligned
            else "if they jump, cc_initialization=True (--cc-initialization true) aligns them first"
        )
        yield f"{_frames(lost)}: far less correlation with the reference than the others have; {cure}."
    if "bad" in statistics and statistics["bad"].any():
        bad = _frames(np.flatnonzero(statistics["bad"]))
        yield f"{bad}: no image, or a part of one only. Left as they were."
    if "diverged" in statistics and statistics["diverged"].any():
        diverged = _frames(np.flatnonzero(statistics["diverged"]))
        yield f"{diverged}: the flow left the frame. Left as they were; try a larger alpha, or another reference."


def _frames(numbers: NDArray[np.intp]) -> str:
    one = len(numbers) == 1
    return f"Frame{'' if one else 's'} {list_frames(numbers)}" + ("" if one else f" ({len(numbers)} frames)")


def _advice_on_fit(word: str, sign: int, alpha_given: bool, foreign: bool) -> Iterator[str]:
    if foreign:
        yield (
            "The frames are like each other, but not like the reference: it may show another field of view, or frames "
            'in motion. Try reference="auto" (--reference auto).'
        )
    elif sign < 0 and alpha_given:
        yield 'The flow follows noise: leave the smoothness to the recording, alpha="auto" (--alpha auto).'
    elif word == "worse":
        yield "Leave this recording as it was, or average frames in time first: sigma (--sigma)."
    elif word == "unchanged" and sign <= 0:
        yield "If the recording shows no motion when it is played, nothing needs to be done."
