"""Chapter 3, closed forms: worlds whose densities, denoisers and posterior covariances are known.

    q(z) = sum_k w_k N(z; alpha m_k, alpha^2 C_k + sigma^2 I)
    x0 | k, z ~ N(M_k^{-1} (sigma^2 P_k m_k + alpha z), sigma^2 M_k^{-1}),     P = C^{-1},  M = alpha^2 I + sigma^2 P
    E[x0 | z] = (z + sigma^2 grad log q) / alpha,     Cov(x0 | z) = (sigma^2/alpha^2)(I + sigma^2 Hess log q)

The anchors are Bayes' rule for 2 x 2 matrices and derivatives of densities written here: they import no world.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen import exact, paths, predictions
from diffeq_gen.schedules import at
from diffeq_gen.theorems.domains import empiricals, gaussians, mixtures, schedules, smooth_schedules, times, vectors
from diffeq_gen.theorems.registry import theorem
from diffeq_gen.types import Point

__all__: list[str] = []


class _Component(NamedTuple):
    """Of one Gaussian component given z: its log-density in nats, what it says of x0 and eps, and its posterior covariance."""

    log_prob: jax.Array
    x0: jax.Array
    eps: jax.Array
    cov: jax.Array


def _inverse(matrix):
    """The inverse of a 2 x 2 matrix, by cofactors; nothing over- or underflows that the result does not."""
    scale = jnp.trace(matrix) / 2
    (a, b), (c, d) = matrix / scale
    return jnp.array([[d, -b], [-c, a]]) / (a * d - b * c) / scale


def _log_normal(x, mean, cov):
    """log N(x; mean, cov) in two dimensions."""
    scale = jnp.trace(cov) / 2
    (a, b), (c, d) = cov / scale
    rest = x - mean
    return -rest @ _inverse(cov) @ rest / 2 - jnp.log(a * d - b * c) / 2 - jnp.log(scale) - jnp.log(2 * jnp.pi)


def _bayes(mean, cov, z, alpha, sigma) -> _Component:
    """x0 ~ N(mean, cov) and z given x0 ~ N(alpha x0, sigma^2 I): precisions add."""
    eye, total = jnp.eye(2, dtype=z.dtype), alpha**2 + sigma**2
    precision = _inverse(cov)
    spread = _inverse(alpha**2 / total * eye + sigma**2 / total * precision)
    x0 = spread @ (sigma**2 / total * (precision @ mean) + alpha / total * z)
    eps = sigma / total * (spread @ precision @ (z - alpha * mean))
    return _Component(_log_normal(z, alpha * mean, alpha**2 * cov + sigma**2 * eye), x0, eps, sigma**2 / total * spread)


def _together(weights, each: _Component) -> _Component:
    """The law of total expectation and of total covariance, the latter over pairs of components: nothing is subtracted twice."""
    joint = jnp.log(weights) + each.log_prob
    r = jax.nn.softmax(joint)
    apart = each.x0[:, None, :] - each.x0[None, :, :]
    between = jnp.einsum("j,k,jka,jkb->ab", r, r, apart, apart) / 2
    cov = jnp.einsum("k,kab->ab", r, each.cov) + between
    return _Component(jax.nn.logsumexp(joint), r @ each.x0, r @ each.eps, cov)


def _known(world, z, alpha, sigma) -> _Component:
    """What Bayes' rule says of any of the three worlds, in two dimensions."""
    if isinstance(world, exact.Gaussian):
        return _bayes(world.mean, world.cov, z, alpha, sigma)
    if isinstance(world, exact.Mixture):
        each = jax.vmap(lambda mean, cov: _bayes(mean, cov, z, alpha, sigma))(world.means, world.covs)
        return _together(world.weights, each)

    def point(x0):
        cov = sigma**2 * jnp.eye(2, dtype=z.dtype)
        return _Component(_log_normal(z, alpha * x0, cov), x0, (z - alpha * x0) / sigma, jnp.zeros_like(cov))

    n = len(world.points)
    return _together(jnp.full((n,), 1 / n, z.dtype), jax.vmap(point)(world.points))


def _brief(world, z, p: Point):
    """What `exact` says of a world at z, each thing once."""
    return (
        *exact.posterior(world, z, p), exact.posterior_cov(world, z, p), exact.posterior_trace(world, z, p),
        exact.divergence(world, z, p),
    )  # fmt: skip


