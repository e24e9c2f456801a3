"""Recordings and displacement fields: read and written a few frames at a time."""

from __future__ import annotations

import os

from flowreg_gpu.io.array import ArrayReader, ArrayWriter
from flowreg_gpu.io.base import (
    FLOW_CONVENTION,
    SUPPORTED_DTYPES,
    FrameReader,
    FrameWriter,
    PathLike,
    keep_partials,
    supported_dtype,
)
from flowreg_gpu.io.hdf5 import Hdf5FlowWriter
from flowreg_gpu.io.lock import open_held
from flowreg_gpu.io.pending import PendingFile, check_output, partial_name
from flowreg_gpu.io.reserved import ReservedFileWriter, sync_file
from flowreg_gpu.io.tiff import TiffFlowWriter, TiffReader, TiffWriter, read_image

__all__ = [
    "FLOW_CONVENTION",
    "SUPPORTED_DTYPES",
    "ArrayReader",
    "ArrayWriter",
    "FrameReader",
    "FrameWriter",
    "Hdf5FlowWriter",
    "PathLike",
    "PendingFile",
    "ReservedFileWriter",
    "TiffFlowWriter",
    "TiffReader",
    "TiffWriter",
    "check_output",
    "keep_partials",
    "open_flow_writer",
    "open_held",
    "partial_name",
    "read_image",
    "supported_dtype",
    "sync_file",
]


def open_flow_writer(
    path: PathLike,
    n_frames: int,
    height: int,
    width: int,
    *,
    overwrite: bool = False,
    resume_at: int | None = None,
) -> ReservedFileWriter:
    """Return the writer of displacement fields that the extension of `path` asks for.

    Parameters
    ----------
    path : str or path-like
        Ends in .h5 or .hdf5 (HDF5) or in .tif or .tiff (TIFF).
    n_frames, height, width : int
        Size of the recording; the writer takes (n, H, W, 2) float32.
    overwrite : bool
        Whether an older file, and an older partial file, are replaced.
    resume_at : int, optional
        Frames that the partial file holds already; None begins a new one.

    Raises
    ------
    ValueError
        Another extension.
    """
    extension = os.path.splitext(os.fspath(path))[1].lower()
    if extension in (".h5", ".hdf5"):
        return Hdf5FlowWriter(path, n_frames, height, width, overwrite=overwrite, resume_at=resume_at)
    if extension in (".tif", ".tiff"):
        return TiffFlowWriter(path, n_frames, height, width, overwrite=overwrite, resume_at=resume_at)
    raise ValueError(f"{os.fspath(path)!r} has extension {extension!r}, expected .h5, .hdf5, .tif or .tiff")
