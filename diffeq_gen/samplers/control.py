"""What is known of the data before a network is asked: its mean, its principal axes, the variance along each; perhaps a mixture.

    y = (z - alpha m) / std,    std^2 = alpha^2 c + sigma^2,    theta = arctan2(alpha sqrt(c), sigma)       along each axis of C
    F = (x0_hat - G) / c_out,   G the denoiser of N(m, C),      c_out = sigma sqrt(c) / std

y is N(0, I) at every time where the data are Gaussian, and F = 0.  With one c for all directions F is the raw output of EDM's network.

    C = U diag(c_1 ... c_r) U^T + c_0 (I - U U^T),      z -> (U^T z, z - U U^T z)       few axes, one variance for what is beyond

Data of many dimensions get few axes: what varies little is decided late, when every direction is done by steps that are short,
and variances that the points have and the network has not learnt are worse than their mean.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen import clocks
from diffeq_gen.coordinates import line, time_on
from diffeq_gen.samplers.mixture import Components, fit
from diffeq_gen.types import Point, Sample, Schedule, dot, pytree, require

__all__ = [
    "Control",
    "control_of",
    "control_times",
    "count_of_axes",
    "floored",
    "network_output",
    "output_of_rows",
    "whitened_output",
]

FEW = 256
"""Dimensions up to which every axis is found, and a mixture tried."""
AXES = 32
"""Axes of more dimensions than that."""


@pytree
class Control:
    """What is known of the data: N(mean, C), and, where given, a mixture at (x0 - mean) along the axes of C.

    mean has the shape of a sample, of d entries.  The columns of basis (d, r) are orthonormal axes of C, with variances in their
    order; where r < d the last of the r + 1 variances is that of all directions beyond them, and there is no mixture.  basis None:
    the axes as they are.  A scalar is the variance of every direction.
    Raises: ValueError where shapes do not match, or a variance is not positive.
    Theorems: angle-is-the-clock-of-any-schedule, few-axes-are-all-of-them-where-the-rest-have-one-variance,
    controlled-is-exact-for-gaussians.
    """

    mean: Sample
    variances: jax.Array
    basis: jax.Array | None = None
    known: Components | None = None

    def __post_init__(self) -> None:
        size, shape = self._size, jnp.shape(self.basis) if self.basis is not None else (self._size, self._size)
        require(lambda shape: len(shape) == 2 and shape[0] == size and 1 <= shape[1] <= size,
                f"basis must be of shape ({size}, r), 1 <= r <= {size}", basis=shape)  # fmt: skip
        count = size if shape[1] == size else shape[1] + 1
        require(lambda shape: shape in ((), (count,)), f"variances must be a scalar or of shape ({count},)",
                variances=jnp.shape(self.variances))  # fmt: skip
        require(lambda known, axes: known is None or axes == size, "a mixture needs every axis",
                known=None if self.known is None else "a mixture", axes=shape[1])  # fmt: skip
        require(lambda variances: variances > 0, "variances must be positive", variances=self.variances)

    def angle(self, p: Point) -> jax.Array:
        """theta of each axis, shape (1, d) or (1, 1): 0 at infinite noise, pi/2 at none."""
        return jnp.arctan2(p.alpha * self.roots(), p.sigma * jnp.ones_like(self.roots()))

    def whiten(self, z: Sample, p: Point) -> jax.Array:
        """y = basis^T (z - alpha mean) / std of each sample of z, shape (n, d), or (n, r + d) where r < d: `rows`."""
        return self.rows(self.about(z, p.alpha)) / self._std(p)

    def colour(self, y: jax.Array, z: Sample, p: Point) -> Sample:
        """z = alpha mean + basis (std y), in the shape of z."""
        return self.across(self._std(p) * y).reshape(z.shape) - self.about(jnp.zeros_like(z), p.alpha)

    def roots(self) -> jax.Array:
        """sqrt(variances) of the entries of a row, shape (1, d), (1, r + d) or (1, 1)."""
        roots = jnp.sqrt(jnp.asarray(self.variances)).reshape(1, -1)
        if not self._thin or roots.size == 1:
            return roots
        return jnp.concatenate([roots[:, :-1], jnp.broadcast_to(roots[:, -1:], (1, self._size))], axis=1)

    def rows(self, away: Sample) -> jax.Array:
        """Each sample of what is measured from the mean, along the axes, (n, d); of r < d axes, and what is left of it: (n, r + d)."""
        rows = away.reshape(-1, self._size)
        if self.basis is None:
            return rows
        turned = dot(rows, self.basis)
        return jnp.concatenate([turned, rows - dot(turned, self.basis.T)], axis=1) if self._thin else turned

    def across(self, rows: jax.Array) -> jax.Array:
        """What `rows` tells of, (n, d): its inverse."""
        if self.basis is None:
            return rows
        turned = dot(rows[:, : self.basis.shape[1]], self.basis.T)
        return turned + rows[:, self.basis.shape[1] :] if self._thin else turned

    def mean_of(self, function: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """tr f(C) / d: of f of the variances, each as often as it has directions."""
        each = function(jnp.asarray(self.variances))
        if not self._thin or each.ndim == 0:
            return jnp.mean(each)
        return (jnp.sum(each[:-1]) + (self._size - self.basis.shape[1]) * each[-1]) / self._size

    @property
    def width(self) -> int:
        """Entries of a row."""
        return self._size + (self.basis.shape[1] if self._thin else 0)

    @property
    def _size(self) -> int:
        return math.prod(jnp.shape(self.mean))

    @property
    def _thin(self) -> bool:
        return self.basis is not None and self.basis.shape[1] < self._size

    def about(self, z: Sample, alpha: jax.Array | float) -> Sample:
        """z - alpha mean, for one sample or a batch of them."""
        mean = jnp.asarray(self.mean)
        return z - alpha * mean.reshape((1,) * (z.ndim - mean.ndim) + mean.shape)

    def _std(self, p: Point) -> jax.Array:
        return jnp.sqrt(jnp.square(p.alpha * self.roots()) + jnp.square(p.sigma))


def control_of(
    points: Sample, *, floor: float = 0.1, mixture: bool = True, axes: int | None = None, seed: int = 0
) -> Control:  # fmt: skip
    """Mean, principal axes and variances of points (n, *event), and a mixture where d <= 256 and they are enough to hold one.

    `axes` of them have a variance of their own; left out, all d of up to 256 dimensions, and of more the 32 largest.  Where they
    are fewer than d, there is no mixture, and the directions beyond them, along which points vary least, have their mean variance.
    A variance below floor^2 of the mean of all is set to that.
    Raises: ValueError where there are fewer than two points, axes is not positive, or floor is not positive.
    """
    require(lambda shape: len(shape) >= 2 and shape[0] >= 2, "points must be (n, *event), n at least two",
            points=jnp.shape(points))  # fmt: skip
    require(
        lambda dtype: np.issubdtype(dtype, np.floating), "points must be real numbers", points=jnp.asarray(points).dtype
    )
    require(lambda floor: floor > 0, "floor must be positive", floor=floor)
    away, dtype = np.asarray(points, np.float64).reshape(len(points), -1), jnp.asarray(points).dtype
    mean, count = away.mean(0), count_of_axes(axes, away.shape[1])
    away = away - mean
    require(lambda variance: variance > 0, "points must differ", variance=np.mean(away**2))
    basis = _axes_of(away, count, seed)
    rows, d = away.dot(basis), len(basis)
    known = fit(rows, seed=seed) if mixture and d <= FEW and basis.shape[1] == d else None
    variances = floored(np.mean(rows**2, axis=0), np.mean(away**2), d, floor)
    cast = lambda leaf: jnp.asarray(leaf, dtype)  # noqa: E731
    return Control(cast(mean).reshape(jnp.shape(points)[1:]), cast(variances), cast(basis), jax.tree.map(cast, known))


def count_of_axes(axes: int | None, d: int) -> int:
    """How many have a variance of their own, of d dimensions."""
    require(lambda axes: axes is None or axes >= 1, "axes must be positive", axes=axes)
    return min(axes or (d if d <= FEW else AXES), d)


def floored(variances: np.ndarray, mean: float, d: int, floor: float) -> np.ndarray:
    """With the mean variance of the other directions, where there are more than these; none below floor^2 of the mean of all d."""
    count = len(variances)
    if count < d:
        variances = np.append(variances, max(d * mean - variances.sum(), 0) / (d - count))
    return np.maximum(variances, max(floor**2 * mean, np.finfo(np.float32).tiny))


def _axes_of(away: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The principal axes (d, count) of rows (n, d), of rising variance: all d, or the largest, of which n rows have n - 1."""
    if count == away.shape[1]:
        return np.linalg.eigh(away.T.dot(away))[1]
    from scipy.sparse.linalg import svds  # a tenth of a second, which only those pay who have data

    start = np.random.default_rng(seed).standard_normal(min(away.shape))
    _, stds, axes = svds(away, k=min(count, len(away) - 1), v0=start, solver="arpack")
    return axes[np.argsort(stds)].T


