"""The registry: a theorem is a claim (left, right) with a name, a source, a domain for each variable, and a near miss.

    @theorem(source="Gao et al. 2024", schedule=schedules, x0=vectors(3), t=times)
    def name_of_the_theorem(schedule, x0, t):
        '''Its statement, in one sentence.'''
        return left, right

    @name_of_the_theorem.near_miss          # the popular mistake: the search must refute it
    def the_mistake(schedule, x0, t): ...

A near miss is replayed at its stored witness first: the example of each domain, with the values that `witness` overrides.
"""

import dataclasses
import difflib
import importlib
import inspect
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from diffeq_gen.theorems.domains import Domain, example
from diffeq_gen.theorems.engine import JUDGES, Finding, describe, imports, search, shrink

__all__ = ["NearMiss", "Theorem", "Verdict", "about", "all_theorems", "get", "theorem"]

REFUTED = 10.0
DECISIVE_SHARE = 0.5

_REGISTRY: dict[str, "Theorem"] = {}


@dataclasses.dataclass(frozen=True)
class NearMiss:
    """A claim that looks like the theorem and is false, with the values at which that is seen first."""

    name: str
    statement: str
    claim: Callable[..., Any]
    witness: Mapping[str, Any]
    order: float | None = None


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What `Theorem.check` found.  `holds` is the whole answer; the rest is why."""

    name: str
    kind: str
    holds: bool
    reason: str
    cases: int
    residual_over_bound: Mapping[str, float]
    decisive: Mapping[str, float]
    near_misses: int
    seconds: float
    counterexample: Mapping[str, Any] | None = None

    def __bool__(self) -> bool:
        return self.holds

    def __str__(self) -> str:
        worst = ", ".join(f"{dtype} {ratio:.2g} of its bound" for dtype, ratio in self.residual_over_bound.items())
        return f"{self.name}: holds on {self.cases} cases ({worst})" if self.holds else self.reason


@dataclasses.dataclass(eq=False)
class Theorem:
    """A named statement that can be run: `check` it, also on one's own schedule, or call it for (left, right)."""

    name: str
    statement: str
    source: str
    kind: str
    chapter: str
    domains: Mapping[str, Domain]
    claim: Callable[..., Any]
    order: float | None = None
    cases: int = 1000
    precisions: tuple[str, ...] = ("float64", "float32")
    misses: list[NearMiss] = dataclasses.field(default_factory=list)
    _compiled: dict = dataclasses.field(default_factory=dict, repr=False)

    def __call__(self, **case: Any) -> Any:
        return self.claim(**case)

    def __reduce__(self) -> tuple[Callable, tuple[str, str]]:
        """A theorem is pickled by its name, and found again by importing the module that states it."""
        return _imported, (self.claim.__module__, self.name)

    def near_miss(
        self, claim: Callable | None = None, *, witness: Mapping[str, Any] | None = None, order: float | None = None
    ) -> Any:
        """Registers a false neighbour of the theorem: same variables, and it must be refuted at its witness.

        Raises: ValueError where its variables are not those of the theorem.
        """
        if claim is None:
            return lambda claim: self.near_miss(claim, witness=witness, order=order)
        _require_variables(claim, self.domains, f"near miss {claim.__name__} of {self.name}")
        for name in witness or {}:
            if name not in self.domains:
                raise ValueError(
                    f"{self.name} has no variable {name!r} for a witness; it has {', '.join(self.domains)}"
                )
        statement = inspect.getdoc(claim) or ""
        self.misses.append(NearMiss(_hyphens(claim), statement, claim, witness or {}, order or self.order))
        return claim

    def not_of_order(self, order: float, statement: str, *, witness: Mapping[str, Any] | None = None) -> None:
        """Registers the same errors at another order as a near miss, for which nothing is traced or compiled again."""
        self.misses.append(NearMiss(f"of-order-{order:g}", statement, self.claim, witness or {}, order))

    @property
    def targets(self) -> frozenset[str]:
        """What a user may put in the place of a variable: {"schedule"}, ..."""
        return frozenset(domain.target for domain in self.domains.values() if domain.target)

    @property
    def assumes(self) -> frozenset[str]:
        """What must be declared of a user's object before the theorem applies to it."""
        return frozenset(name for domain in self.domains.values() for name in domain.assumes)

    def check(
        self, *, cases: int | None = None, seed: int = 0, precisions: tuple[str, ...] | None = None, quick: bool = False,
        **fixed: Any,
    ) -> Verdict:  # fmt: skip
        """Searches `cases` cases in each precision, then makes sure that every near miss is refuted.

        `quick` computes operation by operation, for a first look, and compiles orders alone: a proof of an identity is of the code
        as it runs.
        Keyword arguments that are variables of the theorem are held fixed: ``check(schedule=mine)``.
        Raises: ValueError where a keyword is no variable.
        """
        for name in fixed:
            if name not in self.domains:
                raise ValueError(f"{self.name} has no variable {name!r}; it has {', '.join(self.domains)}")
        start, cases = time.monotonic(), cases or self.cases
        ratios: dict[str, float] = {}
        decisive: dict[str, float] = {}
        blank: dict[str, int] = {}
        for dtype in precisions or self.precisions:
            for domains in self._variants(fixed):
                finding = self._search(self.claim, self.order, domains, cases, seed, dtype, fixed, rough=quick)
                ratios[dtype] = max(ratios.get(dtype, 0.0), finding.ratio)
                decisive[dtype] = min(decisive.get(dtype, 1.0), finding.decisive)
                blank[dtype] = max(blank.get(dtype, 0), finding.blank)
                if finding.ratio > 1:
                    return self._refuted(finding, domains, dtype, fixed, ratios, decisive, time.monotonic() - start)
        reason, main = "", next(iter(precisions or self.precisions))
        if decisive[main] < DECISIVE_SHARE:
            reason = f"{self.name}: vacuous, the bound decides only {decisive[main]:.0%} of the cases in {main}"
        elif blank[main]:
            reason = f"{self.name}: vacuous, {blank[main]} of its entries are decided in no case in {main}"
        survivors = [] if fixed else [miss.name for miss in self.misses if not self._refutes(miss, cases, quick)]
        if survivors:
            reason = f"{self.name}: the near miss {', '.join(survivors)} is not refuted"
        taken = time.monotonic() - start
        return Verdict(self.name, self.kind, not reason, reason, cases, ratios, decisive, len(self.misses), taken)

    def measure_at(self, case: Mapping[str, Any], *, dtype: str = "float64") -> Finding:
        """The residual and its bound at one given case, without drawing any: what a counterexample asks to be pasted.

        A value of another structure than its domain's, such as a schedule of one's own, is taken as it is.
        """
        domains = self._variants({})[0]
        known = {name: jax.tree.structure(value) for name, value in example(domains).items()}
        fixed = {name: value for name, value in case.items() if jax.tree.structure(value) != known[name]}
        free = {name: domain for name, domain in domains.items() if name not in fixed}
        given = {name: value for name, value in case.items() if name in free}
        return self._search(self.claim, self.order, free, 1, 0, dtype, fixed, given=given)

    def prove(self, *, seconds: float = 20.0) -> Any:
        """A symbolic proof of the shipped code: `symbolic.prove` of the claim, for an opaque schedule where it has one.

        Raises: ImportError without sympy.
        """
        from diffeq_gen.proof.symbolic import Opaque, prove

        case = {}
        for name, value in example(self.domains).items():
            family = "variance-preserving" if "variance-preserving" in self.domains[name].assumes else "any"
            leaves, treedef = jax.tree.flatten(value)
            single = jax.tree.unflatten(treedef, [np.asarray(leaf)[0] for leaf in leaves])
            case[name] = Opaque(family) if self.domains[name].target == "schedule" else single
        return prove(lambda **case: self.claim(**case)[:2], seconds=seconds, **case)

    def _search(
        self, claim: Callable, order: float | None, domains: Mapping[str, Domain], cases: int, seed: int, dtype: str,
        fixed: Mapping[str, Any] | None = None, given: Mapping[str, Any] | None = None, rough: bool = False,
    ) -> Finding:  # fmt: skip
        return search(claim, self.kind, domains, cases=cases, seed=seed, dtype=dtype, order=order, fixed=fixed,
                      given=given, compiled=self._compiled, rough=rough)  # fmt: skip

    def _variants(self, fixed: Mapping[str, Any]) -> list[dict[str, Domain]]:
        several = [name for name, domain in self.domains.items() if domain.variants and name not in fixed]
        if not several:
            return [dict(self.domains)]
        return [{**self.domains, several[0]: variant} for variant in self.domains[several[0]].variants]

    def _refutes(self, miss: NearMiss, cases: int, quick: bool) -> bool:
        """Whether the near miss is false at its witness (the first case), by more than ten bounds, in one variant at least."""
        enough, same = 1 if self.kind == "order" else REFUTED, miss.claim is self.claim
        return any(
            self._search(
                miss.claim, miss.order, domains, cases if same else 1, 0, "float64", given=miss.witness,
                rough=quick or not same,
            ).ratio
            > enough
            for domains in self._variants({})
        )  # fmt: skip

    def _refuted(
        self, finding: Finding, domains: Mapping[str, Domain], dtype: str, fixed: Mapping[str, Any],
        ratios: Mapping[str, float], decisive: Mapping[str, float], taken: float,
    ) -> Verdict:  # fmt: skip
        free = {name: domain for name, domain in domains.items() if name not in fixed}

        def broken(case: Mapping[str, Any]) -> bool:
            return self._search(self.claim, self.order, free, 1, 0, dtype, fixed, given=case).ratio > 1

        seen, simplest = finding.cases, shrink(broken, free) if free else None
        if simplest is not None:
            finding = self._search(self.claim, self.order, free, 1, 0, dtype, fixed, given=simplest)
        case = {name: finding.case[name] for name in self.domains}
        what = f"its errors miss a slope of {self.order:g} by" if self.kind == "order" else "residual"
        exceeds = "more than" if self.kind == "order" else "exceeds its bound"
        reason = "\n  ".join([
            f"{self.name}: {what} {finding.residual:.3g} {exceeds} {finding.bound:.3g} in {dtype}",
            self.statement,
            f"at {describe(case)}",
            "paste:",
            *imports(case),
            "from diffeq_gen import theorems",
            f"theorems.get({self.name!r}).measure_at(dict({describe(case)}), dtype={dtype!r})",
        ])  # fmt: skip
        return Verdict(self.name, self.kind, False, reason, seen, ratios, decisive, 0, taken, case)


