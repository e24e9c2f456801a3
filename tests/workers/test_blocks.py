"""Blocks of shared memory: no names, no SIGBUS, and what processes that are dead have left."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest

from flowreg_gpu.workers import blocks
from flowreg_gpu.workers.blocks import SharedMemoryError, free_shared_memory, leftover_blocks, new_block
from flowreg_gpu.workers.pool import FramePool
from tests.programs import SHM, held_blocks, named_blocks

needs_names = pytest.mark.skipif(sys.platform != "linux" or not SHM.is_dir(), reason="no system that lists blocks")
needs_limit = pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no file system that can be full")


@pytest.fixture(params=["memfd", "shm"], autouse=True)
def _kind(request, monkeypatch):
    """Both kinds of memory, where there are two."""
    if request.param == "shm":
        monkeypatch.delattr(os, "memfd_create", raising=False)


class Negate:
    def prepare(self, arrays):
        pass

    def __call__(self, arrays, index):
        arrays["out"][index] = -arrays["in"][index]


def test_workers_get_the_blocks():
    with FramePool(2) as pool:
        for count in (4, 300):  # the second time in larger blocks, which running workers are sent
            numbers = pool.allocate("in", (count,), "int64")
            negated = pool.allocate("out", (count,), "int64")
            numbers[:] = range(count)
            pool.run(Negate(), range(count))
            np.testing.assert_array_equal(negated, -numbers)


def test_a_block_has_no_name():
    block = new_block("frames", 1000)
    assert named_blocks(os.getpid()) == []
    assert len(block.mapping) == 1000
    block.close()
    block.close()


def test_memory_is_free_after_the_last_array():
    block = new_block("frames", 1000)
    array = np.ndarray((1000,), np.uint8, block.mapping)
    block.close()
    array[:] = 3
    assert (array == 3).all()
    del block, array
    assert held_blocks() == set()


@needs_limit
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOMEM])
def test_pages_are_taken_at_once(monkeypatch, number):
    """With a full file system, a later write would end the process (SIGBUS)."""

    def full(fd, offset, length):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(SharedMemoryError, match=rf"'frames': 2\.0 MB needed, .* \({os.strerror(number)}\)"):
        new_block("frames", 2 * 2**20)
    assert held_blocks() == set()


@needs_limit
def test_more_than_there_is(monkeypatch):
    with pytest.raises(SharedMemoryError, match=r"MB needed, [\d.]+ MB free \(No space left on device\)"):
        new_block("frames", 2 * free_shared_memory())
    assert held_blocks() == set()


def test_a_file_system_that_cannot_reserve(monkeypatch):
    def unsupported(fd, offset, length):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", unsupported, raising=False)
    new_block("frames", 1000).close()


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="no memfd")
def test_memfd_that_is_not_allowed(monkeypatch):
    def forbidden(name):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "memfd_create", forbidden, raising=False)
    block = new_block("frames", 1000)
    assert len(block.mapping) == 1000
    block.close()


@needs_names
def test_leftovers(monkeypatch):
    """Blocks of dead processes are found and removed; those of living ones, of others, and other files are left."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    dead = f"flowreg_{child.pid}_0123abcd"
    spared = [f"flowreg_{os.getpid()}_0123abcd", f"flowreg_{child.pid}_0123abcd.txt", f"flowreg_{child.pid}_0123"]
    try:
        for name in (dead, *spared):
            (SHM / name).write_bytes(b"0")
        assert dead in leftover_blocks()
        assert not set(spared) & set(leftover_blocks())
        with monkeypatch.context() as patch:
            patch.setattr(os, "getuid", lambda: os.lstat(SHM / dead).st_uid + 1)
            assert dead not in leftover_blocks()
        assert dead in blocks.remove_leftover_blocks()
        assert not (SHM / dead).exists()
        assert all((SHM / name).exists() for name in spared)
    finally:
        for name in (dead, *spared):
            (SHM / name).unlink(missing_ok=True)
