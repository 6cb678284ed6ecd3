"""Newton's polynomial through what a solver has seen: F_0 where it stands, F_k at y_k from there.

    F(y)           = F_0 + F[0, y_1] y + F[0, y_1, y_2] y (y - y_1) + ...
    int F dw       = F_0 M_0 + F[0, y_1] C_1 + F[0, y_1, y_2] C_2 + ...
    M_k, C_k       = int y^k dw,    int y (y - y_1) ... (y - y_{k-1}) dw

A node that is not finite, or lies where another does, says nothing, and none after it does: their differences are zero.  Two
nodes in one place are what a step too short for its dtype leaves.
"""

import functools
import operator
from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp

__all__ = ["differences", "integral", "integrals", "polynomial", "shares"]


def differences(values: Sequence[jax.Array], nodes: Sequence[jax.Array]) -> list[jax.Array]:
    """[F_0, F[0, y_1], F[0, y_1, y_2], ...].

    Theorems: change-reads-nodes-in-any-order, deis-by-its-integral.
    """
    known, y = _seen(nodes)
    found, between = [values[0]], list(values)
    for k, seen in enumerate(known, start=1):
        gaps = [jnp.where(seen, high - low, 1) for seen, low, high in zip(known[k - 1 :], y, y[k:], strict=False)]
        between = [(b - a) / gap for (a, b), gap in zip(pairwise(between), gaps, strict=True)]
        found.append(jnp.where(seen, between[0], 0))
    return found


def shares(nodes: Sequence[jax.Array]) -> list[list[jax.Array]]:
    """What each value is given in each difference: differences(values)[k] = sum_{j <= k} shares[k][j] values[j].

    Where the nodes are small beside the values, of which each difference is then one sum.
    """
    known, y = _seen(nodes)
    one = jnp.ones_like(nodes[0]) if nodes else jnp.ones(())
    rows = [[one]]
    for k, seen in enumerate(known, start=1):
        gaps = [jnp.where(seen, y[k] - place, jnp.inf) for place in y[:k]]
        others = [-share / gap for share, gap in zip(rows[-1], gaps, strict=True)]
        rows.append([*others, functools.reduce(operator.truediv, gaps, one)])
    return rows


def integrals(nodes: Sequence[jax.Array], moments: Sequence[jax.Array]) -> list[jax.Array]:
    """[M_0, C_1, C_2, ...] from [M_0, M_1, M_2, ...].

    Theorems: change-reads-nodes-in-any-order, deis-by-its-integral.
    """
    found, basis = [moments[0]], [1.0]
    for place in _seen(nodes)[1][:-1]:
        basis = [low - place * high for low, high in zip([0.0, *basis], [*basis, 0.0], strict=True)]
        found.append(sum(part * moment for part, moment in zip(basis, moments, strict=False)))
    return found


def integral(
    values: Sequence[jax.Array], nodes: Sequence[jax.Array], moments: Sequence[jax.Array], *, pair: jax.Array | None = None
) -> jax.Array:  # fmt: skip
    """int (F - F_0) dw.

    `pair`, where given, is what a single difference is weighted by when two values are all there is.
    Theorems: change-reads-nodes-in-any-order, deis-by-its-integral.
    """
    (known, _), weights, total = _seen(nodes), integrals(nodes, moments), jnp.zeros_like(values[0])
    if pair is not None and nodes:
        weights[1] = pair if len(nodes) == 1 else jnp.where(known[1], weights[1], pair)
    for seen, weight, difference in zip(known, weights[1:], differences(values, nodes)[1:], strict=True):
        total = total + jnp.where(seen, weight * difference, 0)
    return total


def polynomial(divided: Sequence[jax.Array], nodes: Sequence[jax.Array], y: jax.Array) -> jax.Array:
    """F(y) from its differences, by Horner's rule."""
    total = divided[-1]
    for difference, place in zip(divided[-2::-1], _seen(nodes)[1][-2::-1], strict=True):
        total = difference + (y - place) * total
    return total


def _seen(nodes: Sequence[jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
    """(which nodes say something, 0 and the nodes with 0 for those that do not)."""
    known, seen = [], True
    for k, node in enumerate(nodes):
        seen = seen & jnp.isfinite(node) & (node != 0)
        for other in nodes[:k]:
            seen = seen & (node != other)
        known.append(seen)
    places = [jnp.where(seen, node, 0) for seen, node in zip(known, nodes, strict=True)]
    return known, [*map(jnp.zeros_like, places[:1]), *places]
