"""Chapter 6, controlled solvers: the probability flow seen along the angles of the data's axes.

    y = basis^T (z - alpha m) / sqrt(alpha^2 c + sigma^2),    theta = arctan(alpha sqrt(c) / sigma),    dy/dtheta = F

`predict` stands for any prediction, as among the first-order samplers.
"""

import jax
import jax.numpy as jnp

from diffeq_gen import exact, predictions, samplers
from diffeq_gen.samplers.control import Control, network_output
from diffeq_gen.samplers.controlled import Past, controlled, jump
from diffeq_gen.samplers.mixture import Components, denoise_components
from diffeq_gen.schedules import at
from diffeq_gen.theorems.domains import choices, mixtures, positive, schedules, smooth_schedules, times, vectors
from diffeq_gen.theorems.first_order import _noise_in, _opening, _predict
from diffeq_gen.theorems.registry import theorem
from diffeq_gen.theorems.solver_algebra import _run
from diffeq_gen.theorems.solver_exactness import TIMES, _quadrature
from diffeq_gen.types import Point

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


@theorem(source="derived; probabilistic principal components, Tipping and Bishop 1999", schedule=smooth_schedules, mean=vectors(3),
         spread=vectors(2), axis=vectors(3), z=vectors(3), cases=100)  # fmt: skip
def few_axes_are_all_of_them_where_the_rest_have_one_variance(schedule, mean, spread, axis, z):
    """The jump and every step along one axis, and by one variance beyond it, are those of a whole basis that says this twice."""
    return _few_and_all(schedule, z, mean, _variances(spread), _mirror(axis))


def _few_and_all(schedule, z, mean, variances, basis, beyond=1):
    """(with the first column alone, with all): the jump and three steps."""
    few = Control(mean, variances[jnp.array([0, beyond])], basis[:, :1])
    whole = Control(mean, variances[jnp.array([0, 1, 1])], basis)
    grid = jnp.asarray(TIMES[[0, 2, 3, 4]], z.dtype)
    ends = [
        (jump(one, schedule, z, grid[0], grid[-1]), _run(controlled(_predict, schedule, one), z, grid))
        for one in (few, whole)
    ]
    return tuple(ends)


@few_axes_are_all_of_them_where_the_rest_have_one_variance.near_miss
def beyond_it_the_variance_of_the_axis(schedule, mean, spread, axis, z):
    """One variance for all."""
    return _few_and_all(schedule, z, mean, _variances(spread), _mirror(axis), beyond=0)


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


@theorem(source="derived", schedule=smooth_schedules, c=vectors(5, 2), spread=vectors(2), z=vectors(2), cases=100)
def controlled_is_adams_bashforth(schedule, c, spread, z):
    """Where F is a cubic of the angle of each direction and nothing is left out, order 4 takes a step without error, and order 3
    corrects a state that it had predicted too far, by half of the step, to the exact one."""
    return _step_along(schedule, c * jnp.array([[1], [1], [1], [1], [0]], c.dtype), spread, z)


def _step_along(schedule, c, spread, z):
    """The step after three exact ones, without a corrector; and y at its beginning, by the corrector."""
    control = Control(c[0], _variances(spread))
    output = lambda x: sum(c[k][None] * x**k for k in range(5))  # noqa: E731
    whole = lambda x: sum(c[k][None] * x ** (k + 1) / (k + 1) for k in range(5))  # noqa: E731
    denoise, grid = _output_denoiser(schedule, control, output), jnp.asarray(TIMES, z.dtype)
    o, n, m, p, q = (at(schedule, t) for t in grid)
    y, angles = control.whiten(z, p), [control.angle(point) for point in (m, n, o)]
    before = y + whole(angles[0]) - whole(control.angle(p))
    past = Past(before, jnp.zeros((), z.dtype), m.alpha, m.sigma, tuple(output(x) for x in angles), tuple(angles))
    fourth = controlled(denoise, schedule, control, order=4, corrector=False, growth=jnp.inf)
    third = controlled(denoise, schedule, control, order=3, growth=jnp.inf)
    far = control.colour(before + 1.5 * (y - before), z, p)
    _, after = third.step(z[:0], past, far, grid[3], grid[4])
    return [fourth.step(z[:0], past, z, grid[3], grid[4])[0], after.y], [_coloured(control, y, whole, z, p, q), y]


@controlled_is_adams_bashforth.near_miss
def a_quartic_too(schedule, c, spread, z):
    """F of one degree more."""
    return _step_along(schedule, c, spread, z)


