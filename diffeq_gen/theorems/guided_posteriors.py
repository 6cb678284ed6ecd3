"""Chapter 13, posteriors and compositions: what guidance aims at, and where it gets there.

    y = A x0 + std n:      log p_t(z|y) = log p_t(z) + log E[N(y; A x0, std^2 I) | z] - log p(y)
    exactly                x0_hat + Cov A^T (A Cov A^T + std^2 I)^{-1} (y - A x0_hat)         where x0 given z is Gaussian
    product                precisions P_0 + sum_i omega_i (P_i - P_0) at t = 0, and at t > 0 of another law
    mixture                E[x0 | z] = sum_i P(i | z) E[x0 | z, i]

The anchors are Bayes' rule component by component, and normal correlation of x0 with z and y together.
"""

import jax
import jax.numpy as jnp

from diffeq_gen import exact, guidance
from diffeq_gen.schedules import at
from diffeq_gen.theorems.closed_form import _bayes, _inverse, _known
from diffeq_gen.theorems.domains import gaussians, mixtures, positive, scalars, smooth_schedules, times, vectors
from diffeq_gen.theorems.guidance_laws import _denoiser, _noisy
from diffeq_gen.theorems.registry import theorem
from diffeq_gen.theorems.weightings import _normal
from diffeq_gen.types import Point

__all__: list[str] = []

stds = positive("stds of the observation", 0.1, 3.0)
powers = scalars("powers", 0.2, 3.0)


def _components(world, z, alpha, sigma):
    """Bayes' rule for every component: log p(k, z), and what is known of x0."""
    each = jax.vmap(lambda mean, cov: _bayes(mean, cov, z, alpha, sigma))(world.means, world.covs)
    return jnp.log(world.weights) + each.log_prob, each


def _seen(row, y, std, mean, cov):
    """log N(y; a.x, a.C a + std^2) of x ~ N(mean, cov), and the mean of x given y."""
    along = cov @ row
    variance = row @ along + std**2
    return _normal(y, row @ mean, variance), mean + along * (y - row @ mean) / variance


def _likelihood(world, row, y, std, z, alpha, sigma):
    """log p_t(y | z) = log sum_k P(k | z) N(y; a.x_k, a.S_k a + std^2)."""
    joint, each = _components(world, z, alpha, sigma)
    seen, _ = jax.vmap(lambda x0, cov: _seen(row, y, std, x0, cov))(each.x0, each.cov)
    return jax.nn.logsumexp(jax.nn.log_softmax(joint) + seen)


def _told(schedule, world, row, x0, eps, y, std, t, given):
    """log p_t(z | y) and E[x0 | z, y] of the world that is told y; the same by Bayes' rule at z, the prior evidence with power `given`."""
    z, (alpha, sigma), p = _noisy(schedule, x0, eps, t), schedule(t), at(schedule, t)
    told = guidance.observed(world, row[None, :], y[None], std=std)
    joint, each = _components(world, z, alpha, sigma)
    seen, moved = jax.vmap(lambda x0, cov: _seen(row, y, std, x0, cov))(each.x0, each.cov)
    first, _ = jax.vmap(lambda mean, cov: _seen(row, y, std, mean, cov))(world.means, world.covs)
    evidence = jax.nn.logsumexp(jnp.log(world.weights) + first)
    there = jax.nn.logsumexp(joint + seen) - given * evidence
    return (exact.log_prob(told, z, p), exact.denoise(told, z, p)), (there, jax.nn.softmax(joint + seen) @ moved)


@theorem(source="Bayes' rule; Kalman 1960", cases=200, schedule=smooth_schedules, world=mixtures(2, 3), row=vectors(2), x0=vectors(2),
         eps=vectors(2), y=vectors(), std=stds, t=times)  # fmt: skip
def observed_is_bayes(schedule, world, row, x0, eps, y, std, t):
    """A mixture that is told y = a.x0 + std n is a mixture: log p_t(z | y) = log p_t(z) + log p_t(y | z) - log p(y) at every t."""
    return _told(schedule, world, row, x0, eps, y, std, t, 1.0)


@observed_is_bayes.near_miss
def evidence_left_out(schedule, world, row, x0, eps, y, std, t):
    """log p_t(z, y), as if y were certain."""
    return _told(schedule, world, row, x0, eps, y, std, t, 0.0)


def _correlated(mean, cov, operator, z, y, std, alpha, sigma):
    """E[x0 | z, y] by normal correlation: the covariance of x0 with (z, y), times the inverse of theirs."""
    mix = jnp.concatenate([alpha * jnp.eye(len(mean), dtype=cov.dtype), operator])
    noise = jnp.concatenate([jnp.full(len(mean), sigma**2), jnp.full(len(y), std**2)])
    both = jnp.concatenate([z, y])
    return mean + cov @ mix.T @ jnp.linalg.solve(mix @ cov @ mix.T + jnp.diag(noise), both - mix @ mean)


