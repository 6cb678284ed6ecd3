"""Divergences against autodiff and against each other, and what probes are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen import traces


def field(z):
    """Of pictures of two by three, its Jacobian neither symmetric nor constant."""
    return jnp.sin(z) * jnp.sum(z) + z[:, ::-1] ** 2


Z = jnp.array([[0.3, -0.7, 1.2], [0.1, 0.5, -0.4]])
PROBES = {"gaussian": traces.gaussian_probes, "signs": traces.rademacher_probes, "orthogonal": traces.orthogonal_probes}


def jacobian():
    return jax.jacfwd(lambda flat: field(flat.reshape(2, 3)).ravel())(Z.ravel())


def test_divergence_is_the_trace_of_the_jacobian_of_any_shape():
    value, trace = jax.jit(lambda z: traces.divergence(field, z))(Z)
    np.testing.assert_allclose(value, field(Z), rtol=1e-12)
    np.testing.assert_allclose(trace, jnp.trace(jacobian()), rtol=1e-12)
    np.testing.assert_allclose(traces.divergence(lambda z: z**3, jnp.asarray(2.0))[1], 12.0)


def test_estimated_is_the_mean_over_probes():
    probes = jnp.asarray(np.random.default_rng(0).standard_normal((4, 2, 3)))
    value, trace = traces.estimated(field, Z, probes)
    np.testing.assert_allclose(value, field(Z), rtol=1e-12)
    rows = np.asarray(probes).reshape(4, 6)
    np.testing.assert_allclose(trace, np.mean(np.einsum("ki,ij,kj->k", rows, np.asarray(jacobian()), rows)), rtol=1e-12)


@pytest.mark.parametrize("name", PROBES)
def test_probes_are_unbiased_and_vary_as_is_said(name):
    """20,000 of one each: the mean within five standard errors, the variance within five of its own."""
    keys = jax.random.split(jax.random.key(0), 20000)
    probes = jax.vmap(lambda key: PROBES[name](key, (2, 3))[0])(keys)
    rows = np.asarray(probes).reshape(-1, 6)
    np.testing.assert_allclose(rows.T @ rows / len(rows), np.eye(6), atol=5 * np.sqrt(2 / 20000))
    along = np.einsum("ki,ij,kj->k", rows, np.asarray(jacobian()), rows)
    assert abs(along.mean() - np.trace(jacobian())) < 5 * along.std() / np.sqrt(len(along))
    if name != "orthogonal":
        spread = np.sqrt(np.var((along - along.mean()) ** 2) / len(along))
        assert abs(along.var() - traces.variance(jacobian(), signs=name == "signs")) < 5 * spread


def test_probes_have_their_shapes_and_are_one_where_nothing_is_said():
    for probes in PROBES.values():
        assert probes(jax.random.key(0), (2, 3)).shape == (1, 2, 3)
        assert probes(jax.random.key(0), (2, 3), k=5).shape == (5, 2, 3)
        assert probes(jax.random.key(0), (2, 3)).dtype == jnp.zeros(()).dtype
    assert set(np.unique(traces.rademacher_probes(jax.random.key(0), (9, 9)))) == {-1.0, 1.0}
    assert traces.orthogonal_probes(jax.random.key(0), ()).shape == (1,)


def test_as_many_orthogonal_probes_as_dimensions_are_exact():
    probes = traces.orthogonal_probes(jax.random.key(3), (2, 3), k=6)
    np.testing.assert_allclose(probes.reshape(6, 6) @ probes.reshape(6, 6).T, 6 * np.eye(6), atol=1e-12)
    np.testing.assert_allclose(traces.estimated(field, Z, probes)[1], jnp.trace(jacobian()), rtol=1e-12)


def test_orthogonal_probes_favour_no_side_of_an_axis():
    """The first of two: without the signs of R, LAPACK's Householder vectors lie on one side."""
    first = jax.vmap(lambda key: traces.orthogonal_probes(key, (2,), k=2)[0, 0])(
        jax.random.split(jax.random.key(1), 2000)
    )
    assert abs(float(first.mean())) < 5 / np.sqrt(2000)


def test_signs_tell_a_diagonal_jacobian_exactly():
    assert traces.variance(jnp.diag(jnp.array([1.0, 5.0])), signs=True) == 0
    np.testing.assert_allclose(traces.variance(jnp.array([[1.0, 4.0], [0.0, 5.0]]), signs=False), 2 * (1 + 25 + 8))


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (lambda: traces.estimated(field, Z, Z), r"probes must be of shape \(k, \*\(2, 3\)\), k >= 1, got shape=\(2, 3\)"),
        (lambda: traces.estimated(field, Z, jnp.zeros((0, 2, 3))), r"k >= 1, got shape=\(0, 2, 3\)"),
        (lambda: traces.estimated(field, Z, jnp.zeros((4, 3, 2))), r"k >= 1, got shape=\(4, 3, 2\)"),
        (lambda: traces.orthogonal_probes(jax.random.key(0), (2, 3), k=7), "orthogonal probes must be from 1 to 6, got k=7"),
        (lambda: traces.orthogonal_probes(jax.random.key(0), (2, 3), k=0), "orthogonal probes must be from 1 to 6, got k=0"),
    ],
)  # fmt: skip
def test_bad_input_is_named(refused, message):
    with pytest.raises(ValueError, match=message):
        refused()
