"""Distances on samples whose distance is known, and the samples themselves on data that is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen import exact, samplers, schedules
from diffeq_gen.training.evaluation import draw, nearest, sliced_wasserstein

RNG = np.random.default_rng(0)
X = RNG.standard_normal((300, 4))


@pytest.fixture(scope="module", autouse=True)
def as_users_run_it():
    with jax.enable_x64(False):
        yield


def test_sliced_distance_is_a_distance():
    y, z = X @ np.diag([2.0, 1, 1, 1]), X + 1
    assert sliced_wasserstein(X, X[::-1]) < 1e-12
    assert np.isclose(sliced_wasserstein(X, y), sliced_wasserstein(y, X), rtol=1e-12)
    assert sliced_wasserstein(X, z) <= sliced_wasserstein(X, y) + sliced_wasserstein(y, z)
    assert np.isclose(sliced_wasserstein(3 * X, 3 * y), 3 * sliced_wasserstein(X, y), rtol=1e-12)


def test_in_one_dimension_it_is_the_distance_of_sorted_samples():
    assert np.isclose(sliced_wasserstein(np.array([[0.0], [3.0]]), np.array([[5.0], [1.0]])), np.sqrt((1 + 4) / 2))


def test_shape_and_size_do_not_matter():
    pictures = X.reshape(300, 2, 2, 1)
    assert sliced_wasserstein(pictures, X) < 1e-12
    assert sliced_wasserstein(X, np.concatenate([X, X])) < 0.3 < sliced_wasserstein(X, np.concatenate([X, X]) + 1)
    assert sliced_wasserstein(X, X + 1, seed=1) == sliced_wasserstein(X, X + 1, seed=1)


def test_nearest_is_zero_on_what_is_remembered():
    found = nearest(np.concatenate([X[:3], X[:1] + 0.5]).reshape(4, 2, 2), X.reshape(300, 2, 2))
    np.testing.assert_allclose(found[:3], 0)
    assert 0 < found[3] <= 0.5


@pytest.mark.parametrize("schedule", [schedules.Flow(), schedules.VE(), schedules.Cosine()], ids=repr)
def test_samples_of_a_known_world_have_its_moments(schedule):
    """The start is scaled to the noise of the schedule, and what is returned is denoised: no noise of the last time is left."""
    mean, cov = np.array([1.0, -0.5]), np.array([[0.4, 0.1], [0.1, 0.2]])
    world = exact.Gaussian(jnp.asarray(mean, jnp.float32), jnp.asarray(cov, jnp.float32))
    denoise = jax.vmap(exact.denoiser(world, schedule), in_axes=(0, None))
    drawn = np.asarray(draw(jax.random.key(0), denoise, schedule, (4000, 2), steps=60))
    assert drawn.dtype == np.float32
    np.testing.assert_allclose(drawn.mean(axis=0), mean, atol=4 * np.sqrt(0.4 / 4000) + 0.03)
    np.testing.assert_allclose(np.cov(drawn.T), cov, atol=0.05)


def test_a_denoiser_that_knows_one_point_draws_that_point_by_every_sampler():
    def denoise(z, t):
        return jnp.full_like(z, 0.7)

    for method in (samplers.ddim, samplers.ddpm, samplers.edm, samplers.euler_maruyama):
        sampler = method(denoise, schedules.Cosine())
        drawn = draw(jax.random.key(1), denoise, schedules.Cosine(), (3, 2, 2, 1), steps=3, sampler=sampler)
        np.testing.assert_array_equal(drawn, np.full((3, 2, 2, 1), np.float32(0.7)))


@pytest.mark.parametrize("schedule", [schedules.Flow(), schedules.VE(), schedules.Cosine()], ids=repr)
def test_control_of_the_data_draws_them_in_one_step(schedule):
    """Of Gaussian data, whose flow is known: their covariance up to that of the draws, where DDIM's one step has hardly any."""
    mean, cov = np.array([1.0, -0.5]), np.array([[0.4, 0.1], [0.1, 0.2]])
    world = exact.Gaussian(jnp.asarray(mean, jnp.float32), jnp.asarray(cov, jnp.float32))
    denoise = jax.vmap(exact.denoiser(world, schedule), in_axes=(0, None))
    variances, basis = np.linalg.eigh(cov)
    control = samplers.Control(*(jnp.asarray(part, jnp.float32) for part in (mean, variances, basis)))
    drawn, ddim = (
        draw(jax.random.key(0), denoise, schedule, (4000, 2), steps=1, control=one) for one in (control, None)
    )
    np.testing.assert_allclose(drawn.mean(axis=0), mean, atol=4 * np.sqrt(0.4 / 4000))
    np.testing.assert_allclose(np.cov(drawn.T), cov, atol=4 * 0.4 * np.sqrt(2 / 4000))
    assert np.linalg.norm(np.cov(ddim.T)) < 0.1 * np.linalg.norm(cov)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sampler": samplers.ddim(lambda z, t: z, schedules.Flow())}, "got control='a control', grid=None"),
        ({"grid": "log-snr"}, "got control='a control', grid='log-snr'"),
    ],
)
def test_a_control_comes_with_neither_sampler_nor_grid(given, said):
    control, schedule = samplers.Control(jnp.zeros(2), 1.0), schedules.Flow()
    with pytest.raises(ValueError, match=f"a control has a sampler and a grid of its own, {said}"):
        draw(jax.random.key(0), lambda z, t: z, schedule, (3, 2), control=control, **given)


def test_a_grid_that_is_neither_is_named():
    with pytest.raises(ValueError, match="grid must be time or log-snr, got grid='karras'"):
        draw(jax.random.key(0), lambda z, t: z, schedules.Flow(), (3, 2), grid="karras")
