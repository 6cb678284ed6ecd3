"""Adaptive steps: what is taken, what is counted, and what is said when the end is not reached."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen import clocks, exact
from diffeq_gen.samplers import adaptive, ddim, sample, singlestep
from diffeq_gen.schedules import Cosine, Flow, at

WORLD = exact.Mixture(np.array([0.25, 0.75]), np.array([[-1.0, 0.5], [1.0, 0.0]]), 0.1 * np.stack([np.eye(2)] * 2))
Z = np.array([0.7, -1.2])


@pytest.fixture(scope="module", autouse=True)
def sharp():
    """float64, in which the bounds below are sharp; a test that asks for `precision` has its own."""
    with jax.enable_x64(True):
        yield


def by_hand(denoise, schedule, z, t, s, order, rule, rtol, atol):
    """The same walk in Python, of public steps alone."""
    lower = ddim(denoise, schedule) if order == 2 else singlestep(denoise, schedule, rule=rule, r1=1 / 3)
    higher = singlestep(denoise, schedule, order=order, rule=rule)
    move = lambda one, r: one.step(None, (), z, jnp.asarray(t), jnp.asarray(r))[0]  # noqa: E731
    read, end, h, before, tried, taken = (lambda t: float(clocks.log_snr(schedule, t))), s, 0.1, z, 0, 0
    while t > s:
        last = h >= read(end) - read(t)
        r = end if last else float(clocks.time_at(schedule, read(t) + h))
        length = read(r) - read(t)
        low, high = move(lower, r), move(higher, r)
        delta = np.maximum(atol, rtol * np.maximum(np.abs(low), np.abs(before)))
        error = float(np.sqrt(np.mean(((high - low) / delta) ** 2)))
        tried += 1
        if error <= 1:
            z, before, t, taken = high, low, r, taken + 1
        h = 0.9 * length * error ** (-1 / order)
    return z, tried, taken


@pytest.mark.parametrize(("order", "rule"), [(2, "data"), (3, "noise")])
def test_it_walks_as_it_does_by_hand_and_counts_what_it_costs(order, rule):
    schedule = Cosine()
    denoise, tight = exact.denoiser(WORLD, schedule), {"rtol": 1e-3, "atol": 1e-3}
    found = adaptive(denoise, schedule, jnp.asarray(Z), 0.9, 0.1, order=order, rule=rule, **tight)
    known, tried, taken = by_hand(denoise, schedule, jnp.asarray(Z), 0.9, 0.1, order, rule, **tight)
    np.testing.assert_allclose(found.z, known, rtol=1e-12)
    assert (int(found.tried), int(found.taken), int(found.evaluations)) == (tried, taken, order * tried)
    assert bool(found.arrived) and tried > taken > 1
    np.testing.assert_allclose(found.log_snr, clocks.log_snr(schedule, 0.1), rtol=1e-12)


def test_tighter_tolerances_come_nearer_and_cost_more():
    schedule = Cosine()
    world = exact.Gaussian(np.array([1.5, -0.25]), np.array([[0.5, 0.2], [0.2, 0.3]]))
    known = exact.flow_map(world, Z, at(schedule, 0.95), at(schedule, 0.05))
    run = jax.jit(
        lambda tol: adaptive(exact.denoiser(world, schedule), schedule, jnp.asarray(Z), 0.95, 0.05, rtol=tol, atol=tol)
    )
    found = [run(tol) for tol in (1e-2, 1e-4, 1e-6)]
    errors = [float(jnp.max(jnp.abs(one.z - known))) for one in found]
    assert errors[0] > 5 * errors[1] > 25 * errors[2] and errors[2] < 1e-5
    costs = [int(one.evaluations) for one in found]
    assert costs[0] < costs[1] < costs[2] < 600


def test_a_point_is_reached_in_two_steps():
    """The two orders agree, E = 0, and the next step is all that is left."""
    x0 = jnp.array([1.5, -0.25])
    found = adaptive(lambda z, t: x0, Flow(), 0.2 * x0 + 0.8 * Z, 0.8, 0.3)
    np.testing.assert_allclose(found.z, 0.7 * x0 + 0.3 * Z, rtol=1e-6)
    assert int(found.taken) <= 3


def test_slopes_run_forwards_also_where_the_error_is_zero():
    x0 = jnp.array([1.5, -0.25])
    slope = jax.jacfwd(lambda z: adaptive(lambda z, t: x0, Flow(), z, 0.8, 0.3).z)(jnp.asarray(Z))
    np.testing.assert_allclose(slope, 0.3 / 0.8 * np.eye(2), rtol=1e-6)


def test_what_does_not_arrive_says_so():
    schedule = Cosine()
    denoise = exact.denoiser(WORLD, schedule)
    short = adaptive(denoise, schedule, jnp.asarray(Z), 0.9, 0.1, most=2)
    assert not bool(short.arrived) and bool(jnp.all(jnp.isnan(short.z))) and int(short.tried) == 2
    assert float(clocks.log_snr(schedule, 0.9)) < float(short.log_snr) < float(clocks.log_snr(schedule, 0.1))
    assert int(adaptive(denoise, schedule, jnp.asarray(Z), 0.9, 0.1, most=1).tried) == 1
    beyond = adaptive(lambda z, t: 1e200 * t * z, schedule, jnp.asarray(Z), 0.9, 0.1, rtol=0.0)
    # the square of its error is infinite, the next step has no length
    assert not bool(beyond.arrived) and int(beyond.tried) == 1
    lost = adaptive(lambda z, t: z * jnp.nan, schedule, jnp.asarray(Z), 0.9, 0.1)
    assert not bool(lost.arrived) and bool(jnp.all(jnp.isnan(lost.z))) and int(lost.tried) == 1


def test_what_is_left_out_is_what_the_signature_says():
    """The third-order pair for data, at the tolerances of the paper, and a thousand tries."""
    schedule = Cosine()
    denoise = exact.denoiser(WORLD, schedule)
    run = lambda size=1.0, **options: adaptive(denoise, schedule, size * jnp.asarray(Z), 0.9, 0.1, **options)  # noqa: E731
    said = {"order": 3, "rule": "data", "rtol": 0.05, "atol": 0.0078, "first": 0.1, "safety": 0.9}
    for size in (1.0, 0.05):  # of a small sample atol decides
        np.testing.assert_array_equal(run(size).z, run(size, **said).z)
    endless = run(rtol=1e-18, atol=0.0, first=1e-3)
    assert int(endless.tried) == 1000 and not bool(endless.arrived)


def test_each_of_a_batch_walks_for_itself(precision):
    schedule = Cosine()
    run = lambda z: adaptive(exact.denoiser(WORLD, schedule), schedule, z, 0.9, 0.1)  # noqa: E731
    batch = jnp.asarray([Z, [-1.3, 0.4], [30.0, -20.0]], precision)
    found = jax.jit(jax.vmap(run))(batch)
    assert found.z.dtype == precision and len(set(np.asarray(found.tried).tolist())) > 1
    alone = jax.jit(run)
    for z, end, tried in zip(batch, found.z, found.tried, strict=True):
        one = alone(z)
        np.testing.assert_allclose(end, one.z, rtol=2e-3)
        assert int(tried) == int(one.tried)


def test_at_the_tolerances_of_the_paper_it_is_near_the_fine_solution():
    schedule = Cosine()
    denoise = exact.denoiser(WORLD, schedule)
    grid = clocks.uniform_log_snr(schedule, 400, log_snr_min=-5.0, log_snr_max=5.0)
    known = sample(jax.random.key(0), singlestep(denoise, schedule), jnp.asarray(Z), grid)
    for order in (2, 3):
        found = adaptive(denoise, schedule, jnp.asarray(Z), grid[0], grid[-1], order=order)
        assert float(jnp.max(jnp.abs(found.z - known))) < 0.05 and int(found.evaluations) < 100


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"order": 4}, "order must be 2 or 3, got order=4"),
        ({"rule": "slope"}, "rule must be data or noise, got rule='slope'"),
        ({"rtol": 0.0, "atol": 0.0}, "rtol and atol must not be negative, nor both zero, got rtol=0.0, atol=0.0"),
        ({"rtol": -1.0}, "rtol and atol must not be negative"),
        ({"rtol": -1.0, "atol": 2.0}, "rtol and atol must not be negative"),
        ({"rtol": 2.0, "atol": -1.0}, "rtol and atol must not be negative"),
        ({"first": 0.0}, "first must be positive, got first=0.0"),
        ({"safety": 0.0}, r"safety must lie in \(0, 1\), got safety=0.0"),
        ({"safety": 1.0}, r"safety must lie in \(0, 1\), got safety=1.0"),
        ({"most": 0}, "most must be at least 1, got most=0"),
        ({"most": 0.75}, "most must be at least 1, got most=0.75"),
        ({"t": 0.1}, "t must be later than s, got t=0.1, s=0.1"),
        ({"t": 1.0}, "log-SNR must be finite at both ends, got begin=-inf"),
        ({"s": 0.0}, "log-SNR must be finite at both ends"),
    ],
)
def test_bad_input_is_named(options, said):
    ends = {"t": 0.9, "s": 0.1, **options}
    t, s = ends.pop("t"), ends.pop("s")
    with pytest.raises(ValueError, match=said):
        adaptive(None, Flow(), jnp.asarray(Z), t, s, **ends)


@pytest.mark.parametrize("options", [{"rtol": 0.0}, {"atol": 0.0}])
def test_one_of_the_tolerances_may_be_zero(options):
    schedule = Flow()
    assert bool(adaptive(exact.denoiser(WORLD, schedule), schedule, jnp.asarray(Z), 0.9, 0.5, **options).arrived)
