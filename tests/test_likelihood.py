"""Likelihoods on data of known density, in nats and in bits."""

import itertools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.scipy import stats

from diffeq_gen import adapters, clocks, exact, likelihood, samplers, traces
from diffeq_gen.equations import probability_flow
from diffeq_gen.schedules import VP, Flow, at

WORLD = exact.Mixture(
    jnp.array([0.3, 0.7]),
    jnp.array([[-1.0, 0.5], [0.8, -0.4]]),
    jnp.array([[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.4]]]),
)
POINTS = jnp.array([[0.1, 0.2], [-1.2, 0.7], [1.5, -1.0]])


def density(x):
    parts = [
        jnp.log(w) + stats.multivariate_normal.logpdf(x, m, c)
        for w, m, c in zip(WORLD.weights, WORLD.means, WORLD.covs, strict=True)
    ]
    return jax.nn.logsumexp(jnp.stack(parts))


@pytest.mark.parametrize("schedule", [Flow(), VP()], ids=repr)
def test_the_flow_integrates_to_the_density_at_order_four(schedule):
    """Down to the mismatch of the prior, which is of the size of alpha/sigma at the noisy end."""
    denoise = exact.denoiser(WORLD, schedule)
    mismatch = float(jnp.exp(clocks.log_snr_range(schedule, log_snr_min=-18.0)[0] / 2))

    def run(steps):
        read = lambda x: likelihood.log_prob(denoise, schedule, x, steps=steps, log_snr_min=-18.0, log_snr_max=14.0)  # noqa: E731
        return jax.jit(jax.vmap(read))(POINTS)

    found = [run(steps) for steps in (12, 24, 48)]
    assert float(jnp.max(jnp.abs(found[2] - jax.vmap(density)(POINTS)))) < mismatch
    coarse, fine = (float(jnp.max(jnp.abs(one - other))) for one, other in itertools.pairwise(found))
    assert coarse / fine > 8


def test_the_elbo_is_below_and_near_in_the_mean():
    """For an exact denoiser its expectation over data is the entropy, up to the ends of the ladder."""
    schedule = VP()
    denoise = exact.denoiser(WORLD, schedule)
    x0 = exact.draw(jax.random.key(0), WORLD, 400)
    keys = jax.random.split(jax.random.key(1), len(x0))
    bound = jax.vmap(lambda key, x: likelihood.elbo(key, denoise, schedule, x, samples=64, log_snr_max=10.0))(keys, x0)
    gap = np.asarray(jax.vmap(density)(x0) - bound)
    assert abs(gap.mean()) < 5 * gap.std() / np.sqrt(len(gap)) + 0.02


GAUSSIAN = exact.Gaussian(jnp.array([0.4, -0.7]), jnp.array([[0.5, 0.2], [0.2, 0.3]]))


@pytest.mark.parametrize("schedule", [Flow(), VP()], ids=repr)
def test_on_gaussian_data_it_is_the_law_of_the_closed_flow_map(schedule):
    """log N(z_1) + log |dz_1/dx0|, with z_1 in units of sqrt(alpha^2 + sigma^2) and dz_1/dx0 by autodiff of `flow_map`."""
    denoise, x0 = exact.denoiser(GAUSSIAN, schedule), jnp.array([1.1, -0.2])
    low, high = clocks.log_snr_range(schedule, log_snr_min=-6.0, log_snr_max=7.0)
    clean, noisy = (at(schedule, clocks.time_at(schedule, value)) for value in (high, low))

    def encode(x0):
        z = exact.flow_map(GAUSSIAN, clean.alpha * x0, clean, noisy)
        return z / jnp.hypot(noisy.alpha, noisy.sigma)

    _, volume = jnp.linalg.slogdet(jax.jacfwd(encode)(x0))
    wanted = jnp.sum(stats.norm.logpdf(encode(x0))) + volume
    read = jax.jit(lambda x0: likelihood.log_prob(denoise, schedule, x0, steps=1000, log_snr_min=-6.0, log_snr_max=7.0))
    np.testing.assert_allclose(read(x0), wanted, rtol=1e-9)  # (13/1000)^4 is 3e-8, times slopes of a hundredth


CONTROL = samplers.Control(jnp.array([0.3, -0.1]), jnp.array([0.5, 1.2]), jnp.array([[0.6, 0.8], [-0.8, 0.6]]))


