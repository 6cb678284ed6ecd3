"""The laws that any sampler owes, ours or yours: `about("sampler")`.

    method : (denoise, schedule) -> Sampler,      law(step)(q(z_t)) = q(z_s) + O((t - s)^2),      law(run)(q(z_1)) = q(z_0) + O(h^p)

A sampler that asks for no noise is followed particle by particle, against the flow map of Gaussian data; one that does, in
its exact law.  An order is at least what is claimed: better ones are counted as that one.  Five laws hold by declaration
only: "exact-for-a-point", "scale-invariant", "order-2", "order-3", "order-4".
"""

import itertools
import math

import jax
import jax.numpy as jnp

from diffeq_gen import exact, samplers
from diffeq_gen.samplers.conformance import Method
from diffeq_gen.samplers.loop import taken
from diffeq_gen.samplers.runge_kutta import Tableau
from diffeq_gen.schedules import at
from diffeq_gen.theorems.domains import Domain, gaussians, scalars, smooth_schedules, vectors
from diffeq_gen.theorems.refinement import grids
from diffeq_gen.theorems.registry import theorem
from diffeq_gen.theorems.sampler_orders import _distance
from diffeq_gen.theorems.solver_families import PARABOLAS
from diffeq_gen.theorems.solver_orders import _bent, _resting
from diffeq_gen.types import Denoiser, Sampler, Schedule, pytree, static

__all__ = ["Configured"]

ENDS = (0.65, 0.35)
SIZES = (16, 64, 256, 1024)

FLOOR, LEEWAY = 1e-4, 8.0
"""Errors at the coarsest grid are taken eightfold, and to be at least this share of z: there the next terms of the error may hide
most of the first, so that its constant seems to grow.  Of an order one less it grows 64-fold over the grids, and 256-fold over
the single steps."""

SHARE_OF_FOURTH = 0.1
"""Of that floor where order 4 is claimed, on schedules of parabolic log-SNR: there 360 random cases of four methods of order 4
keep to 0.3 of their bound, and each of 60 sets of six cases refutes four methods of order 3, by more than five bounds."""


@pytree
class Configured:
    """A method with its options bound: ``Configured(ddim, (("eta", 0.5),))``."""

    build: Method = static()
    options: tuple[tuple[str, float | str | Tableau], ...] = static(default=())

    def __call__(self, denoise: Denoiser, schedule: Schedule) -> Sampler:
        return self.build(denoise, schedule, **dict(self.options))


def _of(*methods, assumes=()):
    """The domain of these methods, in whose place a user puts one that may declare as much of itself."""
    made = [Domain(str(one), 0, lambda u, case, one=one: one, "sampler", assumes) for one in methods]
    several = tuple(made) if len(made) > 1 else ()
    return Domain(f"samplers: {', '.join(map(str, methods))}", 0, made[0].build, "sampler", assumes, several)


def _gentle():
    """A gentle schedule that is not in question here: what is said of ours under a schedule of one's own stands elsewhere."""
    return Domain(smooth_schedules.name, smooth_schedules.size, smooth_schedules.build)


DDIM, NOISY = Configured(samplers.ddim), Configured(samplers.ddim, (("eta", 0.75),))
DDPM, HEUN = Configured(samplers.ddpm), Configured(samplers.heun)
GENTLE, WORLDS = _gentle(), gaussians(2, low=0.5, high=2.0)
MIDDLE, TIMES = scalars("middle times", 0.3, 0.7), scalars("times from 0.05 to 0.95", 0.05, 0.95)
EARLIER = Domain("times earlier than t by 2 to 98 percent", 1, lambda u, case: case["t"] * (0.02 + 0.96 * u[:, 0]))


def _mixed(z, t):
    """Any prediction, each row by itself."""
    return jnp.tanh(0.75 * z[..., ::-1] + 2 * t) + 0.375 * z - t


