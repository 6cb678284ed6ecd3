"""Chapter 10, score matching: four losses with one minimiser, and what they differ by.

x0 = m + L xi and eps run over the nodes {-sqrt 3, 0, sqrt 3} of Gauss and Hermite in each coordinate, and z = alpha x0 + sigma eps with
them: exact for polynomials up to degree five in each, so that expectations of a quadratic field on Gaussian data are sums.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen import exact, losses, paths, predictions, score_matching, traces
from diffeq_gen.schedules import at
from diffeq_gen.theorems.domains import mixtures, schedules, smooth_schedules, times, vectors
from diffeq_gen.theorems.registry import theorem
from diffeq_gen.types import dot

__all__: list[str] = []

DRAWS = np.array(list(itertools.product((-(3**0.5), 0.0, 3**0.5), repeat=4)))
SHARES = np.prod(np.where(DRAWS == 0, 2 / 3, 1 / 6), axis=1)
SIGNS = np.array(list(itertools.product((-1.0, 1.0), repeat=2)))


def _world(spread, mean):
    """(N(mean, L L^T), L), L lower triangular with a positive diagonal."""
    root = jnp.diag(jnp.exp(jnp.tanh(spread[:2]))) + jnp.array([[0, 0], [1, 0]], spread.dtype) * jnp.tanh(spread[2])
    return exact.Gaussian(mean, dot(root, root.T)), root


def _field(factors):
    """A z + b + c z^2, c for each coordinate."""
    matrix, shift, bend = factors[:4].reshape(2, 2), factors[4:6], factors[6:]
    return lambda z, t: matrix @ z + shift + bend * z**2


def _mean(root, mean, verb):
    """E verb(x0, eps)."""
    draws = jnp.asarray(DRAWS, mean.dtype)
    rows = jax.vmap(lambda draw: verb(mean + root @ draw[:2], draw[2:]))(draws)
    return jnp.sum(jnp.asarray(SHARES, mean.dtype) * rows)


@theorem(source="Vincent 2011; the constant derived", schedule=schedules, mean=vectors(2), spread=vectors(3), factors=vectors(8), t=times,
         cases=300)  # fmt: skip
def denoising_is_explicit_score_matching(schedule, mean, spread, factors, t):
    """1/2 E|s_hat - grad log q(z|x0)|^2 = 1/2 E|s_hat - grad log p|^2 + 1/2 alpha^2/sigma^4 E tr Cov(x0|z): scaled here by sigma^2."""
    return _denoised(schedule, mean, spread, factors, t, lambda p: p.alpha**2 / p.sigma**2)


def _denoised(schedule, mean, spread, factors, t, price):
    (world, root), p, field = _world(spread, mean), at(schedule, t), _field(factors)
    score = lambda z, t: exact.score(world, z, p)  # noqa: E731
    left = _mean(root, mean, lambda x0, eps: score_matching.denoising(field, schedule, x0, eps, t))

    def there(x0, eps):
        z = paths.perturb(x0, eps, p)
        return (
            p.sigma**2 * score_matching.explicit(field, score, z, t) + price(p) * exact.posterior_trace(world, z, p) / 2
        )

    return p.sigma**2 * left, _mean(root, mean, there)


@denoising_is_explicit_score_matching.near_miss
def they_are_one_loss(schedule, mean, spread, factors, t):
    """Without the constant: their gradients agree, and they do not."""
    return _denoised(schedule, mean, spread, factors, t, lambda p: 0 * p.sigma)


@theorem(source="Hyvarinen 2005, Theorem 1", schedule=schedules, mean=vectors(2), spread=vectors(3), factors=vectors(8), t=times,
         cases=300)  # fmt: skip
def implicit_score_matching(schedule, mean, spread, factors, t):
    """E[1/2 |s_hat|^2 + div s_hat] = 1/2 E|s_hat - grad log p|^2 - 1/2 E|grad log p|^2: no score is asked for."""
    return _implied(schedule, mean, spread, factors, t, score_matching.implicit)


def _implied(schedule, mean, spread, factors, t, verb):
    (world, root), p, field = _world(spread, mean), at(schedule, t), _field(factors)
    score = lambda z, t: exact.score(world, z, p)  # noqa: E731
    none = lambda z, t: 0 * z  # noqa: E731

    def there(x0, eps):
        z = paths.perturb(x0, eps, p)
        return score_matching.explicit(field, score, z, t) - score_matching.explicit(none, score, z, t)

    left = _mean(root, mean, lambda x0, eps: verb(field, paths.perturb(x0, eps, p), t))
    return p.sigma**2 * left, p.sigma**2 * _mean(root, mean, there)


@implicit_score_matching.near_miss
def with_the_divergence_halved(schedule, mean, spread, factors, t):
    """1/2 |s_hat|^2 + 1/2 div s_hat."""
    halved = lambda field, z, t: (score_matching.implicit(field, z, t) + jnp.sum(field(z, t) ** 2) / 2) / 2  # noqa: E731
    return _implied(schedule, mean, spread, factors, t, halved)


@theorem(source="Song et al. 2019, Theorem 1, Eq. 8 and 9", z=vectors(2), factors=vectors(8), cases=300)
def sliced_score_matching(z, factors):
    """The mean of 1/2 (v . s_hat)^2 + v^T grad s_hat v over all signs v is 1/2 |s_hat|^2 + div s_hat; so is that with |s_hat|^2 itself,
    which has less to vary by."""
    return _sliced(z, factors, jnp.asarray(SIGNS, z.dtype))


def _sliced(z, factors, probes):
    field = _field(factors)
    both = [score_matching.sliced(field, z, 0.5, probes, reduced=reduced) for reduced in (False, True)]
    return jnp.stack(both), jnp.stack([score_matching.implicit(field, z, 0.5)] * 2)


@sliced_score_matching.near_miss
def with_directions_of_unit_length(z, factors):
    """v on the unit sphere, where E v v^T = I/d."""
    return _sliced(z, factors, jnp.asarray(SIGNS / 2**0.5, z.dtype))


@sliced_score_matching.near_miss
def along_one_direction(z, factors):
    """A single v for the expectation."""
    return _sliced(z, factors, jnp.asarray(SIGNS[:1], z.dtype))


@theorem(source="Lipman et al. 2023, Theorem 2; the constant derived", schedule=smooth_schedules, mean=vectors(2), spread=vectors(3),
         factors=vectors(8), t=times, cases=300)  # fmt: skip
def cfm_is_flow_matching(schedule, mean, spread, factors, t):
    """E|u_hat - (alpha' x0 + sigma' eps)|^2 = E|u_hat - u|^2 + 1/4 alpha^2 lambda'^2 E tr Cov(x0|z): one gradient, another value."""
    return _flowed(schedule, mean, spread, factors, t, lambda p: (p.alpha * p.log_snr_dot) ** 2 / 4)


