"""Chapter 13, guidance: what a guided denoiser is, and which laws it does and does not sample.

    x0_u + omega (x0_c - x0_u),      score = grad log p_t(z)^{1-omega} p_t(z|y)^omega

    p = N(0, V), p(.|y) = N(0, C):      N_V = alpha^2 V + sigma^2,  N_C = alpha^2 C + sigma^2,  l = log(N_V/N_C)
    flow        N_C^omega N_V^{1-omega}                                      at t = 0  C^omega V^{1-omega}
    SDE         the flow's times sinh((2 omega - 1) l/2) / ((2 omega - 1) sinh(l/2))
    tempered    alpha^2 T + sigma^2,  1/T = omega/C + (1 - omega)/V

At omega = 1 the three are one.  Densities and their slopes are those of `closed_form`, which no world of the library enters.
"""

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen import equations, exact, guidance, paths, predictions
from diffeq_gen.clocks import log_snr
from diffeq_gen.schedules import at
from diffeq_gen.theorems.closed_form import _bayes, _known, _log_normal
from diffeq_gen.theorems.domains import (
    fractions,
    gaussians,
    mixtures,
    positive,
    scalars,
    schedules,
    smooth_schedules,
    times,
    vectors,
)
from diffeq_gen.theorems.registry import theorem

__all__: list[str] = []

scales = scalars("scales", -1.0, 5.0)
narrow, wider = positive("variances", 0.2, 2.0), positive("ratios of variances", 1.2, 5.0)


def _noisy(schedule, x0, eps, t):
    return paths.perturb(x0, eps, at(schedule, t))


def _denoiser(world, schedule):
    """E[x0 | z] by Bayes' rule."""
    return lambda z, t: _known(world, z, *schedule(t)).x0


def _joint(world, z, alpha, sigma):
    """log P(k, z) of every component k."""
    eye = sigma**2 * jnp.eye(2, dtype=z.dtype)
    one = lambda mean, cov: _log_normal(z, alpha * mean, alpha**2 * cov + eye)  # noqa: E731
    return jnp.log(world.weights) + jax.vmap(one)(world.means, world.covs)


def _first(world, z, alpha, sigma):
    """log P(k = 0 | z)."""
    return jax.nn.log_softmax(_joint(world, z, alpha, sigma))[0]


def _classified(schedule, world, x0, eps, t, scale, seen):
    """Guided by the classifier of the first component that has seen data of the time `seen`, and Bayes' rule."""
    z, (alpha, sigma) = _noisy(schedule, x0, eps, t), schedule(t)
    guided = guidance.classifier(
        _denoiser(world, schedule),
        schedule,
        lambda z, t: _first(world, z, *schedule(seen(t))),
        scale=lambda t: scale * t,
    )
    told, untold = _bayes(world.means[0], world.covs[0], z, alpha, sigma).x0, exact.denoise(world, z, at(schedule, t))
    return guided(z, t), untold + scale * t * (told - untold)


@theorem(source="Dieleman 2022, 'Guidance: a cheat code for diffusion models'; Song et al. 2021, Eq. 14", cases=200,
         schedule=smooth_schedules, world=mixtures(2, 3), x0=vectors(2), eps=vectors(2), t=times, scale=scales)  # fmt: skip
def bayes_score(schedule, world, x0, eps, t, scale):
    """grad log p_t(z | y) = grad log p_t(z) + grad log p_t(y | z) at every t, with the classifier of that t."""
    return _classified(schedule, world, x0, eps, t, scale, lambda t: t)


@bayes_score.near_miss
def a_classifier_of_cleaner_data(schedule, world, x0, eps, t, scale):
    """The classifier of half the time, which expects less noise than there is."""
    return _classified(schedule, world, x0, eps, t, scale, lambda t: t / 2)


