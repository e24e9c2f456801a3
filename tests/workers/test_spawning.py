"""What keeps a process from starting workers, as far as it can be known beforehand."""

import sys
from multiprocessing import process, spawn
from types import ModuleType, SimpleNamespace

import pytest

from flowreg_gpu.workers.spawning import obstacle_to_workers


@pytest.fixture
def script(monkeypatch):
    """A main module in the place of pytest's."""
    main = ModuleType("__main__")
    main.__spec__ = None
    monkeypatch.setitem(sys.modules, "__main__", main)
    return main


def test_this_process_can():
    assert obstacle_to_workers() is None


def test_a_daemonic_worker_cannot(monkeypatch):
    monkeypatch.setattr(process.current_process(), "_config", {"daemon": True})
    assert "daemonic" in obstacle_to_workers()


def test_a_script_that_is_no_file(script):
    script.__file__ = "<stdin>"
    assert "<stdin>' is no file" in obstacle_to_workers()


def test_mains_that_workers_need_not_import(script):
    assert obstacle_to_workers() is None  # interactive, or python -c
    script.__file__, script.__spec__ = "<stdin>", SimpleNamespace(name="package.__main__")  # python -m package
    assert obstacle_to_workers() is None


def test_a_script_that_is_a_file(script, tmp_path, monkeypatch):
    (tmp_path / "script.py").touch()
    script.__file__ = "script.py"
    monkeypatch.setattr(process, "ORIGINAL_DIR", str(tmp_path))  # where it was started, whatever the folder is now
    assert obstacle_to_workers() is None


@pytest.mark.parametrize("executable", [None, b"", b"/nowhere/python"])
def test_python_within_another_program(monkeypatch, executable):
    monkeypatch.setattr(spawn, "get_executable", lambda: executable)
    assert "embedded" in obstacle_to_workers()


def test_a_process_that_is_being_started_is_told_by_the_pool(monkeypatch):
    monkeypatch.setattr(process.current_process(), "_config", {"daemon": True})
    monkeypatch.setattr(process.current_process(), "_inheriting", True, raising=False)
    assert obstacle_to_workers() is None
