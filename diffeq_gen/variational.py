"""The variational bound, term by term: what a chain of noisy copies costs as a code of the data, in nats.

    -log P(x0) <= KL(q(z_1|x0) | N(0, v)) + sum_i KL(q(z_s|z_t, x0) | p(z_s|z_t)) - E log P(x0|z_0)       Ho et al. 2020, Eq. 5
                       prior_kl                   step_kl, t = t_i, s = t_{i+1}       reconstruction

    KL(N(m, V) | N(n, W)) = 1/2 sum [(m - n)^2/W + e^d - 1 - d],  d = log V/W                             gaussian_kl
    step_kl               = 1/2 (e^lambda_s - e^lambda_t) |x0_hat - x0|^2 = 1/2 expm1(Delta) |eps_hat - eps|^2,  variance beta~
    log variance          = v log beta + (1 - v) log beta~       learnt                                   Nichol & Dhariwal 2021, Eq. 15

Of data on levels every term is the number of nats of a message, and their sum is at least -log P(x0).  `likelihood.elbo` is the
limit of many steps.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen.dequantisation import Bins
from diffeq_gen.grids import require_falling
from diffeq_gen.losses import denoising_loss
from diffeq_gen.paths import noisy_gap, perturb, require_same_shape
from diffeq_gen.predictions import convert, data
from diffeq_gen.samplers.interpolation import phis
from diffeq_gen.schedules import at
from diffeq_gen.types import Denoiser, Key, Point, Prediction, Sample, Schedule, Time, require

__all__ = [
    "Decoder",
    "bin_nll",
    "bridge_kl",
    "gaussian_kl",
    "hybrid_loss",
    "learnt_step",
    "log_variance",
    "prior_kl",
    "reconstruction",
    "softmax_nll",
    "step_kl",
    "vlb",
]


def gaussian_kl(
    mean: jax.Array, log_var: jax.Array, other_mean: jax.Array, other_log_var: jax.Array
) -> jax.Array:  # fmt: skip
    """KL(N(mean, e^log_var) | N(other_mean, e^other_log_var)) in nats, of the sum over entries; log-variances are scalars or of that shape.

    Never negative, and as accurate where the variances nearly agree as elsewhere.  Infinite where one of the variances alone is
    zero, nan where both are.
    Theorems: gaussian-kl-is-the-mean-log-ratio, gaussian-kl-is-never-negative, learnt-step-is-a-gaussian-kl,
    analytic-variance-is-best.
    """
    away = jnp.square(mean - other_mean)
    return jnp.sum(_kl(away * jnp.exp(-jnp.asarray(other_log_var, away.dtype)), log_var - other_log_var))


def _kl(square: jax.Array, d: jax.Array) -> jax.Array:
    """1/2 (square + e^d - 1 - d), d the logarithm of the ratio of two variances; the excess of e^d by its series where d is small."""
    d = jnp.broadcast_to(jnp.asarray(d, square.dtype), square.shape)
    small = jnp.abs(d) < 1
    excess = jnp.expm1(d) - jnp.minimum(d, jnp.finfo(d.dtype).max)
    return (square + jnp.where(small, d * d * phis(2, jnp.where(small, d, 0))[1], excess)) / 2


def prior_kl(x0: Sample, p: Point, *, variance: jax.Array | float | None = None) -> jax.Array:
    """KL(N(alpha x0, sigma^2) | N(0, v)) in nats, of one sample: what the noisiest copy still costs.  Kingma et al. 2021, Eq. 11.

    The variance v of the prior, left out, is alpha^2 + sigma^2, right for data of variance one.
    Raises: ValueError where variance is not positive.
    Theorems: gaussian-kl-is-the-mean-log-ratio, elbo-is-tight-in-expectation, perspective-latent-variable.
    """
    if variance is None:
        wide, d = jnp.square(p.alpha) + jnp.square(p.sigma), -jax.nn.softplus(p.log_snr)
    else:
        require(lambda variance: variance > 0, "variance must be positive", variance=variance)
        wide = jnp.asarray(variance, p.sigma.dtype)
        d = jnp.log1p((jnp.square(p.sigma) - wide) / wide)
    return jnp.sum(_kl(jnp.square(p.alpha * x0) / wide, d))


def log_variance(v: jax.Array | float, p: Point, q: Point, *, floor: jax.Array | float | None = None) -> jax.Array:
    """v log beta + (1 - v) log beta~, v in [0, 1]: the variance of a learnt step from p to q.  Nichol & Dhariwal 2021, Eq. 15.

        beta = -sigma_t^2 expm1(-Delta),   the transition's        beta~ = -sigma_s^2 expm1(-Delta),   the bridge's

    `samplers.ddpm(variance=v)` steps with it.  At sigma_s = 0, where beta~ = 0, `floor` stands for log beta~: left out it is log beta,
    and v has no say; Nichol & Dhariwal put that of the step before, from t+ to t.
    Raises: ValueError where log-SNR falls from p to q.
    Theorems: learnt-variance-is-that-of-ddpm, learnt-step-is-a-gaussian-kl.
    """
    large = 2 * jnp.log(p.sigma) + jnp.log(-jnp.expm1(-noisy_gap(p, q)))
    last = large if floor is None else floor
    small_over_large = jnp.where(q.sigma > 0, _log_ratio(p, _noisy(q)), last - large)
    return large + (1 - v) * small_over_large


def _noisy(q: Point) -> Point:
    """q; where sigma = 0, a point that has some, so that what is not taken there is a number."""
    return dataclasses.replace(q, sigma=jnp.where(q.sigma > 0, q.sigma, 1))


def _log_ratio(p: Point, q: Point) -> jax.Array:
    """log beta~/beta."""
    return 2 * jnp.log(q.sigma / p.sigma)


def bridge_kl(x0: Sample, x0_hat: Sample, p: Point, q: Point, *, v: jax.Array | float = 0.0) -> jax.Array:
    """KL(q(z_s|z_t, x0) | N(c_z z_t + c_x x0_hat, e^log_variance)) in nats: of one step from p to q, whatever z_t.

        1/2 sum [e^d (e^lambda_s - e^lambda_t) (x0_hat - x0)^2 + e^d - 1 - d],      d = v log beta~/beta

    Its variance is the bridge's beta~ where v = 0, a scalar or of the shape of x0; finite at alpha_t = 0, infinite at sigma_s = 0.
    Raises: ValueError where x0 and x0_hat differ in shape, or log-SNR falls from p to q.
    Theorems: learnt-step-is-a-gaussian-kl, a-step-costs-what-snr-gains, elbo-continuous-limit, elbo-improves-with-more-steps,
    perspective-latent-variable.
    """
    require_same_shape(x0=x0, x0_hat=x0_hat)
    noisy = _noisy(q)
    gained = jnp.square(q.alpha / noisy.sigma) * -jnp.expm1(-noisy_gap(p, q))
    d = v * _log_ratio(p, noisy)
    spent = jnp.sum(_kl(jnp.exp(d) * gained * jnp.square(x0_hat - x0), d))
    return jnp.where(q.sigma > 0, spent, jnp.inf)


def step_kl(denoise: Denoiser, schedule: Schedule, x0: Sample, eps: Sample, t: Time, s: Time) -> jax.Array:
    """1/2 expm1(Delta) |eps_hat - eps|^2 at z_t = alpha x0 + sigma eps, in nats: the step from t to s of a denoiser, with variance beta~.

    Kingma et al. 2021, Eq. 13.  Computed as 1/2 (e^lambda_s - e^lambda_t) |x0_hat - x0|^2, which needs no division by sigma_t.
    Raises: ValueError where x0 and eps differ in shape, or log-SNR falls from t to s.
    Theorems: a-step-costs-what-snr-gains, learnt-step-is-a-gaussian-kl.
    """
    p, q = at(schedule, t), at(schedule, s)
    return bridge_kl(x0, denoise(perturb(x0, eps, p), t), p, q)


Decoder = Callable[[Sample, Sample, jax.Array, Bins], jax.Array]
"""(x0, mean, log_var, bins) -> -log P(x0) in nats, of one sample."""


def softmax_nll(x0: Sample, mean: Sample, log_var: jax.Array, bins: Bins) -> jax.Array:
    """-log P(x0), P(level k) ~ N(level k; mean, e^log_var), of the sum over entries.  Kingma et al. 2021, Sec. 3.2.

    It holds `count` numbers an entry.
    Raises: ValueError where x0 does not lie on their middles.
    Theorems: decoders-sum-to-one, bins-tend-to-the-density.
    """
    index = bins.of_middle(x0)
    log_var = jnp.broadcast_to(jnp.asarray(log_var, x0.dtype), x0.shape)
    precision = jnp.minimum(jnp.exp(-log_var), jnp.finfo(x0.dtype).max)
    every = jnp.arange(bins.levels, dtype=x0.dtype).reshape(-1, *(1,) * x0.ndim)
    apart = bins.width * (every - index[None])
    logits = -apart * (apart + 2 * (bins.middle(index) - mean)[None]) * precision[None] / 2
    return jnp.sum(jax.nn.logsumexp(logits, axis=0))


def bin_nll(x0: Sample, mean: Sample, log_var: jax.Array, bins: Bins) -> jax.Array:
    """-log int N(x; mean, e^log_var) dx over the bin of x0, of the sum over entries.  Ho et al. 2020, Eq. 13.

    The bins of the lowest and the highest level are open.  Of the mass in a tail the logarithm is found without the mass.
    Raises: ValueError where x0 does not lie on their middles.
    Theorems: decoders-sum-to-one, bins-tend-to-the-density.
    """
    index = bins.of_middle(x0)
    scale = jnp.exp(-jnp.asarray(log_var, x0.dtype) / 2)
    away, half = (bins.middle(index) - mean) * scale, jnp.broadcast_to(bins.width / 2 * scale, x0.shape)
    lowest, highest = index <= 0, index >= bins.levels - 1
    outer = _log_tail(jnp.where(lowest, -away, away) - half)
    return -jnp.sum(jnp.where(lowest | highest, outer, _log_bin(away, half)))


NODES, SHARES = ((part / 2).tolist() for part in np.polynomial.legendre.leggauss(6))
"""Of Gauss and Legendre on [-1/2, 1/2]."""

FAR = 5.0
"""Beyond it Mills' ratio is a continued fraction."""
TERMS = 24


