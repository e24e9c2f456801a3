"""Flow and warp of images in memory, without a recording around them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu import cpu
from flowreg_gpu.cpu.flatness import choose_solver_by_reference
from flowreg_gpu.engine.batch import check_warpable
from flowreg_gpu.model.estimator import FlowEstimator
from flowreg_gpu.model.preprocessing import channel_weights
from flowreg_gpu.options import Options, check_plain, check_size, merge_options

__all__ = ["estimate_flow", "warp"]


def estimate_flow(
    fixed: NDArray[Any], moving: NDArray[Any], options: Options | None = None, **overrides: Any
) -> NDArray[np.float32]:
    """Flow from one image to another on the CPU; the images are taken as given, neither normalised nor filtered.

    Parameters
    ----------
    fixed, moving : (H, W) or (H, W, C), real
        Usually scaled to 0-1 and smoothed.
    options, **overrides
        As in `register`; what concerns recordings has no effect.

    Returns
    -------
    flow : (H, W, 2) float32
        u and v in pixels; ``fixed(y, x) ~ moving(y + v, x + u)``.

    Raises
    ------
    ValueError
        Shapes that differ, fewer than 16 pixels a side, or masked, complex, NaN or infinite pixels.
    """
    chosen = merge_options(options, overrides)
    planes = []
    for name, image in (("fixed", fixed), ("moving", moving)):
        check_plain(image, name)
        image = np.asarray(image)
        if image.ndim not in (2, 3):
            raise ValueError(f"{name} has shape {image.shape}, expected (H, W) or (H, W, C)")
        if image.dtype.kind not in "buif":
            raise ValueError(f"{name} has dtype {image.dtype}, expected real numbers")
        image = image[..., None] if image.ndim == 2 else image
        if not np.all(np.isfinite(image)):
            raise ValueError(f"{name} holds NaN or infinite pixels")
        planes.append(np.array(image.transpose(2, 0, 1), np.float32, order="C"))
    if planes[0].shape != planes[1].shape:
        raise ValueError(f"moving has shape {np.shape(moving)}, expected that of fixed, {np.shape(fixed)}")
    channels, height, width = planes[0].shape
    check_size(height, width)
    chosen.check_recording(height, width, channels)
    weight, mean_weight = channel_weights(chosen, height, width, channels)
    chosen = choose_solver_by_reference(chosen, planes[0], weight)
    estimator = FlowEstimator(cpu, planes[0], weight, mean_weight, height, width, chosen)
    flow = estimator.flow(planes[1], cpu.zero_flow(planes[0]))
    return np.ascontiguousarray(flow.transpose(1, 2, 0))


def warp(
    frames: NDArray[Any], flow: NDArray[np.floating[Any]], reference: NDArray[Any], interpolation: str = "cubic"
) -> NDArray[Any]:
    """Warp frames by flows: ``out(y, x) = frame(y + v, x + u)``, outside the frame the reference's value.

    Parameters
    ----------
    frames : (H, W), (H, W, C), (T, H, W) or (T, H, W, C)
        uint8, int8, uint16, int16, float32 or float64, of the number of axes that `flow` implies.
    flow : (H, W, 2) or (T, H, W, 2)
        Pixels, u first.
    reference : (H, W) or (H, W, C)
    interpolation : {'cubic', 'linear', 'nearest'}

    Returns
    -------
    warped : shape and dtype of `frames`
        Integers are rounded to the nearest and saturated.

    Raises
    ------
    ValueError
        Shapes that do not fit, another dtype, masked or complex values, or an unknown interpolation.
    """
    for name, array in (("frames", frames), ("flow", flow), ("reference", reference)):
        check_plain(array, name)
    frames, flow, reference = np.asarray(frames), np.asarray(flow), np.asarray(reference)
    check_warpable(frames.dtype, "frames")
    frames = frames.astype(frames.dtype.newbyteorder("="), copy=False)
    interpolation = Options(interpolation_method=interpolation).interpolation_method
    if flow.ndim not in (3, 4) or flow.shape[-1] != 2:
        raise ValueError(f"flow has shape {flow.shape}, expected (H, W, 2) or (T, H, W, 2)")
    spatial = flow.shape[:-1]
    if frames.shape[: len(spatial)] != spatial or frames.ndim - len(spatial) not in (0, 1):
        raise ValueError(f"frames have shape {frames.shape}, expected {spatial} or {(*spatial, 'C')}")
    height, width = spatial[-2:]
    stack = frames.reshape(-1, height, width, 1 if frames.ndim == len(spatial) else frames.shape[-1])
    if reference.shape not in (stack.shape[1:], *([(height, width)] if stack.shape[3] == 1 else [])):
        raise ValueError(f"reference has shape {reference.shape}, expected {stack.shape[1:]}")
    image = np.ascontiguousarray(reference, np.float32).reshape(stack.shape[1:])
    out = np.empty_like(stack)
    flows = np.ascontiguousarray(np.moveaxis(flow.reshape(-1, height, width, 2), -1, 1), np.float32)
    for frame, planes, target in zip(stack, flows, out, strict=True):
        cpu.warp_frame(frame, planes, image, interpolation, target)
    return out.reshape(frames.shape)
