"""One small program for every rule of the rounding tables: compiled, mapped over a batch, and as numpy runs it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.scipy import linalg

from diffeq_gen.proof.rounding import bounded, primitives


def floored(x: jax.Array) -> jax.Array:
    return jnp.floor(1.1 * x).astype(jnp.int32)


A, V, W, T = np.eye(3) + 0.3, np.array([0.3, 0.7, 0.2]), np.array([2.0, 0.5, 4.0]), np.array([0.5, 1.5, 2.5])
RULES: dict[str, tuple[Callable, tuple]] = {
    **{name: (getattr(lax, name), (V,)) for name in (
        "exp exp2 expm1 log log1p sin cos tan asin acos atan sinh cosh tanh asinh atanh logistic erf erfc erf_inv sqrt "
        "rsqrt cbrt square lgamma digamma floor ceil round abs neg sign is_finite").split()},
    "acosh": (lax.acosh, (1 + V,)),
    "log2": (lambda x: lax.log2(x), (V,)),
    "one_minus_square": (lambda x: lax.one_minus_square(x), (V,)),
    "polynomial": (lambda x: lax.polynomial(x, (1.0, 2.0, 3.0)), (V,)),
    **{name: (getattr(lax, name), (V, W)) for name in (
        "add sub mul div max min pow atan2 rem nextafter eq ge gt le lt ne".split())},
    "integer_pow": (lambda x: lax.integer_pow(x, -3), (V,)),
    "add_any": (lambda x: jax.grad(lambda y: jnp.sum(y * jnp.sin(y)))(x), (V,)),
    "clamp": (lax.clamp, (V, W, T)),
    "select_n": (lambda x, y: lax.select(x < y, x, y), (V, W)),
    "convert_element_type": (lambda x: x.astype(jnp.int32).astype(jnp.float32), (W,)),
    "reduce_precision": (lambda x: lax.reduce_precision(x, 8, 7), (V,)),
    "bitcast_convert_type": (lambda x: lax.bitcast_convert_type(x, jnp.int32), (np.float32(V),)),
    "broadcast_in_dim": (lambda x: jnp.broadcast_to(x * x, (2, 3)), (V,)),
    "concatenate": (lambda x, y: jnp.concatenate([x * x, y]), (V, W)),
    "copy": (lambda x: jnp.copy(x * x), (V,)),
    "device_put": (lambda x: jax.device_put(x * x), (V,)),
    "name": (lambda x: checkpoint_name(x * x, "x"), (V,)),
    "optimization_barrier": (lambda x: lax.optimization_barrier(x * x), (V,)),
    "pad": (lambda x: lax.pad(x * x, jnp.zeros((), x.dtype), [(1, 1, 0)]), (V,)),
    "reshape": (lambda x: jnp.reshape(x * x, (3, 3)), (np.tile(V, 3),)),
    "rev": (lambda x: lax.rev(x * x, (0,)), (V,)),
    "slice": (lambda x: lax.slice(x * x, (0,), (2,)), (V,)),
    "split": (lambda x: jnp.split(x * x, 3), (V,)),
    "squeeze": (lambda x: jnp.squeeze((x * x)[None], 0), (V,)),
    "stack": (lambda x: jnp.stack([x * x, x]), (V,)),
    "unstack": (lambda x: list(x * x), (V,)),
    "stop_gradient": (lambda x: lax.stop_gradient(x * x), (V,)),
    "tile": (lambda x: jnp.tile(x * x, 2), (V,)),
    "transpose": (lambda x: jnp.transpose(x * x), (A,)),
    "dynamic_slice": (lambda x: lax.dynamic_slice(x * x, (1,), (2,)), (V,)),
    "dynamic_update_slice": (lambda x, y: lax.dynamic_update_slice(x * x, y[:1], (1,)), (V, W)),
    "gather": (lambda x: (x * x)[jnp.asarray([0, 2])], (V,)),
    "scatter": (lambda x: (x * x).at[jnp.asarray([0, 2])].set(x[:2]), (V,)),
    "scatter-add": (lambda x: (x * x).at[jnp.asarray([0, 0])].add(x[:2]), (V,)),
    "scatter-sub": (lambda x: (x * x).at[jnp.asarray([0, 0])].subtract(x[:2]), (V,)),
    "reduce_sum": (lambda x: jnp.sum(x * x), (V,)),
    "psum": (lambda x: jax.vmap(lambda x: lax.psum(x * x, "lane"), axis_name="lane", out_axes=None)(x), (V,)),
    "reduce_prod": (lambda x: jnp.prod(x * x), (V,)),
    "reduce_max": (lambda x: jnp.max(x * x), (V,)),
    "reduce_min": (lambda x: jnp.min(x * x), (V,)),
    "argmax": (lambda x: jnp.argmax(x * x), (V,)),
    "argmin": (lambda x: jnp.argmin(x * x), (V,)),
    "reduce_and": (lambda x: jnp.all(x * x > 0), (V,)),
    "reduce_or": (lambda x: jnp.any(x * x > 0), (V,)),
    "reduce_xor": (lambda x: lax.reduce_xor(x * x > 0, (0,)), (V,)),
    "cumsum": (lambda x: lax.cumsum(x * x), (V,)),
    "cumprod": (lambda x: lax.cumprod(x * x), (V,)),
    "cummax": (lambda x: lax.cummax(x * x), (V,)),
    "cummin": (lambda x: lax.cummin(x * x), (V,)),
    "cumlogsumexp": (lambda x: lax.cumlogsumexp(x * x), (V,)),
    "sort": (lambda x, y: lax.sort((x * x, y * y), num_keys=1), (V, W)),
    "top_k": (lambda x: lax.top_k(x, 2), (V,)),
    "dot_general": (lambda a, x: (a * a) @ (x * x), (A, V)),
    "conv_general_dilated": (lambda x: jnp.convolve(x * x, x), (V,)),
    "cholesky": (lambda a: jnp.linalg.cholesky(a * a), (A,)),
    "lu": (lambda a: jnp.linalg.slogdet(a * a), (A,)),
    "triangular_solve": (lambda a, x: linalg.solve_triangular(a, x * x), (A, V)),
    "eigh": (lambda a: jnp.linalg.eigh(a * a)[0], (A,)),
    "custom_linear_solve": (lambda a, x: jnp.linalg.solve(a * a, x), (A, V)),
    "scan": (lambda x: lax.scan(lambda c, v: (c * v, c), jnp.ones((), x.dtype), x), (V,)),
    "while": (lambda x: lax.while_loop(lambda c: c[0] < 1, lambda c: c * 1.5 + x[0], x), (V,)),
    "cond": (lambda x: lax.cond(x[0] * x[1] > 0.2, jnp.sin, jnp.cos, x), (V,)),
    "jit": (lambda x: jax.jit(jnp.sin)(x), (V,)),
    "custom_jvp_call": (lambda x: jax.nn.relu(x * x), (V,)),
    "custom_vjp_call": (lambda x: OWN_SLOPE(x * x), (V,)),
    "remat2": (lambda x: jax.checkpoint(jnp.sin)(x * x), (V,)),
    "random_bits": (lambda x: x * jax.random.uniform(jax.random.fold_in(jax.random.split(jax.random.key(0))[1], 3), (3,), x.dtype), (V,)),
    "threefry2x32": (lambda x: x * jax.random.uniform(jax.random.PRNGKey(0), (3,), x.dtype), (V,)),
    "and": (lambda x: (x * x > 0.1) & ~(x > 0.25) | (x < 0.35) ^ (x > 0.55), (V,)),
    "shift_left": (lambda x: lax.population_count((floored(x) << 2) >> 1) * lax.clz(floored(x)), (W,)),
    "shift_right_logical": (lambda x: lax.shift_right_logical(floored(x), floored(x)), (W,)),
    "mulhi": (lambda x: lax.mulhi(floored(x), floored(x)), (W,)),
    "platform_index": (lambda x: jnp.diagonal(x * x), (A,)),
    "iota": (lambda x: x * jnp.arange(3, dtype=x.dtype), (V,)),
}  # fmt: skip

OWN_SLOPE = jax.custom_vjp(jnp.sin)
OWN_SLOPE.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (g * jnp.cos(x),))

ALIKE = set(
    "call call_hi_primitive checkpoint closed_call composite core_call eq_to eval_jaxpr le_to lt_to not or pjit random_fold_in "
    "random_seed random_split random_unwrap random_wrap remat shift_right_arithmetic population_count clz xor".split()
)
"""Names of one version of jax, or exercised inside another entry."""


OTHER = ("bitcast_convert_type", "nextafter", "reduce_precision", "random_bits", "threefry2x32")
"""Another function in float64 than in float32."""


NEW = ("log2", "one_minus_square", "polynomial")
"""Primitives that jax 0.10 does not have."""


def covers(value: Any, bound: Any, exact: Any) -> bool:
    """Whether no leaf of value is further from exact than its bound."""
    parts = zip(*map(jax.tree.leaves, (value, bound, exact)), strict=True)
    triples = (tuple(np.asarray(leaf, np.float64) for leaf in leaves) for leaves in parts)
    return all(bool(np.all((x == y) | (np.abs(x - y) <= e))) for x, e, y in triples)


def test_every_rule_is_exercised() -> None:
    """The table and this page name the same primitives."""
    assert primitives() - RULES.keys() - ALIKE == set()
    assert RULES.keys() - primitives() == set()


@pytest.mark.parametrize("name", [name for name in RULES if name not in NEW or hasattr(lax, name)])
def test_rule(name: str) -> None:
    """Compiled, mapped and as numpy runs it, the bound of every rule covers the distance to float64."""
    f, arguments = RULES[name]
    single = [np.asarray(a, np.float32) for a in arguments]
    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        exact = f(*(jnp.asarray(a, None if name in OTHER else jnp.float64) for a in single))
        mapped = jax.jit(jax.vmap(bounded(f)))(*(np.stack([a, a]) for a in single))
        known = bounded(f)(*map(jnp.asarray, single))
    value, bound = jax.tree.map(lambda leaf: leaf[1], mapped)
    if name not in OTHER:
        assert covers(value, bound, exact)
    assert covers(value, bound, known[0]) or name == "eigh"
    for part, whole in zip(jax.tree.leaves(bound), jax.tree.leaves(known[1]), strict=True):
        assert np.all(np.isfinite(part)) and np.shape(part) == np.shape(whole)
