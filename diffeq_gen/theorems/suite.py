"""The suite: which theorems are asked for, of what, and their verdicts as they come in.

verdicts = run(select(names), cases=1000)
mine = load("mypackage:cosine");     verdicts = run(select(schedule=mine), schedule=mine)
mine = load("mypackage:solver");     verdicts = run(select(sampler=mine), sampler=mine)
"""

import difflib
import functools
import gc
import importlib
import multiprocessing
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import jax

from diffeq_gen.samplers.conformance import Method, checked_method
from diffeq_gen.schedules import checked
from diffeq_gen.theorems.registry import Theorem, Verdict, about, all_theorems, get
from diffeq_gen.types import Schedule

__all__ = ["ASSUMPTIONS", "load", "run", "select"]

ASSUMPTIONS = {
    "schedule": ("variance-preserving",),
    "sampler": ("exact-for-a-point", "scale-invariant", "order-2", "order-3", "order-4"),
}
"""Of what a user may bring -> what may be declared of it."""

INHERITED = (
    "jax_platforms", "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes", "jax_numpy_rank_promotion", "jax_numpy_dtype_promotion",
)  # fmt: skip
"""What a worker process takes over from the settings of its parent."""


def load(spec: str) -> Any:
    """The object that ``package.module:name`` names; modules of the working directory are found too.

    Raises: ValueError where the text has no such form, the module cannot be imported, or it has no such name.
    """
    module, colon, name = spec.partition(":")
    if not (module and colon and name):
        raise ValueError(f"an object is named as package.module:name, got {spec!r}")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        value = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"cannot import {module!r} of {spec!r}: {error}") from error
    for part in name.split("."):
        if not hasattr(value, part):
            near = difflib.get_close_matches(part, dir(value), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{module!r} has no {part!r}{hint}")
        value = getattr(value, part)
    return value() if isinstance(value, type) else value


def select(
    names: Sequence[str] = (), *, schedule: Schedule | None = None, sampler: Method | None = None,
    assuming: Sequence[str] = (),
) -> list[Theorem]:  # fmt: skip
    """The named theorems, or all; with a schedule, those of them that any schedule with these assumptions must satisfy; with a
    method that makes samplers, those that any sampler must, on the schedule alone if one is given too.

    Raises: KeyError for an unknown name; ValueError for an unknown assumption, or an object that is no schedule, or a
    named theorem that says nothing about such objects; TypeError for an object that makes no sampler.
    """
    target = "sampler" if sampler is not None else "schedule" if schedule is not None else None
    known = [name for kind, listed in ASSUMPTIONS.items() if target in (None, kind) for name in listed]
    for name in assuming:
        if name not in known:
            raise ValueError(f"assuming must be one of {', '.join(known)}, got {name!r}")
    chosen = [get(name) for name in names] if names else list(all_theorems().values())
    if target is None:
        return chosen
    if schedule is not None:
        checked(schedule)
    if sampler is not None:
        checked_method(sampler, schedule=schedule)
    laws = about(target, assuming=tuple(assuming))
    for entry in chosen if names else ():
        if entry not in laws:
            concerns = target in entry.targets
            needs = f"assumes {', '.join(sorted(entry.assumes))}" if concerns else f"is not about any {target}"
            raise ValueError(f"{entry.name} {needs}")
    return [entry for entry in chosen if entry in laws]


def run(
    theorems: Iterable[Theorem], *, cases: int | None = None, seed: int = 0, workers: int = 2,
    schedule: Schedule | None = None, sampler: Method | None = None, quick: bool = False, processes: bool = False,
) -> Iterator[Verdict]:  # fmt: skip
    """Checks the theorems on a few workers and yields each verdict as soon as it is there.

    A claim that raises is refuted, with the exception as the reason: nothing is skipped.  `quick` as in `Theorem.check`.
    The workers are threads; with `processes`, and more theorems than workers, they are processes, since half of a proof is
    Python, which threads run one at a time.  Accelerators and objects of one's own stay with the process that has them.
    Raises: ChildProcessError where a worker process was killed.
    """
    theorems, given = list(theorems), {"schedule": schedule, "sampler": sampler}
    fixed = {name: value for name, value in given.items() if value is not None}
    judge = functools.partial(_judge, cases=cases, seed=seed, quick=quick, **fixed)
    apart = processes and len(theorems) > workers and not fixed and jax.default_backend() == "cpu"
    pool = _processes(workers) if apart else ThreadPoolExecutor(workers)
    try:
        for future in as_completed([pool.submit(judge, entry) for entry in theorems]):
            yield future.result()
    except BrokenExecutor as error:
        raise ChildProcessError("a worker process was killed, most likely for want of memory: try fewer") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _judge(entry: Theorem, **options: Any) -> Verdict:
    try:
        return entry.check(**options)
    except Exception as error:
        reason = f"{entry.name}: {type(error).__name__}: {error}"
        return Verdict(entry.name, entry.kind, False, reason, 0, {}, {}, 0, 0.0)


def _processes(workers: int) -> Executor:
    settings = {name: getattr(jax.config, name) for name in INHERITED}
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _inherit, (settings,))


def _inherit(settings: Mapping[str, Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # an interruption is told once, by the parent
    for name, value in settings.items():
        jax.config.update(name, value)
    gc.freeze()  # a trace makes very many objects and hardly a cycle: looking for those is a tenth of a proof
    gc.set_threshold(50_000, 20, 50)