def network_output(control: Control, x0: Sample, z: Sample, p: Point) -> jax.Array:
    """F = (x0 - G(z)) / c_out along the axes, of shape `rows`; (x0/sqrt(c) - sin(theta) y) / cos(theta) with x0 about the mean.

    Undefined at sigma = 0.
    Theorems: angle-is-the-clock-of-any-schedule, control-of-one-scale-is-edm.
    """
    return whitened_output(control, x0, z, p)[1]


def whitened_output(control: Control, x0: Sample, z: Sample, p: Point) -> tuple[jax.Array, jax.Array]:
    """(y, F), both `rows`, for one reading of the basis; at sigma = 0 F is something finite, which nobody reads."""
    z_rows, x0_rows = jnp.split(control.rows(jnp.stack([control.about(z, p.alpha), control.about(x0, 1.0)])), 2)
    y = z_rows / control._std(p)
    return y, output_of_rows(control, x0_rows, y, p)


def output_of_rows(control: Control, x0: jax.Array, y: jax.Array, p: Point) -> jax.Array:
    """F of a y that is known, and x0 about the mean, both `rows`."""
    std, root = control._std(p), control.roots()
    sine, cosine = p.alpha * root / std, jnp.where(p.sigma > 0, p.sigma, 1) / std
    return (x0 / root - sine * y) / cosine


