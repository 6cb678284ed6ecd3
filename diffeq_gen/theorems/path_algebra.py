"""Chapter 1, paths: conversions between predictions, transition kernels and bridges.

    z = alpha x0 + sigma eps,     value = a x0 + b eps,     q(z_s | z_t, x0) by regression in the joint Gaussian law

The anchors are densities, Bayes' rule and derivatives written here; the other side is the shipped code.
"""

import itertools

import jax
import jax.numpy as jnp

from diffeq_gen import equations, exact, paths, predictions
from diffeq_gen.schedules import at
from diffeq_gen.theorems.domains import earlier, mixtures, positive, scalars, schedules, times, vectors
from diffeq_gen.theorems.registry import theorem
from diffeq_gen.types import Point

__all__: list[str] = []


def _log_density(world, z, alpha, sigma):
    """log sum_k w_k N(z; alpha m_k, alpha^2 C_k + sigma^2 I) in two dimensions, by 2 x 2 inverses: imports no world."""

    def component(weight, mean, cov):
        (a, b), (_, d) = alpha**2 * cov + sigma**2 * jnp.eye(2, dtype=z.dtype)
        x, y = z - alpha * mean
        det = a * d - b * b
        return (
            jnp.log(weight)
            - (d * x * x - 2 * b * x * y + a * y * y) / (2 * det)
            - jnp.log(det) / 2
            - jnp.log(2 * jnp.pi)
        )

    return jax.nn.logsumexp(jax.vmap(component)(world.weights, world.means, world.covs))


@theorem(source="Gao et al. 2024, table of predictions", schedule=schedules, x0=vectors(3), eps=vectors(3), t=times)
def path_conversions(schedule, x0, eps, t):
    """A value a x0 + b eps determines x0 and eps wherever alpha b - sigma a is not zero."""
    p = at(schedule, t)
    z = paths.perturb(x0, eps, p)
    left, right = [], []
    for prediction in (predictions.v, predictions.velocity, predictions.edm(0.7)):
        a, b = prediction(p)
        left += [
            predictions.convert(a * x0 + b * eps, z, p, prediction, predictions.data),
            predictions.convert(a * x0 + b * eps, z, p, prediction, predictions.noise),
        ]
        right += [x0, eps]
    return left, right


@path_conversions.near_miss
def determinant_of_v_is_one(schedule, x0, eps, t):
    """x0 = alpha z - sigma v, as printed everywhere: right only where alpha^2 + sigma^2 = 1."""
    p = at(schedule, t)
    value = p.alpha * eps - p.sigma * x0
    return p.alpha * paths.perturb(x0, eps, p) - p.sigma * value, x0


@path_conversions.near_miss
def velocity_from_noise_to_data(schedule, x0, eps, t):
    """x0 = (sigma' z + sigma u)/(alpha sigma' - sigma alpha'): the velocity of papers whose time runs from noise to data."""
    p = at(schedule, t)
    z, u = paths.perturb(x0, eps, p), p.alpha_dot * x0 + p.sigma_dot * eps
    return (p.sigma_dot * z + p.sigma * u) / (p.alpha * p.sigma_dot - p.sigma * p.alpha_dot), x0


@theorem(source="Gao et al. 2024, table of predictions", schedule=schedules, x0=vectors(3), eps=vectors(3), t=times)
def conversions_compose(schedule, x0, eps, t):
    """Converting from one prediction to another by way of a third gives what the direct conversion gives."""
    p = at(schedule, t)
    z, edm = paths.perturb(x0, eps, p), predictions.edm(0.7)
    chain = (predictions.noise, predictions.v, predictions.velocity, edm, predictions.data)
    (a, b), left, right = chain[0](p), [], []
    value = start = a * x0 + b * eps
    for source, target in itertools.pairwise(chain):
        value = predictions.convert(value, z, p, source, target)
        left.append(value)
        right.append(predictions.convert(start, z, p, chain[0], target))
    return left, right


