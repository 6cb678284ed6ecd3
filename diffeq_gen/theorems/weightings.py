"""Chapter 8: weightings.  Every loss is L_w = 1/2 int w(lambda) E|eps_hat - eps|^2 dlambda, for one w.

    w = (det/alpha)^2 pi(t) / -lambda'         half the squared error of a prediction, at times of density pi

What the papers print is held against this quotient: no weight of `weights` that they name reads a schedule.
"""

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen import predictions, weights
from diffeq_gen.schedules import VP, Cosine, Flow, at
from diffeq_gen.theorems.domains import positive, probabilities, scalars
from diffeq_gen.theorems.registry import theorem
from diffeq_gen.theorems.solver_families import PARABOLAS

__all__: list[str] = []

log_snrs = scalars("log-SNR in [-12, 12]", -12.0, 12.0)


def _normal(value, mean, variance):
    """log N(value; mean, variance)."""
    return -((value - mean) ** 2) / (2 * variance) - jnp.log(2 * jnp.pi * variance) / 2


def _sum_of_normals(value, variance, *parts):
    """log of a sum of e^height N(mean, variance), parts (height, mean)."""
    return jax.nn.logsumexp(jnp.stack([height + _normal(value, mean, variance) for height, mean in parts]))


@theorem(source="Kingma & Gao 2023, Table 1; derived for the linear beta", log_snr=log_snrs,
         low=positive("least betas", 0.05, 1.0), rise=positive("rises of beta", 1.0, 30.0))  # fmt: skip
def weight_of_eps_mse(log_snr, low, rise):
    """eps-MSE at uniform times is w = rho: sech(lambda/2)/(2 pi) with the cosine schedule, and
    sigmoid(-lambda)/sqrt(beta_0^2 + 2 (beta_1 - beta_0) softplus(-lambda)) with a linear beta."""
    linear = VP(low, low + rise)
    beta = jnp.sqrt(low**2 + 2 * rise * jnp.log1p(jnp.exp(-log_snr)))
    found = [weights.weight_of(predictions.noise, schedule)(log_snr) for schedule in (Cosine(), linear)]
    found += [weights.uniform_times(schedule)(log_snr) for schedule in (Cosine(), linear)]
    cosine = -jnp.log(2 * jnp.pi * jnp.cosh(log_snr / 2))
    return [*found, weights.cosine(log_snr)], [cosine, -jnp.log((1 + jnp.exp(log_snr)) * beta)] * 2 + [cosine]


@weight_of_eps_mse.near_miss
def linear_beta_weighs_as_the_cosine(log_snr, low, rise):
    """L_simple taken to be one weighting, whatever the schedule: the same up to a constant."""
    slope = jax.grad(weights.weight_of(predictions.noise, VP(low, low + rise)))(log_snr)
    return slope, jax.grad(weights.cosine)(log_snr)


@theorem(source="Gao et al. 2024, 'Weighting functions'; Kingma & Gao 2023, App. D.2-3", log_snr=log_snrs)
def fm_equals_v_cosine(log_snr):
    """Flow matching at uniform times weighs as v-MSE with the cosine schedule does: e^{-lambda/2}/2, and e^{-lambda/2}/pi."""
    flow = weights.weight_of(predictions.velocity, Flow())(log_snr)
    cosine = weights.weight_of(predictions.v, Cosine())(log_snr)
    return (flow, weights.flow(log_snr), cosine), (-jnp.log(2 * jnp.exp(log_snr / 2)), flow, flow + jnp.log(2 / jnp.pi))


@fm_equals_v_cosine.near_miss
def v_under_the_flow(log_snr):
    """v-MSE under the flow's own schedule, whose v is not its velocity."""
    return weights.weight_of(predictions.v, Flow())(log_snr), weights.weight_of(predictions.velocity, Flow())(log_snr)


@fm_equals_v_cosine.near_miss
def eps_under_the_cosine(log_snr):
    """eps-MSE with the cosine schedule, which is of the same size at lambda = 0 alone."""
    return weights.weight_of(predictions.noise, Cosine())(log_snr), weights.weight_of(predictions.velocity, Flow())(
        log_snr
    )


@theorem(source="Karras et al. 2022, Table 1; Gao et al. 2024; as two normals: derived", schedule=PARABOLAS,
         t=probabilities, mean=scalars("mean log sigma", -2.0, 1.0), std=positive("stds of log sigma", 0.5, 2.0),
         sigma_data=positive("sigma_data", 0.2, 2.0))  # fmt: skip
