"""Chapter 5, laws: what many steps, or one exact step, do to Gaussian data; orders; the loop that drives every sampler.

    law(step^n)(N(m, C)) against N(alpha m, alpha^2 C + sigma^2 I),        error = C_1 Delta + ...
"""

import jax
import jax.numpy as jnp

from diffeq_gen import exact, paths, samplers
from diffeq_gen.schedules import Cosine, at
from diffeq_gen.theorems.domains import (
    choices,
    earlier,
    fractions,
    gaussians,
    positive,
    probabilities,
    scalars,
    schedules,
    smooth_schedules,
    times,
    vectors,
)
from diffeq_gen.theorems.first_order import _move, _noise_in, _predict, _ratio, _root, _still, _variance
from diffeq_gen.theorems.registry import theorem
from diffeq_gen.types import Sampler

__all__: list[str] = []

SIZES = (16, 32, 64, 128, 256)


@theorem(source="the definition of a chain", seed=choices("seeds", 0, 1, 7, 12345, 2**31 - 1), z=vectors(2), t=times,
         s=earlier("t"), cases=100)  # fmt: skip
def sample_is_the_last_of_trajectory(seed, z, t, s):
    """`sample` is the last state of `trajectory`, which is the plain loop: memory handed on, noise the standard normal of shape
    (noises, *z.shape) of the i-th of the split keys."""
    key, grid = jax.random.key(seed.astype(jnp.uint32)), jnp.stack([t, (t + s) / 2, s])
    states, memory = [z], 0.5 * z
    for sub, here, there in zip(jax.random.split(key, 2), grid[:-1], grid[1:], strict=True):
        noise = jax.random.normal(sub, (2, 2), z.dtype)
        state, memory = _remembering().step(noise, memory, states[-1], here, there)
        states.append(state)
    left = samplers.sample(key, _remembering(), z, grid), samplers.trajectory(key, _remembering(), z, grid)
    return left, (states[-1], jnp.stack(states))


def _remembering():
    """An affine sampler with a memory and two rows of noise."""

    def step(noise, memory, z, t, s):
        moved = 0.75 * z + t * memory[::-1] - s * noise[0] + 0.5 * noise[1] + t
        return moved, 0.25 * memory + s * z + t * noise[0][::-1] - 1

    return Sampler(lambda z: 0.5 * z, step, 2)


@sample_is_the_last_of_trajectory.near_miss
def one_noise_for_every_step(seed, z, t, s):
    """The key used as it is, at every step."""
    key, grid = jax.random.key(seed.astype(jnp.uint32)), jnp.stack([t, (t + s) / 2, s])
    state, memory, noise = z, 0.5 * z, jax.random.normal(key, (2, 2), z.dtype)
    for here, there in zip(grid[:-1], grid[1:], strict=True):
        state, memory = _remembering().step(noise, memory, state, here, there)
    return samplers.sample(key, _remembering(), z, grid), state


@theorem(source="the moments of an affine map", kind="in law", world=gaussians(2), eta=fractions, t=times, s=earlier("t"),
         cases=300)  # fmt: skip
def law_of_an_affine_sampler(world, eta, t, s):
    """`law` is the mean and covariance of the whole chain as one affine map: its response to each unit of the first state and of
    every noise, memory included."""
    grid = jnp.stack([t, (t + s) / 2, s])

    def run(sampler, z, noises):
        memory = sampler.init(z)
        for noise, here, there in zip(noises, grid[:-1], grid[1:], strict=True):
            z, memory = sampler.step(noise[: sampler.noises], memory, z, here, there)
        return z

    left, right = [], []
    units, still = jnp.eye(8, dtype=t.dtype).reshape(8, 2, 2, 2), jnp.zeros((2, 2, 2), t.dtype)
    for sampler in (_remembering(), samplers.ddim(exact.denoiser(world, Cosine()), Cosine(), eta=eta)):
        origin = run(sampler, jnp.zeros_like(world.mean), still)
        by_state = jnp.stack([run(sampler, e, still) - origin for e in jnp.eye(2, dtype=t.dtype)], axis=1)
        by_noise = jnp.stack([run(sampler, jnp.zeros_like(world.mean), unit) - origin for unit in units], axis=1)
        left.append(samplers.law(sampler, world.mean, world.cov, grid))
        right.append((by_state @ world.mean + origin, by_state @ world.cov @ by_state.T + by_noise @ by_noise.T))
    return left, right


