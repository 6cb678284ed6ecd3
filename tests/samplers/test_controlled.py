"""Controlled solvers at their edges: no data, no noise, shapes, precisions, transformations, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from diffeq_gen import exact, samplers, schedules
from diffeq_gen.samplers.control import network_output
from diffeq_gen.samplers.controlled import _kept, _known_output, _log_snr_near, _moments, _moved, _spread
from diffeq_gen.samplers.mixture import Components
from diffeq_gen.schedules import at
from diffeq_gen.theorems.controlled_laws import _errors_from
from diffeq_gen.types import Point
from tests.samplers.rows import reads_its_first_rows

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


@pytest.fixture
def in_float64():
    with jax.enable_x64(True):
        yield


def test_what_is_kept_of_a_state_and_what_is_spread(in_float64):
    """sin^{eta^2} between the angles; all is kept by a step of no length or of no noise, and nothing that came from no data."""
    start, end = jnp.array([0.2, 0.9, 0.0, 0.0, 0.7, 0.9]), jnp.array([0.6, np.pi / 2, 0.4, 0.0, 0.7, 0.2])
    ratio = np.array([np.sin(0.2) / np.sin(0.6), np.sin(0.9)])

    @jax.jit
    def run(*args):
        slopes = [
            jax.grad(lambda *args, part=part: part(*args).sum(), argnums=(0, 1, 2))(*args) for part in (_kept, _spread)
        ]
        return _kept(*args), _spread(*args), slopes

    for eta in (0.5, 1.5):
        kept, spread, slopes = run(start, end, eta)
        np.testing.assert_allclose(kept[:-1], [*ratio ** (eta**2), 0, 1, 1], rtol=1e-12)
        np.testing.assert_allclose(spread[:-1], [*np.sqrt(1 - ratio ** (2 * eta**2)), 1, 0, 0], rtol=1e-12)
        assert spread[-1] == 0  # a step back, which is none of the SDE
        assert all(np.all(np.isfinite(slope)) for slope in jax.tree.leaves(slopes))
    kept, spread, _ = run(start, end, 0.0)
    np.testing.assert_array_equal(kept, 1)
    np.testing.assert_array_equal(spread, 0)


@pytest.mark.parametrize(("eta", "start", "end"), [(0.7, 0.3, 0.55), (2.0, 0.8, 1.5), (1.0, 0.0, 1.2)])
def test_moments_are_their_integrals(in_float64, eta, start, end):
    with mpmath.workdps(30):
        known = [
            mpmath.quad(lambda u, k=k: (mpmath.sin(u) * mpmath.cos(u) / mpmath.sin(end)) ** (eta**2) * (u - start) ** k, [start, end])
            * (1 + mpmath.mpf(eta) ** 2) / mpmath.mpf(end - start) ** (k + 1)
            for k in range(3)
        ]  # fmt: skip
    found = _moments(jnp.asarray(start), jnp.asarray(end), eta, 3)
    np.testing.assert_allclose(jnp.stack(found), np.array(known, float), rtol=1e-12)
    flow = _moments(jnp.asarray(start), jnp.asarray(end), None, 3)
    np.testing.assert_allclose(jnp.stack(flow), [1, 1 / 2, 1 / 3], rtol=1e-15)


def test_output_of_the_mixture_is_that_of_its_denoiser(in_float64):
    known = Components(
        jnp.array([0.4, 0.6]), jnp.array([[0.9, -0.3], [-0.6, 0.7]]),
        jnp.broadcast_to(jnp.eye(2), (2, 2, 2)), jnp.array([[0.04, 0.3], [0.2, 0.1]]),
    )  # fmt: skip
    control = samplers.Control(jnp.array([0.3, -0.2]), jnp.array([0.58, 0.2]), None, known)

    @jax.jit
    def both(z):
        p = at(schedules.Cosine(), jnp.asarray(0.6))
        x0 = jax.vmap(lambda z: exact.denoise(world_of(control), z, p))(z)
        ours = _known_output(control.known, control.roots(), control.whiten(z, p), p.log_snr)
        return ours, network_output(control, x0, z, p)

    np.testing.assert_allclose(*both(jnp.array([[1.1, -0.4], [-0.3, 0.8], [0.2, 0.1]])), rtol=1e-11)


def test_log_snr_is_cut_where_the_angles_stand_still(in_float64):
    """tan(theta) = e^{-15} at the noisy end, e^{15} at the clean one, for variances of mean 1; between them nothing is cut."""
    control = samplers.Control(jnp.zeros(2), 0.05 * jnp.array([0.5, 1.5]))

    @jax.jit
    def run(alpha, sigma):
        near = lambda alpha, sigma: _log_snr_near(control, Point(sigma, alpha, sigma, alpha, sigma))  # noqa: E731
        return near(alpha, sigma), jax.grad(near, argnums=(0, 1))(alpha, sigma)

    for alpha, sigma, known in ((0.0, 1.0, -30), (1.0, 0.0, 30), (1e-9, 1.0, -30), (1.0, 1e-9, 30)):
        end, slopes = run(jnp.asarray(alpha), jnp.asarray(sigma))
        np.testing.assert_allclose(end + np.log(0.05), known, rtol=1e-12)
        np.testing.assert_array_equal(slopes, 0)
    for alpha, sigma in ((0.3, 0.8), (2.0, 3.0)):
        np.testing.assert_allclose(
            run(jnp.asarray(alpha), jnp.asarray(sigma))[0], np.log(alpha**2 / sigma**2), rtol=1e-12
        )


def test_small_steps_are_of_fourth_order_and_reach_the_flow_of_the_mixture(in_float64):
    """Of one component that is not the control's own Gaussian the flow is known; and with the same moments F is the polynomial."""
    mean, variances, z = jnp.array([0.3, -0.2]), jnp.array([0.5, 0.1]), jnp.array([1.1, -0.4])
    t, s = jnp.asarray(0.7), jnp.asarray(0.3)
    one, same = (
        samplers.Control(
            mean, variances, None, Components(jnp.ones(1), jnp.array([means]), jnp.eye(2)[None], covs[None])
        )
        for means, covs in (([0.2, -0.1], jnp.array([0.9, 0.3])), ([0.0, 0.0], variances))
    )
    values = [jnp.array([[0.5, -0.3]]), jnp.array([[0.1, 0.4]]), jnp.array([[-0.6, 0.2]])]
    nodes = [jnp.array([[-0.2, -0.1]]), jnp.array([[-0.3, -0.25]])]

    @jax.jit
    def ends(z):
        p, q = at(FLOW, t), at(FLOW, s)
        known = exact.flow_map(exact.Gaussian(mean + one.known.means[0], jnp.diag(one.known.variances[0])), z, p, q)
        moved = lambda control, n: _moved(control, control.whiten(z, p), values, nodes, p, q, n)  # noqa: E731
        known = [known[None], moved(samplers.Control(mean, variances), 1)]
        found = [[samplers.jump(one, FLOW, z[None], t, s, substeps=n), moved(same, n)] for n in (8, 16, 256)]
        return [[jnp.abs(a - b).sum() for a, b in zip(pair, known, strict=True)] for pair in found]

    for coarse, fine, finest in zip(*ends(z), strict=True):
        assert 14.5 < coarse / fine < 17.5 and finest < 1.3 * coarse / 32**4


