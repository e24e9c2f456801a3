"""Relaxation of one pyramid level: the increment (du, dv) of the flow for a frozen motion tensor."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from flowreg_gpu.cuda import multigrid, strips
from flowreg_gpu.cuda.device import Buffer, Device
from flowreg_gpu.cuda.flow import fill
from flowreg_gpu.cuda.launch import BLOCK, CHANNELS, OPT_IN_SHARED_MEMORY, frame_stride, pixel_grid
from flowreg_gpu.cuda.structs import PSI, SMOOTHNESS, filled
from flowreg_gpu.model.relaxation import Relaxation, edge_weights, robust_coefficients

__all__ = [
    "EXPRESSIONS",
    "FILE",
    "SIZES",
    "STRUCTS",
    "is_robust",
    "solve",
]

FILE = "solver.cu"
_BOOLEANS = ("false", "true")
EXPRESSIONS = (
    *(
        f"refresh_coefficients<{channels}, {ordered}, {robust}>"
        for channels, ordered, robust in itertools.product(CHANNELS, _BOOLEANS, _BOOLEANS)
    ),
    *(f"refresh_smoothness<{ordered}>" for ordered in _BOOLEANS),
    *(f"relax_colour<{robust}>" for robust in _BOOLEANS),
    *(f"relax_strips<{channels}>" for channels in CHANNELS),
    *(f"relax_ordered<{channels}, {robust}>" for channels, robust in itertools.product(CHANNELS, _BOOLEANS)),
)

STRUCTS = {"Psi": PSI, "Smoothness": SMOOTHNESS, "StripPlan": strips.STRIP_PLAN}

WAVE = (32, 16)  # threads that follow the wave of one frame: pixels of a diagonal, sweeps
SIZES = strips.SIZES | {"GROUP_THREADS": WAVE[0] * WAVE[1]}

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
    relaxation: Relaxation
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
        return multigrid.relax_in_cycles(device, tensor, weight, flow, edge_weights(alpha, spacing), relaxation)
    height, width = tensor.shape[3:]
    ordered = relaxation.rule == "sor"
    if ordered:  # columns are relaxed in order, not rows
        alpha, spacing = alpha[::-1], spacing[::-1]
    half, (along, across) = np.float32(0.5), map(np.float32, spacing)
    level = _Level(
        device=device,
        tensor=tensor,
        weight=weight,
        flow=flow,
        flow_stride=np.int64(frame_stride(flow)),
        size=(np.int32(height), np.int32(width)),
        edge=edge_weights(alpha, spacing),
        gradient=(half / along, half / across),
        omega=np.float32(relaxation.omega),
        relaxation=relaxation,
        psi_data=robust_coefficients(relaxation.a_data, relaxation.beta),
        psi_smooth=robust_coefficients(relaxation.a_smooth, relaxation.beta),
        ordered=ordered,
        robust=is_robust(relaxation),
    )
    ways = {"order": _relax_ordered, "strips": _relax_in_strips, "colours": _relax_by_colour}
    return ways[_way(height, width, tensor.shape[1], relaxation)](level)


def _way(height: int, width: int, channels: int, relaxation: Relaxation) -> str:
    """How a level is relaxed."""
    if relaxation.rule == "sor":
        return "order"
    if is_robust(relaxation):
        return "colours"
    schedule = strips.schedule_sweeps(relaxation, 1)
    widest = strips.widest_strip(width, channels, relaxation.lag, schedule, OPT_IN_SHARED_MEMORY)
    return "strips" if widest >= min(width, strips.NARROWEST_STRIP) else "colours"


def is_robust(relaxation: Relaxation) -> bool:
    """Whether the smoothness is."""
    return relaxation.a_smooth < 1 and relaxation.beta > 0


# Rule block


def _relax_in_strips(level: _Level) -> Buffer:
    """Several sweeps and refreshes of psi in a launch, from one increment to another."""
    frames, channels, _, height, width = level.tensor.shape
    lag, shared_memory = level.relaxation.lag, level.device.shared_memory
    strip_width, schedule = strips.plan_strips(width, channels, level.relaxation, shared_memory)
    n_strips = -(-width // strip_width)
    sections = -(-level.device.multiprocessors // (frames * n_strips))
    now, then = level.empty(2), level.empty(2)
    for number, run in enumerate(schedule):
        strip_height = max(-(-height // sections // 2) * 2, 4 * run.half_sweeps)
        pitch = run.pitch(min(strip_width + 2 * run.half_sweeps, width), channels, lag, shared_memory)
        plan = filled(
            strips.STRIP_PLAN,
            height=height,
            width=width,
            strip_height=strip_height,
            strip_width=strip_width,
            pitch=pitch,
            is_first=number == 0,
            first=run.first,
            more=run.more,
            lag=lag,
            half_sweeps=run.half_sweeps,
            refreshes=run.refreshes(lag),
            increment_rows=run.increment_rows,
            fixed_rows=run.fixed_rows(lag),
            colour_threads=run.colour_threads(pitch),
            first_loading=run.first_loading(pitch, lag),
            omega=level.omega,
            flow_stride=level.flow_stride,
            smoothness=level.edge,
            first_psi=_NO_PSI if run.unweighted else level.psi_data,
            psi=level.psi_data,
        )
        level.device.kernel(FILE, f"relax_strips<{channels}>")(
            (n_strips, -(-height // strip_height), frames),
            (run.threads(pitch, channels, lag),),
            (level.tensor, level.weight, level.flow, now, plan, then),
            shared_mem=4 * run.floats(channels, lag) * pitch,
        )
        now, then = then, now
    return now


def _relax_by_colour(level: _Level) -> Buffer:
    """A launch for every colour of every sweep, and for every refresh."""
    planes = _start(level)
    for sweep in range(level.relaxation.sweeps):
        if (sweep + 1) % level.relaxation.lag == 0:
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
        _follow_wave(level, planes, level.relaxation.sweeps, level.relaxation.lag)
        return planes.increment
    done = min(level.relaxation.lag - 1, level.relaxation.sweeps)
    _follow_wave(level, planes, done, 0)
    while done < level.relaxation.sweeps:
        _refresh(level, planes)
        _follow_wave(level, planes, min(level.relaxation.lag, level.relaxation.sweeps - done), 0)
        done += level.relaxation.lag
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
