"""Factorisations: a small backward error, carried forward through the inverse of what was computed.

    L L^T = A + dA,  |dA| <= (n + 1) u |L| |L^T|                                     Higham 2002, Theorem 10.3
    dL = L Phi(G),  G = L^-1 dA L^-T,  Phi = the lower half with half the diagonal   Sun 1991; Higham 2002, section 10.1
    L U = P A + dA,  |dA| <= n u |L| |U|;  dL = L tril(G), dU = triu(G) U            Higham 2002, Theorem 9.3
    |x_hat - x| <= |T^-1| (n u |T| |x| + |dT| |x| + |db|)  for T x = b               Higham 2002, Theorem 8.5
    |w_hat - w| <= ||dA||,  |v_hat - v| <= 2 ||dA|| / gap                            Weyl 1912; Davis & Kahan 1970

First order in the perturbation, divided by 1 - kappa for what is left out; kappa >= 1 means no claim at all (inf).
Eigenvectors are compared up to the sign that the routine happens to choose; a pivot order is taken as computed.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax

from diffeq_gen.proof.either import either as jnp
from diffeq_gen.proof.rounding_arrays import finite
from diffeq_gen.proof.rounding_rules import Ball, radius_of, tiny, unit

__all__ = [
    "LINEAR",
    "cholesky",
    "eigh",
    "eye_like",
    "inverse",
    "linear_solve",
    "lu",
    "norm",
    "room",
    "triangular_solve",
    "turn",
]

RESERVE = 2.0


def turn(x: jax.Array) -> jax.Array:
    """The transpose of the last two axes."""
    return jnp.swapaxes(x, -1, -2)


def room(kappa: jax.Array) -> jax.Array:
    """1 / (1 - kappa), infinite from one on, with the reserve for the rounding of the bound's own inverse."""
    return RESERVE * jnp.where(kappa < 0.9, 1 / (1 - jnp.minimum(kappa, 0.9)), jnp.inf)


def norm(x: jax.Array) -> jax.Array:
    """The Frobenius norm, kept as a matrix of one entry."""
    return jnp.sqrt(jnp.sum(x * x, (-2, -1), keepdims=True))


def eye_like(x: jax.Array) -> jax.Array:
    """The unit matrix, in the shape of x."""
    return jnp.broadcast_to(jnp.eye(x.shape[-1], dtype=x.dtype), x.shape)


def inverse(t: jax.Array, *, lower: bool, unit_diagonal: bool = False) -> jax.Array:
    """|T^-1| of a triangular T."""
    return jnp.abs(
        lax.linalg.triangular_solve(t, eye_like(t), left_side=True, lower=lower, unit_diagonal=unit_diagonal)
    )


def cholesky(primitive: Any, ys: Sequence[jax.Array], a: Ball, **params: Any) -> Sequence:
    """|dL| <= |L| Phi(|L^-1| |dA| |L^-T|)."""
    (y,) = ys
    low = jnp.abs(jnp.tril(y))
    n = y.shape[-1]
    da = (n + 2) * unit(y) * low @ turn(low) + radius_of(a)
    back = inverse(jnp.tril(y), lower=True)
    g = back @ jnp.maximum(da, turn(da)) @ turn(back)
    half = jnp.tril(g) * (1 - 0.5 * jnp.eye(n, dtype=y.dtype))
    bound = finite(y, low @ half * room(2 * norm(g)) + tiny(y))
    return [jnp.where(jnp.tri(n, dtype=bool), bound, jnp.where(y == 0, 0.0, bound))]


