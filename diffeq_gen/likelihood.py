"""Likelihood: exactly by the probability flow, in expectation by the ELBO, by squared errors alone (I-MMSE).

    d log p(y)/dtheta = -div dy/dtheta along the flow      =>     log p(x0), from noise N(0, I)    Chen et al. 2018; Song et al. 2021
    -log p(x0) <= KL(q(z_1 | x0) | N) + 1/2 int E|eps - eps_hat|^2 d lambda + E[-log p(x0 | z_0)]  Kingma et al. 2021, Eq. 11
    log p(x0) = log N(x0; m, C) + 1/2 int E[|eps - eps_G|^2 - |eps - eps_hat|^2] d lambda          Kong et al. 2023

The three are one number for an exact denoiser.  For any other the flow has a law of its own, with eps_p = -sigma grad log p(z):

    log p(x0) of the flow = that of squared errors + 1/2 int E[(eps - eps_hat) . (eps_p - eps_hat)] d lambda       Lu et al. 2022

The flow is that of `samplers.control`: in the whitened state y, and in the angle theta of the data's scale, it stands still on
Gaussian data of the control's moments, and its slope is smooth from no data to no noise: few steps tell many digits.  The ELBO
runs in log-SNR, between the ends of `clocks.log_snr_range`: at the clean end the model is
p(x0 | z) = N(z/alpha, e^{-lambda_max} I), at the noisy end N(0, alpha^2 + sigma^2).  All in nats; `bits_per_dim` converts.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffeq_gen import clocks
from diffeq_gen.dequantisation import Bins
from diffeq_gen.paths import perturb
from diffeq_gen.predictions import convert, data, noise
from diffeq_gen.samplers.control import Control, output_of_rows, whitened_output
from diffeq_gen.samplers.runge_kutta import classical
from diffeq_gen.schedules import at
from diffeq_gen.traces import divergence, estimated, rademacher_probes
from diffeq_gen.types import Denoiser, Key, Point, Sample, Schedule, Time, require
from diffeq_gen.variational import prior_kl, reconstruction

__all__ = [
    "Rate",
    "Solve",
    "State",
    "advantage",
    "bits_per_dim",
    "decode",
    "elbo",
    "encode",
    "excess",
    "flow_gap",
    "immse",
    "log_prob",
    "rates",
]


State = tuple[Sample, jax.Array]
"""A sample, and a number that is gathered along with it."""
Rate = Callable[[jax.Array, State], State]
"""(theta, state) -> d state/dtheta."""
Solve = Callable[[Rate, State, jax.Array, jax.Array], State]
"""(rate, state, start, end) -> the state at the end, start and end in either order."""


def rates(denoise: Denoiser, schedule: Schedule, control: Control, *, probes: Sample | None = None) -> Rate:
    """d(y, l)/dtheta along the flow of one sample y = C_t^{-1/2} (z - alpha m), C_t = alpha^2 C + sigma^2, of the control's N(m, C).

        dy/dtheta = sum_i u_i u_i^T F k_i/(cos^2 theta + k_i^2 sin^2 theta),      k_i^2 = c_i/c,  tan theta = sqrt(c) alpha/sigma
        dl/dtheta = tr of its Jacobian

    along the axes u_i of C, c = (tr C^2/d)^{1/2}.  Both are zero on Gaussian data of these moments.  The trace costs d directional
    derivatives, or one for each of the `probes` (k, *event), and is then an estimate.
    Theorems: angle-is-the-clock-of-any-schedule, instantaneous-change-of-variables.
    """

    def slope(theta: jax.Array, y: Sample) -> Sample:
        p, rows = _point(schedule, control, theta), control.rows(y)
        x0 = denoise(control.colour(rows, y, p), p.t)
        output = output_of_rows(control, control.rows(control.about(x0, 1.0)), rows, p)
        share = control.roots() / _root(control)
        turned = output * share / (jnp.square(jnp.cos(theta)) + jnp.square(share * jnp.sin(theta)))
        return control.across(turned).reshape(y.shape)

    def rate(theta: jax.Array, state: State) -> State:
        along = lambda y: slope(theta, y)  # noqa: E731
        return divergence(along, state[0]) if probes is None else estimated(along, state[0], probes)

    return rate


def encode(
    denoise: Denoiser, schedule: Schedule, x0: Sample, *, steps: int = 32, solve: Solve | None = None, control: Control | None = None,
    probes: Sample | None = None, log_snr_min: float = -12.0, log_snr_max: float = 12.0,
) -> tuple[Sample, jax.Array]:  # fmt: skip
    """(y, log p(x0) in nats): the noise that the probability flow makes of one sample, and its density by the change of variables.

        log p(x0) = log N(y_low; 0, I) - int div (dy/dtheta) dtheta - log|C_high^{1/2}| + d log alpha_high

    by the classical Runge-Kutta rule in theta, four evaluations a step, whose error falls as steps^-4; or by `solve`, any of
    diffrax's as `adapters.solve` makes it.  The start is x0 itself at log_snr_max, as the law of x0 blurred by e^{-log_snr_max/2}:
    data without such a blur need dequantisation, or a larger log_snr_max.  The end is taken for N(0, I), which errs by O(theta^3) where
    m and C are the moments of the data, by O(theta) elsewhere.  Left out, the control is N(0, I).
    Raises: ValueError where steps is not positive.
    Theorems: likelihood-is-exact-for-gaussians, instantaneous-change-of-variables.
    """
    control = _plain(x0) if control is None else control
    clean, noisy = _ends(schedule, control, log_snr_min, log_snr_max, x0.dtype)
    p, rate = _point(schedule, control, clean), rates(denoise, schedule, control, probes=probes)
    y = control.across(control.whiten(p.alpha * x0, p)).reshape(x0.shape)
    y, gained = _followed(rate, y, clean, noisy, steps, solve)
    return y, _log_normal(y) + gained - _log_volume(control, p, x0.size)


def decode(
    denoise: Denoiser, schedule: Schedule, y: Sample, *, steps: int = 32, solve: Solve | None = None, control: Control | None = None,
    probes: Sample | None = None, log_snr_min: float = -12.0, log_snr_max: float = 12.0,
) -> tuple[Sample, jax.Array]:  # fmt: skip
    """(x0, log p(x0) in nats) of noise y ~ N(0, I): the way back of `encode`, with the density of where it ends.

    Raises: ValueError where steps is not positive.
    Theorems: likelihood-is-exact-for-gaussians, instantaneous-change-of-variables.
    """
    control = _plain(y) if control is None else control
    clean, noisy = _ends(schedule, control, log_snr_min, log_snr_max, y.dtype)
    p, rate = _point(schedule, control, clean), rates(denoise, schedule, control, probes=probes)
    moved, lost = _followed(rate, y, noisy, clean, steps, solve)
    x0 = control.colour(control.rows(moved), moved, p) / p.alpha
    return x0, _log_normal(y) - lost - _log_volume(control, p, y.size)


def log_prob(denoise: Denoiser, schedule: Schedule, x0: Sample, **options: Any) -> jax.Array:
    """log p(x0) in nats, of one sample: what `encode`, whose options these are, says of it.

    Theorems: likelihood-is-exact-for-gaussians, instantaneous-change-of-variables.
    """
    return encode(denoise, schedule, x0, **options)[1]


def _plain(x0: Sample) -> Control:
    return Control(jnp.zeros_like(x0), jnp.ones((), x0.dtype))


def _root(control: Control) -> jax.Array:
    """sqrt(c): the scale of the data."""
    return control.mean_of(jnp.square) ** 0.25


def _ends(schedule: Schedule, control: Control, low: float, high: float, dtype: jnp.dtype) -> list[jax.Array]:
    """The angle where data are cleanest, and that where they are noisiest."""
    low, high = clocks.log_snr_range(schedule, log_snr_min=low, log_snr_max=high)
    return [jnp.arctan(_root(control) * jnp.exp(log_snr / 2)).astype(dtype) for log_snr in (high, low)]


def _point(schedule: Schedule, control: Control, theta: jax.Array) -> Point:
    log_snr = 2 * jnp.log(jnp.tan(theta) / _root(control).astype(theta.dtype))
    return at(schedule, clocks.within(clocks.time_at(schedule, log_snr)))


def _log_normal(y: Sample) -> jax.Array:
    return -jnp.sum(jnp.square(y)) / 2 - y.size / 2 * math.log(2 * math.pi)


def _log_volume(control: Control, p: Point, d: int) -> jax.Array:
    """log |C_t^{1/2}/alpha|."""
    wide = lambda variance: jnp.log(variance + jnp.square(p.sigma / p.alpha)) / 2  # noqa: E731
    return d * control.mean_of(wide)


def _followed(rate: Rate, y: Sample, start: jax.Array, end: jax.Array, steps: int, solve: Solve | None) -> State:
    """(y, int trace dtheta) at the end: by the classical Runge-Kutta rule in equal steps, where nothing else is to solve."""
    state = y, jnp.zeros((), y.dtype)
    if solve is not None:
        return solve(rate, state, start, end)
    require(lambda steps: steps >= 1, "steps must be positive", steps=steps)
    h = (end - start) / steps

    def step(state: State, i: jax.Array) -> tuple[State, None]:
        return classical(lambda state, theta: rate(theta, state), state, start + i * h, h), None

    return jax.lax.scan(step, state, jnp.arange(steps, dtype=h.dtype))[0]


def elbo(
    key: Key, denoise: Denoiser, schedule: Schedule, x0: Sample, *, samples: int = 64,
    log_snr_min: float = -12.0, log_snr_max: float = 12.0, bins: Bins | None = None,
) -> jax.Array:  # fmt: skip
    """A lower bound of log p(x0) in nats, of one sample: -(prior KL + diffusion + reconstruction), unbiased in the key.

    The integral over log-SNR is a mean over `samples` stratified draws.  Continuous x0: the reconstruction is the density
    N(z/alpha, e^{-log_snr_max} I) at x0, in its mean over z, so the bound is one for the density.  Of data on the middles of `bins` it
    is that of `variational`, and the bound, the limit of many steps of `variational.vlb`, is one for their probability.
    Raises: ValueError where x0 does not lie on the middles of the bins.
    Theorems: elbo-continuous-limit, elbo-is-tight-in-expectation.
    """
    low, high = _reach(schedule, log_snr_min, log_snr_max, x0.dtype)
    time_key, noise_key, last_key = jax.random.split(key, 3)

    def term(key: Key, log_snr: jax.Array) -> jax.Array:
        p = at(schedule, clocks.time_at(schedule, log_snr))
        eps = jax.random.normal(key, x0.shape, x0.dtype)
        z = perturb(x0, eps, p)
        return jnp.sum((convert(denoise(z, p.t), z, p, data, noise) - eps) ** 2)

    drawn = jax.random.split(noise_key, samples), _ladder(time_key, low, high, samples)
    diffusion = (high - low) / 2 * jnp.mean(jax.lax.map(lambda pair: term(*pair), drawn))
    noisy, clean = (at(schedule, clocks.time_at(schedule, log_snr)) for log_snr in (low, high))
    if bins is None:
        last = x0.size / 2 * (math.log(2 * math.pi) + 1 - high)
    else:
        eps = jax.random.normal(last_key, x0.shape, x0.dtype)
        last = reconstruction(x0, perturb(x0, eps, clean), clean, bins)
    return -(prior_kl(x0, noisy) + diffusion + last)


def immse(
    key: Key, denoise: Denoiser, schedule: Schedule, x0: Sample, *, samples: int = 64, control: Control | None = None,
    log_snr_min: float = -12.0, log_snr_max: float = 12.0,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """(log p(x0) in nats, the standard error of its draws), of one sample, by squared errors alone.  Kong et al. 2023.

        log p_v(x0) = log N(x0; m, C + v I) + 1/2 int E[`advantage`] d lambda + rest,       v = e^{-log_snr_max}

    p_v is the law of x0 blurred by sqrt(v), taken at x0 itself: the density that `encode` tells.  rest is what the noisy end leaves,
    E log p(z)/N_G(z) there: O(e^{3 log_snr_min}) where m and C are the moments of the data, O(e^{log_snr_min}) elsewhere.  On Gaussian
    data of the control's moments nothing is integrated, and no draw is heard.  Left out, the control is N(0, I).

    `samples` calls of the denoiser: pairs +-eps, one pair in each of samples/2 strata of log-SNR.  The error is by differences of
    neighbours, and too large by what the strata themselves differ.
    An identity for the exact denoiser alone.  For any other the value is that of the bound of `bounds.path_kl_rate`: in the mean below
    the log-density at log_snr_max of the SDE that starts from the control's Gaussian (Song et al. 2021, Theorem 3), and, averaged over
    data, below minus their entropy; of the log-density of data at one x0 it is neither a lower nor an upper bound.
    Raises: ValueError where samples is odd or less than four.
    Theorems: i-mmse-between-two-ends, i-mmse-is-the-density-of-the-flow, pointwise-i-mmse-likelihood, i-mmse-is-the-elbo-of-a-blur.
    """
    control = _plain(x0) if control is None else control
    low, high = _reach(schedule, log_snr_min, log_snr_max, x0.dtype)

    def one(_: Key, eps: Sample, log_snr: jax.Array) -> jax.Array:
        return advantage(denoise, schedule, x0, eps, log_snr, control=control, log_snr_max=high)

    gained, error = _half_integral(key, one, x0, low, high, samples)
    p = at(schedule, clocks.within(clocks.time_at(schedule, high)))
    y = control.whiten(p.alpha * x0, p)
    return _log_normal(control.across(y)) - _log_volume(control, p, x0.size) + gained, error


def _reach(schedule: Schedule, low: float, high: float, dtype: jnp.dtype) -> list[jax.Array]:
    """The log-SNRs of the noisy and of the clean end."""
    return [end.astype(dtype) for end in clocks.log_snr_range(schedule, log_snr_min=low, log_snr_max=high)]


def _ladder(key: Key, low: jax.Array, high: jax.Array, strata: int) -> jax.Array:
    """One log-SNR in each of as many strata between the ends."""
    u = jax.random.uniform(key, (strata,), low.dtype)
    return low + (high - low) * (jnp.arange(strata, dtype=low.dtype) + u) / strata


def _half_integral(
    key: Key, one: Callable[[Key, Sample, jax.Array], jax.Array], x0: Sample, low: jax.Array, high: jax.Array, samples: int
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """(1/2 int E[one(key, eps, lambda)] d lambda, its standard error by differences of neighbours): a pair +-eps in each stratum."""
    require(
        lambda samples: samples >= 4 and samples % 2 == 0, "samples must be even, and at least four", samples=samples
    )
    time_key, noise_key = jax.random.split(key)

    def pair(drawn: tuple[Key, jax.Array]) -> jax.Array:
        key, log_snr = drawn
        eps = jax.random.normal(key, x0.shape, x0.dtype)
        return jnp.mean(jax.vmap(lambda eps: one(key, eps, log_snr))(jnp.stack([eps, -eps])))

    drawn = jax.random.split(noise_key, samples // 2), _ladder(time_key, low, high, samples // 2)
    values = (high - low) / 2 * jax.lax.map(pair, drawn)
    return jnp.mean(values), jnp.sqrt(jnp.mean(jnp.square(jnp.diff(values))) / 2 / len(values))


def advantage(
    denoise: Denoiser, schedule: Schedule, x0: Sample, eps: Sample, log_snr: jax.Array, *, control: Control,
    log_snr_max: jax.Array | float = math.inf,
) -> jax.Array:  # fmt: skip
    """[|eps - r eps_G(z)|^2 - |eps - r eps_hat(z)|^2]/r^2 at z = alpha x0 + r sigma eps, r^2 = 1 - e^{lambda - log_snr_max}.

    By how much the denoiser tells noise better than that of the control's N(m, C), G, for one draw: half of it is the integrand of
    log p/N(m, C) in log-SNR.  r is 1 where log_snr_max is infinite; where it is not, x0 stands for a draw of the law at log_snr_max,
    which has that much noise in it already.  Near log_snr_max it grows as eps/r, which +-eps cancels.  No two large squares are
    subtracted: eps_hat - eps_G = -sin(theta) F along the axes, F of `samplers.control`, and what is told is its product with
    2 eps/r - eps_G - eps_hat.
    Theorems: i-mmse-between-two-ends, i-mmse-is-the-density-of-the-flow, i-mmse-is-the-elbo-of-a-blur.
    """
    p, fresh, z = _noised(schedule, x0, eps, log_snr, log_snr_max)
    y, output = whitened_output(control, denoise(z, p.t), z, p)
    std = jnp.hypot(p.alpha * control.roots(), p.sigma)
    better = p.alpha * control.roots() / std * output
    return -jnp.sum(better * (2 * (control.rows(eps) / fresh - p.sigma / std * y) + better))


def _noised(
    schedule: Schedule, x0: Sample, eps: Sample, log_snr: jax.Array, log_snr_max: jax.Array | float
) -> tuple[Point, jax.Array, Sample]:
    """(the point of a log-SNR, r, alpha x0 + r sigma eps), r^2 = 1 - e^{lambda - log_snr_max}."""
    p = at(schedule, clocks.within(clocks.time_at(schedule, log_snr)))
    fresh = jnp.sqrt(jnp.maximum(-jnp.expm1(log_snr - log_snr_max), jnp.finfo(x0.dtype).eps))
    return p, fresh, p.alpha * x0 + p.sigma * (fresh * eps)


def excess(
    denoise: Denoiser, carried: Denoiser, schedule: Schedule, x0: Sample, eps: Sample, log_snr: jax.Array, *,
    log_snr_max: jax.Array | float = math.inf,
) -> jax.Array:  # fmt: skip
    """(eps/r - eps_hat) . (eps_p - eps_hat) at the z of `advantage`: eps_hat the denoiser's, eps_p that of the law its flow carries.

        d/dlambda E log p(z)/G(z) = 1/2 E[`advantage` + `excess`]          p the law carried by the flow of any denoiser

    `carried` is the denoiser of p, (z + sigma^2 grad log p)/alpha.  It is the denoiser itself, and the excess zero, where that is exact
    for some data: then alone do the flow and the SDE of a score have one law.
    Theorems: the-flow-of-a-wrong-score-has-a-law-of-its-own.
    """
    p, fresh, z = _noised(schedule, x0, eps, log_snr, log_snr_max)
    x0_hat, x0_carried = denoise(z, p.t), carried(z, p.t)
    said = convert(x0_hat, z, p, data, noise)
    return jnp.sum((eps / fresh - said) * (p.alpha / p.sigma * (x0_hat - x0_carried)))


def flow_gap(
    key: Key, denoise: Denoiser, schedule: Schedule, x0: Sample, *, samples: int = 32, steps: int = 16, control: Control | None = None,
    exact_trace: bool = False, log_snr_min: float = -12.0, log_snr_max: float = 12.0,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """(log p(x0) by the flow less what `immse` tells in the mean, in nats; the standard error of its draws), of one sample.

        log p_flow(x0) = E `immse` + 1/2 int E[`excess`] dlambda,      eps_p = -sigma grad_z log p_flow(z), by `log_prob` from there

    for any denoiser: by how much the law of its flow differs from that of the bound of its SDE.  Zero for an exact one.  Lu et al. 2022
    ('Maximum likelihood training for score-based diffusion ODEs') have its mean over data.  Each of the `samples`, pairs +-eps in
    strata of log-SNR, costs one gradient of `log_prob`, its trace by one probe of signs, without bias, or exactly.
    Raises: ValueError where samples is odd or less than four, or steps is not positive.
    Theorems: the-flow-of-a-wrong-score-has-a-law-of-its-own.
    """
    control = _plain(x0) if control is None else control
    low, high = _reach(schedule, log_snr_min, log_snr_max, x0.dtype)

    def one(key: Key, eps: Sample, log_snr: jax.Array) -> jax.Array:
        probes = None if exact_trace else rademacher_probes(jax.random.fold_in(key, 1), x0.shape).astype(x0.dtype)
        settings = {
            "steps": steps,
            "control": control,
            "probes": probes,
            "log_snr_min": log_snr_min,
            "log_snr_max": log_snr,
        }

        def carried(z: Sample, t: Time) -> Sample:
            p = at(schedule, t)
            x = z / p.alpha
            return x + jnp.square(p.sigma / p.alpha) * jax.grad(lambda x: log_prob(denoise, schedule, x, **settings))(x)

        return excess(denoise, carried, schedule, x0, eps, log_snr, log_snr_max=high)

    return _half_integral(key, one, x0, low, high, samples)


def bits_per_dim(nats: jax.Array, dimensions: int, *, bin_width: float = 1.0) -> jax.Array:
    """(-nats / dimensions - log bin_width) / log 2: from the log-density of dequantised data to bits per dimension.

    `bin_width` is the distance between two neighbouring levels in the units of the density: 2/256 for bytes on [-1, 1].
    Theorems: bits-do-not-depend-on-units.
    """
    return (-nats / dimensions - math.log(bin_width)) / math.log(2)
