"""What is known of the data: moments, axes of several kinds, the times that go with them, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen import samplers, schedules
from diffeq_gen.samplers.control import network_output
from diffeq_gen.samplers.mixture import Components
from diffeq_gen.schedules import at
from diffeq_gen.types import Point

FLOW = schedules.Flow()
KNOWN = Components(jnp.ones(1), jnp.zeros((1, 3)), jnp.eye(3)[None], jnp.ones((1, 3)))


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


def test_two_points_are_enough():
    two = samplers.control_of(jnp.array([[1.0, 2.0], [3.0, 2.0]]))
    np.testing.assert_allclose(two.mean, [2.0, 2.0])
    np.testing.assert_allclose(two.variances, [0.01 * 0.5, 1.0], rtol=1e-6)


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
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((width, width)))[0]


def few_and_all():
    """Two axes of twelve and one variance beyond them; and all twelve, ten of that variance."""
    basis, rng = turn(0, 12), np.random.default_rng(3)
    mean = jnp.asarray(rng.standard_normal((3, 4)))
    few = samplers.Control(mean, jnp.array([3.0, 0.5, 0.2]), jnp.asarray(basis[:, :2]))
    return few, samplers.Control(mean, jnp.array([3.0, 0.5] + [0.2] * 10), jnp.asarray(basis))


def test_few_axes_are_all_of_them_where_the_rest_have_one_variance():
    few, whole = few_and_all()
    z, p = jnp.asarray(np.random.default_rng(4).standard_normal((5, 3, 4))), at(FLOW, jnp.asarray(0.4))
    y = few.whiten(z, p)
    assert y.shape == (5, 14) and few.width == 14 and whole.width == 12
    np.testing.assert_allclose(y[:, :2], whole.whiten(z, p)[:, :2], atol=2e-6)
    np.testing.assert_allclose(y[:, 2:], whole.whiten(z, p)[:, 2:] @ whole.basis[:, 2:].T, atol=2e-6)
    np.testing.assert_allclose(few.colour(y, z, p), z, atol=2e-6)
    for one in (few, whole):
        np.testing.assert_allclose(one.mean_of(jnp.square), (9 + 0.25 + 10 * 0.04) / 12, rtol=1e-12)
    np.testing.assert_allclose(*(samplers.control_times(one, FLOW, 5) for one in (few, whole)), rtol=1e-6)
    jumped = [jax.jit(lambda z, one=one: samplers.jump(one, FLOW, z, 1.0, 0.4))(z) for one in (few, whole)]
    np.testing.assert_allclose(*jumped, atol=4e-6)


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_few_axes_are_all_of_them_in_every_step(eta):
    """The lengths by which terms are judged among them: the same series is cut at the same term."""
    denoise, key = lambda z, t: jnp.tanh(3 * z) * t, jax.random.key(5)
    z, times = 2 * jax.random.normal(key, (6, 3, 4)), jnp.linspace(1.0, 0.05, 6)
    ends = [
        samplers.sample(key, samplers.controlled(denoise, FLOW, one, eta=eta, jumped=False), z, times)
        for one in few_and_all()
    ]
    np.testing.assert_allclose(*ends, atol=3e-5)


def test_a_scalar_is_the_variance_of_every_direction_whatever_the_axes():
    few, none = (samplers.Control(jnp.zeros(12), 0.3, basis) for basis in (jnp.asarray(turn(0, 12)[:, :2]), None))
    z, p = jnp.arange(24.0).reshape(2, 12), at(FLOW, jnp.asarray(0.4))
    np.testing.assert_allclose(few.colour(few.whiten(z, p), z, p), z, atol=1e-5)
    np.testing.assert_allclose(few.mean_of(jnp.square), none.mean_of(jnp.square))
    assert few.roots().shape == (1, 1)


def test_few_axes_are_the_principal_ones_and_the_rest_have_their_mean_variance():
    """The largest of numpy's singular vectors; with n points there are n - 1 at most."""
    rng, stds = np.random.default_rng(4), np.linspace(1, 3, 20) ** 2
    points = (rng.standard_normal((400, 20)) * stds) @ turn(1, 20).T + 7
    with jax.enable_x64(True):
        control = samplers.control_of(jnp.asarray(points).reshape(400, 4, 5), axes=3)
        _, values, axes = np.linalg.svd(points - points.mean(0), full_matrices=False)
        variances = values**2 / 400
        assert control.mean.shape == (4, 5) and control.basis.shape == (20, 3) and control.known is None
        np.testing.assert_allclose(np.abs(axes[:3] @ np.asarray(control.basis)), np.eye(3)[::-1], atol=1e-9)
        np.testing.assert_allclose(control.variances, [*variances[2::-1], variances[3:].mean()], rtol=1e-9)
        high = samplers.control_of(jnp.asarray(points), axes=3, floor=1.0)
        np.testing.assert_allclose(high.variances[-1], variances.mean(), rtol=1e-9)
        one = samplers.control_of(jnp.asarray(points), axes=1)
        np.testing.assert_allclose(one.variances, [variances[0], variances[1:].mean()], rtol=1e-9)
        tiny = samplers.control_of(1e-6 * jnp.asarray(points[:3]), axes=19)
        np.testing.assert_allclose(tiny.variances[-1], 1e-14 * np.var(points[:3], axis=0).mean(), rtol=1e-9)
        two = samplers.control_of(jnp.asarray(points[:3]), axes=19)
        assert two.basis.shape == (20, 2)
        np.testing.assert_allclose(two.variances[-1], 0.01 * np.var(points[:3], axis=0).mean(), rtol=1e-9)
    assert samplers.control_of(jnp.asarray(points[:3], jnp.float32), axes=20, mixture=False).basis.shape == (20, 20)


