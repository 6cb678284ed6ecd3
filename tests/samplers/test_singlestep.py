"""Singlestep solvers: their stages, their ends, their errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen import clocks, exact
from diffeq_gen.samplers import ddim, exponential, sample, singlestep
from diffeq_gen.schedules import Cosine, Flow

KEY = jax.random.key(0)
WORLD = exact.Mixture(np.array([0.25, 0.75]), np.array([[-1.0, 0.5], [1.0, 0.0]]), 0.1 * np.stack([np.eye(2)] * 2))
Z = np.array([0.7, -1.2], np.float32)
CASES = [(order, rule) for order in (2, 3) for rule in ("data", "noise")]


@pytest.fixture(autouse=True)
def as_users_run_it():
    with jax.enable_x64(False):
        yield


@pytest.mark.parametrize(("order", "shares"), [(2, [0.5]), (3, [1 / 3, 2 / 3]), (2, [0.25]), (3, [0.2, 0.9])])
def test_the_stages_lie_where_they_are_said_to_lie_in_log_snr(order, shares):
    asked, schedule = [], Cosine()

    def denoise(z, t):
        asked.append(float(clocks.log_snr(schedule, t)))
        return 0.5 * z

    sampler = singlestep(denoise, schedule, order=order, r1=shares[0], r2=shares[-1] if order == 3 else 2 / 3)
    t, s = jnp.asarray(0.8), jnp.asarray(0.3)
    sampler.step(None, (), jnp.asarray(Z), t, s)
    first, last = (float(clocks.log_snr(schedule, end)) for end in (t, s))
    np.testing.assert_allclose(
        asked, [first, *(first + share * (last - first) for share in shares)], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(("order", "rule"), CASES)
@pytest.mark.parametrize("schedule", [Flow(), Cosine()], ids=str)
def test_from_pure_noise_and_to_pure_data_it_is_ddim(order, rule, schedule):
    denoise = exact.denoiser(WORLD, schedule)
    sampler = singlestep(denoise, schedule, order=order, rule=rule)
    for t, s in ((1.0, 0.5), (0.5, 0.0)):
        args = None, (), jnp.asarray(Z), jnp.asarray(t), jnp.asarray(s)
        np.testing.assert_array_equal(sampler.step(*args)[0], ddim(denoise, schedule).step(*args)[0])
    run = lambda z: sample(KEY, sampler, z, clocks.uniform(6))  # noqa: E731
    assert bool(jnp.all(jnp.isfinite(run(jnp.asarray(Z))))) and bool(
        jnp.all(jnp.isfinite(jax.jacrev(run)(jnp.asarray(Z))))
    )


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("schedule", [Flow(), Cosine()], ids=str)
def test_with_noise_too_it_is_first_order_at_the_ends(order, schedule):
    denoise = exact.denoiser(WORLD, schedule)
    sampler, first = (make(denoise, schedule) for make in (
        lambda f, s: singlestep(f, s, order=order, eta=0.7), lambda f, s: exponential(f, s, eta=0.7)
    ))  # fmt: skip
    assert sampler.noises == order
    move, by_first = (
        jax.jit(lambda rows, t, s, one=one: one.step(rows, (), jnp.asarray(Z), t, s)[0]) for one in (sampler, first)
    )
    for t, s in ((1.0, 0.5), (0.5, 0.0)):
        mean, one = (by_first(row, t, s) for row in (jnp.zeros((1, 2)), jnp.ones((1, 2))))
        np.testing.assert_allclose(move(jnp.zeros((order, 2)), t, s), mean, rtol=1e-5)
        each = jnp.stack([move(jnp.stack([row, row], axis=1), t, s) - mean for row in jnp.eye(order)])
        np.testing.assert_allclose(jnp.sum(each**2, axis=0), (one - mean) ** 2, rtol=1e-4, atol=1e-10)
    run = lambda z: sample(KEY, sampler, z, clocks.uniform(6))  # noqa: E731
    assert bool(jnp.all(jnp.isfinite(jax.jacrev(run)(jnp.asarray(Z)))))


@pytest.mark.parametrize(("order", "rule"), CASES)
def test_it_comes_nearer_than_ddim(order, rule):
    schedule = Cosine()
    denoise = exact.denoiser(WORLD, schedule)
    grid = lambda n: clocks.uniform_log_snr(schedule, n, log_snr_min=-5.0, log_snr_max=5.0)  # noqa: E731
    known = sample(KEY, ddim(denoise, schedule), jnp.asarray(Z), grid(2000))
    errors = [
        float(jnp.max(jnp.abs(sample(KEY, one, jnp.asarray(Z), grid(12)) - known)))
        for one in (singlestep(denoise, schedule, order=order, rule=rule), ddim(denoise, schedule))
    ]
    assert errors[0] < errors[1] / 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"order": 4}, "order must be 2 or 3, got order=4"),
        ({"rule": "slope"}, "rule must be data or noise, got rule='slope'"),
        ({"two_point": "bh2"}, "two_point must be one of exact, midpoint, trapezoid, got two_point='bh2'"),
        ({"eta": -0.5}, "eta must not be negative, got eta=-0.5"),
        ({"eta": 0.5, "rule": "noise"}, "eta > 0 needs rule 'data', got rule='noise'"),
        ({"r1": 0.0}, r"stages must rise within \(0, 1\], got r1=0.0"),
        ({"r1": 1.5}, r"stages must rise within \(0, 1\], got r1=1.5"),
        ({"order": 3, "r1": 0.7}, r"stages must rise within \(0, 1\], got r1=0.7, last=0.66"),
        ({"order": 3, "r2": 1.2}, r"stages must rise within \(0, 1\], got r1=0.33\d*, last=1.2"),
    ],
)
def test_bad_input_is_named(options, said):
    with pytest.raises(ValueError, match=said):
        singlestep(None, Flow(), **options)
