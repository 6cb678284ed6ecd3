"""Chapter 9, likelihood: densities carried along the flow, exactly.

d log p(y_theta)/dtheta = -tr d(dy/dtheta)/dy           along dy/dtheta of `likelihood.rates`, in whatever units y is
"""

import jax
import jax.numpy as jnp

from diffeq_gen import exact, likelihood
from diffeq_gen.samplers.control import Control
from diffeq_gen.schedules import at, variance_preserving
from diffeq_gen.theorems.controlled_solvers import _mirror, _variances
from diffeq_gen.theorems.domains import mixtures, scalars, vectors
from diffeq_gen.theorems.registry import theorem
from diffeq_gen.theorems.solver_families import PARABOLAS
from diffeq_gen.types import Point, dot

__all__: list[str] = []


@theorem(source="Chen et al. 2018, Theorem 1; Song et al. 2021, Eq. 39", schedule=PARABOLAS, world=mixtures(2, 2), mean=vectors(2),
         spread=vectors(2), axis=vectors(2), y=vectors(2), share=scalars("shares of the way", 0.05, 0.95), cases=100)  # fmt: skip
def instantaneous_change_of_variables(schedule, world, mean, spread, axis, y, share):
    """Along the probability flow of a mixture's denoiser the log-density of the whitened state falls as the trace of its slope grows."""
    return _carried(schedule, world, mean, spread, axis, y, share, 1.0)


def _carried(schedule, world, mean, spread, axis, y, share, volume):
    """(d log p(y)/dtheta along the flow by autodiff of the mixture's density, minus the trace)."""
    control, y = Control(mean, _variances(spread), _turned(axis)), jnp.tanh(y)
    low, high = (at(schedule, t).log_snr for t in (1.0, 0.0))
    theta = jnp.arctan(jnp.exp((low + share * (high - low)) / 2) * jnp.mean(jnp.square(control.variances)) ** 0.25)

    def log_density(theta, y):
        p = likelihood._point(schedule, control, theta)
        wide = jnp.sum(jnp.log(jnp.square(p.alpha) * control.variances + jnp.square(p.sigma))) / 2
        return exact.log_prob(world, control.colour(control.rows(y), y, p), p) + volume * wide

    rate = likelihood.rates(exact.denoiser(world, schedule), schedule, control)
    along, trace = rate(theta, (y, jnp.zeros_like(theta)))
    return jax.jvp(log_density, (theta, y), (jnp.ones_like(theta), along))[1], -trace


def _turned(axis):
    """A mirror of some direction: of none there is no mirror."""
    return _mirror(jnp.tanh(axis) + jnp.array([1.25, -1.5], axis.dtype))


@instantaneous_change_of_variables.near_miss
def of_the_density_of_z(schedule, world, mean, spread, axis, y, share):
    """log p of z itself: what whitening stretches left out."""
    return _carried(schedule, world, mean, spread, axis, y, share, 0.0)


@theorem(source="derived; the whitened flow of Gaussian data stands still", mean=vectors(2), spread=vectors(2), axis=vectors(2),
         x0=vectors(2), cases=60)  # fmt: skip
def likelihood_is_exact_for_gaussians(mean, spread, axis, x0):
    """With the moments of the data, one step of `encode` and `decode` is the density of N(m, C + sigma^2/alpha^2) and the way back."""
    return _gaussian(mean, spread, axis, x0, 1.0)


def _line(t):
    """lambda = 8 - 16 t: a clock with a closed form."""
    return variance_preserving(8 - 16 * t)


_line.log_snr = lambda t: 8 - 16 * t
_line.time_at = lambda log_snr: (8 - log_snr) / 16


def _gaussian(mean, spread, axis, x0, factor):
    """(densities by one step there and one back and where they end, the closed form and where they began)."""
    variances, basis = _variances(spread), _turned(axis)
    world = exact.Gaussian(mean, dot(basis * variances[None], basis.T))
    control, x0 = Control(mean, factor * variances, basis), mean + jnp.tanh(x0)
    settings = {"steps": 1, "control": control}
    y, density = likelihood.encode(exact.denoiser(world, _line), _line, x0, **settings)
    back, again = likelihood.decode(exact.denoiser(world, _line), _line, y, **settings)
    high = at(_line, jnp.zeros_like(density))
    blurred = Point(high.t, jnp.ones_like(density), high.sigma / high.alpha, high.alpha_dot, high.sigma_dot)
    known = exact.log_prob(world, x0, blurred)
    return (density, again, back), (known, known, x0)


@likelihood_is_exact_for_gaussians.near_miss
def by_variances_a_quarter_too_large(mean, spread, axis, x0):
    """One step is then an approximation."""
    return _gaussian(mean, spread, axis, x0, 1.25)
