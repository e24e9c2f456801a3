"""What a registration has done, in words: better, unchanged or worse, and why."""

from __future__ import annotations

import dataclasses

__all__ = ["Verdict"]


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