def _noise(made, eps, i):
    """The rows of noise of the i-th step, all different."""
    return (
        jnp.stack([eps / (i + k + 1) for k in range(made.noises)])
        if made.noises
        else jnp.zeros((0, *eps.shape), eps.dtype)
    )


def _chain(made, eps, z, grid):
    """Every state of a short run; an infinite one becomes nan."""
    memory, states = made.init(z), []
    for i, (t, s) in enumerate(itertools.pairwise(grid)):
        z, memory = taken(_noise(made, eps, i), made, memory, z, t, s)
        states.append(z + 0 * z)
    return states


def _between(t, s):
    """Two uneven steps from t to s."""
    return t, (2 * t + s) / 3, s


def _altered(method, alter):
    """The method whose steps are `alter(noise, step, memory, z, t, s)`."""

    def build(denoise, schedule):
        made = method(denoise, schedule)
        return Sampler(made.init, lambda noise, *case: alter(noise, made.step, *case), made.noises)

    return build


def _at_best(order, steps, errors, size, floor=FLOOR):
    """(steps, errors), where they are made to fall no faster than h^order: of that slope exactly if they are O(h^order)."""
    known = [LEEWAY * errors[0] + floor * size]
    for shrunk, error in zip((steps[1:] / steps[:-1]) ** order, errors[1:], strict=True):
        known.append(jnp.maximum(error, shrunk * known[-1]))
    return steps, jnp.stack(known)


def _sum_over_corners(missed, z):
    """Of three particles that an affine map is known by: all of one's errors may change sign at once, hardly those of three."""
    corners = z[None] + 2 * (1 + jnp.max(jnp.abs(z))) * jnp.eye(3, 2, dtype=z.dtype)
    return jnp.sum(jnp.abs(jax.vmap(missed)(corners)))


def _size(made, z, start):
    """How large that is of which errors are a share: the law that a noisy sampler starts from, or those particles."""
    return jnp.sum(jnp.abs(start.mean)) + jnp.sum(jnp.abs(start.cov)) if made.noises else 1 + jnp.sum(jnp.abs(z))


def _one_step(method, schedule, world, z, t):
    """Of steps of falling length from t: how far they miss the flow map or, where they are noisy, the marginal."""
    made, p, start = (
        method(exact.denoiser(world, schedule), schedule),
        at(schedule, t),
        exact.marginal(world, at(schedule, t)),
    )
    steps = jnp.asarray([2.0**-k for k in (4, 6, 8, 10, 12)], t.dtype)

    def error(h):
        q = at(schedule, t - h)
        if made.noises:
            return _distance(samplers.law(made, start.mean, start.cov, jnp.stack([t, t - h])), exact.marginal(world, q))
        move = lambda z: _chain(made, z, z, (t, t - h))[0]  # noqa: E731
        return _sum_over_corners(lambda z: move(z) - exact.flow_map(world, z, p, q), z)

    return _at_best(2, steps, jax.vmap(error)(steps), _size(made, z, start))


@theorem(source="the definition of a consistent one-step method; Song et al. 2021 (score_sde), App. D", kind="order", order=2,
         sampler=_of(DDPM, DDIM), schedule=GENTLE, world=WORLDS, z=vectors(2), t=MIDDLE, cases=8,
         precisions=("float64",))  # fmt: skip
def one_step_keeps_the_marginals(sampler, schedule, world, z, t):
    """One step from t to s on Gaussian data tends to no change, and to first order to the velocity u where it asks for no noise,
    else to a drift and variance under which q(z_s) has the mean and covariance that it has: it errs by O((t - s)^2)."""
    return _one_step(sampler, schedule, world, z, t)


@one_step_keeps_the_marginals.near_miss
def drift_with_its_sign_flipped(sampler, schedule, world, z, t):
    """Steps taken towards more noise."""

    def flipped(noise, step, memory, z, t, s):
        moved, memory = step(noise, memory, z, t, s)
        return 2 * z - moved, memory

    return _one_step(_altered(samplers.ddim, flipped), schedule, world, z, t)


