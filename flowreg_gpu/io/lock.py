"""Files that one run holds until it closes them or dies."""

from __future__ import annotations

import errno
import os
from typing import BinaryIO

if os.name == "posix":
    import fcntl

__all__ = ["open_held"]


def open_held(path: str, mode: str) -> BinaryIO:
    """Open a file and hold it: no other run can, until this one closes it or its process ends.

    The system forgets the hold of a process that dies, so that a file which can be held belongs to no living run.
    Windows has no such hold (there an open file cannot be renamed), and some network file systems have none: there
    the file is only opened.

    Parameters
    ----------
    path : str
    mode : {'xb', 'r+b'}
        For a new file, and for one that exists.

    Raises
    ------
    BlockingIOError
        Another run holds the file.
    FileExistsError, FileNotFoundError, PermissionError
        As `open`.
    """
    file: BinaryIO = open(path, mode, buffering=0)  # type: ignore[assignment]  # noqa: SIM115 (its owner closes it)
    if os.name != "posix":
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise BlockingIOError(errno.EWOULDBLOCK, "another run is writing this file", path) from None
    except OSError:  # a file system without holds
        return file
    if os.fstat(file.fileno()).st_nlink == 0:  # its run finished between the two calls
        file.close()
        raise FileNotFoundError(errno.ENOENT, "the run that wrote this file has just finished", path)
    return file
