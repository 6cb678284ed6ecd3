"""Likelihood: exactly by the probability flow, in expectation by the ELBO.

    d log p_t(z_t)/dt = -div u       =>   log p(x0) = log p_1(z_1) + int_0^1 div u dt              Chen et al. 2018; Song et al. 2021
    -log p(x0) <= KL(q(z_1 | x0) | N) + 1/2 int E|eps - eps_hat|^2 d lambda + E[-log p(x0 | z_0)]  Kingma et al. 2021, Eq. 11

Both run in the clock of log-SNR, between the ends of `clocks.log_snr_range`: at the clean end the model is
p(x0 | z) = N(z/alpha, e^{-lambda_max} I), at the noisy end N(0, alpha^2 + sigma^2).  All in nats; `bits_per_dim` converts.
"""

import math

import jax
import jax.numpy as jnp

from diffeq_gen import clocks
from diffeq_gen.predictions import convert, data, noise
from diffeq_gen.schedules import at
from diffeq_gen.types import Denoiser, Key, Point, Sample, Schedule, Time

__all__ = ["bits_per_dim", "divergence", "elbo", "log_prob"]


def divergence(denoise: Denoiser, z: Sample, t: Time) -> tuple[Sample, jax.Array]:
    """(x0_hat, trace of d x0_hat/dz), exactly: one jvp for each dimension, all at once."""
    flat, shape = z.reshape(-1), z.shape

    def read(flat: Sample) -> Sample:
        return denoise(flat.reshape(shape), t).reshape(-1)

    x0, push = jax.linearize(read, flat)
    return x0.reshape(shape), jnp.trace(jax.vmap(push)(jnp.eye(flat.size, dtype=z.dtype)))


def log_prob(
    denoise: Denoiser, schedule: Schedule, x0: Sample, *, steps: int = 64,
    log_snr_min: float = -12.0, log_snr_max: float = 12.0,
) -> jax.Array:  # fmt: skip
    """log p(x0) in nats, of one sample: Heun's rule for the probability flow in log-SNR, with the exact divergence.

    In y = z/alpha the flow is dy/dl = (x0_hat - y)/2 per unit l of log-SNR, so log p changes by (tr(d x0_hat/dy) - d)/2 dl: no
    schedule is left in it.  The start is x0 itself at log_snr_max, as the law of x0 blurred by e^{-log_snr_max/2}: data that
    are not blurred so already need dequantisation, or a larger log_snr_max.  The error falls as steps^-2.
    """
    low, high = clocks.log_snr_range(schedule, log_snr_min=log_snr_min, log_snr_max=log_snr_max)
    ladder = jnp.linspace(high, low, steps + 1).astype(x0.dtype)
    d = x0.size

    def slope(y: Sample, log_snr: jax.Array) -> tuple[Sample, jax.Array]:
        t = clocks.time_at(schedule, log_snr)
        alpha, _ = schedule(t)
        x0_hat, trace = divergence(lambda y, t: denoise(alpha * y, t), y, t)
        return (x0_hat - y) / 2, (trace - d) / 2

    def step(carry: tuple[Sample, jax.Array], pair: tuple[jax.Array, jax.Array]) -> tuple[tuple, None]:
        (y, gained), (here, there) = carry, pair
        first, first_trace = slope(y, here)
        second, second_trace = slope(y + (there - here) * first, there)
        y = y + (there - here) / 2 * (first + second)
        return (y, gained + (there - here) / 2 * (first_trace + second_trace)), None

    start = (x0, jnp.zeros((), x0.dtype))
    (y, gained), _ = jax.lax.scan(step, start, (ladder[:-1], ladder[1:]))
    p = at(schedule, clocks.time_at(schedule, ladder[-1]))
    return _prior(p.alpha * y, p) + d * jnp.log(p.alpha) + gained


def _prior(z: Sample, p: Point) -> jax.Array:
    """log N(z; 0, (alpha^2 + sigma^2) I): what sampling starts from, for data of about unit variance."""
    variance = p.alpha**2 + p.sigma**2
    return -jnp.sum(z**2) / (2 * variance) - z.size / 2 * (jnp.log(variance) + math.log(2 * math.pi))


def elbo(
    key: Key, denoise: Denoiser, schedule: Schedule, x0: Sample, *, samples: int = 64,
    log_snr_min: float = -12.0, log_snr_max: float = 12.0,
) -> jax.Array:  # fmt: skip
    """A lower bound of log p(x0) in nats, of one sample: -(prior KL + diffusion + reconstruction), unbiased in the key.

    The integral over log-SNR is a mean over `samples` stratified draws.  Continuous x0: the reconstruction is the density
    N(z/alpha, e^{-log_snr_max} I) at x0, so the bound is one for the density.
    """
    low, high = (bound.astype(x0.dtype) for bound in clocks.log_snr_range(schedule, log_snr_min=log_snr_min, log_snr_max=log_snr_max))
    time_key, noise_key, last_key = jax.random.split(key, 3)
    u = (jnp.arange(samples, dtype=x0.dtype) + jax.random.uniform(time_key, (samples,), x0.dtype)) / samples
    ladder = low + (high - low) * u

    def term(key: Key, log_snr: jax.Array) -> jax.Array:
        p = at(schedule, clocks.time_at(schedule, log_snr))
        eps = jax.random.normal(key, x0.shape, x0.dtype)
        z = p.alpha * x0 + p.sigma * eps
        return jnp.sum((convert(denoise(z, p.t), z, p, data, noise) - eps) ** 2)

    diffusion = (
        (high - low)
        / 2
        * jnp.mean(jax.lax.map(lambda pair: term(*pair), (jax.random.split(noise_key, samples), ladder)))
    )
    noisy = at(schedule, clocks.time_at(schedule, low))
    variance = noisy.alpha**2 + noisy.sigma**2
    share = noisy.sigma**2 / variance
    kl = jnp.sum((noisy.alpha * x0) ** 2) / (2 * variance) + x0.size / 2 * (share - 1 - jnp.log(share))
    eps = jax.random.normal(last_key, x0.shape, x0.dtype)
    reconstruction = jnp.sum(eps**2) / 2 + x0.size / 2 * (math.log(2 * math.pi) - high)
    return -(kl + diffusion + reconstruction)


def bits_per_dim(nats: jax.Array, dimensions: int, *, bin_width: float = 1.0) -> jax.Array:
    """(-nats / dimensions - log bin_width) / log 2: from the log-density of dequantised data to bits per dimension.

    `bin_width` is the distance between two neighbouring levels in the units of the density: 2/256 for bytes on [-1, 1].
    """
    return (-nats / dimensions - math.log(bin_width)) / math.log(2)
