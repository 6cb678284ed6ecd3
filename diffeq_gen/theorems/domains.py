"""Domains: where a theorem is claimed to hold, as maps from the unit cube.

    u in [0, 1]^k  ->  value,      u = 0, 1/2, 1 and their neighbours are the corners

One definition serves three searches: a random batch is uniform u with corners mixed in, hypothesis draws and shrinks u,
and the *example* is the value at fixed, irrational u: never symmetric, never zero, never one, so that a near miss that is
refuted there is refuted for a reason.  A domain may read the variables drawn before it (s earlier than t).
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen import schedules as families
from diffeq_gen.exact import Empirical, Gaussian, Mixture
from diffeq_gen.types import Schedule, Time, pytree, static

__all__ = [
    "Arbitrary",
    "Domain",
    "Straight",
    "choices",
    "cleaner_log_snrs",
    "draw",
    "earlier",
    "empiricals",
    "example",
    "fractions",
    "gaussians",
    "log_snrs",
    "mixtures",
    "named_schedules",
    "positive",
    "probabilities",
    "scalars",
    "schedules",
    "smooth_schedules",
    "stacked",
    "straight_schedules",
    "times",
    "vectors",
    "vp_schedules",
]

Case = Mapping[str, Any]


@pytree
class Domain:
    """A map from the unit cube: ``build(u, case)`` takes u of shape (n, size) and returns n values, stacked on axis 0.

    `target` names what a user may put in the place of the variable ("schedule", ...); `assumes` what must be declared of
    it first.  `variants`, where given, are several maps with different structure, each searched by itself.
    """

    name: str = static()
    size: int = static()
    build: Callable[[np.ndarray, Case], Any] = static()
    target: str | None = static(default=None)
    assumes: tuple[str, ...] = static(default=())
    variants: tuple["Domain", ...] = static(default=())


CORNERS = np.array([0.0, 0.5, 1.0, 1e-9, 1 - 1e-9, 1e-3, 0.25])
CORNER_SHARE = 0.08
GOLDEN = (math.sqrt(5) - 1) / 2


def draw(domains: Mapping[str, Domain], n: int, seed: int, *, corners: bool = True) -> dict[str, Any]:
    """n cases, drawn with this seed: every variable in turn, a share of the coordinates in a corner of the cube."""
    rng = np.random.default_rng(seed)
    case: dict[str, Any] = {}
    for name, domain in domains.items():
        u = rng.random((n, domain.size))
        if corners:
            where = rng.random(u.shape) < CORNER_SHARE
            u = np.where(where, CORNERS[rng.integers(0, len(CORNERS), u.shape)], u)
        case[name] = domain.build(u, case)
    return case


def example(domains: Mapping[str, Domain]) -> dict[str, Any]:
    """The one case at fixed irrational coordinates: multiples of the golden ratio, modulo one.  Stacked, of length one."""
    case: dict[str, Any] = {}
    count = 0
    for name, domain in domains.items():
        u = np.modf(GOLDEN * (np.arange(domain.size) + 1 + count))[0][None]
        count += domain.size
        case[name] = domain.build(0.1 + 0.8 * u, case)
    return case


def stacked(cls: type, **leaves: Any) -> Any:
    """n nouns in one, every leaf with a leading axis; the constructor, whose checks read a single noun, is passed by."""
    noun = object.__new__(cls)
    for name, leaf in leaves.items():
        object.__setattr__(noun, name, leaf)
    return noun


def scalars(name: str, low: float, high: float) -> Domain:
    """Numbers of [low, high], evenly."""
    return Domain(name, 1, lambda u, case: low + (high - low) * u[:, 0])


def positive(name: str, low: float, high: float) -> Domain:
    """Numbers of [low, high], evenly in their logarithm."""
    return Domain(name, 1, lambda u, case: np.exp(math.log(low) + math.log(high / low) * u[:, 0]))


def choices(name: str, *values: float) -> Domain:
    """One of a few numbers."""
    table = np.asarray(values, np.float64)
    return Domain(name, 1, lambda u, case: table[np.minimum((u[:, 0] * len(table)).astype(int), len(table) - 1)])


fractions = scalars("fractions of [0, 1]", 0.0, 1.0)
probabilities = scalars("fractions inside (0, 1)", 0.01, 0.99)

times = Domain("times inside (0, 1)", 1, lambda u, case: np.clip(u[:, 0], 1e-6, 1 - 1e-6))

log_snrs = scalars("log-SNR in [-40, 40]", -40.0, 40.0)


def _step(u: np.ndarray) -> np.ndarray:
    """A share of an interval: half of the draws even, half tiny (log-uniform down to 1e-6), never 0 or 1."""
    tiny = 10.0 ** (-6 * u[:, 1])
    return np.clip(np.where(u[:, 2] < 0.5, u[:, 0], np.where(u[:, 0] < 0.5, tiny, 1 - tiny)), 1e-6, 1 - 1e-6)


def earlier(than: str) -> Domain:
    """Times between 0 and that of the variable `than`: steps from one millionth of the way to nearly all of it."""
    return Domain(f"times earlier than {than}", 3, lambda u, case: case[than] * _step(u))


def cleaner_log_snrs(than: str) -> Domain:
    """Log-SNRs from that of the variable `than` up to 40 more: gaps from tiny (4e-5) to huge."""
    return Domain(f"log-SNR above {than}", 3, lambda u, case: case[than] + 40 * _step(u))


def vectors(*shape: int) -> Domain:
    """Arrays of this shape, entries in [-3, 3], a third of the arrays scaled by up to 100 or down to 1/100."""
    size = math.prod(shape)

    def build(u: np.ndarray, case: Case) -> np.ndarray:
        scale = 10.0 ** np.where(u[:, :1] < 2 / 3, 0.0, 12 * (u[:, :1] - 5 / 6))
        return ((6 * u[:, 1:] - 3) * scale).reshape(len(u), *shape)

    return Domain(f"vectors of shape {shape}", size + 1, build)


@pytree
class Arbitrary:
    """A random schedule: any decreasing log-SNR, any positive scale.

        lambda(t) = start - slope t - bend t^3 - swing (logit with softened ends) - wave (t + sin(2 pi t)/(2 pi) ...)
        (alpha, sigma) = e^{kappa(t)} (1 + e^{-+ norm lambda / 2})^{-1/norm},     kappa(t) = size + tilt t + curl sin(3 t)

    norm = 2 at kappa = 0 is variance preserving, norm = 1 is flow-like; a tilt of alpha^{-1} is variance exploding.
    """

    start: Any
    slope: Any
    bend: Any
    swing: Any
    wave: Any
    norm: Any
    size: Any
    tilt: Any
    curl: Any
    exploding: Any

    def __call__(self, t: Time) -> tuple[jax.Array, jax.Array]:
        log_snr = self._log_snr(t)
        log_alpha = -jax.nn.softplus(-log_snr * self.norm / 2) / self.norm
        log_sigma = -jax.nn.softplus(log_snr * self.norm / 2) / self.norm
        kappa = self.size + self.tilt * t + self.curl * jnp.sin(3 * t) - self.exploding * log_alpha
        return jnp.exp(log_alpha + kappa), jnp.exp(log_sigma + kappa)

    def _log_snr(self, t: Time) -> jax.Array:
        ends = jnp.log((1000 * t + 1) / (1000 * (1 - t) + 1))  # not 1 - t + 1e-3: XLA makes it 1.001 - t
        wave = t + jnp.sin(2 * math.pi * t) / (2 * math.pi) * 0.9
        return self.start - self.slope * t - self.bend * t**3 - self.swing * ends - self.wave * wave


@pytree
class Straight:
    """A schedule whose log-SNR falls along a straight line, so that its inverse is in closed form; its scale is any.

    Theorems about methods that ask for the time of a log-SNR lose nothing by it, for they do not depend on the clock, and need
    no bisection under the rounding judge.
    """

    curve: Arbitrary

    def __call__(self, t: Time) -> tuple[jax.Array, jax.Array]:
        return self.curve(t)

    def time_at(self, log_snr: jax.Array) -> jax.Array:
        """(start - log_snr) / slope."""
        return (self.curve.start - log_snr) / self.curve.slope


def _straight(u: np.ndarray, case: Case) -> Straight:
    curve = _arbitrary(10.0, False)(u, case)
    zero = np.zeros(len(u))
    leaves = {**vars(curve), "slope": 1 + 9 * u[:, 0], "bend": zero, "swing": zero, "wave": zero}
    return stacked(Straight, curve=stacked(Arbitrary, **leaves))


def _arbitrary(span: float, vp: bool) -> Callable[[np.ndarray, Case], Arbitrary]:
    def build(u: np.ndarray, case: Case) -> Arbitrary:
        share = u[:, 1:5] + 1e-2
        total = 1 + (span - 1) * u[:, 0]
        slope, bend, swing, wave = (total[:, None] * share / share.sum(1, keepdims=True)).T
        zero = np.zeros(len(u))
        return Arbitrary(
            start=total * (0.25 + 0.5 * u[:, 5]),
            slope=slope,
            bend=bend,
            swing=swing / 14,
            wave=wave,
            norm=zero + 2 if vp else 0.5 + 3.5 * u[:, 6],
            size=zero if vp else 4 * u[:, 7] - 2,
            tilt=zero if vp else 4 * u[:, 8] - 2,
            curl=zero if vp else 2 * u[:, 9] - 1,
            exploding=zero if vp else np.where(u[:, 10] < 0.75, 0.0, 1.0),
        )

    return build


schedules = Domain("any schedule, |log-SNR| up to 40", 11, _arbitrary(60.0, False), "schedule")
smooth_schedules = Domain("any gentle schedule, |log-SNR| up to 8", 11, _arbitrary(10.0, False), "schedule")
straight_schedules = Domain("any gentle schedule with log-SNR along a line", 11, _straight, "schedule")
vp_schedules = Domain(
    "any variance-preserving schedule", 11, _arbitrary(60.0, True), "schedule", ("variance-preserving",)
)


def _family(name: str, size: int, build: Callable[[np.ndarray, Case], Schedule]) -> Domain:
    return Domain(name, size, build, "schedule")


def _tabulated(u: np.ndarray, case: Case) -> Schedule:
    """Forty linear betas, as of a trained model."""
    betas = np.linspace(1e-4 * (1 + u[:, 0]), 0.2 * (1 + u[:, 1]), 40, axis=1)
    log_abar = np.cumsum(np.log1p(-betas), axis=1)
    return stacked(families.Tabulated, log_snrs=log_abar - np.log(-np.expm1(log_abar)))


NAMED = (
    _family("Flow", 1, lambda u, case: families.Flow()),
    _family("Cosine", 1, lambda u, case: families.Cosine(4 * u[:, 0] - 2, np.full(len(u), -np.inf), np.full(len(u), np.inf))),
    _family("Cosine, clipped", 3, lambda u, case: families.Cosine(4 * u[:, 0] - 2, -10 - 10 * u[:, 1], 10 + 10 * u[:, 2])),
    _family("IDDPM", 1, lambda u, case: families.IDDPM(1e-3 + 0.1 * u[:, 0])),
    _family("VP", 2, lambda u, case: families.VP(0.01 + u[:, 0], 2 + 30 * u[:, 1])),
    _family("SubVP", 2, lambda u, case: families.SubVP(0.01 + u[:, 0], 2 + 30 * u[:, 1])),
    _family("VE", 2, lambda u, case: families.VE(1e-3 + 0.1 * u[:, 0], 5 + 95 * u[:, 1])),
    _family("EDM", 3, lambda u, case: families.EDM(1e-3 + 0.01 * u[:, 0], 5 + 95 * u[:, 1], 1 + 9 * u[:, 2])),
    _family("Sigmoid", 3, lambda u, case: families.Sigmoid(-4 * u[:, 0], 1 + 3 * u[:, 1], 0.3 + u[:, 2])),
    _family("Laplace", 2, lambda u, case: families.Laplace(4 * u[:, 0] - 2, 0.2 + u[:, 1])),
    _family("Tabulated", 2, _tabulated),
)  # fmt: skip

named_schedules = Domain("every named family of schedules", 0, lambda u, case: None, "schedule", variants=NAMED)


def gaussians(d: int, *, low: float = 0.1, high: float = 5.0) -> Domain:
    """Gaussian data in d dimensions: mean not 0, anisotropic, correlated, standard deviations from `low` to `high`."""
    name = f"Gaussian data in {d} dimensions, deviations from {low} to {high}"
    return Domain(name, 2 * d + d * d, lambda u, case: stacked(Gaussian, **_moments(u, d, low, high)))


def _moments(u: np.ndarray, d: int, low: float = 0.1, high: float = 5.0) -> dict[str, np.ndarray]:
    mean = 4 * u[:, :d] - 2
    variances = np.exp(2 * (np.log(low) + np.log(high / low) * u[:, d : 2 * d]))
    basis, _ = np.linalg.qr(2 * u[:, 2 * d :].reshape(-1, d, d) - 1 + 0.1 * np.eye(d))
    cov = np.einsum("nij,nj,nkj->nik", basis, variances, basis)
    return {"mean": mean, "cov": (cov + np.swapaxes(cov, 1, 2)) / 2}


def mixtures(d: int, k: int) -> Domain:
    """Mixtures of k Gaussians in d dimensions, weights from 0.1 up."""

    def build(u: np.ndarray, case: Case) -> Mixture:
        weights = 0.1 + u[:, :k]
        parts = [_moments(part, d) for part in np.split(u[:, k:], k, axis=1)]
        means, covs = (np.stack([part[name] for part in parts], axis=1) for name in ("mean", "cov"))
        return stacked(Mixture, weights=weights / weights.sum(1, keepdims=True), means=1.5 * means, covs=0.2 * covs)

    return Domain(f"mixtures of {k} Gaussians in {d} dimensions", k + k * (2 * d + d * d), build)


def empiricals(d: int, n: int) -> Domain:
    """The empirical measure of n points in d dimensions."""
    return Domain(
        f"{n} data points in {d} dimensions",
        n * d,
        lambda u, case: stacked(Empirical, points=4 * u.reshape(-1, n, d) - 2, block=None),
    )
