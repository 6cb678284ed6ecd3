"""What a denoiser has learnt of its data: theirs, where it is the exact one of a world whose moments are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen import exact, samplers, schedules
from diffeq_gen.samplers.learnt import regressed
from diffeq_gen.schedules import at

COV = np.array([[0.5, 0.2, 0.0, 0.1], [0.2, 0.3, 0.0, 0.0], [0.0, 0.0, 0.8, -0.3], [0.1, 0.0, -0.3, 0.4]])
MEAN = np.array([0.7, -0.2, 0.1, 1.5])


@pytest.fixture
def in_float64():
    with jax.enable_x64(True):
        yield


def gaussian(schedule):
    """The denoiser of N(MEAN, COV) for pictures of two by two, one or many."""
    world = exact.Gaussian(jnp.asarray(MEAN), jnp.asarray(COV))

    def denoise(z, t):
        rows = z.reshape(-1, 4)
        return jax.vmap(lambda z: exact.denoise(world, z, at(schedule, t)))(rows).reshape(z.shape)

    return denoise


def modes():
    """Three in a plane: no Gaussian."""
    means = jnp.array([[1.0, 0.0], [-0.6, 0.8], [-0.2, -0.9]])
    return exact.Mixture(jnp.array([0.3, 0.3, 0.4]), means, jnp.stack([0.02 * jnp.eye(2)] * 3))


def moments(world):
    mean = np.asarray(world.weights @ world.means)
    away = np.asarray(world.means) - mean
    return mean, np.einsum("k,kij->ij", world.weights, world.covs) + (
        np.asarray(world.weights)[:, None] * away
    ).T @ away


def covariance(control):
    return np.asarray(control.basis) * np.asarray(control.variances) @ np.asarray(control.basis).T


def draws(n, *event, seed=0):
    return jax.random.normal(jax.random.key(seed), (n, *event))


def far(found, known):
    return np.linalg.norm(found - known) / np.linalg.norm(known)


@pytest.mark.parametrize("schedule", [schedules.EDM(), schedules.Flow(), schedules.Cosine()], ids=repr)
@pytest.mark.parametrize("options", [{}, {"noise": 1.0, "rounds": 1}, {"noise": 20.0, "scale": 3.0}], ids=str)
def test_of_gaussian_data_a_few_draws_tell_all(schedule, options, in_float64):
    """Six in four dimensions, whatever the noise: the predictions are linear in the inputs."""
    control = samplers.control_from(gaussian(schedule), schedule, draws(6, 2, 2), floor=1e-3, **options)
    np.testing.assert_allclose(control.mean, MEAN.reshape(2, 2), rtol=1e-9)
    np.testing.assert_allclose(covariance(control), COV, atol=1e-9)
    np.testing.assert_allclose(control.basis.T @ control.basis, np.eye(4), atol=1e-12)
    assert np.all(np.diff(control.variances) >= 0)


def test_axes_beyond_the_largest_have_their_mean_variance(in_float64):
    """As of `control_of`; every round asks in all of them."""
    schedule, values = schedules.Flow(), np.linalg.eigvalsh(COV)
    control = samplers.control_from(gaussian(schedule), schedule, draws(6, 2, 2), axes=1, floor=1e-3)
    np.testing.assert_allclose(control.variances, [values[-1], values[:-1].mean()], rtol=1e-9)
    assert control.basis.shape == (4, 1)
    np.testing.assert_allclose(COV @ control.basis, values[-1] * control.basis, atol=1e-9)
    high = samplers.control_from(gaussian(schedule), schedule, draws(6, 2, 2), axes=1, floor=1.0)
    np.testing.assert_allclose(high.variances[-1], values.mean(), rtol=1e-9)


def test_one_step_of_any_length_is_then_the_flow_of_the_data(in_float64):
    schedule = schedules.Flow()
    denoise = gaussian(schedule)
    control = samplers.control_from(denoise, schedule, draws(9, 2, 2), floor=1e-3)
    z, times = draws(5, 2, 2, seed=1), jnp.array([0.9, 0.2])
    found = samplers.sample(jax.random.key(0), samplers.controlled(denoise, schedule, control, jumped=False), z, times)
    world, (p, q) = exact.Gaussian(jnp.asarray(MEAN), jnp.asarray(COV)), (at(schedule, t) for t in times)
    known = jax.vmap(lambda z: exact.flow_map(world, z, p, q))(z.reshape(5, 4)).reshape(z.shape)
    np.testing.assert_allclose(found, known, rtol=1e-8)


def test_of_other_data_the_error_falls_with_the_square_of_the_noise(in_float64):
    """Antithetic draws, a hundred thousand: what is left is the law that the inputs have not."""
    schedule, (mean, cov) = schedules.EDM(), moments(modes())
    half = draws(50_000, 2)
    eps = jnp.concatenate([half, -half])
    asked = lambda noise: samplers.control_from(exact_denoiser(schedule), schedule, eps, noise=noise, floor=1e-3)  # noqa: E731
    errors = [far(covariance(asked(noise)), cov) for noise in (1.0, 2.0, 4.0)]
    assert errors[0] / errors[1] > 4 and errors[1] / errors[2] > 3, errors
    assert errors[2] < 5e-3 and far(asked(5.0).mean, mean) < 5e-3


def exact_denoiser(schedule):
    world = modes()
    return lambda z, t: jax.vmap(lambda z: exact.denoise(world, z, at(schedule, t)))(z)


@pytest.mark.parametrize("scale", [0.3, 1.0, 30.0])
def test_a_wrong_guess_of_the_scale_is_forgotten(scale, in_float64):
    schedule = schedules.EDM()
    control = samplers.control_from(exact_denoiser(schedule), schedule, draws(4000, 2), scale=scale, rounds=4)
    assert far(covariance(control), moments(modes())[1]) < 0.02


def test_a_round_asks_at_the_noise_and_in_the_law_of_the_round_before(in_float64):
    """Written out for inputs of a law that is not the data's; sigma/alpha is noise times (tr C^2 / d)^{1/4}."""
    schedule, eps, options = schedules.Flow(), draws(7, 2), {"scale": 0.7, "noise": 3.0, "floor": 1e-3}
    denoise = exact_denoiser(schedule)
    mean, axes, variances = np.zeros(2), np.eye(2), np.array([0.49, 0.49])
    for rounds in (1, 2, 3):
        level = 3 * ((variances[0] ** 2 + variances[1] ** 2) / 2) ** 0.25
        alpha, sigma = 1 / (1 + level), level / (1 + level)
        z = jnp.asarray(
            alpha * np.asarray(mean) + (np.asarray(eps) * np.sqrt(alpha**2 * variances + sigma**2)) @ axes.T
        )
        t = jnp.asarray(sigma)
        mean, cov = regressed(denoise(z, t), z, at(schedule, t), jnp.full((7, 1), 1 / 7))
        variances, axes = np.linalg.eigh((cov + cov.T) / 2)
        control = samplers.control_from(denoise, schedule, eps, rounds=rounds, **options)
        np.testing.assert_allclose(control.mean, mean, rtol=1e-9)
        np.testing.assert_allclose(covariance(control), (cov + cov.T) / 2, rtol=1e-9)


