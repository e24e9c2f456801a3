"""What property tests draw from: arrays of pixels, cuts of a recording, options."""

import dataclasses
import itertools

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from flowreg_gpu.options import Options

FILE_DTYPES = ("uint8", "uint16", "int16", "float32")
ARRAY_DTYPES = (*FILE_DTYPES, "float64")


def pixels(shape, dtype):
    """Arrays of any values that a file can hold, NaN and infinity among them; zero fills most of them."""
    return arrays.arrays(dtype, shape)


@st.composite
def cuts(draw, count):
    """Places (start, stop) that cut a range of `count` into parts, in order."""
    inner = draw(st.sets(st.integers(1, count - 1), max_size=4)) if count > 1 else set()
    places = [0, *sorted(inner), count]
    return list(itertools.pairwise(places))


@st.composite
def parts(draw, count):
    """One range (start, stop) within `count`, which is not empty."""
    start = draw(st.integers(0, count - 1))
    return start, draw(st.integers(start + 1, count))


def _number(field):
    low, high = field.metadata["limits"]
    whole = not field.type.startswith("float")
    return st.integers(int(low), int(high)) if whole else st.floats(low, high)


@st.composite
def _schedules(draw):
    inner = draw(st.lists(st.floats(0, 1, exclude_min=True, exclude_max=True), max_size=5, unique=True))
    return (0.0, *sorted(inner), 1.0)


_TRIPLES = st.tuples(st.floats(0, 200), st.floats(0, 200), st.floats(0, 50))
_WEIGHTS = st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=4).filter(lambda values: max(values) > 0)


def values_of(field):
    """Every kind of value that a parameter of `Options` takes."""
    if field.metadata["choices"]:
        return st.sampled_from(field.metadata["choices"])
    if field.type.startswith("bool"):
        return st.booleans() | (st.just("auto") if field.default == "auto" else st.nothing())
    special = {
        "sigma": _TRIPLES | st.lists(_TRIPLES, min_size=1, max_size=3),
        "weight": st.none() | _WEIGHTS,
        "gnc_schedule": st.none() | _schedules(),
    }
    if field.name in special:
        return special[field.name]
    number = _number(field)
    if field.name in ("alpha", "cc_hw"):
        return number | st.tuples(number, number) | (st.just("auto") if field.default == "auto" else st.nothing())
    return st.none() | number if field.default is None else number


@st.composite
def option_values(draw):
    """Parameters of `Options` by name, some of them, of any value that goes with the others."""
    chosen = draw(st.fixed_dictionaries({}, optional={f.name: values_of(f) for f in dataclasses.fields(Options)}))
    if chosen.get("solver") == "multigrid":
        chosen["a_smooth"] = 1.0
    return chosen


def equal_options(one, other):
    """Whether two `Options` hold the same values."""
    return one.to_dict() == other.to_dict() and type(one) is type(other) is Options


def bits(array):
    """An array as bytes that compare as such: NaN is equal to itself, and 0 differs from -0."""
    return np.ascontiguousarray(array).view(np.uint8)
