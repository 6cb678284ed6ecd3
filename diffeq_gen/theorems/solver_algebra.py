"""Chapter 6, solvers, one step or a short chain at a time: which names mean one method, and what no solver may depend on.

UniP-2 = DPM-Solver++(2M),     DPM-2 = DPM-Solver-2 at the midpoint,     LMS = Adams-Bashforth in sigma/alpha
"""

import math
from itertools import pairwise

import jax.numpy as jnp

from diffeq_gen import samplers
from diffeq_gen.clocks import time_at
from diffeq_gen.samplers.interpolation import RULES, change
from diffeq_gen.schedules import at
from diffeq_gen.theorems.domains import smooth_schedules, straight_schedules, vectors
from diffeq_gen.theorems.first_order import _noise_in, _predict
from diffeq_gen.theorems.registry import theorem
from diffeq_gen.theorems.solver_exactness import TIMES, _half, _quadrature

__all__: list[str] = []

TEXTBOOK = ((1,), (-1 / 2, 3 / 2), (5 / 12, -16 / 12, 23 / 12), (-9 / 24, 37 / 24, -59 / 24, 55 / 24))
"""Adams and Bashforth's weights of even steps, oldest first."""


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
         schedule=straight_schedules, z=vectors(3), cases=300)  # fmt: skip
def kdiff_dpm2_identity(schedule, z):
    """The midpoint rule in sigma/alpha with the geometric mean as its middle is DPM-Solver-2 with r_1 = 1/2."""
    t, s = jnp.asarray([0.6, 0.45], z.dtype)
    return _dpm2(schedule, z, t, s, two_point="midpoint"), _geometric(schedule, z, t, s)


def _dpm2(schedule, z, t, s, **options):
    return samplers.singlestep(_predict, schedule, rule="noise", **options).step(z[:0], (), z, t, s)[0]


def _geometric(schedule, z, t, s):
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
    even = lambda nodes, low, high: [(high - low) * weight for weight in TEXTBOOK[len(nodes) - 1]]  # noqa: E731
    return _chains(samplers.lms(_predict, schedule), schedule, z, even)


def _run(sampler, z, times):
    memory, state = sampler.init(z), z
    for t, s in pairwise(times):
        state, memory = sampler.step(z[:0], memory, state, t, s)
    return state


@theorem(source="derived", schedule=straight_schedules, x0=vectors(2), eps=vectors(2), cases=100)
def solvers_are_exact_for_a_point(schedule, x0, eps):
    """Where the data is one point, every solver takes alpha_t x0 + sigma_t eps to alpha_s x0 + sigma_s eps in steps of any length."""
    times = jnp.asarray(TIMES, x0.dtype)[jnp.array([0, 2, 4])]
    p, q = at(schedule, times[0]), at(schedule, times[-1])
    point = lambda z, t: x0  # noqa: E731
    made = [samplers.lms(point, schedule, order=2), samplers.unipc(point, schedule)]
    ends = [_run(sampler, p.alpha * x0 + p.sigma * eps, times) for sampler in made]
    single = samplers.singlestep(point, schedule, order=3, rule="noise")
    ends.append(_run(single, p.alpha * x0 + p.sigma * eps, times[jnp.array([0, 2])]))
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
    return _scaled(schedule, z, times, _two), _scaled(straight, z, times, _two)


def _two(denoise, schedule):
    return [samplers.lms(denoise, schedule, order=2), samplers.unipc(denoise, schedule)]


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