@pytest.mark.parametrize("eta", [0.0, 0.8])
def test_steps_and_their_correctors_are_the_integrals_of_a_parabola(in_float64, eta):
    """Where F = cos(theta)^{eta^2} (c0 + c1 theta + c2 theta^2) order 3 errs by nothing, with noise too; against quadrature to many
    digits.  A correction as long as the step is made, a longer one is not."""
    c, control = (
        np.array([[0.4, -0.7], [1.1, 0.3], [-0.6, 0.9]]),
        samplers.Control(jnp.array([0.3, -0.2]), jnp.array([0.5, 0.1])),
    )
    output = lambda theta: sum(part[None] * theta**k for k, part in enumerate(c))  # noqa: E731

    def denoise(z, t):
        p = at(FLOW, t)
        theta = control.angle(p)
        return (
            control.mean
            + (
                control.roots()
                * (jnp.cos(theta) ** (1 + eta**2) * output(theta) + jnp.sin(theta) * control.whiten(z, p))
            )[0]
        )

    def known(start, end):
        """(what is left of y, what F adds, the std of the noise) along each axis."""
        kept = (np.sin(start) / np.sin(end)) ** (eta**2)
        weight = lambda u, end: (1 + eta**2) * (mpmath.sin(u) * mpmath.cos(u) / mpmath.sin(end)) ** (eta**2)  # noqa: E731
        added = [
            mpmath.quad(lambda u, a=a, b=b: weight(u, b) * mpmath.polyval(list(a[::-1]), u), [low, b])
            for a, low, b in zip(c.T, map(float, start[0]), map(float, end[0]), strict=True)
        ]
        return kept, np.array([added], float), np.sqrt(1 - kept**2)

    noise, drawn = jnp.array([[0.7, -0.2]]), jnp.array([[0.05, 0.02]])
    o, n, m, p, q = (at(FLOW, jnp.asarray(t)) for t in (0.8, 0.7, 0.65, 0.45, 0.3))
    angles = tuple(control.angle(point) for point in (m, n, o))
    theta, end, before = control.angle(p), control.angle(q), jnp.array([[0.9, -1.6]])
    (kept, added, std), (kept_before, added_before, _) = known(theta, end), known(angles[0], theta)
    exact_mean = kept_before * before + added_before
    moved = exact_mean - before

    def run(z, corrector):
        one = samplers.controlled(denoise, FLOW, control, order=3, corrector=corrector, eta=eta)
        past = one.init(z)._replace(
            y=before, noise=drawn, alpha=m.alpha, sigma=m.sigma, values=tuple(map(output, angles)), angles=angles
        )  # fmt: skip
        return one.step(noise[: one.noises], past, z, p.t, q.t)

    run = jax.jit(run, static_argnums=1)
    for corrector, share, made in (
        (False, 1.9, False),
        (True, 1.9, True),
        (True, 0.55, True),
        (True, 0.45, False),
        (True, -3.0, False),
    ):
        mean = before + share * moved  # the correction is |1 - share|, the step |share|
        found, memory = run(control.colour(mean + drawn, before[0], p), corrector)
        begun = (exact_mean if made else mean) + drawn
        np.testing.assert_allclose(
            control.whiten(found, q), kept * begun + added + (std * noise if eta else drawn), rtol=1e-11
        )
        np.testing.assert_allclose(memory.y, begun, rtol=1e-11)
        np.testing.assert_allclose(jnp.broadcast_to(memory.noise, (1, 2)), std * noise if eta else drawn, rtol=1e-11)
        np.testing.assert_allclose([memory.alpha, memory.sigma], [p.alpha, p.sigma])
        np.testing.assert_allclose(jnp.stack(memory.angles), jnp.stack([theta, *angles[:2]]))
        np.testing.assert_allclose(
            jnp.stack(memory.values), jnp.stack([*map(output, (theta, *angles[:2]))]), rtol=1e-11
        )


