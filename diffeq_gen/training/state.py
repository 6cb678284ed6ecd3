"""What training carries from step to step.

ema <- d ema + (1 - d) params,       d = min(decay, (1 + step) / (10 + step))
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from diffeq_gen.types import Key, require

__all__ = ["State", "ema_decay", "initial"]


class State(NamedTuple):
    """The whole of a training run: everything that must be saved for it to go on as if nothing had happened."""

    step: jax.Array
    params: Any
    ema: Any
    opt_state: Any
    key: Key
    seen: Any = ()
    """`importance.Seen`, where the density of the times is learnt; else nothing."""


def initial(key: Key, params: Any, optimizer: optax.GradientTransformation, *, seen: Any = ()) -> State:
    """The state before the first step; the average begins at the parameters."""
    return State(jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, params), optimizer.init(params), key, seen)


def ema_decay(step: jax.Array, decay: float) -> jax.Array:
    """d = min(decay, (1 + step)/(10 + step)): a short memory while the parameters still move fast.

    Raises: ValueError where decay lies outside [0, 1).
    """
    require(lambda decay: 0 <= decay < 1, "decay must lie in [0, 1)", decay=decay)
    step = step.astype(jnp.float32)
    return jnp.minimum(decay, (1 + step) / (10 + step))
