"""Array rules: moves, choices, sums and products.

    |fl(sum_i x_i) - sum_i x_i| <= (n - 1) u sum_i |x_i|        in any order              Higham 2002, Eq. (4.4)
    |fl(A B) - A B| <= n u |A| |B|                                                        Higham 2002, Eq. (3.13)
    |max_i x_i - max_i y_i| <= max_i |x_i - y_i|                                          (so order statistics are Lipschitz)

A rule takes the primitive, its results, its operands as balls and its parameters, and returns one radius for each result.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .rounding_rules import Ball, add, is_float, larger, mul, overlap, radius_of, smaller, tiny, unit

__all__ = ["ARRAYS"]

Rule = Callable[..., Sequence[jax.Array | None]]


def lost(mask: jax.Array) -> jax.Array:
    """True or infinite radius -> True: something upstream is undecided."""
    return jnp.any(mask) if mask.dtype == jnp.bool_ else jnp.any(mask > 0)


def undecided(y: jax.Array, mask: jax.Array) -> jax.Array:
    """The radius of y when `mask` says that which y it is remains undecided: everything for floats, the mask for the rest."""
    shape = np.shape(y)
    return jnp.broadcast_to(jnp.where(mask, jnp.inf, 0.0).astype(y.dtype) if is_float(y) else mask, shape)


def finite(y: jax.Array, radius: jax.Array, *balls: Ball) -> jax.Array:
    """nan -> inf, and no claim about an infinite result."""
    radius = jnp.where(jnp.isnan(radius) | ~jnp.isfinite(y), jnp.inf, radius * (1 + 32 * unit(y)))
    return radius.astype(y.dtype)


# --- moves: the radii travel with the values ---------------------------------------------------------------------------------


def move(primitive: Any, ys: Sequence[jax.Array], *balls: Ball, data: int | None = None, **params: Any) -> Sequence:
    """The same primitive on the radii of the first `data` operands; an undecided index loses everything."""
    count = len(balls) if data is None else data
    index_radii = [lost(b.radius) for b in balls[count:] if b.radius is not None]
    if all(b.radius is None for b in balls[:count]):
        radii = [None for _ in ys]
    else:
        bound = primitive.bind(*(radius_of(b) for b in balls[:count]), *(b.value for b in balls[count:]), **params)
        radii = list(bound) if primitive.multiple_results else [bound]
        radii = [jnp.where(jnp.isnan(r), jnp.inf, r) if is_float(r) else r for r in radii]
    if index_radii:
        mask = jnp.any(jnp.stack(index_radii))
        radii = [undecided(y, mask) if r is None else jnp.where(mask, jnp.inf if is_float(y) else True, r) for y, r in zip(ys, radii, strict=True)]
    return radii


def moves(data: int | None) -> Rule:
    return lambda primitive, ys, *balls, **params: move(primitive, ys, *balls, data=data, **params)


def take(primitive: Any, ys: Sequence[jax.Array], x: Ball, index: Ball, **params: Any) -> Sequence:
    """Out-of-range reads fill with a constant, whose radius is zero."""
    if "fill_value" in params:
        params["fill_value"] = None if x.radius is None else (0.0 if is_float(x.value) else False)
    return move(primitive, ys, x, index, data=1, **params)


def convert(primitive: Any, ys: Sequence[jax.Array], x: Ball, **params: Any) -> Sequence:
    """Narrowing rounds once; integers round beyond 2^p; truncation is undecided when x - e and x + e truncate apart."""
    (y,) = ys
    if not is_float(y):
        if x.radius is None or not is_float(x.value):
            return [x.radius]
        if y.dtype == jnp.bool_:
            return [(x.radius > 0) & (jnp.abs(x.value) <= x.radius)]
        reach = x.radius + jnp.where(x.radius > 0, 2 * unit(x.value) * jnp.abs(x.value), 0.0)
        return [(jnp.trunc(x.value - reach) != jnp.trunc(x.value + reach)) | ~jnp.isfinite(reach)]
    if not is_float(x.value):
        bits = 1 if x.value.dtype == jnp.bool_ else jnp.iinfo(x.value.dtype).bits
        own = jnp.where(jnp.abs(y) * unit(y) >= 0.5, unit(y) * jnp.abs(y), 0.0) if bits > jnp.finfo(y.dtype).nmant else None
        if x.radius is None:
            return [own]
        return [jnp.where(x.radius, 1.0 if bits == 1 else jnp.inf, 0.0 if own is None else own).astype(y.dtype)]
    wider = jnp.finfo(y.dtype).nmant >= jnp.finfo(x.value.dtype).nmant
    if wider:
        return [None if x.radius is None else x.radius.astype(y.dtype)]
    carried = radius_of(x).astype(y.dtype)
    own = jnp.where(y.astype(x.value.dtype) == x.value, 0.0, unit(y) * jnp.abs(y) + tiny(y))
    overflow = jnp.isinf(y) & ~jnp.isinf(x.value)
    radius = jnp.where(carried > 0, carried * (1 + 4 * unit(y)) + tiny(y), carried) + own
    return [jnp.where(overflow | jnp.isnan(y), jnp.inf, jnp.where(jnp.isinf(y), carried, radius))]


def steps(primitive: Any, ys: Sequence[jax.Array], x: Ball, **params: Any) -> Sequence:
    """A rising step function: the larger of h(x + e) - h(x) and h(x) - h(x - e)."""
    (y,) = ys
    if x.radius is None:
        return [None]
    reach = x.radius + jnp.where(x.radius > 0, 2 * unit(x.value) * jnp.abs(x.value), 0.0)
    rise = primitive.bind(x.value + reach, **params) - y
    fall = y - primitive.bind(x.value - reach, **params)
    return [jnp.where(jnp.isinf(y), x.radius, finite(y, jnp.where(reach == 0, 0.0, jnp.maximum(rise, fall))))]


def narrow(primitive: Any, ys: Sequence[jax.Array], x: Ball, *, mantissa_bits: int, **params: Any) -> Sequence:
    """reduce_precision: one rounding to the given number of bits."""
    (y,) = ys
    return [finite(y, radius_of(x) + 2.0 ** -(mantissa_bits + 1) * jnp.abs(y) * 1.01 + tiny(y))]


# --- choices ---------------------------------------------------------------------------------------------------------------


def choose(primitive: Any, ys: Sequence[jax.Array], which: Ball, *cases: Ball, **params: Any) -> Sequence:
    """The chosen radius; where the choice is undecided, the radius of the union of all cases about the computed one."""
    (y,) = ys
    if all(case.radius is None for case in cases):
        radius = None
    else:
        radius = primitive.bind(which.value, *(radius_of(case) for case in cases), **params)
    if which.radius is None:
        return [radius]
    mask = jnp.broadcast_to(which.radius, y.shape)
    if not is_float(y):
        return [mask | (False if radius is None else radius)]
    far = jnp.stack([jnp.where(case.value == y, 0.0, jnp.abs(case.value - y)) + radius_of(case) for case in cases])
    union = jnp.max(jnp.where(jnp.isnan(far), jnp.inf, far), axis=0)
    return [jnp.where(mask, union, 0.0 if radius is None else radius)]


def clamp(primitive: Any, ys: Sequence[jax.Array], low: Ball, x: Ball, high: Ball, **params: Any) -> Sequence:
    """clamp(low, x, high) = min(max(low, x), high)."""
    (y,) = ys
    if not is_float(y):
        return integers(primitive, ys, low, x, high)
    if low.radius is None and x.radius is None and high.radius is None:
        return [None]
    inner = jnp.maximum(low.value, x.value)
    return [smaller(y, Ball(inner, larger(inner, low, x)), high)]


def compare(primitive: Any, ys: Sequence[jax.Array], a: Ball, b: Ball, **params: Any) -> Sequence:
    mask = overlap(a, b)
    return [None if mask is None else jnp.broadcast_to(mask, ys[0].shape)]


def sign(primitive: Any, ys: Sequence[jax.Array], x: Ball, **params: Any) -> Sequence:
    """Certain where |x| > e."""
    if x.radius is None or not is_float(x.value):
        return [x.radius]
    return [jnp.where((x.radius == 0) | (jnp.abs(x.value) > x.radius), 0.0, 1 + jnp.abs(ys[0]))]


def same(primitive: Any, ys: Sequence[jax.Array], x: Ball, **params: Any) -> Sequence:
    """|-x|, |x|: the radius is unchanged."""
    return [x.radius]


def is_finite(primitive: Any, ys: Sequence[jax.Array], x: Ball, **params: Any) -> Sequence:
    return [None if x.radius is None else jnp.isinf(x.radius)]


def integers(primitive: Any, ys: Sequence[jax.Array], *balls: Ball, **params: Any) -> Sequence:
    """Integer and boolean arithmetic is exact: a result is undecided where an operand is."""
    radii = [b.radius for b in balls if b.radius is not None]
    if not radii:
        return [None for _ in ys]
    fits = all(r.shape in ((), ys[0].shape) for r in radii)
    mask = sum(radii[1:], radii[0]) if fits else jnp.any(jnp.stack([lost(r) for r in radii]))
    return [undecided(y, mask) for y in ys]


# --- reductions ------------------------------------------------------------------------------------------------------------


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
        radius = radius + (n - 1) * (unit(y) * jnp.sum(jnp.abs(x.value), axes) + jnp.where((y == 0) & jnp.all(x.value == 0, axes), 0.0, tiny(y)))
    truth = jnp.any(jnp.isinf(x.value), axes) & jnp.all(jnp.isfinite(e), axes)
    return [jnp.where(jnp.isinf(y) & truth, 0.0, finite(y, radius))]


def product(total: Callable, n: int, y: jax.Array, x: Ball) -> jax.Array:
    """prod(|x| + e) (1 + 2 n u) - prod |x|; no claim where a partial product may underflow."""
    size = total(jnp.abs(x.value))
    grown = size if x.radius is None else total(jnp.abs(x.value) + x.radius)
    spread = jnp.maximum(grown - size, 0.0)
    nonzero = total(jnp.where(jnp.abs(x.value) + radius_of(x) == 0, 0.0, 1.0).astype(y.dtype)) > 0
    least = total(jnp.minimum(jnp.abs(x.value), 1.0))
    spread = jnp.where(nonzero & (least < 4 * tiny(y)), jnp.inf, spread)
    return finite(y, spread + 2 * n * (unit(y) * grown + jnp.where(grown == 0, 0.0, tiny(y)) + tiny(y)))


def reduce_prod(primitive: Any, ys: Sequence[jax.Array], x: Ball, *, axes: Sequence[int], **params: Any) -> Sequence:
    if not is_float(ys[0]):
        return integers(primitive, ys, x)
    n = int(np.prod([x.value.shape[a] for a in axes], dtype=np.int64))
    return [product(lambda v: jnp.prod(v, tuple(axes)), n, ys[0], x)]


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
        best = jnp.max(v - x.radius, axes, keepdims=True)
        contender = (v + x.radius >= best) | jnp.isnan(v) | jnp.isnan(best)
        radius = jnp.max(jnp.where(contender, x.radius, 0.0), axes)
        return [jnp.where(jnp.isnan(y), jnp.inf, radius)]

    return rule


def winner(rising: float) -> Rule:
    """argmax: undecided when a second interval reaches the best lower end."""

    def rule(primitive: Any, ys: Sequence[jax.Array], x: Ball, *, axes: Sequence[int], **params: Any) -> Sequence:
        if x.radius is None:
            return [None]
        e = x.radius if is_float(x.value) else jnp.where(x.radius, jnp.inf, 0.0)
        v = rising * x.value.astype(e.dtype)
        best = jnp.max(v - e, tuple(axes), keepdims=True)
        rivals = jnp.sum((v + e >= best) & (e > 0), tuple(axes))
        certain = jnp.sum((v + e >= best), tuple(axes))
        return [(certain > 1) & (rivals > 0)]

    return rule


def any_undecided(primitive: Any, ys: Sequence[jax.Array], x: Ball, *, axes: Sequence[int], **params: Any) -> Sequence:
    return [None if x.radius is None else jnp.any(x.radius, tuple(axes))]


def cumulative(kind: str) -> Rule:
    """Running sums, products, extremes and logarithms of sums: the reduction's bound at every prefix."""

    def rule(primitive: Any, ys: Sequence[jax.Array], x: Ball, *, axis: int, reverse: bool, **params: Any) -> Sequence:
        (y,) = ys
        if not is_float(y):
            return integers(primitive, ys, x)
        n, e = y.shape[axis], radius_of(x)
        if kind == "sum":
            running = lax.cumsum(e, axis, reverse) + n * unit(y) * lax.cumsum(jnp.abs(x.value), axis, reverse) + n * tiny(y)
            return [finite(y, running)]
        if kind == "prod":
            return [product(lambda v: lax.cumprod(v, axis, reverse), n, y, x)]
        widest = lax.cummax(e, axis, reverse)
        if kind == "extreme":
            return [None if x.radius is None else jnp.where(jnp.isnan(y), jnp.inf, widest)]
        levels = 2 * int(np.ceil(np.log2(n + 1)))
        size = lax.cummax(jnp.where(jnp.isinf(x.value), 0.0, jnp.abs(x.value)), axis, reverse) + np.log(n + 1.0)
        radius = finite(y, widest + levels * 8 * unit(y) * (size + 1))
        return [jnp.where(jnp.isneginf(y) & (lax.cumsum(e, axis, reverse) == 0), 0.0, radius)]

    return rule


