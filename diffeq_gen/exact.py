"""Worlds whose every marginal, score, denoiser and covariance is known: Gaussian, mixture, empirical measure.

    p(z)        = E[N(z; alpha x0, sigma^2 I)]
    x0_hat(z)   = E[x0 | z] = (z + sigma^2 score) / alpha,        score(z) = grad log p(z) = -E[eps | z] / sigma
    u(z)        = alpha' x0_hat - sigma' sigma score
    div u       = alpha' tr(d x0_hat/dz) + sigma' tr(d eps_hat/dz),        d x0_hat/dz = (alpha/sigma^2) Cov(x0 | z)

A world is a noun that knows its posterior, and the trace of its slopes in a form that subtracts nothing from one; the
verbs read one sample z of its event shape at one point p, whose alpha and sigma are scalars.  All is differentiable in
z and p, and in a covariance whose eigenvalues are positive and distinct.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen.paths import bridge
from diffeq_gen.schedules import at
from diffeq_gen.types import Denoiser, Key, Point, Sample, Schedule, dot, pytree, require, static

__all__ = [
    "Empirical", "Gaussian", "Mixture", "Posterior", "World", "denoise", "denoiser", "divergence", "draw", "flow_map",
    "log_prob", "marginal", "posterior", "posterior_cov", "posterior_trace", "reverse_kernel", "score", "velocity",
]  # fmt: skip


class Posterior(NamedTuple):
    """What z says to first order: log p(z) in nats, x0_hat = E[x0 | z], score = grad log p(z)."""

    log_prob: jax.Array
    x0: Sample
    score: Sample


_hypot = jax.custom_jvp(lambda x, y: jnp.hypot(x, y))  # its own slopes ask which of the two is larger
_hypot.defjvps(lambda dx, h, x, y: x / h * dx, lambda dy, h, x, y: y / h * dy)

Moment = Callable[[jax.Array, jax.Array], jax.Array]
"""(r, rows) -> what is asked of sum_k r_k rows_k rows_k^T, for rows that are centred."""


def _covariance(r: jax.Array, rows: jax.Array) -> jax.Array:
    return dot(rows.T * r[None, :], rows)


def _trace(r: jax.Array, rows: jax.Array) -> jax.Array:
    return dot(r, jnp.sum(rows * rows, axis=1))


def _nothing(r: jax.Array, rows: jax.Array) -> jax.Array:
    return jnp.zeros((), rows.dtype)


class _Spectrum(NamedTuple):
    """cov = Q diag(root^2) Q^T, std = sqrt(alpha^2 root^2 + sigma^2), unit = Q^T (z - alpha mean) / std."""

    basis: jax.Array
    root: jax.Array
    std: jax.Array
    unit: jax.Array


@pytree
class Gaussian:
    """x0 ~ N(mean, cov), mean of shape (d,), cov of shape (d, d), which may be singular.

    Raises: ValueError where the shapes do not match, or cov is not symmetric and positive semi-definite.
    Theorems: gaussian-denoiser, pfode-gaussian-solution.
    """

    mean: Sample
    cov: jax.Array

    def __post_init__(self) -> None:
        require(lambda mean, cov: 1 <= len(mean) and cov == (*mean, mean[-1]), "mean and cov must be (d,) and (d, d)",
                mean=_shape(self.mean), cov=_shape(self.cov))  # fmt: skip
        require(_is_covariance, "cov must be symmetric and positive semi-definite", cov=self.cov)

    def _spectrum(self, z: Sample, p: Point) -> _Spectrum:
        _require_event(z, jnp.shape(self.mean))
        variance, basis = jnp.linalg.eigh(self.cov)
        root = jnp.sqrt(jnp.maximum(variance, 0))
        std = _hypot(p.alpha * root, p.sigma)
        return _Spectrum(basis, root, std, dot(z - p.alpha * self.mean, basis) / std)

    def _posterior(self, z: Sample, p: Point) -> Posterior:
        basis, root, std, unit = self._spectrum(z, p)
        return Posterior(
            log_prob=-jnp.sum(unit * unit / 2 + jnp.log(std) + math.log(2 * math.pi) / 2),
            x0=self.mean + dot(basis, root * (p.alpha * root / std) * unit),
            score=-dot(basis, unit / std),
        )

    def _second(self, z: Sample, p: Point, moment: Moment) -> jax.Array:
        basis, root, std, _ = self._spectrum(z, p)
        return moment(jnp.square(root * (p.sigma / std)), basis.T)

    def _slopes(self, z: Sample, p: Point) -> tuple[jax.Array, jax.Array]:
        _, root, std, _ = self._spectrum(z, p)
        return jnp.sum(p.alpha * root / std * (root / std)), jnp.sum(p.sigma / std / std)


@pytree
class Mixture:
    """x0 ~ sum_k weights_k N(means_k, covs_k): shapes (k,), (k, d) and (k, d, d).

    Raises: ValueError where the shapes do not match, a weight is not positive, the weights do not sum to one, or a
    covariance is not symmetric and positive semi-definite.
    Theorems: gmm-denoiser.
    """

    weights: jax.Array
    means: jax.Array
    covs: jax.Array

    def __post_init__(self) -> None:
        require(lambda weights, means, covs: 2 <= len(means) and weights == means[:-1] and covs == (*means, means[-1]),
                "weights, means and covs must be (k,), (k, d) and (k, d, d)",
                weights=_shape(self.weights), means=_shape(self.means), covs=_shape(self.covs))  # fmt: skip
        require(_is_distribution, "weights must be positive and sum to one", weights=self.weights)
        require(_is_covariance, "covs must be symmetric and positive semi-definite", covs=self.covs)

    def _each(self, verb: Callable[[Gaussian], Any]) -> Any:
        return jax.vmap(lambda mean, cov: verb(Gaussian(mean, cov)))(self.means, self.covs)

    def _responsible(self, z: Sample, p: Point) -> tuple[jax.Array, Posterior, Posterior]:
        """r_k = P(k | z), what each component says, and what they say together."""
        each = self._each(lambda component: component._posterior(z, p))
        logits = jnp.log(self.weights) + each.log_prob
        r = jax.nn.softmax(logits)
        return r, each, Posterior(jax.nn.logsumexp(logits), dot(r, each.x0), dot(r, each.score))

    def _posterior(self, z: Sample, p: Point) -> Posterior:
        return self._responsible(z, p)[-1]

    def _second(self, z: Sample, p: Point, moment: Moment) -> jax.Array:
        r, each, known = self._responsible(z, p)
        within = self._each(lambda component: component._second(z, p, moment))
        return jnp.tensordot(r, within, 1, precision="highest") + moment(r, each.x0 - known.x0[None, :])

    def _slopes(self, z: Sample, p: Point) -> tuple[jax.Array, jax.Array]:
        """d r_k / dz = r_k (score_k - score), so between components the slopes are covariances with the score."""
        r, each, known = self._responsible(z, p)
        slope_x0, slope_eps = self._each(lambda component: component._slopes(z, p))
        x0, score = each.x0 - known.x0[None, :], each.score - known.score[None, :]
        between_x0, between_eps = jnp.sum(x0 * score, axis=1), -p.sigma * jnp.sum(score * score, axis=1)
        return dot(r, slope_x0 + between_x0), dot(r, slope_eps + between_eps)


class _Summary(NamedTuple):
    """Of some points: min |z - alpha x|^2, log sum e^{-excess over it / 2 sigma^2}, weighted mean, centred moment."""

    nearest: jax.Array
    log_mass: jax.Array
    mean: jax.Array
    moment: jax.Array


@pytree
class Empirical:
    """x0 ~ (1/n) sum_i delta(x0 - points_i): points of shape (n, *event), read `block` rows at a time.

    Memory beyond the points is that of one block (left out: about 2^20 numbers), and under `grad` a mean per block.
    Raises: ValueError where there is no point, or block is not positive.
    Theorems: empirical-denoiser.
    """

    points: Sample
    block: int | None = static(default=None)

    def __post_init__(self) -> None:
        require(lambda points: len(points) >= 1 and math.prod(points) > 0, "points must be (n, *event), n at least one",
                points=_shape(self.points))  # fmt: skip
        require(lambda block: block >= 1, "block must be positive", block=1 if self.block is None else self.block)

    @functools.partial(jax.jit, static_argnames=("moment",))
    def _summary(self, z: Sample, p: Point, moment: Moment) -> _Summary:
        """One pass over blocks: each is summarised, the summaries merge.

        Distances are sums of squared differences: their rounding is relative to the distance itself.  The three-term
        form |z|^2 - 2 alpha z.x + alpha^2 |x|^2 errs by 1e-7 |x|^2 in float32, more than sigma^2 from log-SNR 16 on.
        """
        n, *event = self.points.shape
        _require_event(z, tuple(event))
        flat = z.reshape(1, -1)
        block = min(n, self.block or max(1, 2**20 // math.prod(event)))
        scale = jnp.maximum(2 * p.sigma**2, jnp.finfo(z.dtype).tiny)  # at sigma = 0 the nearest point takes all

        def summarise(points: jax.Array) -> _Summary:
            rows = points.reshape(len(points), -1)
            energy = jnp.sum(jnp.square(flat - p.alpha * rows), axis=1)
            nearest = jax.lax.stop_gradient(jnp.min(energy))
            logits = (nearest - energy) / scale
            log_mass = jax.nn.logsumexp(logits)
            r = jnp.exp(logits - log_mass)
            mean = dot(r, rows)
            return _Summary(nearest, log_mass, mean, moment(r, rows - mean[None, :]))

        def merge(a: _Summary, b: _Summary) -> _Summary:
            nearest = jnp.minimum(a.nearest, b.nearest)
            mass_a, mass_b = (one.log_mass + (nearest - one.nearest) / scale for one in (a, b))
            log_mass = jnp.logaddexp(mass_a, mass_b)
            r_a, r_b = jnp.exp(mass_a - log_mass), jnp.exp(mass_b - log_mass)
            between = moment((r_a * r_b)[None], (b.mean - a.mean)[None, :])
            return _Summary(nearest, log_mass, r_a * a.mean + r_b * b.mean, r_a * a.moment + r_b * b.moment + between)

        @jax.checkpoint
        def step(summary: _Summary, i: jax.Array) -> tuple[_Summary, None]:
            return merge(summary, summarise(jax.lax.dynamic_slice_in_dim(self.points, i * block, block))), None

        first = summarise(self.points[:block])
        summary = jax.lax.scan(step, first, jnp.arange(1, n // block))[0] if n // block > 1 else first
        return merge(summary, summarise(self.points[n - n % block :])) if n % block else summary

    def _posterior(self, z: Sample, p: Point) -> Posterior:
        nearest, log_mass, mean, _ = self._summary(z, p, _nothing)
        x0 = mean.reshape(z.shape)
        normaliser = z.size * (jnp.log(p.sigma) + math.log(2 * math.pi) / 2) + math.log(len(self.points))
        return Posterior(log_mass - nearest / p.sigma**2 / 2 - normaliser, x0, (p.alpha * x0 - z) / p.sigma**2)

    def _second(self, z: Sample, p: Point, moment: Moment) -> jax.Array:
        return self._summary(z, p, moment).moment

    def _slopes(self, z: Sample, p: Point) -> tuple[jax.Array, jax.Array]:
        slope_x0 = p.alpha * (self._second(z, p, _trace) / p.sigma**2)
        return slope_x0, (z.size - p.alpha * slope_x0) / p.sigma


World = Gaussian | Mixture | Empirical
"""A law of x0 whose posterior is known."""


def _shape(value: Any) -> tuple[int, ...] | None:
    return jnp.shape(value) if hasattr(value, "shape") else None


def _ulp(value: jax.Array) -> float:
    return float(jnp.finfo(jnp.result_type(value, float)).eps)


def _is_covariance(cov: jax.Array) -> bool:
    size, cov = 8 * _ulp(cov) * np.shape(cov)[-1], np.asarray(cov, np.float64)
    slack = size * np.max(np.abs(cov), initial=0)
    symmetric = np.all(np.isfinite(cov)) and np.all(np.abs(cov - np.swapaxes(cov, -1, -2)) <= slack)
    return bool(symmetric and np.all(np.linalg.eigvalsh(cov) >= -slack))


def _is_distribution(weights: jax.Array) -> bool:
    slack, weights = 8 * _ulp(weights) * np.shape(weights)[-1], np.asarray(weights, np.float64)
    return bool(np.all(weights > 0) and np.all(np.abs(np.sum(weights, axis=-1) - 1) <= slack))


def _require_event(z: Sample, event: tuple[int, ...]) -> None:
    require(lambda z, event: z == event, "z must have the world's event shape (many samples at once are jax.vmap)",
            z=jnp.shape(z), event=event)  # fmt: skip


def _known(world: World) -> World:
    if not isinstance(world, World):
        raise TypeError(f"a world is a Gaussian, a Mixture or an Empirical, got {world!r}")
    return world


def posterior(world: World, z: Sample, p: Point) -> Posterior:
    """log p(z), E[x0 | z], grad log p(z), with p(z) = E[N(z; alpha x0, sigma^2 I)].

    At alpha = 0 x0 is the prior mean.  At sigma = 0 a Gaussian or mixture of full rank has x0 = z/alpha, a singular one
    nan; an empirical world has the nearest point, and neither log-density nor score.
    Raises: TypeError where it is no world; ValueError where z has another shape than its events.
    Theorems: gaussian-denoiser, gmm-denoiser, empirical-denoiser, tweedie-first, stein-identities.
    """
    return _known(world)._posterior(z, p)


def log_prob(world: World, z: Sample, p: Point) -> jax.Array:
    """log p(z) = log E[N(z; alpha x0, sigma^2 I)], in nats.

    Theorems: gaussian-denoiser, continuity-equation.
    """
    return posterior(world, z, p).log_prob


def score(world: World, z: Sample, p: Point) -> Sample:
    """grad log p(z) = (alpha x0_hat - z) / sigma^2.

    Theorems: score-eps-x-link, tweedie-first, stein-identities, symmetry-equivariance, fisher-mmse, pointwise-i-mmse-likelihood.
    """
    return posterior(world, z, p).score


def denoise(world: World, z: Sample, p: Point) -> Sample:
    """x0_hat = E[x0 | z] = (z + sigma^2 score) / alpha.  Robbins 1956; Miyasawa 1961.

    Theorems: gaussian-denoiser, gmm-denoiser, empirical-denoiser, tweedie-first, data-scaling-is-snr-shift, schedule-rescaling-invariance.
    """
    return posterior(world, z, p).x0


def posterior_cov(world: World, z: Sample, p: Point) -> jax.Array:
    """Cov(x0 | z) = (sigma^2 / alpha) d x0_hat / dz, as a centred sum; of shape (D, D) over the flattened event.

    Theorems: tweedie-second, gaussian-denoiser, gmm-denoiser, empirical-denoiser.
    """
    return _known(world)._second(z, p, _covariance)


def posterior_trace(world: World, z: Sample, p: Point) -> jax.Array:
    """tr Cov(x0 | z) = E[|x0 - x0_hat|^2 | z], without the matrix: its mean over z is the mmse.

    Theorems: tweedie-second, fisher-mmse, i-mmse, mmse-monotone, mse-orthogonality.
    """
    return _known(world)._second(z, p, _trace)


def velocity(world: World, z: Sample, p: Point) -> Sample:
    """u = E[dz/dt | z] = alpha' x0_hat - sigma' sigma score.  Finite wherever those are: never by way of alpha'/alpha.

    Theorems: velocity-is-pfode-drift, continuity-equation, pfode, edm-general-ode, flow-matching-bends,
    coupled-velocities-need-not-be-gradients.
    """
    known = posterior(world, z, p)
    return p.alpha_dot * known.x0 - p.sigma_dot * p.sigma * known.score


def divergence(world: World, z: Sample, p: Point) -> jax.Array:
    """div u = alpha' tr(d x0_hat/dz) + sigma' tr(d eps_hat/dz), in closed form.  Finite where `velocity` is.

    Theorems: continuity-equation, tweedie-second.
    """
    slope_x0, slope_eps = _known(world)._slopes(z, p)
    return p.alpha_dot * slope_x0 + p.sigma_dot * slope_eps


def denoiser(world: World, schedule: Schedule) -> Denoiser:
    """(z, t) -> E[x0 | z_t = z]: what a perfect network would say.

    Theorems: gaussian-denoiser, denoiser-is-gradient-psd, mse-orthogonality, dae-score-bias.
    """
    return lambda z, t: denoise(world, z, at(schedule, t))


def marginal(world: Gaussian | Mixture, p: Point) -> Gaussian | Mixture:
    """The law of z = alpha x0 + sigma eps: N(alpha mean, alpha^2 cov + sigma^2 I), and the mixture of such.

    Raises: TypeError where the marginal is no world: that of an empirical one is known by `log_prob` and `score` only.
    Theorems: gaussian-denoiser, gmm-denoiser, prior-mismatch.
    """
    if isinstance(world, Mixture):
        return Mixture(world.weights, *jax.tree.leaves(world._each(lambda component: marginal(component, p))))
    if isinstance(world, Gaussian):
        noise = p.sigma**2 * jnp.eye(len(world.mean), dtype=world.cov.dtype)
        return Gaussian(p.alpha * world.mean, p.alpha**2 * world.cov + noise)
    raise TypeError(f"only a Gaussian or a Mixture has marginals that are worlds, got {world!r}")


def reverse_kernel(world: World, z: Sample, p: Point, q: Point) -> tuple[Sample, jax.Array]:
    """Mean c_z z + c_x x0_hat and covariance std^2 I + c_x^2 Cov(x0 | z) of q(z_s | z_t).  Bao et al. 2022.

    (c_z, c_x, std) is the `bridge` from p to the cleaner q; the covariance has shape (D, D).  A Gaussian world has that
    Gaussian as its kernel, exactly and for a step of any size; for the others these are its first two moments.
    Theorems: reverse-kernel-moments, reverse-kernel-gaussianity, denoiser-martingale, ddpm-variance-endpoints, perspective-reverse-sde.
    """
    c_z, c_x, std = bridge(p, q)
    cov = std**2 * jnp.eye(z.size, dtype=z.dtype) + c_x**2 * posterior_cov(world, z, p)
    return c_z * z + c_x * denoise(world, z, p), cov


def flow_map(world: Gaussian, z: Sample, p: Point, q: Point) -> Sample:
    """z_s = alpha_s mean + (V_s / V_t)^{1/2} (z_t - alpha_t mean),  V = alpha^2 cov + sigma^2 I.

    The solution at q of the probability flow that starts in z at p; q may be cleaner or noisier.
    Raises: TypeError where the world is not Gaussian: no other flow map is known.
    Theorems: trajectory-equivalence, pfode-gaussian-solution, pfode-map-not-ot, perspective-flow.
    """
    if not isinstance(world, Gaussian):
        raise TypeError(f"only a Gaussian world has its flow map in closed form, got {world!r}")
    start, end = world._spectrum(z, p), world._spectrum(z, q)
    return q.alpha * world.mean + dot(start.basis, end.std * start.unit)


def draw(key: Key, world: World, n: int) -> Sample:
    """n independent x0, of shape (n, *event).

    Raises: TypeError where it is no world.
    """
    which, within = jax.random.split(key)
    if isinstance(_known(world), Empirical):
        return world.points[jax.random.randint(which, (n,), 0, len(world.points))]
    if isinstance(world, Mixture):
        k = jax.random.categorical(which, jnp.log(world.weights), shape=(n,))
        one = jax.vmap(lambda key, mean, cov: draw(key, Gaussian(mean, cov), 1)[0])
        return one(jax.random.split(within, n), world.means[k], world.covs[k])
    variance, basis = jnp.linalg.eigh(world.cov)
    unit = jax.random.normal(within, (n, len(world.mean)), world.mean.dtype)
    return world.mean[None, :] + dot(unit * jnp.sqrt(jnp.maximum(variance, 0))[None, :], basis.T)