@one_step_keeps_the_marginals.near_miss
def noise_by_twice_the_variance(sampler, schedule, world, z, t):
    """Noise of variance 2 g^2 dt, as in a deployed step: right for one that asks for none."""
    louder = lambda noise, step, memory, z, t, s: step(math.sqrt(2) * noise, memory, z, t, s)  # noqa: E731
    return _one_step(_altered(sampler, louder), schedule, world, z, t)


@one_step_keeps_the_marginals.near_miss
def alpha_of_the_time_left(sampler, schedule, world, z, t):
    """alpha_t in front of x0_hat for alpha_s, as in a deployed step."""

    def step(denoise, schedule, z, t, s):
        p, q, x0 = at(schedule, t), at(schedule, s), denoise(z, t)
        return p.alpha * x0 + q.sigma * (z - p.alpha * x0) / p.sigma

    return _one_step(samplers.stateless(step), schedule, world, z, t)


def _run(method, schedule, world, z, order):
    """Of runs over grids of uneven steps, ever finer: how far they miss the flow map or, where noisy, the marginal."""
    made = method(exact.denoiser(world, schedule), schedule)
    p, q = (at(schedule, jnp.asarray(end, z.dtype)) for end in ENDS)
    times = ENDS[0] + (ENDS[1] - ENDS[0]) * _bent(grids(0, 1, z.dtype, sizes=SIZES))
    start, known = exact.marginal(world, p), exact.marginal(world, q)

    def error(grid):
        if made.noises:
            return _distance(samplers.law(_resting(made), start.mean, start.cov, grid), known)
        run = lambda z: samplers.sample(jax.random.key(0), _resting(made), z, grid)  # noqa: E731
        return _sum_over_corners(lambda z: run(z) - exact.flow_map(world, z, p, q), z)

    floor = FLOOR * (SHARE_OF_FOURTH if order == 4 else 1)
    return _at_best(order, 1 / jnp.asarray(SIZES, z.dtype), jax.vmap(error)(times), _size(made, z, start), floor)


@theorem(source="Song et al. 2021 (score_sde), Sec. 4; Maoutsa et al. 2020", kind="order", order=1, sampler=_of(NOISY),
         schedule=GENTLE, world=WORLDS, z=vectors(2), cases=6, precisions=("float64",))  # fmt: skip
def a_run_tends_to_the_marginals(sampler, schedule, world, z):
    """Over ever finer grids of uneven steps the errors of a run on Gaussian data fall at least as h."""
    return _run(sampler, schedule, world, z, 1)


@a_run_tends_to_the_marginals.near_miss
def each_step_forgets_what_it_has(sampler, schedule, world, z):
    """Denoise and noise again: what no grid makes right."""

    def step(noise, denoise, schedule, z, t, s):
        q = at(schedule, s)
        return q.alpha * denoise(z, t) + q.sigma * noise[0]

    return _run(samplers.stateless(step, noises=1), schedule, world, z, 1)


@theorem(source="Karras et al. 2022, App. B.2; Lu et al. 2022 (DPM-Solver), Thm 3.2", kind="order", order=2,
         sampler=_of(HEUN, assumes=("order-2",)), schedule=GENTLE, world=WORLDS, z=vectors(2), cases=6,
         precisions=("float64",))  # fmt: skip
def a_run_is_of_second_order(sampler, schedule, world, z):
    """Over ever finer grids of uneven steps the errors of a run on Gaussian data fall at least as h^2, if that is claimed."""
    return _run(sampler, schedule, world, z, 2)


@a_run_is_of_second_order.near_miss
def second_slope_of_the_first_prediction(sampler, schedule, world, z):
    """The rule whose later evaluations return the first, as in a deployed sampler: order one."""

    def stale(denoise, schedule):
        def step(noise, memory, z, t, s):
            x0 = denoise(z, t)
            return sampler(lambda z, t: x0, schedule).step(noise, memory, z, t, s)

        return Sampler(sampler(denoise, schedule).init, step)

    return _run(stale, schedule, world, z, 2)


