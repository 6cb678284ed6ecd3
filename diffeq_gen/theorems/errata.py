"""Errata: what posts and code print, and what is true; each a theorem whose near miss is the printed formula.

    sigma_t = alpha_t (int g^2/alpha^2)^{1/2},   VP = flow / ((1-t)^2 + t^2)^{1/2},   d loss = w (-lambda') |eps_hat - eps|^2 dt/2

The letters are those of the catalogue: E1-E3 Gao et al. 2024, E5 and E7 Dieleman 2024, E6 Dieleman 2022, E8 the code of
Song et al. 2021.
"""

import math

import jax
import jax.numpy as jnp

from diffeq_gen import clocks, equations, paths, predictions
from diffeq_gen import schedules as families
from diffeq_gen.schedules import at
from diffeq_gen.theorems.domains import positive, scalars, schedules, times, vectors
from diffeq_gen.theorems.registry import theorem

__all__: list[str] = []

early_times = scalars("times in [0.02, 0.8]", 0.02, 0.8)


def _flow_as_sde(nodes):
    """f = -1/(1 - t), g^2 = 2 t/(1 - t): its schedule is alpha = 1 - t, sigma = t."""
    return equations.FromSDE(lambda t: -1 / (1 - t), lambda t: 2 * t / (1 - t), nodes=nodes)


@theorem(
    source="Gao et al. 2024, 'From diffusion models to flow matching', corrected",
    cases=300,
    rate=scalars("rates", 0.1, 2.0), strength=positive("strengths", 0.1, 10.0), t=early_times,
)  # fmt: skip
def erratum_e1_sigma_without_alpha(rate, strength, t):
    """sigma_t^2 = alpha_t^2 int_0^t g^2/alpha^2: for f = -1/(1-t), g^2 = 2t/(1-t) it is t^2, and for constant -f and g^2 the
    variance g^2 (1 - e^{2ft})/(-2f) of Ornstein and Uhlenbeck."""
    settled = [
        equations.FromSDE(lambda t: -rate + 0 * t, lambda t: strength + 0 * t, nodes=nodes) for nodes in (24, 32)
    ]
    coarse, fine = ((_flow_as_sde(nodes)(t), one(t)) for nodes, one in zip((24, 32), settled, strict=True))
    spread = jnp.sqrt(strength * -jnp.expm1(-2 * rate * t) / (2 * rate))
    exact = (1 - t, t), (jnp.exp(-rate * t), spread)
    return fine, exact, jax.tree.map(lambda a, b: jnp.abs(a - b), fine, coarse)


@erratum_e1_sigma_without_alpha.near_miss(witness={"t": 0.6})
def sigma_as_printed(rate, strength, t):
    """sigma_t = (int_0^t g_s^2 e^{-2 int_0^s f})^{1/2}: that is sigma_t/alpha_t, 1.5 for 0.6 on the flow path at t = 0.6."""
    alpha, sigma = _flow_as_sde(32)(t)
    return sigma / alpha, t


@theorem(source="Gao et al. 2024, text of the slider, corrected", t=times)
def erratum_e2_scale_is_a_square_root(t):
    """The flow path divided by sqrt((1-t)^2 + t^2) is variance preserving, at the same log-SNR."""
    return families.variance_preserving(clocks.log_snr(families.Flow(), t)), tuple(
        x / jnp.hypot(1 - t, t) for x in (1 - t, t)
    )


@erratum_e2_scale_is_a_square_root.near_miss
def scale_as_printed(t):
    """Scaled by 1/[(1-t)^2 + t^2]."""
    total = (1 - t) ** 2 + t**2
    return families.variance_preserving(clocks.log_snr(families.Flow(), t)), ((1 - t) / total, t / total)


@theorem(
    source="Gao et al. 2024, equation for the weighted loss, corrected after Kingma & Gao 2023; Kingma et al. 2021, Sec. 4",
    schedule=schedules, x0=vectors(3), error=vectors(3), z=vectors(3), t=times,
)  # fmt: skip
def erratum_e3_sign_of_the_loss(schedule, x0, error, z, t):
    """The loss rate of the ELBO, -SNR' |x0_hat - x0|^2/2, is (-lambda') |eps_hat - eps|^2/2: positive, for lambda falls."""
    p = at(schedule, t)
    snr_dot = jax.grad(lambda t: (schedule(t)[0] / schedule(t)[1]) ** 2)(t)
    of_error = predictions.convert(error, jnp.zeros_like(z), p, predictions.data, predictions.noise)
    return -clocks.log_snr_dot(schedule, t) / 2 * (of_error @ of_error), -snr_dot / 2 * (error @ error)


@erratum_e3_sign_of_the_loss.near_miss
def weight_as_printed(schedule, x0, error, z, t):
    """w(lambda) (d lambda/dt) |eps_hat - eps|^2, with its sign: a loss that falls as the error grows."""
    p = at(schedule, t)
    snr_dot = jax.grad(lambda t: (schedule(t)[0] / schedule(t)[1]) ** 2)(t)
    of_error = p.alpha / p.sigma * error
    return clocks.log_snr_dot(schedule, t) / 2 * (of_error @ of_error), -snr_dot / 2 * (error @ error)


