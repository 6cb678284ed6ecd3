"""Chapter 4, reverse: every process that has the marginals of the forward SDE, and the one that has its joint law.

    d log p/dt + div(b) + b . s = g^2/2 (div(s) + |s|^2),    s = grad log p
    b = f z, g          the forward SDE            b = f z - (1 + eta^2)/2 g^2 s, eta g        its reversals
    eta = 0: the probability flow,  eta = 1: Anderson's reversal, alone in having the forward joint law

A law that solves a linear differential equation from the right start is the solution: such theorems compare slopes, exactly,
for any schedule and without a solver.  Transport stands on the left, spread on the right.
"""

import jax
import jax.numpy as jnp

from diffeq_gen import equations, exact, paths
from diffeq_gen.schedules import at
from diffeq_gen.theorems.domains import earlier, gaussians, mixtures, scalars, schedules, times, vectors
from diffeq_gen.theorems.registry import theorem

__all__: list[str] = []

levels = scalars("eta in [0, 2]", 0.0, 2.0)
two_modes = mixtures(2, 2)


def _slope(f, t):
    return jax.jvp(f, (t,), (jnp.ones_like(t),))[1]


def _none(t):
    return jnp.zeros_like(t)


def _at_rest(z, t):
    return jnp.zeros_like(z)


def _density(world, schedule):
    return lambda z, t: exact.log_prob(world, z, at(schedule, t))


def _held(log_prob, t):
    """The density of time t, held still."""
    return lambda z, _: log_prob(z, t)


def _sides(log_prob, drift, diffusion, z, t, *, backward=False):
    """Transport against spread: both are what the shipped residual says, one without diffusion, one with nothing else."""
    transport = equations.fokker_planck(log_prob, drift, _none)(z, t)
    spread = -equations.fokker_planck(_held(log_prob, t), _at_rest, diffusion, backward=backward)(z, t)
    return transport, spread


def _affine(field, z, t):
    """(A, b) of a field A z + b."""
    return jax.jacfwd(lambda z: field(z, t))(z), field(jnp.zeros_like(z), t)


def _inverse(m):
    """The inverse of a 2 x 2 matrix by its adjugate."""
    return jnp.stack([jnp.stack([m[1, 1], -m[0, 1]]), jnp.stack([-m[1, 0], m[0, 0]])]) / _det(m)


def _det(m):
    return m[0, 0] * m[1, 1] - m[0, 1] * m[1, 0]


def _moments(world, schedule, t):
    alpha, sigma = schedule(t)
    return alpha * world.mean, alpha**2 * world.cov + sigma**2 * jnp.eye(len(world.mean), dtype=world.cov.dtype)


def _noisy(schedule, x0, eps, t):
    return paths.perturb(x0, eps, at(schedule, t))


@theorem(source="Fokker 1914; Planck 1917; Song et al. 2021, App. D", cases=200,
         schedule=schedules, world=two_modes, x0=vectors(2), eps=vectors(2), t=times)  # fmt: skip
def fokker_planck(schedule, world, x0, eps, t):
    """The marginals of z = alpha x0 + sigma eps solve d log p/dt + d f + f z . s = g^2/2 (div s + |s|^2)."""
    z, log_prob, p = _noisy(schedule, x0, eps, t), _density(world, schedule), at(schedule, t)
    drift, diffusion = equations.forward_sde(schedule)
    s, hessian = jax.grad(log_prob)(z, t), jax.hessian(log_prob)(z, t)
    change = _slope(lambda t: log_prob(z, t), t)
    spread = equations.variance_rate(p) / 2 * (jnp.trace(hessian) + s @ s)
    left, right = _sides(log_prob, drift, diffusion, z, t)
    return (left, spread, spread), (
        right,
        right,
        change + 2 * equations.drift_rate(p) + equations.drift_rate(p) * (z @ s),
    )


