"""Sums, products and orders of many numbers.

    |fl(sum_i x_i) - sum_i x_i| <= (n - 1) u sum_i |x_i|  in any order               Higham 2002, Eq. (4.4)
    |fl(A B) - A B| <= n u |A| |B|                                                   Higham 2002, Eq. (3.13)
    |max_i x_i - max_i y_i| <= max_i |x_i - y_i|, and so for every order statistic

A rule takes the primitive, its results, its operands as balls and its parameters, and returns one radius for each
result.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax

from diffeq_gen.proof.either import apply as apply_primitive
from diffeq_gen.proof.either import either as jnp
from diffeq_gen.proof.rounding_arrays import Rule, finite, integers, lost, undecided
from diffeq_gen.proof.rounding_rules import Ball, add, is_float, mul, radius_of, tiny, unit

__all__ = [
    "SUMS",
    "any_undecided",
    "bilinear",
    "contracted",
    "cumulative",
    "extreme",
    "horner",
    "over_devices",
    "product",
    "reduce_prod",
    "reduce_sum",
    "scatter_add",
    "sort",
    "top",
    "window",
    "winner",
]

# --- reductions ----------------------------------------------------------------------------------------------------


def reduce_sum(primitive: Any, ys: Sequence[jax.Array], x: Ball, *, axes: Sequence[int], **params: Any) -> Sequence:
    """sum e + (n - 1) u sum |x|; an exact infinity keeps the sum exact."""
    (y,) = ys
    if not is_float(y):
        return integers(primitive, ys, x)
    n = int(np.prod([x.value.shape[a] for a in axes], dtype=np.int64))
    axes = tuple(axes)
    e = radius_of(x)
    radius = jnp.sum(e, axes)
    if n > 1:
        radius = radius + (n - 1) * (
            unit(y) * jnp.sum(jnp.abs(x.value), axes)
            + jnp.where((y == 0) & jnp.all(x.value == 0, axes), 0.0, tiny(y)).astype(y.dtype)
        )
    truth = jnp.any(jnp.isinf(x.value), axes) & jnp.all(jnp.isfinite(e), axes)
    return [jnp.where(jnp.isinf(y) & truth, 0.0, finite(y, radius))]


def over_devices(
    primitive: Any,
    ys: Sequence[jax.Array],
    *xs: Ball,
    axes: Sequence[int],
    axis_index_groups: Any = None,
    **params: Any,
) -> Sequence:
    """The psum of lanes under vmap, which is a sum over their axes.  Raises: NotImplementedError for real devices, or groups."""
    if axis_index_groups is not None or not all(isinstance(axis, int) for axis in axes):
        raise NotImplementedError(f"no rounding rule for a psum over {axes} in groups {axis_index_groups}")
    return [reduce_sum(primitive, [y], x, axes=axes)[0] for y, x in zip(ys, xs, strict=True)]


def product(total: Callable, summed: Callable, n: int, y: jax.Array, x: Ball) -> jax.Array:
    """prod |x| (exp(sum e / |x|) - 1) + 2 n u prod |x|; no claim where a partial product may underflow."""
    size, e = jnp.abs(x.value), radius_of(x)
    whole, reach = total(size), total(size + e)
    relative = summed(jnp.where(e == 0, 0.0, jnp.where(size > e, e / jnp.where(size > e, size, 1.0), jnp.inf)))
    spread = jnp.where(jnp.isinf(relative), whole + reach, whole * jnp.expm1(relative))
    nonzero = total(jnp.where(size + e == 0, 0.0, 1.0).astype(y.dtype)) > 0
    least = total(jnp.minimum(size, 1.0))
    spread = jnp.where(nonzero & (least < 4 * tiny(y)), jnp.inf, spread)
    return finite(y, spread + 2 * n * (unit(y) * reach + jnp.where(nonzero, tiny(y), 0.0).astype(y.dtype)))


def reduce_prod(primitive: Any, ys: Sequence[jax.Array], x: Ball, *, axes: Sequence[int], **params: Any) -> Sequence:
    """The bound of a product over the axes."""
    if not is_float(ys[0]):
        return integers(primitive, ys, x)
    n = int(np.prod([x.value.shape[a] for a in axes], dtype=np.int64))
    return [product(lambda v: jnp.prod(v, tuple(axes)), lambda v: jnp.sum(v, tuple(axes)), n, ys[0], x)]


def extreme(rising: float) -> Rule:
    """max_i x_i: the largest radius among the contenders, those whose intervals reach the best lower end."""

    def rule(primitive: Any, ys: Sequence[jax.Array], x: Ball, *, axes: Sequence[int], **params: Any) -> Sequence:
        (y,) = ys
        if x.radius is None:
            return [None]
        axes = tuple(axes)
        if not is_float(y):
            return [jnp.any(x.radius, axes)]
        v = rising * x.value
        best = jnp.max(v - 2 * x.radius, axes, keepdims=True)
        contender = (v + 2 * x.radius >= best) | jnp.isnan(v) | jnp.isnan(best)
        radius = jnp.max(jnp.where(contender, x.radius, 0.0), axes)
        return [jnp.where(jnp.isnan(y), jnp.inf, radius)]

    return rule


def winner(rising: float) -> Rule:
    """argmax: undecided when a second interval reaches the best lower end."""

    def rule(primitive: Any, ys: Sequence[jax.Array], x: Ball, *, axes: Sequence[int], **params: Any) -> Sequence:
        if x.radius is None:
            return [None]
        e = 2 * x.radius if is_float(x.value) else jnp.where(x.radius, jnp.inf, 0.0).astype(jnp.float32)
        v = rising * x.value.astype(e.dtype)
        best = jnp.max(v - e, tuple(axes), keepdims=True)
        rivals = jnp.sum((v + e >= best) & (e > 0), tuple(axes))
        certain = jnp.sum((v + e >= best), tuple(axes))
        return [(certain > 1) & (rivals > 0)]

    return rule


def any_undecided(primitive: Any, ys: Sequence[jax.Array], x: Ball, *, axes: Sequence[int], **params: Any) -> Sequence:
    """Undecided where any entry is."""
    return [None if x.radius is None else jnp.any(x.radius, tuple(axes))]


def cumulative(kind: str) -> Rule:
    """Running sums, products, extremes and logarithms of sums: the reduction's bound at every prefix."""

    def rule(primitive: Any, ys: Sequence[jax.Array], x: Ball, *, axis: int, reverse: bool, **params: Any) -> Sequence:
        (y,) = ys
        if not is_float(y):
            return integers(primitive, ys, x)
        n, e = y.shape[axis], radius_of(x)
        if kind == "sum":
            running = (
                lax.cumsum(e, axis, reverse) + n * unit(y) * lax.cumsum(jnp.abs(x.value), axis, reverse) + n * tiny(y)
            )
            return [finite(y, running)]
        if kind == "prod":
            parts = (lambda v: lax.cumprod(v, axis, reverse), lambda v: lax.cumsum(v, axis, reverse))
            return [product(*parts, n, y, x)]
        widest = lax.cummax(e, axis, reverse)
        if kind == "extreme":
            return [None if x.radius is None else jnp.where(jnp.isnan(y), jnp.inf, widest)]
        levels = 2 * int(np.ceil(np.log2(n + 1)))
        size = lax.cummax(jnp.where(jnp.isinf(x.value), 0.0, jnp.abs(x.value)), axis, reverse) + float(np.log(n + 1.0))
        radius = finite(y, widest + levels * 8 * unit(y) * (size + 1))
        return [jnp.where(jnp.isneginf(y) & (lax.cumsum(e, axis, reverse) == 0), 0.0, radius)]

    return rule


