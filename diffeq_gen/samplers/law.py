"""The exact law of a sampler on Gaussian data: every step is then an affine map of (z, memory, noise).

m' = A m + b,        S' = A S A^T + B B^T,        A = d step / d state,  B = d step / d noise
"""

import functools

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from diffeq_gen.samplers.loop import taken
from diffeq_gen.types import Sampler, dot

__all__ = ["law"]


@functools.partial(jax.jit, static_argnames="sampler")
def law(sampler: Sampler, mean: jax.Array, cov: jax.Array, times: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(mean, cov) of the state at the last time, from z ~ N(mean, cov) of shape (d,) at the first.  No sampling error.

    Exact where each step is affine in (z, memory, noise): any linear sampler whose denoiser is that of Gaussian data.  For
    other steps it is their linearisation about the mean.
    Raises: ValueError where a step changes the shape or dtype of z or of its memory.
    Theorems: law-of-an-affine-sampler, first-order-law-orders, flipped-ddim-matches-diffusion, ula-bias, final-step-bias.
    """
    size = mean.size
    start, unravel = ravel_pytree((mean, sampler.init(mean)))
    opening = jax.jacfwd(lambda z: ravel_pytree((z, sampler.init(z)))[0])(mean)
    still = jnp.zeros(sampler.noises * size, mean.dtype)

    def body(moments: tuple[jax.Array, jax.Array], pair: tuple[jax.Array, jax.Array]) -> tuple[tuple, None]:
        (m, cov), (t, s) = moments, pair

        def move(state: jax.Array, noise: jax.Array) -> jax.Array:
            z, memory = unravel(state)
            z, memory = taken(noise.reshape(sampler.noises, size), sampler, memory, z, t, s)
            return ravel_pytree((z, memory))[0]

        by_state, by_noise = jax.jacfwd(move, argnums=(0, 1))(m, still)
        return (move(m, still), _between(by_state, cov) + dot(by_noise, by_noise.T)), None

    times = times.astype(mean.dtype)
    (m, cov), _ = jax.lax.scan(body, (start, _between(opening, cov)), (times[:-1], times[1:]))
    return m[:size], cov[:size, :size]


def _between(a: jax.Array, cov: jax.Array) -> jax.Array:
    return dot(dot(a, cov), a.T)