@pytest.mark.parametrize(
    ("schedule", "steps", "control"), [(Flow(), 1, None), (VP(), 3, CONTROL)], ids=["plain, flow", "control, VP"]
)
def test_each_step_is_the_classical_rule_on_the_probability_flow(schedule, steps, control):
    """The same few large steps in the angle, with the field from `probability_flow` by the chain rule through the whitening, written
    with matrices, and its divergence by autodiff."""
    denoise, x0, low, high = exact.denoiser(WORLD, schedule), POINTS[0], -3.0, 2.0
    flow = probability_flow(denoise, schedule)
    mean, cov = (
        (np.zeros(2), np.eye(2))
        if control is None
        else (CONTROL.mean, CONTROL.basis @ jnp.diag(CONTROL.variances) @ CONTROL.basis.T)
    )
    c = float(np.sqrt(np.trace(cov @ cov) / 2))

    def root(alpha, sigma):
        """Of a 2 x 2 matrix, by Cayley and Hamilton."""
        square = alpha**2 * cov + sigma**2 * jnp.eye(2)
        size = jnp.sqrt(jnp.linalg.det(square))
        return (square + size * jnp.eye(2)) / jnp.sqrt(jnp.trace(square) + 2 * size)

    @jax.jit
    def rates(theta, y):
        p = at(schedule, clocks.time_at(schedule, 2 * jnp.log(jnp.tan(theta)) - jnp.log(c)))

        def field(y):
            z = root(p.alpha, p.sigma) @ y + p.alpha * mean
            white = lambda z, t: jnp.linalg.solve(root(*schedule(t)), z - schedule(t)[0] * mean)  # noqa: E731
            along = jax.jvp(white, (z, p.t), (flow(z, p.t), jnp.ones_like(p.t)))[1]
            angle = lambda t: jnp.arctan(jnp.sqrt(c) * schedule(t)[0] / schedule(t)[1])  # noqa: E731
            return along / jax.grad(angle)(p.t)

        return jnp.append(field(y), jnp.trace(jax.jacfwd(field)(y)))

    first, last = (np.arctan(np.sqrt(c) * np.exp(log_snr / 2)) for log_snr in (high, low))
    h, (alpha, sigma) = (last - first) / steps, (np.sqrt(1 / (1 + np.exp(-high))), np.sqrt(1 / (1 + np.exp(high))))
    state = np.append(np.linalg.solve(root(alpha, sigma), alpha * (x0 - mean)), 0.0)
    for here in first + h * np.arange(steps):
        slopes = [rates(here, state[:2])]
        for share in (1 / 2, 1 / 2, 1.0):
            slopes.append(rates(here + share * h, (state + share * h * slopes[-1])[:2]))
        state = state + h * np.array([1, 2, 2, 1]) / 6 @ np.array(slopes)
    wanted = (
        np.sum(stats.norm.logpdf(state[:2])) + state[2] - np.linalg.slogdet(root(alpha, sigma))[1] + 2 * np.log(alpha)
    )
    y, found = likelihood.encode(denoise, schedule, x0, steps=steps, log_snr_min=low, log_snr_max=high, control=control)
    np.testing.assert_allclose(found, wanted, rtol=1e-8)
    np.testing.assert_allclose(y, state[:2], rtol=1e-7)


def test_decode_is_the_way_back_with_the_same_density():
    """To the error of the steps, there and back; pictures keep their shape."""
    denoise, ends = exact.denoiser(WORLD, Flow()), {"log_snr_min": -20.0, "log_snr_max": 9.0}
    for control in (None, CONTROL):

        @jax.jit
        def there_and_back(x0, control=control):
            y, density = likelihood.encode(denoise, Flow(), x0, steps=200, control=control, **ends)
            return density, *likelihood.decode(denoise, Flow(), y, steps=200, control=control, **ends)

        density, x0, again = there_and_back(POINTS[1])
        np.testing.assert_allclose(x0, POINTS[1], rtol=1e-6)
        np.testing.assert_allclose(again, density, rtol=1e-6)
    ends["steps"] = 3
    picture = lambda z, t: denoise(z.ravel(), t).reshape(z.shape)  # noqa: E731
    y, density = likelihood.encode(
        picture, Flow(), POINTS[1].reshape(1, 2, 1), control=samplers.Control(jnp.zeros((1, 2, 1)), 1.0), **ends
    )
    assert y.shape == (1, 2, 1)
    np.testing.assert_allclose(density, likelihood.encode(denoise, Flow(), POINTS[1], **ends)[1], rtol=1e-12)
    assert likelihood.decode(picture, Flow(), y, **ends)[0].shape == (1, 2, 1)


