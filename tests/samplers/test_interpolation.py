"""The integral of an interpolated prediction: its corners, its precision, and what it does not know."""

import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from diffeq_gen.samplers.interpolation import RULES, change, phis

EXPONENTS = (-1e3, -40.0, -2.0000001, -2.0, -1.0, -1e-3, -1e-9, 0.0, 1e-9, 1e-3, 1.0, 2.0, 2.0000001, 40.0)


def exactly(k, w):
    """phi_k by the series in 60 digits, or for large |w| by the recurrence."""
    with mpmath.workdps(60 + int(abs(w))):
        w = mpmath.mpf(w)
        if abs(w) <= 50:
            return mpmath.nsum(lambda j: w**j / mpmath.factorial(j + k), [0, mpmath.inf])
        value = mpmath.expm1(w) / w
        for j in range(1, k):
            value = (value - 1 / mpmath.factorial(j)) / w
        return value


@pytest.mark.parametrize("w", EXPONENTS)
@pytest.mark.parametrize(("dtype", "ulps"), [("float64", 32), ("float32", 32)])
def test_phi_has_all_its_digits(w, dtype, ulps):
    """Also where the recurrence has none: at w = 1e-9 its phi_3 is noise."""
    with jax.enable_x64(dtype == "float64"):
        w = jnp.asarray(w, dtype)
        for k, value in enumerate(phis(4, w), start=1):
            assert value.dtype == dtype
            known = float(exactly(k, float(w)))
            assert abs(float(value) - known) <= ulps * np.finfo(dtype).eps * abs(known)


def test_phi_at_the_ends():
    with jax.enable_x64(True):
        np.testing.assert_allclose(phis(4, jnp.asarray(0.0)), [1 / math.factorial(k) for k in range(1, 5)], rtol=1e-15)
        assert [float(value) for value in phis(3, jnp.asarray(-jnp.inf))] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("w", [-3.0, -2.0, -0.5, 0.0, 0.5, 3.0])
def test_phi_has_a_slope(w):
    """d phi_k/dw, through both branches and zero, against central differences of the exact function."""
    with jax.enable_x64(True):
        slope = jax.jacfwd(lambda w: jnp.stack(phis(3, w)))(jnp.asarray(w))
        for k in range(1, 4):
            known = float((exactly(k, w + 1e-10) - exactly(k, w - 1e-10)) / 2e-10)
            assert abs(float(slope[k - 1]) - known) < 1e-5 * abs(known)
        assert bool(jnp.all(jnp.isfinite(jax.jacrev(lambda w: jnp.stack(phis(3, w)))(jnp.asarray(w)))))


@pytest.mark.parametrize("rule", RULES)
def test_what_lies_infinitely_far_away_says_nothing(rule):
    """A node at infinity, and all that come after it, drop out; with an infinite step nothing remains."""
    with jax.enable_x64(True):
        values = list(jnp.asarray([[1.0, 2.0], [0.5, 3.0], [7.0, -1.0]]))
        h, near, far = jnp.asarray(0.5), jnp.asarray(-0.25), jnp.asarray(-jnp.inf)
        two = change(RULES[rule], values[:2], [near], h)
        np.testing.assert_array_equal(change(RULES[rule], values, [near, far], h), two)
        assert np.all(np.asarray(two) != 0)
        np.testing.assert_array_equal(change(RULES[rule], values, [far, near], h), [0.0, 0.0])
        np.testing.assert_array_equal(change(RULES[rule], values, [near, -h], jnp.asarray(jnp.inf)), [0.0, 0.0])
        slope = jax.grad(lambda node: change(RULES[rule], values, [near, node], h).sum())(far)
        assert float(slope) == 0.0


def test_two_points_are_weighted_three_ways_and_three_in_one():
    with jax.enable_x64(True):
        values, h = list(jnp.asarray([[1.0], [0.5], [7.0]])), jnp.asarray(0.5)
        nodes = [jnp.asarray(-0.25), jnp.asarray(-1.0)]
        kinds = ("exact", "midpoint", "trapezoid")
        pairs = [float(change(RULES["data"], values[:2], nodes[:1], h, two_point=kind)[0]) for kind in kinds]
        slope = 0.5 / 0.25
        weights = [float(exactly(2, -0.5)) * 0.25, float(exactly(1, -0.5)) * 0.125, 0.125]
        np.testing.assert_allclose(pairs, [slope * weight for weight in weights], rtol=1e-14)
        threes = [float(change(RULES["data"], values, nodes, h, two_point=kind)[0]) for kind in kinds]
        assert threes[0] == threes[1] == threes[2]
        fallen = [float(change(RULES["data"], values, [nodes[0], -jnp.inf], h, two_point=kind)[0]) for kind in kinds]
        np.testing.assert_allclose(fallen, pairs, rtol=1e-15)
