"""Newton's polynomial against numpy's through the same values, and against Gauss and Legendre's rule."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen.samplers.newton import differences, integral, integrals, polynomial, shares

VALUES = np.array([[1.0, 2.0], [0.5, 3.0], [7.0, -1.0], [-2.0, 0.3]])
NODES = (-0.4, 0.75, -1.1)
H = 0.6


def powers(count):
    """The coefficients of the polynomial through the first values, one column for each."""
    return np.linalg.solve(np.vander([0.0, *NODES[: count - 1]], count, increasing=True), VALUES[:count])


def moments(count):
    """Of the weight 1 + y on (0, H): int y^k (1 + y) dy."""
    return [H ** (k + 1) / (k + 1) + H ** (k + 2) / (k + 2) for k in range(count)]


def given(count, dtype="float64"):
    return list(jnp.asarray(VALUES[:count], dtype)), [jnp.asarray(node, dtype) for node in NODES[: count - 1]]


@pytest.fixture
def in_float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_it_is_the_polynomial_through_its_values_and_so_is_its_integral(count, in_float64):
    values, nodes = given(count)
    known, weight = powers(count), [jnp.asarray(moment) for moment in moments(count)]
    divided = differences(values, nodes)
    for y in (0.0, *NODES, 2.3):
        found = polynomial(divided, nodes, jnp.asarray(y))
        np.testing.assert_allclose(found, np.vander([y], count, increasing=True)[0] @ known, rtol=1e-13)
    whole = sum(c * difference for c, difference in zip(integrals(nodes, weight), divided, strict=True))
    np.testing.assert_allclose(whole, moments(count) @ known, rtol=1e-13)
    np.testing.assert_allclose(integral(values, nodes, weight), moments(count)[1:] @ known[1:], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_shares_are_those_of_the_values_in_each_difference(count, in_float64):
    values, nodes = given(count)
    rows = shares(nodes)
    assert [len(row) for row in rows] == [*range(1, count + 1)]
    for row, difference in zip(rows, differences(values, nodes), strict=True):
        mixed = sum(share * value for share, value in zip(row, values, strict=False))
        np.testing.assert_allclose(mixed, difference, rtol=1e-13)


def test_each_share_keeps_its_digits_beside_larger_ones(in_float64):
    """Of nodes from 1e-6 to 50 in float32, where what a far value is given is a trillionth of what the near ones are."""
    nodes = [jnp.asarray(node, jnp.float32) for node in (1e-6, -0.25, 50.0)]
    places = [0.0, *(float(node) for node in nodes)]
    for k, row in enumerate(shares(nodes)):
        exact = [
            1 / np.prod([places[j] - other for i, other in enumerate(places[: k + 1]) if i != j]) for j in range(k + 1)
        ]
        np.testing.assert_allclose(row, exact, rtol=1e-6)


SILENT = [(0, 0.0), *itertools.product((0, 1, 2), (np.inf, np.nan)), *itertools.product((1, 2), (0.0, "before"))]


@pytest.mark.parametrize(("first", "silent"), SILENT)
def test_what_says_nothing_is_left_out_with_all_after_it_and_has_no_slope(first, silent, in_float64):
    """A node at 0, or nowhere, or where one before it lies; the values there may be anything."""
    values, nodes = given(4)
    nodes[first] = nodes[0] if silent == "before" else jnp.asarray(silent)
    seen, weight = first + 1, [jnp.asarray(moment) for moment in moments(4)]
    for spoiled in (values, [*values[:seen], *(jnp.full(2, np.nan) for _ in values[seen:])]):
        divided = differences(spoiled, nodes)
        for found, known in itertools.zip_longest(divided, differences(values[:seen], nodes[:first])):
            np.testing.assert_array_equal(found, np.zeros(2) if known is None else known)
        for row in shares(nodes)[seen:]:
            np.testing.assert_array_equal(row, np.zeros(len(row)))
        alone = polynomial(divided[:seen], nodes[:first], jnp.asarray(0.3))
        np.testing.assert_allclose(polynomial(divided, nodes, jnp.asarray(0.3)), alone, rtol=1e-15)
        few = integral(values[:seen], nodes[:first], weight[:seen])
        np.testing.assert_allclose(integral(spoiled, nodes, weight), few, rtol=1e-15)

    def both(last):
        places = [*nodes[:first], *[last] * (3 - first)]
        divided = differences(values, places)
        return polynomial(divided, places, jnp.asarray(0.3)).sum() + integral(values, places, weight).sum()

    np.testing.assert_array_equal(jax.grad(both)(nodes[first]), 0.0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nodes_of_each_axis_serve_many_values_and_the_dtype_stays(dtype):
    """Nodes (1, d), values (n, d): as in `controlled`."""
    with jax.enable_x64(dtype == "float64"):
        nodes = [jnp.asarray([[node, 1.5 * node]], dtype) for node in NODES]
        values = [jnp.asarray(np.outer([1.0, -2.0, 0.5], row), dtype) for row in VALUES]
        moment = [jnp.asarray([[one, 2 * one]], dtype) for one in moments(4)]
        divided = differences(values, nodes)
        parts = [*divided, *integrals(nodes, moment), *itertools.chain(*shares(nodes)), integral(values, nodes, moment)]
        assert {str(part.dtype) for part in parts} == {dtype}
        for axis in (0, 1):
            one = [node[0, axis] for node in nodes]
            column = differences([value[:, axis] for value in values], one)
            for whole, part in zip(divided, column, strict=True):
                np.testing.assert_allclose(whole[:, axis], part, rtol=1e-6)


def test_a_pair_is_weighted_as_asked_where_two_values_are_all_there_is(in_float64):
    values, nodes = given(3)
    weight, pair = [jnp.asarray(moment) for moment in moments(3)], jnp.asarray(0.123)
    alone = integral(values[:2], nodes[:1], weight[:2], pair=pair)
    np.testing.assert_allclose(alone, 0.123 * (VALUES[1] - VALUES[0]) / NODES[0], rtol=1e-14)
    np.testing.assert_array_equal(integral(values, [nodes[0], jnp.asarray(jnp.inf)], weight, pair=pair), alone)
    np.testing.assert_array_equal(integral(values, nodes, weight, pair=pair), integral(values, nodes, weight))
