"""Any value of any option is either taken, and travels, or refused with the name of the parameter."""

import dataclasses
import json
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowreg_gpu.options import Options
from tests.strategies import equal_options, option_values, values_of

FIELDS = {field.name: field for field in dataclasses.fields(Options)}
each_field = pytest.mark.parametrize("name", list(FIELDS))


def as_toml(values):
    """Values as TOML, which writes numbers, strings, truth and lists as JSON does, and has no null."""
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items() if value is not None)


@given(option_values())
def test_valid_options_travel(values):
    """By dictionary, JSON, TOML, pickle and pyflowreg's flow parameters, and come back the same."""
    options = Options(**values)
    plain = options.to_dict()
    assert equal_options(Options.from_dict(plain), options)
    assert equal_options(options.replace(), options)
    assert equal_options(pickle.loads(pickle.dumps(options)), options)
    level = -1 if plain["min_level"] is None else plain["min_level"]  # as pyflowreg writes it
    assert equal_options(Options.from_flow_params({**plain, "min_level": level}), options)
    with tempfile.TemporaryDirectory() as folder:
        for name, text in (("run.json", json.dumps(plain)), ("run.toml", as_toml(plain))):
            Path(folder, name).write_text(text, encoding="utf-8")
            assert equal_options(Options.from_file(Path(folder, name)), options)


@given(option_values())
def test_options_keep_what_they_were_given(values):
    """But for the type: integers become floats where a float is meant, sequences tuples."""
    options = Options(**values)
    for name, value in values.items():
        kept = getattr(options, name)
        assert np.array_equal(np.asarray(kept, object), np.asarray(value, object)), name


@each_field
@given(data=st.data())
def test_numpy_scalars_are_numbers(name, data):
    """As arrays and files give them, they count as Python's."""
    value = data.draw(values_of(FIELDS[name]))
    kinds = {bool: np.bool_, int: np.int64, float: np.float64}
    if type(value) in kinds:
        scalar = kinds[type(value)](value)
        assert equal_options(Options(**{name: scalar}), Options(**{name: value}))


# Of everything that Python, TOML or JSON can write, including numbers that overflow, and what is nested
_PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=4)
ANYTHING = st.recursive(
    _PLAIN
    | st.complex_numbers()
    | st.sampled_from([10**400, object(), {}, [], (), set(), np.array(3), np.zeros((2, 2))]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=6,
)


@each_field
@given(data=st.data())
def test_anything_is_taken_or_refused_by_name(name, data):
    """One error of two kinds, that names the parameter and is one line of reasonable length; never another one."""
    value = data.draw(ANYTHING | values_of(FIELDS[name]))
    try:
        options = Options(**{name: value})
    except (ValueError, TypeError) as error:
        message = str(error)
        assert name in message
        assert len(message) < 1000
    else:
        assert equal_options(Options.from_dict(json.loads(json.dumps(options.to_dict()))), options)


@each_field
@given(data=st.data())
def test_numbers_beyond_the_limits_are_refused(name, data):
    field = FIELDS[name]
    if field.metadata["limits"] is None:
        return
    low, high = field.metadata["limits"]
    beyond = st.integers(max_value=int(np.ceil(low)) - 1) | st.integers(min_value=int(high) + 1)
    if isinstance(field.default, float):
        beyond |= st.floats(max_value=low, exclude_max=True) | st.floats(min_value=high, exclude_min=True)
    value = data.draw(beyond.filter(lambda number: (name, number) != ("min_level", -1)))
    with pytest.raises(ValueError, match=rf"^{name}="):
        Options(**{name: value})


@given(st.dictionaries(st.text(min_size=1, max_size=12), st.integers(), min_size=1, max_size=3))
def test_unknown_names_are_refused_by_name(values):
    unknown = sorted(set(values) - set(FIELDS))
    if not unknown:
        return
    for make in (Options.from_dict, lambda given: Options().replace(**given)):
        with pytest.raises(TypeError, match="unknown option") as caught:
            make(values)
        assert all(repr(name) in str(caught.value) for name in unknown)


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode), st.sampled_from([".json", ".toml"]))
def test_any_file_is_read_or_refused(content, extension):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"run{extension}")
        path.write_bytes(content)
        try:
            Options.from_file(path)
        except (ValueError, TypeError) as error:
            assert str(error)  # noqa: PT017
