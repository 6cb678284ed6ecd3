"""The engine: draw cases, measure a claim on all of them at once, find the worst, shrink it, say what was found.

    claim : case -> (left, right)   ->   measure : cases -> (residual, bound, scale) of each, and which entries none of them decides

Each kind of theorem has its own judge.  A residual is held against a bound derived from the arithmetic of that very case
(`rounding`), never against a chosen tolerance; a bound too wide to decide anything is counted, and too many of those
make the verdict "vacuous", which is no proof; so does one entry of the claim that no case decides.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from diffeq_gen.proof.pruning import evaluated, pruned
from diffeq_gen.proof.residual import same_structure
from diffeq_gen.proof.rounding import as_float, given, interpret
from diffeq_gen.theorems.domains import Domain, draw, example, scalars

__all__ = ["JUDGES", "Finding", "describe", "imports", "measure", "search", "shrink"]

Claim = Callable[..., Any]
Measured = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]

CHUNK = 1 << 14
WORKERS = 2
DECISIVE = {"float64": 1e-6, "float32": 1e-2}
TRUNCATED = 1e3
NOTHING = "nothing"
UNOPTIMISED = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
SLOPE_BOUND = 0.15


def _equal(value: Any, radius: Any, order: float | None) -> Measured:
    """|left - right| against the radii of both sides, plus the claim's own truncation bound where it has one.

    A bound decides where it is 1e-6 of the scale (1e-2 in float32), or 1e-3 where a truncation is part of it.
    """
    same_structure(value[0], value[1])
    sides = [[np.asarray(leaf) for leaf in jax.tree.leaves(side)] for side in (*value[:2], *radius[:2])]
    extra = [np.asarray(0.0)] * len(sides[0])
    if len(value) == 3:
        truncation = [
            np.abs(size) + error for size, error in zip(*map(jax.tree.leaves, (value[2], radius[2])), strict=True)
        ]
        extra = truncation if len(truncation) == len(extra) else truncation * len(extra)
    parts = []
    for left, right, e_left, e_right, more in zip(*sides, extra, strict=True):
        gap = np.where(left == right, 0.0, np.abs(left - right))
        more = more.reshape(more.shape + (1,) * (gap.ndim - more.ndim))
        lost = ~np.isfinite(gap)  # nan, or an infinity on one side alone: no bound excuses it
        bound = np.where(lost, 0.0, e_left + e_right + more + np.finfo(left.dtype).eps * gap)
        parts.append((np.where(lost, np.inf, gap), bound, np.abs(left) + np.abs(right)))
    residual, bound, scale, blank = _worst(parts)
    return residual, bound, scale * (TRUNCATED if len(value) == 3 else 1), blank


def _below(value: Any, radius: Any, order: float | None) -> Measured:
    """max(left - right, 0) against the radii of both sides, plus truncation."""
    (left, right, *more), (e_left, e_right, *_) = value, radius
    excess = left - right
    bound = e_left + e_right + sum(more) + np.finfo(left.dtype).eps * np.abs(excess)
    return _worst([(np.where(np.isnan(excess), np.inf, np.maximum(excess, 0)), bound, np.abs(left) + np.abs(right))])


def _slope(value: Any, radius: Any, order: float | None) -> Measured:
    """The two last slopes of log(error) against log(step), at most 0.15 away from the claimed order."""
    steps, errors = (np.asarray(part) for part in value)
    slopes = np.diff(np.log(errors), axis=-1) / np.diff(np.log(steps), axis=-1)
    off = np.max(np.abs(slopes[:, -2:] - order), axis=1)
    return (
        np.where(np.isnan(off), np.inf, off),
        np.full_like(off, SLOPE_BOUND),
        np.full_like(off, np.inf),
        np.zeros(1, bool),
    )


def _worst(parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Measured:
    """Of all entries of all leaves, for each case the one whose residual is largest in units of its bound; and which entries are
    blank: their bound is infinite in every case, so that the claim says nothing of them."""
    flat = [np.concatenate([part[i].reshape(len(part[i]), -1) for part in parts], axis=1) for i in range(3)]
    ratio = np.where(flat[0] == 0, 0.0, flat[0] / flat[1])
    ratio = np.where(np.isinf(flat[1]), -1.0 / (1 + flat[2]), ratio)
    place = np.argmax(np.where(np.isnan(ratio), np.inf, ratio), axis=1)[:, None]
    residual, bound, scale = (np.take_along_axis(part, place, 1)[:, 0] for part in flat)
    return residual, bound, scale, np.all(np.isinf(flat[1]), axis=0)


JUDGES: dict[str, Callable[[Any, Any, float | None], Measured]] = {
    "identity": _equal,
    "in law": _equal,
    "counterexample": _equal,
    "inequality": _below,
    "order": _slope,
}
"""kind -> judge.  Of a counterexample the claim is what does hold, and its near miss the belief that does not."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a search saw: how many cases, the worst residual in units of its bound, the case that broke the claim, and how many
    entries no case decides."""

    cases: int
    ratio: float
    decisive: float
    case: Mapping[str, Any] | None = None
    residual: float = 0.0
    bound: float = 0.0
    blank: int = 0


def measure(
    claim: Claim, kind: str, treedef: Any, fixed: Mapping[str, Any], leaves: Sequence[np.ndarray], *,
    rough: bool = False,
) -> Callable[[Sequence[np.ndarray], float | None], Measured]:  # fmt: skip
    """(leaves, order) -> what a judge says of them over their leading axis: values compiled by XLA, bounds by running error analysis.

    A `rough` measure takes its values from that analysis too, operation by operation, and so needs no compilation: enough to
    refute a near miss, and for a first look; of a single case it is traced without the leading axis.  An order, which has no
    such analysis, takes its few cases in turn, for its loops are dear to batch, and is compiled without LLVM's optimisation,
    in half the time: the operations are the same, their fusing is not, and a slope is read where rounding is not seen.
    """

    def one(*leaves: jax.Array) -> Any:
        case = jax.tree.unflatten(treedef, leaves)
        return claim(**{name: value for name, value in case.items() if name != NOTHING}, **fixed)

    alone = rough and kind != "order" and len(leaves[0]) == 1

    def placed(leaves: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [np.asarray(leaf[0]) for leaf in leaves] if alone else list(leaves)

    def seen(value: Any) -> np.ndarray:
        return np.asarray(value)[None] if alone else np.asarray(value)

    in_turn = lambda *leaves: jax.lax.map(lambda case: one(*case), leaves)  # noqa: E731
    traced = jax.jit(one if alone else in_turn if kind == "order" else jax.vmap(one)).trace(*placed(leaves))
    structure = jax.tree.structure(traced.out_info)
    if kind == "order":
        run = traced.lower().compile(UNOPTIMISED)
        return lambda leaves, order: JUDGES[kind](jax.tree.map(np.asarray, run(*leaves)), None, order)
    program = pruned(traced.jaxpr)
    run = None if rough else jax.jit(functools.partial(evaluated, program)).lower(*leaves).compile()

    def measured(leaves: Sequence[np.ndarray], order: float | None) -> Measured:
        balls = interpret(program, program.consts, [given(leaf) for leaf in placed(leaves)])
        radius = jax.tree.unflatten(structure, [seen(as_float(ball)) for ball in balls])
        known = jax.tree.unflatten(structure, [seen(ball.value) for ball in balls])
        if run is not None:
            known = jax.tree.unflatten(structure, [np.asarray(value) for value in run(*leaves)])
        return JUDGES[kind](known, radius, order)

    return measured


def search(
    claim: Claim,
    kind: str,
    domains: Mapping[str, Domain],
    *,
    cases: int,
    seed: int,
    dtype: str,
    order: float | None = None,
    fixed: Mapping[str, Any] | None = None,
    given: Mapping[str, Any] | None = None,
    compiled: dict | None = None,
    rough: bool = False,
) -> Finding:
    """Measures the example, then random cases up to `cases` in all; or the example with the `given` values put in, alone.

    `fixed` values are constants of the trace (a user's schedule); `compiled` caches traced measures between calls.
    """
    fixed, compiled = fixed or {}, {} if compiled is None else compiled
    free = {name: domain for name, domain in domains.items() if name not in fixed} or {NOTHING: scalars(NOTHING, 0, 1)}
    size = min(CHUNK, max(1, cases))
    treedef = jax.tree.structure(draw(free, 1, seed))
    held = tuple(sorted((name, id(value)) for name, value in fixed.items()))
    key = (claim, kind, dtype, rough and kind != "order", size, treedef, held)

    def chunk(start: int) -> tuple[Finding, float, np.ndarray]:
        """The worst of `size` cases, how many of them the bound decides, and the entries that it decides in none."""
        leaves = jax.tree.leaves(draw(free, size, seed + start))
        if start == 0:
            first = jax.tree.leaves(_with(example(free), given))
            leaves = [_joined(*pair) for pair in zip(first, leaves, strict=True)]
        leaves = [_cast(leaf, dtype) for leaf in leaves]
        with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"), np.errstate(all="ignore"):
            if key not in compiled:
                compiled[key] = measure(claim, kind, treedef, fixed, leaves, rough=rough)
            res, bound, scale, blank = compiled[key](leaves, order)
            ratio = np.where(res == 0, 0.0, np.where(np.isinf(bound), 0.0, res / bound))
            ratio = np.where(np.isnan(ratio), np.inf, ratio)
        i = int(np.argmax(ratio)) if given is None else 0
        case = {**jax.tree.unflatten(treedef, [leaf[i] for leaf in leaves]), **fixed}
        decided = np.sum((bound <= DECISIVE[dtype] * scale) | ((res == 0) & (scale == 0)))
        return Finding(size, float(ratio[i]), 0.0, case, float(res[i]), float(bound[i])), float(decided), blank

    starts = range(0, cases, size)
    found = [chunk(0)]
    if len(starts) > 1:
        with ThreadPoolExecutor(WORKERS) as pool:
            found += pool.map(chunk, starts[1:])
    findings, decided, blanks = zip(*found, strict=True)
    worst, seen = max(findings, key=lambda finding: finding.ratio), size * len(found)
    return dataclasses.replace(
        worst, cases=seen, decisive=sum(decided) / seen, blank=int(np.sum(np.all(blanks, axis=0)))
    )


def _joined(first: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """The example in front of the random cases."""
    return np.concatenate([np.asarray(first), np.asarray(rest)[1:]])


def _cast(leaf: Any, dtype: str) -> np.ndarray:
    leaf = np.asarray(leaf)
    return leaf.astype(dtype) if np.issubdtype(leaf.dtype, np.floating) else leaf


def _with(case: Mapping[str, Any], given: Mapping[str, Any] | None) -> dict[str, Any]:
    """The stacked example with the given, unstacked, values in the place of its own."""
    place = {name: jax.tree.map(lambda leaf: np.asarray(leaf)[None], value) for name, value in (given or {}).items()}
    return {**case, **place}


def shrink(broken: Callable[[Mapping[str, Any]], bool], domains: Mapping[str, Domain], *, seconds: float = 10.0) -> Any:
    """The simplest case that `broken` still refutes, found by hypothesis over the unit cube; None where it finds none in time."""
    import hypothesis
    from hypothesis import strategies as st

    end = time.monotonic() + seconds
    sizes = {name: domain.size for name, domain in domains.items()}

    def build(cube: Mapping[str, list[float]]) -> dict[str, Any]:
        case: dict[str, Any] = {}
        for name, domain in domains.items():
            case[name] = domain.build(np.asarray(cube[name], np.float64).reshape(1, -1), case)
        leaves, treedef = jax.tree.flatten(case)
        return jax.tree.unflatten(treedef, [np.asarray(leaf)[0] for leaf in leaves])

    last = None

    def fails(cube: Mapping[str, list[float]]) -> bool:
        nonlocal last
        case = build(cube) if time.monotonic() < end else None
        if case is None or not broken(case):
            return False
        last = case
        return True

    unit = st.floats(0, 1, allow_subnormal=False)
    cubes = st.fixed_dictionaries({name: st.lists(unit, min_size=size, max_size=size) for name, size in sizes.items()})
    phases = (hypothesis.Phase.generate, hypothesis.Phase.shrink)
    settings = hypothesis.settings(max_examples=500, deadline=None, database=None, derandomize=True, phases=phases)
    try:
        return build(hypothesis.find(cubes, fails, settings=settings))
    except hypothesis.errors.NoSuchExample:
        return None
    except hypothesis.errors.Flaky:  # time was up between a case and its replay: it is broken all the same
        return last


def describe(case: Mapping[str, Any]) -> str:
    """The case as keyword arguments that can be pasted back: ``t=0.5, x0=array([0.0, 1.0])``."""
    return ", ".join(f"{name}={_literal(value)}" for name, value in case.items())


def imports(case: Mapping[str, Any]) -> list[str]:
    """The lines that a described case needs in front of it: numpy's words, and the nouns and functions that it names."""
    found = {"from numpy import array, inf, nan"}

    def visit(value: Any) -> None:
        if dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                visit(getattr(value, field.name))
        named = value if hasattr(value, "__qualname__") else type(value)
        if named.__module__ not in ("builtins", "numpy") and "<" not in named.__qualname__ and _is_noun(value):
            found.add(f"from {named.__module__} import {named.__qualname__.partition('.')[0]}")

    for value in case.values():
        visit(value)
    return sorted(found)


def _is_noun(value: Any) -> bool:
    return not isinstance(value, np.ndarray | np.generic | jax.Array | float | int | None)


def _literal(value: Any) -> str:
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        listed = np.asarray(value).tolist()
        return repr(listed) if np.ndim(value) == 0 else f"array({listed})"
    return getattr(value, "__qualname__", None) or repr(value)
