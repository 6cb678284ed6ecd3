"""Steps that choose their own length: two orders from the same stages, and a step in log-SNR that their difference allows.

    E = ( mean (z_high - z_low)^2 / delta^2 )^{1/2},        delta = max(atol, rtol max(|z_low|, |z_low before|))
    E <= 1: take z_high;        h' = safety h E^{-1/order} in either case

No `Sampler`, for it keeps no grid: a loop of its own, that stops at the end or says that it did not.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffeq_gen.clocks import log_snr, time_at
from diffeq_gen.samplers.singlestep import embedded
from diffeq_gen.types import Denoiser, Sample, Schedule, Time, require

__all__ = ["Adapted", "adaptive"]


class Adapted(NamedTuple):
    """The state at s, nan where the loop did not arrive; evaluations of the model, steps taken of those tried, log-SNR reached."""

    z: Sample
    evaluations: jax.Array
    taken: jax.Array
    tried: jax.Array
    log_snr: jax.Array
    arrived: jax.Array


class _Walk(NamedTuple):
    z: Sample
    before: Sample
    t: jax.Array
    log_snr: jax.Array
    h: jax.Array
    taken: jax.Array
    tried: jax.Array
    arrived: jax.Array


def adaptive(
    denoise: Denoiser, schedule: Schedule, z: Sample, t: Time, s: Time, *, order: int = 3, rule: str = "data",
    rtol: float = 0.05, atol: float = 0.0078, first: float = 0.1, safety: float = 0.9, most: int = 1000,
) -> Adapted:  # fmt: skip
    """DPM-Solver-12 (order 2) and -23 (order 3) from time t to s.  Lu et al. 2022 (DPM-Solver), App. C; their rtol, atol, safety.

    `first` is the first step in log-SNR, `most` the largest number of steps tried, each of which costs `order` evaluations.  The
    tolerances are of a step and not of the end.  Where `most` steps do not reach s, or a prediction is not finite, z is nan and
    `arrived` false.  A batch is vmap, and takes as long as its slowest; under `jit` it compiles once.  A while loop: it has
    derivatives forwards, by `jvp` (of the steps as they were, their lengths held), and none backwards.  Both ends need a finite
    log-SNR: end where sigma is small, and take x0_hat there.
    Raises: ValueError where order is not 2 or 3, rule is unknown, t is not later than s, log-SNR is infinite at an end, or an
    option is out of its range.
    Theorems: embedded-steps-are-singlesteps.
    """
    require(lambda order: order in (2, 3), "order must be 2 or 3", order=order)
    require(lambda rule: rule in ("data", "noise"), "rule must be data or noise", rule=rule)
    require(lambda rtol, atol: (rtol >= 0) & (atol >= 0) & (rtol + atol > 0), "rtol and atol must not be negative, nor both zero",
            rtol=rtol, atol=atol)  # fmt: skip
    require(lambda first: first > 0, "first must be positive", first=first)
    require(lambda safety: 0 < safety < 1, "safety must lie in (0, 1)", safety=safety)
    require(lambda most: most >= 1, "most must be at least 1", most=most)
    require(lambda t, s: t > s, "t must be later than s", t=t, s=s)
    t, s = (jnp.asarray(end, z.dtype) for end in (t, s))
    begin, end = log_snr(schedule, t), log_snr(schedule, s)
    require(
        lambda begin, end: abs(begin) + abs(end) < jnp.inf, "log-SNR must be finite at both ends", begin=begin, end=end
    )
    shares = (1 / 2,) if order == 2 else (1 / 3, 2 / 3)
    states = embedded(denoise, schedule, shares, rule=rule, fewest=order - 1)

    def going(walk: _Walk) -> jax.Array:
        return ~walk.arrived & (walk.tried < most) & (walk.h > 0)

    def step(walk: _Walk) -> _Walk:
        last = walk.h >= end - walk.log_snr
        there = jnp.where(last, end, walk.log_snr + walk.h)
        r = jnp.where(last, s, time_at(schedule, there))
        low, high = states(walk.z, walk.t, r)
        delta = jnp.maximum(atol, rtol * jnp.maximum(jnp.abs(low), jnp.abs(walk.before)))
        error = jnp.sqrt(jnp.mean(((high - low) / delta) ** 2))
        accepted = error <= 1
        z, before, t, reached = jax.tree.map(
            lambda new, old: jnp.where(accepted, new, old),
            (high, low, r, there), (walk.z, walk.before, walk.t, walk.log_snr),
        )  # fmt: skip
        h = jax.lax.stop_gradient(safety * (there - walk.log_snr) * error ** (-1 / order))
        return _Walk(z, before, t, reached, h, walk.taken + accepted.astype(int), walk.tried + 1, accepted & last)

    count = jnp.zeros((), int)
    start = _Walk(z, z, t, begin, jnp.asarray(first, z.dtype), count, count, jnp.zeros((), bool))
    walk = jax.lax.while_loop(going, step, start)
    ended = jnp.where(walk.arrived, walk.z, jnp.nan)
    return Adapted(ended, order * walk.tried, walk.taken, walk.tried, walk.log_snr, walk.arrived)
