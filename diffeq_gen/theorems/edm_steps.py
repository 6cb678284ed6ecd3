"""Chapter 5, the sampler of Karras et al.: Algorithm 2 written out in x = z/alpha, and what its churn is in log-SNR.

x_hat = x + S_noise sqrt(sigma_hat^2 - sigma^2) eps,  sigma_hat = (1 + gamma) sigma,   then Heun's rule from sigma_hat to sigma_next
"""

import math

import jax.numpy as jnp

from diffeq_gen import samplers
from diffeq_gen.clocks import time_at
from diffeq_gen.schedules import at
from diffeq_gen.theorems.domains import (
    NAMED,
    Domain,
    choices,
    earlier,
    positive,
    scalars,
    smooth_schedules,
    times,
    vectors,
)
from diffeq_gen.theorems.first_order import _ending, _flowing, _move, _predict
from diffeq_gen.theorems.registry import theorem

__all__: list[str] = []

INVERTIBLE = Domain("schedules whose clock has a closed inverse", 0, lambda u, case: None,
                    variants=tuple(family for family in NAMED if family.name in ("Flow", "Laplace")))  # fmt: skip


def _algorithm_2(x, eps, high, low, gamma, s_noise):
    """Two slopes of the denoiser D(x; sigma), the noise added first."""
    denoise = lambda x, sigma: _predict(x / (1 + sigma), sigma / (1 + sigma))  # noqa: E731
    hat = high + gamma * high
    x = x + s_noise * jnp.sqrt((hat - high) * (hat + high)) * eps
    first = (x - denoise(x, hat)) / hat
    ahead = x + (low - hat) * first
    return x + (low - hat) * (first + (ahead - denoise(ahead, low)) / low) / 2


@theorem(source="Karras et al. 2022, Alg. 1", schedule=smooth_schedules, z=vectors(2), t=times, s=earlier("t"))
def edm_is_heun_of_ve(schedule, z, t, s):
    """Without churn `edm` is `heun` of the probability flow in z/alpha under the clock sigma = t, alpha = 1, on any schedule; its
    step to sigma_s = 0 is Euler's, alpha_s x0_hat."""
    p, q, predict = at(schedule, t), at(schedule, s), _flowing(schedule)
    x, high, low = z / p.alpha, p.sigma / p.alpha, q.sigma / q.alpha
    clock = lambda r: (jnp.ones_like(r), r)  # noqa: E731
    by_heun = samplers.heun(lambda x, r: _predict(x / (1 + r), r / (1 + r)), clock)
    step, ended = _move(samplers.edm(predict, schedule), z, z, t, s), _ending(schedule, s)
    left = [step, step, _move(samplers.edm(_predict, ended), z, z, t, s)]
    right = [q.alpha * _algorithm_2(x, z, high, low, 0 * t, 1.0), q.alpha * _move(by_heun, z, x, high, low)]
    return left, [*right, q.alpha * _predict(z, t)]


@edm_is_heun_of_ve.near_miss
def heun_in_the_time_of_the_schedule(schedule, z, t, s):
    """Heun's rule in t, which depends on the schedule's clock and scale."""
    predict = _flowing(schedule)
    return _move(samplers.edm(predict, schedule), z, z, t, s), _move(samplers.heun(predict, schedule), z, z, t, s)


@edm_is_heun_of_ve.near_miss
def sigma_not_in_units_of_alpha(schedule, z, t, s):
    """sigma of the schedule taken for EDM's, which is sigma/alpha."""
    p, q = at(schedule, t), at(schedule, s)
    right = q.alpha * _algorithm_2(z / p.alpha, z, p.sigma, q.sigma, 0 * t, 1.0)
    return _move(samplers.edm(_flowing(schedule), schedule), z, z, t, s), right


@theorem(source="Karras et al. 2022, Alg. 2; Gao et al. 2024, 'Deterministic vs. stochastic samplers'", kind="counterexample",
         schedule=INVERTIBLE, z=vectors(2), eps=vectors(2), again=vectors(2), s_churn=scalars("S_churn", 0.0, 4.0),
         steps=choices("numbers of steps", 1.0, 5.0, 18.0), s_min=positive("S_min", 1e-3, 2.0), s_noise=scalars("S_noise", 0.5, 1.5),
         t=times, s=earlier("t"), cases=300)  # fmt: skip
