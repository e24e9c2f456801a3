"""The coarse-to-fine flow: known motion, conventions, options, and upstream's flows on real frames."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from flowreg_gpu import Options, cpu, estimate_flow
from flowreg_gpu.model.estimator import FlowEstimator
from flowreg_gpu.model.preprocessing import channel_weights
from flowreg_gpu.synthetic import end_point_error
from tests import tolerances
from tests.movies import constant_flow, frame_pair, grain_pair, smooth_flow, to_planes

SIZE = (96, 112)
MARGIN = 8
SOLVERS = ("auto", "block", "sor")

# name: (options, channels, largest end-point error)
KNOWN_MOTION = {
    "gc": ({}, 1, tolerances.KNOWN_MOTION),
    "gc, alpha 4": ({"alpha": 4}, 1, tolerances.KNOWN_MOTION),
    "gc, anisotropic": ({"alpha": (1, 4)}, 1, tolerances.KNOWN_MOTION),
    "gray": ({"const_assumption": "gray", "alpha": 0.1}, 1, tolerances.KNOWN_MOTION),
    "cs": ({"const_assumption": "cs", "alpha": 0.2}, 1, tolerances.KNOWN_MOTION_CENSUS),
    "balanced": ({"quality": "balanced"}, 1, tolerances.KNOWN_MOTION_BALANCED),
    "fast": ({"quality": "fast"}, 1, tolerances.KNOWN_MOTION_FAST),
    "robust smoothness": ({"a_smooth": 0.5}, 1, tolerances.KNOWN_MOTION),
    "quadratic data term": ({"a_data": 1}, 1, tolerances.KNOWN_MOTION),
    "gnc": ({"gnc_schedule": (0, 1), "warping_steps": 3}, 1, tolerances.KNOWN_MOTION),
    "gnc, coarse": (
        {"gnc_schedule": (0, 0.5, 1), "warping_steps": 2, "min_level": 3},
        1,
        tolerances.KNOWN_MOTION_BALANCED,
    ),
    "two channels": ({}, 2, tolerances.KNOWN_MOTION),
    "weighted channels": ({"weight": (1, 3)}, 2, tolerances.KNOWN_MOTION),
}


def estimate_from(reference, moving, options, start=None):
    """Flow (H, W, 2) from a start flow, by the estimator that `estimate_flow` starts from zero."""
    height, width = reference.shape[:2]
    planes = to_planes(reference)
    weights = channel_weights(options, height, width, len(planes))
    estimator = FlowEstimator(cpu, planes, *weights, height, width, options)
    start = np.zeros((2, height, width), np.float32) if start is None else to_planes(start)
    return np.moveaxis(estimator.flow(to_planes(moving), start), 0, -1)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("case", KNOWN_MOTION)
def test_known_motion(case, solver):
    options, channels, limit = KNOWN_MOTION[case]
    truth = smooth_flow(*SIZE)
    finest = {"shortest": 3.0, "longest": 12.0} if case == "cs" else {}
    reference, moving = frame_pair(truth, channels, seed=1, **finest)
    found = estimate_flow(reference, moving, solver=solver, **options)
    assert (found.shape, found.dtype) == ((*SIZE, 2), np.float32)
    assert end_point_error(found, truth, MARGIN) <= limit
    assert end_point_error(np.zeros_like(found), truth, MARGIN) > 5 * limit


@pytest.mark.parametrize("size", [(24, 200), (200, 24), (97, 131), (33, 47)])
def test_known_motion_in_other_sizes(size):
    truth = smooth_flow(*size, 1.0)
    found = estimate_flow(*frame_pair(truth, seed=2), alpha=4)
    assert end_point_error(found, truth, MARGIN) <= tolerances.KNOWN_MOTION


def test_noise_is_averaged_out():
    truth = smooth_flow(*SIZE)
    found = estimate_flow(*frame_pair(truth, noise=0.01), alpha=4)
    assert end_point_error(found, truth, MARGIN) <= tolerances.KNOWN_MOTION_BALANCED


@pytest.mark.parametrize(("u", "v"), [(3, 0), (0, 2), (-3, 2)])
def test_direction(u, v):
    """registered(y, x) = moving(y + v, x + u), u along columns: checked on pixels, then on the estimate."""
    reference, moving = grain_pair(64, 80, u, v)
    y, x = np.mgrid[4:60, 4:76]
    np.testing.assert_array_equal(moving[y + v, x + u], reference[4:60, 4:76])
    found = estimate_flow(reference, moving, alpha=4)
    assert end_point_error(found, constant_flow(64, 80, u, v), MARGIN) <= tolerances.KNOWN_SHIFT


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("term", ["gc", "gray", "cs"])
@pytest.mark.parametrize("a_smooth", [1.0, 0.5])
def test_identical_frames(term, solver, a_smooth):
    reference, _ = frame_pair(smooth_flow(31, 45), 2, noise=0.02)
    assert not estimate_flow(reference, reference, const_assumption=term, solver=solver, a_smooth=a_smooth).any()


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("term", ["gc", "gray", "cs"])
def test_flat_frames(term, solver):
    flat = np.full((24, 30), 0.5, np.float32)
    assert not estimate_flow(flat, flat, const_assumption=term, solver=solver).any()
    reference, _ = frame_pair(smooth_flow(24, 30))
    assert np.all(np.isfinite(estimate_flow(reference, flat, const_assumption=term, solver=solver)))


@pytest.mark.parametrize("options", [{}, {"solver": "sor", "a_smooth": 0.5}, {"quality": "fast"}], ids=str)
def test_repeated_calls_agree_to_the_last_bit(options):
    reference, moving = frame_pair(smooth_flow(*SIZE), 2, noise=0.01)
    kept = reference.copy(), moving.copy()
    first, second = (estimate_flow(reference, moving, **options) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(reference, kept[0])
    np.testing.assert_array_equal(moving, kept[1])


def test_frames_of_one_estimator_do_not_depend_on_each_other():
    reference, moving = frame_pair(smooth_flow(48, 60), noise=0.01)
    other = reference[::-1].copy()
    options = Options(alpha=4, cc_initialization=True)
    weights = channel_weights(options, 48, 60, 1)
    estimator = FlowEstimator(cpu, to_planes(reference), *weights, 48, 60, options)
    zero = np.zeros((2, 48, 60), np.float32)
    first = estimator.flow(to_planes(moving), zero)
    estimator.flow(to_planes(other), zero)
    np.testing.assert_array_equal(estimator.flow(to_planes(moving), zero), first)


def test_start_flow():
    """Two levels cannot see 12 px; from a start flow nearby they can, which they do warp with at the coarsest."""
    reference, moving = grain_pair(96, 112, 12, -7)
    truth = constant_flow(96, 112, 12, -7)
    options = Options(alpha=4, levels=2)
    assert end_point_error(estimate_from(reference, moving, options), truth, 16) > 3
    found = estimate_from(reference, moving, options, truth + smooth_flow(96, 112, 0.5, (0.3, 0.2)))
    assert end_point_error(found, truth, 16) <= tolerances.KNOWN_SHIFT


@pytest.mark.parametrize("more", [{}, {"cc_up": 10}, {"cc_hw": 64, "cc_up": 10}, {"cc_hw": (96, 56)}], ids=str)
def test_prealignment(more):
    reference, moving = grain_pair(96, 112, 12, -7, sigma=1.5)
    truth = constant_flow(96, 112, 12, -7)
    options = Options(alpha=4, levels=2)
    assert end_point_error(estimate_from(reference, moving, options), truth, 16) > 3
    aligned = options.replace(cc_initialization=True, **more)
    assert end_point_error(estimate_from(reference, moving, aligned), truth, 16) <= tolerances.KNOWN_SHIFT
    # the shift found is added to the start flow, not put in its place
    start = constant_flow(96, 112, -3, 4)
    assert end_point_error(estimate_from(reference, moving, aligned, start), truth, 16) <= tolerances.KNOWN_SHIFT


def test_zero_weight_hides_a_channel():
    right, wrong = (frame_pair(smooth_flow(48, 60, offset=offset), seed=s) for s, offset in ((1, (1, 0)), (2, (-2, 1))))
    reference, moving = (np.concatenate(frames, axis=-1) for frames in zip(right, wrong, strict=True))
    alone = estimate_flow(*right)
    np.testing.assert_array_equal(estimate_flow(reference, moving, weight=(1, 0)), alone)
    assert np.abs(estimate_flow(reference, moving) - alone).max() > 0.3


def test_weight_map_chooses_channels_by_place():
    """Either channel moves rightly in one half and contrarily in the other, which the map hides."""
    truth = smooth_flow(*SIZE)
    shown = np.zeros((*SIZE, 2), np.float32)
    shown[:, :56, 0] = shown[:, 56:, 1] = 1
    right, contrary = frame_pair(truth, 2), frame_pair(truth - (3.0, -2.0), 2, seed=9)
    reference, moving = (np.where(shown, *frames) for frames in zip(right, contrary, strict=True))
    found = estimate_flow(reference, moving, weight=shown)
    assert end_point_error(found, truth, MARGIN) <= tolerances.KNOWN_MOTION_BALANCED
    assert end_point_error(estimate_flow(reference, moving), truth, MARGIN) > 5 * tolerances.KNOWN_MOTION_BALANCED


def test_what_has_no_effect_has_none():
    reference, moving = frame_pair(smooth_flow(33, 47))
    plain = estimate_flow(reference, moving)
    for options in (
        {"warping_steps": 7},
        {"sigma": (3, 3, 3), "buffer_size": 5, "interpolation_method": "nearest"},
        {"cc_hw": 16, "cc_up": 5},
        {"quality": "fast", "min_level": 0},
    ):
        np.testing.assert_array_equal(estimate_flow(reference, moving, **options), plain)
    np.testing.assert_array_equal(estimate_flow(reference[..., 0], moving[..., 0]), plain)
    np.testing.assert_array_equal(estimate_flow(reference.astype(float), moving.astype(float), Options()), plain)
    np.testing.assert_array_equal(estimate_flow(reference, moving, Options(alpha=9), alpha=1.5), plain)


def test_what_has_an_effect_has_one():
    reference, moving = frame_pair(smooth_flow(65, 97, offset=(3.3, -2.2)), noise=0.01)
    plain = estimate_flow(reference, moving, solver="sor")
    for options in (
        {"alpha": 3},
        {"min_level": 1},
        {"levels": 4},
        {"eta": 0.7},
        {"iterations": 30},
        {"update_lag": 4},
        {"a_smooth": 0.7},
        {"a_data": 0.6},
        {"const_assumption": "gray"},
        {"solver": "block"},
        {"gnc_schedule": (0, 1), "warping_steps": 1},
        {"cc_initialization": True},
    ):
        found = estimate_flow(reference, moving, **{"solver": "sor", **options})
        assert np.abs(found - plain).max() > 1e-3, options


def test_stages_of_gnc_follow_each_other():
    """With quadratic penalties all stages are alike: four of them are two, started from the result of two."""
    reference, moving = frame_pair(smooth_flow(33, 47), noise=0.01)
    two = Options(a_data=1, gnc_schedule=(0, 1), warping_steps=1, alpha=4, levels=1)
    four = two.replace(gnc_schedule=(0, 0.3, 0.6, 1))
    halfway = estimate_from(reference, moving, two)
    found = estimate_from(reference, moving, four)
    np.testing.assert_array_equal(estimate_from(reference, moving, two, halfway), found)
    assert np.abs(found - halfway).max() > 1e-3


def test_stages_of_gnc_differ():
    reference, moving = frame_pair(smooth_flow(33, 47), noise=0.01)
    early, late = (estimate_flow(reference, moving, gnc_schedule=(0, beta, 1), warping_steps=1) for beta in (0.1, 0.9))
    assert np.abs(early - late).max() > 1e-3
    ten, unsaid = (estimate_flow(reference, moving, gnc_schedule=(0, 1), warping_steps=n) for n in (10, None))
    np.testing.assert_array_equal(ten, unsaid)


A, NAN, INF = np.zeros((16, 18)), np.full((16, 18), np.nan), np.full((16, 18, 1), np.inf)


@pytest.mark.parametrize(
    ("fixed", "moving", "options", "error", "message"),
    [
        (A, A[:, :-1], {}, ValueError, r"moving has shape \(16, 17\), expected that of fixed, \(16, 18\)"),
        (A[0], A[0], {}, ValueError, r"fixed has shape \(18,\), expected \(H, W\) or \(H, W, C\)"),
        (A, A[None, :, :, None], {}, ValueError, r"moving has shape \(1, 16, 18, 1\)"),
        (A[:15], A[:15], {}, ValueError, "frames of 15 x 18 pixels are too small, expected at least 16 each way"),
        (A[:, :15], A[:, :15], {}, ValueError, "frames of 16 x 15 pixels are too small"),
        (NAN, A, {}, ValueError, "fixed holds NaN or infinite pixels"),
        (A, INF[..., 0], {}, ValueError, "moving holds NaN or infinite pixels"),
        (A, A, {"weight": (0.5, 0.5)}, ValueError, r"weight has shape \(2,\)"),
        (A, A, {"alpha": -1}, ValueError, "alpha=-1"),
        (A, A, {"alfa": 1}, TypeError, "unknown option 'alfa'"),
    ],
)
def test_errors(fixed, moving, options, error, message):
    with pytest.raises(error, match=message):
        estimate_flow(fixed, moving, **options)


def test_smallest_frames():
    truth = constant_flow(16, 16, 0.5, -0.5)
    found = estimate_flow(*frame_pair(truth), alpha=4)
    assert end_point_error(found, truth, 4) < end_point_error(np.zeros_like(truth), truth, 4) / 3


# --- upstream's flows of frames 0 and 5 of a two-photon recording (README.md beside them) ---

UPSTREAM = {
    "gc_alpha4": {"alpha": 4},
    "gc_alpha1_5": {"alpha": 1.5},
    "gc_alpha2_6": {"alpha": (2, 6)},
    "gc_balanced": {"alpha": 4, "quality": "balanced"},
    "gc_fast": {"alpha": 4, "quality": "fast"},
    "gray_alpha4": {"alpha": 4, "const_assumption": "gray"},
    "gray_alpha0_1": {"alpha": 0.1, "const_assumption": "gray"},
    "cs_alpha4": {"alpha": 4, "const_assumption": "cs"},
    "gc_asmooth0_5": {"alpha": 4, "a_smooth": 0.5},
    "gc_two_channels": {"alpha": 4, "weight": (0.7, 0.3)},
    "gc_weight_map": {"alpha": 4},
    "gc_init": {"alpha": 4},
    "gc_gnc": {"alpha": 4, "gnc_schedule": (0, 0.5, 1), "warping_steps": 3, "min_level": 4},
}
INPUTS = {"frames", "uv", "weight_map"}


@pytest.fixture(scope="module")
def recording(shared_data):
    """Preprocessed reference and frames 0 and 5, and upstream's file."""
    tifffile = pytest.importorskip("tifffile")
    movie = tifffile.imread(shared_data / "two_photon_20x128x256.tif").astype(float)
    raw = movie[8:16].mean(axis=0)
    scale = raw.max() - raw.min() + 1e-8
    reference, *frames = (gaussian_filter((f - raw.min()) / scale, 1) for f in (raw, movie[0], movie[5]))
    with np.load(shared_data / "upstream_flow.npz") as file:
        return reference, frames, dict(file)