def _gaussian(schedule, world, operator, x0, eps, y, std, t, guide):
    """What a method says of Gaussian data, and normal correlation."""
    z = _noisy(schedule, x0, eps, t)
    guided = guide(_denoiser(world, schedule), z)
    return guided, _correlated(world.mean, world.cov, operator, z, y, std, *schedule(t))


@theorem(source="normal correlation; Boys et al. 2023, 'Tweedie moment projected diffusions'", cases=300, schedule=smooth_schedules,
         world=gaussians(2), operator=vectors(2, 2), x0=vectors(2), eps=vectors(2), y=vectors(2), std=stds, t=times)  # fmt: skip
def posterior_exact_for_gaussians(schedule, world, operator, x0, eps, y, std, t):
    """For any Gaussian data x0_hat + Cov A^T (A Cov A^T + std^2 I)^{-1} (y - A x0_hat) is E[x0 | z, y], the denoiser of the data told y."""
    told = guidance.observed(world, operator, y, std=std)
    guides = (
        lambda denoise, z: guidance.posterior(denoise, schedule, operator, y, std=std)(z, t),
        lambda denoise, z: exact.denoiser(told, schedule)(z, t),
    )
    sides = [_gaussian(schedule, world, operator, x0, eps, y, std, t, guide) for guide in guides]
    return tuple(zip(*sides, strict=True))


@posterior_exact_for_gaussians.near_miss
def the_covariance_of_the_prior(schedule, world, operator, x0, eps, y, std, t):
    """The data's covariance in the place of Cov(x0 | z)."""

    def guide(denoise, z):
        noise = std**2 * jnp.eye(2, dtype=z.dtype)
        rest = jnp.linalg.solve(operator @ world.cov @ operator.T + noise, y - operator @ denoise(z, t))
        return denoise(z, t) + world.cov @ operator.T @ rest

    return _gaussian(schedule, world, operator, x0, eps, y, std, t, guide)


@posterior_exact_for_gaussians.near_miss
def any_gaussian_is_isotropic(schedule, world, operator, x0, eps, y, std, t):
    """The pseudoinverse guidance of data of the mean variance."""
    variance = jnp.trace(world.cov) / 2
    guide = lambda denoise, z: guidance.pigdm(denoise, schedule, operator, y, std=std, variance=variance)(z, t)  # noqa: E731
    return _gaussian(schedule, world, operator, x0, eps, y, std, t, guide)


def _isotropic(schedule, mean, variance, row, x0, eps, y, std, t, guide):
    """What a method says of N(mean, v I) seen along a row, and normal correlation."""
    cov, z = variance * jnp.eye(2, dtype=mean.dtype), _noisy(schedule, x0, eps, t)

    def denoise(z, t):
        alpha, sigma = schedule(t)
        return mean + alpha * variance / (alpha**2 * variance + sigma**2) * (z - alpha * mean)

    return guide(denoise, z), _correlated(mean, cov, row[None, :], z, y[None], std, *schedule(t))


@theorem(source="Song et al. 2023, 'Pseudoinverse-guided diffusion models for inverse problems', Sec. 3", cases=300,
         schedule=smooth_schedules, mean=vectors(2), variance=positive("variances", 0.05, 5.0), row=vectors(2), x0=vectors(2),
         eps=vectors(2), y=vectors(), std=stds, t=times)  # fmt: skip
def pigdm_exact_for_isotropic(schedule, mean, variance, row, x0, eps, y, std, t):
    """Pseudoinverse guidance with r^2 = v sigma^2/(alpha^2 v + sigma^2) is E[x0 | z, y] for data N(m, v I)."""

    def guide(denoise, z):
        return guidance.pigdm(denoise, schedule, row[None, :], y[None], std=std, variance=variance)(z, t)

    return _isotropic(schedule, mean, variance, row, x0, eps, y, std, t, guide)


@pigdm_exact_for_isotropic.near_miss
def variance_one_whatever_the_data(schedule, mean, variance, row, x0, eps, y, std, t):
    """r^2 = sigma^2/(alpha^2 + sigma^2)."""
    guide = lambda denoise, z: guidance.pigdm(denoise, schedule, row[None, :], y[None], std=std)(z, t)  # noqa: E731
    return _isotropic(schedule, mean, variance, row, x0, eps, y, std, t, guide)


