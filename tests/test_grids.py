"""Grids: their ends, their lengths, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen import clocks, grids
from diffeq_gen.coordinates import ANGLE, DATA, LOG_SNR, NOISE, STRAIGHT
from diffeq_gen.schedules import VE, VP, Cosine, Flow


@pytest.fixture(scope="module", autouse=True)
def sharp():
    """float64, in which the bounds below are sharp; a test that asks for `precision` has its own."""
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("n", [1, 2, 7])
def test_grids_fall_and_hold_one_value_more_than_steps_and_end_where_they_should(n, precision):
    times = [make(n, first=0.9, last=0.1) for make in (grids.quadratic, grids.cosine)]
    times += [
        grids.even(Cosine(), n, coordinate=one, first=0.9, last=0.1) for one in (ANGLE, DATA, LOG_SNR, NOISE, STRAIGHT)
    ]
    for grid in times:
        assert grid.shape == (n + 1,) and grid.dtype == precision and bool(jnp.all(jnp.diff(grid) < 0))
        np.testing.assert_array_equal(grid[np.array([0, -1])], jnp.asarray([0.9, 0.1], precision))


def test_what_is_known_of_them():
    np.testing.assert_allclose(grids.even(Cosine(), 4, coordinate=ANGLE), clocks.uniform(4), rtol=1e-12)
    np.testing.assert_allclose(grids.even(Flow(), 4, coordinate=STRAIGHT), clocks.uniform(4), rtol=1e-12)
    ends = {"log_snr_min": -4.0, "log_snr_max": 4.0}
    known = clocks.uniform_log_snr(VP(), 5, **ends)
    np.testing.assert_allclose(
        grids.even(VP(), 5, coordinate=LOG_SNR, first=known[0], last=known[-1]), known, rtol=1e-10
    )
    karras = clocks.karras(VE(), 5, rho=1.0, sigma_min=0.1, sigma_max=10.0)
    np.testing.assert_allclose(
        grids.even(VE(), 5, coordinate=NOISE, first=karras[0], last=karras[-1]), karras, rtol=1e-10
    )
    np.testing.assert_allclose(grids.quadratic(4), [1, 9 / 16, 1 / 4, 1 / 16, 0])
    np.testing.assert_allclose(grids.cosine(4), [1, (2 + np.sqrt(2)) / 4, 1 / 2, (2 - np.sqrt(2)) / 4, 0])
    np.testing.assert_array_equal(grids.listed([1, 0.5, 0.25]), [1, 0.5, 0.25])


def test_a_grid_has_slopes_in_its_ends():
    slope = jax.jacfwd(lambda first: grids.even(Cosine(), 4, coordinate=NOISE, first=first, last=0.1))(0.9)
    assert bool(jnp.all(jnp.isfinite(slope))) and slope[0] == 1 and slope[-1] == 0 and bool(jnp.all(slope[:-1] > 0))


def test_numbers_far_apart_still_make_a_grid_with_slopes():
    gaps = jnp.array([0.0, 20.0, -20.0])
    grid, slope = (
        grids.spaced(Cosine(), gaps, 0.9, 0.1),
        jax.jacrev(lambda g: grids.spaced(Cosine(), g, 0.9, 0.1))(gaps),
    )
    assert bool(jnp.all(jnp.diff(grid) < 0)) and bool(jnp.all(jnp.isfinite(slope)))


def test_data_of_another_scale_ends_at_other_times():
    first, last = grids.ends(Cosine(), 1.0)
    wide_first, wide_last = grids.ends(Cosine(), 100.0)
    assert wide_first > first > wide_last > last
    np.testing.assert_allclose(
        clocks.log_snr(Cosine(), first) - clocks.log_snr(Cosine(), wide_first), np.log(100), rtol=1e-9
    )
    tiny = grids.ends(Cosine(), 1.0, nats=1e-9)[0]
    np.testing.assert_allclose(np.exp(clocks.log_snr(Cosine(), tiny)), 2 * np.sqrt(1e-9), rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: grids.quadratic(0), "a grid needs at least one step, got n=0"),
        (lambda: grids.cosine(3, first=0.2, last=0.4), "times must fall from first to last within .* got last=0.4, first=0.2"),
        (lambda: grids.even(Cosine(), 3, coordinate=NOISE), "the coordinate must be finite at both ends, got begin=inf"),
        (lambda: grids.even(Cosine(), 3, coordinate=DATA), "the coordinate must be finite at both ends, .* end=inf"),
        (lambda: grids.listed([0.5]), "times must be a decreasing sequence of at least two values"),
        (lambda: grids.listed([0.5, 0.5]), "times must be a decreasing sequence"),
        (lambda: grids.listed([1.5, 0.5]), r"times must lie within \[0, 1\], got first=1.5"),
        (lambda: grids.ends(Cosine(), 0.0), "variance must be positive, got variance=0.0"),
        (lambda: grids.ends(Cosine(), 1.0, nats=-1.0), "nats and residual must be positive"),
        (lambda: grids.ends(VE(0.1, 1.0), 1.0), "the schedule does not reach from the one end to the other"),
    ],
)  # fmt: skip
def test_bad_input_is_named(make, said):
    with pytest.raises(ValueError, match=said):
        make()
