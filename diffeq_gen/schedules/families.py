"""The families of the literature, each in the form that keeps its digits at both ends: sigma near t = 0, alpha near t = 1.

    Flow  Cosine  IDDPM  VP  SubVP  VE  EDM  Sigmoid  Laplace:        t -> (alpha, sigma)

Where log-SNR or its inverse has a closed form, the family carries it as ``log_snr(t)`` and ``time_at(log_snr)``.
"""

import math

import jax
import jax.numpy as jnp

from diffeq_gen.schedules.reading import variance_preserving
from diffeq_gen.types import Time, pytree, require

__all__ = ["EDM", "IDDPM", "VE", "VP", "Cosine", "Flow", "Laplace", "Sigmoid", "SubVP"]


@pytree
class Flow:
    """alpha = 1 - t, sigma = t: flow matching, rectified flow.  Lipman et al. 2023; Liu et al. 2023 (time reversed).

    Theorems: schedule-catalogue, fm-as-sde, ddim-equals-fm-euler, lambda-parametrisations,
    erratum-e2-scale-is-a-square-root.
    """

    def __call__(self, t: Time) -> tuple[jax.Array, jax.Array]:
        return 1 - t, jnp.asarray(t)

    def log_snr(self, t: Time) -> jax.Array:
        """lambda = 2 log((1 - t) / t)."""
        return 2 * (jnp.log1p(-t) - jnp.log(t))

    def time_at(self, log_snr: jax.Array) -> jax.Array:
        """t = sigmoid(-lambda / 2)."""
        return jax.nn.sigmoid(-log_snr / 2)


@pytree
class Cosine:
    """lambda = -2 log tan(theta) + shift, theta linear in t, alpha^2 + sigma^2 = 1.  Hoogeboom et al. 2023, 'Simple diffusion'.

    Unshifted and unclipped: alpha = cos(pi t / 2), sigma = sin(pi t / 2) (Nichol & Dhariwal 2021, Eq. 17 at s = 0).
    `shift` adds to log-SNR; `log_snr_min`, `log_snr_max` are its values at t = 1 and t = 0.  The complement of theta is
    carried beside it, so that alpha(1) is 0 and not cos(float32 pi / 2) = -4e-8.
    Raises: ValueError where log_snr_min is not below log_snr_max.
    Theorems: schedule-catalogue, cosine-is-constant-speed, erratum-e5-cosine-offset.
    """

    shift: float = 0.0
    log_snr_min: float = -math.inf
    log_snr_max: float = math.inf

    def __post_init__(self) -> None:
        require(lambda low, high: low < high, "log_snr_min must be below log_snr_max",
                log_snr_min=self.log_snr_min, log_snr_max=self.log_snr_max)  # fmt: skip

    def _ends(self) -> tuple[jax.Array, jax.Array]:
        """theta at t = 0 and pi/2 - theta at t = 1."""
        return (
            jnp.arctan(jnp.exp((self.shift - self.log_snr_max) / 2)),
            jnp.arctan(jnp.exp((self.log_snr_min - self.shift) / 2)),
        )

    def _sines(self, t: Time) -> tuple[jax.Array, jax.Array]:
        """cos(theta) and sin(theta), each as the sine of an angle that is small where it is small."""
        first, last = self._ends()
        return (
            jnp.sin(t * last + (1 - t) * (math.pi / 2 - first)),
            jnp.sin((1 - t) * first + t * (math.pi / 2 - last)),
        )

    def __call__(self, t: Time) -> tuple[jax.Array, jax.Array]:
        cos, sin = self._sines(t)
        cos, sin = cos * jnp.exp(self.shift / 4), sin * jnp.exp(-self.shift / 4)
        norm = jnp.sqrt(cos * cos + sin * sin)
        return cos / norm, sin / norm

    def log_snr(self, t: Time) -> jax.Array:
        """lambda = shift - 2 log tan(theta)."""
        cos, sin = self._sines(t)
        return self.shift + 2 * (jnp.log(cos) - jnp.log(sin))

    def time_at(self, log_snr: jax.Array) -> jax.Array:
        """t = (arctan e^{(shift - lambda)/2} - theta(0)) / (theta(1) - theta(0))."""
        first, last = self._ends()
        return (jnp.arctan(jnp.exp((self.shift - log_snr) / 2)) - first) / (math.pi / 2 - last - first)


