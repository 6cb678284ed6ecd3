"""Equations at the ends, and the schedules that have no SDE."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen import equations
from diffeq_gen.schedules import VP, Flow, at


def test_the_flow_schedule_as_an_sde():
    drift, diffusion = equations.forward_sde(Flow())
    assert np.allclose(drift(jnp.array([3.0]), 0.25), -3.0 / 0.75)
    assert np.allclose(diffusion(0.25) ** 2, 2 * 0.25 / 0.75)
    assert diffusion(0.25) > 0 and diffusion(0.0) == 0


def test_the_default_is_andersons_reversal_and_no_noise_is_allowed():
    z, denoise = jnp.array([1.0, -2.0]), lambda z, t: 0.3 * z
    silent, anderson = equations.reverse_sde(denoise, VP()), equations.reverse_sde(denoise, VP(), eta=1.0)
    assert (silent[0](z, 0.3) == anderson[0](z, 0.3)).all() and silent[1](0.3) == anderson[1](0.3) > 0
    drift, diffusion = equations.reverse_sde(denoise, VP(), eta=0.0)
    assert np.allclose(drift(z, 0.3), equations.probability_flow(denoise, VP())(z, 0.3)) and diffusion(0.3) == 0


def test_no_forward_sde_where_log_snr_rises():
    def rising(t):
        return jnp.ones_like(t), 1 - t / 2

    _, diffusion = equations.forward_sde(rising)
    with pytest.raises(ValueError, match="g\\^2 must not be negative: log-SNR rises here, got g2="):
        diffusion(0.5)
    assert jnp.isfinite(equations.probability_flow(lambda z, t: 0 * z, rising)(jnp.ones(2), 0.5)).all()


def test_eta_is_a_number_or_a_function_of_time():
    with pytest.raises(ValueError, match="eta must not be negative, got eta=-0.5"):
        equations.reverse_sde(lambda z, t: z, Flow(), eta=-0.5)
    constant = equations.reverse_sde(lambda z, t: 0.3 * z, Flow(), eta=0.25)
    varying = equations.reverse_sde(lambda z, t: 0.3 * z, Flow(), eta=lambda t: t)
    z = jnp.array([1.0, -2.0])
    assert np.allclose(constant[0](z, 0.25), varying[0](z, 0.25)) and np.allclose(constant[1](0.25), varying[1](0.25))


def test_the_velocity_is_finite_where_alpha_is_zero():
    assert np.allclose(equations.probability_flow(lambda z, t: 0 * z + 2.0, Flow())(jnp.ones(2), 1.0), -1.0)


def test_a_schedule_from_its_sde():
    built = equations.FromSDE(lambda t: -(0.1 + 19.9 * t) / 2, lambda t: 0.1 + 19.9 * t)
    for t in (1e-3, 0.2, 0.9):
        p, wanted = at(built, t), at(VP(), t)
        np.testing.assert_allclose(jax.tree.leaves(p), jax.tree.leaves(wanted), rtol=1e-9)