def test_large_samples_get_32_axes_and_no_mixture():
    points = jnp.asarray(np.random.default_rng(5).standard_normal((40, 257)), jnp.float32)
    assert samplers.control_of(points).basis.shape == (257, 32)
    assert samplers.control_of(points[:, :256], mixture=False).basis.shape == (256, 256)
    assert samplers.control_of(points, axes=300).basis.shape == (257, 257)
    assert samplers.control_of(points[:20]).basis.shape == (257, 19)
    one = samplers.control_of(points, seed=1)
    np.testing.assert_allclose(one.variances, samplers.control_of(points).variances, rtol=1e-5)


def test_mixture_is_tried_up_to_256_dimensions(monkeypatch):
    asked = []
    monkeypatch.setattr("diffeq_gen.samplers.control.fit", lambda rows, *, seed: asked.append((rows.shape, seed)))
    points = jnp.asarray(np.random.default_rng(6).standard_normal((10, 257)), jnp.float32)
    samplers.control_of(points)
    samplers.control_of(points[:, :256], mixture=False)
    samplers.control_of(points[:, :256], axes=255)
    assert samplers.control_of(points[:, :256], seed=3).known is None and asked == [((10, 256), 3)]
    samplers.control_of(points[:, :256])
    samplers.control_of(points, axes=257)
    samplers.control_of(points[:, :100])
    assert asked[1:] == [((10, 256), 0), ((10, 100), 0)]


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (lambda: samplers.Control(jnp.zeros(2), jnp.ones(3)), r"variances must be a scalar or of shape \(2,\), got variances=\(3,\)"),
        (lambda: samplers.Control(jnp.zeros(2), jnp.array([1.0, 0.0])), "variances must be positive, got"),
        (lambda: samplers.Control(jnp.zeros(2), 1.0, jnp.eye(3)), r"basis must be of shape \(2, r\), 1 <= r <= 2, got basis=\(3, 3\)"),
        (lambda: samplers.Control(jnp.zeros(2), 1.0, jnp.eye(3)[:2]), r"basis must be of shape \(2, r\), .*, got basis=\(2, 3\)"),
        (lambda: samplers.Control(jnp.zeros(2), 1.0, jnp.zeros((2, 0))), r", got basis=\(2, 0\)"),
        (lambda: samplers.Control(jnp.zeros(2), 1.0, jnp.ones(2)), r", got basis=\(2,\)"),
        (lambda: samplers.Control(jnp.zeros(3), jnp.ones(3), jnp.eye(3)[:, :1]), r"a scalar or of shape \(2,\), got variances=\(3,\)"),
        (lambda: samplers.Control(jnp.zeros(3), jnp.ones(2), jnp.eye(3)[:, :1], KNOWN), "a mixture needs every axis, got .*, axes=1"),
        (lambda: samplers.control_of(jnp.zeros(5)), r"points must be \(n, \*event\), n at least two, got points=\(5,\)"),
        (lambda: samplers.control_of(jnp.zeros((1, 5))), "n at least two"),
        (lambda: samplers.control_of(jnp.zeros((3, 2), jnp.int32)), "points must be real numbers, got"),
        (lambda: samplers.control_of(jnp.zeros((3, 2)), floor=0.0), "floor must be positive, got floor=0.0"),
        (lambda: samplers.control_of(jnp.zeros((3, 2)), axes=0), "axes must be positive, got axes=0"),
        (lambda: samplers.control_of(jnp.ones((3, 2))), "points must differ, got variance=0.0"),
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
