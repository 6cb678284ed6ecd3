"""Singlestep solvers: the prediction is a polynomial through stages inside the step.

    z_r = DDIM(z_t, F_t) + change(F_t, ...),   F_r = F(z_r, r),       r between t and s at the fraction of the rule's coordinate

One step costs as many evaluations as its order, and needs no past: it starts multistep methods, and follows any noise.

Of the reverse SDE, stages and end lie on one path: the noise of a stage walks on to the next as the state does, with nothing
to denoise, and meets fresh noise there.
"""

import jax
import jax.numpy as jnp

from diffeq_gen.clocks import time_at
from diffeq_gen.samplers.first_order import first_order_step
from diffeq_gen.samplers.interpolation import RULES, change, constant_noise
from diffeq_gen.schedules import at
from diffeq_gen.types import Denoiser, Memory, Point, Sample, Sampler, Schedule, Time, concrete, require

__all__ = ["singlestep"]


def singlestep(
    denoise: Denoiser, schedule: Schedule, *, order: int = 2, rule: str = "data", r1: float | None = None,
    r2: float = 2 / 3, two_point: str = "exact", eta: float = 0.0,
) -> Sampler:  # fmt: skip
    """DPM-Solver-2 and -3, and DPM-Solver++(2S): stages at log-SNR lambda_t + r Delta.  Lu et al. 2022 (DPM-Solver), Alg. 1 and 2.

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

    def step(noise: Sample, memory: Memory, z: Sample, t: Time, s: Time) -> tuple[Sample, Memory]:
        p, q = at(schedule, t), at(schedule, s)
        h = form.apart(p.alpha, p.sigma, q.alpha, q.sigma)
        gap = RULES["data"].apart(p.alpha, p.sigma, q.alpha, q.sigma)
        regular, x0 = jnp.isfinite(h), denoise(z, t)
        values, nodes, none = [form.value(x0, z, p)], [], jnp.zeros_like(z)
        walked, last = none, p

        def moved(there: Point, span: jax.Array) -> Sample:
            plain = first_order_step(x0, z, none, p, there, _overshoot(p, there))
            return plain + form.scale(there) * change(form, values, nodes, span, two_point=two_point)

        def walk(there: Point, i: int) -> Sample:
            """The noise of the path at `there`, from that at the point before and the i-th draw."""
            if still:
                return none
            return first_order_step(none, walked, noise[i], last, there, _overshoot(last, there))

        for i, share in enumerate(shares):
            inside = time_at(schedule, jnp.where(regular, p.log_snr + 2 * share * gap, 0))
            r = jnp.where(
                regular, inside, (t + s) / 2
            )  # any time at which all is finite: what is seen there is not used
            there, span = at(schedule, r), jnp.where(regular, share * h, jnp.inf)
            walked, last = walk(there, i), there
            stage = moved(there, span) + walked
            values.append(form.value(denoise(stage, r), stage, there))
            nodes.append(span)
        return moved(q, h) + walk(q, order - 1), memory

    def _overshoot(p: Point, q: Point) -> jax.Array:
        return form.overshoot(p.alpha, p.sigma, q.alpha, q.sigma)

    return Sampler(lambda z: (), step, noises=0 if still else order)