@conversions_compose.near_miss
def data_minus_noise_is_the_velocity(schedule, x0, eps, t):
    """A chain by way of u = x0 - eps, the velocity of the straight path in reversed time, read as ours."""
    p = at(schedule, t)
    z = paths.perturb(x0, eps, p)
    return predictions.convert(x0 - eps, z, p, predictions.velocity, predictions.data), x0


@theorem(
    source="Gao et al. 2024, table of losses; Kingma & Gao 2023, App. D",
    schedule=schedules, x0=vectors(3), error=vectors(3), z=vectors(3), t=times,
)  # fmt: skip
def determinant_is_the_error_factor(schedule, x0, error, z, t):
    """An error of x0_hat becomes -(alpha b - sigma a)/sigma times it: factors alpha/sigma (eps), (alpha^2 + sigma^2)/sigma (v),
    -alpha lambda'/2 (velocity), -alpha/sigma^2 (score)."""
    (alpha, sigma), log_snr_dot = schedule(t), jax.grad(lambda t: _log_snr(schedule, t))(t)
    p = at(schedule, t)
    factors = (
        (predictions.noise, alpha / sigma),
        (predictions.v, (alpha**2 + sigma**2) / sigma),
        (predictions.velocity, -alpha * log_snr_dot / 2),
        (predictions.score, -alpha / sigma**2),
    )
    left, right = [], []
    for prediction, factor in factors:
        left.append(predictions.convert(x0 + error, z, p, predictions.data, prediction))
        right.append(predictions.convert(x0, z, p, predictions.data, prediction) - factor * error)
        left.append(predictions.determinant(prediction, p))
        right.append(factor * sigma)
    return left, right


@determinant_is_the_error_factor.near_miss
def every_error_is_worth_the_same(schedule, x0, error, z, t):
    """The error of v taken for that of eps: |v_hat - v| = |eps_hat - eps|."""
    p = at(schedule, t)
    noise, v = (
        predictions.convert(x0 + error, z, p, predictions.data, target)
        - predictions.convert(x0, z, p, predictions.data, target)
        for target in (predictions.noise, predictions.v)
    )
    return noise, v


def _log_snr(schedule, t):
    alpha, sigma = schedule(t)
    return 2 * jnp.log(alpha / sigma)


@theorem(source="Salimans & Ho 2022, App. D", schedule=schedules, x0=vectors(3), eps=vectors(3), t=times)
def v_is_orthogonal_only_in_vp(schedule, x0, eps, t):
    """(z, v) is (x0, eps) turned, and stretched by alpha^2 + sigma^2: a rotation only where that is one."""
    (alpha, sigma), p = schedule(t), at(schedule, t)
    a, b = predictions.v(p)
    z, v = paths.perturb(x0, eps, p), a * x0 + b * eps
    stretch = alpha**2 + sigma**2
    return (
        (z @ z + v @ v, alpha * z - sigma * v, sigma * z + alpha * v, predictions.determinant(predictions.v, p)),
        (stretch * (x0 @ x0 + eps @ eps), stretch * x0, stretch * eps, stretch),
    )


@v_is_orthogonal_only_in_vp.near_miss
def v_preserves_norms(schedule, x0, eps, t):
    """|z|^2 + |v|^2 = |x0|^2 + |eps|^2 for any schedule."""
    p = at(schedule, t)
    z, v = paths.perturb(x0, eps, p), p.alpha * eps - p.sigma * x0
    return z @ z + v @ v, x0 @ x0 + eps @ eps


@theorem(
    source="Vincent 2011; Dieleman 2023, score section",
    cases=300,
    schedule=schedules, world=mixtures(2, 3), x0=vectors(2), eps=vectors(2), t=times,
)  # fmt: skip
def score_eps_x_link(schedule, world, x0, eps, t):
    """score = -E[eps | z]/sigma = (alpha x0_hat - z)/sigma^2, with score the gradient of the log-density."""
    (alpha, sigma), p = schedule(t), at(schedule, t)
    z = paths.perturb(x0, eps, p)
    score = jax.grad(lambda z: _log_density(world, z, alpha, sigma))(z)
    denoised = exact.denoise(world, z, p)
    noise = predictions.convert(exact.score(world, z, p), z, p, predictions.score, predictions.noise)
    return (
        (exact.score(world, z, p), noise, alpha * denoised),
        (score, -sigma * score, z + sigma**2 * score),
    )


