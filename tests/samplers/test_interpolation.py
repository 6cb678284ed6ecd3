"""The integral of an interpolated prediction: its corners, its precision, and what it does not know."""

import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from diffeq_gen.samplers.interpolation import RULES, Rule, change, churned_data, constant_noise, phis, require_order
from diffeq_gen.schedules import VP, Flow, at

EXPONENTS = (-1e3, -40.0, -2.9, -2.0000001, -2.0, -1.0, -1e-3, -1e-9, 0.0, 1e-9, 1e-3, 1.0, 2.0, 2.0000001, 2.9, 40.0)


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


@pytest.mark.parametrize("w", [-2.9, -2.0, 2.0, 2.9])
def test_phi_alone_has_all_its_digits_where_the_series_ends(w):
    """The first phi has the slowest series: at -2.9 its terms would leave 60 ulps."""
    with jax.enable_x64(True):
        (value,) = phis(1, jnp.asarray(w))
        np.testing.assert_allclose(float(value), float(exactly(1, w)), rtol=8 * np.finfo(float).eps)


@pytest.mark.parametrize("rule", ["noise", "slope"])
def test_the_noise_of_pure_data_is_finite_with_its_slope(rule):
    p = at(Flow(), jnp.asarray(0.0))
    value, slope = jax.jvp(lambda z: RULES[rule].value(0.5 * z, z, p), (jnp.array([0.3, -1.2]),), (jnp.ones(2),))
    assert bool(jnp.all(jnp.isfinite(value))) and bool(jnp.all(jnp.isfinite(slope)))


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


TABLE = {
    "data": (-1, lambda alpha, sigma: np.log(alpha / sigma), lambda alpha, sigma: alpha),
    "noise": (1, lambda alpha, sigma: np.log(alpha / sigma), lambda alpha, sigma: -sigma),
    "slope": (0, lambda alpha, sigma: sigma / alpha, lambda alpha, sigma: alpha),
    "signal": (0, lambda alpha, sigma: alpha / sigma, lambda alpha, sigma: sigma),
}
"""Rule: w/h, the coordinate, the scale."""


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("nodes", [(-0.4,), (1.0, -0.7), (-0.3, 0.25, -1.1)], ids=len)
def test_change_is_the_integral_of_the_polynomial_through_all_values(rule, nodes):
    """int_0^h e^{w (1 - y/h)} (P(y) - P(0)) dy by Gauss and Legendre, P solved for from its values."""
    h, count = 0.6, len(nodes) + 1
    values = np.array([[1.0, 2.0], [0.5, 3.0], [7.0, -1.0], [-2.0, 0.3]])[:count]
    powers = np.linalg.solve(np.vander([0.0, *nodes], increasing=True), values)
    y, weights = (part * h / 2 for part in np.polynomial.legendre.leggauss(6))
    y = y + h / 2
    tilted = weights * np.exp(TABLE[rule][0] * (h - y))
    known = tilted @ np.vander(y, count, increasing=True)[:, 1:] @ powers[1:]
    for dtype, rtol in (("float64", 1e-12), ("float32", 1e-5)):
        with jax.enable_x64(dtype == "float64"):
            rows, places = list(jnp.asarray(values, dtype)), [jnp.asarray(node, dtype) for node in nodes]
            one = change(RULES[rule], rows, places, jnp.asarray(h, dtype))
            assert one.dtype == dtype
            np.testing.assert_allclose(one, known, rtol=rtol)


@pytest.mark.parametrize("rule", RULES)
def test_a_node_that_lies_where_another_does_says_nothing_and_none_after_it(rule):
    with jax.enable_x64(True):
        values = list(jnp.asarray([[1.0, 2.0], [0.5, 3.0], [7.0, -1.0], [-2.0, 0.3]]))
        h, here, there, elsewhere = (jnp.asarray(number) for number in (0.6, 0.0, 2.0, -0.5))
        of = lambda *nodes, kind="exact": change(RULES[rule], values[: len(nodes) + 1], nodes, h, two_point=kind)  # noqa: E731
        np.testing.assert_array_equal(of(here, there, elsewhere), [0.0, 0.0])
        for kind in ("exact", "midpoint"):
            for nodes in ((there, here, elsewhere), (there, there, elsewhere)):
                np.testing.assert_array_equal(of(*nodes, kind=kind), of(there, kind=kind))
        for last in (here, there, elsewhere, jnp.asarray(jnp.inf)):
            np.testing.assert_array_equal(of(there, elsewhere, last), of(there, elsewhere))


