"""Chapter 6, controlled solvers: what they leave about infinite noise, what they do with noise of their own, and their order.

y_i = sin(theta_i) x_i + cos(theta_i) eps_i,      dy = ((1 + eta^2) F - eta^2 cot(theta) y) dtheta + eta sqrt(2 cot(theta)) dw
"""

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

from diffeq_gen import exact, samplers
from diffeq_gen.samplers.control import Control, control_times, network_output
from diffeq_gen.samplers.controlled import controlled, jump
from diffeq_gen.samplers.learnt import regressed
from diffeq_gen.schedules import Flow, at
from diffeq_gen.theorems.controlled_solvers import _output_denoiser, _still, _variances
from diffeq_gen.theorems.domains import positive, scalars, smooth_schedules, vectors
from diffeq_gen.theorems.estimation import _line, _span
from diffeq_gen.theorems.forward import middle
from diffeq_gen.theorems.refinement import SIZES, grids
from diffeq_gen.theorems.registry import theorem
from diffeq_gen.theorems.solver_exactness import TIMES
from diffeq_gen.theorems.solver_families import PARABOLAS, Parabola
from diffeq_gen.theorems.solver_orders import _resting, _steps
from diffeq_gen.types import Point, dot

__all__: list[str] = []


@theorem(source="derived; the flow of one dimension is monotone, so it keeps quantiles", kind="order", order=3,
         eps=scalars("noises", -0.5, 0.5), apart=scalars("distances of two modes", 0.5, 1.0), cases=6,
         precisions=("float64",))  # fmt: skip
def controlled_order(eps, apart):
    """From infinite noise, with a jump as long in angle as each of the n steps that follow, all terms of the default's order err by
    O(1/n^3) on data that is not Gaussian, which is what the jump leaves: nothing was evaluated before the first of them.  Where a slope
    passes through zero the default takes a step or two without the term after it, and loses O(1/n^3) once, or nothing: no smooth error."""
    return _quantile_errors(eps, apart)


def _two_modes(apart):
    """0.3 N(1.4 a, 1/4) + 0.7 N(-0.6 a, 1/4), of mean zero, and its variance."""
    weights = jnp.array([0.3, 0.7], apart.dtype)
    means = apart * jnp.array([1.4, -0.6], apart.dtype)
    return exact.Mixture(weights, means[:, None], 0.25 * jnp.ones((2, 1, 1), apart.dtype)), 0.25 + jnp.sum(
        weights * means**2
    )


def _quantile_errors(eps, apart, mean=0.0):
    """|P(z_s) - P(eps)| for each number of steps, over five starts: of any one the leading error may happen to vanish."""
    starts = eps + jnp.array([-1.0, -0.5, 0.0, 0.5, 1.0], eps.dtype)
    steps, errors = jax.vmap(lambda eps: _errors_from(eps, apart, mean))(starts)
    return steps[0], jnp.sum(errors, axis=0)


def _errors_from(eps, apart, mean, growth=jnp.inf):
    world, variance = _two_modes(apart)
    control, schedule = Control(jnp.full(1, mean, eps.dtype), variance), Flow()
    sampler = _resting(controlled(exact.denoiser(world, schedule), schedule, control, growth=growth))
    root, end, key = jnp.sqrt(control.variances), 0.5, jax.random.key(0)
    shares = grids(0, 1, eps.dtype)

    def error(share, n):
        angles = end * (1 + n * share) / (n + 1)
        grid = root / (root + jnp.tan(angles))
        z = samplers.sample(key, sampler, jump(control, schedule, eps[None], jnp.ones_like(eps), grid[0]), grid)[0]
        p = at(schedule, grid[-1])
        std = jnp.sqrt(p.alpha**2 * 0.25 + p.sigma**2)
        return jnp.abs(jnp.sum(world.weights * norm.cdf((z - p.alpha * world.means[:, 0]) / std)) - norm.cdf(eps))

    return _steps(eps[None]), jax.vmap(error)(shares, jnp.asarray(SIZES, eps.dtype))


controlled_order.not_of_order(4, "One order too many.")


@controlled_order.near_miss
def with_a_wrong_mean(eps, apart):
    """A control whose mean is not the data's: F(0) is not zero, and the first order is lost."""
    return _quantile_errors(eps, apart, mean=0.5)


