"""Sums as vectors over Q: exponents and angles in coordinates of a basis that grows only by what is independent of it.

    arg = sum_i c_i m_i,    c_i rational, m_i monomials        exp(arg) = prod_i E_i^(c_i)

Two exponentials whose exponents are linearly dependent over Q are powers of one another; independent ones are not, so a
basis is all that the tower of `algebra` needs to know of them.
"""

from collections.abc import Mapping

import sympy as sp

__all__ = ["coordinates", "terms", "turns"]


def terms(arg: sp.Expr) -> dict[sp.Expr, sp.Rational]:
    """arg = sum_i c_i m_i, as monomial -> rational coefficient, over the one primitive denominator of arg."""
    if arg == 0:
        return {}
    numer, denom = sp.fraction(sp.together(arg))
    content, denom = sp.factor_terms(denom).as_coeff_Mul() if denom.free_symbols else (denom, sp.Integer(1))
    pairs = [term.as_coeff_Mul() for term in sp.Add.make_args(sp.expand(numer))]
    return {m / denom: c / content for c, m in pairs}


def coordinates(basis: list[sp.Expr], vector: Mapping[sp.Expr, sp.Rational]) -> list[tuple[sp.Expr, sp.Rational]]:
    """vector = sum_i c_i basis_i, as pairs (basis_i, c_i); one independent of the basis is appended, up to sign."""
    vector = {m: c for m, c in vector.items() if c}
    if not vector:
        return []
    columns = [*map(terms, basis), vector]
    rows = sorted({m for column in columns for m in column}, key=str)
    reduced, pivots = sp.Matrix([[column.get(m, 0) for column in columns] for m in rows]).rref()
    if len(basis) not in pivots:
        return [(v, reduced[i, len(basis)]) for i, v in enumerate(basis) if reduced[i, len(basis)]]
    sign = sp.sign(vector[min(vector, key=str)])
    basis.append(sum(sign * c * m for m, c in vector.items()))
    return [(basis[-1], sign)]


def turns(angle: sp.Expr, pi: sp.Symbol, unit: set[sp.Symbol]) -> tuple[sp.Expr, sp.Expr]:
    """Bounds of angle / pi, where the angle is pi times a linear form in symbols of (0, 1); else unbounded."""
    parts = terms(angle)
    if not all(m == pi or m / pi in unit for m in parts):
        return -sp.oo, sp.oo
    moving = [c for m, c in parts.items() if m != pi]
    still = parts.get(pi, sp.Integer(0))
    return still + sum(min(c, 0) for c in moving), still + sum(max(c, 0) for c in moving)
