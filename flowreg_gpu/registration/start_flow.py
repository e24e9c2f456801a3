"""Where the flow of each frame starts from, so that large motion is found and nothing depends on the batch."""

from __future__ import annotations

import dataclasses

from flowreg_gpu.options import Options

__all__ = ["FIRST_FLOWS", "StartFlow"]

# Flows averaged for the first start flow, and at the end of a window for the next one. Both are what Flow-Registration
# uses: enough of them to average out noise, few enough to follow a drift.
FIRST_FLOWS, LAST_FLOWS = 22, 20


@dataclasses.dataclass(frozen=True)
class StartFlow:
    """Policy of the start flows: all frames of a window share one.

    Parameters
    ----------
    window : int
        Frames of a window.
    first : int
        The first window starts from the mean flow of so many frames at its beginning, which are registered from zero
        beforehand. 0: from zero.
    last : int
        Every other window starts from the mean of the last so many flows of the window before. 0: from the first start
        flow.
    """

    window: int
    first: int
    last: int

    @classmethod
    def from_options(cls, options: Options) -> StartFlow:
        """The policy that `buffer_size` and `update_initialization_w` ask for."""
        return cls(options.buffer_size, FIRST_FLOWS, LAST_FLOWS if options.update_initialization_w else 0)

    def windows(self, n_frames: int) -> list[range]:
        """Frames of every window of a recording."""
        return [range(begin, min(begin + self.window, n_frames)) for begin in range(0, n_frames, self.window)]

    def first_frames(self, n_frames: int) -> range:
        """Frames that are registered beforehand, for the first start flow."""
        return range(min(self.first, self.window, n_frames))
