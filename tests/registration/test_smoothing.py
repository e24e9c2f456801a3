"""fg.smooth_file: files against SciPy, executors against each other, and what is left when it fails."""

import errno

import numpy as np
import pytest
import tifffile
from scipy.ndimage import gaussian_filter

import flowreg_gpu as fg
from flowreg_gpu.cuda.device import DeviceError
from flowreg_gpu.executors import gpu_status
from flowreg_gpu.io.reserved import ReservedFileWriter
from flowreg_gpu.registration.smoothing import FileSmoothing
from tests.emulation import EmulatedDevice

SIGMA = (1.2, 0.8, 0.5)
MOVIE = np.random.default_rng(6).integers(0, 4000, (11, 2, 17, 23)).astype(np.uint16)

needs_no_gpu = pytest.mark.skipif(gpu_status().usable, reason="a GPU is usable, there is nothing to fall back from")


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.tif"
    tifffile.imwrite(path, MOVIE, imagej=True, resolution=(2.5, 2.5), metadata={"axes": "TCYX", "unit": "um"})
    return path


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("expected")
    tifffile.imwrite(folder / "in.tif", MOVIE, imagej=True, metadata={"axes": "TCYX"})
    fg.smooth_file(folder / "in.tif", folder / "out.tif", SIGMA, "sequential")
    return tifffile.imread(folder / "out.tif")


def test_equals_scipy(expected):
    filtered = gaussian_filter(MOVIE.astype(float), (SIGMA[2], 0, *SIGMA[:2]), mode="reflect", truncate=4)
    assert expected.dtype == np.uint16
    np.testing.assert_allclose(expected, filtered, rtol=0, atol=0.501)


@pytest.mark.parametrize("batch", [None, 1, 4])
@pytest.mark.parametrize("executor", ["auto", "threading", "sequential", "device"])
def test_executor_and_batch_do_not_matter(source, tmp_path, expected, executor, batch):
    calls = []
    chosen = EmulatedDevice() if executor == "device" else executor
    with FileSmoothing(source, tmp_path / "out.tif", SIGMA, chosen, batch=batch, n_workers=2) as work:
        work.run(lambda *call: calls.append(call))
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif"), expected)
    assert calls[-1] == ("smooth", 11, 11)
    assert len(calls) == -(-11 // (batch or 11))


def test_axes_and_metadata_are_kept(source, tmp_path):
    fg.smooth_file(source, tmp_path / "out.tif")
    with tifffile.TiffFile(source) as before, tifffile.TiffFile(tmp_path / "out.tif") as after:
        assert after.series[0].axes == before.series[0].axes == "TCYX"
        assert after.imagej_metadata["unit"] == "um"
        assert after.pages[0].tags["XResolution"].value == before.pages[0].tags["XResolution"].value


def test_sigma_of_each_channel(source, tmp_path):
    fg.smooth_file(source, tmp_path / "out.tif", [(0, 0, 0), SIGMA])
    fg.smooth_file(source, tmp_path / "both.tif", SIGMA)
    found, both = tifffile.imread(tmp_path / "out.tif"), tifffile.imread(tmp_path / "both.tif")
    np.testing.assert_array_equal(found[:, 0], MOVIE[:, 0])
    np.testing.assert_array_equal(found[:, 1], both[:, 1])


def test_a_single_frame_and_a_long_filter_in_time(tmp_path):
    tifffile.imwrite(tmp_path / "one.tif", MOVIE[0, 0], photometric="minisblack")
    fg.smooth_file(tmp_path / "one.tif", tmp_path / "out.tif", (0, 0, 2))
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif"), MOVIE[0, 0])


@needs_no_gpu
def test_without_a_gpu(source, tmp_path, expected):
    with pytest.warns(RuntimeWarning, match=r"the GPU cannot be used \(.+\); using threads"):
        fg.smooth_file(source, tmp_path / "out.tif", SIGMA, "gpu")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif"), expected)


class BreaksDown(EmulatedDevice):
    """Fails at its eighth launch."""

    def kernel(self, file, expression):
        if sum(self.launches.values()) >= 8:
            raise DeviceError("the device has fallen off the bus")
        return super().kernel(file, expression)


def test_a_device_that_fails_in_the_middle(source, tmp_path, expected):
    work = FileSmoothing(source, tmp_path / "out.tif", SIGMA, BreaksDown(), batch=2)
    with pytest.warns(RuntimeWarning, match="off the bus.*going on with threads"), work:
        work.run()
    assert work.backend.startswith("CPU")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif"), expected)


@pytest.mark.parametrize(
    ("keywords", "error", "match"),
    [
        ({"sigma": (1, 1)}, ValueError, r"sigma has shape \(2,\)"),
        ({"sigma": (-1, 1, 0)}, ValueError, "sigma=.*-1"),
        ({"sigma": [(1, 1, 0)] * 3}, ValueError, "3 rows.*2 channels"),
        ({"executor": "multiprocessing"}, ValueError, "executor='multiprocessing' is not one of auto, gpu"),
        ({"batch": 0}, ValueError, "batch=0"),
        ({"n_workers": 0}, ValueError, "n_workers=0"),
        ({"target": "out.png"}, ValueError, "does not end in"),
        ({"target": "in.tif", "overwrite": True}, ValueError, "is the input"),
        ({"target": "there.tif"}, FileExistsError, "there.tif"),
        ({"target": "nowhere/out.tif"}, FileNotFoundError, "nowhere"),
        ({"source": "missing.tif"}, FileNotFoundError, "missing.tif"),
    ],
)
def test_refusals(source, tmp_path, monkeypatch, keywords, error, match):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.tif").write_bytes(b"precious")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(error, match=match):
        fg.smooth_file(**{"source": "in.tif", "target": "out.tif", **keywords})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_overwrite(source, tmp_path):
    (tmp_path / "out.tif").write_bytes(b"old")
    fg.smooth_file(source, tmp_path / "out.tif", (0, 0, 0), overwrite=True)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif"), MOVIE)


def test_a_full_disk_keeps_what_is_finished(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "in.tif", MOVIE[:, 0], photometric="minisblack")
    written = []

    def write(self, offset, slab):
        written.append(offset)
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(self, offset, slab)

    whole = ReservedFileWriter._write_bytes
    monkeypatch.setattr(ReservedFileWriter, "_write_bytes", write)
    with (
        pytest.warns(RuntimeWarning, match="4 of 11 frames were finished and are kept"),
        pytest.raises(OSError, match="No space left"),
    ):
        fg.smooth_file(tmp_path / "in.tif", tmp_path / "out.tif", (0, 0, 0), batch=2)
    assert {path.name for path in tmp_path.iterdir()} == {"in.tif", "out.partial.tif"}
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.partial.tif")[:4], MOVIE[:4, 0])


def test_a_checked_run_that_is_not_made_leaves_nothing(source, tmp_path):
    with FileSmoothing(source, tmp_path / "out.tif"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["in.tif"]
