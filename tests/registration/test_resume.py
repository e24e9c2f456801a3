"""Runs that end early, in every way, and runs that go on with what they left: the files of an uninterrupted run."""

import errno
import os
import shutil
import signal
import sys
import types

import numpy as np
import pytest
import tifffile

import flowreg_gpu as fg
from flowreg_gpu.io import ReservedFileWriter, pending
from flowreg_gpu.io.pending import PendingFile
from flowreg_gpu.registration import journal as journal_module
from flowreg_gpu.registration.files import statistics_name
from flowreg_gpu.registration.journal import Journal, JournalError, journal_name
from flowreg_gpu.registration.leftovers import find_leftovers, remove_leftover
from tests.emulation import EmulatedDevice
from tests.movies import recording
from tests.programs import run_program

pytest.importorskip("h5py")
needs_posix = pytest.mark.skipif(os.name != "posix", reason="signals and holds of files")

# Windows of 7 frames, and a filter over time that reaches over the borders of batches and windows.
HOW = {"alpha": 4, "levels": 3, "min_level": 1, "buffer_size": 7, "sigma": (1, 1, 0.5)}
N_FRAMES = 17


class Pulled(Exception):
    """What a callback raises to end a run."""


def pull_at(frames):
    """A callback that ends the run when so many frames are registered."""

    def progress(stage, finished, total):
        if stage == "frames" and finished >= frames:
            raise Pulled

    return progress


@pytest.fixture
def folder(tmp_path):
    """A folder with a movie, in which a pixel is NaN, and a frame constant."""
    movie = recording(N_FRAMES, 26, 31, channels=2, dtype="float32")
    movie.frames[5, 3, 4], movie.frames[9] = np.nan, 7
    tifffile.imwrite(tmp_path / "in.tif", movie.frames, photometric="minisblack", metadata={"axes": "TYXC"})
    return tmp_path


def register(folder, name="out", flow=".h5", executor="sequential", **how):
    with pytest.warns(RuntimeWarning):  # a constant frame, or partial files
        return fg.register_file(
            folder / "in.tif", folder / f"{name}.tif", executor, range(4), folder / f"{name}_flow{flow}", **HOW | how
        )


def outputs(folder, name="out", flow=".h5"):
    return [(folder / file).read_bytes() for file in (f"{name}.tif", f"{name}_flow{flow}", f"{name}_statistics.npz")]


def listing(folder):
    return sorted(os.listdir(folder))


def left_after(folder, frames, **how):
    """End a run when so many frames are registered."""
    with pytest.raises(Pulled):
        register(folder, progress=pull_at(frames), **how)


@pytest.mark.parametrize("flow", [".h5", ".tif"])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_files_of_an_uninterrupted_run(folder, flow, batch):
    """Ended again and again: in the middle of a window, in its last flows, at its end, and after the last frame."""
    expected = register(folder, "whole", flow)
    for frames in (4, 7, 8, 13, 14, 17):
        left_after(folder, frames, flow=flow, batch=batch, resume=True)
    summary = register(folder, flow=flow, resume=True)
    assert outputs(folder, "out", flow) == outputs(folder, "whole", flow)
    assert listing(folder) == sorted(
        [
            "in.tif",
            *(f"{name}{end}" for name in ("out", "whole") for end in (".tif", f"_flow{flow}", "_statistics.npz")),
        ]
    )
    assert summary.resumed_at == 16 if batch == 1 else 15
    assert summary.nonfinite_pixels == expected.nonfinite_pixels == 2
    assert summary.constant_frames == expected.constant_frames == 1
    assert f"after {summary.resumed_at} of an earlier run" in str(summary)
    for column, values in expected.statistics.items():
        np.testing.assert_array_equal(summary.statistics[column], values)


