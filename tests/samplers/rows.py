"""The noise that a step reads is the first of the rows that it is given, as many as it asks for: so steps can be put together."""

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen.types import Sampler

__all__ = ["reads_its_first_rows"]


def reads_its_first_rows(sampler: Sampler, t: float = 0.6, s: float = 0.5) -> None:
    """One step with the rows asked for ends where it does with other rows after them, and not where it does with those alone."""
    z = jnp.array([0.3, 2.0])
    rows = jax.random.normal(jax.random.key(1), (2 * sampler.noises + 2, 2), z.dtype)

    def end(rows: jax.Array) -> np.ndarray:
        return np.asarray(sampler.step(rows, sampler.init(z), z, jnp.asarray(t), jnp.asarray(s))[0])

    own = end(rows[: sampler.noises])
    np.testing.assert_array_equal(own, end(rows))
    assert np.all(np.abs(own - end(rows[sampler.noises :])) > 1e-3)
