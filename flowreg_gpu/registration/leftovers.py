"""What runs that died have left in a folder: partial outputs with their journals."""

from __future__ import annotations

import contextlib
import os
from typing import NamedTuple

from flowreg_gpu.io import PathLike, partial_name
from flowreg_gpu.registration.files import statistics_name
from flowreg_gpu.registration.journal import JOURNAL_EXTENSION, Journal, JournalError

__all__ = ["Leftover", "find_leftovers", "remove_leftover"]


class Leftover(NamedTuple):
    """What one run has left.

    Parameters
    ----------
    journal : str
    files : tuple of str
        Partial files that are still there.
    finished, n_frames : int
        Frames in them, and of the recording.
    n_bytes : int
        On the disk, of all that.
    """

    journal: str
    files: tuple[str, ...]
    finished: int
    n_frames: int
    n_bytes: int


def find_leftovers(folder: PathLike) -> tuple[list[Leftover], list[str]]:
    """What dead runs have left in a folder, and a line about every journal that is to be left alone.

    Raises
    ------
    NotADirectoryError, FileNotFoundError, PermissionError
        The folder cannot be read.
    """
    leftovers, left_alone = [], []
    with os.scandir(folder) as entries:
        paths = sorted(os.path.abspath(entry.path) for entry in entries if entry.name.endswith(JOURNAL_EXTENSION))
    for path in paths:
        try:
            journal = Journal.open(path)
        except BlockingIOError:
            left_alone.append(f"{path!r}: its run is alive")
        except (JournalError, OSError) as error:
            left_alone.append(str(error))
        else:
            leftovers.append(_leftover(journal))
            journal.close()
    return leftovers, left_alone


def _leftover(journal: Journal) -> Leftover:
    finals = [final for final, _ in journal.header["outputs"]]
    files = [partial_name(final) for final in (*finals, statistics_name(finals[0]))]
    files = [path for path in files if os.path.exists(path)]
    # outputs are sparse where no frame was written yet
    n_bytes = sum(getattr(os.stat(path), "st_blocks", 0) * 512 for path in (*files, journal.path))
    finished = journal.checkpoint.finished if journal.checkpoint else 0
    return Leftover(journal.path, tuple(files), finished, journal.header["shape"][0], n_bytes)


def remove_leftover(leftover: Leftover) -> None:
    """Remove the partial files of a dead run, then its journal.

    Raises
    ------
    BlockingIOError
        A run has gone on with them meanwhile.
    """
    journal = Journal.open(leftover.journal)  # held, so that no run goes on with it now
    for path in leftover.files:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    journal.remove()
