"""Weights: what a loss emphasises, as a function of log-SNR alone.

    L_w = 1/2 int w(lambda) E ||eps_hat - eps||^2 d lambda                                Kingma & Gao 2023, Eq. 8
    w   = c (det/alpha)^2 rho        half a squared error c ||network - target||^2 at log-SNRs of density rho
    rho = pi(t) / -lambda'           of times of density pi

Every loss of the field is one of these, times a constant: which prediction is regressed, under which schedule, at which times,
is a choice of w and, beside it, of rho, which decides how much the loss of a batch varies and nothing else.  A weight that
never rises is a mixture of ELBOs, of data with noise added to them.  Weights and densities are returned as logarithms.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffeq_gen.clocks import time_at
from diffeq_gen.predictions import determinant
from diffeq_gen.schedules import at
from diffeq_gen.types import Point, Prediction, Schedule, Time, require

__all__ = [
    "LogWeight",
    "augmentation",
    "cosine",
    "edm",
    "elbo",
    "flow",
    "implied",
    "indi",
    "logit_normal",
    "min_snr",
    "mode",
    "overlap",
    "p2",
    "require_monotone",
    "sigmoid",
    "snr_plus_one",
    "truncated_snr",
    "uniform_times",
    "weight_of",
]

LogWeight = Callable[[jax.Array], jax.Array]
"""lambda -> log w(lambda), or the logarithm of a density of lambda."""


def elbo(log_snr: jax.Array) -> jax.Array:
    """w = 1: the negative of the evidence lower bound.  Kingma et al. 2021, Eq. 14.

    Theorems: likelihood-weighting, weights-that-never-rise.
    """
    return jnp.zeros_like(log_snr)


def flow(log_snr: jax.Array) -> jax.Array:
    """w = e^{-lambda/2} / 2: flow matching with uniform t, and up to a factor v-MSE with the cosine schedule.  Gao et al. 2024.

    Theorems: determinant-is-the-error-factor, fm-equals-v-cosine.
    """
    return -log_snr / 2 - math.log(2)


def cosine(log_snr: jax.Array) -> jax.Array:
    """w = sech(lambda/2) / (2 pi): eps-MSE with the cosine schedule and uniform t.  Kingma & Gao 2023, Table 1.

    Theorems: weight-of-eps-mse.
    """
    return -jnp.logaddexp(log_snr / 2, -log_snr / 2) - math.log(math.pi)


def sigmoid(bias: float) -> LogWeight:
    """w = sigmoid(bias - lambda), monotone.  Hoogeboom et al. 2024, 'Simpler diffusion'; Kingma & Gao 2023, Sec. 5.

    Theorems: weights-that-never-rise.
    """
    return lambda log_snr: -jax.nn.softplus(log_snr - bias)


def edm(*, mean: float = -1.2, std: float = 1.2, sigma_data: float = 0.5) -> LogWeight:
    """w = N(lambda; -2 mean, 4 std^2) (e^{-lambda} + sigma_d^2) / sigma_d^2, log sigma ~ N(mean, std^2).  Karras et al. 2022, Table 1.

    Raises: ValueError where std or sigma_data is not positive.
    Theorems: weight-of-edm.
    """
    require(lambda std: std > 0, "std must be positive", std=std)
    require(lambda sigma_data: sigma_data > 0, "sigma_data must be positive", sigma_data=sigma_data)

    def log_weight(log_snr: jax.Array) -> jax.Array:
        return _log_normal(log_snr, -2 * mean, 2 * std) + jax.nn.softplus(-log_snr - 2 * jnp.log(sigma_data))

    return log_weight


def logit_normal(*, mean: float = 0.0, std: float = 1.0) -> LogWeight:
    """w = (1 + e^{-lambda/2})^2 N(lambda; -2 mean, 4 std^2): velocity-MSE of the flow with logit t ~ N(mean, std^2).  Esser et al. 2024.

    Raises: ValueError where std is not positive.
    Theorems: weight-of-logit-normal-times.
    """
    require(lambda std: std > 0, "std must be positive", std=std)
    return lambda log_snr: 2 * jax.nn.softplus(-log_snr / 2) + _log_normal(log_snr, -2 * mean, 2 * std)


def mode(*, scale: float = 1.29) -> LogWeight:
    """w = e^{-lambda/2} / (2 |dt/du|): velocity-MSE of the flow at t = 1 - u - s (cos^2(pi u/2) - 1 + u), u uniform.

    Esser et al. 2024, Eq. 20.  s > 0 favours the middle of the times, s < 0 their ends; t falls with u while -1 < s < 2/(pi - 2).
    Raises: ValueError where scale lies outside.
    Theorems: weight-of-mode-times.
    """
    require(lambda scale: (-1 < scale) & (scale < 2 / (math.pi - 2)), "scale must lie in (-1, 2/(pi - 2))", scale=scale)

    def log_weight(log_snr: jax.Array) -> jax.Array:
        u = _quantile(jax.nn.sigmoid(-log_snr / 2), scale)
        return flow(log_snr) - jnp.log(_stretch(u, scale))

    return log_weight


def _stretch(u: jax.Array, scale: float) -> jax.Array:
    """|dt/du| of `mode`."""
    return 1 + scale - scale * (math.pi / 2) * jnp.sin(math.pi * u)


def _quantile(t: jax.Array, scale: float) -> jax.Array:
    """u with t = 1 - u - s (cos^2(pi u/2) - 1 + u): halved, then a step of Newton's, which has the slope."""
    away = lambda u: 1 - u - scale * (jnp.cos(math.pi / 2 * u) ** 2 - 1 + u) - t  # noqa: E731

    def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        middle = (ends[0] + ends[1]) / 2
        above = away(middle) > 0
        return jnp.where(above, middle, ends[0]), jnp.where(above, ends[1], middle)

    low, high = jax.lax.fori_loop(0, jnp.finfo(t.dtype).nmant, halve, (jnp.zeros_like(t), jnp.ones_like(t)))
    u = jax.lax.stop_gradient((low + high) / 2)
    return u + away(u) / jax.lax.stop_gradient(_stretch(u, scale))


