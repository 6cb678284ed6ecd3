"""Weights against the densities they are made of, and the weight that a plain loss implies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from diffeq_gen import predictions, weights
from diffeq_gen.schedules import VP, Cosine, Flow, at

LADDER = np.linspace(-9.0, 9.0, 37)


def sech(lam):
    return 1 / (2 * np.pi * np.cosh(lam / 2))


def normal(value, mean, std):
    return np.exp(-((value - mean) ** 2) / (2 * std**2)) / (std * np.sqrt(2 * np.pi))


@pytest.mark.parametrize(
    ("weight", "wanted"),
    [
        (weights.elbo, lambda lam: np.ones_like(lam)),
        (weights.flow, lambda lam: np.exp(-lam / 2) / 2),
        (weights.cosine, lambda lam: 1 / (2 * np.pi * np.cosh(lam / 2))),
        (weights.sigmoid(2.0), lambda lam: 1 / (1 + np.exp(lam - 2))),
        (
            weights.edm(mean=-0.8, std=1.5, sigma_data=0.4),
            lambda lam: normal(lam, 1.6, 3.0) * (np.exp(-lam) + 0.16) / 0.16,
        ),
        (weights.logit_normal(mean=0.5, std=0.8), lambda lam: (1 + np.exp(-lam / 2)) ** 2 * normal(lam, -1.0, 1.6)),
        (weights.mode(scale=0.0), lambda lam: np.exp(-lam / 2) / 2),
        (weights.indi, lambda lam: np.exp(-lam) / np.cosh(lam / 4) ** 2 / 8),
        (weights.min_snr(3.0), lambda lam: sech(lam) * np.minimum(1, 3 * np.exp(-lam))),
        (weights.p2(0.5, k=2.0), lambda lam: sech(lam) / np.sqrt(2 + np.exp(lam))),
        (weights.truncated_snr(density=weights.elbo), lambda lam: np.maximum(1, np.exp(-lam))),
        (weights.snr_plus_one(density=weights.elbo), lambda lam: 1 + np.exp(-lam)),
    ],
    ids=[
        "elbo",
        "flow",
        "cosine",
        "sigmoid",
        "edm",
        "logit-normal",
        "mode",
        "indi",
        "min-snr",
        "p2",
        "truncated",
        "snr + 1",
    ],
)
def test_formulas(weight, wanted):
    np.testing.assert_allclose(np.exp(weight(jnp.asarray(LADDER))), wanted(LADDER), rtol=1e-12)
    assert jnp.all(jnp.isfinite(weight(jnp.array([-200.0, 200.0]))))


@pytest.mark.parametrize(
    ("schedule", "prediction", "weight"),
    [(Flow(), predictions.velocity, weights.flow), (Cosine(), predictions.noise, weights.cosine)],
    ids=["flow matching", "eps-MSE, cosine"],
)
def test_plain_losses_imply_the_weights_of_the_literature(schedule, prediction, weight):
    for t in (0.05, 0.4, 0.9):
        p = at(schedule, t)
        np.testing.assert_allclose(weights.implied(prediction, p), weight(p.log_snr), rtol=1e-12, atol=1e-12)


def test_the_implied_weight_turns_a_plain_loss_into_a_weighted_one():
    from diffeq_gen import losses

    schedule, t = VP(), 0.37
    x0, eps = jnp.array([1.0, -2.0]), jnp.array([0.5, 0.25])
    network = lambda z, t: 0.3 * z  # noqa: E731
    for prediction in (predictions.data, predictions.noise, predictions.v, predictions.velocity):
        plain = losses.denoising_loss(network, schedule, prediction, x0, eps, t)
        weight = lambda log_snr, prediction=prediction: weights.implied(prediction, at(schedule, t))  # noqa: E731
        weighted = losses.denoising_loss(network, schedule, prediction, x0, eps, t, weight=weight)
        np.testing.assert_allclose(weighted, plain / 2, rtol=1e-12)


def test_what_is_left_out_is_what_the_papers_use():
    """Karras et al. 2022, Table 1: P_mean = -1.2, P_std = 1.2, sigma_data = 0.5; Esser et al. 2024: a standard logit-normal."""
    for short, whole in (
        (weights.edm(), weights.edm(mean=-1.2, std=1.2, sigma_data=0.5)),
        (weights.logit_normal(), weights.logit_normal(mean=0.0, std=1.0)),
    ):
        assert short(0.7) == whole(0.7)
    for short, whole in (
        (weights.mode(), weights.mode(scale=1.29)),
        (weights.min_snr(), weights.min_snr(5.0, density=weights.cosine)),
        (weights.p2(), weights.p2(1.0, k=1.0, density=weights.cosine)),
        (weights.truncated_snr(), weights.truncated_snr(density=weights.cosine)),
        (weights.snr_plus_one(), weights.snr_plus_one(density=weights.cosine)),
    ):
        for log_snr in (-3.0, 0.7, 4.0):
            assert short(jnp.asarray(log_snr)) == whole(jnp.asarray(log_snr))


@pytest.mark.parametrize("scale", [-0.99, -0.5, 1e-3, 1.29, 1.6])
def test_times_of_mode_integrate_to_one_and_have_a_slope(scale):
    """pi(t) = 2 w e^{lambda/2} at lambda = 2 log((1 - t)/t), by the midpoint rule; its slope by differences."""
    t = (np.arange(20000) + 0.5) / 20000
    log_snr = jnp.asarray(2 * np.log((1 - t) / t))
    density = np.exp(weights.mode(scale=scale)(log_snr) + log_snr / 2) * 2
    np.testing.assert_allclose(density.mean(), 1.0, rtol=2e-3)
    np.testing.assert_allclose(density, density[::-1], rtol=1e-6)
    assert (density[10000] > 1) == (scale > 0)
    at_one = weights.mode(scale=scale)
    slope = (at_one(jnp.asarray(0.7 + 1e-5)) - at_one(jnp.asarray(0.7 - 1e-5))) / 2e-5
    np.testing.assert_allclose(jax.grad(at_one)(jnp.asarray(0.7)), slope, rtol=1e-7, atol=1e-8)


def test_a_scale_that_turns_time_around_is_refused():
    for scale in (-1.0, -1.5, 2 / (np.pi - 2), 3.0):
        with pytest.raises(ValueError, match=r"scale must lie in \(-1, 2/\(pi - 2\)\), got scale="):
            weights.mode(scale=scale)
    with pytest.raises(ValueError, match="gamma must not be negative, got gamma=-0.5"):
        weights.p2(-0.5)
    assert weights.p2(0.0)(jnp.asarray(1.0)) == weights.cosine(jnp.asarray(1.0))


def test_the_weight_of_a_loss_reads_the_density_of_its_times():
    """t ~ Beta(2, 1), so pi = 2 t, where the flow has t = sigmoid(-lambda/2)."""
    found = weights.weight_of(predictions.velocity, Flow(), log_density=lambda t: jnp.log(2 * t))
    for log_snr in (-5.0, 0.3, 6.0):
        t = 1 / (1 + np.exp(log_snr / 2))
        np.testing.assert_allclose(np.exp(found(jnp.asarray(log_snr))), np.exp(-log_snr / 2) / 2 * 2 * t, rtol=1e-12)


def test_augmentation_is_minus_the_slope_of_the_weight():
    """Of sigmoid(b - lambda), sigmoid (1 - sigmoid): a logistic law of noise levels; of one that is flat, none."""
    found = weights.augmentation(weights.sigmoid(2.0))
    s = 1 / (1 + np.exp(0.4 - 2.0))
    np.testing.assert_allclose(np.exp(found(jnp.asarray(0.4))), s * (1 - s), rtol=1e-12)
    assert weights.augmentation(weights.elbo)(jnp.asarray(0.0)) == -jnp.inf
    assert jnp.isnan(weights.augmentation(weights.cosine)(jnp.asarray(-1.0)))


def test_monotone_weights_pass_and_others_are_named():
    for weight in (weights.elbo, weights.flow, weights.indi, weights.sigmoid(2.0)):
        weights.require_monotone(weight, -12.0, 12.0)
    weights.require_monotone(weights.cosine, 0.0, 12.0)
    with pytest.raises(ValueError, match=r"rises with log-SNR is no mixture of ELBOs; it does from, got log_snr=-12.0"):
        weights.require_monotone(weights.cosine, -12.0, 12.0)
    late = lambda log_snr: jnp.maximum(-log_snr, log_snr - 2.0)  # noqa: E731
    with pytest.raises(ValueError, match=r"got log_snr=1.0"):
        weights.require_monotone(late, -3.0, 5.0, count=9)
    weights.require_monotone(late, -3.0, 1.0, count=9)
    with pytest.raises(ValueError, match=r"a weight must be a number at every log-SNR, got log_snr=2.0"):
        weights.require_monotone(lambda log_snr: jnp.sqrt(1.5 - log_snr), -3.0, 5.0, count=9)


def test_constants_are_checked():
    makers = (
        (weights.edm, "std"),
        (weights.edm, "sigma_data"),
        (weights.logit_normal, "std"),
        (weights.min_snr, "gamma"),
        (weights.p2, "k"),
    )
    for make, name in makers:
        make(**{name: 1e-9})
        for value in (0.0, -1.0):
            with pytest.raises(ValueError, match=f"{name} must be positive, got {name}={value}"):
                make(**{name: value})


def test_weights_differentiate():
    assert np.isclose(jax.grad(weights.sigmoid(0.0))(1.0), -1 / (1 + np.exp(-1.0)))


def test_what_rounding_lifts_does_not_rise_and_what_is_left_out_are_1025_places():
    """Of a weight of e^100 the logarithm rounds by 1e-14: five of that pass, fifty do not."""
    nodes = np.linspace(-1.0, 1.5, 1025)
    for ulps, refused in ((5, False), (50, True)):
        stairs = lambda log_snr, ulps=ulps: 100.0 + jnp.where(log_snr > 0, ulps * 100 * np.finfo(float).eps, 0.0)  # noqa: E731
        if refused:
            with pytest.raises(ValueError, match="a weight that rises with log-SNR"):
                weights.require_monotone(stairs, -1.0, 1.5)
        else:
            weights.require_monotone(stairs, -1.0, 1.5)
    first = nodes[:-1][np.diff(nodes**2) > 0][0]
    with pytest.raises(ValueError, match=f"it does from, got log_snr={first}"):
        weights.require_monotone(jnp.square, -1.0, 1.5)


def test_overlap_is_of_4097_places_where_nothing_is_said():
    settings = (weights.edm(), weights.logit_normal(), -5.0, 3.0)
    assert (
        weights.overlap(*settings) == weights.overlap(*settings, count=4097) != weights.overlap(*settings, count=4098)
    )


def test_overlap_of_normals_is_twice_a_tail():
    """Two normals of one std, 1.5 apart: 2 Phi(-0.75/std)."""
    bell = lambda mean: lambda log_snr: jnp.log(7.0) - (log_snr - mean) ** 2 / (2 * 1.2**2)  # noqa: E731
    found = weights.overlap(bell(-0.3), bell(1.2), -15.0, 15.0)
    np.testing.assert_allclose(found, 2 * norm.cdf(-0.75 / 1.2), atol=1e-5)
    np.testing.assert_allclose(weights.overlap(weights.edm(), weights.edm(), -9.0, 9.0), 1.0, rtol=1e-12)
    half = weights.overlap(weights.elbo, lambda log_snr: jnp.where(log_snr > 0, 0.0, -jnp.inf), -1.0, 1.0, count=2)
    np.testing.assert_allclose(half, 0.5, rtol=1e-12)
    for low, high, count, message in (
        (1.0, 1.0, 9, "low must lie below high, got low=1.0, high=1.0"),
        (0.0, 1.0, 1, "count must be at least two, got count=1"),
    ):
        with pytest.raises(ValueError, match=message):
            weights.overlap(weights.elbo, weights.elbo, low, high, count=count)


def test_how_much_the_flow_of_sd3_resembles_edm():
    """Gao et al. 2024 call the two weights very similar: as densities on [-20, 20] they share this much, and little with uniform times."""
    sd3, edm, lam = weights.logit_normal(), weights.edm(), np.linspace(-20.0, 20.0, 400001)
    both = [(1 + np.exp(-lam / 2)) ** 2 * normal(lam, 0.0, 2.0), normal(lam, 2.4, 2.4) * (np.exp(-lam) + 0.25) / 0.25]
    by_hand = np.minimum(*(density / density.sum() for density in both)).sum()
    np.testing.assert_allclose(weights.overlap(sd3, edm, -20.0, 20.0), by_hand, rtol=1e-4)
    np.testing.assert_allclose(by_hand, 0.907, atol=5e-4)
    for density, mean, std in zip(both, (-3.09, -2.59), (2.38, 3.10), strict=True):
        share = density / density.sum()
        np.testing.assert_allclose(share @ lam, mean, atol=5e-3)
        np.testing.assert_allclose(np.sqrt(share @ (lam - share @ lam) ** 2), std, atol=5e-3)
    for weight in (sd3, edm):
        assert weights.overlap(weight, weights.flow, -20.0, 20.0) < 0.01
