"""Chapter 5, samplers that add noise, one step at a time: DDPM, churn, DDIM(eta) and the SDE's exact step are one family.

to (alpha_r, sigma_r) with eps_hat kept, then back to s with fresh noise;  the knob is lambda_r
Delta = lambda_s - lambda_t:    DDPM lambda_s + Delta    churn lambda_s + Delta c/(1 - c)    SDE lambda_s + eta^2 Delta
"""

import jax
import jax.numpy as jnp

from diffeq_gen import paths, samplers
from diffeq_gen.schedules import at
from diffeq_gen.theorems.domains import earlier, fractions, positive, probabilities, scalars, schedules, times, vectors
from diffeq_gen.theorems.first_order import _ending, _move, _noise_in, _opening, _predict, _ratio
from diffeq_gen.theorems.registry import theorem
from diffeq_gen.types import Point

__all__: list[str] = []


def _root(variance):
    """The square root of a difference of variances, which rounding may have taken below zero."""
    return jnp.sqrt(jnp.maximum(variance, 0))


def _still(z, t):
    """Nothing predicted, so that nothing cancels."""
    return jnp.zeros_like(z)


def _variance(sampler, z, t, s):
    """What one step adds to the variance: the squared difference between noise one and noise nought."""
    return (_move(sampler, 0 * z + 1, z, t, s) - _move(sampler, 0 * z, z, t, s))[0] ** 2


def _there_and_back(x0, z, eps, p, q, alpha_r, sigma_r):
    """Keep eps_hat and walk to (alpha_r, sigma_r), then add what noise is missing at q."""
    scale = q.alpha / alpha_r
    z_r = alpha_r * x0 + sigma_r * _noise_in(x0, z, p)
    return scale * z_r + _root(q.sigma**2 - scale**2 * sigma_r**2) * eps


@theorem(source="Gao et al. 2024, 'Deterministic vs. stochastic samplers'", kind="in law", schedule=schedules,
         z=vectors(3), eps=vectors(3), size=positive("scales", 0.01, 100.0), t=times, s=earlier("t"))  # fmt: skip
def ddpm_is_ddim_double_plus_renoise(schedule, z, eps, size, t, s):
    """A DDPM step of Delta is a DDIM step of 2 Delta with the same x0_hat and as much fresh noise as leads back, whatever the
    scale of the point in between; the step to sigma_s = 0 returns alpha_s x0_hat, the one from alpha_t = 0 forgets z."""
    p, q, x0 = at(schedule, t), at(schedule, s), _predict(z, t)
    by_hand = _there_and_back(x0, z, eps, p, q, size, size * q.sigma / q.alpha * _ratio(p, q))
    step = _move(samplers.ddpm(_predict, schedule, variance=0.0), eps, z, t, s)
    last = _move(samplers.ddpm(_predict, _ending(schedule, s), variance=0.0), eps, z, t, s)
    first = _move(samplers.ddpm(_predict, _opening(schedule, t), variance=0.0), eps, z, t, s)
    ended, opened = q.alpha * x0, at(_opening(schedule, t), s)
    begun = opened.alpha * x0 + opened.sigma * eps
    t, s = (1 + t) / 2, s / 2  # so far apart that a point between them has digits of its own
    p, q, x0 = at(schedule, t), at(schedule, s), _predict(z, t)
    r = Point(s, size, size * q.sigma / q.alpha * _ratio(p, q), size, size)
    shipped = paths.renoise(samplers.first_order_step(x0, z, eps, p, r), eps, q, r)
    far = _move(samplers.ddpm(_predict, schedule, variance=0.0), eps, z, t, s)
    return [step, far, last, first], [by_hand, shipped, ended, begun]


@ddpm_is_ddim_double_plus_renoise.near_miss
def a_step_and_a_half(schedule, z, eps, size, t, s):
    """DDIM to one and a half times the gap."""
    p, q, x0 = at(schedule, t), at(schedule, s), _predict(z, t)
    step = _move(samplers.ddpm(_predict, schedule, variance=0.0), eps, z, t, s)
    return step, _there_and_back(x0, z, eps, p, q, size, size * q.sigma / q.alpha * jnp.sqrt(_ratio(p, q)))


