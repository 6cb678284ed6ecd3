"""Chapter 6, solvers by family: Runge-Kutta methods along every coordinate.

(alpha, sigma) = m (a(k), b(k)),        d(z/m)/dk = a' x0_hat + b' eps_hat
"""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp

from diffeq_gen import samplers
from diffeq_gen.coordinates import ANGLE, DATA, LOG_SNR, NOISE, STRAIGHT, line, time_on
from diffeq_gen.samplers.runge_kutta import EULER, HEUN, MIDPOINT, RALSTON, RK4
from diffeq_gen.schedules import Flow, at, variance_preserving
from diffeq_gen.theorems.domains import (
    Domain,
    earlier,
    positive,
    scalars,
    schedules,
    smooth_schedules,
    stacked,
    times,
    vectors,
)
from diffeq_gen.theorems.first_order import _flowing, _move, _predict
from diffeq_gen.theorems.registry import theorem
from diffeq_gen.types import Time, pytree

__all__ = ["Parabola"]


@pytree
class Parabola:
    """lambda = start - slope t - bend t^2 and (alpha, sigma) = e^{size + tilt t} (sigmoid(lambda)^{1/2}, sigmoid(-lambda)^{1/2})."""

    start: float
    slope: float
    bend: float
    size: float
    tilt: float

    def __call__(self, t: Time) -> tuple[jax.Array, jax.Array]:
        scale = jnp.exp(self.size + self.tilt * t)
        alpha, sigma = variance_preserving(self.log_snr(t))
        return scale * alpha, scale * sigma

    def log_snr(self, t: Time) -> jax.Array:
        """The parabola."""
        return self.start - self.slope * t - self.bend * t**2

    def time_at(self, log_snr: jax.Array) -> jax.Array:
        """Its root, without cancellation."""
        fall = self.start - log_snr
        return 2 * fall / (self.slope + jnp.sqrt(self.slope**2 + 4 * self.bend * fall))


PARABOLAS = Domain("schedules of parabolic log-SNR, |log-SNR| up to 6", 5, lambda u, case: stacked(
    Parabola, start=2 + 4 * u[:, 0], slope=1 + 5 * u[:, 1], bend=0.5 + 4 * u[:, 2], size=2 * u[:, 3] - 1, tilt=2 * u[:, 4] - 1,
))  # fmt: skip
"""Their clock has a closed inverse: a bisection is dear to judge."""

COORDINATES = (NOISE, STRAIGHT, DATA, ANGLE, LOG_SNR)


@theorem(source="Gao et al. 2024, table of reparametrised sampling; generalised here", schedule=PARABOLAS,
         c=positive("c of a line", 1e-2, 1e2), t=times, cases=300)  # fmt: skip
def coordinates_cover_the_quadrant(schedule, c, t):
    """m (a(k), b(k)) = (alpha, sigma) for every coordinate, k goes back to t, and the slopes of a line are the constants 1
    and -c."""
    alpha, sigma = schedule(t)
    made = (*COORDINATES, line(c))
    ks = [one.clock(alpha, sigma) for one in made]
    back = [(*(one.unit(alpha, sigma) * part for part in one.curve(k)), time_on(schedule, one, k))
            for one, k in zip(made, ks, strict=True)]  # fmt: skip
    slopes = jax.jvp(line(c).curve, (ks[-1],), (jnp.ones_like(t),))[1]
    return [back, slopes], [[(alpha, sigma, t)] * len(made), (-c, jnp.ones_like(t))]


@coordinates_cover_the_quadrant.near_miss
def clock_of_the_other_line(schedule, c, t):
    """sigma/alpha read as the parameter of the straight flow."""
    alpha, sigma = schedule(t)
    return time_on(schedule, STRAIGHT, NOISE.clock(alpha, sigma) / 8), t


@theorem(source="Gao et al. 2024, table of reparametrised sampling; generalised here", schedule=schedules, z=vectors(3),
         c=positive("c of a line", 1e-2, 1e2), t=times, s=earlier("t"), cases=500)  # fmt: skip
def euler_along_a_line_is_ddim(schedule, z, c, t, s):
    """Euler's rule along every straight line of the plane of (alpha, sigma) is DDIM."""
    lines = (NOISE, STRAIGHT, DATA, line(c))
    made = [samplers.runge_kutta(_predict, schedule, tableau=EULER, coordinate=one) for one in lines]
    return [_move(one, z, z, t, s) for one in made], [_move(samplers.ddim(_predict, schedule), z, z, t, s)] * 4