def theorem(
    *, source: str, kind: str = "identity", order: float | None = None, cases: int = 1000,
    precisions: tuple[str, ...] = ("float64", "float32"), **domains: Domain,
) -> Callable[[Callable[..., Any]], Theorem]:  # fmt: skip
    """Registers a claim under its function's name, with hyphens; its docstring is the statement, its module the chapter.

    Raises: ValueError where the name is taken, the kind unknown, or the variables and the domains differ.
    """
    if kind not in JUDGES:
        raise ValueError(f"kind must be one of {', '.join(JUDGES)}, got kind={kind!r}")

    def register(claim: Callable[..., Any]) -> Theorem:
        name = _hyphens(claim)
        if name in _REGISTRY:
            raise ValueError(f"a theorem named {name} exists already")
        _require_variables(claim, domains, f"theorem {name}")
        statement = " ".join((inspect.getdoc(claim) or "").split("\n\n")[0].split())
        chapter = claim.__module__.rpartition(".")[2]
        _REGISTRY[name] = Theorem(name, statement, source, kind, chapter, domains, claim, order, cases, precisions)
        return _REGISTRY[name]

    return register


def _hyphens(claim: Callable[..., Any]) -> str:
    return claim.__name__.replace("_", "-")


def _require_variables(claim: Callable[..., Any], domains: Mapping[str, Domain], what: str) -> None:
    names = list(inspect.signature(claim).parameters)
    if names != list(domains):
        raise ValueError(f"{what} has the variables {', '.join(names)} but domains for {', '.join(domains)}")


def all_theorems() -> dict[str, Theorem]:
    """Every registered theorem by name, in the order of the chapters."""
    return dict(_REGISTRY)


def get(name: str) -> Theorem:
    """The theorem of this name.

    Raises: KeyError naming the nearest name, where there is none.
    """
    if name not in _REGISTRY:
        near = difflib.get_close_matches(name, _REGISTRY, n=1, cutoff=0.0)
        raise KeyError(f"no theorem is named {name!r}; did you mean {near[0]!r}?")
    return _REGISTRY[name]


def _imported(module: str, name: str) -> Theorem:
    importlib.import_module(module)
    return get(name)


def about(target: str, *, assuming: tuple[str, ...] | str = ()) -> list[Theorem]:
    """The theorems that any object of this kind must satisfy ("schedule"), and those that follow from what is declared of it.

    Raises: ValueError where no theorem is about such an object.
    """
    declared = {assuming} if isinstance(assuming, str) else set(assuming)
    known = sorted({name for entry in _REGISTRY.values() for name in entry.targets})
    if target not in known:
        raise ValueError(f"theorems are about {', '.join(known)}; got {target!r}")
    return [entry for entry in _REGISTRY.values() if target in entry.targets and entry.assumes <= declared]
