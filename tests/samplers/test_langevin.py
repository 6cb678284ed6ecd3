"""Langevin steps: what is accepted, what stays where it is, what rests where it should."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen import exact
from diffeq_gen.samplers import corrected, ddim, langevin, sample
from diffeq_gen.samplers.langevin import langevin_step
from diffeq_gen.schedules import VP, Cosine, Flow, at
from tests.samplers.rows import reads_its_first_rows

KEY = jax.random.key(0)
WORLD = exact.Mixture(np.array([0.25, 0.75]), np.array([[-1.0, 0.5], [1.0, 0.0]]), 0.1 * np.stack([np.eye(2)] * 2))
Z = np.array([0.7, -1.2])
SCHEDULE = Cosine()
S = 0.45


@pytest.fixture(scope="module", autouse=True)
def sharp():
    """float64, in which the bounds below are sharp; a test that asks for `precision` has its own."""
    with jax.enable_x64(True):
        yield


def log_prob(z, t):
    return exact.log_prob(WORLD, z, at(SCHEDULE, t))


def step(sampler, noise, z=Z, s=S, dtype="float64"):
    noise = jnp.asarray(noise, dtype)
    return sampler.step(noise, (), jnp.asarray(z, dtype), jnp.asarray(0.9, dtype), jnp.asarray(s, dtype))[0]


@pytest.mark.parametrize("options", [{}, {"snr": 0.2}, {"log_prob": log_prob}], ids=["size", "snr", "adjusted"])
def test_at_pure_data_nothing_moves_and_at_pure_noise_all_is_finite(options, precision):
    sampler = langevin(exact.denoiser(WORLD, SCHEDULE), SCHEDULE, **options)
    noise = np.full((sampler.noises, 2), -0.5)
    np.testing.assert_array_equal(step(sampler, noise, s=0.0, dtype=precision), Z.astype(precision))
    move = jax.jit(
        lambda z, s: (
            step(sampler, noise, z, s, precision),
            jax.jacrev(lambda z: step(sampler, noise, z, s, precision))(z),
        )
    )
    for s in (0.0, 1e-3, S, 1.0):
        moved, slope = move(jnp.asarray(Z, precision), jnp.asarray(s, precision))
        assert moved.dtype == precision and bool(jnp.all(jnp.isfinite(moved))) and bool(jnp.all(jnp.isfinite(slope)))


def test_what_is_left_out_is_what_the_signature_says():
    denoise = exact.denoiser(WORLD, SCHEDULE)
    silent, spoken = langevin(denoise, SCHEDULE), langevin(denoise, SCHEDULE, size=0.1)
    assert silent.noises == 1 and langevin(denoise, SCHEDULE, log_prob=log_prob).noises == 2
    np.testing.assert_array_equal(step(silent, [[0.3, 0.4]]), step(spoken, [[0.3, 0.4]]))


@pytest.mark.parametrize(("eps", "size"), [([1.5, -2.0], 1.2), ([-1.5, 0.25], 0.8), ([2.5, 2.0], 0.5)])
def test_a_proposal_is_taken_with_the_chance_of_hastings_and_no_other(eps, size):
    """The densities of the proposal are those of `jax.scipy`; the uniform number is moved to either side of the chance.

    It is made of the first number of the second row."""
    q = at(SCHEDULE, jnp.asarray(S))
    delta, norm = size * q.sigma**2, jax.scipy.stats.norm.logpdf
    score = lambda z: exact.score(WORLD, z, q)  # noqa: E731
    z, eps = jnp.asarray(Z), jnp.asarray(eps)
    y = langevin_step(score(z), z, eps, delta)
    go, come = (
        jnp.sum(norm(there, here + delta * score(here), jnp.sqrt(2 * delta))) for here, there in ((z, y), (y, z))
    )
    chance = float(jnp.exp(log_prob(y, S) + come - log_prob(z, S) - go))
    sampler = langevin(exact.denoiser(WORLD, SCHEDULE), SCHEDULE, size=size, log_prob=log_prob)
    assert 1e-6 < chance < 1
    for factor, end in ((1 - 1e-6, y), (1 + 1e-6, z)):
        drawn = jax.scipy.special.ndtri(jnp.asarray(chance * factor))
        np.testing.assert_allclose(step(sampler, jnp.stack([eps, drawn * jnp.asarray([1.0, -1.0])])), end, rtol=1e-12)


def test_adjusted_steps_rest_at_the_target_where_plain_ones_do_not():
    """Gaussian of variance V = sigma^2 (data at a point): at size 1.2 plain steps rest at V/(1 - 0.6)."""
    s = jnp.asarray(S)
    q = at(SCHEDULE, s)
    point = lambda z, t: jnp.zeros_like(z)  # noqa: E731
    known = lambda z, t: -jnp.sum(z**2) / (2 * schedule_sigma(t) ** 2)  # noqa: E731
    plain, adjusted = (langevin(point, SCHEDULE, size=1.2, **options) for options in ({}, {"log_prob": known}))

    def chains(sampler):
        def run(key):
            first, rest = jax.random.split(key)
            z = q.sigma * jax.random.normal(first, (1,))
            rows = jax.random.normal(rest, (12, sampler.noises, 1))
            return jax.lax.scan(lambda z, row: (sampler.step(row, (), z, s, s)[0], None), z, rows)[0][0]

        return jax.jit(jax.vmap(run))(jax.random.split(KEY, 40_000)) / q.sigma

    spread = [float(jnp.mean(chains(sampler) ** 2)) for sampler in (plain, adjusted)]
    deviation = np.sqrt(2 / 40_000)  # of a mean of squares of standard normals
    assert abs(spread[1] - 1) < 5 * deviation and abs(spread[0] - 2.5) < 5 * 2.5 * deviation


def schedule_sigma(t):
    return SCHEDULE(t)[1]


def test_annealed_over_a_grid_it_goes_from_noise_to_data():
    """Song & Ermon 2019: ten steps at each of forty levels, and no predictor at all."""
    still = ddim(lambda z, t: z / at(VP(), t).alpha, VP())  # x0_hat = z/alpha: the state is only rescaled
    annealed = corrected(still, langevin(exact.denoiser(WORLD, VP()), VP(), size=0.5), steps=10)
    z = jax.random.normal(KEY, (400, 2))
    times = jnp.linspace(0.95, 0.02, 41)
    ends = jax.vmap(lambda key, z: sample(key, annealed, z, times))(jax.random.split(KEY, 400), z)
    right = np.mean(np.asarray(ends)[:, 0] > 0)
    assert abs(right - 0.75) < 0.15 and np.all(np.isfinite(ends))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": 0.0}, "size must be positive, got size=0.0"),
        ({"snr": -1.0}, "snr must be positive, got snr=-1.0"),
        ({"snr": 0.0}, "snr must be positive, got snr=0.0"),
        ({"snr": 0.1, "log_prob": log_prob}, "log_prob needs size, not snr"),
    ],
)
def test_bad_input_is_named(options, said):
    with pytest.raises(ValueError, match=said):
        langevin(None, Flow(), **options)


@pytest.mark.parametrize("options", [{}, {"snr": 0.2}, {"log_prob": log_prob}], ids=["size", "snr", "adjusted"])
def test_the_noise_is_the_first_rows(options):
    reads_its_first_rows(langevin(exact.denoiser(WORLD, SCHEDULE), SCHEDULE, **options))


def test_the_second_row_decides_and_no_other():
    sampler = langevin(exact.denoiser(WORLD, SCHEDULE), SCHEDULE, size=0.5, log_prob=log_prob)
    eps, never, always = [4.0, -4.0], [8.0, 0.0], [-8.0, 0.0]  # eps leads to an unlikely place
    moved, stayed = step(sampler, [eps, always]), step(sampler, [eps, never])
    assert np.all(np.abs(moved - stayed) > 0.01)
    np.testing.assert_array_equal(step(sampler, [eps, always, never]), moved)
    np.testing.assert_array_equal(step(sampler, [eps, never, always]), stayed)
