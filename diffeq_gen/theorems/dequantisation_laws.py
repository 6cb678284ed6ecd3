"""Chapter 9, dequantisation: what a density of draws from their bins says of the probability of whole numbers, and in which units.

log P(k) = log int over the bin p(x0) dx0 >= E_q[log p(x0) - log q(u | k)] + d log width
"""

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen import dequantisation, exact, likelihood
from diffeq_gen.theorems.domains import gaussians, mixtures, scalars, vectors
from diffeq_gen.theorems.registry import theorem
from diffeq_gen.types import Point

__all__: list[str] = []

BYTES = tuple(dequantisation.Bins(256, low, high) for low, high in ((-1.0, 1.0), (0.0, 1.0), (0.0, 256.0)))
"""On [-1, 1], on [0, 1], and as they are."""


@theorem(
    source="change of variables; Theis et al. 2016; score_sde, likelihood.py",
    world=gaussians(2),
    x0=vectors(2),
    cases=300,
)
def bits_do_not_depend_on_units(world, x0):
    """log p(a x0 + b) = log p(x0) - d log a, and so bits per dimension are the same in all units; of bytes on [-1, 1] -log2 p/d + 7."""
    bits, nats = _bits(world, x0, BYTES)
    return bits, [bits[1], bits[2], 7 - nats / 2 / jnp.log(2 * jnp.ones_like(nats))]


def _bits(world, x0, bins):
    """(bits per dimension in each of the units, nats in the first)."""
    one = jnp.ones_like(x0[0])
    clean = Point(one, one, 0 * one, one, one)

    def nats(unit):
        scale = (unit.high - unit.low) / 2
        law = exact.Gaussian(scale * (world.mean + 1) + unit.low, scale**2 * world.cov)
        return exact.log_prob(law, scale * (x0 + 1) + unit.low, clean)

    found = [nats(unit) for unit in BYTES]
    return [
        likelihood.bits_per_dim(one, 2, bin_width=unit.width) for one, unit in zip(found, bins, strict=True)
    ], found[0]


@bits_do_not_depend_on_units.near_miss
def the_offset_of_the_unit_interval(world, x0):
    """-log2 p/d + 8 of bytes on [-1, 1]: that is for [0, 1]."""
    bits, nats = _bits(world, x0, BYTES)
    return bits[0], 8 - nats / 2 / jnp.log(2 * jnp.ones_like(nats))


@bits_do_not_depend_on_units.near_miss
def the_density_without_its_bins(world, x0):
    """-log2 p/d alone, whatever the units."""
    bits, _ = _bits(world, x0, (BYTES[2],) * 3)
    return bits[0], bits[1]


EIGHT = dequantisation.Bins(8)
levels = scalars("levels of eight", 0.0, 7.999)


def _told(log_prob, k, dequantiser):
    """`bound` of one entry of level k, whose dequantiser needs no key."""
    return dequantisation.bound(jax.random.key(0), log_prob, EIGHT, k, dequantiser=lambda key, k: dequantiser)


@theorem(source="Theis et al. 2016, Eq. 3", kind="inequality", world=mixtures(1, 2), level=levels, cases=60)
def uniform_dequantisation_bounds(world, level):
    """E_u[log p(x0)] + d log width <= log P(k), the probability of the bin under the same density."""
    left, right, doubt = _uniform(world, level)
    return left[None], right[None], doubt[None]


def _uniform(world, level):
    """(the mean of `bound` over u, the logarithm of the probability by erf, a bound of the first's error)."""
    std = 0.3 * jnp.ones_like(level)
    p, k = Point(std, jnp.ones_like(std), std, std, std), jnp.floor(level)[None]
    log_prob = lambda x0: exact.log_prob(world, x0, p)  # noqa: E731

    def mean(count):
        nodes, weights = (jnp.asarray(part, level.dtype) for part in np.polynomial.legendre.leggauss(count))
        each = jax.vmap(lambda u: _told(log_prob, k, (u[None], jnp.zeros_like(u))))((nodes + 1) / 2)
        return jnp.sum(weights * each) / 2

    spread = jnp.sqrt(2 * (world.covs[:, 0, 0] + std**2))
    edges = [(EIGHT.low + EIGHT.width * (k + side) - world.means[:, 0]) / spread for side in (0, 1)]
    mass = jnp.sum(world.weights * (jax.lax.erf(edges[1]) - jax.lax.erf(edges[0]))) / 2
    return mean(10), jnp.log(mass), 2 * jnp.abs(mean(10) - mean(7))


