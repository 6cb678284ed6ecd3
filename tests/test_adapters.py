"""Solvers of diffrax: against our own of the same name, against flows and laws that are known, and where they fail."""

import subprocess
import sys

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
import pytest

from diffeq_gen import adapters, clocks, exact, samplers, theorems
from diffeq_gen.coordinates import ANGLE, DATA, LOG_SNR, NOISE, STRAIGHT
from diffeq_gen.samplers.runge_kutta import EULER, HEUN, MIDPOINT, RALSTON, Tableau
from diffeq_gen.schedules import VE, VP, Cosine, Flow, at
from tests.test_house import ROOT

KEY = jax.random.key(0)
WORLD = exact.Gaussian(np.array([1.5, -0.5]), np.array([[0.7, 0.2], [0.2, 0.4]]))
Z = np.array([0.7, -1.2])
TIMES = np.array([0.9, 0.6, 0.4])
COORDINATES = {"t": None, "noise": NOISE, "straight": STRAIGHT, "data": DATA, "angle": ANGLE, "log-SNR": LOG_SNR}
BOGACKI_SHAMPINE = Tableau(((1 / 2,), (0.0, 3 / 4)), (2 / 9, 1 / 3, 4 / 9))  # 1989, their third-order weights
TWINS = {"Euler": EULER, "Heun": HEUN, "Midpoint": MIDPOINT, "Ralston": RALSTON, "Bosh3": BOGACKI_SHAMPINE}
STOCHASTIC = ["Euler", "EulerHeun", "Heun", "ItoMilstein", "ReversibleHeun", "SEA", "ShARK", "SlowRK", "SPaRK", "SRA1"]


@pytest.fixture(scope="module", autouse=True)
def sharp():
    """float64, in which the bounds below are sharp; a test that asks for `precision` has its own."""
    with jax.enable_x64(True):
        yield


def within(tolerance):
    return diffrax.PIDController(rtol=tolerance, atol=tolerance)


def denoise(z, t):
    return jnp.tanh(z) + 1.5 - t


def seen(schedule):
    return exact.denoiser(WORLD, schedule)


def run(sampler, times, z=Z, key=KEY):
    return samplers.sample(key, sampler, jnp.asarray(z), jnp.asarray(times, jnp.result_type(z)))


def step(sampler, t, s, z=Z):
    return sampler.step(
        jnp.ones((sampler.noises, *z.shape)), (), jnp.asarray(z), jnp.asarray(t), jnp.asarray(s)
    )[0]  # fmt: skip


def flow(schedule, t, s, z=Z):
    return exact.flow_map(WORLD, jnp.asarray(z), at(schedule, t), at(schedule, s))


# The probability flow


@pytest.mark.parametrize("name", COORDINATES)
def test_a_step_is_that_of_our_tableau_of_the_same_name(name):
    coordinate = COORDINATES[name]

    @jax.jit
    def pairs(z):
        return [
            (adapters.ode(denoise, Cosine(), getattr(diffrax, solver)(), coordinate=coordinate).step(None, (), z, 0.9, 0.4)[0],
             samplers.runge_kutta(denoise, Cosine(), tableau=tableau, coordinate=coordinate).step(None, (), z, 0.9, 0.4)[0])
            for solver, tableau in TWINS.items()
        ]  # fmt: skip

    for theirs, ours in pairs(jnp.asarray(Z)):
        np.testing.assert_allclose(theirs, ours, rtol=1e-13)


@pytest.mark.parametrize(
    ("name", "schedule", "t"),
    [
        ("t", Cosine(), 1.0),
        ("straight", Cosine(), 1.0),
        ("angle", Flow(), 1.0),
        ("noise", VE(sigma_max=20.0), 1.0),
        ("log-SNR", VP(), 0.7),
        ("data", Cosine(), 1.0),
    ],
    ids=str,
)
def test_from_noise_to_data_an_adaptive_solver_finds_the_exact_flow(name, schedule, t):
    """At sigma/alpha = r^(1/3) the last step of DDIM misses by r^(2/3)/(2 v), v >= 0.30: by 6e-11 of z."""
    sampler = adapters.ode(
        seen(schedule), schedule, diffrax.Tsit5(), coordinate=COORDINATES[name], controller=within(1e-10)
    )
    np.testing.assert_allclose(run(sampler, (t, 0.0)), flow(schedule, t, 0.0), rtol=1e-9)


