"""Chapter 9, the variational bound: each of its terms, a KL against the mean of a log-ratio, a probability against a sum to one.

KL(q | p) = E_q[log q - log p],        sum_k P(level k) = 1,        log P(level) = log N + log width + O(width^2)
"""

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen import exact, losses, paths, predictions, samplers, variational
from diffeq_gen.dequantisation import Bins
from diffeq_gen.schedules import at
from diffeq_gen.theorems.domains import (
    earlier,
    empiricals,
    fractions,
    scalars,
    schedules,
    smooth_schedules,
    times,
    vectors,
)
from diffeq_gen.theorems.refinement import SIZES
from diffeq_gen.theorems.registry import theorem
from diffeq_gen.theorems.sampler_laws import _still, _variance
from diffeq_gen.theorems.weightings import _normal

__all__: list[str] = []

SIGNS = (-1.0, 1.0)
"""Two equally likely draws with the moments of N(0, 1) up to the third: exact for what is quadratic."""


def _log_normal(x, mean, var):
    return jnp.sum(_normal(x, mean, var))


def _log_ratio(mean, var, other_mean, other_var):
    """E[log N(x; mean, var) - log N(x; other_mean, other_var)], x ~ N(mean, var)."""
    drawn = [mean + jnp.sqrt(var) * sign for sign in SIGNS]
    return sum(_log_normal(x, mean, var) - _log_normal(x, other_mean, other_var) for x in drawn) / 2


@theorem(source="definition; Ho et al. 2020, Eq. 5; Kingma et al. 2021, Eq. 11", schedule=schedules, mean=vectors(2), other=vectors(2),
         size=vectors(2), ratio=vectors(2), t=times)  # fmt: skip
def gaussian_kl_is_the_mean_log_ratio(schedule, mean, other, size, ratio, t):
    """KL(q | p) = E_q[log q - log p] of Gaussians: of any two, of what noise makes of a point and N(0, alpha^2 + sigma^2), or N(0, v)."""
    return _compared(schedule, mean, other, size, ratio, t, lambda p: p.alpha**2 + p.sigma**2, _log_ratio)


def _compared(schedule, mean, other, size, ratio, t, prior, log_ratio):
    p, log_var, d = at(schedule, t), 4 * jnp.tanh(size), 4 * jnp.tanh(ratio)
    one, none, wide = jnp.ones_like(mean), jnp.zeros_like(mean), jnp.exp(log_var[0])
    left = (
        variational.gaussian_kl(mean, log_var, other, log_var + d),
        variational.prior_kl(mean, p),
        variational.prior_kl(mean, p, variance=p.sigma**2 * wide),
    )
    blurred = p.alpha * mean, p.sigma**2 * one
    right = (
        log_ratio(mean, jnp.exp(log_var), other, jnp.exp(log_var + d)),
        log_ratio(*blurred, none, prior(p) * one),
        log_ratio(*blurred, none, p.sigma**2 * wide * one),
    )
    return left, right


@gaussian_kl_is_the_mean_log_ratio.near_miss
def of_the_prior_of_preserved_variance(schedule, mean, other, size, ratio, t):
    """N(0, I) as the prior, whatever alpha^2 + sigma^2."""
    return _compared(schedule, mean, other, size, ratio, t, lambda p: jnp.ones_like(t), _log_ratio)


@gaussian_kl_is_the_mean_log_ratio.near_miss
def with_the_mean_of_the_other(schedule, mean, other, size, ratio, t):
    """E_p[log p - log q]: the KL the other way round."""
    swapped = lambda mean, var, other_mean, other_var: _log_ratio(other_mean, other_var, mean, var)  # noqa: E731
    return _compared(schedule, mean, other, size, ratio, t, lambda p: p.alpha**2 + p.sigma**2, swapped)


@theorem(
    source="Gibbs' inequality", kind="inequality", mean=vectors(2), other=vectors(2), size=vectors(2), ratio=vectors(2)
)
def gaussian_kl_is_never_negative(mean, other, size, ratio):
    """KL >= 0, and >= half the distance of the means in the other's deviations, squared."""
    log_var, d = 4 * jnp.tanh(size), 4 * jnp.tanh(ratio)
    found = variational.gaussian_kl(mean, log_var, other, log_var + d)
    least = jnp.sum((mean - other) ** 2 / jnp.exp(log_var + d)) / 2
    return jnp.stack([jnp.zeros_like(least), least]), jnp.stack([found, found])


