"""A saved flow applied to a recording: what `register_file` writes, other channels, and what does not fit."""

import os
import re

import numpy as np
import pytest
import tifffile

import flowreg_gpu as fg
from flowreg_gpu.io import (
    ArrayReader,
    FlowOrigin,
    FrameReader,
    TiffReader,
    open_flow_reader,
    open_flow_writer,
    recording_digest,
)
from flowreg_gpu.registration.apply import FlowApplication
from tests.emulation import EmulatedDevice
from tests.movies import recording

h5py = pytest.importorskip("h5py")

FAST = {"alpha": 4, "levels": 3, "min_level": 1}
TYXC = {"axes": "TYXC"}
EXTENSIONS = [".h5", ".tif"]
EXECUTORS = ["sequential", "threading", "multiprocessing", "emulated"]


@pytest.fixture(scope="module", params=EXECUTORS)
def executor(request):
    if request.param == "emulated":  # in parts of two frames, so that every batch has several
        running = fg.GPUExecutor(device=EmulatedDevice(), batch=2, fallback=False)
    else:
        running = {
            "sequential": fg.SequentialExecutor,
            "threading": fg.ThreadingExecutor,
            "multiprocessing": fg.MultiprocessingExecutor,
        }[request.param](2)
    with running:
        yield running


def write_movie(path, frames):
    """A movie (T, H, W) or (T, H, W, C) as a file of ImageJ; tifffile's own for types that ImageJ lacks."""
    stored = frames if frames.ndim == 3 else np.moveaxis(frames, -1, 1)
    axes = {"axes": "TYX" if frames.ndim == 3 else "TCYX"}
    tifffile.imwrite(path, stored, imagej=frames.dtype != np.int16, metadata=axes)
    return path


def write_flow(path, flow, origin=None):
    with open_flow_writer(path, *flow.shape[:3], origin) as writer:
        writer.write(flow)
    return path


def far_flow(n_frames, height=26, width=31, seed=5):
    """Flows that leave the frames here and there."""
    return 6 * np.random.default_rng(seed).standard_normal((n_frames, height, width, 2)).astype(np.float32)


def nothing_left(folder, *names):
    return sorted(os.listdir(folder)) == sorted(names)


# The same as what is registered


@pytest.mark.parametrize("channels", [None, 2])
@pytest.mark.parametrize(
    ("dtype", "interpolation", "extension"),
    [
        ("uint8", "linear", ".h5"),
        ("uint16", "cubic", ".tif"),
        ("int16", "nearest", ".h5"),
        ("float32", "cubic", ".h5"),
    ],
)
def test_equal_to_what_was_registered(executor, tmp_path, dtype, interpolation, extension, channels):
    movie = recording(7, 26, 31, channels, dtype, amplitude=2)
    source = write_movie(tmp_path / "movie.tif", movie.frames)
    flow_file, expected = tmp_path / f"flow{extension}", tmp_path / "registered.tif"
    options = {**FAST, "interpolation_method": interpolation}
    registered = fg.register_file(source, expected, "sequential", slice(2, 6), flow_file, **options)
    summary = fg.apply_file(flow_file, source, tmp_path / "out.tif", executor, batch=3)
    assert (tmp_path / "out.tif").read_bytes() == expected.read_bytes()
    np.testing.assert_array_equal(summary.reference, registered.reference)
    for name, values in registered.statistics.items():
        np.testing.assert_allclose(summary.statistics[name], values, rtol=1e-9, atol=1e-12)


