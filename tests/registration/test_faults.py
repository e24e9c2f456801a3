"""Faults of the table in docs/dev/testing.md that have no better place: devices, pages, functions, sizes, one CPU."""

import os

import numpy as np
import pytest
import tifffile

import flowreg_gpu as fg
from flowreg_gpu.cuda.device import DeviceMemoryError
from tests.emulation import EmulatedDevice
from tests.movies import recording
from tests.programs import run_program

FAST = {"alpha": 4, "levels": 3, "min_level": 1}


# Devices


class ShortOfMemory(EmulatedDevice):
    """Has no memory for one of the allocations, in device memory or in pinned memory of the host."""

    def __init__(self, failing=None):
        self.allocations, self.failing = 0, failing
        super().__init__()

    def _count(self):
        self.allocations += 1
        if self.allocations - 1 == self.failing:
            raise DeviceMemoryError("no memory left")

    def empty(self, shape, dtype):
        self._count()
        return super().empty(shape, dtype)

    def pinned(self, shape, dtype):
        self._count()
        return super().pinned(shape, dtype)


def on_device(movie, failing=None):
    device = ShortOfMemory(failing)
    executor = fg.GPUExecutor(1, device=device, batch=2, fallback=False)
    return device, fg.register(movie.frames, movie.truth, executor, **FAST)


@pytest.mark.filterwarnings("ignore:.*frames do not fit into the memory")
@pytest.mark.filterwarnings("ignore:.*going on without a CUDA graph")
def test_no_memory_at_every_allocation_in_turn():
    """The batch is begun again with fewer frames; where nothing can be given up, one error says so."""
    movie = recording(5, 26, 31)
    device, expected = on_device(movie)
    outcomes = set()
    for failing in range(device.allocations):
        try:
            _, result = on_device(movie, failing)
        except RuntimeError as error:
            outcomes.add(str(error))
            continue
        for array, other in zip(result, expected, strict=True):
            np.testing.assert_array_equal(array, other)
        outcomes.add("equal")
    assert outcomes == {"executor='gpu' cannot be used: no memory left", "equal"}


# Pages


@pytest.fixture
def folder(tmp_path):
    movie = recording(9, 26, 31)
    tifffile.imwrite(
        tmp_path / "in.tif", movie.frames, compression="zlib", photometric="minisblack", metadata={"axes": "TYX"}
    )
    return tmp_path


def test_a_corrupt_compressed_page(folder):
    """Frames before it are kept; the error names file and page; when the page is whole again, the run goes on."""
    path = folder / "in.tif"
    whole, stamp = path.read_bytes(), os.stat(path)
    with tifffile.TiffFile(path) as tif:
        offset = tif.pages[7].dataoffsets[0]
    path.write_bytes(whole[: offset + 20] + bytes(40) + whole[offset + 60 :])
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    how = {"executor": "sequential", "reference": recording(9, 26, 31).truth, "batch": 3, **FAST, "buffer_size": 4}
    with (
        pytest.warns(RuntimeWarning, match="7 of 9 frames"),
        pytest.raises(ValueError, match=r"in\.tif: page 7 cannot"),
    ):
        fg.register_file(path, folder / "out.tif", **how)
    path.write_bytes(whole)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    fg.register_file(path, folder / "out.tif", resume=True, **how)
    fg.register_file(path, folder / "whole.tif", **how)
    assert (folder / "out.tif").read_bytes() == (folder / "whole.tif").read_bytes()


def test_a_page_of_another_shape(tmp_path):
    with tifffile.TiffWriter(tmp_path / "in.tif") as tif:
        for k in range(6):
            tif.write(recording(1, 26, 31 + (k == 4)).frames[0], photometric="minisblack", metadata=None)
    with pytest.raises(ValueError, match=r"in\.tif.*"):
        fg.register_file(tmp_path / "in.tif", tmp_path / "out.tif", "sequential", **FAST)
    assert os.listdir(tmp_path) == ["in.tif"]


# Sizes


def test_one_frame(tmp_path):
    tifffile.imwrite(tmp_path / "in.tif", recording(1, 26, 31).frames, photometric="minisblack")
    with pytest.raises(ValueError, match="the recording has 1 frame, expected at least 2"):
        fg.register_file(tmp_path / "in.tif", tmp_path / "out.tif", "sequential", **FAST)
    assert os.listdir(tmp_path) == ["in.tif"]


def test_ten_thousand_tiny_frames(tmp_path):
    frames = np.tile(recording(8, 16, 16).frames, (1250, 1, 1))
    tifffile.imwrite(tmp_path / "in.tif", frames, photometric="minisblack", metadata={"axes": "TYX"})
    summary = fg.register_file(
        tmp_path / "in.tif", tmp_path / "out.tif", "threading", frames[0], quality="fast", alpha=4
    )
    assert summary.n_frames == 10_000
    assert tifffile.imread(tmp_path / "out.tif").shape == frames.shape


# Programs


def test_one_cpu_development_mode_and_warnings_as_errors(compiled, tmp_path):
    """Workers too: they inherit the flags."""
    frames = recording(6, 26, 31).frames
    tifffile.imwrite(tmp_path / "in.tif", frames, photometric="minisblack", metadata={"axes": "TYX"})
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\n"
        "import flowreg_gpu as fg\n"
        "if __name__ == '__main__':\n"
        "    if hasattr(os, 'sched_setaffinity'):\n"
        "        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
        "    for name in ('multiprocessing', 'threading'):\n"
        "        files = 'in.tif', name + '.tif', name, range(3), name + '.h5'\n"
        "        fg.register_file(*files, alpha=4, levels=3, min_level=1)\n"
    )
    done = run_program("-X", "dev", "-W", "error", "program.py", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for end in (".tif", ".h5"):
        assert (tmp_path / f"threading{end}").read_bytes() == (tmp_path / f"multiprocessing{end}").read_bytes()
