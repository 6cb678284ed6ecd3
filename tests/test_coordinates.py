"""Coordinates: their ends, their slopes, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen.coordinates import ANGLE, DATA, LOG_SNR, NOISE, STRAIGHT, line, time_on
from diffeq_gen.schedules import Cosine, Flow

ENDS = {  # k in pure noise and in pure data
    "NOISE": (NOISE, np.inf, 0.0),
    "STRAIGHT": (STRAIGHT, 1.0, 0.0),
    "DATA": (DATA, 0.0, np.inf),
    "ANGLE": (ANGLE, np.pi / 2, 0.0),
    "LOG_SNR": (LOG_SNR, -np.inf, np.inf),
    "line(4)": (line(4.0), 0.25, 0.0),
}


@pytest.mark.parametrize("name", ENDS)
def test_where_a_curve_begins_and_ends(name, precision):
    coordinate, noise, data = ENDS[name]
    one, zero = jnp.ones((), precision), jnp.zeros((), precision)
    assert np.allclose(coordinate.clock(zero, one), noise) and np.allclose(coordinate.clock(one, zero), data)
    assert coordinate.clock(one, one).dtype == precision


@pytest.mark.parametrize("name", ENDS)
def test_a_curve_is_the_time_of_every_schedule(name):
    coordinate, *_ = ENDS[name]
    for schedule in (Flow(), Cosine()):
        t, slope = jax.value_and_grad(lambda t, s=schedule: time_on(s, coordinate, coordinate.clock(*s(t))))(0.375)
        np.testing.assert_allclose([t, slope], [0.375, 1.0], rtol=1e-5)


def test_a_line_that_leaves_the_quadrant_is_refused():
    with pytest.raises(ValueError, match="c must not be negative, got c=-0.5"):
        line(-0.5)