@fokker_planck.near_miss
def spread_of_log_p_as_of_p(schedule, world, x0, eps, t):
    """Spread g^2/2 div s: the Laplacian of log p, where that of p belongs, which adds |s|^2."""
    z, log_prob = _noisy(schedule, x0, eps, t), _density(world, schedule)
    transport = equations.fokker_planck(log_prob, equations.forward_sde(schedule)[0], _none)(z, t)
    return transport, equations.variance_rate(at(schedule, t)) / 2 * jnp.trace(jax.hessian(log_prob)(z, t))


@fokker_planck.near_miss
def spread_without_its_half(schedule, world, x0, eps, t):
    """g^2 (div s + |s|^2), without the half."""
    drift, diffusion = equations.forward_sde(schedule)
    left, right = _sides(_density(world, schedule), drift, diffusion, _noisy(schedule, x0, eps, t), t)
    return left, 2 * right


@theorem(source="Song et al. 2021, App. D; Lipman et al. 2023", cases=200,
         schedule=schedules, world=two_modes, x0=vectors(2), eps=vectors(2), t=times)  # fmt: skip
def continuity_equation(schedule, world, x0, eps, t):
    """d log p/dt + div u + u . s = 0 with u = alpha' x0_hat + sigma' eps_hat."""
    z, log_prob, p = _noisy(schedule, x0, eps, t), _density(world, schedule), at(schedule, t)
    u = equations.probability_flow(exact.denoiser(world, schedule), schedule)
    change = _slope(lambda t: log_prob(z, t), t)
    closed = exact.divergence(world, z, p) + exact.velocity(world, z, p) @ exact.score(world, z, p)
    at_rest = equations.continuity(log_prob, _at_rest)(z, t)
    return (equations.continuity(_held(log_prob, t), u)(z, t), closed, at_rest), (-change, -change, change)


@continuity_equation.near_miss
def velocity_with_a_whole_g_squared(schedule, world, x0, eps, t):
    """u = f z - g^2 s: Anderson's drift, run without its noise."""
    z, log_prob = _noisy(schedule, x0, eps, t), _density(world, schedule)
    drift, _ = equations.reverse_sde(exact.denoiser(world, schedule), schedule, eta=1.0)
    return equations.continuity(_held(log_prob, t), drift)(z, t), -_slope(lambda t: log_prob(z, t), t)


@continuity_equation.near_miss
def velocity_with_the_score_turned(schedule, world, x0, eps, t):
    """u = f z + g^2 s/2: the sign of papers whose time runs from noise to data."""
    z, log_prob, f = (
        _noisy(schedule, x0, eps, t),
        _density(world, schedule),
        lambda t: equations.drift_rate(at(schedule, t)),
    )
    u = equations.probability_flow(exact.denoiser(world, schedule), schedule)
    turned = lambda z, t: 2 * f(t) * z - u(z, t)  # noqa: E731
    return equations.continuity(_held(log_prob, t), turned)(z, t), -_slope(lambda t: log_prob(z, t), t)


@theorem(source="Lai et al. 2023, score Fokker-Planck equation", cases=100,
         schedule=schedules, world=two_modes, x0=vectors(2), eps=vectors(2), t=times)  # fmt: skip
def score_fpe(schedule, world, x0, eps, t):
    """ds/dt = grad[g^2/2 (div s + |s|^2) - f z . s - d f]: the score has an equation of its own."""
    return _score_equation(schedule, world, x0, eps, t, 1.0)


def _score_equation(schedule, world, x0, eps, t, factor):
    z, log_prob, p = _noisy(schedule, x0, eps, t), _density(world, schedule), at(schedule, t)
    s = lambda z: exact.score(world, z, p)  # noqa: E731

    def rate(z):
        spread = jnp.trace(jax.jacfwd(s)(z)) + factor * (s(z) @ s(z))
        return equations.variance_rate(p) / 2 * spread - equations.drift_rate(p) * (z @ s(z))

    change = _slope(lambda t: exact.score(world, z, at(schedule, t)), t)
    shipped = equations.fokker_planck(_held(log_prob, t), *equations.forward_sde(schedule))
    return (change, change), (jax.jacfwd(rate)(z), -jax.jacfwd(lambda z: shipped(z, t))(z))


