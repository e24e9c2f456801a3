"""Normalisation and Gaussian filtering before the flow: what a recording fixes once, for either backend."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.model.resampling import TapTable, gaussian_kernel, gaussian_table
from flowreg_gpu.options import Options

__all__ = ["Preprocessing", "channel_weights", "normalization"]


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Normalise with (f - minimum) * scale per channel, then filter in time and space.

    Parameters
    ----------
    minimum, scale : (C,) float32
        Of the raw reference.
    temporal : (C, 2 halo + 1) float32
        Weights of the frames around each frame.
    spatial : per channel a pair of tap tables (rows, columns)
    """

    minimum: NDArray[np.float32]
    scale: NDArray[np.float32]
    temporal: NDArray[np.float32]
    spatial: tuple[tuple[TapTable, TapTable], ...]

    @property
    def halo(self) -> int:
        """Frames needed before and after each frame."""
        return int(self.temporal.shape[1]) // 2

    @classmethod
    def build(
        cls,
        minimum: NDArray[np.float32],
        scale: NDArray[np.float32],
        sigma: NDArray[np.float64],
        height: int,
        width: int,
    ) -> Preprocessing:
        """Build from normalisation constants (C,) and sigma (C, 3) = rows, columns, time."""
        radii = [int(4 * value + 0.5) for value in sigma[:, 2]]
        temporal = np.zeros((len(sigma), 2 * max(radii) + 1), np.float32)
        for channel, radius in enumerate(radii):
            middle = max(radii)
            temporal[channel, middle - radius : middle + radius + 1] = gaussian_kernel(
                sigma[channel, 2] if radius else 0.0, radius
            )
        spatial = tuple((gaussian_table(height, rows), gaussian_table(width, columns)) for rows, columns, _ in sigma)
        return cls(minimum, scale, temporal, spatial)

    def without_time(self) -> Preprocessing:
        """The same for single images, such as the reference."""
        return dataclasses.replace(self, temporal=np.ones((len(self.minimum), 1), np.float32))


def normalization(
    minimum: NDArray[Any], maximum: NDArray[Any], mode: str
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Per-channel minimum and factor 1 / (max - min + 1e-8), float32, from channel-wise extremes (C,).

    'joint' takes one minimum and maximum over all channels. A constant channel gets the factor 0, so that it shows
    no structure at all.
    """
    low, high = np.asarray(minimum, np.float64), np.asarray(maximum, np.float64)
    constant = low == high
    if mode == "joint":
        low, high = np.full_like(low, low.min()), np.full_like(high, high.max())
    scale = np.where(constant, 0.0, 1 / (high - low + 1e-8))
    return low.astype(np.float32), scale.astype(np.float32)


def channel_weights(
    options: Options, height: int, width: int, channels: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weight planes (C, H, W) of the data term, and the weight (C,) of each channel in a mean image, summing to 1."""
    if options.weight is None:
        mean = np.full(channels, 1 / channels)
    else:
        weight = np.asarray(options.weight, np.float64)
        if weight.ndim > 1:
            planes = np.broadcast_to(weight[..., None] if weight.ndim == 2 else weight, (height, width, channels))
            mean = planes.mean(axis=(0, 1))
            maps = np.ascontiguousarray(planes.transpose(2, 0, 1), np.float32)
            return maps, (mean / mean.sum()).astype(np.float32)
        mean = weight / weight.sum()
    mean = mean.astype(np.float32)
    return np.ascontiguousarray(np.broadcast_to(mean[:, None, None], (channels, height, width))), mean
