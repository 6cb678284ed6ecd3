"""Pictures: what a training run and a theorem look like.  Every function returns a matplotlib figure.

`figures` draws runs, schedules, weights, spectra and samplers at work, `steps` what the steps of a sampler are made of,
`frame` is what they share.
"""

from diffeq_gen.plots.figures import (
    SOLVERS,
    bending,
    digits_grid,
    guided,
    loss_curve,
    residuals,
    samples,
    schedule_curves,
    solvers,
    spectra,
    trajectories,
    weight_curves,
)
from diffeq_gen.plots.steps import churn, flipped, renoise

__all__ = [
    "SOLVERS",
    "bending",
    "churn",
    "digits_grid",
    "flipped",
    "guided",
    "loss_curve",
    "renoise",
    "residuals",
    "samples",
    "schedule_curves",
    "solvers",
    "spectra",
    "trajectories",
    "weight_curves",
]
