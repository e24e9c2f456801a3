"""The parameters of the registration, validated when they are set; the one place for defaults."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import reprlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ALPHA",
    "AUTO",
    "FRAME_DTYPES",
    "GNC_WARPING_STEPS",
    "PRESETS",
    "Options",
    "check_plain",
    "check_size",
    "merge_options",
    "positive_integer",
]

#: Finest pyramid level that each quality preset solves (0 is full resolution).
PRESETS: Mapping[str, int] = {"quality": 0, "balanced": 4, "fast": 6}
SMALLEST_SIDE = 16
#: What stands for a choice by the recording; and the `alpha` that it is where there is no recording to choose by.
AUTO = "auto"
ALPHA = 1.5
#: Types of frames that can be registered: the arithmetic is that of float32, which holds integers of 24 bits.
FRAME_DTYPES = tuple(map(np.dtype, ("uint8", "int8", "uint16", "int16", "float32", "float64")))
#: Warps per level and stage of the graduated non-convexity where `warping_steps` is None.
GNC_WARPING_STEPS = 10

_LONG_NAMES: Mapping[str, str] = {"gradient": "gc", "brightness": "gray", "census": "cs"}

Weight = Sequence[float] | NDArray[np.floating[Any]] | None


def _option(
    default: Any,
    description: str,
    *,
    choices: Sequence[str] = (),
    none: str = "",
    limits: tuple[float, float] | None = None,
) -> Any:
    """A parameter, with what the command line says of it: a description, all choices, what None stands for, limits."""
    return dataclasses.field(
        default=default,
        metadata={"description": description, "choices": tuple(choices), "none": none, "limits": limits},
    )


#: Limits of what `Options` cannot say in the fields themselves; its docstring explains them.
SPACE_SIGMA, TIME_SIGMA = (0.0, 200.0), (0.0, 50.0)
WEIGHT_LIMIT = 1e6
MOST_STAGES = 100

# Values in messages: shortened where they are long or nested.
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 100
_shown = _REPR.repr


@dataclasses.dataclass(frozen=True, eq=False)
class Options:
    """Parameters of the flow model, the solver and the recording loop.

    Every value is checked on construction; an instance never holds a wrong one. Names follow
    pyflowreg, so that a dictionary of its flow parameters can be passed on.

    Numbers have limits, so that a slip of the pen is an error at once and not a run without end or a flow without
    meaning. They lie far outside what is useful, but for `eta`: the flow grows a little on every level where it finds
    nothing to hold on to, and a pyramid whose levels hardly differ has too many of them. On three real movies
    displacements stray by several pixels from 0.97 on, and by thousands at 0.98.

    Parameters
    ----------
    alpha : float, (float, float) or 'auto'
        Weight of the smoothness term, one value or one for x (columns) and one for y (rows); 1e-6 to 1e6, beyond
        which one of the two terms is lost in float32. 'auto' is chosen once a recording, by what predicts pixels that
        the flow has not seen (`flowreg_gpu.registration.tuning`); where there is no recording, as for two images, it
        is 1.5.
    quality : {'quality', 'balanced', 'fast'}
        Preset that names the finest level solved: 0, 4 or 6.
    min_level : int or None
        Finest level solved, 0 to 1000; None takes it from `quality`.
    levels : int
        Largest number of pyramid levels, 1 to 1000; there are never more than the size of the frames and `eta` make.
    eta : float
        Ratio of the sizes of neighbouring levels, 0.1 to 0.95.
    iterations, update_lag : int
        Sweeps per level, and sweeps from one refresh of the robust weights to the next (solver 'sor'); 1 to 100 000,
        hundreds of times what converges.
    a_smooth, a_data : float
        Exponents of the smoothness and of the data penalty, 0.01 to 1; 1 is quadratic.
    const_assumption : {'gc', 'gray', 'cs'}
        Data term: gradient, brightness or census constancy.
    solver : {'auto', 'block', 'multigrid', 'sor'}
        'sor' is pyflowreg's rule and order; 'block' solves u and v of a pixel together in red-black
        order and converges much further in less time; 'multigrid' does so on coarser grids as well, and converges
        where the data term is weak: large `alpha`, or frames that are masked, dark or saturated in large parts. It
        needs `a_smooth` = 1. 'auto' takes 'sor' where `a_smooth` < 1, else 'block' or 'multigrid', by `alpha` and
        the fraction of the reference without structure.
    weight : None, sequence (C,), array (H, W) or (H, W, C)
        Weight of each channel in the data term (a sequence is normalised to sum 1), or weight maps; 0 to 1e6, above
        0 somewhere. None weighs all channels alike.
    gnc_schedule : sequence of float or None
        Stages of graduated non-convexity, 2 to 100 of them, rising from 0 to 1. None solves the robust model
        directly.
    warping_steps : int or None
        Warps per level within a stage of `gnc_schedule`, 1 to 1000; None means 10 there.
    sigma : (3,) or (C, 3) floats
        Standard deviations (rows, columns, time) of the Gaussian filter before the flow: 0 to 200 pixels, 0 to 50
        frames. Every batch reads four times the latter more on either side.
    highpass : float or None
        Subtract the local mean, a Gaussian of this standard deviation, 2 to 500 pixels, before the flow: for one-photon
        movies, whose uneven light and haze do not move with the tissue. Registered frames keep them.
    bidirectional : float or 'auto'
        Displacement along x of the odd lines against the even ones, -100 to 100 pixels, where lines are scanned to and
        fro; they are moved back before anything else. 'auto' estimates it once a recording, and leaves alone what is
        small or not sure; 0 or None never looks.
    hot_pixels : bool
        Find hot and dead pixels of the sensor, and replace them by their neighbours before the flow. Registered frames
        keep them.
    channel_normalization : {'joint', 'separate'}
        One minimum and maximum of the reference for all channels, or one per channel.
    interpolation_method : {'cubic', 'linear', 'nearest'}
        Interpolation of the registered frames.
    cc_initialization : bool or 'auto'
        Align every frame rigidly by phase correlation before the flow. 'auto' does so where frames of the recording
        jump further than the pyramid reaches; where there is no recording, it does not.
    cc_hw : int or (int, int)
        Largest side (rows, columns) of the images used for the phase correlation, 8 to 100 000 pixels.
    cc_up : int
        Sub-pixel factor of the phase correlation, 1 to 1000; noise leaves hardly more than 1/100 px.
    update_initialization_w : bool
        Start each window of `buffer_size` frames from the mean of the last 20 flows of the one before.
    buffer_size : int
        Frames that share one start flow, 1 to 1 000 000 000. It is not the device or memory batch, which never
        changes results.

    Raises
    ------
    ValueError
        A value out of range; the message names the parameter, its value and what is allowed.
    TypeError
        A value of the wrong type, or an unknown parameter name.

    Examples
    --------
    >>> Options(alpha=4, quality="fast").finest_level
    6
    """

    alpha: float | tuple[float, float] | str = _option(
        AUTO, "weight of the smoothness, one number, X,Y or auto, chosen by the recording", limits=(1e-6, 1e6)
    )
    quality: str = _option("quality", "finest level {}, {} or {}".format(*PRESETS.values()), choices=tuple(PRESETS))
    min_level: int | None = _option(None, "finest pyramid level solved", none="from quality", limits=(0, 1000))
    levels: int = _option(100, "largest number of pyramid levels", limits=(1, 1000))
    eta: float = _option(0.8, "ratio of the sizes of neighbouring levels", limits=(0.1, 0.95))
    iterations: int = _option(50, "sweeps per level, solver sor", limits=(1, 100_000))
    update_lag: int = _option(5, "sweeps per refresh of the robust weights, solver sor", limits=(1, 100_000))
    a_smooth: float = _option(1.0, "exponent of the smoothness penalty", limits=(0.01, 1.0))
    a_data: float = _option(0.45, "exponent of the data penalty", limits=(0.01, 1.0))
    const_assumption: str = _option(
        "gc", "constancy of gradient, brightness or census in the data term", choices=("gc", "gray", "cs")
    )
    solver: str = _option("auto", "how a level is relaxed", choices=("auto", "block", "multigrid", "sor"))
    weight: Weight = _option(None, "weight of each channel, e.g. 0.7,0.3", none="all alike")  # noqa: RUF009 (a field)
    gnc_schedule: tuple[float, ...] | None = _option(
        None, "stages of graduated non-convexity, e.g. 0,0.5,1", none="none"
    )
    warping_steps: int | None = _option(
        None, "warps per level and stage of gnc_schedule", none=str(GNC_WARPING_STEPS), limits=(1, 1000)
    )
    sigma: Sequence[float] | Sequence[Sequence[float]] = _option(
        (1.0, 1.0, 0.1), "Gaussian filter ROWS,COLUMNS,TIME; per channel with ; between"
    )
    highpass: float | None = _option(
        None, "remove what is wider than about so many pixels before the flow", none="nothing", limits=(2, 500)
    )
    bidirectional: float | str = _option(
        AUTO, "displacement of odd against even lines of a scan to and fro, pixels; 0: none", limits=(-100, 100)
    )
    hot_pixels: bool = _option(True, "false: do not replace hot and dead pixels of the sensor in what the flow sees")
    channel_normalization: str = _option(
        "joint", "one range of brightness for all channels, or one each", choices=("joint", "separate")
    )
    interpolation_method: str = _option(
        "cubic", "interpolation of the registered frames", choices=("cubic", "linear", "nearest")
    )
    cc_initialization: bool | str = _option(AUTO, "true: align frames rigidly first; auto: where they jump")
    cc_hw: int | tuple[int, int] = _option(
        256, "largest side of the images of that alignment, one number or ROWS,COLUMNS", limits=(8, 100_000)
    )
    cc_up: int = _option(1, "sub-pixel factor of that alignment", limits=(1, 1000))
    update_initialization_w: bool = _option(True, "false: every frame starts from the first start flow")
    buffer_size: int = _option(400, "frames that share a start flow", limits=(1, 10**9))

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, choices = getattr(self, field.name), field.metadata["choices"]
            if choices:
                self._set(field.name, _choice(field.name, value, choices))
        for name in ("cc_initialization", "hot_pixels", "update_initialization_w"):
            if not (self.is_auto(name) and name == "cc_initialization"):
                self._set(name, _switch(name, getattr(self, name)))
        if (
            isinstance(self.min_level, int | np.integer) and self.min_level == -1
        ):  # pyflowreg's "from the quality preset"
            self._set("min_level", None)
        for name in ("levels", "iterations", "update_lag", "cc_up", "buffer_size", "min_level", "warping_steps"):
            if getattr(self, name) is not None or getattr(type(self), name) is not None:
                self._set(name, _integer(name, getattr(self, name), *_LIMITS[name]))
        if self.highpass is not None:
            self._set("highpass", _real("highpass", self.highpass, *_LIMITS["highpass"]))
        if not self.is_auto("bidirectional"):
            offset = 0.0 if self.bidirectional is None else self.bidirectional
            self._set("bidirectional", _real("bidirectional", offset, *_LIMITS["bidirectional"]))
        for name in ("eta", "a_smooth", "a_data"):
            self._set(name, _real(name, getattr(self, name), *_LIMITS[name]))
        if self.solver == "multigrid" and self.a_smooth < 1:
            raise ValueError(f"a_smooth={self.a_smooth} does not go with solver='multigrid', which needs 1")
        if not self.is_auto("alpha"):
            expected = "number, a pair (alpha_x, alpha_y) or 'auto'"
            self._set("alpha", _one_or_two("alpha", self.alpha, _real, expected))
        self._set("cc_hw", _one_or_two("cc_hw", self.cc_hw, _integer, "integer or a pair (rows, columns)"))
        self._set("sigma", _sigma(self.sigma))
        self._set("weight", _weight(self.weight))
        self._set("gnc_schedule", _gnc_schedule(self.gnc_schedule))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @property
    def finest_level(self) -> int:
        """The finest level asked for: `min_level`, or the one of the quality preset."""
        return PRESETS[self.quality] if self.min_level is None else self.min_level

    @property
    def alpha_xy(self) -> tuple[float, float]:
        """Smoothness weights along x (columns) and y (rows); those of `ALPHA` for 'auto'."""
        if isinstance(self.alpha, tuple):
            return self.alpha
        alpha = ALPHA if isinstance(self.alpha, str) else self.alpha
        return alpha, alpha

    @property
    def prealigns(self) -> bool:
        """Whether frames are aligned rigidly before the flow; 'auto' counts as no."""
        return self.cc_initialization is True

    def is_auto(self, name: str) -> bool:
        """Whether a parameter is to be chosen by the recording."""
        value = getattr(self, name)
        return isinstance(value, str) and value == AUTO

    def sigma_per_channel(self, channels: int) -> NDArray[np.float64]:
        """Standard deviations as (channels, 3); ValueError where their number does not fit."""
        sigma = np.asarray(self.sigma, np.float64)
        if sigma.ndim == 1:
            return np.tile(sigma, (channels, 1))
        if len(sigma) != channels:
            raise ValueError(f"sigma has {len(sigma)} rows, the recording has {channels} channels")
        return sigma

    def check_recording(self, height: int, width: int, channels: int) -> None:
        """Raise ValueError where `sigma` or `weight` does not fit frames of this shape."""
        self.sigma_per_channel(channels)
        if self.weight is None:
            return
        shape = np.shape(self.weight)
        allowed: tuple[tuple[int, ...], ...] = ((channels,), (height, width), (height, width, channels))
        if shape not in allowed:
            expected = " or ".join(str(item) for item in allowed)
            raise ValueError(f"weight has shape {shape}, expected {expected}")

    @classmethod
    def without_choices(cls, **values: Any) -> Options:
        """Options of which nothing is chosen by the recording, but for what is named so: as in pyflowreg."""
        return cls(**{"alpha": ALPHA, "cc_initialization": False, "bidirectional": 0.0, "hot_pixels": False, **values})

    def replace(self, **changes: Any) -> Options:
        """Return a copy with some parameters changed, checked again."""
        _check_names(changes)
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return the parameters as plain Python values, as JSON and `from_dict` take them."""
        values = dataclasses.asdict(self)
        if self.weight is not None:
            values["weight"] = np.asarray(self.weight).tolist()
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Options:
        """Build from a mapping; TypeError names every unknown key."""
        _check_names(values)
        return cls(**values)

    @classmethod
    def from_flow_params(cls, params: Mapping[str, Any]) -> Options:
        """Build from flow parameters as pyflowreg names and passes them to its executors.

        None means the default; the constancy assumption may have its long name; `iterations` or `update_lag` other
        than the defaults ask for the solver that they belong to, 'sor'.

        Raises
        ------
        ValueError, TypeError
            A value out of range, or an unknown name.
        """
        values = {name: value for name, value in params.items() if value is not None}
        if "const_assumption" in values:
            assumption = values["const_assumption"]
            values["const_assumption"] = _LONG_NAMES.get(assumption, assumption)
        if any(name in values and values[name] != getattr(cls, name) for name in ("iterations", "update_lag")):
            values.setdefault("solver", "sor")
        _check_names(values)
        return cls.without_choices(**values)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Options:
        """Read a TOML or JSON file, told by its extension.

        Raises
        ------
        FileNotFoundError
            No such file.
        ValueError
            Another extension, a file that cannot be parsed, or a wrong value.
        TypeError
            An unknown parameter name.
        """
        path = Path(path)
        if path.suffix not in (".toml", ".json"):
            raise ValueError(f"options file {str(path)!r} does not end in .toml or .json")
        try:
            text = path.read_text(encoding="utf-8")
            values = json.loads(text) if path.suffix == ".json" else _parse_toml(text)
        except ValueError as error:
            raise ValueError(f"options file {str(path)!r} cannot be parsed: {error}") from error
        except RecursionError:
            raise ValueError(f"options file {str(path)!r} cannot be parsed: its values are nested too deeply") from None
        if not isinstance(values, dict):
            raise ValueError(f"options file {str(path)!r} holds {type(values).__name__}, expected names and values")
        return cls.from_dict(values)


