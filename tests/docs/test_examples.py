"""The example scripts run, as a user runs them."""

import os
import subprocess
import sys

import pytest

from tests.docs.pages import REPOSITORY

EXAMPLES = sorted((REPOSITORY / "examples").glob("*.py"))


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.name)
def test_example(script, tmp_path):
    """In an empty folder, with warnings as errors."""
    command = [sys.executable, "-W", "error", str(script)]
    paths = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_every_example_is_listed():
    text = (REPOSITORY / "examples" / "README.md").read_text(encoding="utf-8")
    assert EXAMPLES
    for script in EXAMPLES:
        assert f"]({script.name})" in text
