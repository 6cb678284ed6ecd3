"""A schedule to be learnt: log-SNR falls from one end to the other along a monotone network, whose weights are leaves.

    lambda(t) = high - (high - low) m(t)/m(1),      m(t) = t + sum_j v_j (sigmoid(w_j (t - c_j)) - sigmoid(-w_j c_j)),   v, w > 0

alpha^2 + sigma^2 = 1.  What is within the two ends changes how much a weighted loss varies, and never what it is: the schedule that
`losses.squared_loss` teaches asks each log-SNR as often as sqrt(E[l^2]) says.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from diffeq_gen.schedules.reading import at, variance_preserving
from diffeq_gen.types import Schedule, Time, dot, pytree, require, static

__all__ = ["Monotone"]

NODES, UPDATES = 401, 100
"""Of the fit of `Monotone.like`: times, closer towards both ends, and steps."""


@pytree
class Monotone:
    """Of u hidden units: v = softplus(heights), w = softplus(slopes), c = centres, shapes (u,).  Kingma et al. 2021, App. H.

    The ends are no leaves: a bound, and not its variance, says where they belong.
    Raises: ValueError where shapes differ, or low does not lie below high.
    Theorems: what-is-within-the-ends-changes-the-variance-alone.
    """

    heights: jax.Array
    slopes: jax.Array
    centres: jax.Array
    low: float = static(default=-12.0)
    high: float = static(default=12.0)

    def __post_init__(self) -> None:
        shapes = [jnp.shape(leaf) for leaf in (self.heights, self.slopes, self.centres)]
        require(lambda heights, slopes, centres: heights == slopes == centres and len(heights) == 1,
                "heights, slopes and centres must be of one shape (u,)",
                heights=shapes[0], slopes=shapes[1], centres=shapes[2])  # fmt: skip
        require(lambda low, high: low < high, "low must lie below high", low=self.low, high=self.high)

    @staticmethod
    def start(*, units: int = 16, low: float = -12.0, high: float = 12.0) -> "Monotone":
        """Nearly linear in t: every unit of height softplus(-5), each steep at a place of its own.

        Raises: ValueError where units is not positive, or low does not lie below high.
        """
        require(lambda units: units >= 1, "units must be positive", units=units)
        places = jnp.linspace(0.5 / units, 1 - 0.5 / units, units)
        return Monotone(jnp.full(units, -5.0), jnp.full(units, 2.0 * units), places, low, high)

    @staticmethod
    def like(schedule: Schedule, *, units: int = 16, ends: tuple[float, float] = (1e-4, 1 - 1e-4)) -> "Monotone":
        """A schedule between two times, fitted in log-SNR by least squares; beyond them flat, at what is high and what is low.

        Units begin at the quantiles of the fall, as steep as these lie close, and a hundred steps of Levenberg and Marquardt's rule
        improve on them, in float64.  With 16 units between 1e-4 and 1 - 1e-4 no family of `families` is off by more than 0.25 nats,
        nor by more than 0.01 in the root mean square over times: what is left is the corner where flat begins, and a
        schedule that is finite at 0 and 1, with these for its ends, is met to 2e-4.
        Raises: ValueError where units is not positive, ends do not rise within [0, 1], or log-SNR does not fall, finite, between them.
        """
        require(lambda units: units >= 1, "units must be positive", units=units)
        require(lambda ends: 0 <= ends[0] < ends[1] <= 1, "ends must rise, within [0, 1]", ends=ends)
        places = 1 / (1 + np.exp(np.linspace(9.2, -9.2, NODES)))
        times = ends[0] + (ends[1] - ends[0]) * (places - places[0]) / (places[-1] - places[0])
        fall = np.asarray(jax.vmap(lambda t: at(schedule, t).log_snr)(jnp.asarray(times)), np.float64)
        require(lambda log_snr: bool(np.all(np.isfinite(log_snr)) and np.all(np.diff(log_snr) < 0)),
                "log-SNR must be finite and fall between the ends", log_snr=fall)  # fmt: skip
        with jax.enable_x64(True):
            found = jax.tree.map(np.asarray, _fitted(_quantiles(times, fall, units), times, fall))
        return jax.tree.map(jnp.asarray, found)

    def __call__(self, t: Time) -> tuple[jax.Array, jax.Array]:
        return variance_preserving(self.log_snr(t))

    def log_snr(self, t: Time) -> jax.Array:
        """high at t = 0, low at t = 1."""
        t = jnp.asarray(t)
        fallen = self._rise(t) / self._rise(jnp.ones_like(t))
        return self.high * (1 - fallen) + self.low * fallen

    def _rise(self, t: Time) -> jax.Array:
        w, c = (part.astype(t.dtype) for part in (jax.nn.softplus(self.slopes), jnp.asarray(self.centres)))
        v = jax.nn.softplus(jnp.asarray(self.heights)).astype(t.dtype)
        part = lambda v, w, c: v * (jax.nn.sigmoid(w * (t - c)) - jax.nn.sigmoid(-w * c))  # noqa: E731
        return t + jnp.sum(jax.vmap(part)(v, w, c), axis=0)


def _quantiles(times: np.ndarray, log_snr: np.ndarray, units: int) -> Monotone:
    """A unit in each of equal parts of the fall, 2 pi over the length of that part steep, beside a line of half the least slope."""
    share = (log_snr[0] - log_snr) / (log_snr[0] - log_snr[-1])
    line = np.clip(np.min(np.diff(share) / np.diff(times)) / 2, 1e-3, 0.5)
    rest = (share - line * (times - times[0])) / (share[-1] - line * (times[-1] - times[0]))
    edges, middles = np.linspace(0, 1, units + 1), (np.arange(units) + 0.5) / units
    lengths = np.diff(np.interp(edges, rest, times))
    inverse = lambda y: y + np.log(-np.expm1(-y))  # noqa: E731  of softplus
    heights = np.full(units, inverse((1 - line) / (units * line)))
    low, high = float(log_snr[-1]), float(log_snr[0])
    return Monotone(heights, inverse(2 * np.pi / lengths), np.interp(middles, rest, times), low, high)


@jax.jit
def _fitted(start: Monotone, times: jax.Array, log_snr: jax.Array) -> Monotone:
    """Levenberg and Marquardt's rule: (J^T J + damping diag J^T J) step = -J^T r, damping / 3 where r^2 falls, else 4 damping and stay."""
    flat, unravel = ravel_pytree(start)
    away = lambda flat: jax.vmap(unravel(flat).log_snr)(times) - log_snr  # noqa: E731

    def update(carry: tuple[jax.Array, jax.Array], _: None) -> tuple[tuple[jax.Array, jax.Array], None]:
        flat, damping = carry
        error, slopes = away(flat), jax.jacfwd(away)(flat)
        square = dot(slopes.T, slopes)
        sizes = jnp.diag(square)
        ridge = damping * (sizes + 1e-12 * jnp.max(sizes))
        moved = flat - jnp.linalg.solve(square + jnp.diag(ridge), dot(slopes.T, error))
        better = jnp.sum(away(moved) ** 2) < jnp.sum(error**2)
        return (jnp.where(better, moved, flat), jnp.where(better, damping / 3, 4 * damping)), None

    (flat, _), _ = jax.lax.scan(update, (flat, jnp.asarray(1e-2, flat.dtype)), length=UPDATES)
    return unravel(flat)
