"""Three verdicts on left - right: a point that refutes it, a normal form that is zero, or neither.

    refuted: |left - right| > 1e-13 (1 + |left| + |right|) at a random rational point, at 50 digits
    proven:  every component reduces to 0 in a `Tower`, in each case d < 0, d = 0, d > 0 that the code tells apart

Numerics never prove: a difference that vanishes at every point tried and does not reduce to zero is undecided, and so
is one below 1e-13, which is what constants computed in double precision leave behind.
"""

import random
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import mpmath
import sympy as sp

from diffeq_gen.proof.algebra import Impossible, Restart, Split, Tower, choose

__all__ = ["decide"]

_DIGITS = 50
_DEPTH = 6
_ROUNDED, _ZERO = 1e-13, 1e-30
_Branch = tuple[tuple[sp.Expr, int], ...]


def decide(
    lefts: Sequence[sp.Expr],
    rights: Sequence[sp.Expr],
    facts: Sequence[sp.Expr],
    unit: set[sp.Symbol],
    *,
    points: int = 3,
) -> tuple[str, Any, str]:
    """(verdict, what is left of the difference, reason) for left = right in every component, given that facts > 0."""
    differences = [sp.Add(a, -b) for a, b in zip(lefts, rights, strict=True)]
    tried = 0
    for seed in range(points):
        witness = _witness(lefts, rights, facts, unit, seed)
        if witness is None:
            continue
        tried += 1
        index, gap, where = witness
        if gap > _ROUNDED:
            values = ", ".join(f"{name} = {value}" for name, value in where.items())
            return "refuted", differences[index], f"left - right is not zero at {values}"
        if gap > _ZERO:
            return "undecided", differences[index], f"a relative difference of {gap:.1e}: constants rounded by the code"
    if not tried:
        return "undecided", differences[0], "no point was found at which both sides are defined"
    try:
        remainder, domain = _reduce(differences, facts, unit, (), {})
    except (Impossible, RecursionError, ZeroDivisionError) as reason:
        return "undecided", differences[0], f"no normal form: {reason}"
    if remainder is None:
        return "undecided", differences[0], "the hypotheses contradict each other"
    if remainder != 0:
        return "undecided", remainder, f"zero to {_DIGITS} digits at {tried} points, but not reduced to zero"
    return "proven", sp.Integer(0), "identically zero" + (f" where {', '.join(domain)}" if domain else "")


def _reduce(
    differences: Sequence[sp.Expr],
    facts: Sequence[sp.Expr],
    unit: set[sp.Symbol],
    branch: _Branch,
    denominators: dict[Any, int],
) -> tuple[sp.Expr | None, list[str]]:
    """(remainder, domain): 0 where all reduce to zero, None where the branch is empty, else what is left."""
    while True:
        tower = Tower(denominators, unit)
        try:
            for quantity, sign in branch:
                tower.assume(sign * quantity)
            for fact in facts:
                tower.assume(tower.normal(fact))
            tower.domain.clear()  # where the hypotheses themselves are defined goes without saying
            for difference in differences:
                remainder = tower.normal(difference)
                if remainder != 0:
                    return remainder, []
            return sp.Integer(0), [f"{d} > 0" for d in tower.domain]
        except Restart:
            continue
        except Impossible:
            if not branch:
                raise
            return None, []
        except Split as question:
            if len(branch) == _DEPTH:
                return sp.Symbol(f"sign({question.quantity})"), []
            return _cases(question.quantity, differences, facts, unit, branch, denominators)


