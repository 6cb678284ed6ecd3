"""Singlestep solvers: their stages, their ends, their errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen import clocks, exact
from diffeq_gen.samplers import ddim, exponential, sample, singlestep
from diffeq_gen.samplers.singlestep import embedded
from diffeq_gen.schedules import Cosine, Flow
from tests.samplers.quadrature import Route, singlestep_by_quadrature

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


@pytest.mark.parametrize(
    ("order", "rule", "eta", "shares"),
    [(2, "data", 0.0, None), (2, "noise", 0.0, None), (3, "noise", 0.0, None), (3, "data", 0.7, None), (2, "data", 1.0, (0.3,)),
     (3, "data", 0.0, (0.2, 0.9)), (3, "noise", 0.0, (0.5, 1.0))],
)  # fmt: skip
def test_every_state_is_the_integral_of_the_polynomial_through_the_values_before(order, rule, eta, shares):
    """That of each stage is seen in what is asked there; the noise is one Brownian path that all lie on."""
    asked, where = [], [0.8, 0.3]
    noise = np.random.default_rng(0).standard_normal((order, 2))
    route = Route(rule, lambda log_snr: eta**2 * log_snr)
    plain = lambda z, t: 0.5 * np.sin(z) + t  # noqa: E731
    known = singlestep_by_quadrature(
        plain, route, *where, Z.astype(float), noise, shares=shares or ((1 / 2,) if order == 2 else (1 / 3, 2 / 3))
    )

    def denoise(z, t):
        asked.append((np.asarray(z), float(t)))
        return 0.5 * jnp.sin(z) + t

    with jax.enable_x64(True):
        options = {} if shares is None else dict(zip(("r1", "r2"), shares, strict=False))
        sampler = singlestep(denoise, Cosine(), order=order, rule=rule, eta=eta, **options)
        assert sampler.noises == (order if eta else 0) and sampler.fewest == 1
        end, _ = sampler.step(jnp.asarray(noise), (), jnp.asarray(Z, float), *map(jnp.asarray, where))
        np.testing.assert_allclose(np.stack([z for z, _ in asked[1:]] + [end]), known, rtol=1e-9)
        if eta == 0:
            states = embedded(denoise, Cosine(), shares or ((1 / 2,) if order == 2 else (1 / 3, 2 / 3)), rule=rule)
            every = states(jnp.asarray(Z, float), *map(jnp.asarray, where))
            assert len(every) == order
            np.testing.assert_array_equal(every[-1], end)
            first = ddim(denoise, Cosine()).step(None, (), jnp.asarray(Z, float), *map(jnp.asarray, where))[0]
            np.testing.assert_allclose(every[0], first, rtol=1e-12)


def test_what_is_left_out_is_what_the_signature_says():
    with jax.enable_x64(True):
        denoise = lambda z, t: 0.5 * jnp.sin(z) + t  # noqa: E731
        move = lambda **options: singlestep(denoise, Cosine(), **options).step(None, (), *args)[0]  # noqa: E731
        args = jnp.asarray(Z, float), jnp.asarray(0.8), jnp.asarray(0.3)
        np.testing.assert_array_equal(move(), move(order=2, rule="data", r1=0.5, two_point="exact", eta=0.0))
        np.testing.assert_array_equal(move(order=3), move(order=3, r1=1 / 3, r2=2 / 3))
        first = embedded(denoise, Cosine(), (0.5,))(*args)
        for one, other in zip(
            first, embedded(denoise, Cosine(), (0.5,), two_point="exact", fewest=1)(*args), strict=True
        ):
            np.testing.assert_array_equal(one, other)
        last = embedded(denoise, Cosine(), (1 / 3, 2 / 3), fewest=3)(*args)
        np.testing.assert_array_equal(last, [move(order=3)])


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
        ({"order": 3, "r1": 0.7, "r2": 0.7}, r"stages must rise within \(0, 1\], got r1=0.7, last=0.7"),
        ({"order": 3, "r2": 1.2}, r"stages must rise within \(0, 1\], got r1=0.33\d*, last=1.2"),
    ],
)
def test_bad_input_is_named(options, said):
    with pytest.raises(ValueError, match=said):
        singlestep(None, Flow(), **options)
