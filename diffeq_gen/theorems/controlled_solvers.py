"""Chapter 6, controlled solvers: the probability flow seen along the angles of the data's axes.

    y = basis^T (z - alpha m) / sqrt(alpha^2 c + sigma^2),    theta = arctan(alpha sqrt(c) / sigma),    dy/dtheta = F

`predict` stands for any prediction, as among the first-order samplers.
"""

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

from diffeq_gen import exact, predictions, samplers
from diffeq_gen.samplers.control import Control, network_output
from diffeq_gen.samplers.controlled import Past, controlled, jump
from diffeq_gen.samplers.mixture import Components, denoise_components
from diffeq_gen.schedules import Flow, at
from diffeq_gen.theorems.domains import mixtures, positive, scalars, schedules, smooth_schedules, times, vectors
from diffeq_gen.theorems.first_order import _noise_in, _opening, _predict
from diffeq_gen.theorems.refinement import SIZES, grids
from diffeq_gen.theorems.registry import theorem
from diffeq_gen.theorems.solver_algebra import _run
from diffeq_gen.theorems.solver_exactness import TIMES
from diffeq_gen.theorems.solver_orders import _resting, _steps
from diffeq_gen.types import Point, dot

__all__: list[str] = []


def _mirror(v):
    """The orthogonal matrix I - 2 v v^T / |v|^2."""
    return jnp.eye(len(v), dtype=v.dtype) - 2 * v[:, None] * v[None, :] / jnp.sum(v * v)


def _variances(spread):
    """Positive, within a factor of e^{+-2} of one, and different."""
    return jnp.exp(2 * jnp.tanh(spread))


@theorem(source="derived; for one scale, Karras et al. 2022, Eq. 7, and Gao et al. 2024 on DDIM as a rotation", schedule=schedules,
         mean=vectors(3), spread=vectors(3), axis=vectors(3), z=vectors(3), t=times, cases=300)  # fmt: skip
def angle_is_the_clock_of_any_schedule(schedule, mean, spread, axis, z, t):
    """Along the probability flow of any prediction and any schedule d y = F d theta in each direction, where F is the prediction
    less that for Gaussian data, in units of c_out."""
    control = Control(mean, _variances(spread), _mirror(axis))
    return _rates(control, lambda p: network_output(control, _predict(z, t), z, p)[0], schedule, z, t)


def _rates(control, output, schedule, z, t):
    """(d y / dt by autodiff along the flow, output d theta / dt)."""
    p = at(schedule, t)
    x0 = _predict(z, t)
    velocity = p.alpha_dot * x0 + p.sigma_dot * _noise_in(x0, z, p)
    white = lambda z, t: control.whiten(z, _still(schedule, t))[0]  # noqa: E731
    turn = lambda t: control.angle(_still(schedule, t))[0]  # noqa: E731
    left = jax.jvp(white, (z, t), (velocity, jnp.ones_like(t)))[1]
    return left, output(p) * jax.jvp(turn, (t,), (jnp.ones_like(t),))[1]


def _still(schedule, t):
    """The schedule at t without its slopes."""
    alpha, sigma = schedule(t)
    return Point(t, alpha, sigma, alpha, sigma)


@angle_is_the_clock_of_any_schedule.near_miss
def in_units_of_the_noise(schedule, mean, spread, axis, z, t):
    """The remainder divided by sigma, for c_out = sigma sqrt(c) / std."""
    control = Control(mean, _variances(spread), _mirror(axis))

    def output(p):
        share = control.roots() / jnp.sqrt(p.alpha**2 * control.variances[None] + p.sigma**2)
        return (network_output(control, _predict(z, t), z, p) * share)[0]

    return _rates(control, output, schedule, z, t)


@angle_is_the_clock_of_any_schedule.near_miss
def one_clock_for_all_directions(schedule, mean, spread, axis, z, t):
    """Every direction by the angle of the mean variance."""
    control = Control(mean, _variances(spread), _mirror(axis))
    left, _ = angle_is_the_clock_of_any_schedule.claim(schedule, mean, spread, axis, z, t)
    one = Control(mean, jnp.mean(control.variances))
    return left, _rates(one, lambda p: network_output(control, _predict(z, t), z, p)[0], schedule, z, t)[1]


@theorem(source="Karras et al. 2022, Eq. 7", schedule=schedules, z=vectors(3), scale=positive("standard deviations", 0.1, 10.0),
         t=times, cases=300)  # fmt: skip
def control_of_one_scale_is_edm(schedule, z, scale, t):
    """With mean zero and one variance in all directions F is what EDM's network puts out."""
    p, x0 = at(schedule, t), _predict(z, t)
    control = Control(jnp.zeros_like(z), scale**2)
    right = predictions.convert(x0, z, p, predictions.data, predictions.edm(scale))
    return network_output(control, x0, z, p)[0], right