@theorem(source="Lu et al. 2022 (DPM-Solver), Thm 3.2; Zhao et al. 2023 (UniPC), Thm 3.1", kind="order", order=3,
         sampler=_of(Configured(samplers.unipc), assumes=("order-3",)), schedule=GENTLE, world=WORLDS, z=vectors(2), cases=6,
         precisions=("float64",))  # fmt: skip
def a_run_is_of_third_order(sampler, schedule, world, z):
    """Over ever finer grids of uneven steps the errors of a run on Gaussian data fall at least as h^3, if that is claimed."""
    return _run(sampler, schedule, world, z, 3)


@a_run_is_of_third_order.near_miss
def begun_by_a_step_of_first_order(sampler, schedule, world, z):
    """A three-step method begun by its own lower orders: order two, that of its first step."""
    return _run(Configured(samplers.multistep, (("order", 3),)), schedule, world, z, 3)


@theorem(source="Butcher 1963; Hairer, Norsett & Wanner 1993, Thm II.3.4", kind="order", order=4,
         sampler=_of(Configured(samplers.runge_kutta), assumes=("order-4",)), schedule=PARABOLAS, world=WORLDS, z=vectors(2),
         cases=6, precisions=("float64",))  # fmt: skip
def a_run_is_of_fourth_order(sampler, schedule, world, z):
    """Over ever finer grids of uneven steps the errors of a run on Gaussian data fall at least as h^4, if that is claimed."""
    return _run(sampler, schedule, world, z, 4)


@a_run_is_of_fourth_order.near_miss
def three_stages(sampler, schedule, world, z):
    """Kutta's rule of three stages, whose quadrature is Simpson's too: order three."""
    kutta = Tableau(((1 / 2,), (-1.0, 2.0)), (1 / 6, 2 / 3, 1 / 6))
    return _run(Configured(samplers.runge_kutta, (("tableau", kutta),)), schedule, world, z, 4)


@theorem(source="Song et al. 2021 (DDIM), Lemma 1; Lu et al. 2022 (DPM-Solver)", kind="in law",
         sampler=_of(NOISY, DDIM, assumes=("exact-for-a-point",)), schedule=GENTLE, x0=vectors(2), eps=vectors(2), t=TIMES,
         s=EARLIER, cases=200)  # fmt: skip
def a_point_keeps_its_law(sampler, schedule, x0, eps, t, s):
    """Where x0_hat is the data, steps of any size carry alpha_t x0 + sigma_t eps to alpha_s x0 + sigma_s eps, or in law, if that is
    claimed; if it is not, `one-step-keeps-the-marginals` says it to first order."""
    made, grid = sampler(lambda z, t: x0, schedule), _between(t, s)
    p, *rest = (at(schedule, r) for r in grid)
    if not made.noises:
        return _chain(made, eps, p.alpha * x0 + p.sigma * eps, grid), [q.alpha * x0 + q.sigma * eps for q in rest]
    eye = jnp.eye(2, dtype=t.dtype)
    law = samplers.law(made, p.alpha * x0, p.sigma**2 * eye, jnp.stack(grid))
    return law, (rest[-1].alpha * x0, rest[-1].sigma ** 2 * eye)


@a_point_keeps_its_law.near_miss
def euler_in_time(sampler, schedule, x0, eps, t, s):
    """Euler's rule in t, exact where alpha and sigma are linear in t and nowhere else."""
    return a_point_keeps_its_law.claim(samplers.euler, schedule, x0, eps, t, s)


@a_point_keeps_its_law.near_miss
def variance_of_the_transition(sampler, schedule, x0, eps, t, s):
    """DDPM with the variance of q(z_t | z_s) for that of the bridge."""
    return a_point_keeps_its_law.claim(Configured(samplers.ddpm, (("variance", 1.0),)), schedule, x0, eps, t, s)


