"""The noise that a step reads is the first of the rows that it is given, as many as it asks for: so steps can be put together."""

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen.types import Sampler

__all__ = ["ends_with_more_rows"]


def ends_with_more_rows(sampler: Sampler, t: float = 0.6, s: float = 0.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """z_s of one step with the rows asked for; with other rows after them; with other rows alone."""
    z = jnp.array([0.3, 2.0])
    rows = jax.random.normal(jax.random.key(1), (2 * sampler.noises + 2, 2), z.dtype)

    def end(rows: jax.Array) -> np.ndarray:
        return np.asarray(sampler.step(rows, sampler.init(z), z, jnp.asarray(t), jnp.asarray(s))[0])

    return end(rows[: sampler.noises]), end(rows), end(rows[sampler.noises :])