@pytest.mark.parametrize("known", [False, True], ids=["moments", "mixture"])
def test_each_sample_has_the_order_that_its_own_steps_allow(in_float64, known):
    """Two samples whose values differ: what one leaves out says nothing of the other; a limit of 1, and of 0 no more than a slope."""
    control = two_modes() if known else plain()
    o, n, m, p, q = (at(FLOW, jnp.asarray(t)) for t in (0.8, 0.7, 0.65, 0.45, 0.3))
    angles = tuple(control.angle(point) for point in (m, n, o))
    denoise = lambda z, t: jnp.zeros_like(z)  # noqa: E731
    z = jnp.array([[0.3, -0.1], [0.2, 0.5]])

    def run(rows, values, **options):
        one = samplers.controlled(denoise, FLOW, control, corrector=False, **options)
        past = one.init(z[rows])._replace(
            y=control.whiten(z[rows], p), alpha=m.alpha, sigma=m.sigma, angles=angles, values=tuple(value[rows] for value in values)
        )  # fmt: skip
        return one.step(z[:0], past, z[rows], p.t, q.t)

    now = run(slice(0, 2), (z, z, z))[1].values[0]
    back = [angle - control.angle(p) for angle in angles]
    values = [jnp.concatenate([now[:1] + 0.3 * x + 0.05 * x**2 + 0.02 * x**3, now[1:] * (-1) ** k])
              for k, x in enumerate(back, start=1)]  # fmt: skip
    end = lambda rows, **options: run(rows, values, **options)[0]  # noqa: E731
    both, lone = end(slice(0, 2)), [end(slice(k, k + 1)) for k in (0, 1)]
    np.testing.assert_allclose(both, jnp.concatenate(lone), rtol=1e-13)
    np.testing.assert_allclose(both, end(slice(0, 2), growth=1.0), rtol=1e-15)
    np.testing.assert_allclose(end(slice(0, 2), growth=0.0), end(slice(0, 2), order=2), rtol=1e-13)
    whole, short = end(slice(0, 2), growth=jnp.inf), end(slice(0, 2), order=2)
    assert np.allclose(both[0], whole[0], rtol=1e-13) and not np.allclose(both[0], short[0], rtol=1e-6)
    assert np.allclose(both[1], short[1], rtol=1e-13) and not np.allclose(both[1], whole[1], rtol=1e-6)