def test_what_is_left_out_is_three_rounds_at_five_scales_of_one_and_a_floor_of_a_tenth(in_float64):
    """On two modes so far apart that the axis across them is below the floor."""
    schedule = schedules.EDM()
    world = exact.Mixture(
        jnp.array([0.4, 0.6]), jnp.array([[1.5, 0.0], [-1.0, 0.0]]), 1e-4 * jnp.stack([jnp.eye(2)] * 2)
    )
    denoise = lambda z, t: jax.vmap(lambda z: exact.denoise(world, z, at(schedule, t)))(z)  # noqa: E731
    found = samplers.control_from(denoise, schedule, draws(60, 2))
    said = samplers.control_from(denoise, schedule, draws(60, 2), scale=1.0, noise=5.0, rounds=3, floor=0.1)
    jax.tree.map(np.testing.assert_array_equal, found, said)
    np.testing.assert_allclose(found.variances[0], 0.01 * found.variances[1] / 2, rtol=0.02)


def test_a_schedule_that_does_not_reach_the_noise_is_asked_at_its_end(in_float64):
    schedule = schedules.EDM(sigma_max=0.5)
    control = samplers.control_from(gaussian(schedule), schedule, draws(6, 2, 2), noise=50.0, floor=1e-3)
    np.testing.assert_allclose(covariance(control), COV, atol=1e-9)


