"""Chapter 8, objectives: what a weighted loss is an integral of, a mixture of, and how much it varies.

    int_0^1 1/2 w (-lambda') E|eps_hat - eps|^2 dt = 1/2 int w E|eps_hat - eps|^2 dlambda = w(high) L(high) + int -w' L dlambda

L(lambda) is half the integral from the noisiest level on: of data with noise of that level, the negative ELBO up to a constant.
"""

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen import exact, losses, paths, predictions, weights
from diffeq_gen.equations import forward_sde
from diffeq_gen.schedules import at
from diffeq_gen.theorems.domains import (
    earlier,
    empiricals,
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
