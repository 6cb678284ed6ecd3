"""Chapter 5, first-order samplers, one step at a time: what DDIM, DDPM, churn, Euler and Heun are to one another.

    x0_hat = predict(z, t),    eps_hat = (z - alpha_t x0_hat) / sigma_t,    ratio = e^{-Delta/2} = sigma_s alpha_t / (alpha_s sigma_t)

`predict` stands for any prediction: a fixed smooth function that mixes coordinates and depends on the time.
"""

import itertools

import jax
import jax.numpy as jnp

from diffeq_gen import samplers
from diffeq_gen.schedules import Cosine, Flow, at
from diffeq_gen.theorems.domains import (
    earlier,
    scalars,
    schedules,
    smooth_schedules,
    times,
    vectors,
    vp_schedules,
)
from diffeq_gen.theorems.registry import theorem
from diffeq_gen.types import Point

__all__: list[str] = []


def _predict(z, t):
    """Any prediction."""
    return jnp.tanh(0.75 * z[::-1] + 2 * t) + 0.375 * z - t


def _move(sampler, eps, z, t, s):
    """z_s of one step, through the public face of a sampler: as many rows of noise as it asks for.

    An infinite result becomes nan, for no rounding bound decides between infinity and a number.
    """
    z_s = sampler.step(eps[None][: sampler.noises], sampler.init(z), z, t, s)[0]
    return z_s + 0 * z_s


def _noise_in(x0, z, p):
    """eps_hat, the noise that is left of z when x0_hat is taken out."""
    return (z - p.alpha * x0) / p.sigma


def _ratio(p, q):
    """e^{-Delta/2}, by products alone."""
    return q.sigma * p.alpha / (q.alpha * p.sigma)


def _ending(schedule, s):
    """The schedule made to end in pure data at s: sigma_s = 0, alpha_s as it was."""
    return lambda r: (schedule(r)[0], schedule(r)[1] * (r - s))


def _opening(schedule, t):
    """The schedule made to begin in pure noise at t: alpha_t = 0, sigma_t as it was."""
    return lambda r: (schedule(r)[0] * (t - r), schedule(r)[1])


@theorem(source="Song et al. 2021 (DDIM), Sec. 4.1; Lu et al. 2022 (DPM-Solver-1)",
         schedule=schedules, z=vectors(3), eps=vectors(3), t=times, s=earlier("t"))  # fmt: skip
def ddim_update(schedule, z, eps, t, s):
    """DDIM keeps x0_hat and eps_hat and moves the point: alpha_s x0_hat + sigma_s eps_hat, exact where x0_hat is the data,
    alpha_s x0_hat at sigma_s = 0, finite at alpha_t = 0, and sigma_s eps_hat back to alpha_s = 0."""
    p, q, x0 = at(schedule, t), at(schedule, s), _predict(z, t)
    noise, step = _noise_in(x0, z, p), samplers.ddim(_predict, schedule)
    point = samplers.ddim(lambda z, t: x0, schedule)
    last, first = samplers.ddim(_predict, _ending(schedule, s)), samplers.ddim(_predict, _opening(schedule, t))
    back = samplers.ddim(_predict, lambda r: (schedule(r)[0] * (r - s), schedule(r)[1]))
    opened = at(_opening(schedule, t), s)
    left = [_move(step, z, z, t, s)] * 3
    left += [_move(point, z, p.alpha * x0 + p.sigma * eps, t, s), _move(last, z, z, t, s), _move(first, z, z, t, s)]
    left.append(_move(back, z, z, t, s))
    right = [
        q.alpha * x0 + q.sigma * noise,
        q.sigma / p.sigma * z + (q.alpha - q.sigma / p.sigma * p.alpha) * x0,
        q.alpha / p.alpha * z + (q.sigma - q.alpha / p.alpha * p.sigma) * noise,
        q.alpha * x0 + q.sigma * eps,
        q.alpha * x0,
        opened.alpha * x0 + opened.sigma * z / p.sigma,
        q.sigma * (z - p.alpha * (t - s) * x0) / p.sigma,
    ]
    return left, right


@ddim_update.near_miss
def prediction_at_the_time_stepped_to(schedule, z, eps, t, s):
    """The network asked about the time it steps to, not the time z is at."""
    p, q, x0 = at(schedule, t), at(schedule, s), _predict(z, s)
    return _move(samplers.ddim(_predict, schedule), z, z, t, s), q.alpha * x0 + q.sigma * _noise_in(x0, z, p)


