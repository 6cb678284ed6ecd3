"""Controlled solvers: what is known of the data beforehand is solved without the network, which is asked for the rest alone.

    y = (z - alpha m) / std,    std^2 = alpha^2 c + sigma^2,    theta = arctan2(alpha sqrt(c), sigma)       along each axis of C
    F = (x0_hat - G) / c_out,   G the denoiser of N(m, C),      c_out = sigma sqrt(c) / std
    dy/dtheta = F = F_known(y, theta) + R(theta)                under every schedule

For Gaussian data F = 0 and a step of any length is exact.  Where m and C are the moments of the data F = O(theta^2) at
infinite noise, where theta = 0: there the state is moved without an evaluation (`jump`), which errs by O(theta^3), and
F(0) = 0 begins a multistep method (`controlled`) that has its order from the first step on.  F_known is that of a mixture
fitted to the data, whose flow is followed in small steps that ask no network; R is what the network says beyond it, a
polynomial in theta through its last values.  With one c for all directions F is the raw output of EDM's network; as c
grows the method becomes `lms`.

The points from which the control is made must be of the law that the network has learnt.  Evaluations are saved on what the
control describes: it gains little on data made of many features far smaller than any of its own, and a start within the
control's error of the border between two modes may still end in the other one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen import clocks
from diffeq_gen.samplers.interpolation import integral
from diffeq_gen.samplers.mixture import Components, denoise_components, fit
from diffeq_gen.schedules import at
from diffeq_gen.types import Denoiser, Point, Sample, Sampler, Schedule, Time, dot, pytree, require

__all__ = ["Control", "Past", "control_of", "control_times", "controlled", "jump", "network_output"]

FAR = 30.0
"""How far in log-SNR from that of the data's scale the small steps begin and end: beyond, the angle changes by e^{-15}."""


@pytree
class Control:
    """What is known of the data: N(mean, C) with C = basis diag(variances) basis^T, and, where given, a mixture in those axes.

    mean has the shape of a sample; variances are a scalar, or of shape (d,) in the order of the columns of basis (d, d), or
    of the ravelled sample where there is no basis.  `known` has its components at (x0 - mean) basis.
    Raises: ValueError where shapes do not match, or a variance is not positive.
    Theorems: angle-is-the-clock-of-any-schedule, controlled-is-exact-for-gaussians.
    """

    mean: Sample
    variances: jax.Array
    basis: jax.Array | None = None
    known: Components | None = None

    def __post_init__(self) -> None:
        size = int(np.prod(jnp.shape(self.mean)))
        require(lambda shape: shape in ((), (size,)), f"variances must be a scalar or of shape ({size},)",
                variances=jnp.shape(self.variances))  # fmt: skip
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
        away = self._std(p) * y
        back = away if self.basis is None else dot(away, self.basis.T)
        return back.reshape(z.shape) - self.about(jnp.zeros_like(z), p.alpha)

    def roots(self) -> jax.Array:
        """sqrt(variances), shape (1, d) or (1, 1)."""
        return jnp.sqrt(jnp.asarray(self.variances)).reshape(1, -1)

    def rows(self, away: Sample) -> jax.Array:
        """Each sample of what is measured from the mean, along the axes: shape (n, d)."""
        rows = away.reshape(-1, int(np.prod(jnp.shape(self.mean))))
        return rows if self.basis is None else dot(rows, self.basis)

    def about(self, z: Sample, alpha: jax.Array | float) -> Sample:
        """z - alpha mean, for one sample or a batch of them."""
        mean = jnp.asarray(self.mean)
        return z - alpha * mean.reshape((1,) * (z.ndim - mean.ndim) + mean.shape)

    def _std(self, p: Point) -> jax.Array:
        return jnp.sqrt(jnp.square(p.alpha * self.roots()) + jnp.square(p.sigma))


def control_of(points: Sample, *, floor: float = 0.1, mixture: bool = True, seed: int = 0) -> Control:
    """Mean, principal axes and variances of points (n, *event), and a mixture where they are enough to hold one.

    A variance below floor^2 of their mean is set to that: along an axis that the points do not use, nothing is known.
    Raises: ValueError where there are fewer than two points, or floor is not positive.
    """
    require(lambda shape: len(shape) >= 2 and shape[0] >= 2, "points must be (n, *event), n at least two",
            points=jnp.shape(points))  # fmt: skip
    require(
        lambda dtype: np.issubdtype(dtype, np.floating), "points must be real numbers", points=jnp.asarray(points).dtype
    )
    require(lambda floor: floor > 0, "floor must be positive", floor=floor)
    rows = np.asarray(points, np.float64).reshape(len(points), -1)
    mean = rows.mean(0)
    variances, basis = np.linalg.eigh((rows - mean).T.dot(rows - mean) / len(rows))
    variances = np.maximum(variances, max(floor**2 * variances.mean(), np.finfo(np.float32).tiny))
    known = fit((rows - mean).dot(basis), seed=seed) if mixture else None
    dtype = jnp.asarray(points).dtype
    cast = lambda leaf: jnp.asarray(leaf, dtype)  # noqa: E731
    return Control(cast(mean.reshape(np.shape(points)[1:])), cast(variances), cast(basis), jax.tree.map(cast, known))


