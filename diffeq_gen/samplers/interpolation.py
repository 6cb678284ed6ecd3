"""What high-order solvers share: DDIM, plus the exact integral of how the prediction changes over the step.

    z_s = DDIM + scale_s sum_{k>=1} C_k F[0, y_1 ... y_k],        C_k = int_0^h e^{w (1 - y/h)} y (y - y_1) ... (y - y_{k-1}) dy

F[...] are the divided differences of a prediction F along a coordinate y that is 0 at t and h at s, in which

    data      F = x0_hat,     y = log(alpha/sigma) - that of t,     w = -h,     scale_s =  alpha_s       DPM-Solver++, UniPC
    noise     F = eps_hat,    y = log(alpha/sigma) - that of t,     w = +h,     scale_s = -sigma_s       DPM-Solver
    slope     F = eps_hat,    y = sigma/alpha      - that of t,     w =  0,     scale_s =  alpha_s       LMS, DEIS (rho AB)
    signal    F = x0_hat,     y = alpha/sigma      - that of t,     w =  0,     scale_s =  sigma_s

Multistep solvers take y_k from the steps before, singlestep solvers from stages within the step, correctors from its end.

The reverse SDE of noise level eta changes one thing.  With the overshoot o = int eta^2 d lambda and Y = y + o/2,

    (z_s/alpha_s) e^{Y_s} = (z_t/alpha_t) e^{Y_t} + int x0_hat d e^Y + noise,        Var[noise in z_s] = -sigma_s^2 expm1(-o)

so that DDIM becomes the step that overshoots by o, and `data` reads Y in the place of y.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffeq_gen.samplers.newton import integral
from diffeq_gen.types import Point, Sample, require

__all__ = ["RULES", "Rule", "change", "churned_data", "constant_noise", "phis", "require_order"]

SERIES_RADIUS = 2.0
SERIES_TERMS = 24


def phis(n: int, w: jax.Array) -> list[jax.Array]:
    """[phi_1(w), ..., phi_n(w)],   phi_k(w) = int_0^1 e^{w (1 - u)} u^{k-1} du / (k-1)!,   phi_{k+1} = (phi_k - 1/k!)/w.

    The recurrence loses a digit per power of 1/w, so for |w| <= 2 the last one is a power series and the recurrence runs
    downwards: a few ulps everywhere, differentiable at 0.  Hochbruck & Ostermann 2010, Sec. 2.
    Theorems: phi-functions.
    """
    near = jnp.abs(w) <= SERIES_RADIUS
    small, large = jnp.where(near, w, SERIES_RADIUS), jnp.where(near, SERIES_RADIUS, w)
    series = jnp.zeros_like(w)
    for j in reversed(range(SERIES_TERMS)):
        series = series * small + 1 / math.factorial(n + j)
    down, up = [series], [jnp.expm1(large) / large]
    for k in range(1, n):
        down.insert(0, down[0] * small + 1 / math.factorial(n - k))
        up.append((up[-1] - 1 / math.factorial(k)) / large)
    return [jnp.where(near, one, other) for one, other in zip(down, up, strict=True)]


Apart = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
"""(alpha_t, sigma_t, alpha_s, sigma_s) -> how far s lies from t."""


def _nowhere(alpha: jax.Array, sigma: jax.Array, alpha_q: jax.Array, sigma_q: jax.Array) -> jax.Array:
    return jnp.zeros_like(sigma_q)


class Rule(NamedTuple):
    """What is interpolated, along what: one row of the table above; and the overshoot of its first-order step.

    `recovered` is x0_hat where z has moved and F has not.
    """

    value: Callable[[Sample, Sample, Point], Sample]
    recovered: Callable[[Sample, Sample, Point], Sample]
    apart: Apart
    rate: float
    scale: Callable[[Point], jax.Array]
    overshoot: Apart = _nowhere


def _itself(x0: Sample, z: Sample, p: Point) -> Sample:
    return x0


def _noise(x0: Sample, z: Sample, p: Point) -> Sample:
    """eps_hat; at sigma = 0, where it is not known, something finite, which nobody reads."""
    return (z - p.alpha * x0) / jnp.where(p.sigma > 0, p.sigma, 1)


def _carried(x0: Sample, moved: Sample, p: Point) -> Sample:
    """z = alpha x0 + sigma eps with the same eps; at alpha = 0 nothing has moved."""
    return x0 + moved / jnp.where(p.alpha > 0, p.alpha, 1)


def _half_log_snr(alpha: jax.Array, sigma: jax.Array, alpha_q: jax.Array, sigma_q: jax.Array) -> jax.Array:
    return jnp.log(alpha_q / alpha) + jnp.log(sigma / sigma_q)


def _noise_to_signal(alpha: jax.Array, sigma: jax.Array, alpha_q: jax.Array, sigma_q: jax.Array) -> jax.Array:
    return sigma_q / alpha_q - sigma / alpha


def _signal_to_noise(alpha: jax.Array, sigma: jax.Array, alpha_q: jax.Array, sigma_q: jax.Array) -> jax.Array:
    return alpha_q / sigma_q - alpha / sigma


RULES: Mapping[str, Rule] = {
    "data": Rule(_itself, _itself, _half_log_snr, -1.0, lambda q: q.alpha),
    "noise": Rule(_noise, _carried, _half_log_snr, 1.0, lambda q: -q.sigma),
    "slope": Rule(_noise, _carried, _noise_to_signal, 0.0, lambda q: q.alpha),
    "signal": Rule(_itself, _itself, _signal_to_noise, 0.0, lambda q: q.sigma),
}


def churned_data(overshoot: Apart) -> Rule:
    """The rule `data` of the reverse SDE whose noise overshoots by o: along Y = log(alpha/sigma) + o/2.  Derived.

    The overshoot must add up along a path.
    Theorems: sde-variation-of-constants, er-sde-noise-scale.
    """
    churned = lambda *pair: _half_log_snr(*pair) + overshoot(*pair) / 2  # noqa: E731
    return RULES["data"]._replace(apart=churned, overshoot=overshoot)


def constant_noise(eta: float) -> Rule:
    """o = eta^2 Delta: the rule `data` of the reverse SDE of constant eta, along (1 + eta^2) y.

    Raises: ValueError where eta is negative.
    Theorems: sde-variation-of-constants, kdiff-sde-solvers.
    """
    require(lambda eta: eta >= 0, "eta must not be negative", eta=eta)

    def overshoot(*pair: jax.Array) -> jax.Array:
        gained = 2 * _half_log_snr(*pair)
        return jnp.where((gained > 0) & jnp.not_equal(eta, 0), eta**2 * gained, 0)

    return churned_data(overshoot)


def change(
    rule: Rule, values: Sequence[Sample], nodes: Sequence[jax.Array], h: jax.Array, *, two_point: str = "exact"
) -> Sample:
    """sum_{k>=1} C_k F[0, y_1 ... y_k], from `values` F at t and at `nodes` y_1, y_2, ... along the rule's coordinate.

    A node that is not finite lies infinitely far away: it and all after it say nothing, and with h infinite none does.
    `two_point` is how a single difference is weighted: "exact" phi_2(w), "midpoint" phi_1(w)/2 (bh2 of UniPC), or
    "trapezoid" 1/2 (bh1); they agree to the order that two points have.
    Theorems: variation-of-constants, sde-variation-of-constants, change-reads-nodes-in-any-order, unip2-is-2m, second-order-solvers.
    """
    seen = jnp.isfinite(h)
    h = jnp.where(seen, h, 1)
    n = len(values)
    phi = phis(n, rule.rate * h) if rule.rate else [1 / math.factorial(k) for k in range(1, n + 1)]
    moments = [math.factorial(k) * h ** (k + 1) * one for k, one in zip(range(n), phi, strict=True)]
    pair = {"exact": None, "midpoint": h**2 / 2 * phi[0], "trapezoid": h**2 / 2}[two_point]
    return integral(values, [jnp.where(seen, node, jnp.inf) for node in nodes], moments, pair=pair)


def require_order(order: int) -> None:
    """Raises: ValueError where order is not 1, 2, 3 or 4."""
    require(lambda order: order in (1, 2, 3, 4), "order must be 1, 2, 3 or 4", order=order)
