"""The fitted mixture: what it finds, when it finds none, and what is refused."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from diffeq_gen.samplers import control_of, mixture
from diffeq_gen.samplers.mixture import (
    Components,
    centres_apart,
    denoise_components,
    expectation_maximised,
    fit,
    held_out,
    log_joint,
    maximised,
    nearest_centre,
    responsibilities,
)

WEIGHTS = np.array([0.2, 0.5, 0.3])
MEANS = np.array([[1.0, -0.5, 2.0], [0.0, 0.3, -1.0], [-2.0, 1.0, 0.5]])
COVS = np.stack([a @ a.T for a in np.random.default_rng(1).standard_normal((3, 3, 4))])
ROWS = np.random.default_rng(2).standard_normal((9, 3)) * [2.0, 1.0, 0.5] + [0.5, 0.0, -0.3]


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


@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-10), ("float32", 1e-4)])
def test_denoised_is_bayes_rule_with_the_densities_of_scipy(dtype, rtol):
    """x0_hat = sum_k r_k (m_k + S_k (S_k + rho^2 I)^{-1} (y - m_k)), r_k as w_k N(y; m_k, S_k + rho^2 I)."""
    ratio = 0.7
    wide = COVS + ratio**2 * np.eye(3)
    joint = np.stack([w * multivariate_normal(m, s).pdf(ROWS) for w, m, s in zip(WEIGHTS, MEANS, wide, strict=True)])
    each = np.stack([m + (ROWS - m) @ np.linalg.solve(s, c) for m, s, c in zip(MEANS, wide, COVS, strict=True)])
    with jax.enable_x64(dtype == "float64"):
        variances, bases = np.linalg.eigh(COVS)
        known = Components(*(jnp.asarray(leaf, dtype) for leaf in (WEIGHTS, MEANS, bases, variances)))
        found = denoise_components(known, jnp.asarray(ROWS, dtype), jnp.asarray(ratio, dtype))
        np.testing.assert_allclose(
            found, np.sum((joint / joint.sum(0))[..., None] * each, axis=0), rtol=rtol, atol=rtol / 10
        )


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


def test_the_expectation_is_bayes_rule_with_the_densities_of_scipy():
    joint = np.stack(
        [w * multivariate_normal(m, s).pdf(ROWS) for w, m, s in zip(WEIGHTS, MEANS, COVS, strict=True)], axis=1
    )
    np.testing.assert_allclose(np.exp(log_joint(ROWS, WEIGHTS, MEANS, COVS)), joint, rtol=1e-10)
    r = responsibilities(ROWS, WEIGHTS, MEANS, COVS)
    np.testing.assert_allclose(r, joint / joint.sum(axis=1, keepdims=True), rtol=1e-10)
    np.testing.assert_allclose(responsibilities(1e3 + ROWS, WEIGHTS, MEANS, COVS).sum(axis=1), 1, rtol=1e-12)


def test_the_maximum_is_the_weighted_mean_and_the_weighted_covariance_of_numpy_shrunk():
    """Three of the nine rows are worth a = d/2 points of the covariance within; a thousandth of the spread is added."""
    r = responsibilities(ROWS, WEIGHTS, MEANS, COVS)
    weights, means, covs = maximised(ROWS, r)
    np.testing.assert_allclose(weights, np.average(r, axis=0), rtol=1e-14)
    np.testing.assert_allclose(means, [np.average(ROWS, axis=0, weights=one) for one in r.T], rtol=1e-12)
    alone = np.stack([np.cov(ROWS.T, aweights=one, ddof=0) for one in r.T])
    within = np.average(alone, axis=0, weights=weights)
    spread = np.trace(np.cov(ROWS.T, ddof=0)) / 3
    for k, mass in enumerate(9 * weights):
        known = np.average([alone[k], within], axis=0, weights=[mass, 1.5]) + 1e-6 * spread * np.eye(3)
        np.testing.assert_allclose(covs[k], known, rtol=1e-11)


def test_the_steps_climb_to_the_likeliest_mixture():
    """Without shrinkage no step lowers the likelihood; with it, it is near its end after them all."""
    _, points = clusters()
    found = [expectation_maximised(np.random.default_rng(seed), points, 4) for seed in (0, 1)]
    likelihoods = [np.mean(np.log(np.exp(log_joint(points, *parts)).sum(axis=1))) for parts in found]
    again = maximised(points, responsibilities(points, *found[0]))
    assert likelihoods[0] > np.mean(
        np.log(np.exp(log_joint(points, *maximised(points, np.ones((2000, 1))))).sum(axis=1))
    )
    np.testing.assert_allclose(
        np.mean(np.log(np.exp(log_joint(points, *again)).sum(axis=1))), likelihoods[0], rtol=1e-9
    )


def test_a_component_that_none_answers_to_is_left_out():
    r = np.array([[0.25, 0.75], [1.0, 0.0], [0.5, 0.5]] * 3)
    for none in (0.0, 1e-300, 1e-16):
        padded = np.insert(r, 1, none, axis=1)
        for one, other in zip(maximised(ROWS, padded), maximised(ROWS, r), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-14)
    assert len(maximised(ROWS, np.insert(r, 1, 1e-14, axis=1))[0]) == 3


class Told:
    """A generator that draws what it is told to, and keeps the chances that it was given."""

    def __init__(self, *draws):
        self.draws, self.chances = list(draws), []

    def integers(self, n):
        self.n = n
        return self.draws.pop(0)

    def choice(self, n, *, p):
        assert n == self.n
        self.chances.append(p)
        return self.draws.pop(0)


def test_centres_are_drawn_by_the_square_of_how_far_all_before_them_are():
    rows = np.array([[0.0, 0.0], [3.0, 4.0], [1.0, 0.0], [0.0, 12.0]])
    rng = Told(2, 3, 0)
    centres = centres_apart(rng, rows, 3)
    np.testing.assert_array_equal(centres, rows[[2, 3, 0]])
    assert rng.n == 4 and len(rng.chances) == 2
    np.testing.assert_allclose(rng.chances[0] * (1 + 20 + 145), [1, 20, 0, 145], rtol=1e-14)
    np.testing.assert_allclose(rng.chances[1] * (1 + 20), [1, 20, 0, 0], rtol=1e-14)
    np.testing.assert_array_equal(centres_apart(Told(1, 0), np.array([[5.0], [2.0], [5.0]]), 4), [[2.0], [5.0]])
    assert len(centres_apart(Told(0), rows, 1)) == 1


def test_each_row_belongs_to_its_nearest_centre_and_a_centre_of_none_is_left_out():
    rows, centres = np.array([[0.0, 0.0], [3.0, 4.0], [1.0, 0.0]]), np.array([[0.0, -1.0], [50.0, 0.0], [4.0, 2.0]])
    np.testing.assert_array_equal(nearest_centre(rows, centres), [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])


def test_there_are_twenty_rounds_of_lloyds_and_forty_of_the_two_steps(monkeypatch):
    counted = collections.Counter()

    def counting(name):
        rule = getattr(mixture, name)
        monkeypatch.setattr(mixture, name, lambda *args: (counted.update([name]), rule(*args))[1])

    for name in ("nearest_centre", "maximised", "responsibilities"):
        counting(name)
    mixture.expectation_maximised(Told(0, 1), np.array([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]]), 2)
    assert counted == {"nearest_centre": 20, "maximised": 40, "responsibilities": 40}


def test_it_starts_by_lloyds_rounds_and_alternates(monkeypatch):
    """From the centres 0 and 1 of a line: {0} and the rest, then by their means 0 and 7.2 the two groups."""
    rows = np.array([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]])
    monkeypatch.setattr(mixture, "ROUNDS", 1)
    for rounds, first in ((1, [1, 0, 0, 0, 0, 0]), (2, [1, 1, 1, 0, 0, 0])):
        monkeypatch.setattr(mixture, "LLOYD_ROUNDS", rounds)
        known = maximised(rows, np.stack([first, 1 - np.array(first)], axis=1).astype(float))
        for one, other in zip(expectation_maximised(Told(0, 1), rows, 2), known, strict=True):
            np.testing.assert_array_equal(one, other)
    monkeypatch.setattr(mixture, "ROUNDS", 2)
    twice = maximised(rows, responsibilities(rows, *known))
    for one, other in zip(expectation_maximised(Told(0, 1), rows, 2), twice, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_fifth_is_held_out():
    for n, out in ((4, 0), (5, 1), (9, 1), (10, 2), (11, 2), (12, 2), (15, 3)):
        train, held = held_out(np.arange(n)[:, None])
        assert len(held) == out
        np.testing.assert_array_equal(np.concatenate([train, held])[:, 0], np.arange(n))


def ladder(count, each):
    """`each` points at each of `count` places of a line, far apart."""
    rng = np.random.default_rng(5)
    return (100.0 * np.arange(count)[:, None] + 0.1 * rng.standard_normal((count, each))).reshape(-1, 1)


def branching(levels, each):
    """`each` points at each of 2^levels places of a line, in pairs, pairs of pairs, ...: every doubling tells more."""
    places = sum(np.array([0.0, 2.5**level]).reshape(-1, *[1] * level) for level in range(levels))
    return (places.reshape(-1, 1) + 0.05 * np.random.default_rng(5).standard_normal((2**levels, each))).reshape(-1, 1)


@pytest.mark.parametrize(
    ("points", "options", "count"),
    [
        (ladder(2, 8)[:15], {}, None),
        (ladder(2, 8), {}, 2),
        (ladder(4, 8)[:31], {}, 2),
        (ladder(4, 8), {}, 4),
        (ladder(4, 8), {"most": 3}, 2),
        (ladder(4, 8), {"most": 4}, 4),
        (clusters()[1], {"most": 1}, None),
        (np.random.default_rng(0).standard_normal((2000, 1)), {}, None),
        (np.random.default_rng(0).standard_normal((7, 1)), {}, None),
        (np.ones((50, 2)), {}, None),
        (np.full((50, 2), [0.1, 0.3]), {}, None),
        (np.repeat([[0.0], [1.0], [7.0]], 40, axis=0), {}, 3),
        (branching(7, 12), {}, 64),
        (branching(7, 12), {"most": 128}, 128),
    ],
)  # fmt: skip
def test_the_number_is_doubled_while_each_has_eight_points_a_dimension_and_it_pays(points, options, count):
    known = fit(points, **options)
    assert (None if known is None else len(known.weights)) == count


def test_the_seed_is_zero_and_a_component_has_a_thousandth_of_the_spread_at_least():
    _, points = clusters(200)
    means = [fit(points, **options).means for options in ({}, {"seed": 0}, {"seed": 1})]
    np.testing.assert_array_equal(means[0], means[1])
    assert np.any(means[0] != means[2])
    points = np.repeat([[-1.0, 3.0], [1.0, 3.0]], 40, axis=0)
    np.testing.assert_allclose(fit(points).variances, np.full((2, 2), 1e-6 / 2), rtol=1e-10)
