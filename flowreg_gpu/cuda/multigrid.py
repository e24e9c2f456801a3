"""The rule multigrid: V-cycles for the increment (du, dv) of a pyramid level."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from flowreg_gpu.cuda.device import Buffer, Device
from flowreg_gpu.cuda.launch import BLOCK, CHANNELS, OPT_IN_SHARED_MEMORY, frame_stride, pixel_grid
from flowreg_gpu.cuda.structs import SMOOTHNESS, struct
from flowreg_gpu.model.relaxation import COARSEST_SWEEPS, Grid, Relaxation, plan_grids, robust_coefficients

__all__ = ["EXPRESSIONS", "FILE", "SIZES", "STRUCTS", "relax_in_cycles"]

FILE = "multigrid.cu"
EXPRESSIONS = (
    "differentiate_flow",
    *(f"relax_finest<{channels}>" for channels in CHANNELS),
    "relax_and_restrict",
    "relax_and_correct",
    "relax_small_grids",
)

SMALL_PIXELS = 8192  # of the largest grid that takes one launch with all coarser ones; the finest is never among them
THREADS = (32, 16)
TILE_WIDTH = 64  # pixels with halo
#: Pixels around a tile that a launch takes on the way back from the coarser grid, and on the way to it; even numbers.
CORRECTION_HALO, RESTRICTION_HALO = 2, 4
PIXEL_BYTES = 28  # of shared memory, for the system and the increment of a tile's pixel
SIZES = {
    "GROUP_THREADS": THREADS[0] * THREADS[1],
    "Tile::WIDTH": TILE_WIDTH,
    "CORRECTION_HALO": CORRECTION_HALO,
    "RESTRICTION_HALO": RESTRICTION_HALO,
    "sizeof(System) + 2 * sizeof(float)": PIXEL_BYTES,
}

_GRID = struct(height=np.int32, width=np.int32, c=SMOOTHNESS)
PLANES = struct(
    grid=_GRID, left=np.int32, top=np.int32, pitch=np.int32, plane=np.int32, system=np.uintp, increment=np.uintp
)
STRUCTS = {"Smoothness": SMOOTHNESS, "Grid": _GRID, "Planes": PLANES}

Edge = tuple[np.float32, np.float32]


class _Planes(NamedTuple):
    """A coarser grid, and its planes: data term and right-hand sides (n, 5, h, w), increment (n, 2, h, w)."""

    grid: Grid
    system: Buffer
    increment: Buffer


def relax_in_cycles(
    device: Device, tensor: Buffer, weight: Buffer, flow: Buffer, edge: Edge, relaxation: Relaxation
) -> Buffer:
    """Return the increment (n, 2, h, w) float32; arguments as in `solver.solve`, `edge` is alpha / h^2 of x and y."""
    frames, channels, _, height, width = tensor.shape
    cycles, omega = relaxation.sweeps, np.float32(relaxation.omega)
    finest, large, small = _split(plan_grids(height, width, edge))
    coarser = [
        _Planes(grid, *(device.empty((frames, count, grid.height, grid.width), np.float32) for count in (5, 2)))
        for grid in (*large, small[0])
    ]
    scratch = device.empty((frames, 7, max(_pixels(small[1:]), 1)), np.float32)
    laplacian = _differentiate(device, flow, edge)
    # of one cycle and of the next, as tiles read what lies around them
    data_weights, increments = (
        [device.empty((frames, count, height, width), np.float32) for _ in range(2)] for count in (channels, 2)
    )
    psi = robust_coefficients(relaxation.a_data, relaxation.beta)
    for cycle in range(cycles + 1):
        refreshed = (cycle + 1) % relaxation.lag == 0
        _relax(
            device,
            f"relax_finest<{channels}>",
            finest,
            omega,
            (tensor, weight, laplacian, data_weights[0], increments[0], coarser[0].increment),
            (np.int64(frame_stride(laplacian)), *map(np.int32, (cycle, cycles, refreshed)), *psi),
            (data_weights[1], increments[1], coarser[0].system),
            halo=CORRECTION_HALO * (cycle > 0) + RESTRICTION_HALO * (cycle < cycles),
        )
        increments.reverse()
        if refreshed or cycle == 0:
            data_weights.reverse()
        if cycle < cycles:
            _relax_coarser(device, coarser, small, omega, scratch)
    return increments[0]


def _split(grids: list[Grid]) -> tuple[Grid, list[Grid], list[Grid]]:
    """The finest grid, others that are relaxed in tiles, and those that take one launch, of which there is one."""
    large = 1 + sum(_pixels([grid]) > SMALL_PIXELS for grid in grids[1:])
    return grids[0], grids[1:large], grids[large:]


def _tile_height(device: Device) -> int:
    """Rows with halo, an even number: a multiprocessor has room for two tiles, or for one of what every GPU has."""
    return max(device.shared_memory // 2, OPT_IN_SHARED_MEMORY) // (PIXEL_BYTES * TILE_WIDTH) // 2 * 2


def _pixels(grids: list[Grid]) -> int:
    return sum(grid.height * grid.width for grid in grids)


def _differentiate(device: Device, flow: Buffer, edge: Edge) -> Buffer:
    """Laplacian (1 or n, 2, h, w) of the flow."""
    frames, _, height, width = flow.shape
    out = device.empty(flow.shape, np.float32)
    device.kernel(FILE, "differentiate_flow")(
        pixel_grid(width, height, frames), BLOCK, (flow, np.int32(height), np.int32(width), *edge, out)
    )
    return out


def _relax_coarser(
    device: Device, planes: list[_Planes], small: list[Grid], omega: np.float32, scratch: Buffer
) -> None:
    """A cycle from the second grid to the coarsest and back."""
    for fine, coarse in itertools.pairwise(planes):
        _relax(device, "relax_and_restrict", fine.grid, omega, (fine.system,), (), (coarse.system,))
    _relax_small(device, planes[-1], small, omega, scratch)
    for coarse, fine in itertools.pairwise(planes[::-1]):
        inputs = fine.system, coarse.increment
        _relax(device, "relax_and_correct", fine.grid, omega, inputs, (), (fine.increment,))


def _relax(
    device: Device,
    kernel: str,
    grid: Grid,
    omega: np.float32,
    inputs: tuple[Buffer, ...],
    scalars: tuple[np.generic, ...],
    outputs: tuple[Buffer, ...],
    halo: int = RESTRICTION_HALO,
) -> None:
    """Relax the tiles of a grid on the way to the coarsest, on the way back, or both; coarser grids take that halo."""
    tile_height = _tile_height(device)
    inner_width, inner_height = TILE_WIDTH - 2 * halo, tile_height - 2 * halo
    device.kernel(FILE, kernel)(
        (-(-grid.width // inner_width), -(-grid.height // inner_height), inputs[0].shape[0]),
        THREADS,
        (
            *inputs,
            np.int32(grid.height),
            np.int32(grid.width),
            np.int32(tile_height),
            *grid.edge,
            omega,
            *scalars,
            *outputs,
        ),
        shared_mem=PIXEL_BYTES * TILE_WIDTH * tile_height,
    )


def _relax_small(device: Device, planes: _Planes, grids: list[Grid], omega: np.float32, scratch: Buffer) -> None:
    """A cycle from one grid to the coarsest and back, a block a frame."""
    grid = planes.grid
    device.kernel(FILE, "relax_small_grids")(
        (1, 1, planes.system.shape[0]),
        THREADS,
        (
            planes.system,
            np.int32(grid.height),
            np.int32(grid.width),
            *grid.edge,
            omega,
            np.int32(len(grids)),
            np.int32(COARSEST_SWEEPS),
            planes.increment,
            scratch,
            np.int32(scratch.shape[2]),
        ),
        shared_mem=PLANES.itemsize * len(grids),
    )
