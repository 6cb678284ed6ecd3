"""Chapter 6, solvers, one step or a short chain at a time: what is exact, and which names mean one method.

z_s/sigma_s = z_t/sigma_t + int x0_hat d e^l = ...,        z_s/alpha_s = z_t/alpha_t + int eps_hat d e^{-l},        l = lambda/2
"""

import math
from itertools import pairwise

import jax.numpy as jnp
import numpy as np

from diffeq_gen import samplers
from diffeq_gen.samplers.interpolation import RULES, change, phis
from diffeq_gen.samplers.multistep import Past
from diffeq_gen.schedules import at
from diffeq_gen.theorems.domains import scalars, smooth_schedules, vectors
from diffeq_gen.theorems.first_order import _noise_in, _predict
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


def _last(schedule, rule, c, z, order, **options):
    """Three exact states that the solver only sees, and a fourth step that it takes: left its own, right the solution."""
    sampler = samplers.multistep(_polynomial_denoiser(schedule, rule, c), schedule, order=order, rule=rule, **options)
    times = jnp.asarray(TIMES, z.dtype)
    memory = sampler.init(z)
    for t, s in pairwise(times[:4]):
        _, memory = sampler.step(z[:0], memory, z, t, s)
        z = _solved(schedule, rule, c, z, t, s)
    return sampler.step(z[:0], memory, z, times[3], times[4])[0], _solved(schedule, rule, c, z, *times[3:])


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
    denoise, times = _polynomial_denoiser(schedule, "data", c), jnp.asarray(TIMES, z.dtype)
    sampler, right = samplers.multistep(denoise, schedule, order=4, rule="signal"), z
    memory = sampler.init(z)
    for t, s in pairwise(times[:4]):
        _, memory = sampler.step(z[:0], memory, right, t, s)
        right = _solved(schedule, "data", c, right, t, s)
    return sampler.step(z[:0], memory, right, *times[3:])[0], _solved(schedule, "data", c, right, *times[3:])


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
    denoise, times = _polynomial_denoiser(schedule, "data", c), jnp.asarray([*TIMES, 0.1], z.dtype)
    sampler, state, seen = samplers.unipc(denoise, schedule, order=order), z, []
    for t, s in pairwise(times[:4]):
        seen.insert(0, (denoise(state, t), *schedule(t)))
        plain = samplers.first_order_step(seen[0][0], state, state, at(schedule, t), at(schedule, s))
        state = _solved(schedule, "data", c, state, t, s)
    past = Past(plain, *(tuple(row[i] for row in seen[:order]) for i in range(3)))
    predicted, past = sampler.step(z[:0], past, state, times[3], times[4])
    _, past = sampler.step(z[:0], past, predicted, times[4], times[5])
    ratio = schedule(times[5])[1] / schedule(times[4])[1]  # what DDIM keeps of the corrected state
    corrected = (past.plain - samplers.ddim(denoise, schedule).step(z[:0], (), 0 * z, *times[4:])[0]) / ratio
    return predicted, corrected, _solved(schedule, "data", c, state, times[3], times[4])


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


@theorem(
    source="Zhao et al. 2023 (UniPC), Sec. 3; k-diffusion sample_dpmpp_2m",
    schedule=smooth_schedules,
    z=vectors(3),
    cases=300,
)
def unip2_is_2m(schedule, z):
    """UniP-2 with B(h) = e^h - 1 and rho = 1/2 is DPM-Solver++(2M): both are the two-point rule weighted by phi_1/2."""
    times = jnp.asarray(TIMES[1:4], z.dtype)
    p, q, r = (at(schedule, t) for t in times)
    sampler = samplers.multistep(_predict, schedule, two_point="midpoint")
    middle, memory = sampler.step(z[:0], sampler.init(z), z, times[0], times[1])
    left, _ = sampler.step(z[:0], memory, middle, times[1], times[2])
    before, now = _predict(z, times[0]), _predict(middle, times[1])
    h, h_before = _half(r) - _half(q), _half(q) - _half(p)
    return [left] * 2, [
        _two_m(middle, before, now, q, r, h, h_before / h),
        _uni_p(middle, before, now, q, r, h, -h_before / h),
    ]


def _two_m(z, before, now, p, q, h, ratio):
    """(sigma_s/sigma_t) z - alpha_s (e^{-h} - 1) ((1 + 1/(2r)) x - x_before/(2r)),  r = h_before/h."""
    ahead = (1 + 1 / (2 * ratio)) * now - before / (2 * ratio)
    return q.sigma / p.sigma * z - q.alpha * jnp.expm1(-h) * ahead


def _uni_p(z, before, now, p, q, h, r):
    """(sigma_s/sigma_t) z - alpha_s (e^{-h} - 1) x - alpha_s B(h) rho (x_before - x)/r,  B = e^{-h} - 1."""
    b = jnp.expm1(-h)
    return q.sigma / p.sigma * z - q.alpha * b * now - q.alpha * b / 2 * (before - now) / r