@gaussian_kl_is_never_negative.near_miss
def at_the_mean_alone(mean, other, size, ratio):
    """log q/p at the mean of q: of a q that is wide, it is negative."""
    log_var, d = 4 * jnp.tanh(size), 4 * jnp.tanh(ratio)
    at_mean = _log_normal(mean, mean, jnp.exp(log_var)) - _log_normal(mean, mean, jnp.exp(log_var - jnp.abs(d)))
    return jnp.zeros_like(at_mean), at_mean


late, share_of_it = scalars("times of [0.1, 0.97]", 0.1, 0.97), scalars("shares of the time", 0.02, 0.9)
"""Steps that float32 resolves: of one that it does not, both variances are zero."""


@theorem(source="Nichol & Dhariwal 2021, Eq. 15; Ho et al. 2020, Eq. 6", schedule=schedules, x0=vectors(2), guess=vectors(2),
         eps=vectors(2), v=fractions, t=late, share=share_of_it, cases=300)  # fmt: skip
def learnt_step_is_a_gaussian_kl(schedule, x0, guess, eps, v, t, share):
    """A learnt step costs the KL of the bridge to its Gaussian about c_z z + c_x x0_hat with the learnt variance, at whatever z; with
    v = 0, what a denoiser's step costs."""
    return _learnt(schedule, x0, guess, eps, v, t, share, v)


def _learnt(schedule, x0, guess, eps, v, t, share, learnt):
    p, q = at(schedule, t), at(schedule, share * t)
    (c_z, c_x, std), z = paths.bridge(p, q), paths.perturb(x0, eps, p)
    means = [c_z * z + c_x * one for one in (x0, guess)]

    def kl(v):
        logs = variational.log_variance(v, p, q)
        return variational.gaussian_kl(means[0], 2 * jnp.log(std), means[1], logs)

    plain = variational.step_kl(lambda z, t: guess, schedule, x0, eps, t, share * t)
    return (variational.learnt_step(x0, guess, v, p, q), plain), (kl(learnt), kl(0.0))


@learnt_step_is_a_gaussian_kl.near_miss
def variance_costs_nothing(schedule, x0, guess, eps, v, t, share):
    """As if with beta~, whatever v."""
    return _learnt(schedule, x0, guess, eps, v, t, share, 0.0)


@theorem(source="Kingma et al. 2021, Eq. 13; Ho et al. 2020, Eq. 12", schedule=schedules, x0=vectors(2), guess=vectors(2), eps=vectors(2),
         t=times, s=earlier("t"))  # fmt: skip
def a_step_costs_what_snr_gains(schedule, x0, guess, eps, t, s):
    """A step of a denoiser costs 1/2 expm1(Delta) |eps_hat - eps|^2, eps_hat what it takes for the noise in z."""
    return _stepped(schedule, x0, guess, eps, t, s, jnp.expm1)


def _stepped(schedule, x0, guess, eps, t, s, gain):
    p, q = at(schedule, t), at(schedule, s)
    denoise = lambda z, t: guess + t * jnp.tanh(z)  # noqa: E731
    found = variational.step_kl(denoise, schedule, x0, eps, t, s)
    off = denoise(p.alpha * x0 + p.sigma * eps, t) - x0
    return found, gain(paths.gap(p, q)) / 2 * jnp.sum((p.alpha / p.sigma * off) ** 2)


@a_step_costs_what_snr_gains.near_miss
def gained_where_the_step_begins(schedule, x0, guess, eps, t, s):
    """1 - e^-Delta in the place of e^Delta - 1."""
    return _stepped(schedule, x0, guess, eps, t, s, lambda gap: -jnp.expm1(-gap))


@theorem(
    source="Nichol & Dhariwal 2021, Eq. 15",
    schedule=smooth_schedules,
    z=vectors(2),
    v=fractions,
    t=times,
    s=earlier("t"),
)
def learnt_variance_is_that_of_ddpm(schedule, z, v, t, s):
    """e^log_variance is the variance of a step of DDPM that interpolates with v; between beta~ and beta in their logarithm."""
    return _variances(schedule, z, v, t, s, v)


