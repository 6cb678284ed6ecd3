"""Predictions cut to the range of the data: what guidance pushes out of it, no step needs to follow.

    clipped        x0_hat' = clip(x0_hat, -bound, bound)
    thresholded    x0_hat' = clip(x0_hat, -s, s) bound/s,        s = max(percentile of |x0_hat|, bound)

Each is a denoiser made of a denoiser, and any sampler takes it; eps_hat, and all else that is made of x0_hat, changes with it.
"""

import jax.numpy as jnp

from diffeq_gen.types import Denoiser, Sample, Time, require

__all__ = ["clipped", "thresholded"]


def clipped(denoise: Denoiser, *, bound: float = 1.0) -> Denoiser:
    """clip(x0_hat, -bound, bound), entry by entry.  Ho et al. 2020, code; 'static thresholding' of Saharia et al. 2022, Sec. 2.3.

    Raises: ValueError where bound is not positive.
    Theorems: thresholding-keeps-the-range.
    """
    _require_bound(bound)
    return lambda z, t: jnp.clip(denoise(z, t), -bound, bound)


def thresholded(denoise: Denoiser, *, share: float = 0.995, bound: float = 1.0) -> Denoiser:
    """clip(x0_hat, -s, s) bound/s, s the largest of bound and the `share`-quantile of |x0_hat|.  Saharia et al. 2022, Sec. 2.3.

    'Dynamic thresholding': a prediction that reaches far is cut and scaled back, one within the range is left alone.  The quantile
    is of all entries of one sample (many samples at once are jax.vmap), linear between two of them.
    Raises: ValueError where share lies outside [0, 1] or bound is not positive.
    Theorems: thresholding-keeps-the-range.
    """
    require(lambda share: 0 <= share <= 1, "share must lie in [0, 1]", share=share)
    _require_bound(bound)

    def cut(z: Sample, t: Time) -> Sample:
        x0 = denoise(z, t)
        reach = jnp.quantile(jnp.abs(x0), jnp.asarray(share, x0.dtype))
        s = jnp.maximum(reach, bound)
        return jnp.clip(x0, -s, s) * (bound / s)

    return cut


def _require_bound(bound: float) -> None:
    require(lambda bound: bound > 0, "bound must be positive", bound=bound)
