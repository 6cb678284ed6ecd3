"""The U-Net: zero before it has learnt anything, pictures of several sizes, one at a time, finite at both ends of time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen.nets import UNet

Z = np.random.default_rng(0).standard_normal((2, 8, 8, 1)).astype(np.float32)


@pytest.fixture(scope="module", autouse=True)
def as_users_run_it():
    with jax.enable_x64(False):
        yield


def small(channels=(4, 8), **options):
    return UNet(channels=channels, features=8, **options)


def moved(net, z):
    """The network with parameters away from where it begins, so that no block is silent."""
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.asarray(z), jnp.float32(0))
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda leaf: jnp.float32(0.1) + 0.1 * rng.standard_normal(leaf.shape).astype("f"), shapes)
    return jax.jit(lambda z, log_snr: net.apply(params, z, log_snr))


@pytest.fixture(scope="module")
def trained(as_users_run_it):
    return moved(small(), Z)


def test_an_untrained_network_predicts_zero():
    net = small()
    params = jax.jit(net.init)(jax.random.key(0), jnp.asarray(Z), jnp.float32(0))
    assert not np.any(jax.jit(net.apply)(params, jnp.asarray(Z), jnp.float32(1)))


@pytest.mark.parametrize(
    ("shape", "channels"), [((1, 28, 28, 1), (4, 8, 8)), ((1, 8, 4, 3), (4, 8)), ((2, 3, 5, 1), (4,))]
)
def test_pictures_keep_their_size_and_every_pixel_is_answered(shape, channels):
    z = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    value = np.asarray(moved(small(channels), z)(z, jnp.float32(0)))
    assert (
        value.shape == shape and np.all(np.isfinite(value)) and len(np.unique(value[..., 0])) > value[..., 0].size / 2
    )


def test_one_log_snr_for_all_is_the_same_one_for_each_and_samples_are_alone(trained):
    np.testing.assert_allclose(
        trained(Z, jnp.float32(0.7)), trained(Z, jnp.full(2, 0.7, jnp.float32)), rtol=1e-5, atol=1e-6
    )
    levels = jnp.array([-3.0, 4.0], jnp.float32)
    whole = np.asarray(trained(Z, levels))
    for i in range(2):
        alone = trained(Z[i : i + 1], levels[i])
        np.testing.assert_allclose(alone, whole[i : i + 1], rtol=1e-4, atol=1e-4 * np.max(np.abs(whole)))
    assert np.max(np.abs(trained(Z, jnp.float32(4)) - trained(Z, jnp.float32(-3)))) > 1e-3


def test_the_whole_picture_is_seen_through_attention(trained):
    """A pixel in one corner moves the answer in the opposite corner."""
    far = Z.copy()
    far[:, 0, 0] += 1
    change = np.abs(trained(far, jnp.float32(0)) - trained(Z, jnp.float32(0)))
    assert np.all(change[:, -1, -1] > 0)


@pytest.mark.parametrize("end", [-np.inf, np.inf])
def test_both_ends_of_time_are_finite(trained, end):
    assert np.all(np.isfinite(trained(Z, jnp.float32(end))))


@pytest.mark.parametrize("shape", [(1, 8, 7, 1), (1, 6, 8, 1), (8, 8, 1), (1, 8, 8)])
def test_what_is_no_such_picture_is_named(shape):
    message = r"pictures must have the shape \(batch, height, width, channels\), sides divisible by 4, got shape="
    with pytest.raises(ValueError, match=message):
        small((4, 4, 4)).init(jax.random.key(0), jnp.zeros(shape), jnp.float32(0))
