"""Multistep solvers for eps_hat that take it for a polynomial in something other than the coordinate of its integral.

z_s = alpha_s (z/alpha_t + int eps_hat d rho),        rho = sigma/alpha

lms      eps_hat a polynomial in rho                               `multistep.lms`
deis     eps_hat a polynomial in t,     int_t^s L_j(r) d rho(r)    by quadrature: no schedule but a few has it in closed form
ipndm    eps_hat a polynomial in the number of the step            the textbook's Adams-Bashforth weights, times rho_s - rho_t
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen.samplers.first_order import first_order_step
from diffeq_gen.samplers.interpolation import RULES, change, require_order
from diffeq_gen.samplers.newton import integral
from diffeq_gen.schedules import at
from diffeq_gen.types import Denoiser, Memory, Point, Sample, Sampler, Schedule, Time

__all__ = ["Recent", "deis", "ipndm", "pndm", "pseudo_runge_kutta"]

PANELS = 8
NODES, WEIGHTS = np.polynomial.legendre.leggauss(6)
"""Six nodes: of more numpy's weights lose digits."""


class Recent(NamedTuple):
    """eps_hat of the last steps and their times, newest first; an infinite time is a step that has not been taken."""

    values: tuple[Sample, ...]
    times: tuple[jax.Array, ...]


def deis(denoise: Denoiser, schedule: Schedule, *, order: int = 3) -> Sampler:
    """tAB-DEIS: eps_hat is the polynomial in t through its last `order` values.  Zhang & Chen 2023, Eq. 15.

    One evaluation a step; order 1 is DDIM, and their r is order - 1.  It starts by lower orders, so a whole run has at most
    order 2 unless it is `started` otherwise.  The weights are int (r - t)^j d rho = j int_s^t (r - t)^{j-1} (rho - rho_s) dr, which
    is regular at sigma_s = 0, by 48 Gauss-Legendre nodes in ((r - s)/(t - s))^{1/2}, in which a variance-preserving sigma is
    smooth down to 0: exact to 1e-13 where t - s is no longer than the way from t to alpha = 0.  A step from or to alpha = 0 is DDIM's.
    Raises: ValueError where order is not 1, 2, 3 or 4.
    Theorems: deis-by-its-integral, deis-is-exact-for-polynomials-of-time.
    """
    require_order(order)

    def step(noise: Sample, recent: Recent, z: Sample, t: Time, s: Time) -> tuple[Sample, Recent]:
        p, q = at(schedule, t), at(schedule, s)
        x0 = denoise(z, t)
        values = (RULES["noise"].value(x0, z, p), *recent.values)
        nodes = [jnp.where((p.alpha > 0) & (q.alpha > 0), time - p.t, jnp.inf) for time in recent.times]
        moved = first_order_step(x0, z, z, p, q) + q.alpha * integral(values, nodes, _moments(schedule, p, q, order))
        return moved, _remember(recent, values, p.t)

    return Sampler(lambda z: _nothing(z, order - 1), step, fewest=order)


def _moments(schedule: Schedule, p: Point, q: Point, count: int) -> list[jax.Array]:
    """int_t^s (r - t)^j d rho(r) for j = 0, ..., count - 1, of which the first is not asked for."""
    dtype = q.t.dtype
    nodes, weights = (jnp.asarray(part, dtype) for part in (NODES, WEIGHTS))
    u = ((jnp.arange(PANELS, dtype=dtype)[:, None] + (nodes[None] + 1) / 2) / PANELS).ravel()
    shares = jnp.tile(weights / (2 * PANELS), PANELS) * 2 * u * (p.t - q.t)
    r = q.t + (p.t - q.t) * u**2
    alphas, sigmas = jax.vmap(schedule)(r)
    above = sigmas / alphas - q.sigma / q.alpha
    return [jnp.zeros((), dtype), *(jnp.sum(shares * j * (r - p.t) ** (j - 1) * above) for j in range(1, count))]


def ipndm(denoise: Denoiser, schedule: Schedule, *, order: int = 4) -> Sampler:
    """eps_hat' = (55 eps_0 - 59 eps_1 + 37 eps_2 - 9 eps_3)/24, moved by DDIM.  Liu et al. 2022 (PNDM), Eq. 12; started by lower orders.

    These are the weights of steps that are even in rho = sigma/alpha, where it is `lms`.  Of other steps each polynomial but a
    constant is missed: where h and h_before are the lengths in rho of a step and the one before, a slope is missed by
    h (h_before - h)/2, so a run has order 2 where neighbouring steps tend to one length, and order 1 where they do not.
    A step from alpha_t = 0 is DDIM's.
    Raises: ValueError where order is not 1, 2, 3 or 4.
    Theorems: ipndm-is-lms-of-even-steps.
    """
    require_order(order)

    def step(noise: Sample, recent: Recent, z: Sample, t: Time, s: Time) -> tuple[Sample, Recent]:
        return _evenly(denoise(z, t), recent, z, at(schedule, t), at(schedule, s))

    return Sampler(lambda z: _nothing(z, order - 1), step, fewest=order)