def test_executor_and_batch_may_change(folder):
    register(folder, "whole")
    executors = ["threading", fg.GPUExecutor(1, device=EmulatedDevice(), fallback=False), "sequential"]
    for frames, executor in zip((5, 9, 14), executors, strict=True):
        left_after(folder, frames, executor=executor, batch=frames - 2, resume=True)
    register(folder, resume=True, executor="threading", batch=2)
    assert outputs(folder)[:2] == outputs(folder, "whole")[:2]  # statistics are rounded otherwise on a GPU


def test_verification_of_what_is_left(folder):
    left_after(folder, 12, batch=4, verify=3)
    summary = register(folder, batch=4, verify=3, resume=True)
    assert summary.verification.frames == (16,)  # the others were finished
    assert summary.verification.passed


PROGRAM = """
import os, signal, sys, warnings
import flowreg_gpu as fg

def progress(stage, finished, total):
    if stage == sys.argv[3] and finished >= int(sys.argv[4]):
        if sys.argv[2] == "group":
            os.killpg(0, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    fg.register_file(
        "in.tif", "out.tif", sys.argv[1], range(4), "out_flow.h5", batch=3, n_workers=1, resume=True, progress=progress,
        alpha=4, levels=3, min_level=1, buffer_size=7, sigma=(1, 1, 0.5),
    )
"""


@needs_posix
@pytest.mark.parametrize(
    ("executor", "who", "stage", "frames"),
    [("threading", "parent", "reference", 1), ("sequential", "parent", "start", 1),
     ("threading", "parent", "frames", 9), ("multiprocessing", "group", "frames", 9),
     ("multiprocessing", "parent", "frames", 17)],
)  # fmt: skip
def test_killed(compiled, folder, executor, who, stage, frames):
    """Without warning, as the system does when memory runs out: in the parent, or in all its processes."""
    register(folder, "whole")
    (folder / "program.py").write_text(PROGRAM)
    done = run_program("program.py", executor, who, stage, frames, folder=folder)
    assert done.returncode == -signal.SIGKILL, done.stderr
    expected = ["in.tif", "out.partial.tif", "out.partial.tif.journal", "out_flow.partial.h5", "program.py"]
    assert [name for name in listing(folder) if "whole" not in name] == expected
    with pytest.raises(FileExistsError, match=r"an earlier run left \d+ of 17 frames .*--resume.* goes on with it"):
        register_quietly(folder)
    register(folder, resume=True)
    assert outputs(folder) == outputs(folder, "whole")
    assert not [name for name in listing(folder) if "partial" in name]


def register_quietly(folder, **how):
    return fg.register_file(
        folder / "in.tif", folder / "out.tif", "sequential", range(4), folder / "out_flow.h5", **HOW | how
    )


# What is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [({"alpha": 5}, "alpha was 4.0 then and is 5.0 now"), ({"weight": (0.25, 0.75)}, r"weight was None then"),
     ({"buffer_size": 8}, "buffer_size was 7 then and is 8 now")],
)  # fmt: skip
def test_another_option(folder, change, message):
    left_after(folder, 9, batch=3)
    before = {name: (folder / name).read_bytes() for name in listing(folder)}
    with pytest.raises(JournalError, match=message):
        register_quietly(folder, resume=True, **change)
    assert {name: (folder / name).read_bytes() for name in listing(folder)} == before


def test_another_reference_input_or_flow_file(folder):
    left_after(folder, 9, batch=3)
    names = folder / "in.tif", folder / "out.tif", "sequential"
    with pytest.raises(JournalError, match="reference was"):
        fg.register_file(*names, range(5), folder / "out_flow.h5", resume=True, **HOW)
    with pytest.raises(JournalError, match="reference was"):
        fg.register_file(*names, np.ones((26, 31, 2)), folder / "out_flow.h5", resume=True, **HOW)
    with pytest.raises(JournalError, match="outputs was"):
        fg.register_file(*names, range(4), resume=True, **HOW)
    os.utime(folder / "in.tif", (1, 1))
    with pytest.raises(JournalError, match="input was"):
        register_quietly(folder, resume=True)


