"""Chapter 3, estimation: what the mean square error, the score and the information of a noisy channel have to do with one another.

    E|y(z) - x0|^2 = E|y(z) - x0_hat|^2 + mmse,        sigma^2 E|score|^2 = d - e^lambda mmse,        dI/dlambda = e^lambda mmse / 2
    -log p(x0) = d log(2 pi e)/2 - 1/2 int [d/(1 + e^-lambda) - E|eps - eps_hat|^2] dlambda

Expectations over z are integrals of total derivatives of the density wherever they can be: there the trapezoidal rule on a
line converges faster than any power, and the difference of two resolutions bounds what is left.
"""

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen import exact, paths
from diffeq_gen.exact import Mixture
from diffeq_gen.schedules import at
from diffeq_gen.theorems.closed_form import _inverse
from diffeq_gen.theorems.domains import (
    empiricals,
    gaussians,
    mixtures,
    probabilities,
    scalars,
    schedules,
    smooth_schedules,
    times,
    vectors,
)
from diffeq_gen.theorems.registry import theorem
from diffeq_gen.types import Point

__all__: list[str] = []

LINE = np.linspace(-1, 1, 513)
moderate = scalars("log-SNR in [-6, 2]", -6.0, 2.0)
near = scalars("numbers of [-3, 3]", -3.0, 3.0)


def _vp(log_snr) -> Point:
    """The variance-preserving point of this log-SNR; its slopes are not read here."""
    alpha, sigma = jnp.sqrt(jax.nn.sigmoid(log_snr)), jnp.sqrt(jax.nn.sigmoid(-log_snr))
    return Point(log_snr, alpha, sigma, alpha, sigma)


def _trapezoid(values, step):
    """(integral, bound): the sum over a fine grid, and twice what it differs from that over every second node."""
    fine, coarse = step * jnp.sum(values, axis=0), 2 * step * jnp.sum(values[::2], axis=0)
    return fine, 2 * jnp.abs(fine - coarse)


def _line(middle, half):
    """Nodes of the shape of a one-dimensional sample, from middle - half to middle + half, and their distance."""
    return middle + half * jnp.asarray(LINE, middle.dtype)[:, None], half * (2 / (len(LINE) - 1))


def _span(world, p: Point):
    """(middle, half) of an interval beyond which the noisy law of a one-dimensional world has less than 1e-17 of its mass."""
    few = isinstance(world, exact.Empirical)
    means, widest = (world.points, jnp.zeros_like(p.alpha)) if few else (world.means, jnp.max(world.covs))
    low, high = jnp.min(means), jnp.max(means)
    reach = 9 * jnp.sqrt(p.alpha**2 * widest + p.sigma**2)
    return p.alpha * (low + high) / 2, p.alpha * (high - low) / 2 + reach


def _expected(world, p: Point, verb):
    """(E[verb(z)], bound) over the noisy law of a one-dimensional world."""
    nodes, step = _line(*_span(world, p))
    return _trapezoid(jax.vmap(lambda z: jnp.exp(exact.log_prob(world, z, p)) * verb(z))(nodes), step)


def _corners_of(world, p: Point):
    """Four equally likely points with the mean and the covariance of the noisy law of a Gaussian in two dimensions, and the
    square root that they were made with: exact for polynomials of degree three."""
    root = jnp.linalg.cholesky(p.alpha**2 * world.cov + p.sigma**2 * jnp.eye(2, dtype=world.cov.dtype))
    signs = jnp.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], world.cov.dtype)
    return p.alpha * world.mean[None, :] + signs @ root.T, root


