"""Writers that are given up while another thread writes, and files that appear when they are complete."""

import threading

import numpy as np
import pytest

from flowreg_gpu.cuda.preprocess import C_TYPES
from flowreg_gpu.io import FrameWriter, Hdf5FlowWriter, PendingFile, TiffWriter
from flowreg_gpu.options import FRAME_DTYPES


class WatchedLock:
    """A lock that sets an event when a thread has to wait for it."""

    def __init__(self, lock, refused):
        self.lock, self.refused = lock, refused

    def __enter__(self):
        if not self.lock.acquire(blocking=False):
            self.refused.set()
            self.lock.acquire()

    def __exit__(self, *error):
        self.lock.release()


class SlowWriter(FrameWriter):
    """Stores a batch when it is told to, and notes what happens in which order."""

    threaded = True

    def __init__(self):
        super().__init__((4, 3, 2, 1), np.uint8)
        self.storing, self.go_on, self.events = threading.Event(), threading.Event(), []
        self.waits_or_ended = threading.Event()
        self._lock = WatchedLock(self._lock, self.waits_or_ended)

    def _store(self, frames, start):
        self.events.append("begin to store")
        self.storing.set()
        assert self.go_on.wait(600)
        self.events.append("stored")

    def _commit(self):
        self.events.append("commit")

    def _discard(self):
        self.events.append("discard")

    def _keep(self):
        self.events.append("keep")
        return ["partial"]


@pytest.mark.parametrize(("give_up", "last"), [("abort", "discard"), ("keep_partial", "keep"), ("close", "discard")])
def test_a_writer_is_not_given_up_under_a_writing_thread(give_up, last):
    """The file would be closed, or moved away, between two of its pixels."""
    writer, frames = SlowWriter(), np.zeros((2, 3, 2, 1), np.uint8)
    writing = threading.Thread(target=writer.write, args=(frames,), daemon=True)
    writing.start()
    assert writer.storing.wait(600)
    outcome = []

    def end():
        try:
            outcome.append(getattr(writer, give_up)())
        except RuntimeError as error:  # close() with frames missing
            outcome.append(str(error))
        finally:
            writer.waits_or_ended.set()

    ending = threading.Thread(target=end, daemon=True)
    ending.start()
    assert writer.waits_or_ended.wait(600)
    before = list(writer.events)
    writer.go_on.set()
    writing.join(600)
    ending.join(600)
    assert before == ["begin to store"]  # without the lock, the file was given up already
    assert writer.events == ["begin to store", "stored", last]
    assert outcome == [
        {"abort": None, "keep_partial": ["partial"]}.get(give_up, "2 frames were written, 4 were announced")
    ]
    with pytest.raises(RuntimeError, match=r"frames cannot be written after close\(\) or abort\(\), 2 were written"):
        writer.write(frames)


def test_nothing_is_kept_of_no_frames(tmp_path):
    writer = TiffWriter(tmp_path / "out.tif", n_frames=2, height=16, width=16, n_channels=1, dtype="uint8")
    assert writer.keep_partial() == []
    assert list(tmp_path.iterdir()) == []


def test_partial_frames_are_kept_once(tmp_path):
    writer = Hdf5FlowWriter(tmp_path / "flow.h5", 2, 16, 16)
    writer.write(np.zeros((1, 16, 16, 2), np.float32))
    assert writer.keep_partial() == [str(tmp_path / "flow.partial.h5")]
    assert writer.keep_partial() == []
    assert [path.name for path in tmp_path.iterdir()] == ["flow.partial.h5"]


def test_a_pending_file_appears_when_its_block_ends_well(tmp_path):
    path = tmp_path / "figures.json"
    with PendingFile(path) as pending, open(pending.path, "w") as file:
        file.write("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_pending_file_leaves_the_old_one_where_its_block_fails(tmp_path, error):
    path = tmp_path / "figures.json"
    path.write_text("old")

    def fail_halfway():
        with PendingFile(path, overwrite=True) as pending, open(pending.path, "w") as file:
            file.write("half")
            raise error

    with pytest.raises(error):
        fail_halfway()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_kernels_take_every_type_of_frame():
    assert tuple(C_TYPES) == FRAME_DTYPES
    assert C_TYPES[np.dtype("uint16")] == "unsigned short"
    assert C_TYPES[np.dtype("int8")] == "signed char"
