"""Displacement fields in files: what they were made with, and what their readers and writers have in common."""

from __future__ import annotations

import abc
import hashlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.io.base import FrameReader
from flowreg_gpu.io.reserved import ReservedFileWriter

__all__ = ["FlowOrigin", "FlowReader", "FlowWriter", "recording_digest"]

# Frames, spread over a recording, that tell it from others of its size: more than one or two, since a closed shutter
# makes the frames of all channels alike.
DIGEST_FRAMES = 8


class FlowOrigin(NamedTuple):
    """What a flow was made with; saved beside it, so that it can be applied again with the same result.

    Attributes
    ----------
    recording : str
        By which the recording is known again, whatever its files are called: `recording_digest`.
    interpolation : str
        Of the registered frames.
    n_channels : int
        Channels of the recording and its reference.
    scan_offset : float
        Displacement of the odd lines of the frames, which were moved back before; pixels.
    """

    recording: str
    interpolation: str
    n_channels: int
    scan_offset: float = 0.0


class FlowReader(FrameReader):
    """Flows (n, H, W, 2) float32 of a file.

    Attributes
    ----------
    path : str
    origin : FlowOrigin or None
        None where the file does not say.
    """

    path: str
    origin: FlowOrigin | None
    n_channels = 2
    has_channel_axis = True
    dtype = np.dtype(np.float32)
    threaded = True

    @abc.abstractmethod
    def read_reference(self) -> NDArray[np.float32] | None:
        """The reference (H, W, C) that the flows lead to; None where the file does not have it."""


class FlowWriter(ReservedFileWriter):
    """A writer of flows whose file has a place for the reference that they lead to, where it was told their origin.

    NaN stands there until the reference is written, so that the file of a run that failed is seen to have none.
    """

    _reference_offset: int | None = None
    _reference_shape: tuple[int, int, int]

    def write_reference(self, reference: NDArray[Any]) -> None:
        """Write the reference (H, W, C), where there is a place for it."""
        if self._reference_offset is None:
            return
        if reference.shape != self._reference_shape:
            raise ValueError(f"reference has shape {reference.shape}, expected {self._reference_shape}")
        with self._lock:
            self._write_bytes(self._reference_offset, np.ascontiguousarray(reference, np.float32))


def recording_digest(reader: FrameReader) -> str:
    """Digest of the size, the dtype and some frames of a recording; the same whatever its files are.

    Raises
    ------
    ValueError, OSError
        A frame cannot be read.
    """
    digest = hashlib.sha256(f"{reader.shape} {reader.dtype.name}".encode())
    for index in np.unique(np.linspace(0, reader.n_frames - 1, DIGEST_FRAMES).round().astype(int)):
        digest.update(reader.read(int(index), int(index) + 1).tobytes())
    return digest.hexdigest()
