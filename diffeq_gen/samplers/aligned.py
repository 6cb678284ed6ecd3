"""A grid fitted to a solver: the times at which its own error on a world is smallest.

    minimise over g      mean_i |sample(z_i, times(g)) - solution(z_i)|^2,        times(g) = grids.spaced(g)

Each g is a grid, and a solver is differentiable in its times.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffeq_gen.clocks import log_snr, time_at
from diffeq_gen.coordinates import LOG_SNR
from diffeq_gen.grids import spaced
from diffeq_gen.samplers.runge_kutta import runge_kutta
from diffeq_gen.types import Denoiser, Sample, Sampler, Schedule, require

__all__ = ["Aligned", "aligned"]

FIRST_MOMENT, SECOND_MOMENT = 0.9, 0.99


class Aligned(NamedTuple):
    """The grid, and the root of the mean squared error at its end: of the grid that was given, and of this one."""

    times: jax.Array
    before: jax.Array
    after: jax.Array


def aligned(
    made: Callable[[Denoiser, Schedule], Sampler], denoise: Denoiser, schedule: Schedule, z: Sample, times: jax.Array,
    *, iterations: int = 300, rate: float = 0.05, reference: int = 256,
) -> Aligned:  # fmt: skip
    """The grid between the ends of `times` that brings the samples z nearest to the solution of the probability flow.

    `z` are states at times[0], of shape (n, *event), best of an exact world (`exact.denoiser`): the fit knows them alone, so enough
    of them.  The solution is `reference` steps of the rule of four stages, even in log-SNR.  Adam (Kingma & Ba 2015) descends from
    `times` through the solver; what is returned is the best grid seen, so never worse than the one given on these z.  After the idea
    of Sabour et al. 2024 ('Align your steps'), whose bound on a KL is here the error itself, for which a world must be known.
    Deterministic samplers only.
    Raises: ValueError where the sampler draws noise, times do not fall, log-SNR is infinite at an end, or an option is not positive.
    Theorems: gaps-are-a-grid, ddim-on-a-gaussian-is-best-in-the-angle.
    """
    require(lambda iterations, reference: (iterations >= 1) & (reference >= 1), "iterations and reference must be positive",
            iterations=iterations, reference=reference)  # fmt: skip
    require(lambda rate: rate > 0, "rate must be positive", rate=rate)
    sampler = made(denoise, schedule)
    require(lambda noises: noises == 0, "the sampler must be deterministic", noises=sampler.noises)
    times = jnp.asarray(times, z.dtype)
    lambdas = jax.vmap(lambda t: log_snr(schedule, t))(times)
    require(lambda lambdas: (abs(lambdas) < jnp.inf).all() & (lambdas[1:] > lambdas[:-1]).all(),
            "log-SNR must rise along the times, and be finite at both ends", log_snrs=lambdas)  # fmt: skip
    fine = jax.vmap(lambda value: time_at(schedule, value))(jnp.linspace(lambdas[0], lambdas[-1], reference + 1))
    exact = runge_kutta(denoise, schedule, coordinate=LOG_SNR)
    return _descend(sampler, exact, schedule, z, times, jnp.log(jnp.diff(lambdas)), fine, iterations, rate)


def _descend(
    sampler: Sampler, exact: Sampler, schedule: Schedule, z: Sample, times: jax.Array, gaps: jax.Array, fine: jax.Array,
    iterations: int, rate: float,
) -> Aligned:  # fmt: skip
    """Adam on the gaps, all in one compilation."""

    @jax.jit
    def run(z: Sample, times: jax.Array, gaps: jax.Array, fine: jax.Array) -> Aligned:
        known = jax.vmap(lambda z: _end(exact, z, fine))(z)

        def loss(gaps: jax.Array) -> jax.Array:
            grid = spaced(schedule, gaps, times[0], times[-1])
            return jnp.mean((jax.vmap(lambda z: _end(sampler, z, grid))(z) - known) ** 2)

        def step(carry: tuple, i: jax.Array) -> tuple[tuple, None]:
            gaps, first, second, best, least = carry
            value, slope = jax.value_and_grad(lambda gaps: jnp.log(loss(gaps)))(gaps)
            better = value < least
            best, least = jnp.where(better, gaps, best), jnp.where(better, value, least)
            first = FIRST_MOMENT * first + (1 - FIRST_MOMENT) * slope
            second = SECOND_MOMENT * second + (1 - SECOND_MOMENT) * slope**2
            mean, size = first / (1 - FIRST_MOMENT**i), second / (1 - SECOND_MOMENT**i)
            move = rate * (1 - i / (iterations + 1)) * mean / (jnp.sqrt(size) + jnp.finfo(z.dtype).eps)
            return (gaps - jnp.where(jnp.isfinite(move), move, 0), first, second, best, least), None

        zero, before = jnp.zeros_like(gaps), jnp.log(loss(gaps))
        count = jnp.arange(1, iterations + 1, dtype=z.dtype)
        (*_, best, least), _ = jax.lax.scan(step, (gaps, zero, zero, gaps, before), count)
        return Aligned(spaced(schedule, best, times[0], times[-1]), jnp.exp(before / 2), jnp.exp(least / 2))

    return run(z, times, gaps, fine)


def _end(sampler: Sampler, z: Sample, times: jax.Array) -> Sample:
    """The state at the last time, without noise and without a check of times that are traced."""

    def body(carry: tuple, pair: tuple[jax.Array, jax.Array]) -> tuple[tuple, None]:
        z, memory = carry
        return sampler.step(jnp.zeros((0, *z.shape), z.dtype), memory, z, *pair), None

    return jax.lax.scan(body, (z, sampler.init(z)), (times[:-1], times[1:]))[0][0]
