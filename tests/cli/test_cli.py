"""The command line as a user types it: what it prints, what it writes, and its exit status."""

from __future__ import annotations

import dataclasses
import errno
import importlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

import flowreg_gpu as fg
from flowreg_gpu.benchmark.rivals import BACKENDS
from flowreg_gpu.benchmark.run import Settings
from flowreg_gpu.cli.main import main
from flowreg_gpu.executors import EXECUTORS
from flowreg_gpu.io import ReservedFileWriter
from tests.programs import run_program


@pytest.fixture
def movie() -> NDArray[np.uint16]:
    """Six noisy frames of a texture that moves by whole pixels."""
    rng = np.random.default_rng(3)
    texture = np.kron(rng.integers(0, 900, (16, 18)), np.ones((4, 4)))
    shifts = [(0, 0), (1, 0), (0, 2), (-1, 1), (2, -1), (0, 0)]
    frames = np.stack([np.roll(texture, shift, (0, 1))[8:48, 8:56] for shift in shifts])
    return (frames + rng.integers(0, 30, frames.shape)).astype(np.uint16)


@pytest.fixture
def recording(tmp_path: Path, movie: NDArray[np.uint16]) -> Path:
    path = tmp_path / "movie.tif"
    tifffile.imwrite(path, movie, imagej=True, metadata={"axes": "TYX"})
    return path


def register(*arguments: object) -> int:
    """`flowreg-gpu register` in this process, without the start of workers."""
    return main(["register", *map(str, arguments), "--executor", "sequential"])


