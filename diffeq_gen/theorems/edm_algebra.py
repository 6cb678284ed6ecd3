"""Chapter 7, EDM: preconditioning, the ODE in (s, sigma), and the grid of Karras et al. 2022, for any schedule.

    y = z/alpha,  sigma_e = sigma/alpha:       dy/dsigma_e = (y - D(y; sigma_e)) / sigma_e
    D = skip z + out F(input z):      skip = alpha sigma_d^2/r^2,  out = sigma sigma_d/r,  input = 1/r,  r^2 = sigma^2 + alpha^2 sigma_d^2

The anchors are second moments, densities of y and their derivatives; sigma_d is the standard deviation of the data.
"""

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen import clocks, equations, exact, paths, predictions, samplers
from diffeq_gen.schedules import EDM, VE, VP, Flow, at
from diffeq_gen.theorems.closed_form import _log_density
from diffeq_gen.theorems.domains import (
    gaussians,
    mixtures,
    positive,
    scalars,
    schedules,
    smooth_schedules,
    times,
    vectors,
    vp_schedules,
)
from diffeq_gen.theorems.registry import theorem
from diffeq_gen.types import Point

__all__: list[str] = []

stds = positive("std of data", 0.1, 10.0)
SIGNS = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])


def _second_moment(a, b, std):
    """E|a x0 + b eps|^2 for independent x0 of this std and standard eps: four equally likely points have these moments."""
    points = jnp.asarray(SIGNS, a.dtype) @ jnp.stack([a * std, b])
    return jnp.mean(points**2)


@theorem(
    source="Karras et al. 2022, Sec. 5, App. B.6 and Table 1",
    schedule=smooth_schedules, std=stds, other=scalars("shifts of c_skip", -2.0, 2.0), t=times,
)  # fmt: skip
def edm_preconditioning(schedule, std, other, t):
    """Input and target of F have variance one and out is the least for which there is such a skip: any other skip adds
    (skip' - skip)^2 (sigma^2 + alpha^2 sigma_d^2) to out^2; skip z and out^2 are mean and variance of N(0, sigma_d^2) given z."""
    (alpha, sigma), p = schedule(t), at(schedule, t)
    c, (a, b) = predictions.preconditioning(p, std), predictions.edm(std)(p)
    skip = c.skip + other / jnp.sqrt(alpha**2 * std**2 + sigma**2)
    world = exact.Gaussian(jnp.zeros_like(std)[None], std[None, None] ** 2)
    posterior = exact.denoise(world, c.input[None], p)[0], exact.posterior_cov(world, c.input[None], p)[0, 0]
    left = (
        _second_moment(c.input * alpha, c.input * sigma, std),
        _second_moment((1 - c.skip * alpha) / c.out, -c.skip * sigma / c.out, std),
        _second_moment(a, b, std),
        c.out**2 + other**2,
        (c.skip * c.input, c.out**2),
        (c.out * a, c.out * b),
        c.noise,
    )
    one = jnp.ones_like(std)
    right = (
        one, one, one, _second_moment(1 - skip * alpha, -skip * sigma, std), posterior,
        (1 - c.skip * alpha, -c.skip * sigma), jnp.log(sigma / alpha) / 4,
    )  # fmt: skip
    return left, right


@edm_preconditioning.near_miss
def coefficients_of_a_path_with_unit_alpha(schedule, std, other, t):
    """input = (sigma^2 + sigma_d^2)^{-1/2} on every schedule: the table's formula with sigma of z in the place of that of z/alpha."""
    p = at(schedule, t)
    scale = 1 / jnp.sqrt(p.sigma**2 + std**2)
    return _second_moment(scale * p.alpha, scale * p.sigma, std), jnp.ones_like(std)


@edm_preconditioning.near_miss
def no_skip(schedule, std, other, t):
    """The network predicts the data: out = sigma_d is as small as any."""
    c = predictions.preconditioning(at(schedule, t), std)
    return c.out, std