@theorem(
    source="orthogonality principle, e.g. Kay 1993, Sec. 12.4; Dieleman 2023, 'expectation predictors'",
    cases=300,
    schedule=smooth_schedules, world=gaussians(2), few=empiricals(2, 5), x0=vectors(2), eps=vectors(2), y=vectors(2),
    linear=vectors(2, 2), t=times,
)  # fmt: skip
def mse_orthogonality(schedule, world, few, x0, eps, y, linear, t):
    """E|y(z) - x0|^2 = E|y(z) - x0_hat(z)|^2 + mmse for every estimate y, at each z and so under every positive weighting."""
    p = at(schedule, t)
    z = paths.perturb(x0, eps, p)
    weights = jax.nn.softmax(-jnp.sum((z[None, :] - p.alpha * few.points) ** 2, axis=1) / (2 * p.sigma**2))
    at_z = weights @ jnp.sum((y[None, :] - few.points) ** 2, axis=1)
    error = exact.denoise(few, z, p) - y
    off = linear * p.alpha - jnp.eye(2, dtype=z.dtype)
    bias = y + off @ world.mean
    whole = bias @ bias + jnp.trace(off @ world.cov @ off.T) + p.sigma**2 * jnp.sum(linear**2)
    drawn, _ = _corners_of(world, p)
    apart = jax.vmap(lambda z: y + linear @ z - exact.denoise(world, z, p))(drawn)
    left = error @ error + exact.posterior_trace(few, z, p), jnp.sum(apart**2) / 4 + exact.posterior_trace(world, z, p)
    return left, (at_z, whole)


@mse_orthogonality.near_miss
def nothing_is_left(schedule, world, few, x0, eps, y, linear, t):
    """E|y(z) - x0|^2 = E|y(z) - x0_hat(z)|^2: as if a perfect network had no loss."""
    p = at(schedule, t)
    z = paths.perturb(x0, eps, p)
    weights = jax.nn.softmax(-jnp.sum((z[None, :] - p.alpha * few.points) ** 2, axis=1) / (2 * p.sigma**2))
    error = exact.denoise(few, z, p) - y
    return error @ error, weights @ jnp.sum((y[None, :] - few.points) ** 2, axis=1)


@theorem(
    source="Stein 1981; Hyvarinen 2005",
    kind="in law",
    cases=60,
    schedule=schedules, one=gaussians(2), world=mixtures(1, 3), t=times, log_snr=moderate,
)  # fmt: skip
def stein_identities(schedule, one, world, t, log_snr):
    """E[score] = 0, E[z score^T] = -I and E[score score^T] = -E[Hess log q], whatever the law of x0; and q integrates to one."""
    p = at(schedule, t)
    drawn, root = _corners_of(one, p)
    scores = jax.vmap(lambda z: exact.score(one, z, p))(drawn)
    curved = jax.jacfwd(lambda z: exact.score(one, z, p))(drawn[0])
    eye = jnp.eye(2, dtype=root.dtype)
    left = [1 + jnp.mean(scores @ root, axis=0), drawn.T @ scores / 4, root.T @ (scores.T @ scores) @ root / 4]
    right = [jnp.ones_like(left[0]), -eye, -root.T @ curved @ root]
    o = _vp(log_snr)

    def moments(z):
        score, slope = exact.score(world, z, o)[0], jax.jacfwd(lambda z: exact.score(world, z, o))(z)[0, 0]
        return jnp.stack([jnp.ones_like(score), 1 + o.sigma * score, z[0] * score, 1 + o.sigma**2 * (score**2 + slope)])

    found, bound = _expected(world, o, moments)
    none = jnp.zeros_like(log_snr)
    return (*left, found), (*right, jnp.array([1, 1, -1, 1], found.dtype)), (none, none, none, bound)


@stein_identities.near_miss
def fisher_information_is_inverse_variance(schedule, one, world, t, log_snr):
    """E[score^2] = 1/Var(z): true of Gaussian data only, elsewhere it is larger."""
    o = _vp(log_snr)
    found, bound = _expected(world, o, lambda z: o.sigma**2 * exact.score(world, z, o)[0] ** 2)
    mean = world.weights @ world.means[:, 0]
    spread = world.weights @ (world.covs[:, 0, 0] + (world.means[:, 0] - mean) ** 2)
    return found, o.sigma**2 / (o.alpha**2 * spread + o.sigma**2), bound


@stein_identities.near_miss
def curvature_without_its_sign(schedule, one, world, t, log_snr):
    """E[score score^T] = E[Hess log q]."""
    p = at(schedule, t)
    drawn, root = _corners_of(one, p)
    scores = jax.vmap(lambda z: exact.score(one, z, p))(drawn)
    curved = jax.jacfwd(lambda z: exact.score(one, z, p))(drawn[0])
    return root.T @ (scores.T @ scores) @ root / 4, root.T @ curved @ root


