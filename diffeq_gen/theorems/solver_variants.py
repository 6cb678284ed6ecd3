"""Chapter 6, variants: eps_hat interpolated along another coordinate than its own, predictions cut, steps that choose their length.

z_s = alpha_s (z/alpha_t + sum_j w_j eps_j),        w_j = int_t^s L_j d rho,  rho = sigma/alpha
"""

import math
from itertools import pairwise

import jax
import jax.numpy as jnp

from diffeq_gen import samplers
from diffeq_gen.coordinates import NOISE
from diffeq_gen.samplers.singlestep import embedded
from diffeq_gen.schedules import Flow, at
from diffeq_gen.theorems.domains import earlier, positive, probabilities, schedules, smooth_schedules, times, vectors
from diffeq_gen.theorems.first_order import _ending, _move, _noise_in, _opening, _predict
from diffeq_gen.theorems.registry import theorem
from diffeq_gen.theorems.solver_algebra import TEXTBOOK, _run
from diffeq_gen.theorems.solver_exactness import TIMES, _quadrature
from diffeq_gen.theorems.solver_families import PARABOLAS, _integral, _polynomial, _Sigma

__all__: list[str] = []


def _lagrange_in_time(schedule, nodes, t, s):
    """int_t^s L_j(r) d rho(r) of the Lagrange polynomials of these times, by the slope of rho."""
    r, weights = _quadrature(t, s)
    rho = lambda r: schedule(r)[1] / schedule(r)[0]  # noqa: E731
    slopes = jax.vmap(lambda r: jax.jvp(rho, (r,), (jnp.ones_like(r),))[1])(r)
    parts = []
    for i, node in enumerate(nodes):
        others = [other for j, other in enumerate(nodes) if j != i]
        parts.append(jnp.sum(weights * slopes * math.prod((r - other) / (node - other) for other in others)))
    return parts


def _chain(sampler, schedule, z, integrals, *, steps):
    """(states of the sampler, states by weights of eps_hat that the times give)."""
    times = jnp.asarray(TIMES, z.dtype)
    memory, state, left, right, slopes = sampler.init(z), z, [], [], []
    for i in range(steps):
        p, q = at(schedule, times[i]), at(schedule, times[i + 1])
        moved, memory = sampler.step(z[:0], memory, state, times[i], times[i + 1])
        slopes.append(_noise_in(_predict(state, times[i]), state, p))
        weights = integrals(times[: i + 1], times[i], times[i + 1])[-len(slopes) :]
        right.append(q.alpha * (state / p.alpha + sum(w * d for w, d in zip(weights, slopes, strict=True))))
        left.append(moved)
        state = moved
    return left, right


@theorem(source="Zhang & Chen 2023 (DEIS), Eq. 15", schedule=smooth_schedules, z=vectors(2), cases=50)
def deis_by_its_integral(schedule, z):
    """DEIS weights eps_hat of the last steps by the integrals over rho = sigma/alpha of the Lagrange polynomials in t; its first step
    is DDIM, and so is each of its steps at order one."""
    integrals = lambda *ends: _lagrange_in_time(schedule, *ends)  # noqa: E731
    left, right = _chain(samplers.deis(_predict, schedule, order=2), schedule, z, integrals, steps=2)
    t, s = (jnp.asarray(end, z.dtype) for end in TIMES[:2])
    first, ddim = samplers.deis(_predict, schedule, order=1), samplers.ddim(_predict, schedule)
    return [*left, left[0], _move(first, z, z, t, s)], [*right, *[_move(ddim, z, z, t, s)] * 2]


@deis_by_its_integral.near_miss
def polynomials_in_rho(schedule, z):
    """LMS: the polynomials of sigma/alpha."""
    one, other = samplers.deis(_predict, schedule, order=2), samplers.lms(_predict, schedule, order=2)
    return [_run(sampler, z, jnp.asarray(TIMES[:3], z.dtype)) for sampler in (one, other)]