def edm_churn_vs_blog_churn(schedule, z, eps, again, s_churn, steps, s_min, s_noise, t, s):
    """`edm` is Algorithm 2: gamma = min(S_churn/steps, sqrt(2) - 1) for sigma in [S_min, S_max], noise before the step.  With x0_hat
    frozen, its chain is churn cut elsewhere, with log(1 + gamma)/log(sigma_hat/sigma_next) undone, which is no constant."""
    t, s = 0.125 + 0.8125 * t, 0.0625 + 0.8125 * s  # apart: no step at all undoes everything, by 0/0
    p, q, s_max = at(schedule, t), at(schedule, s), 8 * s_min
    x, high, low = z / p.alpha, p.sigma / p.alpha, q.sigma / q.alpha
    gamma = jnp.minimum(s_churn / steps, math.sqrt(2) - 1)
    inside = jnp.where(high < s_min, 0.0, jnp.where(high > s_max, 0.0, gamma))
    options = {"steps": steps, "s_churn": s_churn}
    windowed = samplers.edm(_flowing(schedule), schedule, s_min=s_min, s_max=s_max, s_noise=s_noise, **options)
    always = samplers.edm(_flowing(schedule), schedule, s_noise=s_noise, **options)
    left = [_move(windowed, eps, z, t, s), _move(always, eps, z, t, s)]
    right = [q.alpha * _algorithm_2(x, eps, high, low, g, s_noise) for g in (inside, gamma)]

    hat, hat_next = (1 + gamma) * high, (1 + gamma) * low
    t_hat, s_hat = (time_at(schedule, -2 * jnp.log(sigma)) for sigma in (hat, hat_next))
    noisy = schedule(t_hat)[0] * (x + jnp.sqrt((hat - high) * (hat + high)) * eps)
    frozen = lambda z, t: again[::-1]  # noqa: E731
    stepped = _move(samplers.edm(frozen, schedule, **options), eps, z, t, s)
    undone = jnp.log1p(gamma) / jnp.log(hat / low)
    left += [stepped, schedule(s_hat)[0] * (stepped / q.alpha + jnp.sqrt((hat_next - low) * (hat_next + low)) * again)]
    right += [_move(samplers.ddim(frozen, schedule), eps, noisy, t_hat, s)]
    return left, [*right, _move(samplers.churn(frozen, schedule, undone=undone), again, noisy, t_hat, s_hat)]


@edm_churn_vs_blog_churn.near_miss
def gamma_not_shared_over_the_steps(schedule, z, eps, again, s_churn, steps, s_min, s_noise, t, s):
    """S_churn taken as the gamma of each step."""
    left = _move(samplers.edm(_flowing(schedule), schedule, steps=18.0, s_churn=s_churn / 8), eps, z, t, s)
    return left, _move(samplers.edm(_flowing(schedule), schedule, steps=1, s_churn=s_churn / 8), eps, z, t, s)


@edm_churn_vs_blog_churn.near_miss
def constant_gamma_is_a_constant_fraction(schedule, z, eps, again, s_churn, steps, s_min, s_noise, t, s):
    """The undone fraction read off gamma alone, gamma/(1 + gamma), whatever the length of the step."""
    gamma, frozen = s_churn / 16, lambda z, t: again[::-1]
    high, low = (schedule(r)[1] / schedule(r)[0] for r in (t, s))
    undone = jnp.log1p(gamma) / jnp.log((1 + gamma) * high / low)
    left = _move(samplers.churn(frozen, schedule, undone=undone), eps, z, t, s)
    return left, _move(samplers.churn(frozen, schedule, undone=gamma / (1 + gamma)), eps, z, t, s)


@edm_churn_vs_blog_churn.near_miss
def s_noise_keeps_the_marginals(schedule, z, eps, again, s_churn, steps, s_min, s_noise, t, s):
    """S_noise = 1.007 thought harmless: the churned state then has another variance than sigma_hat^2 calls for."""
    frozen = lambda z, t: again  # noqa: E731
    ones = [_move(samplers.edm(frozen, schedule, s_churn=1.0, s_noise=size), eps, z, t, s) for size in (1.007, 1.0)]
    return ones[0], ones[1]