def sort(primitive: Any, ys: Sequence[jax.Array], *balls: Ball, dimension: int, num_keys: int, **params: Any) -> Sequence:
    """Order statistics are Lipschitz: sorted keys have the widest radius; what travels with them is decided by the gaps."""
    if all(b.radius is None for b in balls):
        return [None for _ in ys]
    keys = [b.radius for b in balls[:num_keys] if b.radius is not None]
    if not keys or num_keys > 1 or not is_float(balls[0].value):
        mask = jnp.any(jnp.stack([lost(b.radius) for b in balls if b.radius is not None]))
        return [undecided(y, mask) for y in ys]
    widest = jnp.max(keys[0], dimension, keepdims=True)
    near = jnp.diff(ys[0], axis=dimension) <= 2 * widest
    pad = [(0, 0)] * ys[0].ndim
    before, after = list(pad), list(pad)
    before[dimension], after[dimension] = (1, 0), (0, 1)
    mixed = (jnp.pad(near, before) | jnp.pad(near, after)) & (widest > 0)
    radii = [jnp.broadcast_to(widest, ys[0].shape)]
    for y, b in zip(ys[1:], balls[1:], strict=True):
        spread = jnp.max(b.value, dimension, keepdims=True) - jnp.min(b.value, dimension, keepdims=True) if is_float(y) else None
        own = None if b.radius is None else jnp.max(b.radius, dimension, keepdims=True) if is_float(y) else jnp.any(b.radius, dimension, keepdims=True)
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