def _flow_integral(c, r):
    """int (c_0 + c_1 r + c_2 r^2 + c_3 r^3) d(r/(1 - r)), by u = 1 - r."""
    u = 1 - r
    log = jnp.log(u)
    return c[0] / u + c[1] * (1 / u + log) + c[2] * (1 / u + 2 * log - u) + c[3] * (1 / u + 3 * log - 3 * u + u**2 / 2)


def _cubic_in_time(c, z, order):
    """The last of four steps whose past is exact, where eps_hat is a cubic of t under the straight flow, and the solution."""
    denoise = lambda z, t: (z - t * _polynomial(c, t)) / (1 - t)  # noqa: E731
    sampler, times = samplers.deis(denoise, Flow(), order=order), jnp.asarray(TIMES, z.dtype)
    memory, state = sampler.init(z), z
    for t, s in pairwise(times):
        moved, memory = sampler.step(z[:0], memory, state, t, s)
        state = (1 - s) * (state / (1 - t) + _flow_integral(c, s) - _flow_integral(c, t))
    return moved, state


@theorem(source="Zhang & Chen 2023 (DEIS), Prop. 3", c=vectors(4, 2), z=vectors(2), cases=200)
def deis_is_exact_for_polynomials_of_time(c, z):
    """Where eps_hat is a cubic of t, DEIS of order 4 takes a step without error: int r^3 d(r/(1 - r)) holds a logarithm."""
    return _cubic_in_time(c, z, 4)


@deis_is_exact_for_polynomials_of_time.near_miss
def a_parabola_for_a_cubic(c, z):
    """One value less."""
    return _cubic_in_time(c, z, 3)


@theorem(source="Liu et al. 2022 (PNDM), Eq. 12; Zhang & Chen 2023, code", schedule=smooth_schedules, z=vectors(2), c=vectors(2, 2),
         cases=100)  # fmt: skip
def ipndm_is_lms_of_even_steps(schedule, z, c):
    """iPNDM weights eps_hat by 1, (3, -1)/2, (23, -16, 5)/12, (55, -59, 37, -9)/24 on any steps; on steps even in sigma/alpha that
    is LMS, on others a slope of eps_hat is missed by h (h_before - h)/2."""

    def textbook(nodes, t, s):
        return [(s / (1 - s) - t / (1 - t)) * weight for weight in TEXTBOOK[len(nodes) - 1]]

    left, right = _chain(samplers.ipndm(_predict, Flow()), Flow(), z, textbook, steps=4)
    even = [_even_steps(verb(_predict, _Sigma(), order=3), z) for verb in (samplers.ipndm, samplers.lms)]
    missed, solution, miss = _linear_slope(schedule, c, z)
    return [*left, even[0], missed], [*right, even[1], solution + miss]


def _even_steps(sampler, z):
    memory = sampler.init(z)
    for i in range(3):
        t, s = (jnp.asarray(0.9 - 0.2 * j, z.dtype) for j in (i, i + 1))
        z, memory = sampler.step(z[:0], memory, z, t, s)
    return z


def _linear_slope(schedule, c, z):
    """eps_hat = c_0 + c_1 rho: what iPNDM of order 2 makes of its second step, what is right, and the stated difference."""
    rho = lambda r: schedule(r)[1] / schedule(r)[0]  # noqa: E731
    denoise = lambda z, r: (z - schedule(r)[1] * _polynomial(c, rho(r))) / schedule(r)[0]  # noqa: E731
    sampler, (before, t, s) = samplers.ipndm(denoise, schedule, order=2), jnp.asarray(TIMES[1:4], z.dtype)
    _, memory = sampler.step(z[:0], sampler.init(z), z, before, t)
    solution = schedule(s)[0] * (z / schedule(t)[0] + _integral(c, rho(s)) - _integral(c, rho(t)))
    h, h_before = rho(s) - rho(t), rho(t) - rho(before)
    return sampler.step(z[:0], memory, z, t, s)[0], solution, schedule(s)[0] * c[1] * h * (h_before - h) / 2


@ipndm_is_lms_of_even_steps.near_miss
def on_uneven_steps_too(schedule, z, c):
    """iPNDM thought to integrate what its two values say on every grid."""
    missed, solution, _ = _linear_slope(schedule, c, z)
    return missed, solution


