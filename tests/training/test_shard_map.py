"""The one step under `shard_map`, whichever way it accounts for what varies over devices, is the step of one device."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

from diffeq_gen import losses, predictions, schedules
from diffeq_gen.training.state import initial
from diffeq_gen.training.step import update

DEVICES = 8
RATE = optax.sgd(0.1)


def objective(key, params, x0, indices, total):
    def network(z, t):
        return jnp.tanh(z @ params["in"]) @ params["out"]

    return losses.loss(key, network, schedules.Cosine(), x0, prediction=predictions.v, indices=indices, total=total)


@pytest.mark.parametrize("check_vma", [True, False])
def test_shared_parameters_do_not_sum_their_gradient_over_devices(check_vma):
    """Unless made this device's own, parameters that all devices share move DEVICES times too far where check_vma holds."""
    with jax.enable_x64(True):
        shapes = {"in": (3, 8), "out": (8, 3)}
        params = {name: jax.random.normal(jax.random.key(i), shape) for i, (name, shape) in enumerate(shapes.items())}
        state = initial(jax.random.key(2), params, RATE)
        x0 = jax.random.normal(jax.random.key(3), (2 * DEVICES, 3)) + 1
        mesh = jax.make_mesh((DEVICES,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.devices()[:DEVICES])
        split = jax.shard_map(
            update(objective, RATE, axis_name="batch"), mesh=mesh, check_vma=check_vma,
            in_specs=(PartitionSpec(), PartitionSpec("batch")), out_specs=PartitionSpec(),
        )  # fmt: skip
        whole, _ = jax.jit(update(objective, RATE))(state, x0)
        parts, _ = jax.jit(split)(state, x0)
        for name, start in params.items():
            moved = float(jnp.max(jnp.abs(whole.params[name] - start)))
            bound = 64 * 2 * DEVICES * np.finfo(np.float64).eps * moved
            assert float(jnp.max(jnp.abs(whole.params[name] - parts.params[name]))) <= bound < moved