@score_eps_x_link.near_miss
def the_score_points_to_the_noise(schedule, world, x0, eps, t):
    """score = E[eps | z]/sigma, without the sign."""
    p = at(schedule, t)
    z = paths.perturb(x0, eps, p)
    score = jax.grad(lambda z: _log_density(world, z, p.alpha, p.sigma))(z)
    return predictions.convert(exact.denoise(world, z, p), z, p, predictions.data, predictions.noise) / p.sigma, score


@score_eps_x_link.near_miss
def the_score_is_minus_the_noise(schedule, world, x0, eps, t):
    """score = -E[eps | z], right at sigma = 1."""
    p = at(schedule, t)
    z = paths.perturb(x0, eps, p)
    score = jax.grad(lambda z: _log_density(world, z, p.alpha, p.sigma))(z)
    return -predictions.convert(exact.denoise(world, z, p), z, p, predictions.data, predictions.noise), score


@theorem(
    source="Gao et al. 2024, 'Equivalence of the two frameworks'; Song et al. 2021, Eq. 13",
    cases=300,
    schedule=schedules, world=mixtures(2, 3), x0=vectors(2), eps=vectors(2), t=times,
)  # fmt: skip
def velocity_is_pfode_drift(schedule, world, x0, eps, t):
    """E[alpha' x0 + sigma' eps | z] = f z - g^2 score/2, f = d log(alpha)/dt, g^2 = -sigma^2 lambda'; and for each sample
    alpha' x0 + sigma' eps is the time derivative of z, and f z + g^2 eps/(2 sigma)."""
    alpha, sigma = schedule(t)
    p = at(schedule, t)
    f = jax.grad(lambda t: jnp.log(schedule(t)[0]))(t)
    g_squared = -(sigma**2) * jax.grad(lambda t: _log_snr(schedule, t))(t)
    z, z_dot = jax.jvp(lambda t: schedule(t)[0] * x0 + schedule(t)[1] * eps, (t,), (jnp.ones_like(t),))
    drift = f * z - g_squared / 2 * jax.grad(lambda z: _log_density(world, z, alpha, sigma))(z)
    flow = equations.probability_flow(lambda z, t: exact.denoise(world, z, at(schedule, t)), schedule)
    a, b = predictions.velocity(p)
    return (
        (exact.velocity(world, z, p), flow(z, t), a * x0 + b * eps, f * z + g_squared / (2 * sigma) * eps),
        (drift, drift, z_dot, z_dot),
    )


@velocity_is_pfode_drift.near_miss
def drift_of_the_reverse_sde(schedule, world, x0, eps, t):
    """f z - g^2 score: the drift of Anderson's reverse SDE, without its one half."""
    p = at(schedule, t)
    z = paths.perturb(x0, eps, p)
    score = jax.grad(lambda z: _log_density(world, z, p.alpha, p.sigma))(z)
    return exact.velocity(world, z, p), p.alpha_dot / p.alpha * z + p.sigma**2 * p.log_snr_dot * score


@velocity_is_pfode_drift.near_miss
def score_with_the_other_sign(schedule, world, x0, eps, t):
    """f z + g^2 score/2, as in libraries that turn the sign of the velocity when they turn time."""
    p = at(schedule, t)
    z = paths.perturb(x0, eps, p)
    score = jax.grad(lambda z: _log_density(world, z, p.alpha, p.sigma))(z)
    return exact.velocity(world, z, p), p.alpha_dot / p.alpha * z - p.sigma**2 * p.log_snr_dot * score / 2


