"""The journal of a run: how far its output has come, so that another run can go on from there.

It lies beside the partial output, is written after every batch, and has a fixed size::

    magic line | length and CRC-32 of the header | header (JSON) | choices (JSON), reference | two slots | statistics

The header says what the run was given; what it chose by the recording follows, with its reference. A slot is the state
of the loop after a batch whose frames are on the disk, with a CRC-32 of all that. Batches take the slots in turn, so
that one of them is whole whenever the machine stops.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.engine.batch import FlowField, FlowMean
from flowreg_gpu.io import PathLike, ReservedFileWriter, open_held, partial_name, sync_file
from flowreg_gpu.registration.summary import COLUMNS

__all__ = ["JOURNAL_EXTENSION", "Checkpoint", "Journal", "JournalError", "journal_name"]

MAGIC = b"flowreg-gpu journal 3\n"
JOURNAL_EXTENSION = ".journal"
_PREFIX = np.dtype([("length", "<u4"), ("crc", "<u4")])  # of the header
_CHOICES_BYTES = 4096
_SLOTS = 2
_STATE = np.dtype(
    [
        ("crc", "<u4"),  # of all that follows
        ("complete", "<u4"),
        ("finished", "<u8"),
        ("averaged", "<u8"),  # flows in the mean
        ("summed", "<u4"),  # whether there is a sum of flows: frames that are flagged are in no mean
        ("nonfinite", "<u8"),
        ("statistics_crc", "<u4"),  # of the rows of the finished frames
        ("start_crc", "<u4"),
        ("total_crc", "<u4"),  # where there is one
        ("counted", "<u8"),  # frames in the field
        ("field_crc", "<u4"),  # where it is measured
        ("last_frame", "<u4", (2,)),  # CRC-32 of the last finished frame in the recording and in the flow
    ]
)


class JournalError(ValueError):
    """A journal that belongs to another run, or is damaged: nothing can go on from it."""


class Checkpoint(NamedTuple):
    """State of the loop after a batch.

    Parameters
    ----------
    finished : int
        Frames of the recording that are registered and written.
    start : (2, H, W) float32
        Start flow of the window that the last of them is in.
    mean : FlowMean
        Of that window, as far as it has come.
    nonfinite : int
        NaN or infinite pixels so far.
    statistics : (n, columns) float64
        Where a run goes on: of all these frames; where a batch is recorded: of its frames.
    field : FlowField or None
        Of all these frames, where it is measured.
    """

    finished: int
    start: NDArray[np.float32]
    mean: FlowMean
    nonfinite: int
    statistics: NDArray[np.float64]
    field: FlowField | None = None


def journal_name(target: PathLike) -> str:
    """Where the journal of a run with the output `target` is."""
    return partial_name(target) + JOURNAL_EXTENSION


def _parse_header(file: BinaryIO, path: str) -> tuple[dict[str, Any], int]:
    """The header, and its length with everything before it."""
    start = file.read(len(MAGIC) + _PREFIX.itemsize)
    if not start.startswith(MAGIC) or len(start) < len(MAGIC) + _PREFIX.itemsize:
        raise JournalError(f"{path!r} is not a journal of this version of flowreg-gpu")
    prefix = np.frombuffer(start[len(MAGIC) :], _PREFIX)[0]
    text = file.read(int(prefix["length"]))
    if len(text) != prefix["length"] or zlib.crc32(text) != prefix["crc"]:
        raise JournalError(f"{path!r} is damaged: its header is not what was written")
    return json.loads(text), len(start) + len(text)


def _crc(array: NDArray[Any], before: int = 0) -> int:
    """CRC-32 of an array, continuing that of what came before it."""
    return zlib.crc32(np.ascontiguousarray(array).data, before)


class Journal:
    """The journal of a run; made by `create` or `open`.

    Parameters
    ----------
    file : binary file
        Open for reading and writing, and held.
    header_bytes : int
        Where the reference begins.
    header : dict
        What the run was `given`, the `shape` of the recording, and the `outputs`: final names and sizes.

    Attributes
    ----------
    path : str
    reference : (H, W, C) float32 or None
        The raw reference, once it is known.
    choices : dict
        What was chosen by the recording, once the reference is known.
    checkpoint : Checkpoint or None
        Where a run has to go on.
    complete : bool
        Whether all outputs are on the disk under their partial names.
    """

    def __init__(self, file: BinaryIO, header_bytes: int, header: dict[str, Any]) -> None:
        self.path, self.header = os.fspath(file.name), header
        n_frames, height, width, channels = header["shape"]
        self._file = file
        self._image = np.dtype(
            [
                ("begun", "<u4"),
                ("crc", "<u4"),  # of the image, and of the choices after it
                ("choices", "u1", (_CHOICES_BYTES,)),
                ("image", "<f4", (height, width, channels)),
            ]
        )
        flow = (2, height, width)
        parts: list[Any] = [("state", _STATE), ("start", "<f4", flow), ("total", "<f8", flow)]
        self._measures_field = bool(header["given"].get("measure_field"))
        if self._measures_field:
            parts.append(("field", "<i8", (4, height, width)))
        self._slot = np.dtype(parts)
        self._slots_at = header_bytes + self._image.itemsize
        self._statistics_at = self._slots_at + _SLOTS * self._slot.itemsize
        self._image_at = header_bytes
        self._row_bytes = len(COLUMNS) * 8
        self.n_bytes = self._statistics_at + n_frames * self._row_bytes
        self.reference: NDArray[np.float32] | None = None
        self.choices: dict[str, Any] = {}
        self.checkpoint: Checkpoint | None = None
        self.complete = False
        self._writers: Sequence[ReservedFileWriter] = ()
        self._turn = 0
        self._statistics_crc = 0
        self._starts: list[tuple[NDArray[np.float32] | None, int]] = [(None, 0)] * _SLOTS  # of the slots, with CRC-32

    @classmethod
    def create(
        cls, target: PathLike, given: Mapping[str, Any], shape: Sequence[int], writers: Sequence[ReservedFileWriter]
    ) -> Journal:
        """Begin the journal of a run with the output `target`, whose partial files this process holds.

        Parameters
        ----------
        target : path
        given : mapping
            Everything that the result depends on, by name, as JSON can hold it.
        shape : (T, H, W, C)
            Of the recording.
        writers : sequence of ReservedFileWriter
            Of all outputs.
        """
        outputs = [(writer.pending.final_path, os.path.getsize(writer.pending.path)) for writer in writers]
        header = {"given": dict(given), "shape": list(shape), "outputs": outputs}
        text = json.dumps(header).encode()
        prefix = np.array((len(text), zlib.crc32(text)), _PREFIX).tobytes()
        path = journal_name(target)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # of a run that died: this one may replace its output
        journal = cls(open_held(path, "xb"), len(MAGIC) + len(prefix) + len(text), header)
        journal._writers = writers
        journal._write(0, MAGIC + prefix + text)
        journal._file.truncate(journal.n_bytes)
        return journal

    @classmethod
    def open(cls, path: PathLike) -> Journal:
        """Open the journal of a run that ended early, and hold it.

        Raises
        ------
        FileNotFoundError
            There is none.
        BlockingIOError
            Its run is alive.
        JournalError
            It is damaged, or no journal.
        """
        path = os.fspath(path)
        file = open_held(path, "r+b")
        try:
            header, header_bytes = _parse_header(file, path)
            journal = cls(file, header_bytes, header)
            found = os.fstat(file.fileno()).st_size
            if found != journal.n_bytes:
                raise JournalError(f"{path!r} is truncated: it has {found} bytes, expected {journal.n_bytes}")
            journal._load()
        except BaseException:
            file.close()
            raise
        return journal

    def check(self, given: Mapping[str, Any]) -> None:
        """Raise JournalError unless the run was given this, and its partial files are there."""
        before, now = self.header["given"], json.loads(json.dumps(dict(given)))
        for name in {**before, **now}:
            if before.get(name) != now.get(name):
                problem = f"{name} was {before.get(name)!r} then and is {now.get(name)!r} now"
                raise JournalError(
                    f"the run of {self.path!r} cannot go on: {problem}; overwrite=True (--overwrite) begins anew"
                )
        for final_path, n_bytes in [] if self.complete else self.header["outputs"]:
            path = partial_name(final_path)
            found = os.path.getsize(path) if os.path.exists(path) else 0
            if found != n_bytes:
                raise JournalError(f"{path!r} has {found} bytes, expected {n_bytes}: its run cannot go on")

    def attach(self, writers: Sequence[ReservedFileWriter]) -> None:
        """Take the writers that go on with the partial files; JournalError where these are not what was written."""
        self._writers = writers
        if self.checkpoint is None:
            return
        expected = self._read(self._slot_at(1 - self._turn), _STATE)["last_frame"]
        for writer, checksum in zip(writers, expected, strict=False):
            if writer.checksum(self.checkpoint.finished - 1) != checksum:
                raise JournalError(f"{writer.pending.path!r} is not what its journal says was written")

    def begin(self, reference: NDArray[np.float32], choices: Mapping[str, Any]) -> None:
        """Note the raw reference, and what was chosen by the recording, as JSON can hold it."""
        text = json.dumps(dict(choices)).encode()
        assert len(text) <= _CHOICES_BYTES  # some hundred numbers of frames
        self.reference, self.choices = reference, json.loads(text)
        image = np.ascontiguousarray(reference, "<f4")
        padded = np.frombuffer(text.ljust(_CHOICES_BYTES), np.uint8)
        head = np.array([1, _crc(padded, _crc(image))], "<u4")
        self._write(self._image_at + head.nbytes, padded)
        self._write(self._image_at + head.nbytes + _CHOICES_BYTES, image)
        self._write(self._image_at, head)

    def record(self, checkpoint: Checkpoint) -> None:
        """Note that the frames of a checkpoint are written, once the disk has them."""
        self._write_slot(checkpoint)
        self.checkpoint = checkpoint

    def mark_complete(self) -> None:
        """Note that all outputs are complete, so that a run that goes on only gives them their names."""
        assert self.checkpoint is not None
        self.complete = True
        self._write_slot(self.checkpoint._replace(statistics=np.empty((0, len(COLUMNS)))))

    def _write_slot(self, checkpoint: Checkpoint) -> None:
        for writer in self._writers:
            writer.sync()
        rows = np.ascontiguousarray(checkpoint.statistics, "<f8")
        if len(rows):
            self._write(self._statistics_at + (checkpoint.finished - len(rows)) * self._row_bytes, rows)
        self._statistics_crc = _crc(rows, self._statistics_crc)
        slot, known = self._slot_at(self._turn), self._starts[self._turn]
        if known[0] is not checkpoint.start:
            start = np.ascontiguousarray(checkpoint.start, "<f4")
            self._write(slot + self._offset("start"), start)
            known = self._starts[self._turn] = (checkpoint.start, _crc(start))
        total_crc = 0
        if checkpoint.mean.total is not None:
            total = np.ascontiguousarray(checkpoint.mean.total, "<f8")
            self._write(slot + self._offset("total"), total)
            total_crc = _crc(total)
        field_crc = counted = 0
        if checkpoint.field is not None:
            sums = np.ascontiguousarray(checkpoint.field.sums, "<i8")
            self._write(slot + self._offset("field"), sums)
            field_crc, counted = _crc(sums), checkpoint.field.count
        values = {
            "complete": self.complete,
            "finished": checkpoint.finished,
            "averaged": checkpoint.mean.count,
            "summed": checkpoint.mean.total is not None,
            "nonfinite": checkpoint.nonfinite,
            "statistics_crc": self._statistics_crc,
            "start_crc": known[1],
            "total_crc": total_crc,
            "counted": counted,
            "field_crc": field_crc,
        }
        state = np.zeros((), _STATE)
        for name, value in values.items():
            state[name] = value
        for k, writer in enumerate(self._writers):
            state["last_frame"][k] = writer.checksum(checkpoint.finished - 1)
        state["crc"] = zlib.crc32(state.tobytes()[4:])
        self._write(slot, state)
        sync_file(self._file)
        self._turn = (self._turn + 1) % _SLOTS

    def remove(self) -> None:
        """Remove the journal: its run is complete, or has nothing to go on with."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        self._file.close()

    def close(self) -> None:
        """Leave the journal for a run that goes on."""
        self._file.close()

    def _load(self) -> None:
        image = self._read(self._image_at, self._image)
        if not image["begun"]:
            return
        if _crc(image["choices"], _crc(image["image"])) != image["crc"]:
            raise JournalError(f"{self.path!r} is damaged: its reference is not what was written")
        self.reference = image["image"].astype(np.float32)
        self.choices = json.loads(image["choices"].tobytes())
        found = [(k, slot) for k in range(_SLOTS) if (slot := self._whole_slot(k)) is not None]
        if not found:
            if any(self._read(self._slot_at(k), _STATE)["crc"] for k in range(_SLOTS)):
                raise JournalError(f"{self.path!r} is damaged: no state in it is what was written")
            return
        k, (slot, statistics) = max(found, key=lambda item: item[1][0]["state"][["finished", "complete"]].item())
        state = slot["state"]
        mean = FlowMean()
        if state["summed"]:
            mean.count, mean.total = int(state["averaged"]), slot["total"].astype(np.float64)
        start = slot["start"].astype(np.float32)
        field = None
        if self._measures_field:
            field = FlowField()
            field.count, field.sums = int(state["counted"]), slot["field"].astype(np.int64)
        nonfinite = int(state["nonfinite"])
        self.checkpoint = Checkpoint(int(state["finished"]), start, mean, nonfinite, statistics, field)
        self.complete = bool(state["complete"])
        self._turn, self._statistics_crc = 1 - k, int(state["statistics_crc"])

    def _whole_slot(self, k: int) -> tuple[Any, NDArray[np.float64]] | None:
        """A slot and the statistics of its frames, if all of it is what was written."""
        slot = self._read(self._slot_at(k), self._slot)
        state = slot["state"]
        if not state["crc"] or state["crc"] != zlib.crc32(state.tobytes()[4:]):
            return None
        rows = self._read(self._statistics_at, np.dtype(("<f8", (int(state["finished"]), len(COLUMNS)))))
        parts = {"start_crc": slot["start"], "statistics_crc": rows}
        if state["summed"]:
            parts["total_crc"] = slot["total"]
        if self._measures_field:
            parts["field_crc"] = slot["field"]
        whole = all(_crc(part) == state[name] for name, part in parts.items())
        return (slot, rows) if whole else None

    def _slot_at(self, k: int) -> int:
        return self._slots_at + k * self._slot.itemsize

    def _offset(self, field: str) -> int:
        fields = self._slot.fields
        assert fields is not None
        return int(fields[field][1])

    def _read(self, offset: int, dtype: np.dtype[Any]) -> Any:
        self._file.seek(offset)
        return np.frombuffer(self._file.read(dtype.itemsize), dtype)[0]

    def _write(self, offset: int, data: Any) -> None:
        self._file.seek(offset)
        remaining = memoryview(data).cast("B")
        while remaining:  # a system call writes at most 2 GiB
            remaining = remaining[self._file.write(remaining) :]
