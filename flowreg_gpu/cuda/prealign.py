"""Rigid pre-alignment by phase correlation, all frames of a batch at once; the twin of `flowreg_gpu.cpu.prealign`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.cuda.device import Buffer, Device
from flowreg_gpu.cuda.launch import LINE, line_grid, upload
from flowreg_gpu.cuda.structs import struct

__all__ = ["EXPRESSIONS", "FILE", "SIZES", "STRUCTS", "Aligner", "phase_shift", "prepare_alignment"]

FILE = "prealign.cu"
EXPRESSIONS = ("weighted_mean", "centre", "whiten", "whole_shift", "fourier_sums", "refined_shift")

BLOCK = (512,)  # threads that reduce one frame
COLUMNS = (64,)  # threads of a Fourier sum, one a column
# what a thread holds in shared memory
SUM, PEAK = struct(value=np.float64), struct(value=np.float64, index=np.int32)
OVERLAPS = struct(score=(np.float64, (4,)))
COMPLEX = np.dtype(np.complex128)
STRUCTS = {"Sum": SUM, "Peak": PEAK, "Overlaps": OVERLAPS}
SIZES = {"sizeof(double2)": COMPLEX.itemsize}


class Aligner(NamedTuple):
    """What every frame's alignment shares.

    Channel weights (C,), `resize` from (n, 1, H, W) to (n, 1, h, w), window (h, w), the reference's image (h, w) and
    spectrum (1, h, w), the grid spacing (x, y) in full-resolution pixels, and the upsampling.
    """

    weight: Buffer
    resize: Callable[[Buffer], Buffer]
    window: Buffer
    image: Buffer
    spectrum: Buffer
    spacing: tuple[float, float]
    upsampling: int


def prepare_alignment(
    device: Device,
    reference: Buffer,
    weight: NDArray[np.float32],
    resize: Callable[[Buffer], Buffer],
    upsampling: int,
) -> Aligner:
    """Window, image and spectrum of the reference planes (1, C, H, W) float32; `weight` (C,) sums to 1."""
    device_weight = upload(device, np.ascontiguousarray(weight))
    reduced = resize(_weighted_mean(device, reference, device_weight))
    height, width = reduced.shape[2:]
    window = upload(device, np.outer(np.hanning(height), np.hanning(width)).astype(np.float32))
    image, samples = _centre(device, reduced, window)
    spacing = (reference.shape[3] / width, reference.shape[2] / height)
    return Aligner(device_weight, resize, window, image[0], device.fft2(samples), spacing, upsampling)


def phase_shift(device: Device, aligner: Aligner, moving: Buffer) -> Buffer:
    """Displacements (dx, dy), (n, 2, 1, 1) float32, of planes (n, C, H, W) against the reference, in their pixels."""
    frames = moving.shape[0]
    height, width = aligner.window.shape
    pixels, spacing = np.int32(height * width), tuple(map(np.float64, aligner.spacing))
    image, samples = _centre(device, aligner.resize(_weighted_mean(device, moving, aligner.weight)), aligner.window)
    cross = device.fft2(samples)
    device.kernel(FILE, "whiten")(line_grid(height * width, frames), LINE, (aligner.spectrum, pixels, cross))
    correlation = device.fft2(cross, inverse=True)
    whole = device.empty((frames, 2), np.int32)
    shift = device.empty((frames, 2, 1, 1), np.float32)
    device.kernel(FILE, "whole_shift")(
        (1, 1, frames),
        BLOCK,
        (correlation, aligner.image, image, np.int32(height), np.int32(width), *spacing, whole, shift),
        shared_mem=BLOCK[0] * max(PEAK.itemsize, OVERLAPS.itemsize),
    )
    if aligner.upsampling > 1:
        size = math.ceil(1.5 * aligner.upsampling)
        lines = _fourier_sums(device, cross, whole, 0, aligner.upsampling, size)
        upsampled = _fourier_sums(device, lines, whole, 1, aligner.upsampling, size)
        device.kernel(FILE, "refined_shift")(
            (1, 1, frames),
            BLOCK,
            (upsampled, whole, np.int32(size), np.int32(aligner.upsampling), *spacing, shift),
            shared_mem=BLOCK[0] * PEAK.itemsize,
        )
    return shift


def column_grid(columns: int, size: int, frames: int) -> tuple[int, int, int]:
    """Blocks of Fourier sums: columns, samples, frames."""
    return -(-columns // COLUMNS[0]), size, frames


def _weighted_mean(device: Device, planes: Buffer, weight: Buffer) -> Buffer:
    """Mean (n, 1, H, W) over the channels of planes (n, C, H, W)."""
    frames, channels, height, width = planes.shape
    if weight.shape != (channels,):
        raise ValueError(f"planes are {planes.shape}, weight is {weight.shape}, expected one weight a channel")
    mean = device.empty((frames, 1, height, width), np.float32)
    device.kernel(FILE, "weighted_mean")(
        line_grid(height * width, frames),
        LINE,
        (planes, weight, np.int32(channels), np.int32(height * width), mean),
    )
    return mean


def _centre(device: Device, images: Buffer, window: Buffer) -> tuple[Buffer, Buffer]:
    """Images (n, 1, h, w) without their means, windowed: (n, h, w) float32, and the same complex128."""
    shape = (images.shape[0], *window.shape)
    centred, samples = device.empty(shape, np.float32), device.empty(shape, np.complex128)
    device.kernel(FILE, "centre")(
        (1, 1, shape[0]),
        BLOCK,
        (images, window, np.int32(shape[1] * shape[2]), centred, samples),
        shared_mem=BLOCK[0] * SUM.itemsize,
    )
    return centred, samples


def _fourier_sums(device: Device, spectra: Buffer, whole: Buffer, axis: int, upsampling: int, size: int) -> Buffer:
    """Fourier sums (n, columns, size) complex128 of spectra (n, length, columns), at `size` samples around `whole`.

    `length` runs along y where `axis` is 0, along x where it is 1.
    """
    frames, length, columns = spectra.shape
    out = device.empty((frames, columns, size), np.complex128)
    device.kernel(FILE, "fourier_sums")(
        column_grid(columns, size, frames),
        COLUMNS,
        (spectra, whole, np.int32(length), np.int32(columns), np.int32(axis), np.int32(upsampling), out),
        shared_mem=COLUMNS[0] * COMPLEX.itemsize,
    )
    return out
