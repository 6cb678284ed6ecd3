"""Chapter 6, grids: where the steps are even, where they begin and end, and which is best for DDIM.

z_s/(alpha_s^2 v + sigma_s^2)^{1/2} = cos(theta_t - theta_s) z_t/(alpha_t^2 v + sigma_t^2)^{1/2},        tan(theta) = sigma/(alpha v^{1/2})
"""

from itertools import pairwise

import jax
import jax.numpy as jnp

from diffeq_gen import grids, samplers
from diffeq_gen.clocks import log_snr
from diffeq_gen.coordinates import ANGLE, NOISE
from diffeq_gen.theorems.domains import earlier, positive, scalars, times, vectors
from diffeq_gen.theorems.first_order import _move
from diffeq_gen.theorems.registry import theorem
from diffeq_gen.theorems.solver_families import PARABOLAS, Parabola

__all__: list[str] = []


@theorem(source="Song et al. 2021 (DDIM), App. D.2; Karras et al. 2022, Eq. 5", schedule=PARABOLAS, first=scalars("first times", 0.6, 1.0),
         last=scalars("last times", 0.05, 0.4), cases=100)  # fmt: skip
def grids_are_even_where_they_say(schedule, first, last):
    """Along its coordinate, in t^{1/2}, and in the angle whose cosine is 2 t - 1, a grid makes steps of one length, between ends
    that are those given; even in sigma/alpha is Karras's of rho = 1."""
    ends = {"first": first, "last": last}
    noises, angles = (grids.even(schedule, 4, coordinate=one, **ends) for one in (NOISE, ANGLE))
    quadratic, cosine = grids.quadratic(4, **ends), grids.cosine(4, **ends)
    read = jax.vmap(lambda t: ANGLE.clock(*schedule(t)))
    left = [jnp.sqrt(quadratic), jnp.arccos(2 * (cosine[1:-1] - last) / (first - last) - 1), read(angles), noises]
    shares = jnp.arange(5.0, dtype=first.dtype) / 4
    line = lambda a, b: a + (b - a) * shares  # noqa: E731
    (alpha, sigma), (alpha_s, sigma_s) = schedule(first), schedule(last)
    known = -2 * jnp.log(line(sigma / alpha, sigma_s / alpha_s))
    right = [
        line(jnp.sqrt(first), jnp.sqrt(last)),
        jnp.pi * shares[1:-1],
        line(jnp.arctan(sigma / alpha), jnp.arctan(sigma_s / alpha_s)),
    ]
    return left, [*right, jax.vmap(schedule.time_at)(known)]


@grids_are_even_where_they_say.near_miss
def even_in_time_instead(schedule, first, last):
    """Steps of one length in t."""
    grid = grids.even(schedule, 4, coordinate=ANGLE, first=first, last=last)
    return grid, first + (last - first) * jnp.arange(5.0, dtype=first.dtype) / 4


@theorem(source="derived; Kullback & Leibler 1951 for the two normal laws", schedule=PARABOLAS, variance=positive("variances", 0.1, 10.0),
         nats=positive("nats", 1e-4, 1.0), residual=positive("residuals", 1e-3, 0.1), cases=200)  # fmt: skip
def ends_meet_their_bounds(schedule, variance, nats, residual):
    """At the first time the law of noisy Gaussian data is `nats` away from noise alone, and at the last sigma is the share `residual`
    of the data's deviation."""
    wide = Parabola(40.0, 20 * schedule.slope, 20 * schedule.bend + 80.0, schedule.size, schedule.tilt)
    first, last = grids.ends(wide, variance, nats=nats, residual=residual)
    (alpha, sigma), (alpha_s, sigma_s) = wide(first), wide(last)
    whole = (alpha / sigma) ** 2 * variance + 1
    return [(whole - 1 - jnp.log(whole)) / 2, sigma_s / alpha_s], [nats, residual * jnp.sqrt(variance)]


@ends_meet_their_bounds.near_miss
def variance_in_the_place_of_the_deviation(schedule, variance, nats, residual):
    """sigma against v and not its root."""
    left, right = ends_meet_their_bounds.claim(schedule, variance, nats, residual)
    return left[1], right[1] * jnp.sqrt(variance)


@theorem(source="Sabour et al. 2024, for the idea", schedule=PARABOLAS, gaps=vectors(4), first=scalars("first times", 0.6, 1.0),
         last=scalars("last times", 0.05, 0.4), cases=200)  # fmt: skip
