"""Samplers made of samplers: who takes which step, and who sees it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen import clocks
from diffeq_gen.samplers import ddim, ddpm, denoised, multistep, sample, singlestep, started, trajectory
from diffeq_gen.schedules import Cosine
from diffeq_gen.types import Sampler

KEY = jax.random.key(0)


def denoise(z, t):
    return jnp.tanh(z) * (1 - t)


@pytest.fixture(autouse=True)
def as_users_run_it():
    with jax.enable_x64(False):
        yield


@pytest.mark.parametrize("steps", [1, 2])
def test_the_starter_takes_the_first_steps_and_the_other_the_rest(steps):
    adding = lambda value: Sampler(lambda z: (), lambda noise, memory, z, t, s: (z + value, memory))  # noqa: E731
    states = trajectory(KEY, started(adding(1.0), adding(10.0), steps=steps), jnp.zeros(2), clocks.uniform(4))
    np.testing.assert_array_equal(states[:, 0], np.cumsum([0.0, *[10.0] * steps, *[1.0] * (4 - steps)]))


def test_what_it_starts_sees_the_steps_that_it_did_not_take():
    schedule, z = Cosine(), jnp.array([0.7, -1.2])
    times = clocks.uniform(2, first=0.9, last=0.3)
    multi, single = multistep(denoise, schedule), singlestep(denoise, schedule)
    left = sample(KEY, started(multi, single, steps=1), z, times)
    middle = single.step(None, (), z, times[0], times[1])[0]
    _, past = multi.step(None, multi.init(z), z, times[0], times[1])
    np.testing.assert_allclose(left, multi.step(None, past, middle, times[1], times[2])[0], rtol=1e-6)


def test_each_is_given_as_much_noise_as_it_asks_for():
    schedule, z = Cosine(), jnp.array([0.7, -1.2])
    times = clocks.uniform(2, first=0.9, last=0.3)
    both = started(ddim(denoise, schedule), ddpm(denoise, schedule), steps=2)
    assert both.noises == 1 and started(ddpm(denoise, schedule), ddim(denoise, schedule), steps=1).noises == 1
    np.testing.assert_allclose(sample(KEY, both, z, times), sample(KEY, ddpm(denoise, schedule), z, times), rtol=1e-6)


def test_no_steps_are_no_start():
    with pytest.raises(ValueError, match="steps must be at least 1, got steps=0"):
        started(None, None, steps=0)


def test_the_last_state_alone_is_denoised_with_the_last_of_a_float64_grid_too():
    schedule, z, times = Cosine(), jnp.array([0.7, -1.2]), clocks.uniform(7, first=0.9, last=0.1)
    states = trajectory(KEY, ddim(denoise, schedule), z, times)
    for last in (times[-1], 0.1, np.float64(0.1)):
        ended = trajectory(KEY, denoised(ddim(denoise, schedule), denoise, last=last), z, times)
        np.testing.assert_allclose(ended[:-1], states[:-1], rtol=1e-6)
        np.testing.assert_allclose(ended[-1], denoise(states[-1], times[-1]), rtol=1e-6)
    slope = jax.jacrev(lambda z: sample(KEY, denoised(ddim(denoise, schedule), denoise, last=0.1), z, times))(z)
    assert bool(jnp.all(jnp.isfinite(slope)))
    with pytest.raises(ValueError, match=r"last must lie in \[0, 1\], got last=1.5"):
        denoised(None, None, last=1.5)
