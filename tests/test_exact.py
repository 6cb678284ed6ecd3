"""Each world against Bayes by quadrature, against derivatives of an independent log-density, and plain float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import multivariate_normal

from diffeq_gen import exact, schedules
from diffeq_gen.types import Point


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


MEAN, COV = [0.5, -1.0], [[0.6, 0.3], [0.3, 0.4]]
WEIGHTS, MEANS = [0.3, 0.7], [[0.5, -1.0], [-1.2, 0.8]]
COVS = [[[0.6, 0.3], [0.3, 0.4]], [[0.2, -0.05], [-0.05, 0.3]]]
Z = [0.4, 0.7]


def gaussian():
    return exact.Gaussian(jnp.array(MEAN), jnp.array(COV))


def mixture():
    return exact.Mixture(jnp.array(WEIGHTS), jnp.array(MEANS), jnp.array(COVS))


def empirical(n=37, event=(2,), block=8, seed=0):
    return exact.Empirical(jnp.asarray(np.random.default_rng(seed).normal(0.3, 1.2, (n, *event))), block=block)


def crooked(t):
    """No family of the literature: neither variance preserving nor exploding, nor the flow."""
    return jnp.cos(1.3 * t), 0.1 + 1.5 * t**2


def point(alpha, sigma, alpha_dot=-0.7, sigma_dot=1.1, dtype=None):
    return Point(*(jnp.asarray(value, dtype) for value in (0.5, alpha, sigma, alpha_dot, sigma_dot)))


def components(world):
    """weights, means, covs of a Gaussian or of a mixture, as numpy."""
    if isinstance(world, exact.Gaussian):
        return np.ones(1), np.asarray(world.mean)[None], np.asarray(world.cov)[None]
    return np.asarray(world.weights), np.asarray(world.means), np.asarray(world.covs)


def log_density(world, z, p):
    """An independent log p(z): the mixture of marginals, by jax.scipy."""
    weights, means, covs = components(world)
    each = [
        jnp.log(w) + multivariate_normal.logpdf(z, p.alpha * m, p.alpha**2 * c + p.sigma**2 * jnp.eye(len(m)))
        for w, m, c in zip(weights, means, covs, strict=True)
    ]
    return jax.nn.logsumexp(jnp.stack(each))


def bayes(world, z, p, n=401, reach=7.0):
    """log p(z), E[x0 | z] and Cov(x0 | z) from prior x likelihood on a grid of x0: the definition, and nothing else."""
    alpha, sigma, axis = float(p.alpha), float(p.sigma), np.linspace(-reach, reach, n)
    x = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    density = 0
    for w, m, c in zip(*components(world), strict=True):
        y = x - m
        density += w * np.exp(-np.sum(y @ np.linalg.inv(c) * y, 1) / 2) / (2 * math.pi * math.sqrt(np.linalg.det(c)))
    likelihood = np.exp(-np.sum((z - alpha * x) ** 2, 1) / (2 * sigma**2)) / (2 * math.pi * sigma**2)
    joint = density * likelihood * (axis[1] - axis[0]) ** 2
    total = joint.sum()
    mean = joint @ x / total
    return math.log(total), mean, (x - mean).T @ ((x - mean) * joint[:, None]) / total


WORLDS = pytest.mark.parametrize("world", [gaussian, mixture, empirical])
SMOOTH = pytest.mark.parametrize("world", [gaussian, mixture])
TIMES = 0.1, 0.45, 0.9
VERBS = exact.log_prob, exact.score, exact.denoise, exact.posterior_cov, exact.velocity, exact.divergence


@SMOOTH
@pytest.mark.parametrize(("alpha", "sigma"), [(0.9, 0.4), (0.5, 1.3), (2.0, 0.7)])
def test_posterior_is_bayes_by_quadrature(world, alpha, sigma):
    world, z, p = world(), jnp.array(Z), point(alpha, sigma)
    log_prob, mean, cov = bayes(world, np.array(Z), p)
    np.testing.assert_allclose(exact.log_prob(world, z, p), log_prob, atol=1e-11)
    np.testing.assert_allclose(exact.denoise(world, z, p), mean, atol=1e-11)
    np.testing.assert_allclose(exact.posterior_cov(world, z, p), cov, atol=1e-11)
    np.testing.assert_allclose(exact.posterior_trace(world, z, p), np.trace(cov), atol=1e-11)


@SMOOTH
def test_every_verb_follows_from_an_independent_log_density(world):
    world, z = world(), jnp.array(Z)

    @jax.jit
    def both(t):
        p = schedules.at(crooked, t)
        score = jax.grad(lambda z: log_density(world, z, p))
        tweedie = lambda z: (z + p.sigma**2 * score(z)) / p.alpha  # noqa: E731
        f, half_g2 = p.alpha_dot / p.alpha, -(p.sigma**2) * p.log_snr_dot / 2
        drift = lambda z: f * z - half_g2 * score(z)  # noqa: E731
        cov = p.sigma**2 / p.alpha * jax.jacfwd(tweedie)(z)
        return tuple(verb(world, z, p) for verb in VERBS), (
            log_density(world, z, p), score(z), tweedie(z), cov, drift(z), jnp.trace(jax.jacfwd(drift)(z))
        )  # fmt: skip

    for t in TIMES:
        for verb, got, wanted in zip(VERBS, *both(t), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-12, err_msg=verb.__name__)


@WORLDS
def test_velocity_solves_the_continuity_equation(world):
    world, z = world(), jnp.array(Z)
    log_prob = lambda z, t: exact.log_prob(world, z, schedules.at(crooked, t))  # noqa: E731
    u = lambda z, t: exact.velocity(world, z, schedules.at(crooked, t))  # noqa: E731

    @jax.jit
    def terms(t):
        score, log_prob_dot = jax.grad(log_prob, (0, 1))(z, t)
        return log_prob_dot, jnp.trace(jax.jacfwd(u)(z, t)), u(z, t) @ score

    for t in TIMES:
        values = terms(t)
        assert abs(sum(values)) <= 1e-12 * max(map(abs, values))
        np.testing.assert_allclose(exact.divergence(world, z, schedules.at(crooked, t)), values[1], rtol=1e-11)


def runge_kutta(u, z, t, s, steps):
    """Kutta's classical method from t to s."""
    h = (s - t) / steps
    for i in range(steps):
        now = t + i * h
        a = u(z, now)
        b = u(z + h / 2 * a, now + h / 2)
        c = u(z + h / 2 * b, now + h / 2)
        z = z + h / 6 * (a + 2 * b + 2 * c + u(z + h * c, now + h))
    return z