@theorem(
    source="after Albergo et al. 2023 (couplings); against a blanket reading of Gao et al. 2024",
    kind="counterexample",
    schedule=schedules, correlation=scalars("correlations", -0.95, 0.95), std=positive("std of x0", 0.1, 5.0),
    z=vectors(1), t=times,
)  # fmt: skip
def coupling_breaks_score(schedule, correlation, std, z, t):
    """Where x0 and eps are correlated, E[dz/dt | z] still carries the marginals, but the score converted from it is off by
    the factor 1 + (alpha/sigma) E[x0 eps]: only independent couplings have SDE samplers."""

    def variance(t):
        alpha, sigma = schedule(t)
        return (alpha * std + sigma * correlation) ** 2 + sigma**2 * (1 - correlation**2)

    p = at(schedule, t)
    spread, spread_dot = jax.jvp(variance, (t,), (jnp.ones_like(t),))
    with_x0 = p.alpha * std**2 + p.sigma * correlation * std
    with_eps = p.alpha * correlation * std + p.sigma
    u = p.alpha_dot * (with_x0 / spread * z) + p.sigma_dot * (with_eps / spread * z)
    score = predictions.convert(u, z, p, predictions.velocity, predictions.score)
    return (u, score), (spread_dot / (2 * spread) * z, -z / spread * (1 + p.alpha / p.sigma * correlation * std))


@coupling_breaks_score.near_miss
def any_velocity_has_its_score(schedule, correlation, std, z, t):
    """score = conversion of the velocity, whatever the coupling: rectified or minibatch-optimal pairs too."""
    p = at(schedule, t)
    spread = (p.alpha * std + p.sigma * correlation) ** 2 + p.sigma**2 * (1 - correlation**2)
    with_x0 = p.alpha * std**2 + p.sigma * correlation * std
    with_eps = p.alpha * correlation * std + p.sigma
    u = p.alpha_dot * (with_x0 / spread * z) + p.sigma_dot * (with_eps / spread * z)
    return predictions.convert(u, z, p, predictions.velocity, predictions.score), -z / spread


@theorem(source="Kingma et al. 2021, App. A", schedule=schedules, t=times, s=earlier("t"))
def transition_kernel(schedule, t, s):
    """q(z_t | z_s) has scale alpha_t/alpha_s and variance sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2."""
    p, q = at(schedule, t), at(schedule, s)
    scale, std = paths.transition(p, q)
    return (scale * q.alpha, scale**2 * q.sigma**2 + std**2), (p.alpha, p.sigma**2)


@transition_kernel.near_miss
def variance_without_scale(schedule, t, s):
    """The variances subtracted as they stand: right only where alpha is constant."""
    p, q = at(schedule, t), at(schedule, s)
    _, std = paths.transition(p, q)
    return q.sigma**2 + std**2, p.sigma**2


@theorem(
    source="Ho et al. 2020, Sec. 2; Dieleman 2024, introduction",
    schedule=schedules, z=vectors(3), first=vectors(3), second=vectors(3), t=times, s=earlier("t"), r=earlier("s"),
)  # fmt: skip
def markov_semigroup(schedule, z, first, second, t, s, r):
    """From r to s to t is from r to t: scales multiply, and noise adds in quadrature."""
    p, q, o = at(schedule, t), at(schedule, s), at(schedule, r)
    (scale, std), (scale_early, std_early), (whole, std_whole) = (
        paths.transition(p, q), paths.transition(q, o), paths.transition(p, o),
    )  # fmt: skip
    drawn = paths.renoise(paths.renoise(z, first, q, o), second, p, q)
    left = scale * scale_early, (scale * std_early) ** 2 + std**2, drawn
    right = whole, std_whole**2, whole * z + scale * std_early * first + std * second
    return left, right


