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
from flowreg_gpu.io.flow import FlowOrigin, FlowReader, FlowWriter, recording_digest
from flowreg_gpu.io.hdf5 import Hdf5FlowReader, Hdf5FlowWriter
from flowreg_gpu.io.lock import open_held
from flowreg_gpu.io.pending import PendingFile, check_output, partial_name
from flowreg_gpu.io.reserved import ReservedFileWriter, sync_file
from flowreg_gpu.io.tiff import TiffFlowReader, TiffFlowWriter, TiffReader, TiffWriter, read_image

__all__ = [
    "FLOW_CONVENTION",
    "SUPPORTED_DTYPES",
    "ArrayReader",
    "ArrayWriter",
    "FlowOrigin",
    "FlowReader",
    "FlowWriter",
    "FrameReader",
    "FrameWriter",
    "Hdf5FlowReader",
    "Hdf5FlowWriter",
    "PathLike",
    "PendingFile",
    "ReservedFileWriter",
    "TiffFlowReader",
    "TiffFlowWriter",
    "TiffReader",
    "TiffWriter",
    "check_output",
    "keep_partials",
    "open_flow_reader",
    "open_flow_writer",
    "open_held",
    "partial_name",
    "read_image",
    "recording_digest",
    "supported_dtype",
    "sync_file",
]


def open_flow_writer(
    path: PathLike,
    n_frames: int,
    height: int,
    width: int,
    origin: FlowOrigin | None = None,
    *,
    overwrite: bool = False,
    resume_at: int | None = None,
) -> FlowWriter:
    """Return the writer of displacement fields that the extension of `path` asks for.

    Parameters
    ----------
    path : str or path-like
        Ends in .h5 or .hdf5 (HDF5) or in .tif or .tiff (TIFF).
    n_frames, height, width : int
        Size of the recording; the writer takes (n, H, W, 2) float32.
    origin : FlowOrigin or None
        What the flow was made with; then `write_reference` adds the reference.
    overwrite : bool
        Whether an older file, and an older partial file, are replaced.
    resume_at : int, optional
        Frames that the partial file holds already; None begins a new one.

    Raises
    ------
    ValueError
        Another extension.
    """
    writers: dict[str, type[Hdf5FlowWriter] | type[TiffFlowWriter]] = {"HDF5": Hdf5FlowWriter, "TIFF": TiffFlowWriter}
    return writers[_flow_format(path)](path, n_frames, height, width, origin, overwrite=overwrite, resume_at=resume_at)


def open_flow_reader(path: PathLike) -> FlowReader:
    """Return the reader of displacement fields that the extension of `path` asks for, as in `open_flow_writer`.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        Another extension, a file that cannot be read or is damaged, or one that holds no flow.
    """
    readers: dict[str, type[Hdf5FlowReader] | type[TiffFlowReader]] = {"HDF5": Hdf5FlowReader, "TIFF": TiffFlowReader}
    return readers[_flow_format(path)](path)


def _flow_format(path: PathLike) -> str:
    extension = os.path.splitext(os.fspath(path))[1].lower()
    formats = {".h5": "HDF5", ".hdf5": "HDF5", ".tif": "TIFF", ".tiff": "TIFF"}
    if extension not in formats:
        raise ValueError(f"{os.fspath(path)!r} has extension {extension!r}, expected .h5, .hdf5, .tif or .tiff")
    return formats[extension]
