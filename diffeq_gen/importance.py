"""Importance: at which times a network is asked, so that the loss of a batch varies least; learnt from losses that were seen.

    E[l(t)/h(t)] = int_0^1 l du,  t = H^{-1}(u),  H' = h           whatever the density h: it decides the variance alone
    E[(l/h)^2]  >= (int sqrt(E[l^2|t]) dt)^2,                     with equality for h ~ sqrt(E[l^2|t])

A density of times is a schedule: at uniform times, s(t) = schedule(H^{-1}(t)) spends on each draw what the schedule spends at times of
density h, divided by h.  A density is a histogram over equal bins of the times.  Stratified times vary by what is within a time alone:
int Var[l|t]/h dt is least for h ~ sqrt(Var[l|t]), Neyman's allocation, and h ~ sqrt(E[l^2|t]) may be worse for them than uniform times.
"""

import jax
import jax.numpy as jnp

from diffeq_gen.clocks import log_snr, within
from diffeq_gen.types import Schedule, Time, pytree, require, static

__all__ = ["ENDS", "Histogram", "Rescheduled", "Seen", "optimal", "second_moment", "uniform"]

ENDS = (1e-4, 1 - 1e-4)
"""Times that are asked, where nothing else is said: at the very ends a log-SNR is infinite."""


@pytree
class Histogram:
    """h(t) = heights_k / mean(heights) in the k-th of n equal bins between the ends: how much more often than uniformly t is asked.

    Raises: ValueError where heights are not n >= 1 positive finite numbers, or ends do not rise within [0, 1].
    Theorems: importance-leaves-the-loss, optimal-importance-density.
    """

    heights: jax.Array
    ends: tuple[float, float] = static(default=ENDS)

    def __post_init__(self) -> None:
        require(lambda heights: heights.ndim == 1 and heights.size > 0 and (heights > 0) & (heights < jnp.inf),
                "heights must be a sequence of positive finite numbers", heights=self.heights)  # fmt: skip
        require(lambda ends: 0 <= ends[0] < ends[1] <= 1, "ends must rise, within [0, 1]", ends=self.ends)

    def time(self, u: jax.Array) -> Time:
        """H^{-1}(u): t of density h where u is uniform on [0, 1], linear within each bin."""
        mass = jnp.cumsum(self.relative()) / self.heights.size
        edges = jnp.linspace(0, 1, self.heights.size + 1, dtype=mass.dtype)
        share = jnp.interp(jnp.asarray(u, mass.dtype), jnp.concatenate([jnp.zeros_like(mass[:1]), mass]), edges)
        return self.ends[0] + (self.ends[1] - self.ends[0]) * within(share)

    def log_density(self, t: Time) -> jax.Array:
        """log h(t); of times beyond the ends that of the last bin."""
        return jnp.log(self.relative())[self.bin(t)]

    def bin(self, t: Time) -> jax.Array:
        """The bin of t; of times beyond the ends the last on that side."""
        share = (jnp.asarray(t) - self.ends[0]) / (self.ends[1] - self.ends[0])
        return jnp.clip(jnp.floor(share * self.heights.size).astype(jnp.int32), 0, self.heights.size - 1)

    def relative(self) -> jax.Array:
        """h of each bin: heights whose mean is one."""
        return self.heights / jnp.mean(self.heights)


@pytree
class Rescheduled:
    """s(t) = schedule(H^{-1}(u)), u the share of t between the ends of the density h = H'; beyond them the schedule itself.

        1/2 w (-lambda_s'(t)) = 1/2 w (-lambda'(r)) / h(r),      r = H^{-1}(u)

    A weighted loss at uniform times of s is draw by draw that of the schedule at times of density h, divided by h: of one mean, one
    variance and one gradient, for a network that is told the log-SNR and predicts what reads no slope, as x0, eps or v.  A plain
    loss is not.
    Theorems: a-density-is-a-schedule.
    """

    density: Histogram
    schedule: Schedule

    def __call__(self, t: Time) -> tuple[jax.Array, jax.Array]:
        return self.schedule(self._asked(t))

    def log_snr(self, t: Time) -> jax.Array:
        """log-SNR of the schedule where this one asks it."""
        return log_snr(self.schedule, self._asked(t))

    def _asked(self, t: Time) -> Time:
        t, (first, last) = jnp.asarray(t), self.density.ends
        moved = self.density.time((t - first) / (last - first)).astype(t.dtype)
        return jnp.where((t < first) | (t > last), t, moved)


def uniform(bins: int = 64, *, ends: tuple[float, float] = ENDS) -> Histogram:
    """Every bin alike.

    Raises: ValueError where bins is not positive, or ends do not rise within [0, 1].
    """
    require(lambda bins: bins >= 1, "bins must be positive", bins=bins)
    return Histogram(jnp.ones(bins), ends)


