"""Array functions that follow their operands: numpy for arrays that are known, jax.numpy for arrays that are traced.

A bound has thousands of small operations.  Traced, they take XLA minutes to compile; on known arrays numpy runs them as
they come.  The same rules serve both: inside a loop or a `vmap` they see tracers, at top level they see a whole batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy
import numpy as np

from diffeq_gen.proof.known import ELEMENTWISE, FLOAT, KNOWN

__all__ = ["apply", "either", "is_traced"]


class _Either:
    """``either.where`` is numpy's for known operands and jax.numpy's as soon as one of them is traced."""

    def __getattr__(self, name: str) -> Any:
        known, traced = getattr(np, name, None), getattr(jax.numpy, name)
        chosen = _by_operands(known, traced) if callable(known) and not isinstance(known, type) else traced
        setattr(self, name, chosen)
        return chosen

    def issubdtype(self, dtype: Any, kind: Any) -> bool:
        """As in jax.numpy, which knows the types of random keys."""
        return jax.numpy.issubdtype(dtype, kind)

    def asarray(self, value: Any, dtype: Any = None) -> Any:
        """Arrays stay where they are; keys and numbers become arrays."""
        if isinstance(value, jax.core.Tracer) or jax.numpy.issubdtype(
            getattr(value, "dtype", None), jax.dtypes.extended
        ):
            return value if dtype is None else value.astype(dtype)
        return np.asarray(value, dtype)


def _by_operands(known: Callable, traced: Callable) -> Callable:
    def function(*operands: Any, **options: Any) -> Any:
        return (traced if is_traced(operands) else known)(*operands, **options)

    return function


def is_traced(operands: Any) -> bool:
    """Whether any operand, or any member of a list of operands, is a tracer."""
    return any(isinstance(x, jax.core.Tracer) or (isinstance(x, list | tuple) and is_traced(x)) for x in operands)


either: Any = _Either()


def apply(primitive: Any, *operands: Any, **params: Any) -> Any:
    """The primitive on its operands: by numpy where they are known and `known` has it, else by jax itself."""
    traced = is_traced(operands)
    if not traced:
        name, kinds = primitive.name, {np.asarray(x).dtype.kind for x in operands if not _is_key(x)}
        if not any(_is_key(x) for x in operands) and kinds <= set("fbiu"):
            if name in ELEMENTWISE or (name in FLOAT and kinds <= {"f"}):
                return np.asarray((ELEMENTWISE.get(name) or FLOAT[name])(*operands))
            if name in KNOWN and _suits(name, kinds, operands, params):
                out = KNOWN[name](*map(np.asarray, operands), **params)
                return out if isinstance(out, list) else np.asarray(out)
    out = primitive.bind(*operands, **params)
    if traced:
        return out
    return [_known(part) for part in out] if primitive.multiple_results else _known(out)


def _suits(name: str, kinds: set[str], operands: Any, params: Any) -> bool:
    """Whether numpy means the same here: no negative padding, no negative power of integers, no integer sums that widen."""
    if name == "pad":
        return all(low >= 0 and high >= 0 for low, high, _ in params["padding_config"])
    if name == "convert_element_type":
        target = np.dtype(params["new_dtype"]).kind if hasattr(params["new_dtype"], "kind") else "V"
        return target == "f" or (target in "iu" and kinds <= set("biu")) or (target == "b" and kinds <= set("b"))
    if name in ("integer_pow", "reduce_sum", "reduce_prod", "cumsum", "cumprod", "dot_general"):
        return kinds <= {"f"}
    if name == "select_n":
        return len(operands) == 2 + 1 or np.asarray(operands[0]).dtype.kind == "i"
    return True


def _is_key(value: Any) -> bool:
    return jax.numpy.issubdtype(getattr(value, "dtype", None), jax.dtypes.extended)


def _known(value: Any) -> Any:
    if isinstance(value, jax.core.Tracer):  # under jit, jax traces known operands as well
        return value
    return value if jax.numpy.issubdtype(value.dtype, jax.dtypes.extended) else np.asarray(value)
