"""Options: what they accept, what they refuse and with which words, and how they travel."""

import dataclasses
import json

import numpy as np
import pytest

from flowreg_gpu import Options

WRONG_VALUES = [
    ("quality", "best", "quality='best' is not one of quality, balanced, fast"),
    ("const_assumption", "hs", "not one of gc, gray, cs"),
    ("solver", "jacobi", "solver='jacobi'"),
    ("channel_normalization", "none", "joint, separate"),
    ("interpolation_method", "lanczos", "cubic, linear, nearest"),
    ("min_level", -2, "min_level=-2 is below 0"),
    ("levels", 0, "levels=0 is below 1"),
    ("iterations", 0, "below 1"),
    ("update_lag", 0, "below 1"),
    ("warping_steps", 0, "below 1"),
    ("cc_up", 0, "below 1"),
    ("buffer_size", 0, "below 1"),
    ("cc_hw", 7, "below 8"),
    ("cc_hw", (64, 7), "below 8"),
    ("cc_hw", (64, 64, 64), "not one integer or a pair"),
    ("eta", 0.0, r"is not between 0\.1 and 0\.95"),
    ("eta", 1.0, r"is not between 0\.1 and 0\.95"),
    ("eta", np.nan, r"is not between 0\.1 and 0\.95"),
    ("a_data", 0.0, r"is not between 0\.01 and 1"),
    ("a_data", 1.01, r"is not between 0\.01 and 1"),
    ("a_smooth", -0.5, r"is not between 0\.01 and 1"),
    ("alpha", 0, r"is not between 1e-06 and 1e\+06"),
    ("alpha", -1, r"is not between 1e-06 and 1e\+06"),
    ("alpha", np.inf, r"is not between 1e-06 and 1e\+06"),
    ("alpha", (1, 2, 3), "not one number, a pair"),
    ("alpha", (1, 0), r"is not between 1e-06 and 1e\+06"),
    ("sigma", (1, 1), r"sigma has shape \(2,\)"),
    ("sigma", (1, 1, -0.1), "not between 0 and 50 frames throughout"),
    ("sigma", ((1, 1, np.nan),), "not between 0 and 50 frames throughout"),
    ("sigma", (1, 1e6, 0), "not between 0 and 200 pixels throughout"),
    ("sigma", ((1, 1, 0), (1, 1, 51)), "not between 0 and 50 frames throughout"),
    ("eta", 0.001, r"eta=0\.001 is not between 0\.1 and 0\.95"),
    ("eta", 0.98, "eta=0.98 is not between"),
    ("alpha", 10**400, "alpha=1000.* is not between"),
    ("alpha", (1, 1e7), "alpha=10000000.0 is not between"),
    ("a_data", 1e-30, "a_data=1e-30 is not between"),
    ("levels", 1001, "levels=1001 is above 1000"),
    ("min_level", 1001, "min_level=1001 is above 1000"),
    ("iterations", 10**9, "iterations=1000000000 is above 100000"),
    ("update_lag", 10**30, "update_lag=10+.* is above 100000"),
    ("warping_steps", 1001, "warping_steps=1001 is above 1000"),
    ("cc_up", 10**9, "cc_up=1000000000 is above 1000"),
    ("cc_hw", (64, 10**9), "cc_hw=1000000000 is above 100000"),
    ("buffer_size", 10**10, "buffer_size=10000000000 is above 1000000000"),
    ("weight", (1, 1e300), "at most 1e\\+06"),
    ("weight", np.full((4, 5), 2e6), "at most 1e\\+06"),
    ("weight", (1, 1j), r"weight is complex \(complex128\), expected real numbers"),
    ("weight", np.ma.masked_less(np.arange(6.0), 2), "weight is a masked array, 2 of whose values are masked"),
    ("gnc_schedule", np.linspace(0, 1, 101), "gnc_schedule has 101 stages, expected at most 100"),
    ("quality", np.zeros(3), "is not one of quality, balanced, fast"),
    ("solver", [[[["sor"]]]], "is not one of auto"),
    ("weight", (0, 0), "above 0 somewhere"),
    ("weight", (1, -1), ">= 0"),
    ("weight", (1, np.nan), "finite"),
    ("weight", 1.0, r"weight has shape \(\)"),
    ("gnc_schedule", (0,), "does not rise from 0 to 1"),
    ("gnc_schedule", (0, 0.5), "does not rise from 0 to 1"),
    ("gnc_schedule", (0.5, 1), "does not rise from 0 to 1"),
    ("gnc_schedule", (0, 0.5, 0.5, 1), "does not rise from 0 to 1"),
    ("gnc_schedule", (0, 2), "between 0 and 1"),
]

