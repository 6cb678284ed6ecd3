"""Chapter 6, solvers that add noise: the reverse SDE by interpolation, noise of one path, laws of order two.

(z_s/alpha_s) e^{Y_s} = (z_t/alpha_t) e^{Y_t} + int x0_hat d e^Y + noise,      2 Y = lambda + int eta^2 dlambda
"""

import math
from itertools import pairwise

import jax
import jax.numpy as jnp

from diffeq_gen import exact, samplers
from diffeq_gen.clocks import time_at
from diffeq_gen.schedules import Cosine, at
from diffeq_gen.theorems.domains import (
    gaussians,
    probabilities,
    scalars,
    smooth_schedules,
    times,
    vectors,
)  # fmt: skip
from diffeq_gen.theorems.first_order import _move, _predict, _size
from diffeq_gen.theorems.refinement import grids
from diffeq_gen.theorems.registry import theorem
from diffeq_gen.theorems.sampler_orders import _distance
from diffeq_gen.theorems.solver_exactness import TIMES, _cubic, _half, _rising
from diffeq_gen.theorems.solver_orders import _bent, _resting, _steps
from diffeq_gen.theorems.stochastic_steps import _rates, _root, _still, _variance
from diffeq_gen.types import Sampler

__all__: list[str] = []

LEVELS = scalars("noise levels", 0.0, 1.25)
LONG = scalars("shares of the time that is left", 0.25, 0.9)
"""Steps so long that what is taken for their noise has digits."""


def _stretched(t):
    """A path whose clock has a closed inverse and whose scale is its own."""
    return tuple(_size(t) * part for part in Cosine()(t))


_stretched.log_snr, _stretched.time_at = Cosine().log_snr, Cosine().time_at


def _clock(eta):
    """Y of a point, for a constant eta."""
    return lambda p: (1 + eta**2) * _half(p)


def _scale_clock(p):
    """Y = -log(phi) of ER-SDE's noise scale function phi = rho (e^{rho^0.3} + 10)."""
    rho = p.sigma / p.alpha
    return -jnp.log(rho * (jnp.exp(rho**0.3) + 10))


def _solution(c, clock, z, p, q):
    """The mean of z_s where x0_hat is a cubic of Y, from the antiderivative of x0_hat e^Y."""
    start, end = clock(p), clock(q)
    return q.alpha * jnp.exp(-end) * (z / p.alpha * jnp.exp(start) + _rising(c, end) - _rising(c, start))


def _last(make, schedule, c, clock, z):
    """Exact states that the solver only sees, and a last step that it takes without noise: left its own, right the solution."""
    sampler, times = make(lambda z, t: _cubic(c, clock(at(schedule, t)))), jnp.asarray(TIMES[1:], z.dtype)
    memory, still = sampler.init(z), jnp.zeros((1, 2), z.dtype)
    for t, s in pairwise(times[:3]):
        _, memory = sampler.step(still, memory, z, t, s)
        z = _solution(c, clock, z, at(schedule, t), at(schedule, s))
    p, q = (at(schedule, t) for t in times[2:])
    return sampler.step(still, memory, z, times[2], times[3])[0], _solution(c, clock, z, p, q)


def _parabola(c):
    return jnp.concatenate([c, 0 * c[:1]])


@theorem(source="derived; Lu et al. 2022 (DPM-Solver++), Sec. 5; Cui et al. 2023 (ER-SDE)", kind="in law",
         schedule=smooth_schedules, c=vectors(3, 2), z=vectors(2), eta=LEVELS, cases=150)  # fmt: skip
def sde_variation_of_constants(schedule, c, z, eta):
    """Where x0_hat is a parabola of Y = (lambda + int eta^2 dlambda)/2, a multistep solver of three steps takes one of the reverse
    SDE whose mean is exact, for constant eta and for ER-SDE's noise scale; its variance is sigma_s^2 (1 - e^-o)."""
    t, s = jnp.asarray(TIMES[2:4], z.dtype)
    p, q, c = at(schedule, t), at(schedule, s), _parabola(c)
    by_eta, by_scale = (
        (lambda denoise: samplers.multistep(denoise, schedule, order=3, eta=eta)),
        (lambda denoise: samplers.er_sde(denoise, schedule, order=3)),
    )
    pairs = [_last(by_eta, schedule, c, _clock(eta), z), _last(by_scale, schedule, c, _scale_clock, z)]
    left = [_variance(make(_still), 0 * z, t, s) for make in (by_eta, by_scale)]
    kept = [jnp.exp(2 * (clock(p) - _half(p) - clock(q) + _half(q))) for clock in (_clock(eta), _scale_clock)]
    right = [q.sigma**2 * (1 - share) for share in kept]
    return [left, *(pair[0] for pair in pairs)], [right, *(pair[1] for pair in pairs)]