@pytree
class IDDPM:
    """alpha = cos(theta) / cos(theta_0), theta = (t + s)/(1 + s) pi/2, sigma^2 = 1 - alpha^2.  Nichol & Dhariwal 2021, Eq. 17.

    sigma^2 = sin(theta - theta_0) sin(theta + theta_0) / cos^2(theta_0) keeps its digits as t -> 0.
    Raises: ValueError where s is not positive.
    Theorems: schedule-catalogue, erratum-e5-cosine-offset.
    """

    s: float = 0.008

    def __post_init__(self) -> None:
        require(lambda s: s > 0, "s must be positive (Cosine() is s = 0)", s=self.s)

    def _offset(self) -> jax.Array:
        return math.pi / 2 * self.s / (1 + self.s)

    def _squares(self, t: Time) -> tuple[jax.Array, jax.Array]:
        first, turn = self._offset(), math.pi / 2 * t / (1 + self.s)
        alpha = jnp.sin(math.pi / 2 * (1 - t) / (1 + self.s)) / jnp.cos(first)
        return alpha, jnp.sin(turn) * jnp.sin(turn + 2 * first) / jnp.cos(first) ** 2

    def __call__(self, t: Time) -> tuple[jax.Array, jax.Array]:
        alpha, variance = self._squares(t)
        return alpha, jnp.sqrt(variance)

    def log_snr(self, t: Time) -> jax.Array:
        """lambda = 2 log(alpha) - log(sigma^2)."""
        alpha, variance = self._squares(t)
        return 2 * jnp.log(alpha) - jnp.log(variance)

    def time_at(self, log_snr: jax.Array) -> jax.Array:
        """tan(theta - theta_0) from sin(theta - theta_0) sin(theta + theta_0) = sigma^2 cos^2(theta_0)."""
        alpha, sigma = variance_preserving(log_snr)
        sin_0, cos_0 = jnp.sin(self._offset()), jnp.cos(self._offset())
        cos, sin = cos_0 * alpha, jnp.sqrt(sin_0**2 + (cos_0 * sigma) ** 2)
        turn = jnp.arctan2((cos_0 * sigma) ** 2 / (sin * cos_0 + cos * sin_0), cos * cos_0 + sin * sin_0)
        return turn * (1 + self.s) / (math.pi / 2)


@pytree
class VP:
    """alpha = e^{-B/2}, sigma^2 = 1 - e^{-B}, B = beta_min t + (beta_max - beta_min) t^2 / 2.  Song et al. 2021, Eq. 11.

    Raises: ValueError where beta_min is not positive or exceeds beta_max.
    Theorems: schedule-catalogue, vp-sde, ddpm-discrete-limit.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        require(lambda low: low > 0, "beta_min must be positive", beta_min=self.beta_min)
        require(lambda low, high: low <= high, "beta_max must be at least beta_min",
                beta_min=self.beta_min, beta_max=self.beta_max)  # fmt: skip

    def exponent(self, t: Time) -> jax.Array:
        """B(t) = integral of beta from 0 to t."""
        return t * (self.beta_min + t * (self.beta_max - self.beta_min) / 2)

    def time_of(self, exponent: jax.Array) -> jax.Array:
        """The root 2 B / (beta_min + sqrt(beta_min^2 + 2 (beta_max - beta_min) B)), free of cancellation as B -> 0."""
        root = jnp.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * exponent)
        return 2 * exponent / (self.beta_min + root)

    def __call__(self, t: Time) -> tuple[jax.Array, jax.Array]:
        return jnp.exp(-self.exponent(t) / 2), jnp.sqrt(-jnp.expm1(-self.exponent(t)))

    def log_snr(self, t: Time) -> jax.Array:
        """lambda = -log expm1(B) = -B - log(1 - e^{-B})."""
        return -self.exponent(t) - jnp.log(-jnp.expm1(-self.exponent(t)))

    def time_at(self, log_snr: jax.Array) -> jax.Array:
        """B = softplus(-lambda), then its root."""
        return self.time_of(jax.nn.softplus(-log_snr))


@pytree
class SubVP:
    """alpha = e^{-B/2}, sigma = 1 - e^{-B} = 1 - alpha^2.  Song et al. 2021, Eq. 29.  Not the flow path.

    Raises: ValueError where beta_min is not positive or exceeds beta_max.
    Theorems: schedule-catalogue, subvp-sde, erratum-e7-subvp-is-not-flow.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        VP(self.beta_min, self.beta_max)

    def __call__(self, t: Time) -> tuple[jax.Array, jax.Array]:
        exponent = VP(self.beta_min, self.beta_max).exponent(t)
        return jnp.exp(-exponent / 2), -jnp.expm1(-exponent)

    def log_snr(self, t: Time) -> jax.Array:
        """lambda = -B - 2 log(1 - e^{-B})."""
        exponent = VP(self.beta_min, self.beta_max).exponent(t)
        return -exponent - 2 * jnp.log(-jnp.expm1(-exponent))

    def time_at(self, log_snr: jax.Array) -> jax.Array:
        """alpha solves k alpha^2 + alpha = k with k = e^{lambda/2}, so sigma = 2 / (1 + sqrt(1 + 4 k^2)) and alpha = k sigma."""
        k = jnp.exp(log_snr / 2)
        sigma = 2 / (1 + jnp.sqrt(1 + 4 * k * k))
        exponent = jnp.where(k > 1, -jnp.log1p(-jnp.where(k > 1, sigma, 0)), -2 * jnp.log(k * sigma))
        return VP(self.beta_min, self.beta_max).time_of(exponent)


