"""Chapter 1, paths: conversions between predictions, transition kernels and bridges, and what a change of scale or clock does."""

import jax
import jax.numpy as jnp

from diffeq_gen import clocks, paths, predictions
from diffeq_gen.schedules import at
from diffeq_gen.theorems.domains import earlier, positive, schedules, times, vectors
from diffeq_gen.theorems.registry import theorem

__all__: list[str] = []


@theorem(source="Gao et al. 2024, table of predictions", schedule=schedules, x0=vectors(3), eps=vectors(3), t=times)
def path_conversions(schedule, x0, eps, t):
    """A value a x0 + b eps determines x0 and eps wherever alpha b - sigma a is not zero."""
    p = at(schedule, t)
    z = paths.perturb(x0, eps, p)
    left, right = [], []
    for prediction in (predictions.v, predictions.velocity, predictions.edm(0.7)):
        a, b = prediction(p)
        left += [
            predictions.convert(a * x0 + b * eps, z, p, prediction, predictions.data),
            predictions.convert(a * x0 + b * eps, z, p, prediction, predictions.noise),
        ]
        right += [x0, eps]
    return left, right


@path_conversions.near_miss
def determinant_of_v_is_one(schedule, x0, eps, t):
    """x0 = alpha z - sigma v, as printed everywhere: right only where alpha^2 + sigma^2 = 1."""
    p = at(schedule, t)
    value = p.alpha * eps - p.sigma * x0
    return p.alpha * paths.perturb(x0, eps, p) - p.sigma * value, x0


@theorem(
    source="Kingma et al. 2021, App. A",
    schedule=schedules, t=times, s=earlier("t"),
)  # fmt: skip
def transition_kernel(schedule, t, s):
    """q(z_t | z_s) has scale alpha_t/alpha_s and variance sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2."""
    p, q = at(schedule, t), at(schedule, s)
    scale, std = paths.transition(p, q)
    return (scale * q.alpha, scale**2 * q.sigma**2 + std**2), (p.alpha, p.sigma**2)


@transition_kernel.near_miss
def variance_without_scale(schedule, t, s):
    """The variances subtracted as they stand: right only where alpha is constant."""
    p, q = at(schedule, t), at(schedule, s)
    _, std = paths.transition(p, q)
    return q.sigma**2 + std**2, p.sigma**2
