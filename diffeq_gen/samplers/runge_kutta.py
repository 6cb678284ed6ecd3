"""Runge-Kutta methods of the probability flow, along any coordinate.

    f_i = o(y_i, k_i),     y_i = z/m + (k_s - k_t) sum_{j<i} a_ij f_j,     k_i = k_t + c_i (k_s - k_t),     c_i = sum_j a_ij
    z_s = m_s (z/m + (k_s - k_t) sum_i w_i f_i)

Euler's rule is DDIM in every coordinate whose curve is straight; from two stages on, the coordinate is part of the method.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffeq_gen.coordinates import Coordinate, time_on
from diffeq_gen.predictions import convert, data, velocity
from diffeq_gen.samplers.first_order import first_order_step
from diffeq_gen.schedules import at
from diffeq_gen.types import Denoiser, Memory, Point, Sample, Sampler, Schedule, Time, require

__all__ = ["EULER", "HEUN", "MIDPOINT", "RALSTON", "RK4", "Tableau", "classical", "runge_kutta"]


class Tableau(NamedTuple):
    """Butcher's: a_ij of the stages after the first, row by row, and the weights w_i.  The nodes c_i are the sums of the rows.

    Theorems: order-conditions.
    """

    rows: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]


EULER = Tableau((), (1.0,))
HEUN = Tableau(((1.0,),), (1 / 2, 1 / 2))
MIDPOINT = Tableau(((1 / 2,),), (0.0, 1.0))
RALSTON = Tableau(((2 / 3,),), (1 / 4, 3 / 4))
RK4 = Tableau(((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))


def classical(slope: Callable[[Any, jax.Array], Any], y: Any, k: jax.Array, h: jax.Array) -> Any:
    """y + h/6 (a + 2 b + 2 c + d): a step of the classical rule, RK4, for dy/dk = slope(y, k), y any tree of arrays."""

    def ahead(h: jax.Array, slope: Any) -> Any:
        return jax.tree.map(lambda value, rate: value + h * rate, y, slope)

    a = slope(y, k)
    b = slope(ahead(h / 2, a), k + h / 2)
    c = slope(ahead(h / 2, b), k + h / 2)
    d = slope(ahead(h, c), k + h)
    return ahead(h / 6, jax.tree.map(lambda a, b, c, d: a + 2 * b + 2 * c + d, a, b, c, d))


def runge_kutta(
    denoise: Denoiser, schedule: Schedule, *, tableau: Tableau = RK4, coordinate: Coordinate | None = None
) -> Sampler:
    """z_s = m_s (z/m + (k_s - k_t) sum_i w_i f_i): one evaluation a stage, in the schedule's own t where no coordinate is given.

    HEUN along NOISE is the sampler of Karras et al. 2022 without churn, along STRAIGHT it is Heun's rule of rectified flow.
    A stage inside the step asks for the inverse clock: in t it is free, else as dear as the schedule's `time_at` (64
    bisections of a schedule without a closed form), whatever the size of the network.
    A step is DDIM's where k is infinite at one of its ends (alpha_t = 0 along NOISE, sigma_s = 0 along DATA, both along
    LOG_SNR), and where a stage would lie at sigma_s = 0, at which there is no eps_hat.
    Raises: ValueError where the rows and weights do not make an explicit method whose weights sum to one and whose nodes lie
    in (0, 1].
    Theorems: euler-along-a-line-is-ddim, runge-kutta-by-name, runge-kutta-is-scale-invariant, quadrature-of-the-tableaus,
    linear-slopes-of-the-tableaus, gaussians-flatter-the-midpoint, a-run-is-of-fourth-order.
    """
    rows, weights = tableau
    require(lambda sizes, count: sizes == tuple(range(1, count)), "row i of a tableau must hold i numbers, with one weight more than rows",
            rows=tuple(map(len, rows)), weights=len(weights))  # fmt: skip
    require(lambda total: abs(total - 1) < 1e-6, "the weights of a tableau must sum to one", total=math.fsum(weights))
    nodes = [math.fsum(row) for row in rows]
    require(
        lambda nodes: all(0 < node <= 1 for node in nodes), "the nodes of a tableau must lie in (0, 1]", nodes=nodes
    )
    at_the_end = 1.0 in nodes

    def read(p: Point) -> tuple[jax.Array, jax.Array]:
        """(m, k) of a point."""
        if coordinate is None:
            return jnp.ones_like(p.t), p.t
        return coordinate.unit(p.alpha, p.sigma), coordinate.clock(p.alpha, p.sigma)

    def slope(x0: Sample, y: Sample, k: jax.Array, p: Point) -> Sample:
        """o = a'(k) x0 + b'(k) eps, of y = a x0 + b eps."""
        return convert(x0, y, p if coordinate is None else _on(coordinate, k), data, velocity)

    def step(noise: Sample, memory: Memory, z: Sample, t: Time, s: Time) -> tuple[Sample, Memory]:
        p, q = at(schedule, t), at(schedule, s)
        regular = jnp.isfinite(read(p)[1]) & jnp.isfinite(read(q)[1]) & ((q.sigma > 0) | (not at_the_end))
        one = jnp.ones_like(p.sigma)
        elsewhere = (
            p if coordinate is None else Point(p.t, one, one, one, one)
        )  # finite; what is seen there is not used
        here, there = (jax.tree.map(lambda end, safe: jnp.where(regular, end, safe), end, elsewhere) for end in (p, q))
        (m, k), (m_s, k_s) = read(here), read(there)
        x0, y = denoise(z, t), z / m
        slopes = [slope(x0, y, k, here)]
        for node, row in zip(nodes, rows, strict=True):
            inside, k_i = there, k_s
            if node < 1:
                k_i = k + node * (k_s - k)
                r = k_i if coordinate is None else jnp.where(regular, time_on(schedule, coordinate, k_i), (t + s) / 2)
                inside = at(schedule, r)
            ahead = y + (k_s - k) * _weighted(row, slopes)
            seen = denoise(read(inside)[0] * ahead, inside.t)
            slopes.append(slope(seen, ahead, k_i, inside))
        moved = m_s * (y + (k_s - k) * _weighted(weights, slopes))
        return jnp.where(regular, moved, first_order_step(x0, z, z, p, q)), memory

    return Sampler(lambda z: (), step)


def _on(coordinate: Coordinate, k: jax.Array) -> Point:
    """The point of the curve at k, with its slopes by one jvp."""
    (a, b), (a_dot, b_dot) = jax.jvp(coordinate.curve, (k,), (jnp.ones_like(k),))
    return Point(k, a, b, a_dot, b_dot)


def _weighted(weights: tuple[float, ...], slopes: list[Sample]) -> Sample:
    return sum(weight * slope for weight, slope in zip(weights, slopes, strict=True) if weight != 0)