@pigdm_exact_for_isotropic.near_miss
def the_guess_as_if_it_were_known(schedule, mean, variance, row, x0, eps, y, std, t):
    """r = 0, which is DPS: too far, even for Gaussian data."""
    log_likelihood = lambda x0: _normal(y, row @ x0, std**2)  # noqa: E731
    guide = lambda denoise, z: guidance.dps(denoise, schedule, log_likelihood)(z, t)  # noqa: E731
    return _isotropic(schedule, mean, variance, row, x0, eps, y, std, t, guide)


def _observing(schedule, world, row, x0, eps, y, std, t, guide):
    """What a method says of a mixture seen along a row, and E[x0 | z, y] by Bayes' rule for every component."""
    z, (alpha, sigma) = _noisy(schedule, x0, eps, t), schedule(t)
    joint, each = _components(world, z, alpha, sigma)
    seen, moved = jax.vmap(lambda x0, cov: _seen(row, y, std, x0, cov))(each.x0, each.cov)
    return guide(_denoiser(world, schedule), z), jax.nn.softmax(joint + seen) @ moved


@theorem(source="Chung et al. 2023, 'Diffusion posterior sampling', Theorem 1; derived", kind="counterexample", cases=200,
         schedule=smooth_schedules, world=mixtures(2, 3), row=vectors(2), x0=vectors(2), eps=vectors(2), y=vectors(), std=stds, t=times,
         scale=powers)  # fmt: skip
def dps_jensen_gap(schedule, world, row, x0, eps, y, std, t, scale):
    """p_t(y | z) = E[p(y | x0) | z] is what guides to E[x0 | z, y]; DPS climbs p(y | x0_hat) instead, and moves by
    Cov(x0 | z) grad log p(y | x0_hat)."""
    likelihood = lambda z, t: _likelihood(world, row, y, std, z, *schedule(t))  # noqa: E731
    clean = lambda x0: _normal(y, row @ x0, std**2)  # noqa: E731
    exactly = _observing(schedule, world, row, x0, eps, y, std, t,
                         lambda denoise, z: guidance.classifier(denoise, schedule, likelihood)(z, t))  # fmt: skip
    z = _noisy(schedule, x0, eps, t)
    known = _known(world, z, *schedule(t))
    found = guidance.dps(_denoiser(world, schedule), schedule, clean, scale=lambda t: scale * t)(z, t)
    return (exactly[0], found), (exactly[1], known.x0 + scale * t * known.cov @ jax.grad(clean)(known.x0))


@dps_jensen_gap.near_miss
def the_likelihood_of_the_mean(schedule, world, row, x0, eps, y, std, t, scale):
    """log p(y | x0_hat) in the place of log E[p(y | x0) | z]."""
    clean = lambda x0: _normal(y, row @ x0, std**2)  # noqa: E731
    guide = lambda denoise, z: guidance.dps(denoise, schedule, clean)(z, t)  # noqa: E731
    return _observing(schedule, world, row, x0, eps, y, std, t, guide)


@dps_jensen_gap.near_miss
def two_moments_are_enough(schedule, world, row, x0, eps, y, std, t, scale):
    """The law of x0 given z taken for a Gaussian."""
    guide = lambda denoise, z: guidance.posterior(denoise, schedule, row[None, :], y[None], std=std)(z, t)  # noqa: E731
    return _observing(schedule, world, row, x0, eps, y, std, t, guide)


def _experts(base, first, second):
    """N(m_i, (P_0 + P_i)^{-1}): laws that know more than the base, whose quotients with it have a mass."""
    ground = _inverse(base.cov)
    return [exact.Gaussian(one.mean, _inverse(ground + _inverse(one.cov))) for one in (first, second)]


def _powers(base, experts, a, b):
    """N of precision P_0 + a (P_1 - P_0) + b (P_2 - P_0): what p_0 (p_1/p_0)^a (p_2/p_0)^b is."""
    factors = [(1 - a - b, base), (a, experts[0]), (b, experts[1])]
    precision = sum(power * _inverse(one.cov) for power, one in factors)
    pull = sum(power * _inverse(one.cov) @ one.mean for power, one in factors)
    cov = _inverse(precision)
    return exact.Gaussian(cov @ pull, (cov + cov.T) / 2)


def _composed(schedule, base, first, second, x0, eps, t, a, b):
    """z, and the product of the denoisers there."""
    z, experts = _noisy(schedule, x0, eps, t), _experts(base, first, second)
    denoisers = [exact.denoiser(one, schedule) for one in experts]
    return z, experts, guidance.product(denoisers, exact.denoiser(base, schedule), scales=(a, lambda t: b))(z, t)


@theorem(source="Liu et al. 2022, 'Compositional visual generation with composable diffusion models'; Du et al. 2023, Sec. 4",
         kind="counterexample", cases=200, schedule=smooth_schedules, base=gaussians(2, low=1.0, high=5.0), first=gaussians(2),
         second=gaussians(2), x0=vectors(2), eps=vectors(2), t=times, a=powers, b=powers)  # fmt: skip
