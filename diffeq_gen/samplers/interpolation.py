"""What high-order solvers share: DDIM, plus the exact integral of how the prediction changes over the step.

    z_s = DDIM + scale_s sum_{k>=1} C_k F[0, y_1 ... y_k],        C_k = int_0^h e^{w (1 - y/h)} y (y - y_1) ... (y - y_{k-1}) dy

F[...] are the divided differences of a prediction F along a coordinate y that is 0 at t and h at s, in which

    data      F = x0_hat,     y = log(alpha/sigma) - that of t,     w = -h,     scale_s =  alpha_s       DPM-Solver++, UniPC
    noise     F = eps_hat,    y = log(alpha/sigma) - that of t,     w = +h,     scale_s = -sigma_s       DPM-Solver
    slope     F = eps_hat,    y = sigma/alpha      - that of t,     w =  0,     scale_s =  alpha_s       LMS, DEIS (rho AB)
    signal    F = x0_hat,     y = alpha/sigma      - that of t,     w =  0,     scale_s =  sigma_s

Multistep solvers take y_k from the steps before, singlestep solvers from stages within the step, correctors from its end.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffeq_gen.types import Point, Sample

__all__ = ["RULES", "Rule", "change", "phis"]

SERIES_RADIUS = 2.0
SERIES_TERMS = 24


def phis(n: int, w: jax.Array) -> list[jax.Array]:
    """[phi_1(w), ..., phi_n(w)],   phi_k(w) = int_0^1 e^{w (1 - u)} u^{k-1} du / (k-1)!,   phi_{k+1} = (phi_k - 1/k!)/w.

    The recurrence loses a digit per power of 1/w, so for |w| <= 2 the last one is a power series and the recurrence runs
    downwards: a few ulps everywhere, differentiable at 0.  Hochbruck & Ostermann 2010, Sec. 2.
    Theorems: phi-functions.
    """
    near = jnp.abs(w) <= SERIES_RADIUS
    small, large = jnp.where(near, w, 1), jnp.where(near, SERIES_RADIUS + 1, w)
    series = jnp.zeros_like(w)
    for j in reversed(range(SERIES_TERMS)):
        series = series * small + 1 / math.factorial(n + j)
    down, up = [series], [jnp.expm1(large) / large]
    for k in range(1, n):
        down.insert(0, down[0] * small + 1 / math.factorial(n - k))
        up.append((up[-1] - 1 / math.factorial(k)) / large)
    return [jnp.where(near, one, other) for one, other in zip(down, up, strict=True)]


class Rule(NamedTuple):
    """What is interpolated, along what: one row of the table above."""

    value: Callable[[Sample, Sample, Point], Sample]
    apart: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
    rate: float
    scale: Callable[[Point], jax.Array]


def _data(x0: Sample, z: Sample, p: Point) -> Sample:
    return x0


def _noise(x0: Sample, z: Sample, p: Point) -> Sample:
    return (z - p.alpha * x0) / p.sigma


def _half_log_snr(alpha: jax.Array, sigma: jax.Array, alpha_q: jax.Array, sigma_q: jax.Array) -> jax.Array:
    return jnp.log(alpha_q / alpha) + jnp.log(sigma / sigma_q)


def _noise_to_signal(alpha: jax.Array, sigma: jax.Array, alpha_q: jax.Array, sigma_q: jax.Array) -> jax.Array:
    return sigma_q / alpha_q - sigma / alpha


def _signal_to_noise(alpha: jax.Array, sigma: jax.Array, alpha_q: jax.Array, sigma_q: jax.Array) -> jax.Array:
    return alpha_q / sigma_q - alpha / sigma


RULES: Mapping[str, Rule] = {
    "data": Rule(_data, _half_log_snr, -1.0, lambda q: q.alpha),
    "noise": Rule(_noise, _half_log_snr, 1.0, lambda q: -q.sigma),
    "slope": Rule(_noise, _noise_to_signal, 0.0, lambda q: q.alpha),
    "signal": Rule(_data, _signal_to_noise, 0.0, lambda q: q.sigma),
}


def change(
    rule: Rule, values: Sequence[Sample], nodes: Sequence[jax.Array], h: jax.Array, *, two_point: str = "exact"
) -> Sample:
    """sum_{k>=1} C_k F[0, y_1 ... y_k], from `values` F at t and at `nodes` y_1, y_2, ... along the rule's coordinate.

    A node that is not finite lies infinitely far away: it and all after it say nothing, and with h infinite none does.
    `two_point` is how a single difference is weighted: "exact" phi_2(w), "midpoint" phi_1(w)/2 (bh2 of UniPC), or
    "trapezoid" 1/2 (bh1); they agree to the order that two points have.
    Theorems: variation-of-constants, change-reads-nodes-in-any-order, unip2-is-2m, second-order-solvers.
    """
    count = len(nodes)
    known, seen = [], jnp.isfinite(h)
    for node in nodes:
        seen = seen & jnp.isfinite(node)
        known.append(seen)
    h = jnp.where(jnp.isfinite(h), h, 1)
    y = [
        jnp.zeros_like(h),
        *(jnp.where(seen, node, 2.0 + k) for k, (seen, node) in enumerate(zip(known, nodes, strict=True))),
    ]
    phi = phis(count + 1, rule.rate * h) if rule.rate else [1 / math.factorial(k + 1) for k in range(count + 1)]
    moments = [math.factorial(k) * h ** (k + 1) * phi[k] for k in range(count + 1)]
    differences, basis, total = list(values), [1.0], jnp.zeros_like(values[0])
    for k in range(1, count + 1):
        differences = [(b - a) / (y[i + k] - y[i]) for i, (a, b) in enumerate(pairwise(differences))]
        basis = [low - y[k - 1] * high for low, high in zip([0.0, *basis], [*basis, 0.0], strict=True)]
        weight = sum(part * moment for part, moment in zip(basis, moments, strict=False))
        if k == 1 and two_point != "exact":
            half = h**2 / 2 * (phi[0] if two_point == "midpoint" else 1)
            weight = half if count == 1 else jnp.where(known[1], weight, half)
        total = total + jnp.where(known[k - 1], weight * differences[0], 0)
    return total