def test_of_a_mixture_it_finds_what_many_small_steps_find():
    world = exact.Mixture(np.array([0.25, 0.75]), np.array([[-1.0, 0.5], [1.0, 0.0]]), 0.1 * np.stack([np.eye(2)] * 2))
    model, ends = exact.denoiser(world, VP()), np.array([1.0, 0.01])
    fine = run(samplers.runge_kutta(model, VP(), coordinate=STRAIGHT), np.linspace(*ends, 801))
    found = run(adapters.ode(model, VP(), diffrax.Dopri5(), controller=within(1e-9)), ends)
    np.testing.assert_allclose(found, fine, rtol=1e-7)


def test_a_tolerance_is_what_the_error_falls_with():
    errors = [
        np.max(np.abs(run(adapters.ode(seen(VP()), VP(), diffrax.Bosh3(), controller=within(10.0**-n)), (0.9, 0.1))
                      - flow(VP(), 0.9, 0.1)))
        for n in (3, 6)
    ]  # fmt: skip
    assert 100 * errors[1] < errors[0] < 1e-2


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("solver", ["Bosh3", "ReversibleHeun", "Kvaerno3"])
def test_equal_steps_within_a_step_are_those_of_a_finer_grid(solver, steps):
    """But for what a solver remembers of its last step, which ReversibleHeun alone does."""
    options = {"root_finder": optimistix.Newton(rtol=1e-12, atol=1e-12)} if solver == "Kvaerno3" else {}
    make = lambda steps: adapters.ode(  # noqa: E731
        denoise, Cosine(), getattr(diffrax, solver)(**options), coordinate=None, steps=steps
    )
    once, finer = run(make(steps), (0.9, 0.6)), run(make(1), np.linspace(0.9, 0.6, steps + 1))
    remembers = solver == "ReversibleHeun" and steps > 1
    np.testing.assert_allclose(once, finer, rtol=1e-3 if remembers else 1e-11)
    assert not remembers or np.max(np.abs(once - finer)) > 1e-8


@pytest.mark.parametrize(
    ("options", "derivative"),
    [
        ({"steps": 24}, jax.jacfwd),
        ({"steps": 24}, jax.jacrev),
        ({"controller": within(1e-8)}, jax.jacrev),
        ({"controller": within(1e-8), "adjoint": diffrax.ForwardMode()}, jax.jacfwd),
    ],
    ids=["steps, forwards", "steps, backwards", "controller, backwards", "controller, forwards"],
)
def test_it_has_the_derivatives_of_the_flow(options, derivative):
    """By z, and by what the denoiser holds; from alpha = 0 to sigma = 0."""

    def end(z, mean, solved):
        world = exact.Gaussian(mean, WORLD.cov)
        if not solved:
            return exact.flow_map(world, z, at(Cosine(), 1.0), at(Cosine(), 0.0))
        sampler = adapters.ode(exact.denoiser(world, Cosine()), Cosine(), diffrax.Tsit5(), **options)
        return sampler.step(None, (), z, jnp.asarray(1.0), jnp.asarray(0.0))[0]

    found, known = (
        jax.jit(derivative(lambda *case, solved=solved: end(*case, solved), argnums=(0, 1)))(Z, WORLD.mean)
        for solved in (True, False)
    )
    np.testing.assert_allclose(found, known, atol=1e-7)


def test_a_batch_is_solved_row_by_row_to_its_own_length():
    sampler = adapters.ode(seen(VP()), VP(), diffrax.Tsit5(), controller=within(1e-8))
    batch = jnp.stack([jnp.asarray(Z), 30 * jnp.asarray(Z)])
    found = jax.vmap(lambda z: run(sampler, (1.0, 0.0), z))(batch)
    np.testing.assert_allclose(found, jax.vmap(lambda z: flow(VP(), 1.0, 0.0, z))(batch), rtol=1e-6)


def test_an_implicit_solver_takes_the_tolerances_of_its_controller():
    sampler = adapters.ode(seen(VP()), VP(), diffrax.Kvaerno3(), controller=within(1e-7))
    np.testing.assert_allclose(run(sampler, (0.9, 0.2)), flow(VP(), 0.9, 0.2), rtol=1e-5)


# The end at sigma = 0


