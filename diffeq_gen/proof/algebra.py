"""Deciding that an expression is zero: a tower of generators over Q in which every formula here is a rational function.

    exp(a + log b) = E_a b,    sqrt(p q^2) = q sqrt(p),    log(p q^2) = log p + 2 log q        for p, q > 0
    cos u = (1 - T^2)/(1 + T^2),   sin u = 2 T/(1 + T^2),   T = tan(u/2),       tan(atan(x)/2) = x/(1 + sqrt(1 + x^2))

Each exp, log, root, half-angle or unknown function becomes a symbol, once per distinct argument; roots obey g^d = p and
nothing else is related, so that a numerator that reduces to 0 is a proof.  Signs come from declared facts and from
factorisation; where a sign matters and is unknown, `Split` asks for the three cases to be proven one by one.
"""

import math
from collections.abc import Iterable
from typing import Any

import sympy as sp
from sympy.polys.fields import sfield

from diffeq_gen.proof.exponents import coordinates, terms, turns

__all__ = ["Impossible", "Restart", "Split", "Tower", "choose"]

_HALF = sp.Rational(1, 2)

choose = sp.Function("choose")
"""choose(d, below, at, above): one of three values by the sign of d."""

_EXPONENTIALS = {
    sp.sinh: lambda x: (sp.exp(x) - sp.exp(-x)) / 2,
    sp.cosh: lambda x: (sp.exp(x) + sp.exp(-x)) / 2,
    sp.tanh: lambda x: (sp.exp(2 * x) - 1) / (sp.exp(2 * x) + 1),
}


class Split(Exception):  # noqa: N818 - a question, not an error
    """The sign of `quantity` decides the value, and no fact tells it: prove the cases one by one."""

    def __init__(self, quantity: sp.Expr) -> None:
        super().__init__(quantity)
        self.quantity = quantity


class Restart(Exception):  # noqa: N818
    """A finer root or angle is needed than the one chosen: build the tower again with the denominators learned."""


class Impossible(Exception):  # noqa: N818
    """The facts contradict each other, or a side is defined nowhere under them."""