RATIOS = choices("ratios of a term to the one before, over what is allowed", 0.25, 0.8, 1.25, 4.0)


@theorem(source="derived", schedule=smooth_schedules, c=vectors(4, 2), spread=positive("variances", 0.2, 5.0), z=vectors(2),
         second=RATIOS, third=RATIOS, growth=positive("growths", 0.3, 3.0), cases=200)  # fmt: skip
def controlled_leaves_out_what_grows(schedule, c, spread, z, second, third, growth):
    """Newton's series of F, of which each term is some share as long as the one before: a step, and its correction, is its sum up to
    the first term, after the slope and of the correction after the curvature, that is longer than `growth` times the one before."""
    return _sums(schedule, c, spread, z, second, third, growth, lambda second, third: (second, second & third, third))


def _sums(schedule, c, spread, z, second, third, growth, rule):
    """(step and corrected state, what they are) where `rule` says of (second <= 1, third <= 1) which terms are taken: two, one."""
    control, grid = Control(0 * z, spread), jnp.asarray(TIMES, z.dtype)
    o, n, m, p, q = (at(schedule, t) for t in grid)
    far, old, past, here, end = (control.angle(point)[0, 0] for point in (o, n, m, p, q))
    units = c / jnp.sqrt(jnp.sum(c * c, axis=1, keepdims=True))
    sizes = 0.3 * jnp.stack([jnp.ones_like(second), growth * second, growth**2 * second * third])
    taken = rule(second <= 1, third <= 1)

    def series(start, stop, nodes):
        """F by its Newton series from `start`, whose integral to `stop` has terms of these sizes, along these units."""
        x, weights = _quadrature(start, stop)
        products = [
            lambda x: x - start,
            lambda x: (x - start) * (x - nodes[0]),
            lambda x: (x - start) * (x - nodes[0]) * (x - nodes[1]),
        ]
        slopes = [sizes[k] * units[k + 1] / jnp.sum(weights * products[k](x)) for k in range(3)]
        return lambda x: c[0] + sum(slope * product(x) for slope, product in zip(slopes, products, strict=True))

    def stepped(output, z, **options):
        """(z at q, what is remembered) from p, after values at m, n and o, where F is `output` of the angle."""
        row = lambda x: output(x[0, 0])[None]  # noqa: E731
        sampler = controlled(_output_denoiser(schedule, control, row), schedule, control, growth=growth, **options)
        angles = tuple(jnp.reshape(x, (1, 1)) for x in (past, old, far))
        memory = Past(y, jnp.zeros((), z.dtype), m.alpha, m.sigma, tuple(map(row, angles)), angles)
        return sampler.step(z[:0], memory, z, grid[3], grid[4])

    y = control.whiten(z, p)
    moved, _ = stepped(series(here, end, (past, old)), z, corrector=False)
    terms = [size * unit for size, unit in zip(sizes, units[1:], strict=True)]
    wanted = terms[0] + jnp.where(taken[0], terms[1], 0) + jnp.where(taken[1], terms[2], 0)
    wanted = y + ((end - here) * c[0] + wanted)[None]

    corrected = y + ((here - past) * c[0] + terms[0] + terms[1] + jnp.where(taken[2], terms[2], 0))[None]
    predicted = control.colour(y + 1.5 * (corrected - y), z, p)
    _, after = stepped(series(past, here, (here, old)), predicted, order=3)
    return [control.whiten(moved, q), after.y], [wanted, corrected]


@controlled_leaves_out_what_grows.near_miss(witness={"second": 4.0, "third": 0.25})
def all_of_its_terms(schedule, c, spread, z, second, third, growth):
    """Nothing left out."""
    return _sums(schedule, c, spread, z, second, third, growth, lambda *small: (True, True, True))


@controlled_leaves_out_what_grows.near_miss(witness={"second": 4.0, "third": 0.25})
def those_that_do_not_grow(schedule, c, spread, z, second, third, growth):
    """A term left out alone, without those after it."""
    return _sums(schedule, c, spread, z, second, third, growth, lambda second, third: (second, third, third))


@controlled_leaves_out_what_grows.near_miss(witness={"second": 4.0, "third": 0.25})
def a_curvature_of_the_correction_too(schedule, c, spread, z, second, third, growth):
    """The corrector judged as the step is."""
    return _sums(
        schedule, c, spread, z, second, third, growth, lambda second, third: (second, second & third, second & third)
    )


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
