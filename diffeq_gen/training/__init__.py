"""Training: a network, a schedule, a prediction and a weight, made into a denoiser on one device or on many.

`state` is what training carries, `step` one update that knows no more of the machine than the name of an axis,
`loop` the run, `checkpoint` what survives it, `data` where the samples come from, `evaluation` what came out.
Each is imported when one of its names is first asked for: a step needs optax, a run also flax and orbax.
"""

import importlib
from typing import Any

_HOMES = {
    "Checkpoints": "checkpoint",
    "Config": "loop",
    "Dataset": "data",
    "Run": "loop",
    "State": "state",
    "batches": "data",
    "digits": "data",
    "ema_decay": "state",
    "evaluate": "evaluation",
    "fit": "loop",
    "idx_folder": "data",
    "initial": "state",
    "nearest": "evaluation",
    "parallel": "step",
    "read_idx": "data",
    "restore": "loop",
    "sliced_wasserstein": "evaluation",
    "update": "step",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no {name!r}; it has {', '.join(_HOMES)}")