@law_of_an_affine_sampler.near_miss
def memory_starts_independent(world, eta, t, s):
    """The memory at the start taken as known, though it is made of the state."""
    grid = jnp.stack([t, s])
    cut = Sampler(lambda z: 0.5 * world.mean, _remembering().step, 2)
    return samplers.law(_remembering(), world.mean, world.cov, grid), samplers.law(cut, world.mean, world.cov, grid)


@theorem(source="derived; Gao et al. 2024, 'Sampling' (weights of the predictions)", kind="in law", schedule=smooth_schedules,
         z=vectors(2), first=vectors(2), second=vectors(2), third=vectors(2), eta=scalars("noise levels", 0.0, 1.5), t=times,
         s=earlier("t"))  # fmt: skip
def generalised_euler_in_churn_coordinates(schedule, z, first, second, third, eta, t, s):
    """Steps of the SDE of constant eta are Euler's rule for z e^(eta^2 lambda/2)/sigma in the time e^((1 + eta^2) lambda/2), plus
    noise; the weights of the predictions add up to alpha_s - c_z alpha_t."""
    grid = (t, t + (s - t) / 4, t + (s - t) / 2, s)
    sampler = samplers.exponential(_predict, schedule, eta=eta)
    points = [at(schedule, r) for r in grid]
    left, guesses = z, []
    for here, there, noise in zip(grid[:-1], grid[1:], (first, second, third), strict=True):
        guesses.append(_predict(left, here))
        left = _move(sampler, noise, left, here, there)
    until_end = [points[-1].sigma * p.alpha / (points[-1].alpha * p.sigma) for p in points]
    clock = [r ** (1 + eta**2) for r in until_end]
    kept = [points[-1].sigma / p.sigma * r ** (eta**2) for p, r in zip(points, until_end, strict=True)]
    right = kept[0] * z
    for i, noise in enumerate((first, second, third)):
        fresh = points[i + 1].sigma * _root(1 - _ratio(points[i], points[i + 1]) ** (2 * eta**2))
        right += points[-1].alpha * (clock[i + 1] - clock[i]) * guesses[i] + kept[i + 1] * fresh * noise
    known = samplers.exponential(lambda z, t: first, schedule, eta=eta)
    still = points[0].alpha * first
    for here, there in zip(grid[:-1], grid[1:], strict=True):
        still = _move(known, 0 * z, still, here, there)
    return [left, still], [right, points[-1].alpha * first]


@generalised_euler_in_churn_coordinates.near_miss
def weights_of_ddim_at_every_eta(schedule, z, first, second, third, eta, t, s):
    """The clock alpha/sigma of DDIM kept for eta > 0: right for the deterministic sampler only."""
    p, q = at(schedule, t), at(schedule, s)
    step = _move(samplers.exponential(lambda z, t: first, schedule, eta=eta), 0 * z, z, t, s)
    ratio = _ratio(p, q)
    return step, q.sigma / p.sigma * ratio ** (eta**2) * z + q.alpha * (1 - ratio) * first


STEPS = 100


@theorem(source="Gao et al. 2024, plot of churn (its numbers are not printed: the weights here are derived, not read)",
         undone=scalars("undone fractions", 0.0, 0.75), place=scalars("places in the chain", 0.0, 1.0), cases=50)  # fmt: skip
def churn_weights_golden(undone, place):
    """Over 100 even steps of the cosine schedule cut at log-SNR 15, the weight of the k-th v_hat under churn is the product of
    rotations by phi_t - phi_r, each stretched by alpha_s/alpha_r; with those of x0 they obey the sum rule."""
    schedule, which = Cosine(log_snr_min=-15.0, log_snr_max=15.0), jnp.floor(place * (STEPS - 1))
    grid = jnp.linspace(jnp.ones_like(undone), jnp.zeros_like(undone), STEPS + 1)

    def chain(v, z):
        def predict(z, t):
            p = at(schedule, t)
            return p.alpha * z - p.sigma * v(t)

        sampler = samplers.churn(predict, schedule, undone=undone)
        body = lambda z, pair: (_move(sampler, 0 * z, z, *pair), None)  # noqa: E731
        return jax.lax.scan(body, z, (grid[:-1], grid[1:]))[0][0]

    one = jnp.ones((1,), undone.dtype)
    brute = chain(lambda t: jnp.where(jnp.abs((1 - t) * STEPS - which) < 0.5, one, 0 * one), 0 * one)
    known = chain(lambda t: -at(schedule, t).sigma * one, at(schedule, grid[0]).alpha * one)
    low, high = (jnp.arctan(jnp.exp(jnp.asarray(half, undone.dtype))) for half in (-7.5, 7.5))
    angle = low + grid * (high - low)
    tangent = jnp.tan(angle)
    reached = jnp.arctan(tangent[1:] * (tangent[1:] / tangent[:-1]) ** (undone / (1 - undone)))
    stretch = jnp.cos(angle[1:]) / jnp.cos(reached)
    turn, index = angle[:-1] - reached, jnp.arange(STEPS, dtype=undone.dtype)
    weight = jnp.where(index == which, -stretch * jnp.sin(turn), jnp.where(index > which, stretch * jnp.cos(turn), 1.0))
    return [brute, known], [jnp.prod(weight), jnp.cos(angle[-1])]