@score_fpe.near_miss
def score_fpe_without_its_square(schedule, world, x0, eps, t):
    """ds/dt = grad[g^2/2 div s - f z . s]: the heat equation, as if it held for log p."""
    return _score_equation(schedule, world, x0, eps, t, 0.0)


def _reversed_kernel(schedule, world, x0, eps, t, s, later, eta):
    """The law of z_s given z_t = later under the forward process, by Bayes, in the equation of the reverse SDE."""
    z, p = _noisy(schedule, x0, eps, s), at(schedule, t)
    held = _noisy(schedule, later, eps, t)

    def log_prob(z, s):
        scale, std = paths.transition(p, at(schedule, s))
        ahead = (held - scale * z) / std
        return exact.log_prob(world, z, at(schedule, s)) - ahead @ ahead / 2 - 2 * jnp.log(std)

    return _sides(
        log_prob, *equations.reverse_sde(exact.denoiser(world, schedule), schedule, eta=eta), z, s, backward=True
    )


@theorem(source="Anderson 1982", kind="in law", cases=200, precisions=("float64",),  # slopes of so narrow a kernel overflow float32
         schedule=schedules, world=two_modes, x0=vectors(2), eps=vectors(2),
         later=vectors(2), t=times, s=earlier("t"))  # fmt: skip
def anderson_reverse(schedule, world, x0, eps, later, t, s):
    """dz = (f z - g^2 s) dt + g dw_bar has the forward joint law: q(z_s | z_t), by Bayes, solves its Fokker-Planck equation."""
    return _reversed_kernel(schedule, world, x0, eps, t, s, later, 1.0)


@anderson_reverse.near_miss
def any_eta_reverses_the_process(schedule, world, x0, eps, later, t, s):
    """The member eta = 1/2 of the reverse family as reversal: its marginals are right, its joint law is not."""
    return _reversed_kernel(schedule, world, x0, eps, t, s, later, 0.5)


@anderson_reverse.near_miss
def forward_equation_for_a_backward_process(schedule, world, x0, eps, later, t, s):
    """The sign of g^2 as for a process that runs up in time."""
    left, right = _reversed_kernel(schedule, world, x0, eps, t, s, later, 1.0)
    return left, -right


@theorem(source="Huang et al. 2021; Karras et al. 2022, Eq. 6", kind="in law", cases=200,
         schedule=schedules, world=two_modes, x0=vectors(2), eps=vectors(2), t=times, eta=levels,
         bend=scalars("d eta/dt", 0.0, 1.0))  # fmt: skip
def reverse_family(schedule, world, x0, eps, t, eta, bend):
    """For any eta(t) >= 0 the SDE dz = (f z - (1 + eta^2)/2 g^2 s) dt + eta g dw_bar has the marginals p_t; in EDM's words too."""
    z, denoise = _noisy(schedule, x0, eps, t), exact.denoiser(world, schedule)
    drift, diffusion = equations.reverse_sde(denoise, schedule, eta=lambda t: eta + bend * t)
    left, right = _sides(_density(world, schedule), drift, diffusion, z, t, backward=True)
    fixed, _ = equations.reverse_sde(denoise, schedule, eta=eta)
    noise = eta**2 * equations.variance_rate(at(schedule, t))
    apart = equations.probability_flow(denoise, schedule)(z, t) - fixed(z, t)

    exploding = lambda t: (jnp.ones_like(t), schedule(t)[1] / schedule(t)[0])  # noqa: E731
    p = at(exploding, t)
    x, beta = _noisy(exploding, x0, eps, t), eta**2 * p.sigma_dot / p.sigma
    b, g = equations.reverse_sde(exact.denoiser(world, exploding), exploding, eta=eta)
    s = exact.score(world, x, p)
    edm = -p.sigma_dot * p.sigma * s - beta * p.sigma**2 * s
    varying = ((eta + bend * t) ** 2 * equations.variance_rate(at(schedule, t)), jnp.sqrt(2 * beta) * p.sigma)
    right = right, noise / 2 * exact.score(world, z, at(schedule, t)), edm, *varying
    return (left, apart, b(x, t), diffusion(t) ** 2, g(t)), right


