"""A device for the tests without a GPU: the kernels compiled as C++, and checked where CUDA checks nothing."""

from emulation.compiler import CompileError, EmulationError, NoCompiler
from emulation.device import EmulatedDevice
from emulation.memory import Buffer

__all__ = ["Buffer", "CompileError", "EmulatedDevice", "EmulationError", "NoCompiler"]