def _mills(x: jax.Array) -> jax.Array:
    """(1 - Phi(x))/phi(x) of x >= 0, by erfc or by Laplace's 1/(x + 1/(x + 2/(x + ...))): its slope has digits in the tail as well.

    `jax.scipy.special.log_ndtr` has no slope beyond -1e4 in float32.
    """
    near, far = jnp.minimum(x, FAR), jnp.maximum(x, FAR)
    fraction = far
    for k in reversed(range(1, TERMS)):
        fraction = far + k / fraction
    direct = math.sqrt(math.pi / 2) * jnp.exp(jnp.square(near) / 2) * jax.lax.erfc(near / math.sqrt(2))
    return jnp.where(x < FAR, direct, 1 / fraction)


def _log_phi(x: jax.Array) -> jax.Array:
    return -jnp.square(x) / 2 - math.log(2 * math.pi) / 2


def _log_tail(x: jax.Array) -> jax.Array:
    """log(1 - Phi(x))."""
    log_tail = _log_phi(x) + jnp.log(_mills(jnp.where(x > 0, x, -x)))
    return jnp.where(x > 0, log_tail, jnp.log1p(-jnp.exp(jnp.where(x > 0, -1, log_tail))))


def _log_bin(away: jax.Array, half: jax.Array) -> jax.Array:
    """log(Phi(away + half) - Phi(away - half)): phi in the middle times a mean of what it is elsewhere, where that varies little,
    the mass that is not in the tails, where the bin holds the mean, and else the difference of two tails over the larger phi."""
    away = jnp.abs(away)
    narrow = (half < 0.25) & (away * half < 0.5)
    c, h = jnp.where(narrow, away, 0), jnp.where(narrow, 2 * half, 0.25)
    mean = sum(share * jnp.exp(-h * node * (c + h * node / 2)) for node, share in zip(NODES, SHARES, strict=True))
    inside = _log_phi(c) + jnp.log(h * mean)
    c, half = jnp.where(narrow, 1, away), jnp.where(narrow, 0.5, half)
    low, high = c - half, c + half
    near, far = _mills(jnp.where(low > 0, low, -low)), _mills(high)
    in_tails = jnp.where(low > 0, 0, jnp.exp(_log_phi(low)) * near + jnp.exp(_log_phi(high)) * far)
    apart = jnp.where(low > 0, near - far * jnp.exp(-2 * c * half), 1)
    beside, around = _log_phi(low) + jnp.log(apart), jnp.log1p(-in_tails)
    return jnp.where(narrow, inside, jnp.where(low > 0, beside, around))