def pseudo_runge_kutta(denoise: Denoiser, schedule: Schedule) -> Sampler:
    """The rule of four stages for eps_hat, each moved by DDIM, with its middle half way in t.  Liu et al. 2022 (PNDM), Eq. 13.

    Half way in rho = sigma/alpha it is `runge_kutta` along NOISE, of order 4; elsewhere the weights are not those of its nodes
    and its order is 2.  A step from or to alpha = 0, and one to sigma_s = 0, is DDIM's.
    Theorems: pseudo-runge-kutta-by-hand.
    """

    def step(noise: Sample, memory: Memory, z: Sample, t: Time, s: Time) -> tuple[Sample, Memory]:
        return _by_stages(denoise, schedule, denoise(z, t), z, t, s), memory

    return Sampler(lambda z: (), step)


def pndm(denoise: Denoiser, schedule: Schedule) -> Sampler:
    """`ipndm` of order 4, whose first three steps are `pseudo_runge_kutta`'s, three evaluations more each.  Liu et al. 2022, Alg. 2.

    It is `started(ipndm(...), pseudo_runge_kutta(...), steps=3)`, and evaluates once where both ask.
    Theorems: ipndm-is-lms-of-even-steps, pseudo-runge-kutta-by-hand.
    """

    def step(noise: Sample, memory: Memory, z: Sample, t: Time, s: Time) -> tuple[Sample, Memory]:
        (taken, recent), x0 = memory, denoise(z, t)
        moved, recent = _evenly(x0, recent, z, at(schedule, t), at(schedule, s))
        moved = jax.lax.cond(taken < 3, lambda: _by_stages(denoise, schedule, x0, z, t, s), lambda: moved)
        return moved, (taken + 1, recent)

    return Sampler(lambda z: (jnp.zeros((), jnp.int32), _nothing(z, 3)), step, fewest=4)


def _evenly(x0: Sample, recent: Recent, z: Sample, p: Point, q: Point) -> tuple[Sample, Recent]:
    """A step of `ipndm`: as though all steps had one length."""
    values = (RULES["noise"].value(x0, z, p), *recent.values)
    known = [jnp.isfinite(time) & (p.alpha > 0) for time in recent.times]
    nodes = [jnp.where(seen, -1.0 - k, jnp.inf).astype(p.t.dtype) for k, seen in enumerate(known)]
    length = q.sigma - q.alpha * p.sigma / jnp.where(p.alpha > 0, p.alpha, 1)  # in rho, times alpha_s
    moved = first_order_step(x0, z, z, p, q) + length * change(RULES["slope"], values, nodes, jnp.ones_like(p.t))
    return moved, _remember(recent, values, p.t)


def _by_stages(denoise: Denoiser, schedule: Schedule, x0: Sample, z: Sample, t: Time, s: Time) -> Sample:
    """A step of `pseudo_runge_kutta`, of which x0 is the first stage."""
    p, q, middle = at(schedule, t), at(schedule, s), at(schedule, (t + s) / 2)
    regular = (p.alpha > 0) & (q.alpha > 0) & (q.sigma > 0)
    start, end = (jax.tree.map(lambda there, safe: jnp.where(regular, there, safe), one, middle) for one in (p, q))

    def moved(eps: Sample, there: Point) -> Sample:
        far = RULES["slope"].apart(start.alpha, start.sigma, there.alpha, there.sigma)
        return there.alpha * (z / start.alpha + far * eps)

    slopes = [RULES["noise"].value(x0, z, start)]
    for there in (middle, middle, end):
        ahead = moved(slopes[-1], there)
        slopes.append(RULES["noise"].value(denoise(ahead, there.t), ahead, there))
    first, second, third, fourth = slopes
    whole = moved((first + 2 * second + 2 * third + fourth) / 6, end)
    return jnp.where(regular, whole, first_order_step(x0, z, z, p, q))


def _nothing(z: Sample, count: int) -> Recent:
    return Recent((jnp.zeros_like(z),) * count, (jnp.full((), jnp.inf, z.dtype),) * count)


def _remember(recent: Recent, values: tuple[Sample, ...], t: jax.Array) -> Recent:
    count = len(recent.times)
    return Recent(values[:count], (t, *recent.times)[:count])
