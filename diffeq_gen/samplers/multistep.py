"""Multistep solvers: the prediction is a polynomial through its values at this step and at those before.

    F(y) ~ the polynomial through (0, F(z_t, t)), (y_1, F_1), ...,        y_k < 0 along the rule's coordinate

One evaluation a step whatever the order.  A corrector takes the step before once more, now that its end is known, and so
costs nothing either: the evaluation at its end is the one that the next step needs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffeq_gen.paths import bridge
from diffeq_gen.samplers.first_order import first_order_step
from diffeq_gen.samplers.interpolation import RULES, Rule, change
from diffeq_gen.schedules import at
from diffeq_gen.types import Denoiser, Point, Sample, Sampler, Schedule, Time, require

__all__ = ["Past", "lms", "multistep", "unipc"]


class Past(NamedTuple):
    """What a multistep solver remembers: the state before, and alpha, sigma, x0_hat and F of the last steps, newest first.

    Before the first step nothing is known: alpha = 0 puts every node infinitely far away.
    """

    z: Sample
    x0: Sample
    values: tuple[Sample, ...]
    alphas: tuple[jax.Array, ...]
    sigmas: tuple[jax.Array, ...]


def multistep(
    denoise: Denoiser, schedule: Schedule, *, order: int = 2, rule: str = "data", corrector: bool = False,
    two_point: str = "exact",
) -> Sampler:  # fmt: skip
    """The exponential Adams-Bashforth method of this order, from 1 (DDIM) to 4.  Lu et al. 2022 (DPM-Solver++), Eq. 8.

    rule "data" with two_point="midpoint" is DPM-Solver++(2M); with order 3 it is what DPM-Solver++(3M) means to be (the
    shipped ones lack a factor 2 and have order 2).  "noise" is the multistep DPM-Solver, "slope" is `lms`.  The step to
    sigma_s = 0, and one from alpha_t = 0, is DDIM's.  It starts by lower orders, so the whole run has at most order 2 (3
    with the corrector) unless it is started otherwise.
    Raises: ValueError where order is not 1, 2, 3 or 4, or a name is unknown.
    Theorems: variation-of-constants, unip2-is-2m, second-order-solvers, third-order-solvers,
    dpmpp-3m-shipped-is-order2, multistep-startup-cap, solver-trajectory-equivalence, solvers-are-exact-for-a-point.
    """
    require(lambda order: order in (1, 2, 3, 4), "order must be 1, 2, 3 or 4", order=order)
    _require_name("rule", rule, tuple(RULES))
    _require_name("two_point", two_point, ("exact", "midpoint", "trapezoid"))
    form, size = RULES[rule], order if corrector else order - 1

    def init(z: Sample) -> Past:
        none, one = jnp.zeros_like(z), jnp.ones((), z.dtype)
        kept = none if corrector else jnp.zeros((0,), z.dtype)
        return Past(kept, kept, (none,) * size, (0 * one,) * size, (one,) * size)

    def step(noise: Sample, past: Past, z: Sample, t: Time, s: Time) -> tuple[Sample, Past]:
        p, q = at(schedule, t), at(schedule, s)
        x0 = denoise(z, t)
        value = form.value(x0, z, p)
        if corrector:
            z = _corrected(past, value, z, p)
        values = (value, *past.values[: order - 1])
        nodes = [-_apart(form, *pair, p) for pair in zip(past.alphas, past.sigmas, strict=True)]
        h = form.apart(p.alpha, p.sigma, q.alpha, q.sigma)
        moved = first_order_step(x0, z, z, p, q)
        if order > 1:
            moved = moved + form.scale(q) * change(form, values, nodes[: order - 1], h, two_point=two_point)
        return moved, _remember(past, z, x0, value, p)

    def _corrected(past: Past, value: Sample, z: Sample, p: Point) -> Sample:
        """The step that led here, taken again with the prediction at its end among its values."""
        alpha, sigma = jnp.where(past.alphas[0] > 0, past.alphas[0], 1), past.sigmas[0]
        h = _apart(form, past.alphas[0], sigma, p)
        before = Point(p.t, alpha, sigma, alpha, sigma)  # of which alpha and sigma alone are read
        nodes = [h - _apart(form, *pair, p) for pair in zip(past.alphas[1:], past.sigmas[1:], strict=True)]
        values = (past.values[0], value, *past.values[1:])
        c_z, c_x, _ = bridge(before, p, jnp.zeros_like(p.sigma))
        again = c_z * past.z + c_x * past.x0 + form.scale(p) * change(form, values, [h, *nodes], h, two_point=two_point)
        return jnp.where(jnp.isfinite(h), again, z)

    def _remember(past: Past, z: Sample, x0: Sample, value: Sample, p: Point) -> Past:
        pushed = [
            (new, *old)[:size] for new, old in ((value, past.values), (p.alpha, past.alphas), (p.sigma, past.sigmas))
        ]
        return Past(*((z, x0) if corrector else (past.z, past.x0)), *pushed)

    return Sampler(init, step, fewest=order)


def lms(denoise: Denoiser, schedule: Schedule, *, order: int = 4) -> Sampler:
    """Adams-Bashforth for d(z/alpha)/d(sigma/alpha) = eps_hat: k-diffusion's LMS, and DEIS with polynomials in rho.

    Zhang & Chen 2023, Eq. 15.  The integrals of the polynomials are exact here, by quadrature to 1e-4 there.
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


def _apart(form: Rule, alpha: jax.Array, sigma: jax.Array, p: Point) -> jax.Array:
    """From a point of the past to p along the rule's coordinate: infinite where alpha = 0, with no slope that is nan."""
    far = alpha <= 0
    return jnp.where(far, jnp.inf, form.apart(jnp.where(far, 1, alpha), sigma, p.alpha, p.sigma))


def _require_name(what: str, name: str, names: tuple[str, ...]) -> None:
    require(lambda name: name in names, f"{what} must be one of {', '.join(names)}", **{what: name})