def test_pixels_that_are_nan_and_frames_that_are_bad(executor, tmp_path):
    """Pixels are taken from the reference; frames that are constant, NaN, or named are left as they are."""
    movie = recording(8, 26, 31, dtype="float32", amplitude=2)
    frames = movie.frames
    frames[2, 3:9, 4] = np.nan
    frames[3, 7, 7] = np.inf
    frames[4] = 11.5
    frames[5] = np.nan
    frames[6, 4, 4:9] = np.nan
    source, flow_file = write_movie(tmp_path / "movie.tif", frames), tmp_path / "flow.h5"
    with pytest.warns(RuntimeWarning, match=r"2 bad frames \(5-6\) are"), pytest.warns(match="1 constant frames"):
        registered = fg.register_file(
            source, tmp_path / "registered.tif", "sequential", movie.truth, flow_file, bad_frames=[5, 6], **FAST
        )
    with pytest.warns(RuntimeWarning, match=r"3 bad frames \(4-6\) are left as they are: their flow is zero"):
        summary = fg.apply_file(flow_file, source, tmp_path / "out.tif", executor, batch=3)
    assert (tmp_path / "out.tif").read_bytes() == (tmp_path / "registered.tif").read_bytes()
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif")[4:7], frames[4:7])
    assert (summary.nonfinite_pixels, summary.constant_frames) == (7, 1)
    for name in ("max_disp", "correlation_after", "constant"):
        np.testing.assert_allclose(summary.statistics[name], registered.statistics[name], rtol=1e-9, atol=1e-12)


def test_frames_with_zero_flow_come_out_as_they_were(executor, tmp_path):
    frames = recording(4, 26, 31, 2, "float32").frames
    flow = far_flow(4)
    flow[[0, 2]] = 0
    frames[2, 3:, 4, 1] = np.nan
    frames[3, 8, 9] = np.inf
    source, flow_file = write_movie(tmp_path / "movie.tif", frames), write_flow(tmp_path / "flow.tif", flow)
    with pytest.warns(RuntimeWarning, match=r"2 bad frames \(0, 2\) are left as they are: their flow is zero"):
        summary = fg.apply_file(flow_file, source, tmp_path / "out.tif", executor, reference=frames[0], batch=3)
    out = np.moveaxis(tifffile.imread(tmp_path / "out.tif"), 1, -1)
    assert summary.nonfinite_pixels == 2  # of the frame that moves
    assert np.isfinite(out[3]).all()
    for index in (0, 2):
        np.testing.assert_array_equal(out[index], frames[index])
    for index in (1, 3):
        assert not np.array_equal(out[index], frames[index])
    np.testing.assert_array_equal(summary.bad_frames, [0, 2])
    np.testing.assert_array_equal(summary.statistics["max_disp"] == 0, [True, False, True, False])


def test_a_flow_that_is_not_finite_counts_as_zero(executor, tmp_path):
    frames = recording(3, 26, 31).frames
    flow = far_flow(3)
    flow[1, 4, 5, 0] = np.nan
    source, flow_file = write_movie(tmp_path / "movie.tif", frames), write_flow(tmp_path / "flow.h5", flow)
    with pytest.warns(RuntimeWarning, match="1 frames have a flow that leaves the frame"):
        fg.apply_file(flow_file, source, tmp_path / "out.tif", executor)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif")[1], frames[1])


# Another recording


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_another_channel(executor, tmp_path, extension, dtype):
    """Warped as `fg.warp` warps arrays, outside the frames by the mean of the warped frames."""
    first, second = recording(8, 26, 31), recording(8, 26, 31, 2, dtype, seed=4)
    write_movie(tmp_path / "first.tif", first.frames)
    source = write_movie(tmp_path / "second.tif", second.frames)
    flow_file = tmp_path / f"flow{extension}"
    fg.register_file(tmp_path / "first.tif", tmp_path / "r.tif", "sequential", slice(0, 4), flow_file, **FAST)
    summary = fg.apply_file(flow_file, source, tmp_path / "out.tif", executor, batch=3)
    with open_flow_reader(flow_file) as reader:
        flow = reader.read(0, 8)
    as_float = second.frames.astype(np.float32)
    plain = as_float.mean(axis=0, dtype=float).astype(np.float32)
    reference = fg.warp(as_float, flow, plain).mean(axis=0, dtype=float).astype(np.float32)
    np.testing.assert_allclose(summary.reference, reference, rtol=1e-6)
    out = np.moveaxis(tifffile.imread(tmp_path / "out.tif"), 1, -1)
    assert out.dtype == dtype
    np.testing.assert_array_equal(out, fg.warp(second.frames, flow, summary.reference))
    assert summary.statistics["correlation_after"].mean() > summary.statistics["correlation_before"].mean()


