"""Chapter 8, objectives: what a weighted loss is an integral of, a mixture of, and how much it varies.

    int_0^1 1/2 w (-lambda') E|eps_hat - eps|^2 dt = 1/2 int w E|eps_hat - eps|^2 dlambda = w(high) L(high) + int -w' L dlambda

L(lambda) is half the integral from the noisiest level on: of data with noise of that level, the negative ELBO up to a constant.
"""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen import clocks, exact, importance, losses, paths, predictions, weights
from diffeq_gen.equations import forward_sde
from diffeq_gen.schedules import at, variance_preserving
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
from diffeq_gen.theorems.registry import theorem
from diffeq_gen.theorems.solver_families import PARABOLAS

__all__: list[str] = []

NODES, SHARES = (
    half / 2 for half in (np.polynomial.legendre.leggauss(8)[0] + 1, np.polynomial.legendre.leggauss(8)[1])
)
"""Of Gauss and Legendre on [0, 1]: exact for polynomials up to degree fifteen."""


def _integral(verb, low, high):
    """int_low^high of a polynomial."""
    nodes = low + (high - low) * jnp.asarray(NODES, low.dtype)
    return (high - low) * jnp.sum(jnp.asarray(SHARES, low.dtype) * jax.vmap(verb)(nodes))


def _erring(schedule, eps, error):
    """A network of eps that errs by 1 + error lambda, whatever it sees."""
    return lambda z, t: eps + 1 + error * at(schedule, t).log_snr


def _falling(height):
    """w = 20 + h - lambda, which falls wherever |lambda| < 19."""
    return lambda log_snr: jnp.log(20 + height - log_snr)


def _spent(schedule, x0, eps, error, height, weight):
    """int_0^1 of the loss over times."""
    network = _erring(schedule, eps, error)
    spend = lambda t: losses.denoising_loss(network, schedule, predictions.noise, x0, eps, t, weight=weight)  # noqa: E731
    return _integral(spend, jnp.zeros_like(height), jnp.ones_like(height))


@theorem(source="Kingma et al. 2021, Eq. 18; Kingma & Gao 2023, Eq. 8", schedule=PARABOLAS, x0=vectors(2), eps=vectors(2),
         error=scalars("errors", -0.5, 0.5), height=scalars("heights", -1.0, 1.0))  # fmt: skip
def loss_schedule_invariance(schedule, x0, eps, error, height):
    """A weighted loss at uniform times is the same under all schedules with the same two ends: 1/2 int w E|eps_hat - eps|^2 dlambda."""
    low, high = at(schedule, 1.0).log_snr, at(schedule, 0.0).log_snr
    there = _integral(lambda log_snr: (20 + height - log_snr) * (1 + error * log_snr) ** 2 / 2, low, high)
    return _spent(schedule, x0, eps, error, height, _falling(height)), there


@loss_schedule_invariance.near_miss
def a_plain_loss_is_too(schedule, x0, eps, error, height):
    """Half the plain loss at uniform times taken for 1/2 int E|eps_hat - eps|^2 dlambda: its w is 1/-lambda'."""
    low, high = at(schedule, 1.0).log_snr, at(schedule, 0.0).log_snr
    there = _integral(lambda log_snr: (1 + error * log_snr) ** 2 / 2, low, high)
    return _spent(schedule, x0, eps, error, height, None) / 2, there


@theorem(
    source="Song et al. 2021, 'Maximum likelihood training', Eq. 7",
    schedule=schedules,
    eps=vectors(2),
    error=vectors(2),
    t=times,
)
def likelihood_weighting(schedule, eps, error, t):
    """Half g^2 |s_hat - grad log q(z|x0)|^2 is -lambda'/2 |eps_hat - eps|^2: weighted by g^2, score matching is the ELBO."""
    p, diffusion = at(schedule, t), forward_sde(schedule)[1](t)
    (_, b), log_weight = predictions.score(p), weights.elbo(p.log_snr)
    return diffusion**2 * jnp.sum((b * (eps + error) - b * eps) ** 2) / 2, jnp.exp(
        log_weight
    ) * -p.log_snr_dot / 2 * jnp.sum(error**2)


