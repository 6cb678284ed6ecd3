"""Chapter 6, orders: |z_s - flow_map(z_t)| = O(h^p) of every solver, on grids whose steps are not even.

A p-step method has order p only if what starts it has order p - 1.  That four steps give a fourth order is said without a
limit in `solver_exactness`: one step of theirs is exact where the prediction is a cubic.
"""

import jax
import jax.numpy as jnp

from diffeq_gen import exact, samplers
from diffeq_gen.samplers.loop import taken
from diffeq_gen.schedules import at
from diffeq_gen.theorems.domains import Domain, gaussians, smooth_schedules, vectors
from diffeq_gen.theorems.refinement import SIZES, grids
from diffeq_gen.theorems.registry import theorem
from diffeq_gen.theorems.solver_families import PARABOLAS
from diffeq_gen.types import Sampler

__all__: list[str] = []

ENDS = (0.65, 0.35)
WORLDS = gaussians(2, low=0.5, high=2.0)
BENT = Domain(PARABOLAS.name, PARABOLAS.size, PARABOLAS.build, "schedule")
"""Their log-SNR is no line, so that a stage in the middle of the time is not in the middle of it; and its inverse is cheap."""


def _bent(share):
    """Steps that shrink by a factor of three."""
    return share * (1.5 - 0.5 * share)


def _resting(sampler):
    """The sampler that takes no notice of a step of no length."""

    def step(noise, memory, z, t, s):
        after = sampler.step(noise, memory, z, t, s)
        old = (z, memory)
        return jax.tree.map(lambda new, old: jnp.where(t == s, old, new), after, old)

    return Sampler(sampler.init, step, sampler.noises)


def _errors(made, schedule, world, z):
    """|z_s - flow_map(z_t)| of each sampler for each number of steps, side by side: shape (sizes, samplers)."""
    first, last = ENDS
    known = exact.flow_map(world, z, *(at(schedule, jnp.asarray(end, z.dtype)) for end in ENDS))
    times = first + (last - first) * _bent(grids(0, 1, z.dtype))

    def step(states, t, s):
        return [taken(z[None][:0], _resting(one), *state[::-1], t, s) for one, state in zip(made, states, strict=True)]

    start = jax.vmap(lambda t: [(z + 0 * t, one.init(z + 0 * t)) for one in made])(times[:, 0])
    ends, _ = jax.lax.scan(
        lambda states, pair: (jax.vmap(step)(states, *pair), None), start, (times.T[:-1], times.T[1:])
    )
    return jnp.sum(jnp.abs(jnp.stack([end for end, _ in ends], axis=1) - known[None, None]), axis=2)


def _steps(z):
    return 1 / jnp.asarray(SIZES, z.dtype)


@theorem(source="Lu et al. 2022 (DPM-Solver), Thm 3.2; Lu et al. 2022 (DPM-Solver++)", kind="order", order=2,
         schedule=BENT, world=WORLDS, z=vectors(2), cases=6, precisions=("float64",))  # fmt: skip
def second_order_solvers(schedule, world, z):
    """DPM-Solver-2 and 2S, two-step methods started by DDIM, and UniPC-1 err by O(h^2), however the difference is weighted."""
    denoise = exact.denoiser(world, schedule)
    made = [
        samplers.singlestep(denoise, schedule),
        samplers.singlestep(denoise, schedule, rule="noise", two_point="midpoint"),
        samplers.multistep(denoise, schedule, two_point="midpoint"),
        samplers.multistep(denoise, schedule, rule="slope", two_point="trapezoid"),
        samplers.unipc(denoise, schedule, order=1),
    ]
    return _steps(z), jnp.sum(_errors(made, schedule, world, z), axis=1)


second_order_solvers.not_of_order(3, "One order too many.")


@second_order_solvers.near_miss
def stage_at_the_wrong_time(schedule, world, z):
    """2S whose stage is asked about the time t of the step: order one."""
    denoise = exact.denoiser(world, schedule)

    def step(noise, memory, z, t, s):
        return samplers.singlestep(lambda z, r: denoise(z, t), schedule).step(noise, memory, z, t, s)

    return _steps(z), _errors([Sampler(lambda z: (), step)], schedule, world, z)[:, 0]


@theorem(source="Lu et al. 2022 (DPM-Solver), Thm 3.2; Zhao et al. 2023 (UniPC), Thm 3.1", kind="order", order=3,
         schedule=BENT, world=WORLDS, z=vectors(2), cases=6, precisions=("float64",))  # fmt: skip
def third_order_solvers(schedule, world, z):
    """DPM-Solver-3, three-step methods started by steps of order two, and UniPC-2 started by itself, err by O(h^3)."""
    denoise = exact.denoiser(world, schedule)
    made = [samplers.singlestep(denoise, schedule, order=3), samplers.unipc(denoise, schedule), _third(denoise, schedule, "data"),
            _third(denoise, schedule, "noise")]  # fmt: skip
    return _steps(z), jnp.sum(_errors(made, schedule, world, z), axis=1)


def _third(denoise, schedule, rule):
    steps = samplers.multistep(denoise, schedule, order=3, rule=rule)
    return samplers.started(steps, samplers.singlestep(denoise, schedule), steps=2)


third_order_solvers.not_of_order(4, "One order too many.")


@theorem(source="derived", kind="order", order=2, schedule=smooth_schedules, world=WORLDS, z=vectors(2), cases=6,
         precisions=("float64",))  # fmt: skip
def multistep_startup_cap(schedule, world, z):
    """Methods of three and four steps that are begun by DDIM have order two: the error of its one step stays."""
    denoise = exact.denoiser(world, schedule)
    made = [samplers.multistep(denoise, schedule, order=3), samplers.lms(denoise, schedule)]
    return _steps(z), jnp.sum(_errors(made, schedule, world, z), axis=1)


multistep_startup_cap.not_of_order(3, "Order three, that of all steps but the first.")
