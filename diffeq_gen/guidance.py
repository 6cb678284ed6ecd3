"""Guidance: a denoiser made of denoisers, which knows more than any of them was trained to know.

    classifier        x0_hat + omega (sigma^2/alpha) grad log p_t(y | z)
    classifier-free   x0_u + omega (x0_c - x0_u)                     omega = 1 is the conditional model, omega = 1 + w
    product           x0_base + sum_i omega_i (x0_i - x0_base)
    mixture           sum_i r_i x0_i,    r = softmax(log w_i + log p_i(z))
    y = A x0 + n      x0_hat + Cov A^T (A Cov A^T + std^2 I)^{-1} (y - A x0_hat),      Cov = (sigma^2/alpha) d x0_hat/dz

Coefficients sum to one, so it does not matter which prediction is guided: noise, v, velocity and score may stand in the place of
x0_hat.  The score of a guided model is that of a product of powers of the marginals at t, which is not the marginal at t
of any such product of the data's laws: what is sampled depends on the sampler.  A mixture is, and so is what Bayes' rule says.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from diffeq_gen.clocks import log_snr
from diffeq_gen.exact import Gaussian, Mixture
from diffeq_gen.paths import require_same_shape
from diffeq_gen.schedules import at
from diffeq_gen.types import Denoiser, Sample, Schedule, Time, dot, require

__all__ = [
    "Network",
    "Scale",
    "autoguidance",
    "classifier",
    "classifier_free",
    "conditioned",
    "dps",
    "interval",
    "mixture",
    "negation",
    "observed",
    "pigdm",
    "posterior",
    "product",
    "rescale",
]

Scale = float | Callable[[Time], jax.Array]
"""omega: a number, or a function of time; of log-SNR it is ``lambda t: omega(clocks.log_snr(schedule, t))``."""

Network = Callable[[Sample, Time, Any], Sample]
"""(z, t, condition) -> x0_hat, or any other prediction."""


def classifier(
    denoise: Denoiser,
    schedule: Schedule,
    log_likelihood: Callable[[Sample, Time], jax.Array],
    *,
    scale: Scale = 1.0,
) -> Denoiser:
    """x0_hat + omega (sigma^2/alpha) grad log p_t(y | z).  Song et al. 2021, Eq. 14; Dhariwal & Nichol 2021, Sec. 4.

    `log_likelihood` is (z, t) -> log p_t(y | z) in nats, of a classifier that has seen noise: that of clean data is `dps`.  At
    scale 1 the result is E[x0 | z, y].  At alpha = 0, where z says nothing of y, it is the limit: the slopes in t of both in the
    place of their quotient, so a classifier is to be differentiable in t there, and alpha' not zero.
    Theorems: bayes-score, cfg-is-implicit-classifier.
    """
    level = _level(scale)

    def guided(z: Sample, t: Time) -> Sample:
        x0, pull = _over_alpha(lambda t: (denoise(z, t), jax.grad(log_likelihood)(z, t)), schedule, t)
        return x0 + level(t) * pull

    return guided


def classifier_free(conditional: Denoiser, unconditional: Denoiser, *, scale: Scale) -> Denoiser:
    """x0_u + omega (x0_c - x0_u): 0 is the unconditional model, 1 the conditional one.  Ho & Salimans 2022, with omega = 1 + w.

    Their w, and Imagen's and Stable Diffusion's scale, which is omega, differ by one.  It is `classifier` with the classifier
    p_t(z|y)/p_t(z).  It does not sample p(x0)^{1-omega} p(x0|y)^omega: the score is that of p_t(z)^{1-omega} p_t(z|y)^omega, at each t
    another law's, and DDIM and DDPM end in two laws of which neither is that one.  With the network of what is *not* wanted in
    the place of the unconditional one it is a negative prompt.
    Raises: ValueError where the two denoisers answer in different shapes.
    Theorems: cfg-affine-invariance, cfg-is-implicit-classifier, cfg-not-tempered, cfg-ode-sde-differ, ar-guidance-factorwise.
    """
    level = _level(scale)

    def guided(z: Sample, t: Time) -> Sample:
        toward, away = conditional(z, t), unconditional(z, t)
        require_same_shape(conditional=toward, unconditional=away)
        return toward + (level(t) - 1) * (toward - away)

    return guided


def autoguidance(good: Denoiser, bad: Denoiser, *, scale: Scale) -> Denoiser:
    """x0_bad + omega (x0_good - x0_bad): away from a worse model of the same data.  Karras et al. 2024, 'Guiding a diffusion model'.

    The bad model is smaller or trained for less long, and errs as the good one does, only more.  Both are told the same condition,
    so that nothing draws samples to where it is most pronounced.  The formula is that of `classifier_free`.
    Raises: ValueError where the two denoisers answer in different shapes.
    Theorems: autoguidance.
    """
    return classifier_free(good, bad, scale=scale)


def conditioned(network: Network, condition: Any, *, null: Any = None) -> tuple[Denoiser, Denoiser]:
    """(z, t) -> network(z, t, condition), and the same with the null condition: what `classifier_free` takes.

    The null condition is the one that stood for the dropped ones in training, of the same structure and shapes.  A network that
    predicts something other than x0 is guided first and converted once: ``predictions.denoiser(guided, schedule, prediction)``.
    Raises: ValueError where null is left out, or is not shaped like condition.
    Theorems: cfg-affine-invariance.
    """
    require(
        lambda null: null is not None, "guidance needs the null condition that the network was trained with", null=null
    )
    shapes = [jax.tree.map(jnp.shape, value) for value in (condition, null)]
    require(
        lambda condition, null: condition == null,
        "null must be shaped like condition",
        condition=shapes[0],
        null=shapes[1],
    )
    return lambda z, t: network(z, t, condition), lambda z, t: network(z, t, null)


def interval(
    inside: Denoiser,
    outside: Denoiser,
    schedule: Schedule,
    *,
    log_snr_min: float = -math.inf,
    log_snr_max: float = math.inf,
) -> Denoiser:
    """`inside` where log_snr_min <= lambda(t) <= log_snr_max, `outside` elsewhere.  Kynkäänniemi et al. 2024.

    With a guided model inside and the conditional one outside.  A noise level is the log-SNR -2 log(sigma/alpha).  One of the two is
    evaluated, so steps outside cost what unguided ones do.  What one pays is a jump at either end: a method of high order has it only
    in steps that do not cross one, so let the ends be times of the grid, and do not expect adaptive steps to pass them lightly.
    Raises: ValueError where log_snr_min is not below log_snr_max.
    Theorems: interval-leaves-other-times-alone.
    """
    require(lambda low, high: low < high, "log_snr_min must be below log_snr_max",
            log_snr_min=log_snr_min, log_snr_max=log_snr_max)  # fmt: skip

    def guided(z: Sample, t: Time) -> Sample:
        here = log_snr(schedule, t)
        return jax.lax.cond((log_snr_min <= here) & (here <= log_snr_max), inside, outside, z, t)

    return guided


def rescale(guided: Denoiser, conditional: Denoiser, *, phi: float = 0.7) -> Denoiser:
    """(1 - phi + phi std(x0_c)/std(x0_g)) x0_g: the contrast of the conditional model.  Lin et al. 2024, Sec. 3.4.

    Guidance stretches x0_hat; phi = 1 brings the standard deviation of its entries back to the conditional's.  The deviation is that
    of one sample (many samples at once are jax.vmap).  A number of nothing but x0_hat: rescaled in noise or v it is another model.
    A guided x0_hat whose entries are all equal is left as it is.
    Raises: ValueError where phi lies outside [0, 1].
    Theorems: rescale-keeps-the-std.
    """
    require(lambda phi: 0 <= phi <= 1, "phi must lie in [0, 1]", phi=phi)

    def rescaled(z: Sample, t: Time) -> Sample:
        x0, known = guided(z, t), conditional(z, t)
        spread, wanted = jnp.var(x0), jnp.var(known)
        return jnp.where(spread > 0, 1 - phi + phi * jnp.sqrt(wanted / spread), 1) * x0

    return rescaled


def observed(world: Gaussian | Mixture, operator: jax.Array, y: jax.Array, *, std: float) -> Gaussian | Mixture:
    """The law of x0 given y = A x0 + std n: of a Gaussian again a Gaussian, of a mixture a mixture.  Bayes; Kalman 1960.

    m + K (y - A m) and (I - K A) C (I - K A)^T + std^2 K K^T, K = C A^T S^{-1}, S = A C A^T + std^2 I; weights w_k N(y; A m_k, S_k).  As
    y and z are independent given x0, ``exact.denoiser(observed(world, operator, y, std=std), schedule)`` is E[x0 | z, y]: what
    `posterior`, `pigdm` and `dps` aim at.  `operator` A has shape (m, d), y (m,).
    Raises: TypeError where the world is neither; ValueError where the shapes do not match, or std is negative.
    Theorems: observed-is-bayes, posterior-exact-for-gaussians, pigdm-exact-for-isotropic, dps-jensen-gap.
    """
    if not isinstance(world, Gaussian | Mixture):
        raise TypeError(f"only a Gaussian or a Mixture is again one where something of it is seen, got {world!r}")
    if isinstance(world, Gaussian):
        return _seen(world, operator, y, std)[1]
    log_prob, each = jax.vmap(lambda mean, cov: _seen(Gaussian(mean, cov), operator, y, std))(world.means, world.covs)
    weights = jax.nn.softmax(jnp.log(world.weights) + log_prob)
    return Mixture(jnp.maximum(weights, jnp.finfo(weights.dtype).tiny), each.mean, each.cov)  # none is quite impossible


def _seen(world: Gaussian, operator: jax.Array, y: jax.Array, std: float) -> tuple[jax.Array, Gaussian]:
    """log p(y) in nats, up to a constant, and the law of x0 given y."""
    _require_observation(operator, y, world.mean, std)
    along = dot(operator, world.cov)
    root = jnp.linalg.cholesky(dot(along, operator.T) + std**2 * jnp.eye(len(y), dtype=along.dtype))
    white = jax.scipy.linalg.solve_triangular(root, y - dot(operator, world.mean), lower=True)
    gain = jax.scipy.linalg.cho_solve((root, True), along).T
    left = jnp.eye(len(world.mean), dtype=along.dtype) - dot(gain, operator)
    cov = dot(dot(left, world.cov), left.T) + std**2 * dot(gain, gain.T)
    log_prob = -jnp.sum(white * white / 2 + jnp.log(jnp.diagonal(root)))
    return log_prob, Gaussian(world.mean + dot(gain, y - dot(operator, world.mean)), (cov + cov.T) / 2)


def posterior(denoise: Denoiser, schedule: Schedule, operator: jax.Array, y: jax.Array, *, std: float) -> Denoiser:
    """x0_hat + Cov A^T (A Cov A^T + std^2 I)^{-1} (y - A x0_hat), Cov = (sigma^2/alpha) d x0_hat/dz.  Boys et al. 2023.

    E[x0 | z, y] for y = A x0 + std n wherever x0 given z is Gaussian, so for any Gaussian data; else it takes the law of x0 given z for
    the Gaussian of the same two moments.  `operator` A has shape (m, size of z), y (m,); the cost is m slopes of the denoiser beside it.
    Undefined at sigma = 0 where std = 0.
    Raises: ValueError where the shapes do not match, or std is negative.
    Theorems: posterior-exact-for-gaussians.
    """

    def guided(z: Sample, t: Time) -> Sample:
        _require_observation(operator, y, z, std)

        def along(t: Time) -> tuple[Sample, Sample]:
            x0, pull = jax.vjp(lambda z: denoise(z, t), z)
            return x0, jax.vmap(lambda row: pull(row.reshape(z.shape))[0])(operator)

        x0, rows = _over_alpha(along, schedule, t)
        flat = rows.reshape(len(y), -1)
        cov = dot(flat, operator.T) + std**2 * jnp.eye(len(y), dtype=flat.dtype)
        pushed = jnp.linalg.solve(cov, y - dot(operator, x0.reshape(-1)))
        return x0 + dot(pushed, flat).reshape(z.shape)

    return guided


def pigdm(
    denoise: Denoiser, schedule: Schedule, operator: jax.Array, y: jax.Array, *, std: float, variance: float = 1.0
) -> Denoiser:
    """x0_hat + (sigma^2/alpha) (d x0_hat/dz)^T A^T (r^2 A A^T + std^2 I)^{-1} (y - A x0_hat).  Song et al. 2023, 'Pseudoinverse-guided'.

    r^2 = v sigma^2 / (alpha^2 v + sigma^2) is the variance that is left of data N(m, v I), for which this is E[x0 | z, y]; their
    r^2 = sigma^2/(1 + sigma^2) is that of v = 1 on a path with alpha = 1.  One slope of the denoiser.  `operator` A has shape
    (m, size of z), y (m,).  Undefined at sigma = 0 where std = 0.
    Raises: ValueError where the shapes do not match, std is negative, or variance is not positive.
    Theorems: pigdm-exact-for-isotropic.
    """
    require(lambda variance: variance > 0, "variance must be positive", variance=variance)

    def guided(z: Sample, t: Time) -> Sample:
        _require_observation(operator, y, z, std)
        p = at(schedule, t)
        left = variance * p.sigma**2 / (p.alpha**2 * variance + p.sigma**2)
        cov = left * dot(operator, operator.T) + std**2 * jnp.eye(len(y), dtype=operator.dtype)

        def ascent(x0: Sample) -> Sample:
            return dot(jnp.linalg.solve(cov, y - dot(operator, x0.reshape(-1))), operator).reshape(z.shape)

        x0, pull = _over_alpha(lambda t: _pulled(denoise, ascent, z, t), schedule, t)
        return x0 + pull

    return guided


def dps(
    denoise: Denoiser, schedule: Schedule, log_likelihood: Callable[[Sample], jax.Array], *, scale: Scale = 1.0
) -> Denoiser:
    """x0_hat + omega (sigma^2/alpha) grad_z log p(y | x0_hat(z)).  Chung et al. 2023, Alg. 1; 'universal guidance' of Bansal et al. 2023.

    `log_likelihood` is x0 -> log p(y | x0) in nats, for clean data and of any form.  The guess x0_hat takes the place of x0, where
    p_t(y | z) is a mean over all x0 that z may come from: right where sigma -> 0, elsewhere too sure of itself, even for Gaussian data.
    Chung et al. divide their step by |y - A x0_hat| as well, which no law has.
    Theorems: dps-jensen-gap.
    """
    level = _level(scale)

    def guided(z: Sample, t: Time) -> Sample:
        x0, pull = _over_alpha(lambda t: _pulled(denoise, jax.grad(log_likelihood), z, t), schedule, t)
        return x0 + level(t) * pull

    return guided


def product(denoisers: Sequence[Denoiser], base: Denoiser, *, scales: Sequence[Scale] | None = None) -> Denoiser:
    """x0_base + sum_i omega_i (x0_i - x0_base): the score of p_base prod_i (p_i/p_base)^omega_i at t.  Liu et al. 2022.

    With every omega one, the sum of the scores less k - 1 times that of the base.  For experts without a law in common the base is
    flat, ``lambda z, t: z / schedule(t)[0]``.  What is not preserved: the product of the marginals at t is the marginal of the product at
    t = 0 alone, so that no sampler without corrections (Du et al. 2023) ends in the product.
    Raises: ValueError where there is no denoiser, or not one scale for each.
    Theorems: product-of-marginals.
    """
    require(lambda denoisers: denoisers >= 1, "a product needs a denoiser", denoisers=len(denoisers))
    levels = [_level(scale) for scale in ([1.0] * len(denoisers) if scales is None else scales)]
    require(
        lambda scales, denoisers: scales == denoisers,
        "each denoiser needs a scale",
        scales=len(levels),
        denoisers=len(denoisers),
    )

    def composed(z: Sample, t: Time) -> Sample:
        origin = base(z, t)
        return origin + sum(
            level(t) * (denoise(z, t) - origin) for level, denoise in zip(levels, denoisers, strict=True)
        )

    return composed


def negation(denoise: Denoiser, unwanted: Denoiser, base: Denoiser, *, scale: Scale = 1.0) -> Denoiser:
    """x0_hat - omega (x0_unwanted - x0_base): the score of p (p_base/p_unwanted)^omega at t.  Du et al. 2020; Liu et al. 2022.

    What is not preserved: as of a `product`, and the quotient may have no integral at all, where the unwanted law has thinner tails.
    Theorems: negation-divides.
    """
    level = _level(scale)
    return lambda z, t: denoise(z, t) - level(t) * (unwanted(z, t) - base(z, t))


def mixture(
    denoisers: Sequence[Denoiser],
    log_probs: Sequence[Callable[[Sample, Time], jax.Array]],
    *,
    weights: Sequence[float] | None = None,
) -> Denoiser:
    """sum_i r_i x0_i with r = softmax(log w_i + log p_i(z)): E[x0 | z] of sum_i w_i p_i, exactly and at every t.  Du et al. 2023.

    `log_probs` are (z, t) -> log p_i(z) at time t, in nats and up to a term that all have in common: ratios to one of them, or the
    logits of a classifier that has seen noise, do as well.  Weights are positive, equal if left out, and need not sum to one.  What
    is not preserved: with densities at another time, or with weights that do not follow z, which is a mean of scores, it is no mixture.
    Raises: ValueError where there is no denoiser, not one log-density or weight for each, or a weight is not positive.
    Theorems: mixture-exact-at-every-time.
    """
    require(lambda denoisers: denoisers >= 1, "a mixture needs a denoiser", denoisers=len(denoisers))
    weights = [1.0] * len(denoisers) if weights is None else list(weights)
    require(lambda log_probs, weights, denoisers: log_probs == weights == denoisers, "each denoiser needs a log-density and a weight",
            log_probs=len(log_probs), weights=len(weights), denoisers=len(denoisers))  # fmt: skip
    for weight in weights:
        require(lambda weight: weight > 0, "weights must be positive", weight=weight)

    def composed(z: Sample, t: Time) -> Sample:
        r = jax.nn.softmax(
            jnp.stack([jnp.log(w) + log_prob(z, t) for w, log_prob in zip(weights, log_probs, strict=True)])
        )
        return sum(share * denoise(z, t) for share, denoise in zip(r, denoisers, strict=True))

    return composed


def _level(scale: Scale) -> Callable[[Time], jax.Array | float]:
    return scale if callable(scale) else lambda t: scale


def _over_alpha(of: Callable[[Time], tuple[Sample, Sample]], schedule: Schedule, t: Time) -> tuple[Sample, Sample]:
    """(x0_hat, (sigma^2/alpha) pull) of `of`: t -> (x0_hat, pull); where alpha is zero, and pull with it, of their slopes in t."""
    p = at(schedule, t)

    def limit(t: Time) -> tuple[Sample, Sample]:
        (x0, _), (_, slope) = jax.jvp(of, (t,), (jnp.ones_like(t),))
        return x0, slope

    x0, pull = jax.lax.cond(p.alpha > 0, of, limit, p.t)
    return x0, p.sigma**2 / jnp.where(p.alpha > 0, p.alpha, p.alpha_dot) * pull


def _pulled(denoise: Denoiser, ascent: Callable[[Sample], Sample], z: Sample, t: Time) -> tuple[Sample, Sample]:
    """x0_hat, and what its slope makes of the direction that ascends there: (d x0_hat/dz)^T ascent(x0_hat)."""
    x0, pull = jax.vjp(lambda z: denoise(z, t), z)
    return x0, pull(ascent(x0))[0]


def _require_observation(operator: jax.Array, y: jax.Array, x0: Sample, std: float) -> None:
    require(lambda operator, y, size: operator == (*y, size) and len(y) == 1, "operator and y must be (m, size) and (m,)",
            operator=jnp.shape(operator), y=jnp.shape(y), size=jnp.size(x0))  # fmt: skip
    require(lambda std: std >= 0, "std must not be negative", std=std)