def indi(log_snr: jax.Array) -> jax.Array:
    """w = e^{-lambda} sech^2(lambda/4) / 8: MSE of x0 under the flow, t uniform, as InDI trains.  Kingma & Gao 2023, Table 1.

    Theorems: weight-of-indi, weights-that-never-rise.
    """
    return -2 * jnp.logaddexp(log_snr / 4, -log_snr / 4) - math.log(2) - log_snr


def min_snr(gamma: float = 5.0, *, density: LogWeight = cosine) -> LogWeight:
    """w = rho min(1, gamma e^{-lambda}): MSE of x0 times min(SNR, gamma), at log-SNRs of density rho.  Hang et al. 2023, Eq. 8.

    Raises: ValueError where gamma is not positive.
    Theorems: weights-by-snr.
    """
    require(lambda gamma: gamma > 0, "gamma must be positive", gamma=gamma)
    return lambda log_snr: density(log_snr) + jnp.minimum(jnp.log(gamma) - log_snr, 0)


def p2(gamma: float = 1.0, *, k: float = 1.0, density: LogWeight = cosine) -> LogWeight:
    """w = rho / (k + e^lambda)^gamma: eps-MSE that cares less for what is clean.  Choi et al. 2022, Eq. 8.

    Raises: ValueError where gamma is negative, or k is not positive.
    Theorems: weights-by-snr.
    """
    require(lambda gamma: gamma >= 0, "gamma must not be negative", gamma=gamma)
    require(lambda k: k > 0, "k must be positive", k=k)
    return lambda log_snr: density(log_snr) - gamma * jnp.logaddexp(log_snr, jnp.log(k))


def truncated_snr(*, density: LogWeight = cosine) -> LogWeight:
    """w = rho max(1, e^{-lambda}): MSE of x0 times max(SNR, 1).  Salimans & Ho 2022, Sec. 4.

    Theorems: weights-by-snr.
    """
    return lambda log_snr: density(log_snr) + jnp.maximum(-log_snr, 0)


def snr_plus_one(*, density: LogWeight = cosine) -> LogWeight:
    """w = rho (1 + e^{-lambda}): MSE of x0 times SNR + 1, which is v-MSE where alpha^2 + sigma^2 = 1.  Salimans & Ho 2022, Sec. 4.

    Theorems: weights-by-snr.
    """
    return lambda log_snr: density(log_snr) + jax.nn.softplus(-log_snr)