_LIMITS: Mapping[str, Any] = {field.name: field.metadata["limits"] for field in dataclasses.fields(Options)}


def _parse_toml(text: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    values: dict[str, Any] = tomllib.loads(text)
    return values


def _check_names(values: Mapping[str, Any]) -> None:
    known = {field.name for field in dataclasses.fields(Options)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise TypeError(f"unknown option {', '.join(map(repr, unknown))}; the options are {', '.join(sorted(known))}")


def check_size(height: int, width: int) -> None:
    """Raise ValueError for images that are too small for the pyramid."""
    if min(height, width) < SMALLEST_SIDE:
        raise ValueError(
            f"frames of {height} x {width} pixels are too small, expected at least {SMALLEST_SIDE} each way"
        )


def merge_options(options: Options | None, overrides: Mapping[str, Any]) -> Options:
    """Return options, or the defaults, with single ones replaced; TypeError where they are no Options."""
    if not isinstance(options, Options | None):
        raise TypeError(f"options={_shown(options)} is not of type Options")
    return (options or Options()).replace(**overrides)


def check_plain(array: Any, name: str) -> None:
    """Refuse arrays whose values would be changed without a word: masked pixels, complex numbers.

    Raises
    ------
    ValueError
        The message names the array, and what to do.
    """
    if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array):
        count = int(np.ma.getmaskarray(array).sum())
        raise ValueError(
            f"{name} is a masked array, {count} of whose values are masked; masks are not used: pass "
            "array.filled(value), or floats with NaN, of which registration takes the reference's value"
        )
    dtype = getattr(array, "dtype", None)
    if isinstance(dtype, np.dtype) and dtype.kind == "c":
        raise ValueError(f"{name} is complex ({dtype}), expected real numbers: take abs() or .real")


def positive_integer(name: str, value: Any) -> int:
    """Return a count as an int; TypeError or ValueError with its name where it is none or below 1."""
    return _integer(name, value, 1, sys.maxsize)


def _choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}={_shown(value)} is not one of {', '.join(choices)}")
    return choices[choices.index(value)]  # a plain str also for a member of an Enum


