"""Euler and Heun of the probability flow: exact where the flow is straight, of their order where it is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen import clocks, exact
from diffeq_gen.samplers import euler, heun, sample
from diffeq_gen.schedules import Cosine, Flow, at

KEY = jax.random.key(0)
X0 = np.array([1.5, -0.25])
Z = np.array([0.3, 2.0])


@pytest.fixture(scope="module", autouse=True)
def sharp():
    """float64, in which the bounds below are sharp; a test that asks for `precision` has its own."""
    with jax.enable_x64(True):
        yield


def known(z, t):
    return jnp.asarray(X0, z.dtype)


def step(sampler, z, t, s):
    dtype = jnp.asarray(1.0).dtype
    return sampler.step(None, (), jnp.asarray(z, dtype), jnp.asarray(t, dtype), jnp.asarray(s, dtype))[0]


@pytest.mark.parametrize("method", [euler, heun])
@pytest.mark.parametrize(("t", "s"), [(1.0, 0.5), (0.9, 0.0), (1.0, 0.0), (0.5, 0.499)])
def test_the_straight_flow_of_a_point_is_exact_in_one_step(method, t, s):
    """Also from pure noise, and to pure data, where there is no velocity to evaluate."""
    eps = (Z - (1 - t) * X0) / t
    np.testing.assert_allclose(step(method(known, Flow()), Z, t, s), (1 - s) * X0 + s * eps, rtol=1e-13, atol=1e-13)


def test_heun_ends_as_euler_where_sigma_is_zero():
    for schedule in (Flow(), Cosine()):
        one, other = (step(method(known, schedule), Z, 0.4, 0.0) for method in (euler, heun))
        np.testing.assert_array_equal(one, other)
    one, other = (step(method(known, Cosine()), Z, 0.4, 0.1) for method in (euler, heun))
    assert np.all(np.abs(one - other) > 1e-3)


@pytest.mark.parametrize(("method", "seen"), [(euler, [0.8]), (heun, [0.8, 0.5])])
def test_the_model_is_asked_at_the_ends_of_the_step(method, seen):
    asked = []

    def denoise(z, t):
        asked.append(float(t))
        return known(z, t)

    step(method(denoise, Cosine()), Z, 0.8, 0.5)
    assert asked == seen


@pytest.mark.parametrize(("method", "order"), [(euler, 1), (heun, 2)])
def test_halving_the_step_gains_the_order(method, order):
    world, schedule = exact.Gaussian(jnp.asarray(X0), jnp.asarray([[0.5, 0.2], [0.2, 0.3]])), Cosine()
    first, last = jnp.asarray(0.95), jnp.asarray(0.1)
    truth = np.asarray(exact.flow_map(world, jnp.asarray(Z), at(schedule, first), at(schedule, last)))
    sampler = method(exact.denoiser(world, schedule), schedule)
    errors = [
        np.linalg.norm(sample(KEY, sampler, jnp.asarray(Z), clocks.uniform(n, first=0.95, last=0.1)) - truth)
        for n in (64, 128)
    ]
    assert abs(np.log2(errors[0] / errors[1]) - order) < 0.15


def test_precision_is_kept(precision):
    for method in (euler, heun):
        moved = method(known, Cosine()).step(
            None, (), jnp.asarray(Z, precision), jnp.asarray(0.5, precision), jnp.asarray(0.4, precision)
        )[0]
        assert moved.dtype == precision
