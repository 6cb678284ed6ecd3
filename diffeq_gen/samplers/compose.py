"""Samplers made of samplers.

started      the first steps by another method, while a multistep method gathers its past
"""

import jax
import jax.numpy as jnp

from diffeq_gen.types import Memory, Sample, Sampler, Time, require

__all__ = ["started"]


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

    return Sampler(init, step, max(sampler.noises, starter.noises), max(sampler.fewest, starter.fewest))
