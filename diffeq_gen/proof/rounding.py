"""The rounding judge: a computed value, and beside it a bound on what rounding did to it.

    |fl(f)(x) - f(x)| <= bound(x),  f(x) in real arithmetic on the same floats

Running error analysis: Wilkinson 1963; Higham 2002, section 3.3.  The function is traced once and its jaxpr
interpreted on pairs (value, radius): half an ulp for every operation, a few for an elementary function, and the radii
of the operands carried through each operation's largest slope.  Comparisons that the radii leave undecided take the
union of both branches.  So an identity is judged without a tolerance chosen by hand.  The tables of rules are
`rounding_rules` (one and two arguments), `rounding_arrays`, `rounding_sums` and `rounding_linear`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend import core

from diffeq_gen.proof.either import apply as apply_primitive
from diffeq_gen.proof.either import either as jnp
from diffeq_gen.proof.either import is_traced
from diffeq_gen.proof.pruning import CALLS, Equation, Program
from diffeq_gen.proof.rounding_arrays import ARRAYS
from diffeq_gen.proof.rounding_linear import LINEAR, linear_solve
from diffeq_gen.proof.rounding_ordinary import elementwise, mended, powers
from diffeq_gen.proof.rounding_rules import BINARY, UNARY, Ball, is_float, radius_of, settle, tiny, unit
from diffeq_gen.proof.rounding_sums import SUMS

__all__ = [
    "LOOPS",
    "apply",
    "arrays",
    "as_float",
    "attained",
    "bounded",
    "cond",
    "fitted",
    "given",
    "integer_power",
    "interpret",
    "interpret_high",
    "is_key",
    "literal",
    "operands",
    "primitives",
    "regrouped",
    "scan",
    "settled_carry",
    "solid",
    "solve",
    "unrolled",
    "while_loop",
]


TABLE = {**ARRAYS, **SUMS, **LINEAR}


def bounded(f: Callable) -> Callable:
    """bounded(f)(*args) = (f(*args), bound), |f(*args) - exact| <= bound.  Wilkinson 1963; Higham 2002, section 3.3.

    The bound has the structure of f's result: floats (0 or inf for integers and booleans).  It is inf where nothing can
    be claimed, and never nan.  Composes with jit and vmap.  The arguments are exact; a constant in the code of f with a
    long significand (pi, 0.1) is taken to be rounded.  Raises NotImplementedError for a primitive that has no rule.
    """

    def judged(*args: Any) -> tuple[Any, Any]:
        leaves, tree = jax.tree.flatten(args)
        closed, shapes = jax.make_jaxpr(lambda *flat: f(*jax.tree.unflatten(tree, flat)), return_shape=True)(*leaves)
        outs = interpret(closed.jaxpr, closed.consts, [given(jnp.asarray(leaf)) for leaf in leaves])
        result = jax.tree.structure(shapes)
        value = f(*args) if not is_traced(leaves) else jax.tree.unflatten(result, [b.value for b in outs])
        return value, jax.tree.unflatten(result, [as_float(b) for b in outs])

    return judged


def primitives() -> frozenset[str]:
    """The names of the jaxpr primitives that have a rule."""
    return frozenset({*UNARY, *BINARY, *TABLE, *CALLS, *LOOPS, "call_hi_primitive", "integer_pow"})


# --- the interpreter -----------------------------------------------------------------------------------------------


def given(x: jax.Array) -> Ball:
    """An exact argument; a subnormal one will be flushed, so its radius is the smallest normal number."""
    if not is_float(x):
        return Ball(x)
    if not is_traced([x]):
        flushed = (np.abs(x) < tiny(x)) & (x != 0)
        return Ball(x, np.where(flushed, tiny(x), 0.0).astype(x.dtype) if np.any(flushed) else None)
    bits = lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
    return Ball(x, jnp.where((jnp.abs(x) < tiny(x)) & ((bits << 1) != 0), tiny(x), 0.0).astype(x.dtype))


def literal(value: Any, aval: Any) -> Ball:
    """A constant of the code: exact when its significand is short (0.5, 3), else rounded by half an ulp (pi, 0.1)."""
    x = np.asarray(value, aval.dtype)
    if not jnp.issubdtype(x.dtype, jnp.floating) or x.ndim or not np.isfinite(x) or x == 0:
        return Ball(x)
    bits = jnp.finfo(x.dtype).nmant // 2
    mantissa, _ = np.frexp(np.float64(x))
    short = float(mantissa * 2.0**bits).is_integer()
    return Ball(x, None if short else jnp.asarray(unit(x) * abs(float(x)), x.dtype))


def fitted(ball: Ball) -> Ball:
    """The radius in the type and shape of the value."""
    if ball.radius is None:
        return ball
    dtype = ball.value.dtype if is_float(ball.value) else jnp.bool_
    return Ball(ball.value, jnp.broadcast_to(jnp.asarray(ball.radius, dtype), np.shape(ball.value)))


def as_float(ball: Ball) -> jax.Array:
    """The radius as a number: undecided integers and booleans have an infinite one."""
    if is_float(ball.value):
        return jnp.where(jnp.isnan(radius_of(ball)), jnp.inf, radius_of(ball)).astype(ball.value.dtype)
    return jnp.where(radius_of(ball), jnp.inf, 0.0).astype(jnp.zeros(()).dtype)


def interpret(jaxpr: core.Jaxpr | Program, consts: Sequence[Any], args: Sequence[Ball]) -> list[Ball]:
    """The jaxpr on balls: traced where an operand is, else at once by numpy, which keeps quiet about inf and nan."""
    env: dict[Any, Ball] = {}
    moved: dict[Any, float] = {}
    extremes: dict[Any, core.JaxprEqn | Equation] = {}

    def read(v: Any) -> Ball:
        return literal(v.val, v.aval) if isinstance(v, core.Literal) else env[v]

    env.update(zip(jaxpr.constvars, (c if isinstance(c, Ball) else Ball(jnp.asarray(c)) for c in consts), strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))
    with np.errstate(all="ignore"):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name in ("max", "min"):
                extremes[eqn.outvars[0]] = eqn
            eqn = attained(eqn, extremes)
            balls = [fitted(ball) for ball in apply(eqn, [read(v) for v in eqn.invars])]
            balls = regrouped(eqn, balls, moved)
            env.update(zip(eqn.outvars, balls, strict=True))
    return [Ball(jnp.asarray(b.value), b.radius) for b in map(read, jaxpr.outvars)]


def attained(eqn: core.JaxprEqn | Equation, extremes: dict[Any, Any]) -> core.JaxprEqn | Equation:
    """x == max(x, y) is x >= y: what rounding did to x it did to both sides.  So asks the slope of a maximum, until jax 0.10."""
    if eqn.primitive.name == "eq":
        for x, most in (eqn.invars, eqn.invars[::-1]):
            made = None if isinstance(most, core.Literal) else extremes.get(most)
            if made is not None and any(x is v for v in made.invars):
                primitive = lax.ge_p if made.primitive.name == "max" else lax.le_p
                other = made.invars[1] if x is made.invars[0] else made.invars[0]
                return Equation(primitive, eqn.params, (x, other), tuple(eqn.outvars))
    return eqn


def regrouped(eqn: core.JaxprEqn, balls: list[Ball], moved: dict[Any, float]) -> list[Ball]:
    """XLA may turn (c - x) + d into (c + d) - x: then u |c| and u |d| stand where u |c - x| was.  `moved` remembers each |c|."""
    if eqn.primitive.name not in ("add", "sub") or not is_float(balls[0].value):
        return balls
    known = [abs(float(v.val)) for v in eqn.invars if isinstance(v, core.Literal) and np.ndim(v.val) == 0]
    if len(known) != 1:
        return balls
    before = next((moved[v] for v in eqn.invars if not isinstance(v, core.Literal) and v in moved), None)
    moved[eqn.outvars[0]] = known[0] + (before or 0.0)
    if before is None:
        return balls
    value = balls[0].value
    return [Ball(value, radius_of(balls[0]) + 2 * unit(value) * (known[0] + before))]


def apply(eqn: core.JaxprEqn, balls: list[Ball]) -> list[Ball]:
    """One equation of a jaxpr on balls."""
    name, params = eqn.primitive.name, eqn.params
    if name in CALLS:
        inner = next(params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in params)
        return interpret(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), balls)
    if name == "call_hi_primitive":
        return interpret_high(params["_prim"], balls)
    if name in LOOPS:
        return LOOPS[name](balls, **params)
    out = apply_primitive(eqn.primitive, *(b.value for b in balls), **params)
    ys = list(out) if eqn.primitive.multiple_results else [out]
    discrete = not any(jnp.issubdtype(y.dtype, jnp.inexact) for y in ys)  # a complex number rounds, and has no rule
    if discrete and all(b.radius is None for b in balls):
        return [Ball(y) for y in ys]
    if name in ("ne", "eq", "sub") and eqn.invars[0] is eqn.invars[1]:
        return [Ball(ys[0])] if name != "sub" else [Ball(ys[0], settle(ys[0], jnp.zeros_like(ys[0]), tuple(balls)))]
    if discrete and (name in UNARY or name in BINARY or name == "integer_pow"):
        return [Ball(ys[0], ARRAYS["and"](eqn.primitive, ys, *balls)[0])]
    if name in UNARY:
        return [Ball(ys[0], elementwise(name, ys[0], *balls))]
    if name in BINARY:
        return [Ball(ys[0], elementwise(name, ys[0], *balls))]
    if name == "integer_pow":
        n = params["y"]
        return [Ball(ys[0], mended(lambda y, x: integer_power(y, x, n), powers(n), ys[0], *balls))]
    if name in TABLE:
        rule = TABLE[name]
        return [Ball(y, radius) for y, radius in zip(ys, rule(eqn.primitive, ys, *balls, **params), strict=True)]
    raise NotImplementedError(f"no rounding rule for the primitive {name!r}")


def interpret_high(primitive: Any, balls: list[Ball]) -> list[Ball]:
    """jax 0.12's high-level primitives say themselves what they expand to."""

    def expand(*flat: jax.Array) -> list[jax.Array]:
        return jax.tree.leaves(primitive.expand(*jax.tree.unflatten(primitive.in_tree, flat)))

    closed = jax.make_jaxpr(expand)(*(b.value for b in balls))
    return interpret(closed.jaxpr, closed.consts, balls)


