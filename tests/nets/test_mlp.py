"""The perceptron: zero before it has learnt anything, one sample at a time, finite at both ends of time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen.nets import MLP

Z = np.random.default_rng(0).standard_normal((3, 2, 2)).astype(np.float32)


@pytest.fixture(scope="module", autouse=True)
def as_users_run_it():
    with jax.enable_x64(False):
        yield


@pytest.fixture(scope="module")
def net(as_users_run_it):
    net = MLP(width=16, depth=2, ndim=2, features=8)
    return net, net.init(jax.random.key(0), jnp.asarray(Z), jnp.float32(0))


@pytest.fixture(scope="module")
def trained(net):
    """Every parameter moved away from where it began."""
    net, params = net
    return lambda z, log_snr: net.apply(jax.tree.map(lambda leaf: leaf + 0.1, params), jnp.asarray(z), log_snr)


def test_an_untrained_network_predicts_zero_and_can_learn(net):
    net, params = net
    assert not np.any(net.apply(params, jnp.asarray(Z), jnp.float32(1)))
    slope = jax.grad(lambda params: jnp.sum((net.apply(params, jnp.asarray(Z), jnp.float32(1)) - Z) ** 2))(params)
    assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(slope))


def test_one_log_snr_for_all_is_the_same_one_for_each(trained):
    np.testing.assert_array_equal(trained(Z, jnp.float32(0.7)), trained(Z, jnp.full(3, 0.7, jnp.float32)))


def test_a_sample_does_not_see_its_neighbours(trained):
    levels = jnp.array([-3.0, 0.0, 5.0], jnp.float32)
    whole = trained(Z, levels)
    assert whole.shape == Z.shape
    for i in range(3):
        np.testing.assert_allclose(trained(Z[i : i + 1], levels[i]), whole[i : i + 1], rtol=1e-4, atol=1e-5)
    assert np.max(np.abs(trained(Z, jnp.float32(5)) - trained(Z, jnp.float32(-3)))) > 1e-3


@pytest.mark.parametrize("end", [-np.inf, np.inf])
def test_both_ends_of_time_are_finite_in_value_and_slope(trained, end):
    assert np.all(np.isfinite(trained(Z, jnp.float32(end))))
    assert np.all(np.isfinite(jax.grad(lambda z: trained(z, jnp.float32(end)).sum())(jnp.asarray(Z))))


def test_a_level_for_another_batch_is_refused(trained):
    with pytest.raises(ValueError, match="log_snr must be a scalar or have one value per sample"):
        trained(Z, jnp.zeros(2, jnp.float32))
