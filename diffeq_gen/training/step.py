"""One update, on one device or on many: the same function, which knows only the name of an axis.

    g = mean over devices of grad(local loss),        params <- params + optimizer(g)

The gradient is averaged after it is taken: the gradient of an average is another thing under `pmap` (the local gradient,
silently) than under `shard_map`.  Noise and times follow the index of a sample in the whole batch, so that N devices
take the step that one device would.

Where the state remembers losses, the next times are asked at the density of least variance that these tell of, and the new losses,
summed over the devices, are remembered: t ~ h(seen),  seen <- decay seen + sum over devices of (1, l, l^2) of each bin.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffeq_gen.importance import Histogram, Seen
from diffeq_gen.training.state import State, ema_decay
from diffeq_gen.types import Sample, require

__all__ = ["Objective", "asked", "parallel", "update"]

Objective = Callable[..., Any]
"""(key, params, x0, indices, total) -> the mean loss of the samples `indices` of a batch of `total`; and, where times are learnt,
(key, params, x0, indices, total, density) -> (the mean of l/h, (times, losses l)) of times of this density."""

MEMORY, ENOUGH = 16384, 16
"""Of learnt times: a loss counts 1/e as much after so many others, and times are uniform until there are so many a bin."""

Update = Callable[[State, Sample], tuple[State, dict[str, jax.Array]]]


def asked(seen: Seen) -> Histogram:
    """The density at which the next batch is asked, whose times are stratified: uniform until enough is seen of every bin."""
    enough = jnp.sum(seen.counts) >= ENOUGH * seen.counts.size
    return seen.density(stratified=True, floor=jnp.where(enough, 0.1, 1.0))


def update(
    objective: Objective, optimizer: optax.GradientTransformation, *, decay: float = 0.999, axis_name: str | None = None
) -> Update:
    """(state, x0) -> (state, metrics), where x0 is this device's share of the batch along `axis_name`.

    Metrics: loss, the norm of the gradient, and whether both were finite.  The state moves also where they were not, so
    that nothing is hidden: the loop stops there.
    Theorems: data-parallel-step-is-the-whole-batch-step.
    """

    def step(state: State, x0: Sample) -> tuple[State, dict[str, jax.Array]]:
        devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
        place = 0 if axis_name is None else jax.lax.axis_index(axis_name)
        indices = place * x0.shape[0] + jnp.arange(x0.shape[0], dtype=jnp.int32)
        key = jax.random.fold_in(state.key, state.step)
        own = state.params
        if axis_name is not None:  # a copy that varies: `shard_map` sums the gradient of a shared one over the devices
            own = jax.tree.map(lambda leaf: jnp.where(place >= 0, leaf, leaf), own)
        total, learnt = devices * x0.shape[0], isinstance(state.seen, Seen)
        given = (asked(state.seen),) if learnt else ()
        spend = lambda params: objective(key, params, x0, indices, total, *given)  # noqa: E731
        value, slope = jax.value_and_grad(spend, has_aux=learnt)(own)
        seen = state.seen
        if learnt:
            value, told = value
            seen = seen.among(*told, axis_name, decay=math.exp(-total / MEMORY))
        if axis_name is not None:
            value, slope = jax.lax.pmean((value, slope), axis_name)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # optax promotes as it likes
            change, opt_state = optimizer.update(slope, state.opt_state, state.params)
        params = optax.apply_updates(state.params, change)
        d = ema_decay(state.step, decay)
        ema = jax.tree.map(lambda old, new: old + (1 - d).astype(old.dtype) * (new - old), state.ema, params)
        norm = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(slope)))
        metrics = {"loss": value, "gradient_norm": norm, "finite": jnp.isfinite(value) & jnp.isfinite(norm)}
        return State(state.step + 1, params, ema, opt_state, state.key, seen), metrics

    return step


def parallel(
    objective: Objective, optimizer: optax.GradientTransformation, *, decay: float = 0.999, devices: list[jax.Device] | None = None
) -> Update:  # fmt: skip
    """`update` through `jax.pmap` over all devices: (state, x0) -> (state, metrics), the batch split along its first axis.

    State in and out is the plain one, not a stacked copy for each device.
    Raises: ValueError where the batch does not divide by the number of devices.
    Theorems: data-parallel-step-is-the-whole-batch-step.
    """
    count = len(devices or jax.devices())
    local = [device for device in devices or jax.devices() if device.process_index == jax.process_index()]
    home = NamedSharding(Mesh(local, ("batch",)), PartitionSpec())
    mapped = jax.pmap(
        update(objective, optimizer, decay=decay, axis_name="batch"),
        axis_name="batch", in_axes=(None, 0), out_axes=(None, None), devices=devices,
    )  # fmt: skip

    def step(state: State, x0: Sample) -> tuple[State, dict[str, jax.Array]]:
        require(
            lambda size: size % len(local) == 0,
            f"the batch must divide by the {len(local)} local devices of {count}",
            size=x0.shape[0],
        )
        if getattr(state.step, "sharding", None) != home:  # where every step leaves it: else the second compiles anew
            state = jax.device_put(state, home)
        return mapped(state, x0.reshape(len(local), x0.shape[0] // len(local), *x0.shape[1:]))

    return step
