"""The deterministic solvers of the probability flow that the benchmarks of this folder run: ours, and those of others that differ.

A method is what builds it from a denoiser and a schedule, and what it evaluates: `each` times a step, and `start` times more in
some of them (less, where it is negative).  What people run under another name is one of these to 1e-12 (`benchmarks.solvers.agreement`).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffeq_gen import samplers
from diffeq_gen.clocks import time_at
from diffeq_gen.coordinates import LOG_SNR, NOISE
from diffeq_gen.samplers import first_order_step
from diffeq_gen.samplers.interpolation import RULES, change, phis
from diffeq_gen.samplers.newton import integral
from diffeq_gen.samplers.runge_kutta import HEUN, MIDPOINT, RALSTON, RK4
from diffeq_gen.schedules import at
from diffeq_gen.types import Denoiser, Memory, Sample, Sampler, Schedule, Time

__all__ = ["METHODS", "SIGMA_MIN", "Build", "Method", "fast", "last_stage_alone", "shipped_third"]

Build = Callable[[Denoiser, Schedule], Sampler]

SIGMA_MIN = 0.002
"""Of sigma/alpha: where a run ends."""


class Method(NamedTuple):
    """What builds a solver, and its evaluations: `start + each * steps`."""

    build: Build
    each: int = 1
    start: int = 0

    def steps(self, evaluations: int) -> int:
        """The most steps that these evaluations pay for."""
        return (evaluations - self.start) // self.each


def last_stage_alone(denoise: Denoiser, schedule: Schedule, *, rule: str, two_point: str = "exact") -> Sampler:
    """DPM-Solver-3 as its Algorithm 2 has it: of the three values, the step uses the first and the last.  Lu et al. 2022.

    `two_point` is how its second stage weights a difference.
    """
    form = RULES[rule]

    def step(noise: Sample, memory: Memory, z: Sample, t: Time, s: Time) -> tuple[Sample, Memory]:
        p, q = at(schedule, t), at(schedule, s)
        h, x0 = form.apart(p.alpha, p.sigma, q.alpha, q.sigma), denoise(z, t)
        first = form.value(x0, z, p)

        def moved(there, span, values, nodes, weights):
            part = change(form, values, nodes, span, two_point=weights)
            return first_order_step(x0, z, z, p, there) + form.scale(there) * part

        values, nodes = [first], []
        for share in (1 / 3, 2 / 3):
            r = time_at(schedule, p.log_snr + 2 * share * h)
            stage = moved(at(schedule, r), share * h, values, nodes, two_point)
            values, nodes = [first, form.value(denoise(stage, r), stage, at(schedule, r))], [share * h]
        return moved(q, h, values, nodes, "exact"), memory

    return Sampler(lambda z: (), step)


def fast(denoise: Denoiser, schedule: Schedule, *, rest: int, third: Build | None = None) -> Sampler:
    """DPM-Solver-fast: steps of order 3, by Algorithm 2 or by `third`, and a last one, to SIGMA_MIN, of order `rest`.

    Lu et al. 2022, App. D.
    """
    stages = (third or functools.partial(last_stage_alone, rule="noise"))(denoise, schedule)
    second = samplers.singlestep(denoise, schedule, rule="noise", two_point="midpoint")
    last = second if rest == 2 else samplers.ddim(denoise, schedule)

    def step(noise: Sample, memory: Memory, z: Sample, t: Time, s: Time) -> tuple[Sample, Memory]:
        q = at(schedule, s)
        return jax.lax.cond(
            q.sigma <= 1.001 * SIGMA_MIN * q.alpha,
            lambda: last.step(noise, memory, z, t, s),
            lambda: stages.step(noise, memory, z, t, s),
        )

    return Sampler(lambda z: (), step)


class Kept(NamedTuple):
    """The predictions of the last two steps and where they were made, newest first; alpha = 0 is a step not taken."""

    values: tuple[Sample, Sample]
    alphas: tuple[jax.Array, jax.Array]
    sigmas: tuple[jax.Array, jax.Array]


def shipped_third(denoise: Denoiser, schedule: Schedule, *, rule: str, two_point: str = "midpoint") -> Sampler:
    """The third-order multistep solver that diffusers, k-diffusion and the authors of DPM-Solver ship, which has order 2.

    Their second difference is F''/2, and its weight that of F'': half of the moment of y^2 is missing.
    """
    form = RULES[rule]

    def init(z: Sample) -> Kept:
        zero = jnp.zeros((), z.dtype)
        return Kept((jnp.zeros_like(z),) * 2, (zero,) * 2, (zero + 1,) * 2)

    def step(noise: Sample, kept: Kept, z: Sample, t: Time, s: Time) -> tuple[Sample, Kept]:
        p, q, x0 = at(schedule, t), at(schedule, s), denoise(z, t)
        values = (form.value(x0, z, p), *kept.values)
        nodes = [-form.apart(*pair, p.alpha, p.sigma) for pair in zip(kept.alphas, kept.sigmas, strict=True)]
        h = form.apart(p.alpha, p.sigma, q.alpha, q.sigma)
        first, second, third = phis(3, form.rate * h)
        pair = {"exact": None, "midpoint": h**2 / 2 * first}[two_point]
        part = integral(values, nodes, [h * first, h**2 * second, 2 * h**3 * third / 2], pair=pair)
        kept = Kept(values[:2], (p.alpha, kept.alphas[0]), (p.sigma, kept.sigmas[0]))
        return first_order_step(x0, z, z, p, q) + form.scale(q) * part, kept

    return Sampler(init, step, fewest=3)


def _shipped_pndm(denoise: Denoiser, schedule: Schedule) -> Sampler:
    """diffusers' PNDM without its Runge-Kutta start: one step of Heun's rule."""
    return samplers.started(samplers.ipndm(denoise, schedule), samplers.edm(denoise, schedule), steps=1)


def _of(name: str, each: int = 1, start: int = 0, **options: object) -> Method:
    return Method(functools.partial(getattr(samplers, name), **options), each, start)


def _rule(tableau: object, coordinate: object, stages: int) -> Method:
    return _of("runge_kutta", stages, tableau=tableau, coordinate=coordinate)


METHODS: dict[str, Method] = {
    "ddim": _of("ddim"),
    "Euler": _of("euler"),
    "Heun": _of("heun", 2),
    "Heun (EDM)": _of("edm", 2),
    "Heun along log-SNR": _rule(HEUN, LOG_SNR, 2),
    "midpoint along log-SNR": _rule(MIDPOINT, LOG_SNR, 2),
    "Ralston along log-SNR": _rule(RALSTON, LOG_SNR, 2),
    "RK4 along log-SNR": _rule(RK4, LOG_SNR, 4),
    "RK4 along sigma/alpha": _rule(RK4, NOISE, 4),
    "DPM-Solver-2": _of("singlestep", 2, rule="noise"),
    "DPM-2": _of("singlestep", 2, rule="noise", two_point="midpoint"),
    "DPM-Solver++ 2S": _of("singlestep", 2),
    "DPM-Solver++ 2S, midpoint": _of("singlestep", 2, two_point="midpoint"),
    "DPM-Solver-3": _of("singlestep", 3, order=3, rule="noise"),
    "DPM-Solver-3, Alg. 2": Method(functools.partial(last_stage_alone, rule="noise"), 3),
    "DPM-Solver-fast, rest 1": Method(functools.partial(fast, rest=1), 3, -2),
    "DPM-Solver-fast, rest 2": Method(functools.partial(fast, rest=2), 3, -1),
    "DPM-Solver++ 3S": _of("singlestep", 3, order=3),
    "DPM-Solver++ 2M": _of("multistep", two_point="midpoint"),
    "data 2": _of("multistep"),
    "DPM-Solver++ 3M": _of("multistep", order=3),
    "DPM-Solver++ 3M, shipped": Method(functools.partial(shipped_third, rule="data")),
    "data 4": _of("multistep", order=4),
    "UniPC-1": _of("unipc", order=1),
    "UniPC-2": _of("unipc", order=2),
    "UniPC-3": _of("unipc", order=3),
    "UniPC-1, bh1": _of("unipc", order=1, variant="bh1"),
    "UniPC-2, bh1": _of("unipc", order=2, variant="bh1"),
    "UniPC-3, eps": _of("multistep", order=3, rule="noise", corrector=True),
    "noise 2": _of("multistep", rule="noise"),
    "noise 3": _of("multistep", order=3, rule="noise"),
    "noise 3, shipped": Method(functools.partial(shipped_third, rule="noise")),
    "noise 4": _of("multistep", order=4, rule="noise"),
    "signal 2": _of("multistep", rule="signal"),
    "LMS-2, DEIS": _of("lms", order=2),
    "LMS-3, DEIS": _of("lms", order=3),
    "LMS-4, DEIS": _of("lms", order=4),
    "tAB-DEIS 2": _of("deis", order=2),
    "tAB-DEIS 3": _of("deis", order=3),
    "tAB-DEIS 4": _of("deis", order=4),
    "iPNDM-2": _of("ipndm", order=2),
    "iPNDM-3": _of("ipndm", order=3),
    "iPNDM-4": _of("ipndm", order=4),
    "PNDM": _of("pndm", 1, 9),
    "PNDM, shipped": Method(_shipped_pndm, 1, 1),
}
"""name -> method.  "data", "noise" and "signal" are exponential Adams-Bashforth rules for x0_hat, eps_hat and x0_hat."""