def reconstruction(x0: Sample, z: Sample, p: Point, bins: Bins, *, decoder: Decoder = softmax_nll) -> jax.Array:
    """-log P(x0 | z) in nats, of data on levels: by the law N(z/alpha, e^-lambda) of what z is a copy of.  Kingma et al. 2021, Eq. 11.

    The softmax is Bayes' rule for levels that are equally likely before z is seen, and costs least where they are.
    Raises: ValueError where x0 does not lie on their middles.
    Theorems: decoders-sum-to-one.
    """
    return decoder(x0, z / p.alpha, -p.log_snr, bins)


def vlb(
    key: Key, denoise: Denoiser, schedule: Schedule, x0: Sample, times: jax.Array,
    *, bins: Bins, decoder: Decoder = softmax_nll, samples: int | None = None, variance: float | None = None,
) -> jax.Array:  # fmt: skip
    """-(prior KL + sum of step KLs + reconstruction) in nats, unbiased in the key: a lower bound, in the mean over keys, of log P(x0).

    P is the probability that a hierarchical model gives to these levels: it draws z from N(0, v) at times[0], steps down the
    falling `times` with the mean of q(z_s|z_t, x0_hat) and the variance beta~, and from z at times[-1] draws, by `decoder`, one of the
    middles of `bins`, where sigma must not be zero.  Each step has noise of its own; `samples` many, one drawn in each of as many
    strata of steps, stand for all.  Prior variance v as in `prior_kl`.  For densities there is `likelihood.elbo`.
    Raises: ValueError where times do not fall within [0, 1], sigma is zero at the last, samples lies outside [1, steps], variance is not
    positive, or x0 does not lie on their middles.
    Theorems: elbo-continuous-limit, elbo-improves-with-more-steps, elbo-is-tight-in-expectation.
    """
    require_falling(times)
    times, n = jnp.asarray(times, x0.dtype), len(times) - 1
    first, last = at(schedule, times[0]), at(schedule, times[-1])
    require(lambda sigma: sigma > 0, "sigma must be positive at the last time", sigma=last.sigma)
    draw_key, noise_key, last_key = jax.random.split(key, 3)
    steps = jnp.arange(n) if samples is None else _strata(draw_key, samples, n)

    def one(pair: tuple[Key, jax.Array]) -> jax.Array:
        key, i = pair
        eps = jax.random.normal(key, x0.shape, x0.dtype)
        return step_kl(denoise, schedule, x0, eps, times[i], times[i + 1])

    diffusion = n * jnp.mean(jax.lax.map(one, (jax.random.split(noise_key, len(steps)), steps)))
    z = perturb(x0, jax.random.normal(last_key, x0.shape, x0.dtype), last)
    rest = prior_kl(x0, first, variance=variance) + reconstruction(x0, z, last, bins, decoder=decoder)
    return -(rest + diffusion)


