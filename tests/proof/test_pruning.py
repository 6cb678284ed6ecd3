"""Pruning: the same values from fewer equations."""

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen.proof.pruning import evaluated, pruned
from diffeq_gen.proof.rounding import given, interpret
from diffeq_gen.schedules import Cosine, at

T, Z = jnp.asarray(0.3), jnp.asarray([0.5, -2.0])


def program(f, *args):
    return pruned(jax.make_jaxpr(f)(*args))


def names(f, *args):
    return [eqn.primitive.name for eqn in program(f, *args).eqns]


def test_what_is_said_twice_is_done_once_and_what_nobody_reads_is_not_done():
    once = names(lambda t: at(Cosine(), t).alpha, T)
    twice = names(lambda t: at(Cosine(), t).alpha * at(Cosine(), t).alpha, T)
    slopes = names(lambda t: at(Cosine(), t), T)
    assert twice == [*once, "mul"] and len(once) < len(slopes)


def test_calls_are_written_out_also_where_one_is_called_on_different_operands():
    inner = jax.jit(lambda x, y: (x - y, jnp.where(x > y, x, y)))
    assert names(lambda t: inner(t, 2 * t)[0] + inner(2 * t, t)[0] + inner(t, 2 * t)[0], T) == [
        "mul", "sub", "sub", "add", "add",
    ]  # fmt: skip


def test_constants_differ_where_their_bits_do():
    assert names(lambda t: (t * 0.0, t * -0.0, t * 0.0), T) == ["mul", "mul"]
    assert names(lambda z: (z * np.array([1.0, 2.0], z.dtype), z * np.array([1.0, 3.0], z.dtype)), Z).count("mul") == 2
    assert names(lambda z: (z**2, z**3, jnp.sum(z, axis=0), z**2), Z) == ["integer_pow", "integer_pow", "reduce_sum"]


def test_values_and_radii_are_those_of_the_whole():
    held = np.array([1.0, 3.0], Z.dtype)

    def f(z, t):
        def body(carry, x):
            return jnp.sin(carry) + x, carry * t

        last, rest = jax.lax.scan(body, t, z)
        p = jax.jit(at, static_argnums=0)(Cosine(), t)
        return p.alpha * z + p.sigma * held, last, rest, t, 2.0, jax.grad(lambda t: at(Cosine(), t).sigma * t)(t)

    closed = jax.make_jaxpr(f)(Z, T)
    short, balls = pruned(closed), [given(Z), given(T)]
    assert len(short.outvars) == len(closed.jaxpr.outvars)
    for ours, theirs in zip(evaluated(short, Z, T), jax.tree.leaves(f(Z, T)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-14)
    whole = interpret(closed.jaxpr, closed.consts, balls)
    for ours, theirs, value in zip(interpret(short, short.consts, balls), whole, jax.tree.leaves(f(Z, T)), strict=True):
        np.testing.assert_array_equal(ours.value, theirs.value)
        np.testing.assert_array_equal(ours.radius is None, theirs.radius is None)
        np.testing.assert_allclose(ours.value, value, rtol=1e-5)
        if ours.radius is not None:
            np.testing.assert_array_equal(ours.radius, theirs.radius)