def _euler_is_ddim(schedule, z, t, s, coordinate):
    euler = samplers.runge_kutta(_predict, schedule, tableau=EULER, coordinate=coordinate)
    return _move(euler, z, z, t, s), _move(samplers.ddim(_predict, schedule), z, z, t, s)


@euler_along_a_line_is_ddim.near_miss
def along_the_circle(schedule, z, c, t, s):
    """Euler's rule for v_hat in the angle: a curve that is not straight."""
    return _euler_is_ddim(schedule, z, t, s, ANGLE)


@euler_along_a_line_is_ddim.near_miss
def along_log_snr(schedule, z, c, t, s):
    """Euler's rule in log-SNR."""
    return _euler_is_ddim(schedule, z, t, s, LOG_SNR)


@euler_along_a_line_is_ddim.near_miss
def along_the_schedule(schedule, z, c, t, s):
    """Euler's rule in the schedule's own time."""
    return _euler_is_ddim(schedule, z, t, s, None)


@theorem(source="Karras et al. 2022, Alg. 1; Liu et al. 2023; Gao et al. 2024, comments and takeaways", schedule=smooth_schedules,
         z=vectors(2), t=times, s=earlier("t"), cases=100)  # fmt: skip
def runge_kutta_by_name(schedule, z, t, s):
    """Heun's rule along sigma/alpha is `edm`, in t it is `heun`, along sigma/(alpha + sigma) it is `heun` of the straight flow,
    on any schedule."""
    predict, p, q = _flowing(schedule), at(schedule, t), at(schedule, s)
    whole, whole_s = p.alpha + p.sigma, q.alpha + q.sigma
    flow = whole_s * _move(samplers.heun(_predict, Flow()), z, z / whole, p.sigma / whole, q.sigma / whole_s)
    left = [_tableau(schedule, z, t, s, HEUN, one) for one in (NOISE, None, STRAIGHT)]
    edm, heun = (_move(verb(predict, schedule), z, z, t, s) for verb in (samplers.edm, samplers.heun))
    return left, [edm, heun, flow]


def _tableau(schedule, z, t, s, tableau, coordinate):
    return _move(samplers.runge_kutta(_flowing(schedule), schedule, tableau=tableau, coordinate=coordinate), z, z, t, s)


@runge_kutta_by_name.near_miss
def edm_in_the_clock_of_the_data(schedule, z, t, s):
    """Heun's rule along alpha/sigma taken for that along sigma/alpha."""
    return _tableau(schedule, z, t, s, HEUN, DATA), _tableau(schedule, z, t, s, HEUN, NOISE)


@theorem(source="Karras et al. 2022, Sec. 3; Gao et al. 2024, 'Sampling' (claim 2)", schedule=PARABOLAS, z=vectors(2),
         t=times, s=earlier("t"), cases=200)  # fmt: skip
def runge_kutta_is_scale_invariant(schedule, z, t, s):
    """A Runge-Kutta method along any coordinate takes (alpha, sigma, z)/kappa to z_s/kappa_s, for whatever kappa(t)."""
    left = [_rescaled(schedule, z, t, s, one) for one in (STRAIGHT, DATA, ANGLE)]
    return [one for one, _ in left], [other for _, other in left]


def _rescaled(schedule, z, t, s, coordinate):
    """z_s/kappa_s on the schedule, and of its variance-preserving twin."""
    twin = Parabola(schedule.start, schedule.slope, schedule.bend, 0.0, 0.0)
    kappa = lambda r: jnp.exp(schedule.size + schedule.tilt * r)  # noqa: E731
    read = lambda z, r: _predict(z / kappa(r), r)  # noqa: E731
    one, other = (samplers.runge_kutta(f, made, tableau=MIDPOINT, coordinate=coordinate)
                  for f, made in ((read, schedule), (_predict, twin)))  # fmt: skip
    return _move(one, z, kappa(t) * z, t, s) / kappa(s), _move(other, z, z, t, s)


@runge_kutta_is_scale_invariant.near_miss
def in_the_time_of_the_schedule(schedule, z, t, s):
    """The same stages in t, where the slope holds kappa'."""
    return _rescaled(schedule, z, t, s, None)