class Tower:
    """Q(x1, ..., xn)(g1)(g2)...: symbols, then exp, log, roots, half-angle tangents and unknown functions of them.

    `denominators` maps the meaning of a root or an angle to how finely it must be cut; it survives a `Restart`.
    """

    def __init__(self, denominators: dict[Any, int] | None = None, unit: Iterable[sp.Symbol] = ()) -> None:
        self.denominators = {} if denominators is None else denominators
        self.unit = set(unit)  # symbols that lie in (0, 1)
        self.kernels: dict[str, list[tuple[tuple[sp.Expr, ...], sp.Symbol]]] = {}
        self.meaning: dict[sp.Symbol, tuple[str, Any]] = {}
        self.roots: dict[sp.Symbol, tuple[sp.Expr, int]] = {}
        self.signs: dict[sp.Expr, int] = {}
        self.pending: list[sp.Expr] = []
        self.domain: list[sp.Expr] = []
        self.memo: dict[sp.Expr, sp.Expr] = {}
        self.bases: dict[str, list[sp.Expr]] = {}
        self.pi = sp.Symbol("pi", positive=True)

    # -- the normal form ---------------------------------------------------------------------------------------------

    def normal(self, expr: sp.Expr) -> sp.Expr:
        """The canonical rational function over the generators that equals `expr`; 0 exactly when it is found zero."""
        return self.canonical(self.lower(expr))

    def lower(self, expr: sp.Expr) -> sp.Expr:
        """`expr` with every transcendental and root node replaced by generators, not yet brought to normal form."""
        if expr not in self.memo:
            self.memo[expr] = self._lower(expr)
        return self.memo[expr]

    def _lower(self, expr: sp.Expr) -> sp.Expr:
        if expr is sp.pi:
            return self.pi
        if expr is sp.E:
            return self.exponential(sp.Integer(1))
        if expr.is_Symbol or expr.is_Rational:
            return expr
        if expr.is_Add or expr.is_Mul:
            return expr.func(*map(self.lower, expr.args))
        if expr.is_Pow and expr.exp.is_Integer:
            base = self.canonical(self.lower(expr.base))
            if base == 0 and expr.exp < 0:
                raise Impossible("a division by zero")
            return base**expr.exp
        if expr.is_Pow and expr.exp.is_Rational:
            return self.power(self.normal(expr.base), expr.exp)
        if expr.is_Pow:
            return self.exponential(self.canonical(self.lower(expr.exp) * self.logarithm(self.normal(expr.base))))
        if isinstance(expr, sp.exp):
            return self.exponential(self.normal(expr.args[0]))
        if isinstance(expr, sp.log):
            return self.logarithm(self.normal(expr.args[0]))
        if isinstance(expr, sp.cos | sp.sin | sp.tan):
            cosine, sine = self.angle(self.normal(expr.args[0]))
            return {sp.cos: cosine, sp.sin: sine}[expr.func] if expr.func is not sp.tan else sine / cosine
        if isinstance(expr, sp.atan):
            return self.arctangent(self.normal(expr.args[0]))
        if expr.func in _EXPONENTIALS:
            return self.lower(_EXPONENTIALS[expr.func](*expr.args))
        if expr.func == choose:
            return self.lower(expr.args[2 + self.decided(self.normal(expr.args[0]))])
        if isinstance(expr, sp.Abs):
            return self.lower(choose(expr.args[0], -expr.args[0], 0, expr.args[0]))
        if expr.is_Function:
            return self.kernel(str(expr.func), tuple(map(self.normal, expr.args)), positive=expr.is_positive or None)
        raise NotImplementedError(f"no normal form for {expr.func.__name__}")

    def canonical(self, expr: sp.Expr) -> sp.Expr:
        """The one reduced fraction over the generators: roots of degree below d, and none in the denominator."""
        numer, denom = self._fraction(expr)
        for _ in range(8):
            live = [g for g in reversed(self.roots) if denom.has(g)]
            if not live:
                break
            g = live[0]
            p, d = self.roots[g]
            inverse = sp.Poly(denom, g, field=True).invert(sp.Poly(g**d - p, g, field=True)).as_expr()
            numer, denom = self._fraction(numer * inverse)
        return numer / denom

    def _fraction(self, expr: sp.Expr) -> tuple[sp.Expr, sp.Expr]:
        expr = sp.sympify(expr)
        if expr.has(sp.nan, sp.zoo, sp.oo, -sp.oo):
            raise Impossible("an infinite or undefined value")
        if not expr.free_symbols:
            return sp.fraction(sp.expand(expr))
        _, ratio = sfield(expr)
        numer, denom = self._reduce(ratio.numer.as_expr()), self._reduce(ratio.denom.as_expr())
        if any(expr.has(g) for g in self.roots) and numer.free_symbols:
            _, ratio = sfield(numer / denom)
            numer, denom = ratio.numer.as_expr(), ratio.denom.as_expr()
        return numer, denom

    def _reduce(self, poly: sp.Expr) -> sp.Expr:
        for g in reversed(self.roots):
            if poly.has(g):
                p, d = self.roots[g]
                terms = sp.Poly(poly, g).terms()
                if any(k >= d for (k,), _ in terms):
                    poly = sp.expand(sum(c * g ** (k % d) * p ** (k // d) for (k,), c in terms))
        return poly

    # -- the generators ----------------------------------------------------------------------------------------------

    def kernel(self, name: str, args: tuple[sp.Expr, ...], **assumptions: Any) -> sp.Symbol:
        """The generator of `name` at these normal arguments: one symbol for one argument list."""
        known = self.kernels.setdefault(name, [])
        for other, symbol in known:
            if other == args:
                return symbol
        symbol = sp.Symbol(f"{name}({', '.join(str(arg) for arg in args)})", real=True, **assumptions)
        known.append((args, symbol))
        self.meaning[symbol] = (name, args)
        return symbol

    def power(self, base: sp.Expr, exponent: sp.Rational) -> sp.Expr:
        """base^(n/d): positive irreducible factors leave one by one; what has no known sign stays under one root."""
        if base == 0:
            if exponent < 0:
                raise Impossible("a division by zero")
            return sp.Integer(0)
        inside, outside = sp.Integer(1), sp.Integer(1)
        for factor, multiplicity in self.factors(base):
            sign = self._sign_of_factor(factor)
            if sign is None and multiplicity % 2 == 0:
                raise Split(factor)
            if sign is None:
                inside *= factor**multiplicity
            else:
                outside *= self._prime_power(sign * factor, multiplicity * exponent)
                inside *= sp.Integer(sign) ** multiplicity
        if inside != 1:
            inside = self._defined(inside)
            outside *= sp.Mul(*(self._prime_power(f, m * exponent) for f, m in inside))
        return outside

    def _defined(self, inside: sp.Expr) -> list[tuple[sp.Expr, int]]:
        """Factors of what must be positive for its root or logarithm to be real: a domain, taken as a fact."""
        inside = sp.expand(inside)
        self.assume(inside)
        if inside not in self.domain:
            self.domain.append(inside)
        if self.sign(inside) != 1:  # several factors of unknown sign: ask for the sign of one
            raise Split(next(f for f, _ in self.factors(inside) if self._sign_of_factor(f) is None))
        return [(self._sign_of_factor(f) * f, m) for f, m in self.factors(inside)]

    def _prime_power(self, prime: sp.Expr, exponent: sp.Rational) -> sp.Expr:
        """p^q of an irreducible positive p: p^(whole part) g^n with g = p^(1/d)."""
        if prime == 1 or exponent == 0:
            return sp.Integer(1)
        if exponent.is_Integer:
            return prime**exponent
        if prime in self.roots:
            inner, degree = self.roots[prime]
            return self._prime_power(inner, exponent / degree)
        degree = self._cut(("root", prime), exponent)
        (root,) = [g for g, at in self.roots.items() if at == (prime, degree)] or [None]
        if root is None:
            root = sp.Symbol(f"({prime})^(1/{degree})", positive=True)
            self.roots[root] = (prime, degree)
            self.meaning[root] = ("root", (prime, degree))
            if sp.expand(prime - 1) in self.signs:
                self.signs[root - 1] = self.signs[sp.expand(prime - 1)]
        whole, part = divmod(int(exponent * degree), degree)
        return prime**whole * root**part

    def _cut(self, what: Any, quotient: sp.Rational) -> int:
        current = self.denominators.get(what)
        needed = int(sp.ilcm(current or 1, quotient.q))
        if needed != current:
            self.denominators[what] = needed
            if current is not None:
                raise Restart
        return needed

    def exponential(self, arg: sp.Expr) -> sp.Expr:
        """exp(sum_i c_i m_i) = prod_i E_i^(c_i) over independent exponents m_i, and exp(c log p) = p^c."""
        result = sp.Integer(1)
        rest: dict[sp.Expr, sp.Rational] = {}
        for monomial, coefficient in terms(arg).items():
            name, inner = self.meaning.get(monomial, ("", ()))
            if name == "log":
                result *= self._prime_power(inner[0], coefficient)
            else:
                rest[monomial] = coefficient
        for vector, coefficient in coordinates(self.bases.setdefault("exp", []), rest):
            generator = self.kernel("exp", (vector,), positive=True)
            sign = self.sign(vector)
            if sign is not None:
                self.signs.setdefault(generator - 1, sign)
            result *= self._prime_power(generator, coefficient)
        return result

    def logarithm(self, base: sp.Expr) -> sp.Expr:
        """log(prod p^m) = sum m log p for positive irreducible p; the rest must be positive to be defined."""
        if base == 0:
            raise Impossible("the logarithm of zero")
        result, inside = sp.Integer(0), sp.Integer(1)
        for factor, multiplicity in self.factors(base):
            sign = self._sign_of_factor(factor)
            if sign is None and multiplicity % 2 == 0:
                raise Split(factor)
            if sign is None:
                inside *= factor**multiplicity
            else:
                result += multiplicity * self._log_prime(sign * factor)
                inside *= sp.Integer(sign) ** multiplicity
        if inside != 1:
            result += sum(m * self._log_prime(f) for f, m in self._defined(inside))
        return result

    def _log_prime(self, prime: sp.Expr) -> sp.Expr:
        if prime == 1:
            return sp.Integer(0)
        if prime in self.roots:
            inner, degree = self.roots[prime]
            return self._log_prime(inner) / degree
        name, args = self.meaning.get(prime, ("", ()))
        return args[0] if name == "exp" else self.kernel("log", (prime,))

    def angle(self, arg: sp.Expr) -> tuple[sp.Expr, sp.Expr]:
        """(cos, sin) of a sum of angles, each a whole multiple of one whose half-angle tangent is the generator."""
        parts = terms(arg)
        whole = parts.pop(self.pi, sp.Integer(0))
        if whole.q not in (1, 2, 3, 4, 6):
            parts[self.pi], whole = whole, sp.Integer(0)
        cosine, sine = self.lower(sp.cos(whole * sp.pi)), self.lower(sp.sin(whole * sp.pi))
        for vector, coefficient in coordinates(self.bases.setdefault("angle", []), parts):
            name, inner = self.meaning.get(vector, ("", ()))
            cut = self._cut(("angle", vector), coefficient)
            if name == "atan" and cut == 1:
                tangent = inner[0] / (1 + self.power(self.canonical(1 + inner[0] ** 2), sp.Rational(1, 2)))
            else:
                low, high = turns(vector / (2 * cut), self.pi, self.unit)
                tangent = self.kernel("tan", (vector / (2 * cut),), positive=(low >= 0 and high <= _HALF) or None)
                if low >= 0 and high <= _HALF / 2:
                    self.signs[tangent - 1] = -1
            c, s = (1 - tangent**2) / (1 + tangent**2), 2 * tangent / (1 + tangent**2)
            times = int(coefficient * cut)
            s = s if times > 0 else -s
            for _ in range(abs(times)):
                cosine, sine = cosine * c - sine * s, sine * c + cosine * s
        return cosine, sine

    def arctangent(self, arg: sp.Expr) -> sp.Expr:
        """atan(tan u) = u for an angle u = c pi t of the tower with t in (0, 1) and c <= 1/2; else a generator."""
        if arg in (0, 1, -1):
            return arg * self.pi / 4
        for vector in self.bases.get("angle", []):
            cut = self.denominators[("angle", vector)]
            for times in range(1, 2 * cut + 1):
                angle = vector * sp.Rational(times, cut)
                low, high = turns(angle, self.pi, self.unit)
                if low < -_HALF or high > _HALF:
                    break
                cosine, sine = self.angle(angle)
                if self.canonical(sine / cosine - arg) == 0:
                    return angle
                if low >= 0 and self.canonical(cosine / sine - arg) == 0:
                    return self.pi / 2 - angle
        return self.kernel("atan", (arg,))

    # -- signs -------------------------------------------------------------------------------------------------------

    def factors(self, expr: sp.Expr) -> list[tuple[sp.Expr, int]]:
        """expr = prod f^m over irreducible polynomials f, rational primes and -1."""
        numer, denom = sp.fraction(sp.together(expr))
        found: dict[sp.Expr, int] = {}
        for part, direction in ((numer, 1), (denom, -1)):
            content, pairs = sp.factor_list(part) if part.free_symbols else (part, [])
            for prime, power in sp.factorrat(sp.Rational(content)).items():
                found[sp.Integer(prime)] = found.get(sp.Integer(prime), 0) + direction * power
            for factor, power in pairs:
                found[factor] = found.get(factor, 0) + direction * power
        return [(f, m) for f, m in found.items() if m]

    def sign(self, expr: sp.Expr) -> int | None:
        """-1, 0 or 1 where the facts decide the sign of a normal expression; None where they do not."""
        if expr == 0:
            return 0
        result = 1
        for factor, multiplicity in self.factors(expr):
            sign = self._sign_of_factor(factor)
            if sign is None:
                return None
            result *= sign ** abs(multiplicity)
        return result

    def decided(self, expr: sp.Expr) -> int:
        """The sign of a normal expression.  Raises: Split where no fact tells it."""
        sign = self.sign(expr)
        if sign is None:
            raise Split(next(f for f, _ in self.factors(expr) if self._sign_of_factor(f) is None))
        return sign

    def _sign_of_factor(self, factor: sp.Expr) -> int | None:
        if factor.is_Number:
            return int(sp.sign(factor))
        for candidate, direction in ((factor, 1), (sp.expand(-factor), -1)):
            if candidate in self.signs:
                return direction * self.signs[candidate]
        poly = sp.Poly(factor)
        if poly.is_univariate:
            low, inside, high = (0, _HALF, 1) if poly.gen in self.unit else (0, 1, None)
            low, inside = (low, inside) if poly.gen.is_positive else (None, 0)
            ends = sum(poly.eval(end) == 0 for end in (low, high) if end is not None)
            if poly.eval(inside) != 0 and poly.count_roots(low, high) == ends:
                return int(sp.sign(poly.eval(inside)))
        unknown = [i for i, g in enumerate(poly.gens) if not (g.is_positive or self.signs.get(g) == 1)]
        if any(monomial[i] % 2 for monomial, _ in poly.terms() for i in unknown):
            return None
        if unknown and not any(all(monomial[i] == 0 for i in unknown) for monomial, _ in poly.terms()):
            return None  # z^2 + ... may vanish
        signs = {int(sp.sign(c)) for _, c in poly.terms()}
        return signs.pop() if len(signs) == 1 else None

    def assume(self, positive: sp.Expr) -> None:
        """Takes a normal expression as positive: a product with one factor of unknown sign tells that factor's sign."""
        self.pending.append(positive)
        learned = True
        while learned:
            learned = False
            for fact in list(self.pending):
                odd = [(f, self._sign_of_factor(f)) for f, m in self.factors(fact) if m % 2]
                unknown = [f for f, sign in odd if sign is None]
                if len(unknown) > 1:
                    continue
                self.pending.remove(fact)
                product = math.prod(sign for _, sign in odd if sign is not None)
                if unknown:
                    self.signs[unknown[0]] = product
                    learned = True
                elif product != 1:
                    raise Impossible("the assumptions contradict each other")