def test_another_version(folder, monkeypatch):
    left_after(folder, 9, batch=3)
    monkeypatch.setattr("flowreg_gpu.__version__", "99")
    with pytest.raises(JournalError, match=r"version was '.*' then and is '99' now"):
        register_quietly(folder, resume=True)


def test_damaged_journals(folder):
    left_after(folder, 9, batch=3)
    path = folder / "out.partial.tif.journal"
    whole = path.read_bytes()
    journal = Journal.open(path)
    header, image, slots = len(journal_module.MAGIC) + 20, journal._image_at + 20, journal._slots_at
    slot, rows = journal._slot.itemsize, journal._statistics_at
    journal.close()
    for damaged, message in [
        (whole[:-1], "is truncated: it has"),
        (whole[: header + 30], "its header is not what was written"),
        (whole[:8], "is not a journal"),
        (b"", "is not a journal"),
        (b"II*\0" + whole[4:], "is not a journal"),
        (flipped(whole, header), "its header is not what was written"),
        (flipped(whole, image), "its reference is not what was written"),
        (flipped(whole, slots + 8, slots + slot + 8), "no state in it is what was written"),
        (flipped(whole, slots + 100, slots + slot + 100), "no state in it is what was written"),
        (flipped(whole, rows + 5), "no state in it is what was written"),
    ]:
        path.write_bytes(damaged)
        with pytest.raises(JournalError, match=message):
            register_quietly(folder, resume=True)
        with pytest.raises(JournalError, match=r"overwrite=True \(--overwrite\) begins anew"):
            register_quietly(folder)
    assert not (folder / "out.tif").exists()
    register(folder, "whole")
    register(folder, overwrite=True)
    assert outputs(folder) == outputs(folder, "whole")


def flipped(content, *offsets):
    content = bytearray(content)
    for offset in offsets:
        content[offset] ^= 0xFF
    return bytes(content)


def test_a_torn_state_costs_one_batch(folder):
    """The machine stopped while the journal was written: the state before it holds."""
    register(folder, "whole")
    left_after(folder, 12, batch=3)
    path = folder / "out.partial.tif.journal"
    journal = Journal.open(path)
    newest, before = journal._slot_at(1 - journal._turn), journal.checkpoint.finished
    journal.close()
    path.write_bytes(flipped(path.read_bytes(), newest + 20))
    assert register(folder, resume=True).resumed_at == before - 3
    assert outputs(folder) == outputs(folder, "whole")


def test_other_partial_files(folder):
    left_after(folder, 9, batch=3)
    for name in ("out.partial.tif", "out_flow.partial.h5"):
        path = folder / name
        whole = path.read_bytes()
        os.truncate(path, len(whole) - 1)
        with pytest.raises(JournalError, match=rf"{name}' has \d+ bytes, expected \d+"):
            register_quietly(folder, resume=True)
        path.unlink()
        with pytest.raises(JournalError, match=rf"{name}' has 0 bytes, expected \d+"):
            register_quietly(folder, resume=True)
        path.write_bytes(whole)
    path = folder / "out.partial.tif"
    whole, frame = path.read_bytes(), 26 * 31 * 2 * 4
    end = whole.index(tifffile.imread(path)[6].tobytes()) + frame
    path.write_bytes(whole[: end - frame] + bytes(frame) + whole[end:])  # as after a power cut
    with pytest.raises(JournalError, match=r"out\.partial\.tif' is not what its journal says was written"):
        register_quietly(folder, resume=True)
    path.write_bytes(whole)
    register(folder, resume=True)


def test_there_is_nothing_to_go_on_with(folder):
    summary = register(folder, resume=True)
    assert summary.resumed_at == 0
    with pytest.raises(FileExistsError, match="the output exists"):
        register_quietly(folder, resume=True)


# Other files of these names


