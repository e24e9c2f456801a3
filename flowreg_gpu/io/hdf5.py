"""Displacement fields in HDF5 files."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.io.base import FLOW_CONVENTION, PathLike
from flowreg_gpu.io.reserved import ReservedFileWriter

# Index entry of one chunk, with room to spare.
BYTES_PER_CHUNK = 128


class Hdf5FlowWriter(ReservedFileWriter):
    """Displacement fields into the dataset ``/flow`` of an HDF5 file.

    The dataset is (T, H, W, 2) float32, one chunk a frame; its attributes state the convention of the flow.

    Parameters
    ----------
    path : str or path-like
        The file appears there at `close`, and only if every frame was written.
    n_frames, height, width : int
        Size of the recording.

    Raises
    ------
    ModuleNotFoundError
        h5py is not installed.
    FileNotFoundError, PermissionError, OSError
        The folder does not exist, takes no new file, or has too little space.
    """

    def __init__(self, path: PathLike, n_frames: int, height: int, width: int) -> None:
        try:
            import h5py
        except ImportError as error:
            raise ModuleNotFoundError(
                'HDF5 files need h5py, which is not installed: pip install "flowreg-gpu[hdf5]"'
            ) from error
        super().__init__((n_frames, height, width, 2), np.float32)
        n_bytes = n_frames * (height * width * 8 + BYTES_PER_CHUNK)
        with self._reserve(path, n_bytes), h5py.File(self._pending.path, "w") as file:
            self._offsets = self._lay_out(h5py, file)

    def _lay_out(self, h5py: Any, file: Any) -> NDArray[np.int64]:
        """Create the dataset with a place for every frame; return these places."""
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_chunk((1, *self.shape[1:]))
        creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space = h5py.h5s.create_simple(self.shape)
        dataset = h5py.Dataset(
            h5py.h5d.create(file.id, b"flow", h5py.h5t.py_create(self.dtype, logical=True), space, creation)
        )
        dataset.attrs["axes"] = "TYXC"
        dataset.attrs["convention"] = FLOW_CONVENTION
        dataset.attrs["units"] = "pixels"
        offsets = np.empty(self.n_frames, np.int64)

        def note(chunk: Any) -> None:
            offsets[chunk.chunk_offset[0]] = chunk.byte_offset

        # One pass over the index (h5py 3.9); asking for each chunk by itself searches the index from its start.
        dataset.id.chunk_iter(note)
        return offsets

    def _store(self, frames: NDArray[Any], start: int) -> None:
        for i, frame in enumerate(frames, start):
            self._write_bytes(int(self._offsets[i]), np.ascontiguousarray(frame, self.dtype))
