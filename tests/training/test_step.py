"""N devices take the step that one device takes on the whole batch, to the last bits; the usual mistakes do not."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffeq_gen import importance, losses, predictions, schedules
from diffeq_gen.importance import Seen
from diffeq_gen.training.state import ema_decay, initial
from diffeq_gen.training.step import asked, parallel, update

DEVICES = 8
SCHEDULE = schedules.Cosine()
RATE = 0.1


def objective(key, params, x0, indices, total):
    """A small network written out, so that it runs in float64, in which the bounds below are sharp."""

    def network(z, t):
        return jnp.tanh(z @ params["in"] + t * params["time"]) @ params["out"]

    return losses.loss(key, network, SCHEDULE, x0, prediction=predictions.v, indices=indices, total=total)


def learning(key, params, x0, indices, total, density):
    """The same network, at times of a density that it is told."""

    def network(z, t):
        return jnp.tanh(z @ params["in"] + t * params["time"]) @ params["out"]

    settings = {"prediction": predictions.v, "indices": indices, "total": total, "density": density}
    told = losses.each(key, network, SCHEDULE, x0, **settings)
    return losses.averaged(*told, density=density), told


@pytest.fixture
def start():
    shapes = {"in": (3, 16), "time": (16,), "out": (16, 3)}
    params = {
        name: jax.random.normal(jax.random.key(i), shape, jnp.float64) / 2
        for i, (name, shape) in enumerate(shapes.items())
    }
    x0 = jax.random.normal(jax.random.key(1), (4 * DEVICES, 3), jnp.float64) * jnp.arange(1.0, 4.0)[None] + 1
    return initial(jax.random.key(2), params, optax.sgd(RATE)), x0


def distance(one, other):
    return max(
        float(jnp.max(jnp.abs(a - b))) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


def bound(state, other):
    """Sums of 32 terms in another order: 32 u of the largest change, with room for the rounding within each term."""
    moved = distance(state.params, other.params)
    return 64 * 32 * np.finfo(np.float64).eps * moved


def mapped(step, state, x0):
    """Under vmap with an axis name: pmap's meaning, on one device."""
    share = x0.reshape(DEVICES, -1, *x0.shape[1:])
    out = jax.vmap(step, axis_name="batch", in_axes=(None, 0))(state, share)
    return jax.tree.map(lambda leaf: leaf[0], out)


@pytest.mark.parametrize("count", [1, DEVICES])
def test_a_step_is_compiled_once(start, count):
    """The state as it was made and the state as a step leaves it lie differently: the second step must not compile anew."""
    chex.clear_trace_counter()
    state, x0 = start
    step = parallel(chex.assert_max_traces(objective, n=1), optax.sgd(RATE), devices=jax.local_devices()[:count])
    for _ in range(3):
        state, _ = step(state, x0)
    assert int(state.step) == 3


def test_pmap_on_eight_devices_is_one_device_on_the_whole_batch(start):
    state, x0 = start
    assert jax.local_device_count() >= DEVICES
    whole, metrics = jax.jit(update(objective, optax.sgd(RATE)))(state, x0)
    split, same = parallel(objective, optax.sgd(RATE), devices=jax.local_devices()[:DEVICES])(state, x0)
    assert distance(state.params, whole.params) > 0 and distance(whole.params, split.params) <= bound(state, whole)
    assert distance(whole.ema, split.ema) <= bound(state, whole)
    np.testing.assert_allclose(same["loss"], metrics["loss"], rtol=32 * 64 * np.finfo(np.float64).eps)
    assert int(split.step) == 1 and split.params.keys() == state.params.keys()


def test_the_same_step_under_vmap_is_the_same_step(start):
    state, x0 = start
    whole, _ = jax.jit(update(objective, optax.sgd(RATE)))(state, x0)
    lanes, _ = mapped(update(objective, optax.sgd(RATE), axis_name="batch"), state, x0)
    assert distance(whole.params, lanes.params) <= bound(state, whole)


def remembering(state, counts=20.0):
    """The state, with losses remembered of variances that rise from bin to bin, while their means fall."""
    bins, means = jnp.arange(1.0, 9.0), jnp.arange(8.0, 0.0, -1.0)
    return state._replace(seen=Seen(counts * jnp.ones(8), counts * means, counts * (means**2 + bins**2), losses.ENDS))


