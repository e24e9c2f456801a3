"""Fixtures that several test modules share."""

from pathlib import Path

import hypothesis
import pytest

from tests.programs import run_program

# Property tests: the same few examples in every run of the suite, and no limit of time, since machines are busy. "long"
# draws other examples in every run, and many of them: python -m pytest --hypothesis-profile=long
SHARED = {"deadline": None, "database": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("suite", derandomize=True, max_examples=30, **SHARED)
hypothesis.settings.register_profile("long", derandomize=False, max_examples=1000, print_blob=True, **SHARED)
hypothesis.settings.load_profile("suite")


@pytest.fixture(scope="session")
def compiled():
    """Programs find the kernels of the CPU in numba's cache: one program compiles them, once for all tests.

    A program that is interrupted half-way or whose output is compared would otherwise wait for the compiler first.
    """
    program = "import numpy as np, flowreg_gpu as fg\n"
    program += "frames = np.random.default_rng(0).integers(0, 4000, (2, 26, 31)).astype(np.uint16)\n"
    program += "fg.register(frames, frames[0], 'sequential', alpha=4, levels=3, min_level=1)\n"
    done = run_program("-c", program)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the recordings and upstream results that lie beside the repository, not in it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("shared/data with upstream's results is not beside this repository")
    return folder
