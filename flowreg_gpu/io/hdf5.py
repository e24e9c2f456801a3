"""Displacement fields in HDF5 files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.io.base import FLOW_CONVENTION, PathLike
from flowreg_gpu.io.flow import FlowOrigin, FlowReader, FlowWriter

__all__ = ["Hdf5FlowReader", "Hdf5FlowWriter"]

# Index entry of one chunk, with room to spare.
BYTES_PER_CHUNK = 128
# Attributes of the flow that say where it comes from. They have a fixed length: strings of variable length lie in a
# heap of their own, and HDF5 reads a damaged one without end.
_ORIGIN = ("recording", "interpolation")
_OFFSET = "scan_offset"


def _import_h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ModuleNotFoundError(
            'HDF5 files need h5py, which is not installed: pip install "flowreg-gpu[hdf5]"'
        ) from error
    return h5py


class Hdf5FlowWriter(FlowWriter):
    """Displacement fields into the dataset ``/flow`` of an HDF5 file.

    The dataset is (T, H, W, 2) float32, one chunk a frame; its attributes state the convention of the flow. Where
    the origin is told, they state it too, and ``/reference`` is (H, W, C) float32.

    Parameters
    ----------
    path : str or path-like
        The file appears there at `close`, and only if every frame was written.
    n_frames, height, width : int
        Size of the recording.
    origin : FlowOrigin or None
        What the flow was made with.
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
        origin: FlowOrigin | None = None,
        *,
        overwrite: bool = False,
        resume_at: int | None = None,
    ) -> None:
        self._h5py: Any = _import_h5py()
        super().__init__((n_frames, height, width, 2), np.float32)
        self._origin = origin
        n_bytes = n_frames * (height * width * 8 + BYTES_PER_CHUNK)
        if origin is not None:
            self._reference_shape = (height, width, origin.n_channels)
            n_bytes += height * width * origin.n_channels * 4
        self._reserve(path, n_bytes, overwrite, resume_at)

    def _open_file(self, mode: str) -> Any:
        return self._h5py.File(self.pending.path, mode, locking=False)  # the run holds it already

    def _lay_out(self) -> None:
        with self._open_file("w") as file:
            dataset = self._create_dataset(file)
            dataset.attrs["axes"] = "TYXC"
            dataset.attrs["convention"] = FLOW_CONVENTION
            dataset.attrs["units"] = "pixels"
            if self._origin is not None:
                for name in _ORIGIN:
                    dataset.attrs[name] = np.bytes_(getattr(self._origin, name).encode())
                dataset.attrs[_OFFSET] = np.float64(self._origin.scan_offset)
                file.create_dataset("reference", data=np.full(self._reference_shape, np.nan, np.float32))
            self._note_places(file)

    def _find_places(self) -> None:
        with self._open_file("r") as file:
            self._note_places(file)

    def _note_places(self, file: Any) -> None:
        self._offsets = self._chunk_offsets(file["flow"])
        if "reference" in file:
            self._reference_offset = int(file["reference"].id.get_offset())

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


class Hdf5FlowReader(FlowReader):
    """Displacement fields of the dataset ``/flow`` of an HDF5 file.

    Parameters
    ----------
    path : str or path-like

    Raises
    ------
    ModuleNotFoundError
        h5py is not installed.
    FileNotFoundError
        There is no such file.
    ValueError
        It is no HDF5 file, damaged, or holds no flow (T, H, W, 2) of float32; the message names it.
    """

    def __init__(self, path: PathLike) -> None:
        h5py = _import_h5py()
        self.path = os.fspath(path)
        if not os.path.exists(self.path):
            raise FileNotFoundError(f"{self.path}: there is no such file, expected an HDF5 file with the dataset /flow")
        try:
            self._file = h5py.File(self.path, "r")
        except Exception as error:  # HDF5 has an error for everything, and h5py a class for some of them
            raise ValueError(f"{self.path}: not a readable HDF5 file: {error}") from error
        try:
            self._dataset = self._find("flow", h5py.Dataset)
            self.n_frames, self.height, self.width = self._dataset.shape[:3]
            self.origin = self._find_origin(h5py)
        except ValueError:
            self._file.close()
            raise
        except Exception as error:
            self._file.close()
            raise ValueError(f"{self.path}: the file is damaged: {error}") from error

    def _find(self, name: str, kind: Any) -> Any:
        """The dataset of flows; ValueError where it is none."""
        found = self._file.get(name)
        if not isinstance(found, kind):
            raise ValueError(f"{self.path}: there is no dataset /{name}, only {sorted(self._file)}")
        if len(found.shape or ()) != 4 or found.shape[3] != 2 or 0 in found.shape or found.dtype != np.float32:
            raise ValueError(
                f"{self.path}: /{name} is {found.shape} of {found.dtype}, expected a flow (T, H, W, 2) of float32"
            )
        return found

    def _find_origin(self, h5py: Any) -> FlowOrigin | None:
        attributes, reference = self._dataset.attrs, self._file.get("reference")
        if not set(_ORIGIN) <= set(attributes) or not isinstance(reference, h5py.Dataset):
            return None
        if any(attributes.get_id(name).dtype.kind != "S" for name in _ORIGIN):
            raise ValueError(f"{self.path}: the attributes of /flow are not strings of a fixed length")
        if len(reference.shape or ()) != 3 or reference.shape[:2] != self.shape[1:3] or reference.dtype != np.float32:
            found = f"{reference.shape} of {reference.dtype}"
            raise ValueError(f"{self.path}: /reference is {found}, expected (H, W, C) of float32 as /flow")
        recording, interpolation = (bytes(attributes[name]).decode() for name in _ORIGIN)
        offset = np.asarray(attributes.get(_OFFSET, 0.0))  # older files have none
        if offset.shape or offset.dtype.kind != "f" or not np.isfinite(offset):
            raise ValueError(
                f"{self.path}: the attribute {_OFFSET} of /flow is {offset!r}, expected a number of pixels"
            )
        return FlowOrigin(recording, interpolation, int(reference.shape[2]), float(offset))

    def _load(self, start: int, stop: int) -> NDArray[Any]:
        return np.ascontiguousarray(self._read(self._dataset, slice(start, stop)), self.dtype)

    def _read(self, dataset: Any, part: slice) -> Any:
        try:
            return dataset[part]
        except Exception as error:  # filters raise exceptions of their own
            raise OSError(f"{self.path}: {dataset.name} cannot be read: {error}") from error

    def read_reference(self) -> NDArray[np.float32] | None:
        """See `FlowReader.read_reference`."""
        if self.origin is None:
            return None
        reference = np.ascontiguousarray(self._read(self._file["reference"], slice(None)), np.float32)
        return reference if np.isfinite(reference).all() else None

    def close(self) -> None:
        """Close the file."""
        self._file.close()