def test_every_case_of_upstream_is_compared(recording):
    assert set(recording[2]) - INPUTS == set(UPSTREAM)


def upstream_comparison(recording, case, solver):
    """Differences of our flows to upstream's (2, H, W) in pixels, and the ratio of the image mismatches."""
    reference, frames, upstream = recording
    options = Options(solver=solver, **UPSTREAM[case])
    if case in ("gc_two_channels", "gc_weight_map"):
        reference, *frames = (np.stack([p, gaussian_filter(1 - p, 1.5)], axis=-1) for p in (reference, *frames))
    if case == "gc_weight_map":
        options = options.replace(weight=upstream["weight_map"])
    start = upstream["uv"] if case == "gc_init" else None
    difference, ours, theirs = [], [], []
    for frame, flow in zip(frames, upstream[case], strict=True):
        found = estimate_from(reference, frame, options, start)
        difference.append(np.hypot(*np.moveaxis(found - flow, -1, 0)))
        ours.append(mismatch(frame, found, reference))
        theirs.append(mismatch(frame, flow, reference))
    return np.stack(difference), np.mean(ours) / np.mean(theirs)


def mismatch(frame, flow, reference):
    """Mean absolute difference of the warped, filtered frame to the filtered reference, 10 px margin."""
    fixed = to_planes(reference)
    warped = cpu.warp(to_planes(frame), to_planes(flow), fixed)
    return np.abs(warped - fixed)[:, 10:-10, 10:-10].mean()


@pytest.mark.parametrize("case", UPSTREAM)
def test_sor_is_close_to_upstream(case, recording):
    difference, ratio = upstream_comparison(recording, case, "sor")
    rough = case == "gc_alpha1_5"
    assert np.median(difference) <= (tolerances.UPSTREAM_MEDIAN_ALPHA_1_5 if rough else tolerances.UPSTREAM_MEDIAN)
    assert ratio <= tolerances.UPSTREAM_MISMATCH


@pytest.mark.parametrize("case", UPSTREAM)
def test_auto_matches_the_image_as_well_as_upstream(case, recording):
    _, ratio = upstream_comparison(recording, case, "auto")
    assert ratio <= tolerances.UPSTREAM_MISMATCH
