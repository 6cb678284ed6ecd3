"""Chapter 5, orders: how fast a chain of n steps, or the law of one step, tends to what it approximates on Gaussian data.

|law(step^n)(N(m, C)) - N(alpha m, alpha^2 C + sigma^2 I)| = O(1/n),        Heun's |z - flow_map| = O(1/n^2)
"""

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen import exact, paths, samplers
from diffeq_gen.schedules import at
from diffeq_gen.theorems.domains import gaussians, probabilities, scalars, smooth_schedules, vectors
from diffeq_gen.theorems.first_order import _move
from diffeq_gen.theorems.registry import theorem
from diffeq_gen.types import Sampler

__all__: list[str] = []

SIZES = (16, 32, 64, 128, 256)
"""Numbers of steps.  Every grid is written over the finest, its times repeated: a step of no length changes nothing."""


def _side_by_side(*parts):
    """Several samplers without memory as one, on a flat state of as many pairs."""

    def step(noise, memory, z, t, s):
        rows = zip(parts, z.reshape(-1, 2), noise.reshape(-1, 2), strict=True)
        return jnp.concatenate([_move(part, eps, row, t, s) for part, row, eps in rows]), memory

    return Sampler(lambda z: (), step, 1)


def _grids(first, last, dtype, sizes=SIZES):
    """One grid of times for each size, all of one length, so that one compilation serves them all."""
    finest = np.arange(sizes[-1] + 1)
    shares = np.stack([np.floor(finest * n / sizes[-1]) / n for n in sizes])
    return jnp.asarray(first + (last - first) * shares, dtype)


def _repeated(world, n):
    """The world n times over, independent of itself."""
    return exact.Gaussian(jnp.tile(world.mean, n), jnp.kron(jnp.eye(n, dtype=world.cov.dtype), world.cov))


def _distance(law, known):
    """|mean - mean'| + |cov - cov'|, entry by entry."""
    return sum(jnp.sum(jnp.abs(a - b)) for a, b in zip(law, (known.mean, known.cov), strict=True))


@theorem(source="Gao et al. 2024, figure of particles", kind="order", order=2, schedule=smooth_schedules, world=gaussians(2),
         t=scalars("middle times", 0.3, 0.7), cases=8, precisions=("float64",))  # fmt: skip
def flipped_ddim_matches_diffusion(schedule, world, t):
    """The mirror image 2 z - z' of a DDIM step has the law of the diffused z up to O(Delta^2), and so has, at its own time, a
    DDIM step that is renoised back: not exactly, as 'identical' may be read."""
    ddim, start = samplers.ddim(exact.denoiser(world, schedule), schedule), exact.marginal(world, at(schedule, t))
    flipped = Sampler(lambda z: (), lambda noise, memory, z, t, s: (2 * z - ddim.step(noise, (), z, t, s)[0], ()), 0)

    def back(noise, memory, z, t, s):
        return paths.renoise(ddim.step(noise, (), z, t, s)[0], noise[0], at(schedule, t), at(schedule, s)), ()

    def error(h):
        law = [samplers.law(sampler, start.mean, start.cov, jnp.stack([t, t - h])) for sampler in (flipped, renoised)]
        return _distance(law[0], exact.marginal(world, at(schedule, t + h))) + _distance(law[1], start)

    renoised, steps = Sampler(lambda z: (), back, 1), 0.25 / jnp.asarray(SIZES, t.dtype)
    return steps, jax.vmap(error)(steps)


@flipped_ddim_matches_diffusion.near_miss(order=3)
def identical_to_the_next_order(schedule, world, t):
    """The mirror image thought right one order further."""
    return flipped_ddim_matches_diffusion.claim(schedule, world, t)


@flipped_ddim_matches_diffusion.near_miss
def the_same_particle(schedule, world, t):
    """Each particle, not their law: mirrored and diffused by one unit of noise."""
    ddim, z, p = samplers.ddim(exact.denoiser(world, schedule), schedule), world.mean + 1, at(schedule, t)
    steps = 0.25 / jnp.asarray(SIZES, t.dtype)
    away = [2 * z - _move(ddim, z, z, t, t - h) - paths.renoise(z, z / 8, at(schedule, t + h), p) for h in steps]
    return steps, jnp.stack([jnp.sum(jnp.abs(gap)) for gap in away])


@theorem(source="derived", kind="order", order=1, schedule=smooth_schedules, world=gaussians(2), eta=probabilities, cases=8,
         precisions=("float64",))  # fmt: skip
def first_order_law_orders(schedule, world, eta):
    """On Gaussian data the laws of DDIM(eta), DDPM of any variance and the exponential step err by O(Delta) over a chain, and by
    O(Delta^2) over one step."""
    denoise, ends = exact.denoiser(world, schedule), jnp.array([0.75, 0.25], eta.dtype)
    together = _side_by_side(samplers.ddim(denoise, schedule, eta=eta), samplers.ddpm(denoise, schedule, variance=eta),
                             samplers.exponential(denoise, schedule, eta=eta))  # fmt: skip
    start, known = (_repeated(exact.marginal(world, at(schedule, end)), 3) for end in ends)

    def local(h):
        ends = jnp.stack([0.75 + 0 * h, 0.75 - h])
        near = _repeated(exact.marginal(world, at(schedule, ends[1])), 3)
        return _distance(samplers.law(together, start.mean, start.cov, ends), near)

    steps = 0.5 / jnp.asarray(SIZES, eta.dtype)
    laws = jax.vmap(lambda grid: samplers.law(together, start.mean, start.cov, grid))(_grids(0.75, 0.25, eta.dtype))
    chains = jax.vmap(lambda law: _distance(law, known))(laws)
    return steps, chains + jax.vmap(local)(steps) / steps


