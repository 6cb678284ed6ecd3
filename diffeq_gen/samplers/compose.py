"""Samplers made of samplers.

started      the first steps by another method, while a multistep method gathers its past
denoised     the last state by the prediction at it
"""

import jax
import jax.numpy as jnp

from diffeq_gen.types import Denoiser, Memory, Sample, Sampler, Time, require

__all__ = ["denoised", "started"]


def started(sampler: Sampler, starter: Sampler, *, steps: int) -> Sampler:
    """The state after each of the first `steps` steps is `starter`'s; `sampler` sees it, and remembers.

    A k-step method begun by its own lower orders has global order 2 at most (one step of DDIM errs by O(h^2)); begun by
    k - 1 steps of order k - 1 it has order k.  The first steps cost the evaluations of both.
    Raises: ValueError where steps < 1.
    Theorems: multistep-startup-cap, third-order-solvers.
    """
    require(lambda steps: steps >= 1, "steps must be at least 1", steps=steps)

    def init(z: Sample) -> Memory:
        return jnp.zeros((), z.dtype), sampler.init(z), starter.init(z)

    def step(noise: Sample, memory: Memory, z: Sample, t: Time, s: Time) -> tuple[Sample, Memory]:
        taken, own, other = memory
        moved, own = sampler.step(noise[: sampler.noises], own, z, t, s)
        begin = lambda: starter.step(noise[: starter.noises], other, z, t, s)  # noqa: E731
        moved, other = jax.lax.cond(taken < steps, begin, lambda: (moved, other))
        return moved, (taken + 1, own, other)

    return Sampler(init, step, noises=max(sampler.noises, starter.noises))


def denoised(sampler: Sampler, denoise: Denoiser, *, last: Time) -> Sampler:
    """A step that ends at `last` or beyond ends in x0_hat(z_s, s) instead of z_s: EDM's, and DPM-Solver's denoise_to_zero.

    `last` is the last time of the grid; one evaluation more, in that step alone where the run is not under `vmap`.  It is the
    step of DDIM from there to pure data of scale one.  Of Gaussian data of variance v under alpha = 1 it turns an excess sigma^2 of
    variance into a lack of v sigma^2/(v + sigma^2).
    Raises: ValueError where last lies outside [0, 1].
    Theorems: final-step-bias, denoised-is-one-step-more.
    """
    require(lambda last: 0 <= last <= 1, "last must lie in [0, 1]", last=last)

    def step(noise: Sample, memory: Memory, z: Sample, t: Time, s: Time) -> tuple[Sample, Memory]:
        moved, memory = sampler.step(noise, memory, z, t, s)
        ended = s <= jnp.asarray(last, jnp.result_type(s))
        return jax.lax.cond(ended, lambda: denoise(moved, s), lambda: moved), memory

    return Sampler(sampler.init, step, sampler.noises)
