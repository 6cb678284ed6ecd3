"""Training on many devices: N of them take the step that one would take on the whole batch.

    params - rate mean_i grad(loss_i) = params - rate grad(loss of the whole batch)

Plain gradient descent, for Adam divides a factor N away.  `jax.vmap` with the name of an axis stands for the devices:
what `jax.pmap` computes is that, on N of them, and `tests/training` runs both.
"""

import jax
import jax.numpy as jnp
import optax

from diffeq_gen import losses, predictions
from diffeq_gen.theorems.domains import positive, smooth_schedules, vectors
from diffeq_gen.theorems.registry import theorem
from diffeq_gen.training.state import initial
from diffeq_gen.training.step import update

__all__: list[str] = []

DEVICES, SHARE = 4, 2


def _objective(schedule):
    """v-prediction by tanh(z A + t b), whose noise and times follow from the index of a sample in the whole batch."""

    def one(params, x0, index, total):
        t = (index.astype(x0.dtype) + 0.5) / total
        eps = jnp.sin(3 * t + jnp.arange(x0.size, dtype=x0.dtype))
        network = lambda z, t: jnp.tanh(z @ params["matrix"] + t * params["bias"])  # noqa: E731
        return losses.denoising_loss(network, schedule, predictions.v, x0, eps, t)

    def objective(key, params, x0, indices, total):
        return jnp.mean(jax.vmap(lambda x0, index: one(params, x0, index, total))(x0, indices))

    return objective


def _start(matrix, bias, rate):
    params = {"matrix": matrix / 8, "bias": bias}
    return initial(jax.random.key(0), params, optax.sgd(rate))


def _on_devices(step, state, x0):
    """The step on every device with its share of the batch; what the first of them holds afterwards."""
    held = jax.vmap(step, axis_name="batch", in_axes=(None, 0))(state, x0.reshape(DEVICES, SHARE, -1))
    return jax.tree.map(lambda leaf: leaf[0], held)


@theorem(
    source="Goyal et al. 2017, Sec. 3.1; the pmap of JAX", schedule=smooth_schedules, matrix=vectors(2, 2), bias=vectors(2),
    x0=vectors(DEVICES * SHARE, 2), rate=positive("learning rate", 1e-3, 1.0), cases=300,
)  # fmt: skip
def data_parallel_step_is_the_whole_batch_step(schedule, matrix, bias, x0, rate):
    """One step of `update` on N devices, each with its share of the batch, is the step of one device on the whole batch: loss,
    parameters and their average."""
    objective, state = _objective(schedule), _start(matrix, bias, rate)
    shared, metrics = _on_devices(update(objective, optax.sgd(rate), axis_name="batch"), state, x0)
    whole, told = update(objective, optax.sgd(rate))(state, x0)
    by_hand = jax.tree.map(
        lambda old, slope: old - rate * slope,
        state.params,
        jax.grad(lambda params: objective(None, params, x0, jnp.arange(len(x0)), len(x0)))(state.params),
    )
    return (shared.params, shared.ema, metrics["loss"], whole.params), (by_hand, whole.ema, told["loss"], by_hand)


def _descended(state, rate, slope):
    return jax.tree.map(lambda old, new: old - rate * new, state.params, slope)


def _local(objective, x0):
    """The loss of a device's own share, as a function of the parameters."""
    indices = jax.lax.axis_index("batch") * SHARE + jnp.arange(SHARE, dtype=jnp.int32)
    return lambda params: objective(None, params, x0, indices, DEVICES * SHARE)


def _mistaken(schedule, matrix, bias, x0, rate, gradient):
    """The parameters after a step along another gradient, and after the right step."""
    objective, state = _objective(schedule), _start(matrix, bias, rate)
    step = lambda state, x0: _descended(state, rate, gradient(_local(objective, x0), state.params))  # noqa: E731
    return _on_devices(step, state, x0), update(objective, optax.sgd(rate))(state, x0)[0].params


@data_parallel_step_is_the_whole_batch_step.near_miss
def gradient_of_the_average(schedule, matrix, bias, x0, rate):
    """The gradient of the averaged loss: under pmap each device's own gradient, silently."""
    return _mistaken(schedule, matrix, bias, x0, rate,
                     lambda loss, params: jax.grad(lambda params: jax.lax.pmean(loss(params), "batch"))(params))  # fmt: skip


@data_parallel_step_is_the_whole_batch_step.near_miss
def sum_of_the_gradients(schedule, matrix, bias, x0, rate):
    """psum for pmean: a step N times too long, which Adam hides."""
    return _mistaken(schedule, matrix, bias, x0, rate,
                     lambda loss, params: jax.lax.psum(jax.grad(loss)(params), "batch"))  # fmt: skip
