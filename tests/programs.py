"""Programs that tests run in processes of their own, and how long a test waits for anything."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]

# Seconds. No test measures by it: it only ends what would wait for ever, so it leaves room for a machine that is busy
# with twenty other programs and for kernels that are compiled first.
LIMIT = 600


def run_program(*arguments, folder=REPOSITORY):
    """Run Python with these arguments on the package of this checkout; wait for all its processes to end.

    The program is the leader of a group of processes of its own: signals to its group do not reach the tests. Workers
    inherit its output, so that the output ends only when they have ended too.

    Parameters
    ----------
    *arguments : str or Path
        As on a command line: ``"-c", text``, ``"-m", module, ...`` or a script, and its arguments.
    folder : Path
        Working folder.

    Returns
    -------
    subprocess.CompletedProcess
        With `returncode`, and `stdout` and `stderr` as text.
    """
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True,
        text=True, timeout=LIMIT, check=False, start_new_session=True,
    )  # fmt: skip
