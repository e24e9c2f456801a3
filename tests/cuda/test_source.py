"""One text of a kernel file and its headers: each header once, every line under its own file and number."""

import re

import pytest

from flowreg_gpu.cuda import source
from flowreg_gpu.cuda.source import kernel_files, kernel_source, kernels_folder

HEADER = """#pragma once
__device__ int one() { return 1; }
"""
SECOND = """#pragma once
#include "first.cuh"
__device__ int two() { return one() + wrong_in_header; }
"""
KERNEL = """// A kernel with two mistakes.
#include "first.cuh"
#include "second.cuh"  // which includes first.cuh, too

__global__ void broken(int* out) {
  out[0] = two();
  out[1] = wrong_in_kernel;
}
"""


@pytest.fixture
def broken_kernel(tmp_path, monkeypatch):
    for name, text in (("first.cuh", HEADER), ("second.cuh", SECOND), ("broken.cu", KERNEL)):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(source, "kernels_folder", lambda: tmp_path)
    kernel_source.cache_clear()
    yield "broken.cu"
    kernel_source.cache_clear()


def origins(text):
    """(file, line, text) of every line as a compiler sees it."""
    found, file, number = [], "", 0
    for line in text.splitlines():
        directive = re.fullmatch(r'#line (\d+) "(.+)"', line)
        if directive:
            number, file = int(directive[1]), directive[2]
        else:
            found.append((file, number, line))
            number += 1
    return found


def test_headers_once_and_lines_right(broken_kernel):
    text = kernel_source(broken_kernel)
    assert text.count("int one()") == 1
    assert "#include" not in text
    assert "#pragma once" not in text
    originals = {"first.cuh": HEADER, "second.cuh": SECOND, "broken.cu": KERNEL}
    expected = {
        (file, number, line)
        for file, original in originals.items()
        for number, line in enumerate(original.splitlines(), 1)
        if not line.startswith("#")
    }
    assert {origin for origin in origins(text) if origin[2]} == {origin for origin in expected if origin[2]}


@pytest.mark.parametrize("file", kernel_files())
def test_lines_of_the_kernels(file):
    folder = kernels_folder()
    for name, number, line in origins(kernel_source(file)):
        original = (folder / name).read_text(encoding="utf-8").splitlines()[number - 1]
        assert line == original or (line, original) == ("", "#pragma once")


def test_compiler_names_the_original_line(broken_kernel):
    nvrtc = pytest.importorskip("cupy.cuda", exc_type=ImportError).nvrtc
    try:
        program = nvrtc.createProgram(kernel_source(broken_kernel), "text.cu", (), ())
    except Exception as error:  # the loader's, where NVRTC is missing
        pytest.skip(f"NVRTC is not available through CuPy: {error}")
    with pytest.raises(nvrtc.NVRTCError):
        nvrtc.compileProgram(program, ())
    log = nvrtc.getProgramLog(program)
    nvrtc.destroyProgram(program)
    assert re.findall(r'(\w+\.cuh?)\((\d+)\): error: identifier "(\w+)"', log) == [
        ("second.cuh", "3", "wrong_in_header"),
        ("broken.cu", "7", "wrong_in_kernel"),
    ]


def test_unknown_file():
    with pytest.raises(FileNotFoundError, match=r"no_such_kernel\.cu"):
        kernel_source("no_such_kernel.cu")


def test_unknown_header(broken_kernel, tmp_path):
    (tmp_path / "second.cuh").unlink()
    with pytest.raises(FileNotFoundError, match=r"second\.cuh"):
        kernel_source(broken_kernel)


def test_sources_are_ascii():
    """CuPy writes them to disk in the encoding of the locale."""
    for path in kernels_folder().glob("*.cu*"):
        assert path.read_bytes().isascii(), path.name


def test_folder_of_a_wheel_and_of_a_checkout(tmp_path, monkeypatch):
    package = tmp_path / "flowreg_gpu"
    (package / "cuda").mkdir(parents=True)
    monkeypatch.setattr(source, "__file__", str(package / "cuda" / "source.py"))
    with pytest.raises(FileNotFoundError, match="reinstall"):
        kernels_folder()
    (tmp_path / "kernels").mkdir()
    assert kernels_folder() == tmp_path / "kernels"
    (package / "kernels").mkdir()
    assert kernels_folder() == package / "kernels"
