"""Likelihoods on data of known density, in nats and in bits."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy import stats

from diffeq_gen import clocks, exact, likelihood
from diffeq_gen.schedules import VP, Flow, at

WORLD = exact.Mixture(
    jnp.array([0.3, 0.7]),
    jnp.array([[-1.0, 0.5], [0.8, -0.4]]),
    jnp.array([[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.4]]]),
)
POINTS = jnp.array([[0.1, 0.2], [-1.2, 0.7], [1.5, -1.0]])


def density(x):
    parts = [
        jnp.log(w) + stats.multivariate_normal.logpdf(x, m, c)
        for w, m, c in zip(WORLD.weights, WORLD.means, WORLD.covs, strict=True)
    ]
    return jax.nn.logsumexp(jnp.stack(parts))


@pytest.mark.parametrize("schedule", [Flow(), VP()], ids=repr)
def test_the_flow_integrates_to_the_density_at_order_four(schedule):
    """Down to the mismatch of the prior, which is of the size of alpha/sigma at the noisy end."""
    denoise = exact.denoiser(WORLD, schedule)
    mismatch = float(jnp.exp(clocks.log_snr_range(schedule, log_snr_min=-18.0)[0] / 2))

    def run(steps):
        read = lambda x: likelihood.log_prob(denoise, schedule, x, steps=steps, log_snr_min=-18.0, log_snr_max=14.0)  # noqa: E731
        return jax.jit(jax.vmap(read))(POINTS)

    found = [run(steps) for steps in (12, 24, 48)]
    assert float(jnp.max(jnp.abs(found[2] - jax.vmap(density)(POINTS)))) < mismatch
    coarse, fine = (float(jnp.max(jnp.abs(one - other))) for one, other in itertools.pairwise(found))
    assert coarse / fine > 8


def test_the_elbo_is_below_and_near_in_the_mean():
    """For an exact denoiser its expectation over data is the entropy, up to the ends of the ladder."""
    schedule = VP()
    denoise = exact.denoiser(WORLD, schedule)
    x0 = exact.draw(jax.random.key(0), WORLD, 400)
    keys = jax.random.split(jax.random.key(1), len(x0))
    bound = jax.vmap(lambda key, x: likelihood.elbo(key, denoise, schedule, x, samples=64, log_snr_max=10.0))(keys, x0)
    gap = np.asarray(jax.vmap(density)(x0) - bound)
    assert abs(gap.mean()) < 5 * gap.std() / np.sqrt(len(gap)) + 0.02


def test_the_exact_divergence_is_the_trace_of_the_jacobian():
    denoise = exact.denoiser(WORLD, Flow())
    z, t = jnp.array([0.3, -0.7]), 0.4
    x0, trace = likelihood.divergence(denoise, z, t)
    np.testing.assert_allclose(trace, jnp.trace(jax.jacfwd(lambda z: denoise(z, t))(z)), rtol=1e-12)
    np.testing.assert_allclose(x0, denoise(z, t), rtol=1e-12)
    np.testing.assert_allclose(
        trace, at(Flow(), t).alpha / 0.16 * jnp.trace(exact.posterior_cov(WORLD, z, at(Flow(), t))), rtol=1e-9
    )


def test_units():
    """A uniform law over 2^k bins costs k bits per dimension."""
    for k in (1, 4, 8):
        nats = -3 * np.log(2.0)
        assert np.isclose(likelihood.bits_per_dim(nats, 3, bin_width=2.0 / 2**k), k)
    assert np.isclose(likelihood.bits_per_dim(-np.log(2.0), 1), 1)