@ddpm_is_ddim_double_plus_renoise.near_miss
def with_the_large_variance(schedule, z, eps, size, t, s):
    """The ancestral step with the variance of the forward transition."""
    p, q, x0 = at(schedule, t), at(schedule, s), _predict(z, t)
    step = _move(samplers.ddpm(_predict, schedule, variance=1.0), eps, z, t, s)
    return step, _there_and_back(x0, z, eps, p, q, size, size * q.sigma / q.alpha * _ratio(p, q))


@theorem(source="Gao et al. 2024, 'Deterministic vs. stochastic samplers' (churn)", kind="in law", schedule=schedules,
         z=vectors(3), eps=vectors(3), undone=probabilities, t=times, s=earlier("t"))  # fmt: skip
def churn_general(schedule, z, eps, undone, t, s):
    """Churn is DDIM to lambda_r with undone = (lambda_r - lambda_s)/(lambda_r - lambda_t), and noise back to lambda_s: none
    undone is DDIM, half is DDPM."""
    p, q, x0 = at(schedule, t), at(schedule, s), _predict(z, t)
    sigma_r = q.sigma / q.alpha * _ratio(p, q) ** (undone / (1 - undone))
    move = lambda sampler: _move(sampler, eps, z, t, s)  # noqa: E731
    left = [samplers.churn(_predict, schedule, undone=share) for share in (undone, 0.0, 0.5)]
    left.append(samplers.churn(_predict, _ending(schedule, s), undone=undone))
    right = [
        _there_and_back(x0, z, eps, p, q, jnp.ones_like(t), sigma_r),
        move(samplers.ddim(_predict, schedule)),
        move(samplers.ddpm(_predict, schedule)),
        q.alpha * x0,
    ]
    return [move(sampler) for sampler in left], right


@churn_general.near_miss
def fraction_of_the_step_kept(schedule, z, eps, undone, t, s):
    """The overshoot as the fraction of the step that is kept, Delta c, and not of what DDIM walked, Delta c/(1 - c)."""
    p, q, x0 = at(schedule, t), at(schedule, s), _predict(z, t)
    right = _there_and_back(x0, z, eps, p, q, jnp.ones_like(t), q.sigma / q.alpha * _ratio(p, q) ** undone)
    return _move(samplers.churn(_predict, schedule, undone=undone), eps, z, t, s), right


@theorem(source="Song et al. 2021 (DDIM), Sec. 4.1 and Eq. 16", kind="in law", schedule=schedules, z=vectors(3),
         eps=vectors(3), eta=fractions, t=times, s=earlier("t"))  # fmt: skip
def ddim_eta_is_churn(schedule, z, eps, eta, t, s):
    """DDIM(eta), of variance eta^2 times that of the Markov bridge, is churn to lambda_s - log(1 - eta^2 (1 - e^-Delta)); at the
    share f of the largest eta it mixes eps_hat and fresh noise as sqrt(1 - f^2) and f."""
    p, q, x0 = at(schedule, t), at(schedule, s), _predict(z, t)
    old, share = _noise_in(x0, z, p), 0.999 * eta
    small = (q.sigma / p.sigma) ** 2 * jnp.maximum(p.sigma**2 - (p.alpha / q.alpha * q.sigma) ** 2, 0)
    printed = q.alpha * x0 + _root(q.sigma**2 - eta**2 * small) * old + eta * jnp.sqrt(small) * eps
    fresh = jnp.maximum(1 - _ratio(p, q) ** 2, 0)
    churned = _there_and_back(x0, z, eps, p, q, jnp.ones_like(t), q.sigma / q.alpha * _root(1 - eta**2 * fresh))
    step = _move(samplers.ddim(_predict, schedule, eta=eta), eps, z, t, s)
    t, s = (1 + t) / 2, s / 2  # so far apart that 1 - e^-Delta has digits to divide by
    p, q, x0 = at(schedule, t), at(schedule, s), _predict(z, t)
    mixed = q.alpha * x0 + q.sigma * (jnp.sqrt(1 - share**2) * _noise_in(x0, z, p) + share * eps)
    largest = _move(samplers.ddim(_predict, schedule, eta=share / jnp.sqrt(1 - _ratio(p, q) ** 2)), eps, z, t, s)
    return [step, step, largest], [printed, churned, mixed]


