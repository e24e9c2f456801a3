"""Relaxation of one pyramid level: the increment (du, dv) of the flow for a frozen motion tensor."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from flowreg_gpu.cuda.device import Buffer, Device
from flowreg_gpu.cuda.flow import constant_planes
from flowreg_gpu.cuda.launch import BLOCK, frame_stride, pixel_grid
from flowreg_gpu.relaxation import Relaxation, robust_weight

__all__ = ["EXPRESSIONS", "FILE", "solve"]

FILE = "solver.cu"
CHANNELS = (1, 2, 3, 4)  # more are compiled when they are met
_BOOLEANS = ("false", "true")
EXPRESSIONS = (
    *(
        f"refresh_coefficients<{channels}, {ordered}, {robust}>"
        for channels, ordered, robust in itertools.product(CHANNELS, _BOOLEANS, _BOOLEANS)
    ),
    *(f"refresh_smoothness<{ordered}>" for ordered in _BOOLEANS),
    *(f"relax_colour<{robust}>" for robust in _BOOLEANS),
    *(f"relax_ordered<{channels}, {robust}>" for channels, robust in itertools.product(CHANNELS, _BOOLEANS)),
)

WAVE = (32, 16)  # threads that follow the wave of one frame: pixels of a diagonal, sweeps


class _Level(NamedTuple):
    """What all kernels of one solve share; `smooth`, psi_smooth, is None where the smoothness is quadratic.

    `edge` is alpha / h^2 and `gradient` 1 / (2 h), along the lines that are relaxed and across them: columns where
    `ordered`, else rows.
    """

    device: Device
    tensor: Buffer
    weight: Buffer
    flow: Buffer
    smooth: Buffer | None
    coefficients: Buffer
    increment: Buffer
    edge: tuple[np.float32, np.float32]
    gradient: tuple[np.float32, np.float32]
    ordered: bool
    relaxation: Relaxation

    @property
    def size(self) -> tuple[np.int32, np.int32]:
        return np.int32(self.tensor.shape[3]), np.int32(self.tensor.shape[4])

    def grid(self, columns_per_thread: int = 1) -> tuple[int, int, int]:
        frames, _, _, height, width = self.tensor.shape
        return pixel_grid(-(-width // columns_per_thread), height, frames)

    @property
    def flow_stride(self) -> np.int64:
        stride: np.int64 = np.int64(frame_stride(self.flow))
        return stride

    @property
    def smooth_argument(self) -> Buffer:
        """A pointer the kernels never read where the smoothness is quadratic."""
        return self.increment if self.smooth is None else self.smooth

    @property
    def robust(self) -> str:
        return _BOOLEANS[self.smooth is not None]


def solve(
    device: Device,
    tensor: Buffer,
    weight: Buffer,
    flow: Buffer,
    alpha: tuple[float, float],
    spacing: tuple[float, float],
    relaxation: Relaxation,
) -> Buffer:
    """Return the increment (n, 2, h, w) float32 of `flow` (1 or n, 2, h, w), in full-resolution pixels.

    Parameters
    ----------
    tensor : (n, C, 6, h, w) float32
        J11, J22, J33, J12, J13, J23 per channel.
    weight : (1, C, h, w) float32
        Channel weights.
    alpha, spacing : (float, float)
        Smoothness weight and grid spacing along x and y.
    relaxation : Relaxation
    """
    frames, _, _, height, width = tensor.shape
    ordered = relaxation.rule == "sor"
    if ordered:  # columns are relaxed in order, not rows
        alpha, spacing = alpha[::-1], spacing[::-1]
    along, across = map(np.float32, spacing)
    robust = relaxation.a_smooth < 1 and relaxation.beta > 0
    level = _Level(
        device,
        tensor,
        weight,
        flow,
        constant_planes(device, (frames, height, width), 1.0) if robust else None,
        device.empty((frames, 5, height, width), np.float32),
        constant_planes(device, (frames, 2, height, width), 0.0),
        (np.float32(alpha[0]) / (along * along), np.float32(alpha[1]) / (across * across)),
        (np.float32(0.5) / along, np.float32(0.5) / across),
        ordered,
        relaxation,
    )
    _refresh_coefficients(level, (1.0, 0.0, 0.0))
    (_relax_ordered if ordered else _relax_red_black)(level)
    return level.increment


def _relax_red_black(level: _Level) -> None:
    for sweep in range(level.relaxation.sweeps):
        if (sweep + 1) % level.relaxation.lag == 0:
            _refresh(level)
        for colour in range(2):
            level.device.kernel(FILE, f"relax_colour<{level.robust}>")(
                level.grid(columns_per_thread=2),
                BLOCK,
                (
                    level.coefficients,
                    level.smooth_argument,
                    *level.size,
                    np.int32(colour),
                    *level.edge,
                    np.float32(level.relaxation.omega),
                    level.increment,
                ),
            )


def _relax_ordered(level: _Level) -> None:
    """All sweeps in one wave; where psi_smooth has to see its neighbours, the wave drains before every refresh."""
    sweeps, lag = level.relaxation.sweeps, level.relaxation.lag
    if level.smooth is None:
        _wave(level, sweeps, lag)
        return
    done = min(lag - 1, sweeps)
    _wave(level, done, 0)
    while done < sweeps:
        _refresh(level)
        _wave(level, min(lag, sweeps - done), 0)
        done += lag


def _wave(level: _Level, sweeps: int, lag: int) -> None:
    """Follow the wave through some sweeps, refreshing psi_data every `lag` of them (0: never)."""
    if sweeps == 0:
        return
    frames, channels = level.tensor.shape[:2]
    level.device.kernel(FILE, f"relax_ordered<{channels}, {level.robust}>")(
        (1, 1, frames),
        WAVE,
        (
            level.tensor,
            level.weight,
            level.flow,
            level.smooth_argument,
            *level.size,
            level.flow_stride,
            np.int32(sweeps),
            np.int32(lag),
            *level.edge,
            np.float32(level.relaxation.omega),
            *map(np.float32, robust_weight(level.relaxation.a_data, level.relaxation.beta)),
            level.coefficients,
            level.increment,
        ),
    )


def _refresh(level: _Level) -> None:
    """Psi of the present increment."""
    if level.smooth is not None:
        level.device.kernel(FILE, f"refresh_smoothness<{_BOOLEANS[level.ordered]}>")(
            level.grid(),
            BLOCK,
            (
                level.flow,
                level.increment,
                *level.size,
                level.flow_stride,
                *level.gradient,
                *map(np.float32, robust_weight(level.relaxation.a_smooth, level.relaxation.beta)),
                level.smooth,
            ),
        )
    _refresh_coefficients(level, robust_weight(level.relaxation.a_data, level.relaxation.beta))


def _refresh_coefficients(level: _Level, psi: tuple[float, float, float]) -> None:
    channels = level.tensor.shape[1]
    level.device.kernel(FILE, f"refresh_coefficients<{channels}, {_BOOLEANS[level.ordered]}, {level.robust}>")(
        level.grid(),
        BLOCK,
        (
            level.tensor,
            level.weight,
            level.flow,
            level.smooth_argument,
            level.increment,
            *level.size,
            level.flow_stride,
            *level.edge,
            np.float32(level.relaxation.omega),
            *map(np.float32, psi),
            level.coefficients,
        ),
    )