def test_few_axes_of_a_control_say_what_all_of_them_say():
    basis = jnp.linalg.qr(jnp.asarray(np.random.default_rng(0).standard_normal((4, 4))))[0]
    few = samplers.Control(jnp.full(4, 0.2), jnp.array([2.0, 0.5]), basis[:, :1])
    whole = samplers.Control(jnp.full(4, 0.2), jnp.array([2.0, 0.5, 0.5, 0.5]), basis)
    denoise, x0 = lambda z, t: jnp.tanh(z) * (1 - t), jnp.array([0.3, -0.2, 1.1, 0.5])
    found = [likelihood.encode(denoise, VP(), x0, steps=3, control=one) for one in (few, whole)]
    for few, whole in zip(*found, strict=True):
        np.testing.assert_allclose(few, whole, rtol=1e-9)


def test_probes_estimate_the_trace_without_bias():
    """Over all four signs the mean of the densities is the exact one, for the state feels none of them; two orthogonal ones are it."""
    denoise, settings = exact.denoiser(WORLD, VP()), {"steps": 4, "control": CONTROL}
    known = likelihood.log_prob(denoise, VP(), POINTS[2], **settings)
    signs = jnp.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    read = lambda one: likelihood.log_prob(denoise, VP(), POINTS[2], probes=one[None], **settings)  # noqa: E731
    each = np.asarray(jax.jit(jax.vmap(read))(signs))
    np.testing.assert_allclose(np.mean(each), known, rtol=1e-12)
    assert np.std(each) > 0.01
    probes = traces.orthogonal_probes(jax.random.key(0), (2,), k=2)
    np.testing.assert_allclose(
        likelihood.log_prob(denoise, VP(), POINTS[2], probes=probes, **settings), known, rtol=1e-12
    )


def test_solvers_of_diffrax_in_equal_steps_and_in_chosen_ones():
    """Heun's rule is not the classical one, but tends to it; a controller needs what it needs; ends may rise or fall."""
    denoise, settings = exact.denoiser(WORLD, Flow()), {"control": CONTROL, "log_snr_max": 9.0}
    read = lambda solve: float(likelihood.log_prob(denoise, Flow(), POINTS[2], solve=solve, **settings))  # noqa: E731
    fine = float(likelihood.log_prob(denoise, Flow(), POINTS[2], steps=400, **settings))
    heun = [abs(read(adapters.solve(diffrax.Heun(), steps=steps)) - fine) for steps in (20, 40)]
    assert 3 < heun[0] / heun[1] < 5.5
    assert abs(read(adapters.solve(diffrax.Dopri8(), steps=16)) - fine) < 1e-8
    controller = diffrax.PIDController(rtol=1e-8, atol=1e-8)
    assert abs(read(adapters.solve(diffrax.Tsit5(), controller=controller)) - fine) < 1e-6
    y, density = likelihood.encode(
        denoise, Flow(), POINTS[2], solve=adapters.solve(diffrax.Dopri8(), steps=16), **settings
    )
    back = likelihood.decode(denoise, Flow(), y, solve=adapters.solve(diffrax.Dopri8(), steps=16), **settings)
    np.testing.assert_allclose(back[0], POINTS[2], rtol=1e-7)
    np.testing.assert_allclose(back[1], density, rtol=1e-7)


