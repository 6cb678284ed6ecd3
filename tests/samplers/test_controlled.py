"""Controlled solvers at their edges: no data, no noise, shapes, precisions, transformations, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen import exact, samplers, schedules
from diffeq_gen.samplers.control import network_output
from diffeq_gen.samplers.mixture import Components
from diffeq_gen.schedules import at

FLOW = schedules.Flow()


def two_modes():
    """A control with a mixture of two components in two dimensions."""
    dtype = jnp.zeros(()).dtype
    known = Components(
        jnp.array([0.4, 0.6], dtype), jnp.array([[0.9, 0.0], [-0.6, 0.0]], dtype),
        jnp.broadcast_to(jnp.eye(2, dtype=dtype), (2, 2, 2)), jnp.full((2, 2), 0.04, dtype),
    )  # fmt: skip
    return samplers.Control(jnp.array([0.3, -0.2], dtype), jnp.array([0.58, 0.04], dtype), None, known)


def world_of(control):
    known = control.known
    covs = jax.vmap(jnp.diag)(known.variances)
    return exact.Mixture(known.weights, control.mean[None] + known.means, covs)


def plain():
    return samplers.Control(jnp.array([0.3, -0.2]), jnp.array([0.5, 0.1]))


@pytest.mark.parametrize(("made", "order"), [(plain, 1), (plain, 3), (two_modes, 2)])
def test_whole_path_of_the_flow_is_finite_with_its_slopes(made, order):
    """From alpha = 0 to sigma = 0, where log-SNR is infinite at both ends."""
    control = made()
    sampler = samplers.controlled(lambda z, t: jnp.tanh(z), FLOW, control, order=order, substeps=3)
    times = jnp.array([0.8, 0.5, 0.2, 0.0])

    def end(z):
        return jnp.sum(
            samplers.sample(jax.random.key(0), sampler, samplers.jump(control, FLOW, z, 1.0, times[0]), times) ** 2
        )

    value, slope = jax.jit(jax.value_and_grad(end))(jnp.array([0.4, -1.3]))
    assert np.isfinite(value) and np.all(np.isfinite(slope)) and np.all(slope != 0)


def test_mixture_that_is_the_data_is_solved_without_the_network():
    """The remainder is nothing, so the jump from noise to data is the flow: as many evaluations as one likes change nothing."""
    control = two_modes()
    denoise = exact.denoiser(world_of(control), FLOW)
    z, key = jnp.array([1.1, -0.4]), jax.random.key(0)
    jumped = jax.jit(lambda z: samplers.jump(control, FLOW, z, 1.0, 0.05, substeps=400))(z)
    fine = samplers.sample(key, samplers.heun(denoise, FLOW), z, jnp.linspace(1.0, 0.05, 1001))
    np.testing.assert_allclose(jumped, fine, atol=2e-4)
    times = jnp.array([0.8, 0.5, 0.05])
    steps = samplers.controlled(denoise, FLOW, control, substeps=100)
    stepped = samplers.sample(key, steps, samplers.jump(control, FLOW, z, 1.0, times[0]), times)
    np.testing.assert_allclose(stepped, fine, atol=2e-4)


def test_mixture_of_one_component_is_no_mixture():
    """With the moments of the Gaussian itself the small steps have nothing to follow, and R is integrated all the same."""
    control = plain()
    one = Components(jnp.ones(1), jnp.zeros((1, 2)), jnp.eye(2)[None], control.variances[None])
    same = samplers.Control(control.mean, control.variances, None, one)
    z, times = jnp.array([1.0, -2.0]), jnp.array([0.8, 0.5, 0.3, 0.1])
    ends = [
        samplers.sample(jax.random.key(0), samplers.controlled(lambda z, t: jnp.sin(z + t), FLOW, made, substeps=100), z, times)
        for made in (control, same)
    ]  # fmt: skip
    np.testing.assert_allclose(*ends, atol=1e-5)


@pytest.mark.parametrize("made", [plain, two_modes])
def test_batch_is_as_many_samples(made):
    control = made()
    sampler = samplers.controlled(lambda z, t: jnp.tanh(z) * t, FLOW, control, substeps=3)
    times, key = jnp.array([0.8, 0.5, 0.2]), jax.random.key(0)
    z = jax.random.normal(jax.random.key(1), (3, 4, 2))
    run = jax.jit(lambda z: samplers.sample(key, sampler, samplers.jump(control, FLOW, z, 1.0, times[0]), times))
    together = run(z)
    assert together.shape == z.shape
    np.testing.assert_allclose(together, jax.vmap(jax.vmap(run))(z), rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(together[1, 2], run(z[1, 2]), rtol=2e-5, atol=1e-6)


def test_basis_turns_the_data_and_its_samples_alike():
    """A control of turned points takes turned noise to turned samples; pictures are read as they are ravelled."""
    rng, dtype = np.random.default_rng(0), jnp.zeros(()).dtype
    points = rng.standard_normal((200, 4)) * np.array([2.0, 1.0, 0.5, 0.25])
    points, turn = points.astype(dtype), np.linalg.qr(rng.standard_normal((4, 4)))[0].astype(dtype)
    z, times = jnp.asarray(rng.standard_normal(4), dtype), jnp.array([0.8, 0.5, 0.2])

    def end(points, z, denoise):
        control = samplers.control_of(points, mixture=False)
        assert control.basis.shape == (4, 4) and control.variances.dtype == dtype
        sampler = samplers.controlled(denoise, FLOW, control)
        return samplers.sample(jax.random.key(0), sampler, samplers.jump(control, FLOW, z, 1.0, times[0]), times)

    there = end(jnp.asarray(points), z, lambda z, t: jnp.tanh(z))
    turned = end(jnp.asarray(points @ turn), z @ turn, lambda z, t: jnp.tanh(z @ turn.T) @ turn)
    np.testing.assert_allclose(turned, there @ turn, atol=1e-5)
    picture = end(jnp.asarray(points).reshape(-1, 2, 2), z.reshape(2, 2), lambda z, t: jnp.tanh(z))
    np.testing.assert_allclose(picture.ravel(), there, rtol=1e-6)


def test_state_that_is_no_jump_s_is_left_as_it_is():
    """From a z that was noised by hand the first step is right where F is a line through another point than 0."""
    control = samplers.Control(jnp.zeros(2), jnp.array([0.5, 0.1]))
    denoise = lambda z, t: z + 0.5  # noqa: E731
    z, t, s = jnp.array([0.4, -1.3]), jnp.asarray(0.5), jnp.asarray(0.3)
    plainly = samplers.controlled(denoise, FLOW, control, corrector=False)
    kept, moved = (samplers.controlled(denoise, FLOW, control, jumped=jumped) for jumped in (False, True))
    ends = [one.step(z[:0], one.init(z), z, t, s)[0] for one in (plainly, kept, moved)]
    np.testing.assert_array_equal(ends[0], ends[1])
    p = at(FLOW, t)
    theta, output = control.angle(p), network_output(control, denoise(z, t), z, p)
    began = control.colour(control.whiten(z, p) + theta * output / 2, z, p)
    left = control.whiten(ends[2], at(FLOW, s)) - control.whiten(ends[1], at(FLOW, s))
    np.testing.assert_allclose(left, control.whiten(began, p) - control.whiten(z, p), rtol=1e-4)


def test_noise_of_no_level_is_the_flow():
    control, z, times = plain(), jnp.array([0.4, -1.3]), jnp.array([0.8, 0.6, 0.3, 0.0])
    ends = []
    for eta in (0.0, jnp.asarray(1e-5)):
        sampler = samplers.controlled(lambda z, t: jnp.tanh(z), FLOW, control, order=3, eta=eta)
        ends.append(samplers.sample(jax.random.key(0), sampler, z, times))
    np.testing.assert_allclose(*ends, atol=2e-4)


def test_noise_keeps_the_law_of_the_data():
    """Of a Gaussian that the control mistakes: the exact law of the run nears the data's by the square of the step, with the
    corrector by more; and by a half where the noise is left out that the corrected state had met."""
    with jax.enable_x64(True):
        world = exact.Gaussian(jnp.array([0.3, -0.2]), jnp.diag(jnp.array([1.3, 0.4])))
        control = samplers.Control(jnp.zeros(2), jnp.array([0.6, 0.9]))
        begin, end = (exact.marginal(world, at(FLOW, jnp.asarray(t))) for t in (0.8, 0.2))
        errors = {}
        for corrector in (False, True):
            sampler = samplers.controlled(
                exact.denoiser(world, FLOW), FLOW, control, corrector=corrector, eta=1.0, jumped=False
            )
            law = lambda n, one=sampler: samplers.law(one, begin.mean, begin.cov, jnp.linspace(0.8, 0.2, n + 1))  # noqa: E731
            errors[corrector] = [
                float(jnp.abs(cov - end.cov).sum() + jnp.abs(mean - end.mean).sum())
                for mean, cov in (law(10), law(20), law(40))
            ]
        assert 3.8 < errors[False][0] / errors[False][1] < 4.2 and 3.8 < errors[False][1] / errors[False][2] < 4.2
        assert errors[True][1] < errors[False][1] / 8 and errors[True][0] / errors[True][1] > 6


@pytest.mark.parametrize("eta", [0.5, 1.0, 3.0])
def test_noise_from_no_data_to_no_noise_is_finite_with_its_slopes(eta):
    """From alpha = 0, where all that y was is forgotten, to sigma = 0."""
    control, noise = plain(), jnp.array([[0.3, -0.7]])

    def end(z, eta):
        one = samplers.controlled(lambda z, t: jnp.tanh(z), FLOW, control, eta=eta)
        memory = one.init(z)
        for t, s in ((1.0, 1.0), (1.0, 0.6), (0.6, 0.0)):
            z, memory = one.step(noise, memory, z, jnp.asarray(t), jnp.asarray(s))
        return jnp.sum(z**2)

    z = jnp.array([0.4, -1.3])
    value, slopes = jax.jit(jax.value_and_grad(end, argnums=(0, 1)))(z, jnp.asarray(eta))
    assert np.isfinite(value) and np.all(np.isfinite(slopes[0])) and np.isfinite(slopes[1])
    point = samplers.controlled(lambda z, t: 0 * z + 0.2, FLOW, control, eta=eta)
    ends = [point.step(noise, point.init(z), z + shift, jnp.asarray(1.0), jnp.asarray(0.6))[0] for shift in (0, 1)]
    np.testing.assert_array_equal(*ends)


def test_a_large_scale_leaves_lms():
    """theta = pi/2 - sigma/(alpha sqrt(c)) and F = -eps_hat, up to 1/sqrt(c); the value at infinite noise is out of sight."""
    control = samplers.Control(jnp.zeros(2), 1e5)
    denoise = lambda z, t: jnp.tanh(z) + t  # noqa: E731
    z, times, key = jnp.array([0.4, -1.3]), jnp.array([0.7, 0.6, 0.45, 0.3]), jax.random.key(0)
    ours = samplers.controlled(denoise, FLOW, control, corrector=False)
    made = (ours, samplers.lms(denoise, FLOW, order=2), samplers.ddim(denoise, FLOW))
    left, right, other = (samplers.trajectory(key, one, z, times) for one in made)
    np.testing.assert_allclose(left, right, atol=2e-3)
    assert np.max(np.abs(other - right)) > 6e-3


def test_one_compilation_serves_all_controls_of_a_shape():
    traces = []

    @jax.jit
    def end(control, z):
        traces.append(1)
        sampler = samplers.controlled(lambda z, t: jnp.tanh(z), FLOW, control)
        return sampler.step(z[:0], sampler.init(z), z, jnp.asarray(0.5), jnp.asarray(0.2))[0]

    z = jnp.array([0.1, 0.2])
    first = end(plain(), z)
    second = end(samplers.Control(jnp.array([0.0, 0.5]), jnp.array([1.0, 2.0])), z)
    assert len(traces) == 1 and not np.allclose(first, second)


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (lambda: samplers.controlled(jnp.tanh, FLOW, plain(), order=4), "order must be 1, 2 or 3, got order=4"),
        (lambda: samplers.controlled(jnp.tanh, FLOW, plain(), substeps=0), "substeps must be positive, got substeps=0"),
        (lambda: samplers.jump(plain(), FLOW, jnp.zeros(2), 1.0, 0.5, substeps=0), "substeps must be positive"),
        (lambda: samplers.controlled(jnp.tanh, FLOW, plain(), eta=-0.5), "eta must not be negative, got eta=-0.5"),
        (lambda: samplers.controlled(jnp.tanh, FLOW, two_modes(), eta=1.0), "eta > 0 needs a control without a mixture, got"),
    ],
)  # fmt: skip
def test_bad_input_is_named(refused, message):
    with pytest.raises(ValueError, match=message):
        refused()