def _verbs(world, z, p: Point):
    """Everything that `exact` says of any world at z."""
    return (
        exact.log_prob(world, z, p), exact.denoise(world, z, p), exact.score(world, z, p), exact.posterior_cov(world, z, p),
        exact.posterior_trace(world, z, p), exact.divergence(world, z, p), exact.velocity(world, z, p),
    )  # fmt: skip


def _anchors(schedule, world, z, t):
    """The same by Bayes' rule, with slopes by automatic differentiation."""
    (alpha, sigma), (alpha_dot, sigma_dot) = jax.jvp(schedule, (t,), (jnp.ones_like(t),))

    def velocity(z):
        posterior = _known(world, z, alpha, sigma)
        return alpha_dot * posterior.x0 + sigma_dot * posterior.eps

    posterior = _known(world, z, alpha, sigma)
    return (
        posterior.log_prob, posterior.x0, -posterior.eps / sigma, posterior.cov,
        jnp.trace(posterior.cov), jnp.trace(jax.jacfwd(velocity)(z)), velocity(z),
    )  # fmt: skip


def _joint_law(mean, cov, alpha, sigma):
    """Mean and covariance of z = (alpha I, sigma I)(x0, eps), from those of the pair."""
    both = jnp.block([[cov, jnp.zeros_like(cov)], [jnp.zeros_like(cov), jnp.eye(2, dtype=cov.dtype)]])
    mix = jnp.concatenate([alpha * jnp.eye(2, dtype=cov.dtype), sigma * jnp.eye(2, dtype=cov.dtype)], axis=1)
    return mix[:, :2] @ mean, mix @ both @ mix.T


@theorem(
    source="normal correlation, e.g. Bishop 2006, Sec. 2.3.3; Gao et al. 2024, plots",
    cases=500,
    schedule=schedules, world=gaussians(2), x0=vectors(2), eps=vectors(2), t=times, solid=gaussians(3), y=vectors(3),
)  # fmt: skip
def gaussian_denoiser(schedule, world, x0, eps, t, solid, y):
    """Of N(m, C): q = N(alpha m, alpha^2 C + sigma^2 I), E[x0 | z] = m + alpha C (alpha^2 C + sigma^2 I)^{-1} (z - alpha m) and
    Cov(x0 | z) = (C^{-1} + alpha^2/sigma^2 I)^{-1}, from which score, velocity and divergence follow."""
    p = at(schedule, t)
    z, law = paths.perturb(x0, eps, p), exact.marginal(world, p)
    left = *_verbs(world, z, p), exact.denoiser(world, schedule)(z, t), (law.mean, law.cov)
    right = _anchors(schedule, world, z, t)
    solved, given = _solved_in_three(solid, p.alpha * solid.mean + y * jnp.hypot(p.alpha, p.sigma), p)
    return (*left, solved), (*right, right[1], _joint_law(world.mean, world.cov, p.alpha, p.sigma), given)


def _solved_in_three(world, z, p: Point):
    """V score = alpha m - z, V x0_hat = sigma^2 m + alpha C z, V Cov(x0 | z) = sigma^2 C: in two dimensions the matrix of
    eigenvectors may be its own transpose."""
    noisy = p.alpha**2 * world.cov + p.sigma**2 * jnp.eye(3, dtype=z.dtype)
    away = z - p.alpha * world.mean
    solved = (
        noisy @ exact.score(world, z, p),
        noisy @ exact.denoise(world, z, p),
        noisy @ exact.posterior_cov(world, z, p),
    )
    return solved, (-away, p.sigma**2 * world.mean + p.alpha * world.cov @ z, p.sigma**2 * world.cov)


@gaussian_denoiser.near_miss
def data_taken_as_centred(schedule, world, x0, eps, t, solid, y):
    """E[x0 | z] = alpha C (alpha^2 C + sigma^2 I)^{-1} z: right for data of mean zero."""
    p = at(schedule, t)
    z = paths.perturb(x0, eps, p)
    cov = p.alpha**2 * world.cov + p.sigma**2 * jnp.eye(2, dtype=z.dtype)
    return exact.denoise(world, z, p), p.alpha * world.cov @ _inverse(cov) @ z