def _strata(key: Key, samples: int, n: int) -> jax.Array:
    """One whole number below n in each of as many strata of [0, n): every number is drawn equally often."""
    require(lambda samples: (samples >= 1) & (samples <= n), f"samples must lie in [1, {n}]", samples=samples)
    u = jax.random.uniform(key, (samples,))
    share = (jnp.arange(samples, dtype=u.dtype) + u) / samples
    return jnp.minimum((share * n).astype(int), n - 1)


def learnt_step(
    x0: Sample, x0_hat: Sample, v: jax.Array, p: Point, q: Point,
    *, bins: Bins | None = None, floor: jax.Array | float | None = None,
) -> jax.Array:  # fmt: skip
    """`bridge_kl` with a learnt variance; where sigma_s = 0, `bin_nll` of x0 about x0_hat in its place.  Nichol & Dhariwal 2021, Eq. 4-7.

    The last step ends at the data themselves, of which no KL is finite: with bins it is their decoder, of the variance that
    `log_variance` says, and without infinite.
    Raises: ValueError where x0 and x0_hat differ in shape, log-SNR falls from p to q, or x0 does not lie on their middles.
    Theorems: learnt-step-is-a-gaussian-kl.
    """
    kl = bridge_kl(x0, x0_hat, p, q, v=v)
    if bins is None:
        return kl
    in_data = log_variance(v, p, q, floor=floor) - 2 * jnp.log(q.alpha)
    return jnp.where(q.sigma > 0, kl, bin_nll(x0, x0_hat, in_data, bins))


def hybrid_loss(
    network: Callable[[Sample, Time], tuple[Sample, jax.Array]], schedule: Schedule, prediction: Prediction,
    x0: Sample, eps: Sample, t: Time, s: Time,
    *, steps: int, bins: Bins | None = None, share: float = 1e-3, floor: jax.Array | float | None = None,
) -> jax.Array:  # fmt: skip
    """L_simple + share L_vlb, by one of `steps` steps, from t to s.  Nichol & Dhariwal 2021, Eq. 16.

        L_simple = `denoising_loss`,      L_vlb = steps * `learnt_step` / dimensions, in nats per dimension

    network(z, t) is (value, v): the mean is learnt from L_simple alone, for L_vlb takes it as a constant, and v from L_vlb.  Their code
    counts L_vlb in bits: share = 1e-3/log 2.
    Raises: ValueError where x0 and eps differ in shape, log-SNR falls from t to s, or x0 does not lie on their middles.
    Theorems: hybrid-loss-is-two-losses.
    """
    p, q = at(schedule, t), at(schedule, s)
    z = perturb(x0, eps, p)
    value, v = network(z, t)
    simple = denoising_loss(lambda z, t: value, schedule, prediction, x0, eps, t)
    x0_hat = jax.lax.stop_gradient(convert(value, z, p, prediction, data))
    return simple + share * steps * learnt_step(x0, x0_hat, v, p, q, bins=bins, floor=floor) / x0.size
