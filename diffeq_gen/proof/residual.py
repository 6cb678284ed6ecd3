"""Two sides and the difference that rounding allows them.

residual(f) : case -> (|left - right|, bound, scale),       at the entry where it is largest in units of its bound
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from diffeq_gen.proof.either import either as jnp
from diffeq_gen.proof.rounding import bounded
from diffeq_gen.proof.rounding_rules import unit

__all__ = ["Residual", "compare", "residual", "same_structure", "truncations"]


class Residual(NamedTuple):
    """(max |left - right|, its rounding bound, |left| + |right|) at the element where residual / bound is worst."""

    residual: jax.Array
    bound: jax.Array
    scale: jax.Array


def residual(f: Callable) -> Callable:
    """residual(f)(*args) = (|left - right|, bound, scale) for f(*args) = (left, right) or (left, right, truncation).

    Truncation is a size added to the bound: one number, or one for every entry.  nan on either side gives residual inf
    against bound 0; infinities of one sign agree.  A bound comparable to the scale says nothing: look at both.
    Raises ValueError where the sides differ in structure or shape.
    """
    judge = bounded(f)

    @np.errstate(all="ignore")
    def judged(*args: Any) -> Residual:
        value, bound = judge(*args)
        if not isinstance(value, tuple) or len(value) not in (2, 3):
            got = jax.tree.structure(value)
            raise ValueError(f"sides must return (left, right) or (left, right, truncation), got {got}")
        same_structure(value[0], value[1])
        sides = [jax.tree.leaves(side) for side in (*value[:2], *bound[:2])]
        extra = [None] * len(sides[0]) if len(value) == 2 else truncations(value[0], value[2], bound[2])
        gaps = [compare(*leaf, more) for *leaf, more in zip(*sides, extra, strict=True) if leaf[0].size]
        if not gaps:
            return Residual(*(jnp.zeros(()) for _ in range(3)))
        dtype = functools.reduce(jnp.promote_types, (g.residual.dtype for g in gaps))
        columns = zip(*gaps, strict=True)
        flat = Residual(*(jnp.concatenate([jnp.ravel(part).astype(dtype) for part in parts]) for parts in columns))
        ratio = jnp.where(flat.residual == 0, 0.0, flat.residual / jnp.where(flat.bound > 0, flat.bound, 0.0))
        ratio = jnp.where(jnp.isinf(flat.bound), -1 / (1 + flat.scale), ratio)
        worst = jnp.argmax(ratio)
        return Residual(*(part[worst] for part in flat))

    return judged


def same_structure(left: Any, right: Any) -> None:
    """ValueError naming the first place where the two sides are not of one shape."""
    if jax.tree.structure(left) != jax.tree.structure(right):
        got = f"{jax.tree.structure(left)} and {jax.tree.structure(right)}"
        raise ValueError(f"left and right must have one structure, got {got}")
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(left), jax.tree.leaves(right), strict=True):
        if jnp.shape(a) != jnp.shape(b):
            where = jax.tree_util.keystr(path)
            got = f"left{where} {jnp.shape(a)} and right{where} {jnp.shape(b)}"
            raise ValueError(f"left and right must have one shape, got {got}")


def truncations(left: Any, truncation: Any, bound: Any) -> list[jax.Array]:
    """|truncation| + its own rounding bound, for each leaf of the left side."""
    sizes = jax.tree.leaves(jax.tree.map(lambda value, radius: jnp.abs(value) + radius, truncation, bound))
    leaves = jax.tree.leaves(left)
    if len(sizes) == 1 and sizes[0].ndim == 0:
        return [jnp.broadcast_to(sizes[0], leaf.shape) for leaf in leaves]
    same_structure(left, truncation)
    return sizes


def compare(a: jax.Array, b: jax.Array, da: jax.Array, db: jax.Array, more: jax.Array | None) -> Residual:
    """|a - b| against da + db + u |a - b| (+ truncation), entry by entry."""
    dtype = jnp.promote_types(da.dtype, db.dtype)
    a, b, da, db = (v.astype(dtype) for v in (a, b, da, db))
    gap = jnp.where(a == b, 0.0, jnp.abs(a - b))
    bound = da + db + jnp.where(jnp.isinf(gap), 0.0, unit(gap) * gap) + (0.0 if more is None else more.astype(dtype))
    broken = jnp.isnan(gap)
    scale = jnp.where(broken, jnp.inf, jnp.abs(a) + jnp.abs(b))
    return Residual(jnp.where(broken, jnp.inf, gap), jnp.where(broken, 0.0, bound), scale)