def weight_of_edm(schedule, t, mean, std, sigma_data):
    """MSE of EDM's raw network at log sigma/alpha ~ N(P, S^2) is N(lambda; -2P, 4S^2) (e^-lambda + sigma_d^2)/sigma_d^2 under every
    schedule: of two normals of one variance, the second 4S^2 further down."""
    p, variance = at(schedule, t), 4 * std**2
    density = lambda t: _normal(at(schedule, t).log_snr, -2 * mean, variance) + jnp.log(-at(schedule, t).log_snr_dot)  # noqa: E731
    closed = weights.edm(mean=mean, std=std, sigma_data=sigma_data)(p.log_snr)
    lower = 2 * mean + variance / 2 - 2 * jnp.log(sigma_data)
    return (
        (weights.implied(predictions.edm(sigma_data), p, log_density=density(t)), closed),
        (closed, _sum_of_normals(p.log_snr, variance, (0.0, -2 * mean), (lower, -2 * mean - variance))),
    )


@weight_of_edm.near_miss
def log_snr_as_spread_as_log_sigma(schedule, t, mean, std, sigma_data):
    """lambda ~ N(-2P, S^2): the factor of lambda = -2 log sigma left out of the variance."""
    p = at(schedule, t)
    density = _normal(p.log_snr, -2 * mean, std**2) + jnp.log(-p.log_snr_dot)
    return (
        weights.implied(predictions.edm(sigma_data), p, log_density=density),
        weights.edm(mean=mean, std=std, sigma_data=sigma_data)(p.log_snr),
    )


@theorem(source="Esser et al. 2024, Eq. 19; Gao et al. 2024; as three normals: derived", log_snr=log_snrs,
         mean=scalars("mean logit t", -1.0, 1.0), std=positive("stds of logit t", 0.5, 2.0))  # fmt: skip
def weight_of_logit_normal_times(log_snr, mean, std):
    """Flow matching at logit t ~ N(m, s^2) is (1 + e^{-lambda/2})^2 N(lambda; -2m, 4s^2): of three normals of one variance, each half
    of it further down; t/(1-t) pi(t) up to a factor of 2."""
    t = jax.nn.sigmoid(-log_snr / 2)
    density = lambda t: _normal(jnp.log(t / (1 - t)), mean, std**2) - jnp.log(t * (1 - t))  # noqa: E731
    closed = weights.logit_normal(mean=mean, std=std)(log_snr)
    middle, variance = -2 * mean, 4 * std**2
    second, third = jnp.log(2.0) - middle / 2 + variance / 8, -middle + variance / 2
    parts = (0.0, middle), (second, middle - variance / 2), (third, middle - variance)
    found = weights.implied(predictions.velocity, at(Flow(), t), log_density=density(t))
    return (found, closed, closed), (
        closed,
        _sum_of_normals(log_snr, variance, *parts),
        jnp.log(t / (1 - t) / 2) + density(t),
    )


@weight_of_logit_normal_times.near_miss
def more_noise_at_a_larger_mean_of_log_snr(log_snr, mean, std):
    """N(lambda; 2m, 4s^2): time taken to rise with log-SNR."""
    return weights.logit_normal(mean=mean, std=std)(log_snr), weights.logit_normal(mean=-mean, std=std)(log_snr)


NEAR = {"mean": scalars("means of logit t near 0", -0.25, 0.25), "std": scalars("stds of logit t near 1", 0.85, 1.05),
        "middle": scalars("means of log sigma near -1.2", -1.4, -1.0), "spread": scalars("stds of log sigma near 1.2", 1.15, 1.35),
        "sigma_data": scalars("sigma_data near 1/2", 0.4, 0.6)}  # fmt: skip
AXIS = np.linspace(-32.0, 32.0, 2049)


@theorem(source="Gao et al. 2024, 'Weighting functions' (very similar); Kuiper's distance: derived", cases=60, **NEAR)
def sd3_resembles_edm(mean, std, middle, spread, sigma_data):
    """The weights of SD3 and of EDM cross twice: as densities they share 1 - max(F - G) - max(G - F), F and G the distributions of
    three and of two normals, whose means and variances are theirs."""
    return _resemblance(
        mean, std, middle, spread, sigma_data, weights.edm(mean=middle, std=spread, sigma_data=sigma_data)
    )


