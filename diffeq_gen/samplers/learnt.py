"""What a denoiser has learnt of its data, asked of itself: their mean and covariance, where no data are at hand.

    Cov(x0_hat, z) = alpha C,        Cov(z) = alpha^2 C + sigma^2        z ~ p_t: given z, x0 and x0_hat have one mean
    K = Cov(x0_hat, z) Cov(z)^{-1}                                       the regression of predictions on inputs
    C = sigma^2/alpha K (1 - alpha K)^{-1},        m = (1 - alpha K)^{-1} (E[x0_hat] - K E[z])

That holds of any data.  z ~ p_t is not to be had without them, but nearly at high noise: N(alpha m, alpha^2 C + sigma^2), with m and C
of the round before.  On Gaussian data x0_hat is linear in z, and a regression is exact whatever it is shown.
"""

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen import clocks
from diffeq_gen.samplers.control import Control, count_of_axes, floored
from diffeq_gen.schedules import at
from diffeq_gen.types import Denoiser, Point, Sample, Schedule, dot, require

__all__ = ["control_from", "regressed"]


def regressed(x0: Sample, z: Sample, p: Point, shares: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(m, C) from predictions and inputs, rows (n, d), where a row counts for its share (n, 1) of one; C symmetric for z ~ p_t alone.

    Theorems: regression-of-a-denoiser-is-the-covariance.
    """
    mean_x, mean_z = (jnp.sum(shares * rows, axis=0) for rows in (x0, z))
    away = z - mean_z[None]
    k = jnp.linalg.solve(dot(away.T, shares * away), dot(away.T, shares * x0)).T
    rest = jnp.eye(len(k), dtype=k.dtype) - p.alpha * k
    return jnp.linalg.solve(rest, mean_x - dot(k, mean_z)), p.sigma**2 / p.alpha * jnp.linalg.solve(rest, k)


def control_from(
    denoise: Denoiser, schedule: Schedule, eps: Sample, *, scale: float = 1.0, noise: float = 5.0, rounds: int = 3, floor: float = 0.1,
    axes: int | None = None,
) -> Control:  # fmt: skip
    """The `control_of` a denoiser's own law: mean, principal axes and variances, no mixture; `rounds` evaluations of a batch.

    `axes` and floor are as there: of more than 256 dimensions the 32 largest axes alone have a variance of their own.

    eps are draws of N(0, I), shape (n, *event), more than they have dimensions.  Inputs are drawn at sigma/alpha = `noise` times the
    scale of the data, which is `scale` in the first round, and found from then on.  Less noise asks where the denoiser is sure
    of itself, more where p_t is Gaussian: of other data the covariance errs by about noise^{-2}.
    Raises: ValueError where n is not greater than d, a number is not positive, a prediction is not finite, or predictions have no
    variance to tell of, as where `scale` is so small that they jump from mode to mode.
    Theorems: regression-of-a-denoiser-is-the-covariance.
    """
    require(lambda shape: len(shape) >= 2 and shape[0] > np.prod(shape[1:]),
            "eps must be (n, *event), n greater than the number of dimensions", eps=jnp.shape(eps))  # fmt: skip
    require(lambda scale, noise, floor: (scale > 0) & (noise > 0) & (floor > 0), "scale, noise and floor must be positive",
            scale=scale, noise=noise, floor=floor)  # fmt: skip
    require(lambda rounds: rounds >= 1, "rounds must be positive", rounds=rounds)
    rows = jnp.asarray(eps).reshape(len(eps), -1)
    cast = lambda leaf: jnp.asarray(leaf, rows.dtype)  # noqa: E731
    (n, d), ask = rows.shape, jax.jit(denoise)
    count = count_of_axes(axes, d)
    mean, turned, variances = np.zeros(d), np.eye(d), np.full(d, scale**2)
    for _ in range(rounds):
        level = noise * np.mean(variances**2) ** 0.25
        t = clocks.within(clocks.time_at(schedule, jnp.asarray(-2 * np.log(level), rows.dtype)))
        p = at(schedule, t)
        spread = np.sqrt(p.alpha**2 * variances + p.sigma**2)
        z = p.alpha * cast(mean)[None] + dot(rows, cast(spread[:, None] * turned.T))
        x0 = ask(z.reshape(jnp.shape(eps)), t).reshape(n, d)
        require(lambda x0: jnp.isfinite(x0), "predictions must be finite", x0=x0)
        mean, cov = (np.asarray(part, np.float64) for part in regressed(x0, z, p, jnp.full((n, 1), 1 / n, rows.dtype)))
        variances, turned = np.linalg.eigh((cov + cov.T) / 2)
        require(lambda variance, scale: variance > 0, "predictions must rise with z, and more slowly than z/alpha: is scale far too small?",
                variance=variances.mean(), scale=scale)  # fmt: skip
        every, variances = variances, floored(variances, variances.mean(), d, floor)
    variances = floored(every[-count:], every.mean(), d, floor)
    return Control(cast(mean).reshape(jnp.shape(eps)[1:]), cast(variances), cast(turned[:, -count:]))
