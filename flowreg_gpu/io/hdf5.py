"""Displacement fields in HDF5 files."""

from __future__ import annotations

from collections.abc import Iterator
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
    overwrite : bool
        Whether an older file, and an older partial file, are replaced.
    resume_at : int, optional
        Frames that the partial file holds already; None begins a new one.

    Raises
    ------
    ModuleNotFoundError
        h5py is not installed.
    FileNotFoundError, PermissionError, FileExistsError, OSError
        As `PendingFile`.
    """

    def __init__(
        self,
        path: PathLike,
        n_frames: int,
        height: int,
        width: int,
        *,
        overwrite: bool = False,
        resume_at: int | None = None,
    ) -> None:
        try:
            import h5py
        except ImportError as error:
            raise ModuleNotFoundError(
                'HDF5 files need h5py, which is not installed: pip install "flowreg-gpu[hdf5]"'
            ) from error
        super().__init__((n_frames, height, width, 2), np.float32)
        self._h5py: Any = h5py
        self._reserve(path, n_frames * (height * width * 8 + BYTES_PER_CHUNK), overwrite, resume_at)

    def _open_file(self, mode: str) -> Any:
        return self._h5py.File(self.pending.path, mode, locking=False)  # the run holds it already

    def _lay_out(self) -> None:
        with self._open_file("w") as file:
            dataset = self._create_dataset(file)
            dataset.attrs["axes"] = "TYXC"
            dataset.attrs["convention"] = FLOW_CONVENTION
            dataset.attrs["units"] = "pixels"
            self._offsets = self._chunk_offsets(dataset)

    def _find_places(self) -> None:
        with self._open_file("r") as file:
            self._offsets = self._chunk_offsets(file["flow"])

    def _create_dataset(self, file: Any) -> Any:
        """Create the dataset with a place for every frame."""
        h5py = self._h5py
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_chunk((1, *self.shape[1:]))
        creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        creation.set_obj_track_times(False)  # the same frames make the same file, to the last byte
        space = h5py.h5s.create_simple(self.shape)
        return h5py.Dataset(
            h5py.h5d.create(file.id, b"flow", h5py.h5t.py_create(self.dtype, logical=True), space, creation)
        )

    def _chunk_offsets(self, dataset: Any) -> NDArray[np.int64]:
        offsets = np.empty(self.n_frames, np.int64)

        def note(chunk: Any) -> None:
            offsets[chunk.chunk_offset[0]] = chunk.byte_offset

        # One pass over the index (h5py 3.9); asking for each chunk by itself searches the index from its start.
        dataset.id.chunk_iter(note)
        return offsets

    def _store(self, frames: NDArray[Any], start: int) -> None:
        for i, frame in enumerate(frames, start):
            self._write_bytes(int(self._offsets[i]), np.ascontiguousarray(frame, self.dtype))

    def _places(self, frame: int) -> Iterator[tuple[int, int]]:
        yield int(self._offsets[frame]), self.height * self.width * 8