@theorem(
    source="Stam 1959; Guo, Shamai & Verdu 2005",
    kind="in law",
    cases=60,
    schedule=schedules, one=gaussians(2), world=mixtures(1, 3), few=empiricals(1, 5), t=times, log_snr=moderate,
)  # fmt: skip
def fisher_mmse(schedule, one, world, few, t, log_snr):
    """E|score|^2 = (d - (alpha/sigma)^2 mmse)/sigma^2, with mmse = E tr Cov(x0 | z)."""
    p, left, right, more = at(schedule, t), [], [], []
    drawn, _ = _corners_of(one, p)
    scores = jax.vmap(lambda z: exact.score(one, z, p))(drawn)
    mmse = exact.posterior_trace(one, drawn[1], p)
    left.append(p.sigma**2 * jnp.sum(scores**2) / 4 + (p.alpha / p.sigma) ** 2 * mmse)
    right.append(2 * jnp.ones_like(t))
    more.append(jnp.zeros_like(t))
    o = _vp(log_snr)
    for law in (world, few):
        found, bound = _expected(law, o, lambda z, law=law: o.sigma**2 * exact.score(law, z, o)[0] ** 2
                                + (o.alpha / o.sigma) ** 2 * exact.posterior_trace(law, z, o))  # fmt: skip
        left.append(found)
        right.append(jnp.ones_like(found))
        more.append(bound)
    return left, right, more


@fisher_mmse.near_miss
def mmse_in_units_of_data(schedule, one, world, few, t, log_snr):
    """E|score|^2 = (d - mmse)/sigma^2, where mmse is measured in the noise of z."""
    p = at(schedule, t)
    drawn, _ = _corners_of(one, p)
    scores = jax.vmap(lambda z: exact.score(one, z, p))(drawn)
    return p.sigma**2 * jnp.sum(scores**2) / 4, 2 - exact.posterior_trace(one, drawn[1], p)


@fisher_mmse.near_miss
def the_score_of_one_sample(schedule, one, world, few, t, log_snr):
    """E|score|^2 = d/sigma^2: the norm of the conditional score -eps/sigma."""
    p = at(schedule, t)
    drawn, _ = _corners_of(one, p)
    scores = jax.vmap(lambda z: exact.score(one, z, p))(drawn)
    return p.sigma**2 * jnp.sum(scores**2) / 4, 2 * jnp.ones_like(t)


def _log_density(world, z, alpha, sigma):
    """log sum_k w_k N(z; alpha m_k, alpha^2 C_k + sigma^2) of one-dimensional data: imports no world."""
    spread = alpha**2 * world.covs[:, 0, 0] + sigma**2
    away = z - alpha * world.means[:, 0]
    return jax.nn.logsumexp(jnp.log(world.weights) - away**2 / spread / 2 - jnp.log(2 * jnp.pi * spread) / 2)


def _information(world, log_snr):
    """(I(x0; z) in nats, bound) = entropy of z minus that of the noise, nodes held fixed."""
    p = _vp(log_snr)
    nodes, step = jax.lax.stop_gradient(_line(*_span(world, p)))
    logs = jax.vmap(lambda z: _log_density(world, z[0], p.alpha, p.sigma))(nodes)
    entropy, bound = _trapezoid(-jnp.exp(logs) * logs, step)
    return entropy - jnp.log(2 * jnp.pi * jnp.e * p.sigma**2) / 2, bound


@theorem(
    source="Guo, Shamai & Verdu 2005, Theorem 1",
    cases=60,
    one=gaussians(2), world=mixtures(1, 2), log_snr=moderate, high=scalars("log-SNR in [-30, 30]", -30.0, 30.0),
)  # fmt: skip
def i_mmse(one, world, log_snr, high):
    """dI/dlambda = e^lambda mmse/2 = E|eps - eps_hat|^2/2, with I the mutual information of x0 and z in nats."""
    p, o = _vp(log_snr), _vp(high)

    def gaussian_information(log_snr):
        (a, b), (c, d) = jnp.eye(2, dtype=one.cov.dtype) + jnp.exp(log_snr) * one.cov
        return jnp.log(a * d - b * c) / 2

    slope, fine = jax.grad(lambda log_snr: _information(world, log_snr)[0])(log_snr), _information(world, log_snr)[1]
    again = jax.grad(lambda log_snr: jnp.sum(_coarse_information(world, log_snr)))(log_snr)
    mmse, rough = _expected(world, p, lambda z: jnp.exp(log_snr) * exact.posterior_trace(world, z, p))
    left_over, rougher = _expected(world, p, lambda z: 1 - p.sigma**2 * exact.score(world, z, p)[0] ** 2)
    anchor = jax.grad(gaussian_information)(high)
    doubt = 2 * jnp.abs(slope - again) + fine
    left = jnp.exp(high) * exact.posterior_trace(one, one.mean, o) / 2, mmse / 2, left_over / 2
    return left, (anchor, slope, slope), (jnp.zeros_like(doubt), doubt + rough, doubt + rougher)


