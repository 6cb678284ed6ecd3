"""Traces: the divergence of a field, exactly by a derivative along every axis, or estimated along few directions.

    div u = tr J,  J = du/dz                                                    d directional derivatives
    tr J  = E[e^T J e]  where E[e e^T] = I                                      Hutchinson 1990
    Var e^T J e = 2 |S|^2 (Gaussian e),   2 (|S|^2 - sum_i S_ii^2) (signs),     S = (J + J^T)/2,  |.| Frobenius's norm

Directions that are orthogonal to each other and sqrt(d) long see no axis twice: d of them tell the trace exactly.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffeq_gen.types import Key, Sample, dot, require

__all__ = ["divergence", "estimated", "gaussian_probes", "orthogonal_probes", "rademacher_probes", "variance"]

Vector = Callable[[Sample], Sample]
"""z -> a vector at z of its shape: a field or a denoiser at one time."""


def divergence(u: Vector, z: Sample) -> tuple[Sample, jax.Array]:
    """(u(z), tr du/dz), exactly: one jvp for each dimension, all at once.

    Theorems: hutchinson-variance, perspective-flow.
    """
    value, push = jax.linearize(lambda flat: u(flat.reshape(z.shape)).reshape(-1), z.reshape(-1))
    return value.reshape(z.shape), jnp.trace(jax.vmap(push)(jnp.eye(z.size, dtype=z.dtype)))


def estimated(u: Vector, z: Sample, probes: Sample) -> tuple[Sample, jax.Array]:
    """(u(z), mean of e^T du/dz e over the probes), probes (k, *z.shape): one jvp for each, all at once; unbiased.

    Raises: ValueError where probes are not of the shape (k, *z.shape), k >= 1.
    Theorems: hutchinson-variance, orthogonal-probes-see-no-axis-twice.
    """
    require(lambda shape: len(shape) == z.ndim + 1 and shape[0] > 0 and shape[1:] == z.shape,
            f"probes must be of shape (k, *{z.shape}), k >= 1", shape=probes.shape)  # fmt: skip
    value, push = jax.linearize(u, z)
    along = jax.vmap(lambda e: jnp.sum(e * push(e)))(probes)
    return value, jnp.mean(along)


def variance(jacobian: jax.Array, *, signs: bool) -> jax.Array:
    """Of one e^T J e, J (d, d): 2 |S|^2 of Gaussian probes, of signs less by 2 sum_i S_ii^2; nothing of them if J is diagonal.

    Theorems: hutchinson-variance.
    """
    part = (jacobian + jacobian.T) / 2
    return 2 * (jnp.sum(jnp.square(part)) - (jnp.sum(jnp.square(jnp.diagonal(part))) if signs else 0))


def gaussian_probes(key: Key, shape: tuple[int, ...], *, k: int = 1) -> Sample:
    """k draws of N(0, I): shape (k, *shape)."""
    return jax.random.normal(key, (k, *shape))


def rademacher_probes(key: Key, shape: tuple[int, ...], *, k: int = 1) -> Sample:
    """k draws of independent signs, which among independent entries of unit variance spread least: shape (k, *shape).

    Theorems: hutchinson-variance.
    """
    return jax.random.rademacher(key, (k, *shape), float)


def orthogonal_probes(key: Key, shape: tuple[int, ...], *, k: int = 1) -> Sample:
    """k directions, uniform on the sphere of radius sqrt(d) and orthogonal to each other: shape (k, *shape).

    Raises: ValueError where there are more of them than dimensions.
    Theorems: orthogonal-probes-see-no-axis-twice.
    """
    d = math.prod(shape)
    require(lambda k: 0 < k <= d, f"orthogonal probes must be from 1 to {d}", k=k)
    q, r = jnp.linalg.qr(jax.random.normal(key, (d, k)))
    return (jnp.sqrt(d) * dot(q, jnp.diag(jnp.sign(jnp.diagonal(r)))).T).reshape(k, *shape)
