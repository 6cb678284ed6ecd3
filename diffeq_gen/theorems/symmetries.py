"""Chapter 1, symmetries: what a change of scale, of clock, of the unit of the data, or of its axes does to a diffusion.

(alpha, sigma, z) -> kappa (alpha, sigma, z):    u -> kappa u + kappa' z,   score -> score/kappa,   lambda, x0_hat stay
t = tau(r):                                      f, g^2, u -> tau' times them
x0 -> c x0:                                      lambda -> lambda + 2 log c
x0 -> Q x0 + b:                                  score -> Q score at Q z + alpha b
"""

import jax.numpy as jnp

from diffeq_gen import clocks, equations, exact, paths
from diffeq_gen.samplers.first_order import first_order_step
from diffeq_gen.schedules import at, variance_preserving
from diffeq_gen.theorems.domains import earlier, gaussians, mixtures, positive, scalars, schedules, times, vectors
from diffeq_gen.theorems.registry import theorem
from diffeq_gen.types import Point

__all__: list[str] = []

moderate_log_snrs = scalars("log-SNR in [-20, 20]", -20.0, 20.0)


def _scaled(schedule, size, curl):
    """kappa(t) = e^{size + curl sin 3t}, the schedule times it, and kappa' by hand."""

    def kappa(t):
        return jnp.exp(size + curl * jnp.sin(3 * t))

    def scaled_schedule(t):
        alpha, sigma = schedule(t)
        return kappa(t) * alpha, kappa(t) * sigma

    return scaled_schedule, kappa, lambda t: 3 * curl * jnp.cos(3 * t) * kappa(t)


@theorem(
    source="Gao et al. 2024, comments on sampling; Karras et al. 2022, Sec. 2",
    cases=300,
    schedule=schedules, size=scalars("log of a scale", -2.0, 2.0), curl=scalars("its change", -1.0, 1.0),
    world=gaussians(2), x0=vectors(2), eps=vectors(2), overshoot=scalars("overshoots", 0.0, 3.0), t=times, s=earlier("t"),
)  # fmt: skip
def schedule_rescaling_invariance(schedule, size, curl, world, x0, eps, overshoot, t, s):
    """(alpha, sigma, z) times kappa(t) leaves lambda, x0_hat and every first-order step of z/kappa as they were; the score
    is divided by kappa, u becomes kappa u + kappa' z, f becomes f + kappa'/kappa, and g^2 kappa^2 g^2."""
    other, kappa, kappa_dot = _scaled(schedule, size, curl)
    (p, q), (scaled_p, scaled_q) = ((at(one, t), at(one, s)) for one in (schedule, other))
    z = paths.perturb(x0, eps, p)
    known, there = exact.posterior(world, z, p), exact.posterior(world, kappa(t) * z, scaled_p)
    left = (
        clocks.log_snr(other, t),
        there.x0,
        there.score,
        exact.velocity(world, kappa(t) * z, scaled_p),
        equations.drift_rate(scaled_p),
        equations.variance_rate(scaled_p),
        first_order_step(x0, kappa(t) * z, eps, scaled_p, scaled_q, overshoot),
    )
    right = (
        clocks.log_snr(schedule, t),
        known.x0,
        known.score / kappa(t),
        kappa(t) * exact.velocity(world, z, p) + kappa_dot(t) * z,
        equations.drift_rate(p) + kappa_dot(t) / kappa(t),
        kappa(t) ** 2 * equations.variance_rate(p),
        kappa(s) * first_order_step(x0, z, eps, p, q, overshoot),
    )
    return left, right


@schedule_rescaling_invariance.near_miss
def velocity_scales_with_z(schedule, size, curl, world, x0, eps, overshoot, t, s):
    """u becomes kappa u: forgets that the scale itself moves."""
    other, kappa, _ = _scaled(schedule, size, curl)
    z = paths.perturb(x0, eps, at(schedule, t))
    there = exact.velocity(world, kappa(t) * z, at(other, t))
    return there, kappa(t) * exact.velocity(world, z, at(schedule, t))


@schedule_rescaling_invariance.near_miss
def euler_steps_too(schedule, size, curl, world, x0, eps, overshoot, t, s):
    """An Euler step of the probability flow, z + (s - t) u, commutes with the scale as the exponential steps do."""
    other, kappa, _ = _scaled(schedule, size, curl)
    z = paths.perturb(x0, eps, at(schedule, t))
    there = kappa(t) * z + (s - t) * exact.velocity(world, kappa(t) * z, at(other, t))
    return there, kappa(s) * (z + (s - t) * exact.velocity(world, z, at(schedule, t)))