def _everywhere(schedule, told, untold, x0, eps, t, guide):
    """guide(conditional, unconditional) in each prediction, taken back to x0; and in x0."""
    p, z = at(schedule, t), _noisy(schedule, x0, eps, t)
    found = []
    for kind in (predictions.noise, predictions.v, predictions.velocity, predictions.score, predictions.edm(0.5)):
        said = [predictions.convert(value, z, p, predictions.data, kind) for value in (told, untold)]
        found.append(predictions.convert(guide(*said), z, p, kind, predictions.data))
    return found, [guide(told, untold)] * len(found)


def _said(value):
    """A model that says so whatever it sees."""
    return lambda z, t: value


def _free(told, untold, scale):
    return guidance.classifier_free(_said(told), _said(untold), scale=scale)(told, 0.5)


@theorem(source="Ho & Salimans 2022, Eq. 6; Dieleman 2022, 'Guidance'", schedule=schedules, told=vectors(3), untold=vectors(3),
         x0=vectors(3), eps=vectors(3), t=times, scale=scales)  # fmt: skip
def cfg_affine_invariance(schedule, told, untold, x0, eps, t, scale):
    """Guided noise, v, velocity, score and EDM's output are one guided x0_hat, (1 - omega) x0_u + omega x0_c: coefficients sum to one."""
    found, data = _everywhere(schedule, told, untold, x0, eps, t, lambda c, u: _free(c, u, scale))
    network = lambda z, t, y: y[0] * z + y[1]  # noqa: E731
    denoisers = guidance.conditioned(network, (told[0], told[1]), null=(untold[0], untold[1]))
    there = (1 - scale) * (untold[0] * x0 + untold[1]) + scale * (told[0] * x0 + told[1])
    return (found, data[0], guidance.classifier_free(*denoisers, scale=scale)(x0, t)), (
        data,
        (1 - scale) * untold + scale * told,
        there,
    )


@cfg_affine_invariance.near_miss
def coefficients_of_any_sum(schedule, told, untold, x0, eps, t, scale):
    """omega o_c + o_u."""
    return _everywhere(schedule, told, untold, x0, eps, t, lambda c, u: scale * c + u)


@cfg_affine_invariance.near_miss
def clipped_in_any_prediction(schedule, told, untold, x0, eps, t, scale):
    """The guided output cut to [-1, 1]: not an affine map."""
    return _everywhere(schedule, told, untold, x0, eps, t, lambda c, u: jnp.clip(_free(c, u, scale), -1, 1))


@cfg_affine_invariance.near_miss
def rescaled_in_any_prediction(schedule, told, untold, x0, eps, t, scale):
    """The guided output brought to the contrast of the conditional one, whatever they predict."""
    guided = lambda c, u: guidance.rescale(_said(_free(c, u, scale)), _said(c))(c, t)  # noqa: E731
    return _everywhere(schedule, told, untold, x0, eps, t, guided)


def _implied(schedule, world, x0, eps, t, scale, log_likelihood):
    """A classifier against the two models that imply it, and its slope against (alpha/sigma^2) (x0_c - x0_u)."""
    z, (alpha, sigma) = _noisy(schedule, x0, eps, t), schedule(t)
    told, untold = (_denoiser(one, schedule) for one in (exact.Gaussian(world.means[0], world.covs[0]), world))
    by_classifier = guidance.classifier(untold, schedule, lambda z, t: log_likelihood(z, *schedule(t)), scale=scale)
    slope = jax.grad(log_likelihood)(z, alpha, sigma)
    free = guidance.classifier_free(told, untold, scale=scale)
    return (by_classifier(z, t), slope), (free(z, t), alpha / sigma**2 * (told(z, t) - untold(z, t)))


@theorem(source="Ho & Salimans 2022, Sec. 3.2; Dieleman 2022, 'Guidance'", cases=200, schedule=smooth_schedules, world=mixtures(2, 3),
         x0=vectors(2), eps=vectors(2), t=times, scale=scales)  # fmt: skip
def cfg_is_implicit_classifier(schedule, world, x0, eps, t, scale):
    """grad log p_t(y | z) = score_c - score_u = (alpha/sigma^2) (x0_c - x0_u): two models are a classifier, and guide as it does."""
    return _implied(schedule, world, x0, eps, t, scale, lambda z, *point: _first(world, z, *point))


