"""Reading a traced computation as exact mathematics: jaxpr -> sympy, one rule per primitive.

    (f, shapes) -> jaxpr -> arrays of sympy expressions, elementwise

A float constant is read as the number the author wrote: 0.1 is 1/10, 3.141592653589793 is pi, 1.414... is sqrt(2);
a constant that is none of those stays the binary fraction that it is.  Comparisons become signs (`choose`), so that a
`where` is carried symbolically.  Opaque functions become applied functions alpha(t), alpha'(t).
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import jax
import numpy as np
import sympy as sp

from diffeq_gen.proof.algebra import choose

__all__ = ["constant", "interpret"]

_HALF = sp.Rational(1, 2)


def constant(value: Any) -> sp.Expr:
    """The number meant by a float: a short decimal, p/q, p pi/q, p/(q pi), sqrt(p/q), log(p/q), log(p pi/q), itself."""
    if isinstance(value, bool | int | np.bool_ | np.integer):
        return sp.Integer(int(value))
    x = float(value)
    if math.isnan(x):
        return sp.nan
    if math.isinf(x):
        return sp.oo if x > 0 else -sp.oo
    if len(repr(abs(x)).split("e")[0].replace(".", "").strip("0")) <= 12:
        return sp.Rational(repr(x))
    readings: list[tuple[float, Callable[[sp.Rational], sp.Expr], Callable[[float], float]]] = [
        (x, lambda q: q, lambda q: q),
        (x / math.pi, lambda q: q * sp.pi, lambda q: q * math.pi),
        (x * math.pi, lambda q: q / sp.pi, lambda q: q / math.pi),
        (x * x, lambda q: sp.sign(x) * sp.sqrt(q), lambda q: math.copysign(math.sqrt(q), x)),
    ]
    if abs(x) < 30:
        readings.append((math.exp(x), sp.log, math.log))
        readings.append((math.exp(x) / math.pi, lambda q: sp.log(q * sp.pi), lambda q: math.log(q * math.pi)))
    for quotient, exact, rounded in readings:
        q = Fraction(quotient).limit_denominator(1000)
        if 0 < abs(q.numerator) <= 100_000 and abs(rounded(float(q)) - x) <= math.ulp(x):
            return exact(sp.Rational(q.numerator, q.denominator))
    return sp.Rational(x)


def interpret(closed: Any, operands: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The outputs of a closed jaxpr on object arrays of sympy expressions.

    Raises: NotImplementedError, naming the primitive, where there is no rule.
    """
    values: dict[Any, np.ndarray] = {}

    def read(atom: Any) -> np.ndarray:
        return _array(atom.val) if hasattr(atom, "val") else values[atom]

    jaxpr = closed.jaxpr
    values.update(zip(jaxpr.constvars, map(_array, closed.consts), strict=True))
    values.update(zip(jaxpr.invars, operands, strict=True))
    for eqn in jaxpr.eqns:
        outputs = _apply(eqn, [read(atom) for atom in eqn.invars])
        for var, output in zip(eqn.outvars, outputs, strict=True):
            values[var] = np.asarray(output, dtype=object).reshape(var.aval.shape)
    return [read(atom) for atom in jaxpr.outvars]


def _array(value: Any) -> np.ndarray:
    numbers = np.asarray(value)
    if numbers.dtype == object:
        return numbers
    exact = np.empty(numbers.shape, object)
    for index, number in np.ndenumerate(numbers):
        exact[index] = constant(number)
    return exact


