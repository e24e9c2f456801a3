"""pyflowreg's readers and writers of videos as sources and sinks of our recording loop."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from flowreg_gpu.io import FrameReader, FrameWriter, PathLike, check_output, partial_name, supported_dtype
from flowreg_gpu.options import FRAME_DTYPES

__all__ = ["BinnedReader", "VideoSink", "VideoSource"]


class VideoSource(FrameReader):
    """Frames of a pyflowreg VideoReader, binned as it bins them.

    Raises
    ------
    ValueError
        Frames of a dtype that cannot be registered.
    """

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self.n_frames, self.height, self.width, self.n_channels = (int(size) for size in reader.shape)
        self.dtype = supported_dtype(reader.dtype, type(reader).__name__, FRAME_DTYPES)
        self.has_channel_axis = True

    def _load(self, start: int, stop: int) -> NDArray[Any]:
        reader = self._reader
        position, size = reader.current_frame, reader.buffer_size
        reader.current_frame, reader.buffer_size = start * reader.bin_size, stop - start
        try:
            frames = reader.read_batch()
        finally:
            reader.current_frame, reader.buffer_size = position, size
        return np.array(frames, self.dtype, order="C")

    def close(self) -> None:
        """Close the reader."""
        self._reader.close()


class BinnedReader(FrameReader):
    """Means of `bin_size` consecutive frames in their own dtype, as pyflowreg takes them: the last frame fills up."""

    def __init__(self, reader: FrameReader, bin_size: int) -> None:
        self._reader, self._bin = reader, bin_size
        self.n_frames = -(-reader.n_frames // bin_size)
        self.height, self.width, self.n_channels = reader.shape[1:]
        self.dtype, self.has_channel_axis = reader.dtype, reader.has_channel_axis
        self.threaded = reader.threaded

    def _load(self, start: int, stop: int) -> NDArray[Any]:
        binned = np.empty((stop - start, *self.shape[1:]), self.dtype)
        for k, first in enumerate(range(start * self._bin, stop * self._bin, self._bin)):
            frames = self._reader.read(first, min(first + self._bin, self._reader.n_frames))
            missing = self._bin - len(frames)
            binned[k] = np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)]).mean(axis=0)
        return binned

    def close(self) -> None:
        """Close the source."""
        self._reader.close()


class VideoSink(FrameWriter):
    """Frames into a pyflowreg VideoWriter, whose files appear under their names only when they are complete.

    Until then they lie in a hidden folder beside their place.

    Parameters
    ----------
    writer : VideoWriter
        As pyflowreg's factory makes it, nothing written yet.
    shape : (T, H, W, C)
    dtype : dtype
    inputs : sequence of path
        Files that must not be overwritten.

    Raises
    ------
    ValueError, OSError
        A file that cannot be written, or is one of the inputs.
    """

    def __init__(self, writer: Any, shape: Sequence[int], dtype: DTypeLike, inputs: Sequence[PathLike] = ()) -> None:
        super().__init__(shape, dtype)
        self._writer = writer
        self._hidden: Path | None = None
        self._paths = _paths(writer, self.n_channels)
        for path in self._paths:
            check_output(path, inputs, overwrite=True)  # as pyflowreg does
            check_output(partial_name(path), inputs, overwrite=True)

    def _store(self, frames: NDArray[Any], start: int) -> None:
        if self._paths and self._hidden is None:
            first = self._paths[0]
            self._hidden = Path(tempfile.mkdtemp(prefix=f".{first.name[:100]}.", suffix=".part", dir=first.parent))
            _move(self._writer, self._hidden)
        with _silence():
            self._writer.write_frames(frames)

    def _finish(self) -> None:
        """Have the writer complete its files, wherever they lie."""
        with _silence():
            self._writer.close()

    def _reveal(self, name: Callable[[Path], PathLike]) -> list[str]:
        """Move the files out of the hidden folder to what `name` says for their final paths; the new names."""
        if self._hidden is None:
            return []
        moved = []
        for file in sorted(self._hidden.iterdir()):
            target = os.fspath(name(self._paths[0].parent / file.name))
            os.replace(file, target)
            moved.append(target)
        self._leave()
        return moved

    def _leave(self) -> None:
        if self._hidden is not None:
            shutil.rmtree(self._hidden, ignore_errors=True)
            _move(self._writer, self._paths[0].parent)
            self._hidden = None

    def _keep(self) -> list[str]:
        try:
            self._finish()
            return self._reveal(partial_name)
        except Exception:  # what made the run fail is the error to report
            self._leave()
            return []

    def _commit(self) -> None:
        self._finish()
        self._reveal(lambda path: path)

    def _discard(self) -> None:
        with contextlib.suppress(Exception):  # an unfinished file may not be one that can be completed
            self._finish()
        self._leave()


def _paths(writer: Any, channels: int) -> list[Path]:
    """Files that a writer will write; none where it keeps or drops the frames."""
    if hasattr(writer, "folder") and hasattr(writer, "file_name"):
        names = (f"{writer.file_name}_ch{channel}.{writer.file_type}" for channel in range(1, channels + 1))
        return [Path(writer.folder, name).absolute() for name in names]
    return [Path(writer.file_path).absolute()] if hasattr(writer, "file_path") else []


def _move(writer: Any, folder: Path) -> None:
    """Have the writer put its files, by their own names, into a folder."""
    if hasattr(writer, "folder"):
        writer.folder = folder
    else:
        writer.file_path = str(folder / Path(writer.file_path).name)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Without what pyflowreg's writers print: it names the hidden folder."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
