"""TIFF files that are written: like the file that was read, and completely or not at all."""

import errno
import os
import shutil
import types

import numpy as np
import pytest
import tifffile

from flowreg_gpu.io import TiffReader, TiffWriter, check_output
from flowreg_gpu.io.tiff import source as tiff_source
from flowreg_gpu.io.tiff import writer as tiff_writer
from tests.io.tiff.layouts import LAYOUTS, TYX, H, T, W, pixels, rewrite


def new_writer(path, **changes):
    return TiffWriter(path, **{"n_frames": T, "height": H, "width": W, "n_channels": 1, "dtype": "u2"} | changes)


def test_write_alike(layout, tmp_path):
    path, frames, arguments, kind = layout
    output = tmp_path / "output.tif"
    with TiffReader(path, **arguments) as reader:
        n_frames, height, width, n_channels = reader.shape
        size = {"n_frames": n_frames, "height": height, "width": width, "n_channels": n_channels}
        with TiffWriter(output, **size, dtype=reader.dtype, like=reader) as writer:
            for start in range(0, n_frames, 2):
                writer.write(reader.read(start, min(start + 2, n_frames)))
        written = tifffile.imread(output)
        assert written.shape == reader.stored_shape
        if kind != "scanimage":  # tifffile does not see the channels of every ScanImage file
            np.testing.assert_array_equal(written, tifffile.imread(path))
        assert written.dtype == reader.dtype
        with tifffile.TiffFile(output) as tif:
            assert len(tif.series) == 1
            assert tif.series[0].axes == reader.axes
            assert (tif.is_imagej, tif.is_ome) == (kind == "imagej", kind == "ome")
    # ScanImage files become tifffile's own, in which the channels have their name.
    with TiffReader(output, **arguments) as again:
        assert again.kind == {"scanimage": "shaped"}.get(kind, kind)
        np.testing.assert_array_equal(again.read(0, n_frames), frames)
    assert sorted(os.listdir(tmp_path)) == sorted([os.path.basename(path), "output.tif"])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("n_channels", [1, 2, 3])
def test_write_without_model(dtype, n_channels, tmp_path):
    frames = pixels((T, H, W, n_channels), dtype)
    path = tmp_path / "out.tif"
    with TiffWriter(path, n_frames=T, height=H, width=W, n_channels=n_channels, dtype=dtype) as writer:
        writer.write(frames[:4])
        writer.write(frames[4:])
    expected = frames[..., 0] if n_channels == 1 else frames.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(tifffile.imread(path), expected)
    with tifffile.TiffFile(path) as tif:
        assert tif.is_imagej == (dtype != "int16")
        assert tif.series[0].axes == ("TYX" if n_channels == 1 else "TCYX")


@pytest.mark.parametrize(
    "name", ["pages", "shaped-ctyx", "imagej-tc", "imagej-z", "imagej-unnamed", "ome-ctyx", "rgb-contig"]
)
def test_above_4_gb(name, tmp_path, monkeypatch):
    """The forms that large files take, at a small size."""
    monkeypatch.setattr(tiff_writer, "CLASSIC_LIMIT", 1000)
    path, output = tmp_path / "in.tif", tmp_path / "out.tif"
    LAYOUTS[name][0](path)
    rewrite(path, output)
    np.testing.assert_array_equal(tifffile.imread(output), tifffile.imread(path))
    with tifffile.TiffFile(output) as tif:
        is_imagej = name.startswith("imagej")
        assert tif.is_bigtiff != is_imagej
        assert tif.is_imagej == is_imagej
        if is_imagej:
            assert len(tif.pages) == 1


def test_nothing_appears_before_the_end(tmp_path):
    frames = pixels((T, H, W, 1))
    path = tmp_path / "out.tif"
    path.write_bytes(b"older")
    writer = new_writer(path, overwrite=True)
    writer.write(frames)
    assert path.read_bytes() == b"older"
    assert sorted(os.listdir(tmp_path)) == ["out.partial.tif", "out.tif"]
    writer.close()
    writer.close()
    np.testing.assert_array_equal(tifffile.imread(path), frames[..., 0])
    assert os.listdir(tmp_path) == ["out.tif"]


def test_incomplete_recording(tmp_path):
    writer = new_writer(tmp_path / "out.tif")
    writer.write(pixels((3, H, W, 1)))
    with pytest.raises(RuntimeError, match="3 frames were written, 5 were announced"):
        writer.close()
    assert os.listdir(tmp_path) == []
    with pytest.raises(RuntimeError, match="after close"):
        writer.write(pixels((1, H, W, 1)))