@theorem(
    source="Dieleman 2024, noise schedules, corrected; Nichol & Dhariwal 2021, Eq. 17",
    offset=positive("offsets", 1e-3, 0.1), t=times,
)  # fmt: skip
def erratum_e5_cosine_offset(offset, t):
    """The offset cosine divides abar by its value at 0: sigma^2 = 1 - cos^2(theta)/cos^2(theta_0), zero at t = 0; without an
    offset sigma = sin(pi t/2)."""
    theta, first = ((r + offset) / (1 + offset) * math.pi / 2 for r in (t, 0 * t))
    alpha, sigma = families.IDDPM(offset)(t)
    alpha_0, sigma_0 = families.IDDPM(offset)(0 * t)
    turned = (jnp.sin(theta) - jnp.sin(first)) * (jnp.sin(theta) + jnp.sin(first))
    return (
        (alpha * jnp.cos(first), (sigma * jnp.cos(first)) ** 2, alpha_0, 1 + sigma_0, families.Cosine()(t)),
        (jnp.cos(theta), turned, 1.0 + 0 * t, 1.0 + 0 * t, (jnp.sin(math.pi / 2 * (1 - t)), jnp.sin(math.pi / 2 * t))),
    )


@erratum_e5_cosine_offset.near_miss(witness={"offset": 0.008, "t": 0.0})
def cosine_as_printed(offset, t):
    """sigma = sin((t + s)/(1 + s) pi/2): 0.0125, and not 0, at t = 0."""
    return 1 + families.IDDPM(offset)(t)[1], 1 + jnp.sin((t + offset) / (1 + offset) * math.pi / 2)


@theorem(
    source="Dieleman 2022, diffusion models as autoencoders, corrected; Vincent 2011",
    schedule=schedules, x0=vectors(3), eps=vectors(3), t=times,
)  # fmt: skip
def erratum_e6_sign_of_the_score(schedule, x0, eps, t):
    """The score of N(x0, sigma^2) at x0 + e is -e/sigma^2, and that of q(z | x0) is -eps/sigma."""
    alpha, sigma = schedule(t)
    p = at(schedule, t)
    a, b = predictions.score(p)
    z = paths.perturb(x0, eps, p)
    centred = z - alpha * x0
    score = jax.grad(lambda e: -jnp.sum(e * e) / (2 * sigma**2))(centred)
    return (
        (a * x0 + b * eps, predictions.convert(eps, z, p, predictions.noise, predictions.score)),
        (score, -centred / sigma**2),
    )


@erratum_e6_sign_of_the_score.near_miss
def target_as_printed(schedule, x0, eps, t):
    """|s(x + e) - e|^2 with e = sigma eps: the noise itself for the score, without sign and scale."""
    p = at(schedule, t)
    a, b = predictions.score(p)
    return a * x0 + b * eps, p.sigma * eps


@erratum_e6_sign_of_the_score.near_miss
def only_the_sign_missing(schedule, x0, eps, t):
    """score = eps/sigma."""
    p = at(schedule, t)
    a, b = predictions.score(p)
    return a * x0 + b * eps, eps / p.sigma


@theorem(
    source="Dieleman 2024, noise schedules, corrected; Song et al. 2021, App. B",
    beta_min=scalars("beta at 0", 0.01, 1.0), beta_max=scalars("beta at 1", 2.0, 30.0), t=times,
)  # fmt: skip
def erratum_e7_subvp_is_not_flow(beta_min, beta_max, t):
    """sub-VP is sigma = 1 - alpha^2, from g^2 = beta (1 - e^{-2B}); the path with sigma = 1 - alpha is the flow's."""
    beta, exponent = beta_min + t * (beta_max - beta_min), t * (beta_min + t / 2 * (beta_max - beta_min))
    sub = families.SubVP(beta_min, beta_max)
    p, (straight, noisy) = at(sub, t), families.Flow()(t)
    return (
        (p.sigma + p.alpha**2, equations.variance_rate(p), equations.drift_rate(p), noisy + straight),
        (1.0 + 0 * t, -beta * jnp.expm1(-2 * exponent), -beta / 2, 1.0 + 0 * t),
    )


@erratum_e7_subvp_is_not_flow.near_miss
def subvp_as_printed(beta_min, beta_max, t):
    """alpha = 1 - sigma, "referred to as sub-VP"."""
    alpha, sigma = families.SubVP(beta_min, beta_max)(t)
    return alpha + sigma, 1.0 + 0 * t


@theorem(
    source="Song et al. 2021, code of VESDE.marginal_prob, corrected; their App. C",
    cases=300,
    sigma_min=positive("sigma at 0", 1e-3, 0.1), sigma_max=scalars("sigma at 1", 5.0, 100.0), t=times,
)  # fmt: skip
def erratum_e8_ve_kernel_variance(sigma_min, sigma_max, t):
    """Started at t = 0 from data, the SDE with g^2 = d sigma^2/dt has kernel variance sigma^2 - sigma_min^2."""
    schedule = families.VE(sigma_min, sigma_max)
    p = at(schedule, t)
    scale, std = paths.transition(p, at(schedule, 0 * t))

    def integrated(nodes):
        g_squared = lambda t: equations.variance_rate(at(schedule, t))  # noqa: E731
        return equations.FromSDE(lambda t: 0 * t, g_squared, nodes=nodes)(t)

    (one, fine), (_, coarse) = integrated(32), integrated(24)
    ratio = (sigma_max / sigma_min) ** t
    variance = sigma_min**2 * (ratio - 1) * (ratio + 1)
    zero = 0 * t
    return (
        (scale, std**2, one, fine),
        (1.0 + 0 * t, variance, 1.0 + 0 * t, jnp.sqrt(variance)),
        (zero, zero, zero, jnp.abs(fine - coarse)),
    )


@erratum_e8_ve_kernel_variance.near_miss
def std_as_coded(sigma_min, sigma_max, t):
    """Standard deviation sigma(t)."""
    schedule = families.VE(sigma_min, sigma_max)
    p = at(schedule, t)
    return paths.transition(p, at(schedule, 0 * t))[1], p.sigma
