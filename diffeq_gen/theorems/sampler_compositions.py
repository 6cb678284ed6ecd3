"""Chapter 6, samplers made of samplers: churn of any step, Langevin steps at one time, with and without Metropolis' choice.

p(x) q(y | x) a(x, y) = p(y) q(x | y) a(y, x)
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erfc

from diffeq_gen import exact, paths, samplers
from diffeq_gen.clocks import time_at
from diffeq_gen.samplers.langevin import draw_back, langevin_step, log_acceptance
from diffeq_gen.schedules import at
from diffeq_gen.theorems.domains import earlier, mixtures, scalars, smooth_schedules, times, vectors
from diffeq_gen.theorems.first_order import _flowing, _move, _predict, _size
from diffeq_gen.theorems.registry import theorem
from diffeq_gen.theorems.stochastic_solvers import LONG, _stretched

__all__: list[str] = []


@theorem(source="Gao et al. 2024, 'Deterministic vs. stochastic samplers' (churn)", kind="in law", z=vectors(3),
         eps=vectors(3), undone=scalars("undone fractions", 0.0, 0.9), t=times, s=earlier("t"), cases=300)  # fmt: skip
def churned_is_churn(z, eps, undone, t, s):
    """DDIM's own step, `churned`, is `churn`; half undone is DDPM; from pure noise it is a fresh draw about x0_hat, and to pure
    data there is no noise."""
    ddim, one, zero = samplers.ddim(_predict, _stretched), jnp.ones_like(t), jnp.zeros_like(t)

    def move(sampler, t, s):
        return _move(sampler, eps, z, t, s)

    churned = samplers.churned(ddim, _stretched, undone=undone)
    left = [move(churned, t, s), move(samplers.churned(ddim, _stretched), t, s), move(churned, t, zero)]
    right = [move(samplers.churn(_predict, _stretched, undone=undone), t, s)]
    right += [move(samplers.ddpm(_predict, _stretched), t, s), _size(zero) * _predict(z, t)]
    left += [move(samplers.churned(ddim, _stretched, undone=0.25), one, s)]
    return left, [*right, move(samplers.churn(_predict, _stretched, undone=0.25), one, s)]


@churned_is_churn.near_miss
def share_of_the_step_itself(z, eps, undone, t, s):
    """The overshoot as the share c of Delta, not of what is walked, Delta c/(1 - c)."""
    churned = samplers.churned(samplers.ddim(_predict, _stretched), _stretched, undone=undone)
    return _move(churned, eps, z, t, s), _move(
        samplers.churn(_predict, _stretched, undone=undone / (1 + undone)), eps, z, t, s
    )


def _hundredfold(t):
    """sigma = 100 t, alpha = 1."""
    return jnp.ones_like(t), 100 * t


_hundredfold.log_snr = lambda t: -2 * jnp.log(100 * t)
_hundredfold.time_at = lambda log_snr: jnp.exp(-log_snr / 2) / 100


@theorem(source="Karras et al. 2022, Alg. 2", kind="in law", z=vectors(2), eps=vectors(2), gamma=scalars("gammas", 0.0, 0.4),
         t=scalars("middle times", 0.2, 0.8), share=LONG, cases=300)  # fmt: skip
def raised_is_edm(z, eps, gamma, t, share):
    """Heun's rule of the probability flow in z/alpha and sigma/alpha, `raised`, is `edm` with its churn, and so is `edm` without
    churn, raised; `raised` DDIM and then the noise of the next step is noise and then DDIM, `churned`."""
    schedule, steps = _stretched, 16.0
    predict, s = _flowing(schedule), share * t
    churning = samplers.edm(predict, schedule, steps=steps, s_churn=steps * gamma)
    p, q = at(schedule, t), at(schedule, s)
    heun = samplers.heun(lambda x, r: _predict(x / (1 + 100 * r), 100 * r / (1 + 100 * r)), _hundredfold)
    by_heun = samplers.raised(heun, _hundredfold, gamma=gamma)
    by_heun = q.alpha * _move(by_heun, eps, z / p.alpha, p.sigma / p.alpha / 100, q.sigma / q.alpha / 100)
    by_edm = _move(samplers.raised(samplers.edm(predict, schedule), schedule, gamma=gamma), eps, z, t, s)
    return [*[_move(churning, eps, z, t, s)] * 2, _chain(z, eps, gamma, t, s, True)], [
        by_heun,
        by_edm,
        _chain(z, eps, gamma, t, s, False),
    ]


def _chain(z, eps, gamma, t, s, raising):
    """Noise, DDIM, noise: as `raised` and one more noise, or as one noise and `churned`."""
    ddim, rise = samplers.ddim(_predict, _stretched), 2 * jnp.log1p(gamma)
    t_hat, s_hat = (time_at(_stretched, _stretched.log_snr(r) - rise) for r in (t, s))
    again = eps[::-1]
    if raising:
        low = _move(samplers.raised(ddim, _stretched, gamma=gamma), eps, z, t, s)
        return paths.renoise(low, again, at(_stretched, s_hat), at(_stretched, s))
    undone = rise / (_stretched.log_snr(s) - _stretched.log_snr(t_hat))
    high = paths.renoise(z, eps, at(_stretched, t_hat), at(_stretched, t))
    return _move(samplers.churned(ddim, _stretched, undone=undone), again, high, t_hat, s_hat)


@raised_is_edm.near_miss
def gamma_of_the_log_snr(z, eps, gamma, t, share):
    """lambda - log(1 + gamma): half of the way, log-SNR being twice the logarithm of alpha/sigma."""
    predict, s = _flowing(_hundredfold), share * t
    half = samplers.raised(samplers.edm(predict, _hundredfold), _hundredfold, gamma=jnp.sqrt(1 + gamma) - 1)
    churning = samplers.edm(predict, _hundredfold, steps=16.0, s_churn=16 * gamma)
    return _move(churning, eps, z, t, s), _move(half, eps, z, t, s)


@theorem(source="Song et al. 2021, App. G", schedule=smooth_schedules, z=vectors(3), eps=vectors(3),
         snr=scalars("signal-to-noise ratios", 0.05, 1.0), t=times, s=earlier("t"), cases=300)  # fmt: skip
def langevin_signal_to_noise(schedule, z, eps, snr, t, s):
    """Where `snr` is given, the drift of a Langevin step is along the score at s and snr times as long as its noise, whatever the
    score and the draw."""
    q, sampler = at(schedule, s), samplers.langevin(_predict, schedule, snr=snr)
    there, back = (_move(sampler, sign * eps, z, t, s) for sign in (1, -1))
    drift, noise = (there + back) / 2 - z, (there - back) / 2
    length = lambda value: jnp.sqrt(jnp.sum(value**2))  # noqa: E731
    along = q.alpha * _predict(z, s) - z
    return [drift, noise], [along / length(along) * snr * length(noise), eps / length(eps) * length(drift) / snr]


@langevin_signal_to_noise.near_miss
def without_the_two(schedule, z, eps, snr, t, s):
    """delta = (snr |eps|/|score|)^2, which leaves the ratio snr/sqrt(2)."""
    sampler = samplers.langevin(_predict, schedule, snr=snr / jnp.sqrt(jnp.full_like(snr, 2)))
    there, back = (_move(sampler, sign * eps, z, t, s) for sign in (1, -1))
    noise, along = (there - back) / 2, at(schedule, s).alpha * _predict(z, s) - z
    length = lambda value: jnp.sqrt(jnp.sum(value**2))  # noqa: E731
    return (there + back) / 2 - z, along / length(along) * snr * length(noise)


@theorem(source="Metropolis et al. 1953; Hastings 1970; Roberts & Tweedie 1996", world=mixtures(2, 2), schedule=smooth_schedules,
         z=vectors(2), eps=vectors(2), size=scalars("step sizes", 0.05, 1.5), t=times, cases=150)  # fmt: skip
def metropolis_detailed_balance(world, schedule, z, eps, size, t):
    """p(x) q(y | x) a(x, y) is symmetric in x and y for the Langevin proposal q and its acceptance a: so p is at rest; the draw
    that leads back does."""
    p, z, eps = at(schedule, t), z / 32, eps / 32
    known, delta = lambda z: exact.posterior(world, z, p), size * p.sigma**2
    here = known(z)
    y = langevin_step(here.score, z, eps, delta)
    there = known(y)
    back = draw_back(here.score, there.score, eps, delta)
    gained = there.log_prob - here.log_prob
    go = log_acceptance(gained, eps, back)
    come = log_acceptance(-gained, back, draw_back(there.score, here.score, back, delta))
    left = here.log_prob + _proposal(here, z, y, delta) + jnp.minimum(go, 0)
    right = there.log_prob + _proposal(there, y, z, delta) + jnp.minimum(come, 0)
    return [left, langevin_step(there.score, y, back, delta)], [right, z]


def _proposal(known, x, y, delta):
    """log q(y | x) of N(x + delta score, 2 delta), but for a constant."""
    return -jnp.sum((y - x - delta * known.score) ** 2) / (4 * delta)


@metropolis_detailed_balance.near_miss
def without_the_ratio_of_the_proposals(world, schedule, z, eps, size, t):
    """Accepted by p(y)/p(x) alone, as for a proposal that is symmetric."""
    p, z, eps = at(schedule, t), z / 32, eps / 32
    here, delta = exact.posterior(world, z, p), size * p.sigma**2
    y = langevin_step(here.score, z, eps, delta)
    there = exact.posterior(world, y, p)
    gained = there.log_prob - here.log_prob
    left = here.log_prob + _proposal(here, z, y, delta) + jnp.minimum(gained, 0)
    return left, there.log_prob + _proposal(there, y, z, delta) + jnp.minimum(-gained, 0)


@theorem(source="Hastings 1970; Green 1995, Sec. 3.2", kind="in law", z=vectors(1), eps=vectors(1), draw=scalars("normal draws", -2.5, 2.5),
         size=scalars("step sizes", 0.05, 1.5), t=times, cases=150)  # fmt: skip
def metropolis_step_is_reversible(z, eps, draw, size, t):
    """With r = p(y) N(back) |d(y, back)/d(z, eps)| / (p(z) N(eps)) the step goes from z to y where u < r and else stays at z; from y,
    by the draw back, it goes to z where u < 1/r: as much of p goes there as comes back, since r min(1, 1/r) = min(1, r)."""
    step, log_p, there_and_back = _metropolis(size, t)
    z, eps = z / 4, eps / 2
    (y, back), log_u = there_and_back(z, eps), _log_uniform(draw)
    (a, b), (c, d) = jax.jacfwd(there_and_back, argnums=(0, 1))(z, eps)
    log_r = log_p(y) - log_p(z) + _proposals(eps, back) + jnp.log(jnp.abs(a * d - b * c))[0, 0]
    right = [jnp.where(log_u < log_r, y, z), jnp.where(log_u < -log_r, z, y)]
    return [step(z, eps, draw), step(y, back, draw)], right


def _log_uniform(draw):
    """log of the uniform number that a normal draw stands for."""
    return jnp.log(erfc(-draw / math.sqrt(2)) / 2)


def _proposals(eps, back):
    """log N(back) - log N(eps)."""
    return (jnp.sum(eps**2) - jnp.sum(back**2)) / 2


def _wavy(z):
    """log of a density with several modes, but for a constant."""
    return jnp.sum(3 * jnp.cos(2 * z) - z**2 / 2)


def _metropolis(size, t):
    """(the shipped step, log p, (z, eps) -> (y, back) from the slope of log p) of any law: the draw back is solved for."""
    alpha, sigma = _stretched(t)
    delta, log_p = size * sigma**2, lambda z: _wavy(z / sigma)
    sampler = samplers.langevin(
        lambda z, t: (z - sigma * (6 * jnp.sin(2 * z / sigma) + z / sigma)) / alpha, _stretched, size=size,
        log_prob=lambda z, t: log_p(z),
    )  # fmt: skip

    def there_and_back(z, eps):
        y = z + delta * jax.grad(log_p)(z) + jnp.sqrt(2 * delta) * eps
        return y, (z - y - delta * jax.grad(log_p)(y)) / jnp.sqrt(2 * delta)

    return lambda z, eps, draw: sampler.step(jnp.stack([eps, draw + 0 * eps]), (), z, t, t)[0], log_p, there_and_back


UPHILL = {"z": np.array([2.0]), "eps": np.array([6.0]), "draw": np.float64(-1.0), "size": np.float64(1.5)}
"""Where p falls on the way and the draw back is far less likely still: refused, though the densities alone would take it."""


@metropolis_step_is_reversible.near_miss(witness=UPHILL)
def always_accepted(z, eps, draw, size, t):
    """Every proposal taken: the unadjusted step, which rests elsewhere."""
    step, _, there_and_back = _metropolis(size, t)
    return step(z / 4, eps / 2, draw), there_and_back(z / 4, eps / 2)[0]


def _accepted_by(ratio, z, eps, draw, size, t):
    step, log_p, there_and_back = _metropolis(size, t)
    z, eps = z / 4, eps / 2
    y, back = there_and_back(z, eps)
    taken = _log_uniform(draw) < ratio(log_p(y) - log_p(z), _proposals(eps, back))
    return step(z, eps, draw), jnp.where(taken, y, z)


@metropolis_step_is_reversible.near_miss(witness=UPHILL)
def accepted_by_the_ratio_upside_down(z, eps, draw, size, t):
    """Accepted where u < 1/r."""
    return _accepted_by(lambda gained, proposals: -gained - proposals, z, eps, draw, size, t)


@metropolis_step_is_reversible.near_miss(witness=UPHILL)
def accepted_by_the_densities_alone(z, eps, draw, size, t):
    """Accepted where u < p(y)/p(z), the proposal taken for a symmetric one."""
    return _accepted_by(lambda gained, proposals: gained, z, eps, draw, size, t)


@theorem(source="Song et al. 2021, Alg. 1", kind="in law", schedule=smooth_schedules, z=vectors(3), noises=vectors(3, 3),
         size=scalars("step sizes", 0.05, 1.5), t=times, s=earlier("t"), cases=300)  # fmt: skip
def predictor_then_corrector(schedule, z, noises, size, t, s):
    """`corrected` takes the predictor's step from t to s and then z + delta score + sqrt(2 delta) eps twice at s, delta = size
    sigma_s^2, each with a draw of its own; both see the time that was reached."""
    predictor, langevin = samplers.ddpm(_predict, schedule), samplers.langevin(_predict, schedule, size=size)
    both = samplers.corrected(predictor, langevin, steps=2)
    right = _move(predictor, noises[0], z, t, s)
    for eps in noises[1:]:
        right = _corrected(schedule, right, eps, size, s)
    return both.step(noises, both.init(z), z, t, s)[0], right


def _corrected(schedule, z, eps, size, s):
    q = at(schedule, s)
    return z + size * (q.alpha * _predict(z, s) - z) + q.sigma * jnp.sqrt(2 * size) * eps


@predictor_then_corrector.near_miss
def corrected_at_the_time_it_came_from(schedule, z, noises, size, t, s):
    """The corrector at t."""
    langevin = samplers.langevin(_predict, schedule, size=size)
    return _move(langevin, noises[0], z, t, s), _corrected(schedule, z, noises[0], size, t)


@predictor_then_corrector.near_miss
def noise_of_the_standard_deviation_delta(schedule, z, noises, size, t, s):
    """2 delta for its root, as in a deployed sampler."""
    langevin = samplers.langevin(_predict, schedule, size=size)
    return _move(langevin, noises[0], z, t, s), _corrected(schedule, z, noises[0] * jnp.sqrt(2 * size), size, s)