def sort(
    primitive: Any, ys: Sequence[jax.Array], *balls: Ball, dimension: int, num_keys: int, **params: Any
) -> Sequence:
    """Order statistics are Lipschitz: sorted keys have the widest radius; what travels with them is decided by the gaps."""
    if all(b.radius is None for b in balls):
        return [None for _ in ys]
    keys = [b.radius for b in balls[:num_keys] if b.radius is not None]
    if not keys or num_keys > 1 or not is_float(balls[0].value):
        mask = jnp.any(jnp.stack([lost(b.radius) for b in balls if b.radius is not None]))
        return [undecided(y, mask) for y in ys]
    widest = jnp.max(keys[0], dimension, keepdims=True)
    near = jnp.diff(ys[0], axis=dimension) <= 4 * widest
    pad = [(0, 0)] * ys[0].ndim
    before, after = list(pad), list(pad)
    before[dimension], after[dimension] = (1, 0), (0, 1)
    mixed = (jnp.pad(near, before) | jnp.pad(near, after)) & (widest > 0)
    radii = [jnp.broadcast_to(widest, ys[0].shape)]
    for y, b in zip(ys[1:], balls[1:], strict=True):
        spread = (
            jnp.max(b.value, dimension, keepdims=True) - jnp.min(b.value, dimension, keepdims=True)
            if is_float(y)
            else None
        )
        own = (
            None
            if b.radius is None
            else jnp.max(b.radius, dimension, keepdims=True)
            if is_float(y)
            else jnp.any(b.radius, dimension, keepdims=True)
        )
        mask = mixed if own is None or is_float(y) else mixed | own
        radii.append(mask if spread is None else jnp.where(mixed, spread, 0.0) + (0.0 if own is None else own))
    return radii


