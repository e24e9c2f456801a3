"""What becomes of every field of pyflowreg's OFOptions."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from flowreg_gpu.options import Options
from flowreg_gpu.pyflowreg.library import part

__all__ = ["HONOURED", "REFUSED", "TYPENAMES", "WITHOUT_EFFECT", "check_fields", "flow_options"]

#: Fields that have the same name and meaning in `Options`.
SHARED = (
    "alpha",
    "levels",
    "eta",
    "update_lag",
    "iterations",
    "a_smooth",
    "a_data",
    "gnc_schedule",
    "warping_steps",
    "channel_normalization",
    "interpolation_method",
    "cc_initialization",
    "cc_hw",
    "cc_up",
    "update_initialization_w",
    "buffer_size",
)
HONOURED = frozenset(SHARED) | {
    "bin_size",
    "constancy_assumption",
    "input_file",
    "min_level",
    "naming_convention",
    "output_file_name",
    "output_format",
    "output_path",
    "output_typename",
    "quality_setting",
    "reference_frames",
    "save_meta_info",
    "save_valid_idx",
    "save_w",
    "sigma",
    "weight",
}
#: Fields that change nothing here, and why.
WITHOUT_EFFECT: Mapping[str, str] = {
    "verbose": "nothing is printed; progress_callback tells how far the run is",
    "min_frames_per_reference": "it belongs to several references, and pyflowreg reads it nowhere",
}
#: Fields that are refused where they are not at their default, and why.
REFUSED: Mapping[str, str] = {
    "channel_idx": "pyflowreg accepts it and registers every channel; select the channels before",
    "preproc_funct": "pyflowreg accepts it and never calls it; preprocess the frames before",
    "update_reference": "the reference stays the same for the whole recording; pyflowreg's own pipeline can do it, "
    'also with parallelization="gpu" after enable()',
    "n_references": "pyflowreg fails with several references, too",
    "save_valid_mask": "pyflowreg writes nothing for it; save_valid_idx=True writes the valid masks",
    "flow_backend": "what is computed here is the model of the backend 'flowreg'",
    "backend_params": "the backend 'flowreg' has no parameters of its own",
    "get_displacement_impl": "flowreg_gpu runs its own flow",
    "get_displacement_factory": "flowreg_gpu runs its own flow",
}
TYPENAMES: Mapping[str, str] = {
    "single": "float32",
    "double": "float64",
    "uint8": "uint8",
    "uint16": "uint16",
    "int16": "int16",
    "int32": "int32",
}


def check_fields(options: Any) -> None:
    """Refuse what cannot be honoured.

    Raises
    ------
    TypeError
        `options` is no OFOptions.
    ValueError
        A field that is refused, or is not known here, and is not at its default; or a type name pyflowreg has not.
    """
    if not isinstance(options, part("motion_correction.OF_options", "OFOptions")):
        raise TypeError(f"options={reprlib.repr(options)} is not of type pyflowreg OFOptions")
    for name, field in type(options).model_fields.items():
        if name in HONOURED or name in WITHOUT_EFFECT:
            continue
        value, default = getattr(options, name), field.get_default(call_default_factory=True)
        if not _same(value, default):
            reason = REFUSED.get(name, f"this version of flowreg_gpu does not know it; its default is {default!r}")
            raise ValueError(f"OFOptions.{name}={reprlib.repr(value)} cannot be honoured: {reason}")
    if options.output_typename and options.output_typename not in TYPENAMES:
        raise ValueError(
            f"OFOptions.output_typename={options.output_typename!r} is not one of {', '.join(TYPENAMES)}; "
            "None keeps the dtype of the frames"
        )


def _same(value: Any, default: Any) -> bool:
    try:
        return bool(value is default or np.all(value == default))
    except (TypeError, ValueError):
        return False


def flow_options(options: Any, height: int, width: int, channels: int) -> Options:
    """Our options for a recording of this shape.

    Raises
    ------
    ValueError, TypeError
        A value that pyflowreg takes and `Options` does not, or weight maps of another shape.
    """
    params = {name: getattr(options, name) for name in SHARED if hasattr(options, name)}
    params["min_level"] = options.effective_min_level
    params["const_assumption"] = options.constancy_assumption
    params["sigma"] = _sigma(options.sigma, channels)
    params["weight"] = _weight(options, height, width, channels)
    return Options.from_flow_params(params)


def _sigma(sigma: Any, channels: int) -> list[list[float]]:
    """(rows, columns, time) per channel; channels beyond the given ones take the last."""
    rows = np.atleast_2d(np.asarray(sigma, np.float64))
    rows = rows[np.minimum(np.arange(channels), len(rows) - 1)]
    if np.any(rows[:, 0] != rows[:, 1]) and not _rows_come_first():
        rows = rows[:, [1, 0, 2]]
    values: list[list[float]] = rows.tolist()
    return values


def _rows_come_first() -> bool:
    """Whether the first sigma is that of the rows: pyflowreg's versions and their documentation differ."""
    point = np.zeros((9, 9, 1))
    point[4, 4] = 1
    blurred = part("util.image_processing", "apply_gaussian_filter")(point, np.array([[2.0, 0.0, 0.0]]))
    return bool(blurred[3, 4, 0] > blurred[4, 3, 0])


def _weight(options: Any, height: int, width: int, channels: int) -> Any:
    """Weight of each channel where they sum to 1, otherwise maps (H, W, C): `Options` scales the former only."""
    copy = options.model_copy()  # asking cuts the weights that it holds
    weights = [copy.get_weight_at(channel, channels) for channel in range(channels)]
    shapes = {np.shape(weight) for weight in weights}
    if not shapes <= {(), (height, width)}:
        raise ValueError(f"OFOptions.weight has maps of shape {shapes - {()}}, expected {(height, width)}")
    if shapes == {()} and np.isclose(sum(weights), 1):
        return weights
    return np.stack([np.broadcast_to(weight, (height, width)) for weight in weights], axis=-1)