def test_nothing_is_replaced_unasked(folder):
    register(folder)
    for missing in ("out.tif", "out_flow.h5", "out_statistics.npz"):
        (folder / "kept").mkdir()
        shutil.move(folder / missing, folder / "kept")
        before = {name: (folder / name).read_bytes() for name in listing(folder) if name != "kept"}
        with pytest.raises(FileExistsError, match=r"the output exists; only overwrite=True \(--overwrite\)"):
            register_quietly(folder)
        assert {name: (folder / name).read_bytes() for name in listing(folder) if name != "kept"} == before
        shutil.move(folder / "kept" / missing, folder)
        (folder / "kept").rmdir()


def test_a_partial_file_of_unknown_origin_is_left_alone(folder):
    for name in ("out.partial.tif", "out_flow.partial.h5", "out_statistics.partial.npz"):
        (folder / name).write_bytes(b"somebody's")
        with pytest.raises(FileExistsError, match="an earlier run left a partial file"):
            register_quietly(folder)
        assert (folder / name).read_bytes() == b"somebody's"
        assert listing(folder) == sorted(["in.tif", name])
        (folder / name).unlink()


def test_a_file_that_appears_meanwhile(folder):
    """It is not replaced, and the finished run gives its files their names when that one is gone."""
    register(folder, "whole")

    def appear(stage, finished, total):
        (folder / "out.tif").write_bytes(b"somebody's")

    with pytest.raises(FileExistsError, match="has got the name of the output meanwhile"):
        register(folder, progress=appear)
    for how in ({}, {"resume": True}):
        with pytest.raises(FileExistsError):
            register_quietly(folder, **how)
        assert (folder / "out.tif").read_bytes() == b"somebody's"
        assert not (folder / "out_flow.h5").exists()
        assert not (folder / "out_statistics.npz").exists()
    (folder / "out.tif").unlink()
    summary = register(folder, resume=True)
    assert summary.resumed_at == N_FRAMES
    assert outputs(folder) == outputs(folder, "whole")
    assert not [name for name in listing(folder) if "partial" in name]


@pytest.mark.parametrize("failing", ["out_statistics.npz", "out_flow.h5", "out.tif"])
def test_all_outputs_get_their_names_or_none(folder, monkeypatch, failing):
    rename = pending._rename_if_free

    def fail(path, final_path):
        if os.path.basename(final_path) == failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO), final_path)
        rename(path, final_path)

    monkeypatch.setattr(pending, "_rename_if_free", fail)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        register(folder)
    monkeypatch.undo()
    assert not {"out.tif", "out_flow.h5", "out_statistics.npz"} & set(listing(folder))
    register(folder, resume=True)
    register(folder, "whole")
    assert outputs(folder) == outputs(folder, "whole")


DIES_BETWEEN_NAMES = """
import os, signal, sys
from flowreg_gpu.io import pending

rename, renamed = pending._rename_if_free, []

def die(path, final_path):
    if len(renamed) == int(sys.argv[5]):
        os.kill(os.getpid(), signal.SIGKILL)
    renamed.append(final_path)
    rename(path, final_path)

pending._rename_if_free = die
"""


@needs_posix
@pytest.mark.parametrize("renamed", [0, 1, 2])
def test_killed_between_two_names(compiled, folder, renamed):
    register(folder, "whole")
    (folder / "program.py").write_text(DIES_BETWEEN_NAMES + PROGRAM)
    done = run_program("program.py", "sequential", "parent", "none", 0, renamed, folder=folder)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len({"out.tif", "out_flow.h5", "out_statistics.npz"} & set(listing(folder))) == renamed
    summary = register(folder, resume=True)
    assert summary.n_frames == summary.resumed_at == N_FRAMES
    assert outputs(folder) == outputs(folder, "whole")
    assert not [name for name in listing(folder) if "partial" in name]