@ddim_eta_is_churn.near_miss
def eta_scales_the_variance(schedule, z, eps, eta, t, s):
    """eta read as the factor of the variance, not of the standard deviation."""
    step = _move(samplers.ddim(_predict, schedule, eta=eta), eps, z, t, s)
    return step, _move(samplers.ddim(_predict, schedule, eta=jnp.sqrt(eta)), eps, z, t, s)


@ddim_eta_is_churn.near_miss
def noise_added_without_taking_any_away(schedule, z, eps, eta, t, s):
    """eta sqrt(v) eps on top of the deterministic step, whose own noise is left whole."""
    p, q = at(schedule, t), at(schedule, s)
    extra = eta * q.sigma * _root(1 - _ratio(p, q) ** 2) * eps
    left = _move(samplers.ddim(_predict, schedule, eta=eta), eps, z, t, s)
    return left, _move(samplers.ddim(_predict, schedule), eps, z, t, s) + extra


def _rates(schedule, x0, z, t, eta):
    """Drift and diffusion of the reverse SDE, from autodiff of log(alpha) and log(sigma): f z - (1 + eta^2)/2 g^2 score."""
    logs, slopes = jax.jvp(lambda r: tuple(jnp.log(part) for part in schedule(r)), (t,), (jnp.ones_like(t),))
    f, g2 = slopes[0], 2 * jnp.exp(2 * logs[1]) * (slopes[1] - slopes[0])
    score = (jnp.exp(logs[0]) * x0 - z) / jnp.exp(2 * logs[1])
    return f * z - (1 + eta**2) / 2 * g2 * score, eta * jnp.sqrt(g2)


@theorem(source="derived; Lu et al. 2022 (DPM-Solver++), SDE samplers", kind="in law", schedule=schedules, z=vectors(3),
         eps=vectors(3), eta=scalars("noise levels", 0.05, 2.0), t=times, s=earlier("t"))  # fmt: skip
def sde_eta_exact_step(schedule, z, eps, eta, t, s):
    """With x0_hat frozen the exponential step solves the reverse SDE of constant eta: its mean and variance satisfy the moment
    equations in s; it is churn with eta^2/(1 + eta^2) undone, and Euler-Maruyama its tangent, for any eta(t)."""
    x0 = _predict(z, t)
    frozen = lambda z, t: x0  # noqa: E731

    def moments(r):
        mean = _move(samplers.exponential(frozen, schedule, eta=eta), 0 * z, z, t, r)
        return mean, (_move(samplers.exponential(frozen, schedule, eta=eta), 0 * z + 1, z, t, r) - mean)[0] ** 2

    far = s / 2
    (mean, variance), (mean_dot, variance_dot) = jax.jvp(moments, (far,), (jnp.ones_like(t),))
    drift, diffusion = _rates(schedule, x0, mean, far, eta)
    contraction = (_rates(schedule, x0, 0 * z + 1, far, eta)[0] - _rates(schedule, x0, 0 * z, far, eta)[0])[0]
    move = lambda sampler: _move(sampler, eps, z, t, s)  # noqa: E731
    left = [mean_dot, variance_dot, move(samplers.exponential(_predict, schedule, eta=eta))]
    left += [
        move(samplers.exponential(_predict, schedule, eta=1.0)),
        move(samplers.exponential(_predict, schedule, eta=0.0)),
    ]
    right = [drift, 2 * contraction * variance - diffusion**2]
    right += [move(samplers.churn(_predict, schedule, undone=eta**2 / (1 + eta**2)))]
    right += [move(samplers.ddpm(_predict, schedule)), move(samplers.ddim(_predict, schedule))]
    for level in (eta, lambda r: eta * (0.5 + r**2)):
        drift, diffusion = _rates(schedule, x0, z, t, level(t) if callable(level) else level)
        left.append(move(samplers.euler_maruyama(_predict, schedule, eta=level)))
        right.append(z + (s - t) * drift + diffusion * jnp.sqrt(t - s) * eps)
    return left, right