@pytest.mark.parametrize(("t", "s"), [(0.9, 0.2), (0.2, 0.9)])
def test_flow_map_is_the_limit_of_runge_kutta(t, s):
    world, z = gaussian(), jnp.array(Z)
    u = jax.jit(lambda z, t: exact.velocity(mixture_of_one(), z, schedules.at(crooked, t)))
    solved = exact.flow_map(world, z, schedules.at(crooked, t), schedules.at(crooked, s))
    errors = [np.max(np.abs(runge_kutta(u, z, t, s, steps) - solved)) for steps in (8, 16, 32, 64, 128)]
    orders = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert abs(orders[-1] - 4) < 0.15, orders
    assert errors[-1] < 1e-7


def mixture_of_one():
    return exact.Mixture(jnp.ones(1), jnp.array([MEAN]), jnp.array([COV]))


def test_flow_map_keeps_the_marginals():
    world, p, q = gaussian(), schedules.at(crooked, 0.9), schedules.at(crooked, 0.2)
    jacobian = jax.jacfwd(lambda z: exact.flow_map(world, z, p, q))(jnp.array(Z))
    carried = jacobian @ (p.alpha**2 * np.array(COV) + p.sigma**2 * np.eye(2)) @ jacobian.T
    np.testing.assert_allclose(carried, q.alpha**2 * np.array(COV) + q.sigma**2 * np.eye(2), rtol=1e-12)


