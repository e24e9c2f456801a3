"""The pyramid of a frame size, and the descents to its finest level: what driver and backends know of each level."""

from __future__ import annotations

import dataclasses

from flowreg_gpu.model.relaxation import Relaxation, choose_relaxation
from flowreg_gpu.model.resampling import TapTable, cubic_table, resampling_tables
from flowreg_gpu.options import GNC_WARPING_STEPS, Options

__all__ = ["Descent", "Level", "Plan", "Tables", "plan_descents", "plan_levels"]

Tables = tuple[TapTable, TapTable]  # along rows and columns


@dataclasses.dataclass(frozen=True, eq=False)
class Level:
    """One pyramid level of (height, width) pixels.

    `spacing` (hx, hy) is the size of its pixels in full-resolution pixels, `alpha` its smoothness weight along x and y.
    The tables `from_full` resample an image of full resolution to it, the tables `from_coarser` the flow of the next
    coarser level, or at the coarsest level the start flow, which has full resolution.
    """

    height: int
    width: int
    spacing: tuple[float, float]
    alpha: tuple[float, float]
    from_full: Tables
    from_coarser: Tables

    @property
    def smoothed(self) -> bool:
        """Whether it is large enough for the 5x5 median."""
        return min(self.height, self.width) > 5


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """The pyramid of one frame size, coarsest level first; `to_full` brings a flow of the finest to full resolution."""

    levels: tuple[Level, ...]
    to_full: Tables | None


@dataclasses.dataclass(frozen=True, eq=False)
class Descent:
    """The way from the coarsest level to the finest, taken once or in every stage of the graduated non-convexity.

    On every level the flow is upsampled from the next coarser one. Then, `linearizations` times, the moving image is
    warped with the flow, the data term linearized into a motion tensor, and the increment of the flow found by the
    level's own relaxation and added. Where `graduated`, the 5x5 median is taken of flow plus increment, else of the
    increment alone. `to_full` are the tables from the finest level to full resolution, None where they are the same.
    A descent equals itself alone, so that a device finds those it has prepared.
    """

    levels: tuple[Level, ...]
    to_full: Tables | None
    relaxations: tuple[Relaxation, ...]
    linearizations: int
    graduated: bool
    const_assumption: str


def plan_descents(plan: Plan, options: Options) -> list[Descent]:
    """Return the descents of a flow in their order: one, or one per stage (beta) of `gnc_schedule`."""
    graduated = options.gnc_schedule is not None
    linearizations = (options.warping_steps or GNC_WARPING_STEPS) if graduated else 1
    return [
        Descent(
            plan.levels,
            plan.to_full,
            tuple(choose_relaxation(options, level.height, level.width, beta) for level in plan.levels),
            linearizations,
            graduated,
            options.const_assumption,
        )
        for beta in options.gnc_schedule or (1.0,)
    ]


def pyramid_depth(size: int, eta: float, levels: int) -> int:
    """Return the smallest k >= 1 with round(size * eta**k) < 10, at most `levels`."""
    depth = 1
    while depth < levels and round(size * eta**depth) >= 10:
        depth += 1
    return depth


def plan_levels(height: int, width: int, options: Options) -> Plan:
    """Return the pyramid of frames of (height, width) pixels.

    Level k has sizes round(size * eta^k), k from the depth of the larger side to `options.finest_level`. A side stops
    shrinking at its own depth (`pyramid_depth`), which counts as no more than four times that of the other side. The
    smoothness weight is alpha on the finest level solved and alpha * eta^(-k / 2) on the coarser ones.
    """
    eta = options.eta
    depth_y, depth_x = (pyramid_depth(size, eta, options.levels) for size in (height, width))
    cap = 4 * min(depth_y, depth_x)
    depth_y, depth_x = min(depth_y, cap), min(depth_x, cap)
    coarsest = max(depth_y, depth_x)
    finest = options.finest_level if coarsest > options.finest_level else max(coarsest - 1, 0)
    levels = []
    coarser = (height, width)
    for index in range(coarsest, finest - 1, -1):
        rows, columns = round(height * eta ** min(index, depth_y)), round(width * eta ** min(index, depth_x))
        factor = 1.0 if index == finest else eta ** (-0.5 * index)
        alpha_x, alpha_y = options.alpha_xy
        levels.append(
            Level(
                rows,
                columns,
                (width / columns, height / rows),
                (alpha_x * factor, alpha_y * factor),
                resampling_tables(height, width, rows, columns),
                resampling_tables(*coarser, rows, columns),
            )
        )
        coarser = (rows, columns)
    if coarser == (height, width):
        return Plan(tuple(levels), None)
    return Plan(tuple(levels), (cubic_table(coarser[0], height), cubic_table(coarser[1], width)))