@needs_posix
def test_killed_within_a_rename(folder, monkeypatch):
    """A new name is a second link before the old one goes."""
    register(folder, "whole")
    unlink = os.unlink

    def refuse(path):
        if str(path).endswith("out_flow.partial.h5"):
            raise Pulled
        unlink(path)

    monkeypatch.setattr(os, "unlink", refuse)
    monkeypatch.setattr(PendingFile, "take_back", lambda pending: None)  # the process is dead by then
    with pytest.raises(Pulled):
        register(folder)
    monkeypatch.undo()
    assert os.path.samefile(folder / "out_flow.h5", folder / "out_flow.partial.h5")
    register(folder, resume=True)
    assert outputs(folder) == outputs(folder, "whole")
    assert not [name for name in listing(folder) if "partial" in name]


@needs_posix
def test_two_runs_to_one_output(folder):
    refused = []

    def second(stage, finished, total):
        if stage == "frames" and not refused:
            for how in ({}, {"resume": True}, {"overwrite": True}):
                with pytest.raises(BlockingIOError, match="another run is writing this file"):
                    register_quietly(folder, **how)
                refused.append(how)

    register(folder, progress=second)
    assert len(refused) == 3
    register(folder, "whole")
    assert outputs(folder) == outputs(folder, "whole")


@needs_posix
def test_two_runs_with_one_flow_file(folder):
    def second(stage, finished, total):
        if (stage, finished) == ("frames", 4):
            with pytest.raises(BlockingIOError, match="another run is writing this file"):
                fg.register_file(
                    folder / "in.tif", folder / "other.tif", "sequential", range(4), folder / "out_flow.h5", **HOW
                )
            assert "other.partial.tif" not in listing(folder)

    register(folder, progress=second)


def test_names_of_statistics():
    assert statistics_name("a/x.tif").name == "x_statistics.npz"
    assert statistics_name("a/x.TIF").name == "x.TIF_statistics.npz"
    assert statistics_name("a/x.tiff").name == "x.tiff_statistics.npz"


# Faults while a run goes on


def test_full_disk_under_the_journal(folder, monkeypatch):
    write, calls = Journal._write, []

    def full(journal, offset, data):
        if offset >= journal._slots_at:
            calls.append(offset)
        if len(calls) > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(journal, offset, data)

    monkeypatch.setattr(Journal, "_write", full)
    with pytest.raises(OSError, match="No space left"):
        register(folder, batch=3)
    monkeypatch.undo()
    register(folder, "whole")
    assert 0 < register(folder, resume=True).resumed_at < N_FRAMES
    assert outputs(folder) == outputs(folder, "whole")


