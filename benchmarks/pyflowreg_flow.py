"""pyflowreg's flow on frames that were preprocessed once for both programs, with its default parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from flowreg_gpu.pyflowreg.library import part

#: Flow parameters of pyflowreg's pipeline, but for the finest level and the weights.
PARAMETERS = {"alpha": (1.5, 1.5), "levels": 100, "eta": 0.8, "iterations": 50, "update_lag": 5, "a_data": 0.45}
PARAMETERS |= {"a_smooth": 1.0, "const_assumption": "gc"}


def preprocessed(frames: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frames (T, H, W, 1) and reference (H, W, 1), normalised by the reference and filtered in space, float32."""
    low, high = reference.min(), reference.max()
    planes, reference_planes = (
        gaussian_filter((image - low) / (high - low + 1e-8), sigma).astype(np.float32)
        for image, sigma in ((frames.astype(np.float32), (0, 1, 1, 0)), (reference, (1, 1, 0)))
    )
    return planes, reference_planes


def sequential_executor() -> tuple[Any, dict[str, Any]]:
    """pyflowreg's executor on one core, and the functions that its pipeline hands to `process_batch`."""
    executor = part("motion_correction.parallelization.sequential", "SequentialExecutor")(n_workers=1)
    return executor, {
        "get_displacement_func": part("core.optical_flow", "get_displacement"),
        "imregister_func": part("core.warping", "imregister_wrapper"),
    }
