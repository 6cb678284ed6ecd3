"""The one scan: times fall, the loop draws the noise, the sampler steps.

z_{i+1}, memory = step(noise_i, memory, z_i, t_i, t_{i+1}),        noise_i ~ N(0, I),  i = 0 ... n - 1
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen.types import Key, Sample, Sampler, require

__all__ = ["sample", "trajectory"]


def sample(key: Key, sampler: Sampler, z: Sample, times: jax.Array) -> Sample:
    """The state at the last time, from state z at the first.  Memory does not grow with the number of steps.

    Compiled once for a sampler and the shapes of z and times.  The same key gives the same noise whatever the sampler.
    Raises: ValueError where times is not a decreasing sequence of at least two values within [0, 1].
    Theorems: sample-is-the-last-of-trajectory.
    """
    _require_falling(times)
    return _run(key, sampler, z, jnp.asarray(times), False)


def trajectory(key: Key, sampler: Sampler, z: Sample, times: jax.Array) -> Sample:
    """Every state, z first: shape (len(times), *z.shape).

    Raises: ValueError where times is not a decreasing sequence of at least two values within [0, 1].
    Theorems: sample-is-the-last-of-trajectory.
    """
    _require_falling(times)
    return _run(key, sampler, z, jnp.asarray(times), True)


@functools.partial(jax.jit, static_argnames=("sampler", "keep"))
def _run(key: Key, sampler: Sampler, z: Sample, times: jax.Array, keep: bool) -> Sample:
    times = times.astype(z.dtype)

    def body(
        carry: tuple[Sample, object], inputs: tuple[Key, jax.Array, jax.Array]
    ) -> tuple[tuple[Sample, object], Sample | None]:
        (z, memory), (key, t, s) = carry, inputs
        noise = jax.random.normal(key, (sampler.noises, *z.shape), z.dtype)
        z, memory = sampler.step(noise, memory, z, t, s)
        return (z, memory), z if keep else None

    keys = jax.random.split(key, len(times) - 1)
    (last, _), states = jax.lax.scan(body, (z, sampler.init(z)), (keys, times[:-1], times[1:]))
    return jnp.concatenate([z[None], states]) if keep else last


def _require_falling(times: jax.Array) -> None:
    require(
        lambda times: np.ndim(times) == 1 and len(times) > 1 and np.all(np.diff(times) < 0),
        "times must be a decreasing sequence of at least two values",
        times=times,
    )
    require(
        lambda first, last: (last >= 0) & (first <= 1), "times must lie within [0, 1]", first=times[0], last=times[-1]
    )
