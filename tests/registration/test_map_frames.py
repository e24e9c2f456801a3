"""fg.map_frames over arrays and files: results of a plain loop, and what it says where it cannot."""

import doctest
import errno
import importlib
import multiprocessing
import os
import signal
import threading

import h5py
import numpy as np
import pytest
import tifffile

import flowreg_gpu as fg
from flowreg_gpu.io import ArrayReader, TiffReader
from flowreg_gpu.io.reserved import ReservedFileWriter
from tests.programs import held_blocks, named_blocks, run_program

RNG = np.random.default_rng(4)
STACK = RNG.integers(0, 60000, (37, 9, 5)).astype(np.uint16)


@pytest.fixture(autouse=True)
def _nothing_left():
    yield
    assert multiprocessing.active_children() == []
    assert held_blocks() == set()


def darkest_row(frame):
    return np.sort(frame, axis=0)[0]


def total(frame):
    return float(frame.sum())


def halved(frame):
    return frame[::2, ::2].astype(np.float32) / 2


def inverted(frame):
    return np.iinfo(frame.dtype).max - frame


def dimensions(frame):
    return np.array(frame.shape)


def shape_changes(frame):
    return frame[: int(frame.flat[0]) + 1]


def writes(frame):
    frame[...] = 0
    return frame


def nothing(frame):
    pass


def objects(frame):
    return np.array([None, 1])


def hangs(frame):
    threading.Event().wait()


def dies(frame):
    os._exit(7)


def fails_at_20(frame):
    if frame.flat[0] == 20:
        raise KeyError("twenty")
    return frame


def expected(func, stack=STACK):
    return np.stack([func(frame) for frame in stack])


def numbered(n_frames=40, dtype=np.uint8):
    return np.arange(n_frames, dtype=dtype)[:, None, None] * np.ones((1, 4, 6), dtype)


@pytest.mark.parametrize("n_workers", [1, 2, 3, None])
def test_equals_a_plain_loop(n_workers):
    stack = STACK[::-1, :, ::2]
    original, calls = stack.copy(), []
    rows = fg.map_frames(darkest_row, stack, n_workers=n_workers, progress=calls.append)
    np.testing.assert_array_equal(rows, expected(darkest_row, stack))
    assert rows.dtype == np.uint16
    assert sum(calls) == 37
    np.testing.assert_array_equal(stack, original)


@pytest.mark.parametrize("func", [halved, inverted, total, np.median, darkest_row])
@pytest.mark.parametrize("chunk", [None, 5])
def test_shape_and_dtype_of_results(func, chunk):
    found = fg.map_frames(func, STACK, n_workers=2, chunk=chunk)
    np.testing.assert_array_equal(found, expected(func))
    assert found.dtype == expected(func).dtype


def test_lists_and_numbers():
    np.testing.assert_array_equal(fg.map_frames(total, [[[1, 2]], [[3, 4]], [[5, 6]]], n_workers=2), [3.0, 7.0, 11.0])
    np.testing.assert_array_equal(fg.map_frames(np.sqrt, [4.0, 9.0], n_workers=1), [2.0, 3.0])
    np.testing.assert_array_equal(fg.map_frames(np.negative, np.array([4, 9], ">i4"), n_workers=1), [-4, -9])


def count_calls(frame):
    """The number of calls in this process."""
    count_calls.number = getattr(count_calls, "number", 0) + 1
    return np.float64(count_calls.number)


def test_dtype_and_shape_save_a_call():
    assert fg.map_frames(count_calls, STACK[:3], n_workers=1)[0] == 2
    assert fg.map_frames(count_calls, STACK[:3], n_workers=1, dtype=np.float64, shape=())[0] == 1
    assert fg.map_frames(count_calls, STACK[:3], out=np.zeros(3), n_workers=1)[0] == 1
    assert fg.map_frames(darkest_row, STACK, n_workers=1, dtype="float32").dtype == np.float32
    assert fg.map_frames(darkest_row, STACK, n_workers=1, dtype="uint16", shape=5).shape == (37, 5)
    assert not hasattr(count_calls, "number")  # func is called in workers only


# Sources