@theorem(source="Gao et al. 2024, 'Sampling' (claim 2); Karras et al. 2022, Sec. 2",
         sampler=_of(NOISY, assumes=("scale-invariant",)), schedule=GENTLE, eps=vectors(2), z=vectors(2), t=TIMES, s=EARLIER,
         cases=200, precisions=("float64",))  # fmt: skip
def a_straight_twin_has_the_same_states(sampler, schedule, eps, z, t, s):
    """Under the schedule (alpha, sigma)/(alpha + sigma), whose curve is that of the flow, every z/(alpha + sigma) is what it was, if
    that is claimed."""
    whole, grid = lambda r: sum(schedule(r)), _between(t, s)
    straight = lambda r: tuple(part / whole(r) for part in schedule(r))  # noqa: E731
    here = _chain(sampler(_mixed, schedule), eps, z, grid)
    there = _chain(sampler(lambda z, t: _mixed(whole(t) * z, t), straight), eps, z / whole(t), grid)
    return there, [state / whole(r) for state, r in zip(here, grid[1:], strict=True)]


@a_straight_twin_has_the_same_states.near_miss
def euler_has_a_twin(sampler, schedule, eps, z, t, s):
    """Euler's rule in t, whose steps depend on the scale of z."""
    return a_straight_twin_has_the_same_states.claim(samplers.euler, schedule, eps, z, t, s)


@theorem(source="a step is of one sample: many are `jax.vmap`, or more rows", sampler=_of(NOISY), schedule=GENTLE,
         eps=vectors(2, 2), z=vectors(2, 2), t=TIMES, s=EARLIER, cases=200, precisions=("float64",))  # fmt: skip
def rows_do_not_mix(sampler, schedule, eps, z, t, s):
    """Where the denoiser sees each row by itself so does a step: a batch is stepped as its rows are, by the same noise."""
    made, grid = sampler(_mixed, schedule), _between(t, s)
    rows = [_chain(made, *pair, grid) for pair in zip(eps, z, strict=True)]
    return _chain(made, eps, z, grid), [jnp.stack(states) for states in zip(*rows, strict=True)]


@rows_do_not_mix.near_miss
def norm_over_the_batch(sampler, schedule, eps, z, t, s):
    """A norm of all that is handed in, where each row has its own: as in a deployed step."""

    def scaled(noise, step, memory, z, t, s):
        moved, memory = step(noise, memory, z, t, s)
        return moved * (1 + t * jnp.sqrt(jnp.mean(z**2))), memory

    return rows_do_not_mix.claim(_altered(sampler, scaled), schedule, eps, z, t, s)


@theorem(source="the moments of an affine map", sampler=_of(NOISY), schedule=GENTLE, eps=vectors(2, 2),
         z=vectors(2, 2), share=scalars("shares", -1.0, 2.0), t=TIMES, s=EARLIER, cases=200, precisions=("float64",))  # fmt: skip
def a_step_is_affine_where_its_denoiser_is(sampler, schedule, eps, z, share, t, s):
    """Where the denoiser is affine in z a step is affine in z and noise, so that its law on Gaussian data is exactly known: what
    clips or rescales belongs into the denoiser."""
    made, grid = sampler(lambda z, t: t * z[::-1] - 0.5 * z + 1, schedule), _between(t, s)
    one, other = (_chain(made, *pair, grid) for pair in zip(eps, z, strict=True))
    blend = lambda a, b: share * a + (1 - share) * b  # noqa: E731
    return _chain(made, blend(*eps), blend(*z), grid), [blend(*states) for states in zip(one, other, strict=True)]


@a_step_is_affine_where_its_denoiser_is.near_miss
def clipped_within_the_step(sampler, schedule, eps, z, share, t, s):
    """A step that clips what it has made."""

    def clipped(noise, step, memory, z, t, s):
        moved, memory = step(noise, memory, z, t, s)
        return jnp.clip(moved, -1, 1), memory

    return a_step_is_affine_where_its_denoiser_is.claim(_altered(sampler, clipped), schedule, eps, z, share, t, s)
