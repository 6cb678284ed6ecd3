"""Chapter 6, solvers, what is exact: one step where the prediction is a polynomial along the coordinate of its rule.

z_s/sigma_s = z_t/sigma_t + int x0_hat d e^l = ...,        z_s/alpha_s = z_t/alpha_t + int eps_hat d e^{-l},        l = lambda/2
"""

import math
from itertools import pairwise

import jax.numpy as jnp
import numpy as np

from diffeq_gen import samplers
from diffeq_gen.samplers.interpolation import RULES, phis
from diffeq_gen.samplers.multistep import Past
from diffeq_gen.schedules import at
from diffeq_gen.theorems.domains import scalars, smooth_schedules, vectors
from diffeq_gen.theorems.registry import theorem

__all__: list[str] = []

PANELS = 48
ABSCISSAE, WEIGHTS = np.polynomial.legendre.leggauss(6)
"""Six nodes, for of more numpy's weights are wrong from the 14th digit (at 48 nodes from the 12th): panels instead."""

TIMES = np.array([0.9, 0.7, 0.55, 0.3, 0.15])


def _quadrature(low, high):
    """(nodes, weights) of the integral over [low, high]."""
    nodes, weights = (jnp.asarray(value, jnp.result_type(low)) for value in (ABSCISSAE, WEIGHTS))
    width = (high - low) / PANELS
    middles = low + width * (jnp.arange(PANELS, dtype=nodes.dtype) + 0.5)
    return (middles[:, None] + width / 2 * nodes[None]).ravel(), jnp.tile(width / 2 * weights, PANELS)


@theorem(source="Hochbruck & Ostermann 2010, Sec. 2", w=scalars("exponents in [-30, 30]", -30.0, 30.0))
def phi_functions(w):
    """phi_k(w) = int_0^1 e^{w(1-u)} u^{k-1}/(k-1)! du, from -30 to 30 and through zero, by recurrence and series."""
    u, weights = _quadrature(0 * w, 0 * w + 1)
    right = [jnp.sum(weights * jnp.exp(w * (1 - u)) * u**k / math.factorial(k)) for k in range(4)]
    return jnp.stack(phis(4, w)), jnp.stack(right)


@phi_functions.near_miss
def without_the_factorial(w):
    """Moments of u^{k-1}, not divided by (k-1)!: the factor that the shipped third order lost."""
    left, right = phi_functions.claim(w)
    return left, right * jnp.array([1, 1, 2, 6], w.dtype)


@phi_functions.near_miss
def recurrence_upwards_to_order_two(w):
    """phi_3 = phi_2 / w, the 1/2 forgotten."""
    phi = phis(2, w)
    return jnp.stack([*phi, (phi[1] - 1) / w]), phi_functions.claim(w)[1][:3]


def _cubic(c, y):
    """c_0 + c_1 y + c_2 y^2 + c_3 y^3, each c_k a sample."""
    return c[0] + c[1] * y + c[2] * y**2 + c[3] * y**3


def _half(p):
    return jnp.log(p.alpha / p.sigma)


def _polynomial_denoiser(schedule, rule, c):
    """(z, t) -> x0_hat whose F along the rule's coordinate is the polynomial with these coefficients, whatever z."""

    def denoise(z, t):
        p = at(schedule, t)
        if rule in ("data", "signal"):
            return _cubic(c, _half(p) if rule == "data" else p.alpha / p.sigma)
        return (z - p.sigma * _cubic(c, _half(p) if rule == "noise" else p.sigma / p.alpha)) / p.alpha

    return denoise


def _rising(c, y):
    """The antiderivative of the cubic times e^y."""
    return jnp.exp(y) * (c[0] + c[1] * (y - 1) + c[2] * (y**2 - 2 * y + 2) + c[3] * (y**3 - 3 * y**2 + 6 * y - 6))


