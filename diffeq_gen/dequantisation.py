"""Dequantisation: whole numbers k as draws x0 from their bins, so that a density says something of a probability.

    x0 = low + width (k + u),  u in [0, 1)^d:      P(k) = int over the bin p(x0) dx0 = width^d E_q[p(x0)/q(u | k)]
    log P(k) >= E_q[log p(x0) - log q(u | k)] + d log width          q uniform: Theis et al. 2016; any q: Ho et al. 2019, Eq. 12

A model is judged by log P(k), in nats or in bits; `likelihood.bits_per_dim` of log p(x0) is the bound of a uniform q, of one draw.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen.bounds import importance_weighted
from diffeq_gen.types import Key, Sample, concrete, pytree, require, static

__all__ = ["Bins", "Dequantiser", "bound", "logit_normal", "logit_normal_draw", "uniform"]

Dequantiser = Callable[[Key, Sample], tuple[Sample, jax.Array]]
"""(key, k) -> (u, log q(u | k) in nats): where in its bin each entry of k lies, and the density of that draw."""


@pytree
class Bins:
    """`levels` bins of one width from low to high: level k is the interval low + width [k, k + 1).

    Raises: ValueError where there is no level, or low is not below high.
    Theorems: bits-do-not-depend-on-units.
    """

    levels: int = static()
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        require(lambda levels: levels >= 1, "levels must be positive", levels=self.levels)
        require(lambda low, high: low < high, "low must be below high", low=self.low, high=self.high)

    @staticmethod
    def between(low: float, high: float, *, levels: int) -> "Bins":
        """Bins whose middles are equally spaced from low to high: 256 between -1 and 1 are the bytes of Ho et al. 2020.

        Raises: ValueError where low is not below high, or there are fewer than two levels.
        """
        require(lambda levels: levels >= 2, "levels must be two or more between two values", levels=levels)
        half = (high - low) / (levels - 1) / 2
        return Bins(levels, low - half, high + half)

    @property
    def width(self) -> float:
        """The distance of two levels, in the units of x0."""
        return (self.high - self.low) / self.levels

    def middle(self, k: Sample) -> Sample:
        """low + width (k + 1/2) of numbers k that are floats."""
        return self.low + self.width * (k + 0.5)

    def of_middle(self, x0: Sample) -> Sample:
        """k, as floats, of data that lie on the middles.

        Raises: ValueError where x0 is further than a hundredth of the width from every middle; traced values pass.
        """
        k = jnp.clip(jnp.round((x0 - self.low) / self.width - 0.5), 0, self.levels - 1)
        require(lambda off: off < 0.01, "x0 must lie on the middles of the bins; the largest distance in widths is",
                off=jnp.max(jnp.abs(self.middle(k) - x0)) / self.width)  # fmt: skip
        return k

    def place(self, k: Sample, u: Sample | float) -> Sample:
        """x0 = low + width (k + u), in the dtype of u where it is an array, in the usual one where it is a number.

        Raises: ValueError naming a level that is no whole number of 0 ... levels - 1, or a u outside of [0, 1].
        """
        _require_all(lambda k: (k >= 0) & (k < self.levels) & (k % 1 == 0),
                     f"levels must be whole numbers from 0 to {self.levels - 1}", k=k)  # fmt: skip
        _require_all(lambda u: (u >= 0) & (u <= 1), "a place in a bin must lie in [0, 1]", u=u)
        u = jnp.asarray(u)
        return (jnp.asarray(k).astype(u.dtype) + u) * self.width + self.low

    def level(self, x0: Sample) -> jax.Array:
        """k = floor((x0 - low)/width), whole numbers; what lies on the upper edge of all is of the last level.

        Raises: ValueError naming a number outside of [low, high].
        """
        _require_all(
            lambda x0: (x0 >= self.low) & (x0 <= self.high), f"data must lie in [{self.low}, {self.high}]", x0=x0
        )
        return jnp.clip(jnp.floor((x0 - self.low) / self.width), 0, self.levels - 1).astype(jnp.int32)


def _require_all(holds: Callable[..., jax.Array], message: str, **values: Sample) -> None:
    """`require`, which tells of many numbers the first that does not hold."""
    ((name, value),) = values.items()
    if concrete(value):
        wrong = np.extract(np.logical_not(holds(np.asarray(value))), value)
        value = wrong[0] if wrong.size else value
    require(holds, message, **{name: value})


def uniform(key: Key, k: Sample) -> tuple[Sample, jax.Array]:
    """u ~ U[0, 1) of the shape of k, whose log-density is 0.  Theis et al. 2016.

    Theorems: uniform-dequantisation-bounds.
    """
    u = jax.random.uniform(key, jnp.shape(k))
    return u, jnp.zeros((), u.dtype)


def logit_normal(parameters: Callable[[Sample], tuple[Sample, Sample]]) -> Dequantiser:
    """u = sigmoid(mean + e^{log_std} eps) in each entry, (mean, log_std) = parameters(k) of the shape of k: a draw and its log-density.

    Differentiable in the parameters, and so trained by `bound`; mean 0 and log_std log 1.7 are near uniform.  It vanishes at the edges
    of a bin, where a density does not: its weights have a mean but no variance, and many draws tighten the bound slowly.
    Theorems: logit-normal-density-is-that-of-its-draws, the-posterior-dequantises-exactly.
    """

    def drawn(key: Key, k: Sample) -> tuple[Sample, jax.Array]:
        mean, log_std = parameters(k)
        eps = jax.random.normal(key, jnp.shape(mean), mean.dtype)
        return logit_normal_draw(eps, mean, log_std)

    return drawn


def logit_normal_draw(eps: Sample, mean: Sample, log_std: Sample) -> tuple[Sample, jax.Array]:
    """(u, log q(u) in nats) of u = sigmoid(a), a = mean + e^{log_std} eps.

        log q(u) = sum -eps^2/2 - log sqrt(2 pi) - log_std - log u - log(1 - u),       log u = -softplus(-a), log(1 - u) = -softplus(a)

    The density is that of a, never of a u that has lost its digits next to 1.  u stays inside (0, 1): in float32 it is cut where
    |a| > 16, by less than a rounding.
    Theorems: logit-normal-density-is-that-of-its-draws, the-posterior-dequantises-exactly.
    """
    a = mean + jnp.exp(log_std) * eps
    each = jax.nn.softplus(a) + jax.nn.softplus(-a) - jnp.square(eps) / 2 - log_std - math.log(2 * math.pi) / 2
    limits = jnp.finfo(a.dtype)
    return jnp.clip(jax.nn.sigmoid(a), limits.tiny, 1 - limits.epsneg), jnp.sum(each)


def bound(
    key: Key, log_prob: Callable[[Sample], jax.Array], bins: Bins, k: Sample, *, dequantiser: Dequantiser = uniform, draws: int = 1
) -> jax.Array:  # fmt: skip
    """log mean over `draws` of width^d p(x0)/q(u | k), in nats: below log P(k) in the mean, tending to it with the draws.

    k is one sample, `log_prob` x0 -> log p(x0) in nats, as `likelihood.log_prob` with its first arguments given.  The mean of its
    exponential is P(k).  With one draw it is the bound of variational dequantisation, which is exact, draw for draw, where q is the
    law of u given k.
    Raises: ValueError where draws is not positive, or k has a level that is not one.
    Theorems: uniform-dequantisation-bounds, the-posterior-dequantises-exactly, more-draws-tighten-the-bound.
    """
    require(lambda draws: draws >= 1, "draws must be positive", draws=draws)
    bins.place(k, 0.5)

    def one(key: Key) -> jax.Array:
        u, log_q = dequantiser(key, k)
        return log_prob(bins.place(k, u)) - log_q

    log_weights = jax.lax.map(one, jax.random.split(key, draws))
    return importance_weighted(log_weights) + jnp.size(k) * jnp.log(bins.width)