@theorem(
    source="Karras et al. 2022, Eq. 4 and App. B.1",
    cases=300,
    schedule=schedules, world=mixtures(2, 3), x0=vectors(2), eps=vectors(2), t=times,
)  # fmt: skip
def edm_general_ode(schedule, world, x0, eps, t):
    """dz/dt = (s'/s) z - s^2 sigma_e' sigma_e grad_z log p(z/s; sigma_e) with s = alpha and sigma_e = sigma/alpha is the probability
    flow, where the gradient is taken in z and p(.; sigma_e) is the data with noise of std sigma_e."""
    alpha, sigma = schedule(t)
    z = paths.perturb(x0, eps, at(schedule, t))
    flow = equations.probability_flow(lambda z, t: exact.denoise(world, z, at(schedule, t)), schedule)
    right = _edm_drift(schedule, world, z, t, lambda z: _log_density(world, z / alpha, 1.0, sigma / alpha), z)
    return (exact.velocity(world, z, at(schedule, t)), flow(z, t)), (right, right)


def _edm_drift(schedule, world, z, t, log_p, where):
    """(s'/s) z - s^2 sigma_e' sigma_e grad log_p(where)."""
    (scale, width), (scale_dot, width_dot) = jax.jvp(
        lambda t: (schedule(t)[0], schedule(t)[1] / schedule(t)[0]), (t,), (jnp.ones_like(t),)
    )
    return scale_dot / scale * z - scale**2 * width_dot * width * jax.grad(log_p)(where)


@edm_general_ode.near_miss
def gradient_in_the_unscaled_sample(schedule, world, x0, eps, t):
    """The gradient taken in y = z/s, with s^2 in front of it all the same: off by s."""
    alpha, sigma = schedule(t)
    z = paths.perturb(x0, eps, at(schedule, t))
    right = _edm_drift(schedule, world, z, t, lambda y: _log_density(world, y, 1.0, sigma / alpha), z / alpha)
    return exact.velocity(world, z, at(schedule, t)), right


@edm_general_ode.near_miss
def sigma_of_the_scaled_sample(schedule, world, x0, eps, t):
    """EDM's sigma taken for the standard deviation of the noise in z."""
    (alpha, sigma), (alpha_dot, sigma_dot) = jax.jvp(schedule, (t,), (jnp.ones_like(t),))
    z = paths.perturb(x0, eps, at(schedule, t))
    slope = jax.grad(lambda z: _log_density(world, z / alpha, 1.0, sigma / alpha))(z)
    return exact.velocity(world, z, at(schedule, t)), alpha_dot / alpha * z - alpha**2 * sigma_dot * sigma * slope


def _unit(p: Point) -> Point:
    """The point of the same log-SNR whose alpha is one, in the clock sigma/alpha."""
    width = p.sigma / p.alpha
    return Point(width, jnp.ones_like(width), width, jnp.zeros_like(width), jnp.ones_like(width))


@theorem(
    source="Karras et al. 2022, Sec. 2; Gao et al. 2024, 'Flow matching sampler'",
    cases=200,
    schedule=smooth_schedules, world=mixtures(2, 3), one=gaussians(3), y=vectors(2), x=vectors(3), t=times, s=times,
)  # fmt: skip
def trajectory_equivalence(schedule, world, one, y, x, t, s):
    """Solutions of the probability flow of all schedules (here any, Flow, and alpha = 1) are one curve of z/alpha against log-SNR:
    the slopes agree for any data, and the flow maps of Gaussian data, symmetric matrices that carry law into law."""
    p, q = at(schedule, t), at(schedule, s)
    straight, start, end = (at(Flow(), o.sigma / (o.alpha + o.sigma)) for o in (p, p, q))

    def slope(o):
        """d(z/alpha) over d(sigma/alpha)."""
        moved = exact.velocity(world, o.alpha * y, o) - o.alpha_dot * y
        return moved / (o.sigma_dot - o.alpha_dot * o.sigma / o.alpha)

    def carried(o, r):
        return exact.flow_map(one, o.alpha * x, o, r) / r.alpha

    width = p.sigma / p.alpha
    tangent = -width * jax.grad(lambda y: _log_density(world, y, 1.0, width))(y)
    once = carried(_unit(p), _unit(q))
    moved = jax.jacfwd(lambda x: exact.flow_map(one, x, p, q))(x)
    noisy, clean = (o.alpha**2 * one.cov + o.sigma**2 * jnp.eye(3, dtype=x.dtype) for o in (p, q))
    law = exact.flow_map(one, p.alpha * one.mean, p, q), moved @ noisy @ moved.T, moved
    left = slope(p), slope(straight), slope(_unit(p)), carried(p, q), carried(start, end), law
    return left, (tangent, tangent, tangent, once, once, (q.alpha * one.mean, clean, moved.T))