def _resemblance(mean, std, middle, spread, sigma_data, other, distance=lambda gap: jnp.max(gap) + jnp.max(-gap)):
    """(overlap and moments of SD3's weight and another, those by normals, the error of two grids where the two cross)."""
    sd3, v, w = weights.logit_normal(mean=mean, std=std), 4 * std**2, 4 * spread**2
    three = _of_normals(
        v, (0.0, -2 * mean), (jnp.log(2.0) + mean + v / 8, -2 * mean - v / 2), (2 * mean + v / 2, -2 * mean - v)
    )
    two = _of_normals(w, (0.0, -2 * middle), (2 * middle + w / 2 - 2 * jnp.log(sigma_data), -2 * middle - w))
    shared = weights.overlap(sd3, other, float(AXIS[0]), float(AXIS[-1]), count=len(AXIS))
    (below_three, *by_three), (below_two, *by_two) = three, two
    steepest = (1 / v + 1 / w) / jnp.sqrt(
        2 * jnp.pi * jnp.e
    )  # of a normal of variance v, the steepest slope is 1/(v sqrt(2 pi e))
    crossed, none = steepest * (AXIS[1] - AXIS[0]) ** 2 / 2, jnp.zeros_like(v)
    left = [shared, *_moments(sd3), *_moments(other)]
    return left, [1 - distance(below_three - below_two), *by_three, *by_two], [crossed, none, none, none, none]


def _of_normals(variance, *parts):
    """(distribution on the axis, mean, variance) of a sum of e^height N(mean, variance)."""
    heights, means = (jnp.stack([jnp.asarray(part[i], variance.dtype) for part in parts]) for i in (0, 1))
    share, axis = jax.nn.softmax(heights), jnp.asarray(AXIS, variance.dtype)
    below = [(1 + jax.lax.erf((axis - middle) / jnp.sqrt(2 * variance))) / 2 for middle in means]
    mean = jnp.sum(share * means)
    return (
        sum(part * each for part, each in zip(share, below, strict=True)),
        mean,
        variance + jnp.sum(share * (means - mean) ** 2),
    )


def _moments(weight):
    """(mean, variance) of log-SNR of a weight as a density."""
    axis = jnp.asarray(AXIS, jnp.result_type(weight(jnp.asarray(AXIS[0]))))
    share = jax.nn.softmax(jax.vmap(weight)(axis))
    mean = jnp.sum(share * axis)
    return mean, jnp.sum(share * (axis - mean) ** 2)


@sd3_resembles_edm.near_miss
def whatever_the_scale_of_the_data(mean, std, middle, spread, sigma_data):
    """EDM's weight of sigma_data = 1."""
    return _resemblance(mean, std, middle, spread, sigma_data, weights.edm(mean=middle, std=spread, sigma_data=1.0))


@sd3_resembles_edm.near_miss
def one_crossing(mean, std, middle, spread, sigma_data):
    """1 - max|F - G|, the distance of Kolmogorov: right of weights that cross once."""
    edm = weights.edm(mean=middle, std=spread, sigma_data=sigma_data)
    return _resemblance(mean, std, middle, spread, sigma_data, edm, lambda gap: jnp.max(jnp.abs(gap)))


@theorem(source="Esser et al. 2024, Eq. 20 and 21", u=probabilities, scale=scalars("scales", -0.9, 1.7), cases=200)
def weight_of_mode_times(u, scale):
    """Flow matching at t = 1 - u - s (cos^2(pi u/2) - 1 + u), u uniform, is e^{-lambda/2}/2 over |dt/du|."""
    time = lambda u: 1 - u - scale * (jnp.cos(jnp.pi * u / 2) ** 2 - 1 + u)  # noqa: E731
    t, slope = jax.value_and_grad(time)(u)
    log_snr = 2 * jnp.log((1 - t) / t)
    return weights.mode(scale=scale)(log_snr), weights.implied(
        predictions.velocity, at(Flow(), t), log_density=-jnp.log(-slope)
    )


def _at_mode_time(u, scale, power):
    """w of `mode`, and the quotient at times of density |dt/du|^power."""
    time = lambda u: 1 - u - scale * (jnp.cos(jnp.pi * u / 2) ** 2 - 1 + u)  # noqa: E731
    t, slope = jax.value_and_grad(time)(u)
    found = weights.mode(scale=scale)(2 * jnp.log((1 - t) / t))
    return found, weights.implied(predictions.velocity, at(Flow(), t), log_density=power * jnp.log(-slope))


@weight_of_mode_times.near_miss
def times_as_dense_as_the_map_is_steep(u, scale):
    """pi = |dt/du|, not its inverse."""
    time = lambda u: 1 - u - scale * (jnp.cos(jnp.pi * u / 2) ** 2 - 1 + u)  # noqa: E731
    t, slope = jax.value_and_grad(time)(u)
    log_snr = 2 * jnp.log((1 - t) / t)
    return weights.mode(scale=scale)(log_snr), weights.implied(
        predictions.velocity, at(Flow(), t), log_density=jnp.log(-slope)
    )


@theorem(source="Kingma & Gao 2023, Table 1", log_snr=log_snrs)
def weight_of_indi(log_snr):
    """MSE of x0 under the flow at uniform times, as InDI trains, is e^-lambda sech^2(lambda/4)/8."""
    found = weights.weight_of(predictions.data, Flow())(log_snr)
    return (found, weights.indi(log_snr)), (-log_snr - jnp.log(8 * jnp.cosh(log_snr / 4) ** 2),) * 2