@likelihood_weighting.near_miss
def weighted_by_sigma_squared(schedule, eps, error, t):
    """sigma^2 in the place of g^2, which is the weight of eps-MSE."""
    p = at(schedule, t)
    (_, b) = predictions.score(p)
    return p.sigma**2 * jnp.sum((b * error) ** 2) / 2, -p.log_snr_dot / 2 * jnp.sum(error**2)


@theorem(
    source="Kingma et al. 2021, Eq. 13 and 14; Ho et al. 2020, Eq. 12",
    schedule=schedules,
    error=vectors(2),
    t=times,
    s=earlier("t"),
)
def vlb_step_kl(schedule, error, t, s):
    """KL(q(z_s|z_t, x0) | p(z_s|z_t)) = 1/2 (e^lambda_s - e^lambda_t) |x0_hat - x0|^2 = 1/2 expm1(Delta) |eps_hat - eps|^2; of DDPM,
    beta^2/(2 beta~ (1 - beta) (1 - alpha_bar)) |eps_hat - eps|^2, of which L_simple keeps the last factor."""
    p, q = at(schedule, t), at(schedule, s)
    _, c_x, std = paths.bridge(p, q)
    (scale, noise), factor = paths.transition(p, q), jnp.expm1(paths.gap(p, q)) / 2
    of_eps = jnp.sum((p.alpha / p.sigma * error) ** 2)
    return (
        (jnp.sum((c_x * error) ** 2) / 2, noise**4 / 2),
        (std**2 * factor * of_eps, std**2 * scale**2 * p.sigma**2 * factor),
    )


@vlb_step_kl.near_miss
def the_variance_of_the_forward_step(schedule, error, t, s):
    """beta for beta~: the other variance that DDPM offers."""
    p, q = at(schedule, t), at(schedule, s)
    c_x, noise = paths.bridge(p, q)[1], paths.transition(p, q)[1]
    of_eps = jnp.sum((p.alpha / p.sigma * error) ** 2)
    return jnp.sum((c_x * error) ** 2) / 2, noise**2 * jnp.expm1(paths.gap(p, q)) / 2 * of_eps


@theorem(source="Kingma & Gao 2023, Theorem 1", low=scalars("least log-SNRs", -15.0, -1.0), high=scalars("largest", 1.0, 15.0),
         error=scalars("errors", -0.5, 0.5), height=scalars("heights", -1.0, 1.0))  # fmt: skip
def kingma_gao(low, high, error, height):
    """1/2 int w E|eps_hat - eps|^2 dlambda = w(high) L(high) + int -w' L dlambda, L(lambda) = 1/2 int_low^lambda E|eps_hat - eps|^2: a
    weight that falls mixes ELBOs of data with noise added to them, as often as -w' says."""
    return _mixed(low, high, error, height, weights.augmentation(_falling(height)))


def _mixed(low, high, error, height, often, last=1.0):
    """1/2 int w E|eps_hat - eps|^2 dlambda, and the ELBOs mixed as `often` says, with `last` times that of the least noise."""
    weight, spent = _falling(height), lambda log_snr: (1 + error * log_snr) ** 2 / 2
    part = lambda top: _integral(spent, low, top)  # noqa: E731
    whole = _integral(lambda log_snr: jnp.exp(weight(log_snr)) * spent(log_snr), low, high)
    mixed = _integral(lambda log_snr: jnp.exp(often(log_snr)) * part(log_snr), low, high)
    return whole, last * jnp.exp(weight(high)) * part(high) + mixed


@kingma_gao.near_miss
def mixed_as_often_as_w(low, high, error, height):
    """w in the place of -w'."""
    return _mixed(low, high, error, height, _falling(height))


@kingma_gao.near_miss
def without_the_data_themselves(low, high, error, height):
    """The ELBO of what has least noise left out."""
    return _mixed(low, high, error, height, weights.augmentation(_falling(height)), last=0.0)


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


@theorem(source="Dieleman 2024, 'Noise schedules considered harmful'; derived", x0=vectors(4), level=vectors(4), share=vectors(4),
         c=vectors(), cases=300)  # fmt: skip
