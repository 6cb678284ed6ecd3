"""Chapter 5, chains and laws: the loop that drives every sampler, the weights of its predictions, its exact law on Gaussian data.

z_N = c_z z_0 + sum_i c_i x0_hat_i + noise,        N(m, C) -> N(A m + b, A C A^T + B B^T)
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen import exact, samplers
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
from diffeq_gen.theorems.first_order import _move, _predict, _ratio
from diffeq_gen.theorems.registry import theorem
from diffeq_gen.theorems.stochastic_steps import _root, _still, _variance
from diffeq_gen.types import Sampler

__all__: list[str] = []


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
    for here, there in itertools.pairwise(grid):
        state, memory = _remembering().step(noise, memory, state, here, there)
    return samplers.sample(key, _remembering(), z, grid), state


@theorem(source="the moments of an affine map", kind="in law", world=gaussians(2), t=times, s=earlier("t"), cases=100)
def law_of_an_affine_sampler(world, t, s):
    """`law` is the mean and covariance of the whole chain as one affine map: its response to each unit of the first state and of
    every noise, memory included."""
    grid = jnp.stack([t, (t + s) / 2, s])

    def run(cube):
        z, memory = cube[0, 0], 0.5 * cube[0, 0]
        for noise, here, there in zip(cube[1:], grid[:-1], grid[1:], strict=True):
            z, memory = _remembering().step(noise, memory, z, here, there)
        return z

    still = jnp.zeros((3, 2, 2), t.dtype)
    units = jnp.asarray(np.delete(np.eye(12), [2, 3], axis=0).reshape(10, 3, 2, 2), t.dtype)
    origin = run(still)
    rows = jax.vmap(run)(units) - origin[None, :]
    spread = jnp.matmul(rows[:2].T, jnp.matmul(world.cov, rows[:2])) + jnp.matmul(rows[2:].T, rows[2:])
    return samplers.law(_remembering(), world.mean, world.cov, grid), (world.mean @ rows[:2] + origin, spread)


@law_of_an_affine_sampler.near_miss
def memory_starts_independent(world, t, s):
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
    t, s = (1 + t) / 2, s / 2
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
    for here, there in itertools.pairwise(grid):
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
         undone=scalars("undone fractions", 0.0, 0.75), place=scalars("places in the chain", 0.0, 1.0), cases=50,
         precisions=("float64",))  # fmt: skip
def churn_weights_golden(undone, place):
    """Over 100 even steps of the cosine schedule cut at log-SNR 15, the weight of the k-th v_hat under churn is the product of
    rotations by phi_t - phi_r, each stretched by alpha_s/alpha_r; with those of x0 they obey the sum rule."""
    schedule, which = Cosine(log_snr_min=-15.0, log_snr_max=15.0), jnp.floor(place * (STEPS - 1))
    grid = jnp.linspace(jnp.ones_like(undone), jnp.zeros_like(undone), STEPS + 1)

    def predict(z, t):
        p = at(schedule, t)
        unit = jnp.where(jnp.abs((1 - t) * STEPS - which) < 0.5, 1.0, 0.0)
        return p.alpha * z - p.sigma * jnp.stack([unit, -p.sigma])

    sampler = samplers.churn(predict, schedule, undone=undone)
    move = lambda z, pair: (_move(sampler, 0 * z, z, *pair), None)  # noqa: E731
    start = jnp.stack([0 * undone, at(schedule, grid[0]).alpha])
    chain, _ = jax.lax.scan(move, start, (grid[:-1], grid[1:]))
    low, high = (jnp.arctan(jnp.exp(jnp.asarray(half, undone.dtype))) for half in (-7.5, 7.5))
    angle = low + grid * (high - low)
    tangent = jnp.tan(angle)
    reached = jnp.arctan(tangent[1:] * (tangent[1:] / tangent[:-1]) ** (undone / (1 - undone)))
    stretch = jnp.cos(angle[1:]) / jnp.cos(reached)
    turn, index = angle[:-1] - reached, jnp.arange(STEPS, dtype=undone.dtype)
    weight = jnp.where(index == which, -stretch * jnp.sin(turn), jnp.where(index > which, stretch * jnp.cos(turn), 1.0))
    return chain, jnp.stack([jnp.prod(weight), jnp.cos(angle[-1])])


@churn_weights_golden.near_miss(witness={"undone": 0.25})
def churn_by_eta_of_ddim(undone, place):
    """Churn through DDIM's eta of the same fraction, eta^2 = c/(1 - c): right at c = 0 and 1/2 only."""
    schedule, z = Cosine(log_snr_min=-15.0, log_snr_max=15.0), jnp.ones((1,), undone.dtype)
    t = 0.25 + place / 2
    by_eta = samplers.ddim(_still, schedule, eta=jnp.sqrt(undone / (1 - undone)))
    return _move(samplers.churn(_still, schedule, undone=undone), 0 * z, z, t, t / 2), _move(by_eta, 0 * z, z, t, t / 2)


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


@theorem(source="Song et al. 2021, App. G (corrector)", kind="in law", schedule=smooth_schedules, world=gaussians(2),
         share=fractions, t=times)  # fmt: skip