def _coarse_information(world, log_snr):
    """`information` on every second node."""
    p = _vp(log_snr)
    nodes, step = jax.lax.stop_gradient(_line(*_span(world, p)))
    logs = jax.vmap(lambda z: _log_density(world, z[0], p.alpha, p.sigma))(nodes[::2])
    return -2 * step * jnp.sum(jnp.exp(logs) * logs) - jnp.log(p.sigma**2) / 2


@i_mmse.near_miss
def the_derivative_in_log_snr(one, world, log_snr, high):
    """dI/dlambda = mmse/2: the derivative with respect to the SNR itself."""
    (a, b), (c, d) = jnp.eye(2, dtype=one.cov.dtype) + jnp.exp(log_snr) * one.cov
    slope = jnp.trace(_inverse(jnp.array([[a, b], [c, d]])) @ one.cov) * jnp.exp(log_snr) / 2
    return exact.posterior_trace(one, one.mean, _vp(log_snr)) / 2, slope


@i_mmse.near_miss
def information_in_half_the_log_snr(one, world, log_snr, high):
    """dI/dlambda = e^lambda mmse: right for the lambda of DPM-Solver, log(alpha/sigma)."""
    (a, b), (c, d) = jnp.eye(2, dtype=one.cov.dtype) + jnp.exp(log_snr) * one.cov
    slope = jnp.trace(_inverse(jnp.array([[a, b], [c, d]])) @ one.cov) * jnp.exp(log_snr) / 2
    return jnp.exp(log_snr) * exact.posterior_trace(one, one.mean, _vp(log_snr)), slope


CLOCK = np.linspace(-44, 44, 353)
DRAWS = np.linspace(-8.5, 8.5, 69)


def _surprise(world, x0, excess):
    """(-log p(x0) as the integral over all log-SNR of 1/(1 + e^-lambda) - E|eps - eps_hat|^2, a bound), for a given half and constant."""
    half, constant = excess
    draws = jnp.asarray(DRAWS, x0.dtype)
    law = jnp.exp(-(draws**2) / 2) / jnp.sqrt(jnp.asarray(2 * jnp.pi, x0.dtype)) * (DRAWS[1] - DRAWS[0])

    def errors(log_snr):
        p = _vp(log_snr)
        noise = jax.vmap(lambda eps: -p.sigma * exact.score(world, p.alpha * x0 + p.sigma * eps[None], p)[0])(draws)
        squares = law * (draws - noise) ** 2
        fine, coarse = jnp.sum(squares), 2 * jnp.sum(squares[::2])
        return jax.nn.sigmoid(log_snr) - fine, jnp.abs(fine - coarse)

    values, doubts = jax.vmap(errors)(jnp.asarray(CLOCK, x0.dtype))
    step = CLOCK[1] - CLOCK[0]
    whole, bound = _trapezoid(values, step)
    bound = bound + 2 * step * jnp.sum(doubts) + 2 * (jnp.abs(values[0]) + jnp.abs(values[-1]))
    return constant - half * whole, bound


gentle_pairs = scalars("half distances of [0.3, 1.2]", 0.3, 1.2)


def _pair(half_distance, share, std):
    """Two components of one width: share at -half_distance, the rest at half_distance."""
    means = jnp.stack([-half_distance, half_distance])[:, None]
    return Mixture(jnp.stack([share, 1 - share]), means, jnp.stack([std**2, std**2])[:, None, None])


