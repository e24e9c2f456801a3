"""Raw frames to filtered planes: conversion, normalisation, Gaussian filter in time and space."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.cpu.jit import compiled
from flowreg_gpu.cpu.pyramid import resize
from flowreg_gpu.model.preprocessing import Preprocessing

__all__ = ["preprocess", "preprocess_rows", "subtract_background"]


def preprocess(window: NDArray[Any], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Planes (C, H, W) float32 of the middle one of the frames in `window` (2 halo + 1, H, W, C), any real dtype."""
    _, height, width, channels = window.shape
    planes = np.empty((channels, height, width), np.float32)
    _normalize(window, preprocessing.temporal, preprocessing.minimum, preprocessing.scale, planes)
    _replace_defects(planes, preprocessing)
    smooth = np.empty_like(planes)
    for channel, tables in enumerate(preprocessing.spatial):
        resize(planes[channel : channel + 1], tables, out=smooth[channel : channel + 1])
    return subtract_background(smooth, preprocessing)


def subtract_background(planes: NDArray[np.float32], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Filtered planes (C, H, W) without their local mean, where that is asked for."""
    if preprocessing.background is None:
        return planes
    down, up = preprocessing.background
    return planes + resize(resize(planes, down), up)


def preprocess_rows(window: NDArray[Any], rows: NDArray[np.bool_], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """As `preprocess`, from some rows (H,) alone, by normalised convolution (Knutsson and Westin 1993).

    Pixels of the other rows count for nothing in the sums, and what the filter finds is divided by what it finds in a
    mask of these rows. Where it finds none of them the result is 0.
    """
    _, height, width, channels = window.shape
    planes = np.empty((channels, height, width), np.float32)
    _normalize(window, preprocessing.temporal, preprocessing.minimum, preprocessing.scale, planes)
    _replace_defects(planes, preprocessing)
    planes[:, ~rows] = 0
    mask = np.ascontiguousarray(np.broadcast_to(rows[:, None].astype(np.float32), (1, height, width)))
    smooth = np.empty_like(planes)
    for channel, tables in enumerate(preprocessing.spatial):
        present = resize(mask, tables)[0]
        np.divide(resize(planes[channel : channel + 1], tables)[0], present, out=smooth[channel], where=present > 0)
        smooth[channel][present <= 0] = 0
    return subtract_background(smooth, preprocessing)


def _replace_defects(planes: NDArray[np.float32], preprocessing: Preprocessing) -> None:
    """Replace hot and dead pixels of planes (C, H, W) in place."""
    defects = preprocessing.defects
    if defects is not None:
        _replace(planes.reshape(-1), defects.position, defects.source, defects.weight)


@compiled
def _replace(planes, position, source, weight):
    """Write the weighted sum of `source` (K, 8) to `position` (K,) of planes, flat; weight (K, 8) float32."""
    for index in range(position.size):
        total = np.float32(0)
        for k in range(8):
            total += weight[index, k] * planes[source[index, k]]
        planes[position[index]] = total


@compiled
def _normalize(frames, temporal, minimum, scale, out):
    """Write sum_k temporal[c, k] (frames[k] - minimum[c]) scale[c] to planes (C, H, W) float32.

    From frames (2 halo + 1, H, W, C) of any real dtype, temporal (C, 2 halo + 1), minimum and scale (C,) float32.
    """
    channels, height, width = out.shape
    for channel in range(channels):
        for y in range(height):
            line = out[channel, y]
            line[:] = np.float32(0)
            for k in range(frames.shape[0]):
                weight = temporal[channel, k]
                for x in range(width):
                    line[x] += weight * (np.float32(frames[k, y, x, channel]) - minimum[channel])
            for x in range(width):
                line[x] *= scale[channel]
