"""Multistep solvers: what they cost, what they remember, where they begin and end."""

from itertools import pairwise

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen import clocks, exact
from diffeq_gen.samplers import ddim, er_sde, exponential, law, lms, multistep, sample, singlestep, unipc
from diffeq_gen.samplers.interpolation import RULES
from diffeq_gen.samplers.multistep import er_sde_noise
from diffeq_gen.schedules import Cosine, Flow, at
from tests.samplers.quadrature import Route, multistep_by_quadrature, still
from tests.samplers.rows import reads_its_first_rows

KEY = jax.random.key(0)
WORLD = exact.Mixture(np.array([0.25, 0.75]), np.array([[-1.0, 0.5], [1.0, 0.0]]), 0.1 * np.stack([np.eye(2)] * 2))
MADE = {rule: lambda f, s, rule=rule: multistep(f, s, order=3, rule=rule) for rule in RULES}
MADE |= {"SDE": lambda f, s: multistep(f, s, order=3, eta=0.7)}
MADE |= {"SA-Solver": lambda f, s: multistep(f, s, order=2, corrector=True, eta=1.0), "er_sde": er_sde}
MADE |= {"lms": lms, "unipc": unipc, "unipc of order 4": lambda f, s: unipc(f, s, order=3, variant="bh1")}


@pytest.fixture(autouse=True)
def as_users_run_it():
    with jax.enable_x64(False):
        yield


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("schedule", [Flow(), Cosine()], ids=str)
def test_from_pure_noise_to_pure_data_it_ends_finite_with_a_slope(name, schedule):
    sampler = MADE[name](exact.denoiser(WORLD, schedule), schedule)
    run = lambda z: sample(KEY, sampler, z, clocks.uniform(12))  # noqa: E731
    z = jnp.array([0.7, -1.2])
    assert run(z).shape == z.shape and run(z).dtype == z.dtype
    assert bool(jnp.all(jnp.isfinite(run(z)))) and bool(jnp.all(jnp.isfinite(jax.jacrev(run)(z))))


@pytest.mark.parametrize("name", MADE)
def test_one_evaluation_a_step_at_the_times_of_the_grid(name):
    asked = []

    def denoise(z, t):
        asked.append(float(t))
        return 0.5 * z

    sampler, times = MADE[name](denoise, Cosine()), [0.9, 0.6, 0.4, 0.1]
    z, memory = jnp.ones(2), sampler.init(jnp.ones(2))
    for t, s in pairwise(times):
        z, memory = sampler.step(z[None], memory, z, jnp.asarray(t), jnp.asarray(s))
    np.testing.assert_allclose(asked, times[:-1], rtol=1e-6)
    assert sampler.noises == (name in ("SDE", "SA-Solver", "er_sde"))


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_with_noise_order_one_is_the_exponential_step(eta):
    schedule, noise = Cosine(), jnp.array([[0.3, -0.4]])
    denoise, z = exact.denoiser(WORLD, schedule), jnp.array([0.7, -1.2])
    for t, s in ((0.8, 0.6), (1.0, 0.5), (0.5, 0.0), (0.5, np.nextafter(np.float32(0.5), np.float32(0)))):
        args = z, jnp.asarray(t, jnp.float32), jnp.asarray(s, jnp.float32)
        known = exponential(denoise, schedule, eta=eta).step(noise, (), *args)[0]
        made = [multistep(denoise, schedule, order=order, eta=eta) for order in (1, 3)]
        made.append(er_sde(denoise, schedule, order=1, noise=lambda log_snr: eta**2 * log_snr))
        for one in made:
            np.testing.assert_allclose(one.step(noise, one.init(z), *args)[0], known, rtol=2e-4, atol=1e-6)


def test_without_noise_it_is_the_deterministic_solver_and_so_in_the_limit():
    """Not from alpha_t = 0, where any eta > 0 forgets z."""
    schedule, z, times = Cosine(), jnp.array([0.7, -1.2]), clocks.uniform(6, first=0.9)
    denoise = exact.denoiser(WORLD, schedule)
    known = sample(KEY, multistep(denoise, schedule), z, times)
    np.testing.assert_array_equal(sample(KEY, multistep(denoise, schedule, eta=0.0), z, times), known)
    traced = jax.jit(lambda eta: sample(KEY, multistep(denoise, schedule, eta=eta), z, times))
    np.testing.assert_allclose(traced(0.0), known, rtol=1e-5)
    np.testing.assert_allclose(traced(1e-4), known, atol=2e-3)