def _apply(eqn: Any, operands: list[np.ndarray]) -> Sequence[np.ndarray]:
    name, params = eqn.primitive.name, eqn.params
    if name == "scan":
        return _scan(operands, params)
    if name == "cond":
        index, *rest = operands
        outputs = [interpret(branch, rest) for branch in params["branches"]]
        return [_select(index, *cases) for cases in zip(*outputs, strict=True)]
    inner = next((params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in params), None)
    if inner is not None:
        closed = inner if hasattr(inner, "consts") else jax.extend.core.ClosedJaxpr(inner, ())
        return interpret(closed, operands)
    if name == "opaque":
        return [_opaque(operands, params, eqn.outvars[0].aval.shape)]
    if name in _ELEMENTWISE:
        return [np.asarray(np.frompyfunc(_ELEMENTWISE[name], len(operands), 1)(*operands), dtype=object)]
    if name in _ARRAY:
        return [_ARRAY[name](*operands, **params)]
    if name in _MOVES:
        return _move(eqn, operands)
    raise NotImplementedError(f"no symbolic rule for the primitive {name}")


def _scan(operands: list[np.ndarray], params: dict[str, Any]) -> Sequence[np.ndarray]:
    if "num_carry" in params:
        consts, carries = params["num_consts"], params["num_carry"]
    else:  # jax 0.12 keeps the three groups instead of their sizes
        consts, carries, _ = map(len, params["ft_in"].unpack())
    fixed, carry, xs = operands[:consts], operands[consts : consts + carries], operands[consts + carries :]
    steps = range(params["length"])
    rows: list[list[np.ndarray]] = []
    for i in reversed(steps) if params["reverse"] else steps:
        outputs = interpret(params["jaxpr"], [*fixed, *carry, *(np.asarray(x[i], dtype=object) for x in xs)])
        carry = outputs[:carries]
        rows.append(outputs[carries:])
    if params["reverse"]:
        rows.reverse()
    return [*carry, *(np.stack(column) for column in zip(*rows, strict=True))]


def _opaque(operands: list[np.ndarray], params: dict[str, Any], shape: tuple[int, ...]) -> np.ndarray:
    """name_i'jk(arguments): component i, differentiated once in each of the scalar arguments j, k."""
    arguments = [entry for operand in operands for entry in operand.ravel()]
    starts = np.cumsum([0, *(operand.size for operand in operands)])
    shapes = [params["shape"], *(operands[i].shape for i in params["slopes"])]
    result = np.empty(shape, object)
    for flat, index in enumerate(np.ndindex(*shape)):
        component, at = 0, 0
        slots = []
        for number, part in enumerate(shapes):
            place = int(np.ravel_multi_index(index[at : at + len(part)], part)) if part else 0
            at += len(part)
            if number == 0:
                component = place
            else:
                slots.append(int(starts[params["slopes"][number - 1]]) + place)
        label = params["name"] + (str(component) if params["shape"] else "")
        label += "'" * len(slots) if len(arguments) == 1 else "".join(f"_{slot}" for slot in sorted(slots))
        positive = True if params["positive"] and not slots else None
        result.ravel()[flat] = sp.Function(label, real=True, positive=positive)(*arguments)
    return result


def _select(which: np.ndarray, *cases: np.ndarray) -> np.ndarray:
    def pick(index: sp.Expr, *values: sp.Expr) -> sp.Expr:
        if index.is_Integer:
            return values[int(index)]
        result = values[-1]
        for i in range(len(values) - 2, -1, -1):
            result = choose(index - i - _HALF, values[i], sp.nan, result)
        return result

    return np.asarray(np.frompyfunc(pick, 1 + len(cases), 1)(which, *cases), dtype=object)


def _move(eqn: Any, operands: list[np.ndarray]) -> Sequence[np.ndarray]:
    """A primitive that only moves entries is run on their numbers; operands of indices keep their values."""
    moved = [bool(np.issubdtype(v.aval.dtype, np.floating)) for v in eqn.invars]
    if not any(moved):
        moved[0] = True
    entries: list[sp.Expr] = []
    numbered = []
    for operand, var, moves in zip(operands, eqn.invars, moved, strict=True):
        if moves:
            numbered.append(np.arange(len(entries), len(entries) + operand.size).reshape(operand.shape))
            entries.extend(operand.ravel())
        else:
            numbered.append(np.asarray([int(x) for x in operand.ravel()], var.aval.dtype).reshape(operand.shape))
    with jax.ensure_compile_time_eval():
        outputs = eqn.primitive.bind(*map(jax.numpy.asarray, numbered), **eqn.params)
    outputs = outputs if eqn.primitive.multiple_results else [outputs]
    pool = np.asarray([*entries, sp.nan], dtype=object)[:-1]
    return [pool[np.asarray(output)] for output in outputs]


