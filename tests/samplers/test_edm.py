"""The sampler of Karras et al.: where its noise acts, where it stops, and what the model is asked."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen.clocks import log_snr
from diffeq_gen.samplers import edm, law
from diffeq_gen.schedules import EDM, VE, VP, Cosine, Flow
from tests.samplers.rows import reads_its_first_rows

X0 = np.array([1.5, -0.25])
Z = np.array([0.3, 2.0])


@pytest.fixture(scope="module", autouse=True)
def sharp():
    """float64, in which the bounds below are sharp; a test that asks for `precision` has its own."""
    with jax.enable_x64(True):
        yield


def known(z, t):
    return jnp.asarray(X0, z.dtype)


def step(sampler, t, s, noise=0.0, dtype="float64"):
    noise = jnp.full((1, 2), noise, dtype)
    return sampler.step(noise, (), jnp.asarray(Z, dtype), jnp.asarray(t, dtype), jnp.asarray(s, dtype))[0]


@pytest.mark.parametrize("schedule", [Flow(), Cosine(), VP()], ids=repr)
@pytest.mark.parametrize("s_churn", [0.0, 0.3])
def test_the_step_to_pure_data_returns_the_denoised(schedule, s_churn):
    end = step(edm(known, schedule, s_churn=s_churn), 0.4, 0.0, noise=2.0)
    np.testing.assert_allclose(end, schedule(jnp.asarray(0.0))[0] * X0, rtol=1e-13)


@pytest.mark.parametrize("s_churn", [{}, {"s_churn": 0.3}], ids=["still", "churned"])
def test_what_is_left_out_is_what_the_docstring_says(s_churn):
    spoken = {"steps": 1, "s_churn": 0.0, "s_min": 0.0, "s_max": math.inf, "s_noise": 1.0}
    silent, spoken = edm(known, VP(), **s_churn), edm(known, VP(), **{**spoken, **s_churn})
    assert silent.noises == spoken.noises == len(s_churn)
    for t, s in ((0.9999, 0.6), (0.4, 1e-4)):
        np.testing.assert_array_equal(step(silent, t, s, 2.0), step(spoken, t, s, 2.0))


def test_the_last_step_has_a_gradient_where_the_model_has_none_at_its_end():
    """The slope at sigma = 0 is not asked for: neither its value nor its derivative, which may be nan."""

    def denoise(z, t):
        return jnp.asarray(X0, z.dtype) + 0 * z / t

    slope = jax.grad(lambda x: edm(denoise, Flow()).step(jnp.zeros((0, 2)), (), x, 0.4, 0.0)[0].sum())(jnp.asarray(Z))
    assert np.all(np.isfinite(slope))


def test_noise_acts_inside_the_window_only():
    """sigma/alpha of the flow is 1 at t = 1/2; the ends of the window belong to it."""
    still = step(edm(known, Flow()), 0.5, 0.3)
    for window in ({"s_min": 1.1}, {"s_max": 0.9}):
        np.testing.assert_array_equal(step(edm(known, Flow(), s_churn=0.2, **window), 0.5, 0.3, noise=2.0), still)
    for window in ({"s_min": 1.0}, {"s_max": 1.0}, {"s_min": 1.0, "s_max": 1.0}, {}):
        assert np.all(step(edm(known, Flow(), s_churn=0.2, **window), 0.5, 0.3, noise=2.0) != still)


def test_options_end_where_the_docstring_says():
    for inside in ({"steps": 1}, {"s_churn": 0.0}, {"s_noise": 0.0}, {"s_min": 0.5, "s_max": 0.5}):
        edm(known, Flow(), **inside)
    for outside in ({"steps": 1 - 1e-9}, {"s_churn": -1e-9}, {"s_noise": -1e-9}, {"s_min": 0.5, "s_max": 0.5 - 1e-9}):
        with pytest.raises(ValueError, match=f"got .*{list(outside)[-1]}={list(outside.values())[-1]}"):
            edm(known, Flow(), **outside)


def test_churn_is_shared_by_the_steps_and_has_a_ceiling():
    def moved(**options):
        return np.asarray(step(edm(known, Flow(), **options), 0.5, 0.3, noise=2.0))

    np.testing.assert_array_equal(moved(s_churn=2.0, steps=10), moved(s_churn=0.2, steps=1))
    np.testing.assert_array_equal(moved(s_churn=1e9), moved(s_churn=math.sqrt(2) - 1))
    assert np.all(moved(s_churn=math.sqrt(2) - 1 - 1e-9) != moved(s_churn=1e9))


@pytest.mark.parametrize("schedule", [Cosine(), EDM(), VE()], ids=repr)
def test_the_model_is_asked_at_the_level_that_the_noise_was_raised_to(schedule):
    asked = []

    def denoise(z, t):
        asked.append(float(log_snr(schedule, t)))
        return known(z, t)

    step(edm(denoise, schedule, s_churn=0.25), 0.5, 0.3)
    expected = [float(log_snr(schedule, 0.5)) - 2 * math.log(1.25), float(log_snr(schedule, 0.3))]
    np.testing.assert_allclose(asked, expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("schedule", "most"), [(EDM(sigma_max=10.0), 10.0), (Cosine(log_snr_min=-4), math.exp(2)), (Flow(), None)]
)
def test_noise_goes_no_further_than_time_one(schedule, most):
    """A churn of 0.3 from 0.02 before the end: to time 1 and as noisy as it is there; where noise has no end, as far as asked."""
    asked = []

    def denoise(z, t):
        asked.append((t, z / schedule(t)[0]))
        return known(z, t)

    alpha, sigma = schedule(0.98)
    hat = min(most or math.inf, 1.3 * sigma / alpha)
    step(edm(denoise, schedule, s_churn=0.3), 0.98, 0.3, noise=2.0)
    (t, x), _ = asked
    assert t <= 1 and (t > 1 - 1e-12) == (most is not None)
    np.testing.assert_allclose(x, Z / alpha + 2 * math.sqrt(hat**2 - (sigma / alpha) ** 2), rtol=1e-12)
    if most is not None:
        np.testing.assert_array_equal(step(edm(known, schedule, s_churn=0.3), 1.0, 0.3, noise=2.0),
                                      step(edm(known, schedule), 1.0, 0.3))  # fmt: skip


def test_churn_has_its_slope_in_the_schedule_where_time_one_is_noise_alone():
    """sigma/alpha is infinite there, and no slope may come of that."""
    end = lambda shift: jnp.sum(step(edm(known, Cosine(shift=shift), s_churn=0.3), 0.5, 0.3, noise=2.0))  # noqa: E731
    apart = (end(0.4 + 1e-5) - end(0.4 - 1e-5)) / 2e-5
    np.testing.assert_allclose(jax.grad(end)(0.4), apart, rtol=1e-8)


def test_churn_from_time_one_has_its_slope_in_the_schedule():
    """No noise is added there, and its root has no slope of its own."""
    end = lambda most: jnp.sum(step(edm(known, EDM(sigma_max=most), s_churn=0.3), 1.0, 0.9, noise=2.0))  # noqa: E731
    apart = (end(10.0 + 1e-4) - end(10.0 - 1e-4)) / 2e-4
    np.testing.assert_allclose(jax.grad(end)(10.0), apart, rtol=1e-7)


@pytest.mark.parametrize(("s_noise", "keeps"), [(1.0, True), (1.02, False), (0.0, False)])
def test_marginals_are_kept_by_unit_noise_only(s_noise, keeps):
    times = jnp.array([0.8, 0.6, 0.4])
    (alpha, sigma), (alpha_end, sigma_end) = Cosine()(times[0]), Cosine()(times[-1])
    sampler = edm(known, Cosine(), steps=2, s_churn=0.5, s_noise=s_noise)
    mean, cov = law(sampler, alpha * X0, sigma**2 * jnp.eye(2), times)
    np.testing.assert_allclose(mean, alpha_end * X0, rtol=1e-10)
    assert np.allclose(np.diag(cov), sigma_end**2, rtol=1e-10) == keeps


@pytest.mark.parametrize(
    ("t", "s", "got"), [(1.0, 0.5, "alpha=0.0, sigma=1.0, t=1.0"), (0.0, 0.0, "alpha=1.0, sigma=0.0, t=0.0")]
)
def test_it_has_no_value_at_pure_noise_and_from_pure_data_as_it_says(t, s, got):
    """Said where the time is known; under `jit` it is nan."""
    with pytest.raises(ValueError, match=f"alpha and sigma must be positive where a step of edm begins, got {got}"):
        step(edm(known, Flow()), t, s)
    assert not np.any(np.isfinite(jax.jit(lambda t: step(edm(known, Flow()), t, s))(t)))


@pytest.mark.parametrize("t", [0.001, 0.5, 0.99])
@pytest.mark.parametrize("s_churn", [0.0, 0.01])
def test_a_step_of_one_ulp_is_finite_in_both_precisions(t, s_churn, precision):
    t = np.asarray(t, precision)
    s = np.nextafter(t, np.asarray(0, precision))
    moved = step(edm(known, Flow(), s_churn=s_churn), t, s, 1.0, precision)
    assert moved.dtype == precision and np.all(np.isfinite(moved))
    if not s_churn:
        assert np.all(np.abs(moved - Z) < 1e3 * np.sqrt(np.finfo(precision).eps))


def test_the_noise_is_the_first_row():
    reads_its_first_rows(edm(known, Flow(), s_churn=0.3))