@sde_variation_of_constants.near_miss
def integral_of_the_ode(schedule, c, z, eta):
    """The overshoot in the first-order step alone, the slope of x0_hat integrated as without noise."""
    t, s = jnp.asarray(TIMES[2:4], z.dtype)
    p, q, rate = at(schedule, t), at(schedule, s), 1 + eta**2
    begin, zero = _half(p), jnp.zeros_like(z)
    level, slope = c[0] + c[1] * rate * begin, c[1] * rate
    by_ddim = _solution(jnp.stack([-slope * begin, slope, zero, zero]), _half, zero, p, q)
    right = _solution(jnp.stack([level, zero, zero, zero]), _clock(eta), z, p, q) + by_ddim
    line = jnp.stack([c[0], c[1], zero, zero])
    return _solution(line, _clock(eta), z, p, q), right


@sde_variation_of_constants.near_miss
def eta_for_its_square(schedule, c, z, eta):
    """The overshoot eta Delta: right at eta = 0 and 1."""
    t, s = jnp.asarray(TIMES[2:4], z.dtype)
    p, q = at(schedule, t), at(schedule, s)
    kept = (q.sigma * p.alpha / (p.sigma * q.alpha)) ** (2 * eta)
    return _variance(samplers.multistep(_still, schedule, eta=eta), 0 * z, t, s), q.sigma**2 * (1 - kept)


def _kdiff(schedule, z, noises, eta, weigh):
    """k-diffusion's SDE samplers in x = z/alpha and l = log(alpha/sigma), `eta` theirs: the states after each step."""
    times = jnp.asarray(TIMES[1 : len(noises) + 2], z.dtype)
    points = [at(schedule, t) for t in times]
    x, seen, h_before, states = z / points[0].alpha, [], [], []
    for t, p, q, noise in zip(times[:-1], points[:-1], points[1:], noises, strict=True):
        h = _half(q) - _half(p)
        h_eta = h * (1 + eta)
        seen.insert(0, _predict(p.alpha * x, t))
        x = jnp.exp(-h_eta) * x - jnp.expm1(-h_eta) * seen[0] + weigh(h, h_eta, seen, h_before)
        x = x + q.sigma / q.alpha * jnp.sqrt(-jnp.expm1(-2 * eta * h)) * noise
        h_before.insert(0, h)
        states.append(q.alpha * x)
    return states


def _by_midpoint(h, h_eta, seen, h_before):
    return 0 if not h_before else -0.5 * jnp.expm1(-h_eta) * h / h_before[0] * (seen[0] - seen[1])


def _by_heun(h, h_eta, seen, h_before):
    return 0 if not h_before else (jnp.expm1(-h_eta) / h_eta + 1) * h / h_before[0] * (seen[0] - seen[1])


def _by_three(factor):
    """sample_dpmpp_3m_sde with its second difference times `factor`: they have 1, the integral has 2."""

    def weigh(h, h_eta, seen, h_before):
        if len(h_before) < 2:
            return _by_heun(h, h_eta, seen, h_before)
        r0, r1 = h_before[0] / h, h_before[1] / h
        d10, d11 = (seen[0] - seen[1]) / r0, (seen[1] - seen[2]) / r1
        d1, d2 = d10 + (d10 - d11) * r0 / (r0 + r1), (d10 - d11) / (r0 + r1)
        phi2 = jnp.expm1(-h_eta) / h_eta + 1
        return phi2 * d1 - factor * (phi2 / h_eta - 0.5) * d2

    return weigh


def _states(sampler, z, noises):
    """The states after each step of ours."""
    memory, states, times = sampler.init(z), [], jnp.asarray(TIMES[1 : len(noises) + 2], z.dtype)
    for noise, t, s in zip(noises, times[:-1], times[1:], strict=True):
        z, memory = sampler.step(noise[None], memory, z, t, s)
        states.append(z)
    return states


@theorem(source="k-diffusion sample_dpmpp_2m_sde and sample_dpmpp_3m_sde, quoted from memory", kind="in law",
         schedule=smooth_schedules, z=vectors(3), noises=vectors(3, 3), eta=LEVELS, cases=150)  # fmt: skip
