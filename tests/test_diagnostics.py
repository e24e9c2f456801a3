"""What `flowreg-gpu doctor` says of this machine, and of one with a GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import flowreg_gpu as fg
from flowreg_gpu import diagnostics
from flowreg_gpu.cuda.device import DeviceFacts
from flowreg_gpu.executors.gpu import GPUStatus


def facts_of(report):
    """The report's facts by name; names are apart from facts by two blanks or more."""
    return {name: fact.strip() for name, fact in (line.split("  ", 1) for line in report.splitlines())}


def test_without_gpu(monkeypatch):
    monkeypatch.setattr(diagnostics, "gpu_status", lambda: GPUStatus(False, "no NVIDIA driver is installed"))
    told = facts_of(diagnostics.report())
    assert told["GPU"] == "not used: no NVIDIA driver is installed"
    assert not {"GPU memory", "GPU batch", "CUDA"} & set(told)
    amount, unit, _ = told["device memory"].split(" ", 2)
    assert float(amount) <= 24
    assert unit == "MB"


def test_with_gpu(monkeypatch):
    facts = DeviceFacts("NVIDIA H200", (9, 0), "13.0", "13.2", "13.5", "14.2.0", 3 * 2**30, 140 * 2**30, 132)
    monkeypatch.setattr(diagnostics, "gpu_status", lambda: GPUStatus(True, "NVIDIA H200, compute capability 9.0"))
    monkeypatch.setattr(diagnostics, "device_facts", lambda: facts)
    told = facts_of(diagnostics.report())
    assert told["GPU"] == "usable: NVIDIA H200, compute capability 9.0"
    assert told["GPU memory"] == "3.0 of 140.0 GiB free"
    assert told["GPU batch"] == "86 frames of 512 x 512, one channel, uint16, quality"  # 0.6 of 3 GiB
    assert told["CUDA"] == "13.0 of the driver, 13.2 of CuPy 14.2.0, 13.5 of NVRTC"


def test_report_and_description_say_the_same():
    facts, told = diagnostics.describe(), facts_of(diagnostics.report())
    assert json.loads(json.dumps(facts)) == facts
    assert told["Python"] == f"{facts['python']} on {facts['system']}"
    assert told["CPU"].endswith(f" of {facts['cores']} cores usable")
    assert told["NVIDIA driver"] == (facts["nvidia_driver"] or "not found in /proc")
    for package in ("numpy", "numba", "tifffile"):
        assert told[package] == f"{package} {facts['versions'][package]}"
    assert f"{facts['cores']} cores; Python {facts['python']}" in diagnostics.one_line(facts)


@pytest.mark.gpu
def test_real_gpu():
    status = fg.gpu_status()
    if not status.usable:
        pytest.skip(f"no usable GPU: {status.reason}")
    told = facts_of(diagnostics.report())
    assert status.reason in told["GPU"]
    assert {"GPU memory", "CUDA"} <= set(told)


def test_says_the_reason_without_cupy():
    """In a process of its own, in which cupy cannot be imported."""
    script = "import sys; sys.modules['cupy'] = None\nfrom flowreg_gpu.cli.main import main\nsys.exit(main(['doctor']))"
    command = [sys.executable, "-W", "error", "-c", script]
    repository = Path(__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=repository, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "not used: CuPy is not installed" in facts_of(done.stdout)["GPU"]
