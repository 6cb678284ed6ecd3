"""A mixture of Gaussians fitted to points by expectation-maximisation: a cheap denoiser, wherever the points are of low dimension.

    r_ik  = w_k N(y_i; m_k, S_k) / sum_l w_l N(y_i; m_l, S_l)
    w_k   = mean_i r_ik,    m_k = sum_i r_ik y_i / sum_i r_ik,    S_k = (sum_i r_ik (y_i - m_k)(y_i - m_k)^T + a S) / (sum_i r_ik + a)

S is the covariance within components, a = d/2 the points it is worth.  It starts from centres far apart (k-means++) after some
rounds of Lloyd's, in which a point belongs to its nearest centre alone.  The number of components is doubled as long as that
makes a fifth of the points, held out, likelier, and leaves 8 d points to each: it stays at one, the plain Gaussian, where no
mixture is affordable.
"""

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen.types import dot, pytree, require

__all__ = [
    "Components",
    "centres_apart",
    "denoise_components",
    "expectation_maximised",
    "fit",
    "held_out",
    "log_joint",
    "maximised",
    "nearest_centre",
    "responsibilities",
]

ROUNDS = 40
LLOYD_ROUNDS = 20
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
                and bases == (*means, *means[1:]) and variances == means,
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

    Fewer where fewer points differ, or some are left without points.
    Raises: ValueError where points is not of shape (n, d).
    """
    require(lambda shape: len(shape) == 2, "points must be (n, d)", points=np.shape(points))
    rows = np.random.default_rng(seed).permutation(np.asarray(points, np.float64))
    (n, d), (train, held) = rows.shape, held_out(rows)
    best, found, k = -np.inf, 1, 1
    while k <= most and n >= POINTS_PER_DIMENSION * d * k and np.ptp(rows, axis=0).any():
        joint = log_joint(held, *expectation_maximised(np.random.default_rng(seed), train, k))
        likelihood = np.mean(np.logaddexp.reduce(joint, axis=1))
        if likelihood <= best:
            break
        best, found, k = likelihood, k, 2 * k
    if found == 1:
        return None
    weights, means, covs = expectation_maximised(np.random.default_rng(seed), rows, found)
    variances, bases = np.linalg.eigh(covs)
    return Components(weights, means, bases, variances)


def held_out(rows: np.ndarray) -> list[np.ndarray]:
    """(the first rows, the last fifth of them)."""
    return np.split(rows, [len(rows) - len(rows) // 5])


Parts = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Weights (k,), means (k, d) and covariances (k, d, d)."""


def expectation_maximised(rng: np.random.Generator, rows: np.ndarray, k: int) -> Parts:
    """(weights, means, covs) of k components at most, after ROUNDS of the two steps from the start."""
    means = centres_apart(rng, rows, k)
    for _ in range(LLOYD_ROUNDS):
        r = nearest_centre(rows, means)
        means = _means(rows, r)
    for _ in range(ROUNDS):
        parts = maximised(rows, r)
        r = responsibilities(rows, *parts)
    return parts


def centres_apart(rng: np.random.Generator, rows: np.ndarray, k: int) -> np.ndarray:
    """k rows, each drawn with chances as |row - nearest of those before|^2; fewer where fewer differ.  Arthur & Vassilvitskii 2007."""
    centres = rows[rng.integers(len(rows))][None]
    nearest = _squares(rows - centres[-1])
    while len(centres) < k and nearest.any():
        centres = np.concatenate([centres, rows[rng.choice(len(rows), p=nearest / nearest.sum())][None]])
        nearest = np.minimum(nearest, _squares(rows - centres[-1]))
    return centres


def nearest_centre(rows: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """r_ik = 1 for the centre that is nearest to row i, 0 for the others; a centre that is nearest to none is left out."""
    squares = np.stack([_squares(rows - centre) for centre in centres], axis=1)
    r = np.eye(len(centres))[np.argmin(squares, axis=1)]
    return r[:, r.any(axis=0)]


def maximised(rows: np.ndarray, r: np.ndarray) -> Parts:
    """(w, m, S) of the responsibilities r, shape (n, k): w_k = mean_i r_ik, ...; a component that none answers to is left out.

    Added to each S_k is FLOOR^2 of the mean variance of the rows.
    """
    n, d = rows.shape
    r = r[:, 1 + r.mean(axis=0) > 1]  # a weight below rounding
    mass, means, worth = r.sum(axis=0), _means(rows, r), d / 2
    aways = (rows - mean for mean in means)
    scatter = np.stack([away.T.dot(away * one[:, None]) for away, one in zip(aways, r.T, strict=True)])
    shrunk = (scatter + worth * scatter.sum(axis=0) / n) / (mass + worth)[:, None, None]
    return mass / mass.sum(), means, shrunk + FLOOR**2 * np.mean(np.var(rows, axis=0)) * np.eye(d)


def responsibilities(rows: np.ndarray, weights: np.ndarray, means: np.ndarray, covs: np.ndarray) -> np.ndarray:
    """r_ik = w_k N(y_i; m_k, S_k) / sum_l w_l N(y_i; m_l, S_l), shape (n, k)."""
    joint = log_joint(rows, weights, means, covs)
    return np.exp(joint - np.logaddexp.reduce(joint, axis=1)[:, None])


def log_joint(rows: np.ndarray, weights: np.ndarray, means: np.ndarray, covs: np.ndarray) -> np.ndarray:
    """log w_k N(y_i; m_k, S_k), shape (n, k)."""
    parts = []
    for weight, mean, (variance, basis) in zip(weights, means, map(np.linalg.eigh, covs), strict=True):
        energy = (rows - mean).dot(basis) ** 2 / variance + np.log(2 * np.pi * variance)
        parts.append(np.log(weight) - np.sum(energy, axis=1) / 2)
    return np.stack(parts, axis=1)


def _means(rows: np.ndarray, r: np.ndarray) -> np.ndarray:
    return r.T.dot(rows) / r.sum(axis=0)[:, None]


def _squares(away: np.ndarray) -> np.ndarray:
    return np.sum(away**2, axis=1)