def test_an_axis_without_data_has_the_floor(in_float64):
    """Points on a line through the origin: x0_hat = a (a.z) / (|a|^2 + sigma^2) of N(0, a a^T)."""
    schedule, a = schedules.EDM(), jnp.array([3.0, 4.0])
    control = samplers.control_from(
        lambda z, t: (z @ a)[:, None] * a[None] / (25 + schedule(t)[1] ** 2), schedule, draws(50, 2), floor=0.2
    )
    np.testing.assert_allclose(control.variances, [0.04 * 12.5, 25.0], rtol=1e-9)


def test_float32_stays_and_agrees():
    schedule = schedules.EDM()
    with jax.enable_x64(False):
        control = samplers.control_from(gaussian(schedule), schedule, draws(40, 2, 2), floor=1e-3)
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(control)} == {"float32"}
        np.testing.assert_allclose(covariance(control), COV, atol=2e-4)


def test_it_is_the_line_of_least_squares(in_float64):
    """Against numpy's with an intercept, of predictions that no law has: K is not symmetric."""
    z, p = np.random.default_rng(3).standard_normal((9, 2)) + 0.7, at(schedules.Flow(), jnp.asarray(0.6))
    x0 = np.tanh(z) + 0.3 * z[:, ::-1] ** 2
    a, *k = np.linalg.lstsq(np.c_[np.ones(9), z], x0, rcond=None)[0]
    rest = np.linalg.inv(np.eye(2) - 0.4 * np.transpose(k))
    mean, cov = regressed(jnp.asarray(x0), jnp.asarray(z), p, jnp.full((9, 1), 1 / 9))
    np.testing.assert_allclose(mean, rest @ a, rtol=1e-11)
    np.testing.assert_allclose(cov, 0.36 / 0.4 * rest @ np.transpose(k), rtol=1e-11)


def test_a_row_counts_for_its_share(in_float64):
    """A row of twice the share is the row said twice."""
    z = draws(7, 2)
    x0, p = jnp.tanh(z) + 0.3 * z[:, ::-1], at(schedules.Flow(), jnp.asarray(0.6))
    shares = jnp.full((7, 1), 1 / 8).at[3].set(1 / 4)
    twice = [jnp.concatenate([rows, rows[3:4]]) for rows in (x0, z)]
    for found, known in zip(regressed(x0, z, p, shares), regressed(*twice, p, jnp.full((8, 1), 1 / 8)), strict=True):
        np.testing.assert_allclose(found, known, rtol=1e-11)


@pytest.mark.parametrize(
    ("eps", "options", "message"),
    [
        (np.zeros(5), {}, r"eps must be \(n, \*event\), n greater than the number of dimensions.*\(5,\)"),
        (np.zeros((4, 2, 2)), {}, r"n greater than the number of dimensions.*\(4, 2, 2\)"),
        (np.ones((9, 2, 2)), {"scale": 0.0}, "scale, noise and floor must be positive.*scale=0.0"),
        (np.ones((9, 2, 2)), {"noise": 0.0}, "scale, noise and floor must be positive.*noise=0.0"),
        (np.ones((9, 2, 2)), {"floor": 0.0}, "scale, noise and floor must be positive.*floor=0.0"),
        (np.ones((9, 2, 2)), {"rounds": 0}, "rounds must be positive.*0"),
    ],
)
def test_what_is_refused(eps, options, message):
    schedule = schedules.EDM()
    with pytest.raises(ValueError, match=message):
        samplers.control_from(gaussian(schedule), schedule, jnp.asarray(eps), **options)


def test_a_denoiser_that_says_nothing_is_refused(in_float64):
    schedule, eps = schedules.EDM(), draws(9, 2)
    with pytest.raises(ValueError, match="predictions must be finite"):
        samplers.control_from(lambda z, t: z * jnp.nan, schedule, eps)
    with pytest.raises(ValueError, match=r"more slowly than z/alpha.*variance=-12.*scale=1.0"):
        samplers.control_from(lambda z, t: -z, schedule, eps)
    with pytest.raises(ValueError, match=r"more slowly than z/alpha.*variance=0.0"):
        samplers.control_from(lambda z, t: jnp.zeros_like(z), schedule, eps)
    with pytest.raises(ValueError, match=r"more slowly than z/alpha.*scale=0.02"):
        samplers.control_from(exact_denoiser(schedule), schedule, draws(4000, 2), scale=0.02)