def _antiderivative(rule, c, p):
    """Of F e^l, F (-e^{-l}) in l, and of F in sigma/alpha and alpha/sigma, written out for a cubic F."""
    y = _half(p)
    if rule == "data":
        return _rising(c, y)
    if rule == "noise":
        return jnp.exp(-y) * (c[0] + c[1] * (y + 1) + c[2] * (y**2 + 2 * y + 2) + c[3] * (y**3 + 3 * y**2 + 6 * y + 6))
    y = p.sigma / p.alpha if rule == "slope" else p.alpha / p.sigma
    return c[0] * y + c[1] * y**2 / 2 + c[2] * y**3 / 3 + c[3] * y**4 / 4


def _solved(schedule, rule, c, z, t, s):
    """z_s from the antiderivative: the linear part is divided out, what is left is an integral."""
    p, q = at(schedule, t), at(schedule, s)
    unit = (lambda p: p.sigma) if rule in ("data", "signal") else (lambda p: p.alpha)
    return unit(q) * (z / unit(p) + _antiderivative(rule, c, q) - _antiderivative(rule, c, p))


def _past(schedule, rule, c, z, count):
    """(what a solver remembers after `count` exact states before TIMES[3], the exact state there)."""
    denoise, states, times = _polynomial_denoiser(schedule, rule, c), [z], jnp.asarray(TIMES, z.dtype)
    for t, s in pairwise(times[:4]):
        states.append(_solved(schedule, rule, c, states[-1], t, s))
    points = [at(schedule, t) for t in times[2::-1]][:count]
    x0 = [denoise(state, p.t) for state, p in zip(states[2::-1], points, strict=False)]
    values = tuple(RULES[rule].value(*row) for row in zip(x0, states[2::-1], points, strict=False))
    plain = samplers.first_order_step(x0[0], states[2], z, points[0], at(schedule, times[3]))
    return Past(plain, values, tuple(p.alpha for p in points), tuple(p.sigma for p in points)), states[3]


def _last(schedule, rule, c, z, order, interpolated=None):
    """A step that follows on exact states: left the solver's own, right the solution."""
    past, state = _past(schedule, rule, c, z, order - 1)
    sampler = samplers.multistep(
        _polynomial_denoiser(schedule, rule, c), schedule, order=order, rule=interpolated or rule
    )
    ends = jnp.asarray(TIMES[3:], z.dtype)
    return sampler.step(z[:0], past, state, *ends)[0], _solved(schedule, rule, c, state, *ends)


@theorem(source="Lu et al. 2022 (DPM-Solver), Prop. 3.1; Lu et al. 2022 (DPM-Solver++), Eq. 8; Zhang & Chen 2023",
         schedule=smooth_schedules, c=vectors(4, 2), z=vectors(2), cases=200)  # fmt: skip
def variation_of_constants(schedule, c, z):
    """Where the prediction is a polynomial of degree 3 along the coordinate of its rule, the multistep solver of order 4 takes
    a step without error, for each of the four rules: it solves the linear part and integrates the rest."""
    pairs = [_last(schedule, rule, c, z, 4) for rule in RULES]
    return [left for left, _ in pairs], [right for _, right in pairs]


@variation_of_constants.near_miss
def third_order_is_enough_for_a_cubic(schedule, c, z):
    """One value less: a parabola through a cubic."""
    return _last(schedule, "data", c, z, 3)


@variation_of_constants.near_miss
def data_as_polynomial_of_the_other_coordinate(schedule, c, z):
    """x0_hat a cubic of log-SNR, interpolated along alpha/sigma."""
    return _last(schedule, "data", c, z, 4, interpolated="signal")


@theorem(
    source="Zhao et al. 2023 (UniPC), Thm 3.1", schedule=smooth_schedules, c=vectors(4, 2), z=vectors(2), cases=200
)
def unipc_corrects_to_one_degree_more(schedule, c, z):
    """Where x0_hat is a cubic in log-SNR, the state that UniPC-3 has predicted from three values is exact once it is corrected
    by the fourth, and the evaluation is the one that its next step asks for."""
    _, corrected, exact = _uni_pc(schedule, c, z, 3)
    return corrected, exact


