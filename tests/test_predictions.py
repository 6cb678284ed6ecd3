"""Conversions at the ends, and those that do not exist."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen import predictions
from diffeq_gen.predictions import convert, data, edm, noise, score, v, velocity
from diffeq_gen.schedules import Cosine, Flow, at

X0, EPS = jnp.array([1.5, -0.5]), jnp.array([0.25, 2.0])


@pytest.mark.parametrize(
    ("source", "target"), [*itertools.permutations([data, noise, score, v, velocity, edm(0.5)], 2)]
)
def test_every_pair_converts(source, target, precision):
    p = at(Cosine(), jnp.asarray(0.3, precision))
    x0, eps = X0.astype(precision), EPS.astype(precision)
    value, wanted = (a * x0 + b * eps for a, b in (source(p), target(p)))
    got = convert(value, p.alpha * x0 + p.sigma * eps, p, source, target)
    np.testing.assert_allclose(got, wanted, rtol=32 * np.finfo(precision).eps)


@pytest.mark.parametrize("source", [v, velocity, edm(0.5)])
@pytest.mark.parametrize("t", [0.0, 1.0])
def test_v_velocity_and_edm_are_regular_at_both_ends(source, t):
    p = at(Flow(), t)
    a, b = source(p)
    z = p.alpha * X0 + p.sigma * EPS
    assert np.allclose(convert(a * X0 + b * EPS, z, p, source, data), X0)
    assert np.allclose(convert(a * X0 + b * EPS, z, p, source, noise), EPS)


@pytest.mark.parametrize(
    ("source", "target", "t", "log_snr"),
    [(noise, data, 1.0, "-inf"), (data, noise, 0.0, "inf"), (score, data, 0.0, "inf")],
)
def test_singular_conversions_say_which_pair_and_where(source, target, t, log_snr):
    with pytest.raises(
        ValueError, match=rf"{source.__name__} does not determine {target.__name__} here.*log_snr={log_snr}"
    ):
        convert(X0, X0, at(Flow(), t), source, target)


def test_nothing_is_done_where_nothing_changes():
    assert convert(X0, EPS, at(Flow(), 1.0), noise, noise) is X0


def test_shapes_and_constants_are_checked():
    with pytest.raises(ValueError, match="value and z must have the same shape"):
        convert(X0, jnp.ones(3), at(Flow(), 0.5), v, data)
    for make in (edm, lambda sigma_data: predictions.preconditioning(at(Flow(), 0.5), sigma_data)):
        with pytest.raises(ValueError, match="sigma_data must be positive, got sigma_data=-1.0"):
            make(-1.0)
        with pytest.raises(ValueError, match="sigma_data must be positive, got sigma_data=0.0"):
            make(0.0)
        assert make(0.5) is not None


def test_a_network_becomes_a_denoiser():
    schedule = Flow()
    denoise = predictions.denoiser(lambda z, t: (z - X0) / t, schedule, velocity)
    z = 0.75 * X0 + 0.25 * EPS
    np.testing.assert_allclose(jax.jit(denoise)(z, 0.25), X0, rtol=1e-13)
