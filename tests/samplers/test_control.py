"""What is known of the data: moments, axes of several kinds, the times that go with them, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen import samplers, schedules
from diffeq_gen.samplers.control import network_output
from diffeq_gen.schedules import at
from diffeq_gen.types import Point

FLOW = schedules.Flow()


def plain():
    return samplers.Control(jnp.array([0.3, -0.2]), jnp.array([0.5, 0.1]))


def test_moments_are_those_of_the_points():
    points = np.random.default_rng(1).standard_normal((500, 3)) @ np.diag([3.0, 1.0, 1e-3]) + 5
    cov = np.cov(points.T, bias=True)
    with jax.enable_x64(True):
        control = samplers.control_of(jnp.asarray(points), mixture=False)
        np.testing.assert_allclose(control.mean, points.mean(0), rtol=1e-12)
        np.testing.assert_allclose(control.variances[1:], np.linalg.eigvalsh(cov)[1:], rtol=1e-10)
        np.testing.assert_allclose(control.variances[0], 0.01 * np.trace(cov) / 3, rtol=1e-10)
        np.testing.assert_allclose(control.basis.T @ control.basis, np.eye(3), atol=1e-12)
        np.testing.assert_allclose(control.basis[0, 2] ** 2, np.linalg.eigh(cov)[1][0, 2] ** 2, rtol=1e-10)
    assert (
        samplers.control_of(jnp.asarray(points, jnp.float32)).variances.dtype == jnp.float32 and control.known is None
    )


def test_two_points_are_enough_and_equal_ones_leave_a_variance():
    two = samplers.control_of(jnp.array([[1.0, 2.0], [3.0, 2.0]]))
    np.testing.assert_allclose(two.mean, [2.0, 2.0])
    np.testing.assert_allclose(two.variances, [0.01 * 0.5, 1.0], rtol=1e-6)
    assert np.all(samplers.control_of(jnp.ones((3, 2)), mixture=False).variances > 0)


def test_scalar_variance_needs_no_basis():
    control = samplers.Control(jnp.zeros((2, 2)), 0.25)
    p = at(FLOW, jnp.asarray(0.4))
    z = jnp.arange(4.0).reshape(2, 2)
    assert network_output(control, z, z, p).shape == (1, 4)
    np.testing.assert_allclose(control.colour(control.whiten(z, p), z, p), z, rtol=1e-6)


def test_where_there_is_no_noise_the_output_is_finite_and_where_there_is_any_it_is_exact():
    """F = (x0 - G)/c_out of N(0, 4): at sigma = 0 nobody reads it, but 0 times it is asked for."""
    control, z, one = samplers.Control(jnp.zeros(2), 4.0), jnp.array([[0.3, -2.0]]), jnp.ones(())
    for alpha, sigma in ((1.0, 0.0), (0.5, 0.0)):
        assert jnp.isfinite(network_output(control, 0 * z, z, Point(0 * one, alpha * one, sigma * one, one, one))).all()
    for alpha, sigma in ((0.0, 0.7), (0.6, 0.7)):
        std = (4 * alpha**2 + sigma**2) ** 0.5
        found = network_output(control, jnp.ones((1, 2)), z, Point(0 * one, alpha * one, sigma * one, one, one))
        np.testing.assert_allclose(found, (1 - 4 * alpha / std**2 * z) * std / (2 * sigma), rtol=2e-6)


def test_times_begin_where_the_jump_ends():
    """1.4 steps of up to 15, one of 21 and more."""
    with jax.enable_x64(True):
        control, schedule = samplers.Control(jnp.zeros(2), jnp.array([4.0, 1.0])), schedules.EDM(sigma_max=1000.0)
        for n, jump in ((1, 1.4), (15, 1.4), (16, 21 / 16), (20, 1.05), (22, 1.0), (60, 1.0)):
            times = jax.jit(lambda n=n: samplers.control_times(control, schedule, n))()
            alpha, sigma = jax.vmap(schedule)(times)
            assert len(times) == n + 1
            unit = 0.85 * 8.5**0.25
            np.testing.assert_allclose(sigma[0] / alpha[0], n * unit / jump, rtol=1e-9)
            np.testing.assert_allclose(sigma[-1] / alpha[-1], 0.002, rtol=1e-9)
            steps = np.diff(sigma / (sigma + unit * alpha))
            np.testing.assert_allclose(steps, steps[0], rtol=1e-9)


def test_half_of_few_steps_lie_above_where_the_modes_of_many_directions_are_decided():
    """c is sqrt(tr C) / max(n, 10) where that is more than 0.85 reach, as of 784 variances of one, and not of four."""
    with jax.enable_x64(True):
        schedule, variances = (
            schedules.EDM(sigma_max=1e5, rho=1.0),
            jnp.concatenate([jnp.full(392, 0.5), jnp.full(392, 1.5)]),
        )
        many, few = samplers.Control(jnp.zeros((28, 28)), variances), samplers.Control(jnp.zeros(4), 2.0)
        reach, length, root = 1.25**0.25, 28.0, 2.0**0.5
        for control, n, unit in (
            (many, 1, 0.1 * length), (many, 10, 0.1 * length), (many, 12, length / 12), (many, 100, 0.85 * reach),
            (few, 4, 0.85 * root), (samplers.Control(jnp.zeros(144), 2.0), 5, 1.2 * root),
        ):  # fmt: skip
            alpha, sigma = jax.vmap(schedule)(samplers.control_times(control, schedule, n, jump=1.0))
            np.testing.assert_allclose(sigma[0] / alpha[0], n * unit, rtol=1e-9)
            steps = np.diff(sigma / (sigma + unit * alpha))
            np.testing.assert_allclose(steps, steps[0], rtol=1e-9)


def test_times_are_cut_to_what_the_schedule_reaches():
    with jax.enable_x64(True):
        schedule, control = schedules.Cosine(log_snr_min=-4.0, log_snr_max=4.0), samplers.Control(jnp.zeros(2), 1.0)
        times = samplers.control_times(control, schedule, 40, middle=2.0)
        alpha, sigma = jax.vmap(schedule)(times)
        np.testing.assert_allclose((sigma / alpha)[jnp.array([0, -1])], [np.exp(2.0), np.exp(-2.0)], rtol=1e-9)
        steps = np.diff(sigma / (sigma + 2 * alpha))
        np.testing.assert_allclose(steps, steps[0], rtol=1e-9)


def turn(seed, width):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((width, width)))[0].astype(np.float32)


def test_axes_of_each_axis_are_their_kronecker_product():
    """Rows, columns and channels by a matrix of their own, or all at once by the matrix of 24 that numpy makes of the three."""
    parts, rng = (turn(0, 3), turn(1, 4), turn(2, 2)), np.random.default_rng(3)
    variances = jnp.asarray(rng.uniform(0.5, 2.0, 24), jnp.float32)
    mean, z = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((3, 4, 2), (5, 3, 4, 2)))
    apart = samplers.Control(mean, variances, tuple(map(jnp.asarray, parts)))
    whole = samplers.Control(mean, variances, jnp.asarray(np.kron(np.kron(parts[0], parts[1]), parts[2])))
    p = at(FLOW, jnp.asarray(0.4))
    np.testing.assert_allclose(apart.whiten(z, p), whole.whiten(z, p), atol=2e-6)
    y = jnp.asarray(rng.standard_normal((5, 24)), jnp.float32)
    np.testing.assert_allclose(apart.colour(y, z, p), whole.colour(y, z, p), atol=2e-6)
    np.testing.assert_allclose(apart.colour(apart.whiten(z, p), z, p), z, atol=2e-6)
    jumped = [jax.jit(lambda z, one=one: samplers.jump(one, FLOW, z, 1.0, 0.4))(z) for one in (apart, whole)]
    np.testing.assert_allclose(*jumped, atol=4e-6)


def test_separable_axes_are_found_in_points_that_have_them():
    """Points whose rows, columns and channels are turned by matrices of their own: each is found, and the coefficients' variances."""
    parts, rng = (turn(0, 3), turn(1, 4), turn(2, 2)), np.random.default_rng(4)
    stds = np.einsum("a,b,c->abc", [3.0, 2.0, 1.0], [4.0, 2.0, 1.0, 0.5], [1.5, 0.5])
    points = np.einsum("nabc,ia,jb,kc->nijk", rng.standard_normal((8000, 3, 4, 2)) * stds, *parts) + 7
    control = samplers.control_of(jnp.asarray(points, jnp.float32), mixture=False, separable=True, floor=1e-3)
    assert [one.shape for one in control.basis] == [(3, 3), (4, 4), (2, 2)]
    for found, part in zip(control.basis, parts, strict=True):
        np.testing.assert_allclose(np.abs(np.asarray(found).T @ part), np.eye(len(part))[::-1], atol=0.03)
    np.testing.assert_allclose(control.variances.reshape(3, 4, 2)[::-1, ::-1, ::-1], stds**2, rtol=0.1)
    turned = np.einsum("nijk,ia,jb,kc->nabc", points - points.mean(0), *map(np.asarray, control.basis)).reshape(
        len(points), -1
    )
    np.testing.assert_allclose(control.variances, np.mean(turned**2, axis=0), rtol=1e-4)
    rows = np.moveaxis(points - points.mean(0), 2, -1).reshape(-1, 4)
    np.testing.assert_allclose(
        np.abs(np.linalg.eigh(rows.T @ rows)[1].T @ np.asarray(control.basis[1])), np.eye(4), atol=1e-3
    )


