"""Kill runs at random, in every way, and go on with them: is the result always that of an uninterrupted run?

    python benchmarks/deaths.py [DEATHS]

A run of `flowreg-gpu register --resume` is ended at a random time: by SIGKILL of a worker, of the parent or of all its
processes, by SIGTERM, SIGHUP, or SIGINT once or twice. Then it is begun again, until it is complete. Its three files
are compared with those of an uninterrupted run, byte by byte; after the last death `flowreg-gpu clean` is run, and what
is left is counted: files, processes, shared memory.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import tifffile

from flowreg_gpu.registration.journal import JOURNAL_EXTENSION
from flowreg_gpu.synthetic import make_movie
from flowreg_gpu.workers.blocks import leftover_blocks

FRAMES, SIDE = 240, 128
COMMAND = [sys.executable, "-m", "flowreg_gpu"]
REGISTER = ["register", "movie.tif", "--reference", "0:8", "--quality", "fast", "--alpha", "4", "--workers", "2",
            "--batch", "8", "--options", "options.toml", "--no-progress"]  # fmt: skip
#: Seconds after the first batch of a run within which it dies.
LONGEST = 0.6


def children(pid: int) -> list[int]:
    """Processes that a process has started, but for multiprocessing's tracker of resources."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(status.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(status.parent.name))
    return sorted(found)


def kill_worker(pid: int) -> None:
    """End one of the workers."""
    workers = [child for child in children(pid) if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
    if workers:
        os.kill(random.choice(workers), signal.SIGKILL)


def interrupt_twice(pid: int) -> None:
    """Ctrl-C, and once more while results are kept."""
    os.killpg(pid, signal.SIGINT)
    time.sleep(random.random() / 20)
    os.killpg(pid, signal.SIGINT)


DEATHS: dict[str, Callable[[int], None]] = {
    "SIGKILL of a worker": kill_worker,
    "SIGKILL of the parent": lambda pid: os.kill(pid, signal.SIGKILL),
    "SIGKILL of the group": lambda pid: os.killpg(pid, signal.SIGKILL),
    "SIGTERM": lambda pid: os.killpg(pid, signal.SIGTERM),
    "SIGHUP": lambda pid: os.killpg(pid, signal.SIGHUP),
    "SIGINT": lambda pid: os.killpg(pid, signal.SIGINT),
    "SIGINT twice": interrupt_twice,
}


def run_until(death: str | None, folder: Path, executor: str, name: str) -> int:
    """Register with --resume; let the run die some time after its first batch, one in eight before. Its exit status."""
    arguments = [*REGISTER, "-o", f"{name}.tif", "--flow", f"{name}_flow.h5", "--resume", "--executor", executor]
    log = (folder / "log.txt").open("ab")
    process = subprocess.Popen([*COMMAND, *arguments], cwd=folder, stdout=log, stderr=log, start_new_session=True)
    if death is not None:
        journal = folder / f"{name}.partial.tif{JOURNAL_EXTENSION}"
        began, seen = time.monotonic(), journal.stat().st_mtime_ns if journal.exists() else None
        early = random.random() < 1 / 8
        while process.poll() is None and not early and time.monotonic() - began < 60:
            if journal.exists() and journal.stat().st_mtime_ns != seen and journal.stat().st_blocks > 64:
                break
            time.sleep(0.01)
        time.sleep(random.random() * LONGEST)
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            DEATHS[death](process.pid)
    status = process.wait(600)
    log.close()
    return status


def main() -> None:
    """Run, and print what came of it."""
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    random.seed(1)
    # a program in the background ignores these signals, and so would the runs that it starts
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        movie, _, _ = make_movie(FRAMES, SIDE, SIDE)
        tifffile.imwrite(folder / "movie.tif", movie.transpose(0, 3, 1, 2), imagej=True, metadata={"axes": "TCYX"})
        (folder / "options.toml").write_text("buffer_size = 50\n")
        assert run_until(None, folder, "sequential", "whole") == 0, (folder / "log.txt").read_text()
        expected = [(folder / f"whole{end}").read_bytes() for end in (".tif", "_flow.h5", "_statistics.npz")]
        outputs = [folder / f"out{end}" for end in (".tif", "_flow.h5", "_statistics.npz")]
        deaths, statuses, completed, equal = Counter[str](), Counter[int](), 0, 0
        while sum(deaths.values()) < wanted:
            death = random.choice(list(DEATHS))
            status = run_until(death, folder, random.choice(["multiprocessing", "multiprocessing", "threading"]), "out")
            statuses[status] += 1
            deaths[death] += status != 0
            if not outputs[0].exists() or (folder / f"out.partial.tif{JOURNAL_EXTENSION}").exists():
                continue
            completed += 1
            equal += [path.read_bytes() for path in outputs] == expected
            for path in outputs:
                path.unlink()
        status = run_until(None, folder, "threading", "out")
        completed += 1
        equal += [path.read_bytes() for path in outputs] == expected
        run_until("SIGKILL of the group", folder, "multiprocessing", "last")
        unfinished = sorted(path.name for path in folder.glob("*.partial*"))
        subprocess.run([*COMMAND, "clean", "."], cwd=folder, check=True)
        left = sorted(path.name for path in folder.iterdir() if "partial" in path.name or path.name.startswith("."))
        running = [path for path in Path("/proc").glob("[0-9]*/cwd") if _leads_to(path, folder)]
        print(f"{sum(deaths.values())} deaths: {dict(deaths)}")
        print(f"exit status: {dict(statuses)}")
        print(f"completed runs: {completed}, equal to the uninterrupted one to the last byte: {equal}")
        print(f"left before clean: {unfinished}; after it: {left}")
        print(f"processes left: {len(running)}, shared blocks left: {len(leftover_blocks())}")
        if equal != completed or left or running or status or statuses[2] or leftover_blocks():
            print((folder / "log.txt").read_text()[-2000:])
            sys.exit(1)


def _leads_to(path: Path, folder: Path) -> bool:
    try:
        return Path(os.readlink(path)) == folder
    except OSError:
        return False


if __name__ == "__main__":
    main()
