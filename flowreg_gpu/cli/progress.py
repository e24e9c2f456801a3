"""Progress bars on a terminal's standard error."""

from __future__ import annotations

import contextlib
from typing import Any

from tqdm import tqdm

from flowreg_gpu.cli.stop import raise_if_stopped

__all__ = ["ProgressBar"]


class ProgressBar:
    """One bar per stage, with frames per second and the time left.

    Parameters
    ----------
    enabled : bool
        False shows none; else there is one where standard error is a terminal.
    """

    TITLES = {  # noqa: RUF012
        "reference": "building the reference",
        "choices": "choosing alpha",
        "start": "first start flow",
        "frames": "registering",
        "smooth": "smoothing",
    }

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._stage = ""
        self._bar: Any = None

    def __call__(self, stage: str, finished: int, total: int) -> None:
        """Show how many frames of a stage are finished; end the run if a signal came."""
        raise_if_stopped()
        if not self._enabled:
            return
        try:
            self._show(stage, finished, total)
        except OSError:  # the terminal was closed
            self._enabled = False

    def _show(self, stage: str, finished: int, total: int) -> None:
        if stage != self._stage:
            self._close()
            self._stage = stage
            # None: only where standard error is a terminal
            self._bar = tqdm(total=total, desc=self.TITLES[stage], unit="frame", disable=None, initial=finished)
        self._bar.total = total  # it grows while values of an option are tried
        self._bar.update(finished - self._bar.n if not self._bar.disable else 0)

    def _close(self) -> None:
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.close()

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
