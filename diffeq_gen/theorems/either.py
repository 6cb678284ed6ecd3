"""Array functions that follow their operands: numpy for arrays that are known, jax.numpy for arrays that are traced.

A bound has thousands of small operations.  Traced, they take XLA minutes to compile; on known arrays numpy runs them as
they come.  The same rules serve both: inside a loop or a `vmap` they see tracers, at top level they see a whole batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy
import numpy as np

__all__ = ["apply", "either"]


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
        if isinstance(value, jax.core.Tracer) or jax.numpy.issubdtype(getattr(value, "dtype", None), jax.dtypes.extended):
            return value if dtype is None else value.astype(dtype)
        return np.asarray(value, dtype)


def _by_operands(known: Callable, traced: Callable) -> Callable:
    def function(*operands: Any, **options: Any) -> Any:
        return (traced if is_traced(operands) else known)(*operands, **options)

    return function


def is_traced(operands: Any) -> bool:
    """Whether any operand, or any member of a list of operands, is a tracer."""
    return any(
        isinstance(x, jax.core.Tracer) or (isinstance(x, list | tuple) and is_traced(x)) for x in operands
    )


either: Any = _Either()

NUMPY: dict[str, Callable] = {
    "abs": np.abs,
    "add": np.add,
    "add_any": np.add,
    "and": np.bitwise_and,
    "cos": np.cos,
    "div": np.divide,
    "eq": np.equal,
    "exp": np.exp,
    "expm1": np.expm1,
    "ge": np.greater_equal,
    "gt": np.greater,
    "le": np.less_equal,
    "log": np.log,
    "log1p": np.log1p,
    "lt": np.less,
    "max": np.maximum,
    "min": np.minimum,
    "mul": np.multiply,
    "ne": np.not_equal,
    "neg": np.negative,
    "not": np.invert,
    "or": np.bitwise_or,
    "sin": np.sin,
    "sqrt": np.sqrt,
    "square": np.square,
    "sub": np.subtract,
    "tan": np.tan,
    "tanh": np.tanh,
}


def apply(primitive: Any, *operands: Any, **params: Any) -> Any:
    """The primitive on its operands: by numpy where they are floats that are known and numpy has it, else by jax itself."""
    traced = is_traced(operands)
    if not traced:
        if primitive.name in NUMPY and all(np.asarray(x).dtype.kind in "fb" for x in operands):
            return NUMPY[primitive.name](*operands)
        if primitive.name == "integer_pow" and np.asarray(operands[0]).dtype.kind == "f":
            return operands[0] ** params["y"]
        if primitive.name == "select_n" and np.asarray(operands[0]).dtype == bool and len(operands) == 3:
            return np.where(*operands[:1], operands[2], operands[1])
    out = primitive.bind(*operands, **params)
    if traced:
        return out
    return [_known(part) for part in out] if primitive.multiple_results else _known(out)


def _known(value: Any) -> Any:
    if isinstance(value, jax.core.Tracer):  # under jit, jax traces known operands as well
        return value
    return value if jax.numpy.issubdtype(value.dtype, jax.dtypes.extended) else np.asarray(value)
