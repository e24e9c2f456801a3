"""The rule block for quadratic smoothness: red-black over-relaxation, u and v of a pixel solved together.

As psi depends on the pixel alone, all sweeps go over the level together, each half-sweep one row behind the one before
and refreshing psi on the way, while the rows are in the cache. Layout and row kernels: `flowreg_gpu.cpu.lanes`.
"""

from __future__ import annotations

import numpy as np

from flowreg_gpu.cpu.jit import compiled
from flowreg_gpu.cpu.lanes import (
    U,
    add_data_term,
    aligned,
    invert_row,
    join_rows,
    line_lengths,
    relax_row,
    set_ghosts,
    sort_rows,
)
from flowreg_gpu.cpu.relaxation import ONE, TWO, ZERO

__all__ = ["relax_red_black"]

# The rows that sweeps work on together fill at most this many bytes, so that they stay in the cache; and so many rows
# are sorted at a time. Both were chosen by measurement (benchmarks/speed_cpu.py).
_TOGETHER = 3 * 2**19
_AHEAD = 8


@compiled
def relax_red_black(tensor, weight, flow, cx, cy, omega, sweeps, lag, psi_data, out):
    """Write the increment (2, h, w) to `out`, all arrays float32.

    From tensor (C, 6, h, w), weight (C, h, w) and flow (2, h, w); cx, cy are the edge weights alpha / h^2, `psi_data`
    constant, factor and power of psi, which is refreshed before sweep i where (i + 1) % lag == 0 and 1 until then.
    """
    channels, _, height, width = tensor.shape
    lanes, pitch = line_lengths(width)
    increment = aligned(4 * (height + 3) * pitch).reshape(2, 2, (height + 3) * pitch)
    increment[:] = ZERO
    # if all sweeps are done together, `fixed` holds no more rows than they need at a time
    row_size = 2 * (7 * channels + 2) * lanes
    together = max(_TOGETHER // (8 * (row_size + 10 * lanes + 4 * pitch)) // lag, 1) * lag
    kept = min(height, 2 * sweeps + _AHEAD) if together > sweeps else height
    fixed = aligned(kept * row_size)
    ring = aligned((together // lag + 1) * 4 * lag * 5 * lanes)
    system = aligned(5 * lanes)
    first = 0
    while first < sweeps:
        last = min(max(first + together - (1 if first == 0 else 0), 1), sweeps)
        _sweep_together(
            tensor, weight, flow, fixed, increment[0, 0], increment[1, 0], increment[0, 1], increment[1, 1], lanes,
            pitch, cx, cy, omega, first, last, lag, psi_data, system, ring,
        )  # fmt: skip
        first = last
    flat = out.reshape(out.size)
    for k in range(2):
        join_rows(increment[k, 0], increment[k, 1], height, width, pitch, flat, k * height * width)


@compiled
def _sweep_together(
    tensor, weight, flow, fixed, red_u, red_v, black_u, black_v, lanes, pitch, cx, cy, omega, first, last, lag,
    psi_data, system, ring,
):  # fmt: skip
    """Sweeps `first` to `last`, each half-sweep one row behind the one before; psi is refreshed on the way.

    `ring` keeps the coefficients of a row from the refresh to the last sweep that uses them; `system` is scratch of a
    row (5 lanes).
    """
    channels, _, height, width = tensor.shape
    keep, smooth = ONE - omega, TWO * (cx + cy)
    half_sweeps, depth = 2 * (last - first), 2 * lag
    # tables, as divisions take as long as relaxing a short row: where the coefficients of a row and of a half-sweep and
    # the row's tensors lie, and which half-sweeps refresh psi
    size, fixed_size = 5 * lanes, (7 * channels + 2) * lanes
    groups, kept = ring.size // (2 * depth * size), fixed.size // (2 * fixed_size)
    ring_row, ring_group = np.empty(height, np.int64), np.empty(half_sweeps, np.int64)
    fixed_row, refreshes = np.empty(height, np.int64), np.empty(half_sweeps, np.bool_)
    for y in range(height):
        ring_row[y] = 2 * size * (y % depth)
        fixed_row[y] = 2 * fixed_size * (y % kept)
    for n in range(half_sweeps):
        sweep = first + n // 2
        group = (sweep + 1) // lag
        ring_group[n] = (2 * depth * (group % groups) + n % 2) * size
        refreshes[n] = sweep == 0 or sweep + 1 == group * lag
    for step in range(height + half_sweeps - 1):
        if first == 0 and step < height and step % _AHEAD == 0:
            sort_rows(tensor, weight, flow, cx, cy, step, min(step + _AHEAD, height), lanes, fixed)
        for n in range(max(0, step - height + 1), min(half_sweeps, step + 1)):
            y, colour = step - n, n & 1
            at = ring_row[U(y)] + ring_group[U(n)]
            here, refresh = fixed_row[U(y)] + colour * fixed_size, refreshes[U(n)]
            psi = (ONE, ZERO, ZERO) if 2 * first + n < 2 * (lag - 1) else psi_data
            row, parity = (y + 2) * pitch, (y + colour) & 1
            # two branches, as numba counts references, atomically, to arrays that are chosen in the loop
            if colour == 0:
                if refresh:
                    add_data_term(fixed, here, lanes, channels, red_u, red_v, row, psi, system, 0)
                    invert_row(system, 0, lanes, smooth, omega, ring, at)
                set_ghosts(red_u, red_v, black_u, black_v, row, parity, height, width, pitch)
                relax_row(red_u, red_v, black_u, black_v, row, parity, lanes, pitch, cx, cy, keep, ring, at)
            else:
                if refresh:
                    add_data_term(fixed, here, lanes, channels, black_u, black_v, row, psi, system, 0)
                    invert_row(system, 0, lanes, smooth, omega, ring, at)
                set_ghosts(black_u, black_v, red_u, red_v, row, parity, height, width, pitch)
                relax_row(black_u, black_v, red_u, red_v, row, parity, lanes, pitch, cx, cy, keep, ring, at)
