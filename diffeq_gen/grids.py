"""Grids beyond those of `clocks`: even in any coordinate, by a rule in t, from a list, and where to begin and to end.

    even         k_i = k_first + (i/n) (k_last - k_first),        along a coordinate of the plane of (alpha, sigma)
    spaced       lambda_i = lambda_first + (lambda_last - lambda_first) sum_{j<=i} softmax(gaps)_j
    quadratic    t_i^{1/2} even,        cosine    arccos(2 t_i - 1) even
    ends         KL(prior of noise alone) = nats at the first time,        sigma/alpha = residual std(x0) at the last

A grid is decreasing and holds one value more than it has steps; its ends are the times given, to the last digit.
"""

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen.clocks import log_snr, time_at, within
from diffeq_gen.coordinates import Coordinate, time_on
from diffeq_gen.types import Schedule, Time, require

__all__ = ["cosine", "ends", "even", "listed", "quadratic", "require_falling", "spaced"]

NEWTON_STEPS = 6


def even(schedule: Schedule, n: int, *, coordinate: Coordinate, first: Time = 1.0, last: Time = 0.0) -> jax.Array:
    """n steps of equal length in k(alpha, sigma), from `first` down to `last`: n + 1 times, n - 1 of them by the inverse clock.

    Raises: ValueError where n < 1, 0 <= last < first <= 1 fails, or k is infinite at an end: cut it off.
    Theorems: grids-are-even-where-they-say.
    """
    _require_grid(n, first, last)
    begin, end = (coordinate.clock(*schedule(jnp.asarray(t, float))) for t in (first, last))
    require(lambda begin, end: abs(begin) + abs(end) < np.inf, "the coordinate must be finite at both ends",
            begin=begin, end=end)  # fmt: skip
    ks = begin + (end - begin) * _shares(n)[1:-1]
    return _between(first, jax.vmap(lambda k: time_on(schedule, coordinate, k))(ks), last)


def spaced(schedule: Schedule, gaps: jax.Array, first: Time, last: Time) -> jax.Array:
    """The grid from `first` to `last` whose steps in log-SNR are as softmax(gaps), one number a step: any grid, by free numbers.

    Differentiable in all of them.  Log-SNR has to be finite at both ends.
    Theorems: gaps-are-a-grid.
    """
    begin, end = (log_snr(schedule, jnp.asarray(t, gaps.dtype)) for t in (first, last))
    inner = begin + (end - begin) * jnp.cumsum(jax.nn.softmax(gaps))[:-1]
    return _between(first, jax.vmap(lambda value: time_at(schedule, value))(inner), last)


def quadratic(n: int, *, first: Time = 1.0, last: Time = 0.0) -> jax.Array:
    """n steps of equal length in t^{1/2}: short ones near the data.  Song et al. 2021 (DDIM), App. D.2.

    Raises: ValueError where n < 1, or 0 <= last < first <= 1 fails.
    Theorems: grids-are-even-where-they-say.
    """
    _require_grid(n, first, last)
    begin, end = (jnp.sqrt(jnp.asarray(t, float)) for t in (first, last))
    return _between(first, (begin + (end - begin) * _shares(n)[1:-1]) ** 2, last)


def cosine(n: int, *, first: Time = 1.0, last: Time = 0.0) -> jax.Array:
    """last + (first - last) (1 + cos(pi i/n))/2: short steps near both ends, as at Chebyshev's points.

    Raises: ValueError where n < 1, or 0 <= last < first <= 1 fails.
    Theorems: grids-are-even-where-they-say.
    """
    _require_grid(n, first, last)
    return _between(first, last + (first - last) * (1 + jnp.cos(jnp.pi * _shares(n)[1:-1])) / 2, last)


def listed(times: jax.Array) -> jax.Array:
    """A grid of one's own, checked: at least two values that fall, within [0, 1].

    Raises: ValueError where they do not.
    """
    times = jnp.asarray(times, float)
    require_falling(times)
    return times


def require_falling(times: jax.Array) -> None:
    """Raises: ValueError where times is not a decreasing sequence of at least two values within [0, 1]."""
    require(
        lambda times: np.ndim(times) == 1 and len(times) > 1 and np.all(np.diff(times) < 0),
        "times must be a decreasing sequence of at least two values",
        times=times,
    )
    require(
        lambda first, last: (last >= 0) & (first <= 1), "times must lie within [0, 1]", first=times[0], last=times[-1]
    )


def ends(
    schedule: Schedule, variance: float, *, nats: float = 1e-3, residual: float = 1e-2
) -> tuple[jax.Array, jax.Array]:
    """(first, last): KL(N(0, alpha^2 v + sigma^2) | N(0, sigma^2)) = `nats` at the one, sigma/alpha = `residual` v^{1/2} at the other.

    `variance` v is that of a component of the data, whose mean is thought to be zero; the KL is per component, in nats, and
    with r = v alpha^2/sigma^2 it is (r - log(1 + r))/2: how much a run that begins in noise alone begins wrong.
    Raises: ValueError where an argument is not positive, or the schedule reaches neither end within [0, 1].
    Theorems: ends-meet-their-bounds.
    """
    require(lambda variance: variance > 0, "variance must be positive", variance=variance)
    require(
        lambda nats, residual: (nats > 0) & (residual > 0),
        "nats and residual must be positive",
        nats=nats,
        residual=residual,
    )
    nats, residual, variance = (jnp.asarray(value, float) for value in (nats, residual, variance))
    high = jnp.log(_ratio(nats) / variance)
    low = -2 * jnp.log(residual) - jnp.log(variance)
    reach = [log_snr(schedule, jnp.asarray(end, float)) for end in (1.0, 0.0)]
    require(lambda noise, data, first, last: (noise <= first) & (first < last) & (last <= data),
            "the schedule does not reach from the one end to the other: log-SNR at t = 1 and t = 0, and those asked for, are",
            noise=reach[0], data=reach[1], first=high, last=low)  # fmt: skip
    return within(time_at(schedule, high)), within(time_at(schedule, low))


def _ratio(nats: jax.Array) -> jax.Array:
    """The root of r - log(1 + r) = 2 nats, by Newton from above: the left side is at least r^2/(2 + 2 r), and convex."""
    r = 2 * nats + 2 * jnp.sqrt(nats * (1 + nats))
    for _ in range(NEWTON_STEPS):
        r = r - (r - jnp.log1p(r) - 2 * nats) * (1 + r) / r
    return r


def _shares(n: int) -> jax.Array:
    return jnp.linspace(0.0, 1.0, n + 1)


def _between(first: Time, inner: jax.Array, last: Time) -> jax.Array:
    return jnp.concatenate([jnp.asarray(first, inner.dtype)[None], inner, jnp.asarray(last, inner.dtype)[None]])


def _require_grid(n: int, first: Time, last: Time) -> None:
    require(lambda n: n >= 1, "a grid needs at least one step", n=n)
    require(lambda last, first: (last >= 0) & (last < first) & (first <= 1), "times must fall from first to last within [0, 1]",
            last=last, first=first)  # fmt: skip