@gaussian_denoiser.near_miss
def posterior_of_a_flat_prior(schedule, world, x0, eps, t, solid, y):
    """Cov(x0 | z) = (sigma/alpha)^2 I: the noise alone, as if nothing were known of the data."""
    p = at(schedule, t)
    z = paths.perturb(x0, eps, p)
    return exact.posterior_cov(world, z, p), (p.sigma / p.alpha) ** 2 * jnp.eye(2, dtype=z.dtype)


@theorem(
    source="total expectation and covariance; Karras et al. 2024, 2-D toy example of the released code",
    cases=200,
    schedule=schedules, world=mixtures(2, 3), x0=vectors(2), eps=vectors(2), t=times,
)  # fmt: skip
def gmm_denoiser(schedule, world, x0, eps, t):
    """Of a mixture: E[x0 | z] = sum_k r_k x_k and Cov(x0 | z) = sum_k r_k (S_k + (x_k - E)(x_k - E)^T), with r_k = P(k | z),
    and x_k, S_k those of component k; score, velocity and divergence alike."""
    p = at(schedule, t)
    z, law = paths.perturb(x0, eps, p), exact.marginal(world, p)
    left = *_brief(world, z, p), (law.weights, law.means, law.covs)
    right = _anchors(schedule, world, z, t)[:-1]
    laws = jax.vmap(lambda mean, cov: _joint_law(mean, cov, p.alpha, p.sigma))(world.means, world.covs)
    return left, (*right, (world.weights, *laws))


@gmm_denoiser.near_miss
def prior_weights(schedule, world, x0, eps, t):
    """Components averaged with the weights of the prior, whatever z says."""
    p = at(schedule, t)
    z = paths.perturb(x0, eps, p)
    each = jax.vmap(lambda mean, cov: _bayes(mean, cov, z, p.alpha, p.sigma))(world.means, world.covs)
    return exact.denoise(world, z, p), world.weights @ each.x0


@gmm_denoiser.near_miss(witness={"t": 0.9})
def covariance_within_components(schedule, world, x0, eps, t):
    """Cov(x0 | z) = sum_k r_k S_k: without the spread of the x_k."""
    p = at(schedule, t)
    z = paths.perturb(x0, eps, p)
    each = jax.vmap(lambda mean, cov: _bayes(mean, cov, z, p.alpha, p.sigma))(world.means, world.covs)
    r = jax.nn.softmax(jnp.log(world.weights) + each.log_prob)
    return exact.posterior_cov(world, z, p), jnp.einsum("k,kab->ab", r, each.cov)


def _nearest_and_mean(world, z, p: Point):
    """((nearest point, mean of points), bounds on how far E[x0 | z] is from each), z at p: logits apart by so much, no more."""
    energy = jnp.sum((z[None, :] - p.alpha * world.points) ** 2, axis=1) / (2 * p.sigma**2)
    pull = p.alpha / p.sigma**2 * (world.points @ z - p.alpha * jnp.sum(world.points**2, axis=1) / 2)
    best, mean = world.points[jnp.argmin(energy)], jnp.mean(world.points, axis=0)
    reach = jnp.sqrt(jnp.sum((world.points - best[None, :]) ** 2, axis=1))
    wide = jnp.max(jnp.sqrt(jnp.sum((world.points - mean[None, :]) ** 2, axis=1)))
    rest = jnp.sum(jnp.exp(jnp.min(energy) - energy) * reach)
    return (best, mean), (rest, jnp.expm1(jnp.max(pull) - jnp.min(pull)) * wide)


@theorem(
    source="Dieleman 2023, 'Diffusion models are expectation predictors'; De Bortoli 2022 (closed-form score)",
    cases=200,
    schedule=smooth_schedules, world=empiricals(2, 5), x0=vectors(2), eps=vectors(2), t=times,
)  # fmt: skip
def empirical_denoiser(schedule, world, x0, eps, t):
    """Of n points: E[x0 | z] = sum_i r_i x_i with r = softmax(-|z - alpha x_i|^2 / 2 sigma^2), the same in blocks as in one
    piece; it tends to the nearest point as sigma/alpha -> 0 and to the mean of all as alpha/sigma -> 0."""
    p = at(schedule, t)
    z, blocks = paths.perturb(x0, eps, p), exact.Empirical(world.points, block=3)
    right = _anchors(schedule, world, z, t)[:-1]
    clean, noisy = (
        Point(t, alpha, sigma, t, t) for alpha, sigma in ((1 + 0 * t, 1e-6 + 0 * t), (1e-11 + 0 * t, 1 + 0 * t))
    )
    start = world.points[2] + 1e-6 * eps / (1 + jnp.max(jnp.abs(eps)))
    (best, _), (rest, _) = _nearest_and_mean(world, start, clean)
    (_, mean), (_, tilt) = _nearest_and_mean(world, z, noisy)
    limits = exact.denoise(world, start, clean), exact.denoise(world, z, noisy)
    left = *_brief(world, z, p), *exact.posterior(blocks, z, p), exact.posterior_cov(blocks, z, p), *limits
    return left, (*right, *right[:4], best, mean), (*[jnp.zeros_like(t)] * 10, rest, tilt)


