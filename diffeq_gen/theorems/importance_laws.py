"""Chapter 8, importance: at which times a loss is asked decides how much it varies, and nothing else.

E[l(t)/h(t)] = int l,      E[(l/h)^2] >= (int sqrt(E[l^2|t]) dt)^2,      s(t) = schedule(H^{-1}(t)) asks as h does
"""

from itertools import pairwise

import jax
import jax.numpy as jnp

from diffeq_gen import clocks, importance, losses, predictions
from diffeq_gen.schedules import variance_preserving
from diffeq_gen.theorems.domains import (
    fractions,
    scalars,
    smooth_schedules,
    vectors,
)
from diffeq_gen.theorems.objectives import _erring, _falling, _integral
from diffeq_gen.theorems.registry import theorem

__all__: list[str] = []


@theorem(source="derived; importance sampling", heights=vectors(4), factors=vectors(3), cases=300)
def importance_leaves_the_loss(heights, factors):
    """E[l(t)/h(t)] over times of density h is the mean of l between the ends, whatever h."""
    return _by_importance(
        heights, factors, lambda density, t, spent: losses.averaged(t[None], spent[None], density=density)
    )


def _by_importance(heights, factors, averaged):
    """(E[l/h] over u, bin by bin; the mean of l), l a parabola."""
    density = importance.Histogram(1 + heights**2, ends=(0.125, 0.875))
    spent = lambda t: factors[0] + factors[1] * t + factors[2] * t**2  # noqa: E731
    edges = jnp.concatenate([jnp.zeros_like(heights[:1]), jnp.cumsum(density.heights) / jnp.sum(density.heights)])

    def asked(u):
        t = density.time(u)
        return averaged(density, t, spent(t))

    there = _integral(spent, jnp.asarray(0.125, heights.dtype), jnp.asarray(0.875, heights.dtype)) / 0.75
    return sum(_integral(asked, low, high) for low, high in pairwise(edges)), there


@importance_leaves_the_loss.near_miss
def undivided(heights, factors):
    """l itself at times that are not uniform."""
    return _by_importance(heights, factors, lambda density, t, spent: losses.averaged(t[None], spent[None]))


@importance_leaves_the_loss.near_miss
def divided_by_the_last_bin_s(heights, factors):
    """The density of the last bin, wherever t is."""
    last = 0.8 * jnp.ones_like(heights[:1])
    return _by_importance(
        heights, factors, lambda density, t, spent: losses.averaged(last, spent[None], density=density)
    )


@theorem(source="derived; Kingma et al. 2021, App. I (importance sampling by a schedule)", schedule=smooth_schedules, heights=vectors(4),
         x0=vectors(2), eps=vectors(2), share=fractions, beyond=fractions, cases=200)  # fmt: skip
def a_density_is_a_schedule(schedule, heights, x0, eps, share, beyond):
    """Under s(t) = schedule(H^{-1}(t)), at a uniform time, a weighted loss is draw by draw that of the schedule at a time of density h,
    divided by h; beyond the ends of h it is the schedule."""
    return _rescheduled(schedule, heights, x0, eps, share, beyond, _falling(jnp.asarray(0.5, share.dtype)))


def _rescheduled(schedule, heights, x0, eps, share, beyond, weight, prediction=predictions.v, by_log_snr=True):
    """(the loss of `Rescheduled` and where it is at a time before its ends, what importance sampling says of the schedule)."""
    density = importance.Histogram(jnp.arange(1, 5, dtype=heights.dtype) + heights**2, ends=(0.125, 0.875))
    bent, asked, r = importance.Rescheduled(density, schedule), 0.125 + 0.75 * share, density.time(share)
    told = lambda way, t: clocks.log_snr(way, t) if by_log_snr else t  # noqa: E731

    def spent(way, t):
        network = lambda z, t: jnp.tanh(z) * told(way, t)  # noqa: E731
        return losses.denoising_loss(network, way, prediction, x0, eps, t, weight=weight)

    before, after = 0.1 * beyond, 0.9 + 0.1 * beyond
    left = [spent(bent, asked), *bent(before), *bent(after), clocks.log_snr(bent, asked)]
    right = [
        spent(schedule, r) / jnp.exp(density.log_density(r)),
        *schedule(before),
        *schedule(after),
        clocks.log_snr(schedule, r),
    ]
    return left, right


@a_density_is_a_schedule.near_miss(witness={"share": 0.3})
def of_a_plain_loss_too(schedule, heights, x0, eps, share, beyond):
    """Without a weight no slope of log-SNR divides by h."""
    return _rescheduled(schedule, heights, x0, eps, share, beyond, None)


@a_density_is_a_schedule.near_miss(witness={"share": 0.3})
def of_a_velocity_too(schedule, heights, x0, eps, share, beyond):
    """A prediction that reads the slopes of the schedule, which are others, from a network that says the same."""
    weight = _falling(jnp.asarray(0.5, share.dtype))
    return _rescheduled(schedule, heights, x0, eps, share, beyond, weight, prediction=predictions.velocity)