def optimal(squares: jax.Array, *, floor: float = 0.1, ends: tuple[float, float] = ENDS) -> Histogram:
    """(1 - floor) sqrt(E[l^2|bin]) / mean + floor: of all densities that of least variance, but for the share that keeps 1/h bounded.

    `squares` are E[l^2] of the bins, or for stratified times their variances; no E[(l/h)^2] is more than 1/floor times that of
    uniform times, however wrong they are.
    Raises: ValueError where squares are negative, not finite or all zero, or floor does not lie in [0, 1].
    Theorems: optimal-importance-density, stratified-times-want-the-spread, a-floor-bounds-what-a-wrong-density-costs.
    """
    require(
        lambda squares: (squares >= 0) & (squares < jnp.inf), "squares must be finite and not negative", squares=squares
    )
    require(lambda squares: (squares > 0).any(), "squares must not all be zero", squares=squares)
    require(lambda floor: 0 <= floor <= 1, "floor must lie in [0, 1]", floor=floor)
    root = jnp.sqrt(squares)
    return Histogram((1 - floor) * root / jnp.mean(root) + floor, ends)


def second_moment(density: Histogram, squares: jax.Array) -> jax.Array:
    """E[(l/h)^2] = mean over bins of E[l^2|bin] / h; less the square of the mean loss it is the variance of one draw.

    Theorems: optimal-importance-density, a-floor-bounds-what-a-wrong-density-costs.
    """
    return jnp.mean(squares / density.relative())


@pytree
class Seen:
    """What losses were: in each bin their number, their sum and that of their squares, of which older ones count less.

    >>> import jax.numpy as jnp
    >>> seen = Seen.none(bins=2).noted(jnp.array([0.1, 0.2, 0.9]), jnp.array([1.0, 3.0, 2.0]))
    >>> seen.squares_of_bins().tolist(), seen.variances_of_bins().tolist()
    ([5.0, 4.0], [1.0, 0.0])
    """

    counts: jax.Array
    sums: jax.Array
    squares: jax.Array
    ends: tuple[float, float] = static(default=ENDS)

    @staticmethod
    def none(*, bins: int = 64, ends: tuple[float, float] = ENDS) -> "Seen":
        """Nothing yet.

        Raises: ValueError where bins is not positive, or ends do not rise within [0, 1].
        """
        none = jnp.zeros_like(uniform(bins, ends=ends).heights)
        return Seen(none, none, none, ends)

    def noted(self, times: Time, losses: jax.Array, *, decay: float = 1.0) -> "Seen":
        """With these losses at these times, what was before counting `decay` times as much.

        A loss that is not finite is left out: it says nothing of where to look.
        Raises: ValueError where decay does not lie in [0, 1].
        """
        return self.among(times, losses, None, decay=decay)

    def among(self, times: Time, losses: jax.Array, axis_name: str | None, *, decay: float = 1.0) -> "Seen":
        """`noted`, with what every device along an axis has seen of its share; all of them then hold the same.

        Raises: ValueError where decay does not lie in [0, 1].
        """
        require(lambda decay: 0 <= decay <= 1, "decay must lie in [0, 1]", decay=decay)
        place, known = uniform(self.counts.size, ends=self.ends).bin(times), jnp.isfinite(losses)

        def add(old: jax.Array, new: jax.Array) -> jax.Array:
            told = jnp.zeros_like(old).at[place].add(jnp.where(known, new, 0).astype(old.dtype))
            return decay * old + (told if axis_name is None else jax.lax.psum(told, axis_name))

        return Seen(
            add(self.counts, jnp.ones_like(losses)),
            add(self.sums, losses),
            add(self.squares, jnp.square(losses)),
            self.ends,
        )

    def squares_of_bins(self) -> jax.Array:
        """E[l^2] of each bin; of one without losses, that of all together; one where there are none at all."""
        return self._means(self.squares)

    def variances_of_bins(self) -> jax.Array:
        """E[l^2] - E[l]^2 of each bin; of one without losses, that of all together; one where there are none at all."""
        means = jnp.where(jnp.any(self.counts > 0), self._means(self.sums), 0)
        return jnp.maximum(self._means(self.squares) - jnp.square(means), 0)

    def density(self, *, stratified: bool = False, floor: float = 0.1) -> Histogram:
        """The `optimal` one of what was seen: by its squares for times drawn one by one, by its variances for stratified ones.

        Raises: ValueError where there is nothing to go by, as one loss a bin for stratified times.
        """
        return optimal(self.variances_of_bins() if stratified else self.squares_of_bins(), floor=floor, ends=self.ends)

    def _means(self, sums: jax.Array) -> jax.Array:
        return _per(sums, self.counts, _per(jnp.sum(sums), jnp.sum(self.counts), 1.0))


def _per(sums: jax.Array, counts: jax.Array, otherwise: jax.Array | float) -> jax.Array:
    """sums/counts, or what is said otherwise where nothing was counted."""
    counted = counts > 0
    return jnp.where(counted, sums / jnp.where(counted, counts, 1), otherwise)