@cfg_is_implicit_classifier.near_miss
def the_joint_density_as_classifier(schedule, world, x0, eps, t, scale):
    """log p_t(y, z), which is not normalised over y."""
    return _implied(schedule, world, x0, eps, t, scale, lambda z, *point: _joint(world, z, *point)[0])


def _spread(schedule, variance, t):
    alpha, sigma = schedule(t)
    return alpha**2 * variance + sigma**2


def _by_flow(schedule, c, v, scale, t):
    """N_C^omega N_V^{1-omega}."""
    return _spread(schedule, c, t) ** scale * _spread(schedule, v, t) ** (1 - scale)


def _by_sde(schedule, c, v, scale, t):
    """The flow's times sinh((2 omega - 1) l/2)/((2 omega - 1) sinh(l/2))."""
    half = jnp.log(_spread(schedule, v, t) / _spread(schedule, c, t)) / 2
    return _by_flow(schedule, c, v, scale, t) * jnp.sinh((2 * scale - 1) * half) / ((2 * scale - 1) * jnp.sinh(half))


def _tempered(schedule, c, v, scale, t):
    """alpha^2 T + sigma^2, T the variance of p^{1-omega} p(.|y)^omega."""
    return _spread(schedule, 1 / (scale / c + (1 - scale) / v), t)


def _carried(schedule, c, v, scale, t, eta, law):
    """The slope of a law's variance, and what the guided SDE of eta makes of it: 2 A v - eta^2 g^2."""
    one = lambda variance: exact.denoiser(exact.Gaussian(0 * variance[None], variance[None, None]), schedule)  # noqa: E731
    drift, diffusion = equations.reverse_sde(guidance.classifier_free(one(c), one(v), scale=scale), schedule, eta=eta)
    slope = jax.jacfwd(lambda z: drift(z, t))(c[None])[0, 0]
    held, change = jax.jvp(lambda t: law(schedule, c, v, scale, t), (t,), (jnp.ones_like(t),))
    return change, 2 * slope * held - diffusion(t) ** 2


def _clean(t):
    return jnp.ones_like(t), jnp.zeros_like(t)


@theorem(source="Bradley & Nakkiran 2024, 'Classifier-free guidance is a predictor-corrector'; closed forms derived", kind="counterexample",
         schedule=smooth_schedules, c=narrow, wide=wider, t=times, scale=scalars("scales", 1.1, 5.0))  # fmt: skip
def cfg_not_tempered(schedule, c, wide, t, scale):
    """For N(0, V) and N(0, C) the guided flow has variance N_C^omega N_V^{1-omega}, the guided SDE sinh((2 omega - 1) l/2)/((2 omega - 1)
    sinh(l/2)) times that: of 2 and 1 they end in 2^{1-omega} and (2 - 2^{2-2 omega})/(2 omega - 1), the tempered law in 2/(omega + 1)."""
    flow, sde = (_carried(schedule, c, wide * c, scale, t, eta, law) for eta, law in ((0.0, _by_flow), (1.0, _by_sde)))
    ends = [law(_clean, jnp.ones_like(c), 2 + 0 * c, scale, t) for law in (_by_flow, _by_sde, _tempered)]
    wanted = [2 ** (1 - scale), (2 - 2 ** (2 - 2 * scale)) / (2 * scale - 1), 2 / (scale + 1)]
    return (flow[0], sde[0], ends), (flow[1], sde[1], wanted)


@cfg_not_tempered.near_miss
def ddim_samples_the_tempered_law(schedule, c, wide, t, scale):
    """The marginals of the tempered law along the guided flow."""
    return _carried(schedule, c, wide * c, scale, t, 0.0, _tempered)


@cfg_not_tempered.near_miss
def ddpm_samples_the_tempered_law(schedule, c, wide, t, scale):
    """The marginals of the tempered law along the guided SDE."""
    return _carried(schedule, c, wide * c, scale, t, 1.0, _tempered)


