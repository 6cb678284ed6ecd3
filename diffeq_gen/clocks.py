"""Clocks: log-SNR is the time that all schedules share.

    lambda(t) = log(alpha^2 / sigma^2),     t = time_at(lambda),     d lambda / dt < 0

Everything that does not depend on the scale of z is a function of lambda alone.  A schedule may carry ``log_snr`` and
``time_at`` in closed form; for the rest the first is read from alpha and sigma, and the second found by bisection and
one differentiable Newton step.  Grids of times are decreasing and hold one value more than they have steps.
"""

import jax
import jax.numpy as jnp

from diffeq_gen.schedules import at
from diffeq_gen.types import Schedule, Time, pytree, require

__all__ = [
    "ResolutionShift",
    "karras",
    "log_snr",
    "log_snr_dot",
    "log_snr_range",
    "resolution_shift",
    "time_at",
    "uniform",
    "uniform_log_snr",
    "within",
]

BISECTIONS = 64


def log_snr(schedule: Schedule, t: Time) -> jax.Array:
    """lambda(t) = log(alpha^2 / sigma^2), +inf at sigma = 0 and -inf at alpha = 0.  Kingma et al. 2021, Sec. 3.1.

    DPM-Solver, UniPC, DEIS and k-diffusion call half of this lambda.
    Theorems: schedule-catalogue, log-snr-matches-point.
    """
    closed_form = getattr(schedule, "log_snr", None)
    return at(schedule, t).log_snr if closed_form is None else closed_form(jnp.asarray(t))


def log_snr_dot(schedule: Schedule, t: Time) -> jax.Array:
    """d lambda / dt, by one jvp; negative.

    Theorems: sde-from-schedule, erratum-e3-sign-of-the-loss, slopes-are-derivatives.
    """
    t = jnp.asarray(t)
    return jax.jvp(lambda t: log_snr(schedule, t), (t,), (jnp.ones_like(t),))[1]


