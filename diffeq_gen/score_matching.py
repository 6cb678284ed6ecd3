"""Score matching: the score regressed, with a target that is not known, with none, and with one that is.

    explicit    J = 1/2 E|s_hat - grad log p|^2                                                             Hyvarinen 2005
    implicit    E[1/2 |s_hat|^2 + div s_hat]                        = J - 1/2 E|grad log p|^2
    sliced      E[1/2 (v . s_hat)^2 + v^T grad s_hat v],  E v v^T = I    the same in expectation            Song et al. 2019
    denoising   1/2 E|s_hat - grad log q(z|x0)|^2                   = J + 1/2 alpha^2/sigma^4 E|x0 - x0_hat|^2   Vincent 2011

All have one minimiser.  The constants differ, and with them what a draw varies by: that of denoising grows as 1/sigma^2.
"""

import jax
import jax.numpy as jnp

from diffeq_gen import traces
from diffeq_gen.losses import denoising_loss
from diffeq_gen.predictions import score as score_form
from diffeq_gen.types import Field, Sample, Schedule, Time

__all__ = ["denoising", "explicit", "implicit", "sliced"]


def explicit(field: Field, score: Field, z: Sample, t: Time) -> jax.Array:
    """1/2 |field - score|^2 of one sample, of the sum over its entries: where the score of p_t is known.

    Theorems: denoising-is-explicit-score-matching, implicit-score-matching, score-is-free-of-normalisation.
    """
    return jnp.sum(jnp.square(field(z, t) - score(z, t))) / 2


def implicit(field: Field, z: Sample, t: Time) -> jax.Array:
    """1/2 |field|^2 + div field of one sample, by d directional derivatives: no score is asked for.  Hyvarinen 2005, Theorem 1.

    Holds where p s_hat vanishes at infinity.
    Theorems: implicit-score-matching.
    """
    value, trace = traces.divergence(lambda z: field(z, t), z)
    return jnp.sum(jnp.square(value)) / 2 + trace


def sliced(field: Field, z: Sample, t: Time, probes: Sample, *, reduced: bool = True) -> jax.Array:
    """The mean over probes v (k, *z.shape) of 1/2 |field|^2 + v^T grad field v; not `reduced`, of 1/2 (v . field)^2 in its place.

    Unbiased for `implicit` where E v v^T = I, one directional derivative a probe.  Song et al. 2019, Eq. 8 and (reduced) 9.
    Raises: ValueError where probes are not of shape (k, *z.shape).
    Theorems: sliced-score-matching.
    """
    value, trace = traces.estimated(lambda z: field(z, t), z, probes)
    along = jax.vmap(lambda v: jnp.square(jnp.sum(v * value)))(probes)
    return (jnp.sum(jnp.square(value)) if reduced else jnp.mean(along)) / 2 + trace


def denoising(field: Field, schedule: Schedule, x0: Sample, eps: Sample, t: Time) -> jax.Array:
    """1/2 |field(z, t) - grad_z log q(z|x0)|^2, grad_z log q = -eps/sigma, of one sample.  Vincent 2011.

    sigma^2 times it keeps its size as sigma -> 0; the weights are those of `losses`, of a prediction of the score.
    Raises: ValueError where x0 and eps differ in shape.
    Theorems: denoising-is-explicit-score-matching, cfm-is-flow-matching.
    """
    return x0.size / 2 * denoising_loss(field, schedule, score_form, x0, eps, t)
