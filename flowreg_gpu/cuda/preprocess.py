"""Raw frames to normalised, time-filtered planes; `pyramid.smooth` then filters them in space."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from flowreg_gpu.cuda.device import Buffer, Device
from flowreg_gpu.cuda.launch import LINE, line_grid, upload
from flowreg_gpu.model.preprocessing import Preprocessing
from flowreg_gpu.options import FRAME_DTYPES

__all__ = ["C_TYPES", "EXPRESSIONS", "FILE", "DeviceSettings", "normalize", "upload_settings"]

#: Dtypes of raw frames that the kernels take, and their names in CUDA C++.
C_TYPES: Mapping[np.dtype[Any], str] = MappingProxyType(
    dict(zip(FRAME_DTYPES, ("unsigned char", "signed char", "unsigned short", "short", "float", "double"), strict=True))
)

FILE = "preprocess.cu"
EXPRESSIONS = (*(f"normalize<{kind}>" for kind in C_TYPES.values()), "replace_pixels")


class DeviceSettings(NamedTuple):
    """The fields of `Preprocessing` that `normalize` needs, on the device: (C,), (C,), (C, 2 halo + 1) float32.

    `defects` are those of `Defects`, (K,) and (K, 8) int32 and (K, 8) float32; None where there are none.
    """

    minimum: Buffer
    scale: Buffer
    temporal: Buffer
    defects: tuple[Buffer, Buffer, Buffer] | None


def upload_settings(device: Device, preprocessing: Preprocessing) -> DeviceSettings:
    """Copy what `normalize` needs to the device."""
    defects = preprocessing.defects
    return DeviceSettings(
        upload(device, preprocessing.minimum),
        upload(device, preprocessing.scale),
        upload(device, preprocessing.temporal),
        None
        if defects is None
        else (upload(device, defects.position), upload(device, defects.source), upload(device, defects.weight)),
    )


def normalize(device: Device, frames: Buffer, settings: DeviceSettings) -> Buffer:
    """Planes (n, C, H, W) float32 of raw frames (n + 2 halo, H, W, C), normalised, filtered in time, without defects.

    Raises
    ------
    TypeError
        A dtype that is not in `C_TYPES`.
    ValueError
        Other channels than the settings have, or no frame between the halos.
    """
    total, height, width, channels = frames.shape
    taps = settings.temporal.shape[1]
    count = total - taps + 1
    if frames.dtype not in C_TYPES:
        raise TypeError(f"frames are {frames.dtype}, expected one of {', '.join(map(str, C_TYPES))}")
    if channels != settings.temporal.shape[0] or count < 1:
        raise ValueError(
            f"frames are {frames.shape}, expected {settings.temporal.shape[0]} channels and at least {taps} frames"
        )
    planes = device.empty((count, channels, height, width), np.float32)
    device.kernel(FILE, f"normalize<{C_TYPES[frames.dtype]}>")(
        line_grid(height * width, count),
        LINE,
        (
            frames, settings.minimum, settings.scale, settings.temporal,
            np.int32(height * width), np.int32(channels), np.int32(taps), planes,
        ),
    )  # fmt: skip
    if settings.defects is not None:
        number = settings.defects[0].shape[0]
        device.kernel(FILE, "replace_pixels")(
            line_grid(number, count),
            LINE,
            (*settings.defects, np.int32(number), np.int64(channels * height * width), planes),
        )
    return planes
