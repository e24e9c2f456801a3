"""Files that appear under their names only when they are complete."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Sequence
from types import TracebackType
from typing import BinaryIO

from flowreg_gpu.io.base import PathLike
from flowreg_gpu.io.lock import open_held

__all__ = ["PendingFile", "check_output", "partial_name"]


def partial_name(path: PathLike) -> str:
    """Where a file is written until it is complete: ``.partial`` before the extension."""
    stem, extension = os.path.splitext(os.path.abspath(path))
    return f"{stem}.partial{extension}"


def check_output(path: PathLike, inputs: Sequence[PathLike] = (), *, overwrite: bool = False) -> None:
    """Raise if `path` cannot take an output, before any work is done.

    Raises
    ------
    FileNotFoundError
        The folder does not exist.
    PermissionError
        The folder takes no new file.
    IsADirectoryError
        `path` is a folder.
    FileExistsError
        `path` exists and `overwrite` is False.
    ValueError
        `path` is one of `inputs`, directly or through a link.
    """
    for source in inputs:
        same_name = os.path.realpath(source) == os.path.realpath(path)
        if same_name or (os.path.exists(source) and os.path.exists(path) and os.path.samefile(source, path)):
            raise ValueError(f"output {os.fspath(path)!r} is the input {os.fspath(source)!r}; choose another name")
    final_path = os.path.abspath(path)
    folder = os.path.dirname(final_path)
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, "the folder of the output does not exist", folder)
    if os.path.isdir(final_path):
        raise IsADirectoryError(errno.EISDIR, "the output is a folder, expected a file name", final_path)
    if not overwrite and os.path.lexists(final_path):
        problem = "the output exists; only overwrite=True (--overwrite) replaces it"
        raise FileExistsError(errno.EEXIST, problem, final_path)
    # Access bits say nothing to root and on network disks: only creating a file tells.
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except PermissionError:
        raise PermissionError(errno.EACCES, "the folder of the output takes no new file", folder) from None


class PendingFile:
    """A file that appears under its name only when it is complete; as a context manager, when the block ends well.

    Until then it has the name of `partial_name`, in the same folder, so that the final rename stays within one file
    system and happens in one step. It is held meanwhile (`open_held`): no second run writes it, and the partial file
    of a run that died is told from that of a living one.

    Parameters
    ----------
    path : str or path-like
        Final name.
    n_bytes : int
        Size the file will have, compared with the free space of the disk.
    overwrite : bool
        Whether an older file, and an older partial file, are replaced.
    resume : bool
        Whether to go on with the partial file, which exists.

    Raises
    ------
    FileNotFoundError, PermissionError, IsADirectoryError
        The folder does not exist, takes no new file, or `path` is a folder.
    FileExistsError
        The file or its partial file exists, and `overwrite` is False.
    BlockingIOError
        Another run is writing the partial file.
    OSError
        ``errno.ENOSPC``: the file would not fit.
    """

    def __init__(self, path: PathLike, n_bytes: int = 0, *, overwrite: bool = False, resume: bool = False) -> None:
        check_output(path, overwrite=overwrite)
        self.final_path = os.path.abspath(path)
        self.path = partial_name(path)
        self._overwrite = overwrite
        free = shutil.disk_usage(os.path.dirname(self.path)).free
        if n_bytes > free:
            problem = f"the output needs {n_bytes} bytes, the disk has {free} bytes free"
            raise OSError(errno.ENOSPC, problem, self.final_path)
        self._held: BinaryIO = open_held(self.path, "r+b") if resume else self._new()
        self._pending = True
        if os.name != "posix":
            self._held.close()  # Windows renames no open file

    def _new(self) -> BinaryIO:
        with contextlib.suppress(FileExistsError):
            return open_held(self.path, "xb")
        held = open_held(self.path, "r+b")  # another run's, or left by one that died
        if not self._overwrite:
            held.close()
            problem = "an earlier run left a partial file; remove it, or replace it by overwrite=True (--overwrite)"
            raise FileExistsError(errno.EEXIST, problem, self.path)
        held.truncate(0)
        return held

    def __enter__(self) -> PendingFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.commit()
        finally:
            self.discard()

    def commit(self) -> None:
        """Give the file its final name.

        Raises
        ------
        FileExistsError
            Another file has got that name meanwhile, and `overwrite` is False.
        """
        if self._overwrite:
            os.replace(self.path, self.final_path)
        else:
            _rename_if_free(self.path, self.final_path)
        self._release()

    def take_back(self) -> None:
        """Give the file, which is complete, its partial name again."""
        os.replace(self.final_path, self.path)

    def keep(self) -> str:
        """Leave the partial file for the user, or for a run that goes on with it; its name."""
        self._release()
        return self.path

    def discard(self) -> None:
        """Remove the partial file, unless it was kept or has its final name."""
        if self._pending:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
            self._release()

    def _release(self) -> None:
        self._pending = False
        self._held.close()


def _rename_if_free(path: str, final_path: str) -> None:
    """Rename, unless the new name is taken: POSIX's rename would replace that file."""
    with contextlib.suppress(OSError):  # a file system without links, or the name is taken
        os.link(path, final_path)
        os.unlink(path)
        return
    if os.path.lexists(final_path):
        problem = "a file has got the name of the output meanwhile; only overwrite=True (--overwrite) replaces it"
        raise FileExistsError(errno.EEXIST, problem, final_path)
    os.rename(path, final_path)