def kdiff_sde_solvers(schedule, z, noises, eta):
    """k-diffusion's 2M-SDE, "midpoint" and "heun", is the two-step method of noise eta, where their eta is eta^2, weighted by
    "midpoint" and exactly; their 3M-SDE, which begins with the latter, is with the factor 2 that its second difference lacks the
    three-step one."""
    two = samplers.multistep(_predict, schedule, eta=eta, two_point="midpoint")
    three = samplers.multistep(_predict, schedule, order=3, eta=eta)
    left = _states(two, z, noises[:2]), _states(three, z, noises)
    right = _kdiff(schedule, z, noises[:2], eta**2, _by_midpoint), _kdiff(schedule, z, noises, eta**2, _by_three(2))
    return left, right


@kdiff_sde_solvers.near_miss
def their_eta_is_ours(schedule, z, noises, eta):
    """The same number handed to both."""
    ours = samplers.multistep(_predict, schedule, order=1, eta=eta)
    return _states(ours, z, noises[:1]), _kdiff(schedule, z, noises[:1], eta, _by_midpoint)


@kdiff_sde_solvers.near_miss
def third_order_as_shipped(schedule, z, noises, eta):
    """Their third order without the factor 2."""
    theirs = [_kdiff(schedule, z, 0 * noises, eta**2, _by_three(factor)) for factor in (2, 1)]
    return theirs[0], theirs[1]


@theorem(source="Cui et al. 2023 (ER-SDE-Solver), first order; its noise scale quoted from memory", kind="in law",
         schedule=smooth_schedules, z=vectors(3), eps=vectors(3), t=times, share=LONG, cases=200)  # fmt: skip
def er_sde_noise_scale(schedule, z, eps, t, share):
    """ER-SDE-1, z/alpha kept by phi_s/phi_t for any noise scale function phi of rho = sigma/alpha, is the exponential step with the
    overshoot N(lambda_s) - N(lambda_t), phi = rho e^(-N/2): it solves the reverse SDE of eta^2 = dN/dlambda with x0_hat frozen."""
    s = share * t
    p, q, x0 = at(schedule, t), at(schedule, s), _predict(z, t)
    by_phi = _by_noise_scale(x0, z, eps, p, q, 2)
    even = samplers.er_sde(_predict, schedule, order=1, noise=lambda log_snr: 0.5 * log_snr)
    frozen, far = samplers.er_sde(lambda z, t: x0, schedule, order=1), s / 2

    def moments(r):
        mean = _move(frozen, 0 * z, z, t, r)
        return mean, _variance(samplers.er_sde(_still, schedule, order=1), 0 * z, t, r)

    (mean, variance), (mean_dot, variance_dot) = jax.jvp(moments, (far,), (jnp.ones_like(t),))
    rho, rho_dot = jax.jvp(lambda l: jnp.exp(-l / 2), (at(schedule, far).log_snr,), (jnp.ones_like(t),))
    level = jnp.sqrt(-0.6 * rho**-0.7 * jnp.exp(rho**0.3) / (jnp.exp(rho**0.3) + 10) * rho_dot)
    drift, diffusion = _rates(schedule, x0, mean, far, level)
    contraction = (_rates(schedule, x0, 0 * z + 1, far, level)[0] - _rates(schedule, x0, 0 * z, far, level)[0])[0]
    left = [
        _move(samplers.er_sde(_predict, schedule, order=1), eps, z, t, s),
        _move(even, eps, z, t, s),
        mean_dot,
        variance_dot,
    ]
    right = [by_phi, _move(samplers.exponential(_predict, schedule, eta=math.sqrt(0.5)), eps, z, t, s), drift]
    return left, [*right, 2 * contraction * variance - diffusion**2]


def _by_noise_scale(x0, z, eps, p, q, power):
    """x_s = phi_s/phi_t x_t + (1 - phi_s/phi_t) x0_hat + sqrt(rho_s^2 - rho_t^2 (phi_s/phi_t)^2) eps,  x = z/alpha."""
    high, low = p.sigma / p.alpha, q.sigma / q.alpha
    kept = low / high * (jnp.exp(low**0.3) + 10) / (jnp.exp(high**0.3) + 10)
    fresh = _root(low**2 - high**2 * kept**power)
    return q.alpha * (kept * z / p.alpha + (1 - kept) * x0 + fresh * eps)