@pytest.mark.parametrize(
    "sampler",
    [
        lambda **end: adapters.ode(denoise, Cosine(), diffrax.Heun(), **end),
        lambda **end: adapters.sde(denoise, Cosine(), diffrax.Heun(), coordinate=LOG_SNR, **end),
    ],
    ids=["ode", "sde"],
)
def test_the_end_is_the_prediction_at_the_log_snr_that_is_asked_for(sampler):
    near = clocks.time_at(Cosine(), jnp.asarray(8.0))
    before = run(sampler(), jnp.stack([jnp.asarray(0.7), near]))
    np.testing.assert_allclose(run(sampler(log_snr_max=8.0), (0.7, 0.0)), denoise(before, near), rtol=1e-12)


def test_a_step_that_begins_beyond_it_is_that_of_ddim():
    begun = float(clocks.time_at(Cosine(), jnp.asarray(9.0)))
    found = run(adapters.ode(denoise, Cosine(), diffrax.Heun(), log_snr_max=8.0), (begun, 0.0))
    np.testing.assert_allclose(found, run(samplers.ddim(denoise, Cosine()), (begun, 0.0)), rtol=1e-12)


# The reverse SDE


@pytest.mark.parametrize("eta", [0.6, lambda t: 1 - t / 2], ids=["number", "function"])
@pytest.mark.parametrize("schedule", [VP(), Cosine()], ids=str)
def test_in_t_a_step_of_euler_is_that_of_euler_maruyama(schedule, eta):
    theirs = adapters.sde(denoise, schedule, diffrax.Euler(), eta=eta, coordinate=None)
    ours = samplers.euler_maruyama(denoise, schedule, eta=eta)
    np.testing.assert_allclose(run(theirs, TIMES), run(ours, TIMES), rtol=1e-13)


@pytest.mark.parametrize("name", COORDINATES)
def test_without_noise_it_is_the_flow(name):
    coordinate = COORDINATES[name]
    quiet = adapters.sde(denoise, Cosine(), diffrax.Midpoint(), eta=0.0, coordinate=coordinate)
    plain = adapters.ode(denoise, Cosine(), diffrax.Midpoint(), coordinate=coordinate)
    np.testing.assert_allclose(run(quiet, TIMES), run(plain, TIMES), rtol=1e-13)


@pytest.mark.parametrize("name", ["t", "straight", "data"])
def test_along_a_coordinate_the_marginals_are_kept(name):
    """To weak order two by SRA1 on additive noise: from 16 steps to 32 the law comes four times as near."""
    start, known = (exact.marginal(WORLD, at(Cosine(), t)) for t in (0.8, 0.4))
    sampler = adapters.sde(seen(Cosine()), Cosine(), diffrax.SRA1(), eta=0.7, coordinate=COORDINATES[name])
    errors = []
    for n in (16, 32):
        mean, cov = samplers.law(sampler, start.mean, start.cov, jnp.linspace(0.8, 0.4, n + 1))
        errors.append(max(np.max(np.abs(mean - known.mean)), np.max(np.abs(cov - known.cov))))
    assert errors[1] < 2e-3 and errors[0] / errors[1] > 3.5


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_short_step_lets_in_the_noise_of_the_forward_process(name):
    """Of variance g^2 h = -sigma^2 lambda' h to first order, whatever the solver; areas where it asks for them."""
    sampler = adapters.sde(denoise, Cosine(), getattr(diffrax, name)(), coordinate=None)
    t, h = 0.6, 1e-4
    gain = jax.jit(jax.jacfwd(lambda noise: sampler.step(noise, (), jnp.asarray(Z), jnp.asarray(t), jnp.asarray(t - h))[0]))(
        jnp.zeros((sampler.noises, 2)))  # fmt: skip
    covariance = jnp.einsum("iab,jab->ij", gain, gain, precision="highest")
    p = at(Cosine(), jnp.asarray(t))
    np.testing.assert_allclose(covariance, -(p.sigma**2) * p.log_snr_dot * h * np.eye(2), rtol=2e-3, atol=1e-9)
    assert sampler.noises == (2 if name in ("SEA", "ShARK", "SlowRK", "SPaRK", "SRA1") else 1)


