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
from diffeq_gen.types import Denoiser, Key, Sample, Schedule, Time

__all__ = ["bits_per_dim", "divergence", "elbo", "log_prob"]


def divergence(denoise: Denoiser, z: Sample, t: Time) -> tuple[Sample, jax.Array]:
    """(x0_hat, trace of d x0_hat/dz), exactly: one jvp for each dimension, all at once.
    Theorems: perspective-flow.
    """
    flat, shape = z.reshape(-1), z.shape

    def read(flat: Sample) -> Sample:
        return denoise(flat.reshape(shape), t).reshape(-1)

    x0, push = jax.linearize(read, flat)
    return x0.reshape(shape), jnp.trace(jax.vmap(push)(jnp.eye(flat.size, dtype=z.dtype)))


def log_prob(
    denoise: Denoiser, schedule: Schedule, x0: Sample, *, steps: int = 32,
    log_snr_min: float = -12.0, log_snr_max: float = 12.0,
) -> jax.Array:  # fmt: skip
    """log p(x0) in nats, of one sample: the probability flow in log-SNR by the classical Runge-Kutta rule, with exact divergence.

    In z/sqrt(alpha^2 + sigma^2), with c^2 = sigmoid(lambda), the flow is dz/d lambda = c (x0_hat - c z)/2, whose slope fades at
    both ends, and log p changes by -(c/2)(tr(d x0_hat/dz) - c d) d lambda: no schedule is left in it.  The start is x0 itself at
    log_snr_max, as the law of x0 blurred by e^{-log_snr_max/2}: data without such a blur need dequantisation, or a larger
    log_snr_max.  Four evaluations a step, each with d directional derivatives; the error falls as steps^-4.
    """
    low, high = clocks.log_snr_range(schedule, log_snr_min=log_snr_min, log_snr_max=log_snr_max)
    ladder = jnp.linspace(high, low, steps + 1).astype(x0.dtype)

    def cosine(log_snr: jax.Array) -> jax.Array:
        return jnp.exp(-jax.nn.softplus(-log_snr) / 2)

    def slope(log_snr: jax.Array, state: tuple[Sample, jax.Array]) -> tuple[Sample, jax.Array]:
        t, c = clocks.time_at(schedule, log_snr), cosine(log_snr)
        alpha, sigma = schedule(t)
        norm = jnp.sqrt(alpha**2 + sigma**2)
        x0_hat, trace = divergence(lambda z, t: denoise(norm * z, t), state[0], t)
        return c / 2 * (x0_hat - c * state[0]), c / 2 * (trace - c * x0.size)

    def step(
        state: tuple[Sample, jax.Array], pair: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[Sample, jax.Array], None]:
        here, there = pair
        h, middle = there - here, (here + there) / 2
        first = slope(here, state)
        second = slope(middle, _moved(state, h / 2, first))
        third = slope(middle, _moved(state, h / 2, second))
        last = slope(there, _moved(state, h, third))
        for weight, part in ((1, first), (2, second), (2, third), (1, last)):
            state = _moved(state, weight * h / 6, part)
        return state, None

    first = cosine(ladder[0])
    (z, gained), _ = jax.lax.scan(step, (first * x0, jnp.zeros((), x0.dtype)), (ladder[:-1], ladder[1:]))
    prior = -jnp.sum(z**2) / 2 - x0.size / 2 * math.log(2 * math.pi)
    return prior + gained + x0.size * jnp.log(first)


def _moved(state: tuple[Sample, jax.Array], h: jax.Array, slope: tuple[Sample, jax.Array]) -> tuple[Sample, jax.Array]:
    return jax.tree.map(lambda value, rate: value + h * rate, state, slope)


def elbo(
    key: Key, denoise: Denoiser, schedule: Schedule, x0: Sample, *, samples: int = 64,
    log_snr_min: float = -12.0, log_snr_max: float = 12.0,
) -> jax.Array:  # fmt: skip
    """A lower bound of log p(x0) in nats, of one sample: -(prior KL + diffusion + reconstruction), unbiased in the key.

    The integral over log-SNR is a mean over `samples` stratified draws.  Continuous x0: the reconstruction is the density
    N(z/alpha, e^{-log_snr_max} I) at x0, so the bound is one for the density.
    """
    low, high = (
        bound.astype(x0.dtype)
        for bound in clocks.log_snr_range(schedule, log_snr_min=log_snr_min, log_snr_max=log_snr_max)
    )
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
