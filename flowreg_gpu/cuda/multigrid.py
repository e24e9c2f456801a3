"""The rule multigrid: V-cycles for the increment (du, dv) of a pyramid level."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from flowreg_gpu.cuda.device import Buffer, Device
from flowreg_gpu.cuda.flow import fill
from flowreg_gpu.cuda.launch import BLOCK, GROUP, frame_stride, pixel_grid
from flowreg_gpu.relaxation import COARSEST_SWEEPS, Grid, Relaxation, plan_grids, robust_weight

__all__ = ["EXPRESSIONS", "FILE", "relax_in_cycles", "scratch_planes"]

FILE = "multigrid.cu"
CHANNELS = (1, 2, 3, 4)  # more are compiled when they are met
EXPRESSIONS = (
    *(f"accumulate_system<{channels}>" for channels in CHANNELS),
    "relax_grid",
    "restrict_grid",
    "correct_grid",
    "relax_small_grids",
)

SMALL_PIXELS = 8192  # of the largest grid that they do
GRID_BYTES = 32  # of shared memory, for what describes a grid

Edge = tuple[np.float32, np.float32]


class _Planes(NamedTuple):
    """A grid, and its planes: data term and right-hand sides (n, 5, h, w), increment (n, 2, h, w)."""

    grid: Grid
    system: Buffer
    increment: Buffer


def relax_in_cycles(
    device: Device, tensor: Buffer, weight: Buffer, flow: Buffer, edge: Edge, relaxation: Relaxation
) -> Buffer:
    """Return the increment (n, 2, h, w) float32; arguments as in `solver.solve`, `edge` is alpha / h^2 of x and y."""
    frames, _, _, height, width = tensor.shape
    large, small = _split(plan_grids(height, width, edge))
    planes = [
        _Planes(grid, *(device.empty((frames, count, grid.height, grid.width), np.float32) for count in (5, 2)))
        for grid in (*large, small[0])
    ]
    scratch = device.empty((frames, 7, max(_pixels(small[1:]), 1)), np.float32)
    omega = np.float32(relaxation.omega)
    fill(device, planes[0].increment, 0.0)
    for cycle in range(relaxation.sweeps):
        refreshed = (cycle + 1) % relaxation.lag == 0
        if refreshed or cycle == 0:
            psi = robust_weight(relaxation.a_data, relaxation.beta) if refreshed else (1.0, 0.0, 0.0)
            _accumulate(device, tensor, weight, flow, psi, planes[0])
        for fine, coarse in itertools.pairwise(planes):
            _relax(device, fine, omega)
            _restrict(device, fine, coarse)
        _relax_small(device, planes[-1], small, omega, scratch)
        for coarse, fine in itertools.pairwise(planes[::-1]):
            _correct(device, coarse, fine)
            _relax(device, fine, omega)
    return planes[0].increment


def scratch_planes(height: int, width: int, edge: Edge) -> float:
    """Float32 planes of a level that it takes for every frame beside the result."""
    return 5 + 7 * _pixels(plan_grids(height, width, edge)[1:]) / (height * width)


def _split(grids: list[Grid]) -> tuple[list[Grid], list[Grid]]:
    """Grids that take a launch a step, and those that take one together, of which there is one at least."""
    large = sum(_pixels([grid]) > SMALL_PIXELS for grid in grids)
    return grids[:large], grids[large:]


def _pixels(grids: list[Grid]) -> int:
    return sum(grid.height * grid.width for grid in grids)


def _accumulate(
    device: Device, tensor: Buffer, weight: Buffer, flow: Buffer, psi: tuple[float, float, float], finest: _Planes
) -> None:
    """Refresh psi, and with it the system of the finest grid."""
    frames, channels, _, height, width = tensor.shape
    device.kernel(FILE, f"accumulate_system<{channels}>")(
        pixel_grid(width, height, frames),
        BLOCK,
        (
            tensor,
            weight,
            flow,
            finest.increment,
            np.int32(height),
            np.int32(width),
            np.int64(frame_stride(flow)),
            *finest.grid.edge,
            *map(np.float32, psi),
            finest.system,
        ),
    )


def _relax(device: Device, planes: _Planes, omega: np.float32) -> None:
    """One sweep of the rule block."""
    grid = planes.grid
    for colour in range(2):
        device.kernel(FILE, "relax_grid")(
            pixel_grid(-(-grid.width // 2), grid.height, planes.system.shape[0]),
            BLOCK,
            (
                planes.system,
                np.int32(grid.height),
                np.int32(grid.width),
                np.int32(colour),
                *grid.edge,
                omega,
                planes.increment,
            ),
        )


def _restrict(device: Device, fine: _Planes, coarse: _Planes) -> None:
    """System of the coarser grid, whose increment starts from zero."""
    device.kernel(FILE, "restrict_grid")(
        pixel_grid(coarse.grid.width, coarse.grid.height, fine.system.shape[0]),
        BLOCK,
        (
            fine.system,
            fine.increment,
            np.int32(fine.grid.height),
            np.int32(fine.grid.width),
            *fine.grid.edge,
            coarse.system,
            coarse.increment,
        ),
    )


def _correct(device: Device, coarse: _Planes, fine: _Planes) -> None:
    """Add the correction of the coarser grid."""
    device.kernel(FILE, "correct_grid")(
        pixel_grid(fine.grid.width, fine.grid.height, fine.system.shape[0]),
        BLOCK,
        (
            coarse.increment,
            np.int32(fine.grid.height),
            np.int32(fine.grid.width),
            *fine.grid.edge,
            fine.increment,
        ),
    )


def _relax_small(device: Device, planes: _Planes, grids: list[Grid], omega: np.float32, scratch: Buffer) -> None:
    """A cycle from one grid to the coarsest and back, a block a frame."""
    grid = planes.grid
    device.kernel(FILE, "relax_small_grids")(
        (1, 1, planes.system.shape[0]),
        GROUP,
        (
            np.int32(grid.height),
            np.int32(grid.width),
            *grid.edge,
            omega,
            np.int32(len(grids)),
            np.int32(COARSEST_SWEEPS),
            planes.system,
            planes.increment,
            scratch,
            np.int32(scratch.shape[2]),
        ),
        shared_mem=GRID_BYTES * len(grids),
    )