# --- products of arrays -----------------------------------------------------------------------------------------------------


def bilinear(length: Callable[..., int]) -> Rule:
    """|A| (e_B + n u |B|) + e_A (|B| + e_B) for every product that sums n terms."""

    def rule(primitive: Any, ys: Sequence[jax.Array], a: Ball, b: Ball, **params: Any) -> Sequence:
        (y,) = ys
        if not is_float(y):
            return integers(primitive, ys, a, b)
        n = length(a.value, b.value, **params)
        x, z = jnp.abs(a.value), jnp.abs(b.value)
        wide = n * unit(y) * z if b.radius is None else b.radius + n * unit(y) * z
        radius = primitive.bind(x, wide.astype(z.dtype), **params) + n * tiny(y)
        if a.radius is not None:
            radius = radius + primitive.bind(a.radius, z if b.radius is None else z + b.radius, **params)
        return [finite(y, radius)]

    return rule


def contracted(a: jax.Array, b: jax.Array, *, dimension_numbers: Any, **params: Any) -> int:
    """The number of terms in each sum of a dot_general."""
    return int(np.prod([a.shape[i] for i in dimension_numbers[0][0]], dtype=np.int64)) + 1


def window(a: jax.Array, b: jax.Array, *, dimension_numbers: Any, **params: Any) -> int:
    """The number of terms in each sum of a convolution."""
    return int(np.prod(b.shape)) // b.shape[dimension_numbers.rhs_spec[0]] + 1


