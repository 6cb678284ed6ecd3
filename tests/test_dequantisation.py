"""Bins, draws from them, and bounds of probabilities that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy import stats

from diffeq_gen import dequantisation, likelihood
from diffeq_gen.dequantisation import Bins

K = jnp.array([3, 0])
BINS = Bins(4)
MEAN, STD = jnp.array([0.2, -0.5]), jnp.array([0.6, 0.3])
MIDDLES = Bins.between(-1.0, 1.0, levels=9)


def log_prob(x0):
    return jnp.sum(stats.norm.logpdf(x0, MEAN, STD))


def log_mass():
    edges = np.array([BINS.low + BINS.width * (np.asarray(K) + side) for side in (0, 1)])
    return float(np.sum(np.log(np.diff(stats.norm.cdf(edges, MEAN[None], STD[None]), axis=0))))


def test_bins_there_and_back(precision):
    for bins, width in ((Bins(17), 2 / 17), (Bins(256, 0.0, 256.0), 1.0), (Bins(2, -3.0, 1.0), 2.0)):
        assert bins.width == width
        k = jnp.arange(bins.levels)
        for u in (0.25, 0.5, 0.75):
            x0 = bins.place(k, u)
            assert x0.dtype == precision and (np.asarray(bins.level(x0)) == np.asarray(k)).all()
        np.testing.assert_allclose(
            bins.place(k, 0.5), bins.low + (np.arange(bins.levels) + 0.5) * width, rtol=1e-6, atol=1e-7
        )
        assert bins.level(jnp.asarray(bins.high)) == bins.levels - 1 and bins.level(jnp.asarray(bins.low)) == 0
    assert Bins(256).place(np.array([255], np.uint8), jnp.float32(0.5)).dtype == jnp.float32
    assert repr(Bins(4)) == "Bins(levels=4, low=-1.0, high=1.0)"


def test_one_bin_is_one_and_its_edges_are_in_it():
    one = Bins(1)
    np.testing.assert_array_equal(one.place(np.array([0, 0]), jnp.array([0.0, 1.0])), [-1.0, 1.0])
    np.testing.assert_array_equal(one.level(jnp.array([-1.0, 1.0])), [0, 0])


def test_data_on_middles_know_their_levels(precision):
    """Nine levels from -1 to 1, all of them exact in binary."""
    bins, x0 = Bins.between(-1.0, 1.0, levels=9), jnp.asarray([0.5, -1.0, 0.25, 1.0], precision)
    assert repr(bins) == repr(Bins(9, -1.125, 1.125)) and bins.width == 0.25
    k = bins.of_middle(x0)
    np.testing.assert_array_equal(k, [6, 0, 5, 8])
    assert k.dtype == precision == bins.middle(k).dtype
    np.testing.assert_array_equal(bins.middle(k), x0)
    np.testing.assert_array_equal(bins.of_middle(x0 + 0.002), k)
    np.testing.assert_array_equal(jax.jit(bins.of_middle)(jnp.asarray([-7.0, 7.0], precision)), [0, 8])
    assert repr(Bins.between(0.0, 1.0, levels=2)) == repr(Bins(2, -0.5, 1.5))


@pytest.mark.parametrize(
    ("called", "told"),
    [
        (lambda: BINS.place(jnp.array([1, 4, 9]), 0.5), "levels must be whole numbers from 0 to 3, got k=4"),
        (lambda: BINS.place(np.array([0, -1]), 0.5), "levels must be whole numbers from 0 to 3, got k=-1"),
        (lambda: BINS.place(jnp.array([1.0, 2.5]), 0.5), "levels must be whole numbers from 0 to 3, got k=2.5"),
        (lambda: BINS.place(jnp.array([jnp.nan]), 0.5), "levels must be whole numbers from 0 to 3, got k=nan"),
        (lambda: BINS.place(K, jnp.array([0.5, 1.25])), r"a place in a bin must lie in \[0, 1\], got u=1.25"),
        (lambda: BINS.place(K, -0.5), r"a place in a bin must lie in \[0, 1\], got u=-0.5"),
        (lambda: BINS.level(jnp.array([0.0, 1.5])), r"data must lie in \[-1.0, 1.0\], got x0=1.5"),
        (lambda: BINS.level(jnp.array([-2.0])), r"data must lie in \[-1.0, 1.0\], got x0=-2.0"),
        (lambda: BINS.level(jnp.array([jnp.nan])), r"data must lie in \[-1.0, 1.0\], got x0=nan"),
        (lambda: MIDDLES.of_middle(jnp.array([0.5, 0.26])),
         "x0 must lie on the middles of the bins; the largest distance in widths is, got off=0.04"),
        (lambda: MIDDLES.of_middle(jnp.array([0.0, 0.00375])), "x0 must lie on the middles of the bins; .* got off=0.015"),
        (lambda: MIDDLES.of_middle(jnp.array([1.25])), "x0 must lie on the middles of the bins"),
        (lambda: Bins.between(1.0, 1.0, levels=3), "low must be below high"),
        (lambda: Bins.between(0.0, 1.0, levels=1), "levels must be two or more between two values, got levels=1"),
        (lambda: Bins(0), "levels must be positive, got levels=0"),
        (lambda: Bins(4, 1.0, 1.0), "low must be below high, got low=1.0, high=1.0"),
        (lambda: dequantisation.bound(jax.random.key(0), log_prob, BINS, K, draws=0), "draws must be positive, got draws=0"),
        (lambda: dequantisation.bound(jax.random.key(0), log_prob, BINS, K + 2), "from 0 to 3, got k=5"),
    ],
)  # fmt: skip
def test_what_is_out_of_range_is_named(called, told):
    with pytest.raises(ValueError, match=told):
        called()


def test_traced_levels_pass():
    np.testing.assert_allclose(jax.jit(BINS.place)(K, jnp.array([0.5, 0.5])), BINS.place(K, 0.5))
    assert (np.asarray(jax.jit(BINS.level)(BINS.place(K, 0.5))) == np.asarray(K)).all()


def mean(draws, count=4000, **options):
    read = lambda key: dequantisation.bound(key, log_prob, BINS, K, draws=draws, **options)  # noqa: E731
    return np.asarray(jax.jit(jax.vmap(read))(jax.random.split(jax.random.key(draws), count)))


def test_bounds_are_below_the_probability_and_near_it_by_many_draws():
    """Their exponentials have the probability for their mean, whatever the dequantiser and the number of draws."""
    shifted = dequantisation.logit_normal(lambda k: (jnp.where(k == 0, 0.4, -0.5), jnp.full(k.shape, 0.3)))
    one = {}
    for name, q in (("uniform", dequantisation.uniform), ("shifted", shifted)):
        for draws in (1, 32):
            found = mean(draws, dequantiser=q)
            share = np.exp(found - log_mass())
            assert abs(share.mean() - 1) < 5 * share.std() / np.sqrt(len(share))
            assert found.mean() < log_mass() + 5 * found.std() / np.sqrt(len(found))
            one[name, draws] = log_mass() - found.mean()
        assert one[name, 32] < one[name, 1] / (
            16 if name == "uniform" else 3
        )  # the weights of the other have no variance
    np.testing.assert_array_equal(mean(1, 3), mean(1, 3, dequantiser=dequantisation.uniform))
    plain = dequantisation.bound(jax.random.key(1), log_prob, BINS, K)
    assert plain == dequantisation.bound(jax.random.key(1), log_prob, BINS, K, draws=1)


def test_one_uniform_draw_is_what_bits_per_dim_says():
    key = jax.random.key(7)
    found = dequantisation.bound(key, log_prob, BINS, K)
    u, none = dequantisation.uniform(jax.random.split(key, 1)[0], K)
    assert none == 0 and u.shape == K.shape
    bits = likelihood.bits_per_dim(log_prob(BINS.place(K, u)), 2, bin_width=BINS.width)
    np.testing.assert_allclose(-found / 2 / np.log(2), bits, rtol=1e-12)


def test_the_parameters_of_a_dequantiser_are_learnt_by_its_bound():
    """A few steps up the gradient of the bound, of common draws, leave less than half of the uniform law's gap."""
    keys = jax.random.split(jax.random.key(2), 256)

    def told(parameters):
        q = dequantisation.logit_normal(lambda k: parameters)
        return jnp.mean(jax.vmap(lambda key: dequantisation.bound(key, log_prob, BINS, K, dequantiser=q))(keys))

    parameters = jnp.zeros(2), jnp.full(2, 0.5)
    step = jax.jit(jax.value_and_grad(told))
    for _ in range(150):
        value, slope = step(parameters)
        parameters = jax.tree.map(lambda one, up: one + 0.3 * up, parameters, slope)
    assert 0 < log_mass() - float(value) < (log_mass() - mean(1).mean()) / 2


def test_the_logit_normal_density_integrates_to_one_and_is_safe_far_out(precision):
    nodes = jnp.linspace(-8, 8, 2001)
    m, log_std = jnp.asarray(0.7), jnp.asarray(-0.4)
    u, log_q = jax.vmap(lambda eps: dequantisation.logit_normal_draw(eps, m, log_std))(nodes)
    mass = np.sum(np.exp(log_q[1:] / 2 + log_q[:-1] / 2) * np.diff(u))
    np.testing.assert_allclose(mass, 1, rtol=1e-4)
    far, log_far = dequantisation.logit_normal_draw(jnp.array([60.0, -200.0]), jnp.zeros(2), jnp.zeros(2))
    assert 0 < far[1] < 1e-30 and far[0] < 1 and far.dtype == precision
    np.testing.assert_allclose(log_far, 60 + 200 - (60.0**2 + 200.0**2) / 2 - np.log(2 * np.pi), rtol=1e-6)
