"""The suite: which theorems are asked for, of what, and their verdicts as they come in.

verdicts = run(select(names), cases=1000)
verdicts = run(select((), about_schedule=True), schedule=load("mypackage:cosine"))
"""

import difflib
import importlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from diffeq_gen.schedules import checked
from diffeq_gen.theorems.registry import Theorem, Verdict, about, all_theorems, get
from diffeq_gen.types import Schedule

__all__ = ["ASSUMPTIONS", "load", "run", "select"]

ASSUMPTIONS = ("variance-preserving",)


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
    names: Sequence[str] = (), *, schedule: Schedule | None = None, assuming: Sequence[str] = ()
) -> list[Theorem]:
    """The named theorems, or all; with a schedule, those of them that any schedule with these assumptions must satisfy.

    Raises: KeyError for an unknown name; ValueError for an unknown assumption, or an object that is no schedule, or a
    named theorem that says nothing about schedules.
    """
    for name in assuming:
        if name not in ASSUMPTIONS:
            raise ValueError(f"assuming must be one of {', '.join(ASSUMPTIONS)}, got {name!r}")
    chosen = [get(name) for name in names] if names else list(all_theorems().values())
    if schedule is None:
        return chosen
    checked(schedule)
    laws = about("schedule", assuming=tuple(assuming))
    for entry in chosen if names else ():
        if entry not in laws:
            needs = f"assumes {', '.join(entry.assumes)}" if entry.targets else "is not about any schedule"
            raise ValueError(f"{entry.name} {needs}")
    return [entry for entry in chosen if entry in laws]


def run(
    theorems: Iterable[Theorem], *, cases: int | None = None, seed: int = 0, workers: int = 2,
    schedule: Schedule | None = None, quick: bool = False,
) -> Iterator[Verdict]:  # fmt: skip
    """Checks the theorems on a few threads and yields each verdict as soon as it is there.

    A claim that raises is refuted, with the exception as the reason: nothing is skipped.  `quick` as in `Theorem.check`.
    """
    fixed = {} if schedule is None else {"schedule": schedule}

    def judge(entry: Theorem) -> Verdict:
        try:
            return entry.check(cases=cases, seed=seed, quick=quick, **fixed)
        except Exception as error:
            reason = f"{entry.name}: {type(error).__name__}: {error}"
            return Verdict(entry.name, entry.kind, False, reason, 0, {}, {}, 0, 0.0)

    with ThreadPoolExecutor(workers) as pool:
        for future in as_completed([pool.submit(judge, entry) for entry in theorems]):
            yield future.result()
