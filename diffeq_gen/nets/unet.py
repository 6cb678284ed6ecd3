"""A small U-Net: residual blocks down to a coarse grid and back, with the fine grids handed across.

down: h_0 -> h_1 -> ... -> h_L,     middle: attention at h_L,     up: [h, h_i] -> h for i = L ... 0
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffeq_gen.nets.embeddings import LOG_SNR_MAX, LOG_SNR_MIN, fourier, per_example
from diffeq_gen.types import Sample, require

__all__ = ["Attention", "Residual", "UNet"]


class UNet(nn.Module):
    """Ho et al. 2020, App. B, at the size of a laptop: `channels` of each resolution, finest first; zero at the start.

    A sample has the axes (height, width, channels); height and width must be divisible by 2^(len(channels) - 1).
    (32, 64) suits 8 x 8 pictures, (32, 64, 64) 28 x 28.
    Raises: ValueError where the sample is no such picture.
    """

    channels: tuple[int, ...] = (32, 64)
    blocks: int = 1
    attention: bool = True
    features: int = 64
    log_snr_min: float = LOG_SNR_MIN
    log_snr_max: float = LOG_SNR_MAX
    ndim: int = 3

    @nn.compact
    def __call__(self, z: Sample, log_snr: jax.Array) -> Sample:
        """The value predicted for every picture of the batch z: the shape of z."""
        coarsest = 2 ** (len(self.channels) - 1)
        require(lambda shape: len(shape) == 4 and shape[1] % coarsest == 0 and shape[2] % coarsest == 0,
                f"pictures must have the shape (batch, height, width, channels), sides divisible by {coarsest}",
                shape=z.shape)  # fmt: skip
        time = fourier(
            per_example(log_snr, z), self.features, log_snr_min=self.log_snr_min, log_snr_max=self.log_snr_max
        )
        time = nn.silu(nn.Dense(4 * self.channels[0])(time))
        h = nn.Conv(self.channels[0], (3, 3))(z)
        skips = [h]
        for level, width in enumerate(self.channels):
            if level:
                h = nn.Conv(width, (3, 3), strides=(2, 2))(h)
                skips.append(h)
            for _ in range(self.blocks):
                h = Residual(width)(h, time)
                skips.append(h)
        h = Residual(self.channels[-1])(h, time)
        if self.attention:
            h = Attention()(h)
            h = Residual(self.channels[-1])(h, time)
        for level, width in reversed(list(enumerate(self.channels))):
            for _ in range(self.blocks + 1):
                h = Residual(width)(jnp.concatenate([h, skips.pop()], axis=-1), time)
            if level:
                h = nn.Conv(self.channels[level - 1], (3, 3))(jnp.repeat(jnp.repeat(h, 2, axis=1), 2, axis=2))
        return nn.Conv(z.shape[-1], (3, 3), kernel_init=nn.initializers.zeros)(nn.silu(_norm(h)))


class Residual(nn.Module):
    """h + conv(silu((1 + scale) norm(conv(silu(norm h))) + shift)), with (scale, shift) linear in the time embedding."""

    width: int

    @nn.compact
    def __call__(self, h: jax.Array, time: jax.Array) -> jax.Array:
        """The picture h with `width` channels, at the noise level that `time` embeds."""
        scale, shift = jnp.split(nn.Dense(2 * self.width)(time)[:, None, None, :], 2, axis=-1)
        inner = nn.Conv(self.width, (3, 3))(nn.silu(_norm(h)))
        inner = nn.silu(_norm(inner) * (1 + scale) + shift)
        inner = nn.Conv(self.width, (3, 3), kernel_init=nn.initializers.zeros)(inner)
        return inner + (h if h.shape[-1] == self.width else nn.Dense(self.width)(h))


class Attention(nn.Module):
    """h + W softmax(q k^T / sqrt(d)) v over all pixels of h.  Vaswani et al. 2017, Eq. 1."""

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        """The picture h after every pixel has looked at every other."""
        flat = _norm(h).reshape(h.shape[0], -1, h.shape[-1])
        q, k, v = jnp.split(nn.Dense(3 * h.shape[-1])(flat), 3, axis=-1)
        seen = jax.nn.softmax(q @ jnp.swapaxes(k, 1, 2) / jnp.sqrt(q.shape[-1]).astype(q.dtype), axis=-1) @ v
        return h + nn.Dense(h.shape[-1], kernel_init=nn.initializers.zeros)(seen).reshape(h.shape)


def _norm(h: jax.Array) -> jax.Array:
    """Group norm with at most 8 groups of at least 4 channels."""
    groups = next(n for n in (8, 4, 2, 1) if h.shape[-1] % n == 0 and h.shape[-1] // n >= min(4, h.shape[-1]))
    return nn.GroupNorm(num_groups=groups)(h)
