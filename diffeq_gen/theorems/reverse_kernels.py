"""Chapter 3, reverse kernels: the law of a cleaner sample given a noisier one, and what a denoiser knows of it.

    E[z_s | z_t] = c_z z_t + c_x x0_hat,     Cov(z_s | z_t) = std^2 I + c_x^2 Cov(x0 | z_t),     c_x = -alpha_s expm1(-Delta)
    E[x0_hat(z_s) | z_t] = x0_hat(z_t)

The anchor is the joint normal law of (z_s, z_t) in each component, conditioned by dense linear algebra.
"""

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen import exact, paths
from diffeq_gen.schedules import at
from diffeq_gen.theorems.closed_form import _Component, _inverse, _log_normal, _together
from diffeq_gen.theorems.domains import (
    earlier,
    empiricals,
    gaussians,
    mixtures,
    scalars,
    schedules,
    smooth_schedules,
    times,
    vectors,
)
from diffeq_gen.theorems.estimation import _line, _log_density, _pair, _trapezoid, _vp, moderate, near
from diffeq_gen.theorems.registry import theorem
from diffeq_gen.types import Point

__all__: list[str] = []

STEPS = 2.0 ** -np.arange(3, 9)


def _kernel(world, z, p: Point, q: Point):
    """Mean and covariance of z_s given z_t = z, for any of the three worlds in two dimensions, by conditioning normal laws."""
    eye = jnp.eye(2, dtype=z.dtype)

    def conditioned(mean, cov):
        noisy, clean = (o.alpha**2 * cov + o.sigma**2 * eye for o in (p, q))
        shared = p.alpha * q.alpha * cov + p.alpha / q.alpha * q.sigma**2 * eye
        slope = shared @ _inverse(noisy)
        moved = q.alpha * mean + slope @ (z - p.alpha * mean)
        return _Component(_log_normal(z, p.alpha * mean, noisy), moved, moved, clean - slope @ shared)

    if isinstance(world, exact.Gaussian):
        return conditioned(world.mean, world.cov)
    if isinstance(world, exact.Mixture):
        return _together(world.weights, jax.vmap(conditioned)(world.means, world.covs))
    n = len(world.points)
    each = jax.vmap(lambda x0: conditioned(x0, jnp.zeros_like(eye)))(world.points)
    return _together(jnp.full((n,), 1 / n, z.dtype), each)


@theorem(
    source="Bao et al. 2022, Theorem 1 and App. (moments of the reverse kernel)",
    cases=200,
    schedule=smooth_schedules, world=mixtures(2, 3), one=gaussians(2), few=empiricals(2, 5), x0=vectors(2), eps=vectors(2), t=times,
    s=earlier("t"),
)  # fmt: skip
def reverse_kernel_moments(schedule, world, one, few, x0, eps, t, s):
    """q(z_s | z_t) has the mean of q(z_s | z_t, x0_hat), and the covariance of q(z_s | z_t, x0) plus
    alpha_s^2 expm1(-Delta)^2 Cov(x0 | z_t)."""
    p, q, left, right = at(schedule, t), at(schedule, s), [], []
    z = paths.perturb(x0, eps, p)
    for law in (world, one, few):
        posterior = _kernel(law, z, p, q)
        left.append(exact.reverse_kernel(law, z, p, q))
        right.append((posterior.x0, posterior.cov))
    return left, right


@reverse_kernel_moments.near_miss
def the_smaller_variance_of_ddpm(schedule, world, one, few, x0, eps, t, s):
    """Cov(z_s | z_t) = that of q(z_s | z_t, x0): the data taken to be a single point."""
    p, q = at(schedule, t), at(schedule, s)
    z = paths.perturb(x0, eps, p)
    return exact.reverse_kernel(world, z, p, q)[1], paths.bridge(p, q)[2] ** 2 * jnp.eye(2, dtype=z.dtype)


