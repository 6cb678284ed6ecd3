"""Schedules of trained discrete models: read from their table, exact on its knots, and mended at their end.

lambda(t_i) = log abar_i - log(1 - abar_i),  t_i = i/(n - 1);        alpha' = (alpha - alpha(1)) alpha(0)/(alpha(0) - alpha(1))
"""

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen.schedules.reading import variance_preserving
from diffeq_gen.types import Schedule, Time, pytree, require

__all__ = ["Tabulated", "ZeroTerminalSNR"]


@pytree
class Tabulated:
    """The schedule of a trained discrete model: log-SNR linear between knots t_i = i / (n - 1), alpha^2 + sigma^2 = 1.

    `log_snrs` are the n values on the knots, decreasing; alpha and sigma are exact there.
    Raises: ValueError where fewer than two knots are given, or they are not finite and decreasing.
    Theorems: tabulated-is-exact-on-knots.
    """

    log_snrs: jax.Array

    def __post_init__(self) -> None:
        require(_falls, "log_snrs must be a finite, decreasing sequence of at least two values", log_snrs=self.log_snrs)

    @staticmethod
    def from_alphas_cumprod(alphas_cumprod: jax.Array) -> "Tabulated":
        """From abar_i = alpha_i^2 in (0, 1), decreasing: lambda_i = log abar_i - log(1 - abar_i), in float64.

        Raises: ValueError where a value lies outside (0, 1); a model with zero terminal SNR is `ZeroTerminalSNR`.
        """
        abar = np.asarray(alphas_cumprod, np.float64)
        require(lambda abar: (abar > 0) & (abar < 1), "alphas_cumprod must lie in (0, 1)", alphas_cumprod=abar)
        return Tabulated(np.log(abar) - np.log1p(-abar))

    @staticmethod
    def from_betas(betas: jax.Array) -> "Tabulated":
        """From beta_i in (0, 1): log abar = cumulative sum of log1p(-beta), 1 - abar = -expm1(log abar), in float64.

        Never 1 - cumprod(1 - beta): in float32 that is wrong by 1.7e-4 of sigma^2 at the first knot of DDPM's betas.
        Raises: ValueError where a value lies outside (0, 1).
        """
        beta = np.asarray(betas, np.float64)
        require(lambda beta: (beta > 0) & (beta < 1), "betas must lie in (0, 1)", betas=beta)
        log_abar = np.cumsum(np.log1p(-beta))
        return Tabulated(log_abar - np.log(-np.expm1(log_abar)))

    def __call__(self, t: Time) -> tuple[jax.Array, jax.Array]:
        return variance_preserving(self.log_snr(t))

    def log_snr(self, t: Time) -> jax.Array:
        """(1 - w) lambda_i + w lambda_{i+1} between knots i and i + 1."""
        t = jnp.asarray(t)
        knots = jnp.asarray(self.log_snrs, t.dtype)
        place = t * (knots.size - 1)
        i = jnp.clip(jnp.floor(place).astype(jnp.int32), 0, knots.size - 2)
        w = place - i.astype(t.dtype)
        return (1 - w) * knots[i] + w * knots[i + 1]

    def time_at(self, log_snr: jax.Array) -> jax.Array:
        """The inverse, linear between the knots that enclose log_snr."""
        log_snr = jnp.asarray(log_snr)
        knots = jnp.asarray(self.log_snrs, log_snr.dtype)
        i = jnp.clip(jnp.searchsorted(-knots, -log_snr, side="right") - 1, 0, knots.size - 2)
        return (i.astype(log_snr.dtype) + (knots[i] - log_snr) / (knots[i] - knots[i + 1])) / (knots.size - 1)


@pytree
class ZeroTerminalSNR:
    """alpha' = (alpha - alpha(1)) alpha(0) / (alpha(0) - alpha(1)), sigma'^2 = 1 - alpha'^2.  Lin et al. 2024, Algorithm 1.

    For a variance-preserving `schedule`: alpha(0) is kept, SNR at t = 1 becomes exactly 0.  1 - alpha is read off as
    sigma^2 / (1 + alpha), so that sigma' keeps its digits as t -> 0.
    Theorems: zero-terminal-snr.
    """

    schedule: Schedule

    def __call__(self, t: Time) -> tuple[jax.Array, jax.Array]:
        t = jnp.asarray(t)
        alpha, sigma = self.schedule(t)
        first, sigma_0 = self.schedule(jnp.zeros_like(t))
        last, _ = self.schedule(jnp.ones_like(t))
        alpha_prime = first * (alpha - last) / (first - last)
        lost = (first * sigma**2 / (1 + alpha) - last * sigma_0**2 / (1 + first)) / (first - last)
        return alpha_prime, jnp.sqrt(lost * (1 + alpha_prime))


def _falls(log_snrs: jax.Array) -> bool:
    values = np.asarray(log_snrs)
    return values.ndim == 1 and values.size > 1 and bool(np.all(np.isfinite(values)) and np.all(np.diff(values) < 0))