WRONG_TYPES = [
    ("levels", 5.0),
    ("iterations", True),
    ("min_level", "4"),
    ("cc_hw", 64.0),
    ("eta", "0.8"),
    ("a_data", None),
    ("alpha", "4"),
    ("alpha", "automatic"),
    ("alpha", True),
    ("alpha", None),
    ("alpha", np.array(1.5)),
    ("sigma", ("1", "1", "0")),
    ("sigma", ((1, 1, 0), (1, 1))),
    ("sigma", {"rows": 1}),
    ("weight", "0.7,0.3"),
    ("weight", [[1, 2], [3]]),
    ("cc_initialization", 1),
    ("cc_initialization", "no"),
    ("hot_pixels", "auto"),
    ("bidirectional", "yes"),
    ("update_initialization_w", "yes"),
    ("gnc_schedule", ("0", "1")),
]

NOT_DEFAULT = {
    "alpha": (2.0, 6.0),
    "quality": "fast",
    "min_level": 3,
    "levels": 7,
    "eta": 0.75,
    "iterations": 20,
    "update_lag": 4,
    "a_smooth": 0.5,
    "a_data": 0.6,
    "const_assumption": "cs",
    "solver": "sor",
    "weight": (0.25, 0.75),
    "gnc_schedule": (0.0, 0.5, 1.0),
    "warping_steps": 3,
    "sigma": ((1.0, 1.0, 0.1), (2.0, 2.0, 0.5)),
    "highpass": 12.0,
    "bidirectional": 1.5,
    "hot_pixels": False,
    "channel_normalization": "separate",
    "interpolation_method": "linear",
    "cc_initialization": True,
    "cc_hw": (128, 64),
    "cc_up": 10,
    "update_initialization_w": False,
    "buffer_size": 100,
}


@pytest.mark.parametrize(("name", "value", "message"), WRONG_VALUES)
def test_wrong_value(name, value, message):
    with pytest.raises(ValueError, match=message):
        Options(**{name: value})


@pytest.mark.parametrize(("name", "value"), WRONG_TYPES)
def test_wrong_type(name, value):
    with pytest.raises(TypeError, match=name):
        Options(**{name: value})


def test_multigrid_needs_quadratic_smoothness():
    message = "a_smooth=0.5 does not go with solver='multigrid', which needs 1"
    with pytest.raises(ValueError, match=message):
        Options(solver="multigrid", a_smooth=0.5)
    assert Options(solver="multigrid", gnc_schedule=(0, 1)).solver == "multigrid"


def test_unknown_names():
    for attempt in (Options().replace, lambda **values: Options.from_dict(values)):
        with pytest.raises(
            TypeError, match="unknown option 'iterationz', 'n_levels'; the options are a_data, a_smooth"
        ):
            attempt(n_levels=3, iterationz=2, alpha=4)


def test_replaced_values_are_checked():
    with pytest.raises(ValueError, match="levels=0"):
        Options().replace(levels=0)
    options = Options(alpha=4)
    changed = options.replace(quality="fast")
    assert (changed.alpha, changed.quality, options.quality) == (4.0, "fast", "quality")


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Options().alpha = 2
    given = np.full((4, 5), 0.5)
    weight = Options(weight=given).weight
    given[:] = 0
    assert weight.min() == 0.5
    with pytest.raises(ValueError, match="read-only"):
        weight[0, 0] = 1


@pytest.mark.parametrize(("quality", "level"), [("quality", 0), ("balanced", 4), ("fast", 6)])
def test_finest_level(quality, level):
    assert Options(quality=quality).finest_level == level
    assert Options(quality=quality, min_level=-1).finest_level == level
    assert Options(quality=quality, min_level=2).finest_level == 2
    assert Options(quality=quality, min_level=0).finest_level == 0


def test_alpha_xy():
    assert Options(alpha=4).alpha_xy == (4.0, 4.0)
    assert Options(alpha=[2, 6]).alpha_xy == (2.0, 6.0)
    assert Options(alpha=np.array([2, 6])).alpha_xy == (2.0, 6.0)


def test_what_a_recording_has_not_chosen():
    chosen_later, fixed = Options(), Options.without_choices()
    assert (chosen_later.alpha, chosen_later.cc_initialization) == ("auto", "auto")
    assert (fixed.alpha, fixed.cc_initialization) == (1.5, False)
    for options in (chosen_later, fixed):
        assert options.alpha_xy == (1.5, 1.5)
        assert not options.prealigns
    assert Options.from_flow_params({}).to_dict() == fixed.to_dict()
    assert Options.without_choices(alpha="auto").is_auto("alpha")


def test_numpy_scalars_are_taken():
    options = Options(alpha=np.float32(2), levels=np.int64(5), eta=np.float64(0.7), cc_hw=np.array([64, 32]))
    assert json.loads(json.dumps(options.to_dict()))["cc_hw"] == [64, 32]


