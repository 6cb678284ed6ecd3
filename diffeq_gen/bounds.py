"""Bounds: log p from below, by draws of what is hidden; and how far a wrong score can lead a process astray.

    log p(x0) = log E_q[w] >= E log (w_1 + ... + w_K)/K >= E log w,          w = p(x0, z)/q(z | x0)              Burda et al. 2016
    log w = log p(z_T)/q(z_T | x0) + sum log p(z_s | z_t)/q(z_s | z_t, x0) + log p(x0 | z_0)                     Ho et al. 2020, Eq. 3
    KL(p_0 || q_0) <= KL(p_T || q_T) + (1 + eta^2)^2/(8 eta^2) int g^2 E_p|s - s_hat|^2 dt                       Song et al. 2021

E log w of the chain is the discrete ELBO; the mean of w is p(x0) itself, whatever the denoiser: so says an importance weight.
"""

import math

import jax
import jax.numpy as jnp

from diffeq_gen.paths import bridge, perturb
from diffeq_gen.schedules import at
from diffeq_gen.types import Denoiser, Key, Point, Sample, Schedule, Time, require

__all__ = ["chain_bound", "importance_weighted", "path_kl_rate", "path_log_weight"]


def importance_weighted(log_weights: jax.Array) -> jax.Array:
    """log (w_1 + ... + w_K)/K over the first axis: below log E w in the mean, and less so the more there are.  Burda et al. 2016, Eq. 8.

    The mean of the weights, not of this, is unbiased.
    Raises: ValueError where there are none.
    Theorems: more-draws-tighten-the-bound.
    """
    require(lambda shape: len(shape) >= 1 and shape[0] >= 1, "log_weights must be of shape (K, ...), K >= 1",
            shape=jnp.shape(log_weights))  # fmt: skip
    return jax.nn.logsumexp(log_weights, axis=0) - math.log(len(log_weights))


def path_log_weight(noise: Sample, denoise: Denoiser, schedule: Schedule, x0: Sample, times: Time) -> jax.Array:
    """log p(x0, z)/q(z | x0) in nats, of one ancestral path z at the n + 1 `times`, which fall.  Ho et al. 2020, Eq. 3.

        q: z_T = alpha x0 + sigma eps, z_s of the Markov bridge from z_t to x0         `noise` (n + 1, *x0.shape), standard normal
        p: z_T of N(0, alpha^2 + sigma^2), z_s of the bridge from z_t to x0_hat(z_t), x0 of N(z_0/alpha, sigma^2/alpha^2)

    Its mean over the noise is the discrete ELBO, the mean of its exponential the density of the chain that DDPM draws with the smaller
    variance, denoised by nothing but N(z_0/alpha, sigma^2/alpha^2).  The denoiser is called n times.
    Undefined where sigma = 0, or two times are the same.
    Raises: ValueError where noise is not of that shape.
    Theorems: chain-weights-are-unbiased, mean-log-weight-is-the-discrete-elbo.
    """
    wanted = (*jnp.shape(times), *x0.shape)
    require(
        lambda shape: shape == wanted and len(shape) > x0.ndim, f"noise must be of shape {wanted}", shape=noise.shape
    )
    first, last = at(schedule, times[0]), at(schedule, times[-1])

    def step(
        state: tuple[Sample, jax.Array], drawn: tuple[Sample, Time, Time]
    ) -> tuple[tuple[Sample, jax.Array], None]:
        (z, log_weight), (eps, t, s) = state, drawn
        c_z, c_x, std = bridge(at(schedule, t), at(schedule, s))
        off = c_x / std * (x0 - denoise(z, t))
        return (c_z * z + c_x * x0 + std * eps, log_weight - jnp.sum(off * (eps + off / 2))), None

    start = perturb(x0, noise[0], first)
    state = start, _prior(start, noise[0], first)
    (end, log_weight), _ = jax.lax.scan(step, state, (noise[1:], times[:-1], times[1:]))
    away = (last.alpha * x0 - end) / last.sigma
    return log_weight - jnp.sum(jnp.square(away)) / 2 - x0.size / 2 * (math.log(2 * math.pi) - last.log_snr)


def _prior(z: Sample, eps: Sample, p: Point) -> jax.Array:
    """log N(z; 0, alpha^2 + sigma^2)/N(z; alpha x0, sigma^2)."""
    wide = jnp.square(p.alpha) + jnp.square(p.sigma)
    return jnp.sum(jnp.square(eps) - jnp.square(z) / wide) / 2 - z.size / 2 * jax.nn.softplus(p.log_snr)


def chain_bound(
    key: Key, denoise: Denoiser, schedule: Schedule, x0: Sample, times: Time, *, draws: int = 16
) -> jax.Array:  # fmt: skip
    """`importance_weighted` of `draws` paths of one sample: below log p(x0) of the chain in the mean, in nats.

    Raises: ValueError where draws is not positive.
    Theorems: more-draws-tighten-the-bound, chain-weights-are-unbiased.
    """
    require(lambda draws: draws >= 1, "draws must be positive", draws=draws)
    shape = (*jnp.shape(times), *x0.shape)

    def one(key: Key) -> jax.Array:
        return path_log_weight(jax.random.normal(key, shape, x0.dtype), denoise, schedule, x0, times)

    return importance_weighted(jax.lax.map(one, jax.random.split(key, draws)))


def path_kl_rate(
    denoise: Denoiser, other: Denoiser, schedule: Schedule, z: Sample, t: Time, *, eta: jax.Array | float = 1.0
) -> jax.Array:
    """(1 + eta^2)^2/(8 eta^2) g^2 |s - s_hat|^2 at z, of the scores of two denoisers, in nats per unit of time; g^2 |s - s_hat|^2 =
    -lambda' |eps_hat - eps_hat'|^2.

    Its integral over time and mean over the paths of the first is the KL divergence of the paths of the two members `eta` of the reverse
    family from one start (Girsanov 1960), and so no less than that of their ends.  Least at eta = 1, where the bound is attained if both
    scores are of laws of one forward process; of the flow, eta = 0, no such bound exists.
    Raises: ValueError where eta is not positive.
    Theorems: girsanov-bound, path-kl-is-the-limit-of-step-kls, path-kl-of-two-laws-is-their-kl.
    """
    require(lambda eta: eta > 0, "eta must be positive: the flow has no such bound", eta=eta)
    p, squared = at(schedule, t), jnp.square(eta)
    gap = p.alpha / p.sigma * (denoise(z, t) - other(z, t))
    return jnp.square(1 + squared) / (8 * squared) * -p.log_snr_dot * jnp.sum(jnp.square(gap))
