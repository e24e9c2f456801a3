"""Planes to raw frames: rounding and saturation, on the CPU and on the (emulated) device."""

import numpy as np
import pytest

from flowreg_gpu.cpu.store import store as store_on_cpu
from flowreg_gpu.cuda.preprocess import C_TYPES
from flowreg_gpu.cuda.store import store
from tests.emulation import EmulatedDevice


@pytest.mark.parametrize("dtype", C_TYPES)
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 1, 1), (2, 5, 31), (5, 9, 64)])
def test_integers_are_rounded_to_even_and_saturated(dtype, channels, height, width):
    rng = np.random.default_rng(3)
    planes = rng.integers(-70000, 70000, (3, channels, height, width)) / np.float32(2)
    planes[:, :, 0, 0] = [[2.5], [-3.5], [254.5]]
    planes[1] = rng.normal(0, 100, planes[1].shape)
    planes = planes.astype(np.float32)
    expected = planes.transpose(0, 2, 3, 1)
    if dtype.kind != "f":
        expected = np.clip(np.rint(expected), np.iinfo(dtype).min, np.iinfo(dtype).max)
    expected = expected.astype(dtype)

    device = EmulatedDevice(order="both")
    found = device.to_host(store(device, device.to_device(planes), dtype))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, expected)

    on_cpu = np.empty_like(expected)
    for frame, out in zip(planes, on_cpu, strict=True):
        store_on_cpu(frame, out)
    np.testing.assert_array_equal(on_cpu, expected)