def ula_bias(schedule, world, share, t):
    """Langevin steps z + delta score + sqrt(2 delta) eps on N(m, V) rest at the covariance V (1 - delta V^-1/2)^-1, which is
    V + delta/2 + O(delta^2), and not at V."""
    p, eye = at(schedule, t), jnp.eye(2, dtype=t.dtype)
    delta, target = share * p.sigma**2, exact.marginal(world, p)
    rest = jnp.linalg.solve(eye - delta / 2 * jnp.linalg.inv(target.cov), target.cov)
    grid, langevin = jnp.stack([t, t, t]), samplers.langevin(exact.denoiser(world, schedule), schedule, size=share)
    excess = delta / 2 * jnp.linalg.solve(target.cov, rest)
    return [samplers.law(langevin, target.mean, rest, grid), rest], [(target.mean, rest), target.cov + excess]


@ula_bias.near_miss
def rests_at_the_target(schedule, world, share, t):
    """The target covariance thought stationary, as it is for delta -> 0 only."""
    target = exact.marginal(world, at(schedule, t))
    langevin = samplers.langevin(exact.denoiser(world, schedule), schedule, size=share)
    return samplers.law(langevin, target.mean, target.cov, jnp.stack([t, t])), (target.mean, target.cov)


@theorem(source="Song et al. 2021 (score_sde), reverse diffusion and ancestral predictors", kind="in law", schedule=schedules,
         z=vectors(3), eps=vectors(3), t=times, s=earlier("t"))  # fmt: skip
def reverse_diffusion_predictor(schedule, z, eps, t, s):
    """Where alpha = 1, the reverse-diffusion predictor z + (sigma_t^2 - sigma_s^2) score + sqrt(sigma_t^2 - sigma_s^2) eps is DDPM
    with the large variance; it has the ancestral mean, and (sigma_t^2 - sigma_s^2)^2/sigma_t^2 too much variance."""

    def exploding(r):
        alpha, sigma = schedule(r)
        return jnp.ones_like(alpha), sigma / alpha

    p, q = at(exploding, t), at(exploding, s)
    large, small = (samplers.ddpm(_predict, exploding, variance=level) for level in (1.0, 0.0))
    gain = jnp.maximum((p.sigma - q.sigma) * (p.sigma + q.sigma), 0)
    mean = z + gain * (_predict(z, t) - z) / p.sigma**2
    steps = [_variance(samplers.ddpm(_still, exploding, variance=level), 0 * z, t, s) for level in (1.0, 0.0)]
    left = [_move(large, eps, z, t, s), _move(small, 0 * z, z, t, s), steps[0] - steps[1]]
    return left, [mean + jnp.sqrt(gain) * eps, mean, gain**2 / p.sigma**2]


@reverse_diffusion_predictor.near_miss
def is_the_ancestral_predictor(schedule, z, eps, t, s):
    """The two predictors of score_sde taken for one."""
    exploding = lambda r: (jnp.ones_like(r), schedule(r)[1] / schedule(r)[0])  # noqa: E731
    large, small = (samplers.ddpm(_predict, exploding, variance=level) for level in (1.0, 0.0))
    return _move(large, eps, z, t, s), _move(small, eps, z, t, s)


@theorem(source="Karras et al. 2022; DPM-Solver, denoise_to_zero", kind="in law", world=gaussians(2), z=vectors(2),
         sigma=positive("last noise levels", 0.01, 3.0), undone=probabilities)  # fmt: skip
def final_step_bias(world, z, sigma, undone):
    """Every sampler's step to sigma = 0 returns x0_hat, as `denoised` does; Gaussian data that stops at sigma has sigma^2 too much
    covariance, and sigma^2 C (C + sigma^2)^-1 too little after that last step."""
    clock = lambda r: (jnp.ones_like(r), r)  # noqa: E731
    eye, zero, denoise = jnp.eye(2, dtype=sigma.dtype), jnp.zeros_like(sigma), exact.denoiser(world, clock)
    last = exact.marginal(world, at(clock, sigma))
    resting = samplers.ddim(lambda z, t: z, clock)  # of which a step from sigma to sigma is none
    parts = [
        verb(_predict, clock) for verb in (samplers.ddim, samplers.ddpm, samplers.euler, samplers.heun, samplers.edm)
    ]
    parts += [samplers.ddpm(_predict, clock, variance=share) for share in (undone, 1.0)]
    parts += [samplers.ddim(_predict, clock, eta=undone)]
    parts += [samplers.churn(_predict, clock, undone=share) for share in (undone, 0.0)]
    parts += [samplers.exponential(_predict, clock, eta=level) for level in (2 * undone, 0.0)]
    laws = [samplers.law(sampler, last.mean, last.cov, jnp.stack([sigma, end])) for sampler, end in (
        (samplers.ddim(denoise, clock), zero), (samplers.denoised(resting, denoise, last=sigma), sigma))]  # fmt: skip
    left = [*(_move(part, z + 1, z, sigma, zero) for part in parts), *laws, last.cov - world.cov]
    lost = sigma**2 * jnp.linalg.solve(world.cov + sigma**2 * eye, world.cov)
    return left, [_predict(z, sigma)] * len(parts) + [(world.mean, world.cov - lost)] * 2 + [sigma**2 * eye]


@final_step_bias.near_miss
def denoising_last_is_exact(world, z, sigma, undone):
    """The last denoising thought to give back the covariance of the data."""
    clock = lambda r: (jnp.ones_like(r), r)  # noqa: E731
    last, ends = exact.marginal(world, at(clock, sigma)), jnp.stack([sigma, jnp.zeros_like(sigma)])
    law = samplers.law(samplers.ddim(exact.denoiser(world, clock), clock), last.mean, last.cov, ends)
    return law, (world.mean, world.cov)
