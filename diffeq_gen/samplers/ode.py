"""The probability-flow ODE in the time of its schedule, by Euler's rule and by Heun's.

    Euler   z_s = z_t + (s - t) u(z_t, t)
    Heun    z_s = z_t + (s - t) (u(z_t, t) + u(z', s)) / 2,      z' the Euler step

Under `schedules.Flow` the Euler step is DDIM; under any other schedule it is not, for it depends on the scale of z.
"""

import jax.numpy as jnp

from diffeq_gen.equations import probability_flow
from diffeq_gen.types import Denoiser, Memory, Sample, Sampler, Schedule, Time

__all__ = ["euler", "heun"]


def euler(denoise: Denoiser, schedule: Schedule) -> Sampler:
    """z_s = z_t + (s - t) u(z_t, t).  One evaluation a step, order one.

    Theorems: ddim-equals-fm-euler, ddim-scale-invariance-euler-not, indi-is-fm-euler, euler-and-heun-orders.
    """
    field = probability_flow(denoise, schedule)

    def step(noise: Sample, memory: Memory, z: Sample, t: Time, s: Time) -> tuple[Sample, Memory]:
        return z + (s - t) * field(z, t), memory

    return Sampler(lambda z: (), step)


def heun(denoise: Denoiser, schedule: Schedule) -> Sampler:
    """z_s = z_t + (s - t)/2 (u(z_t, t) + u(z_t + (s - t) u(z_t, t), s)).  Two evaluations a step, order two.

    Where sigma_s = 0 the velocity does not exist, and the step is Euler's.
    Theorems: euler-and-heun-orders, higher-order-depends-on-output, edm-is-heun-of-ve.
    """
    field = probability_flow(denoise, schedule)

    def step(noise: Sample, memory: Memory, z: Sample, t: Time, s: Time) -> tuple[Sample, Memory]:
        _, sigma = schedule(s)
        regular = sigma > 0
        slope = field(z, t)
        again = field(z + (s - t) * slope, jnp.where(regular, s, t))
        return z + (s - t) * jnp.where(regular, (slope + again) / 2, slope), memory

    return Sampler(lambda z: (), step)