@a_density_is_a_schedule.near_miss(witness={"share": 0.3})
def of_a_network_that_is_told_the_time(schedule, heights, x0, eps, share, beyond):
    """A network of t, which is not what it was of the same log-SNR."""
    return _rescheduled(
        schedule, heights, x0, eps, share, beyond, _falling(jnp.asarray(0.5, share.dtype)), by_log_snr=False
    )


def _least(squares, roots):
    """(E[(l/h)^2] of h ~ roots, the least there is)."""
    return importance.second_moment(importance.Histogram(roots), squares), jnp.mean(jnp.sqrt(squares)) ** 2


@theorem(source="Kingma & Gao 2023, App. F; Nichol & Dhariwal 2021, Sec. 3.3", kind="inequality", spent=vectors(5), spread=vectors(5),
         density=vectors(5))  # fmt: skip
def optimal_importance_density(spent, spread, density):
    """Of a loss l drawn at times of density h and divided by it, E[(l/h)^2] is least where h ~ sqrt(E l^2), and is then
    (int sqrt(E l^2))^2: h ~ E l is as good only where the spread of l is the same share of it at every time."""
    squares = 0.1 + spent**2 + spread**2
    best = importance.second_moment(importance.optimal(squares, floor=0.0), squares)
    other, least = _least(squares, jnp.exp(jnp.tanh(density)))
    return jnp.stack([least, best]), jnp.stack([other, least])


@optimal_importance_density.near_miss
def as_often_as_the_loss_is_large(spent, spread, density):
    """h ~ |E l|, whatever the spread: no worse than any other."""
    return _least(0.1 + spent**2 + spread**2, jnp.maximum(jnp.abs(spent), 0.01))


@optimal_importance_density.near_miss
def uniform_times_are_best(spent, spread, density):
    """E[(l/h)^2] of uniform times taken for the least."""
    return _least(0.1 + spent**2 + spread**2, jnp.ones_like(spent))


@theorem(source="Neyman 1934; derived for times", kind="inequality", spent=vectors(5), spread=vectors(5), cases=300)
def stratified_times_want_the_spread(spent, spread):
    """With one time in each of many strata of h the mean loss varies by int Var[l|t]/h: least for h ~ sqrt(Var[l|t]), whatever E[l|t]."""
    return _stratified(spent, spread, 0.1 + spread**2)


def _stratified(spent, spread, best):
    """(the variance of a stratified mean by a density for `best`, by the one for E[l^2])."""
    variances = 0.1 + spread**2
    seen = lambda squares: importance.second_moment(importance.optimal(squares, floor=0.0), variances)  # noqa: E731
    return seen(best), seen(variances + 9 * spent**2)


@stratified_times_want_the_spread.near_miss
def uniform_times_are_as_good(spent, spread):
    """Uniform times in their place."""
    return _stratified(0 * spent, spread, jnp.ones_like(spread))


@theorem(
    source="derived", kind="inequality", squares=vectors(5), believed=vectors(5), floor=scalars("shares", 0.05, 0.95)
)
def a_floor_bounds_what_a_wrong_density_costs(squares, believed, floor):
    """E[(l/h)^2] <= E[l^2]/floor, where a share `floor` of the times is uniform and the rest is learnt from anything whatever."""
    return _believing(squares, believed, floor, floor)


def _believing(squares, believed, floor, share):
    """(E[(l/h)^2], E[l^2]/share), l largest where it is believed to be small."""
    small = 0.01 + believed**2
    density, squares = importance.optimal(small, floor=floor), (squares / small) ** 2
    return importance.second_moment(density, squares), jnp.mean(squares) / share


@a_floor_bounds_what_a_wrong_density_costs.near_miss
def never_more_than_of_uniform_times(squares, believed, floor):
    """E[l^2] itself."""
    return _believing(squares, believed, floor, 1.0)


@theorem(source="Kingma et al. 2021, App. I.2", error=scalars("errors", -0.5, 0.5), height=scalars("heights", -1.0, 1.0),
         bend=scalars("bends", -0.9, 0.9), cases=300)  # fmt: skip
def what_is_within_the_ends_changes_the_variance_alone(error, height, bend):
    """d/d schedule (E[l^2] - E[l]^2) = d/d schedule E[l^2], of schedules that share their ends, at uniform times."""
    return _slopes(error, height, bend, _falling(height))


def _slopes(error, height, bend, weight):
    """The slopes of the variance and of the second moment with the bend of lambda = 4 - 8 t - 8 bend t (1 - t)."""

    def moment(bend, power):
        schedule = lambda t: variance_preserving(4 - 8 * t - 8 * bend * t * (1 - t))  # noqa: E731
        network, one = _erring(schedule, jnp.ones_like(error)[None], error), jnp.ones_like(error)[None]
        spend = lambda t: losses.denoising_loss(network, schedule, predictions.noise, one, one, t, weight=weight)  # noqa: E731
        return _integral(lambda t: spend(t) ** power, jnp.zeros_like(bend), jnp.ones_like(bend))

    second = jax.grad(lambda bend: moment(bend, 2))(bend)
    return jax.grad(lambda bend: moment(bend, 2) - moment(bend, 1) ** 2)(bend), second


@what_is_within_the_ends_changes_the_variance_alone.near_miss
def a_plain_loss_too(error, height, bend):
    """Without a weight, where E[l] is another one under every schedule."""
    return _slopes(error, height, bend, None)
