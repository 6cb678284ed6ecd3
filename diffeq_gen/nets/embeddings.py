"""Embeddings: log-SNR as a vector, and a schedule under a network.

fourier(lambda)_k = (cos, sin)(omega_k lambda),   omega_k geometric from pi/(lambda_max - lambda_min) to pi
field(z, t)       = network(z / sqrt(alpha^2 + sigma^2), lambda(t))
"""

import math
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from diffeq_gen.clocks import log_snr as log_snr_of
from diffeq_gen.types import Field, Sample, Schedule, Time, require

__all__ = ["LOG_SNR_MAX", "LOG_SNR_MIN", "Net", "Params", "field", "fourier", "per_example"]

LOG_SNR_MIN, LOG_SNR_MAX = -20.0, 20.0

Params = Any
"""The variables of a network: a pytree of arrays."""


class Net(Protocol):
    """A Flax module, or anything with its two functions and the number of axes of one sample."""

    ndim: int

    def init(self, key: jax.Array, z: Sample, log_snr: jax.Array, /) -> Params:
        """Fresh variables for a batch shaped like z."""

    def apply(self, params: Params, z: Sample, log_snr: jax.Array, /) -> Sample:
        """The value predicted for every sample of the batch z."""


def fourier(
    log_snr: jax.Array, features: int, *, log_snr_min: float = LOG_SNR_MIN, log_snr_max: float = LOG_SNR_MAX
) -> jax.Array:
    """(cos, sin)(omega_k lambda) with omega_k geometric from pi/(log_snr_max - log_snr_min) to pi.  Vaswani et al. 2017, Sec. 3.5.

    Clipped to [log_snr_min, log_snr_max], so finite at t = 0 and t = 1.  The slowest wave tells the whole range apart,
    the fastest resolves a unit of log-SNR.  Shape (*log_snr.shape, features).
    Raises: ValueError where features is not even and at least 4, or the range is empty.
    """
    require(lambda n: n >= 4 and n % 2 == 0, "features must be even and at least 4", features=features)
    require(lambda low, high: low < high, "log_snr_min must be below log_snr_max",
            log_snr_min=log_snr_min, log_snr_max=log_snr_max)  # fmt: skip
    log_snr = jnp.clip(log_snr, log_snr_min, log_snr_max)
    omega = jnp.geomspace(math.pi / (log_snr_max - log_snr_min), math.pi, features // 2, dtype=log_snr.dtype)
    angles = jnp.expand_dims(log_snr - log_snr_min, -1) * omega.reshape((1,) * log_snr.ndim + omega.shape)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def per_example(log_snr: jax.Array, z: Sample) -> jax.Array:
    """log-SNR of shape (batch,), one for every sample of z, from a scalar or from a vector that has it already.

    Raises: ValueError where its length is not that of the batch.
    """
    log_snr = jnp.asarray(log_snr, z.dtype)
    require(lambda shape, batch: shape in ((), (batch,)), "log_snr must be a scalar or have one value per sample",
            log_snr_shape=log_snr.shape, batch=z.shape[0])  # fmt: skip
    return jnp.broadcast_to(log_snr, z.shape[:1])


def field(net: Net, params: Params, schedule: Schedule) -> Field:
    """(z, t) -> net(z / sqrt(alpha^2 + sigma^2), lambda(t)), for one sample or for any leading axes of samples.

    What `losses.loss` trains and `predictions.denoiser` reads.  The network sees the same input at the same log-SNR
    whatever the schedule, so one trained network serves every schedule that has its log-SNR range.
    Raises: ValueError where z has fewer axes than a sample of the network.
    """

    def value(z: Sample, t: Time) -> Sample:
        require(lambda axes, ndim: axes >= ndim, "z has fewer axes than one sample of the network",
                axes=z.ndim, ndim=net.ndim)  # fmt: skip
        alpha, sigma = schedule(t)
        norm = jnp.sqrt(alpha**2 + sigma**2).astype(z.dtype)
        batch = (z / norm).reshape(-1, *z.shape[z.ndim - net.ndim :])
        return net.apply(params, batch, log_snr_of(schedule, t).astype(z.dtype)).reshape(z.shape)

    return value
