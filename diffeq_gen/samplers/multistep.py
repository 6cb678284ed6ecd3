"""Multistep solvers: the prediction is a polynomial through its values at this step and at those before.

    F(y) ~ the polynomial through (0, F(z_t, t)), (y_1, F_1), ...,        y_k < 0 along the rule's coordinate

One evaluation a step whatever the order.  A corrector takes the step before once more, now that its end is known, and so
costs nothing either: the evaluation at its end is the one that the next step needs.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffeq_gen.samplers.first_order import first_order_step
from diffeq_gen.samplers.interpolation import RULES, Rule, change, churned_data, constant_noise, require_order
from diffeq_gen.schedules import at
from diffeq_gen.types import Denoiser, Point, Sample, Sampler, Schedule, Time, concrete, require

__all__ = ["Past", "er_sde", "er_sde_noise", "lms", "multistep", "unipc"]


class Past(NamedTuple):
    """What a multistep solver remembers: the last step as first order would take it, its noise included (for the corrector
    alone), and F, alpha, sigma of the last steps, newest first.

    Before the first step nothing is known: alpha = 0 puts every node infinitely far away.
    """

    plain: Sample
    values: tuple[Sample, ...]
    alphas: tuple[jax.Array, ...]
    sigmas: tuple[jax.Array, ...]


def multistep(
    denoise: Denoiser, schedule: Schedule, *, order: int = 2, rule: str = "data", corrector: bool = False,
    two_point: str = "exact", eta: float = 0.0,
) -> Sampler:  # fmt: skip
    """The exponential Adams-Bashforth method of this order, from 1 (DDIM) to 4.  Lu et al. 2022 (DPM-Solver++), Eq. 8.

    rule "data" with two_point="midpoint" is DPM-Solver++(2M); with order 3 it is what DPM-Solver++(3M) means to be (the
    shipped ones lack a factor 2 and have order 2).  "noise" is the multistep DPM-Solver, "slope" is `lms`.  The step to
    sigma_s = 0, and one from alpha_t = 0, is DDIM's.  It starts by lower orders, so the whole run has at most order 2 (3
    with the corrector) unless it is started otherwise.

    `eta` > 0 solves the reverse SDE of that noise level, by rule "data" alone: order 1 is `exponential`, order 2 is
    SDE-DPM-Solver++(2M), where k-diffusion calls eta^2 its eta and two_point="exact" "heun".  Its law has order 2 at most,
    whatever `order` is.  With the corrector, which keeps the noise of the step, it is SA-Solver of tau = eta in form (Xue et al. 2023).
    Raises: ValueError where order is not 1, 2, 3 or 4, a name is unknown, eta is negative, or eta > 0 has another rule.
    Theorems: variation-of-constants, unip2-is-2m, second-order-solvers, third-order-solvers,
    dpmpp-3m-shipped-is-order2, multistep-startup-cap, solver-trajectory-equivalence, solvers-are-exact-for-a-point,
    sde-variation-of-constants, kdiff-sde-solvers, stochastic-law-orders.
    """
    require_order(order)
    _require_name("rule", rule, tuple(RULES))
    _require_name("two_point", two_point, ("exact", "midpoint", "trapezoid"))
    still = concrete(eta) and eta == 0
    form = RULES[rule] if still else constant_noise(eta)
    require(lambda rule: still or rule == "data", "eta > 0 needs rule 'data'", rule=rule)
    return _solver(denoise, schedule, form, order, corrector, two_point, noises=0 if still else 1)


def lms(denoise: Denoiser, schedule: Schedule, *, order: int = 4) -> Sampler:
    """Adams-Bashforth for d(z/alpha)/d(sigma/alpha) = eps_hat: k-diffusion's LMS, and DEIS with polynomials in rho.

    Zhang & Chen 2023, Eq. 15.  The integrals of the polynomials are exact.
    Raises: ValueError where order is not 1, 2, 3 or 4.
    Theorems: lms-is-adams-bashforth, variation-of-constants, multistep-startup-cap.
    """
    return multistep(denoise, schedule, order=order, rule="slope")


def unipc(denoise: Denoiser, schedule: Schedule, *, order: int = 2, variant: str = "bh2") -> Sampler:
    """UniPC of order `order` + 1, for x0_hat: a predictor of that order, a corrector of one more, one evaluation a step.

    Zhao et al. 2023, Alg. 1 and 2.  Started by itself it has at most order 3.

    `variant` is their B(h), "bh1" (h) or "bh2" (e^h - 1).  It matters where two points are all there is; from three on, both
    are the exact integral of the interpolating polynomial.
    Raises: ValueError where order is not 1, 2, 3 or 4, or variant is neither.
    Theorems: second-order-solvers, third-order-solvers, unipc-corrects-to-one-degree-more, unip2-is-2m.
    """
    _require_name("variant", variant, ("bh1", "bh2"))
    two_point = "trapezoid" if variant == "bh1" else "midpoint"
    return multistep(denoise, schedule, order=order, corrector=True, two_point=two_point)


def er_sde_noise(log_snr: jax.Array) -> jax.Array:
    """N = -2 log(e^{rho^0.3} + 10), rho = sigma/alpha: the noise scale phi = rho (e^{rho^0.3} + 10) of ER-SDE-5, quoted from memory.

    Much noise while the sample is noisy, less and less later: eta^2 = dN/dlambda falls to 0.
    Theorems: er-sde-noise-scale.
    """
    return -2 * jnp.logaddexp(jnp.exp(-0.15 * log_snr), jnp.log(jnp.full_like(log_snr, 10)))


def er_sde(
    denoise: Denoiser, schedule: Schedule, *, order: int = 2, noise: Callable[[jax.Array], jax.Array] = er_sde_noise
) -> Sampler:
    """The reverse SDE whose noise level is any function of log-SNR: o = N(lambda_s) - N(lambda_t), eta^2 = dN/dlambda.  Cui et al. 2023.

    `noise` is N, which must not fall; their noise scale function is phi = (sigma/alpha) e^{-N/2}, and eta^2 lambda gives
    `multistep` of constant eta.  Order 1 is their ER-SDE-Solver-1; the higher ones interpolate x0_hat exactly along -log(phi),
    where theirs take differences in sigma/alpha.
    Raises: ValueError where order is not 1, 2, 3 or 4.
    Theorems: er-sde-noise-scale, sde-variation-of-constants.
    """
    require_order(order)

    def overshoot(alpha: jax.Array, sigma: jax.Array, alpha_q: jax.Array, sigma_q: jax.Array) -> jax.Array:
        gained = noise(2 * jnp.log(alpha_q / sigma_q)) - noise(2 * jnp.log(alpha / sigma))
        return jnp.where(gained > 0, gained, 0)

    return _solver(denoise, schedule, churned_data(overshoot), order, corrector=False, two_point="exact", noises=1)


def _solver(
    denoise: Denoiser, schedule: Schedule, form: Rule, order: int, corrector: bool, two_point: str, noises: int
) -> Sampler:
    size = order if corrector else order - 1

    def init(z: Sample) -> Past:
        none, zero, one = jnp.zeros_like(z), jnp.zeros((), z.dtype), jnp.ones((), z.dtype)
        kept = none if corrector else jnp.zeros((0,), z.dtype)
        return Past(kept, (none,) * size, (zero,) * size, (one,) * size)

    def step(noise: Sample, past: Past, z: Sample, t: Time, s: Time) -> tuple[Sample, Past]:
        p, q = at(schedule, t), at(schedule, s)
        x0 = denoise(z, t)
        value = form.value(x0, z, p)
        if corrector:
            corrected = _corrected(past, value, z, p)
            x0, z = form.recovered(x0, corrected - z, p), corrected
        values = (value, *past.values[: order - 1])
        nodes = [-_apart(form, *pair, p) for pair in zip(past.alphas, past.sigmas, strict=True)]
        ends = p.alpha, p.sigma, q.alpha, q.sigma
        plain = first_order_step(x0, z, noise[0] if noises else z, p, q, form.overshoot(*ends))
        moved = plain
        if order > 1:
            integral = change(form, values, nodes[: order - 1], form.apart(*ends), two_point=two_point)
            moved = moved + form.scale(q) * integral
        pushed = [
            (new, *old)[:size] for new, old in ((value, past.values), (p.alpha, past.alphas), (p.sigma, past.sigmas))
        ]
        return moved, Past(plain if corrector else past.plain, *pushed)

    def _corrected(past: Past, value: Sample, z: Sample, p: Point) -> Sample:
        """The step that led here, taken again with the prediction at its end among its values, and with the same noise."""
        h = _apart(form, past.alphas[0], past.sigmas[0], p)
        nodes = [h - _apart(form, *pair, p) for pair in zip(past.alphas[1:], past.sigmas[1:], strict=True)]
        values = (past.values[0], value, *past.values[1:])
        again = past.plain + form.scale(p) * change(form, values, [h, *nodes], h, two_point=two_point)
        return jnp.where(jnp.isfinite(h), again, z)

    return Sampler(init, step, noises, order)


def _apart(form: Rule, alpha: jax.Array, sigma: jax.Array, p: Point) -> jax.Array:
    """From a point of the past to p along the rule's coordinate: infinite where its alpha = 0, with no slope that is nan,
    and where p is pure data, of which the noise is not known."""
    far = (alpha <= 0) | (p.sigma <= 0)
    return jnp.where(far, jnp.inf, form.apart(jnp.where(far, 1, alpha), sigma, p.alpha, p.sigma))


def _require_name(what: str, name: str, names: tuple[str, ...]) -> None:
    require(lambda name: name in names, f"{what} must be one of {', '.join(names)}", **{what: name})