def test_learnt_times_are_the_same_on_one_device_and_on_eight(start):
    """Parameters, and what is remembered: sums over the devices of each bin, so that all ask at the same density next."""
    state, x0 = start
    state = remembering(state)
    whole, metrics = jax.jit(update(learning, optax.sgd(RATE)))(state, x0)
    split, same = parallel(learning, optax.sgd(RATE), devices=jax.local_devices()[:DEVICES])(state, x0)
    assert distance(state.params, whole.params) > 0 and distance(whole.params, split.params) <= bound(state, whole)
    np.testing.assert_allclose(same["loss"], metrics["loss"], rtol=32 * 64 * np.finfo(np.float64).eps)
    lanes = jax.vmap(update(learning, optax.sgd(RATE), axis_name="batch"), axis_name="batch", in_axes=(None, 0))
    held = lanes(state, x0.reshape(DEVICES, -1, 3))[0].seen
    for one, other, each in zip(*map(jax.tree.leaves, (whole.seen, split.seen, held)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
        np.testing.assert_array_equal(each, np.broadcast_to(each[:1], each.shape))
        np.testing.assert_allclose(each[0], one, rtol=1e-12)


def test_what_is_remembered_is_the_losses_at_the_times_that_were_asked(start):
    """Neither divided by the density nor of the last step alone: e^{-32/16384} of what was, and 32 new ones."""
    state, x0 = start
    state = remembering(state)
    density = asked(state.seen)
    np.testing.assert_allclose(density.heights, importance.optimal(jnp.arange(1.0, 9.0) ** 2).heights, rtol=1e-6)
    moved, metrics = jax.jit(update(learning, optax.sgd(RATE)))(state, x0)
    key = jax.random.fold_in(state.key, state.step)
    mean, told = learning(key, state.params, x0, jnp.arange(32), 32, density)
    by_hand = state.seen.noted(*told, decay=np.exp(-32 / 16384))
    for one, other in zip(*map(jax.tree.leaves, (moved.seen, by_hand)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], mean, rtol=1e-9)
    assert np.isclose(moved.seen.counts.sum(), 160 * np.exp(-32 / 16384) + 32)


def test_times_stay_uniform_until_enough_is_seen(start):
    state, _ = start
    few, enough = (asked(remembering(state, counts=counts).seen) for counts in (15.9, 16.0))
    np.testing.assert_allclose(few.relative(), 1.0, rtol=1e-6)
    assert enough.relative()[0] < 0.5 < 1.5 < enough.relative()[-1]
    np.testing.assert_allclose(asked(Seen.none()).relative(), 1.0, rtol=1e-6)


def local_gradient(state, x0):
    """The mistake of taking the gradient of the averaged loss under vmap or pmap: each lane keeps its own."""
    place = jax.lax.axis_index("batch")
    indices = place * x0.shape[0] + jnp.arange(x0.shape[0], dtype=jnp.int32)
    key = jax.random.fold_in(state.key, state.step)
    mean = lambda params: jax.lax.pmean(objective(key, params, x0, indices, DEVICES * x0.shape[0]), "batch")  # noqa: E731
    slope = jax.grad(mean)(state.params)
    return state._replace(params=jax.tree.map(lambda p, g: p - RATE * g, state.params, slope)), {}


def summed_gradient(state, x0):
    """psum for pmean: the gradient is DEVICES times too long, which Adam would hide and SGD does not."""
    place = jax.lax.axis_index("batch")
    indices = place * x0.shape[0] + jnp.arange(x0.shape[0], dtype=jnp.int32)
    key = jax.random.fold_in(state.key, state.step)
    slope = jax.grad(lambda params: objective(key, params, x0, indices, DEVICES * x0.shape[0]))(state.params)
    slope = jax.lax.psum(slope, "batch")
    return state._replace(params=jax.tree.map(lambda p, g: p - RATE * g, state.params, slope)), {}


def same_noise_everywhere(state, x0):
    """Every device draws the noise of the first."""
    key = jax.random.fold_in(state.key, state.step)
    slope = jax.grad(lambda params: objective(key, params, x0, jnp.arange(x0.shape[0]), DEVICES * x0.shape[0]))(
        state.params
    )
    slope = jax.lax.pmean(slope, "batch")
    return state._replace(params=jax.tree.map(lambda p, g: p - RATE * g, state.params, slope)), {}


@pytest.mark.parametrize("mistake", [local_gradient, summed_gradient, same_noise_everywhere])
def test_the_usual_mistakes_are_refuted(start, mistake):
    state, x0 = start
    whole, _ = jax.jit(update(objective, optax.sgd(RATE)))(state, x0)
    wrong, _ = mapped(mistake, state, x0)
    assert distance(whole.params, wrong.params) > 1e6 * bound(state, whole)


def test_the_average_follows_the_parameters(start):
    state, x0 = start
    moved, _ = jax.jit(update(objective, optax.sgd(RATE), decay=0.9))(state, x0)
    d = float(ema_decay(state.step, 0.9))
    assert np.isclose(d, 0.1)
    for old, new, mean in zip(*map(jax.tree.leaves, (state.ema, moved.params, moved.ema)), strict=True):
        np.testing.assert_allclose(mean, d * old + (1 - d) * new, rtol=1e-6, atol=1e-12)
    assert float(ema_decay(jnp.asarray(10**6), 0.9)) == pytest.approx(0.9)


def test_bad_batches_and_decays_are_named(start):
    state, x0 = start
    with pytest.raises(ValueError, match="the batch must divide by the 8 local devices of 8, got size=31"):
        parallel(objective, optax.sgd(RATE), devices=jax.local_devices()[:DEVICES])(state, x0[:31])
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\), got decay=1.0"):
        ema_decay(state.step, 1.0)