def too_small_a_class_obeys_the_weight(x0, level, share, c):
    """sum_i w_i (c l_i - x_i)^2 is least at c* = sum w l x / sum w l^2, and more by sum w l^2 (c - c*)^2 elsewhere: of one c for all levels
    the weight chooses; a value of its own for each level is best at x_i/l_i under any weight."""
    return _regressed(x0, level, share, c, 1 + share**2)


def _regressed(x0, level, share, c, heard):
    """(sum w (c l - x)^2, its minimum plus what c costs), the minimiser by weights that are heard."""
    w = 1 + share**2
    loss = lambda c: jnp.sum(w * (c * level - x0) ** 2)  # noqa: E731
    best = jnp.sum(heard * level * x0) / jnp.sum(heard * level**2)
    return loss(c), loss(best) + jnp.sum(w * level**2) * (c - best) ** 2


@too_small_a_class_obeys_the_weight.near_miss
def weights_do_not_matter(x0, level, share, c):
    """The minimiser of the unweighted sum."""
    return _regressed(x0, level, share, c, jnp.ones_like(share))


@theorem(source="Dieleman 2023, 'expectation predictors'; Salimans & Ho 2022; derived", schedule=smooth_schedules, few=empiricals(2, 4),
         x0=vectors(2), eps=vectors(2), guess=vectors(2), t=times, cases=300)  # fmt: skip
def a_teacher_takes_the_noise_away(schedule, few, x0, eps, guess, t):
    """With E[x0|z] of a teacher as the target, whichever of the data z was made of, the loss is its mean over them less
    (det/sigma)^2 tr Cov(x0|z)/d, weighted as it is itself, and the gradient their mean gradient: the minimiser stays."""
    return _distilled(schedule, few, x0, eps, guess, t, exact.denoiser(few, schedule), lambda prediction, p: (
        predictions.determinant(prediction, p) / p.sigma))  # fmt: skip


def _distilled(schedule, few, x0, eps, guess, t, teacher, factor):
    """(loss and slope of a student, the mean of those of all data that may have become z, less a trace), plain and weighted."""
    p, left, right = at(schedule, t), [], []
    z = paths.perturb(x0, eps, p)
    noises = (z[None, :] - p.alpha * few.points) / p.sigma
    r = jax.nn.softmax(-jnp.sum(noises**2, axis=1) / 2)
    trace = exact.posterior_trace(few, z, p) / 2
    for prediction, weight in (
        (predictions.velocity, None),
        (predictions.noise, _falling(0.0)),
        (predictions.data, None),
    ):
        spent = lambda guess, x0, eps, teacher, prediction=prediction, weight=weight: losses.denoising_loss(  # noqa: E731
            lambda z, t: guess, schedule, prediction, x0, eps, t, weight=weight, teacher=teacher)  # fmt: skip
        known = jax.value_and_grad(spent)
        values, slopes = jax.vmap(lambda x0, eps, known=known: known(guess, x0, eps, None))(few.points, noises)
        scale = 1.0 if weight is None else jnp.exp(weight(p.log_snr)) * -p.log_snr_dot / 2
        left.append(known(guess, x0, eps, teacher))
        right.append((r @ values - scale * factor(prediction, p) ** 2 * trace, r @ slopes))
    return left, right


@a_teacher_takes_the_noise_away.near_miss
def a_teacher_that_knows_the_mean_alone(schedule, few, x0, eps, guess, t):
    """E[x0] for E[x0|z]."""
    return _distilled(schedule, few, x0, eps, guess, t, lambda z, t: jnp.mean(few.points, axis=0), lambda prediction, p: (
        predictions.determinant(prediction, p) / p.sigma))  # fmt: skip


@a_teacher_takes_the_noise_away.near_miss
def whatever_is_predicted(schedule, few, x0, eps, guess, t):
    """tr Cov(x0|z)/d, as of a prediction of x0, for all predictions."""
    return _distilled(
        schedule, few, x0, eps, guess, t, exact.denoiser(few, schedule), lambda prediction, p: jnp.ones_like(t)
    )
