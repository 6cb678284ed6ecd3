"""Chapter 9, the variational bound: what becomes of the sum of its terms, with few steps and with many.

    sum_i KL_i -> 1/2 int E|eps_hat - eps|^2 dlambda, from above, as 1/T
    E[prior KL + 1/2 int E|eps_hat - eps|^2 dlambda + reconstruction] = h(x0 + e^(-lambda_max/2) eps) + KL(q(z_1) | N(0, v))

Of a perfect denoiser, between any two ends: what is left over the entropy of the data is the blur of the clean end and the
prior's own error at the noisy one.  A step costs what its noisier end does not know, so that steps cost more than their limit.
"""

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen import exact, variational
from diffeq_gen.schedules import at
from diffeq_gen.theorems.domains import gaussians, mixtures, probabilities, smooth_schedules
from diffeq_gen.theorems.estimation import _expected, _vp, moderate
from diffeq_gen.theorems.refinement import SIZES, grids
from diffeq_gen.theorems.registry import theorem
from diffeq_gen.theorems.variational_laws import SIGNS, _log_normal

__all__: list[str] = []


def _run(world, schedule, ladder):
    """The sum of the step KLs along each row of falling times, in the mean over Gaussian data."""

    def cost(t, s):
        p = at(schedule, t)
        x0_hat = jnp.stack([jnp.sqrt(exact.posterior_trace(world, world.mean, p)), jnp.zeros_like(t)])
        return variational.bridge_kl(jnp.zeros_like(x0_hat), x0_hat, p, at(schedule, s))

    return jnp.sum(jax.vmap(jax.vmap(cost))(ladder[:, :-1], ladder[:, 1:]), axis=1)


def _informed(world, log_snr):
    """1/2 log det(1 + e^lambda C): half the integral of e^lambda mmse from no information on."""
    (a, b), (c, d) = jnp.eye(2, dtype=world.cov.dtype) + jnp.exp(log_snr) * world.cov
    return jnp.log(a * d - b * c) / 2


@theorem(source="Kingma et al. 2021, Eq. 14 to 18", kind="order", order=1, schedule=smooth_schedules,
         world=gaussians(2, low=0.5, high=2.0), cases=6, precisions=("float64",))  # fmt: skip
def elbo_continuous_limit(schedule, world):
    """The step KLs of T steps equal in time tend, as 1/T, to 1/2 int E|eps_hat - eps|^2 dlambda."""
    return _to_limit(schedule, world, 1.0)


def _to_limit(schedule, world, share):
    first, last = (jnp.asarray(t, world.mean.dtype) for t in (0.85, 0.15))
    low, high = (at(schedule, t).log_snr for t in (first, last))
    limit = share * (_informed(world, high) - _informed(world, low))
    found = _run(world, schedule, grids(0.85, 0.15, world.mean.dtype))
    return 1 / jnp.asarray(SIZES, world.mean.dtype), jnp.abs(found - limit)


elbo_continuous_limit.not_of_order(2, "One order too many: that of a rule that asks in the middle of a step.")


@elbo_continuous_limit.near_miss
def without_the_half(schedule, world):
    """int E|eps_hat - eps|^2 dlambda itself as the limit."""
    return _to_limit(schedule, world, 2.0)


@theorem(source="Kingma et al. 2021, App. F", kind="inequality", one=gaussians(2), world=mixtures(1, 2), log_snr=moderate,
         share=probabilities, middle=probabilities, cases=20)  # fmt: skip
def elbo_improves_with_more_steps(one, world, log_snr, share, middle):
    """A step that is cut in two costs no more, of any data with its exact denoiser, and all of them more than their limit."""
    points, spent, limit = _halved(one, log_snr, share, middle)
    noisy, clean = (exact.posterior_trace(one, one.mean, p) for p in points[:2])
    (before, bound), (after, more) = (_unknown(world, p) for p in points[:2])
    halved = spent(noisy, clean, *points)
    left = jnp.stack([spent(before, after, *points), halved, limit])
    right = jnp.stack([spent(before, before, *points), spent(noisy, noisy, *points), halved])
    none = jnp.zeros_like(share)
    return left, right, jnp.stack([2 * spent(bound + more, bound + more, *points), none, none])


def _unknown(world, p):
    """(mmse, bound) of one-dimensional data."""
    return _expected(world, p, lambda z: exact.posterior_trace(world, z, p))


