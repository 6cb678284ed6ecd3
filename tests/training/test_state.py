"""The state of a run: the average begins at the parameters, is theirs alone, and warms up to its decay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffeq_gen.training.state import ema_decay, initial

PARAMS = {"w": np.array([1.0, -2.0], np.float32)}


def test_the_average_begins_at_the_parameters_but_is_not_their_memory():
    params = jax.tree.map(jnp.asarray, PARAMS)
    state = initial(jax.random.key(0), params, optax.sgd(0.1))
    np.testing.assert_array_equal(state.ema["w"], PARAMS["w"])
    assert state.ema["w"].unsafe_buffer_pointer() != state.params["w"].unsafe_buffer_pointer()
    assert int(state.step) == 0 and state.step.dtype == jnp.int32


def test_the_average_of_a_constant_is_that_constant_and_of_a_jump_moves_monotonically():
    """With weights d_k the average is a convex combination of what it has seen."""
    seen, average = [1.0] * 5 + [2.0] * 50, 1.0
    path = []
    for step, value in enumerate(seen):
        d = float(ema_decay(jnp.int32(step), 0.9))
        average = d * average + (1 - d) * value
        path.append(average)
    assert path[:5] == [1.0] * 5 and np.all(np.diff(path[4:]) > 0) and 1.9 < path[-1] < 2


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_the_decay_rises_to_its_value_and_stays(decay):
    values = np.array([float(ema_decay(jnp.int32(step), decay)) for step in (0, 1, 10, 100, 10_000, 2_000_000)])
    assert np.all(np.diff(values) >= 0) and np.all(values <= np.float32(decay))
    assert values[-1] == np.float32(decay) and values[0] == np.float32(min(decay, 0.1))


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_a_decay_that_never_forgets_is_refused(decay):
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\), got decay="):
        ema_decay(jnp.int32(3), decay)