@sde_eta_exact_step.near_miss
def undone_as_for_eta_unsquared(schedule, z, eps, eta, t, s):
    """The undone fraction eta/(1 + eta): right at eta = 1 only."""
    left = _move(samplers.exponential(_predict, schedule, eta=eta), eps, z, t, s)
    return left, _move(samplers.churn(_predict, schedule, undone=eta / (1 + eta)), eps, z, t, s)


@sde_eta_exact_step.near_miss
def euler_maruyama_is_exact(schedule, z, eps, eta, t, s):
    """One Euler-Maruyama step, thought exact because x0_hat is frozen."""
    left = _move(samplers.exponential(_predict, schedule, eta=eta), eps, z, t, s)
    return left, _move(samplers.euler_maruyama(_predict, schedule, eta=eta), eps, z, t, s)


@theorem(source="Song et al. 2021 (DDIM), Eq. 16; k-diffusion, get_ancestral_step and sample_dpmpp_2m_sde; Gao et al. 2024",
         kind="counterexample", schedule=schedules, z=vectors(2), eta=fractions, t=times, s=earlier("t"))  # fmt: skip
def eta_conventions(schedule, z, eta, t, s):
    """DDIM's eta gives the variance eta^2 sigma_s^2 (1 - e^-Delta), the SDE's eta gives sigma_s^2 (1 - e^(-eta^2 Delta)): they
    meet at eta = 0 and 1, where they are DDIM and DDPM, and nowhere else."""
    p, q, z = at(schedule, t), at(schedule, s), z / 128
    prior, transition = q.sigma**2, jnp.maximum(p.sigma**2 - (p.alpha / q.alpha * q.sigma) ** 2, 0)
    bayes = prior * transition / (transition + (p.alpha / q.alpha) ** 2 * prior)
    one, zero = 1 + 0 * eta, 0 * eta
    left = [_variance(samplers.ddim(_still, schedule, eta=level), z, t, s) for level in (eta, zero, one)]
    left += [_variance(samplers.exponential(_still, schedule, eta=level), z, t, s) for level in (eta, zero, one)]
    left += [_variance(samplers.ddpm(_still, schedule), z, t, s)]
    by_sde = prior * (1 - _ratio(p, q) ** (2 * eta**2))
    return left, [eta**2 * bayes, zero, bayes, by_sde, zero, bayes, bayes]


@eta_conventions.near_miss
def one_eta_everywhere(schedule, z, eta, t, s):
    """The same number handed to DDIM and to the SDE sampler."""
    ddim, sde = samplers.ddim(_still, schedule, eta=eta), samplers.exponential(_still, schedule, eta=eta)
    return _variance(ddim, z, t, s), _variance(sde, z, t, s)


@eta_conventions.near_miss
def eta_of_k_diffusion(schedule, z, eta, t, s):
    """The SDE's eta read as k-diffusion's, which is its square: right at 0 and 1."""
    q, ratio = at(schedule, s), _ratio(at(schedule, t), at(schedule, s))
    return _variance(samplers.exponential(_still, schedule, eta=eta), z, t, s), q.sigma**2 * (1 - ratio ** (2 * eta))


@theorem(source="k-diffusion, get_ancestral_step and sample_euler_ancestral", kind="in law", schedule=schedules,
         z=vectors(3), eps=vectors(3), eta=fractions, t=times, s=earlier("t"))  # fmt: skip