def integer_power(y: jax.Array, x: Ball, n: int) -> jax.Array:
    """(|x| + e)^n - |x|^n <= n e (|x| + e)^(n - 1), and |n| u |x|^n for the multiplications; 1 / x^|n| through div."""
    if n < 0:
        size = x.value**-n
        whole = Ball(size, integer_power(size, x, -n))
        return BINARY["div"](y, Ball(jnp.ones_like(y)), whole)
    if n == 0:
        return jnp.zeros_like(y)
    e = radius_of(x)
    spread = jnp.where(e == 0, 0.0, n * e * (jnp.abs(x.value) + e) ** (n - 1))
    own = jnp.where(x.value == 0, 0.0, max(n - 1, 0) * (unit(y) * jnp.abs(y) + tiny(y)))
    return settle(y, spread + own, (x,))


# --- calls and loops -----------------------------------------------------------------------------------------------

UNROLLED = 1024


SMALL = 64
"""The largest linear system whose inverse is computed only to judge its solution."""


def solid(balls: Sequence[Ball], like: Sequence[Ball]) -> list[Ball]:
    """Written-out radii wherever `like` has one."""
    return [b if o.radius is None else Ball(b.value, radius_of(b)) for b, o in zip(balls, like, strict=True)]


def settled_carry(body: Callable, carry: list[Ball]) -> list[Ball]:
    """The carry with radii written out wherever the loop's body makes one: what is exact stays exact."""
    while True:
        out = jax.eval_shape(body, carry)
        wider = solid(carry, out)
        if [b.radius is None for b in wider] == [b.radius is None for b in carry]:
            return carry
        carry = wider