@er_sde_noise_scale.near_miss
def variance_kept_by_phi(schedule, z, eps, t, share):
    """The variance kept by phi_s/phi_t, and not by its square."""
    right = _by_noise_scale(_predict(z, t), z, eps, at(schedule, t), at(schedule, share * t), 1)
    return _move(samplers.er_sde(_predict, schedule, order=1), eps, z, t, share * t), right


def _path(eta, order, z, c, t, s, draws):
    """(stages, end) of one singlestep step, x0_hat being linear in log-SNR whatever z."""
    seen = []

    def denoise(z, r):
        seen.append(z)
        return c[0] + c[1] * _half(at(_stretched, r))

    end = samplers.singlestep(denoise, _stretched, order=order, eta=eta).step(draws, (), z, t, s)[0]
    return jnp.stack([*seen[1:], end])


def _ou(eta, start, nodes):
    """Cov of eta int sqrt(2) e^(-eta^2 (l_r - l)) dW_l at the nodes: what an Ornstein-Uhlenbeck process at rest has, less what is
    left of its beginning."""
    a, b = (nodes - start)[:, None], (nodes - start)[None, :]
    return jnp.exp(-(eta**2) * jnp.abs(a - b)) - jnp.exp(-(eta**2) * (a + b))


@theorem(source="derived; the law of an Ornstein-Uhlenbeck process", kind="in law", z=vectors(2), c=vectors(2, 2),
         eta=scalars("noise levels", 0.25, 1.25), t=scalars("late times", 0.4, 0.9), share=LONG, cases=100)  # fmt: skip
def noise_of_one_path(z, c, eta, t, share):
    """The stages and the end of a singlestep solver with noise have the joint covariance of the reverse SDE at their times, one
    Brownian path running through them; and where x0_hat is linear in log-SNR its end has the exact mean."""
    joint, known = _covariances(eta, 3, (1 / 3, 2 / 3, 1), t, share * t)
    end = _path(eta, 2, z, c, t, share * t, jnp.zeros((2, 2), z.dtype))[-1]
    in_clock = jnp.stack([c[0], c[1] / (1 + eta**2), 0 * z, 0 * z])
    return [joint, end], [known, _solution(in_clock, _clock(eta), z, at(_stretched, t), at(_stretched, share * t))]


def _covariances(eta, order, shares, t, s):
    """(Cov of the stages and the end by the response to each draw, that of the process)."""
    draws, zero = jnp.zeros(order, t.dtype), jnp.zeros((2, 2), t.dtype)
    path = lambda draws: _path(eta, order, zero[0], zero, t, s, jnp.stack([draws, draws], axis=1))[:, 0]  # noqa: E731
    rows, p, q = jax.jacfwd(path)(draws), at(_stretched, t), at(_stretched, s)
    nodes = jnp.stack([_half(p) + share * (_half(q) - _half(p)) for share in shares])
    sigmas = jnp.stack([_stretched(time_at(_stretched, 2 * node))[1] for node in nodes])
    return jnp.matmul(rows, rows.T), sigmas[:, None] * sigmas[None, :] * _ou(eta, _half(p), nodes)


@noise_of_one_path.near_miss
def a_draw_for_the_stage_and_another_for_the_step(z, c, eta, t, share):
    """Stage and end with the right variances and no covariance: two independent draws, as without a Brownian tree."""
    joint, known = _covariances(eta, 2, (1 / 2, 1), t, share * t)
    return joint * jnp.eye(2, dtype=t.dtype), known


@noise_of_one_path.near_miss
def one_draw_for_both(z, c, eta, t, share):
    """The stage's draw used again for the whole step: covariance equal to the product of the deviations."""
    joint, known = _covariances(eta, 2, (1 / 2, 1), t, share * t)
    std = jnp.sqrt(jnp.diag(joint))
    return std[:, None] * std[None, :], known


@noise_of_one_path.near_miss
def path_in_the_clock_of_sigma(z, c, eta, t, share):
    """Increments of a Brownian path in sigma/alpha, scaled to the deviations of stage and step, as k-diffusion draws them (from
    memory): their covariance is right to leading order only, for the clock of this noise is (alpha/sigma)^(2 eta^2)."""
    joint, known = _covariances(eta, 2, (1 / 2, 1), t, share * t)
    high, low = (p.sigma / p.alpha for p in (at(_stretched, t), at(_stretched, share * t)))
    std, cosine = jnp.sqrt(jnp.diag(joint)), jnp.sqrt((high - jnp.sqrt(high * low)) / (high - low))
    return std[:, None] * std[None, :] * (jnp.eye(2, dtype=t.dtype) * (1 - cosine) + cosine), known


