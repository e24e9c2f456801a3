"""Apply any function of a frame to a stack, in worker processes that share the frames in memory."""

import tempfile
from pathlib import Path

import numpy as np

import flowreg_gpu as fg
from flowreg_gpu.synthetic import make_movie


def without_background(frame: np.ndarray) -> np.ndarray:
    """Subtract a channel's 10th percentile; the function has to be importable, so it stands at the top level."""
    background = np.percentile(frame, 10, axis=(0, 1)).astype(np.float32)
    return np.maximum(frame - background, 0)


def main() -> None:
    movie = make_movie(frames=24, height=128, width=128).movie

    # An array of the shape and dtype that the function returns, made by the call
    cleaned = fg.map_frames(without_background, movie, n_workers=2)
    print("cleaned:", cleaned.shape, cleaned.dtype)

    # or one of the caller's, here one number a frame
    brightness = np.empty(len(movie))
    fg.map_frames(np.mean, cleaned, out=brightness, n_workers=2)
    print("brightness:", brightness.round(1)[:6], "...")

    # or files: frames stream through, so that they may be larger than memory
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "movie.npy", Path(folder) / "cleaned.npy"
        np.save(source, movie)
        fg.map_frames(without_background, source, target, n_workers=2)
        print("the same from file to file:", np.array_equal(np.load(target), cleaned))


if __name__ == "__main__":  # worker processes import this script again
    main()
