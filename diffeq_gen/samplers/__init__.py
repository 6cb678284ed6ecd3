"""Samplers: a formula (arrays only), a step `(init, step)` that adds a model to it, and the one scan that drives it.

    x = sample(key, ddim(denoise, schedule), z, times)

`first_order` holds DDIM, DDPM, churn, the exact constant-eta step and the consistency sampler, which are one formula; `ode`
Euler and Heun of the probability flow, `runge_kutta` their like along any coordinate; `edm` the sampler of Karras et al.; `sde`
Euler-Maruyama; `newton` the polynomial through what a solver has seen, `interpolation` what solvers of high order make of it,
`multistep`, `deis` and `singlestep` those solvers, of the flow and of the SDE, `adaptive` the last with steps of its own
choice; `controlled` the solver that knows what `control` holds of the data, their moments or a `mixture` fitted to them, from
points or, `learnt`, from the denoiser itself; `langevin` the corrector; `compose` samplers made of samplers, `clipping` what is
done to a prediction first; `law` the exact law of them all on Gaussian data; `aligned` a grid fitted to one of them;
`conformance` what any step owes, also one of your own.
"""

from diffeq_gen.samplers.adaptive import adaptive
from diffeq_gen.samplers.aligned import aligned
from diffeq_gen.samplers.clipping import clipped, thresholded
from diffeq_gen.samplers.compose import churned, corrected, denoised, raised, started
from diffeq_gen.samplers.conformance import conform, stateless
from diffeq_gen.samplers.control import Control, control_of, control_times
from diffeq_gen.samplers.controlled import controlled, jump
from diffeq_gen.samplers.deis import deis, ipndm, pndm, pseudo_runge_kutta
from diffeq_gen.samplers.edm import edm
from diffeq_gen.samplers.first_order import churn, consistency, ddim, ddpm, exponential, first_order_step
from diffeq_gen.samplers.langevin import langevin
from diffeq_gen.samplers.law import law
from diffeq_gen.samplers.learnt import control_from
from diffeq_gen.samplers.loop import sample, trajectory
from diffeq_gen.samplers.multistep import er_sde, lms, multistep, unipc
from diffeq_gen.samplers.ode import euler, heun
from diffeq_gen.samplers.runge_kutta import runge_kutta
from diffeq_gen.samplers.sde import euler_maruyama
from diffeq_gen.samplers.singlestep import singlestep

__all__ = [
    "Control",
    "adaptive",
    "aligned",
    "churn",
    "churned",
    "clipped",
    "conform",
    "consistency",
    "control_from",
    "control_of",
    "control_times",
    "controlled",
    "corrected",
    "ddim",
    "ddpm",
    "deis",
    "denoised",
    "edm",
    "er_sde",
    "euler",
    "euler_maruyama",
    "exponential",
    "first_order_step",
    "heun",
    "ipndm",
    "jump",
    "langevin",
    "law",
    "lms",
    "multistep",
    "pndm",
    "pseudo_runge_kutta",
    "raised",
    "runge_kutta",
    "sample",
    "singlestep",
    "started",
    "stateless",
    "thresholded",
    "trajectory",
    "unipc",
]
