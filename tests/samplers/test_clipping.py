"""Predictions cut to the range of the data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen import clocks
from diffeq_gen.samplers import clipped, ddim, sample, thresholded
from diffeq_gen.schedules import Cosine


def said(z, t):
    return z


def test_the_quantile_is_of_all_entries_of_one_sample(precision):
    x0 = jnp.asarray(np.linspace(-2.0, 4.0, 24).reshape(2, 3, 4), precision)
    cut = thresholded(said, share=0.75)(x0, 0.5)
    s = np.quantile(np.abs(x0), 0.75)
    np.testing.assert_allclose(cut, np.clip(x0, -s, s) / s, rtol=1e-6)
    assert cut.dtype == precision and float(jnp.max(jnp.abs(cut))) <= 1
    np.testing.assert_allclose(thresholded(said, share=1.0, bound=2.0)(x0, 0.5), x0 / 2, rtol=1e-6)
    np.testing.assert_allclose(thresholded(said, share=0.0, bound=0.1)(x0, 0.5), np.clip(x0, -0.1, 0.1), rtol=1e-6)
    np.testing.assert_array_equal(clipped(said, bound=0.5)(x0, 0.5), np.clip(x0, -0.5, 0.5))


def test_what_is_left_out_is_what_the_signature_says():
    x0 = jnp.linspace(-3.0, 2.0, 1001)
    np.testing.assert_array_equal(clipped(said)(x0, 0.5), np.clip(x0, -1, 1))
    s = np.quantile(np.abs(x0), 0.995)
    np.testing.assert_allclose(thresholded(said)(x0, 0.5), np.clip(x0, -s, s) / s, rtol=1e-6)
    np.testing.assert_array_equal(thresholded(said)(x0 / 10, 0.5), x0 / 10)


def test_many_samples_are_vmap_and_each_has_its_own_quantile():
    x0 = jnp.stack([jnp.linspace(-1, 1, 5), jnp.linspace(-8, 8, 5)])
    cut = jax.vmap(lambda z: thresholded(said, share=1.0)(z, 0.5))(x0)
    np.testing.assert_allclose(cut, jnp.stack([x0[0]] * 2), rtol=1e-6)


def test_every_entry_may_be_kept_or_only_the_smallest():
    """Both ends of the range of `share` are in it."""
    for share in (0.0, 1.0, 0, 1):
        thresholded(said, share=share)
    with pytest.raises(ValueError, match=r"share must lie in \[0, 1\], got share=1.5"):
        thresholded(said, share=1.5)


def test_any_sampler_takes_one_and_its_slope_is_finite_at_zero_too():
    denoise = thresholded(lambda z, t: 5 * z)
    sampler = ddim(denoise, Cosine())
    run = jax.jit(lambda z: sample(jax.random.key(0), sampler, z, clocks.uniform(5)))
    for z in (jnp.array([0.0, 0.0]), jnp.array([1.0, -3.0])):
        end, slope = run(z), jax.jacrev(run)(z)
        assert bool(jnp.all(jnp.abs(end) <= 1)) and bool(jnp.all(jnp.isfinite(slope)))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: clipped(None, bound=0.0), "bound must be positive, got bound=0.0"),
        (lambda: thresholded(None, bound=-1.0), "bound must be positive, got bound=-1.0"),
        (lambda: thresholded(None, share=-0.1), r"share must lie in \[0, 1\], got share=-0.1"),
        (lambda: thresholded(None, share=99.5), r"share must lie in \[0, 1\], got share=99.5"),
    ],
)
def test_bad_input_is_named(make, said):
    with pytest.raises(ValueError, match=said):
        make()