def kdiff_ancestral_is_ddim_eta(schedule, z, eps, eta, t, s):
    """In z/alpha and sigma/alpha, Euler down to sigma_down and noise sigma_up back is DDIM(eta); past the largest eta its cap
    makes it alpha_s x0_hat + sigma_s eps."""
    p, q, x0 = at(schedule, t), at(schedule, s), _predict(z, t)
    x, high, low = z / p.alpha, p.sigma / p.alpha, q.sigma / q.alpha

    def ancestral(eta):
        up = jnp.minimum(low, eta * low / high * _root(high**2 - low**2))
        down = _root(low**2 - up**2)
        return q.alpha * (x + (x - x0) / high * (down - high) + up * eps)

    capped = samplers.first_order_step(x0, z, eps, p, q, jnp.inf)
    left = [_move(samplers.ddim(_predict, schedule, eta=eta), eps, z, t, s), capped]
    return left, [ancestral(eta), q.alpha * (x0 + low * eps)]


@kdiff_ancestral_is_ddim_eta.near_miss
def down_by_subtraction(schedule, z, eps, eta, t, s):
    """sigma_down = sigma_s - sigma_up: standard deviations subtracted in place of variances."""
    p, q, x0 = at(schedule, t), at(schedule, s), _predict(z, t)
    x, high, low = z / p.alpha, p.sigma / p.alpha, q.sigma / q.alpha
    up = eta * low / high * _root(high**2 - low**2)
    right = q.alpha * (x + (x - x0) / high * (low - up - high) + up * eps)
    return _move(samplers.ddim(_predict, schedule, eta=eta), eps, z, t, s), right


@theorem(source="Song et al. 2023 (consistency models), Alg. 1", kind="in law", schedule=schedules, z=vectors(3),
         eps=vectors(3), t=times, s=earlier("t"))  # fmt: skip
def consistency_sampler_is_eta_max(schedule, z, eps, t, s):
    """The largest eta of DDIM, an infinite overshoot, forgets z but for x0_hat: alpha_s x0_hat + sigma_s eps; from alpha_t = 0
    that is eta = 1."""
    q, x0, opened = at(schedule, s), _predict(z, t), _opening(schedule, t)
    start, end = at(opened, t), at(opened, s)
    last = samplers.ddim(_predict, opened, eta=1.0)
    left = [samplers.first_order_step(x0, z, eps, at(schedule, t), q, jnp.inf), _move(last, eps, z, t, s)]
    left += [samplers.first_order_step(x0, z, eps, start, end, paths.eta_overshoot(start, end, 1.0))]
    return left, [q.alpha * x0 + q.sigma * eps] + 2 * [end.alpha * x0 + end.sigma * eps]


@consistency_sampler_is_eta_max.near_miss
def ddpm_forgets_as_much(schedule, z, eps, t, s):
    """eta = 1 taken for the largest: true only where alpha_t = 0."""
    q, x0 = at(schedule, s), _predict(z, t)
    return _move(samplers.ddim(_predict, schedule, eta=1.0), eps, z, t, s), q.alpha * x0 + q.sigma * eps


@theorem(source="Song et al. 2021 (DDIM), Lemma 1 and Theorem 1", kind="in law", schedule=schedules, x0=vectors(2),
         eta=fractions, undone=probabilities, t=times, s=earlier("t"))  # fmt: skip
def ddim_nonmarkov_family(schedule, x0, eta, undone, t, s):
    """Every kappa of N(alpha_s x0 + kappa (z - alpha_t x0), sigma_s^2 - kappa^2 sigma_t^2) keeps q(z_s | x0): DDIM(eta), DDPM,
    churn and the exponential step, for a denoiser that knows x0; the KL of a guess is (alpha_s - kappa alpha_t)^2 |x0 - x0_hat|^2
    over twice that variance."""
    p, q = at(schedule, t), at(schedule, s)
    known, zero, one = (lambda z, t: x0), jnp.zeros_like(x0), jnp.ones_like(x0)
    left, right = [], []
    for sampler in (
        samplers.ddim(known, schedule), samplers.ddim(known, schedule, eta=eta), samplers.ddpm(known, schedule),
        samplers.churn(known, schedule, undone=undone), samplers.exponential(known, schedule, eta=2 * eta),
    ):  # fmt: skip
        mean = _move(sampler, zero, p.alpha * x0, t, s)
        old = samplers.first_order_step(zero, p.sigma * one, zero, p, q, 0.0)
        kept = _move(sampler, zero, p.alpha * x0 + p.sigma, t, s) - mean
        fresh = _move(sampler, one, p.alpha * x0, t, s) - mean
        left += [mean, kept**2 + fresh**2]
        right += [q.alpha * x0, old**2]
    overshoot = -2 * jnp.log(1 - undone)
    c_z, c_x, std = paths.bridge(p, q, overshoot)
    kappa = q.sigma / p.sigma * (1 - undone)
    left += [c_z, c_x, std, (c_x / std) ** 2 / 2]
    variance = q.sigma**2 - (kappa * p.sigma) ** 2
    right += [kappa, q.alpha - kappa * p.alpha, jnp.sqrt(variance), (q.alpha - kappa * p.alpha) ** 2 / (2 * variance)]
    return left, right