@reverse_family.near_miss
def noise_scaled_but_not_the_drift(schedule, world, x0, eps, t, eta, bend):
    """Anderson's drift with noise eta g: a temperature, which moves the marginals."""
    z, denoise = _noisy(schedule, x0, eps, t), exact.denoiser(world, schedule)
    drift, diffusion = equations.reverse_sde(denoise, schedule)
    return _sides(_density(world, schedule), drift, lambda t: (eta + bend * t) * diffusion(t), z, t, backward=True)


@reverse_family.near_miss
def score_term_of_eta_squared(schedule, world, x0, eps, t, eta, bend):
    """dz = (u - eta^2 g^2 s) dt + eta g dw_bar, without the half."""
    z, denoise = _noisy(schedule, x0, eps, t), exact.denoiser(world, schedule)
    u = equations.probability_flow(denoise, schedule)
    drift, diffusion = equations.reverse_sde(denoise, schedule, eta=lambda t: eta + bend * t)
    twice = lambda z, t: 2 * drift(z, t) - u(z, t)  # noqa: E731
    return _sides(_density(world, schedule), twice, diffusion, z, t, backward=True)


def _coefficient(schedule, world, t, s, power):
    """sqrt(V_s/V_t) c^power with c = alpha_t/alpha_s sqrt(V_s/V_t), the correlation of the forward process."""
    v_t, v_s = _moments(world, schedule, t)[1][0, 0], _moments(world, schedule, s)[1][0, 0]
    correlation = schedule(t)[0] / schedule(s)[0] * jnp.sqrt(v_s / v_t)
    return jnp.sqrt(v_s / v_t) * correlation**power


@theorem(source="derived; Dieleman 2023, 'Perspectives on diffusion'", kind="counterexample",
         schedule=schedules, world=gaussians(1), t=times, s=earlier("t"), eta=levels)  # fmt: skip
def family_joint_law_differs(schedule, world, t, s, eta):
    """On Gaussian data the reverse SDE of eta has correlation c^{eta^2} between z_s and z_t, c that of the forward process.

    Then E[z_s | z_t] has the coefficient k = sqrt(V_s/V_t) c^{eta^2} = sqrt(V_s/V_t) exp(-int eta^2 g^2/V / 2), and the
    variance V_s - k^2 V_t: both start right at s = t, and both solve the linear equations of the SDE.
    """
    drift, diffusion = equations.reverse_sde(exact.denoiser(world, schedule), schedule, eta=eta)
    slope, _ = _affine(drift, world.mean, s)
    k = lambda s: _coefficient(schedule, world, t, s, eta**2)  # noqa: E731
    spread = lambda s: _moments(world, schedule, s)[1][0, 0] - k(s) ** 2 * _moments(world, schedule, t)[1][0, 0]  # noqa: E731
    left = _slope(k, s), _slope(spread, s), k(t)
    return left, (slope[0, 0] * k(s), 2 * slope[0, 0] * spread(s) - diffusion(s) ** 2, jnp.ones_like(t))


@family_joint_law_differs.near_miss
def same_process_for_every_eta(schedule, world, t, s, eta):
    """The forward correlation c, whatever eta."""
    drift, _ = equations.reverse_sde(exact.denoiser(world, schedule), schedule, eta=eta)
    slope, _ = _affine(drift, world.mean, s)
    k = lambda s: _coefficient(schedule, world, t, s, 1.0)  # noqa: E731
    return _slope(k, s), slope[0, 0] * k(s)


@theorem(source="Song et al. 2021, Eq. 13", kind="in law", schedule=schedules, law=gaussians(2), world=two_modes,
         x0=vectors(2), eps=vectors(2), t=times)  # fmt: skip