def network_output(control: Control, x0: Sample, z: Sample, p: Point) -> jax.Array:
    """F = (x0 - G(z)) / c_out along the axes, shape (n, d); (x0/sqrt(c) - sin(theta) y) / cos(theta) with x0 about the mean.

    Undefined at sigma = 0.
    Theorems: angle-is-the-clock-of-any-schedule, control-of-one-scale-is-edm.
    """
    theta, y = control.angle(p), control.whiten(z, p)
    return (control.rows(control.about(x0, 1.0)) / control.roots() - jnp.sin(theta) * y) / jnp.cos(theta)


def _known_output(known: Components, root: jax.Array, y: jax.Array, log_snr: jax.Array) -> jax.Array:
    """F of the mixture at y."""
    theta, ratio = jnp.arctan(root * jnp.exp(log_snr / 2)), jnp.exp(-log_snr / 2)
    x0 = denoise_components(known, ratio / jnp.cos(theta) * y, ratio)
    return (x0 / root - jnp.sin(theta) * y) / jnp.cos(theta)


def _polynomial(values: list[jax.Array], nodes: list[jax.Array], y: jax.Array) -> jax.Array:
    """At y the polynomial through values at 0 and nodes; an infinite node is left out, with its value."""
    total, at_zero = jnp.zeros_like(values[0]), jnp.zeros_like(y)
    places = [at_zero, *nodes]
    for i, value in enumerate(values):
        weight = jnp.ones_like(y)
        for j, other in enumerate(places):
            both = jnp.isfinite(other) & jnp.isfinite(places[i])
            gap = jnp.where(both, places[i] - other, 1) if i != j else 1
            weight = weight if i == j else weight * jnp.where(both, (y - jnp.where(both, other, 0)) / gap, 1)
        total = total + jnp.where(jnp.isfinite(places[i]), weight * value, 0)
    return total


