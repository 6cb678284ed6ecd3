"""Predictions: whatever a network is trained to output is a linear form in data and noise.

    value = a x0 + b eps,      z = alpha x0 + sigma eps

Two equations, two unknowns: one 2 x 2 solve converts any prediction into any other.  Its determinant alpha b - sigma a is
the domain of every conversion, and the factor of every weighting identity: for one and the same x0_hat, the error of
value is (alpha b - sigma a)/sigma times the error of x0_hat.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffeq_gen.paths import require_same_shape
from diffeq_gen.schedules import at
from diffeq_gen.types import Denoiser, Point, Prediction, Sample, Schedule, Time, require

__all__ = [
    "Preconditioning",
    "convert",
    "data",
    "denoiser",
    "determinant",
    "edm",
    "noise",
    "preconditioning",
    "score",
    "v",
    "velocity",
]


def data(p: Point) -> tuple[jax.Array, jax.Array]:
    """x0 = 1 x0 + 0 eps.  Regular as alpha -> 0; no eps can be had from it at sigma = 0.

    Theorems: path-conversions.
    """
    return jnp.ones_like(p.alpha), jnp.zeros_like(p.alpha)


def noise(p: Point) -> tuple[jax.Array, jax.Array]:
    """eps = 0 x0 + 1 eps.  Ho et al. 2020.  Regular as sigma -> 0; no x0 can be had from it at alpha = 0.

    Theorems: path-conversions, score-eps-x-link.
    """
    return jnp.zeros_like(p.sigma), jnp.ones_like(p.sigma)


def score(p: Point) -> tuple[jax.Array, jax.Array]:
    """grad log q(z | x0) = -eps / sigma.  Vincent 2011.  Grows without bound as sigma -> 0.

    Theorems: score-eps-x-link, tweedie-first, erratum-e6-sign-of-the-score, coupling-breaks-score, perspective-score.
    """
    return jnp.zeros_like(p.sigma), -1 / p.sigma


def v(p: Point) -> tuple[jax.Array, jax.Array]:
    """v = alpha eps - sigma x0.  Salimans & Ho 2022, App. D.  Regular at both ends.

    Theorems: v-is-orthogonal-only-in-vp, edm-f-is-minus-v.
    """
    return -p.sigma, p.alpha


def velocity(p: Point) -> tuple[jax.Array, jax.Array]:
    """u = alpha' x0 + sigma' eps = dz/dt.  Lipman et al. 2023, with time from data (0) to noise (1).

    Theorems: velocity-is-pfode-drift.
    """
    return p.alpha_dot, p.sigma_dot


def edm(sigma_data: float) -> Prediction:
    """F = (x0 - c_skip z/alpha) / c_out = (sigma x0 / sigma_d - alpha sigma_d eps) / r,  r^2 = sigma^2 + alpha^2 sigma_d^2.

    The raw network of Karras et al. 2022, Eq. 7, as a linear form.  `sigma_data` is the standard deviation of the data.
    Raises: ValueError where sigma_data is not positive.
    Theorems: edm-f-is-minus-v, edm-preconditioning.
    """
    require(lambda sigma_data: sigma_data > 0, "sigma_data must be positive", sigma_data=sigma_data)

    def edm(p: Point) -> tuple[jax.Array, jax.Array]:
        r = jnp.sqrt(p.sigma**2 + (p.alpha * sigma_data) ** 2)
        return p.sigma / (sigma_data * r), -p.alpha * sigma_data / r

    return edm


def determinant(prediction: Prediction, p: Point) -> jax.Array:
    """alpha b - sigma a of a prediction (a, b): zero exactly where it says nothing about x0 that z does not say.

    Theorems: path-conversions, determinant-is-the-error-factor, perspective-expectation.
    """
    a, b = prediction(p)
    return p.alpha * b - p.sigma * a


def convert(value: Sample, z: Sample, p: Point, source: Prediction, target: Prediction) -> Sample:
    """target = ((a' b - a b') z + (alpha b' - sigma a') value) / (alpha b - sigma a).  Gao et al. 2024, 'Prediction'.

    Solves z = alpha x0 + sigma eps, value = a x0 + b eps for a' x0 + b' eps, in one step: never by way of eps, whose
    division by alpha or sigma a conversion between v, u and F does not need.
    Raises: ValueError where value and z differ in shape, or the source determines no x0 at this log-SNR.
    Theorems: path-conversions, conversions-compose, edm-f-is-minus-v, edm-legacy-precond.
    """
    require_same_shape(value=value, z=z)
    if source is target:
        return value
    (a, b), (a_target, b_target) = source(p), target(p)
    det = p.alpha * b - p.sigma * a
    require(lambda det, log_snr: (abs(det) > 0) & (abs(det) < math.inf),
            f"{_name(source)} does not determine {_name(target)} here: alpha b - sigma a must be finite and not zero",
            determinant=det, log_snr=p.log_snr)  # fmt: skip
    return (a_target * b - a * b_target) / det * z + (p.alpha * b_target - p.sigma * a_target) / det * value


def _name(prediction: Prediction) -> str:
    return getattr(prediction, "__name__", repr(prediction))


class Preconditioning(NamedTuple):
    """x0_hat(z) = skip z + out F(input z, noise): how a network of unit scale becomes a denoiser."""

    skip: jax.Array
    out: jax.Array
    input: jax.Array
    noise: jax.Array


def preconditioning(p: Point, sigma_data: float) -> Preconditioning:
    """skip = alpha sigma_d^2 / r^2, out = sigma sigma_d / r, input = 1/r, noise = -lambda/8,  r^2 = sigma^2 + alpha^2 sigma_d^2.

    Karras et al. 2022, Table 1 (there alpha = 1 and noise = log(sigma)/4): input and target of F have variance one, and
    `out` is as small as that allows.
    Raises: ValueError where sigma_data is not positive.
    Theorems: edm-preconditioning.
    """
    require(lambda sigma_data: sigma_data > 0, "sigma_data must be positive", sigma_data=sigma_data)
    r = jnp.sqrt(p.sigma**2 + (p.alpha * sigma_data) ** 2)
    return Preconditioning(
        skip=p.alpha * sigma_data**2 / r**2, out=p.sigma * sigma_data / r, input=1 / r, noise=-p.log_snr / 8
    )


def denoiser(network: Callable[[Sample, Time], Sample], schedule: Schedule, prediction: Prediction) -> Denoiser:
    """(z, t) -> E[x0 | z] from a network (z, t) -> value that was trained on `prediction`.

    Theorems: path-conversions, perspective-autoencoder.
    """

    def denoise(z: Sample, t: Time) -> Sample:
        return convert(network(z, t), z, at(schedule, t), prediction, data)

    return denoise