@theorem(
    source="Gao et al. 2024, training; Dieleman 2024, 'superfluous'",
    schedule=schedules, bend=scalars("bend of the clock", -0.9, 0.9), x0=vectors(3), eps=vectors(3), t=times,
)  # fmt: skip
def time_reparametrisation(schedule, bend, x0, eps, t):
    """At t = tau(r) the marginal is the same, while f, g^2, u and lambda' are all multiplied by tau'(r)."""

    def tau(r):
        return r - bend * r * (1 - r)

    speed = 1 - bend * (1 - 2 * t)
    p, q = at(lambda r: schedule(tau(r)), t), at(schedule, tau(t))
    flow, other = (equations.probability_flow(lambda z, t: x0, one) for one in (schedule, lambda r: schedule(tau(r))))
    z = paths.perturb(x0, eps, q)
    return (
        (paths.perturb(x0, eps, p), equations.drift_rate(p), equations.variance_rate(p), other(z, t), p.log_snr_dot),
        (
            z, speed * equations.drift_rate(q), speed * equations.variance_rate(q), speed * flow(z, tau(t)),
            speed * q.log_snr_dot,
        ),
    )  # fmt: skip


@time_reparametrisation.near_miss
def g_changes_like_f(schedule, bend, x0, eps, t):
    """g, and not g^2, multiplied by tau'."""
    speed = 1 - bend * (1 - 2 * t)
    p, q = at(lambda r: schedule(r - bend * r * (1 - r)), t), at(schedule, t - bend * t * (1 - t))
    return equations.variance_rate(p), speed**2 * equations.variance_rate(q)


@theorem(
    source="derived; the scale factor of latents in Rombach et al. 2022",
    cases=300,
    world=gaussians(2), scale=positive("scale of the data", 0.05, 20.0), log_snr=moderate_log_snrs,
    x0=vectors(2), eps=vectors(2),
)  # fmt: skip
def data_scaling_is_snr_shift(world, scale, log_snr, x0, eps):
    """Data times c at log-SNR lambda is the data at lambda + 2 log c: the same z up to scale, c times its x0_hat."""
    p, q = _variance_preserving(log_snr), _variance_preserving(log_snr + 2 * jnp.log(scale))
    z = paths.perturb(scale * x0, eps, p)
    kappa = q.sigma / p.sigma
    there = exact.Gaussian(scale * world.mean, scale**2 * world.cov)
    return (
        (kappa * z, exact.denoise(there, z, p), exact.score(there, z, p), exact.posterior_cov(there, z, p)),
        (
            paths.perturb(x0, eps, q),
            scale * exact.denoise(world, kappa * z, q),
            kappa * exact.score(world, kappa * z, q),
            scale**2 * exact.posterior_cov(world, kappa * z, q),
        ),
    )


@data_scaling_is_snr_shift.near_miss
def snr_of_amplitudes(world, scale, log_snr, x0, eps):
    """A shift by log c: a ratio of amplitudes taken for one of powers."""
    p, q = _variance_preserving(log_snr), _variance_preserving(log_snr + jnp.log(scale))
    return q.sigma / p.sigma * paths.perturb(scale * x0, eps, p), paths.perturb(x0, eps, q)


def _variance_preserving(log_snr):
    alpha, sigma = variance_preserving(log_snr)
    return Point(t=log_snr, alpha=alpha, sigma=sigma, alpha_dot=alpha, sigma_dot=sigma)


@theorem(
    source="standard; Bishop 2006, Sec. 2.3 (linear maps of Gaussians)",
    cases=300,
    schedule=schedules, world=mixtures(2, 3), angle=scalars("angles", -3.0, 3.0), shift=vectors(2), x0=vectors(2),
    eps=vectors(2), t=times,
)  # fmt: skip
def symmetry_equivariance(schedule, world, angle, shift, x0, eps, t):
    """Data turned by Q and moved by b has the score Q s(z) at Q z + alpha b, and the denoiser Q x0_hat + b; the score of a
    product law is that of its factors."""
    p = at(schedule, t)
    z = paths.perturb(x0, eps, p)
    turn = jnp.stack([jnp.stack([jnp.cos(angle), jnp.sin(angle)]), jnp.stack([jnp.sin(angle), -jnp.cos(angle)])])
    covs = jnp.stack([turn @ cov @ turn.T for cov in world.covs])
    moved = exact.Mixture(world.weights, world.means @ turn.T + shift[None, :], covs)
    place = turn @ z + p.alpha * shift
    mean, variance = world.means[0], jnp.diagonal(world.covs[0])
    product = exact.score(exact.Gaussian(mean, jnp.diag(variance)), z, p)
    factors = (p.alpha * mean - z) / (p.alpha**2 * variance + p.sigma**2)
    return (
        (exact.score(moved, place, p), exact.denoise(moved, place, p), product),
        (turn @ exact.score(world, z, p), turn @ exact.denoise(world, z, p) + shift, factors),
    )


@symmetry_equivariance.near_miss
def moved_by_the_shift_of_the_data(schedule, world, angle, shift, x0, eps, t):
    """The shift b of the data taken for that of z, which is alpha b."""
    p = at(schedule, t)
    z = paths.perturb(x0, eps, p)
    moved = exact.Mixture(world.weights, world.means + shift[None, :], world.covs)
    return exact.score(moved, z + shift, p), exact.score(world, z, p)