@first_order_law_orders.near_miss(order=2)
def second_order(schedule, world, eta):
    """One order too many."""
    return first_order_law_orders.claim(schedule, world, eta)


@first_order_law_orders.near_miss
def naive_sampler_converges(schedule, world, eta):
    """Denoise and noise again: its law never tends to that of the data's path, however fine the grid."""
    denoise, start = exact.denoiser(world, schedule), exact.marginal(world, at(schedule, jnp.asarray(0.75, eta.dtype)))
    known = exact.marginal(world, at(schedule, jnp.asarray(0.25, eta.dtype)))

    def step(noise, memory, z, t, s):
        return samplers.first_order_step(denoise(z, t), z, noise[0], at(schedule, t), at(schedule, s), jnp.inf), ()

    naive = Sampler(lambda z: (), step, 1)
    laws = jax.vmap(lambda grid: samplers.law(naive, start.mean, start.cov, grid))(_grids(0.75, 0.25, eta.dtype))
    return 1 / jnp.asarray(SIZES, eta.dtype), jax.vmap(lambda law: _distance(law, known))(laws)


def _endpoint_errors(parts, schedule, world, z):
    """|z_s - flow_map(z_t)| of chains from 7/8 to 1/8, for each number of steps: shape (sizes, parts)."""
    known = exact.flow_map(world, z, *(at(schedule, end) for end in jnp.array([0.875, 0.125], z.dtype)))
    start, together, key = jnp.tile(z, len(parts)), _side_by_side(*parts), jax.random.key(0)
    ends = jax.vmap(lambda grid: samplers.sample(key, together, start, grid))(_grids(0.875, 0.125, z.dtype))
    return jnp.sum(jnp.abs(ends.reshape(len(SIZES), len(parts), 2) - known[None, None, :]), axis=2)


@theorem(source="Karras et al. 2022, App. B.2", kind="order", order=2, schedule=smooth_schedules, world=gaussians(2),
         z=vectors(2), cases=8, precisions=("float64",))  # fmt: skip
def euler_and_heun_orders(schedule, world, z):
    """Against the exact flow map of Gaussian data `heun` and `edm` err by O(h^2), `euler` and DDIM by O(h)."""
    denoise = exact.denoiser(world, schedule)
    parts = [verb(denoise, schedule) for verb in (samplers.heun, samplers.edm, samplers.euler, samplers.ddim)]
    errors = _endpoint_errors(parts, schedule, world, z)
    return 1 / jnp.asarray(SIZES, z.dtype), jnp.sum(errors[:, :2], 1) + jnp.sum(errors[:, 2:] ** 2, 1) / (
        1 + jnp.sum(z**2)
    )


@euler_and_heun_orders.near_miss(order=3)
def heun_is_of_third_order(schedule, world, z):
    """One order too many."""
    return euler_and_heun_orders.claim(schedule, world, z)


@euler_and_heun_orders.near_miss
def second_slope_of_the_first_output(schedule, world, z):
    """Heun's rule whose second slope reuses the first prediction, as in a deployed sampler: order one."""
    denoise = exact.denoiser(world, schedule)

    def step(noise, memory, z, t, s):
        x0 = denoise(z, t)
        return samplers.heun(lambda z, t: x0, schedule).step(noise, memory, z, t, s)

    return 1 / jnp.asarray(SIZES, z.dtype), _endpoint_errors([Sampler(lambda z: (), step)], schedule, world, z)[:, 0]


@theorem(source="EDICT and BDIA, on the inversion of DDIM", kind="order", order=1, schedule=smooth_schedules,
         world=gaussians(2), z=vectors(2), cases=8, precisions=("float64",))  # fmt: skip
def ddim_inversion_error(schedule, world, z):
    """DDIM run up in time and down again does not come back: it misses by O(h)."""
    sampler = samplers.ddim(exact.denoiser(world, schedule), schedule)

    def missed(grid):
        there_and_back = jnp.concatenate([grid, grid[::-1][1:]])
        move = lambda z, pair: (_move(sampler, z, z, *pair), None)  # noqa: E731
        end, _ = jax.lax.scan(move, z, (there_and_back[:-1], there_and_back[1:]))
        return jnp.sum(jnp.abs(end - z))

    return 1 / jnp.asarray(SIZES, z.dtype), jax.vmap(missed)(_grids(0.125, 0.875, z.dtype))


@ddim_inversion_error.near_miss(order=2)
def errors_of_the_two_ways_cancel(schedule, world, z):
    """The way back thought to undo the first order of the way there."""
    return ddim_inversion_error.claim(schedule, world, z)