def lu(primitive: Any, ys: Sequence[jax.Array], a: Ball, **params: Any) -> Sequence:
    """|dL| <= |L| tril(G, -1), |dU| <= triu(G) |U| with G = |L^-1| |dA| |U^-1|; the pivots are taken as computed."""
    y, _, permutation = ys
    n = y.shape[-1]
    if y.shape[-2] != n:
        return [jnp.full_like(y, jnp.inf), None, None]
    low, up = jnp.tril(y, -1) + jnp.eye(n, dtype=y.dtype), jnp.triu(y)
    da = n * unit(y) * jnp.abs(low) @ jnp.abs(up) + jnp.take_along_axis(radius_of(a), permutation[..., None], -2)
    g = inverse(low, lower=True, unit_diagonal=True) @ da @ inverse(up, lower=False)
    bound = jnp.abs(low) @ jnp.tril(g, -1) + jnp.triu(g) @ jnp.abs(up)
    return [finite(y, bound * room(2 * norm(g)) + tiny(y)), None, None]


def triangular_solve(primitive: Any, ys: Sequence[jax.Array], a: Ball, b: Ball, **params: Any) -> Sequence:
    """|T^-1| (n u |T| |x| + e_T |x| + e_b), sides and transposes as in the call."""
    (y,) = ys
    left, lower, flip = params["left_side"], params["lower"], params["transpose_a"]
    part = jnp.tril if lower else jnp.triu
    t, dt = part(a.value), part(radius_of(a))
    if params["unit_diagonal"]:
        t, dt = part(t, -1 if lower else 1) + eye_like(t), part(dt, -1 if lower else 1)
    back = inverse(t, lower=lower, unit_diagonal=params["unit_diagonal"])
    t, dt, back = (turn(m) if flip != (not left) else m for m in (jnp.abs(t), dt, back))
    x, db = (jnp.abs(y), radius_of(b)) if left else (turn(jnp.abs(y)), turn(radius_of(b)))
    dt = dt + (t.shape[-1] + 1) * unit(y) * t
    kappa = jnp.max(jnp.sum(back @ dt, -1, keepdims=True), -2, keepdims=True)
    bound = back @ (dt @ x + db) * room(kappa) + tiny(y)
    return [finite(y, bound if left else turn(bound))]


def eigh(primitive: Any, ys: Sequence[jax.Array], a: Ball, **params: Any) -> Sequence:
    """Eigenvalues within ||dA||; eigenvectors within 2 ||dA|| / gap, never more than 2."""
    vectors, values = ys
    n = values.shape[-1]
    size = jnp.max(jnp.abs(values), -1, keepdims=True)
    da = 8 * n * unit(values) * size + norm(radius_of(a))[..., 0]
    gap = jnp.diff(values, axis=-1)
    far = jnp.full((*values.shape[:-1], 1), jnp.inf, values.dtype)
    gap = jnp.minimum(jnp.concatenate([far, gap], -1), jnp.concatenate([gap, far], -1))
    tilt = jnp.where(gap > 2 * da, 2 * da / (gap - 2 * da), 2.0) + 4 * n * unit(values)
    tilt = jnp.broadcast_to(jnp.minimum(tilt, 2.0)[..., None, :], vectors.shape)
    return [finite(vectors, tilt), finite(values, jnp.broadcast_to(da, values.shape))]


def linear_solve(
    x: jax.Array, b: Ball, matvec: Callable[[Ball], Ball], solve: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """|x - A^-1 b| <= |A^-1| (|b - A x| + its error): a posteriori, the inverse by solving for the identity."""
    image = matvec(Ball(x))
    gap = jnp.abs(b.value - image.value)
    gap = gap + radius_of(image) + radius_of(b) + unit(x) * (gap + jnp.abs(b.value))
    basis = jnp.eye(x.size, dtype=x.dtype).reshape((x.size, *x.shape))
    columns = jax.vmap(solve)(basis)
    images = jax.vmap(lambda column: matvec(Ball(column)))(columns)
    defect = jnp.abs(images.value - basis) + radius_of(images)
    kappa = jnp.max(jnp.sum(defect.reshape((x.size, x.size)), 0))
    bound = jnp.abs(columns).reshape((x.size, x.size)).T @ gap.reshape(x.size)
    return finite(x, bound.reshape(x.shape) * room(kappa) + tiny(x))


LINEAR: dict[str, Callable] = {"cholesky": cholesky, "lu": lu, "triangular_solve": triangular_solve, "eigh": eigh}
