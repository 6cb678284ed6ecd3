"""Kernels and bridges where their formulas are in danger: the ends, short steps, huge overshoots."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen import paths
from diffeq_gen.schedules import Cosine, Flow, at


@pytest.mark.parametrize("schedule", [Flow(), Cosine()], ids=repr)
@pytest.mark.parametrize("overshoot", [None, 0.0, 1.0, jnp.inf])
def test_a_bridge_from_pure_noise_to_pure_data_is_the_data(schedule, overshoot, precision):
    p, q = (at(schedule, jnp.asarray(t, precision)) for t in (1.0, 0.0))
    c_z, c_x, std = paths.bridge(p, q, overshoot)
    assert (c_z, c_x, std) == (0, 1, 0)


def test_a_bridge_from_pure_noise_forgets_it_in_the_markov_case():
    p, q = at(Flow(), 1.0), at(Flow(), 0.5)
    assert paths.bridge(p, q) == (0, 0.5, 0.5)
    c_z, c_x, std = paths.bridge(p, q, 0.0)
    assert (c_z, c_x, std) == (0.5, 0.5, 0)


def test_the_kernel_into_pure_noise_forgets_and_a_deterministic_step_there_keeps_the_noise():
    """Neither is a rest: one of the two points alone is without signal."""
    p, q = at(Flow(), 1.0), at(Flow(), 0.5)
    assert paths.transition(p, q) == (0, 1)
    assert paths.bridge(q, p, 0.0) == (2, -1, 0)  # sigma_s eps_hat = (z - alpha_t x0_hat) sigma_s/sigma_t


def test_the_gap_is_infinite_where_one_end_alone_is_pure():
    noise, middle, data = (at(Flow(), t) for t in (1.0, 0.5, 0.0))
    assert paths.gap(noise, middle) == paths.gap(middle, data) == paths.gap(noise, data) == np.inf
    assert paths.gap(middle, noise) == paths.gap(data, middle) == paths.gap(data, noise) == -np.inf


def test_no_deterministic_step_leads_out_of_pure_data():
    """There the noise is not known: only a rest, from sigma = 0 to sigma = 0, is a matter of alpha alone."""
    p, q = at(Flow(), 0.0), at(Flow(), 0.5)
    assert paths.bridge(p, q, 0.0)[0] == np.inf


def test_a_short_step_keeps_its_digits_in_float32():
    p, q = at(Flow(), np.float32(0.5)), at(Flow(), np.float32(0.5 - 2**-13))
    with jax.enable_x64(True):
        exact = paths.transition(*(at(Flow(), np.float64(point.t)) for point in (p, q)))
    scale, std = (np.asarray(part) for part in paths.transition(p, q))
    assert scale.dtype == std.dtype == np.float32
    assert abs(std / np.asarray(exact[1]) - 1) < 4 * np.finfo(np.float32).eps * 2**13 / 8
    np.testing.assert_allclose(scale, exact[0], rtol=2 * np.finfo(np.float32).eps)


def test_there_is_no_kernel_against_the_fall_of_log_snr():
    with pytest.raises(ValueError, match=r"log-SNR must not fall from t to s, got gap=-4.4.*, t=0.2, s=0.7"):
        paths.transition(at(Flow(), 0.2), at(Flow(), 0.7))


def test_a_step_that_rounding_does_not_resolve_has_no_gap(precision):
    p, q = (at(Flow(), jnp.asarray(t, precision)) for t in (0.3, 0.3))
    assert paths.gap(p, q) == 0 and paths.transition(p, q) == (1, 0)
    assert jax.jit(paths.gap)(q, p) == 0


@pytest.mark.parametrize(("ulps", "resolved"), [(127.5, False), (128, True)])
def test_rounding_may_turn_the_sign_of_a_gap_of_256_ulps_and_no_more(ulps, resolved):
    """alpha_s/alpha_t = 1 - k eps gives a gap of -2 k eps."""
    p = at(Flow(), 0.5)
    q = dataclasses.replace(p, alpha=p.alpha * (1 - ulps * np.finfo(np.float64).eps))
    assert np.isclose(paths.gap(p, q), -2 * ulps * np.finfo(np.float64).eps, rtol=1e-9)
    if resolved:
        with pytest.raises(ValueError, match="log-SNR must not fall from t to s"):
            paths.noisy_gap(p, q)
    else:
        assert paths.noisy_gap(p, q) == 0


def test_the_largest_eta_forgets_the_sample():
    p, q = at(Flow(), 0.7), at(Flow(), 0.2)
    largest = 1 / jnp.sqrt(-jnp.expm1(-paths.gap(p, q)))
    c_z, c_x, std = paths.bridge(p, q, paths.eta_overshoot(p, q, largest * (1 + 1e-15)))
    assert jnp.isnan(c_z) or (abs(c_z) < 1e-7 and np.allclose((c_x, std), (q.alpha, q.sigma)))
    assert jnp.isnan(paths.eta_overshoot(p, q, 2 * largest))


def test_shapes_must_match():
    with pytest.raises(ValueError, match=r"x0 and eps must have the same shape, got shapes=.*\(2,\).*\(3,\)"):
        paths.perturb(jnp.ones(2), jnp.ones(3), at(Flow(), 0.5))
    with pytest.raises(ValueError, match="z and eps must have the same shape"):
        paths.renoise(jnp.ones(2), jnp.ones((2, 1)), at(Flow(), 0.5), at(Flow(), 0.25))
    with pytest.raises(ValueError, match="x0 and eps must have the same shape"):
        jax.jit(paths.perturb)(jnp.ones(2), jnp.ones(3), at(Flow(), 0.5))


def test_an_array_valued_alpha_is_a_corruption_diagonal_in_the_given_basis():
    def blur(t):
        return (1 - t) * jnp.exp(-t * jnp.arange(3.0)), t

    p = at(blur, 0.5)
    z = paths.perturb(jnp.ones(3), jnp.zeros(3), p)
    assert np.allclose(z, 0.5 * np.exp(-0.5 * np.arange(3))) and p.log_snr.shape == (3,)
