"""The sampler of Karras et al. 2022: Heun's rule in sigma, with noise added before each step.

x = z/alpha, sigma = sigma_t/alpha_t;    x_hat = x + S_noise sqrt(sigma_hat^2 - sigma^2) eps,  sigma_hat = (1 + gamma) sigma
d = (x_hat - D(x_hat; sigma_hat)) / sigma_hat,    x' = x_hat + (sigma_next - sigma_hat) d
d' = (x' - D(x'; sigma_next)) / sigma_next,       x_next = x_hat + (sigma_next - sigma_hat) (d + d')/2
"""

import math

import jax
import jax.numpy as jnp

from diffeq_gen.clocks import time_at, within
from diffeq_gen.schedules import at
from diffeq_gen.types import Denoiser, Memory, Sample, Sampler, Schedule, Time, concrete, require

__all__ = ["edm"]

GAMMA_MAX = math.sqrt(2) - 1


def edm(
    denoise: Denoiser,
    schedule: Schedule,
    *,
    steps: int = 1,
    s_churn: float = 0.0,
    s_min: float = 0.0,
    s_max: float = math.inf,
    s_noise: float = 1.0,
) -> Sampler:
    """Algorithm 2 of Karras et al. 2022, for any schedule: gamma = min(s_churn / steps, sqrt(2) - 1) where s_min <= sigma <= s_max.

    `steps` is the number of steps of the grid, over which s_churn is shared.  All sigma are in units of alpha.  Two
    evaluations a step; where sigma_next = 0 the step is Euler's and returns alpha_s D.  Noise goes no further than time 1, beyond
    which no network was trained.  Undefined at alpha_t = 0 and at sigma_t = 0.  Unless s_noise = 1 the marginals are not preserved.
    Raises: ValueError where steps < 1, or s_churn or s_noise is negative, or s_min exceeds s_max; and at a step from alpha_t = 0
    or sigma_t = 0 whose time is known, as it is outside `jit`.
    Theorems: edm-churn-vs-blog-churn, edm-is-heun-of-ve, edm-tangent-points-to-denoiser, higher-order-depends-on-output.
    """
    require(lambda steps: steps >= 1, "steps must be at least 1", steps=steps)
    require(lambda s_churn: s_churn >= 0, "s_churn must not be negative", s_churn=s_churn)
    require(lambda s_noise: s_noise >= 0, "s_noise must not be negative", s_noise=s_noise)
    require(lambda low, high: low <= high, "s_min must not exceed s_max", s_min=s_min, s_max=s_max)
    still = concrete(s_churn) and s_churn == 0

    def slope(x: Sample, t: Time, alpha: jax.Array, sigma: jax.Array) -> Sample:
        return (x - denoise(alpha * x, t)) / sigma

    def step(noise: Sample, memory: Memory, z: Sample, t: Time, s: Time) -> tuple[Sample, Memory]:
        p, q = at(schedule, t), at(schedule, s)
        require(lambda alpha, sigma, t: (alpha > 0) & (sigma > 0),
                "alpha and sigma must be positive where a step of edm begins", alpha=p.alpha, sigma=p.sigma, t=t)  # fmt: skip
        x, sigma, sigma_next = z / p.alpha, p.sigma / p.alpha, q.sigma / q.alpha
        if not still:
            gamma = jnp.where((s_min <= sigma) & (sigma <= s_max), jnp.minimum(s_churn / steps, GAMMA_MAX), 0)
            room = _room(schedule, t, sigma)
            gamma = jnp.where(room < gamma, room, gamma)
            raised = gamma > 0
            added = jnp.where(raised, jnp.sqrt(jnp.where(raised, gamma * (2 + gamma), 1)), 0)
            x = x + s_noise * sigma * added * noise[0]
            sigma = (1 + gamma) * sigma
            t = within(time_at(schedule, -2 * jnp.log(sigma)))
        d = slope(x, t, schedule(t)[0], sigma)
        regular = sigma_next > 0
        ahead = x + (sigma_next - sigma) * d
        safe = jax.tree.map(
            lambda there, here: jnp.where(regular, there, here), (s, q.alpha, sigma_next), (t, p.alpha, sigma)
        )
        d = jnp.where(regular, (d + slope(ahead, *safe)) / 2, d)
        return q.alpha * (x + (sigma_next - sigma) * d), memory

    return Sampler(lambda z: (), step, noises=0 if still else 1)


def _room(schedule: Schedule, t: Time, sigma: jax.Array) -> jax.Array:
    """The gamma that leads to time 1; more than any where there is noise alone."""
    end = at(schedule, jnp.ones_like(t))
    pure = end.alpha <= 0
    highest = end.sigma / jnp.where(pure, 1, end.alpha)
    return jnp.where(pure, 1, jnp.maximum(highest / sigma - 1, 0))
