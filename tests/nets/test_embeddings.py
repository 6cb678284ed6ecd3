"""Embeddings: levels of noise are told apart and never overflow; a network under a schedule hears of log-SNR alone."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen.clocks import log_snr, time_at
from diffeq_gen.nets.embeddings import LOG_SNR_MAX, LOG_SNR_MIN, field, fourier, per_example
from diffeq_gen.schedules import VE, VP, Cosine, Flow


class Recorder:
    """A network that keeps what it was shown and answers with it."""

    ndim = 1

    def init(self, key, z, log_snr, /):
        return {}

    def apply(self, params, z, log_snr, /):
        self.z, self.log_snr = z, log_snr
        return z + params


def test_infinite_log_snr_is_the_end_of_the_range():
    ends = fourier(jnp.array([-jnp.inf, LOG_SNR_MIN, LOG_SNR_MAX, jnp.inf]), 16)
    np.testing.assert_array_equal(ends[0], ends[1])
    np.testing.assert_array_equal(ends[2], ends[3])
    assert np.all(np.isfinite(ends)) and np.linalg.norm(ends[1] - ends[2]) > 1


def test_every_two_levels_are_told_apart():
    """The slowest wave alone is one to one over the whole range; a unit of log-SNR moves the fastest by half a turn."""
    values = jnp.linspace(LOG_SNR_MIN, LOG_SNR_MAX, 401)
    waves = np.asarray(fourier(values, 8))
    assert np.all(np.diff(waves[:, 0]) < 0)
    far = np.linalg.norm(waves[:, None] - waves[None], axis=-1)
    assert np.all(far[~np.eye(401, dtype=bool)] > 0.01)
    np.testing.assert_allclose(waves[:-10, 3], -waves[10:, 3], atol=1e-4)


def test_a_wave_keeps_its_circle_and_its_range():
    values = jnp.linspace(-9.0, 3.0, 7).reshape(7, 1)
    waves = fourier(values, 6, log_snr_min=-10.0, log_snr_max=4.0)
    assert waves.shape == (7, 1, 6)
    np.testing.assert_allclose(waves[..., :3] ** 2 + waves[..., 3:] ** 2, 1, rtol=1e-5)
    moved = fourier(values + 7, 6, log_snr_min=-3.0, log_snr_max=11.0)
    np.testing.assert_allclose(moved, waves, atol=1e-5)


def test_precision_is_kept(precision):
    assert fourier(jnp.zeros(3, precision), 4).dtype == precision
    assert per_example(1.5, jnp.zeros((3, 2), precision)).dtype == precision


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        (5, {}, "features must be even and at least 4, got features=5"),
        (2, {}, "features must be even and at least 4, got features=2"),
        (8, {"log_snr_min": 3.0, "log_snr_max": 3.0}, "log_snr_min must be below log_snr_max"),
    ],
)
def test_bad_options_are_named(features, options, message):
    with pytest.raises(ValueError, match=message):
        fourier(jnp.zeros(1), features, **options)


def test_one_value_serves_all_samples_or_each_has_its_own():
    z = jnp.zeros((3, 2))
    np.testing.assert_array_equal(per_example(2.0, z), [2.0, 2.0, 2.0])
    np.testing.assert_array_equal(per_example(jnp.arange(3.0), z), [0.0, 1.0, 2.0])
    for wrong in (jnp.zeros(2), jnp.zeros((3, 1)), jnp.zeros(1)):
        with pytest.raises(
            ValueError, match=r"log_snr must be a scalar or have one value per sample, got log_snr_shape="
        ):
            per_example(wrong, z)


@pytest.mark.parametrize("schedule", [Flow(), VE(), VP()], ids=repr)
def test_every_schedule_shows_the_network_the_same_picture_at_the_same_log_snr(schedule):
    """Of the same x0 and eps, at a log-SNR that the cosine schedule has at t = 0.3."""
    x0, eps = jnp.array([1.5, -0.5]), jnp.array([0.2, 2.0])
    shown = []
    for each in (Cosine(), schedule):
        t = time_at(each, log_snr(Cosine(), 0.3))
        alpha, sigma = each(t)
        net = Recorder()
        field(net, jnp.zeros(()), each)(alpha * x0 + sigma * eps, t)
        shown.append((net.z, net.log_snr))
    np.testing.assert_allclose(shown[1][0], shown[0][0], rtol=1e-5)
    np.testing.assert_allclose(shown[1][1], shown[0][1], rtol=1e-5)


def test_leading_axes_are_a_batch_and_too_few_axes_are_refused():
    net = Recorder()
    value = field(net, jnp.ones(()), Flow())
    z = jnp.arange(24.0).reshape(2, 3, 4)
    np.testing.assert_allclose(value(z, jnp.asarray(0.5)), z / np.sqrt(0.5) + 1, rtol=1e-6)
    assert net.z.shape == (6, 4) and net.log_snr.shape == ()
    assert value(z[0, 0], jnp.asarray(0.5)).shape == (4,)
    with pytest.raises(ValueError, match="z has fewer axes than one sample of the network, got axes=0, ndim=1"):
        value(jnp.asarray(1.0), jnp.asarray(0.5))