@pytest.mark.parametrize(
    "make", [lambda f, s: multistep(f, s, eta=1.0), lambda f, s: singlestep(f, s, eta=1.0), er_sde]
)
def test_noise_keeps_the_marginals(make):
    """Of Gaussian data, by its exact law over 40 steps from log-SNR -5 to 5; without noise their variance is as near."""
    with jax.enable_x64(True):
        world, schedule = exact.Gaussian(jnp.array([0.5, -1.0]), jnp.array([[1.0, 0.4], [0.4, 0.5]])), Cosine()
        times = clocks.uniform_log_snr(schedule, 40, log_snr_min=-5.0, log_snr_max=5.0)
        first, last = (exact.marginal(world, at(schedule, t)) for t in (times[0], times[-1]))
        mean, cov = law(make(exact.denoiser(world, schedule), schedule), first.mean, first.cov, times)
        np.testing.assert_allclose(mean, last.mean, rtol=1e-3)
        np.testing.assert_allclose(cov, last.cov, atol=2e-2)


@pytest.mark.parametrize("rule", RULES)
def test_its_first_step_is_ddim_and_order_one_is_ddim(rule):
    schedule = Cosine()
    denoise, z = exact.denoiser(WORLD, schedule), jnp.array([0.7, -1.2])
    t, s = jnp.asarray(0.8), jnp.asarray(0.6)
    known = ddim(denoise, schedule).step(z[None], (), z, t, s)[0]
    for order in (1, 4):
        one = multistep(denoise, schedule, order=order, rule=rule)
        np.testing.assert_array_equal(one.step(z[None], one.init(z), z, t, s)[0], known)
    denoise, z = jax.vmap(denoise, (0, None)), jnp.stack([z, 2 * z])
    one, plain = multistep(denoise, schedule, order=1, rule=rule), ddim(denoise, schedule)
    memory = one.init(z)
    for t, s in pairwise(
        clocks.uniform(6, first=0.8, last=0.1)
    ):  # step by step: two compiled runs are fused differently
        known = plain.step(z[None], (), z, t, s)[0]
        z, memory = one.step(z[None], memory, z, t, s)
        np.testing.assert_array_equal(z, known)


def test_higher_orders_and_the_corrector_come_nearer():
    """At 10 steps on a mixture, from log-SNR -5 to 5, against 2,000 steps of DDIM."""
    schedule, z = Cosine(), jnp.array([[0.7, -1.2], [-1.3, 0.4], [0.2, 2.0]])
    denoise = jax.vmap(exact.denoiser(WORLD, schedule), (0, None))
    grid = lambda n: clocks.uniform_log_snr(schedule, n, log_snr_min=-5.0, log_snr_max=5.0)  # noqa: E731
    known = sample(KEY, ddim(denoise, schedule), z, grid(2000))
    made = [ddim(denoise, schedule), multistep(denoise, schedule), unipc(denoise, schedule)]
    errors = [float(jnp.max(jnp.abs(sample(KEY, one, z, grid(10)) - known))) for one in made]
    assert errors[1] < errors[0] / 2 and errors[2] < errors[0] / 4


def test_the_corrector_changes_what_is_remembered_and_nothing_before_there_is_a_past():
    schedule, z = Flow(), jnp.array([0.7, -1.2])
    sampler = unipc(exact.denoiser(WORLD, schedule), schedule)
    moved, past = sampler.step(z[None], sampler.init(z), z, jnp.asarray(0.9), jnp.asarray(0.6))
    np.testing.assert_array_equal(past.plain, moved)
    again, later = sampler.step(z[None], past, moved, jnp.asarray(0.6), jnp.asarray(0.4))
    uncorrected = ddim(exact.denoiser(WORLD, schedule), schedule).step(
        z[None], (), moved, jnp.asarray(0.6), jnp.asarray(0.4)
    )[0]
    assert np.all(np.asarray(later.plain) != np.asarray(uncorrected))
    assert np.all(np.asarray(later.plain) != np.asarray(again))
    p = [at(schedule, t) for t in (0.6, 0.9)]
    np.testing.assert_allclose(later.alphas, [q.alpha for q in p], rtol=1e-6)
    np.testing.assert_allclose(later.sigmas, [q.sigma for q in p], rtol=1e-6)


def test_a_corrector_of_noise_holds_the_noise_while_the_state_is_corrected():
    """z_2 = (alpha_2/alpha_1) z_1 + (sigma_2 - alpha_2 sigma_1/alpha_1) eps_1, z_1 by quadrature through eps_0 and eps_1."""
    schedule, times, z = Cosine(), (0.6, 0.45, 0.3), np.array([0.5, -1.0])
    with jax.enable_x64(True):
        denoise = lambda z, t: 0.5 * jnp.sin(z) + t  # noqa: E731
        sampler = multistep(denoise, schedule, order=1, rule="noise", corrector=True)
        end = sample(KEY, sampler, jnp.asarray(z), jnp.asarray(times))
        (a0, s0), (a1, s1), (a2, s2) = (map(np.float64, schedule(jnp.asarray(t))) for t in times)
        eps0 = (z - a0 * np.asarray(denoise(z, times[0]))) / s0
        predicted = a1 / a0 * z + (s1 - a1 * s0 / a0) * eps0
        eps1 = (predicted - a1 * np.asarray(denoise(jnp.asarray(predicted), times[1]))) / s1
    low, high = np.log(a0 / s0), np.log(a1 / s1)
    nodes, weights = np.polynomial.legendre.leggauss(8)
    level = low + (high - low) * (nodes + 1) / 2
    between = eps0 + np.outer((level - low) / (high - low), eps1 - eps0)
    corrected = a1 * (z / a0 - (high - low) / 2 * np.sum((weights * np.exp(-level))[:, None] * between, axis=0))
    np.testing.assert_allclose(end, a2 / a1 * corrected + (s2 - a2 * s1 / a1) * eps1, rtol=1e-12)