@empirical_denoiser.near_miss
def half_of_the_variance(schedule, world, x0, eps, t):
    """Weights exp(-|z - alpha x_i|^2 / sigma^2), without the two."""
    p = at(schedule, t)
    z = paths.perturb(x0, eps, p)
    r = jax.nn.softmax(-jnp.sum((z[None, :] - p.alpha * world.points) ** 2, axis=1) / p.sigma**2)
    return exact.denoise(world, z, p), r @ world.points


@empirical_denoiser.near_miss
def distances_to_the_points_themselves(schedule, world, x0, eps, t):
    """Weights from |z - x_i|, where the points that z comes from are alpha x_i: right where alpha is one."""
    p = at(schedule, t)
    z = paths.perturb(x0, eps, p)
    r = jax.nn.softmax(-jnp.sum((z[None, :] - world.points) ** 2, axis=1) / (2 * p.sigma**2))
    return exact.denoise(world, z, p), r @ world.points


def _log_density(world, z, alpha, sigma):
    """log E[N(z; alpha x0, sigma^2 I)] of any world in two dimensions."""
    return _known(world, z, alpha, sigma).log_prob


@theorem(
    source="Robbins 1956; Miyasawa 1961",
    cases=200,
    schedule=smooth_schedules, world=mixtures(2, 3), one=gaussians(2), few=empiricals(2, 5), x0=vectors(2), eps=vectors(2), t=times,
)  # fmt: skip
def tweedie_first(schedule, world, one, few, x0, eps, t):
    """E[x0 | z] = (z + sigma^2 grad log q)/alpha and E[eps | z] = -sigma grad log q, whatever the law of x0."""
    p = at(schedule, t)
    z, left, right = paths.perturb(x0, eps, p), [], []
    for law in (world, one, few):
        score = jax.grad(lambda z, law=law: _log_density(law, z, p.alpha, p.sigma))(z)
        x0_hat = exact.denoise(law, z, p)
        left += [x0_hat, predictions.convert(exact.score(law, z, p), z, p, predictions.score, predictions.data)]
        left += [predictions.convert(x0_hat, z, p, predictions.data, predictions.noise)]
        right += [(z + p.sigma**2 * score) / p.alpha, (z + p.sigma**2 * score) / p.alpha, -p.sigma * score]
    return left, right


@tweedie_first.near_miss
def tweedie_without_alpha(schedule, world, one, few, x0, eps, t):
    """E[x0 | z] = z + sigma^2 grad log q: the formula of a path with alpha = 1."""
    p = at(schedule, t)
    z = paths.perturb(x0, eps, p)
    return exact.denoise(world, z, p), z + p.sigma**2 * jax.grad(lambda z: _log_density(world, z, p.alpha, p.sigma))(z)


@tweedie_first.near_miss
def downhill(schedule, world, one, few, x0, eps, t):
    """E[x0 | z] = (z - sigma^2 grad log q)/alpha: as if the score pointed at the noise."""
    p = at(schedule, t)
    z = paths.perturb(x0, eps, p)
    score = jax.grad(lambda z: _log_density(world, z, p.alpha, p.sigma))(z)
    return exact.denoise(world, z, p), (z - p.sigma**2 * score) / p.alpha