def _dot(left: np.ndarray, right: np.ndarray, *, dimension_numbers: Any, **_: Any) -> np.ndarray:
    (contract_l, contract_r), (batch_l, batch_r) = dimension_numbers
    names_l = list(range(left.ndim))
    names_r = [left.ndim + i for i in range(right.ndim)]
    for i, j in [*zip(contract_l, contract_r, strict=True), *zip(batch_l, batch_r, strict=True)]:
        names_r[j] = names_l[i]
    kept = [names_l[i] for i in batch_l]
    kept += [i for k, i in enumerate(names_l) if k not in (*contract_l, *batch_l)]
    kept += [i for k, i in enumerate(names_r) if k not in (*contract_r, *batch_r)]
    return np.asarray(np.einsum(left, names_l, right, names_r, kept), dtype=object)


def _broadcast(x: np.ndarray, *, shape: Any, broadcast_dimensions: Any, **_: Any) -> np.ndarray:
    aligned = [1] * len(shape)
    for size, axis in zip(x.shape, broadcast_dimensions, strict=True):
        aligned[axis] = size
    return np.broadcast_to(x.reshape(aligned), shape)


def _iota(*, dtype: Any, shape: Any, dimension: int, **_: Any) -> np.ndarray:
    return _array(np.indices(shape)[dimension].astype(dtype))


def _cumsum(x: np.ndarray, *, axis: int, reverse: bool) -> np.ndarray:
    return np.flip(np.cumsum(np.flip(x, axis), axis), axis) if reverse else np.cumsum(x, axis)


def _fold(combine: Callable[[Any, Any], Any], start: sp.Expr) -> Callable[..., np.ndarray]:
    def fold(x: np.ndarray, *, axes: Sequence[int], **_: Any) -> np.ndarray:
        kept = [i for i in range(x.ndim) if i not in axes]
        rows = x.transpose([*kept, *axes]).reshape([*(x.shape[i] for i in kept), -1])
        total = np.full(rows.shape[:-1], start, dtype=object)
        for i in range(rows.shape[-1]):
            total = np.asarray(np.frompyfunc(combine, 2, 1)(total, rows[..., i]), dtype=object)
        return total

    return fold


def _compare(below: int, at: int, above: int) -> Callable[[sp.Expr, sp.Expr], sp.Expr]:
    def compare(x: sp.Expr, y: sp.Expr) -> sp.Expr:
        if sp.nan in (x, y):
            return sp.Integer(int((below, at, above) == (1, 0, 1)))
        return sp.Integer(at) if x == y else _by_sign(x - y, *map(sp.Integer, (below, at, above)))

    return compare


def _by_sign(d: sp.Expr, below: sp.Expr, at: sp.Expr, above: sp.Expr) -> sp.Expr:
    if d.is_number and d.is_extended_real:
        return below if d.is_negative else above if d.is_positive else at
    if d.is_positive:
        return above
    return below if d.is_negative else choose(d, below, at, above)


def _extreme(sign: int) -> Callable[[sp.Expr, sp.Expr], sp.Expr]:
    def extreme(x: sp.Expr, y: sp.Expr) -> sp.Expr:
        for one, other in ((x, y), (y, x)):
            if one in (sp.oo, -sp.oo):
                return one if one == sign * sp.oo else other
        return _by_sign(sign * (x - y), y, y, x)

    return extreme


