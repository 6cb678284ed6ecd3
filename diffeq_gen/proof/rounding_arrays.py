"""Moves, choices and conversions: operations that round nothing, or once.

    radius(move(x)) = move(radius(x))
    radius(select(c, x, y)) = radius of the chosen one; of the hull of both where the radii leave c undecided

Moore 1966, chapter 3, for the hull; Higham 2002, section 2.1, for conversions.  A rule takes the primitive, its
results, its operands as balls and its parameters, and returns one radius for each result.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from diffeq_gen.proof.either import apply as apply_primitive
from diffeq_gen.proof.either import either as jnp
from diffeq_gen.proof.either import is_traced
from diffeq_gen.proof.rounding_rules import Ball, is_float, larger, overlap, radius_of, smaller, tiny, unit

__all__ = [
    "ARRAYS",
    "choose",
    "clamp",
    "compare",
    "convert",
    "finite",
    "integers",
    "is_finite",
    "lost",
    "move",
    "moves",
    "narrow",
    "same",
    "scatter",
    "sign",
    "steps",
    "take",
    "undecided",
]

Rule = Callable[..., Sequence[jax.Array | None]]


def lost(mask: jax.Array) -> jax.Array:
    """True or infinite radius -> True: something upstream is undecided."""
    return jnp.any(mask) if mask.dtype == jnp.bool_ else jnp.any(mask > 0)


def undecided(y: jax.Array, mask: jax.Array) -> jax.Array:
    """The radius of a y that `mask` says could be another: infinite for floats, the mask itself for the rest."""
    shape = np.shape(y)
    return jnp.broadcast_to(jnp.where(mask, jnp.inf, 0.0).astype(y.dtype) if is_float(y) else mask, shape)


def finite(y: jax.Array, radius: jax.Array, *balls: Ball) -> jax.Array:
    """nan -> inf, and no claim about an infinite result."""
    radius = jnp.where(jnp.isnan(radius) | ~jnp.isfinite(y), jnp.inf, radius * (1 + 32 * unit(y)))
    return radius.astype(y.dtype)


# --- moves: the radii travel with the values -----------------------------------------------------------------------


def move(primitive: Any, ys: Sequence[jax.Array], *balls: Ball, data: int | None = None, **params: Any) -> Sequence:
    """The same primitive on the radii of the first `data` operands; an undecided index loses everything."""
    count = len(balls) if data is None else data
    index_radii = [lost(b.radius) for b in balls[count:] if b.radius is not None]
    if all(b.radius is None for b in balls[:count]):
        radii = [None for _ in ys]
    else:
        bound = apply_primitive(
            primitive, *(radius_of(b) for b in balls[:count]), *(b.value for b in balls[count:]), **params
        )
        radii = list(bound) if primitive.multiple_results else [bound]
        radii = [jnp.where(jnp.isnan(r), jnp.inf, r) if is_float(r) else r for r in radii]
    if index_radii:
        mask = jnp.any(jnp.stack(index_radii))
        radii = [
            undecided(y, mask) if r is None else jnp.where(mask, jnp.inf if is_float(y) else True, r)
            for y, r in zip(ys, radii, strict=True)
        ]
    return radii


def moves(data: int | None) -> Rule:
    """`move` for a primitive whose first `data` operands carry data."""
    return lambda primitive, ys, *balls, **params: move(primitive, ys, *balls, data=data, **params)


def take(primitive: Any, ys: Sequence[jax.Array], x: Ball, index: Ball, **params: Any) -> Sequence:
    """Out-of-range reads fill with a constant, whose radius is zero; an undecided index loses what is read there."""
    if "fill_value" in params:
        params["fill_value"] = None if x.radius is None else (0.0 if is_float(x.value) else False)
    (y,), (radius,) = ys, move(primitive, ys, x, Ball(index.value), data=1, **params)
    if index.radius is None:
        return [radius]
    mask = jnp.expand_dims(jnp.any(index.radius, -1), tuple(params["dimension_numbers"].offset_dims))
    known = undecided(y, mask)
    return [known if radius is None else jnp.where(mask, known, radius)]


def convert(primitive: Any, ys: Sequence[jax.Array], x: Ball, **params: Any) -> Sequence:
    """Narrowing rounds once; integers round beyond 2^p; truncation is undecided when x - e and x + e truncate apart."""
    (y,) = ys
    if not is_float(y):
        if x.radius is None or not is_float(x.value):
            return [x.radius]
        if y.dtype == jnp.bool_:
            return [(x.radius > 0) & (jnp.abs(x.value) <= 2 * x.radius)]
        reach = 2 * x.radius + jnp.where(x.radius > 0, 2 * unit(x.value) * jnp.abs(x.value), 0.0)
        return [(jnp.trunc(x.value - reach) != jnp.trunc(x.value + reach)) | ~jnp.isfinite(reach)]
    if not is_float(x.value):
        bits = 1 if x.value.dtype == jnp.bool_ else jnp.iinfo(x.value.dtype).bits
        own = (
            jnp.where(jnp.abs(y) * unit(y) >= 0.5, unit(y) * jnp.abs(y), 0.0)
            if bits > jnp.finfo(y.dtype).nmant
            else None
        )
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
    reach = 2 * x.radius + jnp.where(x.radius > 0, 2 * unit(x.value) * jnp.abs(x.value), 0.0)
    rise = apply_primitive(primitive, x.value + reach, **params) - y
    fall = y - apply_primitive(primitive, x.value - reach, **params)
    return [jnp.where(jnp.isinf(y), x.radius, finite(y, jnp.where(reach == 0, 0.0, jnp.maximum(rise, fall))))]


def narrow(primitive: Any, ys: Sequence[jax.Array], x: Ball, *, mantissa_bits: int, **params: Any) -> Sequence:
    """reduce_precision: one rounding to the given number of bits."""
    (y,) = ys
    return [finite(y, radius_of(x) + 2.0 ** -(mantissa_bits + 1) * jnp.abs(y) * 1.01 + tiny(y))]


# --- choices -------------------------------------------------------------------------------------------------------


def choose(primitive: Any, ys: Sequence[jax.Array], which: Ball, *cases: Ball, **params: Any) -> Sequence:
    """The chosen radius; where the choice is undecided, the radius of the union of all cases about the computed one."""
    (y,) = ys
    if all(case.radius is None for case in cases):
        radius = None
    else:
        radius = apply_primitive(primitive, which.value, *(radius_of(case) for case in cases), **params)
    if which.radius is None:
        return [radius]
    mask = jnp.broadcast_to(which.radius, y.shape)
    if not is_float(y):
        return [mask | (False if radius is None else radius)]
    far = jnp.stack([jnp.where(case.value == y, 0.0, jnp.abs(case.value - y)) + radius_of(case) for case in cases])
    union = jnp.max(jnp.where(jnp.isnan(far), jnp.inf, far), axis=0)
    return [jnp.where(mask, union, 0.0)] if radius is None else [jnp.where(mask, union + 2 * radius, radius)]


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
    """A comparison is undecided where the intervals overlap."""
    mask = overlap(a, b)
    if mask is not None and not is_traced([mask]) and not np.any(mask):
        mask = None
    return [None if mask is None else jnp.broadcast_to(mask, ys[0].shape)]


def sign(primitive: Any, ys: Sequence[jax.Array], x: Ball, **params: Any) -> Sequence:
    """Certain where |x| > e."""
    if x.radius is None or not is_float(x.value):
        return [x.radius]
    return [jnp.where((x.radius == 0) | (jnp.abs(x.value) > 2 * x.radius), 0.0, 2.0).astype(ys[0].dtype)]


def same(primitive: Any, ys: Sequence[jax.Array], x: Ball, **params: Any) -> Sequence:
    """|-x|, |x|: the radius is unchanged."""
    return [x.radius]


def is_finite(primitive: Any, ys: Sequence[jax.Array], x: Ball, **params: Any) -> Sequence:
    """Undecided where nothing is claimed of the value."""
    return [None if x.radius is None else jnp.isinf(x.radius)]


def integers(primitive: Any, ys: Sequence[jax.Array], *balls: Ball, **params: Any) -> Sequence:
    """Integer and boolean arithmetic is exact: a result is undecided where an operand is."""
    radii = [b.radius for b in balls if b.radius is not None]
    if not radii:
        return [None for _ in ys]
    fits = all(r.shape in ((), ys[0].shape) for r in radii)
    mask = sum(radii[1:], radii[0]) if fits else jnp.any(jnp.stack([lost(r) for r in radii]))
    return [undecided(y, mask) for y in ys]


def scatter(primitive: Any, ys: Sequence[jax.Array], x: Ball, index: Ball, updates: Ball, **params: Any) -> Sequence:
    """Overwriting moves the radii as it moves the values."""
    if x.radius is None and updates.radius is None:
        return move(primitive, ys, index, data=0, **params)
    if not is_float(ys[0]):
        return integers(primitive, ys, x, index, updates)
    radius = apply_primitive(primitive, radius_of(x), index.value, radius_of(updates), **params)
    return [radius if index.radius is None else jnp.where(lost(index.radius), jnp.inf, radius)]


MOVES = (
    "broadcast_in_dim concatenate copy device_put name optimization_barrier pad reshape rev slice split squeeze stack "
    "stop_gradient tile transpose unstack"
)
COMPARISONS = "eq eq_to ge gt le le_to lt lt_to ne"
INTEGERS = (
    "and bitcast_convert_type clz mulhi not or population_count shift_left shift_right_arithmetic shift_right_logical "
    "xor random_bits random_fold_in random_seed random_split random_unwrap random_wrap threefry2x32 iota platform_index"
)

ARRAYS: dict[str, Rule] = {
    **dict.fromkeys(MOVES.split(), moves(None)),
    **dict.fromkeys(COMPARISONS.split(), compare),
    **dict.fromkeys(INTEGERS.split(), integers),
    "dynamic_slice": moves(1),
    "dynamic_update_slice": moves(2),
    "gather": take,
    "scatter": scatter,
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
}