@theorem(
    source="Hatsell & Nolte 1971; Meng et al. 2021",
    cases=100,
    schedule=smooth_schedules, world=mixtures(2, 3), few=empiricals(2, 5), x0=vectors(2), eps=vectors(2), t=times,
)  # fmt: skip
def tweedie_second(schedule, world, few, x0, eps, t):
    """Cov(x0 | z) = (sigma^2/alpha) d E[x0 | z]/dz = (sigma^2/alpha^2)(I + sigma^2 Hess log q), and div u is the trace of du/dz."""
    p, left, right = at(schedule, t), [], []
    z, eye = paths.perturb(x0, eps, p), jnp.eye(2, dtype=eps.dtype)
    for law in (world, few):
        cov = exact.posterior_cov(law, z, p)
        curved = jax.hessian(lambda z, law=law: _log_density(law, z, p.alpha, p.sigma))(z)
        tilted = jax.jacfwd(lambda z, law=law: exact.denoise(law, z, p))(z)
        spread = jnp.trace(jax.jacfwd(lambda z, law=law: exact.velocity(law, z, p))(z))
        left += [cov, cov, exact.posterior_trace(law, z, p), exact.divergence(law, z, p)]
        by_density, by_slope = (p.sigma / p.alpha) ** 2 * (eye + p.sigma**2 * curved), p.sigma**2 / p.alpha * tilted
        right += [by_density, by_slope, jnp.trace(cov), spread]
    return left, right


@tweedie_second.near_miss
def jacobian_without_alpha(schedule, world, few, x0, eps, t):
    """Cov(x0 | z) = sigma^2 d E[x0 | z]/dz: the formula of a path with alpha = 1."""
    p = at(schedule, t)
    z = paths.perturb(x0, eps, p)
    return exact.posterior_cov(world, z, p), p.sigma**2 * jax.jacfwd(lambda z: exact.denoise(world, z, p))(z)


@tweedie_second.near_miss
def curvature_with_the_other_sign(schedule, world, few, x0, eps, t):
    """Cov(x0 | z) = (sigma^2/alpha^2)(I - sigma^2 Hess log q)."""
    p = at(schedule, t)
    z = paths.perturb(x0, eps, p)
    curved = jax.hessian(lambda z: _log_density(world, z, p.alpha, p.sigma))(z)
    right = (p.sigma / p.alpha) ** 2 * (jnp.eye(2, dtype=z.dtype) - p.sigma**2 * curved)
    return exact.posterior_cov(world, z, p), right


@theorem(
    source="Kadkhodaie & Simoncelli 2021; Gribonval 2011",
    kind="inequality",
    cases=200,
    schedule=smooth_schedules, world=mixtures(2, 3), z=vectors(2), y=vectors(2), t=times,
)  # fmt: skip
def denoiser_is_gradient_psd(schedule, world, z, y, t):
    """d E[x0 | z]/dz is symmetric and positive semi-definite: the denoiser is the gradient of (|z|^2/2 + sigma^2 log q)/alpha,
    which is convex, so (E[x0 | z] - E[x0 | y]) . (z - y) >= 0."""
    p = at(schedule, t)

    def potential(z):
        return (z @ z / 2 + p.sigma**2 * exact.log_prob(world, z, p)) / p.alpha

    denoised = exact.denoise(world, z, p)
    ((a, b), (c, d)), slope = jax.jacfwd(lambda z: exact.denoise(world, z, p))(z), jax.grad(potential)(z)
    zero, rise = jnp.zeros_like(a), (denoised - exact.denoise(world, y, p)) @ (z - y)
    left = jnp.stack([b, c, zero, zero, b * c, zero, *slope, *denoised])
    return left, jnp.stack([c, b, a, d, a * d, rise, *denoised, *slope])


two_bumps = exact.Mixture(
    np.array([0.4, 0.35, 0.25]), np.array([[-2.0, 0.0], [2.0, 0.5], [2.0, -0.5]]), np.stack([np.diag([0.05, 0.03])] * 3)
)


@denoiser_is_gradient_psd.near_miss(witness={"world": two_bumps, "z": np.array([1.0, 0.5])})
def the_denoiser_contracts(schedule, world, z, y, t):
    """|E[x0 | z] - E[x0 | y]| <= |z - y|/alpha, as a proximal map would have it: true of log-concave data, false between modes."""
    one = jnp.ones_like(t)
    p, near = Point(t, one, one, one, one), 0.05 * jnp.tanh(z) * jnp.array([1, 0.1], z.dtype)
    gap = exact.denoise(world, near, p) - exact.denoise(world, -near, p)
    return jnp.sum(gap * gap)[None], 4 * jnp.sum(near * near)[None]