ER_SDE = Route("data", lambda log_snr: -2 * np.log(np.exp(np.exp(-0.15 * log_snr)) + 10))
BY_QUADRATURE = {
    "default": (multistep, Route("data"), {"order": 2}),
    "lms": (lms, Route("slope"), {"order": 4}),
    "er_sde": (er_sde, ER_SDE, {"order": 2}),
    "er_sde of order 3": (lambda f, s: er_sde(f, s, order=3), ER_SDE, {"order": 3}),
}
BY_QUADRATURE |= {
    f"{rule} {order}{' corrected' * corrector} {eta}": (
        lambda f, s, rule=rule, order=order, corrector=corrector, eta=eta: multistep(
            f, s, order=order, rule=rule, corrector=corrector, eta=eta
        ),
        Route(rule, lambda log_snr, eta=eta: eta**2 * log_snr),
        {"order": order, "corrector": corrector},
    )
    for rule, order, corrector, eta in (
        ("data", 3, False, 0.7), ("data", 2, True, 0.7), ("data", 3, True, 0.0), ("noise", 3, True, 0.0), ("slope", 2, True, 0.0),
        ("signal", 4, False, 0.0), ("signal", 1, True, 0.0),
    )
}  # fmt: skip


@pytest.mark.parametrize("name", BY_QUADRATURE)
def test_every_step_is_the_integral_of_the_polynomial_through_its_values(name):
    """From the first step, of which no past is known, to one that knows all it can; the noise of each is its own."""
    make, route, options = BY_QUADRATURE[name]
    times, z = np.array([0.85, 0.7, 0.6, 0.4, 0.3, 0.1]), np.array([0.5, -1.0])
    noise = np.random.default_rng(0).standard_normal((5, 2))
    known = multistep_by_quadrature(lambda z, t: 0.5 * np.sin(z) + t, route, times, z, noise, **options)
    with jax.enable_x64(True):
        sampler = make(lambda z, t: 0.5 * jnp.sin(z) + t, Cosine())
        order, corrector = options["order"], options.get("corrector", False)
        assert (sampler.fewest, sampler.noises) == (order, int(np.any(route.noise(np.ones(2)) != 0)))
        state, memory = jnp.asarray(z), sampler.init(jnp.asarray(z))
        assert len(memory.values) == order - 1 + corrector and memory.plain.size == 2 * corrector
        for t, s, eps, expected in zip(times[:-1], times[1:], noise, known, strict=True):
            rows = jnp.asarray(eps)[None][: sampler.noises]
            state, memory = sampler.step(rows, memory, state, jnp.asarray(t), jnp.asarray(s))
            np.testing.assert_allclose(state, expected, rtol=1e-10)


@pytest.mark.parametrize("noise", [still, lambda log_snr: -log_snr])
def test_a_noise_that_does_not_rise_is_none(noise):
    schedule, times, z = Cosine(), clocks.uniform(3, first=0.9, last=0.2), jnp.array([0.5, -1.0])
    denoise = lambda z, t: 0.5 * jnp.sin(z) + t  # noqa: E731
    known = sample(KEY, multistep(denoise, schedule), z, times)
    np.testing.assert_allclose(sample(KEY, er_sde(denoise, schedule, noise=noise), z, times), known, rtol=1e-5)