@uniform_dequantisation_bounds.near_miss
def of_the_density_alone(world, level):
    """E_u[log p(x0)] <= log P(k), without the width of the bin."""
    left, right, doubt = _uniform(world, level)
    return (left - jnp.log(EIGHT.width * jnp.ones_like(left)))[None], right[None], doubt[None]


@uniform_dequantisation_bounds.near_miss
def from_above(world, level):
    """log P(k) <= E_u[log p(x0)] + d log width."""
    left, right, doubt = _uniform(world, level)
    return right[None], left[None], doubt[None]


LOGITS = {"eps": scalars("noise of [-2, 2]", -2.0, 2.0), "mean": scalars("means of [-1, 1]", -1.0, 1.0),
          "log_std": scalars("log deviations of [-1, 0]", -1.0, 0.0)}  # fmt: skip


@theorem(source="Atchison & Shen 1980; change of variables", **LOGITS, cases=300)
def logit_normal_density_is_that_of_its_draws(eps, mean, log_std):
    """log q(u) = log N(eps; 0, 1) - log du/deps."""
    return _density(eps, mean, log_std, lambda eps: dequantisation.logit_normal_draw(eps, mean, log_std)[0])


def _density(eps, mean, log_std, draw):
    slope = jax.jvp(draw, (eps,), (jnp.ones_like(eps),))[1]
    found = dequantisation.logit_normal_draw(eps, mean, log_std)[1]
    return found, -(eps**2) / 2 - jnp.log(2 * jnp.pi) / 2 - jnp.log(slope)


@logit_normal_density_is_that_of_its_draws.near_miss
def the_density_of_the_logit(eps, mean, log_std):
    """log q(u) taken for the density of a = mean + std eps."""
    return _density(eps, mean, log_std, lambda eps: mean + jnp.exp(log_std) * eps)


@theorem(source="Ho et al. 2019, Sec. 3.1; derived", **LOGITS, level=levels, log_mass=scalars("log-probabilities of [-9, 0]", -9.0, 0.0),
         cases=300)  # fmt: skip
def the_posterior_dequantises_exactly(eps, mean, log_std, level, log_mass):
    """Where q is the law of u given k, log p(x0) - log q(u | k) + d log width is log P(k) for every single draw."""
    return _posterior(eps, mean, log_std, level, log_mass, 1.0), log_mass


def _posterior(eps, mean, log_std, level, log_mass, sign):
    """`bound` of a density that in the bin is P(k) times the logit-normal one, which is written out."""
    k = jnp.floor(level)

    def log_prob(x0):
        u = ((x0[0] - EIGHT.low) / EIGHT.width) - k
        away = (jnp.log(u / (1 - u)) - mean) / jnp.exp(log_std)
        of_u = -(away**2) / 2 - jnp.log(2 * jnp.pi) / 2 - log_std - jnp.log(u * (1 - u))
        return log_mass + of_u - jnp.log(EIGHT.width * jnp.ones_like(u))

    u, log_q = dequantisation.logit_normal_draw(eps[None], mean[None], log_std[None])
    return _told(log_prob, k[None], (u, sign * log_q))


@the_posterior_dequantises_exactly.near_miss
def with_its_entropy_turned(eps, mean, log_std, level, log_mass):
    """log p(x0) + log q(u | k)."""
    return _posterior(eps, mean, log_std, level, log_mass, -1.0), log_mass


@the_posterior_dequantises_exactly.near_miss
def by_uniform_draws(eps, mean, log_std, level, log_mass):
    """log p(x0) + d log width of one draw: the uniform bound is not exact draw for draw."""
    return _posterior(eps, mean, log_std, level, log_mass, 0.0), log_mass
