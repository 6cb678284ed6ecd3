"""Worlds on which solvers are measured: mixtures of Gaussians whose denoiser is known, in 2 to 256 dimensions, and digits.

x0 ~ sum_k w_k N(m_k, U_k diag(s_k^2) U_k^T),        E[x0 | z] = sum_k r_k(z) (m_k + U_k diag(s_k^2 / (s_k^2 + sigma^2)) U_k^T (z - m_k))

`exact.Mixture` says the same and takes an eigenvalue decomposition at each call; here the decompositions are the world.
All worlds have alpha = 1 and a scale near one, as data of a network has; another seed makes others of their kind.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen.training.data import Dataset, digits

__all__ = ["WORLDS", "World", "denoise", "draw", "pixels"]


class World(NamedTuple):
    """A mixture by its parts: shapes (k,), (k, d), (k, d, d) or (k, 1, 1) where every basis is the identity, and (k, d)."""

    weights: np.ndarray
    means: np.ndarray
    bases: np.ndarray
    stds: np.ndarray

    @property
    def size(self) -> int:
        """The number of dimensions."""
        return self.means.shape[1]

    @property
    def isotropic(self) -> bool:
        """Whether each component is N(m, s^2 I) with one s for all: distances alone decide, no basis is needed."""
        return self.bases.shape[1] == 1 and np.ptp(self.stds) == 0


def denoise(world: World, z: jax.Array, sigma: jax.Array) -> jax.Array:
    """E[x0 | z] of each row of z, at alpha = 1."""
    if world.isotropic:
        variance = float(world.stds[0, 0]) ** 2 + sigma**2
        distance = jnp.sum(z**2, 1)[:, None] - 2 * z @ world.means.T + jnp.sum(world.means**2, 1)[None]
        r = jax.nn.softmax(jnp.log(world.weights)[None] - distance / (2 * variance), axis=1)
        kept = float(world.stds[0, 0]) ** 2 / variance
        return (1 - kept) * (r @ world.means) + kept * z
    away = z[:, None] - world.means[None]
    plain = world.bases.shape[1] == 1
    turned = away if plain else jnp.einsum("nkd,kde->nke", away, world.bases)
    variance = (world.stds**2 + sigma**2)[None]
    energy = jnp.sum(turned**2 / variance + jnp.log(variance), axis=2)
    r = jax.nn.softmax(jnp.log(world.weights)[None] - energy / 2, axis=1)
    shrunk = r[..., None] * (world.stds**2)[None] / variance * turned
    back = jnp.sum(shrunk, 1) if plain else jnp.einsum("nke,kde->nd", shrunk, world.bases)
    return r @ world.means + back


def draw(world: World, n: int, seed: int) -> np.ndarray:
    """n points of the world: what a control is fitted to."""
    rng = np.random.default_rng(seed)
    which = rng.choice(len(world.weights), n, p=world.weights)
    eps = world.stds[which] * rng.standard_normal((n, world.size))
    turned = eps if world.bases.shape[1] == 1 else np.einsum("ne,nde->nd", eps, world.bases[which])
    return world.means[which] + turned


def _turns(rng: np.random.Generator, k: int, d: int) -> np.ndarray:
    return np.stack([np.linalg.qr(rng.standard_normal((d, d)))[0] for _ in range(k)])


def _weights(rng: np.random.Generator, k: int) -> np.ndarray:
    weights = rng.uniform(0.5, 1.5, k)
    return weights / weights.sum()


def separated(seed: int = 0) -> World:
    """2-D: eight clusters of std 0.05 to 0.12, more than three apart in units of their std, on a broken lattice."""
    rng = np.random.default_rng([1, seed])
    angle = 2 * np.pi * np.arange(8) / 8
    means = np.stack([np.cos(angle), np.sin(angle)], 1) * rng.uniform(0.6, 1.4, (8, 1))
    return World(_weights(rng, 8), means, _turns(rng, 8, 2), rng.uniform(0.05, 0.12, (8, 2)))


def overlapping(seed: int = 0) -> World:
    """2-D: five anisotropic components of std 0.2 to 0.7 whose means are a unit apart: one cloud of no simple shape."""
    rng = np.random.default_rng([2, seed])
    return World(_weights(rng, 5), rng.normal(0, 0.8, (5, 2)), _turns(rng, 5, 2), rng.uniform(0.2, 0.7, (5, 2)))


def spiral(seed: int = 0) -> World:
    """2-D, near a manifold: a spiral of some one and a half turns as 150 components of std 0.03 across."""
    turn = np.linspace(0.5, np.random.default_rng([8, seed]).uniform(2.7, 3.3) * np.pi, 150)
    line = lambda u: np.stack([np.cos(u), np.sin(u)], 1) * (u / (2 * np.pi))[:, None]  # noqa: E731
    along = (line(turn + 1e-4) - line(turn - 1e-4)) / 2e-4
    speed = np.linalg.norm(along, axis=1, keepdims=True)
    along = along / speed
    bases = np.stack([along, along[:, ::-1] * np.array([-1, 1])], 2)
    weights = speed[:, 0] / speed.sum()
    return World(weights, line(turn), bases, np.stack([0.6 * speed[:, 0] * (turn[1] - turn[0]), 0 * turn + 0.03], 1))


def tangled(seed: int = 0) -> World:
    """12-D: ten components, each with its own axes and stds from 0.05 to 1."""
    rng = np.random.default_rng([3, seed])
    stds = np.exp(rng.uniform(np.log(0.05), 0, (10, 12)))
    return World(_weights(rng, 10), rng.normal(0, 0.7, (10, 12)), _turns(rng, 10, 12), stds)


def sheets(seed: int = 0) -> World:
    """32-D, near manifolds: forty pieces of three dimensions (std 0.5) and a thickness of 0.02."""
    rng = np.random.default_rng([4, seed])
    stds = np.tile(np.where(np.arange(32) < 3, 0.5, 0.02), (40, 1))
    means = rng.normal(0, 1, (40, 6)) @ np.linalg.qr(rng.standard_normal((32, 6)))[0].T
    return World(_weights(rng, 40), means, _turns(rng, 40, 32), stds)


def spectral(seed: int = 0) -> World:
    """256-D: twenty components with the power-law spectrum of pictures, std 1.5 / sqrt(k), and means of that spectrum."""
    rng = np.random.default_rng([5, seed])
    std = 1.5 / np.sqrt(1 + np.arange(256))
    means = rng.standard_normal((20, 256)) * std
    stds = 0.6 * std[None] * rng.uniform(0.6, 1.4, (20, 256))
    return World(_weights(rng, 20), means, np.ones((20, 1, 1)), stds)


def skewed(seed: int = 0) -> World:
    """8-D: sixty-four overlapping components along a curved, heavy-tailed cloud: no few Gaussians describe it."""
    rng = np.random.default_rng([6, seed])
    u = rng.standard_normal((64, 3))
    means = np.concatenate([u, u**2 - 1, u[:, :2] * u[:, 1:]], 1) @ np.linalg.qr(rng.standard_normal((8, 8)))[0] * 0.5
    return World(_weights(rng, 64), means, np.ones((64, 1, 1)), rng.uniform(0.1, 0.3, (64, 8)))


def pixels(seed: int = 0, *, data: Dataset | None = None, n: int = 1000, bandwidth: float = 0.1) -> World:
    """The empirical measure of a thousand real pictures, each with std 0.1, on [-1, 1]: left out, of digits in 64-D."""
    data = digits() if data is None else data
    chosen = np.random.default_rng([7, seed]).permutation(len(data.train))[:n]
    points = np.asarray(data.scaled(data.train[chosen]), np.float64).reshape(n, -1)
    return World(np.full(n, 1 / n), points, np.ones((n, 1, 1)), np.full(points.shape, bandwidth))


WORLDS = {
    "separated 2-D": separated,
    "overlapping 2-D": overlapping,
    "spiral 2-D": spiral,
    "skewed 8-D": skewed,
    "tangled 12-D": tangled,
    "sheets 32-D": sheets,
    "spectral 256-D": spectral,
    "digits 64-D": pixels,
}
