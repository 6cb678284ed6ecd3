"""Chapter 14, the spectral view: in waves, diffusion of a stationary field is one Gaussian channel for each frequency.

    lambda_k = lambda + log S_k,     E[x_k | z] = alpha S_k/(alpha^2 S_k + sigma^2) z_k,     z_k(s) = (V_k(s)/V_k(t))^{1/2} z_k(t)
    f_max = sup{f : S(f) > tau sigma^2/alpha^2},     E R[alpha x0 + sigma eps] = alpha^2 R[x0] + sigma^2

The anchors are sums over pairs of pixels: waves written out one by one, and the covariance of every pixel with every other.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen import exact, paths, spectral
from diffeq_gen.exact import Gaussian
from diffeq_gen.schedules import Flow, at
from diffeq_gen.theorems.domains import (
    Domain,
    earlier,
    log_snrs,
    positive,
    scalars,
    schedules,
    smooth_schedules,
    times,
    vectors,
)
from diffeq_gen.theorems.registry import theorem
from diffeq_gen.types import Point

__all__: list[str] = []

GRID = (3, 4)
"""An odd axis and an even one: the even has a wave that is its own mirror image, pixel by pixel up and down."""


def _spectra(*shape: int) -> Domain:
    """Power spectra of real fields of this shape, S_k = S_{-k}, from 1/100 to 100."""
    places = list(itertools.product(*map(range, shape)))
    mirror = [places.index(tuple(-k % n for k, n in zip(place, shape, strict=True))) for place in places]

    def build(u, case):
        half = 2 * u - 1
        return 10.0 ** (half + half[:, mirror]).reshape(len(u), *shape)

    return Domain(f"power spectra of shape {shape}", len(places), build)


def _angles(shape: tuple[int, ...], dtype):
    """2 pi k.j/n for every wave k (rows) and pixel j (columns), the whole turns taken away."""
    place = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, len(shape))
    turns = np.sum(place[:, None, :] * place[None, :, :] * (np.prod(shape) // np.array(shape)), -1) % np.prod(shape)
    return 2 * jnp.pi / float(np.prod(shape)) * jnp.asarray(turns, dtype)


def _covariance(power):
    """Cov(x_i, x_j) = 1/N sum_k S_k cos(2 pi k.(i - j)/n), over all pairs of pixels."""
    angles = _angles(power.shape, power.dtype)
    apart = angles[:, :, None] - angles[:, None, :]
    return jnp.einsum("k,kij->ij", power.reshape(-1), jnp.cos(apart)) / power.size


def _fourier(x):
    """|x_k|^2 by the sum over all pixels."""
    angles, flat = _angles(x.shape, x.dtype), x.reshape(-1)
    return ((jnp.cos(angles) @ flat) ** 2 + (jnp.sin(angles) @ flat) ** 2).reshape(x.shape) / x.size


@theorem(source="Dieleman 2024; Bracewell 1983", kind="in law", cases=200, schedule=schedules, x0=vectors(*GRID), eps=vectors(*GRID),
         content=_spectra(*GRID), t=times)  # fmt: skip
def white_noise_unitary(schedule, x0, eps, content, t):
    """The spectrum is orthonormal and its own inverse, so white noise has E|eps_k|^2 = 1 at every frequency, power adds up to that of
    the pixels, and diffusion acts on each frequency by itself, at log-SNR lambda + log S_k."""
    p, waves = at(schedule, t), 1 + _matrix(x0)
    z = spectral.spectrum(paths.perturb(x0, eps, p))
    left = spectral.spectrum(spectral.spectrum(x0)), z, spectral.power(x0), jnp.sum(spectral.power(x0)), waves
    apart = p.alpha * spectral.spectrum(x0) + p.sigma * spectral.spectrum(eps)
    right = x0, apart, _fourier(x0), jnp.sum(x0**2), waves.T
    channel = spectral.log_snr_at(content, p.log_snr), jnp.log((p.alpha / p.sigma) ** 2 * content)
    expected = jnp.sum(jax.vmap(spectral.power)(jnp.eye(x0.size, dtype=x0.dtype).reshape(-1, *GRID)), 0)
    return (*left, expected, channel[0]), (*right, jnp.ones_like(expected), channel[1])


def _matrix(x):
    """The spectrum as a matrix: of each pixel alone, in rows."""
    return jax.vmap(spectral.spectrum)(jnp.eye(x.size, dtype=x.dtype).reshape(-1, *x.shape)).reshape(x.size, x.size)


@white_noise_unitary.near_miss
def sums_that_are_not_normalised(schedule, x0, eps, content, t):
    """The sums over pixels without N^{-1/2}: power is N times that of the pixels, and noise gains N at every frequency."""
    return jnp.sum(spectral.power(x0)) * x0.size, jnp.sum(x0**2)


@white_noise_unitary.near_miss
def half_the_waves(schedule, x0, eps, content, t):
    """The waves that a transform of real pictures stores, each counted once: those inside stand for their mirror images too."""
    return jnp.sum(spectral.power(x0)[:, : GRID[1] // 2 + 1]), jnp.sum(x0**2)


def _filtered(schedule, content, mean, x0, eps, t, dense):
    """(V (x0_hat - mean), alpha C (z - alpha mean)) for the Wiener filter of a field, C and V given by their spectra."""
    p = at(schedule, t)
    z = paths.perturb(x0, eps, p)
    found = spectral.wiener_denoiser(content, mean, schedule)(z, t) - mean
    cov, away = dense(content), (z - p.alpha * mean).reshape(-1)
    noisy = p.alpha**2 * cov + p.sigma**2 * jnp.eye(z.size, dtype=z.dtype)
    return noisy @ found.reshape(-1), p.alpha * cov @ away


@theorem(source="Wiener 1949; Dieleman 2024", cases=200, schedule=smooth_schedules, content=_spectra(*GRID), mean=vectors(*GRID),
         x0=vectors(*GRID), eps=vectors(*GRID), t=times, few=_spectra(2, 2), y=vectors(2, 2))  # fmt: skip
def wiener_is_gaussian_denoiser(schedule, content, mean, x0, eps, t, few, y):
    """The Wiener filter alpha S_k/(alpha^2 S_k + sigma^2) is E[x0 | z] of the stationary Gaussian field of spectrum S: what the full
    covariance of all pixels gives."""
    left, right = _filtered(schedule, content, mean, x0, eps, t, _covariance)
    p, middle = at(schedule, t), mean[:2, :2]
    world = Gaussian(middle.reshape(-1), _covariance(few))
    found = spectral.wiener_denoiser(few, middle, schedule)(y, t)
    return (left, found), (right, exact.denoise(world, y.reshape(-1), p).reshape(2, 2))


@wiener_is_gaussian_denoiser.near_miss
def amplitudes_for_powers(schedule, content, mean, x0, eps, t, few, y):
    """The root of S in the place of S: the amplitude of a wave taken for its variance."""
    return _filtered(schedule, content, mean, x0, eps, t, lambda power: _covariance(jnp.sqrt(power)))


@wiener_is_gaussian_denoiser.near_miss
def a_filter_that_knows_no_neighbours(schedule, content, mean, x0, eps, t, few, y):
    """The variance of a pixel in the place of S: each pixel denoised by itself."""
    return _filtered(schedule, content, mean, x0, eps, t, lambda power: _covariance(jnp.mean(power) + 0 * power))


exponents = scalars("exponents of [0.5, 4]", 0.5, 4.0)


@theorem(source="Dieleman 2024; derived", kind="inequality", scale=positive("scales of [0.1, 10]", 0.1, 10.0), exponent=exponents,
         log_snr=scalars("log-SNR in [-8, 8]", -8.0, 8.0), threshold=positive("thresholds of [0.1, 10]", 0.1, 10.0),
         step=positive("steps of [0.1, 10]", 0.1, 10.0), uneven=vectors(6), t=times)  # fmt: skip
def max_detectable_frequency(scale, exponent, log_snr, threshold, step, uneven, t):
    """f_max = sup{f : S(f) > tau sigma^2/alpha^2} is (C e^lambda/tau)^{1/a} for S = C f^-a, (t/(1 - t))^{-2/a} of the flow where
    C = tau = 1, which a ladder of frequencies meets to a step; and it rises with log-SNR for any spectrum, falling or not."""
    return _detected(scale, exponent, log_snr, threshold, step, uneven, t, exponent)


def _detected(scale, exponent, log_snr, threshold, step, uneven, t, rate):
    """The closed form, at 1/rate of the exponent, between what it must not pass and what it must reach."""
    law = spectral.PowerLaw(scale, exponent)
    top = spectral.PowerLaw(scale, rate).crossover(log_snr, threshold=threshold)
    ladder = top * (1 + step * (jnp.arange(6, dtype=t.dtype) - 2.5) / 6)
    ladder = jnp.where(ladder > 0, ladder, top / 64)
    seen = spectral.crossover(ladder, law(ladder), log_snr, threshold=threshold)
    beyond = jnp.min(jnp.where(ladder > seen, ladder, jnp.inf))
    flow = spectral.PowerLaw(jnp.ones_like(t), rate).crossover(Flow().log_snr(t)) ** exponent
    noisy = spectral.crossover(jnp.arange(1, 7, dtype=t.dtype), jnp.exp(uneven), log_snr, threshold=threshold)
    clean = spectral.crossover(jnp.arange(1, 7, dtype=t.dtype), jnp.exp(uneven), log_snr + step, threshold=threshold)
    floor = jnp.log(threshold) - log_snr
    left = jnp.stack([seen, top, jnp.log(law(top)), floor, jnp.log(flow), 2 * jnp.log((1 - t) / t), noisy])
    right = jnp.stack([top, beyond, floor, jnp.log(law(top)), 2 * jnp.log((1 - t) / t), jnp.log(flow), clean])
    return left, right


@max_detectable_frequency.near_miss
def the_exponent_of_amplitudes(scale, exponent, log_snr, threshold, step, uneven, t):
    """(C e^lambda/tau)^{2/a}: as if a were the slope of the amplitude spectrum."""
    return _detected(scale, exponent, log_snr, threshold, step, uneven, t, exponent / 2)


@max_detectable_frequency.near_miss(
    witness={"uneven": np.array([2.0, -2.0, 1.0, -1.0, 2.0, -2.0]), "log_snr": 0.0, "threshold": 1.0}
)
def everything_below_is_detected(scale, exponent, log_snr, threshold, step, uneven, t):
    """All frequencies up to f_max are above the noise: true of spectra that fall."""
    ladder, content = jnp.arange(1, 7, dtype=t.dtype), jnp.exp(uneven)
    top = spectral.crossover(ladder, content, log_snr, threshold=threshold)
    return jnp.where(ladder <= top, jnp.log(threshold) - log_snr, -jnp.inf), jnp.log(content)


@theorem(source="Dieleman 2024", kind="counterexample", cases=200, schedule=schedules, x0=vectors(2, *GRID), eps=vectors(*GRID), t=times,
         c=scalars("factors of [-3, 3]", -3.0, 3.0))  # fmt: skip
def rapsd_scaling(schedule, x0, eps, t, c):
    """R[c x] = c^2 R[x], E R[eps] = 1 and E R[alpha x0 + sigma eps] = alpha^2 R[x0] + sigma^2: powers of signal and noise add up on
    average, to a hinge, and not sample by sample."""
    p, draws = at(schedule, t), _directions(x0[0])
    noisy = spectral.rapsd((p.alpha * x0[:1] + p.sigma * draws) / _norm(p))
    mirrored = spectral.rapsd(jnp.stack([p.alpha * x0[0] + p.sigma * eps, p.alpha * x0[0] - p.sigma * eps]) / _norm(p))
    clean, noise = spectral.rapsd(x0[:1]), spectral.rapsd(eps[None])
    left = spectral.rapsd(c * x0), spectral.rapsd(draws), noisy, mirrored, spectral.rapsd(x0)
    hinge = spectral.variance(clean, p) / _norm(p) ** 2
    both = (p.alpha / _norm(p)) ** 2 * clean + (p.sigma / _norm(p)) ** 2 * noise
    return left, (c**2 * spectral.rapsd(x0), jnp.ones_like(clean), hinge, both, _by_rings(x0))


def _norm(p: Point):
    return jnp.hypot(p.alpha, p.sigma)


def _directions(x):
    """2N equally likely draws of mean zero and covariance I: exact for polynomials of degree three."""
    basis = jnp.eye(x.size, dtype=x.dtype).reshape(-1, *x.shape) * x.size**0.5
    return jnp.concatenate([basis, -basis])


RINGS = {0: [(0, 0)], 1: [(0, 1), (0, 3), (1, 0), (2, 0)], 2: [(0, 2), (1, 1), (1, 3), (2, 1), (2, 3), (1, 2), (2, 2)]}
"""Of pictures of 3 x 4: |f| = hypot(k/3, l/4), the ring is 4 |f| to the nearest; hypot(4/3, 2) = 2.4 is of the last."""


def _by_rings(pictures):
    powers = jax.vmap(_fourier)(pictures)
    return jnp.stack([jnp.mean(jnp.stack([powers[:, k, j] for k, j in places])) for places in RINGS.values()])


@rapsd_scaling.near_miss
def powers_add_up_in_every_sample(schedule, x0, eps, t, c):
    """R[alpha x0 + sigma eps] = alpha^2 R[x0] + sigma^2 R[eps] for one draw: the product of the two has mean zero and is not zero."""
    p = at(schedule, t)
    both = p.alpha**2 * spectral.rapsd(x0[:1]) + p.sigma**2 * spectral.rapsd(eps[None])
    return spectral.rapsd((p.alpha * x0[0] + p.sigma * eps)[None]), both


@rapsd_scaling.near_miss
def spectra_are_of_degree_one(schedule, x0, eps, t, c):
    """R[c x] = c R[x]."""
    return spectral.rapsd(c * x0), c * spectral.rapsd(x0)


def _along_the_flow(schedule, content, z, few, y, t, s, half):
    """The flow of each mode, in pixels, against dense matrices; `half` is the power of V_k(s)/V_k(t) that rescales it."""
    p, q = at(schedule, t), at(schedule, s)
    cov, eye = _covariance(content), jnp.eye(z.size, dtype=z.dtype)

    def moved(o):
        return spectral.spectrum(spectral.flow_map(spectral.spectrum(z), content, p, o)).reshape(-1)

    noisy = q.alpha**2 * cov + q.sigma**2 * eye
    widens = 2 * q.alpha * q.alpha_dot * cov + 2 * q.sigma * q.sigma_dot * eye
    rate = jax.jvp(lambda s: moved(at(schedule, s)), (s,), (jnp.ones_like(s),))[1]
    there = spectral.flow_map(spectral.spectrum(y), few, p, q)
    dense = exact.flow_map(Gaussian(jnp.zeros(4, z.dtype), _covariance(few)), y.reshape(-1), p, q).reshape(2, 2)
    grown = (spectral.variance(few, q) / spectral.variance(few, p)) ** half
    return (noisy @ rate, moved(p), spectral.spectrum(there), there), (
        widens @ moved(q) / 2, z.reshape(-1), dense, grown * spectral.spectrum(y),
    )  # fmt: skip


@theorem(source="Dieleman 2024; derived", cases=200, schedule=smooth_schedules, content=_spectra(*GRID), z=vectors(*GRID),
         few=_spectra(2, 2), y=vectors(2, 2), t=times, s=earlier("t"), log_snr=log_snrs)  # fmt: skip
def spectral_autoregression_pfode(schedule, content, z, few, y, t, s, log_snr):
    """Along the flow of a Gaussian field mode k is rescaled by (V_k(s)/V_k(t))^{1/2}, and z_k/sigma grows with lambda at half its share
    sigmoid(lambda + log S_k): it switches on at lambda = -log S_k, softly, and every mode by the same curve."""
    left, right = _along_the_flow(schedule, content, z, few, y, t, s, 0.5)
    return (*left, *_switched(content, log_snr)[0]), (*right, *_switched(content, log_snr)[1])


def _switched(content, log_snr):
    """The rate at which log z_k/sigma grows with log-SNR, and the share of every mode, each at its own -log S_k."""
    one = jnp.ones_like(log_snr)
    growth = jax.jvp(lambda log_snr: jnp.log1p(jnp.exp(spectral.log_snr_at(content, log_snr))) / 2, (log_snr,), (one,))[
        1
    ]
    alike = jnp.stack([jax.nn.sigmoid(log_snr), jnp.ones_like(log_snr) / 2])
    own = jnp.stack([spectral.share(content, log_snr - jnp.log(content)), spectral.share(content, -jnp.log(content))])
    return (growth, own), (spectral.share(content, log_snr) / 2, jnp.broadcast_to(alike[:, None, None], own.shape))


@spectral_autoregression_pfode.near_miss
def modes_rescaled_by_variances(schedule, content, z, few, y, t, s, log_snr):
    """V_k(s)/V_k(t) without its root."""
    left, right = _along_the_flow(schedule, content, z, few, y, t, s, 1.0)
    return left, right


@spectral_autoregression_pfode.near_miss
def modes_switch_on_at_their_power(schedule, content, z, few, y, t, s, log_snr):
    """Half the share at lambda = log S_k: the strongest waves last."""
    return spectral.share(content, jnp.log(content)), jnp.full_like(content, 0.5)