def _flowed(schedule, mean, spread, factors, t, price):
    (world, root), p, field = _world(spread, mean), at(schedule, t), _field(factors)
    spend = lambda x0, eps: losses.denoising_loss(field, schedule, predictions.velocity, x0, eps, t)  # noqa: E731

    def there(x0, eps):
        z = paths.perturb(x0, eps, p)
        return (
            jnp.mean((field(z, t) - exact.velocity(world, z, p)) ** 2)
            + price(p) * exact.posterior_trace(world, z, p) / 2
        )

    return _mean(root, mean, spend), _mean(root, mean, there)


@cfm_is_flow_matching.near_miss
def the_price_of_denoising(schedule, mean, spread, factors, t):
    """alpha'^2 in the place of 1/4 alpha^2 lambda'^2, as if eps were known."""
    return _flowed(schedule, mean, spread, factors, t, lambda p: p.alpha_dot**2)


@theorem(source="Hyvarinen 2005; Song & Ermon 2019", schedule=schedules, world=mixtures(2, 2), z=vectors(2), constant=vectors(),
         t=times, cases=300)  # fmt: skip
def score_is_free_of_normalisation(schedule, world, z, constant, t):
    """grad log(c p) = grad log p: a score is regressed without knowing what p integrates to."""
    return _unnormalised(schedule, world, z, t, lambda log_p: log_p + constant)


def _unnormalised(schedule, world, z, t, energy):
    p = at(schedule, t)
    left = jax.grad(lambda z: energy(exact.log_prob(world, z, p)))(z)
    return p.sigma * left, p.sigma * exact.score(world, z, p)


@score_is_free_of_normalisation.near_miss
def so_is_a_tempered_one(schedule, world, z, constant, t):
    """grad log p^c, which is another score."""
    return _unnormalised(schedule, world, z, t, lambda log_p: log_p * (2 + jnp.tanh(constant)))