def _linear(world):
    """x0_hat of independent Gaussian coordinates: the mean and the diagonal of the world's covariance."""
    v = jnp.diag(world.cov)

    def denoise(z, t):
        alpha, sigma = _stretched(t)
        return world.mean + alpha * v / (alpha**2 * v + sigma**2) * (z - alpha * world.mean)

    return denoise


def _law_of_the_sde(world, z, p, q, eta):
    """The reverse SDE from z at p: about the marginal's mean it keeps (V_s/V_t)^(1/2) e^(-eta^2 L/2), L = int dlambda/(1 + v e^lambda)
    = [-log(e^-lambda + v)], and of the marginal's variance it has what this keeping leaves."""
    v = jnp.diag(world.cov)
    var_t, var_s = (r.alpha**2 * v + r.sigma**2 for r in (p, q))
    forgotten = jnp.log((jnp.exp(-p.log_snr) + v) / (jnp.exp(-q.log_snr) + v))
    kept = jnp.sqrt(var_s / var_t) * jnp.exp(-(eta**2) / 2 * forgotten)
    mean = q.alpha * world.mean + kept * (z - p.alpha * world.mean)
    return exact.Gaussian(mean, jnp.diag(var_s - kept**2 * var_t))


def _law_errors(made, world, z, eta):
    """Distance of the law of each sampler at 0.35, begun in z at 0.65, from that of the SDE: shape (sizes, samplers)."""
    p, q = (at(_stretched, jnp.asarray(end, z.dtype)) for end in (0.65, 0.35))
    known, none = _law_of_the_sde(world, z, p, q, eta), jnp.zeros((2, 2), z.dtype)
    times = 0.65 - 0.3 * _bent(grids(0, 1, z.dtype))
    laws = [
        jax.vmap(lambda grid, one=one: samplers.law(_resting(one), z + 0 * grid[0], none + 0 * grid[0], grid))(times)
        for one in made
    ]
    return jnp.stack([jax.vmap(lambda law: _distance(law, known))(law) for law in laws], axis=1)


@theorem(source="Lu et al. 2022 (DPM-Solver++), SDE solvers; Xue et al. 2023 (SA-Solver)", kind="order", order=2,
         world=gaussians(2, low=0.5, high=2.0), z=vectors(2), eta=probabilities, cases=4,
         precisions=("float64",))  # fmt: skip
def stochastic_law_orders(world, z, eta):
    """From any point, the laws of 2M-SDE, of 2S-SDE with noise of one path, and of one step corrected with its own noise, err by
    O(h^2) from that of the reverse SDE on Gaussian data."""
    denoise = _linear(world)
    made = [
        samplers.multistep(denoise, _stretched, eta=eta, two_point="midpoint"),
        samplers.singlestep(denoise, _stretched, eta=eta),
        samplers.multistep(denoise, _stretched, order=1, corrector=True, eta=eta),
    ]
    return _steps(z), jnp.sum(_law_errors(made, world, z, eta), axis=1)


@stochastic_law_orders.near_miss(order=3)
def third_order_with_noise(world, z, eta):
    """Order three of three stages: a polynomial in log-SNR does not follow a path that is rough."""
    made = [samplers.singlestep(_linear(world), _stretched, order=3, eta=1 + 0 * eta)]
    return _steps(z), _law_errors(made, world, z, 1 + 0 * eta)[:, 0]


@stochastic_law_orders.near_miss
def independent_draws(world, z, eta):
    """2S-SDE with one draw for the stage and another for the step: order one, no better than a step without a stage."""
    denoise = _linear(world)
    whole, still = samplers.singlestep(denoise, _stretched, eta=eta), samplers.singlestep(_still, _stretched, eta=eta)

    def step(noise, memory, z, t, s):
        stage, none = jnp.stack([noise[0], 0 * z]), jnp.zeros_like(z)
        same = still.step(stage, (), none, t, s)[0]  # what the stage's draw has in the step's noise
        fresh = samplers.first_order_step(
            none, none, noise[1], at(_stretched, t), at(_stretched, s), _overshoot(eta, t, s)
        )
        return whole.step(stage, (), z, t, s)[0] - same + fresh, memory

    return _steps(z), _law_errors([Sampler(lambda z: (), step, 2)], world, z, eta)[:, 0]


def _overshoot(eta, t, s):
    return 2 * eta**2 * (_half(at(_stretched, s)) - _half(at(_stretched, t)))
