"""The solvers that the benchmarks of this folder run on networks."""

from collections.abc import Callable

from diffeq_gen import samplers
from diffeq_gen.types import Denoiser, Sampler, Schedule

__all__ = ["SOLVERS", "Build"]

Build = Callable[[Denoiser, Schedule], Sampler]

SOLVERS: dict[str, tuple[Build, int]] = {
    "ddim": (samplers.ddim, 1),
    "multistep 2": (lambda d, s: samplers.multistep(d, s, order=2), 1),
    "multistep 3": (lambda d, s: samplers.multistep(d, s, order=3), 1),
    "unipc 2": (lambda d, s: samplers.unipc(d, s, order=2), 1),
    "unipc 3": (lambda d, s: samplers.unipc(d, s, order=3), 1),
    "lms 4": (lambda d, s: samplers.lms(d, s, order=4), 1),
    "singlestep 2": (lambda d, s: samplers.singlestep(d, s, order=2), 2),
    "singlestep 3": (lambda d, s: samplers.singlestep(d, s, order=3), 3),
}
"""What builds a solver, and its evaluations a step."""