@trajectory_equivalence.near_miss
def at_equal_times(schedule, world, one, y, x, t, s):
    """The curves of two schedules agree at equal t: they agree at equal log-SNR."""
    p, q, start, end = at(schedule, t), at(schedule, s), at(Flow(), t), at(Flow(), s)
    left = exact.flow_map(one, p.alpha * x, p, q) / q.alpha
    return left, exact.flow_map(one, start.alpha * x, start, end) / end.alpha


@trajectory_equivalence.near_miss
def without_the_scale(schedule, world, one, y, x, t, s):
    """The curves of z agree, not divided by alpha."""
    p, q = at(schedule, t), at(schedule, s)
    return exact.flow_map(one, x, p, q), exact.flow_map(one, x, _unit(p), _unit(q))


@theorem(
    source="Karras et al. 2022, Sec. 3 and Fig. 3",
    cases=300,
    schedule=smooth_schedules, world=mixtures(2, 3), x0=vectors(2), eps=vectors(2), t=times,
    width=positive("sigma in [0.02, 50]", 0.02, 50.0),
)  # fmt: skip
def edm_tangent_points_to_denoiser(schedule, world, x0, eps, t, width):
    """On the path x0 + sigma eps in the clock sigma, z - sigma dz/dsigma = E[x0 | z]: the tangent meets sigma = 0 in the denoised
    sample, and so one step of Euler, or of EDM's sampler on any schedule, to sigma = 0 ends there."""
    p = Point(width, jnp.ones_like(width), width, jnp.zeros_like(width), jnp.ones_like(width))
    z = x0 + width * eps
    denoised = z + width**2 * jax.grad(lambda z: _log_density(world, z, 1.0, width))(z)
    denoise = exact.denoiser(world, lambda r: (jnp.ones_like(r), r))
    ends = [_last(sampler(denoise, lambda r: (jnp.ones_like(r), r)), z, width, jnp.zeros_like(t))
            for sampler in (samplers.euler, samplers.edm)]  # fmt: skip
    (alpha, sigma), s = schedule(t), t / 2
    noisy = alpha * x0 + sigma * eps
    score = jax.grad(lambda z: _log_density(world, z, alpha, sigma))(noisy)

    def ending(r):
        return schedule(r)[0], schedule(r)[1] * (r - s) / s

    last = _last(samplers.edm(exact.denoiser(world, schedule), ending), noisy, t, s)
    left = z - width * exact.velocity(world, z, p), *ends, last
    return left, (denoised, denoised, denoised, schedule(s)[0] * (noisy + sigma**2 * score) / alpha)


def _last(sampler, z, t, s):
    return sampler.step(jnp.zeros((sampler.noises, *z.shape), z.dtype), sampler.init(z), z, t, s)[0]


@edm_tangent_points_to_denoiser.near_miss
def in_the_clock_of_variance(schedule, world, x0, eps, t, width):
    """z - sigma^2 dz/dsigma^2 = E[x0 | z]: the tangent of the same curve in the clock of the variance-exploding SDE."""
    p = Point(width, jnp.ones_like(width), width, jnp.zeros_like(width), jnp.ones_like(width))
    z = x0 + width * eps
    return z - width**2 * exact.velocity(world, z, p) / (2 * width), exact.denoise(world, z, p)


@edm_tangent_points_to_denoiser.near_miss
def on_every_path(schedule, world, x0, eps, t, width):
    """z - t dz/dt = E[x0 | z] on any schedule: it takes alpha = 1 and sigma = t, or alpha = 1 - t."""
    p = at(schedule, t)
    z = paths.perturb(x0, eps, p)
    return z - t * exact.velocity(world, z, p), exact.denoise(world, z, p)