def uniform_times(schedule: Schedule) -> LogWeight:
    """rho = 1 / -lambda'(t), the density of log-SNR at uniform times of a schedule: it decides how much a loss varies, not what it is.

    Theorems: weight-of-eps-mse, optimal-importance-density.
    """
    return lambda log_snr: -jnp.log(-at(schedule, time_at(schedule, log_snr)).log_snr_dot)


def implied(prediction: Prediction, p: Point, *, log_density: jax.Array | float = 0.0) -> jax.Array:
    """log w of half the plain squared error of a prediction: w = (det/alpha)^2 pi / -lambda', det = alpha b - sigma a, log pi(t) given.

    Theorems: determinant-is-the-error-factor.
    """
    return 2 * jnp.log(jnp.abs(determinant(prediction, p)) / p.alpha) - jnp.log(-p.log_snr_dot) + log_density


def weight_of(
    prediction: Prediction, schedule: Schedule, *, log_density: Callable[[Time], jax.Array] | None = None
) -> LogWeight:
    """w of half the plain squared error of a prediction, under a schedule, at times of this density; left out, uniform.

    Undefined where the schedule does not reach the log-SNR.
    Theorems: weight-of-eps-mse, fm-equals-v-cosine.
    """

    def log_weight(log_snr: jax.Array) -> jax.Array:
        t = time_at(schedule, log_snr)
        return implied(prediction, at(schedule, t), log_density=0.0 if log_density is None else log_density(t))

    return log_weight


def augmentation(weight: LogWeight) -> LogWeight:
    """-w', how much of each noise level there is in the data of whose ELBOs a weight is a mixture.  Kingma & Gao 2023, Theorem 1.

        1/2 int w E|eps_hat - eps|^2 = w(high) L(high) + int -w' L dlambda,      L(lambda) = 1/2 int_low^lambda E|eps_hat - eps|^2

    L(lambda) is the negative ELBO of z at lambda, up to a constant.  Minus infinity where w is flat, nan where it rises.
    Theorems: kingma-gao.
    """

    def log_density(log_snr: jax.Array) -> jax.Array:
        value, slope = jax.jvp(weight, (log_snr,), (jnp.ones_like(log_snr),))
        return value + jnp.log(-slope)

    return log_density


def overlap(first: LogWeight, second: LogWeight, low: float, high: float, *, count: int = 4097) -> jax.Array:
    """int_low^high min(p, q) dlambda of two weights as densities of this interval: 1 where they are one up to a factor, 0 where apart.

    EDM's and that of the flow at logit-normal times (SD3's), which Gao et al. 2024 call very similar, overlap by 0.907 on [-20, 20],
    of means -2.59 and -3.09 and standard deviations 3.10 and 2.38; either overlaps with that of flow matching at uniform times
    by less than 0.01 there.
    Raises: ValueError where low does not lie below high, or count is less than two.
    Theorems: sd3-resembles-edm.
    """
    require(lambda low, high: low < high, "low must lie below high", low=low, high=high)
    require(lambda count: count >= 2, "count must be at least two", count=count)
    log_snr = jnp.linspace(low, high, count)
    p, q = (jax.nn.softmax(jax.vmap(weight)(log_snr)) for weight in (first, second))
    return jnp.sum(jnp.minimum(p, q))


def require_monotone(weight: LogWeight, low: float, high: float, *, count: int = 1025) -> None:
    """Raises: ValueError where w rises between any two neighbours of `count` log-SNRs from low to high, or is not a number there."""
    log_snr = jnp.linspace(low, high, count)
    value = jax.vmap(weight)(log_snr)
    spoiled = jnp.isnan(value)
    require(
        lambda log_snr: ~jnp.any(spoiled),
        "a weight must be a number at every log-SNR",
        log_snr=log_snr[jnp.argmax(spoiled)],
    )
    slack = 8 * jnp.finfo(value.dtype).eps * (1 + jnp.abs(value))
    rises = value[1:] > value[:-1] + slack[1:]
    require(
        lambda log_snr: ~jnp.any(rises),
        "a weight that rises with log-SNR is no mixture of ELBOs; it does from",
        log_snr=log_snr[jnp.argmax(rises)],
    )


def _log_normal(value: jax.Array, mean: float, std: float) -> jax.Array:
    return -(((value - mean) / std) ** 2) / 2 - jnp.log(std) - math.log(2 * math.pi) / 2