def test_what_cannot_be_solved_is_said():
    denoise, few = exact.denoiser(WORLD, Flow()), diffrax.PIDController(rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="steps must be positive, got steps=0"):
        likelihood.log_prob(denoise, Flow(), POINTS[0], steps=0)
    with pytest.raises(ValueError, match="steps must be positive, got steps=0"):
        likelihood.decode(denoise, Flow(), POINTS[0], steps=0)
    with pytest.raises(ValueError, match="steps must be at least 1, got steps=0"):
        adapters.solve(diffrax.Tsit5(), steps=0)
    with pytest.raises(ValueError, match="max_steps must be at least 1, got max_steps=0"):
        adapters.solve(diffrax.Tsit5(), max_steps=0)
    with pytest.raises(ValueError, match="the solver must be for an ODE of one term"):
        adapters.solve(diffrax.SemiImplicitEuler())
    with pytest.raises(TypeError, match="a solver is one of diffrax's"):
        adapters.solve("Tsit5")
    with pytest.raises(ValueError, match="an implicit solver needs a controller, or a root_finder with tolerances"):
        adapters.solve(diffrax.Kvaerno3())
    with pytest.raises(ValueError, match="adjoint must see what denoise holds"):
        adapters.solve(diffrax.Tsit5(), adjoint=diffrax.BacksolveAdjoint())
    with pytest.raises(ValueError, match="steps are equal ones: a controller chooses its own, got steps=32"):
        adapters.solve(diffrax.Tsit5(), steps=32, controller=few)
    short = adapters.solve(diffrax.Tsit5(), controller=few, max_steps=3)
    with pytest.raises(ValueError, match="the solver did not reach the end, got reached=False, start="):
        likelihood.log_prob(denoise, Flow(), POINTS[0], solve=short)
    assert jnp.isnan(jax.jit(lambda x0: likelihood.log_prob(denoise, Flow(), x0, solve=short))(POINTS[0]))


def test_what_is_left_out_is_32_steps_between_log_snrs_of_12():
    denoise, x0, key = exact.denoiser(GAUSSIAN, Flow()), jnp.array([1.1, -0.2]), jax.random.key(4)
    ends = {"log_snr_min": -12.0, "log_snr_max": 12.0}
    assert likelihood.log_prob(denoise, Flow(), x0) == likelihood.log_prob(denoise, Flow(), x0, steps=32, **ends)
    short, whole = (likelihood.elbo(key, denoise, Flow(), x0, **options) for options in ({}, {"samples": 64, **ends}))
    assert short == whole


def gaussian_kl(mean, std, wide):
    """KL(N(mean, std^2) || N(0, wide^2)) in nats, by the trapezoidal rule."""
    x = np.linspace(mean - 14 * std, mean + 14 * std, 20_001)
    density = np.exp(-(((x - mean) / std) ** 2) / 2) / (std * np.sqrt(2 * np.pi))
    ratio = ((x / wide) ** 2 - ((x - mean) / std) ** 2) / 2 + np.log(wide / std)
    return float(np.sum(density * ratio) * (x[1] - x[0]))


@pytest.mark.parametrize("schedule", [Flow(), VP()], ids=repr)
def test_the_terms_of_the_elbo_one_by_one(schedule):
    """A denoiser that knows x0 leaves the prior and the reconstruction; a wrong guess adds (e^max - e^min)/2 |x0 - guess|^2."""
    x0, guess, key = jnp.array([1.1, -0.2, 0.4]), jnp.array([0.6, 0.3, 0.2]), jax.random.key(4)

    def elbo(x0_hat, low, high, samples=4):
        ends = {"log_snr_min": low, "log_snr_max": high}
        return float(likelihood.elbo(key, lambda z, t: x0_hat, schedule, x0, samples=samples, **ends))

    def prior(low):
        p = at(schedule, clocks.time_at(schedule, low))
        return sum(gaussian_kl(*map(float, (p.alpha * x, p.sigma, jnp.hypot(p.alpha, p.sigma)))) for x in x0)

    np.testing.assert_allclose(elbo(x0, -4.0, 3.0) - elbo(x0, -4.0, 5.0), -3 / 2 * 2, rtol=1e-12)
    np.testing.assert_allclose(elbo(x0, -4.0, 3.0) - elbo(x0, -1.0, 3.0), prior(-1.0) - prior(-4.0), rtol=1e-9)
    wrong = elbo(x0, -4.0, 3.0, 4096) - elbo(guess, -4.0, 3.0, 4096)
    np.testing.assert_allclose(wrong, (np.exp(3) - np.exp(-4)) / 2 * np.sum((x0 - guess) ** 2), rtol=1e-4)
    np.testing.assert_allclose(elbo(x0, -4.0, 3.0), -prior(-4.0) - 3 / 2 * (np.log(2 * np.pi) + 1 - 3), rtol=1e-9)


