"""A schedule to be learnt: log-SNR falls from one end to the other along a monotone network, whose weights are leaves.

    lambda(t) = high - (high - low) m(t)/m(1),      m(t) = t + sum_j v_j (sigmoid(w_j (t - c_j)) - sigmoid(-w_j c_j)),   v, w > 0

alpha^2 + sigma^2 = 1.  What is within the two ends changes how much a weighted loss varies, and never what it is: the schedule that
`losses.squared_loss` teaches asks each log-SNR as often as sqrt(E[l^2]) says.
"""

import jax
import jax.numpy as jnp

from diffeq_gen.schedules.reading import variance_preserving
from diffeq_gen.types import Time, pytree, require, static

__all__ = ["Monotone"]


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