def _moved(
    control: Control, y: jax.Array, values: list[jax.Array], nodes: list[jax.Array], p: Point, q: Point, substeps: int
) -> jax.Array:
    """y at q from y at p, where F is F_known and the polynomial through `values` at theta_p and at theta_p + `nodes`."""
    root, start, end = control.roots(), control.angle(p), control.angle(q)
    if control.known is None:
        turned = end - start
        moments = [turned ** (k + 1) / (k + 1) for k in range(len(values))]
        return y + values[0] * turned + integral(values, nodes, moments) if values else y
    low, high = (_log_snr_near(control, point) for point in (p, q))
    h = (high - low) / substeps

    def slope(y: jax.Array, log_snr: jax.Array) -> jax.Array:
        theta = jnp.arctan(root * jnp.exp(log_snr / 2))
        output = _known_output(control.known, root, y, log_snr)
        output = output + _polynomial(values, nodes, theta - start) if values else output
        return jnp.sin(theta) * jnp.cos(theta) / 2 * output

    def small(y: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        here = low + i * h
        a = slope(y, here)
        b = slope(y + h / 2 * a, here + h / 2)
        c = slope(y + h / 2 * b, here + h / 2)
        d = slope(y + h * c, here + h)
        return y + h / 6 * (a + 2 * b + 2 * c + d), None

    return jax.lax.scan(small, y, jnp.arange(substeps, dtype=h.dtype))[0]


def _log_snr_near(control: Control, p: Point) -> jax.Array:
    """log-SNR, cut to where the angles still change."""
    middle = -jnp.log(jnp.mean(control.variances))
    noisy, clean = p.alpha <= 0, p.sigma <= 0
    inside = 2 * (jnp.log(jnp.where(noisy, 1, p.alpha)) - jnp.log(jnp.where(clean, 1, p.sigma)))
    return jnp.clip(jnp.where(noisy, -jnp.inf, jnp.where(clean, jnp.inf, inside)), middle - FAR, middle + FAR)


def jump(control: Control, schedule: Schedule, z: Sample, t: Time, s: Time, *, substeps: int = 32) -> Sample:
    """z_s of the flow of the control alone: no evaluation, exact on Gaussian data, else wrong by O(theta_s^3).

    `substeps` Runge-Kutta steps where the control has a mixture.
    Raises: ValueError where substeps is not positive.
    Theorems: controlled-is-exact-for-gaussians, controlled-puts-back-what-the-jump-left.
    """
    require(lambda substeps: substeps >= 1, "substeps must be positive", substeps=substeps)
    p, q = at(schedule, t), at(schedule, s)
    return control.colour(_moved(control, control.whiten(z, p), [], [], p, q, substeps), z, q)


class Past(NamedTuple):
    """The step before: y, where it began, and the last values of R with their angles.  At first: infinite noise, where F = 0."""

    y: jax.Array
    alpha: jax.Array
    sigma: jax.Array
    values: tuple[jax.Array, ...]
    angles: tuple[jax.Array, ...]


def controlled(
    denoise: Denoiser, schedule: Schedule, control: Control, *, order: int = 2, corrector: bool = True, substeps: int = 4
) -> Sampler:  # fmt: skip
    """Adams-Bashforth of this order for dy/dtheta = F, begun by F(0) = 0; exact in one step of any length on Gaussian data.

    One evaluation a step.  The corrector takes the step before again through the value at its end, and the jump before the
    first step with it, by theta F / 2: pass what `jump` returns from infinite noise, at times that begin where it ends.
    `substeps` Runge-Kutta steps follow the control's mixture, where it has one: the mixture is read 4 substeps times a step,
    twice that with the corrector.  A basis costs a few products with a d x d matrix a step, a diagonal next to nothing.
    Raises: ValueError where order is not 1, 2 or 3, or substeps is not positive.
    Theorems: controlled-is-exact-for-gaussians, controlled-puts-back-what-the-jump-left, controlled-is-adams-bashforth,
    controlled-ignores-the-scale, controlled-order.
    """
    require(lambda order: order in (1, 2, 3), "order must be 1, 2 or 3", order=order)
    require(lambda substeps: substeps >= 1, "substeps must be positive", substeps=substeps)

    def init(z: Sample) -> Past:
        y = control.rows(jnp.zeros_like(z))
        angle, one = jnp.zeros_like(control.roots()), jnp.ones((), z.dtype)
        return Past(y, 0 * one, one, (y,) * order, (angle, *(angle + jnp.inf,) * (order - 1)))

    def step(noise: Sample, past: Past, z: Sample, t: Time, s: Time) -> tuple[Sample, Past]:
        p, q = at(schedule, t), at(schedule, s)
        y, theta = control.whiten(z, p), control.angle(p)
        value = network_output(control, denoise(z, t), z, p)
        if control.known is not None:
            value = value - _known_output(control.known, control.roots(), y, _log_snr_near(control, p))
        if corrector:
            y = _corrected(past, value, y, p)
        values, nodes = [value, *past.values[: order - 1]], [node - theta for node in past.angles[: order - 1]]
        z = control.colour(_moved(control, y, values, nodes, p, q, substeps), z, q)
        values, angles = (value, *past.values)[:order], (theta, *past.angles)[:order]
        return z, Past(y, p.alpha, p.sigma, values, angles)

    def _corrected(past: Past, value: jax.Array, y: jax.Array, p: Point) -> jax.Array:
        start, theta = past.angles[0], control.angle(p)
        before = Point(p.t, past.alpha, past.sigma, past.alpha, past.sigma)  # of which alpha and sigma alone are read
        nodes = [theta - start, *(node - start for node in past.angles[1:])]
        again = _moved(control, past.y, [past.values[0], value, *past.values[1:]], nodes, before, p, substeps)
        return jnp.where(past.alpha > 0, again, y + theta * value / 2)

    return Sampler(init, step)


def _reach(control: Control) -> jax.Array:
    """The scale of the data that decides where noise ends: (tr C^2 / d)^{1/4}, between the mean one and the largest."""
    return jnp.mean(jnp.square(jnp.asarray(control.variances))) ** 0.25


def control_times(
    control: Control, schedule: Schedule, n: int, *, first: float = 0.5, rho: float = 4.0, sigma_min: float = 0.002
) -> jax.Array:
    """n steps, equal in (sigma/alpha)^{1/rho}, from sigma/alpha = first (n + 1) reach, where the jump ends, to sigma_min.

    Near infinite noise theta = sqrt(c) alpha/sigma: the jump is about as long an angle as each of the n steps that follow,
    and errs by no more.
    Raises: ValueError where n < 1, first or rho is not positive, or sigma_min does not lie below where the jump ends.
    """
    require(lambda n: n >= 1, "a grid needs at least one step", n=n)
    require(lambda first: first > 0, "first must be positive", first=first)
    return clocks.karras(schedule, n, rho=rho, sigma_min=sigma_min, sigma_max=first * (n + 1) * _reach(control))