def test_large_samples_get_axes_of_each_axis_and_no_mixture():
    points = np.random.default_rng(5).standard_normal((40, 33, 32)).astype(np.float32)
    control = samplers.control_of(jnp.asarray(points))
    assert [one.shape for one in control.basis] == [(33, 33), (32, 32)] and control.known is None
    just = samplers.control_of(jnp.asarray(points.reshape(-1)[: 2 * 1025].reshape(2, 41, 25)))
    assert [one.shape for one in just.basis] == [(41, 41), (25, 25)]
    small = samplers.control_of(jnp.asarray(points[:, :32, :32]), separable=None)
    assert small.basis.shape == (1024, 1024)
    forced = samplers.control_of(jnp.asarray(points[:, :4, :3]), separable=True, mixture=False)
    assert [one.shape for one in forced.basis] == [(4, 4), (3, 3)]


def test_mixture_is_tried_up_to_256_dimensions(monkeypatch):
    asked = []
    monkeypatch.setattr("diffeq_gen.samplers.control.fit", lambda rows, *, seed: asked.append((rows.shape, seed)))
    points = jnp.asarray(np.random.default_rng(6).standard_normal((10, 257)), jnp.float32)
    samplers.control_of(points)
    samplers.control_of(points[:, :256], mixture=False)
    assert samplers.control_of(points[:, :256], seed=3).known is None and asked == [((10, 256), 3)]
    samplers.control_of(points[:, :256])
    assert asked[1:] == [((10, 256), 0)]


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (lambda: samplers.Control(jnp.zeros(2), jnp.ones(3)), r"variances must be a scalar or of shape \(2,\), got variances=\(3,\)"),
        (lambda: samplers.Control(jnp.zeros(2), jnp.array([1.0, 0.0])), "variances must be positive, got"),
        (lambda: samplers.Control(jnp.zeros(2), 1.0, jnp.eye(3)), r"basis must be of shape \(2, 2\), got basis=\(3, 3\)"),
        (lambda: samplers.control_of(jnp.zeros(5)), r"points must be \(n, \*event\), n at least two, got points=\(5,\)"),
        (lambda: samplers.control_of(jnp.zeros((1, 5))), "n at least two"),
        (lambda: samplers.control_of(jnp.zeros((3, 2), jnp.int32)), "points must be real numbers, got"),
        (lambda: samplers.control_of(jnp.zeros((3, 2)), floor=0.0), "floor must be positive, got floor=0.0"),
        (lambda: samplers.Control(jnp.zeros((2, 3)), 1.0, (jnp.eye(2), jnp.eye(2))), r"got basis=\(\(2, 2\), \(2, 2\)\)"),
        (lambda: samplers.Control(jnp.zeros((2, 3)), 1.0, (jnp.eye(2),)), r"basis must be matrices of shapes \(\(2, 2\), \(3, 3\)\)"),
        (lambda: samplers.control_times(plain(), FLOW, 0), "a grid needs at least one step, got n=0"),
        (lambda: samplers.control_times(plain(), FLOW, 0.75), "a grid needs at least one step, got n=0.75"),
        (lambda: samplers.control_times(plain(), FLOW, 4, middle=0.0), "middle must be positive, got middle=0.0"),
        (lambda: samplers.control_times(plain(), FLOW, 4, jump=0.0), "jump must be positive, got jump=0.0"),
        (lambda: samplers.control_times(plain(), FLOW, 4, sigma_min=0.0), r"sigma must fall .*, got sigma_min=0.0, jump_ends="),
        (lambda: samplers.control_times(samplers.Control(jnp.zeros(2), 1.0), FLOW, 1, middle=0.002, jump=1.0),
         "sigma must fall from where the jump ends to sigma_min > 0"),
    ],
)  # fmt: skip
def test_bad_input_is_named(refused, message):
    with pytest.raises(ValueError, match=message):
        refused()