@reverse_kernel_moments.near_miss(witness={"t": 0.9, "s": 0.1})
def the_larger_variance_of_ddpm(schedule, world, one, few, x0, eps, t, s):
    """Cov(z_s | z_t) = that of q(z_t | z_s), scaled: the data taken to be standard normal."""
    p, q = at(schedule, t), at(schedule, s)
    z = paths.perturb(x0, eps, p)
    return exact.reverse_kernel(world, z, p, q)[1], paths.transition(p, q)[1] ** 2 * jnp.eye(2, dtype=z.dtype)


def _skewness(world, z, p: Point, q: Point, power):
    """The third central moment of z_s given z_t = z, over its variance to this power, in one dimension."""
    means, variances = world.means[:, 0], world.covs[:, 0, 0]
    noisy, clean = (o.alpha**2 * variances + o.sigma**2 for o in (p, q))
    shared = p.alpha * q.alpha * variances + p.alpha / q.alpha * q.sigma**2
    away = z[0] - p.alpha * means
    r = jax.nn.softmax(jnp.log(world.weights) - away**2 / noisy / 2 - jnp.log(noisy) / 2)
    moved, spread = q.alpha * means + shared / noisy * away, clean - shared**2 / noisy
    (mean,), ((variance,),) = exact.reverse_kernel(world, z, p, q)
    off = moved - mean
    return r @ (off**3 + 3 * off * spread) / variance**power


lopsided = scalars("shares of [0.65, 0.8]", 0.65, 0.8)


@theorem(
    source="Sohl-Dickstein et al. 2015, after Feller 1949; Dieleman 2023, 'latent variable models'",
    kind="order", order=1.5, cases=8,
    precisions=("float64",),  # the moments of short steps are small differences
    half_distance=scalars("half distances of [0.8, 1.2]", 0.8, 1.2), share=lopsided, log_snr=scalars("log-SNR in [-1, 1]", -1.0, 1.0),
)  # fmt: skip
def reverse_kernel_gaussianity(half_distance, share, log_snr):
    """q(z_s | z_t) is not normal: its skewness is of the order Delta^{3/2}, so the normal step of DDPM is right only as Delta -> 0."""
    steps = jnp.asarray(STEPS, log_snr.dtype)
    return steps, jnp.abs(_skewnesses(half_distance, share, log_snr, steps, 1.5))


def _skewnesses(half_distance, share, log_snr, steps, power):
    world, p = _pair(half_distance, share, 0.5 + 0 * share), _vp(log_snr)
    z = 0.1 * p.alpha * jnp.ones_like(world.means[0])
    return jax.vmap(lambda step: _skewness(world, z, p, _vp(log_snr + step), power))(steps)


reverse_kernel_gaussianity.not_of_order(2.5, "The skewness is of the order Delta^{5/2}.")


@reverse_kernel_gaussianity.near_miss
def the_third_moment_itself(half_distance, share, log_snr):
    """The third central moment, not divided by the variance to 3/2, is of the order Delta^{3/2}: it is of order Delta^3."""
    steps = jnp.asarray(STEPS, log_snr.dtype)
    return steps, jnp.abs(_skewnesses(half_distance, share, log_snr, steps, 0.0))


