"""The spectral view: in an orthonormal basis of waves diffusion is one channel for each frequency, and coarse comes before fine.

    h_k = N^{-1/2} sum_j x_j cas(2 pi k.j/n),   cas = cos + sin              real, orthonormal, its own inverse
    z_k = alpha h_k + sigma eps_k,   E eps_k^2 = 1   =>   lambda_k = lambda + log S_k,   S_k = E|x_k|^2
    E[x_k | z] = alpha S_k / (alpha^2 S_k + sigma^2) z_k                     of a stationary Gaussian field of mean zero
    z_k(s) = (V_k(s)/V_k(t))^{1/2} z_k(t),   V_k = alpha^2 S_k + sigma^2     along its probability flow
    S(f) = C f^-a   =>   f_max = (C e^lambda)^{1/a}                          the last frequency above the noise

Spectra of pictures fall, about as f^-2, and the spectrum of noise is flat: as lambda rises, noise uncovers one frequency after
the other.  Space is the first two axes of a sample, or as many as `space` says; those beyond are channels, each by itself.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen.schedules import at
from diffeq_gen.types import Denoiser, Point, Sample, Schedule, Time, pytree, require

__all__ = [
    "PowerLaw",
    "crossover",
    "flow_map",
    "frequencies",
    "log_snr_at",
    "power",
    "power_law",
    "radial_average",
    "rapsd",
    "rings",
    "share",
    "spectrum",
    "variance",
    "wiener",
    "wiener_denoiser",
]


def spectrum(x: Sample, *, space: int = 2) -> Sample:
    """h_k = N^{-1/2} sum_j x_j cas(2 pi k.j/n), in the shape of x: Hartley's transform, the inverse of itself.  Bracewell 1983.

    Of a stationary field of mean zero the h_k are uncorrelated, with variances S_k = S_{-k}; of white noise they are white noise.
    It is the real part of the orthonormal Fourier transform less the imaginary one, by products with n x n matrices in which
    no digit is lost: 2 n products for a number and an axis.
    Raises: ValueError where x has fewer axes than space.
    Theorems: white-noise-unitary.
    """
    even, odd = _waves(x, space)
    return even + odd


def power(x: Sample, *, space: int = 2) -> jax.Array:
    """|x_k|^2 of the orthonormal Fourier transform, in the shape of x: (h_k^2 + h_{-k}^2)/2.  Its sum is that of x^2.

    Raises: ValueError where x has fewer axes than space.
    Theorems: white-noise-unitary.
    """
    even, odd = _waves(x, space)
    return even**2 + odd**2


def _waves(x: Sample, space: int) -> tuple[jax.Array, jax.Array]:
    """N^{-1/2} sum_j x_j (cos, sin)(2 pi k.j/n): angles of axes add."""
    _require_space(x, space)
    even, odd = (_along(table, x, 0) for table in _tables(x.shape[0], x.dtype))
    for axis in range(1, space):
        cos, sin = _tables(x.shape[axis], x.dtype)
        even, odd = (
            _along(cos, even, axis) - _along(sin, odd, axis),
            _along(sin, even, axis) + _along(cos, odd, axis),
        )
    return even, odd


def _along(table: jax.Array, x: Sample, axis: int) -> jax.Array:
    return jnp.moveaxis(jnp.tensordot(table, x, (1, axis), precision="highest"), 0, axis)


def _tables(n: int, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """n^{-1/2} (cos, sin)(2 pi k j/n), the whole turns taken away while they are whole numbers."""
    angle = 2 * math.pi / n * jnp.asarray(np.outer(np.arange(n), np.arange(n)) % n, dtype)
    return jnp.cos(angle) / math.sqrt(n), jnp.sin(angle) / math.sqrt(n)


def _require_space(x: Sample, space: int) -> None:
    require(lambda space, shape: 0 < space <= len(shape), "space must be the first axes of a sample, one at least",
            space=space, shape=jnp.shape(x))  # fmt: skip


def frequencies(shape: tuple[int, ...]) -> jax.Array:
    """|f| of each place of a spectrum of this shape, in cycles a pixel: f_i = min(k_i, n_i - k_i)/n_i, at most 1/2 along an axis.

    Raises: ValueError where there is no axis, or one without pixels.
    Theorems: rapsd-scaling.
    """
    return jnp.asarray(_radii(shape), jnp.result_type(float))


def _radii(shape: tuple[int, ...]) -> np.ndarray:
    _require_pixels(shape)
    axes = [np.minimum(np.arange(n), n - np.arange(n)) / n for n in shape]
    return np.sqrt(sum(part**2 for part in np.meshgrid(*axes, indexing="ij")))


def _require_pixels(shape: tuple[int, ...]) -> None:
    require(lambda shape: len(shape) > 0 and min(shape) > 0, "shape must have an axis, and each a pixel", shape=shape)


def rings(shape: tuple[int, ...]) -> jax.Array:
    """The frequencies r/n, r = 0 ... n//2, of `radial_average` over a spectrum of this shape: n is its longest axis.

    Raises: ValueError where there is no axis, or one without pixels.
    Theorems: rapsd-scaling.
    """
    _require_pixels(shape)
    return jnp.arange(max(shape) // 2 + 1) / max(shape)


def radial_average(values: jax.Array, *, space: int = 2) -> jax.Array:
    """The mean over each ring |n |f| - r| <= 1/2 of values at the places of a spectrum, of shape (n//2 + 1, channels ...).

    A place halfway between two rings is of one of them, the corners beyond the last ring are of none.
    Raises: ValueError where values have fewer axes than space.
    Theorems: rapsd-scaling.
    """
    _require_space(values, space)
    grid, channels = values.shape[:space], values.shape[space:]
    n = max(grid)
    place = np.rint(n * _radii(grid)).astype(int).reshape(-1)
    sums = jnp.zeros((n // 2 + 1, *channels), values.dtype).at[place].add(values.reshape(-1, *channels), mode="drop")
    count = np.bincount(place)[: n // 2 + 1].reshape(-1, *(1 for _ in channels))
    return sums / jnp.asarray(count, values.dtype)


def rapsd(pictures: Sample, *, space: int = 2) -> jax.Array:
    """The radially averaged power spectral density of a batch (n, h, w) or (n, h, w, c), at the frequencies of `rings`.

    One in every ring for white noise; its first ring holds the squared mean of all pixels, so the mean picture is better taken away.
    Raises: ValueError where pictures have no batch, or fewer axes than space.
    Theorems: rapsd-scaling.
    """
    require(lambda space, shape: 0 < space < len(shape), "pictures must be a batch (n, ...), with space behind n",
            space=space, shape=jnp.shape(pictures))  # fmt: skip
    averages = jax.vmap(lambda x: radial_average(power(x, space=space), space=space))(pictures)
    return jnp.mean(averages, axis=(0, *range(2, averages.ndim)))


def log_snr_at(power: jax.Array, log_snr: jax.Array) -> jax.Array:
    """lambda_k = lambda + log S_k: the log-SNR at each frequency, -inf where S_k = 0.  Dieleman 2024.

    Theorems: white-noise-unitary, spectral-autoregression-pfode.
    """
    return log_snr + jnp.log(power)


def variance(power: jax.Array, p: Point) -> jax.Array:
    """V_k = alpha^2 S_k + sigma^2: the power of z at each frequency, a hinge where signal and noise cross.

    Theorems: rapsd-scaling, spectral-autoregression-pfode.
    """
    return p.alpha**2 * power + p.sigma**2


def share(power: jax.Array, log_snr: jax.Array) -> jax.Array:
    """alpha^2 S_k / V_k = sigmoid(lambda + log S_k): how much of z_k is signal, and of x_k known, 1 - E(x_k - E[x_k | z])^2/S_k.

    Every mode switches on by the same soft step, half at lambda = -log S_k and from 12 to 88 percent within 2 of it: where S falls
    with frequency, coarse before fine.
    Theorems: spectral-autoregression-pfode, perspective-autoregressive.
    """
    return jax.nn.sigmoid(log_snr_at(power, log_snr))


def wiener(z: Sample, power: jax.Array, p: Point) -> Sample:
    """x0_hat_k = alpha S_k / (alpha^2 S_k + sigma^2) z_k, from a spectrum to a spectrum.  Wiener 1949.

    A low-pass filter where S falls.  `power` is of the shape of z, or of its first axes and the same for all channels.
    At sigma = 0 it is z_k/alpha, at alpha = 0 or S_k = 0 zero.
    Raises: ValueError where power has another shape.
    Theorems: wiener-is-gaussian-denoiser.
    """
    power, size = _over(power, z), _size(p)
    alpha, sigma = p.alpha / size, p.sigma / size
    total = alpha * (alpha * power) + sigma**2
    known = total > 0
    return jnp.where(known, alpha * power / jnp.where(known, total, 1), 0) / size * z


def wiener_denoiser(power: jax.Array, mean: Sample, schedule: Schedule, *, space: int = 2) -> Denoiser:
    """(z, t) -> mean + W (z - alpha mean), W the Wiener filter: E[x0 | z] of a stationary Gaussian field, and the best linear
    guess that treats all places alike for any other data of this mean and power.

    `power` is that of x0 - mean, of the shape of z or of its space.
    Raises: ValueError where power has fewer axes than space, is negative, or differs between k and -k by more than rounding.
    Theorems: wiener-is-gaussian-denoiser.
    """
    _require_space(power, space)
    require(_is_power, "power must not be negative, and the same at k as at -k", power=power, space=space)

    def denoise(z: Sample, t: Time) -> Sample:
        p = at(schedule, t)
        return mean + spectrum(wiener(spectrum(z - p.alpha * mean, space=space), power, p), space=space)

    return denoise


def _is_power(power: np.ndarray, space: int) -> np.ndarray:
    """To a thousandth of the largest: means over many pictures round k and -k apart."""
    turned = power
    for axis in range(space):
        turned = np.roll(np.flip(turned, axis), 1, axis)
    return (power >= 0) & (np.abs(power - turned) <= 1e-3 * np.max(power))


def flow_map(z: Sample, power: jax.Array, p: Point, q: Point) -> Sample:
    """z_k(s) = (V_k(s)/V_k(t))^{1/2} z_k(t): the probability flow of a stationary Gaussian field, on the spectrum of z - alpha mean.

    q may be cleaner or noisier.  Undefined where sigma_t = 0 and S_k = 0.
    Raises: ValueError where power has another shape than z or its first axes.
    Theorems: spectral-autoregression-pfode.
    """
    power = _over(power, z)
    return _std(power, q) / _std(power, p) * z


def _std(power: jax.Array, p: Point) -> jax.Array:
    size = _size(p)
    return size * jnp.sqrt(p.alpha / size * (p.alpha / size * power) + (p.sigma / size) ** 2)


def _size(p: Point) -> jax.Array:
    """max(alpha, sigma), a unit in which neither square vanishes unseen."""
    return jax.lax.stop_gradient(jnp.maximum(p.alpha, p.sigma))


def _over(power: jax.Array, z: Sample) -> jax.Array:
    require(lambda power, z: z[: len(power)] == power, "power must have the shape of z, or of its first axes",
            power=jnp.shape(power), z=jnp.shape(z))  # fmt: skip
    return power.reshape(power.shape + (1,) * (z.ndim - power.ndim))


def crossover(frequency: jax.Array, power: jax.Array, log_snr: jax.Array, *, threshold: float = 1.0) -> jax.Array:
    """f_max = max{f : S(f) > tau sigma^2/alpha^2}: the last frequency whose signal is above the noise, zero where none is.

    It rises with log-SNR whatever the spectrum; all frequencies below it are above the noise only where S falls.
    Raises: ValueError where frequency and power differ in shape, or threshold is not positive.
    Theorems: max-detectable-frequency.
    """
    require(lambda frequency, power: frequency == power, "frequency and power must have the same shape",
            frequency=jnp.shape(frequency), power=jnp.shape(power))  # fmt: skip
    require(lambda threshold: threshold > 0, "threshold must be positive", threshold=threshold)
    return jnp.max(jnp.where(log_snr_at(power, log_snr) > jnp.log(threshold), frequency, 0))


@pytree
class PowerLaw:
    """S(f) = scale f^-exponent.  Natural images have an exponent of about 2.  van der Schaaf & van Hateren 1996.

    Raises: ValueError where scale is not positive.
    Theorems: max-detectable-frequency.
    """

    scale: jax.Array | float
    exponent: jax.Array | float

    def __post_init__(self) -> None:
        require(lambda scale: scale > 0, "scale must be positive", scale=self.scale)

    def __call__(self, frequency: jax.Array) -> jax.Array:
        return self.scale * frequency**-self.exponent

    def crossover(self, log_snr: jax.Array, *, threshold: float = 1.0) -> jax.Array:
        """f_max = (C e^lambda / tau)^{1/a}.  nan where the exponent is not positive: then no frequency is the last.

        Raises: ValueError where threshold is not positive.
        Theorems: max-detectable-frequency.
        """
        require(lambda threshold: threshold > 0, "threshold must be positive", threshold=threshold)
        falls = jnp.asarray(self.exponent) > 0
        exponent = jnp.where(falls, self.exponent, 1)
        return jnp.where(falls, jnp.exp((log_snr_at(self.scale, log_snr) - jnp.log(threshold)) / exponent), jnp.nan)


def power_law(frequency: jax.Array, power: jax.Array) -> PowerLaw:
    """The line through log S against log f that has the least squared error, as a power law; each frequency counts the same.

    Raises: ValueError where the two differ in shape, hold fewer than two values, or one that is not positive.
    Theorems: max-detectable-frequency.
    """
    require(lambda frequency, power: frequency == power and math.prod(power) >= 2,
            "frequency and power must have the same shape, of two values at least",
            frequency=jnp.shape(frequency), power=jnp.shape(power))  # fmt: skip
    require(lambda frequency, power: (frequency > 0) & (power > 0), "frequency and power must be positive",
            frequency=frequency, power=power)  # fmt: skip
    x, y = jnp.log(frequency), jnp.log(power)
    away = x - jnp.mean(x)
    exponent = -jnp.sum(away * y) / jnp.sum(away**2)
    return PowerLaw(jnp.exp(jnp.mean(y) + exponent * jnp.mean(x)), exponent)
