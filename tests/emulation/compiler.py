"""Compiles the text of a kernel for the CPU, into shared libraries that are kept on disk."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["CompileError", "EmulationError", "NoCompiler", "compile_kernel"]

HEADER = Path(__file__).with_name("cuda_emulation.h")

FLAGS = (
    "-std=c++17",
    "-O2",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-fno-math-errno",  # as on the GPU; else sqrtf is a call
    "-fno-strict-aliasing",  # shared memory changes its type
    "-Wall",
    "-Werror",
    "-Wframe-larger-than=32768",  # half of a fiber's stack
    # What NVRTC does not warn of, or what some versions of compilers see wrongly.
    "-Wno-unknown-warning-option",
    "-Wno-maybe-uninitialized",
    "-Wno-sign-compare",
    "-Wno-unknown-pragmas",
    "-Wno-unused-function",
    "-Wno-unused-variable",
)

_TEXT = """\
#include "{header}"
{text}
#line 1 "name expression"
static constexpr auto emulation_kernel = &{expression};
#line 1 "exports"
using EmulationSignature = emulation::Signature<decltype(&{expression})>;
#define EMULATION_EXPORT extern "C" __attribute__((visibility("default")))
EMULATION_EXPORT void emulation_launch(emulation::Launch *launch) {{
  EmulationSignature::launch<emulation_kernel>(*launch);
}}
EMULATION_EXPORT unsigned emulation_parameter_count() {{ return EmulationSignature::count; }}
EMULATION_EXPORT const emulation::Parameter *emulation_parameters() {{ return EmulationSignature::parameters; }}
"""


class EmulationError(AssertionError):
    """Proof of a fault in a kernel or its use; no error of a device, so that no fallback of the package hides it."""


class CompileError(EmulationError):
    """The kernel's text is no valid C++."""


class NoCompiler(RuntimeError):
    """There is no C++ compiler."""


def compile_kernel(text: str, expression: str, contraction: bool) -> Path:
    """Return the shared library of the kernel that a name expression means; compiled unless it lies in the cache.

    Raises
    ------
    CompileError
        With the compiler's messages, which name the file and line that the text's `#line` directives give.
    NoCompiler
        None is found.
    """
    command, version = _compiler()
    flags = (*FLAGS, *_machine_flags(contraction))
    unit = _TEXT.format(header=HEADER, text=text, expression=expression)
    key = hashlib.sha256("\0".join((unit, HEADER.read_text("utf-8"), *command, *flags, version)).encode()).hexdigest()
    library = cache_folder() / f"{key}.so"
    if not library.exists():
        # Made in a folder of its own and moved at the end: another process may compile the same.
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            source, made = Path(folder, "kernel.cpp"), Path(folder, "kernel.so")
            source.write_text(unit, "utf-8")
            run = subprocess.run(
                [*command, *flags, "-o", str(made), str(source), "-lm"], capture_output=True, text=True, check=False
            )
            if run.returncode:
                raise CompileError(f"{expression} does not compile:\n{run.stderr}")
            made.replace(library)
    return library


@functools.cache
def _compiler() -> tuple[tuple[str, ...], str]:
    """The compiler's command and version."""
    candidates = [shlex.split(os.environ.get("CXX", "")), ["c++"], ["g++"], ["clang++"]]
    if importlib.util.find_spec("ziglang"):
        candidates.append([sys.executable, "-m", "ziglang", "c++"])
    for command in candidates:
        if command and shutil.which(command[0]):
            run = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
            if run.returncode == 0:
                return tuple(command), run.stdout
    raise NoCompiler(
        "no C++ compiler: neither $CXX, c++, g++ nor clang++ works, and the package ziglang is not installed"
    )


def _machine_flags(contraction: bool) -> tuple[str, ...]:
    """Options that depend on the machine. Contraction, a * b + c with one rounding, is NVRTC's default."""
    flags = ["-ffp-contract=fast" if contraction else "-ffp-contract=off"]
    if sys.platform == "linux":
        flags.append("-Wl,-z,defs")  # an unknown name is an error of the build, as on macOS
    if platform.machine() in ("x86_64", "AMD64"):
        flags.append("-msse4.1")  # without it floorf is a call
        if _has_fma():
            flags.append("-mfma")  # without it fmaf is a call
    return tuple(flags)


@functools.cache
def _has_fma() -> bool:
    """Whether the processor has the instructions; False where that is not known."""
    facts = Path("/proc/cpuinfo")
    return facts.exists() and " fma " in facts.read_text()


@functools.cache
def cache_folder() -> Path:
    """Folder of the libraries: $FLOWREG_EMULATION_CACHE, or one in the temporary folder that is this user's alone."""
    if given := os.environ.get("FLOWREG_EMULATION_CACHE"):
        folder = Path(given)
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    folder = Path(tempfile.gettempdir(), f"flowreg-emulation-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    facts = folder.lstat()
    # The libraries are run: nobody else may have made the folder or may write to it.
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o022:
        raise PermissionError(
            f"{folder} belongs to another user or others may write to it; set FLOWREG_EMULATION_CACHE"
        )
    return folder