def _moved(schedule, c, wide, t, scale, eta, apart):
    """What the guided SDE of eta makes of the flow's law, and the flow's own slope with `apart` eta^2 g^2 (a v - 1) more."""
    flow, _ = _carried(schedule, c, wide * c, scale, t, 0.0, _by_flow)
    _, family = _carried(schedule, c, wide * c, scale, t, eta, _by_flow)
    steep = scale / _spread(schedule, c, t) + (1 - scale) / _spread(schedule, wide * c, t)
    excess = steep * _by_flow(schedule, c, wide * c, scale, t) - 1
    return family, flow + apart * eta**2 * equations.variance_rate(at(schedule, t)) * excess


@theorem(source="Bradley & Nakkiran 2024; derived", kind="counterexample", schedule=smooth_schedules, c=narrow, wide=wider, t=times,
         scale=scalars("scales", 1.1, 5.0), eta=scalars("eta in [1/4, 2]", 0.25, 2.0))  # fmt: skip
def cfg_ode_sde_differ(schedule, c, wide, t, scale, eta):
    """The eta-family of a guided score -a z has no marginals in common: from a law of variance v its variance changes by
    eta^2 g^2 (a v - 1) more than along the flow, which is nothing only where -z/v is the score that guides, as it is at omega = 1."""
    moved, alone = (
        _moved(schedule, c, wide, t, scale, eta, 1.0),
        _moved(schedule, c, wide, t, 1.0 + 0 * scale, eta, 0.0),
    )
    return (moved[0], alone[0]), (moved[1], alone[1])


@cfg_ode_sde_differ.near_miss
def every_eta_has_the_marginals_of_the_flow(schedule, c, wide, t, scale, eta):
    """As of a score that is that of the marginals."""
    return _moved(schedule, c, wide, t, scale, eta, 0.0)


def _two_tokens(untold, told, scale, heard):
    """log p_omega(x1, x2), and the guided factors, times Z(x1)/E[Z] to the power `heard`."""
    guide = lambda q, p: guidance.classifier_free(_said(q), _said(p), scale=scale)(q, 0.5)  # noqa: E731
    p, q = (jax.nn.log_softmax(table.reshape(-1)).reshape(2, 2) for table in (untold, told))
    first_p, first_q = jax.nn.logsumexp(p, axis=1), jax.nn.logsumexp(q, axis=1)
    whole = jax.nn.log_softmax(guide(q, p).reshape(-1)).reshape(2, 2)
    first = jax.nn.log_softmax(guide(first_q, first_p))
    second = guide(q - first_q[:, None], p - first_p[:, None])
    mass = jax.nn.logsumexp(second, axis=1)
    left_over = heard * (mass - jax.nn.logsumexp(first + mass))
    return whole, first[:, None] + second - mass[:, None] + left_over[:, None]


@theorem(
    source="Dieleman 2022, 'Guidance'; derived",
    kind="counterexample",
    untold=vectors(2, 2),
    told=vectors(2, 2),
    scale=scales,
)
def ar_guidance_factorwise(untold, told, scale):
    """Guiding every factor of an autoregressive model is not guiding the model: p_omega(x) is prod_i p_omega(x_i | x_{<i}) times the masses
    Z(x_1) that normalising the guided second factor has taken away."""
    return _two_tokens(untold, told, scale, 1.0)


@ar_guidance_factorwise.near_miss(witness={"told": np.array([[0.0, 1.0], [2.0, -1.0]])})
def factors_are_guided_one_by_one(untold, told, scale):
    """The product of the guided factors, each with a sum of one."""
    return _two_tokens(untold, told, scale, 0.0)


def _away(schedule, good, bad, x0, eps, t, scale, counted):
    """Away from the bad model, and grad log (p_good/p_bad) with the factor omega less `counted`."""
    z, (alpha, sigma) = _noisy(schedule, x0, eps, t), schedule(t)
    guided = guidance.autoguidance(exact.denoiser(good, schedule), exact.denoiser(bad, schedule), scale=scale)
    ratio = lambda z: _known(good, z, alpha, sigma).log_prob - _known(bad, z, alpha, sigma).log_prob  # noqa: E731
    return guided(z, t), _known(good, z, alpha, sigma).x0 + (scale - counted) * sigma**2 / alpha * jax.grad(ratio)(z)


