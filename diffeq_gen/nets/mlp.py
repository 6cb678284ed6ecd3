"""A residual multilayer perceptron: for points, vectors and very small pictures.

h <- h + W2 silu((1 + scale) norm(W1 ... h) + shift),        (scale, shift) linear in the embedding of log-SNR
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffeq_gen.nets.embeddings import LOG_SNR_MAX, LOG_SNR_MIN, fourier, per_example
from diffeq_gen.types import Sample

__all__ = ["MLP"]


class MLP(nn.Module):
    """Residual blocks on the flattened sample, each modulated by log-SNR (Perez et al. 2018, FiLM); zero at the start.

    `ndim` is the number of axes of one sample.  The last layer begins at zero, so an untrained network predicts zero.
    """

    width: int = 256
    depth: int = 3
    ndim: int = 1
    features: int = 64
    log_snr_min: float = LOG_SNR_MIN
    log_snr_max: float = LOG_SNR_MAX

    @nn.compact
    def __call__(self, z: Sample, log_snr: jax.Array) -> Sample:
        """The value predicted for every sample of the batch z: the shape of z."""
        batch = z.shape[0]
        time = fourier(
            per_example(log_snr, z), self.features, log_snr_min=self.log_snr_min, log_snr_max=self.log_snr_max
        )
        time = nn.silu(nn.Dense(self.width)(time))
        h = nn.Dense(self.width)(z.reshape(batch, -1))
        for _ in range(self.depth):
            scale, shift = jnp.split(nn.Dense(2 * self.width)(time), 2, axis=-1)
            inner = nn.silu(nn.LayerNorm(use_bias=False, use_scale=False)(h) * (1 + scale) + shift)
            inner = nn.silu(nn.Dense(self.width)(inner))
            h = h + nn.Dense(self.width)(inner)
        value = nn.Dense(z.size // batch, kernel_init=nn.initializers.zeros)(nn.silu(nn.LayerNorm()(h)))
        return value.reshape(z.shape)
