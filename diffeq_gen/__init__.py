"""diffeq_gen: the mathematics of diffusion models and flow matching, each object stated once and proven.

    import diffeq_gen as dg
    schedule = dg.schedules.Cosine()
    p = dg.schedules.at(schedule, 0.3)
    z = dg.paths.perturb(x0, eps, p)

The modules are the chapters, in reading order; each is imported when it is first named.
"""

import importlib
from types import ModuleType

__version__ = "0.1.0"

_CHAPTERS = (
    "types",
    "schedules",
    "clocks",
    "coordinates",
    "grids",
    "paths",
    "predictions",
    "exact",
    "traces",
    "equations",
    "weights",
    "spectral",
    "importance",
    "guidance",
    "losses",
    "score_matching",
    "samplers",
    "bounds",
    "dequantisation",
    "variational",
    "likelihood",
    "adapters",
    "nets",
    "training",
    "proof",
    "theorems",
    "plots",
)

__all__ = list(_CHAPTERS)


def __getattr__(name: str) -> ModuleType:
    if name in _CHAPTERS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no chapter {name!r}; the chapters are {', '.join(_CHAPTERS)}")


def __dir__() -> list[str]:
    return sorted([*_CHAPTERS, "__version__"])