@markov_semigroup.near_miss
def noise_adds_linearly(schedule, z, first, second, t, s, r):
    """Standard deviations added, as if the two draws were one."""
    p, q, o = at(schedule, t), at(schedule, s), at(schedule, r)
    (scale, std), (_, std_early), (_, whole) = paths.transition(p, q), paths.transition(q, o), paths.transition(p, o)
    return scale * std_early + std, whole


@theorem(
    source="Ho et al. 2020, Eq. 6-7; Kingma et al. 2021, App. A",
    schedule=schedules, x0=vectors(3), z=vectors(3), t=times, s=earlier("t"),
)  # fmt: skip
def ancestral_posterior(schedule, x0, z, t, s):
    """q(z_s | z_t, x0) is the regression of z_s on z_t: covariance (alpha_t/alpha_s) sigma_s^2 over variance sigma_t^2."""
    p, q = at(schedule, t), at(schedule, s)
    c_z, c_x, std = paths.bridge(p, q)
    shared = p.alpha / q.alpha * q.sigma**2
    slope = shared / p.sigma**2
    return (c_z * z + c_x * x0, std**2), (q.alpha * x0 + slope * (z - p.alpha * x0), q.sigma**2 - slope * shared)


@ancestral_posterior.near_miss
def variance_of_the_transition(schedule, x0, z, t, s):
    """The variance of q(z_t | z_s) for that of q(z_s | z_t, x0): DDPM's larger choice."""
    p, q = at(schedule, t), at(schedule, s)
    _, std = paths.transition(p, q)
    return std**2, q.sigma**2 - (p.alpha / q.alpha * q.sigma**2 / p.sigma) ** 2


@ancestral_posterior.near_miss
def mean_of_the_deterministic_step(schedule, x0, z, t, s):
    """The mean of DDIM's step, which keeps all of the old noise, for that of DDPM's."""
    p, q = at(schedule, t), at(schedule, s)
    c_z, c_x, _ = paths.bridge(p, q)
    return c_z * z + c_x * x0, q.alpha * x0 + q.sigma / p.sigma * (z - p.alpha * x0)


@theorem(
    source="Karras et al. 2022, Sec. 5 and App. B.6 (F of EDM); Salimans & Ho 2022 (v)",
    schedule=schedules, std=positive("std of data", 0.1, 10.0), x0=vectors(3), eps=vectors(3), t=times,
)  # fmt: skip
def edm_f_is_minus_v(schedule, std, x0, eps, t):
    """EDM's F = (x0 - c_skip z)/c_out is -v of the problem with unit data and unit total variance, whose z is c_in z."""
    p = at(schedule, t)
    z, precond = paths.perturb(x0, eps, p), predictions.preconditioning(p, std)
    a, b = predictions.edm(std)(p)
    r = jnp.hypot(p.sigma, p.alpha * std)
    unit = Point(t=t, alpha=p.alpha * std / r, sigma=p.sigma / r, alpha_dot=p.alpha_dot, sigma_dot=p.sigma_dot)
    a_v, b_v = predictions.v(unit)
    minus_v = -(a_v * x0 / std + b_v * eps)
    return (
        (a * x0 + b * eps, precond.out * minus_v + precond.skip * z, precond.input * z),
        (minus_v, x0, paths.perturb(x0 / std, eps, unit)),
    )


@edm_f_is_minus_v.near_miss
def edm_f_is_v(schedule, std, x0, eps, t):
    """F = +v: a checkpoint of the one loaded as the other."""
    p = at(schedule, t)
    r = jnp.hypot(p.sigma, p.alpha * std)
    a, b = predictions.edm(std)(p)
    return a * x0 + b * eps, p.alpha * std / r * eps - p.sigma / r * x0 / std


@edm_f_is_minus_v.near_miss
def without_unit_data(schedule, std, x0, eps, t):
    """F = -v of the schedule as it stands: right only where the data has unit variance and alpha^2 + sigma^2 = 1."""
    p = at(schedule, t)
    a, b = predictions.edm(std)(p)
    return a * x0 + b * eps, p.sigma * x0 - p.alpha * eps