@pytest.mark.parametrize("batch", [1, 3, 50])
def test_the_batch_does_not_change_the_result(tmp_path, batch):
    frames = recording(7, 26, 31, 2).frames
    source, flow_file = write_movie(tmp_path / "movie.tif", frames), write_flow(tmp_path / "flow.tif", far_flow(7))
    summaries = [
        fg.apply_file(flow_file, source, tmp_path / f"{size}.tif", "sequential", reference=[5, 0, 2], batch=size)
        for size in (batch, 7)
    ]
    np.testing.assert_array_equal(summaries[0].reference, summaries[1].reference)
    assert (tmp_path / f"{batch}.tif").read_bytes() == (tmp_path / "7.tif").read_bytes()


def test_no_more_than_a_batch_is_read_at_a_time(tmp_path, monkeypatch):
    """Of frames and of flows; the reference is made frame by frame and batch by batch, too."""
    source = write_movie(tmp_path / "movie.tif", recording(9, 26, 31).frames)
    flow_file = write_flow(tmp_path / "flow.h5", far_flow(9))
    spans = []
    read = FrameReader.read
    monkeypatch.setattr(
        FrameReader, "read", lambda self, start, stop: spans.append(stop - start) or read(self, start, stop)
    )
    fg.apply_file(flow_file, source, tmp_path / "out.tif", "sequential", batch=2)
    assert max(spans) == 2


def test_frames_with_zero_flow_are_not_in_the_mean(tmp_path):
    frames = recording(5, 26, 31).frames
    frames[3] = 0  # the shutter was closed
    flow = far_flow(5)
    flow[0], flow[3] = 0.5, 0
    source, flow_file = write_movie(tmp_path / "movie.tif", frames), write_flow(tmp_path / "flow.h5", flow)
    with pytest.warns(RuntimeWarning, match=r"1 bad frames \(3\)"):
        found = fg.apply_file(flow_file, source, tmp_path / "out.tif", "sequential").reference
    with pytest.warns(RuntimeWarning, match=r"1 bad frames \(3\)"):
        named = fg.apply_file(flow_file, source, tmp_path / "b.tif", "sequential", reference=[0, 1, 2, 4]).reference
    np.testing.assert_array_equal(found, named)


def test_reference_that_is_given(tmp_path):
    movie = recording(4, 26, 31)
    source, flow_file = write_movie(tmp_path / "movie.tif", movie.frames), write_flow(tmp_path / "f.tif", far_flow(4))
    tifffile.imwrite(tmp_path / "image.tif", movie.truth)
    for number, reference in enumerate((movie.truth, tmp_path / "image.tif")):
        out = tmp_path / f"out{number}.tif"
        fg.apply_file(flow_file, source, out, "sequential", reference=reference, interpolation="nearest")
        expected = fg.warp(movie.frames, far_flow(4), movie.truth, "nearest")
        np.testing.assert_array_equal(tifffile.imread(out), expected)


def test_a_flow_of_other_software(tmp_path):
    """Nothing but the dataset, compressed in chunks of several frames: as pages of the documentation describe it."""
    movie, flow = recording(4, 26, 31), far_flow(4)
    source = write_movie(tmp_path / "movie.tif", movie.frames)
    with h5py.File(tmp_path / "flow.h5", "w") as file:
        file.create_dataset("flow", data=flow, chunks=(2, 26, 31, 2), compression="gzip")
    tifffile.imwrite(tmp_path / "flow.tif", flow, photometric="minisblack", metadata=TYXC)
    for name in ("flow.h5", "flow.tif"):
        fg.apply_file(
            tmp_path / name, source, tmp_path / "out.tif", "sequential", reference=movie.truth, overwrite=True
        )
        np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif"), fg.warp(movie.frames, flow, movie.truth))


def test_the_kind_of_the_input_is_kept(tmp_path):
    frames = recording(4, 26, 31, 2).frames
    tifffile.imwrite(
        tmp_path / "movie.ome.tif",
        np.moveaxis(frames, -1, 1),
        metadata={"axes": "TCYX", "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm"},
    )
    flow_file = write_flow(tmp_path / "flow.h5", far_flow(4))
    fg.apply_file(flow_file, tmp_path / "movie.ome.tif", tmp_path / "out.ome.tif", "sequential")
    with tifffile.TiffFile(tmp_path / "out.ome.tif") as tif:
        assert tif.is_ome
        assert tif.series[0].axes == "TCYX"
        assert 'PhysicalSizeX="0.5"' in tif.ome_metadata


