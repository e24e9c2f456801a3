"""Rigid pre-alignment by phase correlation (Guizar-Sicairos, Thurman, Fienup 2008, for the sub-pixel step)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.cpu.pyramid import resize
from flowreg_gpu.model.resampling import TapTable

__all__ = ["Aligner", "phase_shift", "prepare_alignment"]

# Components weaker than this (images scaled to 0-1) are noise of float32 images and keep their small magnitude, the
# floor that scikit-image uses for single precision. The arithmetic from the spectra on is double whatever NumPy's
# version, so that the GPU, whose transforms round otherwise, comes to the same decisions.
_SPECTRUM_FLOOR = 100 * float(np.finfo(np.float32).eps)


class Aligner(NamedTuple):
    """What the alignment of every frame uses: channel weights, resampling, window, and the reference's image."""

    weight: NDArray[np.float32]
    tables: tuple[TapTable, TapTable]
    window: NDArray[np.float32]
    image: NDArray[np.float32]
    spectrum: NDArray[np.complex128]
    spacing: tuple[float, float]
    upsampling: int


def prepare_alignment(
    reference: NDArray[np.float32],
    weight: NDArray[np.float32],
    tables: tuple[TapTable, TapTable],
    upsampling: int,
) -> Aligner:
    """Window, image and spectrum of the reference planes (C, H, W); `weight` (C,) sums to 1."""
    height, width = len(tables[0].index), len(tables[1].index)
    window = np.outer(np.hanning(height), np.hanning(width)).astype(np.float32)
    image = _correlation_image(reference, weight, tables, window)
    spacing = (reference.shape[2] / width, reference.shape[1] / height)
    return Aligner(weight, tables, window, image, _spectrum(image), spacing, upsampling)


def phase_shift(aligner: Aligner, moving: NDArray[np.float32]) -> NDArray[np.float32]:
    """Displacement (dx, dy) of planes against the reference, (2, 1, 1) float32, in full-resolution pixels."""
    image = _correlation_image(moving, aligner.weight, aligner.tables, aligner.window)
    cross = _spectrum(image) * aligner.spectrum.conj()
    cross /= np.maximum(np.abs(cross), _SPECTRUM_FLOOR)
    correlation = np.fft.ifft2(cross).real
    peak_y, peak_x = np.unravel_index(int(np.argmax(correlation)), correlation.shape)
    whole = _likeliest_shift(aligner.image, image, int(peak_y), int(peak_x))
    dy, dx = whole
    if aligner.upsampling > 1:
        dy, dx = _refine(cross, whole, aligner.upsampling)
    return np.array([dx * aligner.spacing[0], dy * aligner.spacing[1]], np.float32).reshape(2, 1, 1)


def _correlation_image(
    planes: NDArray[np.float32],
    weight: NDArray[np.float32],
    tables: tuple[TapTable, TapTable],
    window: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Weighted mean over the channels, resampled, without its mean, windowed: (h, w) float32."""
    mean = np.tensordot(weight.astype(np.float64), planes, axes=1).astype(np.float32)
    image = resize(mean[None], tables)[0]
    centred: NDArray[np.float32] = (image - image.mean(dtype=np.float64).astype(np.float32)) * window
    return centred


def _spectrum(image: NDArray[np.float32]) -> NDArray[np.complex128]:
    """Fourier transform in double precision."""
    spectrum: NDArray[np.complex128] = np.fft.fft2(image.astype(np.float64))
    return spectrum


def _likeliest_shift(
    reference: NDArray[np.float32], moving: NDArray[np.float32], peak_y: int, peak_x: int
) -> tuple[float, float]:
    """Of a circular shift and its wrapped alternatives the one whose overlap correlates best in real space."""
    height, width = reference.shape
    best, best_score = (0.0, 0.0), -np.inf
    for dy in (peak_y, peak_y - height):
        for dx in (peak_x, peak_x - width):
            fixed = reference[max(0, -dy) : height - max(0, dy), max(0, -dx) : width - max(0, dx)]
            shifted = moving[max(0, dy) : height - max(0, -dy), max(0, dx) : width - max(0, -dx)]
            score = float(np.vdot(fixed.astype(np.float64), shifted)) if fixed.size else -np.inf
            if score > best_score:
                best, best_score = (float(dy), float(dx)), score
    return best


def _refine(cross: NDArray[np.complex128], whole: tuple[float, float], upsampling: int) -> tuple[float, float]:
    """Peak of the correlation upsampled by `upsampling` within 3/4 pixel of the whole-pixel peak."""
    size = int(np.ceil(1.5 * upsampling))
    offsets = (np.arange(size) - size // 2) / upsampling
    rows, columns = (
        np.exp(2j * np.pi * np.outer(peak + offsets, np.fft.fftfreq(n)))
        for peak, n in zip(whole, cross.shape, strict=True)
    )
    upsampled = (rows @ cross @ columns.T).real
    i, j = np.unravel_index(int(np.argmax(upsampled)), upsampled.shape)
    return whole[0] + float(offsets[i]), whole[1] + float(offsets[j])
