"""The law of a sampler: against a recursion written out, against marginals that are known, and with memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen import samplers
from diffeq_gen.samplers import law
from diffeq_gen.schedules import VP, Cosine, Flow
from diffeq_gen.types import Sampler

X0 = np.array([1.5, -0.25])
TIMES = np.linspace(0.9, 0.2, 6)


@pytest.fixture(scope="module", autouse=True)
def sharp():
    """float64, in which the bounds below are sharp; a test that asks for `precision` has its own."""
    with jax.enable_x64(True):
        yield


def known(z, t):
    return jnp.asarray(X0, z.dtype)


def test_one_dimension_is_the_recursion_of_any_textbook():
    """z' = s z + t + 3 noise: a first-order autoregression whose coefficients change with time."""
    sampler = Sampler(lambda z: (), lambda noise, memory, z, t, s: (s * z + t + 3 * noise[0], memory), noises=1)
    mean, var = 2.0, 0.7
    found = law(sampler, jnp.array([mean]), jnp.array([[var]]), TIMES)
    for t, s in zip(np.asarray(TIMES[:-1]), np.asarray(TIMES[1:]), strict=True):
        mean, var = s * mean + t, s**2 * var + 9
    np.testing.assert_allclose(found[0], [mean], rtol=1e-13)
    np.testing.assert_allclose(found[1], [[var]], rtol=1e-13)


def test_memory_is_correlated_with_the_state():
    """z_{i+1} = z_i/2 + z_{i-1}/4 + noise with z_{-1} = -z_0: independent noises, so variances of the coefficients add."""
    sampler = Sampler(
        lambda z: -z, lambda noise, memory, z, t, s: (z / 2 + memory / 4 + noise[0] - noise[1], z), noises=2
    )
    found = law(sampler, jnp.array([1.0, -3.0]), jnp.array([[2.0, 0.5], [0.5, 1.0]]), TIMES)
    before, last = -np.eye(6)[0], np.eye(6)[0]  # coefficients of z_0 and of the five differences of noise
    for i in range(5):
        before, last = last, last / 2 + before / 4 + np.eye(6)[i + 1]
    own = 2 * np.sum(last[1:] ** 2)
    np.testing.assert_allclose(found[0], last[0] * np.array([1.0, -3.0]), rtol=1e-13)
    np.testing.assert_allclose(
        found[1], last[0] ** 2 * np.array([[2.0, 0.5], [0.5, 1.0]]) + own * np.eye(2), rtol=1e-13
    )


@pytest.mark.parametrize("schedule", [Flow(), Cosine(), VP()], ids=repr)
@pytest.mark.parametrize(
    "sampler",
    [
        lambda schedule: samplers.ddim(known, schedule, eta=0.6),
        lambda schedule: samplers.ddpm(known, schedule),
        lambda schedule: samplers.churn(known, schedule, undone=0.3),
        lambda schedule: samplers.exponential(known, schedule, eta=1.3),
        lambda schedule: samplers.edm(known, schedule, steps=5, s_churn=2.0),
    ],
    ids=["ddim", "ddpm", "churn", "exponential", "edm"],
)
def test_data_at_a_point_keeps_its_marginals_whatever_the_noise(sampler, schedule):
    (alpha, sigma), (alpha_end, sigma_end) = schedule(TIMES[0]), schedule(TIMES[-1])
    mean, cov = law(sampler(schedule), alpha * X0, sigma**2 * jnp.eye(2), TIMES)
    np.testing.assert_allclose(mean, alpha_end * X0, rtol=1e-10)
    np.testing.assert_allclose(cov, sigma_end**2 * np.eye(2), rtol=1e-10, atol=1e-14)


def test_the_larger_variance_of_ddpm_is_larger_than_a_point_asks_for():
    (alpha, sigma), (_, sigma_end) = Cosine()(TIMES[0]), Cosine()(TIMES[-1])
    _, cov = law(samplers.ddpm(known, Cosine(), variance=1.0), alpha * X0, sigma**2 * jnp.eye(2), TIMES)
    assert np.all(np.diag(cov) > 1.1 * float(sigma_end) ** 2)


def test_a_law_without_spread_is_the_sample(precision):
    sampler, start = samplers.ddim(lambda z, t: jnp.tanh(z), Cosine()), jnp.asarray([0.4, -1.0], precision)
    mean, cov = law(sampler, start, jnp.zeros((2, 2), precision), TIMES)
    assert mean.dtype == cov.dtype == precision
    drawn = samplers.sample(jax.random.key(0), sampler, start, TIMES)
    np.testing.assert_allclose(mean, drawn, rtol=10 * np.finfo(precision).eps)
    np.testing.assert_array_equal(cov, np.zeros((2, 2)))