@theorem(source="derived: the reverse SDE of equations.reverse_sde, along the angles", schedule=smooth_schedules, c=vectors(2, 2),
         spread=vectors(2), z=vectors(2), eta=positive("noise levels", 0.2, 2.0), cases=100)  # fmt: skip
def controlled_sde_solves_its_equation(schedule, c, spread, z, eta):
    """Where F / cos(theta)^{eta^2} is linear in the angle, the mean of a step's end and the square of its spread have the slopes
    (1 + eta^2) F - eta^2 cot(theta) y and 2 eta^2 cot(theta) (1 - spread^2) in the angle that it ends at, whatever that is."""
    return _slopes(schedule, c, spread, z, eta)


def _slopes(schedule, c, spread, z, eta, *, drift=1.0, decay=1.0):
    """d(mean, spread^2)/ds of the step, and what the equation says times d theta/ds; in y."""
    control = Control(jnp.ones_like(z), _variances(spread))
    line = lambda x: c[0][None] + c[1][None] * x  # noqa: E731
    output = lambda x: jnp.cos(x) ** (eta**2) * line(x)  # noqa: E731
    sampler = controlled(_output_denoiser(schedule, control, output), schedule, control, corrector=False, eta=eta)
    before, t, s = jnp.asarray([0.7, 0.6, 0.45], z.dtype)
    angle = control.angle(at(schedule, before))
    past = sampler.init(z)._replace(values=(line(angle),) * 2, angles=(angle,) * 2)

    def end(s):
        q = _still(schedule, s)
        mean, moved = (
            sampler.step(noise, past, z, t, s)[0] for noise in (jnp.zeros((1, 2), z.dtype), jnp.ones((1, 2), z.dtype))
        )
        y = control.whiten(mean, q)
        return y, jnp.square(control.whiten(moved, q) - y), control.angle(q)

    (y, square, theta), (rise, widening, turn) = jax.jvp(end, (s,), (jnp.ones_like(s),))
    pull = decay * eta**2 * jnp.cos(theta) / jnp.sin(theta)
    return [rise, widening], [
        ((1 + drift * eta**2) * output(theta) - pull * y) * turn,
        2 * pull * (1 - square) * turn,
    ]


@controlled_sde_solves_its_equation.near_miss
def noise_without_its_drift(schedule, c, spread, z, eta):
    """F once, as on the flow: the noise is added and the score that makes up for it is that of Gaussian data alone."""
    left, right = _slopes(schedule, c, spread, z, eta, drift=0.0)
    return left[0], right[0]


@controlled_sde_solves_its_equation.near_miss
def twice_the_pull(schedule, c, spread, z, eta):
    """eta^2 where eta^2/2 belongs, as of a schedule in sigma and not in its square."""
    left, right = _slopes(schedule, c, spread, z, eta, decay=2.0)
    return left[1], right[1]


@theorem(source="Anderson 1982; exact.reverse_kernel", schedule=smooth_schedules, mean=vectors(2), spread=vectors(2), z=vectors(2),
         cases=100)  # fmt: skip
def controlled_sde_is_bayes_for_gaussians(schedule, mean, spread, z):
    """On Gaussian data, with eta = 1, a step of any length draws from the law of z_s given z_t."""
    return _drawn(schedule, mean, spread, z, lambda denoise, control: controlled(denoise, schedule, control, eta=1.0))


def _drawn(schedule, mean, spread, z, make):
    """Mean and variances of a step's end, and those by Bayes."""
    variances, (t, s) = _variances(spread), jnp.asarray(TIMES[[0, 3]], z.dtype)
    world, control = exact.Gaussian(mean, jnp.diag(variances)), Control(mean, variances)
    sampler = make(exact.denoiser(world, schedule), control)
    end = lambda noise: sampler.step(noise[None], sampler.init(z), z, t, s)[0]  # noqa: E731
    still = jnp.zeros_like(z)
    centre, cov = exact.reverse_kernel(world, z, at(schedule, t), at(schedule, s))
    return [end(still), jnp.square(end(jnp.ones_like(z)) - end(still))], [centre, jnp.diag(cov)]


@controlled_sde_is_bayes_for_gaussians.near_miss
def ddpm_too(schedule, mean, spread, z):
    """DDPM in one step, which takes x0 for known."""
    return _drawn(schedule, mean, spread, z, lambda denoise, control: samplers.ddpm(denoise, schedule))


