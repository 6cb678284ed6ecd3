"""Score matching by hand on one sample, of any shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen import score_matching, traces
from diffeq_gen.schedules import VP, Flow, at

Z, T = jnp.array([[0.3, -0.7, 1.2], [0.1, 0.5, -0.4]]), 0.3


def field(z, t):
    return jnp.sin(z) * jnp.sum(z) + t * z[:, ::-1] ** 2


def trace():
    return jnp.trace(jax.jacfwd(lambda flat: field(flat.reshape(2, 3), T).ravel())(Z.ravel()))


def test_explicit_and_implicit_by_hand():
    score = lambda z, t: -z / (1 + t)  # noqa: E731
    np.testing.assert_allclose(
        score_matching.explicit(field, score, Z, T), np.sum((field(Z, T) + Z / 1.3) ** 2) / 2, rtol=1e-12
    )
    np.testing.assert_allclose(score_matching.implicit(field, Z, T), np.sum(field(Z, T) ** 2) / 2 + trace(), rtol=1e-12)


def test_sliced_by_hand_and_reduced_unless_told_otherwise():
    probes = traces.gaussian_probes(jax.random.key(0), (2, 3), k=4)
    along = traces.estimated(lambda z: field(z, T), Z, probes)[1]
    reduced = np.sum(field(Z, T) ** 2) / 2 + along
    np.testing.assert_allclose(score_matching.sliced(field, Z, T, probes), reduced, rtol=1e-12)
    square = np.mean(np.einsum("kij,ij->k", probes, field(Z, T)) ** 2) / 2
    np.testing.assert_allclose(score_matching.sliced(field, Z, T, probes, reduced=False), square + along, rtol=1e-12)


@pytest.mark.parametrize("schedule", [Flow(), VP()], ids=repr)
def test_denoising_by_hand(schedule):
    """grad_z log N(z; alpha x0, sigma^2) by autodiff."""
    x0, eps, p = jnp.cos(Z), jnp.sin(3 * Z), at(schedule, T)
    z = p.alpha * x0 + p.sigma * eps
    target = jax.grad(lambda z: -jnp.sum((z - p.alpha * x0) ** 2) / (2 * p.sigma**2))(z)
    np.testing.assert_allclose(
        score_matching.denoising(field, schedule, x0, eps, T), np.sum((field(z, T) - target) ** 2) / 2, rtol=1e-12
    )


def test_all_of_them_are_least_at_the_score_of_the_data():
    """Of N(0, 1) at sigma^2 = 0.4, alpha = 1 and the family s = -c z: each slope in c vanishes at 1/1.4, in the mean of many draws."""
    schedule = lambda t: (jnp.ones_like(t), jnp.sqrt(t))  # noqa: E731
    keys = jax.random.split(jax.random.key(0), 4)
    x0, eps = (jax.random.normal(key, (40000, 1)) for key in keys[:2])
    probes = jax.vmap(lambda key: traces.rademacher_probes(key, (1,)))(jax.random.split(keys[2], 40000))
    z, t = x0 + jnp.sqrt(0.4) * eps, 0.4

    def slopes(c):
        field = lambda z, t: -c * z  # noqa: E731
        true = lambda z, t: -z / 1.4  # noqa: E731
        return jnp.stack([
            jax.vmap(lambda z: score_matching.explicit(field, true, z, t))(z),
            jax.vmap(lambda z: score_matching.implicit(field, z, t))(z),
            jax.vmap(lambda z, v: score_matching.sliced(field, z, t, v))(z, probes),
            jax.vmap(lambda x0, eps: score_matching.denoising(field, schedule, x0, eps, t))(x0, eps),
        ])  # fmt: skip

    rows = np.asarray(jax.jacfwd(slopes)(jnp.asarray(1 / 1.4)))
    assert np.all(np.abs(rows.mean(1)) <= 5 * rows.std(1) / 200 + 1e-12)
    assert np.all(np.asarray(jax.jacfwd(slopes)(jnp.asarray(0.9))).mean(1) > 0.05)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"probes must be of shape \(k, \*\(2, 3\)\), k >= 1, got shape=\(3,\)"):
        score_matching.sliced(field, Z, T, jnp.ones(3))
