"""Weights: what a loss emphasises, as a function of log-SNR alone.

    L_w = 1/2 int w(lambda) E ||eps_hat - eps||^2 d lambda                                Kingma & Gao 2023, Eq. 8

Every loss of the field is one of these, times a constant: a plain squared error of any prediction, under any schedule,
weighs eps by (det/alpha)^2 and spends time -1/lambda' at each log-SNR.  All weights are returned as logarithms.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffeq_gen.predictions import determinant
from diffeq_gen.types import Point, Prediction, require

__all__ = ["LogWeight", "cosine", "edm", "elbo", "flow", "implied", "logit_normal", "sigmoid"]

LogWeight = Callable[[jax.Array], jax.Array]
"""lambda -> log w(lambda)."""


def elbo(log_snr: jax.Array) -> jax.Array:
    """w = 1: the negative of the evidence lower bound.  Kingma et al. 2021, Eq. 14."""
    return jnp.zeros_like(log_snr)


def flow(log_snr: jax.Array) -> jax.Array:
    """w = e^{-lambda/2} / 2: flow matching with uniform t, and up to a factor v-MSE with the cosine schedule.  Gao et al. 2024.

    Theorems: determinant-is-the-error-factor.
    """
    return -log_snr / 2 - math.log(2)


def cosine(log_snr: jax.Array) -> jax.Array:
    """w = sech(lambda/2) / (2 pi): eps-MSE with the cosine schedule and uniform t.  Kingma & Gao 2023, Table 1."""
    return -jnp.logaddexp(log_snr / 2, -log_snr / 2) - math.log(math.pi)


def sigmoid(bias: float) -> LogWeight:
    """w = sigmoid(bias - lambda), monotone.  Hoogeboom et al. 2024, 'Simpler diffusion'; Kingma & Gao 2023, Sec. 5."""
    return lambda log_snr: -jax.nn.softplus(log_snr - bias)


def edm(*, mean: float = -1.2, std: float = 1.2, sigma_data: float = 0.5) -> LogWeight:
    """w = N(lambda; -2 mean, 4 std^2) (e^{-lambda} + sigma_d^2) / sigma_d^2, log sigma ~ N(mean, std^2).  Karras et al. 2022, Table 1.

    Raises: ValueError where std or sigma_data is not positive.
    """
    require(lambda std: std > 0, "std must be positive", std=std)
    require(lambda sigma_data: sigma_data > 0, "sigma_data must be positive", sigma_data=sigma_data)

    def log_weight(log_snr: jax.Array) -> jax.Array:
        return _log_normal(log_snr, -2 * mean, 2 * std) + jax.nn.softplus(-log_snr - 2 * math.log(sigma_data))

    return log_weight


def logit_normal(*, mean: float = 0.0, std: float = 1.0) -> LogWeight:
    """w = (1 + e^{-lambda/2})^2 N(lambda; -2 mean, 4 std^2): velocity-MSE of the flow with logit t ~ N(mean, std^2).  Esser et al. 2024.

    Raises: ValueError where std is not positive.
    """
    require(lambda std: std > 0, "std must be positive", std=std)
    return lambda log_snr: 2 * jax.nn.softplus(-log_snr / 2) + _log_normal(log_snr, -2 * mean, 2 * std)


def implied(prediction: Prediction, p: Point) -> jax.Array:
    """log w of half the plain squared error of a prediction, t uniform: w = (det/alpha)^2 / -lambda', det = alpha b - sigma a.

    Theorems: determinant-is-the-error-factor.
    """
    return 2 * jnp.log(jnp.abs(determinant(prediction, p)) / p.alpha) - jnp.log(-p.log_snr_dot)


def _log_normal(value: jax.Array, mean: float, std: float) -> jax.Array:
    return -(((value - mean) / std) ** 2) / 2 - math.log(std) - math.log(2 * math.pi) / 2