def _integer(name: str, value: Any, least: int, most: int) -> int:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}={_shown(value)} is not an integer")
    if value < least:
        raise ValueError(f"{name}={_shown(value)} is below {least}")
    if value > most:
        raise ValueError(f"{name}={_shown(value)} is above {most}")
    return int(value)


def _switch(name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        allowed = "True, False or 'auto'" if name == "cc_initialization" else "True or False"
        raise TypeError(f"{name}={_shown(value)} is not {allowed}")
    return bool(value)


def _real(name: str, value: Any, low: float, high: float) -> float:
    if isinstance(value, bool | np.bool_ | str) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name}={_shown(value)} is not a number")
    if not low <= value <= high:  # also NaN, and integers that are too large for a float
        raise ValueError(f"{name}={_shown(value)} is not between {low:g} and {high:g}")
    return float(value)


def _one_or_two(name: str, value: Any, check: Callable[..., Any], expected: str) -> Any:
    """One checked number, or a pair of them."""
    if (isinstance(value, Sequence) and not isinstance(value, str)) or (isinstance(value, np.ndarray) and value.ndim):
        items = list(value)
        if len(items) != 2:
            raise ValueError(f"{name}={_shown(value)} is not one {expected}")
        return tuple(check(name, item, *_LIMITS[name]) for item in items)
    return check(name, value, *_LIMITS[name])