def test_several_files_are_one_recording(tmp_path):
    frames = recording(5, 26, 31).frames
    parts = [write_movie(tmp_path / f"{n}.tif", part) for n, part in enumerate((frames[:2], frames[2:]))]
    flow_file, reference = write_flow(tmp_path / "flow.tif", far_flow(5)), frames[0].astype(np.float32)
    fg.apply_file(flow_file, parts, tmp_path / "out.tif", "sequential", reference=reference, batch=4)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif"), fg.warp(frames, far_flow(5), reference))


def test_progress(tmp_path):
    frames = recording(5, 26, 31).frames
    source, flow_file = write_movie(tmp_path / "movie.tif", frames), write_flow(tmp_path / "flow.tif", far_flow(5))
    told = []
    fg.apply_file(
        flow_file,
        source,
        tmp_path / "out.tif",
        "sequential",
        reference=[1, 2],
        progress=lambda *step: told.append(step),
    )
    assert told == [("reference", n, 2) for n in (1, 2)] + [("frames", n, 5) for n in range(1, 6)]


# What a flow file remembers


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_origin_and_reference_come_back(tmp_path, extension):
    path, flow = tmp_path / f"flow{extension}", far_flow(3)
    origin = FlowOrigin("abc", "linear", 2)
    reference = np.random.default_rng(1).standard_normal((26, 31, 2)).astype(np.float32)
    with open_flow_writer(path, 3, 26, 31, origin) as writer:
        writer.write(flow)
        writer.write_reference(reference)
    with open_flow_reader(path) as reader:
        assert reader.origin == origin
        assert (reader.shape, reader.dtype) == ((3, 26, 31, 2), np.float32)
        np.testing.assert_array_equal(reader.read(1, 3), flow[1:])
        np.testing.assert_array_equal(reader.read_reference(), reference)
    if extension == ".tif":  # other programs see the flow alone
        np.testing.assert_array_equal(tifffile.imread(path), flow)


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_a_reference_that_was_never_written(tmp_path, extension):
    """As in the file of a run that failed."""
    path = write_flow(tmp_path / f"flow{extension}", far_flow(2), FlowOrigin("abc", "linear", 1))
    with open_flow_reader(path) as reader:
        assert reader.origin == FlowOrigin("abc", "linear", 1)
        assert reader.read_reference() is None
    with open_flow_reader(write_flow(tmp_path / f"plain{extension}", far_flow(1))) as reader:
        assert (reader.origin, reader.read_reference()) == (None, None)
        np.testing.assert_array_equal(reader.read(0, 1), far_flow(1))


def test_reference_of_another_shape(tmp_path):
    writer = open_flow_writer(tmp_path / "flow.tif", 2, 26, 31, FlowOrigin("abc", "linear", 1))
    with pytest.raises(ValueError, match=re.escape("reference has shape (26, 31, 2), expected (26, 31, 1)")):
        writer.write_reference(np.zeros((26, 31, 2)))
    writer.abort()


def test_digest_of_a_recording(tmp_path):
    """Of the frames, not of the file; a single pixel of a frame that counts changes it."""
    frames = recording(9, 26, 31, 2).frames
    path = write_movie(tmp_path / "movie.tif", frames)
    digest = recording_digest(ArrayReader(frames))
    with TiffReader(path) as reader:
        assert recording_digest(reader) == digest
    for index in (0, 8):
        other = frames.copy()
        other[index, 3, 4, 1] += 1
        assert recording_digest(ArrayReader(other)) != digest
    assert recording_digest(ArrayReader(frames.astype(np.float32))) != digest
    assert recording_digest(ArrayReader(frames[:1])) == recording_digest(ArrayReader(frames[:1].copy()))


# What does not fit


