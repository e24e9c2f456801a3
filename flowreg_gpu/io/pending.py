"""Files that appear under their names only when they are complete."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Sequence
from types import TracebackType

from flowreg_gpu.io.base import PathLike

__all__ = ["PendingFile", "check_output", "partial_name"]


def partial_name(path: PathLike) -> str:
    """Where the finished frames of a run that failed are kept: ``.partial`` before the extension."""
    stem, extension = os.path.splitext(os.path.abspath(path))
    return f"{stem}.partial{extension}"


def check_output(path: PathLike, inputs: Sequence[PathLike] = (), overwrite: bool = True) -> None:
    """Raise if `path` cannot take an output, before any work is done.

    Raises
    ------
    FileNotFoundError
        The folder does not exist.
    PermissionError
        The folder takes no new file.
    IsADirectoryError
        `path` is a folder.
    ValueError
        `path` is one of `inputs`, directly or through a link.
    FileExistsError
        There is a file of that name, and `overwrite` is False.
    """
    for source in inputs:
        same_name = os.path.realpath(source) == os.path.realpath(path)
        if same_name or (os.path.exists(source) and os.path.exists(path) and os.path.samefile(source, path)):
            raise ValueError(f"output {os.fspath(path)!r} is the input {os.fspath(source)!r}; choose another name")
    if not overwrite and os.path.exists(path):
        raise FileExistsError(
            f"output {os.fspath(path)!r} exists; overwrite=True (--overwrite) replaces it, another name keeps it"
        )
    PendingFile(path).discard()


class PendingFile:
    """A file that appears under its name only when it is complete; as a context manager, when the block ends well.

    Until then it is a hidden file with a random suffix in the same folder, so that the final rename stays within one
    file system and replaces an older output in one step.

    Parameters
    ----------
    path : str or path-like
        Final name.
    n_bytes : int
        Size the file will have, compared with the free space of the disk.

    Raises
    ------
    FileNotFoundError, PermissionError, IsADirectoryError
        The folder does not exist, takes no new file, or `path` is a folder.
    OSError
        ``errno.ENOSPC``: the file would not fit.
    """

    def __init__(self, path: PathLike, n_bytes: int = 0) -> None:
        self.final_path = os.path.abspath(path)
        folder, name = os.path.split(self.final_path)
        if not os.path.isdir(folder):
            raise FileNotFoundError(errno.ENOENT, "the folder of the output does not exist", folder)
        if os.path.isdir(self.final_path):
            raise IsADirectoryError(errno.EISDIR, "the output is a folder, expected a file name", self.final_path)
        free = shutil.disk_usage(folder).free
        if n_bytes > free:
            problem = f"the output needs {n_bytes} bytes, the disk has {free} bytes free"
            raise OSError(errno.ENOSPC, problem, self.final_path)
        # 180 characters keep the hidden name within the 255 bytes most file systems allow.
        self.path = os.path.join(folder, f".{name[:180]}.{os.getpid()}-{secrets.token_hex(4)}.part")
        # Access bits say nothing to root and on network disks: only creating the file tells.
        try:
            with open(self.path, "xb"):
                pass
        except PermissionError:
            raise PermissionError(errno.EACCES, "the folder of the output takes no new file", folder) from None

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
        """Rename to the final name, replacing an older file."""
        os.replace(self.path, self.final_path)

    def discard(self) -> None:
        """Remove the file if it is still there."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