@ddim_nonmarkov_family.near_miss
def large_variance_keeps_the_marginal(schedule, x0, eta, undone, t, s):
    """DDPM with the variance of the transition, thought a member of the family."""
    p, q, known = at(schedule, t), at(schedule, s), lambda z, t: x0
    sampler, mean = samplers.ddpm(known, schedule, variance=1.0), q.alpha * x0
    kept = _move(sampler, 0 * x0, p.alpha * x0 + p.sigma, t, s) - mean
    fresh = _move(sampler, 0 * x0 + 1, p.alpha * x0, t, s) - mean
    return kept**2 + fresh**2, q.sigma**2 + 0 * x0


@ddim_nonmarkov_family.near_miss
def kappa_of_variance_exploding(schedule, x0, eta, undone, t, s):
    """DDPM's kappa as sigma_s^2/sigma_t^2: right only where alpha is constant."""
    p, q = at(schedule, t), at(schedule, s)
    return paths.bridge(p, q)[0], (q.sigma / p.sigma) ** 2


def _resting(without, size, rest):
    """A schedule without signal (0) or without noise (1), the other as large as a power of `size` at each time."""
    return lambda t: (size ** (t - rest), 0 * t)[:: 1 if without else -1]


def _at_rest(eps, z, size, rest, t, s, scale):
    """Every way to take a step where nothing but the scale changes, and z times `scale`."""
    left, right = [], []
    for without in (0, 1):
        schedule = _resting(without, size, rest)
        made = [samplers.ddim(_predict, schedule), samplers.ddim(_predict, schedule, eta=1.0)]
        made += [samplers.ddpm(_predict, schedule, variance=0.5), samplers.churn(_predict, schedule)]
        made += [samplers.exponential(_predict, schedule), samplers.multistep(_predict, schedule, rule="slope")]
        left += [_move(sampler, eps, z, t, s) for sampler in made]
        left.append(paths.renoise(z, eps, at(schedule, t), at(schedule, s)))
        right += [scale * z] * len(made) + [z / scale]
    return left, right


@theorem(source="derived", z=vectors(3), eps=vectors(3), size=positive("scales", 0.01, 100.0), rest=fractions, t=times,
         s=earlier("t"))  # fmt: skip
def at_rest_a_step_only_scales(z, eps, size, rest, t, s):
    """Between two points of pure noise a step multiplies z by sigma_s/sigma_t, and between two of pure data by
    alpha_s/alpha_t, whatever the network says and however much noise is asked for; and so does the way back."""
    return _at_rest(eps, z, size, rest, t, s, size ** (s - t))


@at_rest_a_step_only_scales.near_miss
def the_way_back_is_the_way(z, eps, size, rest, t, s):
    """The scale turned over."""
    return _at_rest(eps, z, size, rest, t, s, size ** (t - s))


@at_rest_a_step_only_scales.near_miss
def the_network_is_heard(z, eps, size, rest, t, s):
    """Noise without signal at t alone."""
    step = samplers.ddim(_predict, _opening(lambda r: (size ** (r - rest), size ** (r - rest)), t))
    return _move(step, eps, z, t, s), size ** (s - t) * z