@weight_of_indi.near_miss
def a_target_does_not_matter(log_snr):
    """The weight of flow matching, whose network sees the same z at the same times."""
    return weights.indi(log_snr), weights.flow(log_snr)


@theorem(source="Hang et al. 2023; Choi et al. 2022; Salimans & Ho 2022", schedule=PARABOLAS, t=probabilities,
         gamma=positive("gammas", 0.1, 20.0), k=positive("k", 0.2, 5.0))  # fmt: skip
def weights_by_snr(schedule, t, gamma, k):
    """MSE of x0 times min(SNR, gamma), max(SNR, 1), SNR + 1 is w = rho times min(1, gamma/SNR), max(1, 1/SNR), 1 + 1/SNR; eps-MSE
    times (k + SNR)^-gamma is that times rho.  SNR + 1 is v-MSE over alpha^2 + sigma^2."""
    p, density = at(schedule, t), weights.uniform_times(schedule)
    snr = (p.alpha / p.sigma) ** 2
    of_data, of_noise = (weights.implied(prediction, p) for prediction in (predictions.data, predictions.noise))
    found = [
        weight(p.log_snr)
        for weight in (
            weights.min_snr(gamma, density=density),
            weights.truncated_snr(density=density),
            weights.snr_plus_one(density=density),
            weights.p2(gamma, k=k, density=density),
        )
    ]
    v = weights.implied(predictions.v, p) - jnp.log(p.alpha**2 + p.sigma**2)
    wanted = [of_data + jnp.log(factor) for factor in (jnp.minimum(snr, gamma), jnp.maximum(snr, 1), snr + 1)]
    return [*found, v], [*wanted, of_noise - gamma * jnp.log(k + snr), wanted[2]]


@weights_by_snr.near_miss
def min_snr_of_the_noise(schedule, t, gamma, k):
    """eps-MSE times min(SNR, gamma): the factor of x0's error on the error of eps."""
    p = at(schedule, t)
    weight = weights.min_snr(gamma, density=weights.uniform_times(schedule))(p.log_snr)
    return weight, weights.implied(predictions.noise, p) + jnp.log(jnp.minimum((p.alpha / p.sigma) ** 2, gamma))


@weights_by_snr.near_miss
def v_is_snr_plus_one_on_any_path(schedule, t, gamma, k):
    """v-MSE taken for SNR + 1 where alpha^2 + sigma^2 is not one."""
    p = at(schedule, t)
    return weights.snr_plus_one(density=weights.uniform_times(schedule))(p.log_snr), weights.implied(predictions.v, p)


@theorem(source="Kingma & Gao 2023, Table 1", kind="inequality", log_snr=log_snrs, bias=scalars("biases", -3.0, 3.0))
def weights_that_never_rise(log_snr, bias):
    """ELBO, flow matching (v-MSE with the cosine), sigmoid(b - lambda) and InDI never rise with log-SNR: each is a mixture of ELBOs."""
    return _slopes(log_snr, weights.elbo, weights.flow, weights.sigmoid(bias), weights.indi)


def _slopes(log_snr, *named):
    """The slopes of weights in log-SNR, and zeros."""
    slopes = jnp.stack([jax.grad(weight)(log_snr) for weight in named])
    return slopes, jnp.zeros_like(slopes)


@weights_that_never_rise.near_miss(witness={"log_snr": -4.0})
def eps_mse_of_the_cosine_is_an_elbo(log_snr, bias):
    """eps-MSE with the cosine schedule: sech(lambda/2) rises until lambda = 0."""
    return _slopes(log_snr, weights.cosine)


@weights_that_never_rise.near_miss(witness={"log_snr": -6.0})
def edm_is_an_elbo(log_snr, bias):
    """EDM's weight, which rises until lambda = -3 or so."""
    return _slopes(log_snr, weights.edm())


@weights_that_never_rise.near_miss(witness={"log_snr": -6.0})
def logit_normal_times_keep_an_elbo(log_snr, bias):
    """Flow matching at logit-normal times, whose weight rises where noise is large."""
    return _slopes(log_snr, weights.logit_normal())


@weights_that_never_rise.near_miss(witness={"log_snr": -4.0})
def min_snr_is_an_elbo(log_snr, bias):
    """Min-SNR with the cosine schedule."""
    return _slopes(log_snr, weights.min_snr())


@weights_that_never_rise.near_miss(witness={"log_snr": -4.0})
def p2_is_an_elbo(log_snr, bias):
    """P2 with the cosine schedule."""
    return _slopes(log_snr, weights.p2())