@unip2_is_2m.near_miss
def ratio_upside_down(schedule, z):
    """r = h/h_before, the steps of the ratio exchanged."""
    times = jnp.asarray(TIMES[1:4], z.dtype)
    p, q, r = (at(schedule, t) for t in times)
    middle = samplers.ddim(_predict, schedule).step(z[:0], (), z, times[0], times[1])[0]
    h, h_before = _half(r) - _half(q), _half(q) - _half(p)
    right = _two_m(middle, _predict(z, times[0]), _predict(middle, times[1]), q, r, h, h / h_before)
    return unip2_is_2m.claim(schedule, z)[0][0], right


@unip2_is_2m.near_miss
def with_the_plain_step(schedule, z):
    """B(h) = h, bh1, is another method."""
    sampler, times = samplers.multistep(_predict, schedule, two_point="trapezoid"), jnp.asarray(TIMES[1:4], z.dtype)
    middle, memory = sampler.step(z[:0], sampler.init(z), z, times[0], times[1])
    return sampler.step(z[:0], memory, middle, times[1], times[2])[0], unip2_is_2m.claim(schedule, z)[1][0]


@theorem(source="k-diffusion sample_dpm_2; Karras et al. 2022, Alg. 2; Lu et al. 2022 (DPM-Solver), Alg. 1",
         schedule=smooth_schedules, z=vectors(3), cases=300)  # fmt: skip
def kdiff_dpm2_identity(schedule, z):
    """The midpoint rule in sigma/alpha with the geometric mean as its middle is DPM-Solver-2 with r_1 = 1/2."""
    t, s = jnp.asarray([0.6, 0.45], z.dtype)
    return _dpm2(schedule, z, t, s, two_point="midpoint"), _geometric(schedule, z, t, s)


def _dpm2(schedule, z, t, s, **options):
    return samplers.singlestep(_predict, schedule, rule="noise", **options).step(z[:0], (), z, t, s)[0]


def _geometric(schedule, z, t, s):
    from diffeq_gen.clocks import time_at

    p, q = at(schedule, t), at(schedule, s)
    ratio, last = p.sigma / p.alpha, q.sigma / q.alpha
    middle = jnp.sqrt(ratio * last)
    r = time_at(schedule, -2 * jnp.log(middle))
    x = z / p.alpha + (middle - ratio) * _noise_in(_predict(z, t), z, p)
    there = at(schedule, r)
    slope = _noise_in(_predict(there.alpha * x, r), there.alpha * x, there)
    return q.alpha * (z / p.alpha + (last - ratio) * slope)


@kdiff_dpm2_identity.near_miss
def exact_weight(schedule, z):
    """The exact weight phi_2 of the difference: of the same order, another step."""
    t, s = jnp.asarray([0.6, 0.45], z.dtype)
    return _dpm2(schedule, z, t, s), _geometric(schedule, z, t, s)


def _lagrange(nodes, low, high):
    """int_low^high of each Lagrange polynomial of these nodes, by Gauss-Legendre quadrature: exact for polynomials."""
    y, weights = _quadrature(low, high)
    parts = []
    for i in range(len(nodes)):
        others = [j for j in range(len(nodes)) if j != i]
        parts.append(jnp.sum(weights * math.prod((y - nodes[j]) / (nodes[i] - nodes[j]) for j in others)))
    return parts


@theorem(source="k-diffusion linear_multistep_coeff; Zhang & Chen 2023 (DEIS), Eq. 15", schedule=smooth_schedules, z=vectors(3),
         cases=200)  # fmt: skip
def lms_is_adams_bashforth(schedule, z):
    """LMS, and DEIS with polynomials in rho, weight eps_hat of the last steps by the integrals of the Lagrange polynomials in
    rho = sigma/alpha: order grows from 1 to 4 as the past fills."""
    return _chains(samplers.lms(_predict, schedule), schedule, z, _lagrange)


def _chains(sampler, schedule, z, integrals):
    """(states of the sampler, states by the given integrals) over the whole grid."""
    times = jnp.asarray(TIMES, z.dtype)
    points = [at(schedule, t) for t in times]
    memory, state, left, right, slopes = sampler.init(z), z, [], [], []
    for i in range(4):
        moved, memory = sampler.step(z[:0], memory, state, times[i], times[i + 1])
        slopes.append(_noise_in(_predict(state, times[i]), state, points[i]))
        rho = jnp.stack([p.sigma / p.alpha for p in points[: i + 2]])
        weights = integrals(rho[:-1], rho[-2], rho[-1])
        left.append(moved)
        right.append(
            points[i + 1].alpha * (state / points[i].alpha + sum(w * d for w, d in zip(weights, slopes, strict=True)))
        )
        state = moved
    return left, right


