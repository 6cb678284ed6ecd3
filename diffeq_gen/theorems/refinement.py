"""Refinement: the grids on which an order is read off, all of one length, so that one compilation serves them all."""

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["SIZES", "grids"]

SIZES = (16, 32, 64, 128, 256)
"""Numbers of steps.  Every grid is written over the finest, its times repeated: a step of no length changes nothing."""


def grids(first: float, last: float, dtype: np.dtype, *, sizes: tuple[int, ...] = SIZES) -> jax.Array:
    """One grid of times for each size: shape (sizes, finest + 1)."""
    finest = np.arange(sizes[-1] + 1)
    shares = np.stack([np.floor(finest * n / sizes[-1]) / n for n in sizes])
    return jnp.asarray(first + (last - first) * shares, dtype)
