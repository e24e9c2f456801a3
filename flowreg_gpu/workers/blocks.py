"""Blocks of shared memory, which last as long as a process maps them or holds their descriptor.

A block has no name that processes could leave behind when they are killed: workers get its file descriptor through
their pipe. On Linux it is memory of its own (memfd), which the size of /dev/shm does not limit: containers often have
64 MB there. Where Python or the system has no memfd, a block has a name for the moment in which it is made.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import re
import secrets
import sys
from multiprocessing import reduction
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ArrayPlace",
    "Block",
    "SharedMemoryError",
    "attach_arrays",
    "free_shared_memory",
    "leftover_blocks",
    "new_block",
    "remove_leftover_blocks",
    "send_block",
]

_FOLDER = Path("/dev/shm")  # where Linux lists named blocks
_NAME = re.compile(r"flowreg_(\d+)_[0-9a-f]{8}")  # the process that made a block, and a random number


class SharedMemoryError(RuntimeError):
    """There is too little shared memory."""


class Block:
    """A block of shared memory, mapped in this process.

    Attributes
    ----------
    mapping : mmap
        Arrays that refer to it keep the memory.
    fd : int
        For the workers; -1 on Windows, where they find the block by its tag.
    tag : str
    """

    def __init__(self, mapping: mmap.mmap, fd: int = -1, tag: str = "") -> None:
        self.mapping, self.fd, self.tag = mapping, fd, tag

    def close(self) -> None:
        """Close the descriptor; the memory goes with the last mapping."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class ArrayPlace(NamedTuple):
    """Where another process finds an array: its name, shape and dtype, and size and tag of its block."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    size: int
    tag: str


def send_block(connection: Connection[Any, Any], pid: int | None, block: Block) -> None:
    """Send a block's descriptor to the worker that reads its `ArrayPlace` from the same pipe.

    Raises
    ------
    OSError
        The worker has closed its pipe, or is dead.
    """
    if sys.platform != "win32":
        try:
            reduction.send_handle(connection, block.fd, pid)
        except RuntimeError as error:  # macOS waits for an answer, and a dead worker gives none
            raise BrokenPipeError(errno.EPIPE, str(error)) from error


def attach_arrays(connection: Connection[Any, Any], places: list[ArrayPlace]) -> dict[str, NDArray[Any]]:
    """The arrays by name, in the process that has read the places, whose descriptors follow in the pipe."""
    if sys.platform == "win32":
        mappings = [mmap.mmap(-1, place.size, tagname=place.tag) for place in places]
    else:
        descriptors = [reduction.recv_handle(connection) for _ in places]  # all, before anything can fail
        try:
            mappings = [mmap.mmap(fd, place.size) for fd, place in zip(descriptors, places, strict=True)]
        finally:
            for fd in descriptors:
                os.close(fd)
    return {
        place.name: np.ndarray(place.shape, place.dtype, mapping)
        for place, mapping in zip(places, mappings, strict=True)
    }


def new_block(name: str, size: int) -> Block:
    """Make a block of `size` bytes for the array `name`; SharedMemoryError where there is too little shared memory."""
    size = max(size, 1)
    tag = f"flowreg_{os.getpid()}_{secrets.token_hex(4)}"  # macOS allows 30 characters
    if sys.platform == "win32":
        return Block(mmap.mmap(-1, size, tagname=tag), tag=tag)
    fd = _memory_file(tag, size)
    try:
        _reserve(fd, name, size)
        return Block(mmap.mmap(fd, size), fd)
    except BaseException:
        os.close(fd)
        raise


def _memory_file(tag: str, size: int) -> int:
    """Descriptor of `size` bytes of memory without a name."""
    if hasattr(os, "memfd_create"):
        with contextlib.suppress(OSError):  # the system has none, or does not allow it
            fd = os.memfd_create(tag)
            os.ftruncate(fd, size)  # takes no memory, so that it does not fail
            return fd
    memory = SharedMemory(tag, create=True, size=size)
    try:
        return os.dup(memory._fd)  # type: ignore[attr-defined]
    finally:
        with contextlib.suppress(FileNotFoundError):  # removed by someone else
            memory.unlink()
        memory.close()


def _reserve(fd: int, name: str, size: int) -> None:
    """Take the pages now: with shared memory full, a later write would end the process (SIGBUS)."""
    if not hasattr(os, "posix_fallocate"):  # macOS: no file system, so no size of its own
        return
    free = _free_bytes(fd)
    try:
        if size > free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
            return  # a file system that cannot reserve
        needed = f"{size / 2**20:.1f} MB needed, {free / 2**20:.1f} MB free"
        raise SharedMemoryError(f"shared memory for {name!r}: {needed} ({error.strerror})") from error


def _free_bytes(fd: int) -> int:
    """Bytes free where a block lies: of its file system or, where that has no limit, of the machine's memory."""
    with contextlib.suppress(OSError, StopIteration):
        space = os.fstatvfs(fd)
        if space.f_blocks:
            return space.f_bavail * space.f_frsize
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(available.split()[1]) * 1024
    return sys.maxsize


def free_shared_memory() -> int:
    """Bytes that blocks could still take; `sys.maxsize` where only the system knows."""
    if sys.platform == "win32":
        return sys.maxsize
    fd = _memory_file(f"flowreg_{os.getpid()}_{secrets.token_hex(4)}", 1)
    try:
        return _free_bytes(fd)
    finally:
        os.close(fd)


def leftover_blocks() -> list[str]:
    """Names of this user's blocks in /dev/shm whose processes are dead; none on systems that do not list them.

    Only a process that was killed just as it made a block without memfd leaves one. A block
    in use has no name that could be found here.
    """
    if sys.platform != "linux" or not _FOLDER.is_dir():
        return []
    found = ((match, path) for path in _FOLDER.iterdir() if (match := _NAME.fullmatch(path.name)))
    return sorted(path.name for match, path in found if _is_own(path) and not _is_alive(int(match[1])))


def remove_leftover_blocks() -> list[str]:
    """Remove the blocks that `leftover_blocks` finds, and return their names."""
    names = leftover_blocks()
    for name in names:
        with contextlib.suppress(FileNotFoundError):  # removed by someone else
            (_FOLDER / name).unlink()
    return names


def _is_own(path: Path) -> bool:
    try:
        return path.lstat().st_uid == os.getuid()
    except FileNotFoundError:
        return False


def _is_alive(pid: int) -> bool:
    """Whether there is a process of that number, be it another one by now: its blocks are left alone."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