def arrays(balls: Sequence[Ball]) -> list[Ball]:
    """Literals as arrays of a definite type."""
    radii = [None if b.radius is None else jnp.broadcast_to(b.radius, np.shape(b.value)) for b in balls]
    return [Ball(jnp.asarray(b.value), radius) for b, radius in zip(balls, radii, strict=True)]


def operands(balls: list[Ball], params: dict[str, Any]) -> tuple[list[Ball], list[Ball], list[Ball]]:
    """Constants, carry and slices of a scan: two counts until jax 0.10, a tree of three from 0.12."""
    if "num_consts" in params:
        first, last = params["num_consts"], params["num_consts"] + params["num_carry"]
    else:
        consts, carry, _ = (list(part) for part in params["ft_in"].update(range(len(balls))).unpack())
        first, last = len(consts), len(consts) + len(carry)
    return balls[:first], arrays(balls[first:last]), arrays(balls[last:])


def scan(balls: list[Ball], *, jaxpr: core.ClosedJaxpr, length: int, reverse: bool, **params: Any) -> list[Ball]:
    """The scan of the interpreted body: every carry travels with its radius."""
    consts, carry, xs = operands(balls, params)

    def body(carry: list[Ball], x: list[Ball]) -> tuple[list[Ball], list[Ball]]:
        outs = interpret(jaxpr.jaxpr, jaxpr.consts, [*consts, *carry, *x])
        return solid(outs[: len(carry)], carry), outs[len(carry) :]

    if not is_traced(jax.tree.leaves((consts, carry, xs))) and length <= UNROLLED:
        return unrolled(body, carry, xs, range(length)[:: -1 if reverse else 1])

    def free(carry: list[Ball]) -> list[Ball]:
        first = [jax.tree.map(lambda a: jnp.zeros(a.shape[1:], a.dtype) if not is_key(a) else a[0], b) for b in xs]
        return interpret(jaxpr.jaxpr, jaxpr.consts, [*consts, *carry, *first])[: len(carry)]

    carry, ys = lax.scan(body, settled_carry(free, carry), xs, length=length, reverse=reverse)
    return [*carry, *ys]