@pytest.mark.parametrize("first", [-0.5, 1.0, 2.0, 3.0, 4.0])
def test_what_says_nothing_has_no_slope_and_spoils_none(first):
    """Wherever the nodes before it lie: sigma/alpha on a grid of whole numbers has its nodes at whole numbers."""
    with jax.enable_x64(True):
        values, far = list(jnp.asarray([[1.0], [0.5], [7.0], [-2.0]])), jnp.asarray(jnp.inf)
        for nodes in ((first, far, far), (first, -1.5, far), (far, far, far)):
            of = lambda *nodes: change(RULES["slope"], values[: len(nodes) + 1], nodes, jnp.asarray(-0.5))[0]  # noqa: E731
            every = jax.grad(of, argnums=(0, 1, 2))(*(jnp.asarray(node) for node in nodes))
            seen = [jnp.asarray(node) for node in nodes if math.isfinite(node)]
            alone = jax.grad(of, argnums=tuple(range(len(seen))))(*seen) if seen else ()
            np.testing.assert_allclose(every, [*alone, *[0.0] * (3 - len(seen))], rtol=1e-14)


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_its_row_of_the_table(rule):
    (alpha, sigma), (alpha_q, sigma_q) = (0.6, 1.1), (0.9, 0.3)
    rate, coordinate, scale = TABLE[rule]
    row, ends = RULES[rule], [np.float64(end) for end in (alpha, sigma, alpha_q, sigma_q)]
    with jax.enable_x64(True):
        assert row.rate == rate and float(row.overshoot(*ends)) == 0.0
        np.testing.assert_allclose(
            row.apart(*ends), coordinate(alpha_q, sigma_q) - coordinate(alpha, sigma), rtol=1e-14
        )
        q = at(VP(), jnp.asarray(0.4))
        assert float(row.scale(q)) == scale(float(q.alpha), float(q.sigma))


@pytest.mark.parametrize("rule", RULES)
def test_recovered_is_the_data_of_the_state_that_moved_with_its_prediction_held(rule):
    """Of what is interpolated, x0_hat or eps_hat, the moved state has what the old one had: z = alpha x0 + sigma eps."""
    with jax.enable_x64(True):
        p = at(VP(), jnp.asarray(0.4))
        x0, eps, moved = jnp.asarray([0.3, -2.0]), jnp.asarray([1.2, 0.4]), jnp.asarray([0.05, -0.7])
        z = p.alpha * x0 + p.sigma * eps
        data = rule in ("data", "signal")
        np.testing.assert_allclose(RULES[rule].value(x0, z, p), x0 if data else eps, rtol=1e-14)
        again = RULES[rule].recovered(x0, moved, p)
        np.testing.assert_allclose(again, x0 if data else (z + moved - p.sigma * eps) / p.alpha, rtol=1e-14)
        np.testing.assert_allclose(RULES[rule].value(again, z + moved, p), RULES[rule].value(x0, z, p), rtol=1e-13)
        noise = at(Flow(), jnp.asarray(1.0))
        back, slope = jax.jvp(lambda moved: RULES[rule].recovered(x0, moved, noise), (0 * moved,), (moved,))
        np.testing.assert_array_equal(back, x0)
        assert bool(jnp.all(jnp.isfinite(slope)))


@pytest.mark.parametrize(("alpha_q", "sigma_q"), [(0.9, 0.3), (0.61, 1.09)])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.5])
def test_constant_noise_overshoots_by_eta_squared_of_what_log_snr_gains(eta, alpha_q, sigma_q):
    alpha, sigma = 0.6, 1.1
    gained = np.log(alpha_q**2 / sigma_q**2) - np.log(alpha**2 / sigma**2)
    with jax.enable_x64(True):
        there = [jnp.asarray(end) for end in (alpha, sigma, alpha_q, sigma_q)]
        for rule in (constant_noise(eta), jax.jit(lambda: constant_noise(jnp.asarray(eta)).overshoot(*there))):
            value = rule.overshoot(*there) if isinstance(rule, Rule) else rule()
            np.testing.assert_allclose(value, eta**2 * gained, rtol=1e-13)
        rule, back = constant_noise(eta), [*there[2:], *there[:2]]
        np.testing.assert_allclose(rule.apart(*there), (1 + eta**2) * gained / 2, rtol=1e-13)
        assert float(rule.overshoot(*back)) == 0.0
        np.testing.assert_allclose(rule.apart(*back), -gained / 2, rtol=1e-13)
        none, one = jnp.zeros(()), jnp.ones(())
        for ends in ((none, one, *there[2:]), (*there[:2], one, none)):
            assert float(rule.overshoot(*ends)) == (np.inf if eta else 0.0)


def test_what_overshoots_goes_half_as_far_in_log_alpha_over_sigma():
    """One half of an overshoot in log-SNR; its row is that of the data but for the way it goes."""
    with jax.enable_x64(True):
        ends = [jnp.asarray(end) for end in (0.6, 1.1, 0.9, 0.3)]
        rule = churned_data(lambda *ends: ends[0] + 2 * ends[3])
        np.testing.assert_allclose(rule.apart(*ends) - np.log(0.9 / 0.3 * 1.1 / 0.6), 0.6, rtol=1e-13)
        assert float(rule.overshoot(*ends)) == 1.2
        assert rule[:2] == RULES["data"][:2] and rule[3:5] == RULES["data"][3:5]


def test_only_an_order_is_an_order():
    for order in (1, 2, 3, 4):
        require_order(order)
    for order in (0, 5, 6, 8, 1.5):
        with pytest.raises(ValueError, match=f"order must be 1, 2, 3 or 4, got order={order}"):
            require_order(order)
    with pytest.raises(ValueError, match="eta must not be negative, got eta=-0.5"):
        constant_noise(-0.5)
