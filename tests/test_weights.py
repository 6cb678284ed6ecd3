"""Weights against the densities they are made of, and the weight that a plain loss implies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen import predictions, weights
from diffeq_gen.schedules import VP, Cosine, Flow, at

LADDER = np.linspace(-9.0, 9.0, 37)


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
    ],
    ids=["elbo", "flow", "cosine", "sigmoid", "edm", "logit-normal"],
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


def test_constants_are_checked():
    for make, name in ((weights.edm, "std"), (weights.edm, "sigma_data"), (weights.logit_normal, "std")):
        make(**{name: 1e-9})
        for value in (0.0, -1.0):
            with pytest.raises(ValueError, match=f"{name} must be positive, got {name}={value}"):
                make(**{name: value})


def test_weights_differentiate():
    assert np.isclose(jax.grad(weights.sigmoid(0.0))(1.0), -1 / (1 + np.exp(-1.0)))