def test_steps_within_a_step_have_their_own_noise():
    """Two equal steps from 0.8 to 0.6 and on to 0.4, of which the first alone sees the first rows."""
    make = lambda steps: adapters.sde(denoise, Cosine(), diffrax.SRA1(), coordinate=None, steps=steps)  # noqa: E731
    noise = jax.random.normal(KEY, (4, 2))
    middle = make(1).step(noise[:2], (), jnp.asarray(Z), jnp.asarray(0.8), jnp.asarray(0.6))[0]
    end = make(1).step(noise[2:], (), middle, jnp.asarray(0.6), jnp.asarray(0.4))[0]
    assert make(2).noises == 4
    both = make(2).step(noise, (), jnp.asarray(Z), jnp.asarray(0.8), jnp.asarray(0.4))[0]
    np.testing.assert_allclose(both, end, rtol=1e-13)


def test_increments_and_areas_have_the_law_of_brownian_motion():
    """H = int B/h and K = int B (h/2 - r)/h^2 of the bridge B, whose covariance min(r, q) - r q/h is summed over midpoints."""
    h, n = 0.3, 600
    r = h * (np.arange(n) + 0.5) / n
    kernel = np.minimum(r[:, None], r[None, :]) - r[:, None] * r[None, :] / h
    weights = np.stack([np.ones(n) / n, (h / 2 - r) / h / n])
    rows = jax.jacfwd(lambda noise: _parts(adapters._Increments(noise).evaluate(-0.8, -0.8 + h, use_levy=True)))(
        jnp.zeros(3)
    )
    covariance = np.asarray(rows) @ np.asarray(rows).T
    np.testing.assert_allclose(covariance[1:, 1:], weights @ kernel @ weights.T, rtol=1e-4, atol=1e-12)
    np.testing.assert_allclose(covariance[0], [h, 0, 0], rtol=1e-13, atol=1e-15)
    alone = adapters._Increments(jnp.ones(3)).evaluate(-0.8, -0.8 + h)
    np.testing.assert_allclose(alone, np.sqrt(h), rtol=1e-13)


def _parts(increment):
    return jnp.stack([increment.W, increment.H, increment.K])


