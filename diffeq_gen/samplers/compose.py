"""Samplers made of samplers.

started      the first steps by another method, while a multistep method gathers its past
churned      each step goes further than it should, to log-SNR lambda_s + o, and noise takes it back to s
raised       noise first, from t up to sigma_hat = (1 + gamma) sigma, and then the step from there
corrected    after each step of the one, steps of the other at the time that was reached
denoised     the last state by the prediction at it

`churned` and `raised` are one chain, cut after the noise or before it.
"""

import jax
import jax.numpy as jnp

from diffeq_gen.clocks import log_snr, time_at
from diffeq_gen.paths import noisy_gap, renoise
from diffeq_gen.schedules import at
from diffeq_gen.types import Denoiser, Memory, Sample, Sampler, Schedule, Time, concrete, require

__all__ = ["churned", "corrected", "denoised", "raised", "started"]


def started(sampler: Sampler, starter: Sampler, *, steps: int) -> Sampler:
    """The state after each of the first `steps` steps is `starter`'s; `sampler` sees it, and remembers.

    A k-step method begun by its own lower orders has global order 2 at most (one step of DDIM errs by O(h^2)); begun by
    k - 1 steps of order k - 1 it has order k.  The first steps cost the evaluations of both.
    Raises: ValueError where steps < 1.
    Theorems: multistep-startup-cap, third-order-solvers.
    """
    require(lambda steps: steps >= 1, "steps must be at least 1", steps=steps)

    def init(z: Sample) -> Memory:
        return jnp.zeros((), jnp.int32), sampler.init(z), starter.init(z)

    def step(noise: Sample, memory: Memory, z: Sample, t: Time, s: Time) -> tuple[Sample, Memory]:
        taken, own, other = memory
        moved, own = sampler.step(noise[: sampler.noises], own, z, t, s)
        begin = lambda: starter.step(noise[: starter.noises], other, z, t, s)  # noqa: E731
        moved, other = jax.lax.cond(taken < steps, begin, lambda: (moved, other))
        return moved, (taken + 1, own, other)

    return Sampler(init, step, max(sampler.noises, starter.noises), max(sampler.fewest, starter.fewest))


def churned(sampler: Sampler, schedule: Schedule, *, undone: float = 0.5) -> Sampler:
    """The sampler's own step to log-SNR lambda_s + o, o = Delta c/(1 - c), and noise back to s: c is undone.  Gao et al. 2024.

    Of DDIM this is `churn`, of which 1/2 is DDPM.  The step goes no further than time 0, and to sigma_s = 0 there is no noise.
    Raises: ValueError where undone lies outside [0, 1).
    Theorems: churned-is-churn, raised-is-edm.
    """
    require(lambda undone: 0 <= undone < 1, "undone must lie in [0, 1)", undone=undone)
    if concrete(undone) and undone == 0:
        return sampler

    def step(noise: Sample, memory: Memory, z: Sample, t: Time, s: Time) -> tuple[Sample, Memory]:
        p, q = at(schedule, t), at(schedule, s)
        end = log_snr(schedule, s)
        further = end + jnp.where(jnp.equal(undone, 0), 0, undone / (1 - undone) * noisy_gap(p, q))
        within = jnp.isfinite(further)
        beyond = time_at(schedule, jnp.where(within, further, 0))
        r = jnp.where(within, jnp.clip(beyond, 0, s), jnp.where(jnp.isfinite(end), jnp.zeros_like(s), s))
        moved, memory = sampler.step(noise[1:], memory, z, t, r)
        return renoise(moved, noise[0], q, at(schedule, r)), memory

    return Sampler(sampler.init, step, 1 + sampler.noises, sampler.fewest)


def raised(sampler: Sampler, schedule: Schedule, *, gamma: float = 0.1) -> Sampler:
    """Noise from t to the time t_hat of (1 + gamma) sigma/alpha, then the sampler's own step from t_hat to s.  Karras et al. 2022, Alg. 2.

    Of Heun's rule in sigma/alpha this is `edm` with s_churn = gamma times the number of steps.  Noise goes no further than
    time 1, and from alpha_t = 0 there is none.
    Raises: ValueError where gamma is negative.
    Theorems: raised-is-edm.
    """
    require(lambda gamma: gamma >= 0, "gamma must not be negative", gamma=gamma)
    if concrete(gamma) and gamma == 0:
        return sampler

    def step(noise: Sample, memory: Memory, z: Sample, t: Time, s: Time) -> tuple[Sample, Memory]:
        level = log_snr(schedule, t)
        within = jnp.isfinite(level)
        higher = time_at(schedule, jnp.where(within, level - 2 * jnp.log1p(gamma), 0))
        t_hat = jnp.where(within, jnp.clip(higher, t, 1), t)
        lifted = renoise(z, noise[0], at(schedule, t_hat), at(schedule, t))
        return sampler.step(noise[1:], memory, jnp.where(within, lifted, z), t_hat, s)

    return Sampler(sampler.init, step, 1 + sampler.noises, sampler.fewest)


def corrected(predictor: Sampler, corrector: Sampler, *, steps: int = 1) -> Sampler:
    """A step of the predictor from t to s, then `steps` of the corrector at s (which is told t and s too).  Song et al. 2021, Alg. 1.

    Raises: ValueError where steps < 1.
    Theorems: predictor-then-corrector.
    """
    require(lambda steps: steps >= 1, "steps must be at least 1", steps=steps)
    first, each = predictor.noises, corrector.noises

    def init(z: Sample) -> Memory:
        return predictor.init(z), corrector.init(z)

    def step(noise: Sample, memory: Memory, z: Sample, t: Time, s: Time) -> tuple[Sample, Memory]:
        own, other = memory
        z, own = predictor.step(noise[:first], own, z, t, s)
        rows = noise[first:].reshape(steps, each, *z.shape)
        (z, other), _ = jax.lax.scan(lambda at, row: (corrector.step(row, at[1], at[0], t, s), None), (z, other), rows)
        return z, (own, other)

    return Sampler(init, step, first + steps * each, predictor.fewest)


def denoised(sampler: Sampler, denoise: Denoiser, *, last: Time) -> Sampler:
    """A step that ends at `last` or beyond ends in x0_hat(z_s, s) instead of z_s: EDM's, and DPM-Solver's denoise_to_zero.

    `last` is the last time of the grid; one evaluation more, in that step alone where the run is not under `vmap`.  It is the
    step of DDIM from there to pure data of scale one.  Of Gaussian data of variance v under alpha = 1 it turns an excess sigma^2 of
    variance into a lack of v sigma^2/(v + sigma^2).
    Raises: ValueError where last lies outside [0, 1].
    Theorems: final-step-bias, denoised-is-one-step-more.
    """
    require(lambda last: 0 <= last <= 1, "last must lie in [0, 1]", last=last)

    def step(noise: Sample, memory: Memory, z: Sample, t: Time, s: Time) -> tuple[Sample, Memory]:
        moved, memory = sampler.step(noise, memory, z, t, s)
        ended = s <= jnp.asarray(last, jnp.result_type(s))
        return jax.lax.cond(ended, lambda: denoise(moved, s), lambda: moved), memory

    return Sampler(sampler.init, step, sampler.noises, sampler.fewest)
