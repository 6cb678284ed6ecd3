"""Bounds on data of known density: chains, their weights by hand, and what they refuse."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy import stats

from diffeq_gen import bounds, clocks, exact, paths
from diffeq_gen.equations import reverse_sde
from diffeq_gen.schedules import VP, Flow, at

GAUSSIAN = exact.Gaussian(jnp.array([0.4, -0.7]), jnp.array([[0.5, 0.2], [0.2, 0.3]]))
X0 = jnp.array([1.1, -0.2])
TIMES = jnp.array([0.98, 0.7, 0.4, 0.1])


def test_the_log_of_a_mean_of_weights_of_any_size():
    log_weights = jnp.log(jnp.array([[1.0, 2.0], [3.0, 6.0]]))
    np.testing.assert_allclose(bounds.importance_weighted(log_weights), np.log([2.0, 4.0]), rtol=1e-14)
    np.testing.assert_allclose(bounds.importance_weighted(log_weights - 5000), np.log([2.0, 4.0]) - 5000, rtol=1e-14)
    assert bounds.importance_weighted(jnp.array([-1.5])) == -1.5
    with pytest.raises(ValueError, match=r"log_weights must be of shape \(K, ...\), K >= 1, got shape=\(0, 2\)"):
        bounds.importance_weighted(jnp.zeros((0, 2)))
    with pytest.raises(ValueError, match=r"K >= 1, got shape=\(\)"):
        bounds.importance_weighted(jnp.zeros(()))


@pytest.mark.parametrize("schedule", [Flow(), VP()], ids=repr)
def test_a_weight_is_the_ratio_of_two_joint_densities(schedule):
    """Every factor of p and of q by scipy, along a path drawn by hand; the shape of a sample does not matter."""
    noise, denoise = jax.random.normal(jax.random.key(0), (4, 2)), exact.denoiser(GAUSSIAN, schedule)
    points = [at(schedule, t) for t in TIMES]
    z = points[0].alpha * X0 + points[0].sigma * noise[0]
    log = lambda x, mean, std: jnp.sum(stats.norm.logpdf(x, mean, std))  # noqa: E731
    wanted = log(z, 0.0, jnp.hypot(points[0].alpha, points[0].sigma)) - log(z, points[0].alpha * X0, points[0].sigma)
    for (p, q), eps in zip(itertools.pairwise(points), noise[1:], strict=True):
        c_z, c_x, std = paths.bridge(p, q)
        z_next = c_z * z + c_x * X0 + std * eps
        wanted += log(z_next, c_z * z + c_x * denoise(z, p.t), std) - log(z_next, c_z * z + c_x * X0, std)
        z = z_next
    wanted += log(X0, z / points[-1].alpha, points[-1].sigma / points[-1].alpha)
    np.testing.assert_allclose(bounds.path_log_weight(noise, denoise, schedule, X0, TIMES), wanted, rtol=1e-11)
    picture = lambda z, t: denoise(z.ravel(), t).reshape(z.shape)  # noqa: E731
    again = bounds.path_log_weight(noise.reshape(4, 1, 2, 1), picture, schedule, X0.reshape(1, 2, 1), TIMES)
    np.testing.assert_allclose(again, wanted, rtol=1e-11)


def test_more_paths_come_nearer_to_the_density_of_the_chain():
    """In the mean above what one path tells, and less spread."""
    denoise = lambda z, t: 0.8 * z + 0.1 * t  # noqa: E731

    def mean(draws, count):
        read = lambda key: bounds.chain_bound(key, denoise, VP(), X0, TIMES, draws=draws)  # noqa: E731
        return np.asarray(jax.jit(jax.vmap(read))(jax.random.split(jax.random.key(draws), count)))

    few, many = mean(1, 2000), mean(64, 200)
    assert many.mean() - few.mean() > 5 * few.std() / np.sqrt(2000)
    assert many.std() < few.std() / 4
    noise = jax.random.normal(jax.random.split(jax.random.key(3), 1)[0], (4, 2))
    alone = bounds.path_log_weight(noise, denoise, VP(), X0, TIMES)
    np.testing.assert_allclose(
        bounds.chain_bound(jax.random.key(3), denoise, VP(), X0, TIMES, draws=1), alone, rtol=1e-12
    )
    key = jax.random.key(1)
    np.testing.assert_allclose(
        bounds.chain_bound(key, denoise, VP(), X0, TIMES),
        bounds.chain_bound(key, denoise, VP(), X0, TIMES, draws=16),
        rtol=1e-14,
    )


def test_many_steps_of_the_chain_tend_to_the_density():
    """Of Gaussian data, blurred as at the end of the grid and once more, by the reconstruction."""
    schedule = VP()
    times = clocks.uniform_log_snr(schedule, 150, log_snr_min=-9.0, log_snr_max=5.0)
    denoise, noise = exact.denoiser(GAUSSIAN, schedule), jax.random.normal(jax.random.key(5), (200, len(times), 2))
    one = lambda noise: bounds.path_log_weight(noise, denoise, schedule, X0, times)  # noqa: E731
    found = np.asarray(jax.jit(jax.vmap(one))(noise))
    p = at(schedule, times[-1])
    blur = 2 * (p.sigma / p.alpha) ** 2 * jnp.eye(2)
    wanted = stats.multivariate_normal.logpdf(X0, GAUSSIAN.mean, GAUSSIAN.cov + blur)
    told = float(bounds.importance_weighted(jnp.asarray(found)))
    assert abs(told - wanted) < 5 * np.std(np.exp(found - wanted)) / np.sqrt(len(found)) + 0.02


def test_the_rate_is_that_of_girsanov():
    """|b - b'|^2/(2 noise^2) of the drifts and the diffusion of `reverse_sde`."""
    other, z, t = lambda z, t: jnp.tanh(z), jnp.array([0.3, -1.2]), 0.4
    for schedule, eta in ((Flow(), 1.0), (VP(), 0.3), (VP(), 2.5)):
        denoise = exact.denoiser(GAUSSIAN, schedule)
        (one, noise), (two, _) = (reverse_sde(each, schedule, eta=eta) for each in (denoise, other))
        wanted = jnp.sum((one(z, t) - two(z, t)) ** 2) / (2 * noise(t) ** 2)
        np.testing.assert_allclose(bounds.path_kl_rate(denoise, other, schedule, z, t, eta=eta), wanted, rtol=1e-10)
    plain = bounds.path_kl_rate(denoise, other, VP(), z, t)
    assert plain == bounds.path_kl_rate(denoise, other, VP(), z, t, eta=1.0)
    assert bounds.path_kl_rate(denoise, other, VP(), z, t, eta=1e-3) > 1e5 * plain


def test_what_is_refused():
    denoise = exact.denoiser(GAUSSIAN, VP())
    with pytest.raises(ValueError, match=r"noise must be of shape \(4, 2\), got shape=\(3, 2\)"):
        bounds.path_log_weight(jnp.zeros((3, 2)), denoise, VP(), X0, TIMES)
    with pytest.raises(ValueError, match=r"noise must be of shape \(2,\), got shape=\(2,\)"):
        bounds.path_log_weight(jnp.zeros(2), denoise, VP(), X0, jnp.asarray(0.5))
    with pytest.raises(ValueError, match="draws must be positive, got draws=0"):
        bounds.chain_bound(jax.random.key(0), denoise, VP(), X0, TIMES, draws=0)
    for eta in (0.0, -1.0):
        with pytest.raises(ValueError, match=f"eta must be positive: the flow has no such bound, got eta={eta}"):
            bounds.path_kl_rate(denoise, denoise, VP(), X0, 0.5, eta=eta)
