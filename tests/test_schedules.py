"""Schedules at their ends, in both precisions, and what they refuse."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen import clocks
from diffeq_gen.schedules import (
    EDM,
    IDDPM,
    VE,
    VP,
    Cosine,
    Flow,
    Laplace,
    Sigmoid,
    SubVP,
    Tabulated,
    ZeroTerminalSNR,
    at,
    checked,
)

BETAS = np.linspace(1e-4, 0.02, 1000)
EVERY = [Flow(), Cosine(), Cosine(1.0, -12.0, 9.0), IDDPM(), VP(), SubVP(), VE(), EDM(), Sigmoid(), Laplace(),
         Tabulated.from_betas(BETAS), ZeroTerminalSNR(VP()), ZeroTerminalSNR(Tabulated.from_betas(BETAS)),
         clocks.resolution_shift(Flow(), 4.0), clocks.resolution_shift(VP(), 4.0)]  # fmt: skip


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
def test_every_family_is_a_schedule_in_both_precisions(schedule, precision):
    assert checked(schedule) is schedule
    p = jax.jit(lambda t: at(schedule, t))(jnp.asarray(0.3, precision))
    assert all(leaf.dtype == precision and jnp.isfinite(leaf) for leaf in jax.tree.leaves(p))
    assert p.sigma_dot > 0 >= p.alpha_dot


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
def test_the_ends_are_neither_negative_nor_nan(schedule, precision):
    for t in (0.0, 1.0):
        alpha, sigma = schedule(jnp.asarray(t, precision))
        assert alpha >= 0 and sigma >= 0 and alpha + sigma > 0.5


@pytest.mark.parametrize("schedule", [Flow(), Cosine(), IDDPM(), Sigmoid(), Laplace(), ZeroTerminalSNR(VP())], ids=repr)
def test_alpha_is_exactly_zero_at_one_where_the_family_says_so(schedule, precision):
    assert schedule(jnp.asarray(1.0, precision))[0] == 0


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
def test_float32_agrees_with_float64_where_it_is_read(schedule):
    """To a few ulps; a shifted or rescaled clock rounds 1 - t away near t = 1, which no formula for alpha can mend."""
    times = np.array([1e-5, 1e-3, 0.1, 0.5, 0.9, 0.999], np.float32)
    if isinstance(schedule, ZeroTerminalSNR | clocks.ResolutionShift):
        times = times[:-1]
    with jax.enable_x64(True):
        exact = [np.asarray(part) for part in jax.vmap(schedule)(jnp.asarray(times, jnp.float64))]
    with jax.enable_x64(False):
        rough = [np.asarray(part) for part in jax.vmap(schedule)(jnp.asarray(times))]
    for one, other in zip(rough, exact, strict=True):
        np.testing.assert_allclose(one, other, rtol=64 * np.finfo(np.float32).eps)


@pytest.mark.parametrize(
    ("silent", "spoken"),
    [
        (Cosine(), Cosine(0.0, -math.inf, math.inf)),  # Nichol & Dhariwal 2021, Eq. 17 at s = 0
        (IDDPM(), IDDPM(0.008)),  # Nichol & Dhariwal 2021, Sec. 3.2
        (VP(), VP(0.1, 20.0)),  # Song et al. 2021, App. C, and so the sub-VP
        (SubVP(), SubVP(0.1, 20.0)),
        (VE(), VE(0.01, 50.0)),  # Song et al. 2021, App. C, CIFAR-10
        (EDM(), EDM(0.002, 80.0, 7.0)),  # Karras et al. 2022, Table 1
        (Sigmoid(), Sigmoid(-3.0, 3.0, 1.0)),  # Jabri et al. 2022
        (Laplace(), Laplace(0.0, 0.5)),  # Hang & Gu 2024
    ],
    ids=lambda schedule: type(schedule).__name__,
)
def test_what_is_left_out_is_what_the_papers_use(silent, spoken):
    assert jax.tree.leaves(silent) == jax.tree.leaves(spoken)


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
def test_clock_and_schedule_agree_at_the_ends(schedule, precision):
    """log-SNR of a pure end is infinite with the right sign, and time_at of what an end has is that end."""
    for t in (0.0, 1.0):
        alpha, sigma = schedule(jnp.asarray(t, precision))
        log_snr = clocks.log_snr(schedule, jnp.asarray(t, precision))
        if alpha == 0 or sigma == 0:
            assert log_snr == (-jnp.inf if alpha == 0 else jnp.inf)
        else:
            assert abs(clocks.time_at(schedule, log_snr) - t) < 1e-3


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
@pytest.mark.parametrize("t", [0.0501, 0.4503, 0.9507])
def test_a_clock_and_its_inverse_have_inverse_slopes(schedule, t):
    """On both sides of every change of formula, whose branch that is not taken must not make the derivative nan."""
    slope = jax.grad(lambda value: clocks.time_at(schedule, value))(clocks.log_snr(schedule, t))
    np.testing.assert_allclose(slope * clocks.log_snr_dot(schedule, t), 1, rtol=1e-8)


def test_a_lambda_is_a_schedule():
    p = at(lambda t: (1 - t**3, t), 0.5)
    assert (p.alpha, p.alpha_dot, p.sigma, p.sigma_dot) == (0.875, -0.75, 0.5, 1.0)
    assert at(lambda t: (1.0, t), 0.5).alpha_dot == 0
    assert at(Flow(), 1).alpha == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VP(-1.0), "beta_min must be positive, got beta_min=-1.0"),
        (lambda: VP(3.0, 2.0), "beta_max must be at least beta_min, got beta_min=3.0, beta_max=2.0"),
        (lambda: SubVP(0.0), "beta_min must be positive"),
        (lambda: VE(0.0), "sigma_min must be positive"),
        (lambda: VP(0.0), "beta_min must be positive, got beta_min=0.0"),
        (lambda: VE(2.0, 2.0), "sigma_max must exceed sigma_min"),
        (lambda: Sigmoid(tau=0.0), "tau must be positive"),
        (lambda: VE(2.0, 1.0), "sigma_max must exceed sigma_min, got sigma_min=2.0, sigma_max=1.0"),
        (lambda: EDM(rho=0.0), "rho must be positive"),
        (lambda: Sigmoid(1.0, 1.0), "start must be below end"),
        (lambda: Sigmoid(tau=-1.0), "tau must be positive"),
        (lambda: Laplace(scale=0.0), "scale must be positive"),
        (lambda: IDDPM(0.0), "s must be positive"),
        (lambda: Cosine(log_snr_min=1.0, log_snr_max=1.0), "log_snr_min must be below log_snr_max"),
        (lambda: Tabulated([1.0]), "log_snrs must be a finite, decreasing sequence"),
        (lambda: Tabulated(np.array([1.0, 2.0])), "log_snrs must be a finite, decreasing sequence"),
        (lambda: Tabulated(np.array([3.0, 1.0, 2.0])), "log_snrs must be a finite, decreasing sequence"),
        (lambda: Tabulated([1.0, 1.5]), "log_snrs must be a finite, decreasing sequence"),
        (lambda: Tabulated([2.0, 2.0, 1.0]), "log_snrs must be a finite, decreasing sequence"),
        (lambda: Tabulated([np.inf, 2.0, 1.0]), "log_snrs must be a finite, decreasing sequence"),
        (lambda: Tabulated([[3.0, 2.0], [2.0, 1.0]]), "log_snrs must be a finite, decreasing sequence"),
        (lambda: Tabulated.from_betas([0.0, 0.1]), "betas must lie in"),
        (lambda: Tabulated.from_alphas_cumprod([1.0, 0.5]), "alphas_cumprod must lie in"),
        (lambda: Tabulated.from_alphas_cumprod([1.5, 0.5]), "alphas_cumprod must lie in"),
        (lambda: Tabulated.from_betas([0.1, 1.0]), "betas must lie in"),
        (lambda: Tabulated.from_alphas_cumprod([0.9, 0.0]), "alphas_cumprod must lie in"),
        (lambda: clocks.resolution_shift(Flow(), 0.0), "ratio must be positive"),
        (lambda: at(Flow(), 1.5), r"t must lie in \[0, 1\], got t=1.5"),
        (lambda: at(Flow(), float("nan")), r"t must lie in \[0, 1\]"),
        (lambda: at(lambda t: (1 - 2 * t, t), 0.75), "alpha and sigma must be non-negative, got alpha=-0.5"),
        (lambda: at(lambda t: (t, 1 - 2 * t), 0.75), "must be non-negative, got alpha=0.75, sigma=-0.5, t=0.75"),
        (lambda: checked(lambda t: (jnp.stack([1 - t, t - 1]), t)), "alpha must be positive and finite"),
        (lambda: checked(lambda t: (jnp.stack([1 - t, t]), t)), "log-SNR must decrease in t"),
        (lambda: at(lambda t: (jnp.log(t - 0.5), t), 0.25), "alpha and sigma must be non-negative, got alpha=nan"),
        (lambda: checked(lambda t: (1 - t, 0 * t)), "sigma must be positive and finite, got sigma=0.0 at t=0.00390625"),
        (lambda: checked(lambda t: (1 - t, 1 - t)), "log-SNR must decrease in t"),
        (lambda: checked(lambda t: (1 - t, jnp.where(t < 0.5, t, 0))), "got sigma=0.0 at t=0.5$"),
        (lambda: checked(lambda t: (1 - t, jnp.where(t < 0.5, t, 1 - t))), r"got -?[\d.e-]+ at t=0.5 and -?[\d.e-]+ at t=0.50390625$"),
    ],
)  # fmt: skip
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_constant_beta_is_no_bad_input():
    assert VP(2.0, 2.0).exponent(0.5) == 1


@pytest.mark.parametrize("thing", [3.0, "cosine", lambda t: t, lambda t: (t, t, t), lambda t: [t, t]])
def test_an_object_that_is_no_schedule_is_told_so(thing):
    with pytest.raises(TypeError, match="a schedule"):
        at(thing, 0.5)


def test_ddpm_betas_keep_their_first_sigma():
    """The first variance is beta_0 itself; by subtraction in float32 it is off by 1.7e-4."""
    schedule = Tabulated.from_betas(BETAS)
    with jax.enable_x64(False):
        sigma = schedule(jnp.zeros(()))[1]
        assert abs(float(sigma) ** 2 / 1e-4 - 1) < 4e-6
        naive = 1 - jnp.cumprod(1 - jnp.asarray(BETAS))[0]
        assert abs(float(naive) / 1e-4 - 1) > 1e-4
    assert np.allclose(schedule.log_snrs[-1], np.log(4.0358e-5), atol=1e-3)


def test_schedules_differentiate_in_their_parameters():
    slope = jax.grad(lambda schedule: at(schedule, 0.3).sigma)(VP(0.1, 20.0))
    step = 1e-6
    difference = (at(VP(0.1, 20.0 + step), 0.3).sigma - at(VP(0.1, 20.0 - step), 0.3).sigma) / (2 * step)
    assert np.allclose(slope.beta_max, difference, rtol=1e-6)


def test_two_knots_are_a_table_and_betas_may_be_large():
    assert Tabulated([1.0, 0.0]).log_snr(0.25) == 0.75
    assert np.allclose(Tabulated.from_betas([0.7, 0.9]).log_snr(0.0), np.log(0.3 / 0.7), rtol=1e-14)


def test_the_last_piece_of_a_table_has_its_slope_at_its_end():
    assert np.isclose(clocks.log_snr_dot(Tabulated([1.0, 0.0, -3.0]), 1.0), -6.0, rtol=1e-12)
    assert np.isclose(clocks.log_snr_dot(Tabulated([1.0, 0.0, -3.0]), 0.0), -2.0, rtol=1e-12)