@theorem(
    source="Liu et al. 2022 (PNDM), Eq. 13", schedule=smooth_schedules, z=vectors(2), t=times, s=earlier("t"), cases=100
)
def pseudo_runge_kutta_by_hand(schedule, z, t, s):
    """The pseudo Runge-Kutta step is the rule of four stages with the middle half way in t; where t is sigma/alpha it is the true
    one."""
    p, middle, q = (at(schedule, r) for r in (t, (t + s) / 2, s))
    eps = lambda z, r: _noise_in(_predict(z, r.t), z, r)  # noqa: E731
    transfer = lambda e, r: r.alpha / p.alpha * z + (r.sigma - r.alpha / p.alpha * p.sigma) * e  # noqa: E731
    first = eps(z, p)
    second = eps(transfer(first, middle), middle)
    third = eps(transfer(second, middle), middle)
    fourth = eps(transfer(third, q), q)
    pseudo = lambda schedule: samplers.pseudo_runge_kutta(_predict, schedule)  # noqa: E731
    true = samplers.runge_kutta(_predict, _Sigma(), coordinate=NOISE)
    left = [_move(pseudo(schedule), z, z, t, s), _move(pseudo(_Sigma()), z, z, t, s)]
    return left, [transfer((first + 2 * second + 2 * third + fourth) / 6, q), _move(true, z, z, t, s)]


@pseudo_runge_kutta_by_hand.near_miss
def true_on_any_schedule(schedule, z, t, s):
    """Half way in t thought half way in sigma/alpha: the weights are Simpson's, the nodes are not."""
    rho = lambda r: schedule(r)[1] / schedule(r)[0]  # noqa: E731
    straight = lambda z, r: (z - schedule(r)[1] * rho(r)) / schedule(r)[0]  # noqa: E731
    right = schedule(s)[0] * (z / schedule(t)[0] + (rho(s) ** 2 - rho(t) ** 2) / 2)
    return _move(samplers.pseudo_runge_kutta(straight, schedule), z, z, t, s), right


@theorem(source="Saharia et al. 2022 (Imagen), Sec. 2.3", x0=vectors(5), share=probabilities, bound=positive("bounds", 0.25, 4.0),
         cases=500)  # fmt: skip
def thresholding_keeps_the_range(x0, share, bound):
    """Both ways of cutting leave a prediction within the range alone, and so cut once and for all; the dynamic one divides by what
    its share of the entries stays below."""
    dynamic, static = _cuts(share, bound)
    inside = bound * x0 / (1 + jnp.max(jnp.abs(x0)))
    reach = jnp.maximum(_quantile(x0, share), bound)
    left = [dynamic(inside), static(inside), dynamic(dynamic(x0)), static(static(x0)), dynamic(x0), static(x0)]
    right = [inside, inside, dynamic(x0), static(x0), bound * jnp.minimum(jnp.maximum(x0 / reach, -1), 1)]
    return left, [*right, jnp.sign(x0) * jnp.minimum(jnp.abs(x0), bound)]


def _cuts(share, bound):
    said = lambda z, t: z  # noqa: E731
    made = samplers.thresholded(said, share=share, bound=bound), samplers.clipped(said, bound=bound)
    return [lambda x0, one=one: one(x0, 0.5) for one in made]


def _quantile(x0, share):
    return jnp.interp((x0.size - 1) * share, jnp.arange(x0.size, dtype=x0.dtype), jnp.sort(jnp.abs(x0)))


@thresholding_keeps_the_range.near_miss(witness={"bound": 0.5})
def scaled_without_being_cut(x0, share, bound):
    """Divided by the quantile alone: what lies above it stays out of range."""
    return _cuts(share, bound)[0](x0), bound * x0 / jnp.maximum(_quantile(x0, share), bound)


@thresholding_keeps_the_range.near_miss(witness={"bound": 2.5})
def always_scaled_to_the_bound(x0, share, bound):
    """s not held above the bound: a prediction of small entries would be blown up to fill the range."""
    reach = _quantile(x0, share)
    return _cuts(share, bound)[0](x0), bound * jnp.minimum(jnp.maximum(x0 / reach, -1), 1)


