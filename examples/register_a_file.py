"""Register a TIFF file, and find the frames that stand out in its statistics."""

import numpy as np
import tifffile

import flowreg_gpu as fg
from flowreg_gpu.synthetic import make_movie


def main() -> None:
    # A movie with known motion; frame 9 jumps by 30 pixels, as when the animal moves.
    movie = make_movie(frames=20, height=128, width=128).movie[..., 0]
    movie[9] = np.roll(movie[9], 30, axis=1)
    tifffile.imwrite("movie.tif", movie, imagej=True, metadata={"axes": "TYX"})

    summary = fg.register_file(
        "movie.tif", "registered.tif", executor="multiprocessing", reference=slice(0, 9), alpha=4
    )
    print(summary)

    # Frames that correlate with the reference much less than most do: four standard deviations, were they normal.
    after = summary.statistics["correlation_after"]
    middle = np.median(after)
    spread = 1.4826 * np.median(np.abs(after - middle))
    odd = np.flatnonzero(after < middle - 4 * spread)
    print("frames to look at:", odd.tolist())

    # They get another try: pre-alignment finds large jumps. What the file has of all frames, the array has of these.
    registered, _ = fg.register(movie[8:11], summary.reference, executor="threading", alpha=4, cc_initialization=True)
    correlation = np.corrcoef(registered[1].ravel(), summary.reference.ravel())[0, 1]
    print(f"frame 9: correlation {after[9]:.3f}, with pre-alignment {correlation:.3f}")


if __name__ == "__main__":  # worker processes import this script again
    main()
