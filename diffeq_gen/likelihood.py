"""Likelihood: exactly by the probability flow, in expectation by the ELBO.

    d log p(y)/dtheta = -div dy/dtheta along the flow      =>     log p(x0), from noise N(0, I)    Chen et al. 2018; Song et al. 2021
    -log p(x0) <= KL(q(z_1 | x0) | N) + 1/2 int E|eps - eps_hat|^2 d lambda + E[-log p(x0 | z_0)]  Kingma et al. 2021, Eq. 11

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
from diffeq_gen.predictions import convert, data, noise
from diffeq_gen.samplers.control import Control, output_of_rows
from diffeq_gen.samplers.runge_kutta import classical
from diffeq_gen.schedules import at
from diffeq_gen.traces import divergence, estimated
from diffeq_gen.types import Denoiser, Key, Point, Sample, Schedule, require

__all__ = ["Rate", "Solve", "State", "bits_per_dim", "decode", "elbo", "encode", "log_prob", "rates"]


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
    log_snr_min: float = -12.0, log_snr_max: float = 12.0,
) -> jax.Array:  # fmt: skip
    """A lower bound of log p(x0) in nats, of one sample: -(prior KL + diffusion + reconstruction), unbiased in the key.

    The integral over log-SNR is a mean over `samples` stratified draws.  Continuous x0: the reconstruction is the density
    N(z/alpha, e^{-log_snr_max} I) at x0, so the bound is one for the density.
    """
    low, high = (
        bound.astype(x0.dtype)
        for bound in clocks.log_snr_range(schedule, log_snr_min=log_snr_min, log_snr_max=log_snr_max)
    )
    time_key, noise_key, last_key = jax.random.split(key, 3)
    u = (jnp.arange(samples, dtype=x0.dtype) + jax.random.uniform(time_key, (samples,), x0.dtype)) / samples
    ladder = low + (high - low) * u

    def term(key: Key, log_snr: jax.Array) -> jax.Array:
        p = at(schedule, clocks.time_at(schedule, log_snr))
        eps = jax.random.normal(key, x0.shape, x0.dtype)
        z = p.alpha * x0 + p.sigma * eps
        return jnp.sum((convert(denoise(z, p.t), z, p, data, noise) - eps) ** 2)

    diffusion = (
        (high - low)
        / 2
        * jnp.mean(jax.lax.map(lambda pair: term(*pair), (jax.random.split(noise_key, samples), ladder)))
    )
    noisy = at(schedule, clocks.time_at(schedule, low))
    variance = noisy.alpha**2 + noisy.sigma**2
    share = noisy.sigma**2 / variance
    kl = jnp.sum((noisy.alpha * x0) ** 2) / (2 * variance) + x0.size / 2 * (share - 1 - jnp.log(share))
    eps = jax.random.normal(last_key, x0.shape, x0.dtype)
    reconstruction = jnp.sum(eps**2) / 2 + x0.size / 2 * (math.log(2 * math.pi) - high)
    return -(kl + diffusion + reconstruction)


def bits_per_dim(nats: jax.Array, dimensions: int, *, bin_width: float = 1.0) -> jax.Array:
    """(-nats / dimensions - log bin_width) / log 2: from the log-density of dequantised data to bits per dimension.

    `bin_width` is the distance between two neighbouring levels in the units of the density: 2/256 for bytes on [-1, 1].
    """
    return (-nats / dimensions - math.log(bin_width)) / math.log(2)