def _floats(name: str, values: Any, dtype: type[np.floating[Any]]) -> NDArray[Any]:
    """An array of numbers in a new array of `dtype`; TypeError where they are none."""
    try:
        array = np.ma.array(values) if isinstance(values, np.ma.MaskedArray) else np.array(values)
    except (TypeError, ValueError, RecursionError):
        array = np.array(None)
    check_plain(array, name)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name}={_shown(values)} does not consist of numbers")
    with np.errstate(over="ignore"):  # infinite, and refused
        return np.array(array, dtype)


def _sigma(sigma: Any) -> tuple[Any, ...]:
    values = _floats("sigma", sigma, np.float64)
    if values.shape[-1:] != (3,) or values.ndim > 2 or not values.size:
        raise ValueError(f"sigma has shape {values.shape}, expected (3,) or (channels, 3): rows, columns, time")
    for limits, part in ((SPACE_SIGMA, values[..., :2]), (TIME_SIGMA, values[..., 2])):
        low, high = limits
        if not np.all((part >= low) & (part <= high)):
            unit = "pixels" if limits is SPACE_SIGMA else "frames"
            raise ValueError(f"sigma={_shown(sigma)} is not between {low:g} and {high:g} {unit} throughout")
    return tuple(tuple(row) if isinstance(row, list) else row for row in values.tolist())


