"""Controlled solvers: what is known of the data beforehand is solved without the network, which is asked for the rest alone.

    dy/dtheta = F = F_known(y, theta) + R(theta)                                          under every schedule
    dy = ((1 + eta^2) F - eta^2 cot(theta) y) dtheta + eta sqrt(2 cot(theta)) dw          the reverse SDE of that noise level

y, theta and F are those of `control`.  For Gaussian data F = 0 and a step of any length is exact, in law where there is noise.
Where m and C are the moments of the data, F = theta^2/2 K(y, y, .) + O(theta^3) at infinite noise, where theta = 0, with K their
third cumulant less its trace: there the state is moved without an evaluation (`jump`), which errs by a third of theta F, and
F(0) = 0 begins a multistep method (`controlled`) that has its order from the first step on.  F_known is that of a mixture
fitted to the data, whose flow is followed in small steps that ask no network; R is what the network says beyond it, a
polynomial in theta through its last values.  As the variances grow the method becomes `lms`.

The points from which the control is made must be of the law that the network has learnt.  Evaluations are saved on what the
control describes: it gains little on data made of many features far smaller than any of its own, and a start within the
control's error of the border between two modes may still end in the other one.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen.samplers.control import Control, whitened_output
from diffeq_gen.samplers.interpolation import require_order
from diffeq_gen.samplers.mixture import Components, denoise_components
from diffeq_gen.samplers.newton import integrals, polynomial, shares
from diffeq_gen.samplers.runge_kutta import classical
from diffeq_gen.schedules import at
from diffeq_gen.types import Denoiser, Point, Sample, Sampler, Schedule, Time, concrete, require

__all__ = ["Past", "controlled", "jump"]

FAR = 30.0
"""How far in log-SNR from that of the data's scale the small steps begin and end: beyond, the angle changes by e^{-15}."""
NODES, WEIGHTS = (part / 2 for part in np.polynomial.legendre.leggauss(10))
"""Of Gauss and Legendre on [-1/2, 1/2]."""


def _known_output(known: Components, root: jax.Array, y: jax.Array, log_snr: jax.Array) -> jax.Array:
    """F of the mixture at y."""
    ratio = jnp.exp(-log_snr / 2)
    tangent = root / ratio
    secant = jnp.sqrt(1 + jnp.square(tangent))
    x0 = denoise_components(known, ratio * secant * y, ratio)
    return secant * x0 / root - tangent * y


def _kept(start: jax.Array, end: jax.Array, eta: jax.Array | float) -> jax.Array:
    """(sin start / sin end)^{eta^2}, what is left of y where there is noise: nothing, where it comes from infinite noise to less."""
    before, after = (jnp.log(jnp.maximum(jnp.sin(angle), jnp.finfo(angle.dtype).tiny)) for angle in (start, end))
    return jnp.where((start > 0) | (end <= 0) | (eta == 0), jnp.exp(jnp.square(eta) * (before - after)), 0)


def _dimmed(theta: jax.Array, eta: jax.Array | float) -> jax.Array:
    """cos(theta)^{eta^2}: as that F falls towards a point of data, on the SDE."""
    return jnp.exp(jnp.square(eta) * jnp.log(jnp.maximum(jnp.cos(theta), jnp.finfo(theta.dtype).tiny)))


def _moments(start: jax.Array, end: jax.Array, eta: jax.Array | float | None, count: int) -> list[jax.Array]:
    """int_start^end (1 + eta^2) (sin u cos u / sin end)^{eta^2} (u - start)^k du / (end - start)^{k+1}, k < count; eta None is 0."""
    if eta is None:
        return [jnp.full_like(end, 1 / (k + 1)) for k in range(count)]
    shares = [0.5 + float(node) for node in NODES]
    inside = [start + share * (end - start) for share in shares]
    heights = [_kept(u, end, eta) * _dimmed(u, eta) for u in inside]
    level = 1 + jnp.square(jnp.asarray(eta, end.dtype))
    return [
        level
        * sum(float(weight) * share**k * height for weight, share, height in zip(WEIGHTS, shares, heights, strict=True))
        for k in range(count)
    ]