def top(primitive: Any, ys: Sequence[jax.Array], x: Ball, *, axis: int = -1, **params: Any) -> Sequence:
    """The k largest and their places: Lipschitz values; places undecided as soon as anything is inexact nearby."""
    if x.radius is None:
        return [None, None]
    widest = jnp.max(x.radius, axis, keepdims=True)
    return [jnp.broadcast_to(widest, ys[0].shape), jnp.broadcast_to(widest > 0, ys[1].shape)]


def horner(primitive: Any, ys: Sequence[jax.Array], x: Ball, *coefficients: Ball, **params: Any) -> Sequence:
    """c_0 + x (c_1 + x (c_2 + ...)), step by step.  Higham 2002, section 5.1."""
    sum_so_far = Ball(jnp.broadcast_to(coefficients[-1].value, ys[0].shape), coefficients[-1].radius)
    for c in coefficients[-2::-1]:
        value = sum_so_far.value * x.value
        product = Ball(value, mul(value, sum_so_far, x))
        value = value + c.value
        sum_so_far = Ball(value, add(value, product, c))
    return [sum_so_far.radius]


# --- products of arrays --------------------------------------------------------------------------------------------


def bilinear(length: Callable[..., int]) -> Rule:
    """|A| (e_B + n u |B|) + e_A (|B| + e_B) for every product that sums n terms."""

    def rule(primitive: Any, ys: Sequence[jax.Array], a: Ball, b: Ball, **params: Any) -> Sequence:
        (y,) = ys
        if not is_float(y):
            return integers(primitive, ys, a, b)
        n = length(a.value, b.value, **params)
        x, z = jnp.abs(a.value), jnp.abs(b.value)
        wide = n * unit(y) * z if b.radius is None else b.radius + n * unit(y) * z
        radius = apply_primitive(primitive, x, wide.astype(z.dtype), **params) + n * tiny(y)
        if a.radius is not None:
            radius = radius + apply_primitive(primitive, a.radius, z if b.radius is None else z + b.radius, **params)
        return [finite(y, radius)]

    return rule


def contracted(a: jax.Array, b: jax.Array, *, dimension_numbers: Any, **params: Any) -> int:
    """The number of terms in each sum of a dot_general."""
    return int(np.prod([a.shape[i] for i in dimension_numbers[0][0]], dtype=np.int64)) + 1


def window(a: jax.Array, b: jax.Array, *, dimension_numbers: Any, **params: Any) -> int:
    """The number of terms in each sum of a convolution."""
    return int(np.prod(b.shape)) // b.shape[dimension_numbers.rhs_spec[0]] + 1


def scatter_add(
    primitive: Any, ys: Sequence[jax.Array], x: Ball, index: Ball, updates: Ball, **params: Any
) -> Sequence:
    """Sums of unknown length: count the terms that land on each place."""
    (y,) = ys
    if not is_float(y):
        return integers(primitive, ys, x, index, updates)

    def put(v: jax.Array, w: jax.Array) -> jax.Array:
        return apply_primitive(primitive, v, index.value, w, **params)

    count = put(jnp.zeros_like(x.value), jnp.ones_like(updates.value))
    size = put(jnp.abs(x.value), jnp.abs(updates.value))
    radius = put(radius_of(x), radius_of(updates)) + count * (
        unit(y) * size + jnp.where(size == 0, 0.0, tiny(y)).astype(y.dtype)
    )
    radius = jnp.where(jnp.isinf(y) & (count == 0), radius_of(x), finite(y, radius))
    return [radius if index.radius is None else jnp.where(lost(index.radius), jnp.inf, radius)]


SUMS: dict[str, Rule] = {
    "scatter-add": scatter_add,
    "scatter-sub": scatter_add,
    "reduce_sum": reduce_sum,
    "psum": over_devices,
    "reduce_prod": reduce_prod,
    "reduce_max": extreme(1.0),
    "reduce_min": extreme(-1.0),
    "argmax": winner(1.0),
    "argmin": winner(-1.0),
    "reduce_and": any_undecided,
    "reduce_or": any_undecided,
    "reduce_xor": any_undecided,
    "cumsum": cumulative("sum"),
    "cumprod": cumulative("prod"),
    "cummax": cumulative("extreme"),
    "cummin": cumulative("extreme"),
    "cumlogsumexp": cumulative("logsumexp"),
    "sort": sort,
    "top_k": top,
    "polynomial": horner,
    "dot_general": bilinear(contracted),
    "conv_general_dilated": bilinear(window),
}