def test_the_draws_of_the_elbo_are_one_in_each_stratum_and_differ_between_keys():
    seen = []

    def watching(z, t):
        jax.debug.callback(lambda t: seen.append(float(t)), t)
        return 0 * z

    for key in (0, 1):
        likelihood.elbo(
            jax.random.key(key), watching, Flow(), jnp.zeros(2), samples=16, log_snr_min=-8.0, log_snr_max=8.0
        )
    jax.effects_barrier()
    log_snrs = np.reshape([clocks.log_snr(Flow(), t) for t in seen], (2, 16))
    assert (np.floor((np.sort(log_snrs, axis=1) + 8).round(9)) == np.arange(16)).all()
    shares = np.mod(np.sort(log_snrs, axis=1), 1)
    assert len(np.unique(shares.round(9))) == 32


def test_one_draw_of_the_elbo_to_the_last_digit():
    """Given its draws, log-SNRs as the denoiser is asked for them; the reconstruction is minus the entropy of N(0, e^-high)."""
    key, x0, guess, low, high = jax.random.key(4), np.array([1.1, -0.2, 0.4]), np.array([0.6, 0.3, 0.2]), -3.0, 2.0
    asked = []

    def guessing(z, t):
        jax.debug.callback(lambda t: asked.append(float(t)), t)
        return jnp.asarray(guess)

    found = likelihood.elbo(key, guessing, VP(), jnp.asarray(x0), samples=8, log_snr_min=low, log_snr_max=high)
    jax.effects_barrier()
    snr = np.array([at(VP(), t).alpha ** 2 / at(VP(), t).sigma ** 2 for t in asked])
    diffusion = (high - low) / 2 * np.mean(snr) * np.sum((x0 - guess) ** 2)
    p = at(VP(), clocks.time_at(VP(), low))
    prior = sum(gaussian_kl(*map(float, (p.alpha * x, p.sigma, jnp.hypot(p.alpha, p.sigma)))) for x in x0)
    reconstruction = -3 * scipy.stats.norm(scale=np.exp(-high / 2)).entropy()
    np.testing.assert_allclose(found, reconstruction - diffusion - prior, rtol=1e-9)


def test_the_exact_divergence_is_the_trace_of_the_jacobian():
    denoise = exact.denoiser(WORLD, Flow())
    z, t = jnp.array([0.3, -0.7]), 0.4
    x0, trace = traces.divergence(lambda z: denoise(z, t), z)
    np.testing.assert_allclose(trace, jnp.trace(jax.jacfwd(lambda z: denoise(z, t))(z)), rtol=1e-12)
    np.testing.assert_allclose(x0, denoise(z, t), rtol=1e-12)
    np.testing.assert_allclose(
        trace, at(Flow(), t).alpha / 0.16 * jnp.trace(exact.posterior_cov(WORLD, z, at(Flow(), t))), rtol=1e-9
    )


def test_units():
    """A uniform law over 2^k bins costs k bits per dimension."""
    for k in (1, 4, 8):
        nats = -3 * np.log(2.0)
        np.testing.assert_allclose(likelihood.bits_per_dim(nats, 3, bin_width=2.0 / 2**k), k, rtol=1e-14)
    np.testing.assert_allclose(likelihood.bits_per_dim(-np.log(2.0), 1), 1, rtol=1e-14)


def blurred(x0, high):
    """log p of the world at x0, with the noise of this log-SNR."""
    parts = [
        jnp.log(w) + stats.multivariate_normal.logpdf(x0, m, c + jnp.exp(-high) * jnp.eye(2))
        for w, m, c in zip(WORLD.weights, WORLD.means, WORLD.covs, strict=True)
    ]
    return jax.nn.logsumexp(jnp.stack(parts))


@pytest.mark.parametrize("control", [None, CONTROL], ids=["plain", "control"])
def test_squared_errors_tell_the_blurred_density_within_the_error_that_they_tell(control):
    """Unbiased, also where the blur is as wide as the data; the errors are those of the draws."""
    denoise, keys = exact.denoiser(WORLD, Flow()), jax.random.split(jax.random.key(6), 200)
    for high in (1.0, 9.0):
        read = lambda key: likelihood.immse(key, denoise, Flow(), POINTS[1], control=control, log_snr_max=high)  # noqa: B023, E731
        found, error = (np.asarray(part) for part in jax.jit(jax.vmap(read))(keys))
        assert abs(found.mean() - blurred(POINTS[1], high)) < 4 * found.std() / np.sqrt(len(found)) + 1e-4
        assert 0.8 < np.sqrt(np.mean(error**2)) / found.std() < 1.25


