"""The one scan: times fall, the loop draws the noise, the sampler steps.

z_{i+1}, memory = step(noise_i, memory, z_i, t_i, t_{i+1}),        noise_i ~ N(0, I),  i = 0 ... n - 1
"""

import functools

import jax
import jax.numpy as jnp

from diffeq_gen.grids import require_falling
from diffeq_gen.types import Key, Memory, Sample, Sampler, Time, require

__all__ = ["sample", "taken", "trajectory"]


def sample(key: Key, sampler: Sampler, z: Sample, times: jax.Array) -> Sample:
    """The state at the last time, from state z at the first.  Memory does not grow with the number of steps.

    Compiled once for a sampler and the shapes of z and times.  The same key gives the same noise whatever the sampler.
    Raises: ValueError where times is not a decreasing sequence of at least two values within [0, 1], or has fewer steps than
    the order of the sampler needs; and where a step changes the shape or dtype of z or of its memory.
    Theorems: sample-is-the-last-of-trajectory.
    """
    _require_grid(sampler, times)
    return _run(key, sampler, z, jnp.asarray(times), False)


def trajectory(key: Key, sampler: Sampler, z: Sample, times: jax.Array) -> Sample:
    """Every state, z first: shape (len(times), *z.shape).

    Raises: ValueError as `sample` does.
    Theorems: sample-is-the-last-of-trajectory.
    """
    _require_grid(sampler, times)
    return _run(key, sampler, z, jnp.asarray(times), True)


@functools.partial(jax.jit, static_argnames=("sampler", "keep"))
def _run(key: Key, sampler: Sampler, z: Sample, times: jax.Array, keep: bool) -> Sample:
    times = times.astype(z.dtype)

    def body(
        carry: tuple[Sample, object], inputs: tuple[Key, jax.Array, jax.Array]
    ) -> tuple[tuple[Sample, object], Sample | None]:
        (z, memory), (key, t, s) = carry, inputs
        noise = jax.random.normal(key, (sampler.noises, *z.shape), z.dtype)
        z, memory = taken(noise, sampler, memory, z, t, s)
        return (z, memory), z if keep else None

    keys = jax.random.split(key, len(times) - 1)
    (last, _), states = jax.lax.scan(body, (z, sampler.init(z)), (keys, times[:-1], times[1:]))
    return jnp.concatenate([z[None], states]) if keep else last


def taken(noise: Sample, sampler: Sampler, memory: Memory, z: Sample, t: Time, s: Time) -> tuple[Sample, Memory]:
    """(z_s, memory) of one step, which is as large as it was before: so one compilation serves every step.

    Raises: TypeError where a step returns no pair; ValueError naming both, where it changes a shape, a dtype or the structure
    of its memory.
    """
    after = sampler.step(noise, memory, z, t, s)
    if not (isinstance(after, tuple) and len(after) == 2):
        raise TypeError(f"a step must return (z, memory), got {type(after).__name__}")
    _require_alike("the shape of z", jnp.shape(after[0]), jnp.shape(z))
    _require_alike("the dtype of z", jnp.result_type(after[0]).name, jnp.result_type(z).name)
    _require_alike("the structure of its memory", *(str(jax.tree.structure(one)) for one in (after[1], memory)))
    for new, old in zip(jax.tree.leaves(after[1]), jax.tree.leaves(memory), strict=True):
        _require_alike("the shapes of its memory", jnp.shape(new), jnp.shape(old))
        if not jax.typeof(old).weak_type:  # a Python number takes the dtype of what replaces it
            _require_alike("the dtypes of its memory", jnp.result_type(new).name, jnp.result_type(old).name)
    return after


def _require_alike(what: str, after: object, before: object) -> None:
    if after != before:
        raise ValueError(f"a step must keep {what}, got {after} from {before}")


def _require_grid(sampler: Sampler, times: jax.Array) -> None:
    require_falling(times)
    require(lambda steps, fewest: steps >= fewest, "the sampler's order needs more steps",
            steps=len(times) - 1, fewest=sampler.fewest)  # fmt: skip