@ddim_update.near_miss
def alpha_of_the_current_time(schedule, z, eps, t, s):
    """alpha_t in front of x0_hat, as in a deployed step."""
    p, q, x0 = at(schedule, t), at(schedule, s), _predict(z, t)
    return _move(samplers.ddim(_predict, schedule), z, z, t, s), p.alpha * x0 + q.sigma * _noise_in(x0, z, p)


def _coordinates(p, a, b):
    """(m, clock) in which DDIM is Euler's rule for z/m with slope a x0_hat + b eps_hat."""
    m = b * p.alpha - a * p.sigma
    return m, (a * p.alpha + b * p.sigma) / ((a * a + b * b) * m)


@theorem(source="Gao et al. 2024, table of reparametrised sampling; generalised here", schedule=schedules, z=vectors(3),
         angle=scalars("angles of the upper half plane", 0.0, 3.141592653589793), t=times, s=earlier("t"))  # fmt: skip
def ddim_is_euler(schedule, z, angle, t, s):
    """For o = a x0 + b eps, m = b alpha - a sigma, DDIM is Euler's rule for z/m in the clock (a alpha + b sigma)/((a^2 + b^2) m);
    so for z/sigma in alpha/sigma, z/alpha in sigma/alpha, and z/(alpha + sigma) in sigma/(alpha + sigma)."""
    p, q, x0 = at(schedule, t), at(schedule, s), _predict(z, t)
    eps, step = _noise_in(x0, z, p), _move(samplers.ddim(_predict, schedule), z, z, t, s)
    a, b = jnp.cos(angle), jnp.sin(angle)
    (m, clock), (m_s, clock_s) = _coordinates(p, a, b), _coordinates(q, a, b)
    whole, whole_s = p.alpha + p.sigma, q.alpha + q.sigma
    right = [
        m_s * (z / m + (a * x0 + b * eps) * (clock_s - clock)),
        q.sigma * (z / p.sigma + x0 * (q.alpha / q.sigma - p.alpha / p.sigma)),
        q.alpha * (z / p.alpha + eps * (q.sigma / q.alpha - p.sigma / p.alpha)),
        whole_s * (z / whole + (eps - x0) * (q.sigma / whole_s - p.sigma / whole)),
    ]
    return [step] * 4, right


@ddim_is_euler.near_miss
def euler_in_log_snr(schedule, z, angle, t, s):
    """Euler's rule for z/alpha in half the log-SNR: the exponential integrator without its exponential."""
    p, q, x0 = at(schedule, t), at(schedule, s), _predict(z, t)
    slope = -p.sigma / p.alpha * _noise_in(x0, z, p)
    return _move(samplers.ddim(_predict, schedule), z, z, t, s), q.alpha * (
        z / p.alpha + slope * (q.log_snr - p.log_snr) / 2
    )


@ddim_is_euler.near_miss
def clock_of_another_row(schedule, z, angle, t, s):
    """The data prediction in the coordinates of the noise prediction."""
    p, q, x0 = at(schedule, t), at(schedule, s), _predict(z, t)
    right = q.alpha * (z / p.alpha + x0 * (q.sigma / q.alpha - p.sigma / p.alpha))
    return _move(samplers.ddim(_predict, schedule), z, z, t, s), right


@theorem(source="Gao et al. 2024, 'Flow matching sampler'; Liu et al. 2023", z=vectors(3), t=times, s=earlier("t"))
def ddim_equals_fm_euler(z, t, s):
    """Under the flow schedule DDIM, and `euler`, step by (s - t)(eps_hat - x0_hat), also from t = 1 and to s = 0 (where
    `heun` does too)."""
    ddim, euler, heun = (verb(_predict, Flow()) for verb in (samplers.ddim, samplers.euler, samplers.heun))
    x0, one, zero = _predict(z, t), jnp.ones_like(t), jnp.zeros_like(t)
    velocity = _noise_in(x0, z, Point(t, 1 - t, t, -one, one)) - x0
    inside, ending = z + (s - t) * velocity, z - t * velocity
    opening = z + (s - one) * (z - _predict(z, one))
    left = [_move(sampler, z, z, t, s) for sampler in (ddim, euler)]
    left += [_move(sampler, z, z, one, s) for sampler in (ddim, euler)]
    left += [_move(sampler, z, z, t, zero) for sampler in (ddim, euler, heun)]
    return left, [inside, inside, opening, opening, ending, ending, ending]


