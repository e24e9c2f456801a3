"""Damaged files are refused with an error that says so, or read; none crashes, hangs, or takes all memory."""

import subprocess

import numpy as np
import pytest
import tifffile

from flowreg_gpu.io import FlowOrigin, TiffReader, open_flow_reader, open_flow_writer
from tests.io import fuzz
from tests.io.tiff.layouts import TYX, by_pages, pixels
from tests.programs import LIMIT, run_program

h5py = pytest.importorskip("h5py")
pytest.importorskip("resource", reason="limits the memory of a program")

NORMAL, LONG = range(1000), range(1000, 21000)


@pytest.mark.parametrize("mutants", [NORMAL, pytest.param(LONG, marks=pytest.mark.slow)], ids=len)
def test_damaged_files(mutants, tmp_path):
    """Bytes changed, cut, repeated, and taken from other files, in files of all layouts and of flows."""
    command = ["-m", "tests.io.fuzz", tmp_path, mutants.start, mutants.stop]
    try:
        done = run_program(*command)
    except subprocess.TimeoutExpired:
        pytest.fail(f"mutant {(tmp_path / 'current').read_text()} was not read within {LIMIT} s")
    assert done.returncode == 0, f"mutant {(tmp_path / 'current').read_text()}: {done.stderr}"
    *problems, summary = done.stdout.splitlines()
    assert problems == []
    count, read = (int(word) for word in summary.split() if word.isdecimal())
    assert count == len(mutants)
    assert 0.2 * count < read < 0.8 * count  # otherwise it would not tell much


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    return fuzz.make_seeds(tmp_path_factory.mktemp("seeds"))


def test_a_number_is_a_mutant(seeds):
    """The same one in every run, so that one that was found can be made again; and no two are alike."""
    mutants = [fuzz.mutate(np.random.default_rng(number), seeds) for number in (3, 3, *range(50))]
    assert mutants[0][1:] == mutants[1][1:]
    assert len({content for *_, content in mutants}) == 50
    assert len({kind for _, kind, _ in mutants}) >= 7
    assert all(seed.content != content for seed, kind, content in mutants if kind == "append")


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (KeyError("T"), "KeyError"),
        (MemoryError(), "MemoryError"),
        (ValueError("something is wrong"), "does not name the file"),
        (np.zeros((1, 16, 17, 2)), "other frames than before"),
    ],
    ids=str,
)
def test_the_run_sees_what_is_wrong(seeds, tmp_path, monkeypatch, answer, problem):
    def read(seed, path):
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(fuzz, "read_mutant", read)
    monkeypatch.setattr(fuzz, "mutate", lambda rng, seeds: (seeds[-1], "truncate", b"anything"))
    assert problem in fuzz.judge(0, seeds, tmp_path)[0]


# What the run has found


def test_a_page_beyond_what_a_system_call_takes(tmp_path):
    by_pages(tmp_path / "in.tif", pixels(TYX), bigtiff=True)
    with open(tmp_path / "in.tif", "r+b") as file:
        file.seek(8)
        file.write((2**63 + 8).to_bytes(8, "little"))
    with pytest.raises(ValueError, match=r"in\.tif: the file is truncated or damaged"):
        TiffReader(tmp_path / "in.tif")


@pytest.mark.parametrize("page", [0, 1, 4])
def test_a_tag_of_another_type(tmp_path, page):
    """tifffile has no words of its own for it: the error names the file all the same."""
    by_pages(tmp_path / "in.tif", pixels(TYX), byteorder=">")
    with tifffile.TiffFile(tmp_path / "in.tif") as tif:
        place = tif.pages[page].tags["BitsPerSample"].offset
    with open(tmp_path / "in.tif", "r+b") as file:
        file.seek(place + 2)
        file.write((2).to_bytes(2, "big"))  # text in the place of a number
    with pytest.raises(ValueError, match=r"in\.tif: "):
        TiffReader(tmp_path / "in.tif")


def flow_file(path):
    flow = np.random.default_rng(0).standard_normal((3, 16, 17, 2)).astype(np.float32)
    with open_flow_writer(path, *flow.shape[:3], FlowOrigin("abc", "cubic", 1)) as writer:
        writer.write(flow)
        writer.write_reference(flow[0, ..., :1])
    return flow


def test_strings_of_variable_length(tmp_path):
    """HDF5 reads them from a heap, and a damaged heap without end: they are not read."""
    flow_file(tmp_path / "flow.h5")
    with h5py.File(tmp_path / "flow.h5", "r+") as file:
        assert file["flow"].attrs.get_id("recording").dtype.kind == "S"
        file["flow"].attrs["interpolation"] = "cubic"
        assert file["flow"].attrs.get_id("interpolation").dtype.kind == "O"
    with pytest.raises(ValueError, match=r"flow\.h5: the attributes of /flow are not strings of a fixed length"):
        open_flow_reader(tmp_path / "flow.h5")


def test_frames_that_cannot_be_unpacked(tmp_path):
    with h5py.File(tmp_path / "flow.h5", "w") as file:
        flow = np.random.default_rng(0).standard_normal((3, 16, 17, 2)).astype(np.float32)
        chunks = file.create_dataset("flow", data=flow, chunks=(1, 16, 17, 2), compression="gzip").id
        place = chunks.get_chunk_info(1).byte_offset
    with open(tmp_path / "flow.h5", "r+b") as file:
        file.seek(place)
        file.write(b"\xff" * 50)
    with open_flow_reader(tmp_path / "flow.h5") as reader:
        np.testing.assert_array_equal(reader.read(0, 1), flow[:1])
        with pytest.raises(OSError, match=r"flow\.h5: /flow cannot be read: "):
            reader.read(1, 3)


def test_reference_of_another_type(tmp_path):
    flow_file(tmp_path / "flow.h5")
    with h5py.File(tmp_path / "flow.h5", "r+") as file:
        del file["reference"]
        file["reference"] = np.zeros((16, 17, 1))
    with pytest.raises(ValueError, match=r"flow\.h5: /reference is \(16, 17, 1\) of float64, expected \(H, W, C\)"):
        open_flow_reader(tmp_path / "flow.h5")
