"""Signals that end a command, outputs that take no text, and the names of files on the command line."""

import os
import re
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from flowreg_gpu.cli import main
from flowreg_gpu.cli.stop import Stopped, raise_if_stopped, stopping_on_signals
from tests.movies import recording
from tests.programs import run_program

needs_posix = pytest.mark.skipif(os.name != "posix", reason="signals between processes")

OPTIONS = ["--alpha", "4", "--levels", "3", "--min-level", "1", "--reference", "0:3", "--no-progress"]

# Sends itself signals when the sixth frame is registered, as a terminal and a cluster do: to all of its processes.
PROGRAM = """
import os, signal, sys, time
from flowreg_gpu.cli import register
from flowreg_gpu.cli.main import main

class Bar(register.ProgressBar):
    def __call__(self, stage, finished, total):
        super().__call__(stage, finished, total)
        if (stage, finished) == ("frames", 6):
            for name in sys.argv[2].split(","):
                os.killpg(0, getattr(signal, name))
            time.sleep(60)  # the signal ends it

if sys.argv[2] != "none":
    register.ProgressBar = Bar

if __name__ == "__main__":
    if sys.argv[3:] == ["nohup"]:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    sys.exit(main(["register", "in.tif", "-o", "out.tif", "--resume", "--batch", "3", "--executor", sys.argv[1],
                   "--workers", "1", *OPTIONS]))
"""


@pytest.fixture
def folder(tmp_path):
    tifffile.imwrite(tmp_path / "in.tif", recording(9, 26, 31).frames, photometric="minisblack")
    (tmp_path / "program.py").write_text(PROGRAM.replace("*OPTIONS", ", ".join(map(repr, OPTIONS))))
    return tmp_path


def arguments(folder, *names):
    files = (str(folder / name) if name.endswith(".tif") else name for name in names)
    return ["register", *files, *OPTIONS, "--executor", "sequential"]


@needs_posix
@pytest.mark.parametrize(
    ("executor", "signals", "status", "told"),
    [("threading", "SIGTERM", 143, "stopped by SIGTERM"), ("multiprocessing", "SIGTERM", 143, "stopped by SIGTERM"),
     ("multiprocessing", "SIGHUP", 129, "stopped by SIGHUP"), ("multiprocessing", "SIGINT", 130, "interrupted"),
     ("threading", "SIGINT,SIGINT,SIGTERM", 130, "interrupted"), ("sequential", "SIGTERM,SIGINT", 143, "SIGTERM")],
)  # fmt: skip
def test_stopped_by_a_signal(compiled, folder, executor, signals, status, told):
    """Within a batch, with one line; what was finished is kept, by signals that follow the first, too."""
    done = run_program("program.py", executor, signals, folder=folder)
    assert done.returncode == status, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 2, done.stderr
    assert "warning: 3 of 9 frames were finished and are kept in" in lines[0]
    assert lines[1].startswith("flowreg-gpu: error: ")
    assert told in lines[1]
    assert sorted(os.listdir(folder)) == ["in.tif", "out.partial.tif", "out.partial.tif.journal", "program.py"]
    done = run_program("program.py", executor, "none", folder=folder)
    assert done.returncode == 0, done.stderr
    assert re.match(r"going on after 3 frames of an earlier run\nmemory: about .*\n6 frames in ", done.stdout)
    assert (
        main(["register", str(folder / "in.tif"), str(folder / "whole.tif"), "--executor", "sequential", *OPTIONS]) == 0
    )
    assert (folder / "out.tif").read_bytes() == (folder / "whole.tif").read_bytes()


@needs_posix
def test_a_second_signal_while_python_ends(tmp_path):
    program = """
import atexit, os, signal, sys
from flowreg_gpu.cli import doctor
from flowreg_gpu.cli.main import main

atexit.register(os.kill, os.getpid(), signal.SIGTERM)
doctor.run = lambda _: os.kill(os.getpid(), signal.SIGINT)
sys.argv = ["flowreg-gpu", "doctor"]
sys.exit(main())
"""
    done = run_program("-c", program, folder=tmp_path)
    assert (done.returncode, done.stderr) == (130, "flowreg-gpu: error: interrupted\n")


@needs_posix
def test_a_signal_that_is_ignored_stays_ignored(compiled, folder):
    text = PROGRAM.replace("time.sleep(60)", "pass").replace("*OPTIONS", ", ".join(map(repr, OPTIONS)))
    (folder / "program.py").write_text(text)
    done = run_program("program.py", "threading", "SIGHUP", "nohup", folder=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "out.tif").exists()