def test_sigma_per_channel():
    np.testing.assert_array_equal(Options(sigma=(1, 2, 3)).sigma_per_channel(2), [[1, 2, 3], [1, 2, 3]])
    np.testing.assert_array_equal(Options(sigma=((1, 2, 3), (4, 5, 6))).sigma_per_channel(2), [[1, 2, 3], [4, 5, 6]])
    with pytest.raises(ValueError, match="sigma has 2 rows, the recording has 3 channels"):
        Options(sigma=((1, 2, 3), (4, 5, 6))).sigma_per_channel(3)


@pytest.mark.parametrize("shape", [(2,), (20, 30), (20, 30, 2)])
def test_weight_that_fits(shape):
    Options(weight=np.ones(shape)).check_recording(20, 30, 2)


@pytest.mark.parametrize("shape", [(3,), (30, 20), (20, 30, 1), (20, 30, 3)])
def test_weight_that_does_not_fit(shape):
    with pytest.raises(ValueError, match=r"weight has shape .*, expected \(2,\) or \(20, 30\) or \(20, 30, 2\)"):
        Options(weight=np.ones(shape)).check_recording(20, 30, 2)


def test_every_option_survives_a_dictionary():
    assert set(NOT_DEFAULT) == {field.name for field in dataclasses.fields(Options)}
    default = Options().to_dict()
    assert all(default[name] != value for name, value in NOT_DEFAULT.items())
    values = json.loads(json.dumps(Options(**NOT_DEFAULT).to_dict()))
    again = Options.from_dict(values).to_dict()
    assert again == Options(**NOT_DEFAULT).to_dict()
    assert {name: again[name] for name in NOT_DEFAULT if name != "weight"} == {
        name: value for name, value in NOT_DEFAULT.items() if name != "weight"
    }
    assert again["weight"] == [0.25, 0.75]


def test_weight_map_survives_a_dictionary():
    weight = np.random.default_rng(0).random((4, 5, 2)).astype(np.float32)
    values = json.loads(json.dumps(Options(weight=weight).to_dict()))
    np.testing.assert_array_equal(Options.from_dict(values).weight, weight)


def test_from_file(tmp_path):
    (tmp_path / "options.toml").write_text('alpha = [2, 6]\nquality = "fast"\nsigma = [1, 1, 0.5]\n')
    (tmp_path / "options.json").write_text(json.dumps({"alpha": [2, 6], "quality": "fast", "sigma": [1, 1, 0.5]}))
    expected = Options(alpha=(2, 6), quality="fast", sigma=(1, 1, 0.5)).to_dict()
    for name in ("options.toml", "options.json"):
        assert Options.from_file(tmp_path / name).to_dict() == expected
        assert Options.from_file(str(tmp_path / name)).to_dict() == expected


@pytest.mark.parametrize(
    ("name", "text", "error", "message"),
    [
        ("options.yaml", "alpha: 4", ValueError, r"does not end in \.toml or \.json"),
        ("options.toml", "alpha 4", ValueError, "cannot be parsed"),
        ("options.json", "{", ValueError, "cannot be parsed"),
        ("options.json", "[1]", ValueError, "holds list, expected names and values"),
        ("options.toml", "alfa = 4", TypeError, "unknown option 'alfa'"),
        ("options.json", '{"alpha": -4}', ValueError, "alpha=-4"),
        ("options.json", '{"alpha": ' + 20_000 * "[" + 20_000 * "]" + "}", ValueError, "nested too deeply"),
        ("options.toml", "alpha = " + 20_000 * "[" + 20_000 * "]", ValueError, "nested too deeply"),
    ],
)
def test_wrong_file(name, text, error, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(error, match=message):
        Options.from_file(tmp_path / name)


def test_wrong_values_in_deep_nests_are_one_short_line():
    deep = []
    for _ in range(5000):
        deep = [deep]
    for name in NOT_DEFAULT:
        with pytest.raises((ValueError, TypeError)) as caught:
            Options(**{name: deep})
        assert name in str(caught.value)
        assert len(str(caught.value)) < 300
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["levels", "iterations", "eta", "a_data", "a_smooth", "alpha", "cc_hw", "cc_up"])
def test_limits_are_allowed(name):
    field = next(field for field in dataclasses.fields(Options) if field.name == name)
    for limit in field.metadata["limits"]:
        assert getattr(Options(**{name: limit}), name) == limit


def test_file_that_is_no_text(tmp_path):
    (tmp_path / "options.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"options\.json.* cannot be parsed"):
        Options.from_file(tmp_path / "options.json")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        Options.from_file(tmp_path / "none.toml")