def _variances(schedule, z, v, t, s, level):
    stepped = _variance(samplers.ddpm(_still, schedule, variance=level), 0 * z, t, s)
    return jnp.exp(variational.log_variance(v, at(schedule, t), at(schedule, s))), stepped


@learnt_variance_is_that_of_ddpm.near_miss
def from_beta_down(schedule, z, v, t, s):
    """v = 0 for beta, as the small and the large are listed in code."""
    return _variances(schedule, z, v, t, s, 1 - v)


@theorem(source="Bao et al. 2022, Theorem 1", kind="inequality", schedule=smooth_schedules, few=empiricals(2, 4), x0=vectors(2),
         eps=vectors(2), shift=vectors(2), change=scalars("log-ratios of [-2, 2]", -2.0, 2.0), t=late, share=share_of_it,
         cases=300)  # fmt: skip
def analytic_variance_is_best(schedule, few, x0, eps, shift, change, t, share):
    """Of all Gaussian steps E[KL(q(z_s|z_t, x0) | p(z_s|z_t)) | z_t] is least for x0_hat = E[x0|z] and the variance
    beta~ + c_x^2 tr Cov(x0|z)/d: beta~ itself is too small, whatever the step."""
    best, costs, spread = _costs(schedule, few, x0, eps, t, share)
    right = jnp.stack([costs(shift / 8, best + change), costs(0 * shift, spread(0.0))])
    return jnp.stack([costs(0 * shift, best)] * 2), right


def _costs(schedule, few, x0, eps, t, share):
    """(the best log-variance, E[KL] of a shifted mean and a log-variance, the log-variance with so much of the trace)."""
    p, q = at(schedule, t), at(schedule, share * t)
    (_, c_x, std), z = paths.bridge(p, q), paths.perturb(jnp.tanh(x0), jnp.tanh(eps), p)
    r = jax.nn.softmax(-jnp.sum((z[None] - p.alpha * few.points) ** 2, axis=1) / (2 * p.sigma**2))
    mean, trace = exact.denoise(few, z, p), exact.posterior_trace(few, z, p)

    def costs(shift, log_var):
        one = lambda x0: variational.gaussian_kl(c_x * x0, 2 * jnp.log(std), c_x * (mean + shift), log_var)  # noqa: E731
        return jnp.sum(r * jax.vmap(one)(few.points))

    spread = lambda part: jnp.log(std**2 + part * c_x**2 * trace)  # noqa: E731
    return spread(0.5), costs, spread


@analytic_variance_is_best.near_miss
def the_bridge_s_is_best(schedule, few, x0, eps, shift, change, t, share):
    """beta~, as if x0_hat were known for x0."""
    best, costs, spread = _costs(schedule, few, x0, eps, t, share)
    return costs(0 * shift, spread(0.0)), costs(0 * shift, best)


@analytic_variance_is_best.near_miss
def all_of_the_error_in_each_entry(schedule, few, x0, eps, shift, change, t, share):
    """beta~ + c_x^2 tr Cov(x0|z), not divided by d."""
    best, costs, spread = _costs(schedule, few, x0, eps, t, share)
    return costs(0 * shift, spread(1.0)), costs(0 * shift, best)


@theorem(source="Nichol & Dhariwal 2021, Sec. 3.1", schedule=smooth_schedules, x0=vectors(2), eps=vectors(2), value=vectors(2),
         v=fractions, t=times, s=earlier("t"), cases=300)  # fmt: skip
def hybrid_loss_is_two_losses(schedule, x0, eps, value, v, t, s):
    """The slope of the hybrid loss by what is predicted is that of the plain loss alone, and by v that of share steps/d times the KL."""
    return _hybrid(schedule, x0, eps, value, v, t, s, jax.lax.stop_gradient)