def _atan2(y: sp.Expr, x: sp.Expr) -> sp.Expr:
    half_turn = _by_sign(y, -sp.pi, sp.pi, sp.pi)
    return _by_sign(x, sp.atan(y / x) + half_turn, _by_sign(y, -sp.pi / 2, sp.Integer(0), sp.pi / 2), sp.atan(y / x))


_greatest, _least = _extreme(1), _extreme(-1)
_ELEMENTWISE: dict[str, Callable[..., sp.Expr]] = {
    "add": lambda x, y: x + y,
    "add_any": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "neg": lambda x: -x,
    "max": _greatest,
    "min": _least,
    "pow": lambda x, y: x**y,
    "exp": sp.exp,
    "exp2": lambda x: 2**x,
    "log": sp.log,
    "expm1": lambda x: sp.exp(x) - 1,
    "log1p": lambda x: sp.log(1 + x),
    "logistic": lambda x: 1 / (1 + sp.exp(-x)),
    "sqrt": sp.sqrt,
    "rsqrt": lambda x: 1 / sp.sqrt(x),
    "cbrt": lambda x: x ** sp.Rational(1, 3),
    "square": lambda x: x * x,
    "sin": sp.sin,
    "cos": sp.cos,
    "tan": sp.tan,
    "atan": sp.atan,
    "atan2": _atan2,
    "asin": sp.asin,
    "acos": sp.acos,
    "sinh": sp.sinh,
    "cosh": sp.cosh,
    "tanh": sp.tanh,
    "erf": sp.erf,
    "abs": lambda x: _by_sign(x, -x, sp.Integer(0), x),
    "sign": lambda x: _by_sign(x, sp.Integer(-1), sp.Integer(0), sp.Integer(1)),
    "lt": _compare(1, 0, 0),
    "le": _compare(1, 1, 0),
    "gt": _compare(0, 0, 1),
    "ge": _compare(0, 1, 1),
    "eq": _compare(0, 1, 0),
    "ne": _compare(1, 0, 1),
    "and": lambda x, y: x * y,
    "or": lambda x, y: x + y - x * y,
    "not": lambda x: 1 - x,
    "is_finite": lambda x: sp.Integer(int(x not in (sp.oo, -sp.oo, sp.nan))),
    "clamp": lambda low, x, high: _least(_greatest(x, low), high),
    "stop_gradient": lambda x: x,
}
_ARRAY: dict[str, Callable[..., np.ndarray]] = {
    "integer_pow": lambda x, y: x**y,
    "convert_element_type": lambda x, **_: x,
    "reduce_precision": lambda x, **_: x,
    "copy": lambda x, **_: x,
    "copy_p": lambda x, **_: x,
    "optimization_barrier": lambda x, **_: x,
    "broadcast_in_dim": _broadcast,
    "reshape": lambda x, *, new_sizes, **_: x.reshape(new_sizes),
    "squeeze": lambda x, *, dimensions: x.squeeze(dimensions),
    "expand_dims": lambda x, *, dimensions: np.expand_dims(x, dimensions),
    "transpose": lambda x, *, permutation: x.transpose(permutation),
    "concatenate": lambda *xs, dimension: np.concatenate(xs, dimension),
    "stack": lambda *xs, axis: np.stack(xs, axis),
    "select_n": _select,
    "dot_general": _dot,
    "iota": _iota,
    "reduce_sum": _fold(lambda x, y: x + y, sp.Integer(0)),
    "reduce_prod": _fold(lambda x, y: x * y, sp.Integer(1)),
    "reduce_max": _fold(_greatest, -sp.oo),
    "reduce_min": _fold(_least, sp.oo),
    "reduce_and": _fold(lambda x, y: x * y, sp.Integer(1)),
    "reduce_or": _fold(lambda x, y: x + y - x * y, sp.Integer(0)),
    "cumsum": _cumsum,
}
_MOVES = {"slice", "dynamic_slice", "dynamic_update_slice", "gather", "pad", "rev", "split"}
