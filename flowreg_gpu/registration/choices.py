"""What was chosen by the recording before a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from flowreg_gpu.options import Options
from flowreg_gpu.registration.jumps import AlignmentChoice
from flowreg_gpu.registration.tuning import AlphaChoice, Unseen

__all__ = ["Choices", "ReferenceChoice"]


@dataclasses.dataclass(frozen=True)
class ReferenceChoice:
    """Frames that were chosen for the reference.

    Attributes
    ----------
    frames : tuple of int
        In rising order.
    """

    frames: tuple[int, ...]

    def __str__(self) -> str:
        count = len(self.frames)
        return f"reference: {count} frame{'s' * (count > 1)} chosen from {self.frames[0]} to {self.frames[-1]}"


@dataclasses.dataclass(frozen=True)
class Choices:
    """What was chosen by the recording, and measured on it, before the run; None where it was not asked for.

    Attributes
    ----------
    alpha : AlphaChoice or None
    unseen : Unseen or None
    alignment : AlignmentChoice or None
    reference : ReferenceChoice or None
    """

    alpha: AlphaChoice | None = None
    unseen: Unseen | None = None
    alignment: AlignmentChoice | None = None
    reference: ReferenceChoice | None = None

    def options(self, options: Options) -> Options:
        """The options with what was chosen in the place of 'auto'."""
        chosen: dict[str, Any] = {}
        if self.alpha is not None and options.is_auto("alpha"):
            chosen["alpha"] = self.alpha.alpha
        if self.alignment is not None and options.is_auto("cc_initialization"):
            chosen["cc_initialization"] = self.alignment.aligned
        return options.replace(**chosen)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Choices:
        """From what `to_dict` made, also by way of JSON."""
        kinds = {"alpha": AlphaChoice, "unseen": Unseen, "alignment": AlignmentChoice, "reference": ReferenceChoice}
        chosen: dict[str, Any] = {name: values[name] for name in kinds if values[name] is not None}
        return cls(
            **{
                name: kinds[name](**{field: _tuples(value) for field, value in fields.items()})
                for name, fields in chosen.items()
            }
        )


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
