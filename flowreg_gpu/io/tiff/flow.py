"""Displacement fields in TIFF files."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from flowreg_gpu.io.base import FLOW_CONVENTION, PathLike
from flowreg_gpu.io.flow import FlowOrigin, FlowReader, FlowWriter
from flowreg_gpu.io.tiff.layout import Layout
from flowreg_gpu.io.tiff.metadata import TiffMetadata
from flowreg_gpu.io.tiff.reader import TiffReader
from flowreg_gpu.io.tiff.writer import ReservedTiffWriter

__all__ = ["TiffFlowReader", "TiffFlowWriter"]

# Tag of the first page that holds the reference, row by row: one of those that TIFF leaves to everyone's own use.
REFERENCE_TAG = 65042


class TiffFlowWriter(ReservedTiffWriter, FlowWriter):
    """Displacement fields as a TIFF file of axes TYXC: (T, H, W, 2) float32.

    Parameters
    ----------
    path : str or path-like
        The file appears there at `close`, and only if every frame was written.
    n_frames, height, width : int
        Size of the recording.
    origin : FlowOrigin or None
        What the flow was made with. It is written into the description, and the reference into a private tag.
    overwrite, resume_at : bool, int or None
        As in `TiffWriter`.
    """

    def __init__(
        self,
        path: PathLike,
        n_frames: int,
        height: int,
        width: int,
        origin: FlowOrigin | None = None,
        *,
        overwrite: bool = False,
        resume_at: int | None = None,
    ) -> None:
        shape = (n_frames, height, width, 2)
        notes: dict[str, Any] = {"axes": "TYXC", "convention": FLOW_CONVENTION}
        tags = []
        if origin is not None:
            self._reference_shape = (height, width, origin.n_channels)
            notes |= {"recording": origin.recording, "interpolation": origin.interpolation}
            notes |= {"reference_channels": origin.n_channels, "scan_offset": origin.scan_offset}
            unknown = np.full(self._reference_shape, np.nan, np.float32)
            tags = [(REFERENCE_TAG, 11, unknown.size, unknown.tobytes(), True)]
        how: Any = {"overwrite": overwrite, "resume_at": resume_at}
        metadata = TiffMetadata("shaped", shaped=notes)
        super().__init__(path, Layout("TYXC", shape), np.float32, "TYXC", shape, metadata, tags, **how)

    def _lay_out(self) -> None:
        super()._lay_out()
        self._find_reference()

    def _find_places(self) -> None:
        super()._find_places()
        self._find_reference()

    def _find_reference(self) -> None:
        with tifffile.TiffFile(self.pending.path) as tif:
            tag = tif.pages.first.tags.get(REFERENCE_TAG)
            self._reference_offset = None if tag is None else int(tag.valueoffset)


class TiffFlowReader(FlowReader):
    """Displacement fields of a TIFF file (T, H, W, 2) of float32.

    Parameters
    ----------
    path : str or path-like

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It cannot be read, or holds no flow; the message names it.
    """

    def __init__(self, path: PathLike) -> None:
        self.path = os.fspath(path)
        self._reader = TiffReader(path)
        self.n_frames, self.height, self.width, channels = self._reader.shape
        if channels != 2 or self._reader.dtype != np.float32:
            shape, dtype = self._reader.stored_shape, self._reader.dtype
            raise ValueError(f"{self.path}: the file is {shape} of {dtype}, expected a flow (T, H, W, 2) of float32")
        notes = self._reader.metadata.shaped
        self.origin = None
        if {"recording", "interpolation", "reference_channels"} <= set(notes):
            names = str(notes["recording"]), str(notes["interpolation"])
            # older files have no offset
            self.origin = FlowOrigin(*names, int(notes["reference_channels"]), float(notes.get("scan_offset", 0.0)))

    def _load(self, start: int, stop: int) -> NDArray[Any]:
        return self._reader.read(start, stop)

    def read_reference(self) -> NDArray[np.float32] | None:
        """See `FlowReader.read_reference`."""
        if self.origin is None:
            return None
        shape = self.height, self.width, self.origin.n_channels
        with tifffile.TiffFile(self.path) as tif:
            tag = tif.pages[0].tags.get(REFERENCE_TAG)
            if tag is None or tag.count != np.prod(shape):
                return None
            tif.filehandle.seek(tag.valueoffset)
            stored = np.frombuffer(tif.filehandle.read(tag.valuebytecount), tif.byteorder + "f4")
        reference = stored.astype(np.float32).reshape(shape)
        return reference if np.isfinite(reference).all() else None

    def close(self) -> None:
        """Close the file; reading opens it again."""
        self._reader.close()
