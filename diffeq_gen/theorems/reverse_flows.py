"""Chapter 4, continued: what the reverse family does to laws and maps, which no density alone can show.

    dJ/dt = S J,    S = du/dz symmetric        J is symmetric over every interval iff S commutes with its change along the flow
    generator(eta) = generator(flow) + eta^2 g^2/2 (s . grad + Laplacian)
    d KL(q_t || p_t)/dt = eta^2 g^2/2 E_q |grad log q - grad log p|^2

Laws that are Gaussian at one time move by linear equations: the theorems compare slopes, exactly, for any schedule.
"""

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen import equations, exact, paths
from diffeq_gen.schedules import Flow, at
from diffeq_gen.theorems.domains import empiricals, gaussians, mixtures, scalars, schedules, times, vectors
from diffeq_gen.theorems.registry import theorem

__all__: list[str] = []

levels = scalars("eta in [0, 2]", 0.0, 2.0)


def _flow(world, schedule):
    return equations.probability_flow(exact.denoiser(world, schedule), schedule)


def _strain(world, schedule, z, t):
    """S = du/dz, and its change along the flow."""
    u = _flow(world, schedule)
    strain = lambda z, t: jax.jacfwd(lambda z: u(z, t))(z)  # noqa: E731
    return jax.jvp(strain, (z, t), (u(z, t), jnp.ones_like(t)))


@theorem(source="Lavenant & Santambrogio 2022", kind="counterexample", cases=200, schedule=schedules,
         world=mixtures(2, 2), law=gaussians(2), x0=vectors(2), eps=vectors(2), t=times)  # fmt: skip
def pfode_map_not_ot(schedule, world, law, x0, eps, t):
    """The flow's velocity is a gradient (S symmetric), so each infinitesimal step is optimal transport; the map of a whole
    interval is where S commutes with its change along the flow, as it does on Gaussian data.
    """
    z = paths.perturb(x0, eps, at(schedule, t))
    strain = jax.jacfwd(lambda z: _flow(world, schedule)(z, t))(z)
    s, change = _strain(law, schedule, z, t)
    return (strain, s @ change), (strain.T, change @ s)


TWO_MODES = exact.Mixture(
    np.array([0.4, 0.6]),
    np.array([[1.0, 0.2], [-0.5, 0.7]]),
    np.array([[[0.5, 0.2], [0.2, 0.3]], [[0.2, -0.1], [-0.1, 0.6]]]),
)
between = {"world": TWO_MODES, "x0": np.array([0.3, 0.2]), "eps": np.array([0.4, -0.3]), "t": 0.85}


@pfode_map_not_ot.near_miss(witness=between)
def encoders_are_optimal_transport(schedule, world, law, x0, eps, t):
    """The map is optimal transport for any data.  Its Jacobian's third derivative has the antisymmetric part (S'S - SS')/2."""
    s, change = _strain(world, schedule, paths.perturb(x0, eps, at(schedule, t)), t)
    return s @ change, change @ s


def _generators(schedule, world, x0, eps, probe, t, eta, langevin):
    """The generators of the SDE and of its parts, for time running down, on the cubic (probe . z)^3/6."""
    p, denoise = at(schedule, t), exact.denoiser(world, schedule)
    z = paths.perturb(x0, eps, p)
    phi = lambda z: (probe @ z) ** 3 / 6  # noqa: E731
    slope, bend = jax.grad(phi)(z), jnp.trace(jax.hessian(phi)(z))
    drift, diffusion = equations.reverse_sde(denoise, schedule, eta=eta)
    flow, speed = exact.velocity(world, z, p) @ slope, eta**2 * equations.variance_rate(p) / 2
    return diffusion(t) ** 2 / 2 * bend - drift(z, t) @ slope, speed * langevin(
        exact.score(world, z, p) @ slope, bend
    ) - flow


@theorem(source="Karras et al. 2022, App. B; Gao et al. 2024", cases=300, schedule=schedules, world=mixtures(2, 2), x0=vectors(2),
         eps=vectors(2), probe=vectors(2), t=times, eta=levels)  # fmt: skip
