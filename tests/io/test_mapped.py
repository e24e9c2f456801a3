"""Pages of memory maps are given back, and their contents stay."""

import mmap
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from flowreg_gpu.io.mapped import release_pages

SIZE = 64 * mmap.PAGESIZE


@pytest.fixture
def path(tmp_path):
    np.arange(SIZE, dtype=np.uint32).astype(np.uint8).tofile(tmp_path / "frames.raw")
    return tmp_path / "frames.raw"


def resident(path):
    """Bytes of a mapped file that count as this process's memory."""
    entries = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.M)
    (entry,) = (entry for entry in entries if str(path) in entry)
    return int(re.search(r"^Rss:\s+(\d+) kB", entry, flags=re.M)[1]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/smaps")
@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize(("first", "stop"), [(0, SIZE // 2), (SIZE // 4 + 3, 3 * SIZE // 4 - 5)])
def test_memory_of_a_part_is_given_back(path, mode, first, stop):
    array = np.memmap(path, np.uint8, mode, shape=(SIZE,))
    expected = array.copy()
    if mode == "r+":
        array[:] = expected = expected[::-1]
    assert resident(path) == SIZE
    release_pages(array[first:stop])
    assert resident(path) <= SIZE // 2 + 2 * mmap.PAGESIZE
    np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("offset", [0, 5, mmap.ALLOCATIONGRANULARITY, mmap.ALLOCATIONGRANULARITY + 7])
def test_an_array_that_begins_within_the_file(path, offset):
    array = np.memmap(path, np.uint8, "r", offset=offset, shape=(SIZE // 8, 2))
    expected = array.copy()
    release_pages(array)
    release_pages(array[3:9])
    release_pages(array[3:3])
    np.testing.assert_array_equal(array, expected)


def test_changes_that_are_not_to_reach_the_file_stay(path):
    array = np.memmap(path, np.uint8, "c")
    array[:] = 7
    release_pages(array)
    assert (array == 7).all()


def test_other_arrays(path):
    plain = np.ones(SIZE, np.uint8)
    release_pages(plain)
    every_other = np.memmap(path, np.uint8, "r")[::2]
    release_pages(every_other)
    in_memory = np.memmap(path, np.uint8, "r") + np.uint8(0)  # a memmap by its type alone
    release_pages(in_memory)
    assert (plain == 1).all()
    np.testing.assert_array_equal(in_memory, np.memmap(path, np.uint8, "r"))
