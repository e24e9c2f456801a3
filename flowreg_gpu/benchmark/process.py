"""A row in a process of its own, and the memory that it and its workers take."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from flowreg_gpu.benchmark.row import Task

__all__ = ["run_apart", "tree_bytes"]

SAMPLING = 0.2  # seconds between samples of the memory; one takes a few milliseconds of another core
PATIENCE = 10.0  # seconds that a process that was told to end may take


def run_apart(task: Task) -> dict[str, Any]:
    """Figures of a row (see `row.measure`), measured in a fresh process, with its largest `host_bytes`.

    What the process prints is kept from the terminal; where it ends without a result, its last line is the reason.
    """
    folder = Path(task.folder)
    result, log = folder / "result.json", folder / "log.txt"
    result.unlink(missing_ok=True)
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "flowreg_gpu.benchmark.row", json.dumps(task._asdict()), str(result)]
    peak = 0
    with open(log, "wb") as output:
        # a session of its own: an interrupt of the terminal's comes from here, once
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            while process.poll() is None:
                peak = max(peak, tree_bytes(process.pid))
                try:
                    process.wait(SAMPLING)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            _end(process)
    if not result.exists():
        return {"failed": _last_words(log, process.returncode)}
    figures: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return {**figures, "host_bytes": peak or None} if "seconds" in figures else figures


def _end(process: subprocess.Popen[bytes]) -> None:
    """See that a process is over; it is interrupted first, so that it can stop its workers."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)
        try:
            process.wait(PATIENCE)
        except BaseException as error:  # or interrupted once more
            process.kill()
            process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise


def _last_words(log: Path, status: int) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"its process ended with status {status}: {lines[-1].strip() if lines else 'no message'}"


def tree_bytes(root: int) -> int:
    """Proportional set size of a process and all its descendants, shared memory counted once; 0 but on Linux."""
    total, waiting = 0, [root]
    while waiting:
        pid = waiting.pop()
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += 1024 * int(next(line for line in rollup.splitlines() if line.startswith("Pss:")).split()[1])
            for task in Path(f"/proc/{pid}/task").iterdir():
                waiting += [int(child) for child in (task / "children").read_text().split()]
        except (OSError, StopIteration):  # it has ended, or the kernel does not tell
            continue
    return total
