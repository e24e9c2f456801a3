"""Normalisation and Gaussian filtering before the flow: what a recording fixes once, for either backend."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.model.resampling import TapTables, background_tables, gaussian_kernel, gaussian_table
from flowreg_gpu.options import Options

__all__ = ["Defects", "Preprocessing", "channel_weights", "normalization"]


@dataclasses.dataclass(frozen=True, eq=False)
class Defects:
    """Pixels of a sensor that are hot or dead, and the neighbours whose mean takes their place.

    Parameters
    ----------
    position : (K,) int32
        In planes (C, H, W), flat.
    source : (K, 8) int32
        Neighbours that are no defects, likewise; a position that is given again where there are fewer than eight.
    weight : (K, 8) float32
        Of the neighbours, with sum 1; 0 for those given again.
    """

    position: NDArray[np.int32]
    source: NDArray[np.int32]
    weight: NDArray[np.float32]

    @classmethod
    def build(cls, pixels: NDArray[np.intp], height: int, width: int) -> Defects:
        """Build from pixels (K, 3): row, column, channel."""
        known = {tuple(pixel) for pixel in pixels.tolist()}
        position, source, weight = [], [], []
        for y, x, channel in pixels.tolist():
            near = [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]
            good = [
                (row, column)
                for row, column in near
                if 0 <= row < height and 0 <= column < width and (row, column, channel) not in known
            ]
            if not good:
                continue  # in the middle of a cluster: no neighbour says what is there
            places = [(channel * height + row) * width + column for row, column in good]
            position.append((channel * height + y) * width + x)
            source.append(places + places[:1] * (8 - len(places)))
            weight.append([1 / len(places)] * len(places) + [0.0] * (8 - len(places)))
        shape = (len(position), 8)
        return cls(
            np.array(position, np.int32),
            np.array(source, np.int32).reshape(shape),
            np.array(weight, np.float32).reshape(shape),
        )

    def replace(self, frame: NDArray[np.float32]) -> None:
        """Replace the pixels of a frame (H, W, C) in place."""
        height, width, channels = frame.shape
        values = frame.reshape(-1)

        def place(index: NDArray[np.int32]) -> NDArray[np.int32]:
            channel, pixel = np.divmod(index, height * width)
            flat: NDArray[np.int32] = pixel * channels + channel
            return flat

        values[place(self.position)] = (values[place(self.source)] * self.weight).sum(axis=1)


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
    background : two pairs of tap tables (rows, columns), or None
        They take minus the local mean of a filtered plane, which is then added: a high-pass.
    defects : Defects or None
        Pixels that are replaced before the filter in space.
    """

    minimum: NDArray[np.float32]
    scale: NDArray[np.float32]
    temporal: NDArray[np.float32]
    spatial: tuple[TapTables, ...]
    background: tuple[TapTables, TapTables] | None = None
    defects: Defects | None = None

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
        highpass: float | None = None,
        defects: Defects | None = None,
    ) -> Preprocessing:
        """Build from normalisation constants (C,), sigma (C, 3) = rows, columns, time, and `Options.highpass`."""
        radii = [int(4 * value + 0.5) for value in sigma[:, 2]]
        temporal = np.zeros((len(sigma), 2 * max(radii) + 1), np.float32)
        for channel, radius in enumerate(radii):
            middle = max(radii)
            temporal[channel, middle - radius : middle + radius + 1] = gaussian_kernel(
                sigma[channel, 2] if radius else 0.0, radius
            )
        spatial = tuple((gaussian_table(height, rows), gaussian_table(width, columns)) for rows, columns, _ in sigma)
        background = None if highpass is None else background_tables(height, width, highpass)
        return cls(minimum, scale, temporal, spatial, background, defects)

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