def scatter(primitive: Any, ys: Sequence[jax.Array], x: Ball, index: Ball, updates: Ball, **params: Any) -> Sequence:
    """Overwriting moves the radii as it moves the values."""
    if x.radius is None and updates.radius is None:
        return move(primitive, ys, index, data=0, **params)
    if not is_float(ys[0]):
        return integers(primitive, ys, x, index, updates)
    radius = primitive.bind(radius_of(x), index.value, radius_of(updates), **params)
    return [radius if index.radius is None else jnp.where(lost(index.radius), jnp.inf, radius)]


def scatter_add(primitive: Any, ys: Sequence[jax.Array], x: Ball, index: Ball, updates: Ball, **params: Any) -> Sequence:
    """Sums of unknown length: count the terms that land on each place."""
    (y,) = ys
    if not is_float(y):
        return integers(primitive, ys, x, index, updates)

    def put(v: jax.Array, w: jax.Array) -> jax.Array:
        return primitive.bind(v, index.value, w, **params)

    count = put(jnp.zeros_like(x.value), jnp.ones_like(updates.value))
    size = put(jnp.abs(x.value), jnp.abs(updates.value))
    radius = put(radius_of(x), radius_of(updates)) + count * (unit(y) * size + jnp.where(size == 0, 0.0, tiny(y)))
    radius = jnp.where(jnp.isinf(y) & (count == 0), radius_of(x), finite(y, radius))
    return [radius if index.radius is None else jnp.where(lost(index.radius), jnp.inf, radius)]