@pytest.mark.parametrize(("variant", "weight"), [("bh1", lambda h: h**2 / 2), ("bh2", lambda h: -h * np.expm1(-h) / 2)])
def test_unipc_weights_its_difference_by_h_or_by_the_exponential(variant, weight):
    """Zhao et al. 2023, with B(h) = h or e^h - 1 as it is where x0_hat is predicted; where nothing is said it is the latter."""
    with jax.enable_x64(True):
        schedule, z = Cosine(), jnp.asarray([0.5, -1.0])
        denoise, times = lambda z, t: 0.5 * jnp.sin(z) + t, [jnp.asarray(t) for t in (0.7, 0.5, 0.45)]
        made = unipc(denoise, schedule, variant=variant)
        middle, memory = made.step(z[:0], made.init(z), z, *times[:2])
        _, later = made.step(z[:0], memory, middle, *times[1:])
        plain = ddim(denoise, schedule).step(z[:0], (), z, *times[:2])[0]
        before, now = denoise(z, times[0]), denoise(middle, times[1])
        h = (Route.log_snr(0.5) - Route.log_snr(0.7)) / 2
        corrected = plain + schedule(times[1])[0] * weight(h) * (now - before) / h
        held = schedule(times[2])[1] / schedule(times[1])[1]
        known = held * corrected + (schedule(times[2])[0] - held * schedule(times[1])[0]) * now
        np.testing.assert_allclose(later.plain, known, rtol=1e-12)
        if variant == "bh2":
            silent = unipc(denoise, schedule)
            assert silent.fewest == 2
            np.testing.assert_array_equal(silent.step(z[:0], memory, middle, *times[1:])[1].plain, later.plain)


@pytest.mark.parametrize("rho", [1e-3, 0.2, 1.0, 30.0])
def test_the_noise_scale_of_er_sde_is_theirs(rho):
    """phi = rho e^{-N/2} = rho (e^{rho^0.3} + 10), rho = sigma/alpha."""
    with jax.enable_x64(True):
        log_snr = jnp.asarray(-2 * np.log(rho))
        np.testing.assert_allclose(np.exp(-er_sde_noise(log_snr) / 2), np.exp(rho**0.3) + 10, rtol=1e-12)


def test_one_trace_for_any_number_of_calls():
    chex.clear_trace_counter()
    denoise = chex.assert_max_traces(lambda z, t: 0.5 * z, n=1)
    sampler = unipc(denoise, Cosine(), order=3)
    for seed in range(3):
        sample(KEY, sampler, jnp.full(2, float(seed)), clocks.uniform(20))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: multistep(None, Flow(), order=5), "order must be 1, 2, 3 or 4, got order=5"),
        (lambda: multistep(None, Flow(), rule="x0"), "rule must be one of data, noise, slope, signal, got rule='x0'"),
        (lambda: multistep(None, Flow(), two_point="half"), "two_point must be one of exact, midpoint, trapezoid"),
        (lambda: unipc(None, Flow(), variant="bh3"), "variant must be one of bh1, bh2, got variant='bh3'"),
        (lambda: multistep(None, Flow(), eta=-0.5), "eta must not be negative, got eta=-0.5"),
        (lambda: multistep(None, Flow(), eta=0.5, rule="slope"), "eta > 0 needs rule 'data', got rule='slope'"),
        (lambda: er_sde(None, Flow(), order=5), "order must be 1, 2, 3 or 4, got order=5"),
        (lambda: lms(None, Flow(), order=0), "order must be 1, 2, 3 or 4, got order=0"),
    ],
)
def test_bad_input_is_named(make, said):
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize("name", MADE)
def test_times_that_float32_cannot_tell_apart_do_no_harm(name):
    """Grids so fine that log-SNR does not change from one time to the next: a difference over no distance is not taken."""
    first = jnp.asarray(0.5)
    second = jnp.nextafter(first, jnp.zeros(()))
    times = jnp.stack([first, second, jnp.nextafter(second, jnp.zeros(())), 0.45 + 0 * first, 0.4 + 0 * first])
    sampler = MADE[name](lambda z, t: 0.5 * z + t, Cosine())
    end = sample(KEY, sampler, jnp.array([0.5, -1.0]), times)
    assert bool(jnp.all(jnp.isfinite(end)))
    if sampler.noises == 0:
        plain = sample(KEY, sampler, jnp.array([0.5, -1.0]), jnp.array([0.5, 0.499, 0.498, 0.45, 0.4]))
        np.testing.assert_allclose(end, plain, rtol=0.02)


@pytest.mark.parametrize("name", ["SDE", "SA-Solver", "er_sde"])
def test_the_noise_is_the_first_row(name):
    reads_its_first_rows(MADE[name](lambda z, t: 0.5 * z, Flow()))


def test_a_corrector_leaves_pure_data_alone():
    """At sigma = 0 there is no eps_hat by which the step that led there could be corrected: along sigma/alpha it is not far away."""
    resting = lambda t: (2 - t, jnp.maximum(t - 0.25, 0))  # noqa: E731
    sampler = multistep(lambda z, t: jnp.tanh(z), resting, order=2, rule="slope", corrector=True)
    z, states = jnp.array([0.4, -1.3]), []
    memory = sampler.init(z)
    for t, s in pairwise(jnp.array([0.9, 0.6, 0.25, 0.1])):
        z, memory = sampler.step(z[:0], memory, z, t, s)
        states.append(z)
    np.testing.assert_allclose(states[2], states[1] * 1.9 / 1.75, rtol=1e-6)