@theorem(source="Karras et al. 2024, 'Guiding a diffusion model with a bad version of itself'", cases=300, schedule=smooth_schedules,
         good=gaussians(2), bad=gaussians(2), x0=vectors(2), eps=vectors(2), t=times, scale=scales)  # fmt: skip
def autoguidance(schedule, good, bad, x0, eps, t, scale):
    """Autoguidance climbs (p_good/p_bad)^{omega-1} from the good model: of a bad model without condition it is classifier-free guidance."""
    return _away(schedule, good, bad, x0, eps, t, scale, 1.0)


@autoguidance.near_miss
def scale_counted_from_the_bad_model(schedule, good, bad, x0, eps, t, scale):
    """(p_good/p_bad)^omega from the good model."""
    return _away(schedule, good, bad, x0, eps, t, scale, 0.0)


def _std(x):
    return jnp.sqrt(jnp.mean((x - jnp.mean(x)) ** 2))


def _rescaled(guided, told, phi, t, size, share):
    """What is rescaled, its size, and the mixed sizes of both: the guided one in its direction."""
    found = guidance.rescale(_said(guided), _said(told), phi=phi)(told, t)
    mixed = share * size(told) + (1 - share) * size(guided)
    return (size(found), found), (mixed, mixed / size(guided) * guided)


@theorem(source="Lin et al. 2024, 'Common diffusion noise schedules and sample steps are flawed', Sec. 3.4", guided=vectors(5),
         told=vectors(5), phi=fractions, t=times)  # fmt: skip
def rescale_keeps_the_std(guided, told, phi, t):
    """The rescaled x0_hat has the direction of the guided one, and the standard deviation phi std(x0_c) + (1 - phi) std(x0_g)."""
    return _rescaled(guided, told, phi, t, _std, phi)


@rescale_keeps_the_std.near_miss
def the_length_is_kept(guided, told, phi, t):
    """The norm, which counts the mean as well."""
    return _rescaled(guided, told, phi, t, lambda x: jnp.sqrt(jnp.mean(x**2)), phi)


@rescale_keeps_the_std.near_miss
def phi_is_the_share_of_the_guided(guided, told, phi, t):
    """phi and 1 - phi in each other's place."""
    return _rescaled(guided, told, phi, t, _std, 1 - phi)


def _in_intervals(schedule, told, untold, t, scale, margin, unit):
    """Guidance from below lambda(t) to above it, above it and below it, in multiples of `unit`; and what it is there."""
    here, plain, guided = (
        unit * log_snr(schedule, t),
        _said(told),
        guidance.classifier_free(_said(told), _said(untold), scale=scale),
    )
    ends = [(here - margin, here + margin), (here + margin, here + 2 * margin), (here - 2 * margin, here - margin)]
    found = [
        guidance.interval(guided, plain, schedule, log_snr_min=low, log_snr_max=high)(told, t) for low, high in ends
    ]
    return found, [(1 - scale) * untold + scale * told, told, told]


@theorem(source="Kynkäänniemi et al. 2024, 'Applying guidance in a limited interval'", schedule=schedules, told=vectors(2),
         untold=vectors(2), t=times, scale=scales, margin=positive("log-SNRs apart", 1e-3, 5.0))  # fmt: skip
def interval_leaves_other_times_alone(schedule, told, untold, t, scale, margin):
    """Guidance in an interval of log-SNR is guidance within, and the conditional model at less and at more noise."""
    return _in_intervals(schedule, told, untold, t, scale, margin, 1.0)


@interval_leaves_other_times_alone.near_miss
def an_interval_of_log_alpha_over_sigma(schedule, told, untold, t, scale, margin):
    """The ends counted in log(alpha/sigma), which DPM-Solver calls lambda: half of it."""
    return _in_intervals(schedule, told, untold, t, scale, margin, 0.5)
