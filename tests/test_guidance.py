"""Guidance at the ends of the path, on samples of any shape, in both precisions; what it refuses, and where its samples end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from diffeq_gen import clocks, exact, guidance, predictions, samplers
from diffeq_gen.schedules import EDM, VE, VP, Cosine, Flow, at
from diffeq_gen.types import dot

MEAN, COV = np.array([0.3, -1.0]), np.array([[1.0, 0.3], [0.3, 0.5]])
ROW, Y, STD = np.array([[1.0, 0.5]]), np.array([0.7]), 0.2
Z = np.array([0.4, 0.9])


def gaussian(mean=MEAN, cov=COV):
    return exact.Gaussian(jnp.asarray(mean, float), jnp.asarray(cov, float))


def clean_log_likelihood(x0):
    return -jnp.sum((jnp.asarray(Y, x0.dtype) - dot(jnp.asarray(ROW, x0.dtype), x0)) ** 2) / (2 * STD**2)


def noisy_log_likelihood(schedule):
    """log N(y; A x0_hat, A Cov A^T + std^2), Gaussian data."""

    def log_likelihood(z, t):
        p, world = at(schedule, t), gaussian()
        row = jnp.asarray(ROW[0], z.dtype)
        variance = row @ exact.posterior_cov(world, z, p) @ row + STD**2
        return -((Y[0] - row @ exact.denoise(world, z, p)) ** 2) / (2 * variance)

    return log_likelihood


def everything(schedule):
    """One denoiser of each kind, for samples of shape (2,)."""
    denoise, other = exact.denoiser(gaussian(), schedule), exact.denoiser(gaussian(-MEAN, 2 * COV), schedule)
    row, y = jnp.asarray(ROW, float), jnp.asarray(Y, float)
    log_prob = lambda z, t: exact.log_prob(gaussian(), z, at(schedule, t))  # noqa: E731
    return {
        "classifier": guidance.classifier(denoise, schedule, noisy_log_likelihood(schedule)),
        "classifier_free": guidance.classifier_free(denoise, other, scale=3.0),
        "autoguidance": guidance.autoguidance(denoise, other, scale=lambda t: 2 - t),
        "interval": guidance.interval(denoise, other, schedule, log_snr_min=-2.0, log_snr_max=2.0),
        "rescale": guidance.rescale(denoise, other),
        "posterior": guidance.posterior(denoise, schedule, row, y, std=STD),
        "pigdm": guidance.pigdm(denoise, schedule, row, y, std=STD),
        "dps": guidance.dps(denoise, schedule, clean_log_likelihood),
        "product": guidance.product([denoise, other], other, scales=(0.5, 2.0)),
        "negation": guidance.negation(denoise, other, other, scale=0.5),
        "mixture": guidance.mixture([denoise, other], [log_prob, lambda z, t: 2 * log_prob(z, t)], weights=[1.0, 3.0]),
    }


KINDS = tuple(everything(Flow()))
EXACT = ("classifier", "posterior")


@pytest.mark.parametrize("kind", KINDS)
def test_finite_at_both_ends_and_in_slopes_and_one_in_jit_and_vmap(kind):
    guided, z = everything(Cosine())[kind], jnp.asarray(Z)
    times = jnp.array([0.0, 0.3, 0.5, 1.0])
    alone = jax.jit(guided)
    one = np.array([alone(z, t) for t in times])
    assert np.all(np.isfinite(one))
    np.testing.assert_allclose(jax.jit(jax.vmap(guided, in_axes=(None, 0)))(z, times), one, rtol=1e-9, atol=1e-12)
    slopes = jax.jit(jax.vmap(jax.jacfwd(guided), in_axes=(None, 0)))(z, times)
    assert np.all(np.isfinite(slopes)) and np.all(np.isfinite(jax.jit(jax.jacrev(guided))(z, 1.0)))


@pytest.mark.parametrize("kind", KINDS)
def test_float32_stays_float32(precision, kind):
    guided = jax.jit(everything(Cosine())[kind])
    for t in (0.2, 1.0):
        found = guided(jnp.asarray(Z, precision), jnp.asarray(t, precision))
        assert found.dtype == precision and found.shape == (2,) and np.all(np.isfinite(found))


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("schedule", [Flow(), Cosine(), VP(), EDM()], ids=repr)
def test_exact_methods_are_exact_up_to_both_ends(schedule, kind):
    """Also at alpha = 0, where E[x0 | z, y] = E[x0 | y], though z says nothing of y."""
    guided = jax.jit(everything(schedule)[kind])
    told = jax.jit(exact.denoiser(guidance.observed(gaussian(), jnp.asarray(ROW), jnp.asarray(Y), std=STD), schedule))
    for t in (0.0, 1e-3, 0.4, 0.999, 1.0):
        np.testing.assert_allclose(guided(jnp.asarray(Z), t), told(jnp.asarray(Z), t), rtol=1e-7)
    np.testing.assert_allclose(exact.denoiser(gaussian(), schedule)(jnp.asarray(Z), 0.0), Z, rtol=1e-3)


def test_at_pure_noise_the_limit_is_that_of_less_noise():
    for kind in ("classifier", "posterior", "pigdm", "dps"):
        guided = jax.jit(everything(Flow())[kind])
        near, there = guided(jnp.asarray(Z), 1 - 1e-7), guided(jnp.asarray(Z), 1.0)
        np.testing.assert_allclose(there, near, rtol=1e-5)
        assert np.max(np.abs(there - MEAN)) > 0.1


def test_the_limit_is_taken_where_alpha_vanishes_not_where_time_ends():
    schedule = lambda t: (1 - 1.25 * t, t)  # noqa: E731
    denoise, row, y = exact.denoiser(gaussian(), schedule), jnp.asarray(ROW), jnp.asarray(Y)
    guided = guidance.posterior(denoise, schedule, row, y, std=STD)(jnp.asarray(Z), 0.8)
    np.testing.assert_allclose(guided, guidance.observed(gaussian(), row, y, std=STD).mean, rtol=1e-12)


def joint(mean, cov, operator, y, std):
    """Mean and covariance of x0 given y, by numpy."""
    gain = cov @ operator.T @ np.linalg.inv(operator @ cov @ operator.T + std**2 * np.eye(len(y)))
    return mean + gain @ (y - operator @ mean), cov - gain @ operator @ cov


@pytest.mark.parametrize("std", [0.0, 0.3])
def test_a_gaussian_that_is_told_something(std):
    mean, cov = np.array([1.0, -2.0, 0.5]), np.array([[2.0, 0.3, -0.4], [0.3, 1.0, 0.2], [-0.4, 0.2, 0.7]])
    operator, y = np.array([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0]]), np.array([0.3, -0.8])
    told = guidance.observed(
        exact.Gaussian(*map(jnp.asarray, (mean, cov))), jnp.asarray(operator), jnp.asarray(y), std=std
    )
    wanted = joint(mean, cov, operator, y, std)
    np.testing.assert_allclose(told.mean, wanted[0], rtol=1e-12)
    np.testing.assert_allclose(told.cov, wanted[1], atol=1e-14)
    np.testing.assert_array_equal(told.cov, told.cov.T)
    if std == 0:
        np.testing.assert_allclose(operator @ told.mean, y, rtol=1e-12)
    assert exact.Gaussian(told.mean, told.cov) is not None


def test_a_mixture_that_is_told_something_keeps_every_component():
    world = exact.Mixture(
        jnp.array([0.25, 0.75]), jnp.array([[3.0, 0.0], [-3.0, 1.0]]), jnp.stack([jnp.asarray(COV)] * 2)
    )
    told = guidance.observed(world, jnp.asarray(ROW), jnp.asarray(Y), std=0.5)
    mass = []
    for k in range(2):
        mean, cov = joint(np.asarray(world.means[k]), COV, ROW, Y, 0.5)
        np.testing.assert_allclose(told.means[k], mean, rtol=1e-12)
        np.testing.assert_allclose(told.covs[k], cov, rtol=1e-12)
        variance = (ROW @ COV @ ROW.T)[0, 0] + 0.25
        mass.append(world.weights[k] * np.exp(-((Y - ROW @ np.asarray(world.means[k]))[0] ** 2) / (2 * variance)))
    np.testing.assert_allclose(told.weights, np.array(mass) / np.sum(mass), rtol=1e-12)
    both = np.array([[1.0, 0.5], [0.3, -2.0]]), np.array([0.7, 0.4])
    told, mass = guidance.observed(world, *map(jnp.asarray, both), std=1.5), []
    for weight, mean in zip(world.weights, np.asarray(world.means), strict=True):
        law = multivariate_normal(both[0] @ mean, both[0] @ COV @ both[0].T + 1.5**2 * np.eye(2))
        mass.append(weight * law.pdf(both[1]))
    np.testing.assert_allclose(told.weights, np.array(mass) / np.sum(mass), rtol=1e-12)
    far = exact.Mixture(world.weights, 100 * world.means, world.covs)
    sure = guidance.observed(far, jnp.array([[1.0, 0.0]]), jnp.array([300.0]), std=0.01)
    assert 0 < sure.weights[1] < 1e-300 and sure.weights[0] == 1
    assert np.all(np.isfinite(exact.denoiser(sure, Flow())(jnp.array([1.0, 2.0]), 0.5)))
    with pytest.raises(
        TypeError, match="only a Gaussian or a Mixture is again one where something of it is seen, got Empirical"
    ):
        guidance.observed(exact.Empirical(jnp.asarray(Z)[None]), jnp.asarray(ROW), jnp.asarray(Y), std=1.0)


def test_samples_of_any_shape_are_read_row_by_row():
    flat, schedule, z = gaussian(np.zeros(4), np.diag([1.0, 2.0, 0.5, 0.8])), VP(), np.array([[0.3, -0.2], [1.0, 0.4]])
    operator, y = jnp.array([[1.0, 0.0, 2.0, 0.0], [0.0, 1.0, 0.0, 0.5]]), jnp.array([0.4, -1.0])
    square = lambda z, t: exact.denoiser(flat, schedule)(z.reshape(-1), t).reshape(2, 2)  # noqa: E731
    for method in (guidance.posterior, guidance.pigdm):
        of_square = method(square, schedule, operator, y, std=0.3)(jnp.asarray(z), 0.6)
        of_flat = method(exact.denoiser(flat, schedule), schedule, operator, y, std=0.3)(
            jnp.asarray(z).reshape(-1), 0.6
        )
        np.testing.assert_allclose(of_square, np.reshape(of_flat, (2, 2)), rtol=1e-12)
        told = exact.denoiser(guidance.observed(flat, operator, y, std=0.3), schedule)(jnp.asarray(z).reshape(-1), 0.6)
        assert np.allclose(of_flat, told, rtol=1e-9) == (method is guidance.posterior)


def test_what_is_left_out_is_what_the_docstrings_say():
    schedule, z = Flow(), jnp.asarray(Z)
    denoise, other = exact.denoiser(gaussian(), schedule), exact.denoiser(gaussian(-MEAN, 2 * COV), schedule)
    row, y, log_prob = jnp.asarray(ROW), jnp.asarray(Y), lambda z, t: -jnp.sum(z * z)
    pairs = (
        (guidance.classifier(denoise, schedule, log_prob), guidance.classifier(denoise, schedule, log_prob, scale=1.0)),
        (
            guidance.dps(denoise, schedule, clean_log_likelihood),
            guidance.dps(denoise, schedule, clean_log_likelihood, scale=1.0),
        ),
        (
            guidance.pigdm(denoise, schedule, row, y, std=STD),
            guidance.pigdm(denoise, schedule, row, y, std=STD, variance=1.0),
        ),
        (guidance.rescale(denoise, other), guidance.rescale(denoise, other, phi=0.7)),
        (guidance.product([denoise, other], other), guidance.product([denoise, other], other, scales=(1.0, 1.0))),
        (guidance.negation(denoise, other, denoise), guidance.negation(denoise, other, denoise, scale=1.0)),
        (guidance.mixture([denoise, other], [log_prob] * 2), lambda z, t: (denoise(z, t) + other(z, t)) / 2),
        (guidance.interval(denoise, other, schedule), denoise),
    )
    for short, whole in pairs:
        np.testing.assert_allclose(short(z, 0.4), whole(z, 0.4), rtol=1e-14)
    for t in (0.0, 1.0):
        np.testing.assert_array_equal(guidance.interval(denoise, other, schedule)(z, t), denoise(z, t))


def test_scale_one_is_the_conditional_model_to_the_last_bit_and_zero_the_unconditional_one():
    c, u = (lambda z, t: jnp.sin(1e3 * z) + t), (lambda z, t: 1e3 * jnp.cos(z) * t)
    for guided in (guidance.classifier_free, guidance.autoguidance):
        np.testing.assert_array_equal(guided(c, u, scale=1.0)(Z, 0.3), c(Z, 0.3))
        np.testing.assert_allclose(guided(c, u, scale=0.0)(Z, 0.3), u(Z, 0.3), rtol=1e-12)
        np.testing.assert_allclose(
            guided(c, u, scale=lambda t: 5 * t)(Z, 0.3), 1.5 * c(Z, 0.3) - 0.5 * u(Z, 0.3), rtol=1e-12
        )


def test_two_models_of_one_network():
    network = lambda z, t, y: z * t + y["label"]  # noqa: E731
    told, untold = guidance.conditioned(network, {"label": jnp.array([1.0, 2.0])}, null={"label": jnp.zeros(2)})
    np.testing.assert_allclose(told(Z, 0.5), Z / 2 + np.array([1.0, 2.0]))
    np.testing.assert_allclose(untold(Z, 0.5), Z / 2)
    number, none = guidance.conditioned(lambda z, t, y: z + y, 3, null=0)
    np.testing.assert_allclose(number(Z, 0.5) - none(Z, 0.5), 3.0)


def test_a_network_of_v_is_guided_first_and_converted_once():
    schedule = VP()
    of_v = lambda z, t, y: jnp.tanh(z + y)  # noqa: E731
    models = guidance.conditioned(of_v, 0.7, null=0.0)
    first = predictions.denoiser(guidance.classifier_free(*models, scale=4.0), schedule, predictions.v)
    each = [predictions.denoiser(model, schedule, predictions.v) for model in models]
    np.testing.assert_allclose(first(Z, 0.4), guidance.classifier_free(*each, scale=4.0)(Z, 0.4), rtol=1e-12)


def test_an_interval_has_its_ends_and_computes_one_of_the_two():
    schedule, z = Flow(), jnp.asarray(Z)
    low, high = clocks.log_snr(schedule, 0.75), clocks.log_snr(schedule, 0.25)
    one, other = (lambda z, t: 0 * z + 1), (lambda z, t: 0 * z - 1)
    guided = guidance.interval(one, other, schedule, log_snr_min=low, log_snr_max=high)
    for t, value in ((0.2, -1), (0.25, 1), (0.5, 1), (0.75, 1), (0.8, -1), (0.0, -1), (1.0, -1)):
        assert np.all(guided(z, jnp.asarray(t)) == value), t
    assert "cond[" in str(jax.make_jaxpr(jax.vmap(guided, in_axes=(0, None)))(z[None], 0.5))


def test_rescaling_leaves_alone_what_has_no_contrast():
    flat, told = (lambda z, t: jnp.full(3, 2.0)), (lambda z, t: jnp.array([1.0, 2.0, 4.0]))
    np.testing.assert_array_equal(guidance.rescale(flat, told, phi=1.0)(Z, 0.3), 2.0)
    np.testing.assert_array_equal(guidance.rescale(told, flat, phi=1.0)(Z, 0.3), 0.0)
    np.testing.assert_array_equal(guidance.rescale(told, flat, phi=0.0)(Z, 0.3), told(Z, 0.3))
    assert np.all(np.isfinite(jax.jacfwd(guidance.rescale(lambda z, t: 0 * z, lambda z, t: z))(jnp.asarray(Z), 0.3)))


def test_a_product_over_a_flat_base_multiplies_densities():
    """Of N(1, 1/2) and N(-1, 1/3) at t -> 0: precision 5, pull -1."""
    schedule = VE(1e-4, 10.0)
    parts = [
        exact.denoiser(gaussian(np.array([m]), np.array([[v]])), schedule) for m, v in ((1.0, 1 / 2), (-1.0, 1 / 3))
    ]
    composed = guidance.product(parts, lambda z, t: z / schedule(t)[0])
    z, sigma = jnp.array([0.4]), schedule(0.0)[1]
    np.testing.assert_allclose((composed(z, 0.0) - z) / sigma**2, -1.0 - 5 * z, rtol=1e-6)


def test_weights_of_a_mixture_need_no_sum():
    models, log_probs = [lambda z, t: z, lambda z, t: -z], [lambda z, t: 0 * t, lambda z, t: 1 + 0 * t]
    found = guidance.mixture(models, log_probs, weights=[3.0, 5.0])(Z, jnp.asarray(0.5))
    np.testing.assert_allclose(found, (3 - 5 * np.e) / (3 + 5 * np.e) * Z, rtol=1e-12)
    np.testing.assert_allclose(
        found, guidance.mixture(models, log_probs, weights=[0.3, 0.5])(Z, jnp.asarray(0.5)), rtol=1e-12
    )
    alone = guidance.mixture(models[:1], log_probs[:1])(Z, jnp.asarray(0.5))
    np.testing.assert_allclose(alone, Z)
    np.testing.assert_allclose(guidance.product(models[:1], models[1], scales=[0.5])(Z, 0.5), 0 * Z)


SHAPES = r"operator and y must be \(m, size\) and \(m,\), got operator="


def refusals():
    """(what is called, what it is told)"""
    g, model, log_prob = guidance, (lambda z, t: z), (lambda z, t: 0.0)
    row, y, z, network = jnp.asarray(ROW), jnp.asarray(Y), jnp.ones(3), lambda z, t, y: z
    triple = exact.Mixture(jnp.ones(1), jnp.zeros((1, 3)), jnp.eye(3)[None])
    short = g.classifier_free(model, lambda z, t: z[:1], scale=2.0)
    return [
        (lambda: g.conditioned(network, 3), "guidance needs the null condition that the network was trained with, got null=None"),
        (lambda: g.conditioned(network, jnp.ones(3), null=jnp.ones(2)), r"like condition, got condition=\(3,\), null=\(2,\)"),
        (lambda: g.conditioned(network, {"a": 1}, null={"b": 1}), "null must be shaped like condition"),
        (lambda: short(Z, 0.5), r"conditional and unconditional must have the same shape, got shapes="),
        (lambda: g.interval(model, model, Flow(), log_snr_min=1.0, log_snr_max=1.0),
         "log_snr_min must be below log_snr_max, got log_snr_min=1.0, log_snr_max=1.0"),
        (lambda: g.rescale(model, model, phi=1.1), r"phi must lie in \[0, 1\], got phi=1.1"),
        (lambda: g.rescale(model, model, phi=-0.1), r"phi must lie in \[0, 1\], got phi=-0.1"),
        (lambda: g.observed(gaussian(), row, y, std=-1.0), "std must not be negative, got std=-1.0"),
        (lambda: g.observed(gaussian(), row[0], y, std=1.0), SHAPES + r"\(2,\), y=\(1,\), size=2"),
        (lambda: g.observed(gaussian(), row, y[0], std=1.0), SHAPES + r"\(1, 2\), y=\(\), size=2"),
        (lambda: g.observed(gaussian(), row, jnp.ones(2), std=1.0), SHAPES + r"\(1, 2\), y=\(2,\), size=2"),
        (lambda: g.observed(triple, row, y, std=1.0), SHAPES + r"\(1, 2\), y=\(1,\), size=3"),
        (lambda: g.posterior(model, Flow(), row, y, std=1.0)(z, 0.5), SHAPES + r"\(1, 2\), y=\(1,\), size=3"),
        (lambda: g.posterior(model, Flow(), row, y, std=-1.0)(Z, 0.5), "std must not be negative, got std=-1.0"),
        (lambda: g.pigdm(model, Flow(), row, y, std=1.0)(z, 0.5), SHAPES + r"\(1, 2\), y=\(1,\), size=3"),
        (lambda: g.pigdm(model, Flow(), row, y, std=1.0, variance=0.0), "variance must be positive, got variance=0.0"),
        (lambda: g.product([], model), "a product needs a denoiser, got denoisers=0"),
        (lambda: g.product([model], model, scales=[1.0, 2.0]), "each denoiser needs a scale, got scales=2, denoisers=1"),
        (lambda: g.mixture([], []), "a mixture needs a denoiser, got denoisers=0"),
        (lambda: g.mixture([model], [log_prob] * 2),
         "each denoiser needs a log-density and a weight, got log_probs=2, weights=1, denoisers=1"),
        (lambda: g.mixture([model], [log_prob], weights=[1.0, 1.0]),
         "each denoiser needs a log-density and a weight, got log_probs=1, weights=2, denoisers=1"),
        (lambda: g.mixture([model] * 2, [log_prob] * 2, weights=[1.0, 0.0]), "weights must be positive, got weight=0.0"),
    ]  # fmt: skip


@pytest.mark.parametrize("case", range(len(refusals())))
def test_what_is_refused(case):
    call, message = refusals()[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_what_is_not_refused_is_allowed():
    model, row, y = (lambda z, t: z), jnp.asarray(ROW), jnp.asarray(Y)
    for phi in (0.0, 1.0):
        guidance.rescale(model, model, phi=phi)
    guidance.pigdm(model, Flow(), row, y, std=0.0, variance=1e-9)(jnp.asarray(Z), 0.5)
    guidance.mixture([model], [lambda z, t: 0.0], weights=[1e-9])


# Where samples end


def test_guided_samplers_end_in_two_laws_and_neither_is_the_tempered_one():
    """p = N(0, 2), p(.|y) = N(0, 1), omega = 3: 1/4 by DDIM, (2 - 1/16)/5 by DDPM, 1/2 tempered.  Bradley & Nakkiran 2024."""
    schedule = VE(1e-3, 500.0)
    parts = [exact.denoiser(gaussian(np.zeros(1), np.array([[v]])), schedule) for v in (1.0, 2.0)]
    guided, times = guidance.classifier_free(*parts, scale=3.0), clocks.uniform(4000)
    start = jnp.zeros(1), jnp.array([[500.0**2]])
    for sampler, variance in ((samplers.ddim, 0.25), (samplers.ddpm, (2 - 2**-4) / 5)):
        _, cov = samplers.law(sampler(guided, schedule), *start, times)
        np.testing.assert_allclose(cov[0, 0], variance, rtol=1e-2)


def test_guided_by_a_classifier_of_every_time_ddim_samples_the_component():
    """A mixture in two dimensions, told the component: the same states as with the denoiser of the component, whose law is known."""
    world = exact.Mixture(
        jnp.array([0.3, 0.7]), jnp.array([[2.0, 1.0], [-1.0, 0.0]]), jnp.stack([0.1 * jnp.asarray(COV)] * 2)
    )
    part, schedule = gaussian(world.means[0], world.covs[0]), Cosine()

    def log_likelihood(z, t):
        p = at(schedule, t)
        return jnp.log(world.weights[0]) + exact.log_prob(part, z, p) - exact.log_prob(world, z, p)

    guided = guidance.classifier(exact.denoiser(world, schedule), schedule, log_likelihood)
    key, times = jax.random.key(0), clocks.uniform_log_snr(schedule, 60, log_snr_min=-12.0, log_snr_max=12.0)
    start = jax.random.normal(key, (64, 2))
    run = lambda denoise: jax.vmap(lambda z: samplers.sample(key, samplers.ddim(denoise, schedule), z, times))(start)  # noqa: E731
    ends = run(guided)
    np.testing.assert_allclose(ends, run(exact.denoiser(part, schedule)), rtol=1e-6, atol=1e-9)
    there = jax.vmap(lambda z: exact.flow_map(part, z, at(schedule, times[0]), at(schedule, times[-1])))(start)
    np.testing.assert_allclose(ends, there, atol=0.05)


def test_told_of_a_measurement_ddim_samples_the_posterior():
    schedule, row, y = VP(), jnp.asarray(ROW), jnp.asarray(Y)
    denoise, times = exact.denoiser(gaussian(), schedule), clocks.uniform_log_snr(schedule, 200, log_snr_max=12.0)
    wanted = guidance.observed(gaussian(), row, y, std=STD)
    start = jnp.zeros(2), jnp.eye(2)
    mean, cov = samplers.law(
        samplers.ddim(guidance.posterior(denoise, schedule, row, y, std=STD), schedule), *start, times
    )
    np.testing.assert_allclose(mean, wanted.mean, atol=0.01)
    np.testing.assert_allclose(cov, wanted.cov, atol=0.01)
    assert np.isclose((ROW @ np.asarray(cov) @ ROW.T)[0, 0], (ROW @ np.asarray(wanted.cov) @ ROW.T)[0, 0], rtol=0.2)