class Dataset:
    """What can be sliced, in the thread that made it."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.thread = array, array.shape, array.dtype, threading.get_ident()
        self.longest = 0

    def __getitem__(self, item):
        assert threading.get_ident() == self.thread
        self.longest = max(self.longest, len(self.array[item]))
        return self.array[item]

    def __setitem__(self, item, value):
        assert threading.get_ident() == self.thread
        self.array[item] = value


def test_datasets_are_read_and_written_in_parts():
    stack, out = Dataset(STACK), Dataset(np.zeros_like(STACK))
    assert fg.map_frames(inverted, stack, out, n_workers=2, chunk=3) is out
    np.testing.assert_array_equal(out.array, inverted(STACK))
    assert stack.longest == 3


def test_hdf5(tmp_path):
    with h5py.File(tmp_path / "movie.h5", "w") as file:
        file["raw"] = STACK
        clean = file.create_dataset("clean", STACK.shape, "uint16", chunks=(1, 9, 5))
        fg.map_frames(inverted, file["raw"], clean, n_workers=2)
        np.testing.assert_array_equal(clean[:], inverted(STACK))


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_memory_maps(tmp_path, mode):
    np.save(tmp_path / "movie.npy", STACK)
    stack = np.load(tmp_path / "movie.npy", mmap_mode=mode)
    if mode == "c":
        stack[3] = 7  # never in the file
    out = np.lib.format.open_memmap(tmp_path / "out.npy", "w+", np.uint16, STACK.shape)
    fg.map_frames(inverted, stack, out, n_workers=2, chunk=2)
    np.testing.assert_array_equal(out, inverted(stack))
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), inverted(stack))
    assert (stack[3] == 7).all() == (mode == "c")


def test_in_place():
    stack = STACK.copy()
    assert fg.map_frames(inverted, stack, out=stack, n_workers=2, chunk=1) is stack
    np.testing.assert_array_equal(stack, inverted(STACK))


def test_files_and_readers_with_and_without_channels(tmp_path):
    tifffile.imwrite(tmp_path / "one.tif", STACK, photometric="minisblack")
    tifffile.imwrite(tmp_path / "two.tif", STACK[:, None].repeat(2, 1), imagej=True, metadata={"axes": "TCYX"})
    np.save(tmp_path / "four.npy", STACK[..., None])
    for source, shape in [
        (tmp_path / "one.tif", [9, 5]),
        (str(tmp_path / "two.tif"), [9, 5, 2]),
        (tmp_path / "four.npy", [9, 5, 1]),
        (ArrayReader(STACK), [9, 5]),
        (ArrayReader(STACK[..., None]), [9, 5, 1]),
    ]:
        found = fg.map_frames(dimensions, source, n_workers=1)
        np.testing.assert_array_equal(found, [shape] * 37)
    parts = [tmp_path / "one.tif", tmp_path / "one.tif"]
    np.testing.assert_array_equal(fg.map_frames(total, parts, n_workers=2), np.tile(expected(total), 2))


# Files


def test_tiff_to_tiff_keeps_axes_and_metadata(tmp_path):
    movie = STACK[:, None].repeat(2, 1)
    source, target = tmp_path / "in.tif", tmp_path / "out.tif"
    tifffile.imwrite(source, movie, imagej=True, resolution=(2.5, 2.5), metadata={"axes": "TCYX", "unit": "um"})
    assert fg.map_frames(inverted, source, target, n_workers=2) is target
    np.testing.assert_array_equal(tifffile.imread(target), inverted(movie))
    with tifffile.TiffFile(source) as before, tifffile.TiffFile(target) as after:
        assert after.series[0].axes == before.series[0].axes == "TCYX"
        assert after.imagej_metadata["unit"] == "um"
        assert after.pages[0].tags["XResolution"].value == before.pages[0].tags["XResolution"].value


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32])
@pytest.mark.parametrize("size", [(9, 5), (4, 2)])
def test_results_of_another_kind_into_tiff(tmp_path, dtype, size):
    source, target = tmp_path / "in.tif", tmp_path / "out.tif"
    tifffile.imwrite(source, STACK, imagej=True, metadata={"axes": "TYX"})
    shape = (slice(None), slice(size[0]), slice(size[1]))
    fg.map_frames(Convert(dtype, size), source, target, n_workers=2)
    found = tifffile.imread(target)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, (STACK[shape] // 256).astype(dtype))


class Convert:
    def __init__(self, dtype, size):
        self.dtype, self.size = dtype, size

    def __call__(self, frame):
        return (frame[: self.size[0], : self.size[1]] // 256).astype(self.dtype)


@pytest.mark.parametrize("func", [total, darkest_row, halved, inverted])
def test_results_of_any_shape_into_npy(tmp_path, func):
    fg.map_frames(func, STACK, tmp_path / "out.npy", n_workers=2, chunk=3)
    found = np.load(tmp_path / "out.npy")
    np.testing.assert_array_equal(found, expected(func))
    assert found.dtype == expected(func).dtype


@pytest.mark.parametrize("name", ["out.tif", "out.npy"])
def test_nothing_is_replaced_unless_asked_for(tmp_path, name):
    (tmp_path / name).write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        fg.map_frames(dies, STACK, tmp_path / name)
    assert (tmp_path / name).read_bytes() == b"precious"
    fg.map_frames(inverted, STACK, tmp_path / name, n_workers=1, overwrite=True)
    found = np.load(tmp_path / name) if name.endswith("npy") else tifffile.imread(tmp_path / name)
    np.testing.assert_array_equal(found, inverted(STACK))


def test_output_paths_are_checked_before_any_work(tmp_path):
    tifffile.imwrite(tmp_path / "in.tif", STACK)
    np.save(tmp_path / "in.npy", STACK)
    for source, target, error, match in [
        (STACK, "out.png", ValueError, r"extension '\.png', expected \.tif, \.tiff or \.npy"),
        (STACK, "nowhere/out.tif", FileNotFoundError, "nowhere"),
        (tmp_path / "in.tif", "in.tif", ValueError, "is the input"),
        (tmp_path / "in.npy", "in.npy", ValueError, "is the input"),
    ]:
        with pytest.raises(error, match=match):
            fg.map_frames(dies, source, tmp_path / target, overwrite=True)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "in.tif"), STACK)
    assert {path.name for path in tmp_path.iterdir()} == {"in.tif", "in.npy"}


def test_results_that_a_tiff_file_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match="float64 is not supported"):
        fg.map_frames(np.sqrt, STACK.astype(float), tmp_path / "out.tif", n_workers=1)
    with pytest.raises(ValueError, match=r"shape \(5,\) are no frames"):
        fg.map_frames(darkest_row, STACK, tmp_path / "out.tif", n_workers=1)
    assert list(tmp_path.iterdir()) == []


# Failures


@pytest.mark.parametrize("name", ["out.tif", "out.npy"])
def test_finished_frames_of_a_failed_run_are_kept(tmp_path, name):
    with (
        pytest.warns(RuntimeWarning, match="20 of 40 frames were finished and are kept"),
        pytest.raises(KeyError, match="frame 20: 'twenty'"),
    ):
        fg.map_frames(fails_at_20, numbered(), tmp_path / name, n_workers=2, chunk=1)
    (kept,) = tmp_path.iterdir()
    assert kept.name == name.replace(".", ".partial.")
    found = np.load(kept) if name.endswith("npy") else tifffile.imread(kept)
    np.testing.assert_array_equal(found[:20], numbered()[:20])
    assert not found[20:].any()


def test_an_array_has_the_frames_before_a_failure():
    out = np.full((40, 4, 6), 99, np.uint8)
    with pytest.raises(KeyError, match="frame 20"):
        fg.map_frames(fails_at_20, numbered(), out, n_workers=2, chunk=1)
    np.testing.assert_array_equal(out[:20], numbered()[:20])
    assert (out[20:] == 99).all()


def test_an_interrupt_keeps_finished_frames(tmp_path):
    finished = []

    def interrupt(count):
        finished.append(count)
        if sum(finished) >= 10:
            raise KeyboardInterrupt

    with (
        pytest.warns(RuntimeWarning, match="of 40 frames were finished and are kept"),
        pytest.raises(KeyboardInterrupt),
    ):
        fg.map_frames(inverted, numbered(), tmp_path / "out.npy", n_workers=1, chunk=1, progress=interrupt)
    (kept,) = tmp_path.iterdir()
    np.testing.assert_array_equal(np.load(kept)[:9], inverted(numbered())[:9])


def test_a_full_disk(tmp_path, monkeypatch):
    written = []

    def write(self, offset, slab):
        written.append(offset)
        if len(written) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(self, offset, slab)

    whole = ReservedFileWriter._write_bytes
    monkeypatch.setattr(ReservedFileWriter, "_write_bytes", write)
    with (
        pytest.warns(RuntimeWarning, match="3 of 40 frames were finished and are kept"),
        pytest.raises(OSError, match="No space left"),
    ):
        fg.map_frames(inverted, numbered(), tmp_path / "out.tif", n_workers=2, chunk=1)
    assert len(written) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial.tif"]


def test_an_input_that_ends_early(tmp_path):
    tifffile.imwrite(tmp_path / "in.tif", numbered(dtype=np.uint16), photometric="minisblack")
    with TiffReader(tmp_path / "in.tif") as reader:
        os.truncate(tmp_path / "in.tif", 40 * 48 // 2)
        with pytest.raises(OSError, match="bytes early"):
            fg.map_frames(inverted, reader, n_workers=1, chunk=1)


SCRIPT = """
import os, signal, sys
import numpy as np
import flowreg_gpu as fg