@control_of_one_scale_is_edm.near_miss
def it_is_v(schedule, z, scale, t):
    """v = alpha eps - sigma x0, which differs in its sign even at unit scale."""
    p, x0 = at(schedule, t), _predict(z, t)
    left = network_output(Control(jnp.zeros_like(z), scale**2), x0, z, p)[0]
    return left, predictions.convert(x0, z, p, predictions.data, predictions.v)


@theorem(source="derived; the flow map is that of Gaussian data", schedule=smooth_schedules, mean=vectors(2), spread=vectors(2),
         z=vectors(2), cases=100)  # fmt: skip
def controlled_is_exact_for_gaussians(schedule, mean, spread, z):
    """On Gaussian data of the control's moments `jump` and every step of `controlled` are the flow map, whatever their length."""
    return _ends(schedule, mean, spread, z, Control(mean, _variances(spread)))


def _ends(schedule, mean, spread, z, control):
    variances, grid = _variances(spread), jnp.asarray(TIMES[[0, 2, 4]], z.dtype)
    p, q = (at(schedule, t) for t in (grid[0], grid[-1]))
    known = exact.flow_map(exact.Gaussian(mean, jnp.diag(variances)), z, p, q)

    def denoise(z, t):
        p = at(schedule, t)
        return mean + p.alpha * variances / (p.alpha**2 * variances + p.sigma**2) * (z - p.alpha * mean)

    left = [jump(control, schedule, z, grid[0], grid[-1])]
    left.append(_run(controlled(denoise, schedule, control), z, grid))
    return left, [known] * len(left)


@controlled_is_exact_for_gaussians.near_miss
def variances_that_are_not_the_data_s(schedule, mean, spread, z):
    """The variances of the control a quarter too large."""
    return _ends(schedule, mean, spread, z, Control(mean, 1.25 * _variances(spread)))


@controlled_is_exact_for_gaussians.near_miss
def multistep_too(schedule, mean, spread, z):
    """DPM-Solver++(2M), which is exact for a point alone."""
    world = exact.Gaussian(mean, jnp.diag(_variances(spread)))
    grid = jnp.asarray(TIMES[[0, 4]], z.dtype)
    known = exact.flow_map(world, z, *(at(schedule, t) for t in grid))
    return _run(samplers.multistep(exact.denoiser(world, schedule), schedule), z, grid), known


def _output_denoiser(schedule, control, output):
    """(z, t) -> the x0 whose F is `output` of the angle, whatever z."""

    def denoise(z, t):
        p = at(schedule, t)
        theta, y = control.angle(p), control.whiten(z, p)
        return control.mean + (control.roots() * (jnp.cos(theta) * output(theta) + jnp.sin(theta) * y))[0]

    return denoise


def _coloured(control, y, antiderivative, z, p, q):
    """z at q from y at p, with the integral of F written out."""
    return control.colour(y + antiderivative(control.angle(q)) - antiderivative(control.angle(p)), z, q)


@theorem(source="derived", schedule=smooth_schedules, c=vectors(4, 2), spread=vectors(2), z=vectors(2), cases=100)
def controlled_is_adams_bashforth(schedule, c, spread, z):
    """Where F is a parabola of the angle of each direction, order 3 takes a step without error, and order 2 corrects a state
    that it had predicted too far, by half of the step, to the exact one."""
    return _step_along(schedule, c * jnp.array([[1], [1], [1], [0]], c.dtype), spread, z)


def _step_along(schedule, c, spread, z):
    """The step after three exact ones, without a corrector; and y at its beginning, by the corrector."""
    control = Control(c[0], _variances(spread))
    output = lambda x: sum(c[k][None] * x**k for k in range(4))  # noqa: E731
    whole = lambda x: sum(c[k][None] * x ** (k + 1) / (k + 1) for k in range(4))  # noqa: E731
    denoise, grid = _output_denoiser(schedule, control, output), jnp.asarray(TIMES, z.dtype)
    o, n, m, p, q = (at(schedule, t) for t in grid)
    y, angles = control.whiten(z, p), [control.angle(point) for point in (m, n, o)]
    before = y + whole(angles[0]) - whole(control.angle(p))
    past = Past(before, jnp.zeros((), z.dtype), m.alpha, m.sigma, tuple(output(x) for x in angles), tuple(angles))
    third = controlled(denoise, schedule, control, order=3, corrector=False)
    short = past._replace(values=past.values[:2], angles=past.angles[:2])
    far = control.colour(before + 1.5 * (y - before), z, p)
    _, after = controlled(denoise, schedule, control).step(z[:0], short, far, grid[3], grid[4])
    return [third.step(z[:0], past, z, grid[3], grid[4])[0], after.y], [_coloured(control, y, whole, z, p, q), y]


@controlled_is_adams_bashforth.near_miss
def a_cubic_too(schedule, c, spread, z):
    """F of one degree more."""
    return _step_along(schedule, c, spread, z)


