"""Displacement fields in files."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest
import tifffile

from flowreg_gpu.io import FLOW_CONVENTION, Hdf5FlowWriter, TiffFlowWriter, open_flow_writer

T, H, W = 5, 18, 21
EXTENSIONS = [".h5", ".hdf5", ".tif", ".tiff", ".TIF"]


def read_flow(path):
    if path.suffix.lower() in (".tif", ".tiff"):
        return tifffile.imread(path)
    import h5py

    with h5py.File(path) as file:
        return file["flow"][:]


def a_flow(n_frames=T):
    return np.random.default_rng(7).standard_normal((n_frames, H, W, 2)).astype(np.float32)


@pytest.mark.parametrize("n_frames", [1, T])
@pytest.mark.parametrize("extension", EXTENSIONS)
def test_round_trip(extension, n_frames, tmp_path):
    path = tmp_path / f"flow{extension}"
    flow = a_flow(n_frames)
    flow[0, 0, 0] = np.nan
    with open_flow_writer(path, n_frames, H, W) as writer:
        for start in range(0, n_frames, 2):
            writer.write(flow[start : start + 2])
        assert not path.exists()
    found = read_flow(path)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, flow)
    assert os.listdir(tmp_path) == [path.name]


def test_tiff_says_what_it_holds(tmp_path):
    with TiffFlowWriter(tmp_path / "flow.tif", T, H, W) as writer:
        writer.write(a_flow())
    with tifffile.TiffFile(tmp_path / "flow.tif") as tif:
        assert tif.series[0].axes == "TYXC"
        assert len(tif.pages) == T
        assert tif.shaped_metadata[0]["convention"] == FLOW_CONVENTION


def test_hdf5_says_what_it_holds(tmp_path):
    h5py = pytest.importorskip("h5py")
    with Hdf5FlowWriter(tmp_path / "flow.h5", T, H, W) as writer:
        writer.write(a_flow())
    with h5py.File(tmp_path / "flow.h5") as file:
        assert file["flow"].chunks == (1, H, W, 2)
        assert file["flow"].attrs["convention"] == FLOW_CONVENTION


def test_unknown_extension(tmp_path):
    with pytest.raises(ValueError, match=r"extension '\.npy', expected \.h5, \.hdf5, \.tif or \.tiff"):
        open_flow_writer(tmp_path / "flow.npy", T, H, W)


def test_missing_h5py(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "flowreg-gpu\[hdf5\]"'):
        open_flow_writer(tmp_path / "flow.h5", T, H, W)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("extension", [".h5", ".tif"])
def test_incomplete_and_aborted(extension, tmp_path):
    path = tmp_path / f"flow{extension}"
    path.write_bytes(b"older")
    with pytest.raises(FileExistsError, match="the output exists"):
        open_flow_writer(path, T, H, W)
    writer = open_flow_writer(path, T, H, W, overwrite=True)
    writer.write(a_flow()[:2])
    with pytest.raises(RuntimeError, match="2 frames were written, 5 were announced"):
        writer.close()
    with pytest.raises(ZeroDivisionError), open_flow_writer(path, T, H, W, overwrite=True) as writer:
        writer.write(a_flow()[: 1 // 0])
    assert os.listdir(tmp_path) == [path.name]
    assert path.read_bytes() == b"older"


def test_full_disk(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(TiffFlowWriter, "_write_bytes", fail)
    monkeypatch.setattr(Hdf5FlowWriter, "_write_bytes", fail)
    for name in ("flow.tif", "flow.h5"):
        with pytest.raises(OSError, match="No space left"), open_flow_writer(tmp_path / name, T, H, W) as writer:
            writer.write(a_flow())
    assert os.listdir(tmp_path) == []


def test_frames_are_not_converted(tmp_path):
    writer = open_flow_writer(tmp_path / "flow.tif", T, H, W)
    with pytest.raises(ValueError, match="dtype float64, expected float32"):
        writer.write(a_flow().astype(np.float64))
    with pytest.raises(ValueError, match="shape"):
        writer.write(a_flow()[..., :1])
    writer.abort()


def test_package_import_is_light():
    code = "import sys, flowreg_gpu; sys.exit(bool({'tifffile', 'h5py'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