@theorem(
    source="Daras et al. 2023 (consistent diffusion models); Lai et al. 2023",
    kind="in law",
    cases=60,
    schedule=schedules, one=gaussians(2), world=mixtures(1, 3), z=vectors(2), t=times, s=earlier("t"),
    x0=near, eps=near, log_snr=moderate, step=scalars("gaps of [0.2, 3]", 0.2, 3.0),
)  # fmt: skip
def denoiser_martingale(schedule, one, world, z, t, s, x0, eps, log_snr, step):
    """E[x0_hat(z_s) | z_t] = x0_hat(z_t) under the true reverse process; and q(z_s | z_t) integrates to one."""
    p, q = at(schedule, t), at(schedule, s)
    mean, _ = exact.reverse_kernel(one, z, p, q)
    left, right = exact.denoise(one, mean, q), exact.denoise(one, z, p)
    o, c = _vp(log_snr), _vp(log_snr + step)
    noisy, (scale, std) = (o.alpha * x0 + o.sigma * eps)[None], paths.transition(o, c)
    nodes, width = _line(noisy[0] / scale, 12 * std / scale)

    def weighed(clean):
        away = (noisy[0] - scale * clean[0]) / std
        backwards = exact.log_prob(world, clean, c) - exact.log_prob(world, noisy, o) - away**2 / 2
        mass = jnp.exp(backwards) / (std * jnp.sqrt(2 * jnp.pi))
        return mass * jnp.stack([jnp.ones_like(mass), exact.denoise(world, clean, c)[0]])

    found, bound = _trapezoid(jax.vmap(weighed)(nodes), width)
    expected = jnp.stack([jnp.ones_like(x0), exact.denoise(world, noisy, o)[0]])
    return (left, found), (right, expected), (jnp.zeros_like(x0), bound)


@denoiser_martingale.near_miss
def along_the_probability_flow(schedule, one, world, z, t, s, x0, eps, log_snr, step):
    """x0_hat(z_s) = x0_hat(z_t) along the probability flow: the prediction would never change."""
    p, q = at(schedule, t), at(schedule, s)
    return exact.denoise(one, exact.flow_map(one, z, p, q), q), exact.denoise(one, z, p)


@denoiser_martingale.near_miss(witness={"log_snr": -1.0, "step": 2.0, "x0": 0.7, "eps": 0.4})
def at_the_mean_of_the_kernel(schedule, one, world, z, t, s, x0, eps, log_snr, step):
    """x0_hat(E[z_s | z_t]) = x0_hat(z_t), the mean taken inside: right for Gaussian data, whose denoiser is linear."""
    p, q = _vp(log_snr), _vp(log_snr + step)
    noisy = (p.alpha * x0 + p.sigma * eps)[None]
    mean, _ = exact.reverse_kernel(world, noisy, p, q)
    return exact.denoise(world, mean, q), exact.denoise(world, noisy, p)


@theorem(
    source="Vincent 2011; Alain & Bengio 2014, Theorem 2",
    kind="order", order=2.0, cases=8,
    precisions=("float64",),  # the residual over sigma^2 loses more digits than float32 has
    half_distance=scalars("half distances of [0.8, 1.2]", 0.8, 1.2), share=lopsided, x0=scalars("data of [0.2, 0.6]", 0.2, 0.6),
)  # fmt: skip
def dae_score_bias(half_distance, share, x0):
    """(r(z) - z)/sigma^2 of the best denoising autoencoder r is the score of the noisy law, and so of order sigma^2 from that
    of the data."""
    widths = jnp.asarray(STEPS, x0.dtype)
    return widths, _residuals(half_distance, share, x0, widths, lambda width: width**2)


def _residuals(half_distance, share, x0, widths, scale):
    world = _pair(half_distance, share, 0.5 + 0 * share)
    score = jax.grad(lambda z: _log_density(world, z, 1.0, 0.0))(x0)

    def residual(width):
        p = Point(width, jnp.ones_like(width), width, jnp.zeros_like(width), jnp.ones_like(width))
        return jnp.abs((exact.denoise(world, x0[None], p)[0] - x0) / scale(width) - score)

    return jax.vmap(residual)(widths)


@dae_score_bias.near_miss
def the_residual_in_units_of_noise(half_distance, share, x0):
    """(r(z) - z)/sigma is the score: off by order one."""
    widths = jnp.asarray(STEPS, x0.dtype)
    return widths, _residuals(half_distance, share, x0, widths, lambda width: width)


dae_score_bias.not_of_order(1, "The bias is of order sigma, as that of a smoothing kernel that is not symmetric.")
