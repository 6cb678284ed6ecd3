"""Samplers: a formula (arrays only), a step `(init, step)` that adds a model to it, and the one scan that drives it.

    x = sample(key, ddim(denoise, schedule), z, times)

`first_order` holds DDIM, DDPM, churn and the exact constant-eta step, which are one formula; `ode` Euler and Heun of the
probability flow; `edm` the sampler of Karras et al.; `sde` Euler-Maruyama; `interpolation` what solvers of high order are
made of, `multistep` and `singlestep` those solvers, `controlled` the one that knows the data's moments, or a `mixture` fitted
to them; `compose` samplers made of samplers; `law` the exact law of them all on Gaussian data.
"""

from diffeq_gen.samplers.compose import started
from diffeq_gen.samplers.controlled import Control, control_of, control_times, controlled, jump
from diffeq_gen.samplers.edm import edm
from diffeq_gen.samplers.first_order import churn, ddim, ddpm, exponential, first_order_step
from diffeq_gen.samplers.law import law
from diffeq_gen.samplers.loop import sample, trajectory
from diffeq_gen.samplers.multistep import lms, multistep, unipc
from diffeq_gen.samplers.ode import euler, heun
from diffeq_gen.samplers.sde import euler_maruyama
from diffeq_gen.samplers.singlestep import singlestep

__all__ = [
    "Control",
    "churn",
    "control_of",
    "control_times",
    "controlled",
    "ddim",
    "ddpm",
    "edm",
    "euler",
    "euler_maruyama",
    "exponential",
    "first_order_step",
    "heun",
    "jump",
    "law",
    "lms",
    "multistep",
    "sample",
    "singlestep",
    "started",
    "trajectory",
    "unipc",
]
