"""For code that calls pyflowreg: this package's executor in its pipeline, or its functions on our recording loop.

`enable` makes ``RegistrationConfig(parallelization="gpu")`` run `flowreg_gpu.GPUExecutor` inside pyflowreg.
`compensate_arr` and `compensate_recording` take the place of pyflowreg's functions of the same names and do the
preprocessing, start flows and statistics where the frames are, on the device. pyflowreg itself is imported by the
first call, not by this module; docs/migrating.md says what is equal and what differs.

Examples
--------
>>> import flowreg_gpu.pyflowreg
>>> flowreg_gpu.pyflowreg.enable()  # doctest: +SKIP
"""

from flowreg_gpu.pyflowreg.compensate import compensate_arr, compensate_recording
from flowreg_gpu.pyflowreg.plugin import disable, enable

__all__ = ["compensate_arr", "compensate_recording", "disable", "enable"]