def unrolled(body: Callable, carry: list[Ball], xs: list[Ball], order: Sequence[int]) -> list[Ball]:
    """The scan of known operands, turn by turn: nothing to compile."""
    rows: dict[int, list[Ball]] = {}
    for i in order:
        carry, rows[i] = body(carry, [Ball(x.value[i], None if x.radius is None else x.radius[i]) for x in xs])
    columns = zip(*(rows[i] for i in sorted(rows)), strict=True)
    stacked = [Ball(np.stack([y.value for y in ys]), np.stack([radius_of(y) for y in ys])) for ys in columns]
    return [*carry, *stacked]


def is_key(x: jax.Array) -> bool:
    """True for typed random keys."""
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def while_loop(balls: list[Ball], *, cond_jaxpr: Any, body_jaxpr: Any, **params: Any) -> list[Ball]:
    """The loop of the interpreted body; the number of turns follows the computed values."""
    cond_nconsts, body_nconsts = params["cond_nconsts"], params["body_nconsts"]
    tests, consts = balls[:cond_nconsts], balls[cond_nconsts : cond_nconsts + body_nconsts]

    def body(carry: list[Ball]) -> list[Ball]:
        return interpret(body_jaxpr.jaxpr, body_jaxpr.consts, [*consts, *carry])

    def more(carry: list[Ball]) -> jax.Array:
        return interpret(cond_jaxpr.jaxpr, cond_jaxpr.consts, [*tests, *carry])[0].value

    carry = arrays(balls[cond_nconsts + body_nconsts :])
    if not is_traced(jax.tree.leaves(balls)):
        while np.any(more(carry)):
            carry = body(carry)
        return carry
    carry = settled_carry(body, carry)
    return lax.while_loop(more, lambda c: solid(body(c), c), carry)


def cond(balls: list[Ball], *, branches: Sequence[core.ClosedJaxpr], **params: Any) -> list[Ball]:
    """The branch taken; an index that rounding leaves undecided takes the union of all branches."""
    index, args = balls[0], balls[1:]
    if params.get("branches_platforms") is not None:
        branch = branches[[p is None or jax.default_backend() in p for p in params["branches_platforms"]].index(True)]
        return interpret(branch.jaxpr, branch.consts, args)
    if not is_traced(jax.tree.leaves(balls)) and not np.any(radius_of(index)):
        branch = branches[int(np.clip(index.value, 0, len(branches) - 1))]
        return interpret(branch.jaxpr, branch.consts, args)
    runs = [lambda b=b: interpret(b.jaxpr, b.consts, args) for b in branches]
    shapes = [jax.eval_shape(run) for run in runs]
    exact = [all(shape[i].radius is None for shape in shapes) for i in range(len(shapes[0]))]

    def full(run: Callable) -> list[Ball]:
        return [b if e else Ball(b.value, radius_of(b)) for b, e in zip(run(), exact, strict=True)]

    if index.radius is None:
        return lax.switch(index.value, [lambda run=run: full(run) for run in runs])
    outs = [full(run) for run in runs]
    which = Ball(jnp.clip(index.value, 0, len(branches) - 1), index.radius)
    select = [lax.select_n(which.value, *(out[i].value for out in outs)) for i in range(len(exact))]
    choose = ARRAYS["select_n"]
    return [Ball(y, choose(lax.select_n_p, [y], which, *(out[i] for out in outs))[0]) for i, y in enumerate(select)]


def solve(balls: list[Ball], *, const_lengths: Any, jaxprs: Any, **params: Any) -> list[Ball]:
    """custom_linear_solve, judged a posteriori by the residual of its own matvec; large ones by how they are solved."""
    lengths = [const_lengths.matvec, const_lengths.vecmat, const_lengths.solve]
    ends = np.cumsum(lengths)
    matvec_consts, solve_consts = balls[: ends[0]], balls[ends[1] : ends[2]]
    b = balls[sum(const_lengths) :]
    if len(b) != 1:
        raise NotImplementedError("no rounding rule for the primitive 'custom_linear_solve' with several right sides")
    call = jax.extend.core.jaxpr_as_fun(jaxprs.solve)

    def inverse(v: jax.Array) -> jax.Array:
        return call(*(c.value for c in solve_consts), v)[0]

    def matvec(v: Ball) -> Ball:
        return interpret(jaxprs.matvec.jaxpr, jaxprs.matvec.consts, [*matvec_consts, v])[0]

    x = inverse(b[0].value)
    if np.size(x) > SMALL:
        return interpret(jaxprs.solve.jaxpr, jaxprs.solve.consts, [*solve_consts, *b])
    return [Ball(x, linear_solve(x, b[0], matvec, inverse))]


LOOPS: dict[str, Callable] = {"scan": scan, "while": while_loop, "cond": cond, "custom_linear_solve": solve}