def pfode(schedule, law, world, x0, eps, t):
    """dz = (f z - g^2 s/2) dt transports p_t: mean and covariance of a Gaussian move as the flow carries them."""
    z, p = _noisy(schedule, x0, eps, t), at(schedule, t)
    u = equations.probability_flow(exact.denoiser(world, schedule), schedule)
    drift, diffusion = equations.forward_sde(schedule)
    half = drift(z, t) - diffusion(t) ** 2 * exact.score(world, z, p) / 2
    a, b = _affine(equations.probability_flow(exact.denoiser(law, schedule), schedule), z, t)
    mean, cov = _moments(law, schedule, t)
    moved = jax.jvp(lambda t: _moments(law, schedule, t), (t,), (jnp.ones_like(t),))[1]
    return (u(z, t), *moved), (half, a @ mean + b, a @ cov + cov @ a.T)


@pfode.near_miss
def flow_along_the_drift_alone(schedule, law, world, x0, eps, t):
    """dz = f z dt: the forward SDE with its noise left out."""
    a = equations.drift_rate(at(schedule, t))
    mean, cov = _moments(law, schedule, t)
    return jax.jvp(lambda t: _moments(law, schedule, t), (t,), (jnp.ones_like(t),))[1], (a * mean, 2 * a * cov)


def _sqrt(m):
    """The root of a 2 x 2 covariance: (m + sqrt(det) I) / sqrt(trace + 2 sqrt(det))."""
    root = jnp.sqrt(_det(m))
    return (m + root * jnp.eye(2, dtype=m.dtype)) / jnp.sqrt(jnp.trace(m) + 2 * root)


@theorem(source="derived; Gao et al. 2024; Khrulkov et al. 2023", schedule=schedules, world=gaussians(2), x0=vectors(2), eps=vectors(2),
         t=times, s=earlier("t"))  # fmt: skip
def pfode_gaussian_solution(schedule, world, x0, eps, t, s):
    """On Gaussian data V^{-1/2} (z - alpha mean) is constant along the flow, whose map is the optimal transport map."""
    z, p, q = _noisy(schedule, x0, eps, t), at(schedule, t), at(schedule, s)
    u = equations.probability_flow(exact.denoiser(world, schedule), schedule)
    there = exact.flow_map(world, z, p, q)
    (mean_t, v_t), (mean_s, v_s) = _moments(world, schedule, t), _moments(world, schedule, s)
    white = lambda z, mean, v: _inverse(_sqrt(v)) @ (z - mean)  # noqa: E731
    jacobian = jax.jacfwd(lambda z: exact.flow_map(world, z, p, q))(z)
    left = (
        white(there, mean_s, v_s),
        _slope(lambda s: exact.flow_map(world, z, p, at(schedule, s)), s),
        jacobian,
        jacobian @ v_t @ jacobian,
    )
    return left, (white(z, mean_t, v_t), u(there, s), jacobian.T, v_s)


@pfode_gaussian_solution.near_miss
def flow_that_scales_by_variances(schedule, world, x0, eps, t, s):
    """z - alpha mean scaled by V_s/V_t in place of its root."""
    z, p, q = _noisy(schedule, x0, eps, t), at(schedule, t), at(schedule, s)
    (mean_t, v_t), (mean_s, v_s) = _moments(world, schedule, t), _moments(world, schedule, s)
    return exact.flow_map(world, z, p, q), mean_s + v_s @ _inverse(v_t) @ (z - mean_t)


@pfode_gaussian_solution.near_miss
def flow_that_keeps_the_noise(schedule, world, x0, eps, t, s):
    """z/sigma - alpha mean/sigma constant: the noise kept as if z held no data."""
    p, q = at(schedule, t), at(schedule, s)
    z = _noisy(schedule, x0, eps, t)
    return exact.flow_map(world, z, p, q), q.alpha * world.mean + q.sigma / p.sigma * (z - p.alpha * world.mean)