def test_register_equals_the_python_call(
    recording: Path, movie: NDArray[np.uint16], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, flow_file = tmp_path / "out.tif", tmp_path / "flow.tif"
    status = register(recording, target, "--alpha", "2,6", "--reference", "1:4", "--flow", flow_file, "--batch", 2)
    out, err = capsys.readouterr()
    assert status == 0
    assert err == ""
    for part in ("6 frames in", "frames/s", "displacement: mean", "correlation with the reference", str(target)):
        assert part in out
    registered, flow = fg.register(movie, slice(1, 4), "sequential", alpha=(2, 6))
    np.testing.assert_array_equal(tifffile.imread(target), registered)
    np.testing.assert_array_equal(tifffile.imread(flow_file), flow)
    statistics = np.load(tmp_path / "out_statistics.npz")
    np.testing.assert_allclose(statistics["mean_disp"], np.linalg.norm(flow, axis=-1).mean(axis=(1, 2)), rtol=1e-6)


def test_help_of_the_options_is_that_of_their_fields(capsys: pytest.CaptureFixture[str]) -> None:
    """Every parameter of Options, with its choices and its default; nothing is written a second time."""
    with pytest.raises(SystemExit) as ended:
        main(["register", "--help"])
    assert ended.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(fg.Options):
        assert field.metadata["description"] in told
        for choice in field.metadata["choices"]:
            assert choice in told
    for default in (
        "(auto)",
        "(quality)",
        "(from quality)",
        "(100)",
        "(1,1,0.1)",
        "(true)",
        "(none)",
        "(0.8)",
        "(256)",
        "(10)",
    ):
        assert default in told


@pytest.mark.parametrize("command", ["register", "apply", "demo", "benchmark"])
def test_help_names_every_executor(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As they are registered, with those of pyflowreg where they can be measured."""
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    assert ", ".join(sorted(EXECUTORS)) in told
    assert (", ".join(BACKENDS) in told) == (command == "benchmark")


@pytest.mark.parametrize(
    "place", ["register.FileRegistration", "apply.FlowApplication", "demo.create_executor", "benchmark.Settings"]
)
def test_interrupted_while_the_input_is_checked(
    place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the work begins: one line and status 130, as during the work."""

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    command, name = place.split(".")
    monkeypatch.setattr(importlib.import_module(f"flowreg_gpu.cli.{command}"), name, interrupt)
    monkeypatch.chdir(tmp_path)
    # the command line reads its defaults from Settings, which `interrupt` does not have
    for field in dataclasses.fields(Settings):
        monkeypatch.setattr(interrupt, field.name, field.default, raising=False)
    files = {"register": ["in.tif", "out.tif"], "apply": ["flow.h5", "in.tif", "out.tif"]}
    assert main([command, *files.get(command, [])]) == 130
    out, err = capsys.readouterr()
    assert (out, err) == ("", "flowreg-gpu: error: interrupted\n")
    assert not list(tmp_path.iterdir())


def test_help_names_the_commands_and_loads_none_of_them() -> None:
    script = "import sys; from flowreg_gpu.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    script += "sys.exit('numpy' in sys.modules)"
    done = run_program("-c", script)
    assert done.returncode == 0, done.stderr
    for command in ("register", "apply", "demo", "doctor", "benchmark"):
        assert f"  {command}" in done.stdout


def test_every_option_has_a_flag(recording: Path, tmp_path: Path) -> None:
    options = {
        "alpha": "4",
        "quality": "balanced",
        "min-level": "1",
        "levels": "20",
        "eta": "0.7",
        "iterations": "10",
        "update_lag": "3",
        "a_smooth": "0.8",
        "a-data": "0.5",
        "const-assumption": "gray",
        "solver": "sor",
        "weight": "1",
        "gnc-schedule": "0,1",
        "warping-steps": "1",
        "sigma": "1,1,0",
        "highpass": "9.5",
        "bidirectional": "0.5",
        "hot-pixels": "false",
        "channel-normalization": "separate",
        "interpolation_method": "linear",
        "cc-initialization": "true",
        "cc-hw": "32,32",
        "cc-up": "2",
        "update-initialization-w": "false",
        "buffer-size": "3",
    }
    assert {name.replace("-", "_") for name in options} == set(fg.Options().to_dict())
    target = tmp_path / "out.tif"
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    assert register(recording, target, "--reference", "0:6", *flags) == 0
    assert tifffile.imread(target).shape == (6, 40, 48)


def test_options_file_and_override(recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = tmp_path / "run.toml"
    options.write_text('alpha = 4\nquality = "unheard"\n')
    assert register(recording, tmp_path / "out.tif", "--options", options) == 2
    assert "quality='unheard' is not one of quality, balanced, fast" in capsys.readouterr().err
    options.write_text("alpha = 4\nbuffer_size = 3\n")
    assert register(recording, tmp_path / "out.tif", "--options", options, "--alpha", "2", "--reference", "0:2") == 0


def test_reference_file(recording: Path, movie: NDArray[np.uint16], tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "reference.tif", movie[0])
    assert register(recording, tmp_path / "out.tif", "--reference", tmp_path / "reference.tif") == 0
    registered, _ = fg.register(movie, movie[0], "sequential")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif"), registered)


def write_bad_input(kind: str, path: Path, movie: NDArray[np.uint16]) -> None:
    """A file that cannot be registered."""
    if kind == "empty":
        path.touch()
    elif kind == "not TIFF":
        path.write_text("not a TIFF file at all")
    elif kind == "truncated":
        tifffile.imwrite(path, movie)
        path.write_bytes(path.read_bytes()[:-5000])
    elif kind == "one frame":
        tifffile.imwrite(path, movie[0])
    elif kind == "small":
        tifffile.imwrite(path, movie[:, :15, :])
    elif kind == "shapes":
        with tifffile.TiffWriter(path) as tif:
            tif.write(movie[0], metadata=None)
            tif.write(movie[1, :-1], metadata=None)
    elif kind == "dtype":
        tifffile.imwrite(path, movie.astype(np.float64))
    elif kind == "volumes":
        tifffile.imwrite(path, movie.reshape(3, 2, 40, 48), imagej=True, metadata={"axes": "TZYX"})


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("missing", "movie"),
        ("empty", "empty"),
        ("not TIFF", "TIFF"),
        ("truncated", "bytes"),
        ("one frame", "at least 2"),
        ("small", "15 x 48 pixels are too small, expected at least 16"),
        ("shapes", "shape"),
        ("dtype", "float64"),
        ("volumes", "axes"),
    ],
)
def test_bad_recording(
    kind: str, told: str, movie: NDArray[np.uint16], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "movie.tif", tmp_path / "out.tif"
    write_bad_input(kind, source, movie)
    before = sorted(tmp_path.iterdir())
    assert register(source, target) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("flowreg-gpu: error: ")
    assert err.count("\n") == 1
    assert told in err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--alpha", "-1"], "alpha=-1.0"),
        (["--alpha", "0"], "alpha=0.0"),
        (["--eta", "0.001"], "eta=0.001 is not between 0.1 and 0.95"),
        (["--sigma", "1e6,1,0"], "is not between 0 and 200 pixels"),
        (["--cc-up", "1000000000"], "cc_up=1000000000 is above 1000"),
        (["--update-lag", "1" + 30 * "0"], "is above 100000"),
        (["--iterations", "1000000000"], "iterations=1000000000 is above 100000"),
        (["--const-assumption", "colour"], "const_assumption='colour' is not one of gc, gray, cs"),
        (["--solver", "magic"], "solver='magic' is not one of"),
        (["--reference", "90:95"], "holds none of the 6 frames"),
        (["--reference", "nowhere.tif"], "nowhere.tif"),
        (["--weight", "0.5,0.5"], "weight has shape (2,)"),
        (["--sigma", "1,1"], "sigma has shape (2,)"),
        (["--flow", "flow.png"], ".png"),
        (["--batch", "0"], "batch=0 is below 1"),
        (["--workers", "0"], "n_workers=0 is below 1"),
        (["--channels", "4"], "4"),
        (["--axes", "QQ"], "QQ"),
        (["--options", "options.yaml"], "options.yaml"),
    ],
)
def test_bad_arguments(
    arguments: list[str], told: str, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.iterdir())
    assert register(recording, tmp_path / "out.tif", *arguments) == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_unknown_executor(recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["register", str(recording), str(tmp_path / "out.tif"), "--executor", "warp drive"]) == 2
    assert "executor='warp drive' is not one of auto, " in capsys.readouterr().err