def stop(finished):
    os.killpg(0, getattr(signal, sys.argv[1]))  # the group: this process and the worker
    while True:
        signal.pause()

if __name__ == "__main__":
    print(os.getpid(), flush=True)
    fg.map_frames(np.negative, np.ones((400, 64, 64), np.int16), "out.npy", n_workers=1, chunk=1, progress=stop)
"""


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_to_the_group_leaves_no_process_and_no_memory(tmp_path, name):
    """The program comes back: its workers, which inherit its output, have ended. The partial file is the user's."""
    (tmp_path / "script.py").write_text(SCRIPT)
    done = run_program("script.py", name, folder=tmp_path)
    assert done.returncode == -getattr(signal, name)
    assert named_blocks(done.stdout.strip()) == []
    assert done.stderr.count("Traceback") == (name == "SIGINT")
    assert ("frames were finished and are kept" in done.stderr) == (name == "SIGINT")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.partial.npy", "script.py"]
    with pytest.raises(FileExistsError, match="overwrite=True"):
        fg.map_frames(inverted, STACK, tmp_path / "out.npy")
    fg.map_frames(inverted, STACK, tmp_path / "out.npy", n_workers=1, overwrite=True)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), inverted(STACK))


@pytest.mark.parametrize("known", [{}, {"dtype": "uint8", "shape": (4, 6)}])
def test_a_frame_that_hangs(known):
    with pytest.raises(TimeoutError, match=r"frame 0: not finished after 0\.3 s"):
        fg.map_frames(hangs, numbered(1), n_workers=1, timeout=0.3, **known)


