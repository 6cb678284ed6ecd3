"""A traced computation with its calls written out, and without what no result asks for and what is said twice.

    a = at(schedule, t) ... b = at(schedule, t)        ->        b is a, and slopes that nobody reads are not computed

A claim asks for the same point of a schedule again and again.  XLA finds that out for itself, and makes the same code of both in
less time; who interprets a jaxpr does not.
Nothing that is left is changed: every value is that of the same operation on the same operands.
"""

from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core

__all__ = ["CALLS", "Equation", "Program", "evaluated", "pruned"]

CALLS = frozenset(
    "call checkpoint closed_call composite core_call custom_jvp_call custom_vjp_call eval_jaxpr jit pjit remat "
    "remat2".split()
)


class Equation(NamedTuple):
    """What is read of a jaxpr's equation.  A variable is any hashable thing, or a `Literal`."""

    primitive: core.Primitive
    params: dict[str, Any]
    invars: tuple[Any, ...]
    outvars: tuple[Any, ...]


class Program(NamedTuple):
    """What is read of a jaxpr, and the values of its constants."""

    constvars: tuple[Any, ...]
    invars: tuple[Any, ...]
    outvars: tuple[Any, ...]
    eqns: tuple[Equation, ...]
    consts: tuple[Any, ...]


def pruned(closed: core.ClosedJaxpr) -> Program:
    """The same function of the same arguments: calls inlined, each equation once, and only those that a result depends on.

    Loops and branches stay as they are, and are the same where they are the same object.
    """
    consts: dict[int, Any] = {}
    env = {var: ("argument", i) for i, var in enumerate(closed.jaxpr.invars)}
    outs, eqns = _written_out(closed.jaxpr, closed.consts, env, consts, {})
    kept, asked = [], {var for var in outs if not isinstance(var, core.Literal)}
    for eqn in reversed(eqns):
        if not asked.isdisjoint(eqn.outvars):
            kept.append(eqn)
            asked.update(var for var in eqn.invars if not isinstance(var, core.Literal))
    used = tuple(var for var in consts if ("constant", var) in asked)
    arguments = tuple(("argument", i) for i in range(len(closed.jaxpr.invars)))
    return Program(tuple(("constant", var) for var in used), arguments, tuple(outs), tuple(reversed(kept)),
                   tuple(consts[var] for var in used))  # fmt: skip


def evaluated(program: Program, *args: jax.Array) -> list[jax.Array]:
    """Its results at these arguments, operation by operation; under jit, the program traced anew."""
    env = dict(zip((*program.constvars, *program.invars), (*program.consts, *args), strict=True))

    def read(var: Any) -> Any:
        return var.val if isinstance(var, core.Literal) else env[var]

    for eqn in program.eqns:
        out = eqn.primitive.bind(*map(read, eqn.invars), **eqn.params)
        env.update(zip(eqn.outvars, out if eqn.primitive.multiple_results else [out], strict=True))
    return [read(var) for var in program.outvars]


def _written_out(
    jaxpr: core.Jaxpr, values: Any, env: dict[Any, Any], consts: dict[int, Any], known: dict[Hashable, Equation]
) -> tuple[list[Any], list[Equation]]:
    """(what its results are called now, the equations that are new): `env` names its arguments, `known` what was said before."""
    for var, value in zip(jaxpr.constvars, values, strict=True):
        consts[id(value)] = value
        env[var] = ("constant", id(value))
    eqns: list[Equation] = []

    def read(var: Any) -> Any:
        return var if isinstance(var, core.Literal) else env[var]

    for eqn in jaxpr.eqns:
        operands = tuple(read(var) for var in eqn.invars)
        if eqn.primitive.name in CALLS:
            inner = next(eqn.params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in eqn.params)
            body = getattr(inner, "jaxpr", inner)
            named = dict(zip(body.invars, operands, strict=True))
            results, more = _written_out(body, getattr(inner, "consts", ()), named, consts, known)
            eqns += more
        else:
            said = (eqn.primitive, *map(_key, operands), *_params(eqn.params))
            if said not in known:
                results = tuple((len(known), i) for i in range(len(eqn.outvars)))
                known[said] = Equation(eqn.primitive, eqn.params, operands, results)
                eqns.append(known[said])
            results = known[said].outvars
        env.update(zip(eqn.outvars, results, strict=True))
    return [read(var) for var in jaxpr.outvars], eqns


def _key(var: Any) -> Hashable:
    """Literals are the same where their bits are."""
    return (np.asarray(var.val).tobytes(), var.aval) if isinstance(var, core.Literal) else var


def _params(params: dict[str, Any]) -> Iterator[Hashable]:
    for name, value in params.items():
        try:
            hash(value)
        except TypeError:
            value = id(value)
        yield name, value