def test_a_run_is_a_function_of_its_key():
    sampler = adapters.sde(denoise, Cosine(), diffrax.ShARK(), coordinate=LOG_SNR)
    first, again, other = (run(sampler, TIMES, key=jax.random.key(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert np.min(np.abs(first - other)) > 0.01


# What any sampler owes

METHODS = {
    "heun": lambda model, schedule: adapters.ode(model, schedule, diffrax.Heun(), coordinate=ANGLE),
    "euler": lambda model, schedule: adapters.ode(model, schedule, diffrax.Euler()),
    "tsit5": lambda model, schedule: adapters.ode(model, schedule, diffrax.Tsit5(), controller=within(1e-4)),
    "sra1": lambda model, schedule: adapters.sde(model, schedule, diffrax.SRA1(), coordinate=LOG_SNR),
}


@pytest.mark.parametrize("name", ["heun", "tsit5", "sra1"])
def test_it_can_be_run_as_any_sampler_can(name):
    found = samplers.conform(METHODS[name])
    assert found, str(found)
    assert found.opens == (name != "sra1")


@pytest.mark.parametrize(
    ("name", "theorem"),
    [
        ("heun", "one-step-keeps-the-marginals"),
        ("heun", "a-run-is-of-second-order"),
        ("euler", "a-point-keeps-its-law"),
        ("sra1", "a-run-is-of-second-order"),
    ],
)
def test_it_owes_what_any_sampler_owes(name, theorem):
    verdict = theorems.get(theorem).check(sampler=METHODS[name])
    assert verdict, verdict.reason


# Where it fails


@pytest.mark.parametrize(
    ("sampler", "t", "message"),
    [
        (lambda: adapters.ode(denoise, VP(), diffrax.Tsit5(), controller=within(1e-10), max_steps=3), 0.9, "did not reach s"),
        (lambda: adapters.ode(denoise, Flow(), diffrax.Heun(), coordinate=NOISE), 1.0, "k must be finite"),
        (lambda: adapters.ode(denoise, Flow(), diffrax.Tsit5(), coordinate=LOG_SNR, controller=within(1e-3)), 1.0, "k must be"),
        (lambda: adapters.sde(denoise, Flow(), diffrax.SRA1()), 1.0, "log-SNR where it begins with noise"),
    ],
    ids=["max_steps", "noise", "log-SNR", "sde"],
)  # fmt: skip
def test_what_cannot_be_had_is_said_where_it_is_known_and_nan_under_jit(sampler, t, message):
    with pytest.raises(ValueError, match=message):
        step(sampler(), t, 0.2)
    assert np.all(np.isnan(run(sampler(), (t, 0.2))))


def test_an_implicit_solver_that_does_not_converge_gives_nan():
    never = diffrax.VeryChord(rtol=1e-16, atol=1e-16, norm=optimistix.max_norm)
    assert np.all(np.isnan(run(adapters.ode(denoise, VP(), diffrax.Kvaerno3(root_finder=never), steps=2), (0.9, 0.2))))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: adapters.ode(denoise, VP(), "tsit5"), TypeError, "one of diffrax's, such as diffrax.Tsit5(), got 'tsit5'"),
        (lambda: adapters.sde(denoise, VP(), diffrax.SRA1), TypeError, "one of diffrax's, .*got <class"),
        (lambda: adapters.ode(denoise, VP(), diffrax.SRA1()), ValueError, "must be for an ODE of one term, got solver=SRA1"),
        (lambda: adapters.ode(denoise, VP(), diffrax.KenCarp3()), ValueError, "must be for an ODE of one term"),
        (lambda: adapters.ode(denoise, VP(), diffrax.Kvaerno3()), ValueError, "needs a controller, or .*Kvaerno3"),
        (lambda: adapters.ode(denoise, VP(), diffrax.Heun(), steps=0), ValueError, "steps must be at least 1, got steps=0"),
        (lambda: adapters.ode(denoise, VP(), diffrax.Heun(), steps=2, controller=within(0.1)), ValueError, "steps are equal"),
        (lambda: adapters.ode(denoise, VP(), diffrax.Heun(), max_steps=0), ValueError, "max_steps must be at least 1"),
        (lambda: adapters.ode(denoise, VP(), diffrax.Heun(), adjoint=diffrax.BacksolveAdjoint()), ValueError, "must see what"),
        (lambda: adapters.sde(denoise, VP(), diffrax.Tsit5()), ValueError, "must be for an Ito or a Stratonovich .*Tsit5"),
        (lambda: adapters.sde(denoise, VP(), diffrax.HalfSolver(diffrax.Heun())), ValueError, "must be for an Ito"),
        (lambda: adapters.sde(denoise, VP(), diffrax.ALIGN(0.1)), ValueError, "must be for an Ito"),
        (lambda: adapters.sde(denoise, VP(), diffrax.Heun(), eta=-1.0), ValueError, "eta must not be negative, got eta=-1.0"),
        (lambda: adapters.sde(denoise, VP(), diffrax.Heun(), steps=0), ValueError, "steps must be at least 1"),
        (lambda: step(adapters.ode(denoise, VP(), diffrax.Heun()), 0.2, 0.5), ValueError, "s must not be later than t, got t=0.2"),
        (lambda: run(adapters.ode(denoise, VP(), diffrax.Heun()), (0.2, 0.5)), ValueError, "must be a decreasing sequence"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_a_sentence(make, error, message):
    with pytest.raises(error, match=message.replace("(", r"\(").replace(")", r"\)")):
        make()


def test_without_diffrax_it_says_what_to_install():
    code = "import sys; sys.modules['diffrax'] = None\nimport diffeq_gen\ndiffeq_gen.samplers.ddim\ndiffeq_gen.adapters"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False).stderr
    assert shown.strip().endswith("ImportError: diffeq_gen.adapters needs diffrax: pip install 'diffeq-gen[solvers]'")


@pytest.mark.parametrize("solver", ["Tsit5", "SRA1"])
def test_it_keeps_the_dtype_of_z(solver, precision):
    build, options = (adapters.sde, {}) if solver == "SRA1" else (adapters.ode, {"controller": within(1e-4)})
    sampler, z = build(denoise, VP(), getattr(diffrax, solver)(), **options), np.asarray(Z, precision)
    found = run(sampler, (0.9, 0.5, 0.0), z)
    assert found.dtype == precision and np.all(np.isfinite(found))


def test_a_solver_whose_constants_are_of_float64_keeps_float32():
    """ItoMilstein mixes the two where float64 is enabled, which standard promotion alone lets it."""
    with jax.numpy_dtype_promotion("standard"):
        sampler = adapters.sde(denoise, VP(), diffrax.ItoMilstein())
        assert run(sampler, (0.9, 0.5), np.asarray(Z, "float32")).dtype == "float32"
