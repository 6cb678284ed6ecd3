"""Equations: every process with the same marginals p_t, forward and backward.

    forward SDE          dz = f z dt + g dw,                                f = alpha'/alpha,  g^2 = -sigma^2 lambda'
    reverse family       dz = (u - eta^2 g^2 score / 2) dt + eta g dw_bar   for any eta(t) >= 0, time decreasing
    probability flow     dz = u dt,                                         u = f z - g^2 score / 2 = alpha' x0_hat + sigma' eps_hat
    Fokker-Planck        d log p/dt + div(b) + b . s - g^2/2 (div(s) + |s|^2) = 0    for dz = b dt + g dw,  s = grad log p

The flow matching velocity *is* the probability-flow drift; only eta = 1 has the joint law of the forward process.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen.predictions import convert, data, velocity
from diffeq_gen.schedules import at
from diffeq_gen.types import Denoiser, Field, Point, Sample, Schedule, Time, dot, pytree, require, static

__all__ = [
    "FromSDE",
    "continuity",
    "drift_rate",
    "fokker_planck",
    "forward_sde",
    "probability_flow",
    "reverse_sde",
    "variance_rate",
]


def drift_rate(p: Point) -> jax.Array:
    """f = alpha' / alpha.  Song et al. 2021; Kingma et al. 2021, Eq. 19.

    Theorems: sde-from-schedule, schedule-from-sde.
    """
    return p.alpha_dot / p.alpha


def variance_rate(p: Point) -> jax.Array:
    """g^2 = 2 sigma sigma' - 2 f sigma^2 = -sigma^2 lambda'.  Kingma et al. 2021, Eq. 20.

    Written as 2 sigma (sigma' - f sigma), finite at sigma = 0.  Negative where log-SNR rises: then no such SDE exists.
    Theorems: sde-from-schedule, schedule-from-sde, no-sde-if-nonmonotone-snr, entropy-production.
    """
    return 2 * p.sigma * (p.sigma_dot - drift_rate(p) * p.sigma)


def forward_sde(schedule: Schedule) -> tuple[Field, Callable[[Time], jax.Array]]:
    """(drift, diffusion) of dz = f z dt + g dw: drift(z, t) = f z, diffusion(t) = g.  Song et al. 2021, Eq. 5.

    Raises: ValueError at a time where log-SNR rises, for there g^2 < 0.
    Theorems: sde-from-schedule, vp-sde, subvp-sde, fokker-planck.
    """

    def drift(z: Sample, t: Time) -> Sample:
        return drift_rate(at(schedule, t)) * z

    def diffusion(t: Time) -> jax.Array:
        p = at(schedule, t)
        require(lambda g2, t: g2 >= 0, "g^2 must not be negative: log-SNR rises here", g2=variance_rate(p), t=t)
        return jnp.sqrt(variance_rate(p))

    return drift, diffusion


def probability_flow(denoise: Denoiser, schedule: Schedule) -> Field:
    """u(z, t) = alpha' x0_hat + sigma' eps_hat: the ODE that carries p_t.  Song et al. 2021, Eq. 13.

    Never f z - g^2 score / 2, whose two terms both blow up where alpha -> 0.  Undefined at sigma = 0.  A solver library that
    asks for (t, y, args), as diffrax does, takes `lambda t, y, args: u(y, t)`, and times that run down.
    Theorems: velocity-is-pfode-drift, continuity-equation, pfode, kl-velocity-derivative, perspective-consistency-triple.
    """

    def drift(z: Sample, t: Time) -> Sample:
        return convert(denoise(z, t), z, at(schedule, t), data, velocity)

    return drift


def reverse_sde(
    denoise: Denoiser, schedule: Schedule, *, eta: float | Callable[[Time], jax.Array] = 1.0
) -> tuple[Field, Callable[[Time], jax.Array]]:
    """(drift, diffusion) of dz = (u - eta^2 g^2 score / 2) dt + eta g dw_bar, for time running down.  Huang et al. 2021.

    `eta` is a number or a function of time: 0 is the probability flow, 1 is Anderson's reversal of the forward SDE.  The
    score enters as g^2 score = -lambda' (alpha x0_hat - z), which needs no division by sigma^2.
    Raises: ValueError where a constant eta is negative.
    Theorems: reverse-family, anderson-reverse, family-joint-law-differs, reverse-equals-flow-plus-langevin, kl-contraction.
    """
    if not callable(eta):
        require(lambda eta: eta >= 0, "eta must not be negative", eta=eta)
    level = eta if callable(eta) else lambda t: eta

    def drift(z: Sample, t: Time) -> Sample:
        p = at(schedule, t)
        x0 = denoise(z, t)
        return convert(x0, z, p, data, velocity) + level(t) ** 2 / 2 * p.log_snr_dot * (p.alpha * x0 - z)

    def diffusion(t: Time) -> jax.Array:
        return level(t) * jnp.sqrt(variance_rate(at(schedule, t)))

    return drift, diffusion


def fokker_planck(
    log_prob: Callable[[Sample, Time], jax.Array],
    drift: Field,
    diffusion: Callable[[Time], jax.Array],
    *,
    backward: bool = False,
) -> Callable[[Sample, Time], jax.Array]:
    """(z, t) -> d log p/dt + div(b) + b . s - g^2/2 (div(s) + |s|^2): zero iff p_t is the law of dz = b dt + g dw.

    For an SDE that runs down in time (`backward`) the sign of g^2 turns.  All derivatives are exact (autodiff); the cost
    is one Hessian of log p, so z should be small.
    Theorems: fokker-planck, score-fpe, reverse-family, anderson-reverse.
    """

    def residual(z: Sample, t: Time) -> jax.Array:
        t = jnp.asarray(t)
        flat, shape = z.reshape(-1), z.shape
        score = jax.grad(lambda z: log_prob(z.reshape(shape), t))
        change = jax.jvp(lambda t: log_prob(z, t), (t,), (jnp.ones_like(t),))[1]
        field = lambda flat: drift(flat.reshape(shape), t).reshape(-1)  # noqa: E731
        s, sign = score(flat), -1 if backward else 1
        spread = sign * diffusion(t) ** 2 / 2 * (jnp.trace(jax.jacfwd(score)(flat)) + dot(s, s))
        return change + jnp.trace(jax.jacfwd(field)(flat)) + dot(field(flat), s) - spread

    return residual


def continuity(log_prob: Callable[[Sample, Time], jax.Array], velocity: Field) -> Callable[[Sample, Time], jax.Array]:
    """(z, t) -> d log p/dt + div(u) + u . s: zero iff the flow dz = u dt carries p_t.

    Theorems: continuity-equation, pfode.
    """
    return fokker_planck(log_prob, velocity, lambda t: jnp.zeros_like(t))


@pytree
class FromSDE:
    """alpha = exp(int_0^t f), sigma^2 = alpha^2 int_0^t g^2 / alpha^2: the schedule of dz = f z dt + g dw from z_0 = x0.

    Gao et al. 2024 print sigma without its factor alpha.  `f` and `g_squared` are functions of time; the integrals are
    Gauss-Legendre rules of `nodes` points (spectrally exact for smooth f, g^2 on [0, t]).
    Theorems: schedule-from-sde, erratum-e1-sigma-without-alpha.
    """

    f: Callable[[Time], jax.Array] = static()
    g_squared: Callable[[Time], jax.Array] = static()
    nodes: int = static(default=32)

    def __call__(self, t: Time) -> tuple[jax.Array, jax.Array]:
        t = jnp.asarray(t)
        nodes, weights = (jnp.asarray(value, t.dtype) for value in np.polynomial.legendre.leggauss(self.nodes))
        nodes, weights = (nodes + 1) / 2, weights / 2

        def log_alpha(t: Time) -> jax.Array:
            return t * dot(weights, jax.vmap(self.f)(t * nodes))

        rates = jax.vmap(lambda r: self.g_squared(r) * jnp.exp(-2 * log_alpha(r)))(t * nodes)
        alpha = jnp.exp(log_alpha(t))
        return alpha, alpha * jnp.sqrt(t * dot(weights, rates))
