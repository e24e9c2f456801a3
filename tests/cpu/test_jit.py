"""Kernels where numba cannot keep what it has compiled, and what the kernels are compiled with."""

import os
import shutil

import numpy as np
import pytest

from flowreg_gpu.cpu.median import median5x5
from tests.programs import REPOSITORY, run_program

PROGRAM = """
import sys
import numpy as np
import flowreg_gpu
from flowreg_gpu.cpu.median import median5x5
np.save(sys.argv[1], median5x5(np.load(sys.argv[2])))
print(flowreg_gpu.__file__)
"""
SPAWNING = """
from multiprocessing import get_context

def load():
    import flowreg_gpu.cpu.median as kernels
    return kernels.__file__

if __name__ == "__main__":
    with get_context("spawn").Pool(1) as pool:
        print(pool.apply(load))
"""
TOLD = "compiled kernels cannot be kept, neither beside the package nor in a home directory"


@pytest.fixture
def installation(tmp_path, monkeypatch):
    """A copy of the package in which nothing can be kept, and no home directory.

    Root may write to a read-only folder, so that permissions would prove nothing where the tests are run by root. In
    the place of the folder for compiled files is a file here, and the home directory lies in one that cannot be made:
    numba meets the same OSError as in a read-only installation, whoever runs it.
    """
    shutil.copytree(
        REPOSITORY / "flowreg_gpu", tmp_path / "flowreg_gpu", ignore=shutil.ignore_patterns("__pycache__", "*.nb*")
    )
    for folder in (tmp_path / "flowreg_gpu", *(tmp_path / "flowreg_gpu").rglob("*/")):
        (folder / "__pycache__").touch()
    (tmp_path / "file").touch()
    for name in ("HOME", "XDG_CACHE_HOME", "USERPROFILE", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path / "file" / "none"))
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    return tmp_path


def run_median(installation, *arguments):
    """Output of a program that takes a median with the package of the installation, and its result."""
    planes = np.random.default_rng(1).standard_normal((2, 17, 31)).astype(np.float32)
    np.save(installation / "planes.npy", planes)
    result, source = installation / "median.npy", installation / "planes.npy"
    program = f"import sys; sys.path.insert(0, {str(installation)!r}){PROGRAM}"
    done = run_program(*arguments, "-c", program, result, source, folder=installation)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(installation / "flowreg_gpu" / "__init__.py")
    np.testing.assert_array_equal(np.load(result), median5x5(planes))
    return done


def test_without_a_cache(installation):
    done = run_median(installation)
    assert done.stderr.count(TOLD) == 1
    assert "NUMBA_CACHE_DIR" in done.stderr


def test_with_the_folder_that_the_warning_names(installation, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(installation / "kernels"))
    assert not run_median(installation).stderr
    assert [name for _, _, names in os.walk(installation / "kernels") for name in names if name.endswith(".nbc")]


def test_workers_say_nothing_of_it(installation):
    """The parent has said it; the import of the kernels is what warns, here in a spawned process."""
    script = installation / "script.py"
    script.write_text(SPAWNING)
    done = run_program(script, folder=installation)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(installation / "flowreg_gpu" / "cpu" / "median.py")
    assert TOLD not in done.stderr
