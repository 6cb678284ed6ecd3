"""Log-SNR, its inverse, and grids of times."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen import clocks, grids, samplers
from diffeq_gen.schedules import EDM, VE, VP, Cosine, Flow


def cubic(t):
    return 1 - t**3, t


@pytest.mark.parametrize("log_snr", [-40.0, -12.0, 0.0, 12.0, 40.0])
def test_bisection_inverts_a_schedule_without_closed_form(log_snr):
    t = clocks.time_at(cubic, log_snr)
    assert abs(clocks.log_snr(cubic, t) - log_snr) < 1e-9 * max(1.0, np.exp(-log_snr / 2))


def test_bisection_is_differentiable_and_clips_outside_the_range():
    slope = jax.grad(lambda value: clocks.time_at(cubic, value))(1.5)
    t = clocks.time_at(cubic, 1.5)
    assert np.allclose(slope, 1 / clocks.log_snr_dot(cubic, t))
    ve = lambda t: (jnp.ones_like(t), jnp.exp(t))  # noqa: E731
    assert clocks.time_at(ve, 5.0) == 0 and np.allclose(clocks.time_at(ve, -9.0), 1)


def test_just_outside_the_range_the_newton_step_is_cut_too():
    falling = lambda t: (jnp.ones_like(t), jnp.exp(t))  # noqa: E731  log-SNR from 0 to -2: half a unit off is a quarter in t
    assert [float(clocks.time_at(falling, value)) for value in (0.5, -2.5)] == [0.0, 1.0]


def test_a_time_is_cut_to_the_ends_and_keeps_its_slope_there(precision):
    t = jnp.array([-0.5, -1e-7, 0.0, 0.3, 1.0, 1 + 3e-7, 7.0], precision)
    cut, slope = jax.vmap(jax.value_and_grad(clocks.within))(t)
    assert cut.dtype == precision and cut.tolist() == [0, 0, 0, t[3], 1, 1, 1]
    assert slope.tolist() == [0, 0, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("log_snr", [-2000.0, 2000.0])
def test_beyond_every_float_the_time_is_an_end_and_its_slope_finite(log_snr):
    t, slope = jax.value_and_grad(lambda value: clocks.time_at(cubic, value))(log_snr)
    assert np.allclose(t, 1 if log_snr < 0 else 0, atol=1e-9) and bool(jnp.isfinite(slope))


def test_bisection_differentiates_in_the_parameters_of_a_schedule():
    slope = jax.grad(lambda k: clocks.time_at(lambda t: (1 - t**3, k * t), 1.5))(2.0)
    plus, minus = (clocks.time_at(lambda t, k=k: (1 - t**3, k * t), 1.5) for k in (2 + 1e-6, 2 - 1e-6))
    assert np.allclose(slope, (plus - minus) / 2e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "schedule", [Flow(), Cosine(), VP(), VE(), EDM(), cubic], ids=lambda s: getattr(s, "__name__", repr(s))
)
@pytest.mark.parametrize("n", [1, 7])
def test_grids_fall_and_hold_one_value_more_than_steps(schedule, n, precision):
    for times in (clocks.uniform(n), clocks.uniform_log_snr(schedule, n), clocks.karras(schedule, n)):
        assert times.shape == (n + 1,) and times.dtype == precision
        assert bool(jnp.all(jnp.diff(times) < 0)) and times[0] <= 1 and times[-1] >= 0


def test_karras_is_the_papers_grid():
    sigma = jax.vmap(EDM())(clocks.karras(EDM(), 17))[1]
    i = np.arange(18) / 17
    assert np.allclose(sigma, (80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7)


def test_what_is_left_out_is_what_the_docstrings_say():
    """The whole of [0, 1]; log-SNR cut at 15, where the weaker part has 5.5e-4 of the amplitude; Karras et al. 2022, Table 1."""
    assert clocks.uniform(4).tolist() == [1, 0.75, 0.5, 0.25, 0]
    low, high = clocks.log_snr_range(Cosine())
    assert (float(low), float(high)) == (-15.0, 15.0) and f"{np.exp(-float(high) / 2):.1e}" == "5.5e-04"
    ends = jax.vmap(lambda t: clocks.log_snr(Cosine(), t))(clocks.uniform_log_snr(Cosine(), 3)[np.array([0, -1])])
    assert np.allclose(ends, [-15, 15], rtol=1e-12)
    everything = clocks.karras(EDM(sigma_min=1e-4, sigma_max=1e4), 3)
    sigma = jax.vmap(EDM(sigma_min=1e-4, sigma_max=1e4))(everything)[1]
    assert np.allclose(sigma, np.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), 4) ** 7, rtol=1e-9)


@pytest.mark.parametrize("low", [-4.0, -5.0, -6.5, -9.0])
def test_a_grid_to_the_end_of_a_cut_schedule_is_one_that_a_run_takes(low, precision):
    """Rounding of the inverse clock had made its first time 1 + 4e-16, which is refused."""
    schedule = Cosine(log_snr_min=low, log_snr_max=-low)
    wide = {"log_snr_min": -30.0, "log_snr_max": 30.0}
    for times in (
        clocks.uniform_log_snr(schedule, 4, **wide),
        clocks.karras(schedule, 4, sigma_min=1e-6, sigma_max=1e6),
    ):
        grids.require_falling(times)
    control = samplers.Control(jnp.zeros(2), jnp.asarray(1.0, precision))
    grids.require_falling(samplers.control_times(control, schedule, 40, sigma_min=1e-6))


def test_a_grid_is_cut_to_what_the_schedule_reaches():
    times = clocks.uniform_log_snr(VE(0.1, 10.0), 4, log_snr_min=-100.0, log_snr_max=100.0)
    assert np.allclose(times, [1, 0.75, 0.5, 0.25, 0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: clocks.uniform(0), "at least one step, got n=0"),
        (lambda: clocks.uniform(3, first=0.2, last=0.4), "times must fall from first to last"),
        (lambda: clocks.uniform_log_snr(Flow(), 3, log_snr_min=2.0, log_snr_max=1.0), "log_snr_min must be below"),
        (lambda: clocks.uniform_log_snr(Flow(), 3, log_snr_min=1.0, log_snr_max=1.0), "log_snr_min must be below"),
        (lambda: clocks.uniform(3, first=0.4, last=0.4), "times must fall from first to last"),
        (lambda: clocks.uniform(3, first=1 + 1e-9), "times must fall .* within .0, 1."),
        (lambda: clocks.uniform(3, last=-1e-9), "times must fall .* within .0, 1."),
        (lambda: clocks.resolution_shift(Flow(), 0.0), "ratio must be positive, got ratio=0.0"),
        (lambda: clocks.karras(Flow(), 3, rho=0.0), "rho must be positive"),
        (lambda: clocks.karras(Flow(), 3, sigma_min=2.0, sigma_max=2.0), "sigma must fall"),
        (lambda: clocks.karras(Flow(), 3, sigma_min=0.0), "sigma must fall"),
    ],
)
def test_bad_grids_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_grids_reach_to_the_ends_of_what_is_allowed():
    assert clocks.uniform(1, first=1.0, last=0.0).tolist() == [1.0, 0.0]
    assert clocks.uniform(1, first=0.6, last=0.2).tolist() == [0.6, 0.2]
    assert clocks.karras(Flow(), 2, rho=0.5).shape == (3,)
    assert clocks.resolution_shift(Flow(), 1e-9).ratio == 1e-9
