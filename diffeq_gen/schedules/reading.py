"""Reading a schedule: its point at one time, with slopes by one `jvp`, and whether it is a schedule at all.

at(schedule, t) = (t, alpha(t), sigma(t), alpha'(t), sigma'(t))
"""

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen.types import Point, Schedule, Time, require

__all__ = ["at", "checked", "variance_preserving"]


def at(schedule: Schedule, t: Time) -> Point:
    """The point (t, alpha, sigma, d alpha/dt, d sigma/dt): a schedule and its slopes, by one jvp.

    Raises: TypeError where the object is no schedule; ValueError where t is outside [0, 1], or alpha or sigma is
    negative or nan there.
    Theorems: slopes-are-derivatives, schedule-rescaling-invariance, time-reparametrisation.
    """
    t = jnp.asarray(t, jnp.result_type(t, float)) if jnp.issubdtype(jnp.result_type(t), jnp.integer) else jnp.asarray(t)
    require(lambda t: (t >= 0) & (t <= 1), "t must lie in [0, 1]", t=t)
    (alpha, sigma), (alpha_dot, sigma_dot) = jax.jvp(lambda t: _pair(schedule, t), (t,), (jnp.ones_like(t),))
    require(lambda alpha, sigma, t: (alpha >= 0) & (sigma >= 0), "alpha and sigma must be non-negative",
            alpha=alpha, sigma=sigma, t=t)  # fmt: skip
    return Point(t, alpha, sigma, alpha_dot, sigma_dot)


def _pair(schedule: Schedule, t: Time) -> tuple[jax.Array, jax.Array]:
    if not callable(schedule):
        raise TypeError(f"a schedule is a function t -> (alpha, sigma), got {schedule!r}")
    value = schedule(t)
    if not isinstance(value, tuple) or len(value) != 2:
        raise TypeError(f"a schedule must return the pair (alpha, sigma), got {value!r} from {schedule!r}")
    return jnp.asarray(value[0]), jnp.asarray(value[1])


def checked(schedule: Schedule, *, steps: int = 256) -> Schedule:
    """The same schedule, after reading it on a grid: 0 < alpha, sigma < inf and log-SNR decreasing inside (0, 1).

    Raises: TypeError where it is no schedule; ValueError naming the first time at which it fails, and the values there.
    """
    times = jnp.arange(1, steps) / steps
    _pair(schedule, times[0])  # what it returns is named as a number here, not as a tracer

    def read(t: Time) -> tuple[Point, jax.Array]:
        p = at(schedule, t)
        return p, p.log_snr

    p, log_snr = jax.vmap(read)(times)
    for name in ("alpha", "sigma"):
        value = getattr(p, name).reshape(steps - 1, -1)
        for i in np.flatnonzero(~np.all(np.isfinite(value) & (value > 0), axis=1)):
            raise ValueError(f"{name} must be positive and finite, got {name}={value[i, 0]} at t={times[i]}")
    log_snr = np.reshape(log_snr, (steps - 1, -1))
    for i in np.flatnonzero(np.any(np.diff(log_snr, axis=0) >= 0, axis=1)):
        raise ValueError(
            f"log-SNR must decrease in t, got {log_snr[i, 0]} at t={times[i]} and {log_snr[i + 1, 0]} at t={times[i + 1]}"
        )
    return schedule


def variance_preserving(log_snr: jax.Array) -> tuple[jax.Array, jax.Array]:
    """alpha^2 = sigmoid(lambda), sigma^2 = sigmoid(-lambda): the point of log-SNR lambda with alpha^2 + sigma^2 = 1.

    Never 1 - alpha^2, which has no digits left from lambda = 16 (float32) or 36 (float64) on.
    Theorems: lambda-parametrisations.
    """
    return jnp.exp(-jax.nn.softplus(-log_snr) / 2), jnp.exp(-jax.nn.softplus(log_snr) / 2)
