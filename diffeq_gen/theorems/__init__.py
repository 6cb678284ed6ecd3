"""Theorems: every equivalence of the field as a named object that can be run, on our own functions or on yours.

    theorem = get("ddim-is-euler");     theorem.check(cases=1_000_000, schedule=my_schedule)
    about("schedule")                   those that any schedule must satisfy

`registry` says what a theorem is, `domains` where it holds, `engine` how it is searched, `suite` which are run; what residual
the arithmetic allows, and what is proven by algebra, is for `diffeq_gen.proof` to say.  The other files are the chapters.
"""

import importlib

from diffeq_gen.theorems.registry import NearMiss, Theorem, Verdict, about, all_theorems, get, theorem

__all__ = ["CHAPTERS", "NearMiss", "Theorem", "Verdict", "about", "all_theorems", "get", "theorem"]

CHAPTERS = (
    "path_algebra", "schedule_algebra", "symmetries", "forward", "closed_form", "estimation", "reverse_kernels",
    "reverse", "reverse_flows", "first_order", "solver_exactness", "solver_algebra", "solver_families", "solver_variants",
    "solver_grids", "stochastic_steps", "edm_steps", "sampler_laws", "sampler_orders", "solver_orders",
    "controlled_solvers", "controlled_laws", "stochastic_solvers", "sampler_compositions", "sampler_contract",
    "edm_algebra", "weightings", "objectives", "importance_laws", "score_matching_laws", "variational_laws", "variational_sums",
    "likelihood_laws", "bounds_laws", "dequantisation_laws", "guidance_laws", "guided_posteriors", "spectral_laws", "perspectives",
    "data_parallel", "errata",
)  # fmt: skip

for _chapter in CHAPTERS:
    importlib.import_module(f"{__name__}.{_chapter}")
