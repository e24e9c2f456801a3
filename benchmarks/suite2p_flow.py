"""Flows of suite2p's non-rigid registration, in an interpreter that has suite2p: ``PYTHON suite2p_flow.py``.

Reads paths of .npz files line by line, each with `frames` (T, H, W) and `reference` (H, W); writes the flow
(T, H, W, 2) float32 beside each, as ``<name>.flow.npy``, and answers with a line: 'done', or what went wrong.
"""

from __future__ import annotations

import sys

answers, sys.stdout = sys.stdout, sys.stderr  # suite2p prints where it is imported

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from suite2p import default_settings  # noqa: E402
from suite2p.registration.register import compute_filters_and_norm, compute_shifts  # noqa: E402

BLOCK = (64, 64)
torch.set_num_threads(1)


def register(frames: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the rigid shift and the shifts of the blocks, interpolated as suite2p does where it moves frames."""
    settings = default_settings()["registration"]
    device = torch.device("cpu")
    masks = compute_filters_and_norm(
        (reference / 2).astype(np.int16),  # halved, as suite2p does with uint16
        settings["norm_frames"],
        settings["smooth_sigma"],
        settings["spatial_taper"],
        BLOCK,
        device=device,
    )
    moving = torch.from_numpy((frames // 2).astype(np.int16))
    dy, dx, _, dy_block, dx_block, *_ = compute_shifts(
        masks,
        moving,
        settings["maxregshift"],
        settings["smooth_sigma_time"],
        settings["snr_thresh"],
        settings["maxregshiftNR"],
    )
    y_block, x_block, (down, across) = masks[6][:3]
    height, width = reference.shape
    y = np.array(y_block[::across]).mean(axis=1).astype(int)
    x = np.array(x_block[:across]).mean(axis=1).astype(int)
    blocks = torch.stack([dx_block, dy_block], dim=1).reshape(-1, 2, down, across)
    between = F.interpolate(blocks, size=(y[-1] - y[0], x[-1] - x[0]), mode="bilinear", align_corners=True)
    whole = F.pad(between, (x[0], width - x[-1], y[0], height - y[-1]), mode="replicate")
    flow = whole + torch.stack([dx, dy], dim=1)[:, :, None, None]
    return np.ascontiguousarray(flow.permute(0, 2, 3, 1).numpy(), np.float32)


def main() -> None:
    """Answer until the input ends."""
    for line in sys.stdin:
        path = line.rstrip("\n")
        try:
            with np.load(path) as case:
                np.save(path.removesuffix(".npz") + ".flow.npy", register(case["frames"], case["reference"]))
            print("done", file=answers, flush=True)
        except Exception as error:
            print(f"{type(error).__name__}: {error}".replace("\n", " "), file=answers, flush=True)


if __name__ == "__main__":
    main()