def test_a_term_may_be_as_long_as_the_one_before(in_float64):
    """Three hundred samples whose curvature rises from next to nothing: the default keeps as many as a limit of 1, to one."""
    control, m, n, p, q = plain(), *(at(FLOW, jnp.asarray(t)) for t in (0.7, 0.65, 0.45, 0.3))
    angles = tuple(control.angle(point) for point in (n, m))
    z = jnp.zeros((300, 2))
    bend = jnp.geomspace(0.01, 10.0, 300)[:, None]

    def run(**options):
        one = samplers.controlled(lambda z, t: jnp.zeros_like(z), FLOW, control, corrector=False, order=3, **options)
        first = one.step(z[:0], one.init(z), z, p.t, q.t)[1].values[0]
        values = tuple(first + 0.3 * x + bend * x**2 for x in (angle - control.angle(p) for angle in angles))
        past = one.init(z)._replace(
            alpha=n.alpha, sigma=n.sigma, angles=(*angles, angles[0] + jnp.inf), values=(*values, first)
        )
        return one.step(z[:0], past, z, p.t, q.t)[0]

    whole = run(growth=jnp.inf)
    kept = {growth: np.isclose(run(growth=growth), whole, rtol=1e-12).all(1).sum() for growth in (0.9, 1.0, 1.1)}
    assert 0 < kept[0.9] < kept[1.0] < kept[1.1] < 300
    assert np.isclose(run(), whole, rtol=1e-12).all(1).sum() == kept[1.0]


