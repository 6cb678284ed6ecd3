"""A mixture of Gaussians fitted to points by expectation-maximisation: a cheap denoiser, wherever the points are of low dimension.

    r_ik  = w_k N(y_i; m_k, S_k) / sum_l w_l N(y_i; m_l, S_l)
    w_k   = mean_i r_ik,    m_k = sum_i r_ik y_i / sum_i r_ik,    S_k = (sum_i r_ik (y_i - m_k)(y_i - m_k)^T + a S) / (sum_i r_ik + a)

S is the covariance within components, a = d/2 the points it is worth.  The number of components is doubled as long as that
makes a fifth of the points, held out, likelier, and leaves 8 d points to each: it stays at one, the plain Gaussian, where no
mixture is affordable.
"""

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen.types import dot, pytree, require

__all__ = ["Components", "denoise_components", "fit"]

ROUNDS = 40
POINTS_PER_DIMENSION = 8
FLOOR = 1e-3
"""The smallest std of a component, in units of that of all points."""


@pytree
class Components:
    """sum_k weights_k N(means_k, bases_k diag(variances_k) bases_k^T): shapes (k,), (k, d), (k, d, d), (k, d).

    Raises: ValueError where the shapes do not match, or a weight or a variance is not positive.
    Theorems: components-denoise-as-their-mixture.
    """

    weights: jax.Array
    means: jax.Array
    bases: jax.Array
    variances: jax.Array

    def __post_init__(self) -> None:
        shapes = [jnp.shape(leaf) for leaf in (self.weights, self.means, self.bases, self.variances)]
        require(lambda weights, means, bases, variances: len(means) == 2 and weights == means[:1]
                and bases == (*means, means[-1]) and variances == means,
                "weights, means, bases and variances must be (k,), (k, d), (k, d, d) and (k, d)",
                weights=shapes[0], means=shapes[1], bases=shapes[2], variances=shapes[3])  # fmt: skip
        require(lambda weights: weights > 0, "weights must be positive", weights=self.weights)
        require(lambda variances: variances > 0, "variances must be positive", variances=self.variances)


def denoise_components(known: Components, y: jax.Array, ratio: jax.Array) -> jax.Array:
    """E[x0 | x0 + ratio eps = y] of each row of y, shape (n, d).

    Theorems: components-denoise-as-their-mixture.
    """

    def one(weight: jax.Array, mean: jax.Array, basis: jax.Array, variance: jax.Array) -> tuple[jax.Array, jax.Array]:
        turned, total = dot(y - mean[None], basis), (variance + ratio**2)[None]
        logit = jnp.log(weight) - jnp.sum(turned * turned / total + jnp.log(total), axis=1) / 2
        return logit, mean[None] + dot(variance[None] / total * turned, basis.T)

    logits, x0s = jax.vmap(one)(known.weights, known.means, known.bases, known.variances)
    return jnp.sum(jax.nn.softmax(logits, axis=0)[..., None] * x0s, axis=0)


def fit(points: np.ndarray, *, seed: int = 0, most: int = 64) -> Components | None:
    """A mixture of 2, 4, ... `most` components of the law of points (n, d), or None where one Gaussian is as good.

    Raises: ValueError where points is not of shape (n, d).
    """
    require(lambda shape: len(shape) == 2, "points must be (n, d)", points=np.shape(points))
    rows = np.random.default_rng(seed).permutation(np.asarray(points, np.float64))
    n, d = rows.shape
    train, held = rows[: n - n // 5], rows[n - n // 5 :]
    likelihood, k = -np.inf, 1
    while k <= most and n >= POINTS_PER_DIMENSION * d * k:
        before, likelihood = likelihood, np.mean(_log_sum(_logits(held, *_maximise(train, k, seed))))
        if likelihood <= before:
            break
        k *= 2
    if k <= 2:
        return None
    weights, means, covs = _maximise(rows, k // 2, seed)
    variances, bases = np.linalg.eigh(covs)
    return Components(weights, means, bases, variances)


def _maximise(rows: np.ndarray, k: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(weights, means, covs) after ROUNDS of the two steps, from centres far apart (k-means++, Arthur & Vassilvitskii 2007)."""
    rng, (n, d) = np.random.default_rng(seed), rows.shape
    floor = FLOOR**2 * np.mean(np.var(rows, axis=0)) * np.eye(d)
    means = rows[rng.integers(n)][None]
    while len(means) < k:
        nearest = np.min(_distances(rows, means), axis=1)
        means = np.concatenate([means, rows[rng.choice(n, p=nearest / nearest.sum())][None]])
    for _ in range(20):
        r = np.eye(k)[np.argmin(_distances(rows, means), axis=1)]
        means = (r.T.dot(rows) + 1e-9 * means) / (r.sum(0)[:, None] + 1e-9)
    for _ in range(ROUNDS):
        mass = r.sum(0) + 1e-9
        weights, means = mass / mass.sum(), (r.T.dot(rows) + 1e-9 * rows.mean(0)) / mass[:, None]
        scatter = np.stack(
            [(rows - mean).T.dot((rows - mean) * one[:, None]) for mean, one in zip(means, r.T, strict=True)]
        )
        within = scatter.sum(0) / n
        covs = (scatter + d / 2 * within) / (mass[:, None, None] + d / 2) + floor
        logits = _logits(rows, weights, means, covs)
        r = np.exp(logits - _log_sum(logits)[:, None])
    return weights, means, covs


def _logits(rows: np.ndarray, weights: np.ndarray, means: np.ndarray, covs: np.ndarray) -> np.ndarray:
    """log w_k N(rows; m_k, S_k) without the constant: shape (n, k)."""
    parts = []
    for weight, mean, (variance, basis) in zip(weights, means, map(np.linalg.eigh, covs), strict=True):
        energy = np.sum((rows - mean).dot(basis) ** 2 / variance + np.log(variance), axis=1)
        parts.append(np.log(weight) - energy / 2)
    return np.stack(parts, axis=1)


def _log_sum(logits: np.ndarray) -> np.ndarray:
    top = logits.max(1)
    return top + np.log(np.sum(np.exp(logits - top[:, None]), axis=1))


def _distances(rows: np.ndarray, means: np.ndarray) -> np.ndarray:
    """|row - mean|^2, shape (n, k)."""
    products = rows.dot(means.T)
    return np.maximum(np.sum(rows**2, 1)[:, None] - 2 * products + np.sum(means**2, 1)[None], 0)