@theorem(
    source="Kong, Brekelmans & Ver Steeg 2023",
    cases=8,
    half_distance=gentle_pairs, share=scalars("shares of [0.1, 0.9]", 0.1, 0.9), std=scalars("std of [0.4, 2]", 0.4, 2.0),
    x0=scalars("data of [-2, 2]", -2.0, 2.0),
)  # fmt: skip
def pointwise_i_mmse_likelihood(half_distance, share, std, x0):
    """-log p(x0) = d log(2 pi e)/2 - 1/2 int over all lambda of [d/(1 + e^-lambda) - E|eps - eps_hat(z_lambda)|^2], for each x0."""
    world = _pair(half_distance, share, std)
    found, bound = _surprise(world, x0[None], (0.5, jnp.log(2 * jnp.pi * jnp.e) / 2))
    return found, -_log_density(world, x0, 1.0, 0.0), bound


@pointwise_i_mmse_likelihood.near_miss
def without_the_e(half_distance, share, std, x0):
    """The constant d log(2 pi)/2, from the normal density without its exponent."""
    world = _pair(half_distance, share, std)
    found, bound = _surprise(world, x0[None], (0.5, jnp.log(2 * jnp.pi) / 2))
    return found, -_log_density(world, x0, 1.0, 0.0), bound


@pointwise_i_mmse_likelihood.near_miss
def without_the_half(half_distance, share, std, x0):
    """The integral without its half: as in half the log-SNR."""
    world = _pair(half_distance, share, std)
    found, bound = _surprise(world, x0[None], (1.0, jnp.log(2 * jnp.pi * jnp.e) / 2))
    return found, -_log_density(world, x0, 1.0, 0.0), bound


@theorem(
    source="Guo, Shamai & Verdu 2005, Sec. II",
    kind="inequality",
    cases=60,
    one=gaussians(2), world=mixtures(1, 3), log_snr=moderate, share=probabilities,
)  # fmt: skip
def mmse_monotone(one, world, log_snr, share):
    """mmse falls as the log-SNR rises, from the variance of the data on, and e^lambda mmse = E|eps - eps_hat|^2 stays below d."""
    higher = log_snr + share * (2 - log_snr)
    p, q = _vp(log_snr), _vp(higher)
    noisy, clean = (exact.posterior_trace(one, one.mean, o) for o in (p, q))
    before, bound = _expected(world, p, lambda z: exact.posterior_trace(world, z, p))
    after, more = _expected(world, q, lambda z: exact.posterior_trace(world, z, q))
    spread = world.weights @ (world.covs[:, 0, 0] + (world.means[:, 0] - world.weights @ world.means[:, 0]) ** 2)
    left = jnp.stack([clean, jnp.exp(higher) * clean, noisy, after, jnp.exp(higher) * after, before])
    one_more = jnp.ones_like(share)
    right = jnp.stack([noisy, 2 * one_more, jnp.trace(one.cov), before, one_more, spread])
    none = jnp.zeros_like(share)
    return left, right, jnp.stack([none, none, none, bound + more, jnp.exp(higher) * more, bound])


rare_cluster = Mixture(np.array([0.9, 0.05, 0.05]), np.array([[-1.0], [1.0], [1.1]]), np.full((3, 1, 1), 4e-4))
sharp_pair = Mixture(np.array([0.45, 0.35, 0.2]), np.array([[-1.0], [1.0], [1.1]]), np.full((3, 1, 1), 4e-4))


@mmse_monotone.near_miss(witness={"world": sharp_pair, "log_snr": 0.3, "share": 0.97})
def noise_is_harder_to_see_in_clean_data(one, world, log_snr, share):
    """E|eps - eps_hat|^2 rises with the log-SNR: true of Gaussian data; clusters that noise no longer mixes make it fall."""
    higher = log_snr + share * (2 - log_snr)
    p, q = _vp(log_snr), _vp(higher)
    before, bound = _expected(world, p, lambda z: jnp.exp(log_snr) * exact.posterior_trace(world, z, p))
    after, more = _expected(world, q, lambda z: jnp.exp(higher) * exact.posterior_trace(world, z, q))
    return before[None], after[None], (bound + more)[None]


@mmse_monotone.near_miss(witness={"world": rare_cluster, "log_snr": -6.0, "share": 0.97})
def falls_at_every_point(one, world, log_snr, share):
    """Cov(x0 | z) falls with the log-SNR along alpha times a fixed point: true on average, and false between clusters."""
    higher = log_snr + share * (2 - log_snr)
    p, q, x0 = _vp(log_snr), _vp(higher), 0.15 * jnp.ones_like(world.means[0])
    return exact.posterior_trace(world, q.alpha * x0, q)[None], exact.posterior_trace(world, p.alpha * x0, p)[None]
