"""Losses: regress a prediction on what was mixed in.

    z = alpha x0 + sigma eps,       loss = |network(z, t) - (a x0 + b eps)|^2                         plain
    loss = 1/2 w(lambda) (-lambda') |eps_hat - eps|^2,   |eps_hat - eps| = |alpha/det| |value - target|   weighted

The minimiser is the posterior mean whatever the weight; the weight decides what a network with finite means cares about, and the
density of the times how much the loss of a batch varies.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffeq_gen.importance import ENDS, Histogram
from diffeq_gen.paths import perturb
from diffeq_gen.predictions import convert, data, determinant
from diffeq_gen.schedules import at
from diffeq_gen.types import Denoiser, Field, Key, Prediction, Sample, Schedule, Time
from diffeq_gen.weights import LogWeight

__all__ = ["averaged", "denoising_loss", "each", "loss", "squared_loss", "stratified_times"]


def denoising_loss(
    network: Field, schedule: Schedule, prediction: Prediction, x0: Sample, eps: Sample, t: Time,
    *, weight: LogWeight | None = None, teacher: Denoiser | None = None,
) -> jax.Array:  # fmt: skip
    """mean |network(z, t) - (a x0 + b eps)|^2 over the entries of one sample; weighted, 1/2 w (-lambda') times that of eps.

    The weighted loss is in nats per dimension for w = 1: integrated over t it is the diffusion part of the ELBO.
    Of a `teacher`, which is taken as a constant, the target is what it predicts at the same z: distillation.  A teacher that says
    E[x0|z] leaves minimiser and mean gradient as they are, and takes (det/sigma)^2 tr Cov(x0|z)/d of the plain loss away.
    Raises: ValueError where x0 and eps differ in shape.
    Theorems: loss-schedule-invariance, too-small-a-class-obeys-the-weight, perspective-rnn, a-teacher-takes-the-noise-away.
    """
    p = at(schedule, t)
    a, b = prediction(p)
    z = perturb(x0, eps, p)
    target = a * x0 + b * eps
    if teacher is not None:
        target = jax.lax.stop_gradient(convert(teacher(z, t), z, p, data, prediction))
    error = jnp.mean((network(z, t) - target) ** 2)
    if weight is None:
        return error
    scale = weight(p.log_snr) + 2 * jnp.log(p.alpha / jnp.abs(determinant(prediction, p))) + jnp.log(-p.log_snr_dot)
    return jnp.exp(scale) / 2 * error


def stratified_times(
    key: Key, indices: jax.Array, total: int, *, ends: tuple[float, float] = ENDS, density: Histogram | None = None
) -> jax.Array:  # fmt: skip
    """t_i = ends[0] + (ends[1] - ends[0]) ((u + i/total) mod 1): one uniform u for the whole batch.  Kingma et al. 2021, App. I.1.

    Each t_i is uniform; together they fill the interval evenly.  Of a density, which has ends of its own, t_i = H^{-1} of that
    share: each has that density, and together they fill it evenly.  `indices` are the places i of these samples in a batch of
    `total`, so that any division of the batch over devices sees the same times.
    """
    u = jax.random.uniform(key)
    share = jnp.mod(u + indices.astype(u.dtype) / total, 1)
    return ends[0] + (ends[1] - ends[0]) * share if density is None else density.time(share)


def each(
    key: Key, network: Field, schedule: Schedule, x0: Sample, *, prediction: Prediction,
    weight: LogWeight | None = None, indices: jax.Array | None = None, total: int | None = None,
    density: Histogram | None = None, teacher: Denoiser | None = None,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """(times, `denoising_loss` there), both (n,), of a batch x0 (n, *event), each sample at its own time and with its own noise.

    Noise and time of a sample follow from the key and its index in the whole batch, not from its neighbours: a part of a
    batch (`indices` of `total`) draws what it would have drawn within the whole.  Times are uniform, or of a `density`; the losses
    are not divided by it, so that `Seen.noted` may learn from them.
    """
    indices = jnp.arange(x0.shape[0]) if indices is None else indices
    time_key, noise_key = jax.random.split(key)
    total = x0.shape[0] if total is None else total
    times = stratified_times(time_key, indices, total, density=density).astype(x0.dtype)

    def one(x0: Sample, index: jax.Array, t: Time) -> jax.Array:
        eps = jax.random.normal(jax.random.fold_in(noise_key, index), x0.shape, x0.dtype)
        return denoising_loss(network, schedule, prediction, x0, eps, t, weight=weight, teacher=teacher)

    return times, jax.vmap(one)(x0, indices, times)


def loss(
    key: Key, network: Field, schedule: Schedule, x0: Sample, *, prediction: Prediction,
    weight: LogWeight | None = None, indices: jax.Array | None = None, total: int | None = None,
    density: Histogram | None = None, teacher: Denoiser | None = None,
) -> jax.Array:  # fmt: skip
    """The mean over a batch of what `each` says, divided by the density of its times: in expectation the same under any.

    Theorems: importance-leaves-the-loss.
    """
    times, values = each(
        key, network, schedule, x0, prediction=prediction, weight=weight, indices=indices, total=total, density=density,
        teacher=teacher,
    )  # fmt: skip
    return averaged(times, values, density=density)


def averaged(times: Time, values: jax.Array, *, density: Histogram | None = None) -> jax.Array:
    """The mean of l/h over a batch of losses at times of density h; of uniform times, where none is given, that of l.

    Theorems: importance-leaves-the-loss.
    """
    return jnp.mean(values if density is None else values * jnp.exp(-density.log_density(times)).astype(values.dtype))


def squared_loss(
    key: Key, network: Callable[[Schedule], Field], schedule: Schedule, x0: Sample, *, prediction: Prediction, weight: LogWeight
) -> jax.Array:  # fmt: skip
    """The mean of l^2 over a batch: what a learnt schedule, `schedules.Monotone`, is to minimise.  Kingma et al. 2021, App. I.2.

        d/d schedule (E[l^2] - E[l]^2) = d/d schedule E[l^2]           E[l] is the same for all schedules of the same ends

    `network` makes of a schedule what is asked under it, and must say the same at the same log-SNR under all, as `nets.field` does.
    A plain loss is another one under every schedule: a weight is asked for.
    A learner's steps must be small beside the narrowest unit of `Monotone.like`, or teach its heights alone.
    Theorems: what-is-within-the-ends-changes-the-variance-alone.
    """
    _, values = each(key, network(schedule), schedule, x0, prediction=prediction, weight=weight)
    return jnp.mean(jnp.square(values))