def reverse_equals_flow_plus_langevin(schedule, world, x0, eps, probe, t, eta):
    """The reverse SDE is the probability flow plus Langevin dynamics of p_t at speed eta^2 g^2/2, which keeps p_t at rest."""
    left, right = _generators(schedule, world, x0, eps, probe, t, eta, lambda climb, bend: climb + bend)
    p = at(schedule, t)
    z = paths.perturb(x0, eps, p)
    log_prob = lambda z, _: exact.log_prob(world, z, p)  # noqa: E731
    climb = lambda z, _: exact.score(world, z, p)  # noqa: E731
    spread = equations.fokker_planck(
        log_prob, lambda z, _: jnp.zeros_like(z), lambda t: jnp.sqrt(2 * jnp.ones_like(t))
    )(z, t)
    return (left, equations.continuity(log_prob, climb)(z, t)), (right, -spread)


@reverse_equals_flow_plus_langevin.near_miss
def langevin_with_half_the_score(schedule, world, x0, eps, probe, t, eta):
    """Langevin dynamics with drift s/2 and noise sqrt(2): the half belongs to noise of size one."""
    return _generators(schedule, world, x0, eps, probe, t, eta, lambda climb, bend: climb / 2 + bend)


@reverse_equals_flow_plus_langevin.near_miss
def langevin_at_twice_the_speed(schedule, world, x0, eps, probe, t, eta):
    """Langevin dynamics at speed eta^2 g^2."""
    return _generators(schedule, world, x0, eps, probe, t, eta, lambda climb, bend: 2 * (climb + bend))


def _inverse(cov):
    """Of a 2 x 2 covariance, by the adjugate of cov/tr(cov): slopes hold 1/det^2, no float32 where variances explode to 1e17."""
    size = jnp.trace(cov)
    m = cov / size
    return jnp.stack([jnp.stack([m[1, 1], -m[0, 1]]), jnp.stack([-m[1, 0], m[0, 0]])]) / _det(m) / size


def _log_det(cov):
    size = jnp.trace(cov)
    return 2 * jnp.log(size) + jnp.log(_det(cov / size))


def _det(m):
    return m[0, 0] * m[1, 1] - m[0, 1] * m[1, 0]


def _moments(world, schedule, t):
    alpha, sigma = schedule(t)
    return alpha * world.mean, alpha**2 * world.cov + sigma**2 * jnp.eye(2, dtype=world.cov.dtype)


def _kl(q, p):
    """KL(q || p) of two Gaussians in the plane, each (mean, cov), in nats."""
    (m, v), (mean, cov) = q, p
    away, inverse = m - mean, _inverse(cov)
    return (jnp.trace(inverse @ v) + away @ inverse @ away - 2 + _log_det(cov) - _log_det(v)) / 2


def _mean_product(mean, cov, first, second):
    """E[(A z + a) . (B z + b)] for z ~ N(mean, cov)."""
    (a_map, a), (b_map, b) = first, second
    return (a_map @ mean + a) @ (b_map @ mean + b) + jnp.trace(a_map @ cov @ b_map.T)


def _score(mean, cov):
    """(A, b) of the score A z + b."""
    inverse = _inverse(cov)
    return -inverse, inverse @ mean


def _affine(field, t):
    """(A, b) of a field A z + b in the plane."""
    zero = jnp.zeros((2,), t.dtype)
    return jax.jacfwd(lambda z: field(z, t))(zero), field(zero, t)


def _minus(first, second):
    return jax.tree.map(jnp.subtract, first, second)


def _relaxation(schedule, world, wrong, t, eta):
    """d KL(q_t || p_t)/dt of a wrong law q_t = `wrong` under the reverse SDE, g^2, and the relative Fisher information."""
    drift, diffusion = equations.reverse_sde(exact.denoiser(world, schedule), schedule, eta=eta)
    (a, b), (m, v) = _affine(drift, t), (wrong.mean, wrong.cov)
    noise = diffusion(t) ** 2 * jnp.eye(2, dtype=v.dtype)
    moved = a @ m + b, a @ v + v @ a.T - noise
    kl = lambda q, t: _kl(q, _moments(world, schedule, t))  # noqa: E731
    apart = _minus(_score(m, v), _score(*_moments(world, schedule, t)))
    change = jax.jvp(kl, ((m, v), t), (moved, jnp.ones_like(t)))[1]
    return change, equations.variance_rate(at(schedule, t)), _mean_product(m, v, apart, apart)


@theorem(source="derived; Dieleman 2024, 'Noise schedules', on error correction", cases=500,
         schedule=schedules, world=gaussians(2), wrong=gaussians(2), t=times, eta=levels)  # fmt: skip
