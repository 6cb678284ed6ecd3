"""The fitted mixture: what it finds, when it finds none, and what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen.samplers import control_of
from diffeq_gen.samplers.mixture import Components, denoise_components, fit


def clusters(n=2000):
    rng = np.random.default_rng(3)
    means = np.array([[2.0, 0.0], [-1.0, 1.5], [-1.0, -1.5], [0.0, 4.0]])
    return means, means[rng.integers(0, 4, n)] + rng.standard_normal((n, 2)) * np.array([0.2, 0.1])


def test_it_finds_the_clusters():
    means, points = clusters()
    known = fit(points)
    assert len(known.weights) == 4
    nearest = np.argmin(np.linalg.norm(known.means[:, None] - means[None], axis=2), axis=1)
    assert sorted(nearest) == [0, 1, 2, 3]
    np.testing.assert_allclose(known.means, means[nearest], atol=0.03)
    np.testing.assert_allclose(known.variances, np.tile([0.01, 0.04], (4, 1)), rtol=0.2)
    np.testing.assert_allclose(np.sum(known.weights), 1, rtol=1e-6)
    np.testing.assert_allclose(np.swapaxes(known.bases, 1, 2) @ known.bases, np.tile(np.eye(2), (4, 1, 1)), atol=1e-12)


def test_few_points_hold_no_mixture():
    _, points = clusters(31)
    assert fit(points) is None


def test_control_of_clusters_has_them():
    _, points = clusters()
    control = control_of(jnp.asarray(points, jnp.float32))
    assert control.known.means.shape == (4, 2) and control.known.means.dtype == jnp.float32
    weighted = control.known.weights @ control.known.means
    np.testing.assert_allclose(weighted, 0, atol=1e-3)


def test_denoised_without_noise_is_the_sample_and_with_all_of_it_the_mean():
    _, points = clusters()
    known = fit(points)
    y = jnp.asarray(points[:5], jnp.float32)
    known = Components(
        *(jnp.asarray(leaf, jnp.float32) for leaf in (known.weights, known.means, known.bases, known.variances))
    )
    np.testing.assert_allclose(denoise_components(known, y, jnp.float32(0.0)), y, atol=1e-5)
    mean = known.weights @ known.means
    np.testing.assert_allclose(denoise_components(known, y, jnp.float32(1e6)), jnp.tile(mean, (5, 1)), atol=1e-4)


@pytest.mark.parametrize(
    ("leaves", "message"),
    [
        ((jnp.ones(2), jnp.zeros((2, 3)), jnp.zeros((2, 3, 3)), jnp.ones((2, 2))), "weights, means, bases and variances must be"),
        ((jnp.ones(2), jnp.zeros((2, 3)), jnp.zeros((3, 3)), jnp.ones((2, 3))), "weights, means, bases and variances must be"),
        ((jnp.zeros(2), jnp.zeros((2, 3)), jnp.zeros((2, 3, 3)), jnp.ones((2, 3))), "weights must be positive, got"),
        ((jnp.ones(2), jnp.zeros((2, 3)), jnp.zeros((2, 3, 3)), jnp.zeros((2, 3))), "variances must be positive, got"),
    ],
)  # fmt: skip
def test_bad_components_are_named(leaves, message):
    with pytest.raises(ValueError, match=message):
        Components(*leaves)


def test_points_must_be_rows():
    with pytest.raises(ValueError, match=r"points must be \(n, d\), got points=\(3,\)"):
        fit(np.zeros(3))