@ddim_equals_fm_euler.near_miss
def under_the_cosine_schedule_too(z, t, s):
    """DDIM is Euler's rule in t under every schedule: right only where alpha and sigma are linear in t."""
    ddim, euler = samplers.ddim(_predict, Cosine()), samplers.euler(_predict, Cosine())
    return _move(ddim, z, z, t, s), _move(euler, z, z, t, s)


@theorem(source="Salimans & Ho 2022, App. D", schedule=vp_schedules, z=vectors(2), t=times, s=earlier("t"))
def ddim_rotation_form(schedule, z, t, s):
    """Where alpha = cos(phi), sigma = sin(phi), DDIM turns (z, v_hat) by phi_t - phi_s; so equal steps of the angle give
    equal weight to every v_hat, up to a power of its cosine."""
    p, q, x0 = at(schedule, t), at(schedule, s), _predict(z, t)
    v = p.alpha * _noise_in(x0, z, p) - p.sigma * x0
    turn = jnp.arctan2(p.sigma, p.alpha) - jnp.arctan2(q.sigma, q.alpha)

    def from_v(z, r):
        alpha, sigma = Cosine()(r)
        return alpha * z - sigma * _predict(r * jnp.ones_like(z), r)

    state, share = z, (t - s) / 3
    grid = (t, t - share, t - 2 * share, t - 3 * share)
    for here, there in itertools.pairwise(grid):
        state = _move(samplers.ddim(from_v, Cosine()), z, state, here, there)
    cos, sin = jnp.cos(jnp.pi / 2 * share), jnp.sin(jnp.pi / 2 * share)
    vs = [_predict(r * jnp.ones_like(z), r) for r in grid[:-1]]
    chain = cos**3 * z - sin * (cos**2 * vs[0] + cos * vs[1] + vs[2])
    return [_move(samplers.ddim(_predict, schedule), z, z, t, s), state], [jnp.cos(turn) * z - jnp.sin(turn) * v, chain]


@ddim_rotation_form.near_miss
def tangent_in_place_of_the_rotation(schedule, z, t, s):
    """Euler's rule in the angle: z - (phi_t - phi_s) v_hat."""
    p, q, x0 = at(schedule, t), at(schedule, s), _predict(z, t)
    v = p.alpha * _noise_in(x0, z, p) - p.sigma * x0
    turn = jnp.arctan2(p.sigma, p.alpha) - jnp.arctan2(q.sigma, q.alpha)
    return _move(samplers.ddim(_predict, schedule), z, z, t, s), z - turn * v


def _size(t):
    """A change of scale kappa(t), and its slope through autodiff where it is asked for."""
    return jnp.exp(0.75 * jnp.sin(3 * t) + t)


@theorem(
    source="Gao et al. 2024, 'Sampling' (claim 2)", schedule=smooth_schedules, z=vectors(2), t=times, s=earlier("t")
)
def ddim_scale_invariance_euler_not(schedule, z, t, s):
    """(alpha, sigma, z) -> kappa (alpha, sigma, z) leaves a trajectory of `ddim` or `edm` what it was, in z/kappa; `euler`,
    which moves along d(alpha x0_hat + sigma eps_hat)/dt, gains (s - t) kappa' z."""
    rescaled = lambda r: tuple(_size(r) * part for part in schedule(r))  # noqa: E731
    predict = lambda z, r: _predict(z / _size(r), r)  # noqa: E731
    end, p, x0 = s / 2, at(schedule, t), _predict(z, t)
    left, right = [], []
    for verb in (samplers.ddim, samplers.edm):
        there, here = verb(predict, rescaled), verb(_predict, schedule)
        left.append(_move(there, z, _move(there, z, _size(t) * z, t, s), s, end) / _size(end))
        right.append(_move(here, z, _move(here, z, z, t, s), s, end))
    eps = _noise_in(x0, z, p)
    tangent = jax.jvp(
        lambda r: sum(c * part for c, part in zip(schedule(r), (x0, eps), strict=True)), (t,), (1 + 0 * t,)
    )[1]
    slope = jax.jvp(_size, (t,), (1 + 0 * t,))[1]
    left += [_move(samplers.euler(_predict, schedule), z, z, t, s)]
    left += [_move(samplers.euler(predict, rescaled), z, _size(t) * z, t, s)]
    return left, [*right, z + (s - t) * tangent, _size(t) * (z + (s - t) * tangent) + (s - t) * slope * z]