@churn_weights_golden.near_miss(witness={"undone": 0.25})
def churn_by_eta_of_ddim(undone, place):
    """Churn through DDIM's eta of the same fraction, eta^2 = c/(1 - c): right at c = 0 and 1/2 only."""
    schedule, z = Cosine(log_snr_min=-15.0, log_snr_max=15.0), jnp.ones((1,), undone.dtype)
    t = 0.25 + place / 2
    by_eta = samplers.ddim(_still, schedule, eta=jnp.sqrt(undone / (1 - undone)))
    return _move(samplers.churn(_still, schedule, undone=undone), 0 * z, z, t, t / 2), _move(by_eta, 0 * z, z, t, t / 2)


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
    return steps, jnp.stack([error(h) for h in steps])


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


@theorem(source="Ho et al. 2020, Sec. 3.2; Bao et al. 2022", kind="in law", schedule=smooth_schedules, world=gaussians(2),
         z=vectors(2), variance=fractions, t=times, s=earlier("t"))  # fmt: skip
def ddpm_variance_endpoints(schedule, world, z, variance, t, s):
    """A DDPM step has the exact mean for any Gaussian data, and the exact law, whatever its size, with the small variance for a
    point and with the large one for N(0, I) where variance is preserved; in between, variances interpolate in their
    logarithm; `reverse_kernel` is Bayes' rule."""
    p, q, eye = at(schedule, t), at(schedule, s), jnp.eye(2, dtype=t.dtype)
    scale, z = p.alpha / q.alpha, z / 8
    cov_t, cov_s = p.alpha**2 * world.cov + p.sigma**2 * eye, q.alpha**2 * world.cov + q.sigma**2 * eye
    gain = scale * jnp.linalg.solve(cov_t, cov_s).T
    mean = q.alpha * world.mean + gain @ (z - p.alpha * world.mean)
    transition = jnp.maximum(p.sigma**2 - scale**2 * q.sigma**2, 0)
    small, norm = q.sigma**2 / p.sigma**2 * transition, lambda r: jnp.hypot(*schedule(r))
    preserving = lambda r: tuple(part / norm(r) for part in schedule(r))  # noqa: E731
    by_bayes = lambda z, r: preserving(r)[0] * z  # noqa: E731
    normal, ratio = samplers.ddpm(by_bayes, preserving, variance=1.0), preserving(t)[0] / preserving(s)[0]
    by_exact = samplers.ddpm(exact.denoiser(world, schedule), schedule)
    left = [*exact.reverse_kernel(world, z, p, q), _move(by_exact, 0 * z, z, t, s)]
    left += [_variance(samplers.ddpm(_still, schedule, variance=level), 0 * z, t, s) for level in (0.0, variance)]
    left += [_move(normal, 0 * z, z, t, s), _variance(normal, 0 * z, t, s)]
    right = [mean, cov_s - scale * gain @ cov_s, mean, small, small ** (1 - variance) * transition**variance]
    return left, [*right, ratio * z, (1 - ratio) * (1 + ratio)]


@ddpm_variance_endpoints.near_miss
def small_variance_for_normal_data(schedule, world, z, variance, t, s):
    """The variance of the bridge for standard normal data, which needs that of the transition."""
    preserving = lambda r: tuple(part / jnp.hypot(*schedule(r)) for part in schedule(r))  # noqa: E731
    sampler, ratio = samplers.ddpm(_still, preserving, variance=0.0), preserving(t)[0] / preserving(s)[0]
    return _variance(sampler, 0 * z, t, s), 1 - ratio**2