def _uni_pc(schedule, c, z, order):
    """(state as predicted, as corrected, as it is) after one step with an exact past of `order` values."""
    denoise, times = _polynomial_denoiser(schedule, "data", c), jnp.asarray([*TIMES[3:], 0.1], z.dtype)
    sampler = samplers.unipc(denoise, schedule, order=order)
    past, state = _past(schedule, "data", c, z, order)
    predicted, past = sampler.step(z[:0], past, state, times[0], times[1])
    _, past = sampler.step(z[:0], past, predicted, times[1], times[2])
    ratio = schedule(times[2])[1] / schedule(times[1])[1]  # what DDIM keeps of the corrected state
    corrected = (past.plain - samplers.ddim(denoise, schedule).step(z[:0], (), 0 * z, *times[1:])[0]) / ratio
    return predicted, corrected, _solved(schedule, "data", c, state, times[0], times[1])


@unipc_corrects_to_one_degree_more.near_miss
def as_predicted(schedule, c, z):
    """The state before it is corrected."""
    predicted, _, exact = _uni_pc(schedule, c, z, 3)
    return predicted, exact


@unipc_corrects_to_one_degree_more.near_miss
def corrected_from_two(schedule, c, z):
    """UniPC-2, whose corrector knows three values of a cubic."""
    _, corrected, exact = _uni_pc(schedule, c, z, 2)
    return corrected, exact


@theorem(source="derived; the update is that of the official DPM-Solver, diffusers and k-diffusion", schedule=smooth_schedules,
         c=vectors(4, 2), z=vectors(2), cases=200)  # fmt: skip
def dpmpp_3m_shipped_is_order2(schedule, c, z):
    """The third-order multistep update as it is shipped is the exact integral of the parabola through three predictions less
    half of what the second difference owes at order h^3: int e^{-(h - y)} y^2/2 dy F[0,1,2].  So it errs by that, and has order two."""
    (left, right), missing = _shipped(schedule, c, z)
    return left, right - missing


def _shipped(schedule, c, z):
    """((their step, ours), alpha_s int e^{-(h - y)} y^2/2 dy F[0,1,2] by quadrature), on three values of a cubic.

    D_1 = D_10 + r_0/(r_0 + r_1) (D_10 - D_11),  D_2 = (D_10 - D_11)/(r_0 + r_1), as in their code, for x0_hat.
    """
    past, state = _past(schedule, "data", c, z, 2)
    denoise, ends = _polynomial_denoiser(schedule, "data", c), jnp.asarray(TIMES[3:], z.dtype)
    whole = samplers.multistep(denoise, schedule, order=3)
    p, q = (at(schedule, end) for end in ends)
    now, (one, two) = denoise(state, ends[0]), past.values
    l_1, l_2 = (jnp.log(alpha / sigma) for alpha, sigma in zip(past.alphas, past.sigmas, strict=True))
    h = _half(q) - _half(p)
    r0, r1 = (_half(p) - l_1) / h, (l_1 - l_2) / h
    d10, d11 = (now - one) / r0, (one - two) / r1
    d1, d2 = d10 + r0 / (r0 + r1) * (d10 - d11), (d10 - d11) / (r0 + r1)
    phi1 = jnp.expm1(-h)
    phi2 = phi1 / h + 1
    phi3 = phi2 / h - 0.5
    shipped = q.sigma / p.sigma * state - q.alpha * (phi1 * now - phi2 * d1 + phi3 * d2)
    y, weights = _quadrature(0 * h, h)
    second = ((now - one) / (_half(p) - l_1) - (one - two) / (l_1 - l_2)) / (_half(p) - l_2)
    missing = q.alpha * jnp.sum(weights * jnp.exp(y - h) * y**2 / 2) * second
    return (shipped, whole.step(z[:0], past, state, *ends)[0]), missing


@dpmpp_3m_shipped_is_order2.near_miss
def third_as_its_name_says(schedule, c, z):
    """The step whose name it bears."""
    return _shipped(schedule, c, z)[0]


@dpmpp_3m_shipped_is_order2.near_miss
def all_of_the_second_difference(schedule, c, z):
    """Twice as much missing: no second difference at all."""
    (left, right), missing = _shipped(schedule, c, z)
    return left, right - 2 * missing
