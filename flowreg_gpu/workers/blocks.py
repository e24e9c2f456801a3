"""Blocks of shared memory, which last as long as an array refers to them."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import secrets
import sys
from multiprocessing.shared_memory import SharedMemory
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["ArrayPlace", "Block", "new_block", "unlink_block"]


class Block(NamedTuple):
    """A block of shared memory, mapped in this process."""

    memory: SharedMemory  # closed: for its name and unlink()
    mapping: mmap.mmap


class ArrayPlace(NamedTuple):
    """Where another process finds an array: its block, shape and dtype."""

    name: str
    block: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def attach(self) -> NDArray[Any]:
        """The array, in this process."""
        if sys.version_info >= (3, 13):
            memory = SharedMemory(self.block, track=False)
        else:
            # Registers the block once more, with the tracker that this process shares with the parent. There names
            # are a set, so that the parent's unlink() clears it, being called when no worker attaches.
            memory = SharedMemory(self.block)
        try:
            array: NDArray[Any] = np.ndarray(self.shape, self.dtype, _mapping(memory))
            return array
        finally:
            memory.close()


def _mapping(memory: SharedMemory) -> mmap.mmap:
    """Map the block anew, for as long as an array refers to the mapping.

    Under an array on `SharedMemory.buf`, close() either fails (BufferError) or unmaps what the array reads.
    """
    if sys.platform == "win32":
        return mmap.mmap(-1, memory.size, tagname=memory.name)
    return mmap.mmap(memory._fd, memory.size)  # type: ignore[attr-defined]


def new_block(name: str, size: int) -> Block:
    """Make a block of `size` bytes for the array `name`; RuntimeError where there is too little shared memory."""
    # a name that tells whose it is; macOS allows 30 characters
    memory = SharedMemory(f"flowreg_{os.getpid()}_{secrets.token_hex(4)}", create=True, size=max(size, 1))
    try:
        _reserve(memory, name)
        return Block(memory, _mapping(memory))
    except BaseException:
        memory.unlink()
        raise
    finally:
        memory.close()


def _reserve(memory: SharedMemory, name: str) -> None:
    """Take the pages now: with /dev/shm full, a later write would end the process (SIGBUS)."""
    if not hasattr(os, "posix_fallocate"):  # macOS and Windows: no file system, so no size of its own
        return
    fd = memory._fd  # type: ignore[attr-defined]
    space = os.fstatvfs(fd)
    free = space.f_bavail * space.f_frsize
    try:
        os.posix_fallocate(fd, 0, memory.size)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL) and memory.size <= free:
            return  # a file system that cannot reserve
        raise RuntimeError(
            f"shared memory for {name!r}: {memory.size / 2**20:.1f} MB needed, {free / 2**20:.1f} MB free "
            f'({error.strerror}); try a smaller batch or executor="threading"'
        ) from error


def unlink_block(block: Block) -> None:
    """Remove the block's name; its memory goes with the last mapping."""
    with contextlib.suppress(FileNotFoundError):  # removed by someone else
        block.memory.unlink()