@pytest.mark.parametrize("text", ["--alpha=x", "--cc-initialization=maybe", "--no-such-option"])
def test_usage_error(text: str, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        register(recording, tmp_path / "out.tif", text)
    assert stopped.value.code == 2
    assert "error" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--alpha", "abc"], "--alpha: 'abc' is not one number, or two with a comma between, from 1e-06 to 1e+06"),
        (["--eta", "0,8"], "--eta: '0,8' is not a number, from 0.1 to 0.95"),
        (["--levels", "1.5"], "--levels: '1.5' is not a whole number, from 1 to 1000"),
        (["--min-level", "low"], "--min-level/--min_level: 'low' is not a whole number, from 0 to 1000"),
        (["--cc-hw", "big"], "--cc-hw/--cc_hw: 'big' is not one whole number, or two with a comma between, from 8 to"),
        (["--sigma", "1;x"], "--sigma: '1;x' is not three numbers with commas between, or such a triple for each"),
        (["--weight", "a,b"], "--weight: 'a,b' is not numbers with commas between, one for each channel"),
        (["--gnc-schedule", "on"], "--gnc-schedule/--gnc_schedule: 'on' is not numbers with commas between"),
        (["--cc-initialization", "maybe"], "'maybe' is not true or false"),
        (["--workers", "all"], "--workers: 'all' is not a whole number"),
        (["--batch", "1e3"], "--batch: '1e3' is not a whole number"),
        (["--channels", "two"], "--channels: 'two' is not a whole number"),
        (["--verify", "yes"], "--verify: 'yes' is not a whole number"),
    ],
)
def test_what_a_flag_takes(
    arguments: list[str], told: str, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where its text cannot be read, and without a word of Python."""
    with pytest.raises(SystemExit) as stopped:
        register(recording, tmp_path / "out.tif", *arguments)
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert told in err
    assert "value:" not in err


def test_output_is_the_input(recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = recording.read_bytes()
    (tmp_path / "link.tif").symlink_to(recording)
    for target in (recording, tmp_path / "link.tif"):
        assert register(recording, target) == 2
        assert "is the input" in capsys.readouterr().err
    assert recording.read_bytes() == content


def test_no_such_output_folder(recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert register(recording, tmp_path / "nowhere" / "out.tif") == 2
    assert "folder of the output does not exist" in capsys.readouterr().err


def test_reference_with_nan(movie: NDArray[np.uint16], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = movie.astype(np.float32)
    frames[2, 5, 6] = np.nan
    tifffile.imwrite(tmp_path / "movie.tif", frames)
    assert register(tmp_path / "movie.tif", tmp_path / "out.tif", "--reference", "0:4") == 2
    assert "frame 2 of the reference holds 1 NaN or infinite pixel" in capsys.readouterr().err
    assert register(tmp_path / "movie.tif", tmp_path / "out.tif", "--reference", "3:6") == 0
    assert "NaN or infinite pixels, taken from the reference: 1" in capsys.readouterr().out


def test_bad_frames_warn(movie: NDArray[np.uint16], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    movie[3] = 7
    tifffile.imwrite(tmp_path / "movie.tif", movie)
    assert register(tmp_path / "movie.tif", tmp_path / "out.tif", "--reference", "0:2") == 0
    assert "flowreg-gpu: warning: 1 bad frames (3) are left as they are" in capsys.readouterr().err
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif")[3], movie[3])


def test_disk_full_while_writing(
    recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = []

    def fill_up(self: ReservedFileWriter, offset: int, slab: NDArray[np.uint16]) -> None:
        written.append(offset)
        if len(written) > 1:
            raise OSError(errno.ENOSPC, "No space left on device", self.pending.path)

    monkeypatch.setattr(ReservedFileWriter, "_write_bytes", fill_up)
    assert register(recording, tmp_path / "out.tif", "--batch", 2, "--reference", "0:2") == 1
    err = capsys.readouterr().err
    assert "No space left on device" in err
    assert "warning: 2 of 6 frames were finished and are kept in" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "movie.tif",
        "out.partial.tif",
        "out.partial.tif.journal",
    ]


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from flowreg_gpu.cli import demo

    make_movie = demo.make_movie
    monkeypatch.setattr(demo, "make_movie", lambda: make_movie(4, 64, 72))
    assert main(["demo", "--output", str(tmp_path / "files"), "--executor", "threading"]) == 0
    out = capsys.readouterr().out
    before, after = (float(word) for word in out.split("end-point error: ")[1].split() if word[0].isdigit())
    assert after < 0.4 * before
    for name in ("demo.tif", "demo_registered.tif", "demo_true_flow.tif"):
        assert (tmp_path / "files" / name).is_file()
    with tifffile.TiffFile(tmp_path / "files" / "demo_registered.tif") as tif:
        assert (tif.series[0].axes, tif.series[0].shape) == ("TCYX", (4, 2, 64, 72))


def test_demo_motion_is_known() -> None:
    from flowreg_gpu.synthetic import make_movie

    motion = make_movie(5, 64, 80, photons=2000)
    undone = fg.warp(motion.movie.astype(np.float32), motion.flow, motion.reference)
    inner = (slice(None), slice(8, -8), slice(8, -8))
    span = np.ptp(motion.reference)
    assert np.abs(undone - motion.reference)[inner].mean() < 0.01 * span
    assert np.abs(motion.movie - motion.reference)[inner].mean() > 0.02 * span


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert f"numpy {np.__version__}" in out
    assert "CPU" in out
    assert fg.gpu_status().reason in out
    assert "would be used" in out


def test_runs_from_a_checkout(compiled: None, recording: Path, tmp_path: Path) -> None:
    command = ["-m", "flowreg_gpu", "register", recording, tmp_path / "out.tif"]
    command += ["--reference", "0:6", "--workers", "2", "--executor", "gpu"]
    done = run_program(*command, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("warning") == 1
    assert f"executor='gpu' cannot be used ({fg.gpu_status().reason}); using 'multiprocessing'" in done.stderr
    assert register(recording, tmp_path / "sequential.tif", "--reference", "0:6") == 0
    assert (tmp_path / "out.tif").read_bytes() == (tmp_path / "sequential.tif").read_bytes()


def test_main_is_where_older_installations_look_for_it() -> None:
    """The script that an earlier version installed imports it from the package."""
    script = "import sys; from flowreg_gpu.cli import main; sys.exit(main(['--version']))"
    done = run_program("-c", script)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("flowreg-gpu ")