TREES = ((), ((),), ((), ()), (((),),), ((), (), ()), ((), ((),)), (((), ()),), ((((),),),))
"""The rooted trees of up to four nodes, each the tuple of its branches."""

DENSITIES = (1, 2, 3, 6, 4, 8, 12, 24)


def _weight(tableau, tree):
    """sum_i w_i prod over branches of what the branch says stage by stage, in fractions: 1/3 is meant as a third."""
    rows, weights = ([[Fraction(part).limit_denominator(24) for part in row] for row in rows]
                     for rows in (((), *tableau.rows), (tableau.weights,)))  # fmt: skip

    def along(tree, i):
        return math.prod(sum(part * along(branch, j) for j, part in enumerate(rows[i])) for branch in tree)

    return float(sum(weight * along(tree, i) for i, weight in enumerate(weights[0])))


@theorem(
    source="Butcher 1963; Hairer, Norsett & Wanner 1993, Thm II.2.13", scale=scalars("numbers", 1.0, 2.0), cases=10
)
def order_conditions(scale):
    """A method has order p where each rooted tree of up to p nodes weighs 1/gamma: one tree for Euler, two for Heun, the midpoint
    and Ralston's, all eight for the method of four stages."""
    asked = [(EULER, 1), (HEUN, 2), (MIDPOINT, 2), (RALSTON, 2), (RK4, 8)]
    left = [scale * _weight(tableau, tree) for tableau, count in asked for tree in TREES[:count]]
    return jnp.stack(left), jnp.stack([scale / gamma for _, count in asked for gamma in DENSITIES[:count]])


@order_conditions.near_miss
def a_third_order_for_the_midpoint(scale):
    """One tree more."""
    return scale * _weight(MIDPOINT, TREES[2]), scale / 3


@order_conditions.near_miss
def a_third_order_for_ralston(scale):
    """Ralston's nodes integrate a parabola, but two stages do not see the tall tree."""
    return scale * _weight(RALSTON, TREES[3]), scale / 6


def _polynomial(c, k):
    return sum(part * k**power for power, part in enumerate(c))


def _integral(c, k):
    return sum(part * k ** (power + 1) / (power + 1) for power, part in enumerate(c))


def _given_slope(schedule, coordinate, slope):
    """The denoiser whose o = a' x0 + b' eps along the coordinate is slope(y, k)."""

    def denoise(z, r):
        alpha, sigma = schedule(r)
        y, k = z / coordinate.unit(alpha, sigma), coordinate.clock(alpha, sigma)
        (a, b), (a_dot, b_dot) = jax.jvp(coordinate.curve, (k,), (jnp.ones_like(k),))
        return (b_dot * y - b * slope(y, k)) / (a * b_dot - b * a_dot)

    return denoise


def _against_its_integral(schedule, c, z, tableau, coordinate, slope, solved):
    """A step whose slope is known, and m_s times what y is then."""
    t, s = (jnp.asarray(end, z.dtype) for end in (0.7, 0.4))
    made = samplers.runge_kutta(
        _given_slope(schedule, coordinate, slope), schedule, tableau=tableau, coordinate=coordinate
    )
    (m, k), (m_s, k_s) = ((coordinate.unit(*schedule(r)), coordinate.clock(*schedule(r))) for r in (t, s))
    return _move(made, z, z, t, s), m_s * solved(z / m, k, k_s)


def _of_degree(schedule, c, z, tableau, coordinate):
    slope = lambda y, k: _polynomial(c, k)  # noqa: E731
    return _against_its_integral(schedule, c, z, tableau, coordinate, slope,
                                 lambda y, k, k_s: y + _integral(c, k_s) - _integral(c, k))  # fmt: skip


@theorem(
    source="Hairer, Norsett & Wanner 1993, Sec. II.1", schedule=PARABOLAS, c=vectors(4, 2), z=vectors(2), cases=200
)
def quadrature_of_the_tableaus(schedule, c, z):
    """Where the slope is a polynomial of the coordinate alone, a step is a quadrature rule, exact up to degree 1 for Heun
    and the midpoint, 2 for Ralston's and 3 for the method of four stages, which is Simpson's."""
    asked = ((HEUN, 2, NOISE), (MIDPOINT, 2, NOISE), (RALSTON, 3, NOISE), (RK4, 4, DATA))
    pairs = [_of_degree(schedule, c[:count], z, tableau, coordinate) for tableau, count, coordinate in asked]
    return [left for left, _ in pairs], [right for _, right in pairs]