def _weight(weight: Any) -> tuple[float, ...] | NDArray[np.float32] | None:
    if weight is None:
        return None
    values = _floats("weight", weight, np.float32)
    if values.ndim not in (1, 2, 3) or not values.size:
        raise ValueError(f"weight has shape {values.shape}, expected (C,), (H, W) or (H, W, C)")
    if not np.all(np.isfinite(values)) or values.min() < 0 or values.max() <= 0 or values.max() > WEIGHT_LIMIT:
        raise ValueError(f"weight must be finite, >= 0, above 0 somewhere, and at most {WEIGHT_LIMIT:g}")
    if values.ndim == 1:
        return tuple(float(item) for item in weight)
    values.flags.writeable = False
    return values


def _gnc_schedule(schedule: Any) -> tuple[float, ...] | None:
    if schedule is None:
        return None
    if not isinstance(schedule, np.ndarray | Sequence) or isinstance(schedule, str):
        raise ValueError(f"gnc_schedule={_shown(schedule)} is not a sequence of numbers that rise from 0 to 1")
    if len(schedule) > MOST_STAGES:
        raise ValueError(f"gnc_schedule has {len(schedule)} stages, expected at most {MOST_STAGES}")
    values = tuple(_real("gnc_schedule", item, 0.0, 1.0) for item in schedule)
    if len(values) < 2 or values[0] != 0 or values[-1] != 1 or any(b <= a for a, b in itertools.pairwise(values)):
        raise ValueError(f"gnc_schedule={_shown(schedule)} does not rise from 0 to 1")
    return values
