"""Programs that tests run in processes of their own, and how long a test waits for anything."""

import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

SHM = Path("/dev/shm")
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
        preexec_fn=_heed_signals if os.name == "posix" else None,
    )  # fmt: skip


def _heed_signals():
    """Undo what nohup and background jobs do, else the programs would ignore signals that tests send."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def held_blocks():
    """Blocks of shared memory that this process holds by a descriptor, or that have its name in /dev/shm.

    Nothing on systems that do not list them (macOS, Windows).
    """
    gc.collect()  # arrays that the traceback of an expected exception refers to
    held = set(named_blocks(os.getpid()))
    for descriptor in Path("/proc/self/fd").glob("*"):
        try:
            target = os.readlink(descriptor)
        except FileNotFoundError:  # the one that listed the folder
            continue
        if "flowreg_" in Path(target).name or "memfd:flowreg_" in target:
            held.add(target)
    return held


def named_blocks(pid):
    """Names in /dev/shm of blocks that a process has made."""
    return [path.name for path in SHM.glob(f"flowreg_{pid}_*")] if SHM.is_dir() else []