def _halved(one, log_snr, share, middle):
    """(three points that get cleaner, the cost of two steps by what is unknown at their noisier ends, the limit of many)."""
    high = log_snr + 4 * share
    log_snrs = [log_snr, log_snr + middle * (high - log_snr), high]

    def spent(noisy, clean, p, r, q):
        steps = (jnp.sqrt(noisy)[None], p, r), (jnp.sqrt(clean)[None], r, q)
        return sum(variational.bridge_kl(0 * root, root, *pair) for root, *pair in steps)

    return [_vp(value) for value in log_snrs], spent, _informed(one, high) - _informed(one, log_snr)


@elbo_improves_with_more_steps.near_miss
def any_grid_of_more_steps(one, world, log_snr, share, middle):
    """A step that is cut near its noisy end costs no more than one that is cut in the middle: of grids of which neither is part of the
    other nothing is said, however many steps they have."""
    costs = []
    for cut in (0.01, 0.5):
        points, spent, _ = _halved(one, log_snr, share, cut)
        costs.append(spent(*(exact.posterior_trace(one, one.mean, p) for p in points[:2]), *points))
    return costs[0], costs[1]


@elbo_improves_with_more_steps.near_miss
def with_any_denoiser(one, world, log_snr, share, middle):
    """A denoiser that is off by one deviation of the data where they are clean, and exact where they are not."""
    points, spent, _ = _halved(one, log_snr, share, middle)
    noisy, clean = (exact.posterior_trace(one, one.mean, p) for p in points[:2])
    return spent(noisy, clean + jnp.trace(one.cov), *points), spent(noisy, noisy, *points)


RULES = [np.polynomial.legendre.leggauss(n) for n in (8, 11)]


@theorem(source="derived; Guo, Shamai & Verdu 2005; Kingma et al. 2021, Eq. 11", world=mixtures(1, 2), log_snr=moderate,
         share=probabilities, cases=8)  # fmt: skip
def elbo_is_tight_in_expectation(world, log_snr, share):
    """Of a perfect denoiser the mean of prior KL, 1/2 int E|eps_hat - eps|^2 dlambda and Gaussian reconstruction is the entropy of the data
    with the blur of the clean end, and the KL of the noisiest copies to the prior: nothing else is lost."""
    return _told(world, log_snr, share, 1.0, lambda high: high)


def _told(world, log_snr, share, prior, clean):
    """(the three terms, entropy and KL, a bound); `prior` times its term, and the entropy at clean(high)."""
    high = log_snr + 4 * share
    p = _vp(log_snr)
    mean = world.weights @ world.means[:, 0]
    root = jnp.sqrt(world.weights @ (world.covs[:, 0, 0] + (world.means[:, 0] - mean) ** 2))
    wide = p.alpha**2 + p.sigma**2
    at_start = sum(variational.prior_kl((mean + sign * root)[None], p) for sign in SIGNS) / 2

    def rate(log_snr):
        found, bound = _unknown(world, _vp(log_snr))
        return jnp.stack([found, bound]) * jnp.exp(log_snr) / 2

    sums = []
    for nodes, weights in RULES:
        ladder = (log_snr + high) / 2 + (high - log_snr) / 2 * jnp.asarray(nodes, high.dtype)
        rates = jax.vmap(rate)(ladder)
        sums.append((high - log_snr) / 2 * jnp.sum(jnp.asarray(weights, high.dtype)[:, None] * rates, axis=0))
    last = (jnp.log(2 * jnp.pi * jnp.e) - high) / 2
    o = _vp(clean(high))
    entropy, rough = _expected(world, o, lambda z: -exact.log_prob(world, z, o))
    off = lambda z: exact.log_prob(world, z, p) - _log_normal(z, 0.0, wide)  # noqa: E731
    mismatch, rougher = _expected(world, p, off)
    bound = 2 * jnp.abs(sums[1][0] - sums[0][0]) + sums[1][1] + rough + rougher
    return prior * at_start + sums[1][0] + last, entropy - jnp.log(o.alpha) + mismatch, bound


@elbo_is_tight_in_expectation.near_miss
def without_the_prior(world, log_snr, share):
    """The KL of the noisiest copies left out of the bound."""
    return _told(world, log_snr, share, 0.0, lambda high: high)


@elbo_is_tight_in_expectation.near_miss
def the_entropy_of_the_data_themselves(world, log_snr, share):
    """As if the clean end had no blur: its log-SNR ten higher."""
    return _told(world, log_snr, share, 1.0, lambda high: high + 10)