def _cases(
    quantity: sp.Expr,
    differences: Sequence[sp.Expr],
    facts: Sequence[sp.Expr],
    unit: set[sp.Symbol],
    branch: _Branch,
    denominators: dict[Any, int],
) -> tuple[sp.Expr | None, list[str]]:
    verdicts = [_reduce(differences, facts, unit, (*branch, (quantity, sign)), dict(denominators)) for sign in (1, -1)]
    plain = [x for x in sorted(quantity.free_symbols, key=str) if sp.degree(quantity, x) == 1 and "(" not in x.name]
    if plain and not any("(" in x.name for x in quantity.free_symbols) and not branch:
        (solution,) = sp.solve(quantity, plain[0])
        substituted = [[e.subs(plain[0], solution) for e in side] for side in (differences, facts)]
        try:
            verdicts.append(_reduce(*substituted, unit, branch, {}))
        except Impossible:
            verdicts.append((None, []))
    else:
        verdicts.append((sp.Symbol(f"[{quantity} = 0]"), []))
    failed = [v for v in verdicts if v[0] not in (None, 0)]
    if failed:
        return failed[0]
    return min(verdicts, key=lambda v: v[0] is None)


# Numbers to 50 digits


def _witness(
    lefts: Sequence[sp.Expr], rights: Sequence[sp.Expr], facts: Sequence[sp.Expr], unit: set[sp.Symbol], seed: int
) -> tuple[int, float, dict[str, Any]] | None:
    """(worst component, its relative difference, the point), or None where no point satisfies the facts."""
    with mpmath.workdps(_DIGITS):
        for attempt in range(400):
            chance = _Chance(seed * 1000 + attempt, unit)
            try:
                if not all(chance.real(fact) > 0 for fact in facts):
                    continue
                values = [(chance.real(a), chance.real(b)) for a, b in zip(lefts, rights, strict=True)]
            except (ArithmeticError, ValueError, TypeError):
                continue
            gaps = [float(abs(a - b) / (1 + abs(a) + abs(b))) for a, b in values]
            return gaps.index(max(gaps)), max(gaps), chance.point
    return None


class _Chance:
    """A random rational value for every symbol and every opaque value, and the expressions' values there."""

    def __init__(self, seed: int, unit: set[sp.Symbol]) -> None:
        self.random = random.Random(seed)
        self.unit = unit
        self.point: dict[str, Fraction] = {}
        self.memo: dict[sp.Expr, Any] = {}

    def draw(self, name: str, expr: sp.Expr) -> Any:
        if name not in self.point:
            low, high = (1, 63) if expr in self.unit else (5, 160) if expr.is_positive else (-160, 160)
            self.point[name] = Fraction(self.random.randint(low, high), 64 if expr in self.unit else 37)
        value = self.point[name]
        return mpmath.mpf(value.numerator) / value.denominator

    def real(self, expr: sp.Expr) -> Any:
        value = self.value(expr)
        if isinstance(value, mpmath.mpc) or not mpmath.isfinite(value):
            raise ValueError(f"undefined: {value}")
        return value

    def value(self, expr: sp.Expr) -> Any:
        if expr not in self.memo:
            self.memo[expr] = self._value(expr)
        return self.memo[expr]

    def _value(self, expr: sp.Expr) -> Any:
        if expr.is_Symbol:
            return self.draw(expr.name, expr)
        if expr.is_number:
            return mpmath.mpf(expr.p) / expr.q if expr.is_Rational else sp.N(expr, _DIGITS + 5)._to_mpmath(_prec())
        if expr.func == choose:
            d = self.real(expr.args[0])
            return self.value(expr.args[1 + (d > 0) + (d >= 0)])
        args = [self.value(arg) for arg in expr.args]
        if expr.is_Add:
            return mpmath.fsum(args)
        if expr.is_Mul:
            return mpmath.fprod(args)
        if expr.is_Pow:
            return mpmath.power(*args)
        if isinstance(expr, sp.core.function.AppliedUndef):
            return self.draw(f"{expr.func}({', '.join(mpmath.nstr(arg, 8) for arg in args)})", expr)
        return getattr(mpmath, {"Abs": "fabs"}.get(expr.func.__name__, expr.func.__name__))(*args)


def _prec() -> int:
    return mpmath.mp.prec + 10
