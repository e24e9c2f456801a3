"""What the benchmark found: one table for the terminal, and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flowreg_gpu.benchmark.rivals import BACKENDS
from flowreg_gpu.diagnostics import one_line
from flowreg_gpu.io import PathLike, PendingFile

__all__ = ["Report"]

COLUMNS = ("preset", "executor", "frames", "frames/s", "ms/frame", "ratio", "memory", "on GPU", "error", "verified")
SCHEDULE = ("preset", "launches per batch", "MB per frame", "updates per frame", "measured")


class Report(NamedTuple):
    """Everything that was measured, ready for JSON; `str` makes the table of it."""

    results: dict[str, Any]

    @property
    def failures(self) -> list[str]:
        """Our executors that failed or whose results are wrong, a line each; a rival's fault is none of ours."""
        return [
            f"{row['executor']}, {row['quality']}: {row['failed']}"
            for row in self.results["rows"]
            if "failed" in row and row["executor"] not in BACKENDS
        ]

    def save(self, path: PathLike, *, overwrite: bool = False) -> None:
        """Write JSON, which appears under its name when it is complete."""
        with PendingFile(path, overwrite=overwrite) as pending:
            Path(pending.path).write_text(json.dumps(self.results, indent=1) + "\n", encoding="utf-8")

    def __str__(self) -> str:
        results, settings = self.results, self.results["settings"]
        size = f"{settings['height']} x {settings['width']} pixels, {settings['channels']} channel"
        gpus = {_gpu_line(row["gpu"]) for row in results["rows"] if row.get("gpu")}
        baseline = results["baseline"]
        compared = f"times as fast as {_program(baseline)}" if baseline else "nothing to compare with was measured"
        return "\n".join(
            [
                f"flowreg_gpu {results['flowreg_gpu']}, {results['date']}",
                one_line(results["machine"]),
                *gpus,
                *_busy(results["machine"]),
                "",
                f"{size}{'s' if settings['channels'] > 1 else ''}, uint16, noisy, with known motion",
                "timed: TIFF file to TIFF file, workers started and kernels compiled before (pyflowreg starts its own)",
                "frames/s: frames written, and those that the start flow registers beforehand",
                f"ratio: {compared}",
                "memory: largest of process, workers and shared memory together",
                f"error: end-point error, {results['end_point_error_without']:.3f} px without registration",
                "verified: how far the flow is from that of sequential, 99th percentile",
                "",
                *_table(COLUMNS, map(_cells, results["rows"])),
                "",
                *self._schedule(),
            ]
        )

    def _schedule(self) -> list[str]:
        """The counted work of a GPU, beside what was measured."""
        measured = {
            row["quality"]: row for row in self.results["rows"] if row["executor"] == "gpu" and "seconds" in row
        }
        cells = [
            [
                each["quality"],
                str(each["launches"]),
                f"{each['bytes_per_frame'] / 1e6:.1f}",
                f"{each['updates_per_frame'] / 1e6:.2f} M",
                f"{measured[each['quality']]['ms_per_frame']:.3f} ms" if each["quality"] in measured else "no GPU",
            ]
            for each in self.results["schedule"]
        ]
        batch = self.results["schedule"][0]["batch"]
        return [
            f"Schedule model of the GPU, counted from the code for batches of {batch} frames",
            "MB: every launch moves each of its buffers once; update: one pixel in one sweep of the solver",
            "",
            *_table(SCHEDULE, cells),
        ]


def _busy(machine: dict[str, Any]) -> list[str]:
    """A warning where a quarter of the CPUs or more had work in the minute before."""
    load, cores = machine["load_average"], machine["cores"]
    if not load or load < 0.25 * cores:
        return []
    return [f"the machine was busy before (load average {load:.1f} on {cores} cores): the figures may be too low"]


def _program(executor: str) -> str:
    """What a row is called."""
    if executor not in BACKENDS:
        return executor
    backend, _, kind = BACKENDS[executor]
    return f"pyflowreg {backend or kind}"


def _cells(row: dict[str, Any]) -> list[str]:
    """A line of the table; what was not measured says why, in the place of the figures."""
    name = [row["quality"], _program(row["executor"])]
    if "seconds" not in row:
        return [*name, f"FAILED: {row['failed']}" if "failed" in row else f"not measured: {row['skipped']}"]
    return [
        *name,
        str(row["frames"]),
        f"{row['frames_per_second']:.2f}",
        f"{row['ms_per_frame']:.2f}",
        f"{row['ratio']:.2f}" if row["ratio"] else "n/a",
        _megabytes(row["host_bytes"]),
        _megabytes(row["device_bytes"]) if row["device_bytes"] is not None else "-",
        f"{row['end_point_error']:.3f} px",
        f"{row['verification']['percentile_99']:.2g} px" if "verification" in row else "-",
    ]


def _megabytes(nbytes: int | None) -> str:
    return "n/a" if nbytes is None else f"{nbytes / 1e6:.0f} MB"


def _gpu_line(facts: dict[str, Any]) -> str:
    capability = ".".join(map(str, facts["capability"]))
    return (
        f"{facts['name']}, compute capability {capability}, {facts['total_memory'] / 2**30:.0f} GiB; CUDA "
        f"{facts['driver']} of the driver, {facts['runtime']} of CuPy {facts['cupy']}, {facts['nvrtc']} of NVRTC"
    )


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table; the first columns of text left, figures right; a shorter row ends in a text of any length."""
    cells = [columns, *rows]
    complete = [row for row in cells if len(row) == len(columns)]
    widths = [max(len(row[index]) for row in complete) for index in range(len(columns))]
    for index in (0, 1):
        widths[index] = max([widths[index], *(len(row[index]) for row in cells)])
    lines = []
    for row in cells:
        texts = [text.ljust(width) for text, width in zip(row[:2], widths, strict=False)]
        figures = [text.rjust(width) for text, width in zip(row[2:], widths[2:], strict=False)]
        lines.append("  ".join([*texts, *(figures if len(row) == len(columns) else row[2:])]).rstrip())
    return lines
