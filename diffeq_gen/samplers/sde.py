"""The reverse family of SDEs by Euler-Maruyama, with any noise level eta(t).

z_s = z_t + (s - t) b(z_t, t) + eta(t) g(t) sqrt(t - s) eps
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffeq_gen.equations import reverse_sde
from diffeq_gen.types import Denoiser, Memory, Sample, Sampler, Schedule, Time, require

__all__ = ["euler_maruyama"]


def euler_maruyama(denoise: Denoiser, schedule: Schedule, *, eta: float | Callable[[Time], jax.Array] = 1.0) -> Sampler:
    """z_s = z_t + (s - t) b(z_t, t) + eta g sqrt(t - s) eps, (b, eta g) from `equations.reverse_sde`.  Song et al. 2021.

    One evaluation a step, weak order one.  eta = 0 is `euler`.  Undefined at alpha_t = 0 and at sigma_t = 0, where g has no value.
    Raises: ValueError where a constant eta is negative; and at a step from such an end whose time is known, as it is outside
    `jit`.
    Theorems: sde-eta-exact-step, em-orders-linear, reverse-family.
    """
    drift, diffusion = reverse_sde(denoise, schedule, eta=eta)

    def step(noise: Sample, memory: Memory, z: Sample, t: Time, s: Time) -> tuple[Sample, Memory]:
        alpha, sigma = schedule(t)
        require(lambda alpha, sigma, t: (alpha > 0) & (sigma > 0),
                "alpha and sigma must be positive where a step of euler_maruyama begins", alpha=alpha, sigma=sigma, t=t)  # fmt: skip
        return z + (s - t) * drift(z, t) + diffusion(t) * jnp.sqrt(t - s) * noise[0], memory

    return Sampler(lambda z: (), step, noises=1)
