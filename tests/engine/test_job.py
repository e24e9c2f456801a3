"""Jobs: what their constructors make of a reference, and which batches they take."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from flowreg_gpu.engine.batch import Batch
from flowreg_gpu.engine.job import Job, WarpJob
from flowreg_gpu.options import Options
from tests import tolerances


def reference_image(channels=2):
    return np.random.default_rng(0).uniform(100, 900, (20, 24, channels)).astype(np.float32)


def test_raw_reference_is_normalised_and_filtered():
    """Against SciPy's filter of the formula in docs/dev/model.md."""
    reference = reference_image()
    job = Job.from_raw(options=Options(sigma=(1.5, 1, 0.3)), reference=reference)
    normalised = (reference - reference.min()) / (reference.max() - reference.min())
    expected = gaussian_filter(normalised.astype(float), (1.5, 1, 0), mode="reflect").transpose(2, 0, 1)
    np.testing.assert_allclose(job.reference_planes, expected, rtol=0, atol=tolerances.FILTER)
    assert job.halo == 1
    assert job.reference is reference
    np.testing.assert_allclose(job.mean_weight, [0.5, 0.5])


def test_auto_gives_way_to_a_solver():
    reference = reference_image()
    assert Job.from_raw(options=Options(), reference=reference).options.solver == "block"
    assert Job.from_raw(options=Options(alpha=300), reference=reference).options.solver == "multigrid"
    assert Job.from_raw(options=Options(a_smooth=0.5), reference=reference).options.solver == "sor"
    assert Job.from_raw(options=Options(solver="sor"), reference=reference).options.solver == "sor"


def test_the_solver_is_that_of_the_reference_however_it_comes():
    """A reference that is flat in large parts asks for multigrid at an alpha that takes block elsewhere."""
    reference = reference_image(1)
    reference[:, 4:] = 100
    options = Options(alpha=80)
    job = Job.from_raw(options=options, reference=reference)
    assert job.options.solver == "multigrid"
    again = Job.from_preprocessed(options=options, reference=reference, reference_planes=job.reference_planes)
    assert again.options.solver == "multigrid"
    assert again.preprocessing is None
    assert again.halo == 0


def test_batches_that_do_not_fit():
    job = Job.from_raw(options=Options(sigma=(1, 1, 0.3)), reference=reference_image())
    frames, start = np.zeros((3, 20, 24, 2), np.uint16), np.zeros((2, 20, 24), np.float32)
    planes = np.zeros((1, 2, 20, 24), np.float32)
    job.check(Batch(frames, start, 1))
    with pytest.raises(ValueError, match="the batch has a halo of 0 frames, expected 1"):
        job.check(Batch(frames, start))
    with pytest.raises(ValueError, match="either the job's preprocessing or planes of its own"):
        job.check(Batch(frames, start, 1, planes=planes))
    own = Job.from_preprocessed(options=Options(), reference=job.reference, reference_planes=job.reference_planes)
    with pytest.raises(ValueError, match="either the job's preprocessing or planes of its own"):
        own.check(Batch(frames, start))


def test_batches_that_are_warped_only():
    job = WarpJob(options=Options(), reference=reference_image())
    frames, flow = np.zeros((3, 20, 24, 2), np.uint16), np.zeros((3, 2, 20, 24), np.float32)
    start, planes = np.zeros((2, 20, 24), np.float32), np.zeros((3, 2, 20, 24), np.float32)
    job.check(Batch(frames, None, flow=flow))
    with pytest.raises(ValueError, match=r"a flow of shape None, expected \(3, 2, 20, 24\)"):
        job.check(Batch(frames, start))
    with pytest.raises(ValueError, match=r"a flow of shape \(2, 2, 20, 24\), expected \(3, 2, 20, 24\)"):
        job.check(Batch(frames, None, flow=flow[:2]))
    for other in (Batch(frames, None, planes=planes, flow=flow), Batch(frames, None, 1, flow=flow[:1])):
        with pytest.raises(ValueError, match="neither planes nor a halo"):
            job.check(other)
    estimated = Job.from_raw(options=Options(sigma=(1, 1, 0)), reference=reference_image())
    for other in (Batch(frames, None), Batch(frames, start, flow=flow)):
        with pytest.raises(ValueError, match="needs a start flow, and no flow of its own"):
            estimated.check(other)


def test_jobs_are_built_by_name():
    with pytest.raises(TypeError):
        Job.from_raw(Options(), reference_image())
