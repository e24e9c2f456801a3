"""Sums over flows at every pixel, as whole numbers."""

from __future__ import annotations

import numpy as np

from flowreg_gpu.cpu.jit import compiled
from flowreg_gpu.cpu.warp import lies_inside

__all__ = ["FLOW_STEPS", "add_flows"]

#: Steps of a pixel to which flows are rounded, so that sums are exact.
FLOW_STEPS = 256
_STEPS = np.float32(FLOW_STEPS)


@compiled
def add_flows(flows, sums):
    """Add flows (n, H, W, 2) float32 to sums (4, H, W) int64: u, v, u^2 + v^2 in steps, and frames that are outside.

    A frame is outside at a pixel that `warp` takes from outside of it.
    """
    frames, height, width, _ = flows.shape
    limit_x, limit_y = np.float32(width), np.float32(height)
    for frame in range(frames):
        for y in range(height):
            for x in range(width):
                u, v = flows[frame, y, x, 0], flows[frame, y, x, 1]
                inside = lies_inside(np.float32(x) + u, limit_x) & lies_inside(np.float32(y) + v, limit_y)
                a, b = np.int64(np.rint(u * _STEPS)), np.int64(np.rint(v * _STEPS))
                sums[0, y, x] += a
                sums[1, y, x] += b
                sums[2, y, x] += a * a + b * b
                sums[3, y, x] += np.int64(not inside)