def control_times(
    control: Control, schedule: Schedule, n: int, *, middle: float | None = None, jump: float | None = None, sigma_min: float = 0.002
) -> jax.Array:  # fmt: skip
    """n steps of equal length in u = sigma/(sigma + c alpha), c = middle * reach, from u = n/(n + jump), where the jump ends, to sigma_min.

    reach = (tr C^2 / d)^{1/4} is the scale of the data, between the mean one and the largest.  u is the time of the straight flow of
    data that are measured in units of c: half of the steps lie above sigma/alpha = c, and
    near infinite noise, u = 1, it is the angle of such data, of which the jump takes as much as `jump` of the steps.  In these
    units it is decided to which mode a sample goes; fewer steps below them cost the median start some of its digits.
    Modes are sqrt(2 tr C) apart, and where they are many directions' it is decided sooner, at a noise that grows with that: left
    out, middle is 0.85, or what makes c as large as sqrt(tr C) / max(n, 10), which it does for few steps of pictures.
    Left out, the jump takes 1.4 of up to 15 steps and one of 21 or more: it errs by the cube of its length, they by a higher power
    of theirs.  Cut to what the schedule reaches.
    Raises: ValueError where n < 1, middle or jump is not positive, or sigma_min does not lie below where the jump ends.
    Theorems: control-times-are-even-in-the-flow-of-the-data.
    """
    require(lambda n: n >= 1, "a grid needs at least one step", n=n)
    c, jump = _unit(control, n, middle), min(max(21 / n, 1.0), 1.4) if jump is None else jump
    require(lambda jump: jump > 0, "jump must be positive", jump=jump)
    highest = n * c / jump
    require(lambda low, high: 0 < low < high, "sigma must fall from where the jump ends to sigma_min > 0",
            sigma_min=sigma_min, jump_ends=highest)  # fmt: skip
    ends = clocks.log_snr_range(schedule, log_snr_min=-2 * jnp.log(highest), log_snr_max=-2 * jnp.log(sigma_min))
    coordinate = line(1 / c)  # whose clock is c u
    first, last = (coordinate.clock(1.0, jnp.exp(-log_snr / 2)) for log_snr in ends)
    return clocks.within(jax.vmap(lambda k: time_on(schedule, coordinate, k))(jnp.linspace(first, last, n + 1)))


def _unit(control: Control, n: int, middle: float | None) -> jax.Array:
    """c of `control_times`."""
    reach = control.mean_of(jnp.square) ** 0.25
    if middle is None:
        length = jnp.sqrt(control.mean_of(jnp.asarray) * jnp.size(control.mean))
        return jnp.maximum(0.85 * reach, length / max(n, 10))
    require(lambda middle: middle > 0, "middle must be positive", middle=middle)
    return middle * reach