def test_of_gaussian_data_no_draw_is_heard():
    variances, basis = jnp.linalg.eigh(GAUSSIAN.cov)
    control, denoise, x0 = samplers.Control(GAUSSIAN.mean, variances, basis), exact.denoiser(GAUSSIAN, VP()), POINTS[2]
    value, error = likelihood.immse(jax.random.key(0), denoise, VP(), x0, samples=4, control=control, log_snr_max=3.0)
    wanted = stats.multivariate_normal.logpdf(x0, GAUSSIAN.mean, GAUSSIAN.cov + jnp.exp(-3.0) * jnp.eye(2))
    np.testing.assert_allclose(value, wanted, rtol=1e-12)
    assert error < 1e-12
    picture = lambda z, t: denoise(z.ravel(), t).reshape(z.shape)  # noqa: E731
    plain = samplers.Control(GAUSSIAN.mean.reshape(1, 2, 1), variances, basis)
    again = likelihood.immse(
        jax.random.key(0), picture, VP(), x0.reshape(1, 2, 1), samples=4, control=plain, log_snr_max=3.0
    )
    np.testing.assert_allclose(again[0], wanted, rtol=1e-12)


def test_its_draws_are_opposite_pairs_one_in_each_stratum():
    seen = []

    def watching(z, t):
        jax.debug.callback(lambda z, t: seen.append((float(t), np.asarray(z))), z, t)
        return 0 * z

    for key in (0, 1):
        likelihood.immse(
            jax.random.key(key), watching, Flow(), jnp.array([0.5, 0.0]), samples=16, log_snr_min=-8.0, log_snr_max=8.0
        )
    jax.effects_barrier()
    assert len(seen) == 32
    runs = [sorted(run, key=lambda pair: pair[0]) for run in (seen[:16], seen[16:])]
    shares = []
    for run in runs:
        for (t, one), (again, other) in zip(run[::2], run[1::2], strict=True):
            assert t == again
            np.testing.assert_allclose(one + other, [at(Flow(), t).alpha, 0], atol=1e-12)
        log_snrs = np.sort([clocks.log_snr(Flow(), t) for t, _ in run[::2]])
        assert (np.floor((log_snrs + 8) / 2) == np.arange(8)).all()
        shares.append(log_snrs)
    assert np.min(np.abs(shares[0] - shares[1])) > 1e-6
    assert len(np.unique([z[1] for _, z in seen])) == 32


def test_few_axes_of_a_control_integrate_what_all_of_them_do():
    basis = jnp.linalg.qr(jnp.asarray(np.random.default_rng(0).standard_normal((4, 4))))[0]
    few = samplers.Control(jnp.full(4, 0.2), jnp.array([2.0, 0.5]), basis[:, :1])
    whole = samplers.Control(jnp.full(4, 0.2), jnp.array([2.0, 0.5, 0.5, 0.5]), basis)
    denoise, x0 = lambda z, t: jnp.tanh(z) * (1 - t), jnp.array([0.3, -0.2, 1.1, 0.5])
    found = [likelihood.immse(jax.random.key(0), denoise, VP(), x0, samples=6, control=one) for one in (few, whole)]
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)


def test_the_advantage_is_a_difference_of_squared_errors():
    """Of the noise that denoisers tell, that of N(m, C) by its posterior; with r of the noise fresh, over r^2."""
    wide = CONTROL.basis @ jnp.diag(CONTROL.variances) @ CONTROL.basis.T
    law, denoise, eps = exact.Gaussian(CONTROL.mean, wide), lambda z, t: jnp.tanh(z) - t, jnp.array([0.7, -1.3])
    for log_snr, top in ((0.4, np.inf), (0.4, 1.5), (-3.0, 5.0)):
        p = at(VP(), clocks.time_at(VP(), log_snr))
        r = np.sqrt(1 - np.exp(log_snr - top))
        z = p.alpha * POINTS[0] + p.sigma * r * eps
        told = [(z - p.alpha * x0) / p.sigma for x0 in (exact.denoise(law, z, p), denoise(z, p.t))]
        one, other = (jnp.sum((eps - r * each) ** 2) for each in told)
        options = {"control": CONTROL} | ({} if np.isinf(top) else {"log_snr_max": top})
        found = likelihood.advantage(denoise, VP(), POINTS[0], eps, jnp.asarray(log_snr), **options)
        np.testing.assert_allclose(found, (one - other) / r**2, rtol=1e-9)