def _hybrid(schedule, x0, eps, value, v, t, s, held):
    p, q = at(schedule, t), at(schedule, s)
    z, share, steps = paths.perturb(x0, eps, p), 0.25, 12

    def hybrid(value, v):
        options = {"steps": steps, "share": share}
        return variational.hybrid_loss(lambda z, t: (value, v), schedule, predictions.v, x0, eps, t, s, **options)

    def apart(value, v):
        x0_hat = held(predictions.convert(value, z, p, predictions.v, predictions.data))
        kl = variational.bridge_kl(x0, x0_hat, p, q, v=v)
        return losses.denoising_loss(lambda z, t: value, schedule, predictions.v, x0, eps, t) + share * steps / 2 * kl

    return jax.value_and_grad(hybrid, (0, 1))(value, v), jax.value_and_grad(apart, (0, 1))(value, v)


@hybrid_loss_is_two_losses.near_miss
def both_teach_the_mean(schedule, x0, eps, value, v, t, s):
    """The slope of the sum, the mean of L_vlb not held."""
    return _hybrid(schedule, x0, eps, value, v, t, s, lambda x0_hat: x0_hat)


@theorem(source="Kingma et al. 2021, Sec. 3.2; Ho et al. 2020, Eq. 13", mean=scalars("means of [-2, 2]", -2.0, 2.0),
         log_var=scalars("log-variances of [-6, 3]", -6.0, 3.0))  # fmt: skip
def decoders_sum_to_one(mean, log_var):
    """Both decoders are laws on the levels: by bins, the mass of a Gaussian between edges halfway, open at the ends; by softmax, with its
    density as odds."""
    return _decoded(mean, log_var, None)


LADDER = np.linspace(-1, 1, 5)


def _decoded(mean, log_var, ends):
    """(probabilities of five levels and their sums, by Phi and by the density)."""
    bins, x0 = Bins.between(-1.0, 1.0, levels=5), jnp.asarray(LADDER, mean.dtype)
    by_bin, odds = (
        jax.vmap(lambda one, nll=nll: nll(one[None], mean[None], log_var, bins))(x0)
        for nll in (variational.bin_nll, variational.softmax_nll)
    )
    below = lambda edges: jax.lax.erfc((mean - jnp.asarray(edges, mean.dtype)) * jnp.exp(-log_var / 2) / np.sqrt(2)) / 2  # noqa: E731
    outer = jnp.arange(2, dtype=mean.dtype) if ends is None else below(ends)
    edges = jnp.concatenate([outer[:1], below(LADDER[:-1] + 0.25), outer[1:]])
    apart = jnp.exp(-log_var) / 2 * ((x0 - mean) ** 2 - (x0[0] - mean) ** 2)
    left = jnp.exp(-by_bin), jnp.sum(jnp.exp(-by_bin)), jnp.sum(jnp.exp(-odds)), odds - odds[0]
    return left, (edges[1:] - edges[:-1], jnp.ones_like(mean), jnp.ones_like(mean), apart)


@decoders_sum_to_one.near_miss
def closed_at_the_ends(mean, log_var):
    """The bins of the first and the last level as wide as the others."""
    return _decoded(mean, log_var, np.array([-1.25, 1.25]))


@theorem(source="derived; the midpoint rule", kind="order", order=2, mean=scalars("means of [-2, 2]", -2.0, 2.0),
         log_var=scalars("log-variances of [-1, 1]", -1.0, 1.0), cases=6, precisions=("float64",))  # fmt: skip
def bins_tend_to_the_density(mean, log_var):
    """log P(x0) = log N(x0; mean, e^log_var) + log width + O(width^2): discrete nats become those of a density."""
    return _refined(mean, log_var, 1.0)


def _refined(mean, log_var, power):
    """The errors of two bins, side by side, that are halved four times."""
    widths, x0 = 0.5 / jnp.asarray(SIZES, mean.dtype), jnp.asarray([0.3, -0.9], mean.dtype)
    known = _log_normal(x0, mean, jnp.exp(log_var) * jnp.ones_like(x0))

    def found(width, x0):
        return variational.bin_nll(x0[None], mean[None], log_var, Bins.between(x0 - width, x0 + width, levels=3))

    each = jax.vmap(lambda width: jnp.sum(jax.vmap(lambda x0: found(width, x0))(x0)))(widths)
    return widths, jnp.abs(each + known + power * 2 * jnp.log(widths))


bins_tend_to_the_density.not_of_order(3, "One order too many.")


@bins_tend_to_the_density.near_miss
def a_density_is_a_probability(mean, log_var):
    """The logarithm of the width left out."""
    return _refined(mean, log_var, 0.0)
