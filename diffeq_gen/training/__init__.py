"""Training: a network, a schedule, a prediction and a weight, made into a denoiser on one device or on many.

`state` is what training carries, `step` one update that knows no more of the machine than the name of an axis,
`loop` the run, `checkpoint` what survives it, `data` where the samples come from, `evaluate` what came out.
"""

from diffeq_gen.training.checkpoint import Checkpoints
from diffeq_gen.training.data import Dataset, batches, digits, idx_folder, read_idx
from diffeq_gen.training.evaluate import evaluate, nearest, sliced_wasserstein
from diffeq_gen.training.loop import Config, Run, fit, restore
from diffeq_gen.training.state import State, ema_decay, initial
from diffeq_gen.training.step import parallel, update

__all__ = [
    "Checkpoints",
    "Config",
    "Dataset",
    "Run",
    "State",
    "batches",
    "digits",
    "ema_decay",
    "evaluate",
    "fit",
    "idx_folder",
    "initial",
    "nearest",
    "parallel",
    "read_idx",
    "restore",
    "sliced_wasserstein",
    "update",
]