def test_step_on_the_mixture_itself_is_the_jump(in_float64):
    """The network says nothing beyond the control; and what is left out are 4 small steps of a step, 32 of a jump, no noise."""
    control, z = two_modes(), jnp.array([1.1, -0.4])
    denoise, t, s = exact.denoiser(world_of(control), FLOW), jnp.asarray(0.6), jnp.asarray(0.35)

    @jax.jit
    def run(z):
        one = samplers.controlled(denoise, FLOW, control, corrector=False)
        assert one.noises == 0 and len(one.init(z).values) == 4
        jumps = [
            samplers.jump(control, FLOW, z, t, s, **options) for options in ({"substeps": 4}, {}, {"substeps": 32})
        ]
        return one.step(z[:0], one.init(z), z, t, s)[0], *jumps

    step, same, silent, spoken = run(z)
    np.testing.assert_allclose(step, same, rtol=1e-12)
    np.testing.assert_array_equal(silent, spoken)
    assert np.max(np.abs(silent - same)) > 1e-9
    assert samplers.controlled(denoise, FLOW, plain(), eta=0.5).noises == 1


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
    together, first = run(z), run(z[0, 0])
    assert together.shape == z.shape
    np.testing.assert_allclose(together[0, 0], first, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(together[1, 2], run(z[1, 2]), rtol=2e-5, atol=1e-6)
    if control.known is None:
        np.testing.assert_allclose(together, jax.vmap(jax.vmap(run))(z), rtol=2e-5, atol=1e-6)


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


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_state_that_is_no_jump_s_is_left_as_it_is(eta):
    """From a z that was noised by hand the first step is right where F is a line through another point than 0; with eta = 1 the
    jump's part of F = a theta cos(theta) is 2 a int_0^theta u sin u cos u du/sin(theta), by parts."""
    control = samplers.Control(jnp.zeros(2), jnp.array([0.5, 0.1]))
    denoise = lambda z, t: z + 0.5  # noqa: E731
    z, t, s = jnp.array([0.4, -1.3]), jnp.asarray(0.5), jnp.asarray(0.3)
    options = [{"corrector": False}, {"jumped": False}, {"jumped": True}]

    @jax.jit
    def run(z):
        made = [samplers.controlled(denoise, FLOW, control, eta=eta, **option) for option in options]
        return [one.step(jnp.zeros((one.noises, 2)), one.init(z), z, t, s)[0] for one in made]

    ends = run(z)
    np.testing.assert_array_equal(ends[0], ends[1])
    p, q = at(FLOW, t), at(FLOW, s)
    theta, end, output = control.angle(p), control.angle(q), network_output(control, denoise(z, t), z, p)
    by_parts = (jnp.sin(2 * theta) / 8 - theta * jnp.cos(2 * theta) / 4) / jnp.cos(theta)
    left = output / theta * (2 * by_parts / jnp.sin(end) if eta else theta**2 / 2)
    np.testing.assert_allclose(control.whiten(ends[2], q) - control.whiten(ends[1], q), left, rtol=1e-4)


def test_noise_of_no_level_is_the_flow():
    control, z, times = plain(), jnp.array([0.4, -1.3]), jnp.array([0.8, 0.6, 0.3, 0.0])
    ends = []
    for eta in (0.0, jnp.asarray(1e-5)):
        sampler = samplers.controlled(lambda z, t: jnp.tanh(z), FLOW, control, order=3, eta=eta)
        ends.append(samplers.sample(jax.random.key(0), sampler, z, times))
    np.testing.assert_allclose(*ends, atol=2e-4)


def test_noise_keeps_the_law_of_the_data(in_float64):
    """Of a Gaussian that the control mistakes: the exact law of the run nears the data's by the square of the step, with the
    corrector by more; and by a half where the noise is left out that the corrected state had met."""
    world = exact.Gaussian(jnp.array([0.3, -0.2]), jnp.diag(jnp.array([1.3, 0.4])))
    control = samplers.Control(jnp.zeros(2), jnp.array([0.6, 0.9]))
    begin, end = (exact.marginal(world, at(FLOW, jnp.asarray(t))) for t in (0.8, 0.2))
    errors = {}
    for corrector in (False, True):
        one = samplers.controlled(
            exact.denoiser(world, FLOW), FLOW, control, order=2, corrector=corrector, eta=1.0, jumped=False
        )
        laws = [samplers.law(one, begin.mean, begin.cov, jnp.linspace(0.8, 0.2, n + 1)) for n in (10, 20)]
        errors[corrector] = [float(jnp.abs(cov - end.cov).sum() + jnp.abs(mean - end.mean).sum()) for mean, cov in laws]
    assert 3.8 < errors[False][0] / errors[False][1] < 4.2
    assert errors[True][1] < errors[False][1] / 8 and errors[True][0] / errors[True][1] > 6


def test_noise_from_no_data_to_no_noise_is_finite_with_its_slopes():
    """From alpha = 0, where all that y was is forgotten, to sigma = 0; and traced eta = 0 forgets nothing."""
    control, noise, z = plain(), jnp.array([[0.3, -0.7]]), jnp.array([0.4, -1.3])

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def end(z, eta):
        one = samplers.controlled(lambda z, t: jnp.tanh(z), FLOW, control, eta=eta)
        memory, state = one.init(z), z

        def step(carry, pair):
            return one.step(noise, carry[1], carry[0], *pair), None

        (state, _), _ = jax.lax.scan(step, (state, memory), jnp.array([[1.0, 1.0], [1.0, 0.6], [0.6, 0.0]]))
        return jnp.sum(state**2)

    for eta in (0.0, 0.5, 1.0, 3.0):
        value, slopes = end(z, jnp.asarray(eta))
        assert np.isfinite(value) and np.all(np.isfinite(slopes[0])) and np.isfinite(slopes[1])
    point = jax.jit(
        lambda z, eta: (one := samplers.controlled(lambda z, t: 0 * z + 0.2, FLOW, control, eta=eta)).step(
            noise, one.init(z), z, jnp.asarray(1.0), jnp.asarray(0.6))[0])  # fmt: skip
    np.testing.assert_array_equal(point(z, 0.5), point(z + 1, 0.5))
    flow = samplers.controlled(lambda z, t: 0 * z + 0.2, FLOW, control)
    known = flow.step(z[:0], flow.init(z), z, jnp.asarray(1.0), jnp.asarray(0.6))[0]
    np.testing.assert_allclose(point(z, 0.0), known, rtol=2e-6)


def test_a_large_scale_leaves_lms():
    """theta = pi/2 - sigma/(alpha sqrt(c)) and F = -eps_hat, up to 1/sqrt(c); the value at infinite noise is out of sight."""
    control = samplers.Control(jnp.zeros(2), 1e5)
    denoise = lambda z, t: jnp.tanh(z) + t  # noqa: E731
    z, times, key = jnp.array([0.4, -1.3]), jnp.array([0.7, 0.6, 0.45, 0.3]), jax.random.key(0)
    ours = samplers.controlled(denoise, FLOW, control, order=2, corrector=False)
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
        (lambda: samplers.controlled(jnp.tanh, FLOW, plain(), order=5), "order must be 1, 2, 3 or 4, got order=5"),
        (lambda: samplers.controlled(jnp.tanh, FLOW, plain(), growth=-0.1), "growth must not be negative, got growth=-0.1"),
        (lambda: samplers.controlled(jnp.tanh, FLOW, plain(), substeps=0), "substeps must be positive, got substeps=0"),
        (lambda: samplers.controlled(jnp.tanh, FLOW, plain(), substeps=0.75), "substeps must be positive, got substeps=0.75"),
        (lambda: samplers.jump(plain(), FLOW, jnp.zeros(2), 1.0, 0.5, substeps=0), "substeps must be positive"),
        (lambda: samplers.jump(plain(), FLOW, jnp.zeros(2), 1.0, 0.5, substeps=0.75), "substeps must be positive, got substeps=0.75"),
        (lambda: samplers.controlled(jnp.tanh, FLOW, plain(), eta=-0.5), "eta must not be negative, got eta=-0.5"),
        (lambda: samplers.controlled(jnp.tanh, FLOW, two_modes(), eta=1.0), "eta > 0 needs a control without a mixture, got"),
    ],
)  # fmt: skip
def test_bad_input_is_named(refused, message):
    with pytest.raises(ValueError, match=message):
        refused()


