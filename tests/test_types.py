"""Points, pytrees, and the one check that all errors go through."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import checkify

from diffeq_gen import schedules
from diffeq_gen.types import checked_under_jit, concrete, dot, pytree, require, static


@pytree
class Noun:
    size: float
    shape: tuple = static(default=(2,))


def test_a_noun_is_a_frozen_pytree_that_prints_as_its_constructor_call():
    noun = Noun(1.5)
    assert repr(noun) == "Noun(size=1.5, shape=(2,))"
    assert jax.tree.leaves(noun) == [1.5]
    assert jax.tree.map(lambda leaf: 2 * leaf, noun).size == 3.0
    with pytest.raises(AttributeError):
        noun.size = 2.0


def test_nouns_pass_through_jit_without_recompiling_for_new_leaves():
    traces = []

    @jax.jit
    def read(schedule, t):
        traces.append(schedule)
        return schedule(t)[0]

    assert read(schedules.VP(0.1, 20.0), 0.5) != read(schedules.VP(0.2, 10.0), 0.5)
    assert len(traces) == 1


def test_require_names_the_value_and_passes_tracers():
    with pytest.raises(ValueError, match=r"eta must not be negative, got eta=-1\.0"):
        require(lambda eta: eta >= 0, "eta must not be negative", eta=-1.0)
    assert jax.jit(lambda eta: (require(lambda eta: eta >= 0, "no", eta=eta), eta)[1])(-1.0) == -1.0


def test_traced_values_are_checked_on_request():
    def read(t):
        return schedules.at(schedules.Flow(), t).alpha

    with checked_under_jit():
        error, _ = jax.jit(checkify.checkify(read))(2.0)
    assert "t must lie in [0, 1], got t=2.0" in error.get()
    with checked_under_jit():
        error, value = jax.jit(checkify.checkify(read))(0.25)
    assert error.get() is None and value == 0.75


def test_concrete_tells_tracers_from_values():
    seen = []
    jax.jit(lambda x: seen.append(concrete(x)) or x)(1.0)
    assert seen == [False] and concrete(1.0) and concrete(jnp.ones(2))


def test_a_point_has_log_snr_and_its_slope():
    p = schedules.at(schedules.Flow(), 0.25)
    assert jnp.allclose(p.log_snr, 2 * jnp.log(3.0)) and jnp.allclose(p.log_snr_dot, -2 / (0.25 * 0.75))
    assert schedules.at(schedules.Flow(), 0.0).log_snr == jnp.inf
    assert schedules.at(schedules.Flow(), 1.0).log_snr == -jnp.inf


def test_dot_is_the_product_and_asks_for_every_digit_also_of_its_slopes():
    a, b = jnp.arange(6.0).reshape(2, 3), jnp.ones((3, 1))
    assert dot(a, b).tolist() == [[3.0], [12.0]] and dot(a[0], b[:, 0]) == 3.0
    text = str(jax.make_jaxpr(jax.grad(lambda a: jnp.sum(dot(a, b))))(a))
    assert text.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == text.count("dot_general") > 0