@theorem(source="derived: Edgeworth's expansion of the data about infinite noise, and Tweedie's formula", kind="order", order=3,
         apart=scalars("distances of three modes", 0.5, 1.5), y=vectors(2), cases=6, precisions=("float64",))  # fmt: skip
def jump_leaves_the_third_cumulant(apart, y):
    """About infinite noise F_i = 1/2 sum_jk sin(theta_j) sin(theta_k) K_ijk (y_j y_k - delta_jk) + O(theta^3), K the third cumulant
    of the whitened data: so `jump` errs by theta_i theta_j theta_k/6 K (y y - I) + O(theta^4) in y, and by nothing on Gaussians."""
    return _from_cumulants(apart, y)


def _three_modes(apart):
    """Three modes in the plane that no reflection maps onto themselves."""
    means = apart * jnp.array([[1.0, 0.3], [-0.6, 0.8], [-0.1, -0.9]], apart.dtype)
    return exact.Mixture(
        jnp.array([0.2, 0.3, 0.5], apart.dtype), means, 0.25 * jnp.stack([jnp.eye(2, dtype=apart.dtype)] * 3)
    )


def _from_cumulants(apart, y, which=None, half=0.5):
    """|F - the sum| over starts about y, where alpha/sigma = 1/n."""
    world = _three_modes(apart)
    centre = dot(world.weights, world.means)
    away = world.means - centre[None]
    cov = jnp.einsum("k,kij->ij", world.weights, world.covs + away[:, :, None] * away[:, None, :])
    variances, basis = jnp.linalg.eigh(cov)
    white = basis / jnp.sqrt(variances)[None]
    a, s = dot(away, white), jnp.einsum("kab,ai,bj->kij", world.covs, white, white)
    mixed = a[:, :, None, None] * s[:, None]
    mixed = mixed + jnp.moveaxis(mixed, 1, 2) + jnp.moveaxis(mixed, 1, 3)
    third = jnp.einsum(
        "k,kijl->ijl", world.weights, a[:, :, None, None] * a[:, None, :, None] * a[:, None, None, :] + mixed
    )
    control = Control(centre if which is None else world.means[which], variances, basis)
    starts = 2 * jnp.tanh(y)[None] + jnp.asarray([[1.5, 0], [0, 1.5], [-1, 1]], y.dtype)

    def error(ratio):
        one = jnp.ones_like(ratio)
        p = Point(0 * one, ratio, one, one, one)
        z = control.colour(starts, jnp.zeros_like(starts), p)
        output = network_output(control, jax.vmap(lambda z: exact.denoise(world, z, p))(z), z, p)
        sine = jnp.sin(control.angle(p))[0]
        squares = (starts[:, :, None] * starts[:, None, :] - jnp.eye(2, dtype=y.dtype)[None]) * (
            sine[:, None] * sine[None]
        )[None]
        return jnp.sum(jnp.abs(output - half * jnp.einsum("ijk,njk->ni", third, squares)))

    steps = _steps(y)
    return steps, jax.vmap(error)(steps)


jump_leaves_the_third_cumulant.not_of_order(4, "One order too many: the fourth cumulant is not accounted for.")


@jump_leaves_the_third_cumulant.near_miss
def the_sum_not_its_half(apart, y):
    """Without the half of two equal factors."""
    return _from_cumulants(apart, y, half=1.0)


@jump_leaves_the_third_cumulant.near_miss
def about_another_mean(apart, y):
    """A control whose mean is the first mode's: F begins with a constant."""
    return _from_cumulants(apart, y, which=0)


def _flow_times(schedule, spread, middle, jump, unit):
    """sigma/(sigma + unit alpha) along four steps of `control_times`."""
    wide = Parabola(40.0, 20 * schedule.slope, 20 * schedule.bend + 80.0, schedule.size, schedule.tilt)
    control = Control(jnp.zeros_like(spread), _variances(spread))
    times = control_times(control, wide, 4, middle=middle, jump=jump, sigma_min=0.01)
    alphas, sigmas = jax.vmap(wide)(times)
    return sigmas / (sigmas + unit * alphas)


def _evenly(unit, jump):
    """From n/(n + jump) to where sigma/alpha = 0.01."""
    first, last = 4 / (4 + jump), 0.01 / (0.01 + unit)
    return first + (last - first) * jnp.arange(5.0, dtype=unit.dtype) / 4