def product_of_marginals(schedule, base, first, second, x0, eps, t, a, b):
    """A product of denoisers has the score of p_0 (p_1/p_0)^a (p_2/p_0)^b with the marginals at t: at t = 0 that of the product."""
    z, experts, found = _composed(schedule, base, first, second, x0, eps, t, a, b)
    alpha, sigma = schedule(t)
    log_prob = lambda one, z: _known(one, z, alpha, sigma).log_prob  # noqa: E731
    marginals = lambda z: (1 - a - b) * log_prob(base, z) + a * log_prob(experts[0], z) + b * log_prob(experts[1], z)  # noqa: E731
    clean = Point(t, jnp.ones_like(t), jnp.zeros_like(t), t, t)
    fields = [lambda z, t, one=one: exact.score(one, z, clean) for one in (base, *experts)]
    law = _powers(base, experts, a, b)
    at_rest = guidance.product(fields[1:], fields[0], scales=(a, b))(x0, t)
    return (found, at_rest), ((z + sigma**2 * jax.grad(marginals)(z)) / alpha, -_inverse(law.cov) @ (x0 - law.mean))


@product_of_marginals.near_miss
def the_marginal_of_the_product(schedule, base, first, second, x0, eps, t, a, b):
    """The denoiser of the product of the laws of data."""
    z, experts, found = _composed(schedule, base, first, second, x0, eps, t, a, b)
    law = _powers(base, experts, a, b)
    return found, _bayes(law.mean, law.cov, z, *schedule(t)).x0


def _mixed(schedule, world, x0, eps, t, seen):
    """The mixture of the components' denoisers by their densities at the time `seen`, all off by one term; and Bayes' rule."""
    z = _noisy(schedule, x0, eps, t)
    parts = [exact.Gaussian(mean, cov) for mean, cov in zip(world.means, world.covs, strict=True)]
    log_probs = [lambda z, t, one=one: exact.log_prob(one, z, at(schedule, seen(t))) + t for one in parts]
    denoisers = [exact.denoiser(one, schedule) for one in parts]
    found = guidance.mixture(denoisers, log_probs, weights=world.weights)(z, t)
    return found, _known(world, z, *schedule(t)).x0


@theorem(source="Du et al. 2023, 'Reduce, reuse, recycle', Sec. 3; total expectation", cases=200, schedule=smooth_schedules,
         world=mixtures(2, 3), x0=vectors(2), eps=vectors(2), t=times)  # fmt: skip
def mixture_exact_at_every_time(schedule, world, x0, eps, t):
    """Denoisers weighted by w_i p_i(z) at time t are the denoiser of sum_i w_i p_i, at every t."""
    return _mixed(schedule, world, x0, eps, t, lambda t: t)


@mixture_exact_at_every_time.near_miss
def densities_of_another_time(schedule, world, x0, eps, t):
    """The densities of half the time."""
    return _mixed(schedule, world, x0, eps, t, lambda t: t / 2)


def _negated(schedule, world, unwanted, base, x0, eps, t, scale, heard):
    """Away from the unwanted, and the score of p (p_base^heard/p_unwanted)^omega with the marginals at t."""
    z, (alpha, sigma) = _noisy(schedule, x0, eps, t), schedule(t)
    denoisers = [exact.denoiser(one, schedule) for one in (world, unwanted, base)]
    known = lambda one, z: _known(one, z, alpha, sigma).log_prob  # noqa: E731
    log_prob = lambda z: known(world, z) + scale * (heard * known(base, z) - known(unwanted, z))  # noqa: E731
    return guidance.negation(*denoisers, scale=lambda t: scale)(z, t), (z + sigma**2 * jax.grad(log_prob)(z)) / alpha


@theorem(source="Du et al. 2020, 'Compositional visual generation with energy based models'; Liu et al. 2022", cases=300,
         schedule=smooth_schedules, world=gaussians(2), unwanted=gaussians(2), base=gaussians(2), x0=vectors(2), eps=vectors(2), t=times,
         scale=powers)  # fmt: skip
def negation_divides(schedule, world, unwanted, base, x0, eps, t, scale):
    """x0_hat - omega (x0_unwanted - x0_base) has the score of p (p_base/p_unwanted)^omega with the marginals at t."""
    return _negated(schedule, world, unwanted, base, x0, eps, t, scale, 1.0)


@negation_divides.near_miss
def divided_without_the_base(schedule, world, unwanted, base, x0, eps, t, scale):
    """The score of p/p_unwanted^omega."""
    return _negated(schedule, world, unwanted, base, x0, eps, t, scale, 0.0)
