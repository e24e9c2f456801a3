"""A device for the tests without a GPU: the kernels compiled as C++, and checked where CUDA checks nothing."""

from tests.emulation.compiler import CompileError, EmulationError, NoCompiler
from tests.emulation.device import EmulatedDevice
from tests.emulation.memory import Buffer

__all__ = ["Buffer", "CompileError", "EmulatedDevice", "EmulationError", "NoCompiler"]