@theorem(source="Song et al. 2023 (consistency models), Alg. 1", schedule=schedules, z=vectors(3), eps=vectors(3), t=times,
         s=earlier("t"), cases=500)  # fmt: skip
def consistency_by_name(schedule, z, eps, t, s):
    """`consistency` is a guess and fresh noise: the step of infinite overshoot, DDIM of the largest eta from pure noise, and at
    sigma_s = 0 the guess alone."""
    p, q, opened = at(schedule, t), at(schedule, s), _opening(schedule, t)
    made = [samplers.consistency(_predict, one) for one in (schedule, opened, _ending(schedule, s))]
    left = [_move(one, eps, z, t, s) for one in made]
    right = [samplers.first_order_step(_predict(z, t), z, eps, p, q, jnp.inf)]
    return left, [*right, _move(samplers.ddim(_predict, opened, eta=1.0), eps, z, t, s), q.alpha * _predict(z, t)]


@consistency_by_name.near_miss
def noise_of_the_time_left(schedule, z, eps, t, s):
    """sigma_t in the place of sigma_s."""
    q = at(schedule, s)
    right = q.alpha * _predict(z, t) + schedule(t)[1] * eps
    return _move(samplers.consistency(_predict, schedule), eps, z, t, s), right


@theorem(source="Karras et al. 2022, Alg. 1; Lu et al. 2022 (DPM-Solver), code", schedule=smooth_schedules, z=vectors(2), t=times,
         s=earlier("t"), cases=200)  # fmt: skip
def denoised_is_one_step_more(schedule, z, t, s):
    """`denoised` replaces the last state by x0_hat there, which is DDIM's next step, to pure data of scale one; no state before."""
    sampler = samplers.multistep(_predict, schedule)
    ended = lambda last: _move(samplers.denoised(sampler, _predict, last=last), z, z, t, s)  # noqa: E731
    state, rest = _move(sampler, z, z, t, s), s / 2

    def ending(r):
        """The schedule, bent to reach (1, 0) at `rest`."""
        left = (r - rest) / (s - rest)
        return left * schedule(s)[0] + (1 - left), left * schedule(s)[1]

    return [ended(s), ended(s), ended(rest)], [
        _predict(state, s),
        _move(samplers.ddim(_predict, ending), z, state, s, rest),
        state,
    ]


@denoised_is_one_step_more.near_miss
def prediction_of_the_step_before(schedule, z, t, s):
    """x0_hat of the time t at which the last step began: the data that DDIM steps towards."""
    sampler = samplers.ddim(_predict, schedule)
    return _move(samplers.denoised(sampler, _predict, last=s), z, z, t, s), _predict(z, t)


@theorem(
    source="Lu et al. 2022 (DPM-Solver), App. C", schedule=PARABOLAS, z=vectors(2), t=times, s=earlier("t"), cases=100
)
def embedded_steps_are_singlesteps(schedule, z, t, s):
    """The two states of DPM-Solver-12 are DDIM's and DPM-Solver-2's, those of -23 are DPM-Solver-2's with its stage at one third and
    DPM-Solver-3's, so that what the adaptive step takes for its error is the difference of two orders."""
    twelve = embedded(_predict, schedule, (1 / 2,))(z, t, s)
    twenty_three = embedded(_predict, schedule, (1 / 3, 2 / 3), rule="noise", fewest=2)(z, t, s)
    made = (
        samplers.ddim(_predict, schedule),
        samplers.singlestep(_predict, schedule),
        samplers.singlestep(_predict, schedule, rule="noise", r1=1 / 3),
        samplers.singlestep(_predict, schedule, rule="noise", order=3),
    )
    return [*twelve, *twenty_three], [_move(one, z, z, t, s) for one in made]


@embedded_steps_are_singlesteps.near_miss
def stage_of_the_other_pair(schedule, z, t, s):
    """The lower state of -23 taken for DPM-Solver-2 with its stage half way."""
    low = embedded(_predict, schedule, (1 / 3, 2 / 3), fewest=2)(z, t, s)[0]
    return low, _move(samplers.singlestep(_predict, schedule), z, z, t, s)
