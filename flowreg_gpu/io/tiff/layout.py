"""The order in which the pixels of a recording follow each other, and what each stored axis means."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["HINT", "Layout", "choose_layout", "copy_by_channel", "count_page_axes"]

HINT = 'name the axes, e.g. axes="TCYX", or the number of interleaved channels, e.g. channels=2'


@dataclasses.dataclass(frozen=True)
class Layout:
    """Order in which the pixels of a recording follow each other.

    Attributes
    ----------
    axes : str
        T, Y and X, and C where there are channels, slowest first.
    shape : tuple of int
        Length of each axis.
    """

    axes: str
    shape: tuple[int, ...]

    def size(self, axis: str) -> int:
        """Length of an axis, 1 if it is not there."""
        return self.shape[self.axes.index(axis)] if axis in self.axes else 1

    def with_frames(self, n_frames: int) -> Layout:
        """Return the same order for another number of frames."""
        return Layout(self.axes, tuple(n_frames if a == "T" else n for a, n in zip(self.axes, self.shape, strict=True)))

    def to_frames(self, block: NDArray[Any]) -> NDArray[Any]:
        """View a block in this order as (n, H, W, C)."""
        order = [self.axes.index(axis) for axis in "TYXC" if axis in self.axes]
        frames: NDArray[Any] = block.transpose(order)
        return frames if "C" in self.axes else frames[..., np.newaxis]

    def from_frames(self, frames: NDArray[Any]) -> NDArray[Any]:
        """View (n, H, W, C) as a block in this order."""
        block = frames if "C" in self.axes else frames[..., 0]
        transposed: NDArray[Any] = block.transpose(["TYXC".index(axis) for axis in self.axes])
        return transposed


def choose_layout(
    path: str,
    stored_axes: str,
    stored_shape: tuple[int, ...],
    full_shape: tuple[int, ...],
    axes: str | None,
    channels: int | None,
) -> tuple[Layout, bool]:
    """Layout of a file, and whether it has an explicit channel axis, be it of length one.

    Parameters
    ----------
    path : str
        For messages.
    stored_axes, stored_shape, full_shape : str, tuple of int, tuple of int
        What the file says; the last with axes of length one that tifffile leaves out.
    axes, channels : str, int or None
        What the caller says instead.

    Raises
    ------
    ValueError
        Both `axes` and `channels` are given, or they do not fit, or the meaning of an axis cannot be told.
    """
    if axes is not None and channels is not None:
        raise ValueError(f"{path}: {axes=} and {channels=} exclude each other, expected one of them")
    if channels is not None:
        return _split_channels(path, stored_axes, stored_shape, channels), True
    named = stored_axes if axes is None else axes.upper()
    shapes = {len(shape): shape for shape in (full_shape, stored_shape)}
    if len(named) not in shapes:
        raise ValueError(f"{path}: {axes=} do not match the stored shape {stored_shape}")
    return _name_axes(path, named, shapes[len(named)]), any(axis in "CS" for axis in named)


def _drop_singletons(axes: str, shape: Sequence[int]) -> tuple[str, tuple[int, ...]]:
    """Leave out the axes of length one, but not Y and X."""
    kept = [(axis, size) for axis, size in zip(axes, shape, strict=True) if size > 1 or axis in "YX"]
    return "".join(axis for axis, _ in kept), tuple(size for _, size in kept)


def _name_axes(path: str, axes: str, shape: Sequence[int]) -> Layout:
    """Decide which stored axis is time and which is the channel."""
    stored = f"axes {axes!r} of shape {tuple(shape)}"
    axes, shape = _drop_singletons(axes, shape)
    if axes.count("Y") != 1 or axes.count("X") != 1:
        raise ValueError(f"{path}: {stored} do not hold Y and X once each; {HINT}")
    channel = [axis for axis in axes if axis in "CS"]
    stack = [axis for axis in axes if axis not in "CSYX"]
    if len(channel) > 1:
        raise ValueError(f"{path}: {stored} hold channels twice; {HINT}")
    if "T" in stack and "Z" in stack:
        raise ValueError(f"{path}: {stored} hold a volume over time, expected single planes; register plane by plane")
    if len(stack) > 1:
        raise ValueError(f"{path}: {stored} could be read in several ways; {HINT}")
    names = dict.fromkeys(stack, "T") | dict.fromkeys(channel, "C")
    named = "".join(names.get(axis, axis) for axis in axes)
    return Layout(named, shape) if stack else Layout("T" + named, (1, *shape))


def _split_channels(path: str, axes: str, shape: Sequence[int], channels: int) -> Layout:
    """Take a stack of pages as frames of interleaved channels."""
    axes, shape = _drop_singletons(axes, shape)
    if not axes.endswith("YX") or channels < 1:
        raise ValueError(f"{path}: {channels=} cannot split axes {axes!r} of shape {shape}, expected pages of Y and X")
    n_pages = math.prod(shape[:-2])
    if n_pages % channels:
        raise ValueError(f"{path}: {n_pages} pages cannot be split into frames of {channels} channels")
    if channels == 1:
        return Layout("TYX", (n_pages, *shape[-2:]))
    return Layout("TCYX", (n_pages // channels, channels, *shape[-2:]))


def count_page_axes(path: str, layout: Layout, page_shape: tuple[int, ...]) -> int:
    """Count the axes of a layout that lie within one page; ValueError where pages do not fit it."""
    for n_axes in range(1, len(layout.shape) + 1):
        if math.prod(layout.shape[-n_axes:]) == math.prod(page_shape):
            return n_axes
    raise ValueError(f"{path}: pages of shape {page_shape} do not fit axes {layout.axes!r} of {layout.shape}")


def copy_by_channel(frames: NDArray[Any], target: NDArray[Any]) -> NDArray[Any]:
    """Copy (n, H, W, C) channel by channel, which is faster than by pixels where channels lie apart in either array."""
    for channel in range(frames.shape[-1]):
        target[..., channel] = frames[..., channel]
    return target