MOVES = (
    "broadcast_in_dim concatenate copy device_put name optimization_barrier pad reshape rev slice split squeeze stack "
    "stop_gradient tile transpose unstack"
)
COMPARISONS = "eq eq_to ge gt le le_to lt lt_to ne"
INTEGERS = (
    "and bitcast_convert_type clz mulhi not or population_count shift_left shift_right_arithmetic shift_right_logical xor "
    "random_bits random_fold_in random_seed random_split random_unwrap random_wrap threefry2x32 iota platform_index"
)

ARRAYS: dict[str, Rule] = {
    **dict.fromkeys(MOVES.split(), moves(None)),
    **dict.fromkeys(COMPARISONS.split(), compare),
    **dict.fromkeys(INTEGERS.split(), integers),
    "dynamic_slice": moves(1),
    "dynamic_update_slice": moves(2),
    "gather": take,
    "scatter": scatter,
    "scatter-add": scatter_add,
    "scatter-sub": scatter_add,
    "convert_element_type": convert,
    "floor": steps,
    "ceil": steps,
    "round": steps,
    "reduce_precision": narrow,
    "select_n": choose,
    "clamp": clamp,
    "sign": sign,
    "abs": same,
    "neg": same,
    "is_finite": is_finite,
    "reduce_sum": reduce_sum,
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