@pytree
class VE:
    """alpha = 1, sigma = sigma_min^{1-t} sigma_max^t.  Song et al. 2021, Eq. 30; data of unit scale assumed.

    The SDE with g^2 = d sigma^2/dt started at t = 0 from data has kernel variance sigma^2 - sigma_min^2, not sigma^2.
    Raises: ValueError where 0 < sigma_min < sigma_max fails.
    Theorems: schedule-catalogue, ve-marginal-offset, erratum-e8-ve-kernel-variance.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        _require_sigmas(self.sigma_min, self.sigma_max)

    def __call__(self, t: Time) -> tuple[jax.Array, jax.Array]:
        t = jnp.asarray(t)
        return jnp.ones_like(t), jnp.exp((1 - t) * jnp.log(self.sigma_min) + t * jnp.log(self.sigma_max))

    def log_snr(self, t: Time) -> jax.Array:
        """lambda = -2 log(sigma), affine in t."""
        return -2 * ((1 - t) * jnp.log(self.sigma_min) + t * jnp.log(self.sigma_max))

    def time_at(self, log_snr: jax.Array) -> jax.Array:
        """t = (-lambda/2 - log sigma_min) / log(sigma_max / sigma_min)."""
        low, high = jnp.log(self.sigma_min), jnp.log(self.sigma_max)
        return (-log_snr / 2 - low) / (high - low)


@pytree
class EDM:
    """alpha = 1, sigma^{1/rho} linear in t from sigma_min to sigma_max.  Karras et al. 2022, Eq. 5, as a clock on [0, 1].

    A uniform grid of t is the paper's grid of sigma.
    Raises: ValueError where 0 < sigma_min < sigma_max or rho > 0 fails.
    Theorems: schedule-catalogue, karras-rho-grid.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        _require_sigmas(self.sigma_min, self.sigma_max)
        require(lambda rho: rho > 0, "rho must be positive", rho=self.rho)

    def _root(self, t: Time) -> jax.Array:
        return (1 - t) * self.sigma_min ** (1 / self.rho) + t * self.sigma_max ** (1 / self.rho)

    def __call__(self, t: Time) -> tuple[jax.Array, jax.Array]:
        t = jnp.asarray(t)
        return jnp.ones_like(t), self._root(t) ** self.rho

    def log_snr(self, t: Time) -> jax.Array:
        """lambda = -2 rho log(sigma^{1/rho})."""
        return -2 * self.rho * jnp.log(self._root(t))

    def time_at(self, log_snr: jax.Array) -> jax.Array:
        """t = (e^{-lambda/(2 rho)} - sigma_min^{1/rho}) / (sigma_max^{1/rho} - sigma_min^{1/rho})."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return (jnp.exp(-log_snr / (2 * self.rho)) - low) / (high - low)


@pytree
class Sigmoid:
    """alpha^2 = (v(1) - v(t)) / (v(1) - v(0)), v(t) = sigmoid((start + t (end - start)) / tau).  Jabri et al. 2022; Chen 2023.

    A difference of sigmoids is sinh((p - q)/2) / (2 cosh(p/2) cosh(q/2)), which keeps both ends exact.
    Raises: ValueError where start is not below end, or tau is not positive.
    Theorems: schedule-catalogue.
    """

    start: float = -3.0
    end: float = 3.0
    tau: float = 1.0

    def __post_init__(self) -> None:
        require(lambda start, end: start < end, "start must be below end", start=self.start, end=self.end)
        require(lambda tau: tau > 0, "tau must be positive", tau=self.tau)

    def _parts(self, t: Time) -> tuple[jax.Array, jax.Array]:
        """Numerators of alpha^2 and sigma^2; they add up to sinh(width) cosh(the middle)."""
        half = (self.end - self.start) / (2 * self.tau)
        data = jnp.sinh((1 - t) * half) * jnp.cosh(self.start / (2 * self.tau))
        return data, jnp.sinh(t * half) * jnp.cosh(self.end / (2 * self.tau))

    def __call__(self, t: Time) -> tuple[jax.Array, jax.Array]:
        data, noise = self._parts(t)
        return jnp.sqrt(data / (data + noise)), jnp.sqrt(noise / (data + noise))

    def log_snr(self, t: Time) -> jax.Array:
        """lambda = log sinh((1-t) w/2) cosh(start/2) - log sinh(t w/2) cosh(end/2), w = end - start, in units of tau."""
        data, noise = self._parts(t)
        return jnp.log(data) - jnp.log(noise)

    def time_at(self, log_snr: jax.Array) -> jax.Array:
        """t = log((R + e^{w/2}) / (R + e^{-w/2})) / w,  R = e^lambda cosh(end/2) / cosh(start/2)."""
        width = (self.end - self.start) / self.tau
        ratio = jnp.exp(log_snr) * jnp.cosh(self.end / (2 * self.tau)) / jnp.cosh(self.start / (2 * self.tau))
        return jnp.log1p(2 * jnp.sinh(width / 2) / (ratio + jnp.exp(-width / 2))) / width


@pytree
class Laplace:
    """lambda = mean - scale sgn(1/2 - t) log(1 - 2 |t - 1/2|), alpha^2 + sigma^2 = 1: log-SNR Laplace for uniform t.  Hang & Gu 2024.

    Raises: ValueError where scale is not positive.
    Theorems: schedule-catalogue.
    """

    mean: float = 0.0
    scale: float = 0.5

    def __post_init__(self) -> None:
        require(lambda scale: scale > 0, "scale must be positive", scale=self.scale)

    def __call__(self, t: Time) -> tuple[jax.Array, jax.Array]:
        return variance_preserving(self.log_snr(t))

    def log_snr(self, t: Time) -> jax.Array:
        """mean - scale log(2 t) in the first half, mean + scale log(2 (1 - t)) in the second."""
        return self.mean + self.scale * (jnp.log(jnp.minimum(2 - 2 * t, 1)) - jnp.log(jnp.minimum(2 * t, 1)))

    def time_at(self, log_snr: jax.Array) -> jax.Array:
        """t = e^{-u}/2 for u = (lambda - mean)/scale >= 0, 1 - e^{u}/2 for u < 0."""
        u = (log_snr - self.mean) / self.scale
        tail = jnp.exp(-jnp.abs(u)) / 2
        return jnp.where(u > 0, tail, 1 - tail)


def _require_sigmas(sigma_min: float, sigma_max: float) -> None:
    require(lambda low: low > 0, "sigma_min must be positive", sigma_min=sigma_min)
    require(lambda low, high: low < high, "sigma_max must exceed sigma_min", sigma_min=sigma_min, sigma_max=sigma_max)