def _converging(
    values: list[jax.Array], nodes: list[jax.Array], weights: list[jax.Array], sure: int, growth: float
) -> list[jax.Array]:
    """The differences of which Newton's series is made: of each sample up to a term, after the first `sure`, that is longer than
    `growth` times the one before, and zero from there on."""
    divided = [
        sum(share * value for share, value in zip(row, values[: len(row)], strict=True)) for row in shares(nodes)
    ]
    lengths = [_square(weight * difference) for weight, difference in zip(weights, divided, strict=True)]
    kept = True
    for k in range(sure + 1, len(divided)):
        kept = kept & ~(lengths[k] > growth * growth * lengths[k - 1])
        divided[k] = jnp.where(kept, divided[k], 0)
    return divided


def _moved(
    control: Control, y: jax.Array, values: list[jax.Array], nodes: list[jax.Array], p: Point, q: Point, substeps: int,
    eta: jax.Array | float | None = None, sure: int = 1, growth: float = math.inf,
) -> jax.Array:  # fmt: skip
    """The mean of y at q from y at p, where F is F_known and Newton's polynomial through `values` at theta_p and theta_p + `nodes`."""
    root, start, end = control.roots(), control.angle(p), control.angle(q)
    turned, change = end - start, 0.0
    if values:
        moments = [part * turned ** (k + 1) for k, part in enumerate(_moments(start, end, eta, len(values)))]
        weights = integrals(nodes, moments)
        divided = _converging(values, nodes, weights, sure, growth)
        change = sum(weight * difference for weight, difference in zip(weights, divided, strict=True))
    if control.known is None:
        return (y if eta is None else _kept(start, end, eta) * y) + change
    low, high = (_log_snr_near(control, point) for point in (p, q))
    h = (high - low) / substeps

    def slope(y: jax.Array, log_snr: jax.Array) -> jax.Array:
        tangent = root * jnp.exp(log_snr / 2)
        output = _known_output(control.known, root, y, log_snr)
        output = output + polynomial(divided, nodes, jnp.arctan(tangent) - start) if values else output
        return tangent / (1 + jnp.square(tangent)) / 2 * output

    def small(y: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        return classical(slope, y, low + i * h, h), None

    return jax.lax.scan(small, y, jnp.arange(substeps, dtype=h.dtype))[0]


def _log_snr_near(control: Control, p: Point) -> jax.Array:
    """log-SNR, cut to where the angles still change."""
    middle = -jnp.log(control.mean_of(jnp.asarray))
    alpha, sigma = (jnp.maximum(part, jnp.finfo(part.dtype).tiny) for part in (p.alpha, p.sigma))
    return jnp.clip(2 * (jnp.log(alpha) - jnp.log(sigma)), middle - FAR, middle + FAR)


def jump(control: Control, schedule: Schedule, z: Sample, t: Time, s: Time, *, substeps: int = 32) -> Sample:
    """z_s of the flow of the control alone: no evaluation, exact on Gaussian data, else wrong by O(theta_s^3).

    `substeps` Runge-Kutta steps where the control has a mixture.
    Raises: ValueError where substeps is not positive.
    Theorems: controlled-is-exact-for-gaussians, controlled-puts-back-what-the-jump-left, jump-leaves-the-third-cumulant.
    """
    require(lambda substeps: substeps >= 1, "substeps must be positive", substeps=substeps)
    p, q = at(schedule, t), at(schedule, s)
    return control.colour(_moved(control, control.whiten(z, p), [], [], p, q, substeps), z, q)


class Past(NamedTuple):
    """The step before: y where it began, its noise, and the last values of R with their angles.  At first: infinite noise, where F = 0."""

    y: jax.Array
    noise: jax.Array
    alpha: jax.Array
    sigma: jax.Array
    values: tuple[jax.Array, ...]
    angles: tuple[jax.Array, ...]


def controlled(
    denoise: Denoiser, schedule: Schedule, control: Control, *, order: int = 4, corrector: bool = True, substeps: int = 4,
    jumped: bool = True, eta: float = 0.0, growth: float = 1.0,
) -> Sampler:  # fmt: skip
    """Adams-Bashforth up to this order for dy/dtheta = F, begun by F(0) = 0; exact in one step of any length on Gaussian data.

    A term of Newton's series that is longer than `growth` times the one before is left out with all that follow, sample by sample:
    the steps are too long there for the order.  A slope, and of the corrector a curvature too, is always taken.  A step whose terms
    are judged is not affine in z: `law` wants growth infinite.
    One evaluation a step.  The corrector takes the step before again through the value at its end, and the jump before the
    first step with it: pass what `jump` returns from infinite noise, at times that begin where it ends; or say jumped=False of
    a z that was come by otherwise, as by noising a picture, and it is left as it is.
    A correction longer than the step is left out: towards data that are points the equation is stiff, and over long steps its
    corrector would make a small error large.
    `substeps` Runge-Kutta steps follow the control's mixture, where it has one: the mixture is read 4 substeps times a step,
    twice that with the corrector.  A basis costs three products with its d x r numbers a step, two if it is square, a diagonal next
    to nothing.

    `eta` > 0 solves the reverse SDE of that noise level, of which 1 is the forward process reversed, about the moments alone:
    a control with a mixture is refused.  F / cos(theta)^{eta^2} is the polynomial, which ten
    Gauss-Legendre nodes integrate against (sin u cos u/sin theta_s)^{eta^2}: to rounding if eta = 1, or where a step neither doubles
    theta nor halves what is left of it.
    Raises: ValueError where order is not 1, 2, 3 or 4, substeps is not positive, eta or growth is negative, or eta > 0 meets a
    mixture.
    Theorems: controlled-is-exact-for-gaussians, controlled-puts-back-what-the-jump-left, controlled-is-adams-bashforth,
    controlled-leaves-out-what-grows, controlled-ignores-the-scale, controlled-order, controlled-sde-solves-its-equation,
    controlled-sde-is-bayes-for-gaussians.
    """
    require_order(order)
    require(lambda growth: growth >= 0, "growth must not be negative", growth=growth)
    require(lambda substeps: substeps >= 1, "substeps must be positive", substeps=substeps)
    require(lambda eta: eta >= 0, "eta must not be negative", eta=eta)
    still = concrete(eta) and bool(eta == 0)
    level = None if still else eta
    require(lambda known: still or known is None, "eta > 0 needs a control without a mixture",
            known=None if control.known is None else "a mixture")  # fmt: skip

    def init(z: Sample) -> Past:
        y = jnp.zeros((z.size // jnp.size(control.mean), control.width), z.dtype)
        angle, zero = jnp.zeros_like(control.roots()), jnp.zeros((), z.dtype)
        angles = (angle, *(angle + jnp.inf,) * (order - 1))
        return Past(y, zero if still else y, zero, jnp.ones_like(zero), (y,) * order, angles)

    def step(noise: Sample, past: Past, z: Sample, t: Time, s: Time) -> tuple[Sample, Past]:
        p, q = at(schedule, t), at(schedule, s)
        theta, end = control.angle(p), control.angle(q)
        y, value = whitened_output(control, denoise(z, t), z, p)
        if control.known is not None:
            value = value - _known_output(control.known, control.roots(), y, _log_snr_near(control, p))
        value = value if still else value / _dimmed(theta, eta)
        if corrector:
            y = _corrected(past, value, y, p)
        values, nodes = [value, *past.values[: order - 1]], [node - theta for node in past.angles[: order - 1]]
        drawn = past.noise if still else _spread(theta, end, eta) * control.rows(noise[0])
        moved = _moved(control, y, values, nodes, p, q, substeps, level, 1, growth)
        values, angles = (value, *past.values)[:order], (theta, *past.angles)[:order]
        return control.colour(moved + drawn, z, q), Past(y, drawn, p.alpha, p.sigma, values, angles)

    def _corrected(past: Past, value: jax.Array, y: jax.Array, p: Point) -> jax.Array:
        start, theta = past.angles[0], control.angle(p)
        before = dataclasses.replace(p, alpha=past.alpha, sigma=past.sigma)  # whose slopes are not read
        nodes = [theta - start, *(node - start for node in past.angles[1:])]
        mean, values = y - past.noise, [past.values[0], value, *past.values[1:]]
        again = _moved(control, past.y, values, nodes, before, p, substeps, level, 2, growth)
        longer = _square(again - mean) > _square(mean - past.y)
        again = past.noise + jnp.where(longer, mean, again)
        left = theta * _moments(jnp.zeros_like(theta), theta, level, 2)[1] * value if jumped else 0
        return jnp.where(past.alpha > 0, again, y + left)

    return Sampler(init, step, noises=0 if still else 1)


def _square(rows: jax.Array) -> jax.Array:
    """Of each row: shape (n, 1)."""
    return jnp.sum(jnp.square(rows), axis=1, keepdims=True)


def _spread(start: jax.Array, end: jax.Array, eta: jax.Array | float) -> jax.Array:
    """sqrt(1 - kept^2): the std of the noise that y gathers."""
    gained = 1 - jnp.square(_kept(start, end, eta))
    return jnp.where(gained > 0, jnp.sqrt(jnp.where(gained > 0, gained, 1)), 0)