def test_abort(tmp_path):
    writer = new_writer(tmp_path / "out.tif")
    writer.write(pixels((T, H, W, 1)))
    writer.abort()
    writer.abort()
    writer.close()
    assert os.listdir(tmp_path) == []
    with pytest.raises(ZeroDivisionError), new_writer(tmp_path / "out.tif") as writer:
        writer.write(pixels((T, H, W, 1))[: 1 // 0])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_full_disk_while_writing(code, tmp_path, monkeypatch):
    path = tmp_path / "out.tif"
    path.write_bytes(b"older")
    writer = new_writer(path, overwrite=True)
    writer.write(pixels((2, H, W, 1)))

    def fail(offset, slab):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(writer, "_write_bytes", fail)
    with pytest.raises(OSError, match=os.strerror(code)), writer:
        writer.write(pixels((2, H, W, 1)))
    assert os.listdir(tmp_path) == ["out.tif"]
    assert path.read_bytes() == b"older"


def test_failing_commit(tmp_path, monkeypatch):
    def fail(source, target):
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(os, "link", fail)
    monkeypatch.setattr(os, "rename", fail)  # where there are no links
    with pytest.raises(PermissionError), new_writer(tmp_path / "out.tif") as writer:
        writer.write(pixels((T, H, W, 1)))
    assert os.listdir(tmp_path) == []


def test_full_disk_is_seen_before_writing(tmp_path, monkeypatch):
    usage = types.SimpleNamespace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(OSError, match=r"needs \d+ bytes, the disk has 1000 bytes free") as caught:
        new_writer(tmp_path / "out.tif")
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == []


def test_short_writes_and_reads_are_continued(tmp_path, monkeypatch):
    """The system may take or return fewer bytes than it was asked for."""

    class Stingy:
        def __init__(self, file):
            self.file = file

        def write(self, buffer):
            return self.file.write(buffer[:100])

        def __getattr__(self, name):
            return getattr(self.file, name)

    frames = pixels((T, H, W, 1))
    with new_writer(tmp_path / "out.tif") as writer:
        writer._file = Stingy(writer._file)
        writer.write(frames)
    read_some = tiff_source.TiffSource._read_some
    monkeypatch.setattr(
        tiff_source.TiffSource, "_read_some", lambda self, offset, target: read_some(self, offset, target[:100])
    )
    with TiffReader(tmp_path / "out.tif") as reader:
        np.testing.assert_array_equal(reader.read(0, T), frames)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((1, H, W), "u2"), "shape"),
        (np.zeros((1, W, H, 1), "u2"), "shape"),
        (np.zeros((1, H, W, 1), "f4"), "dtype float32, expected uint16"),
        (np.zeros((6, H, W, 1), "u2"), "0 \\+ 6 frames are more than the 5"),
    ],
)
def test_frames_that_were_not_announced(frames, message, tmp_path):
    writer = new_writer(tmp_path / "out.tif")
    with pytest.raises(ValueError, match=message):
        writer.write(frames)
    writer.abort()


def test_writer_arguments(tmp_path):
    with pytest.raises(ValueError, match="dtype float64 is not supported"):
        new_writer(tmp_path / "out.tif", dtype="f8")
    with pytest.raises(ValueError, match="at least 1"):
        new_writer(tmp_path / "out.tif", n_frames=0)
    tifffile.imwrite(tmp_path / "in.tif", pixels(TYX))
    with TiffReader(tmp_path / "in.tif") as reader, pytest.raises(ValueError, match="cannot be written like"):
        new_writer(tmp_path / "out.tif", width=W + 1, like=reader)
    assert os.listdir(tmp_path) == ["in.tif"]


def test_output_is_an_input(tmp_path):
    path = tmp_path / "in.tif"
    tifffile.imwrite(path, pixels(TYX))
    before = path.read_bytes()
    (tmp_path / "symbolic.tif").symlink_to(path)
    os.link(path, tmp_path / "hard.tif")
    with TiffReader(path) as reader:
        for name in ("in.tif", "symbolic.tif", "hard.tif"):
            with pytest.raises(ValueError, match="is the input"):
                check_output(tmp_path / name, [path])
            with pytest.raises(ValueError, match="is the input"):
                new_writer(tmp_path / name, like=reader)
    check_output(tmp_path / "other.tif", [path])
    assert path.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["hard.tif", "in.tif", "symbolic.tif"]
