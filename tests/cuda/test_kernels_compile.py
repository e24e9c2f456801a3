"""Every kernel compiles for every architecture, without a warning; what it takes of a multiprocessor is on record.

NVRTC needs neither a GPU nor a driver, so this runs wherever CuPy and NVRTC can be installed.
"""

import re

import pytest

from benchmarks.kernel_resources import (
    TABLE,
    Resources,
    compile_file,
    compiler_version,
    format_table,
    instantiations,
    measure_all,
    parse_report,
    read_table,
)
from flowreg_gpu.cuda.source import kernel_files, kernel_source

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
HOT = {"descend.cu", "median.cu", "multigrid.cu", "solver.cu"}  # most of the time of a registration is spent here
KERNELS = instantiations()


@pytest.fixture(scope="module")
def known_architectures():
    """Compute capabilities that this NVRTC compiles for."""
    try:
        from cupy.cuda import nvrtc

        return nvrtc.getSupportedArchs()
    except Exception as error:  # ImportError without CuPy, the loader's errors without NVRTC
        pytest.skip(f"NVRTC is not available through CuPy: {' '.join(str(error).split())}")


def test_every_file_has_a_launcher():
    assert list(KERNELS) == kernel_files()


@pytest.mark.parametrize("file", kernel_files())
def test_every_kernel_is_instantiated(file):
    text = re.sub(r"//.*|__launch_bounds__\s*\([^)]*\)", "", kernel_source(file))
    kernels = set(re.findall(r"__global__\s+void\s+(\w+)\s*\(", text))
    assert len(kernels) == len(re.findall("__global__", text))
    assert kernels == {expression.partition("<")[0] for expression in KERNELS[file]}
    assert len(set(KERNELS[file])) == len(KERNELS[file])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("file", KERNELS)
def test_compiles_without_warnings(file, architecture, known_architectures):
    if architecture not in known_architectures:
        pytest.skip(f"NVRTC {compiler_version()} does not know sm_{architecture}")
    compiled = compile_file(file, KERNELS[file], architecture)
    assert compiled.log.strip("\0\n ") == ""
    assert len(set(compiled.symbols.values())) == len(KERNELS[file])


def test_warnings_are_seen(known_architectures, monkeypatch):
    text = "__global__ void leftover() { int unused; }\n"
    monkeypatch.setattr("benchmarks.kernel_resources.kernel_source", lambda file: text)
    assert "warning" in compile_file("leftover.cu", ("leftover",), 90).log


@pytest.mark.usefixtures("known_architectures")
def test_resources():
    version, expected = read_table(TABLE.read_text(encoding="utf-8"))
    measured = measure_all()
    spilled = {kernel: found for kernel, found in measured.items() if kernel[0] in HOT and any(found[2:])}
    assert spilled == {}
    if version != compiler_version():  # which allocates other registers
        measured, expected = measured.keys(), expected.keys()
    assert measured == expected, "run python benchmarks/kernel_resources.py"


def test_report_is_understood():
    log = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z3onev' for 'sm_90'
ptxas info    : Function properties for _Z3onev
    8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 8 bytes cumulative stack size, 2048 bytes smem, 400 bytes cmem[0]
ptxas info    : Function properties for called
    24 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Compiling entry function '_Z3twov' for 'sm_90'
ptxas info    : Function properties for _Z3twov
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers
"""
    assert parse_report(log) == {
        "_Z3onev": Resources(40, 2048, 8, 12, 16),
        "called": Resources(0, 0, 24, 0, 0),
        "_Z3twov": Resources(8, 0, 0, 0, 0),
    }


def test_table_holds_what_was_measured():
    resources = {("a.cu", "one<float, 2>"): Resources(33, 0, 8, 4, 4), ("b.cu", "two"): Resources(32, 16, 0, 0, 0)}
    assert read_table(format_table("13.0", resources)) == ("13.0", resources)


@pytest.mark.parametrize(("registers", "threads", "occupancy"), [(32, 2048, 1), (33, 1536, 0.75), (128, 512, 0.25)])
def test_occupancy(registers, threads, occupancy):
    """By hand: a warp has 1024, 1280 (1056 rounded up) and 4096 of its scheduler's 16384 registers."""
    resources = Resources(registers, 0, 0, 0, 0)
    assert (32 * resources.warps, resources.occupancy) == (threads, occupancy)
