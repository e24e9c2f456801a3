"""What a measurement has to say about where it was made, and where its figures go."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def describe() -> dict[str, Any]:
    """CPU, cores, system, versions and commit."""
    from flowreg_gpu import diagnostics  # of the checkout, which the script has preferred by now

    return {**diagnostics.describe(), "commit": _commit()}


def save(name: str, results: dict[str, Any]) -> None:
    """Write results/<name>.json and print where the figures come from."""
    facts = describe()
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({"machine": facts, **results}, indent=1) + "\n")
    print(f"\n{one_line(facts)}")


def one_line(facts: dict[str, Any]) -> str:
    """What `describe` returns as text."""
    from flowreg_gpu import diagnostics

    return f"{diagnostics.one_line(facts)}; commit {facts['commit']}"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table in Markdown; the first column is text, the others figures."""
    rule = [":---", *["---:"] * (len(columns) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (columns, rule, *rows)]


def use_one_core() -> None:
    """Keep this process, and the threads of libraries not yet loaded, on one core."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = "1"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def import_checkout() -> None:
    """Prefer the checkout that holds this script to an installed package; tests come along."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def _commit() -> str:
    """Commit of the checkout, marked where the package differs from it."""
    folder = Path(__file__).resolve().parent.parent
    try:
        command = ["git", "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder).stdout.strip()
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "flowreg_gpu"], check=False, cwd=folder)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("-dirty" if changed.returncode else "")
