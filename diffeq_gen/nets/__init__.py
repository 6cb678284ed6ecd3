"""Networks: a function of a noisy sample and its log-SNR, and nothing else.

    apply(params, z, log_snr) -> value,        z: (batch, *sample),   log_snr: () or (batch,)

A network never hears of a schedule.  `field` puts one under it: it reads log-SNR off the schedule and hands the network
the variance-preserving sample z / sqrt(alpha^2 + sigma^2), so that every schedule shows it the same pictures.
"""

from diffeq_gen.nets.embeddings import field, fourier
from diffeq_gen.nets.mlp import MLP
from diffeq_gen.nets.unet import UNet

__all__ = ["MLP", "UNet", "field", "fourier"]