def time_at(schedule: Schedule, log_snr: jax.Array) -> jax.Array:
    """The time t at which the schedule has this log-SNR: its own closed form, or bisection and one Newton step.

    Without a closed form the result is cut to [0, 1]; a closed form may extrapolate, and by rounding end beyond 1: `within`.
    Differentiable in log_snr and in the parameters of the schedule, through the Newton step.
    Theorems: schedule-catalogue, bisection-inverts-any-schedule.
    """
    log_snr = jnp.asarray(log_snr)
    closed_form = getattr(schedule, "time_at", None)
    if closed_form is not None:
        return closed_form(log_snr)

    def halve(_: int, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """(low, width), the root between low and low + 2 width: the width stays a power of two, so low gathers no rounding."""
        low, width = bracket
        too_clean = _log_snr(schedule, low + width) > log_snr
        return low + jnp.where(too_clean, width, 0), width / 2

    start = jnp.zeros_like(log_snr), jnp.full_like(log_snr, 0.5)
    low, width = jax.tree.map(jax.lax.stop_gradient, jax.lax.fori_loop(0, BISECTIONS, halve, start))
    guess = jnp.clip(low + width, jnp.finfo(log_snr.dtype).tiny, 1 - jnp.finfo(log_snr.dtype).epsneg)
    value, slope = jax.jvp(lambda t: _log_snr(schedule, t), (guess,), (jnp.ones_like(guess),))
    polished = guess + (log_snr - value) / jax.lax.stop_gradient(slope)
    return jnp.where(jnp.isfinite(polished), within(polished), guess)


def within(t: Time) -> Time:
    """t cut to [0, 1], with the whole of its slope at both ends."""
    return jnp.where(t < 0, 0, jnp.where(t > 1, 1, t))


def _log_snr(schedule: Schedule, t: Time) -> jax.Array:
    alpha, sigma = schedule(t)
    return 2 * (jnp.log(alpha) - jnp.log(sigma))


def log_snr_range(
    schedule: Schedule, *, log_snr_min: float = -15.0, log_snr_max: float = 15.0
) -> tuple[jax.Array, jax.Array]:
    """(lambda(1), lambda(0)) of the schedule, cut to [log_snr_min, log_snr_max] where it reaches further.

    At |lambda| = 15 the weaker of data and noise has 5.5e-4 of the amplitude of the stronger.
    Raises: ValueError where log_snr_min is not below log_snr_max.
    """
    require(lambda low, high: low < high, "log_snr_min must be below log_snr_max",
            log_snr_min=log_snr_min, log_snr_max=log_snr_max)  # fmt: skip
    return jnp.maximum(log_snr(schedule, 1.0), log_snr_min), jnp.minimum(log_snr(schedule, 0.0), log_snr_max)


def uniform(n: int, *, first: float = 1.0, last: float = 0.0) -> jax.Array:
    """n steps of equal length in t, from `first` down to `last`: n + 1 times.

    Raises: ValueError where n < 1, or 0 <= last < first <= 1 fails.
    """
    _require_steps(n)
    require(lambda last, first: 0 <= last < first <= 1, "times must fall from first to last within [0, 1]",
            last=last, first=first)  # fmt: skip
    return jnp.linspace(first, last, n + 1)


def uniform_log_snr(schedule: Schedule, n: int, *, log_snr_min: float = -15.0, log_snr_max: float = 15.0) -> jax.Array:
    """n steps of equal length in log-SNR, over `log_snr_range`: n + 1 decreasing times.  Lu et al. 2022, Sec. 4.

    Raises: ValueError where n < 1 or the range is empty.
    Theorems: uniform-log-snr-has-equal-gaps.
    """
    _require_steps(n)
    low, high = log_snr_range(schedule, log_snr_min=log_snr_min, log_snr_max=log_snr_max)
    return within(jax.vmap(lambda value: time_at(schedule, value))(jnp.linspace(low, high, n + 1)))


def karras(
    schedule: Schedule, n: int, *, rho: float = 7.0, sigma_min: float = 0.002, sigma_max: float = 80.0
) -> jax.Array:
    """n steps of equal length in (sigma/alpha)^{1/rho}: n + 1 decreasing times.  Karras et al. 2022, Eq. 5.

    sigma/alpha runs from sigma_max to sigma_min, cut to what the schedule reaches.  Infinite rho is `uniform_log_snr`.
    Raises: ValueError where n < 1, rho is not positive, or 0 < sigma_min < sigma_max fails.
    Theorems: karras-rho-grid.
    """
    _require_steps(n)
    require(lambda rho: rho > 0, "rho must be positive", rho=rho)
    require(lambda low, high: 0 < low < high, "sigma must fall from sigma_max to sigma_min > 0",
            sigma_min=sigma_min, sigma_max=sigma_max)  # fmt: skip
    first, last = -2 * jnp.log(jnp.array([sigma_max, sigma_min]))
    low, high = log_snr_range(schedule, log_snr_min=first, log_snr_max=last)
    roots = jnp.linspace(jnp.exp(-low / (2 * rho)), jnp.exp(-high / (2 * rho)), n + 1)
    return within(jax.vmap(lambda root: time_at(schedule, -2 * rho * jnp.log(root)))(roots))


def _require_steps(n: int) -> None:
    require(lambda n: n >= 1, "a grid needs at least one step", n=n)


@pytree
class ResolutionShift:
    """The schedule read at the clock lambda - log(ratio): the same curve of (alpha, sigma), visited at other times.

    For `Flow` it is t -> k t / (1 + (k - 1) t) with k = sqrt(ratio).  Esser et al. 2024, Eq. 23.
    Raises: ValueError where ratio is not positive.
    Theorems: resolution-shift.
    """

    schedule: Schedule
    ratio: float

    def __post_init__(self) -> None:
        require(lambda ratio: ratio > 0, "ratio must be positive", ratio=self.ratio)

    def __call__(self, t: Time) -> tuple[jax.Array, jax.Array]:
        return self.schedule(time_at(self.schedule, self.log_snr(t)))

    def log_snr(self, t: Time) -> jax.Array:
        """lambda(t) - log(ratio)."""
        return log_snr(self.schedule, t) - jnp.log(self.ratio)

    def time_at(self, log_snr: jax.Array) -> jax.Array:
        """The time at which the unshifted schedule has log-SNR log_snr + log(ratio)."""
        return time_at(self.schedule, log_snr + jnp.log(self.ratio))


def resolution_shift(schedule: Schedule, ratio: float) -> Schedule:
    """lambda -> lambda - log(ratio), where ratio is the number of pixels over that of the resolution the schedule suits.

    Averaging k x k pixels multiplies the SNR of a constant image by k^2.  Hoogeboom et al. 2023, Sec. 3.1.
    Raises: ValueError where ratio is not positive.
    Theorems: resolution-shift.
    """
    return ResolutionShift(schedule, ratio)