def gaps_are_a_grid(schedule, gaps, first, last):
    """Steps in log-SNR are as the exponentials of the gaps, between the ends given."""
    gaps = 3 * jnp.tanh(gaps)
    made = grids.spaced(schedule, gaps, first, last)
    lengths = jnp.diff(jax.vmap(lambda t: log_snr(schedule, t))(made))
    whole = log_snr(schedule, last) - log_snr(schedule, first)
    return [lengths, made[0], made[-1]], [whole * jnp.exp(gaps) / jnp.sum(jnp.exp(gaps)), first, last]


@gaps_are_a_grid.near_miss
def gaps_in_the_other_order(schedule, gaps, first, last):
    """The first gap at the data."""
    return grids.spaced(schedule, gaps, first, last), grids.spaced(schedule, gaps[::-1], first, last)


@theorem(
    source="derived",
    schedule=PARABOLAS,
    z=vectors(2),
    variance=positive("variances", 0.1, 10.0),
    t=times,
    s=earlier("t"),
)
def ddim_on_a_gaussian_shrinks_by_a_cosine(schedule, z, variance, t, s):
    """On centred Gaussian data of variance v a DDIM step multiplies z by the ratio of the deviations, which is right, and by the
    cosine of the step in the angle arctan(sigma/(alpha v^{1/2})), which is its whole error."""
    moved = _move(_ddim(schedule, variance), z, z, t, s)
    (std, angle), (std_s, angle_s) = (_polar(schedule, variance, r) for r in (t, s))
    return moved, z * (std_s / std) * jnp.cos(angle - angle_s)


def _ddim(schedule, variance):
    world = lambda z, t: schedule(t)[0] * variance / _polar(schedule, variance, t)[0] ** 2 * z  # noqa: E731
    return samplers.ddim(world, schedule)


def _polar(schedule, variance, t):
    alpha, sigma = schedule(t)
    return jnp.sqrt(alpha**2 * variance + sigma**2), jnp.arctan2(sigma, alpha * jnp.sqrt(variance))


@ddim_on_a_gaussian_shrinks_by_a_cosine.near_miss
def angle_of_unit_variance(schedule, z, variance, t, s):
    """The angle arctan(sigma/alpha), whatever the variance."""
    turn = _polar(schedule, 1.0, t)[1] - _polar(schedule, 1.0, s)[1]
    stds = [_polar(schedule, variance, r)[0] for r in (t, s)]
    return _move(_ddim(schedule, variance), z, z, t, s), z * stds[1] / stds[0] * jnp.cos(turn)


@theorem(
    source="derived",
    kind="inequality",
    schedule=PARABOLAS,
    gaps=vectors(3),
    variance=positive("variances", 0.1, 10.0),
    cases=200,
)
def ddim_on_a_gaussian_is_best_in_the_angle(schedule, gaps, variance):
    """Of all grids between the same ends, that of even angles arctan(sigma/(alpha v^{1/2})) loses least of Gaussian data of variance v:
    a product of cosines of a given sum is largest where they are equal."""
    any_grid = grids.spaced(schedule, jnp.tanh(gaps), 0.95, 0.1)
    return _kept(schedule, variance, any_grid), _kept(schedule, variance, _even_angles(schedule, variance))


def _kept(schedule, variance, grid):
    """What is left at the end of a z of one."""
    sampler, z = _ddim(schedule, variance), jnp.ones_like(variance)
    for t, s in pairwise(grid):
        z = sampler.step(None, (), z, t, s)[0]
    return z


def _even_angles(schedule, variance):
    first, last = (jnp.asarray(end, variance.dtype) for end in (0.95, 0.1))
    begin, end = (_polar(schedule, variance, r)[1] for r in (first, last))
    inner = begin + (end - begin) * jnp.arange(1, 3, dtype=variance.dtype) / 3
    rhos = jnp.sqrt(variance) * jnp.tan(inner)
    return jnp.concatenate([first[None], schedule.time_at(-2 * jnp.log(rhos)), last[None]])


@ddim_on_a_gaussian_is_best_in_the_angle.near_miss
def even_in_log_snr_is_best(schedule, gaps, variance):
    """Steps even in log-SNR thought best of all."""
    best = grids.spaced(schedule, jnp.zeros_like(gaps), 0.95, 0.1)
    return _kept(schedule, variance, _even_angles(schedule, variance)), _kept(schedule, variance, best)