@pytest.mark.parametrize("name", ["out.tif", "out_flow.h5"])
def test_full_disk_under_an_output(folder, monkeypatch, name):
    write_bytes, calls = ReservedFileWriter._write_bytes, []

    def full(writer, offset, slab):
        if os.path.basename(writer.pending.final_path) == name:
            calls.append(offset)
            if len(calls) > 8:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_bytes(writer, offset, slab)

    monkeypatch.setattr(ReservedFileWriter, "_write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        register(folder, batch=1)
    monkeypatch.undo()
    register(folder, "whole")
    assert 0 < register(folder, resume=True).resumed_at < N_FRAMES
    assert outputs(folder) == outputs(folder, "whole")


def test_no_room_for_the_outputs(folder, monkeypatch):
    usage = types.SimpleNamespace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(OSError, match="the disk has 1000 bytes free") as caught:
        register_quietly(folder)
    assert caught.value.errno == errno.ENOSPC
    assert listing(folder) == ["in.tif"]


@needs_posix
@pytest.mark.parametrize("name", ["out.partial.tif", "out_flow.partial.h5"])
def test_an_output_that_is_deleted_is_noticed_at_the_next_write(folder, name):
    finished = []

    def delete(stage, frames, total):
        finished.append(frames)
        if (stage, frames) == ("frames", 4):
            (folder / name).unlink()

    with pytest.raises(FileNotFoundError, match="the output was deleted while it was written"):
        register(folder, progress=delete, batch=1)
    assert max(finished) < N_FRAMES


def test_an_input_that_grows_is_noticed(folder):
    def grow(stage, finished, total):
        if (stage, finished) == ("frames", 4):
            with open(folder / "in.tif", "ab") as file:
                file.write(b"more")

    with pytest.warns(RuntimeWarning) as caught:
        summary = register_quietly(folder, progress=grow)
    assert any("in.tif' was changed while it was registered" in str(warning.message) for warning in caught)
    assert summary.changed_inputs == (str(folder / "in.tif"),)
    assert (folder / "out.tif").exists()


def test_an_input_that_is_cut_off_ends_the_run(folder):
    size = os.path.getsize(folder / "in.tif")

    def cut(stage, finished, total):
        if (stage, finished) == ("frames", 4):
            os.truncate(folder / "in.tif", size // 2)

    with pytest.raises(OSError, match=r"the file ends \d+ bytes early; was it changed while in use"):
        register(folder, progress=cut, batch=1)
    assert "out.tif" not in listing(folder)
    assert "out.partial.tif" in listing(folder)


# What runs have left is removed


def test_leftovers(folder):
    left_after(folder, 9, batch=3)
    (found,), left_alone = find_leftovers(folder)
    assert left_alone == []
    assert found.journal == journal_name(folder / "out.tif")
    assert sorted(map(os.path.basename, found.files)) == ["out.partial.tif", "out_flow.partial.h5"]
    assert (found.finished, found.n_frames) == (7, N_FRAMES)
    assert found.n_bytes > 7 * 26 * 31 * 2 * 4
    remove_leftover(found)
    assert listing(folder) == ["in.tif"]
    assert find_leftovers(folder) == ([], [])


@needs_posix
def test_living_runs_and_damaged_journals_are_left_alone(folder):
    lines = []
    (folder / "strange.journal").write_bytes(b"notes of the day")

    def look(stage, finished, total):
        if (stage, finished) == ("frames", 9):
            found, left_alone = find_leftovers(folder)
            assert found == []
            lines.extend(left_alone)

    register(folder, progress=look)
    assert [line.split(": ")[1] for line in lines if "out" in line] == ["its run is alive"]
    assert any("strange.journal' is not a journal" in line for line in lines)
    assert (folder / "strange.journal").exists()


def test_command_clean(folder, capsys):
    from flowreg_gpu.cli import main

    left_after(folder, 9, batch=3)
    before = listing(folder)
    assert main(["clean", str(folder), "--dry-run"]) == 0
    assert listing(folder) == before
    told = capsys.readouterr().out
    assert f"would remove {folder / 'out.partial.tif'}\n" in told
    assert "7 of 17 frames" in told
    assert main(["clean", str(folder)]) == 0
    assert f"removed {folder / 'out_flow.partial.h5'}\n" in capsys.readouterr().out
    assert listing(folder) == ["in.tif"]
    assert main(["clean", str(folder)]) == 0
    assert capsys.readouterr().out == "no partial files\n"
    assert main(["clean", str(folder / "nowhere")]) == 2


# A file that is held


@needs_posix
def test_a_partial_file_is_held_until_it_is_complete(tmp_path):
    path = tmp_path / "out.json"
    with PendingFile(path) as held:
        for how in ({}, {"overwrite": True}, {"resume": True}):
            with pytest.raises(BlockingIOError, match="another run is writing this file"):
                PendingFile(path, **how)
        assert os.path.exists(held.path)
    assert listing(tmp_path) == ["out.json"]
    with PendingFile(path, overwrite=True):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="Windows renames without links")
def test_a_file_system_without_links(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    with PendingFile(tmp_path / "out.json") as new:
        pass
    assert listing(tmp_path) == ["out.json"]
    (tmp_path / "out.json").unlink()
    new = PendingFile(tmp_path / "out.json")
    (tmp_path / "out.json").write_bytes(b"somebody's")
    with pytest.raises(FileExistsError, match="meanwhile"):
        new.commit()
    new.discard()
    assert (tmp_path / "out.json").read_bytes() == b"somebody's"
