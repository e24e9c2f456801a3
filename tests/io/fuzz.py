"""Damaged files, made from good ones, and what the readers say of them; a program of its own.

``python -m tests.io.fuzz FOLDER FIRST STOP`` makes mutants FIRST to STOP in FOLDER, one after the other, and reads
them. It prints a line for each one that is neither refused as documented nor read, and a count at the end. The number
of a mutant says what it is, so that one of them alone, N to N + 1, is made again and stays in FOLDER.
"""

import logging
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flowreg_gpu.io import FlowOrigin, TiffReader, open_flow_reader, open_flow_writer
from tests.io.tiff.layouts import LAYOUTS, write_layout

# Bytes that this program may have: a damaged size must not take the memory of the machine.
MEMORY = 3 * 2**30
DOCUMENTED = (ValueError, OSError, TypeError)
# Numbers that sizes, counts and positions are replaced by.
EXTREMES = (0, 1, 2, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)


class Seed(NamedTuple):
    """A good file: its contents, its frames, and how it is opened."""

    name: str
    content: bytes
    frames: np.ndarray
    arguments: dict

    @property
    def is_flow(self):
        return self.name.startswith("flow")


def make_seeds(folder):
    """Small files of every layout that the tests know, and of flows."""
    seeds = []
    for name in LAYOUTS:
        path = folder / f"{name}.tif"
        frames, arguments, _ = write_layout(name, path)
        seeds.append(Seed(path.name, path.read_bytes(), frames, arguments))
    frames = np.random.default_rng(0).standard_normal((3, 16, 17, 2)).astype(np.float32)
    for name, origin in (("flow.h5", None), ("flow-origin.h5", FlowOrigin("ab" * 32, "cubic", 2)),
                         ("flow.tif", None), ("flow-origin.tif", FlowOrigin("ab" * 32, "cubic", 2))):  # fmt: skip
        with open_flow_writer(folder / name, *frames.shape[:3], origin) as writer:
            writer.write(frames)
            writer.write_reference(frames[0])
        seeds += [Seed(name, (folder / name).read_bytes(), frames, {})] * 4  # they are few, and TIFF's are many
    for path in folder.iterdir():
        path.unlink()
    return seeds


def mutate(rng, seeds):
    """A damaged copy of one of the seeds: the seed, what was done, and the contents."""
    seed = seeds[rng.integers(len(seeds))]
    content = bytearray(seed.content)
    # headers and tags lie at the beginning or at the end of most files
    ends = min(len(content), 1024)
    place = int(rng.choice([rng.integers(min(len(content), 64)), rng.integers(ends),
                            len(content) - 1 - rng.integers(ends), rng.integers(len(content))]))  # fmt: skip
    kind = str(rng.choice(["flip", "byte", "number", "number", "truncate", "append", "cut", "repeat", "splice"]))
    if kind == "flip":
        for _ in range(rng.integers(1, 9)):
            content[place] ^= 1 << int(rng.integers(8))
            place = int(np.clip(place + rng.integers(-40, 41), 0, len(content) - 1))
    elif kind == "byte":
        content[place] = int(rng.integers(256))
    elif kind == "number":
        size = int(rng.choice([2, 4, 8]))
        near = [len(content), len(content) - 1, place, place - place % 4]
        number = int(rng.choice(np.array([*EXTREMES, *near], object))) % 2 ** (8 * size)
        content[place : place + size] = number.to_bytes(size, str(rng.choice(["little", "big"])))
    elif kind == "truncate":
        del content[place:]
    elif kind == "append":
        content += rng.bytes(int(rng.integers(1, 99)))
    else:
        length = int(rng.integers(1, 200))
        if kind == "cut":
            del content[place : place + length]
        elif kind == "repeat":
            content[place:place] = content[place : place + length]
        else:
            other = seeds[rng.integers(len(seeds))].content
            begin = int(rng.integers(len(other)))
            content[place : place + length] = other[begin : begin + length]
    return seed, kind, bytes(content)


def read_mutant(seed, path):
    """All frames, read in two ways; AssertionError where these differ, or are not what the reader says."""
    with open_flow_reader(path) if seed.is_flow else TiffReader(path, **seed.arguments) as reader:
        frames = reader.read(0, reader.n_frames)
        assert frames.shape == reader.shape, f"{frames.shape} was read, {reader.shape} was said"
        assert frames.dtype == reader.dtype, f"{frames.dtype} was read, {reader.dtype} was said"
        last = reader.read(reader.n_frames - 1, reader.n_frames)
        assert last.tobytes() == frames[-1:].tobytes(), "the last frame alone is another one"
        if seed.is_flow:
            reference = reader.read_reference()
            assert reference is None or reference.shape[:2] == reader.shape[1:3], f"reference of {reference.shape}"
        return frames


def judge(number, seeds, folder):
    """What is wrong with the answer to a mutant, or None; and whether it was read."""
    seed, kind, content = mutate(np.random.default_rng(number), seeds)
    path = folder / f"{number}-{kind}-{seed.name}"
    path.write_bytes(content)
    try:
        frames = read_mutant(seed, path)
    except DOCUMENTED as error:
        return (None if path.name in str(error) else f"{error!r} does not name the file"), False
    except BaseException as error:
        return f"{type(error).__name__}: {error}", False
    if kind in ("truncate", "append") and not np.array_equal(frames, seed.frames, equal_nan=True):
        return "other frames than before", True
    return None, True


def main(folder, first, stop):
    """Judge mutants, and say which one is under way in the file `current`, for a crash or a hang."""
    import resource

    logging.disable()  # tifffile logs what it makes of damage
    warnings.simplefilter("ignore")
    seeds = make_seeds(folder)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    read = 0
    for number in range(first, stop):
        (folder / "current").write_text(str(number))
        problem, was_read = judge(number, seeds, folder)
        read += was_read
        if problem is not None:
            print(f"mutant {number}: {problem}")
        if stop - first > 1:
            for path in folder.glob(f"{number}-*"):
                path.unlink()
    print(f"{stop - first} mutants, {read} read")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