def test_reverse_kernel_is_the_conditional_of_the_joint_gaussian():
    world, z, p, q = gaussian(), jnp.array(Z), schedules.at(crooked, 0.8), schedules.at(crooked, 0.3)
    mean, cov, scale = np.array(MEAN), np.array(COV), p.alpha / q.alpha
    at_s, at_t = q.alpha**2 * cov + q.sigma**2 * np.eye(2), p.alpha**2 * cov + p.sigma**2 * np.eye(2)
    gain = scale * at_s @ np.linalg.inv(at_t)
    got_mean, got_cov = exact.reverse_kernel(world, z, p, q)
    np.testing.assert_allclose(got_mean, q.alpha * mean + gain @ (np.array(Z) - p.alpha * mean), rtol=1e-12)
    np.testing.assert_allclose(got_cov, at_s - scale * gain @ at_s, rtol=1e-11, atol=1e-13)


def test_reverse_kernel_has_the_moments_of_bayes_for_a_mixture():
    world, z, p, q = mixture(), jnp.array(Z), schedules.at(crooked, 0.8), schedules.at(crooked, 0.3)
    scale = p.alpha / q.alpha
    step = point(scale, jnp.sqrt(p.sigma**2 - scale**2 * q.sigma**2))
    _, mean, cov = bayes(exact.marginal(world, q), np.array(Z), step)
    got_mean, got_cov = exact.reverse_kernel(world, z, p, q)
    np.testing.assert_allclose(got_mean, mean, atol=1e-11)
    np.testing.assert_allclose(got_cov, cov, atol=1e-11)


@SMOOTH
def test_marginal_is_a_world_read_without_noise(world):
    world, z, p = world(), jnp.array(Z), schedules.at(crooked, 0.6)
    here = exact.marginal(world, p)
    for verb in (exact.log_prob, exact.score):
        np.testing.assert_allclose(verb(here, z, point(1.0, 0.0)), verb(world, z, p), rtol=1e-12)


@WORLDS
def test_denoiser_reads_the_schedule_at_t(world):
    world, z = world(), jnp.array(Z)
    denoise = exact.denoiser(world, schedules.Flow())
    np.testing.assert_array_equal(denoise(z, 0.3), exact.denoise(world, z, schedules.at(schedules.Flow(), 0.3)))


@WORLDS
def test_draws_have_the_mean_and_covariance_of_the_world(world):
    """Five standard errors, at a fixed key."""
    world, n, prior = world(), 20_000, point(0.0, 1.0)
    x0 = np.asarray(exact.draw(jax.random.key(7), world, n))
    assert x0.shape == (n, 2)
    cov = np.asarray(exact.posterior_cov(world, jnp.zeros(2), prior))
    mean = np.asarray(exact.denoise(world, jnp.zeros(2), prior))
    assert np.all(np.abs(x0.mean(0) - mean) <= 5 * np.sqrt(np.diag(cov) / n))
    products = (x0 - mean)[:, :, None] * (x0 - mean)[:, None, :]
    assert np.all(np.abs(products.mean(0) - cov) <= 5 * products.std(0) / math.sqrt(n))


def test_draws_of_points_are_those_points_each_as_often():
    """Bit for bit, first and last included; five standard deviations of a binomial count."""
    world, n = empirical(5), 20_000
    x0 = np.asarray(exact.draw(jax.random.key(7), world, n))
    same = np.all(x0[:, None] == np.asarray(world.points)[None], axis=2)
    assert np.all(same.sum(1) == 1)
    assert np.all(np.abs(same.sum(0) - n / 5) <= 5 * math.sqrt(n * 0.2 * 0.8))


def test_draws_of_what_does_not_spread_are_its_means():
    means, flat = jnp.array(MEANS), jnp.zeros((2, 2, 2))
    assert np.array_equal(exact.draw(jax.random.key(7), exact.Gaussian(means[0], flat[0]), 3), means[jnp.zeros(3, int)])
    x0 = np.asarray(exact.draw(jax.random.key(7), exact.Mixture(jnp.array(WEIGHTS), means, flat), 50))
    assert np.all(np.any(np.all(x0[:, None] == np.asarray(means), axis=2), axis=1)) and len(np.unique(x0, axis=0)) == 2


def test_draws_follow_their_key_and_do_not_repeat():
    for world in (gaussian(), mixture()):
        x0 = np.asarray(exact.draw(jax.random.key(7), world, 50))
        assert len(np.unique(x0.round(12), axis=0)) == 50
        assert np.array_equal(x0, exact.draw(jax.random.key(7), world, 50))
        assert not np.isin(x0, exact.draw(jax.random.key(8), world, 50)).any()


