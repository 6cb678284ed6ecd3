"""A schedule is a function t -> (alpha, sigma): how much data and how much noise a sample carries at time t.

    z = alpha(t) x0 + sigma(t) eps,      lambda(t) = log(alpha^2 / sigma^2) decreasing in t

Any function will do: `reading` says how it is read, `families` holds those of the literature, `tabulated` those of trained
discrete models, `learnt` one that is taught.  Where log-SNR or its inverse has no closed form, `clocks` derives it.
"""

from diffeq_gen.schedules.families import EDM, IDDPM, VE, VP, Cosine, Flow, Laplace, Sigmoid, SubVP
from diffeq_gen.schedules.learnt import Monotone
from diffeq_gen.schedules.reading import at, checked, variance_preserving
from diffeq_gen.schedules.tabulated import Tabulated, ZeroTerminalSNR

__all__ = [
    "EDM",
    "IDDPM",
    "VE",
    "VP",
    "Cosine",
    "Flow",
    "Laplace",
    "Monotone",
    "Sigmoid",
    "SubVP",
    "Tabulated",
    "ZeroTerminalSNR",
    "at",
    "checked",
    "variance_preserving",
]