def kl_contraction(schedule, world, wrong, t, eta):
    """From a wrong law, d KL(q_t || p_t)/dt = eta^2 g^2/2 E_q |grad log q - grad log p|^2: noise forgets errors, the flow keeps them."""
    change, g_squared, fisher = _relaxation(schedule, world, wrong, t, eta)
    return change, eta**2 * g_squared / 2 * fisher


@kl_contraction.near_miss
def the_flow_forgets_errors_too(schedule, world, wrong, t, eta):
    """d KL/dt = (1 + eta^2) g^2/2 E_q |...|^2: contraction also at eta = 0."""
    change, g_squared, fisher = _relaxation(schedule, world, wrong, t, eta)
    return change, (1 + eta**2) * g_squared / 2 * fisher


@kl_contraction.near_miss
def errors_decay_at_eta(schedule, world, wrong, t, eta):
    """eta in place of eta^2."""
    change, g_squared, fisher = _relaxation(schedule, world, wrong, t, eta)
    return change, eta * g_squared / 2 * fisher


def _two_flows(schedule, world, model, t):
    """d KL(p_t || q_t)/dt of two exact flows, p's moments, u - u_hat and the difference of the scores."""
    p, q = _moments(world, schedule, t), _moments(model, schedule, t)
    change = jax.jvp(
        lambda t: _kl(_moments(world, schedule, t), _moments(model, schedule, t)), (t,), (jnp.ones_like(t),)
    )[1]
    flows = _minus(_affine(_flow(world, schedule), t), _affine(_flow(model, schedule), t))
    return change, p, flows, _minus(_score(*p), _score(*q))


@theorem(source="Albergo, Boffi & Vanden-Eijnden 2023; Lu et al. 2022", cases=500,
         schedule=schedules, world=gaussians(2), model=gaussians(2), t=times)  # fmt: skip
def kl_velocity_derivative(schedule, world, model, t):
    """d KL(p_t || q_t)/dt = E_p[(u - u_hat) . (grad log p - grad log q)] for two flows: the scores count, not u - u_hat alone."""
    change, p, flows, scores = _two_flows(schedule, world, model, t)
    return change, _mean_product(*p, flows, scores)


@kl_velocity_derivative.near_miss
def kl_by_the_velocity_error_alone(schedule, world, model, t):
    """d KL/dt = -E|u - u_hat|^2/(2 g^2), the form that Girsanov's theorem gives to two SDEs of one noise."""
    change, p, flows, _ = _two_flows(schedule, world, model, t)
    return change, -_mean_product(*p, flows, flows) / (2 * equations.variance_rate(at(schedule, t)))


@kl_velocity_derivative.near_miss
def scores_the_other_way_round(schedule, world, model, t):
    """E_p[(u - u_hat) . (grad log q - grad log p)]."""
    change, p, flows, scores = _two_flows(schedule, world, model, t)
    return change, -_mean_product(*p, flows, scores)


def _curvature(world, z, t):
    """d^2z/dt^2 along the flow of alpha = 1 - t, sigma = t."""
    u = _flow(world, Flow())
    return jax.jvp(u, (z, t), (u(z, t), jnp.ones_like(t)))[1]


@theorem(source="Liu et al. 2023; Gao et al. 2024", kind="counterexample", cases=200, world=mixtures(2, 2), one=empiricals(2, 1),
         few=empiricals(2, 5), x0=vectors(2), eps=vectors(2), t=scalars("times of [0.05, 0.95]", 0.05, 0.95))  # fmt: skip
def flow_matching_bends(world, one, few, x0, eps, t):
    """At t = 1 every path of the flow alpha = 1 - t, sigma = t sets out for the mean of the data: it is straight where that is where it
    ends, for data that are a point, and bends for all others."""
    z, start = paths.perturb(x0, eps, at(Flow(), t)), at(Flow(), jnp.ones_like(t))
    u = _flow(one, Flow())(z, t)
    left = exact.velocity(world, eps, start), exact.velocity(few, eps, start), 1 + _curvature(one, z, t), z - t * u
    right = eps - world.weights @ world.means, eps - jnp.mean(few.points, axis=0), jnp.ones_like(z), one.points[0]
    return left, right


@flow_matching_bends.near_miss
def flow_matching_is_straight(world, one, few, x0, eps, t):
    """Its paths are straight whatever the data, as those of single samples are."""
    return 1 + _curvature(world, paths.perturb(x0, eps, at(Flow(), t)), t), jnp.ones_like(x0)