# The empirical world


def naive(points, z, alpha, sigma):
    """log p(z), E[x0 | z] and Cov(x0 | z) of n point masses: numpy, float64, all at once."""
    points, z = np.asarray(points, np.float64).reshape(len(points), -1), np.asarray(z, np.float64).reshape(-1)
    logits = -np.sum((z - alpha * points) ** 2, 1) / (2 * sigma**2)
    r = np.exp(logits - logits.max())
    log_prob = logits.max() + np.log(r.mean()) - len(z) / 2 * np.log(2 * np.pi * sigma**2)
    mean = r @ points / r.sum()
    return log_prob, mean, (points - mean).T @ ((points - mean) * r[:, None]) / r.sum()


@pytest.mark.parametrize(
    ("block", "event"), [(None, (3,)), (1, (2, 3)), (5, ()), (8, (2, 3)), (15, (3,)), (37, (3,)), (100, (3,))]
)
def test_blocks_do_not_show(block, event):
    world, p = empirical(37, event, block), point(0.8, 0.7)
    z = jnp.asarray(np.random.default_rng(1).normal(size=event))
    log_prob, mean, cov = naive(world.points, z, 0.8, 0.7)
    np.testing.assert_allclose(exact.log_prob(world, z, p), log_prob, rtol=1e-13)
    np.testing.assert_allclose(exact.denoise(world, z, p), mean.reshape(event), rtol=1e-12)
    np.testing.assert_allclose(exact.posterior_cov(world, z, p), cov, rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(exact.posterior_trace(world, z, p), np.trace(cov), rtol=1e-12)
    np.testing.assert_allclose(exact.score(world, z, p), jax.grad(exact.log_prob, 1)(world, z, p), rtol=1e-11)


def test_points_are_a_mixture_of_tiny_covariances():
    world, z, p = empirical(), jnp.array(Z), point(0.9, 0.6)
    tiny = exact.Mixture(jnp.full(37, 1 / 37), world.points, jnp.tile(1e-12 * jnp.eye(2), (37, 1, 1)))
    for verb in VERBS:
        np.testing.assert_allclose(verb(world, z, p), verb(tiny, z, p), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("log_snr", [-40, -10, 0, 10, 16, 25, 40])
def test_2000_points_in_64_dimensions_in_float32_agree_with_float64(log_snr):
    rng = np.random.default_rng(3)
    points = np.repeat(rng.normal(2.0, 1.0, (500, 64)), 4, axis=0).astype(np.float32)
    sigma, alpha = math.sqrt(1 / (1 + math.exp(log_snr))), math.sqrt(1 / (1 + math.exp(-log_snr)))
    points += (sigma / alpha * 0.3 * rng.normal(size=points.shape)).astype(np.float32)  # neighbours that compete
    sigma, alpha = np.float32(sigma), np.float32(alpha)
    z = (alpha * points[1] + sigma * rng.normal(size=64)).astype(np.float32)
    log_prob, mean, cov = naive(points, z, np.float64(alpha), np.float64(sigma))
    with jax.enable_x64(False):
        world, p = exact.Empirical(jnp.asarray(points), block=300), point(alpha, sigma, dtype=jnp.float32)
        z = jnp.asarray(z)
        got = [exact.log_prob(world, z, p), exact.denoise(world, z, p), exact.posterior_cov(world, z, p)]
        assert all(value.dtype == jnp.float32 for value in got)
        # two roundings of z - alpha x stand against sigma: what float32 data themselves allow
        rounding = 1e-7 * np.max(np.abs(z)) / sigma
        assert abs(got[0] - log_prob) <= 1e-5 * abs(log_prob) + 64 * rounding * (1 + rounding)
        np.testing.assert_allclose(got[1], mean, rtol=1e-6, atol=np.max(np.abs(cov)) ** 0.5 * (1e-5 + rounding) + 1e-6)
        np.testing.assert_allclose(got[2], cov, atol=(1e-4 + rounding) * np.max(np.abs(cov)) + 1e-12)


def test_noise_of_zero_leaves_the_nearest_point():
    world = exact.Empirical(jnp.array([[0.0, 0.0], [1.0, 1.0], [3.0, 0.0]]))
    z, p = jnp.array([1.2, 0.8]), point(1.0, 0.0)
    np.testing.assert_array_equal(exact.denoise(world, z, p), [1.0, 1.0])
    np.testing.assert_array_equal(exact.posterior_cov(world, z, p), np.zeros((2, 2)))
    np.testing.assert_array_equal(jax.jacrev(exact.denoise, 1)(world, z, p), np.zeros((2, 2)))
    np.testing.assert_array_equal(exact.denoise(world, jnp.array([0.5, 0.5]), p), [0.5, 0.5])  # two are nearest


def compiled(verb, *, batch=None, n=50_000, dim=3_072):
    shape = (dim,) if batch is None else (batch, dim)
    verb = verb if batch is None else jax.vmap(verb, (None, 0, None))
    world = exact.Empirical(jax.ShapeDtypeStruct((n, dim), jnp.float32))
    p = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((), jnp.float32), point(1.0, 1.0))
    return jax.jit(verb).lower(world, jax.ShapeDtypeStruct(shape, jnp.float32), p).compile().memory_analysis()


@pytest.mark.parametrize("verb", [exact.denoise, exact.log_prob, exact.divergence])
@pytest.mark.parametrize("batch", [None, 8])
def test_50000_points_in_3072_dimensions_take_a_block_of_memory(verb, batch):
    with jax.enable_x64(False):
        assert compiled(verb, batch=batch).temp_size_in_bytes < 64 * 2**20


@pytest.mark.parametrize(
    ("points", "blocks"), [((50_000, 3_072), 50_000 // 341), ((7, 2**21), 7), ((2**20 + 5,), 1), ((3 * 2**20,), 3)]
)
def test_a_block_that_is_left_out_holds_a_million_numbers_and_one_point_at_least(points, blocks):
    """Read off the loop itself: the first block is its start, and what is over comes after it."""
    world = exact.Empirical(jax.ShapeDtypeStruct(points, jnp.float32))
    z, p = jax.ShapeDtypeStruct(points[1:], jnp.float32), point(1.0, 1.0, dtype=jnp.float32)
    inner = jax.make_jaxpr(exact.denoise)(world, z, p).jaxpr.eqns[0].params["jaxpr"].jaxpr
    lengths = [eqn.params["length"] for eqn in inner.eqns if eqn.primitive.name == "scan"]
    assert lengths == ([blocks - 1] if blocks > 1 else [])


def test_one_number_is_a_world():
    world, p = exact.Empirical(jnp.array([3.0])), point(1.0, 1.0)
    assert exact.denoise(world, jnp.array(0.0), p) == 3.0
    np.testing.assert_allclose(exact.score(world, jnp.array(0.0), p), 3.0, rtol=1e-15)


# Corners


@SMOOTH
def test_no_data_leaves_the_prior(world):
    world, z, p = world(), jnp.array(Z), point(0.0, 1.3)
    weights, means, covs = components(world)
    mean = weights @ means
    cov = np.einsum("k,kij->ij", weights, covs) + (means - mean).T @ ((means - mean) * weights[:, None])
    np.testing.assert_allclose(exact.denoise(world, z, p), mean, rtol=1e-13)
    np.testing.assert_allclose(exact.posterior_cov(world, z, p), cov, rtol=1e-13)
    np.testing.assert_allclose(exact.score(world, z, p), -np.array(Z) / 1.3**2, rtol=1e-13)
    velocity = jax.jacfwd(lambda z: exact.velocity(world, z, p))(z)
    np.testing.assert_allclose(velocity, 1.1 / 1.3 * np.eye(2), rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(exact.divergence(world, z, p), 2 * 1.1 / 1.3, rtol=1e-13)


@SMOOTH
def test_no_noise_leaves_the_sample(world):
    world, z, p = world(), jnp.array(Z), point(0.8, 0.0)
    np.testing.assert_allclose(exact.denoise(world, z, p), np.array(Z) / 0.8, rtol=1e-13)
    np.testing.assert_allclose(exact.posterior_cov(world, z, p), np.zeros((2, 2)), atol=1e-15)
    np.testing.assert_allclose(exact.velocity(world, z, p), -0.7 * np.array(Z) / 0.8, rtol=1e-13)
    np.testing.assert_allclose(exact.divergence(world, z, p), -0.7 / 0.8 * 2, rtol=1e-13)
    np.testing.assert_allclose(exact.score(world, z, p), jax.grad(log_density, 1)(world, z, p), rtol=1e-12)


SINGULAR = {
    "plane": ([0.5, -1.0, 0.2], [[1.0, 0.0, 0.0], [0.0, 0.3, 0.0], [0.0, 0.0, 0.0]]),
    "point": ([0.5, -1.0, 0.2], np.zeros((3, 3)).tolist()),
}


@pytest.mark.parametrize("name", SINGULAR)
@pytest.mark.parametrize("exploding", [False, True])
@pytest.mark.parametrize("log_snr", [-40.0, -17.0, 0.0, 17.0, 40.0])
def test_singular_gaussians_in_float32_agree_with_float64(name, exploding, log_snr):
    mean, cov = (np.asarray(value, np.float32) for value in SINGULAR[name])
    alpha, sigma = (1.0, math.exp(-log_snr / 2)) if exploding else map(float, schedules.variance_preserving(log_snr))
    alpha, sigma = np.float32(alpha), np.float32(sigma)
    unit = np.random.default_rng(5).normal(size=3)
    variance = np.diag(cov).astype(np.float64)
    std = np.sqrt(np.float64(alpha) ** 2 * variance + np.float64(sigma) ** 2)
    z = (np.float64(alpha) * mean + std * unit).astype(np.float32)
    unit = (z.astype(np.float64) - np.float64(alpha) * mean) / std
    rounding = 4e-7 * (1 + np.abs(z) / std)  # of unit, from rounding alpha mean
    with jax.enable_x64(False):
        world = exact.Gaussian(jnp.asarray(mean), jnp.asarray(cov))
        p, z = point(alpha, sigma, dtype=jnp.float32), jnp.asarray(z)
        score = exact.score(world, z, p)
        assert np.all(np.abs(score + unit / std) <= (rounding + 1e-5 * np.abs(unit)) / std)
        x0 = mean + np.float64(alpha) * variance / std * unit
        assert np.all(np.abs(exact.denoise(world, z, p) - x0) <= 1e-6 * (1 + np.abs(x0)) + variance / std * rounding)
        cov = variance * (np.float64(sigma) / std) ** 2
        np.testing.assert_allclose(np.diag(exact.posterior_cov(world, z, p)), cov, rtol=1e-5)
        slopes = -0.7 * np.sum(alpha * variance / std**2) + 1.1 * np.sum(np.float64(sigma) / std**2)
        np.testing.assert_allclose(exact.divergence(world, z, p), slopes, rtol=1e-4)
        assert np.isfinite(exact.log_prob(world, z, p))
        assert np.all(np.isfinite(jax.grad(exact.log_prob, 1)(world, z, p)))
        assert np.all(np.isfinite(exact.velocity(world, z, p)))


@WORLDS
@pytest.mark.parametrize("log_snr", [-40.0, 40.0])
def test_all_is_finite_at_the_corners_in_float32(world, log_snr):
    with jax.enable_x64(False):
        p = schedules.at(schedules.Cosine(), schedules.Cosine().time_at(log_snr))
        assert p.alpha.dtype == jnp.float32
        world = world()
        z = p.alpha * jnp.asarray(exact.draw(jax.random.key(0), world, 1)[0]) + p.sigma * jnp.array([0.3, -1.2])
        for verb in VERBS:
            assert np.all(np.isfinite(jax.jit(verb)(world, z, p))), verb
            assert np.all(np.isfinite(jax.jit(jax.jacrev(verb, 1))(world, z, p))), verb


@WORLDS
def test_far_from_every_mode_the_logarithms_hold(world, precision):
    with jax.enable_x64(precision == "float64"):
        world, p = world(), point(0.9, 0.05, dtype=jnp.dtype(precision))
        z = jnp.array([300.0, -500.0])
        answer = exact.posterior(world, z, p)
        assert all(np.all(np.isfinite(value)) for value in answer)
        np.testing.assert_allclose(answer.score, jax.grad(exact.log_prob, 1)(world, z, p), rtol=1e-4)
        if isinstance(world, exact.Empirical):
            distance = np.sum((np.asarray(z, np.float64) - 0.9 * np.asarray(world.points, np.float64)) ** 2, 1)
            np.testing.assert_allclose(answer.x0, world.points[np.argmin(distance)], rtol=1e-6)


@WORLDS
def test_verbs_are_jitted_vmapped_and_differentiated(world):
    world, p = world(), schedules.at(crooked, 0.5)
    zs = jnp.asarray(np.random.default_rng(2).normal(size=(5, 2)))
    for verb in VERBS:
        one, many = jax.jit(verb), jax.jit(jax.vmap(verb, (None, 0, None)))(world, zs, p)
        np.testing.assert_allclose(many, np.stack([one(world, z, p) for z in zs]), rtol=1e-11, atol=1e-13)
    times = jnp.linspace(0.1, 0.9, 4)
    many = jax.vmap(lambda t: exact.denoise(world, zs[0], schedules.at(crooked, t)))(times)
    np.testing.assert_allclose(many[2], exact.denoise(world, zs[0], schedules.at(crooked, times[2])), rtol=1e-12)
    slope = jax.grad(lambda t: jnp.sum(exact.denoise(world, zs[0], schedules.at(crooked, t))))(0.5)
    h = 1e-6
    ends = [jnp.sum(exact.denoise(world, zs[0], schedules.at(crooked, 0.5 + d))) for d in (h, -h)]
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / (2 * h), rtol=1e-7)


def test_worlds_are_pytrees_that_print_as_their_constructor():
    assert repr(gaussian()) == "Gaussian(mean=array([0.5, -1.0]), cov=array([[0.6, 0.3], [0.3, 0.4]]))"
    assert repr(empirical()) == "Empirical(points=<float64[37, 2]>, block=8)" or "array(" in repr(empirical())
    gradient = jax.jacrev(lambda points: exact.log_prob(exact.Empirical(points), jnp.array(Z), point(0.8, 0.7)))
    assert gradient(empirical().points).shape == (37, 2)
    worlds = jax.vmap(lambda mean: exact.Gaussian(mean, jnp.array(COV)))(jnp.array(MEANS))
    together = jax.vmap(exact.denoise, (0, None, None))(worlds, jnp.array(Z), point(0.8, 0.7))
    alone = exact.denoise(exact.Gaussian(jnp.array(MEANS[1]), jnp.array(COV)), jnp.array(Z), point(0.8, 0.7))
    np.testing.assert_allclose(together[1], alone, rtol=1e-13)


def test_a_stack_of_worlds_is_written_as_one_noun():
    """Three Gaussians, and three mixtures of two numbers: what `jax.vmap` takes apart again."""
    p, z = point(0.8, 0.7), jnp.array([0.3])
    means, covs = jnp.array([[0.5], [-1.0], [2.0]]), jnp.array([[[0.6]], [[0.3]], [[0.0]]])
    each = [exact.Gaussian(mean, cov) for mean, cov in zip(means, covs, strict=True)]
    stack = jax.vmap(exact.score, (0, None, None))(exact.Gaussian(means, covs), z, p)
    np.testing.assert_allclose(stack, jnp.stack([exact.score(one, z, p) for one in each]), rtol=1e-13)

    weights = jnp.array([[0.3, 0.7], [0.5, 0.5], [0.9, 0.1]])
    means, covs = jnp.stack([means, -means], axis=1), jnp.stack([covs, 2 * covs], axis=1)
    each = [exact.Mixture(*leaves) for leaves in zip(weights, means, covs, strict=True)]
    stack = jax.vmap(exact.score, (0, None, None))(exact.Mixture(weights, means, covs), z, p)
    np.testing.assert_allclose(stack, jnp.stack([exact.score(one, z, p) for one in each]), rtol=1e-13)


# Bad input

eye, zero = np.eye(2), np.zeros(2)
BAD = {
    "mean and cov must be": lambda: exact.Gaussian(zero, np.eye(3)),
    "cov must be symmetric": lambda: exact.Gaussian(zero, np.array([[1.0, 0.5], [0.0, 1.0]])),
    "cov must be symmetric and positive": lambda: exact.Gaussian(zero, np.diag([1.0, -0.1])),
    "cov must be symmetric and positive semi": lambda: exact.Gaussian(zero, eye * np.nan),
    "weights, means and covs must be": lambda: exact.Mixture(np.ones(1), np.zeros((2, 2)), np.stack([eye, eye])),
    "weights must be positive": lambda: exact.Mixture(np.array([1.5, -0.5]), np.zeros((2, 2)), np.stack([eye, eye])),
    "must be positive and sum": lambda: exact.Mixture(np.array([1.0, 0.0]), np.zeros((2, 2)), np.stack([eye, eye])),
    "be positive and sum to one": lambda: exact.Mixture(
        np.array([[0.5, 0.5], [0.5, 0.6]]), np.zeros((2, 2, 2)), np.stack([np.stack([eye, eye])] * 2)
    ),
    "and sum to one": lambda: exact.Mixture(np.array([0.5, 0.6]), np.zeros((2, 2)), np.stack([eye, eye])),
    "covs must be symmetric": lambda: exact.Mixture(np.full(2, 0.5), np.zeros((2, 2)), np.stack([eye, -eye])),
    "points must be": lambda: exact.Empirical(np.zeros((0, 3))),
    "block must be positive": lambda: exact.Empirical(np.zeros((4, 3)), block=0),
    r"event shape .*z=\(3,\), event=\(2,\)": lambda: exact.score(gaussian(), jnp.zeros(3), point(1.0, 1.0)),
    "event shape": lambda: exact.score(empirical(), jnp.zeros((5, 2)), point(1.0, 1.0)),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()


SLACK = {"float64": 2.0**-48, "float32": 2.0**-19}
"""8 d ulp for d = 2, of numbers of size one: what rounding may leave of symmetry, of a sign and of a sum."""


def one_of_two(cov, weights=(0.5, 0.5)):
    covs = np.stack([cov, np.eye(2, dtype=cov.dtype)])
    return exact.Mixture(np.asarray(weights, cov.dtype), np.zeros((2, 2), cov.dtype), covs)


@pytest.mark.parametrize("dtype", SLACK)
@pytest.mark.parametrize("size", [4.0, 2.0**-10])
@pytest.mark.parametrize("noun", [lambda cov: exact.Gaussian(np.zeros(2, cov.dtype), cov), one_of_two])
def test_rounding_of_a_covariance_is_forgiven_and_no_more(noun, size, dtype):
    if noun is one_of_two:
        size = max(size, 1.0)  # the largest entry of all of them counts
    lean = lambda slack: size * np.array([[1.0, 0.0625 + slack], [0.0625, 0.25]])  # noqa: E731
    sink = lambda slack: size * np.array([[1.0, 0.0], [0.0, -slack]])  # noqa: E731
    for cov, more in ((lean, 1 / 16), (sink, 2.0**-21)):
        noun(cov(SLACK[dtype]).astype(dtype))
        with pytest.raises(ValueError, match=r"symmetric and positive semi-definite"):
            noun(cov(SLACK[dtype] * (1 + more)).astype(dtype))


@pytest.mark.parametrize("dtype", SLACK)
@pytest.mark.parametrize("sign", [1, -1])
def test_rounding_of_weights_is_forgiven_and_no_more(sign, dtype):
    one_of_two(np.eye(2, dtype=dtype), [0.5, 0.5 + sign * SLACK[dtype]])
    with pytest.raises(ValueError, match="sum to one"):
        one_of_two(np.eye(2, dtype=dtype), [0.5, 0.5 + sign * SLACK[dtype] * (1 + 1 / 16)])


def test_what_is_no_world_is_refused():
    z, p = jnp.zeros(2), point(1.0, 1.0)
    for verb in (exact.log_prob, exact.posterior_cov, exact.posterior_trace, exact.divergence):
        with pytest.raises(TypeError, match="a world is"):
            verb("two moons", z, p)
    with pytest.raises(TypeError, match="a world is"):
        exact.draw(jax.random.key(0), "two moons", 3)
    with pytest.raises(TypeError, match="flow map"):
        exact.flow_map(mixture(), z, p, p)
    with pytest.raises(TypeError, match="marginals"):
        exact.marginal(empirical(), p)