@pytest.fixture
def files(tmp_path):
    frames = recording(4, 26, 31).frames
    return write_movie(tmp_path / "movie.tif", frames), write_flow(tmp_path / "flow.tif", far_flow(4))


@pytest.mark.parametrize("size", [(5, 26, 31), (4, 27, 31), (4, 26, 30)])
@pytest.mark.parametrize("extension", EXTENSIONS)
def test_sizes_that_differ(files, tmp_path, size, extension):
    flow_file = write_flow(tmp_path / f"other{extension}", np.ones((*size, 2), np.float32))
    found = "{} frames of {} x {} pixels".format(*size)
    message = f"other{extension}' has {found}, recording .*movie.tif' has 4 frames of 26 x 31 pixels: expected the same"
    with pytest.raises(ValueError, match=message):
        fg.apply_file(flow_file, files[0], tmp_path / "out.tif", "sequential")
    assert nothing_left(tmp_path, "movie.tif", "flow.tif", flow_file.name)


def test_files_that_hold_no_flow(files, tmp_path):
    tifffile.imwrite(tmp_path / "one.tif", np.zeros((4, 26, 31), np.float32), photometric="minisblack")
    tifffile.imwrite(
        tmp_path / "whole.tif", np.zeros((4, 26, 31, 2), np.uint16), photometric="minisblack", metadata=TYXC
    )
    (tmp_path / "text.h5").write_bytes(b"no HDF5 at all")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["w"] = far_flow(4)
    for name, shape in (("planes.h5", (4, 2, 26, 31)), ("scalar.h5", ())):
        with h5py.File(tmp_path / name, "w") as file:
            file["flow"] = np.zeros(shape, np.float32)
    with h5py.File(tmp_path / "double.h5", "w") as file:
        file["flow"] = np.zeros((4, 26, 31, 2))
    problems = {
        "one.tif": r"is \(4, 26, 31\) of float32, expected a flow \(T, H, W, 2\) of float32",
        "whole.tif": "of uint16, expected a flow",
        "text.h5": "not a readable HDF5 file",
        "other.h5": r"there is no dataset /flow, only \['w'\]",
        "planes.h5": r"/flow is \(4, 2, 26, 31\) of float32, expected a flow",
        "scalar.h5": r"/flow is \(\) of float32, expected a flow",
        "double.h5": "/flow is .* of float64, expected a flow",
    }
    for name, problem in problems.items():
        with pytest.raises(ValueError, match=f"{name}: .*{problem}"):
            fg.apply_file(tmp_path / name, files[0], tmp_path / "out.tif", "sequential")
    with pytest.raises(FileNotFoundError, match=r"gone\.h5"):
        fg.apply_file(tmp_path / "gone.h5", files[0], tmp_path / "out.tif", "sequential")
    with pytest.raises(ValueError, match=r"extension '\.npy', expected \.h5"):
        fg.apply_file(tmp_path / "flow.npy", files[0], tmp_path / "out.tif", "sequential")
    assert not (tmp_path / "out.tif").exists()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"interpolation": "quintic"}, ValueError, "interpolation_method='quintic' is not one of cubic"),
        ({"reference": np.zeros((26, 30))}, ValueError, r"reference has shape \(26, 30, 1\), expected \(26, 31, 1\)"),
        ({"reference": [9]}, ValueError, "9"),
        ({"batch": 0}, ValueError, "batch=0 is below 1"),
        ({"executor": "quantum"}, ValueError, "executor='quantum' is not one of"),
        ({"target": "out.avi"}, ValueError, r"does not end in \.tif or \.tiff"),
        ({"target": "movie.tif", "overwrite": True}, ValueError, "is the input"),
        ({"target": "flow.tif", "overwrite": True}, ValueError, "is the input"),
        ({"target": "nowhere/out.tif"}, FileNotFoundError, "the folder of the output does not exist"),
        ({"source": "gone.tif"}, FileNotFoundError, "gone.tif"),
    ],
)
def test_refused_arguments(files, tmp_path, monkeypatch, arguments, error, message):
    monkeypatch.chdir(tmp_path)
    given = {"flow_file": "flow.tif", "source": "movie.tif", "target": "out.tif", "executor": "sequential", **arguments}
    before = files[0].read_bytes()
    with pytest.raises(error, match=message):
        fg.apply_file(**given)
    assert nothing_left(tmp_path, "movie.tif", "flow.tif")
    assert files[0].read_bytes() == before


