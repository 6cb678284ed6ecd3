"""Euler-Maruyama: without noise it is Euler, and with noise a short step lets in what the forward process let out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen.paths import transition
from diffeq_gen.samplers import euler, euler_maruyama
from diffeq_gen.schedules import VE, VP, Cosine, Flow, at
from tests.samplers.rows import reads_its_first_rows

Z = np.array([0.3, 2.0])


@pytest.fixture(scope="module", autouse=True)
def sharp():
    """float64, in which the bounds below are sharp; a test that asks for `precision` has its own."""
    with jax.enable_x64(True):
        yield


def denoise(z, t):
    return jnp.tanh(z) + 1.5


def step(sampler, t, s, noise=0.0, dtype="float64"):
    noise = jnp.full((1, 2), noise, dtype)
    return sampler.step(noise, (), jnp.asarray(Z, dtype), jnp.asarray(t, dtype), jnp.asarray(s, dtype))[0]


def test_one_row_of_noise_is_asked_for():
    assert euler_maruyama(denoise, Flow()).noises == euler_maruyama(denoise, Flow(), eta=0.0).noises == 1


def test_the_noise_is_the_first_row():
    reads_its_first_rows(euler_maruyama(denoise, Flow()))


@pytest.mark.parametrize(
    ("schedule", "t", "s", "said"),
    [
        (Flow(), 1.0, 0.5, r"alpha and sigma must be positive.*, got alpha=0.0, sigma=1.0, t=1.0"),
        (Flow(), 0.0, 0.5, r"alpha and sigma must be positive.*, got alpha=1.0, sigma=0.0, t=0.0"),
    ],
)
def test_an_end_where_g_has_no_value_is_named(schedule, t, s, said):
    with pytest.raises(ValueError, match=said):
        step(euler_maruyama(denoise, schedule), t, s)


def gain(sampler, t, s):
    return (step(sampler, t, s, 1.0) - step(sampler, t, s))[0]


@pytest.mark.parametrize("schedule", [Flow(), Cosine(), VP(), VE()], ids=repr)
def test_eta_zero_is_euler_whatever_the_noise(schedule):
    plain = euler(denoise, schedule).step(None, (), jnp.asarray(Z), jnp.asarray(0.6), jnp.asarray(0.5))[0]
    for eta in (0.0, 0, lambda t: 0.0, lambda t: jnp.zeros_like(t)):
        np.testing.assert_allclose(
            step(euler_maruyama(denoise, schedule, eta=eta), 0.6, 0.5, noise=9.0), plain, rtol=1e-14
        )


@pytest.mark.parametrize("schedule", [Flow(), Cosine(), VP(), VE()], ids=repr)
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_a_short_step_lets_in_the_noise_of_the_forward_transition(schedule, eta):
    """To first order, whatever the state: the ratio of the two differs from eta by as much as the step is long."""
    h = 1e-4
    _, std = transition(at(schedule, jnp.asarray(0.6)), at(schedule, jnp.asarray(0.6 - h)))
    assert abs(float(gain(euler_maruyama(denoise, schedule, eta=eta), 0.6, 0.6 - h) / std) / eta - 1) < 20 * h


def test_what_is_left_out_is_andersons_reversal():
    silent, spoken = euler_maruyama(denoise, VP()), euler_maruyama(denoise, VP(), eta=1.0)
    np.testing.assert_array_equal(step(silent, 0.6, 0.5, 2.0), step(spoken, 0.6, 0.5, 2.0))


def test_noise_grows_as_the_root_of_the_step():
    sampler = euler_maruyama(denoise, Cosine())
    np.testing.assert_allclose(gain(sampler, 0.8, 0.4) / gain(sampler, 0.8, 0.7), 2.0, rtol=1e-12)


def test_eta_as_a_function_is_read_at_the_time_it_starts_from():
    falling, level = euler_maruyama(denoise, Cosine(), eta=lambda t: 2 * t), euler_maruyama(denoise, Cosine(), eta=1.2)
    np.testing.assert_allclose(step(falling, 0.6, 0.5, 1.0), step(level, 0.6, 0.5, 1.0), rtol=1e-14)


def test_it_has_no_value_at_pure_noise_as_it_says():
    """Said where the time is known; under `jit` it is nan."""
    sampler = euler_maruyama(denoise, Flow())
    with pytest.raises(
        ValueError, match="alpha and sigma must be positive where a step of euler_maruyama begins, got alpha=0.0"
    ):
        step(sampler, 1.0, 0.5, 1.0)
    assert not np.any(np.isfinite(jax.jit(lambda t: step(sampler, t, 0.5, 1.0))(1.0)))


@pytest.mark.parametrize("t", [0.001, 0.5, 0.999])
def test_a_step_of_one_ulp_is_finite_in_both_precisions(t, precision):
    t = np.asarray(t, precision)
    s = np.nextafter(t, np.asarray(0, precision))
    moved = step(euler_maruyama(denoise, Flow()), t, s, 1.0, precision)
    assert moved.dtype == precision and np.all(np.isfinite(moved))
    assert np.all(np.abs(moved - Z) < 1e3 * np.sqrt(np.finfo(precision).eps))