@theorem(
    source="Karras et al. 2022, Eq. 5",
    rho=scalars("rho in [1, 20]", 1.0, 20.0), low=positive("sigma_min in [1e-3, 0.1]", 1e-3, 0.1),
    high=positive("sigma_max in [1, 100]", 1.0, 100.0), many=positive("rho in [3e7, 1e8]", 3e7, 1e8),
)  # fmt: skip
def karras_rho_grid(rho, low, high, many):
    """sigma/alpha of the grid is (sigma_max^{1/rho} + (i/n)(sigma_min^{1/rho} - sigma_max^{1/rho}))^rho from i = 0 to n on any schedule,
    cut to what it reaches; even times of the EDM schedule; even in log sigma as rho -> infinity, up to L^2/(4 rho)."""
    share, roots = jnp.arange(7, dtype=rho.dtype) / 6, (high ** (1 / rho), low ** (1 / rho))
    widths = (roots[0] + share * (roots[1] - roots[0])) ** rho
    bounds = {"rho": rho, "sigma_min": low, "sigma_max": high}
    straight, varied = Flow(), VP(0.1, 20.0)
    left = [
        straight(clocks.karras(straight, 6, **bounds))[1] / straight(clocks.karras(straight, 6, **bounds))[0],
        jnp.exp(-clocks.log_snr(varied, clocks.karras(varied, 6, **bounds)) / 2),
        clocks.karras(EDM(low, high, rho), 6, **bounds),
        VE(2 * low, high / 2)(clocks.karras(VE(2 * low, high / 2), 6, **bounds))[1],
        -clocks.log_snr(straight, clocks.karras(straight, 6, **{**bounds, "rho": many})) / 2,
    ]
    inner = (high / 2) ** (1 / rho), (2 * low) ** (1 / rho)
    even = jnp.log(high) + share * jnp.log(low / high)
    right = [widths, widths, 1 - share, (inner[0] + share * (inner[1] - inner[0])) ** rho, even]
    none = jnp.zeros_like(rho)
    return left, right, (none, none, none, none, jnp.log(high / low) ** 2 / (4 * many))


@karras_rho_grid.near_miss
def powers_for_roots(rho, low, high, many):
    """Even steps of sigma^rho."""
    share = jnp.arange(7, dtype=rho.dtype) / 6
    times = clocks.karras(Flow(), 6, rho=rho, sigma_min=low, sigma_max=high)
    return Flow()(times)[1] / Flow()(times)[0], (high**rho + share * (low**rho - high**rho)) ** (1 / rho)


@karras_rho_grid.near_miss
def sigma_of_the_scaled_sample_on_the_grid(rho, low, high, many):
    """The grid set in sigma itself on a schedule whose alpha is not one."""
    share, roots = jnp.arange(7, dtype=rho.dtype) / 6, (high ** (1 / rho), low ** (1 / rho))
    times = clocks.karras(Flow(), 6, rho=rho, sigma_min=low, sigma_max=high)
    return Flow()(times)[1], (roots[0] + share * (roots[1] - roots[0])) ** rho


@theorem(
    source="Karras et al. 2022, Table 1 and released networks (VP, VE, iDDPM columns)",
    schedule=vp_schedules, x0=vectors(3), eps=vectors(3), t=times,
)  # fmt: skip
def edm_legacy_precond(schedule, x0, eps, t):
    """In y = z/alpha, a network F = eps has D = y - sigma_e F and input y/(1 + sigma_e^2)^{1/2} (VP, iDDPM), a network
    F = sigma_e score of y has D = y + sigma_e F (VE): skip = 1, out = -+ sigma_e."""
    p = at(schedule, t)
    z = paths.perturb(x0, eps, p)
    y, width = z / p.alpha, p.sigma / p.alpha
    score = jax.grad(lambda y: -jnp.sum((y - x0) ** 2) / (2 * width**2))(y)
    ve = _unit(p)
    left = (
        predictions.convert(eps, z, p, predictions.noise, predictions.data),
        predictions.convert(score / p.alpha, z, p, predictions.score, predictions.data),
        predictions.convert(score, y, ve, predictions.score, predictions.data),
        predictions.convert(x0, y, ve, predictions.data, predictions.noise),
        y / jnp.sqrt(1 + width**2),
    )
    return left, (y - width * eps, y + width * (width * score), y + width * (width * score), -width * score, z)


@edm_legacy_precond.near_miss
def one_sign_for_both(schedule, x0, eps, t):
    """D = y + sigma_e F for a network of the noise: the sign of the VE column in the VP column."""
    p = at(schedule, t)
    z = paths.perturb(x0, eps, p)
    right = z / p.alpha + p.sigma / p.alpha * eps
    return predictions.convert(eps, z, p, predictions.noise, predictions.data), right


@edm_legacy_precond.near_miss
def sigma_of_ours(schedule, x0, eps, t):
    """D = y - sigma eps, with sigma of z in the place of sigma_e = sigma/alpha."""
    p = at(schedule, t)
    z = paths.perturb(x0, eps, p)
    right = z / p.alpha - p.sigma * eps
    return predictions.convert(eps, z, p, predictions.noise, predictions.data), right
