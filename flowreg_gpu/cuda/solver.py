"""Relaxation of one pyramid level: the increment (du, dv) of the flow for a frozen motion tensor."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from flowreg_gpu.cuda import multigrid
from flowreg_gpu.cuda.device import Buffer, Device
from flowreg_gpu.cuda.flow import fill
from flowreg_gpu.cuda.launch import BLOCK, frame_stride, pixel_grid
from flowreg_gpu.relaxation import Relaxation, robust_weight

__all__ = ["EXPRESSIONS", "FILE", "scratch_planes", "solve"]

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
    *(f"relax_level<{channels}, {robust}>" for channels, robust in itertools.product(CHANNELS, _BOOLEANS)),
    *(f"relax_tiles<{channels}>" for channels in CHANNELS),
    *(f"relax_ordered<{channels}, {robust}>" for channels, robust in itertools.product(CHANNELS, _BOOLEANS)),
)

GROUP = (512,)  # threads that relax a level or a tile of one frame
WAVE = (32, 16)  # threads that follow the wave of one frame: pixels of a diagonal, sweeps
# Bytes of shared memory that a block may have on every GPU from Turing on. A tile (x, y) with the halo of two sweeps,
# 7 floats a pixel, nearly fills it.
SHARED_MEMORY = 64 * 1024
TILE, TILE_SWEEPS = (48, 32), 2

Psi = tuple[np.float32, np.float32, np.float32]
_NO_PSI: Psi = (np.float32(1), np.float32(0), np.float32(0))  # psi = 1, before the first refresh


class _Level(NamedTuple):
    """What all kernels of one solve share.

    `size` is (height, width); `edge` is alpha / h^2 and `gradient` 1 / (2 h), along the lines that are relaxed in order
    and across them: columns where `ordered`, else rows. `robust` is the smoothness where a_smooth < 1.
    """

    device: Device
    tensor: Buffer
    weight: Buffer
    flow: Buffer
    flow_stride: np.int64
    size: tuple[np.int32, np.int32]
    edge: tuple[np.float32, np.float32]
    gradient: tuple[np.float32, np.float32]
    omega: np.float32
    sweeps: int
    lag: int
    psi_data: Psi
    psi_smooth: Psi
    ordered: bool
    robust: bool

    def empty(self, *planes: int) -> Buffer:
        """Memory (frames, *planes, height, width) float32."""
        frames, _, _, height, width = self.tensor.shape
        return self.device.empty((frames, *planes, height, width), np.float32)

    def grid(self, columns_per_thread: int = 1) -> tuple[int, int, int]:
        """Blocks for all pixels of all frames."""
        frames, _, _, height, width = self.tensor.shape
        return pixel_grid(-(-width // columns_per_thread), height, frames)


class _Planes(NamedTuple):
    """Coefficients (n, 5, h, w), increment (n, 2, h, w), and psi_smooth (n, h, w).

    Where the smoothness is quadratic, kernels take psi_smooth and do not read it: it is the increment there.
    """

    coefficients: Buffer
    increment: Buffer
    smooth: Buffer


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
    if relaxation.rule == "multigrid":
        return multigrid.relax_in_cycles(device, tensor, weight, flow, _edges(alpha, spacing), relaxation)
    height, width = tensor.shape[3:]
    ordered = relaxation.rule == "sor"
    if ordered:  # columns are relaxed in order, not rows
        alpha, spacing = alpha[::-1], spacing[::-1]
    along, across = map(np.float32, spacing)
    level = _Level(
        device,
        tensor,
        weight,
        flow,
        np.int64(frame_stride(flow)),
        (np.int32(height), np.int32(width)),
        (np.float32(alpha[0]) / (along * along), np.float32(alpha[1]) / (across * across)),
        (np.float32(0.5) / along, np.float32(0.5) / across),
        np.float32(relaxation.omega),
        relaxation.sweeps,
        relaxation.lag,
        _single(robust_weight(relaxation.a_data, relaxation.beta)),
        _single(robust_weight(relaxation.a_smooth, relaxation.beta)),
        ordered,
        _is_robust(relaxation),
    )
    ways = {"order": _relax_ordered, "whole": _relax_level, "tiles": _relax_in_tiles, "colours": _relax_by_colour}
    return ways[_way(height, width, relaxation)](level)


def scratch_planes(
    height: int, width: int, alpha: tuple[float, float], spacing: tuple[float, float], relaxation: Relaxation
) -> float:
    """Float32 planes that a solve takes for every frame beside its result."""
    if relaxation.rule == "multigrid":
        return multigrid.scratch_planes(height, width, _edges(alpha, spacing))
    return 2 if _way(height, width, relaxation) == "tiles" else 5 + _is_robust(relaxation)


def _edges(alpha: tuple[float, float], spacing: tuple[float, float]) -> tuple[np.float32, np.float32]:
    """Weight alpha / h^2 of the edges along x and y."""
    hx, hy = map(np.float32, spacing)
    return np.float32(alpha[0]) / (hx * hx), np.float32(alpha[1]) / (hy * hy)


def _way(height: int, width: int, relaxation: Relaxation) -> str:
    """How a level is relaxed."""
    if relaxation.rule == "sor":
        return "order"
    if _level_memory(height, width) <= SHARED_MEMORY:
        return "whole"
    return "tiles" if relaxation.lag <= TILE_SWEEPS and not _is_robust(relaxation) else "colours"


def _is_robust(relaxation: Relaxation) -> bool:
    """Whether the smoothness is."""
    return relaxation.a_smooth < 1 and relaxation.beta > 0


def _level_memory(height: int, width: int) -> int:
    """Bytes of shared memory that hold the increment of a level of one frame."""
    return 2 * 4 * height * width


def _single(psi: tuple[float, float, float]) -> Psi:
    constant, factor, power = map(np.float32, psi)
    return constant, factor, power


# Rule block


def _relax_level(level: _Level) -> Buffer:
    """All sweeps in one launch, a block a frame."""
    frames, channels, _, height, width = level.tensor.shape
    planes = _empty_planes(level)
    level.device.kernel(FILE, f"relax_level<{channels}, {_BOOLEANS[level.robust]}>")(
        (1, 1, frames),
        GROUP,
        (
            level.tensor,
            level.weight,
            level.flow,
            *level.size,
            level.flow_stride,
            np.int32(level.sweeps),
            np.int32(level.lag),
            *level.edge,
            *level.gradient,
            level.omega,
            *level.psi_data,
            *level.psi_smooth,
            planes.smooth,
            planes.coefficients,
            planes.increment,
        ),
        shared_mem=_level_memory(height, width),
    )
    return planes.increment


def _relax_in_tiles(level: _Level) -> Buffer:
    """A launch from each refresh of psi to the next, from one increment to another."""
    now, then = level.empty(2), level.empty(2)
    fill(level.device, now, 0.0)
    parts = [(min(level.lag - 1, level.sweeps), _NO_PSI)]
    parts += [
        (min(level.lag, level.sweeps - first), level.psi_data)
        for first in range(level.lag - 1, level.sweeps, level.lag)
    ]
    for sweeps, psi in parts:
        if sweeps > 0:
            _relax_tiles(level, sweeps, psi, now, then)
            now, then = then, now
    return now


def _relax_tiles(level: _Level, sweeps: int, psi: Psi, before: Buffer, increment: Buffer) -> None:
    """Refresh psi, then do some sweeps, from the increment `before` to another."""
    frames, channels, _, height, width = level.tensor.shape
    tile_width, tile_height = TILE
    halo = 2 * sweeps
    level.device.kernel(FILE, f"relax_tiles<{channels}>")(
        (-(-width // tile_width), -(-height // tile_height), frames),
        GROUP,
        (
            level.tensor,
            level.weight,
            level.flow,
            before,
            *level.size,
            np.int32(tile_height),
            np.int32(tile_width),
            level.flow_stride,
            np.int32(sweeps),
            *level.edge,
            level.omega,
            *psi,
            increment,
        ),
        shared_mem=7 * 4 * (tile_width + 2 * halo) * (tile_height + 2 * halo),
    )


def _relax_by_colour(level: _Level) -> Buffer:
    """A launch for every colour of every sweep, and for every refresh."""
    planes = _start(level)
    for sweep in range(level.sweeps):
        if (sweep + 1) % level.lag == 0:
            _refresh(level, planes)
        for colour in range(2):
            level.device.kernel(FILE, f"relax_colour<{_BOOLEANS[level.robust]}>")(
                level.grid(columns_per_thread=2),
                BLOCK,
                (
                    planes.coefficients,
                    planes.smooth,
                    *level.size,
                    np.int32(colour),
                    *level.edge,
                    level.omega,
                    planes.increment,
                ),
            )
    return planes.increment


# Rule sor


def _relax_ordered(level: _Level) -> Buffer:
    """All sweeps in one wave; where psi_smooth has to see its neighbours, the wave drains before every refresh."""
    planes = _start(level)
    if not level.robust:
        _follow_wave(level, planes, level.sweeps, level.lag)
        return planes.increment
    done = min(level.lag - 1, level.sweeps)
    _follow_wave(level, planes, done, 0)
    while done < level.sweeps:
        _refresh(level, planes)
        _follow_wave(level, planes, min(level.lag, level.sweeps - done), 0)
        done += level.lag
    return planes.increment


def _follow_wave(level: _Level, planes: _Planes, sweeps: int, lag: int) -> None:
    """Do some sweeps, refreshing psi_data every `lag` of them (0: never)."""
    if sweeps == 0:
        return
    frames, channels = level.tensor.shape[:2]
    level.device.kernel(FILE, f"relax_ordered<{channels}, {_BOOLEANS[level.robust]}>")(
        (1, 1, frames),
        WAVE,
        (
            level.tensor,
            level.weight,
            level.flow,
            planes.smooth,
            *level.size,
            level.flow_stride,
            np.int32(sweeps),
            np.int32(lag),
            *level.edge,
            level.omega,
            *level.psi_data,
            planes.coefficients,
            planes.increment,
        ),
    )


# Coefficients


def _empty_planes(level: _Level) -> _Planes:
    coefficients, increment = level.empty(5), level.empty(2)
    return _Planes(coefficients, increment, level.empty() if level.robust else increment)


def _start(level: _Level) -> _Planes:
    """No increment, and the coefficients of psi = 1."""
    planes = _empty_planes(level)
    if level.robust:
        fill(level.device, planes.smooth, 1.0)
    fill(level.device, planes.increment, 0.0)
    _refresh_coefficients(level, planes, _NO_PSI)
    return planes


def _refresh(level: _Level, planes: _Planes) -> None:
    """Psi of the present increment."""
    if level.robust:
        level.device.kernel(FILE, f"refresh_smoothness<{_BOOLEANS[level.ordered]}>")(
            level.grid(),
            BLOCK,
            (
                level.flow,
                planes.increment,
                *level.size,
                level.flow_stride,
                *level.gradient,
                *level.psi_smooth,
                planes.smooth,
            ),
        )
    _refresh_coefficients(level, planes, level.psi_data)


def _refresh_coefficients(level: _Level, planes: _Planes, psi: Psi) -> None:
    template = f"{level.tensor.shape[1]}, {_BOOLEANS[level.ordered]}, {_BOOLEANS[level.robust]}"
    level.device.kernel(FILE, f"refresh_coefficients<{template}>")(
        level.grid(),
        BLOCK,
        (
            level.tensor,
            level.weight,
            level.flow,
            planes.smooth,
            planes.increment,
            *level.size,
            level.flow_stride,
            *level.edge,
            level.omega,
            *psi,
            planes.coefficients,
        ),
    )
