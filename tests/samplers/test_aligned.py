"""A grid fitted to a solver: never worse, best where the best is known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffeq_gen import clocks, exact, grids
from diffeq_gen.coordinates import ANGLE, LOG_SNR
from diffeq_gen.samplers import aligned, ddim, ddpm, runge_kutta, trajectory
from diffeq_gen.schedules import Cosine, Flow

Z = np.array([[0.7, -1.2], [-1.3, 0.4], [0.2, 2.0]])


@pytest.fixture(scope="module", autouse=True)
def sharp():
    """float64, in which the bounds below are sharp; a test that asks for `precision` has its own."""
    with jax.enable_x64(True):
        yield


def test_for_ddim_on_the_normal_law_it_finds_even_angles():
    """Whose product of cosines is largest: `ddim-on-a-gaussian-is-best-in-the-angle`."""
    start = clocks.uniform_log_snr(Cosine(), 4, log_snr_min=-6.0, log_snr_max=4.0)
    denoise = lambda z, t: Cosine()(t)[0] * z  # noqa: E731
    found = aligned(ddim, denoise, Cosine(), jnp.asarray(Z), start)
    best = grids.even(Cosine(), 4, coordinate=ANGLE, first=start[0], last=start[-1])
    np.testing.assert_allclose(found.times, best, atol=1e-3)
    assert float(found.after) < 0.9 * float(found.before)
    np.testing.assert_array_equal(found.times[jnp.array([0, -1])], start[jnp.array([0, -1])])


def by_optax(denoise, schedule, z, start, iterations, rate, reference):
    """(times, error before, error after): the same descent by optax, over whole trajectories."""
    keys, lambdas = jax.random.key(0), jax.vmap(lambda t: clocks.log_snr(schedule, t))(start)
    run = lambda sampler, grid: jax.vmap(lambda z: trajectory(keys, sampler, z, grid)[-1])(z)  # noqa: E731
    known = run(runge_kutta(denoise, schedule, coordinate=LOG_SNR), clocks.uniform_log_snr(
        schedule, reference, log_snr_min=lambdas[0], log_snr_max=lambdas[-1]))  # fmt: skip

    def loss(gaps):
        grid = grids.spaced(schedule, gaps, start[0], start[-1])
        return jnp.log(jnp.mean(jnp.square(run(ddim(denoise, schedule), grid) - known)))

    falling = lambda count: rate * (1 - (count + 1).astype(z.dtype) / (iterations + 1))  # noqa: E731
    adam = optax.adam(falling, b1=0.9, b2=0.99, eps=float(jnp.finfo(z.dtype).eps))

    def step(carry, _):
        gaps, state = carry
        value, slope = jax.value_and_grad(loss)(gaps)
        move, state = adam.update(slope, state)
        return (optax.apply_updates(gaps, move), state), (gaps, value)

    gaps = jnp.log(jnp.diff(lambdas))
    _, (seen, values) = jax.jit(lambda gaps: jax.lax.scan(step, (gaps, adam.init(gaps)), None, iterations))(gaps)
    i = int(jnp.argmin(values))
    return grids.spaced(schedule, seen[i], start[0], start[-1]), jnp.exp(values[0] / 2), jnp.exp(values[i] / 2)


@pytest.mark.parametrize(
    ("options", "said", "rtol"),
    [
        ({}, {"iterations": 300, "rate": 0.05, "reference": 256}, 1e-7),
        ({"iterations": 7}, {"iterations": 7, "rate": 0.05, "reference": 256}, 1e-10),
        (*({"iterations": 4, "rate": 0.1, "reference": 7},) * 2, 1e-10),
    ],
    ids=["nothing said", "few", "fewer"],
)
def test_it_descends_as_adam_does(options, said, rtol):
    """Near the end of a long descent, where slopes vanish, Adam divides what rounding left of them by its size."""
    world = exact.Gaussian(np.array([1.5, -0.25]), np.array([[0.5, 0.2], [0.2, 0.3]]))
    schedule = Cosine()
    start, denoise = clocks.uniform(4, first=0.9, last=0.05), exact.denoiser(world, schedule)
    found = aligned(ddim, denoise, schedule, jnp.asarray(Z), start, **options)
    with jax.numpy_dtype_promotion("standard"):  # optax counts in int32
        times, before, after = by_optax(denoise, schedule, jnp.asarray(Z), start, **said)
    np.testing.assert_allclose(found.times, times, rtol=rtol)
    np.testing.assert_allclose([found.before, found.after], [before, after], rtol=rtol)


def test_the_reference_has_256_steps_where_nothing_is_said():
    denoise = exact.denoiser(exact.Gaussian(np.array([1.5, -0.25]), np.array([[0.5, 0.2], [0.2, 0.3]])), Cosine())
    start = clocks.uniform(2, first=0.9, last=0.05)
    errors = [float(aligned(ddim, denoise, Cosine(), jnp.asarray(Z), start, iterations=1, **said).before)
              for said in ({}, {"reference": 256}, {"reference": 128})]  # fmt: skip
    assert errors[0] == errors[1] != errors[2]


def test_one_iteration_and_one_step_of_reference_are_enough():
    """Of reference one step of the rule of four stages: measured against that step itself, it says no error."""
    schedule, start = Cosine(), clocks.uniform(1, first=0.9, last=0.3)
    denoise = lambda z, t: jnp.tanh(z)  # noqa: E731
    found = aligned(
        lambda f, s: runge_kutta(f, s, coordinate=LOG_SNR), denoise, schedule, jnp.asarray(Z), start,
        iterations=1, reference=1,
    )  # fmt: skip
    assert float(found.before) == float(found.after) == 0


def test_it_is_never_worse_however_wild_the_descent():
    with jax.enable_x64(False):
        world = exact.Mixture(
            jnp.array([0.25, 0.75]), jnp.array([[-1.0, 0.5], [1.0, 0.0]]), 0.1 * jnp.stack([jnp.eye(2)] * 2)
        )
        start = clocks.karras(Flow(), 3, sigma_min=0.05, sigma_max=20.0)
        for rate, share in ((0.1, 0.99), (1e3, 1.0)):
            options = {"iterations": 20, "rate": rate, "reference": 32}
            found = aligned(ddim, exact.denoiser(world, Flow()), Flow(), jnp.asarray(Z, "float32"), start, **options)
            assert found.times.dtype == "float32" and bool(jnp.all(jnp.diff(found.times) < 0))
            assert float(found.after) <= share * float(found.before)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"made": ddpm}, "the sampler must be deterministic, got noises=1"),
        ({"rate": 0.0}, "rate must be positive, got rate=0.0"),
        ({"iterations": 0}, "iterations and reference must be positive, got iterations=0"),
        ({"times": jnp.array([1.0, 0.5])}, "log-SNR must rise along the times, and be finite at both ends"),
        ({"times": jnp.array([0.4, 0.5])}, "log-SNR must rise along the times"),
        ({"times": jnp.array([0.9, 0.3, 0.5])}, "log-SNR must rise along the times"),
        ({"times": jnp.array([0.9, 0.5, 0.5])}, "log-SNR must rise along the times"),
        ({"times": jnp.array([0.9, 0.5, 0.0])}, "log-SNR must rise along the times, and be finite at both ends"),
        ({"reference": 0}, "iterations and reference must be positive, got iterations=300, reference=0"),
        ({"reference": 0.75}, "iterations and reference must be positive, got iterations=300, reference=0.75"),
        ({"iterations": 0.75}, "iterations and reference must be positive, got iterations=0.75"),
    ],
)
def test_bad_input_is_named(options, said):
    given = {"made": ddim, "times": jnp.array([0.9, 0.5]), **options}
    made, times = given.pop("made"), given.pop("times")
    with pytest.raises(ValueError, match=said):
        aligned(made, lambda z, t: z, Cosine(), jnp.asarray(Z), times, **given)