def test_a_worker_that_dies():
    with pytest.raises(RuntimeError, match=r"exit code=7 while it handled frame 0 .*a smaller chunk") as caught:
        fg.map_frames(dies, STACK, n_workers=2)
    assert "executor" not in str(caught.value)
    assert "batch" not in str(caught.value)


@pytest.mark.parametrize("known", [{}, {"dtype": "uint16", "shape": (9, 5)}])
@pytest.mark.parametrize(
    ("func", "error", "match"),
    [
        (nothing, TypeError, "frame 0: func returned None, expected an array"),
        (objects, TypeError, "frame 0: func returned Python objects"),
        (writes, ValueError, "frame 0: .*read-only"),
    ],
)
def test_functions_that_cannot_be_right(func, error, match, known):
    with pytest.raises(error, match=match):
        fg.map_frames(func, STACK, n_workers=1, **known)


def test_results_that_do_not_fit():
    with pytest.raises(ValueError, match=r"frame 1: func returned shape \(2,\), expected \(1,\)"):
        fg.map_frames(shape_changes, np.arange(2.0)[:, None] * np.ones(3), n_workers=1)
    integers = np.full((37, 5), 9, "uint8")
    with pytest.raises(TypeError, match="frame 0: func returned float64, which cannot become uint8"):
        fg.map_frames(darkest_row, STACK.astype(float), out=integers, n_workers=1)
    assert (integers == 9).all()
    with pytest.raises(ValueError, match=r"frame 0: func returned shape \(5,\), expected \(1, 5\)"):
        fg.map_frames(darkest_row, STACK, out=np.zeros((37, 1, 5)), n_workers=1)


@pytest.mark.parametrize(
    ("stack", "keywords", "error", "match"),
    [
        (np.zeros((0, 4, 4)), {}, ValueError, r"\(0, 4, 4\)"),
        (3.0, {}, ValueError, r"\(\)"),
        (STACK, {"out": np.zeros(3)}, ValueError, r"\(3,\).*37 frames"),
        (STACK, {"out": 3}, TypeError, "out is int"),
        (STACK, {"out": STACK[::-1]}, ValueError, "share memory"),
        (STACK, {"out": np.zeros((37, 5)), "shape": (4,)}, ValueError, r"\(37, 5\).*\(4,\)"),
        (STACK, {"out": np.zeros((37, 5)), "dtype": "uint8"}, ValueError, "float64.*uint8"),
        (STACK, {"out": np.broadcast_to(np.zeros(5), (37, 5))}, ValueError, "read-only"),
        (STACK, {"n_workers": 0}, ValueError, "n_workers=0"),
        (STACK, {"chunk": 0}, ValueError, "chunk=0"),
        (STACK, {"timeout": 0}, ValueError, "timeout=0"),
        (STACK, {"timeout": float("nan")}, ValueError, "timeout=nan"),
        (STACK, {"shape": (-1,)}, ValueError, r"shape=\(-1,\)"),
        (np.ma.masked_less(STACK, 30000), {}, ValueError, "masked"),
        (np.array([None, 1]), {}, TypeError, "Python objects"),
        ("nowhere.tif", {}, FileNotFoundError, "nowhere"),
    ],
)
def test_refusals(stack, keywords, error, match):
    with pytest.raises(error, match=match):
        fg.map_frames(dies, stack, **keywords)


def test_functions_that_cannot_be_sent():
    with pytest.raises(TypeError, match="importable"):
        fg.map_frames(lambda frame: frame, STACK, n_workers=1)
    with pytest.raises(TypeError, match="func=3 is not callable"):
        fg.map_frames(3, STACK)


def test_examples_run():
    failed, attempted = doctest.testmod(importlib.import_module("flowreg_gpu.registration.map_frames"))
    assert failed == 0
    assert attempted > 0
