"""Registers, shared memory, stack and spills of every kernel, as NVRTC's assembler reports them; needs no GPU.

Usage: python benchmarks/kernel_resources.py

Writes results/kernel_resources.md, which tests/cuda/test_kernels_compile.py compares with: run it after a kernel
changed.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    import measurement

    measurement.import_checkout()

import flowreg_gpu.cuda
from flowreg_gpu.cuda.device import COMPILER_OPTIONS
from flowreg_gpu.cuda.source import kernel_source

ARCHITECTURE = 90  # of the table: compute capability 9.0, the H100 and H200
#: As CuPy's RawModule compiles (cupy/cuda/compiler.py), but for the architecture and the folders of headers.
OPTIONS = (*COMPILER_OPTIONS, "-ftz=true", "--device-as-default-execution-space")
TABLE = Path(__file__).parent / "results" / "kernel_resources.md"

# of a multiprocessor of compute capability 9.0
REGISTERS, WARPS, SCHEDULERS, REGISTER_UNIT = 65536, 64, 4, 256
BLOCK_WARPS = 256 // 32

COLUMNS = (
    "file",
    "kernel",
    "registers",
    "shared memory",
    "stack",
    "spill stores",
    "spill loads",
    "threads by registers",
    "occupancy",
)

_REPORT = re.compile(
    r"Function properties for (?P<name>\w+)\n"
    r".*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\n"
    r"(?:.*Used (?P<registers>\d+) registers(?:.*?(?P<shared>\d+) bytes smem)?)?"
)


class Resources(NamedTuple):
    """Registers of a thread; bytes of static shared memory of a block; bytes of stack and spills of a thread."""

    registers: int
    shared_memory: int
    stack: int
    spill_stores: int
    spill_loads: int

    @property
    def warps(self) -> int:
        """Warps that a multiprocessor's registers suffice for; each scheduler has a quarter of both."""
        unit = -(-max(self.registers, 1) * 32 // REGISTER_UNIT) * REGISTER_UNIT
        return min(WARPS, SCHEDULERS * (REGISTERS // SCHEDULERS // unit))

    @property
    def occupancy(self) -> float:
        """Part of a multiprocessor's warps that is there with blocks of 256 threads, as far as registers allow."""
        return self.warps // BLOCK_WARPS * BLOCK_WARPS / WARPS


class Compiled(NamedTuple):
    """The compiler's log, and the symbol of every name expression."""

    log: str
    symbols: dict[str, str]


def instantiations() -> dict[str, tuple[str, ...]]:
    """Name expressions of every kernel file, from the launchers in flowreg_gpu.cuda."""
    found: dict[str, tuple[str, ...]] = {}
    for info in pkgutil.iter_modules(flowreg_gpu.cuda.__path__):
        launcher = importlib.import_module(f"flowreg_gpu.cuda.{info.name}")
        if hasattr(launcher, "FILE"):
            found[launcher.FILE] = found.get(launcher.FILE, ()) + launcher.EXPRESSIONS
    return dict(sorted(found.items()))


def compile_file(file: str, expressions: tuple[str, ...], architecture: int, *options: str) -> Compiled:
    """Compile a kernel file for a compute capability (90 is 9.0); RuntimeError with the log where that fails."""
    from cupy.cuda import nvrtc  # here, since the list of instantiations needs no CuPy

    program = nvrtc.createProgram(kernel_source(file), file, (), ())
    try:
        for expression in expressions:
            nvrtc.addNameExpression(program, expression)
        try:
            nvrtc.compileProgram(program, (*OPTIONS, f"-arch=sm_{architecture}", *options))
        except nvrtc.NVRTCError as error:
            raise RuntimeError(f"{error}\n{nvrtc.getProgramLog(program)}") from error
        symbols = {expression: nvrtc.getLoweredName(program, expression) for expression in expressions}
        return Compiled(nvrtc.getProgramLog(program), symbols)
    finally:
        nvrtc.destroyProgram(program)


def parse_report(log: str) -> dict[str, Resources]:
    """Resources by symbol, of kernels and of functions that were not inlined (no registers of their own)."""
    fields = ("registers", "shared", "stack", "stores", "loads")
    return {
        found["name"]: Resources(*(int(number or 0) for number in found.group(*fields)))
        for found in _REPORT.finditer(log)
    }


def measure(file: str, expressions: tuple[str, ...]) -> dict[str, Resources]:
    """Resources of every kernel of a file, and of functions that its kernels call."""
    compiled = compile_file(file, expressions, ARCHITECTURE, "--ptxas-options=-v")
    names = {symbol: expression for expression, symbol in compiled.symbols.items()}
    return {names.get(symbol, symbol): resources for symbol, resources in parse_report(compiled.log).items()}


def measure_all() -> dict[tuple[str, str], Resources]:
    """Resources of every kernel by file and name."""
    return {
        (file, kernel): resources
        for file, expressions in instantiations().items()
        for kernel, resources in measure(file, expressions).items()
    }


def compiler_version() -> str:
    """NVRTC's, '13.0'."""
    from cupy.cuda import nvrtc

    return "{}.{}".format(*nvrtc.getVersion())


def format_table(version: str, resources: dict[tuple[str, str], Resources]) -> str:
    """The table of kernels by file and name."""
    rows = [COLUMNS, ("---", "---", *("---:" for _ in COLUMNS[2:]))]
    rows += [
        (file, f"`{kernel}`", *map(str, row), str(32 * row.warps), f"{row.occupancy:.0%}")
        for (file, kernel), row in sorted(resources.items())
    ]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"""# Resources of the kernels

NVRTC {version}, `{" ".join(OPTIONS)} -arch=sm_{ARCHITECTURE}`. Written by `python benchmarks/kernel_resources.py`.

Registers, stack and spills are of a thread, shared memory is the static part of a block's (the launchers ask for the
dynamic part); memory in bytes. Threads by registers: how many of a multiprocessor's 2048 threads its 65536 registers
suffice for; occupancy: the part of them that is there with blocks of 256 threads.

{lines}
"""


def read_table(text: str) -> tuple[str, dict[tuple[str, str], Resources]]:
    """NVRTC's version and the resources by file and kernel of a table that `format_table` wrote."""
    version = re.search(r"^NVRTC (\S+),", text, re.MULTILINE)
    if version is None:
        raise ValueError(f"{TABLE.name} names no version of NVRTC")
    rows = re.findall(r"^\| (\S+) \| `(.+?)` \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|", text, re.MULTILINE)
    return version[1], {(file, kernel): Resources(*map(int, numbers)) for file, kernel, *numbers in rows}


def main() -> None:
    """Write the table."""
    resources = measure_all()
    TABLE.write_text(format_table(compiler_version(), resources), encoding="utf-8")
    print(f"{len(resources)} kernels: {TABLE}")


if __name__ == "__main__":
    main()
