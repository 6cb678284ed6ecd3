"""Paths: how a sample becomes noisy, and what is known of a cleaner one.

    q(z_t | x0)      = N(alpha_t x0, sigma_t^2 I)
    q(z_t | z_s)     = N(alpha_t/alpha_s z_s, -sigma_t^2 expm1(-Delta) I),        Delta = lambda_s - lambda_t >= 0
    q_o(z_s | z_t, x0) = N((sigma_s/sigma_t) e^{-o/2} z_t - alpha_s expm1(-(Delta + o)/2) x0, -sigma_s^2 expm1(-o) I)

Two points are always (p, q): p at the noisier time t, q at the cleaner time s.  Each overshoot o >= 0 gives a bridge that
keeps q(z_s | x0): o = Delta is the Markov bridge (DDPM's posterior), o = 0 the deterministic one (DDIM), and in between
lies every first-order sampler.
"""

import jax
import jax.numpy as jnp

from diffeq_gen.types import Point, Sample, require

UNRESOLVED = 256
"""Ulps of alpha and sigma within which two points count as one."""

__all__ = ["bridge", "eta_overshoot", "gap", "noisy_gap", "perturb", "renoise", "require_same_shape", "transition"]


def perturb(x0: Sample, eps: Sample, p: Point) -> Sample:
    """z = alpha x0 + sigma eps.  Ho et al. 2020, Eq. 4.

    Raises: ValueError where x0 and eps differ in shape.
    Theorems: path-conversions, v-is-orthogonal-only-in-vp.
    """
    require_same_shape(x0=x0, eps=eps)
    return p.alpha * x0 + p.sigma * eps


def gap(p: Point, q: Point) -> jax.Array:
    """Delta = lambda_q - lambda_p = 2 log(alpha_q sigma_p / (alpha_p sigma_q)), positive where q is the cleaner point.

    The logarithms are of ratios near one, so a short step loses no more digits than alpha and sigma themselves carry.
    Negative where log-SNR rises with time: such a schedule has no kernels, but deterministic steps all the same.
    Zero between two points of pure noise (alpha = 0), or of pure data (sigma = 0): there z is only scaled.
    Theorems: transition-kernel, log-snr-matches-point, no-sde-if-nonmonotone-snr, at-rest-a-step-only-scales.
    """
    noise, data = _rests(p, q)
    ends = p.alpha, p.sigma, q.alpha, q.sigma
    alpha_p, sigma_p, alpha_q, sigma_q = (jnp.where(noise | data, 1, part) for part in ends)
    return 2 * (jnp.log(alpha_q / alpha_p) + jnp.log(sigma_p / sigma_q))


def noisy_gap(p: Point, q: Point) -> jax.Array:
    """max(Delta, 0): the gap across which noise is added.  Zero where a step is so short that rounding turns its sign.

    Raises: ValueError where log-SNR falls from p to q by more than rounding can; traced values are then zero too.
    Theorems: transition-kernel, sde-eta-exact-step.
    """
    delta = gap(p, q)
    rounding = UNRESOLVED * jnp.finfo(delta.dtype).eps
    require(lambda delta, t, s: (delta > -rounding) | (delta != delta), "log-SNR must not fall from t to s",
            gap=delta, t=p.t, s=q.t)  # fmt: skip
    return jnp.where(delta > 0, delta, 0)


def transition(p: Point, q: Point) -> tuple[jax.Array, jax.Array]:
    """(scale, std) of q(z_t | z_s) = N(scale z_s, std^2 I): scale = alpha_t/alpha_s, std = sigma_t sqrt(-expm1(-Delta)).

    Kingma et al. 2021, App. A.  From alpha = 0 to alpha = 0 the scale is sigma_t/sigma_s.
    Raises: ValueError where log-SNR falls from p to q: no such kernel exists.
    Theorems: transition-kernel, markov-semigroup, at-rest-a-step-only-scales.
    """
    noise, _ = _rests(p, q)
    scale = jnp.where(noise, p.sigma, p.alpha) / jnp.where(noise, q.sigma, q.alpha)
    return scale, p.sigma * jnp.sqrt(-jnp.expm1(-noisy_gap(p, q)))


def renoise(z: Sample, eps: Sample, p: Point, q: Point) -> Sample:
    """A draw of q(z_t | z_s) made of z = z_s and standard normal eps: back from q to the noisier p.

    Raises: ValueError where z and eps differ in shape.
    Theorems: churn-general, ddpm-is-ddim-double-plus-renoise.
    """
    require_same_shape(z=z, eps=eps)
    scale, std = transition(p, q)
    return scale * z + std * eps


def bridge(p: Point, q: Point, overshoot: jax.Array | None = None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(c_z, c_x, std) of q_o(z_s | z_t, x0) = N(c_z z_t + c_x x0, std^2 I).  Song et al. 2021 (DDIM), Eq. 7.

    c_z = (sigma_s/sigma_t) e^{-o/2},  c_x = -alpha_s expm1(-(Delta + o)/2),  std = sigma_s sqrt(-expm1(-o)).
    `overshoot` o in [0, inf] is how far in log-SNR a deterministic step goes beyond s before noise takes it back to s.
    Left out it is Delta: the bridge of the Markov forward process.  Finite at alpha_t = 0, at sigma_s = 0, and
    at alpha_s = 0, to which a deterministic step may go back; from sigma = 0 to sigma = 0, c_z is alpha_s/alpha_t.
    Theorems: ancestral-posterior, ddim-nonmarkov-family, churn-general, ddim-update, at-rest-a-step-only-scales, vlb-step-kl,
    perspective-latent-variable.
    """
    _, data = _rests(p, q)
    scale = jnp.where(data, q.alpha, q.sigma) / jnp.where(data, p.alpha, p.sigma)
    delta = gap(p, q)
    overshoot = noisy_gap(p, q) if overshoot is None else overshoot
    c_z = scale * jnp.exp(-overshoot / 2)
    c_x = jnp.where(q.alpha > 0, -q.alpha * jnp.expm1(-(delta + overshoot) / 2), -c_z * p.alpha)
    return c_z, c_x, q.sigma * jnp.sqrt(-jnp.expm1(-overshoot))


def eta_overshoot(p: Point, q: Point, eta: float) -> jax.Array:
    """o = -log1p(eta^2 expm1(-Delta)): the bridge whose variance is eta^2 times that of the Markov bridge.

    eta = 0 is DDIM, eta = 1 DDPM; eta^2 = 1/(1 - e^{-Delta}) > 1 is the largest, with o = inf: z_s = alpha_s x0 + sigma_s eps.
    A larger eta has no such bridge and gives nan.
    Theorems: ddim-eta-is-churn, eta-conventions.
    """
    return -jnp.log1p(eta**2 * jnp.expm1(-noisy_gap(p, q)))


def _rests(p: Point, q: Point) -> tuple[jax.Array, jax.Array]:
    """Whether there is no signal at either point, and whether there is no noise at either."""
    return (p.alpha <= 0) & (q.alpha <= 0), (p.sigma <= 0) & (q.sigma <= 0)


def require_same_shape(**samples: Sample) -> None:
    """Raises ValueError naming the shapes, where the samples do not all have the same one."""
    shapes = {name: jnp.shape(sample) for name, sample in samples.items()}
    require(
        lambda shapes: len(set(shapes.values())) == 1, f"{' and '.join(shapes)} must have the same shape", shapes=shapes
    )