@quadrature_of_the_tableaus.near_miss
def parabola_by_the_midpoint(schedule, c, z):
    """One degree too many."""
    return _of_degree(schedule, c[:3], z, MIDPOINT, NOISE)


@quadrature_of_the_tableaus.near_miss
def polynomial_of_another_coordinate(schedule, c, z):
    """eps_hat linear in sigma/alpha, integrated along sigma/(alpha + sigma)."""
    slope = lambda y, k: _polynomial(c[:2], k)  # noqa: E731
    t, s = (jnp.asarray(end, z.dtype) for end in (0.7, 0.4))
    made = samplers.runge_kutta(_given_slope(schedule, NOISE, slope), schedule, tableau=MIDPOINT, coordinate=STRAIGHT)
    return _move(made, z, z, t, s), _of_degree(schedule, c[:2], z, MIDPOINT, NOISE)[1]


def _growing(schedule, rates, z, tableau, coordinate, terms):
    """A step of y' = rates y, and the first terms of its exponential."""
    return _against_its_integral(
        schedule, rates, z, tableau, coordinate, lambda y, k: rates * y,
        lambda y, k, k_s: y * sum((rates * (k_s - k)) ** j / math.factorial(j) for j in range(terms)),
    )  # fmt: skip


@theorem(source="Hairer & Wanner 1996, Sec. IV.2", schedule=PARABOLAS, rates=vectors(2), z=vectors(2), cases=200)
def linear_slopes_of_the_tableaus(schedule, rates, z):
    """Where the slope is L y, a step multiplies y by 1 + hL + ... + (hL)^p/p!, p the number of stages: two for Heun, the
    midpoint and Ralston's, four for the last."""
    asked = ((HEUN, 3), (MIDPOINT, 3), (RALSTON, 3), (RK4, 5))
    pairs = [_growing(schedule, rates, z, tableau, STRAIGHT, terms) for tableau, terms in asked]
    return [left for left, _ in pairs], [right for _, right in pairs]


@linear_slopes_of_the_tableaus.near_miss
def a_fifth_term(schedule, rates, z):
    """One order too many."""
    return _growing(schedule, rates, z, RK4, STRAIGHT, 6)


class _Sigma:
    """alpha = 1, sigma = t, for any t."""

    def __call__(self, t):
        return jnp.ones_like(t), t

    def time_at(self, log_snr):
        return jnp.exp(-log_snr / 2)


def _third_derivatives(tableau, z, mean, deviation, sigma):
    """d^3/dh^3 at h = 0 of a step from sigma to sigma + h on N(mean, deviation^2), and of the flow map."""
    step = samplers.runge_kutta(
        lambda z, r: mean + deviation**2 / (deviation**2 + r**2) * (z - mean),
        _Sigma(),
        tableau=tableau,
        coordinate=NOISE,
    ).step
    along = lambda f: lambda s: jax.jvp(f, (s,), (jnp.ones_like(s),))[1]  # noqa: E731
    moved = lambda s: step(None, (), z, sigma, s)[0]  # noqa: E731
    known = lambda s: mean + (z - mean) * jnp.sqrt((deviation**2 + s**2) / (deviation**2 + sigma**2))  # noqa: E731
    return along(along(along(moved)))(sigma), along(along(along(known)))(sigma)


@theorem(source="derived", z=scalars("numbers", -3.0, 3.0), mean=scalars("means", -2.0, 2.0),
         deviation=positive("deviations", 0.25, 4.0), sigma=positive("sigma", 0.25, 4.0), cases=200)  # fmt: skip
def gaussians_flatter_the_midpoint(z, mean, deviation, sigma):
    """On Gaussian data the midpoint rule along sigma/alpha follows the flow to third order, for the two trees of three nodes cancel:
    such data cannot tell its order, two, from three."""
    return _third_derivatives(MIDPOINT, z, mean, deviation, sigma)


@gaussians_flatter_the_midpoint.near_miss
def heun_as_well(z, mean, deviation, sigma):
    """Heun's rule, whose trees do not cancel."""
    return _third_derivatives(HEUN, z, mean, deviation, sigma)


@gaussians_flatter_the_midpoint.near_miss
def ralston_as_well(z, mean, deviation, sigma):
    """Ralston's, whose quadrature is of third order already."""
    return _third_derivatives(RALSTON, z, mean, deviation, sigma)
