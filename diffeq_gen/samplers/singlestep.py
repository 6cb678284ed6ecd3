"""Singlestep solvers: the prediction is a polynomial through stages inside the step.

    z_r = DDIM(z_t, F_t) + change(F_t, ...),   F_r = F(z_r, r),       r between t and s at the fraction of the rule's coordinate

One step costs as many evaluations as its order, and needs no past: it starts multistep methods, and follows any noise.

Of the reverse SDE, stages and end lie on one path: the noise of a stage walks on to the next as the state does, with nothing
to denoise, and meets fresh noise there.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffeq_gen.clocks import time_at
from diffeq_gen.paths import gap
from diffeq_gen.samplers.first_order import first_order_step
from diffeq_gen.samplers.interpolation import RULES, Rule, change, constant_noise
from diffeq_gen.schedules import at
from diffeq_gen.types import Denoiser, Point, Sample, Sampler, Schedule, Time, concrete, require

__all__ = ["embedded", "singlestep"]


def singlestep(
    denoise: Denoiser, schedule: Schedule, *, order: int = 2, rule: str = "data", r1: float | None = None,
    r2: float = 2 / 3, two_point: str = "exact", eta: float = 0.0,
) -> Sampler:  # fmt: skip
    """DPM-Solver-2 and -3, and DPM-Solver++(2S): stages at log-SNR lambda_t + r Delta.  Lu et al. 2022 (DPM-Solver), Sec. 3.

    Order 3 integrates the parabola through all three values (their code's "taylor"); their Algorithm 2 leaves one of them out.

    r1 is 1/2 (order 2; the midpoint in log-SNR, the geometric mean in sigma: k-diffusion's DPM-2) or 1/3 (order 3) where it
    is not given.  The step to sigma_s = 0, and one from alpha_t = 0, is DDIM's.

    `eta` > 0 solves the reverse SDE of that noise level, by rule "data" alone: SDE-DPM-Solver++(2S), whose law has order 2 at
    either `order` (k-diffusion's dpmpp_sde is near it at eta = 1 with two_point="midpoint").  The `order` draws that it asks
    for make one Brownian path: were those of stage and step independent, the law would have order 1, at 20 steps no nearer
    than `exponential`.
    Raises: ValueError where order is not 2 or 3, 0 < r1 < r2 <= 1 fails, a name is unknown, eta is negative, or eta > 0 has
    another rule.
    Theorems: second-order-solvers, third-order-solvers, kdiff-dpm2-identity, solvers-are-exact-for-a-point,
    noise-of-one-path, stochastic-law-orders.
    """
    require(lambda order: order in (2, 3), "order must be 2 or 3", order=order)
    require(lambda rule: rule in ("data", "noise"), "rule must be data or noise", rule=rule)
    require(lambda name: name in ("exact", "midpoint", "trapezoid"),
            "two_point must be one of exact, midpoint, trapezoid", two_point=two_point)  # fmt: skip
    r1 = (1 / 2 if order == 2 else 1 / 3) if r1 is None else r1
    shares = (r1,) if order == 2 else (r1, r2)
    require(lambda r1, last: (r1 > 0) & (last <= 1) & ((order == 2) | (r1 < last)), "stages must rise within (0, 1]",
            r1=r1, last=shares[-1])  # fmt: skip
    still = concrete(eta) and eta == 0
    form = RULES[rule] if still else constant_noise(eta)
    require(lambda rule: still or rule == "data", "eta > 0 needs rule 'data'", rule=rule)
    states = _stages(denoise, schedule, shares, form, two_point, fewest=order, noisy=not still)
    return Sampler(
        lambda z: (), lambda noise, memory, z, t, s: (states(noise, z, t, s)[-1], memory), 0 if still else order
    )


def embedded(
    denoise: Denoiser, schedule: Schedule, shares: tuple[float, ...], *, rule: str = "data", two_point: str = "exact",
    fewest: int = 1,
) -> Callable[[Sample, Time, Time], list[Sample]]:  # fmt: skip
    """(z, t, s) -> [z_s by the first `fewest` values, ..., z_s by all of them]: states of rising order from the same stages.

    One value is DDIM.  Their differences say how far the lower is off, for no evaluation more.
    Theorems: embedded-steps-are-singlesteps.
    """
    states = _stages(denoise, schedule, shares, RULES[rule], two_point, fewest, noisy=False)
    return lambda z, t, s: states(z[None], z, t, s)


def _stages(
    denoise: Denoiser, schedule: Schedule, shares: tuple[float, ...], form: Rule, two_point: str, fewest: int, noisy: bool
) -> Callable[[Sample, Sample, Time, Time], list[Sample]]:  # fmt: skip
    """(noise, z, t, s) -> the states of `embedded`, each with the noise that its path has gathered at s."""

    def states(noise: Sample, z: Sample, t: Time, s: Time) -> list[Sample]:
        p, q = at(schedule, t), at(schedule, s)
        h = form.apart(p.alpha, p.sigma, q.alpha, q.sigma)
        regular, x0, none = jnp.isfinite(h), denoise(z, t), jnp.zeros_like(z)
        values, nodes, walked, last = [form.value(x0, z, p)], [], none, p

        def moved(there: Point, span: jax.Array, count: int) -> Sample:
            plain = first_order_step(x0, z, none, p, there, _overshoot(p, there))
            seen = change(form, values[:count], nodes[: count - 1], span, two_point=two_point)
            return plain + form.scale(there) * seen

        def walk(there: Point, i: int) -> Sample:
            """The noise of the path at `there`, from that at the point before and the i-th draw."""
            return first_order_step(none, walked, noise[i], last, there, _overshoot(last, there)) if noisy else none

        for i, share in enumerate(shares):
            inside = time_at(schedule, jnp.where(regular, p.log_snr + share * gap(p, q), 0))
            r = jnp.where(regular, inside, (t + s) / 2)  # at which all is finite: what is seen there is not used
            there, span = at(schedule, r), jnp.where(regular, share * h, jnp.inf)
            walked, last = walk(there, i), there
            stage = moved(there, span, i + 1) + walked
            values.append(form.value(denoise(stage, r), stage, there))
            nodes.append(span)
        end = walk(q, len(shares))
        return [moved(q, h, count) + end for count in range(fewest, len(values) + 1)]

    def _overshoot(p: Point, q: Point) -> jax.Array:
        return form.overshoot(p.alpha, p.sigma, q.alpha, q.sigma)

    return states