@ddim_scale_invariance_euler_not.near_miss
def euler_in_t_is_invariant(schedule, z, t, s):
    """Euler's rule of the probability flow in t, thought invariant because DDIM is."""
    rescaled = lambda r: tuple(_size(r) * part for part in schedule(r))  # noqa: E731
    predict = lambda z, r: _predict(z / _size(r), r)  # noqa: E731
    there = _move(samplers.euler(predict, rescaled), z, _size(t) * z, t, s)
    return there / _size(s), _move(samplers.euler(_predict, schedule), z, z, t, s)


def _flowing(schedule):
    """A prediction that reads z/(alpha + sigma) and sigma/(alpha + sigma), so that it is one function under all schedules."""

    def predict(z, r):
        alpha, sigma = schedule(r)
        return _predict(z / (alpha + sigma), sigma / (alpha + sigma))

    return predict


def _heun_by_hand(schedule, z, t, s, a, b):
    """Heun's rule for z/m with slope a x0_hat + b eps_hat."""
    p, q, predict = at(schedule, t), at(schedule, s), _flowing(schedule)
    (m, clock), (m_s, clock_s) = _coordinates(p, a, b), _coordinates(q, a, b)

    def slope(z, point):
        x0 = predict(z, point.t)
        return a * x0 + b * _noise_in(x0, z, point)

    first = slope(z, p)
    ahead = m_s * (z / m + first * (clock_s - clock))
    return ahead, m_s * (z / m + (first + slope(ahead, q)) / 2 * (clock_s - clock))


@theorem(source="Gao et al. 2024, comments and takeaways", kind="counterexample", schedule=smooth_schedules, z=vectors(2),
         t=times, s=earlier("t"))  # fmt: skip
def higher_order_depends_on_output(schedule, z, t, s):
    """Euler's rule for eps, x0 and eps - x0 is one and the same; Heun's is not: `edm` is Heun's for eps, `heun` under the
    flow schedule is Heun's for eps - x0."""
    predict, p, q = _flowing(schedule), at(schedule, t), at(schedule, s)
    whole, whole_s = p.alpha + p.sigma, q.alpha + q.sigma
    by_eps, by_x0, by_u = (_heun_by_hand(schedule, z, t, s, a, b) for a, b in ((0.0, 1.0), (1.0, 0.0), (-1.0, 1.0)))
    ddim, edm = (_move(verb(predict, schedule), z, z, t, s) for verb in (samplers.ddim, samplers.edm))
    flow = whole_s * _move(samplers.heun(_predict, Flow()), z, z / whole, p.sigma / whole, q.sigma / whole_s)
    return [ddim, ddim, ddim, edm, flow], [by_eps[0], by_x0[0], by_u[0], by_eps[1], by_u[1]]


@higher_order_depends_on_output.near_miss
def heun_is_the_same_for_every_output(schedule, z, t, s):
    """Heun's rule for x0_hat and for eps_hat, thought equal because Euler's are."""
    return _heun_by_hand(schedule, z, t, s, 1.0, 0.0)[1], _heun_by_hand(schedule, z, t, s, 0.0, 1.0)[1]


@theorem(source="Delbracio & Milanfar 2023 (InDI), Eq. 5; Heitz et al. 2023 (alpha-deblending)", z=vectors(3), t=times,
         s=earlier("t"))  # fmt: skip
def indi_is_fm_euler(z, t, s):
    """Under the flow schedule InDI's (delta/t) x0_hat + (1 - delta/t) z, and alpha-deblending's z + (t - s)(x0_hat - eps_hat), are
    Euler's rule."""
    x0 = _predict(z, t)
    blended = (z - (1 - t) * x0) / t
    step = _move(samplers.euler(_predict, Flow()), z, z, t, s)
    return [step, step], [(t - s) / t * x0 + (1 - (t - s) / t) * z, z + (t - s) * (x0 - blended)]


@indi_is_fm_euler.near_miss
def share_of_the_whole_path(z, t, s):
    """The share delta of the whole path, in place of the share delta/t of what remains: right at t = 1."""
    return _move(samplers.euler(_predict, Flow()), z, z, t, s), (t - s) * _predict(z, t) + (1 - (t - s)) * z