@theorem(source="derived", schedule=smooth_schedules, c=vectors(2), spread=vectors(2), z=vectors(2), cases=100)
def controlled_puts_back_what_the_jump_left(schedule, c, spread, z):
    """Where F = a theta, as about infinite noise for data whose variances are not those of the control, the first evaluation puts
    back what `jump` left out, and with F(0) = 0 as its second value the first step is exact already."""
    return _from_noise(schedule, lambda x: c[None] * x, lambda x: c[None] * x**2 / 2, spread, z)


def _from_noise(schedule, output, whole, spread, z, **options):
    control, opened = Control(jnp.ones_like(z), _variances(spread)), _opening(schedule, 0.9)
    t, r, s = jnp.asarray([0.9, 0.6, 0.2], z.dtype)
    sampler = controlled(_output_denoiser(opened, control, output), opened, control, **options)
    left = _run(sampler, jump(control, opened, z, t, r), jnp.stack([r, s]))
    p, q = at(opened, t), at(opened, s)
    return left, _coloured(control, control.whiten(z, p), whole, z, p, q)


@controlled_puts_back_what_the_jump_left.near_miss
def a_parabola_too(schedule, c, spread, z):
    """F = a theta^2: an error of O(theta^3) stays."""
    return _from_noise(schedule, lambda x: c[None] * x**2, lambda x: c[None] * x**3 / 3, spread, z)


@controlled_puts_back_what_the_jump_left.near_miss
def without_the_corrector(schedule, c, spread, z):
    """The jump left as it is."""
    return _from_noise(schedule, lambda x: c[None] * x, lambda x: c[None] * x**2 / 2, spread, z, corrector=False)


@theorem(source="Karras et al. 2022, Sec. 3", schedule=smooth_schedules, spread=vectors(2), z=vectors(2), cases=50)
def controlled_ignores_the_scale(schedule, spread, z):
    """z/alpha after jump and steps is the same under the straight flow of the same log-SNR."""
    straight = lambda t: tuple(part / sum(schedule(t)) for part in schedule(t))  # noqa: E731
    return _scaled(schedule, schedule, spread, z), _scaled(schedule, straight, spread, z)


def _scaled(schedule, scaled, spread, x, solver=None):
    """z/alpha at the end, from x = z/alpha at the beginning, with a denoiser that reads z/alpha."""
    denoise = lambda z, t: _predict(z / scaled(t)[0], t)  # noqa: E731
    control, grid = Control(jnp.ones_like(x), _variances(spread)), jnp.asarray(TIMES, x.dtype)
    z = jump(control, scaled, scaled(grid[0])[0] * x, grid[0], grid[1])
    sampler = controlled(denoise, scaled, control) if solver is None else solver(denoise, scaled)
    return _run(sampler, z, grid[1:3]) / scaled(grid[2])[0]


@controlled_ignores_the_scale.near_miss
def euler_does_not(schedule, spread, z):
    """Euler's rule in t: the scale of the path changes the step."""
    straight = lambda t: tuple(part / sum(schedule(t)) for part in schedule(t))  # noqa: E731
    return _scaled(schedule, schedule, spread, z, samplers.euler), _scaled(
        schedule, straight, spread, z, samplers.euler
    )


@theorem(source="gmm-denoiser", schedule=smooth_schedules, world=mixtures(2, 3), z=vectors(2), t=times, cases=200)
def components_denoise_as_their_mixture(schedule, world, z, t):
    """The components' denoiser is that of the mixture with covariances basis diag(variances) basis^T."""
    p = at(schedule, t)
    return denoise_components(_components(world), (z / p.alpha)[None], p.sigma / p.alpha)[0], exact.denoise(world, z, p)


def _components(world):
    variances, bases = jnp.linalg.eigh(world.covs)
    return Components(world.weights, world.means, bases, variances)


@components_denoise_as_their_mixture.near_miss
def variances_are_deviations(schedule, world, z, t):
    """The square roots in the place of the variances."""
    p, known = at(schedule, t), _components(world)
    known = Components(known.weights, known.means, known.bases, jnp.sqrt(known.variances))
    return denoise_components(known, (z / p.alpha)[None], p.sigma / p.alpha)[0], exact.denoise(world, z, p)


@theorem(source="derived; the flow of one dimension is monotone, so it keeps quantiles", kind="order", order=3,
         eps=scalars("noises", -0.5, 0.5), apart=scalars("distances of two modes", 0.5, 1.0), cases=6,
         precisions=("float64",))  # fmt: skip
def controlled_order(eps, apart):
    """From infinite noise, with a jump as long in angle as each of the n steps that follow, the default errs by O(1/n^3) on data
    that is not Gaussian, though nothing was evaluated before the first of them."""
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


def _errors_from(eps, apart, mean):
    world, variance = _two_modes(apart)
    control, schedule = Control(jnp.full(1, mean, eps.dtype), variance), Flow()
    sampler = _resting(controlled(exact.denoiser(world, schedule), schedule, control))
    root, end, key = jnp.sqrt(control.variances), 1.3, jax.random.key(0)
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
