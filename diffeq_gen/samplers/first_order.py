"""First-order samplers: one formula, and one number that tells them apart.

    z_s = (sigma_s/sigma_t) e^{-o/2} z_t - alpha_s expm1(-(Delta + o)/2) x0_hat + sigma_s sqrt(-expm1(-o)) eps

This is the bridge q_o(z_s | z_t, x0) with the denoiser in place of x0.  It is also a deterministic step that overshoots s
by o in log-SNR, taken back to s by fresh noise.  The overshoot is the method:

    ddim(eta)          o = -log1p(eta^2 expm1(-Delta))         variance eta^2 times DDPM's
    ddpm               o = Delta                               the Markov bridge
    churn(undone c)    o = Delta c / (1 - c)                   noise undoes the fraction c of what the step gained
    exponential(eta)   o = eta^2 Delta                         exact solution of the reverse SDE with frozen x0_hat
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffeq_gen.paths import bridge, eta_overshoot, noisy_gap, transition
from diffeq_gen.schedules import at
from diffeq_gen.types import Denoiser, Memory, Point, Sample, Sampler, Schedule, Time, concrete, require

__all__ = ["churn", "consistency", "ddim", "ddpm", "exponential", "first_order_step"]


def first_order_step(
    x0: Sample, z: Sample, eps: Sample, p: Point, q: Point, overshoot: jax.Array | float = 0.0
) -> Sample:
    """z_s = c_z z_t + c_x x0 + std eps, with the coefficients of `paths.bridge`.  Gao et al. 2024, 'Deterministic vs. stochastic'.

    Finite at alpha_t = 0 (the x0-form of DDIM) and at sigma_s = 0, where it returns alpha_s x0.
    Theorems: ddim-update, ddim-is-euler, ddim-equals-fm-euler, churn-general, ddpm-is-ddim-double-plus-renoise.
    """
    c_z, c_x, std = bridge(p, q, jnp.asarray(overshoot, z.dtype))
    return c_z * z + c_x * x0 + std * eps


def ddim(denoise: Denoiser, schedule: Schedule, *, eta: float = 0.0) -> Sampler:
    """z_s = alpha_s x0_hat + sqrt(sigma_s^2 - eta^2 v) eps_hat + eta sqrt(v) eps, v = -sigma_s^2 expm1(-Delta).  Song et al. 2021, Eq. 12.

    eta = 0 is deterministic, eta = 1 is `ddpm`; per step, eta^2 up to 1/(1 - e^{-Delta}) exists and more gives nan.
    Raises: ValueError where eta is negative.
    Theorems: ddim-update, ddim-is-euler, ddim-equals-fm-euler, ddim-rotation-form, ddim-scale-invariance-euler-not,
    ddim-eta-is-churn, eta-conventions, kdiff-ancestral-is-ddim-eta, consistency-sampler-is-eta-max, ddim-inversion-error,
    ddim-on-a-gaussian-shrinks-by-a-cosine.
    """
    require(lambda eta: eta >= 0, "eta must not be negative", eta=eta)
    still = _is_zero(eta)
    overshoot = lambda p, q: jnp.zeros_like(p.sigma) if still else eta_overshoot(p, q, eta)  # noqa: E731
    return _sampler(denoise, schedule, overshoot, noisy=not still)


def ddpm(denoise: Denoiser, schedule: Schedule, *, variance: float = 0.0) -> Sampler:
    """Ancestral sampling: mean of q(z_s | z_t, x0_hat), variance v_small^{1-variance} v_large^{variance}.  Ho et al. 2020, Sec. 3.2.

    v_small = -sigma_s^2 expm1(-Delta) (the Markov bridge's) is exact for data at a point, v_large = -sigma_t^2 expm1(-Delta)
    (the transition's) for standard normal data under a variance-preserving schedule; in between is the interpolation of
    Nichol & Dhariwal 2021, Eq. 15.  The step to sigma_s = 0 returns the mean.
    Raises: ValueError where variance lies outside [0, 1].
    Theorems: ancestral-posterior, ddpm-is-ddim-double-plus-renoise, ddpm-variance-endpoints, reverse-diffusion-predictor.
    """
    require(lambda variance: 0 <= variance <= 1, "variance must lie in [0, 1]", variance=variance)

    def step(noise: Sample, memory: Memory, z: Sample, t: Time, s: Time) -> tuple[Sample, Memory]:
        p, q = at(schedule, t), at(schedule, s)
        c_z, c_x, small = bridge(p, q)
        _, large = transition(p, q)
        std = jnp.where(q.sigma > 0, small ** (1 - variance) * large**variance, 0)
        return c_z * z + c_x * denoise(z, t) + std * noise[0], memory

    return Sampler(lambda z: (), step, noises=1)


def churn(denoise: Denoiser, schedule: Schedule, *, undone: float = 0.5) -> Sampler:
    """DDIM to log-SNR lambda_s + o, renoised back to lambda_s: o = Delta c/(1-c) undoes the fraction c.  Gao et al. 2024.

    undone = 0 is DDIM, 1/2 is DDPM, and the limit 1 forgets z_t altogether.
    Raises: ValueError where undone lies outside [0, 1).
    Theorems: churn-general, churn-weights-golden, sde-eta-exact-step.
    """
    require(lambda undone: 0 <= undone < 1, "undone must lie in [0, 1)", undone=undone)
    return _sampler(
        denoise, schedule, lambda p, q: _times(undone / (1 - undone), noisy_gap(p, q)), noisy=not _is_zero(undone)
    )


def consistency(f: Denoiser, schedule: Schedule) -> Sampler:
    """z_s = alpha_s f(z, t) + sigma_s eps: a guess at the data, and fresh noise on it.  Song et al. 2023, Alg. 1.

    For an f that sends each point of a path to where the path ends.  It is `ddim` with the largest eta, the limit undone = 1 of
    `churn`, and the naive sampler of Soft Diffusion; with a plain denoiser as f its law never tends to that of the data.
    Theorems: consistency-sampler-is-eta-max, consistency-by-name.
    """

    def step(noise: Sample, memory: Memory, z: Sample, t: Time, s: Time) -> tuple[Sample, Memory]:
        alpha, sigma = schedule(s)
        return alpha * f(z, t) + sigma * noise[0], memory

    return Sampler(lambda z: (), step, noises=1)


def exponential(denoise: Denoiser, schedule: Schedule, *, eta: float = 1.0) -> Sampler:
    """The reverse SDE of constant eta, solved exactly with x0_hat frozen over the step: o = eta^2 Delta.

    eta^2 is k-diffusion's eta of its SDE samplers.  The same knob as `churn`, with undone = eta^2/(1 + eta^2).
    Raises: ValueError where eta is negative.
    Theorems: sde-eta-exact-step, generalised-euler-in-churn-coordinates, eta-conventions, first-order-law-orders.
    """
    require(lambda eta: eta >= 0, "eta must not be negative", eta=eta)
    return _sampler(denoise, schedule, lambda p, q: _times(eta**2, noisy_gap(p, q)), noisy=not _is_zero(eta))


def _sampler(
    denoise: Denoiser, schedule: Schedule, overshoot: Callable[[Point, Point], jax.Array], noisy: bool
) -> Sampler:
    def step(noise: Sample, memory: Memory, z: Sample, t: Time, s: Time) -> tuple[Sample, Memory]:
        p, q = at(schedule, t), at(schedule, s)
        eps = noise[0] if noisy else jnp.zeros_like(z)
        return first_order_step(denoise(z, t), z, eps, p, q, overshoot(p, q)), memory

    return Sampler(lambda z: (), step, noises=int(noisy))


def _is_zero(value: float) -> bool:
    return concrete(value) and value == 0


def _times(factor: float, delta: jax.Array) -> jax.Array:
    """factor * delta, where 0 * inf is 0: a deterministic step to sigma_s = 0 overshoots by nothing."""
    return jnp.where(jnp.equal(factor, 0), 0, factor * delta)