@theorem(source="derived", schedule=PARABOLAS, spread=vectors(3), middle=positive("middles", 0.1, 10.0),
         jump=positive("lengths of the jump", 0.5, 3.0), cases=200)  # fmt: skip
def control_times_are_even_in_the_flow_of_the_data(schedule, spread, middle, jump):
    """In u = sigma/(sigma + c alpha), the straight flow's time for data in units of c = middle (mean variance^2)^{1/4}, the steps
    are even from n/(n + jump) to where sigma/alpha is its smallest."""
    unit = middle * jnp.sqrt(jnp.sqrt(jnp.mean(_variances(spread) ** 2)))
    return _flow_times(schedule, spread, middle, jump, unit), _evenly(unit, jump)


@control_times_are_even_in_the_flow_of_the_data.near_miss
def in_units_of_the_mean_deviation(schedule, spread, middle, jump):
    """c from the mean variance, by which large and small axes count alike."""
    unit = middle * jnp.sqrt(jnp.mean(_variances(spread)))
    return _flow_times(schedule, spread, middle, jump, unit), _evenly(unit, jump)


@control_times_are_even_in_the_flow_of_the_data.near_miss
def the_jump_to_the_middle(schedule, spread, middle, jump):
    """The jump ended where sigma/alpha = c, whatever the number of steps."""
    unit = middle * jnp.sqrt(jnp.sqrt(jnp.mean(_variances(spread) ** 2)))
    return _flow_times(schedule, spread, middle, jump, unit)[0], jnp.full_like(unit, 0.5)


@control_times_are_even_in_the_flow_of_the_data.near_miss
def a_jump_of_one_step(schedule, spread, middle, jump):
    """As long as each step, whatever was asked."""
    unit = middle * jnp.sqrt(jnp.sqrt(jnp.mean(_variances(spread) ** 2)))
    return _flow_times(schedule, spread, middle, jump, unit), _evenly(unit, jnp.ones_like(jump))


def _asked(apart, shift, p):
    """(x0_hat, z, shares) on a line through two modes that are moved by a shift: the trapezoidal rule for expectations over p_t."""
    modes, _ = _two_modes(apart)
    world = exact.Mixture(modes.weights, modes.means + shift, modes.covs)
    z, step = _line(*_span(world, p))
    shares = step * jnp.exp(jax.vmap(lambda z: exact.log_prob(world, z, p))(z))
    return jax.vmap(lambda z: exact.denoise(world, z, p))(z), z, shares[:, None]


@theorem(source="derived: given z ~ p_t, x0 and E[x0 | z] have one mean", schedule=smooth_schedules,
         apart=scalars("distances of two modes", 0.5, 1.0), shift=scalars("shifts", -2.0, 2.0), t=middle, cases=300,
         precisions=("float64",))  # fmt: skip
def regression_of_a_denoiser_is_the_covariance(schedule, apart, shift, t):
    """Regressed on z ~ p_t, the predictions of any data have the slope K with C = sigma^2/alpha K (1 - alpha K)^{-1}, and the
    data's mean is where the line meets x0 = z/alpha."""
    p = at(schedule, t)
    x0, z, shares = _asked(apart, shift, p)
    (m, c), rough = regressed(x0, z, p, shares), regressed(x0[::2], z[::2], p, 2 * shares[::2])
    known = shift[None], _two_modes(apart)[1][None, None]
    return (m, c), known, (2 * jnp.abs(m - rough[0]), 2 * jnp.abs(c - rough[1]))


@regression_of_a_denoiser_is_the_covariance.near_miss
def the_posterior_s_variance_alone(schedule, apart, shift, t):
    """sigma^2/alpha K, which leaves out that the predictions vary too."""
    p = at(schedule, t)
    x0, z, shares = _asked(apart, shift, p)
    away = shares * (z - jnp.sum(shares * z))
    return p.sigma**2 / p.alpha * jnp.sum(away * x0) / jnp.sum(away * z), _two_modes(apart)[1]


@regression_of_a_denoiser_is_the_covariance.near_miss
def the_slope_at_the_mean(schedule, apart, shift, t):
    """The denoiser's slope in one place, of which the covariance is made at infinite noise alone."""
    p, (modes, variance) = at(schedule, t), _two_modes(apart)
    k = jax.grad(lambda z: exact.denoise(modes, z[None], p)[0])(jnp.zeros_like(shift))
    return p.sigma**2 / p.alpha * k / (1 - p.alpha * k), variance