@theorem(source="Hutchinson 1990; Avron & Toledo 2011 for Gaussian probes", entries=vectors(4), z=vectors(2), cases=300)
def hutchinson_variance(entries, z):
    """e^T J e has mean tr J and variance 2 (|S|^2 - sum S_ii^2) over signs, 2 |S|^2 over Gaussians, S the symmetric part of J."""
    return _probed(entries, z, lambda jacobian: (jacobian + jacobian.T) / 2)


def _probed(entries, z, part):
    """(mean and variances of e^T J e over all signs and over Gauss's nodes, those by `part` of J)."""
    jacobian = entries.reshape(2, 2)
    u = lambda z: jacobian @ z  # noqa: E731
    along = lambda probes: jax.vmap(lambda e: traces.estimated(u, z, e[None])[1])(probes)  # noqa: E731
    signs, nodes = along(jnp.asarray(SIGNS, z.dtype)), along(jnp.asarray(DRAWS[:, :2], z.dtype))
    shares, trace = jnp.asarray(SHARES, z.dtype), traces.divergence(u, z)[1]
    left = [
        jnp.mean(signs),
        jnp.mean((signs - trace) ** 2),
        jnp.sum(shares * nodes),
        jnp.sum(shares * (nodes - trace) ** 2),
    ]
    spread = [traces.variance(part(jacobian), signs=signs) for signs in (True, False)]
    return jnp.stack(left), jnp.stack([trace, spread[0], trace, spread[1]])


@hutchinson_variance.near_miss
def of_the_upper_half_alone(entries, z):
    """What lies below the diagonal left out."""
    return _probed(entries, z, jnp.triu)


@theorem(source="derived", entries=vectors(4), turn=vectors(), z=vectors(2), cases=300)
def orthogonal_probes_see_no_axis_twice(entries, turn, z):
    """d directions, orthogonal and sqrt(d) long, tell the trace exactly, whichever they are."""
    return _turned(entries, turn, z, 2**0.5)


def _turned(entries, turn, z, length):
    """(by two directions at right angles, the trace)."""
    jacobian = entries.reshape(2, 2)
    cosine, sine = jnp.cos(turn), jnp.sin(turn)
    probes = length * jnp.stack([jnp.stack([cosine, sine]), jnp.stack([-sine, cosine])])
    u = lambda z: jacobian @ z  # noqa: E731
    return traces.estimated(u, z, probes)[1], traces.divergence(u, z)[1]


@orthogonal_probes_see_no_axis_twice.near_miss
def orthonormal_ones_do(entries, turn, z):
    """Of length one: the mean over d of them is the trace over d."""
    return _turned(entries, turn, z, 1.0)


@theorem(
    source="derived; after Liu et al. 2023 on rectified couplings",
    kind="counterexample",
    turn=vectors(),
    t=times,
    cases=300,
)
def coupled_velocities_need_not_be_gradients(turn, t):
    """Of x0 ~ N(0, I) and eps = R x0, R a rotation, E[z'|z] along (1 - t) x0 + t eps is (R - 1)((1 - t) + t R)^{-1} z: its Jacobian is
    as far from symmetric as R turns.  Of independent eps it is symmetric."""
    return _asymmetry(turn, t, _rotation(turn))


def _rotation(turn):
    """By an angle of less than half a turn."""
    angle = 1.5 * jnp.tanh(turn)
    return jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])


def _asymmetry(turn, t, cross):
    """(J_21 - J_12 of the regression of z' on z by their covariances, what the rotation says)."""
    eye, angle = jnp.eye(2, dtype=t.dtype), 1.5 * jnp.tanh(turn)
    a, b = 1 - t, t
    along = b * eye - a * eye + a * cross - b * cross.T
    spread = (a**2 + b**2) * eye + a * b * (cross + cross.T)
    jacobian = along @ jnp.linalg.inv(spread)
    return jacobian[1, 0] - jacobian[0, 1], 2 * jnp.sin(angle) / (a**2 + b**2 + 2 * a * b * jnp.cos(angle))


@coupled_velocities_need_not_be_gradients.near_miss
def every_velocity_is_a_gradient(turn, t):
    """Nothing turns, whatever the coupling."""
    left, _ = _asymmetry(turn, t, _rotation(turn))
    return left, jnp.zeros_like(left)