def test_squared_errors_in_float32_and_their_defaults():
    wanted = float(blurred(POINTS[0], 12.0))
    with jax.enable_x64(False):
        world = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), WORLD)
        control = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), CONTROL)
        x0, denoise, key = jnp.asarray(POINTS[0], jnp.float32), exact.denoiser(world, Flow()), jax.random.key(3)
        value, error = likelihood.immse(key, denoise, Flow(), x0, samples=512, control=control)
        assert value.dtype == error.dtype == jnp.float32
        assert abs(value - wanted) < 5 * error
    short = likelihood.immse(key, exact.denoiser(WORLD, Flow()), Flow(), POINTS[0])
    ends = {"samples": 64, "log_snr_min": -12.0, "log_snr_max": 12.0}
    assert short == likelihood.immse(key, exact.denoiser(WORLD, Flow()), Flow(), POINTS[0], **ends)
    for samples in (2, 7):
        with pytest.raises(ValueError, match=f"samples must be even, and at least four, got samples={samples}"):
            likelihood.immse(key, exact.denoiser(WORLD, Flow()), Flow(), POINTS[0], samples=samples)


def test_the_flow_of_a_wrong_denoiser_is_off_by_its_gap():
    """log p by the flow less the mean of `immse`, which know nothing of one another, within five errors of their draws."""
    good, keys = exact.denoiser(WORLD, Flow()), jax.random.split(jax.random.key(2), (2, 24))
    settings = {"control": CONTROL, "log_snr_min": -9.0, "log_snr_max": 6.0}

    def wrong(z, t):
        return 1.1 * good(z, t) + 0.2 * jnp.sin(2 * z[::-1]) * t

    def told(key):
        return likelihood.flow_gap(key, wrong, Flow(), POINTS[0], samples=48, **settings)

    def squares(key):
        return likelihood.immse(key, wrong, Flow(), POINTS[0], samples=1024, **settings)

    flow = likelihood.log_prob(wrong, Flow(), POINTS[0], steps=48, **settings)
    plain, (gaps, errors) = jax.lax.map(squares, keys[0])[0], jax.lax.map(told, keys[1])
    off, doubt = flow - plain.mean() - gaps.mean(), np.hypot(plain.std(), gaps.std()) / np.sqrt(24)
    assert abs(off) < 5 * doubt < 0.7 * abs(gaps.mean())
    assert 0.4 < np.sqrt(np.mean(errors**2)) / gaps.std() < 2.5


def test_the_flow_of_an_exact_denoiser_has_no_gap():
    """But for the end of the flow, which is not quite noise, and its eight steps."""
    denoise, key = exact.denoiser(WORLD, Flow()), jax.random.key(3)
    settings = {"control": CONTROL, "log_snr_min": -9.0, "log_snr_max": 6.0, "samples": 4, "steps": 8}
    gap, error = likelihood.flow_gap(key, denoise, Flow(), POINTS[0], exact_trace=True, **settings)
    assert abs(gap) < 0.01 and error < 0.01


def test_a_gap_is_of_pairs():
    for samples in (2, 5):
        with pytest.raises(ValueError, match=f"samples must be even, and at least four, got samples={samples}"):
            likelihood.flow_gap(jax.random.key(0), lambda z, t: z, Flow(), POINTS[0], samples=samples)


def test_excess_is_the_product_of_two_errors_of_the_noise():
    """By hand, at a point of a path whose sizes are not one."""
    denoise, carried, eps = lambda z, t: jnp.tanh(z), lambda z, t: z / 2 + t, jnp.array([0.7, -1.1])
    for top in (np.inf, 3.0):
        p = at(Flow(), clocks.time_at(Flow(), 0.4))
        r = np.sqrt(1 - np.exp(0.4 - top))
        z = p.alpha * POINTS[0] + p.sigma * r * eps
        said, law = ((z - p.alpha * x0) / p.sigma for x0 in (np.tanh(z), z / 2 + p.t))
        found = likelihood.excess(denoise, carried, Flow(), POINTS[0], eps, jnp.asarray(0.4), log_snr_max=top)
        np.testing.assert_allclose(found, np.sum((eps / r - said) * (law - said)), rtol=1e-10)