def test_options_reach_to_where_they_are_said_to_end():
    for options in (
        {"order": 1},
        {"order": 4},
        {"growth": 0.0},
        {"growth": jnp.inf},
        {"substeps": 1},
        {"eta": 0.0},
        {"eta": 1e-6},
    ):
        samplers.controlled(jnp.tanh, FLOW, plain(), **options)
    assert samplers.jump(plain(), FLOW, jnp.zeros(2), jnp.asarray(0.8), jnp.asarray(0.5), substeps=1).shape == (2,)


def test_the_noise_is_the_first_row():
    reads_its_first_rows(samplers.controlled(lambda z, t: 0.5 * z, FLOW, plain(), eta=0.7))


def test_what_the_default_leaves_out_keeps_the_order(in_float64):
    """Where a slope passes through zero a step is taken without the terms after it: n^3 times the error stays within a few times
    what it is with all of them (2.7), whatever the start, and is larger somewhere."""
    starts = jnp.linspace(-1.5, 1.5, 121)
    steps, every = jax.jit(jax.vmap(lambda eps: _errors_from(eps, jnp.asarray(0.5), 0.0)))(starts)
    some = jax.jit(jax.vmap(lambda eps: _errors_from(eps, jnp.asarray(0.5), 0.0, growth=1.0)))(starts)[1]
    ratio = jnp.max(some / steps**3, axis=0) / jnp.max(every / steps**3, axis=0)
    assert jnp.all(ratio < 6) and jnp.max(ratio) > 1.5
