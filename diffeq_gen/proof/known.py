"""JAX's primitives on known arrays, by numpy: what a batch of cases needs so often that compiling each would cost more.

    KNOWN[name](*operands, **params) = primitive.bind(*operands, **params),       as numpy arrays

Values may differ from XLA's by the rounding that the rules allow for; shapes and types may not.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

__all__ = ["ELEMENTWISE", "FLOAT", "KNOWN"]

Array = Any

FLOAT: dict[str, Callable[..., Array]] = {
    "atan2": np.arctan2,
    "atan": np.arctan,
    "cbrt": np.cbrt,
    "ceil": np.ceil,
    "cos": np.cos,
    "cosh": np.cosh,
    "div": np.divide,
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "floor": np.floor,
    "is_finite": np.isfinite,
    "log": np.log,
    "log1p": np.log1p,
    "logistic": lambda x: 1 / (1 + np.exp(-x)),
    "pow": np.power,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sin": np.sin,
    "sinh": np.sinh,
    "sqrt": np.sqrt,
    "tan": np.tan,
    "tanh": np.tanh,
}
"""Of floats alone: integers have another meaning, or none."""

ELEMENTWISE: dict[str, Callable[..., Array]] = {
    "abs": np.abs,
    "add": np.add,
    "add_any": np.add,
    "and": np.bitwise_and,
    "copy": lambda x: x,
    "copy_p": lambda x: x,
    "eq": np.equal,
    "ge": np.greater_equal,
    "gt": np.greater,
    "le": np.less_equal,
    "lt": np.less,
    "max": np.maximum,
    "min": np.minimum,
    "mul": np.multiply,
    "ne": np.not_equal,
    "neg": np.negative,
    "not": np.invert,
    "or": np.bitwise_or,
    "sign": np.sign,
    "square": np.square,
    "stop_gradient": lambda x: x,
    "sub": np.subtract,
    "xor": np.bitwise_xor,
}


def _broadcast_in_dim(x: Array, *, shape: Sequence[int], broadcast_dimensions: Sequence[int], **_: Any) -> Array:
    sizes = dict(zip(broadcast_dimensions, np.shape(x), strict=True))
    return np.broadcast_to(np.reshape(x, [sizes.get(axis, 1) for axis in range(len(shape))]), tuple(shape))


def _slice(x: Array, *, start_indices: Sequence[int], limit_indices: Sequence[int], strides: Any, **_: Any) -> Array:
    steps = strides or (1,) * len(start_indices)
    return x[tuple(slice(*bounds) for bounds in zip(start_indices, limit_indices, steps, strict=True))]


def _dot_general(a: Array, b: Array, *, dimension_numbers: Any, **_: Any) -> Array:
    (a_sum, b_sum), (a_batch, b_batch) = dimension_numbers
    names = iter(range(52))
    left: list[int | None] = [None] * a.ndim
    right: list[int | None] = [None] * b.ndim
    for i, j in (*zip(a_batch, b_batch, strict=True), *zip(a_sum, b_sum, strict=True)):
        left[i] = right[j] = next(names)
    left = [next(names) if name is None else name for name in left]
    right = [next(names) if name is None else name for name in right]
    batch = [left[i] for i in a_batch]
    free = [n for i, n in enumerate(left) if i not in (*a_batch, *a_sum)]
    free += [n for j, n in enumerate(right) if j not in (*b_batch, *b_sum)]
    return np.einsum(a, left, b, right, [*batch, *free])


def _select_n(which: Array, *cases: Array, **_: Any) -> Array:
    if len(cases) == 2:
        return np.where(which, cases[1], cases[0])
    return np.choose(which, cases)


def _clamp(low: Array, x: Array, high: Array, **_: Any) -> Array:
    return np.minimum(np.maximum(x, low), high)


def _iota(*, dtype: Any, shape: Sequence[int], dimension: int, **_: Any) -> Array:
    line = np.arange(shape[dimension], dtype=dtype)
    return _broadcast_in_dim(line, shape=shape, broadcast_dimensions=(dimension,))


def _pad(x: Array, value: Array, *, padding_config: Sequence[tuple[int, int, int]], **_: Any) -> Array:
    out = np.full(
        [lo + hi + n + max(n - 1, 0) * gap for n, (lo, hi, gap) in zip(x.shape, padding_config, strict=True)],
        value,
        x.dtype,
    )
    out[
        tuple(
            slice(lo, lo + (n - 1) * (gap + 1) + 1, gap + 1)
            for n, (lo, _, gap) in zip(x.shape, padding_config, strict=True)
        )
    ] = x
    return out


def _running(function: Any) -> Callable[..., Array]:
    def rule(x: Array, *, axis: int, reverse: bool, **_: Any) -> Array:
        x = np.flip(x, axis) if reverse else x
        total = function.accumulate(x, axis)
        return np.flip(total, axis) if reverse else total

    return rule


def _split(x: Array, *, sizes: Sequence[int], axis: int, **_: Any) -> list[Array]:
    return np.split(x, np.cumsum(sizes)[:-1], axis)


def _dynamic_slice(x: Array, *starts: Array, slice_sizes: Sequence[int], **_: Any) -> Array:
    begins = [int(np.clip(s, 0, n - size)) for s, n, size in zip(starts, x.shape, slice_sizes, strict=True)]
    return x[tuple(slice(b, b + size) for b, size in zip(begins, slice_sizes, strict=True))]


def _reduce(function: Callable[..., Array]) -> Callable[..., Array]:
    return lambda x, *, axes, **_: function(x, axis=tuple(axes))


KNOWN: dict[str, Callable[..., Array]] = {
    "broadcast_in_dim": _broadcast_in_dim,
    "clamp": _clamp,
    "concatenate": lambda *parts, dimension, **_: np.concatenate(parts, dimension),
    "convert_element_type": lambda x, *, new_dtype, **_: np.asarray(x).astype(new_dtype),
    "cummax": _running(np.maximum),
    "cummin": _running(np.minimum),
    "cumprod": _running(np.multiply),
    "cumsum": _running(np.add),
    "dot_general": _dot_general,
    "dynamic_slice": _dynamic_slice,
    "integer_pow": lambda x, *, y, **_: x**y,
    "iota": _iota,
    "pad": _pad,
    "reduce_and": _reduce(np.all),
    "reduce_max": _reduce(np.max),
    "reduce_min": _reduce(np.min),
    "reduce_or": _reduce(np.any),
    "reduce_prod": _reduce(np.prod),
    "reduce_sum": _reduce(np.sum),
    "reshape": lambda x, *, new_sizes, **_: np.reshape(x, new_sizes),
    "rev": lambda x, *, dimensions, **_: np.flip(x, dimensions),
    "select_n": _select_n,
    "slice": _slice,
    "split": _split,
    "squeeze": lambda x, *, dimensions, **_: np.squeeze(x, tuple(dimensions)),
    "transpose": lambda x, *, permutation, **_: np.transpose(x, permutation),
}