@lms_is_adams_bashforth.near_miss
def coefficients_of_even_steps(schedule, z):
    """The textbook's 1, (3, -1)/2, (23, -16, 5)/12, (55, -59, 37, -9)/24 on steps that are not even: what PNDM does."""
    table = ([1], [-1 / 2, 3 / 2], [5 / 12, -16 / 12, 23 / 12], [-9 / 24, 37 / 24, -59 / 24, 55 / 24])
    even = lambda nodes, low, high: [(high - low) * weight for weight in table[len(nodes) - 1]]  # noqa: E731
    return _chains(samplers.lms(_predict, schedule), schedule, z, even)


def _all(denoise, schedule):
    """One of each kind of solver."""
    made = [samplers.multistep(denoise, schedule, order=3, rule=rule) for rule in ("data", "slope")]
    return [*made, samplers.unipc(denoise, schedule, order=3)]


def _run(sampler, z, times):
    memory, state = sampler.init(z), z
    for t, s in pairwise(times):
        state, memory = sampler.step(z[:0], memory, state, t, s)
    return state


@theorem(source="derived", schedule=smooth_schedules, x0=vectors(2), eps=vectors(2), cases=100)
def solvers_are_exact_for_a_point(schedule, x0, eps):
    """Where the data is one point, every solver takes alpha_t x0 + sigma_t eps to alpha_s x0 + sigma_s eps in steps of any length."""
    times = jnp.asarray(TIMES, x0.dtype)
    p, q = at(schedule, times[0]), at(schedule, times[-1])
    point = lambda z, t: x0  # noqa: E731
    begin, single = p.alpha * x0 + p.sigma * eps, samplers.singlestep(point, schedule, order=3, rule="noise")
    ends = [_run(sampler, begin, times) for sampler in _all(point, schedule)]
    ends.append(_run(single, begin, times[jnp.array([0, -1])]))
    return ends, [q.alpha * x0 + q.sigma * eps] * len(ends)


@solvers_are_exact_for_a_point.near_miss
def heun_too(schedule, x0, eps):
    """Heun's rule in the schedule's own time, which only the straight flow makes exact."""
    times = jnp.asarray(TIMES, x0.dtype)
    p, q = at(schedule, times[0]), at(schedule, times[-1])
    sampler = samplers.heun(lambda z, t: x0, schedule)
    return _run(sampler, p.alpha * x0 + p.sigma * eps, times), q.alpha * x0 + q.sigma * eps


@theorem(source="Karras et al. 2022, Sec. 3; Gao et al. 2024", schedule=smooth_schedules, z=vectors(2), cases=50)
def solver_trajectory_equivalence(schedule, z):
    """z/alpha after any multistep solver is the same under the straight flow of the same log-SNR: the scale of the path
    is of no account."""
    straight = lambda t: tuple(part / sum(schedule(t)) for part in schedule(t))  # noqa: E731
    times = jnp.asarray(TIMES[2:], z.dtype)
    return _scaled(schedule, z, times, _all), _scaled(straight, z, times, _all)


def _scaled(schedule, x, times, solvers):
    """z/alpha at the end, from x = z/alpha at the beginning, with a denoiser that reads z/alpha."""
    denoise = lambda z, t: _predict(z / schedule(t)[0], t)  # noqa: E731
    alphas = [schedule(t)[0] for t in (times[0], times[-1])]
    return [_run(sampler, alphas[0] * x, times) / alphas[1] for sampler in solvers(denoise, schedule)]


@solver_trajectory_equivalence.near_miss
def euler_in_time_too(schedule, z):
    """Euler's rule in t: the scale of the path changes the step."""
    straight = lambda t: tuple(part / sum(schedule(t)) for part in schedule(t))  # noqa: E731
    times, euler = jnp.asarray(TIMES[1:], z.dtype), lambda denoise, schedule: [samplers.euler(denoise, schedule)]
    return _scaled(schedule, z, times, euler), _scaled(straight, z, times, euler)


@theorem(source="derived", schedule=smooth_schedules, values=vectors(4, 2), cases=300)
def change_reads_nodes_in_any_order(schedule, values):
    """The interpolating polynomial does not know in which order its points were given, so nor does its integral."""
    times = jnp.asarray(TIMES[:4], values.dtype)
    ends = [_half(at(schedule, t)) for t in times]
    nodes, h = [end - ends[2] for end in (ends[1], ends[0], ends[3])], ends[3] - ends[2]
    base, (a, b, c) = values[0], values[1:]
    left = change(RULES["data"], [base, a, b, c], nodes, h)
    return left, change(RULES["data"], [base, c, b, a], [nodes[2], nodes[1], nodes[0]], h)


@change_reads_nodes_in_any_order.near_miss
def values_exchanged_alone(schedule, values):
    """The values in another order, the nodes in theirs."""
    return change_reads_nodes_in_any_order.claim(schedule, values)[0], change_reads_nodes_in_any_order.claim(
        schedule, jnp.stack([values[0], values[2], values[1], values[3]])
    )[1]
