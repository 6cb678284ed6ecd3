"""A schedule that is learnt: what it is, how it begins, and what it is taught."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen import clocks, losses, predictions, weights
from diffeq_gen.schedules import VP, Cosine, Flow, Monotone, at, variance_preserving


def bent():
    return Monotone(jnp.array([1.0, -2.0]), jnp.array([3.0, 8.0]), jnp.array([0.3, 0.9]), low=-7.0, high=5.0)


def test_a_monotone_schedule_falls_from_high_to_low(precision):
    schedule = bent()
    ends = schedule.log_snr(jnp.array([0.0, 1.0], precision))
    np.testing.assert_allclose(ends, [5.0, -7.0], rtol=1e-6)
    assert ends.dtype == precision and np.all(np.diff(jax.vmap(schedule.log_snr)(jnp.linspace(0, 1, 100))) < 0)
    p = at(schedule, jnp.asarray(0.4, precision))
    np.testing.assert_allclose(p.alpha**2 + p.sigma**2, 1, rtol=1e-6)
    np.testing.assert_allclose(p.log_snr, schedule.log_snr(p.t), rtol=1e-5)


def test_its_log_snr_is_that_of_the_page():
    def rise(t):
        v, w = np.log1p(np.exp([1.0, -2.0])), np.log1p(np.exp([3.0, 8.0]))
        unit = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
        return t + sum(v * (unit(w * (t - np.array([0.3, 0.9]))) - unit(-w * np.array([0.3, 0.9]))))

    np.testing.assert_allclose(bent().log_snr(0.4), 5 - 12 * rise(0.4) / rise(1.0), rtol=1e-6)


def test_it_begins_nearly_straight():
    schedule = Monotone.start()
    assert schedule.heights.shape == (16,) and (schedule.low, schedule.high) == (-12.0, 12.0)
    t = jnp.linspace(0, 1, 33)
    np.testing.assert_allclose(jax.vmap(schedule.log_snr)(t), 12 - 24 * t, atol=0.3)
    np.testing.assert_allclose(schedule.centres, (np.arange(16) + 0.5) / 16, rtol=1e-6)
    np.testing.assert_allclose(schedule.slopes, 32.0)
    np.testing.assert_allclose(schedule.heights, -5.0)
    assert Monotone.start(units=3, low=-2.0, high=4.0).log_snr(0.0) == 4.0


@pytest.mark.parametrize("schedule", [Cosine(), VP(), Flow()], ids=["cosine", "vp", "flow"])
def test_it_may_begin_like_another(schedule):
    """Within 0.25 nats everywhere between the ends, 0.01 in the mean: a straight one is off by seven or more."""
    found, t = Monotone.like(schedule), jnp.linspace(1e-4, 1 - 1e-4, 20001)
    wanted, met = (jax.vmap(one)(t) for one in (lambda t: clocks.log_snr(schedule, t), found.log_snr))
    assert found.heights.shape == (16,) and np.allclose([found.high, found.low], wanted[jnp.array([0, -1])])
    assert jnp.max(jnp.abs(met - wanted)) < 0.25 and jnp.sqrt(jnp.mean((met - wanted) ** 2)) < 0.01
    assert jnp.max(jnp.abs(found.high + (found.low - found.high) * t - wanted)) > 7


def test_the_fit_takes_ends_and_units_and_the_precision_of_the_user(precision):
    """The corner where flat begins is what costs: without one five units do, and sixteen come within 2e-4."""
    schedule, ends = Cosine(log_snr_min=-10.0, log_snr_max=8.0), (0.0, 1.0)
    for units, within in ((5, 0.03), (16, 2e-4)):
        found, t = Monotone.like(schedule, units=units, ends=ends), jnp.linspace(*ends, 501)
        assert found.heights.shape == (units,) and all(leaf.dtype == precision for leaf in jax.tree.leaves(found))
        met, wanted = jax.vmap(found.log_snr)(t), jax.vmap(schedule.log_snr)(t)
        np.testing.assert_allclose(met, wanted, atol=within)
        assert np.all(np.diff(met) < 0)


def test_one_unit_is_enough_and_places_are_exact():
    with jax.enable_x64(True):
        np.testing.assert_allclose(Monotone.start(units=4).centres, [0.125, 0.375, 0.625, 0.875], rtol=1e-12)
        assert Monotone.start(units=1).centres == 0.5
        found = Monotone.like(Flow(), units=1)
        assert found.heights.shape == (1,)
        ends = jax.vmap(lambda t: clocks.log_snr(Flow(), t))(jnp.array([1e-4, 1 - 1e-4]))
        np.testing.assert_allclose([found.high, found.low], ends, rtol=1e-10)


def test_taught_by_the_squared_loss_it_nears_the_least_variance():
    """A network that errs by 1 + lambda^2/20 whatever it sees, in ELBO weight: the least E[l^2] is (int l dlambda)^2."""

    def network(schedule):
        return lambda z, t: 1 + jnp.square(schedule.log_snr(t)) / 20

    def second(schedule, times):
        settings = {"weight": weights.elbo}
        ask = lambda t: losses.denoising_loss(network(schedule), schedule, predictions.noise, x0, 0 * x0, t, **settings)  # noqa: E731
        return jnp.mean(jnp.square(jax.vmap(ask)(times)))

    x0, times = jnp.zeros(1), jnp.linspace(0.00125, 0.99875, 400)
    schedule = Monotone.start(low=-8.0, high=8.0)
    step = jax.jit(
        lambda schedule: jax.tree.map(
            lambda leaf, slope: leaf - 2e-4 * slope, schedule, jax.grad(second)(schedule, times)
        )
    )
    log_snr = np.linspace(-8, 8, 4001)
    least = np.trapezoid((1 + log_snr**2 / 20) ** 2 / 2, log_snr) ** 2
    first = second(schedule, times)
    for _ in range(3000):
        schedule = step(schedule)
    last = second(schedule, times)
    assert least < last < least + 0.1 * (first - least), (least, last, first)


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (lambda: Monotone(jnp.ones(2), jnp.ones(2), jnp.ones(3)), r"one shape \(u,\), got heights=\(2,\), slopes=\(2,\), centres=\(3,\)"),
        (lambda: Monotone(jnp.ones(()), jnp.ones(()), jnp.ones(())), r"must be of one shape \(u,\), got heights=\(\)"),
        (lambda: Monotone(jnp.ones(2), jnp.ones(2), jnp.ones(2), low=1.0, high=1.0), "low must lie below high, got low=1.0, high=1.0"),
        (lambda: Monotone.start(units=0), "units must be positive, got units=0"),
        (lambda: Monotone.like(Flow(), units=0), "units must be positive, got units=0"),
        (lambda: Monotone.like(Flow(), ends=(0.5, 0.5)), r"ends must rise, within \[0, 1\], got ends="),
        (lambda: Monotone.like(Flow(), ends=(-0.1, 0.5)), r"ends must rise, within \[0, 1\], got ends="),
        (lambda: Monotone.like(Flow(), ends=(0.1, 1.5)), r"ends must rise, within \[0, 1\], got ends="),
        (lambda: Monotone.like(Flow(), ends=(0.0, 1.0)), "log-SNR must be finite and fall between the ends, got log_snr="),
        (lambda: Monotone.like(lambda t: variance_preserving(8 * t - 4)), "log-SNR must be finite and fall between"),
        (lambda: Monotone.like(lambda t: variance_preserving(-jnp.sin(9 * t))), "log-SNR must be finite and fall between"),
        (lambda: Monotone.like(lambda t: variance_preserving(jnp.minimum(1 - 2 * t, 0.5))), "log-SNR must be finite and fall"),
    ],
)  # fmt: skip
def test_bad_input_is_named(refused, message):
    with pytest.raises(ValueError, match=message):
        refused()
