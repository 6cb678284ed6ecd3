"""Langevin corrector: steps at one time that leave its marginal p_s alone, nearly or exactly.

    z' = z + delta score + sqrt(2 delta) eps,        delta = size sigma_s^2  or  2 (snr |eps| / |score|)^2
    back = -(eps + sqrt(delta/2) (score + score'))                              the draw that leads from z' to z again
    z' is taken with the chance min(1, p(z')/p(z) e^{(|eps|^2 - |back|^2)/2})     Metropolis and Hastings: p_s is exactly kept

Unadjusted, the law rests at p_s but for O(delta).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffeq_gen.schedules import at
from diffeq_gen.types import Denoiser, Memory, Sample, Sampler, Schedule, Time, require

__all__ = ["draw_back", "langevin", "langevin_step", "log_acceptance"]


def langevin_step(score: Sample, z: Sample, eps: Sample, delta: jax.Array) -> Sample:
    """z + delta score + sqrt(2 delta) eps: one Euler-Maruyama step of dz = score d tau + sqrt(2) dw.  Song et al. 2021, App. G.

    Theorems: ula-bias, metropolis-detailed-balance.
    """
    return z + delta * score + jnp.sqrt(2 * delta) * eps


def draw_back(score: Sample, score_there: Sample, eps: Sample, delta: jax.Array) -> Sample:
    """-(eps + sqrt(delta/2) (score + score_there)): with it the Langevin step from z' returns to z.

    Theorems: metropolis-detailed-balance.
    """
    return -(eps + jnp.sqrt(delta / 2) * (score + score_there))


def log_acceptance(gained: jax.Array, eps: Sample, back: Sample) -> jax.Array:
    """log p(z') - log p(z) + (|eps|^2 - |back|^2)/2, the log of p(z') q(z | z') / (p(z) q(z' | z)).  Roberts & Tweedie 1996.

    Theorems: metropolis-detailed-balance.
    """
    return gained + jnp.sum((eps - back) * (eps + back)) / 2


def langevin(
    denoise: Denoiser, schedule: Schedule, *, size: float = 0.1, snr: float | None = None,
    log_prob: Callable[[Sample, Time], jax.Array] | None = None,
) -> Sampler:  # fmt: skip
    """One Langevin step at the time s that is stepped to, whatever t: score = (alpha_s x0_hat - z)/sigma_s^2.  Song et al. 2021, App. G.

    Its length is delta = size sigma_s^2, stable for Gaussian data below size 2; or, where `snr` is given, such that drift and
    noise are as snr : 1, delta = 2 (snr |eps|/|score|)^2: their rule without its factor alpha, each sample with its own,
    undefined where the score is zero.
    With log_prob(z, t), where it is known, the step is Metropolis-adjusted (MALA): it keeps p_s exactly, asks twice for the
    denoiser and for a second row of noise, whose first number decides.  Over a falling grid it is annealed Langevin
    dynamics; for several steps at each time, and after a predictor, see `corrected`.  At sigma_s = 0 nothing moves.
    Raises: ValueError where size or snr is not positive, or log_prob comes with snr, whose delta depends on the noise.
    Theorems: ula-bias, langevin-signal-to-noise, metropolis-detailed-balance, metropolis-step-is-reversible,
    predictor-then-corrector.
    """
    require(lambda size: size > 0, "size must be positive", size=size)
    require(lambda snr: snr is None or snr > 0, "snr must be positive", snr=snr)
    adjusted = log_prob is not None
    require(lambda adjusted: not adjusted or snr is None, "log_prob needs size, not snr", log_prob=adjusted)

    def step(noise: Sample, memory: Memory, z: Sample, t: Time, s: Time) -> tuple[Sample, Memory]:
        regular = schedule(s)[1] > 0
        there = jnp.where(regular, s, t)  # any time at which all is finite: what is seen there is not used
        q = at(schedule, there)
        score = lambda z: (q.alpha * denoise(z, there) - z) / q.sigma**2  # noqa: E731
        here, eps = score(z), noise[0]
        if snr is None:
            delta = size * q.sigma**2
        else:
            delta = 2 * snr**2 * jnp.sum(eps**2) / jnp.sum(here**2)
        moved = langevin_step(here, z, eps, delta)
        if adjusted:
            gained = log_prob(moved, there) - log_prob(z, there)
            chance = log_acceptance(gained, eps, draw_back(here, score(moved), eps, delta))
            drawn = jax.scipy.special.log_ndtr(noise[1].reshape(-1)[0])  # log of a uniform number
            moved = jnp.where(drawn < chance, moved, z)
        return jnp.where(regular, moved, z), memory

    return Sampler(lambda z: (), step, noises=2 if adjusted else 1)
