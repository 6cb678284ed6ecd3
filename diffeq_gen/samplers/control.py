"""What is known of the data before a network is asked: its mean, its principal axes, the variance along each; perhaps a mixture.

    y = (z - alpha m) / std,    std^2 = alpha^2 c + sigma^2,    theta = arctan2(alpha sqrt(c), sigma)       along each axis of C
    F = (x0_hat - G) / c_out,   G the denoiser of N(m, C),      c_out = sigma sqrt(c) / std

y is N(0, I) at every time where the data are Gaussian, and F = 0.  With one c for all directions F is the raw output of EDM's network.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen import clocks
from diffeq_gen.coordinates import line, time_on
from diffeq_gen.samplers.mixture import Components, fit
from diffeq_gen.types import Point, Sample, Schedule, dot, pytree, require

__all__ = ["Control", "control_of", "control_times", "floored", "network_output", "whitened_output"]

LARGE = 1024
"""Dimensions beyond which one matrix of axes is too much work in every step."""
FEW = 256
"""Dimensions up to which a mixture is tried."""


@pytree
class Control:
    """What is known of the data: N(mean, C), and, where given, a mixture at (x0 - mean) along the axes of C.

    mean has the shape of a sample, of d entries.  C = basis diag(variances) basis^T, with variances a scalar or of shape (d,) in the
    order of the columns of basis (d, d); or basis is one orthogonal matrix for each axis of a sample, and C their Kronecker
    product's, as of pictures whose rows, columns and channels each have their own; or None, the axes as they are.
    Raises: ValueError where shapes do not match, or a variance is not positive.
    Theorems: angle-is-the-clock-of-any-schedule, controlled-is-exact-for-gaussians.
    """

    mean: Sample
    variances: jax.Array
    basis: jax.Array | tuple[jax.Array, ...] | None = None
    known: Components | None = None

    def __post_init__(self) -> None:
        event = jnp.shape(self.mean)
        size = math.prod(event)
        require(lambda shape: shape in ((), (size,)), f"variances must be a scalar or of shape ({size},)",
                variances=jnp.shape(self.variances))  # fmt: skip
        if isinstance(self.basis, tuple):
            square = tuple((width, width) for width in event)
            require(lambda shapes: shapes == square, f"basis must be matrices of shapes {square}",
                    basis=tuple(map(jnp.shape, self.basis)))  # fmt: skip
        else:
            require(lambda shape: shape == (size, size), f"basis must be of shape ({size}, {size})",
                    basis=(size, size) if self.basis is None else jnp.shape(self.basis))  # fmt: skip
        require(lambda variances: variances > 0, "variances must be positive", variances=self.variances)

    def angle(self, p: Point) -> jax.Array:
        """theta of each axis, shape (1, d) or (1, 1): 0 at infinite noise, pi/2 at none."""
        return jnp.arctan2(p.alpha * self.roots(), p.sigma * jnp.ones_like(self.roots()))

    def whiten(self, z: Sample, p: Point) -> jax.Array:
        """y = basis^T (z - alpha mean) / std of each sample of z, shape (n, d)."""
        return self.rows(self.about(z, p.alpha)) / self._std(p)

    def colour(self, y: jax.Array, z: Sample, p: Point) -> Sample:
        """z = alpha mean + basis (std y), in the shape of z."""
        back = _turned(self._std(p) * y, self.basis, jnp.shape(self.mean), back=True)
        return back.reshape(z.shape) - self.about(jnp.zeros_like(z), p.alpha)

    def roots(self) -> jax.Array:
        """sqrt(variances), shape (1, d) or (1, 1)."""
        return jnp.sqrt(jnp.asarray(self.variances)).reshape(1, -1)

    def rows(self, away: Sample) -> jax.Array:
        """Each sample of what is measured from the mean, along the axes: shape (n, d)."""
        event = jnp.shape(self.mean)
        return _turned(away.reshape(-1, math.prod(event)), self.basis, event, back=False)

    def about(self, z: Sample, alpha: jax.Array | float) -> Sample:
        """z - alpha mean, for one sample or a batch of them."""
        mean = jnp.asarray(self.mean)
        return z - alpha * mean.reshape((1,) * (z.ndim - mean.ndim) + mean.shape)

    def _std(self, p: Point) -> jax.Array:
        return jnp.sqrt(jnp.square(p.alpha * self.roots()) + jnp.square(p.sigma))


def _turned(
    rows: jax.Array, basis: jax.Array | tuple[jax.Array, ...] | None, event: tuple[int, ...], *, back: bool
) -> jax.Array:
    """Rows (n, d) in the basis, or `back` from it."""
    if basis is None:
        return rows
    if not isinstance(basis, tuple):
        return dot(rows, basis.T if back else basis)
    cube = rows.reshape(-1, *event)
    for one in basis:  # the first axis of an event becomes its last: after all of them each is in its place
        cube = dot(jnp.moveaxis(cube, 1, -1), one.T if back else one)
    return cube.reshape(rows.shape)


def control_of(
    points: Sample, *, floor: float = 0.1, mixture: bool = True, separable: bool | None = None, seed: int = 0
) -> Control:  # fmt: skip
    """Mean, axes and variances of points (n, *event), and a mixture where d <= 256 and they are enough to hold one.

    The axes are the principal ones; or, `separable`, those of each axis of a sample by itself, which is what is done beyond 1,024
    dimensions unless told otherwise: of pictures 32 x 32 x 3 they are 2,057 numbers for 9,437,184, and near cosines.
    A variance below floor^2 of their mean is set to that.
    Raises: ValueError where there are fewer than two points, or floor is not positive.
    """
    require(lambda shape: len(shape) >= 2 and shape[0] >= 2, "points must be (n, *event), n at least two",
            points=jnp.shape(points))  # fmt: skip
    require(
        lambda dtype: np.issubdtype(dtype, np.floating), "points must be real numbers", points=jnp.asarray(points).dtype
    )
    require(lambda floor: floor > 0, "floor must be positive", floor=floor)
    away, dtype, bases = np.asarray(points, np.float64), jnp.asarray(points).dtype, []
    mean = away.mean(0)
    away = away - mean
    apart = mean.size > LARGE if separable is None else separable
    away = away if apart else away.reshape(len(away), -1)
    for axis in range(1, away.ndim):
        bases.append(_axes_of(away, axis))
        away = np.moveaxis(np.moveaxis(away, axis, -1).dot(bases[-1]), -1, axis)
    rows, basis = away.reshape(len(away), -1), tuple(bases) if apart else bases[0]
    variances = floored(np.mean(rows**2, axis=0), floor)
    known = fit(rows, seed=seed) if mixture and mean.size <= FEW else None
    cast = lambda leaf: jnp.asarray(leaf, dtype)  # noqa: E731
    return Control(cast(mean), cast(variances), jax.tree.map(cast, basis), jax.tree.map(cast, known))


def floored(variances: np.ndarray, floor: float) -> np.ndarray:
    """None below floor^2 of their mean: along an axis that the points do not use, nothing is known."""
    return np.maximum(variances, max(floor**2 * variances.mean(), np.finfo(np.float32).tiny))


def _axes_of(away: np.ndarray, axis: int) -> np.ndarray:
    """The principal axes along one axis of an array, the others taken for so many more points; of rising variance."""
    rows = np.moveaxis(away, axis, -1).reshape(-1, away.shape[axis])
    return np.linalg.eigh(rows.T.dot(rows))[1]


def network_output(control: Control, x0: Sample, z: Sample, p: Point) -> jax.Array:
    """F = (x0 - G(z)) / c_out along the axes, shape (n, d); (x0/sqrt(c) - sin(theta) y) / cos(theta) with x0 about the mean.

    Undefined at sigma = 0.
    Theorems: angle-is-the-clock-of-any-schedule, control-of-one-scale-is-edm.
    """
    return whitened_output(control, x0, z, p)[1]


def whitened_output(control: Control, x0: Sample, z: Sample, p: Point) -> tuple[jax.Array, jax.Array]:
    """(y, F), both shape (n, d), for one reading of the basis; at sigma = 0 F is something finite, which nobody reads."""
    std, root = control._std(p), control.roots()
    z_rows, x0_rows = jnp.split(control.rows(jnp.stack([control.about(z, p.alpha), control.about(x0, 1.0)])), 2)
    y, sine, cosine = z_rows / std, p.alpha * root / std, jnp.where(p.sigma > 0, p.sigma, 1) / std
    return y, (x0_rows / root - sine * y) / cosine


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
    variances = jnp.asarray(control.variances)
    reach = jnp.mean(jnp.square(variances)) ** 0.25
    if middle is None:
        length = jnp.sqrt(jnp.mean(variances) * jnp.size(control.mean))
        return jnp.maximum(0.85 * reach, length / max(n, 10))
    require(lambda middle: middle > 0, "middle must be positive", middle=middle)
    return middle * reach