@needs_posix
def test_a_signal_that_python_dropped_is_not_lost():
    """An exception within a destructor is printed and forgotten: the next call of the progress bar raises it again."""

    class Deleted:
        def __del__(self):
            with pytest.raises(Stopped):
                os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with stopping_on_signals():
        raise_if_stopped()
        Deleted()
        with pytest.raises(Stopped, match="stopped by SIGTERM") as caught:
            raise_if_stopped()
        os.kill(os.getpid(), signal.SIGTERM)  # those that follow are ignored
    assert caught.value.status == 143
    assert signal.getsignal(signal.SIGTERM) is before
    raise_if_stopped()


# Where no text can go


@needs_posix
@pytest.mark.parametrize("where", ["closed pipe", "full disk", "closed"])
def test_an_output_that_takes_no_text_does_not_fail_the_run(compiled, folder, where):
    program = (
        "import os, sys\n"
        "reading, writing = os.pipe()\n"
        "os.close(reading)\n"
        "where = sys.argv[1]\n"
        "if where == 'closed': os.close(1)\n"
        "else: os.dup2(writing if where == 'closed pipe' else os.open('/dev/full', os.O_WRONLY), 1)\n"
        f"os.execv(sys.executable, [sys.executable, '-m', 'flowreg_gpu', 'register', 'in.tif', 'out.tif', '--executor',"
        f" 'threading', *{OPTIONS!r}])\n"
    )
    if where == "full disk" and not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    done = run_program("-c", program, where, folder=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "out.tif").exists()
    told = "warning: standard output takes no text" in done.stderr
    assert told == (where != "closed")
    assert "Exception ignored" not in done.stderr


# Names of files


def test_the_output_was_forgotten(folder, capsys):
    """register raw_*.tif: the last of them was replaced once."""
    frames = recording(9, 26, 31).frames
    for name in ("raw_1.tif", "raw_2.tif"):
        tifffile.imwrite(folder / name, frames, photometric="minisblack")
    before = {name: (folder / name).read_bytes() for name in os.listdir(folder)}
    assert main(arguments(folder, "raw_1.tif", "raw_2.tif")) == 2
    assert "the output exists; only overwrite=True (--overwrite) replaces it" in capsys.readouterr().err
    assert main(arguments(folder, "in.tif", "raw_1.tif", "raw_2.tif", "--overwrite")) == 2
    assert "with several inputs, --overwrite needs the output named by -o OUT" in capsys.readouterr().err
    assert main(arguments(folder, "raw_1.tif")) == 2
    assert "is the only file named, expected an input and an output" in capsys.readouterr().err
    assert {name: (folder / name).read_bytes() for name in os.listdir(folder)} == before


def test_output_named_by_a_flag(folder, capsys):
    assert main(arguments(folder, "in.tif", "out.tif")) == 0
    assert main(arguments(folder, "-o", "other.tif", "in.tif")) == 0
    np.testing.assert_array_equal(tifffile.imread(folder / "other.tif"), tifffile.imread(folder / "out.tif"))
    assert main(arguments(folder, "in.tif", "--output", "other.tif")) == 2
    assert main(arguments(folder, "in.tif", "--output", "other.tif", "--overwrite")) == 0
    assert f"registered: {folder / 'other.tif'}" in capsys.readouterr().out


def test_status_of_a_changed_input(folder, capsys, monkeypatch):
    from flowreg_gpu.cli import register

    class Bar(register.ProgressBar):
        def __call__(self, stage, finished, total):
            if (stage, finished) == ("frames", 6):
                os.utime(folder / "in.tif", (1, 1))

    monkeypatch.setattr(register, "ProgressBar", Bar)
    assert main(arguments(folder, "in.tif", "out.tif")) == 1
    told = capsys.readouterr()
    assert "in.tif' was changed while it was registered" in told.err
    assert "registered: " in told.out


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX terminals")
def test_a_terminal_that_was_closed(monkeypatch):
    """The bar writes to standard error, where nothing can be written any more; the run goes on."""
    from flowreg_gpu.cli import progress

    def refuse(*arguments, **keywords):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(progress, "tqdm", refuse)
    with progress.ProgressBar(True) as bar:
        bar("frames", 1, 3)
        bar("frames", 2, 3)