def test_an_output_that_exists(files, tmp_path):
    out = tmp_path / "out.tif"
    out.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match=r"only overwrite=True \(--overwrite\) replaces it: '.*out\.tif'"):
        fg.apply_file(files[1], files[0], out, "sequential")
    assert out.read_bytes() == b"precious"
    fg.apply_file(files[1], files[0], out, "sequential", overwrite=True)
    assert tifffile.imread(out).shape == (4, 26, 31)


# Faults


class FailingExecutor(fg.SequentialExecutor):
    """Raises at one of its batches."""

    def __init__(self, fail_at=3):
        super().__init__()
        self.fail_at, self.batches = fail_at, 0

    def register_batch(self, batch):
        self.batches += 1
        if self.batches == self.fail_at:
            raise InterruptedError("the plug was pulled")
        return super().register_batch(batch)


def test_a_fault_keeps_what_is_finished(files, tmp_path):
    movie = tifffile.imread(files[0])
    with (
        pytest.raises(InterruptedError, match="plug"),
        pytest.warns(RuntimeWarning, match=r"2 of 4 frames were finished and are kept in .*out\.partial\.tif"),
    ):
        fg.apply_file(files[1], files[0], tmp_path / "out.tif", FailingExecutor(), reference=movie[0], batch=1)
    assert nothing_left(tmp_path, "movie.tif", "flow.tif", "out.partial.tif")
    expected = fg.warp(movie, far_flow(4), movie[0])
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.partial.tif")[:2], expected[:2])


def test_a_partial_file_is_not_replaced_unasked(files, tmp_path):
    movie = tifffile.imread(files[0])
    with pytest.raises(InterruptedError), pytest.warns(RuntimeWarning, match="2 of 4"):
        fg.apply_file(files[1], files[0], tmp_path / "out.tif", FailingExecutor(), reference=movie[0], batch=1)
    with pytest.raises(FileExistsError, match="an earlier run left a partial file"):
        fg.apply_file(files[1], files[0], tmp_path / "out.tif", "sequential")
    fg.apply_file(files[1], files[0], tmp_path / "out.tif", "sequential", overwrite=True)
    assert nothing_left(tmp_path, "movie.tif", "flow.tif", "out.tif")


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_the_flow_of_a_run_that_went_on(files, tmp_path, extension):
    """The reference is in its file, too."""
    flow_file = tmp_path / f"new{extension}"
    arguments = {"reference": [0, 2], "flow_file": flow_file, "batch": 1, **FAST}
    with pytest.raises(InterruptedError), pytest.warns(RuntimeWarning, match="frames were finished"):
        fg.register_file(files[0], tmp_path / "registered.tif", FailingExecutor(12), **arguments)
    with open_flow_reader(tmp_path / f"new.partial{extension}") as partial:
        assert partial.origin is not None
        assert partial.read_reference() is None
    summary = fg.register_file(files[0], tmp_path / "registered.tif", "sequential", resume=True, **arguments)
    assert summary.resumed_at > 0
    applied = fg.apply_file(flow_file, files[0], tmp_path / "out.tif", "sequential")
    np.testing.assert_array_equal(applied.reference, summary.reference)
    assert (tmp_path / "out.tif").read_bytes() == (tmp_path / "registered.tif").read_bytes()


def test_an_executor_that_is_in_use(files, tmp_path):
    executor = fg.SequentialExecutor()
    with executor.in_use(), pytest.raises(RuntimeError, match="is in use by another run"):
        fg.apply_file(files[1], files[0], tmp_path / "out.tif", executor)
    assert nothing_left(tmp_path, "movie.tif", "flow.tif")


def test_an_application_that_never_runs(files, tmp_path):
    with FlowApplication(files[1], files[0], tmp_path / "out.tif", executor="sequential"):
        assert len(os.listdir(tmp_path)) == 3
    assert nothing_left(tmp_path, "movie.tif", "flow.tif")