@ddpm_variance_endpoints.near_miss
def interpolated_linearly(schedule, world, z, variance, t, s):
    """The two variances interpolated as they are, not in their logarithm."""
    levels = [_variance(samplers.ddpm(_still, schedule, variance=level), 0 * z, t, s) for level in (variance, 0.0, 1.0)]
    return levels[0], (1 - variance) * levels[1] + variance * levels[2]


@theorem(source="derived", kind="order", order=1, schedule=smooth_schedules, world=gaussians(2), eta=probabilities, cases=8,
         precisions=("float64",))  # fmt: skip
def first_order_law_orders(schedule, world, eta):
    """On Gaussian data the laws of DDIM(eta), DDPM of any variance and the exponential step err by O(Delta) over a chain, and by
    O(Delta^2) over one step."""
    denoise, start = exact.denoiser(world, schedule), exact.marginal(world, at(schedule, jnp.asarray(0.875, eta.dtype)))
    known = exact.marginal(world, at(schedule, jnp.asarray(0.125, eta.dtype)))
    verbs = (samplers.ddim(denoise, schedule, eta=eta), samplers.ddpm(denoise, schedule, variance=eta),
             samplers.exponential(denoise, schedule, eta=2 * eta))  # fmt: skip

    def error(sampler, n):
        grid = jnp.linspace(0.875, 0.125, n + 1, dtype=eta.dtype)
        local = _distance(samplers.law(sampler, start.mean, start.cov, grid[:2]), exact.marginal(world, at(schedule, grid[1])))
        return _distance(samplers.law(sampler, start.mean, start.cov, grid), known) + n * local

    errors = [sum(error(sampler, n) for sampler in verbs) for n in SIZES]
    return 1 / jnp.asarray(SIZES, eta.dtype), jnp.stack(errors)


@first_order_law_orders.near_miss(order=2)
def second_order(schedule, world, eta):
    """One order too many."""
    return first_order_law_orders.claim(schedule, world, eta)


@first_order_law_orders.near_miss
def naive_sampler_converges(schedule, world, eta):
    """Denoise and noise again: its law never tends to that of the data's path, however fine the grid."""
    denoise, start = exact.denoiser(world, schedule), exact.marginal(world, at(schedule, jnp.asarray(0.875, eta.dtype)))
    known = exact.marginal(world, at(schedule, jnp.asarray(0.125, eta.dtype)))

    def step(noise, memory, z, t, s):
        return samplers.first_order_step(denoise(z, t), z, noise[0], at(schedule, t), at(schedule, s), jnp.inf), ()

    grids = [jnp.linspace(0.875, 0.125, n + 1, dtype=eta.dtype) for n in SIZES]
    laws = [samplers.law(Sampler(lambda z: (), step, 1), start.mean, start.cov, grid) for grid in grids]
    return 1 / jnp.asarray(SIZES, eta.dtype), jnp.stack([_distance(law, known) for law in laws])


def _endpoint_errors(sampler, schedule, world, z):
    """|z_s - flow_map(z_t)| of a chain from 7/8 to 1/8, for each number of steps."""
    ends = jnp.asarray(0.875, z.dtype), jnp.asarray(0.125, z.dtype)
    known = exact.flow_map(world, z, *(at(schedule, end) for end in ends))
    grids = [jnp.linspace(0.875, 0.125, n + 1, dtype=z.dtype) for n in SIZES]
    chains = [samplers.sample(jax.random.key(0), sampler, z, grid) for grid in grids]
    return jnp.stack([jnp.sum(jnp.abs(chain - known)) for chain in chains])


@theorem(source="Karras et al. 2022, App. B.2", kind="order", order=2, schedule=smooth_schedules, world=gaussians(2),
         z=vectors(2), cases=8, precisions=("float64",))  # fmt: skip
def euler_and_heun_orders(schedule, world, z):
    """Against the exact flow map of Gaussian data `heun` and `edm` err by O(h^2), `euler` and DDIM by O(h)."""
    denoise = exact.denoiser(world, schedule)
    one = [_endpoint_errors(verb(denoise, schedule), schedule, world, z) for verb in (samplers.euler, samplers.ddim)]
    two = [_endpoint_errors(verb(denoise, schedule), schedule, world, z) for verb in (samplers.heun, samplers.edm)]
    return 1 / jnp.asarray(SIZES, z.dtype), sum(two) + sum(error**2 for error in one) / (1 + jnp.sum(z**2))


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

    return 1 / jnp.asarray(SIZES, z.dtype), _endpoint_errors(Sampler(lambda z: (), step), schedule, world, z)
