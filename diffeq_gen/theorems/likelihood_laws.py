"""Chapter 9, likelihood: densities carried along the flow, exactly.

d log p(y_theta)/dtheta = -tr d(dy/dtheta)/dy           along dy/dtheta of `likelihood.rates`, in whatever units y is
log p_v(x0)/G_v(x0) - E log p(z)/G(z) at lambda = 1/2 int_lambda^{-log v} E[advantage] d lambda',    G = N(m, C) of `likelihood.advantage`
"""

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen import exact, likelihood, predictions
from diffeq_gen.samplers.control import Control
from diffeq_gen.schedules import at, variance_preserving
from diffeq_gen.theorems.closed_form import _log_normal
from diffeq_gen.theorems.controlled_solvers import _mirror, _variances
from diffeq_gen.theorems.domains import gaussians, mixtures, positive, scalars, vectors
from diffeq_gen.theorems.estimation import _log_density, _pair, gentle_pairs
from diffeq_gen.theorems.registry import theorem
from diffeq_gen.theorems.solver_families import PARABOLAS
from diffeq_gen.theorems.weightings import _normal
from diffeq_gen.types import Point, dot

__all__: list[str] = []


@theorem(source="Chen et al. 2018, Theorem 1; Song et al. 2021, Eq. 39", schedule=PARABOLAS, world=mixtures(2, 2), mean=vectors(2),
         spread=vectors(2), axis=vectors(2), y=vectors(2), share=scalars("shares of the way", 0.05, 0.95), cases=100)  # fmt: skip
def instantaneous_change_of_variables(schedule, world, mean, spread, axis, y, share):
    """Along the probability flow of a mixture's denoiser the log-density of the whitened state falls as the trace of its slope grows."""
    return _carried(schedule, world, mean, spread, axis, y, share, 1.0)


def _carried(schedule, world, mean, spread, axis, y, share, volume):
    """(d log p(y)/dtheta along the flow by autodiff of the mixture's density, minus the trace)."""
    control, y = Control(mean, _variances(spread), _turned(axis)), jnp.tanh(y)
    low, high = (at(schedule, t).log_snr for t in (1.0, 0.0))
    theta = jnp.arctan(jnp.exp((low + share * (high - low)) / 2) * jnp.mean(jnp.square(control.variances)) ** 0.25)

    def log_density(theta, y):
        p = likelihood._point(schedule, control, theta)
        wide = jnp.sum(jnp.log(jnp.square(p.alpha) * control.variances + jnp.square(p.sigma))) / 2
        return exact.log_prob(world, control.colour(control.rows(y), y, p), p) + volume * wide

    rate = likelihood.rates(exact.denoiser(world, schedule), schedule, control)
    along, trace = rate(theta, (y, jnp.zeros_like(theta)))
    return jax.jvp(log_density, (theta, y), (jnp.ones_like(theta), along))[1], -trace


def _turned(axis):
    """A mirror of some direction: of none there is no mirror."""
    return _mirror(jnp.tanh(axis) + jnp.array([1.25, -1.5], axis.dtype))


@instantaneous_change_of_variables.near_miss
def of_the_density_of_z(schedule, world, mean, spread, axis, y, share):
    """log p of z itself: what whitening stretches left out."""
    return _carried(schedule, world, mean, spread, axis, y, share, 0.0)


@theorem(source="derived; the whitened flow of Gaussian data stands still", mean=vectors(2), spread=vectors(2), axis=vectors(2),
         x0=vectors(2), cases=60)  # fmt: skip
def likelihood_is_exact_for_gaussians(mean, spread, axis, x0):
    """With the moments of the data, one step of `encode` and `decode` is the density of N(m, C + sigma^2/alpha^2) and the way back."""
    return _gaussian(mean, spread, axis, x0, 1.0)


def _line(t):
    """lambda = 8 - 16 t: a clock with a closed form."""
    return variance_preserving(8 - 16 * t)


_line.log_snr = lambda t: 8 - 16 * t
_line.time_at = lambda log_snr: (8 - log_snr) / 16


def _gaussian(mean, spread, axis, x0, factor):
    """(densities by one step there and one back and where they end, the closed form and where they began)."""
    variances, basis = _variances(spread), _turned(axis)
    world = exact.Gaussian(mean, dot(basis * variances[None], basis.T))
    control, x0 = Control(mean, factor * variances, basis), mean + jnp.tanh(x0)
    settings = {"steps": 1, "control": control}
    y, density = likelihood.encode(exact.denoiser(world, _line), _line, x0, **settings)
    back, again = likelihood.decode(exact.denoiser(world, _line), _line, y, **settings)
    high = at(_line, jnp.zeros_like(density))
    blurred = Point(high.t, jnp.ones_like(density), high.sigma / high.alpha, high.alpha_dot, high.sigma_dot)
    known = exact.log_prob(world, x0, blurred)
    return (density, again, back), (known, known, x0)


@likelihood_is_exact_for_gaussians.near_miss
def by_variances_a_quarter_too_large(mean, spread, axis, x0):
    """One step is then an approximation."""
    return _gaussian(mean, spread, axis, x0, 1.25)


SIGNS = np.sqrt(2) * np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
"""Equally likely noises in two dimensions with the moments of N(0, I) up to the third: exact for what is quadratic in the noise."""
REFERENCE = {"mean": vectors(2), "spread": vectors(2), "axis": vectors(2), "x0": vectors(2)}


def _rules(rule, many, few, dtype):
    """(nodes, two rows of weights) of two rules of one family, so that what is summed is traced once."""
    (nodes, weights), (others, rest) = rule(many), rule(few)
    table = np.block([[weights, np.zeros(few)], [np.zeros(many), rest]]) / np.sum(weights)
    return jnp.asarray(np.concatenate([nodes, others]), dtype), jnp.asarray(table, dtype)


def _integral(integrand, low, high):
    """(by the rule of Gauss and Legendre of 24 nodes, twice what it differs from that of 16)."""
    nodes, weights = _rules(np.polynomial.legendre.leggauss, 24, 16, low.dtype)
    fine, coarse = (high - low) * dot(weights, jax.vmap(integrand)(low + (high - low) * (nodes + 1) / 2))
    return fine, 2 * jnp.abs(fine - coarse)


def _reaches(schedule, x0):
    """The log-SNRs of both ends."""
    zero = 0 * x0[0]
    return schedule.log_snr(zero + 1), schedule.log_snr(zero)


def _law(world, p):
    """(mean, covariance) of z."""
    return p.alpha * world.mean, jnp.square(p.alpha) * world.cov + jnp.square(p.sigma) * jnp.eye(
        2, dtype=world.cov.dtype
    )


def _reference(mean, spread, axis):
    """(a control, its Gaussian by a matrix)."""
    variances, basis = _variances(spread), _turned(axis)
    return Control(mean, variances, basis), exact.Gaussian(mean, dot(basis * variances[None], basis.T))


def _gain(world, other, z, p):
    """log p(z)/G(z), by dense normal laws."""
    return _log_normal(z, *_law(world, p)) - _log_normal(z, *_law(other, p))


@theorem(source="Kong, Brekelmans & Ver Steeg 2023; between finite ends and beside a Gaussian: derived", schedule=PARABOLAS,
         world=gaussians(2, low=0.4, high=2.0), **REFERENCE, cases=60)  # fmt: skip
def i_mmse_between_two_ends(schedule, world, mean, spread, axis, x0):
    """Half the integral of the advantage over any N(m, C), whose moments need not be those of the data, is log p(x0)/N(m, C) of the laws
    blurred as at the clean end, less the mean of the same of z at the noisy end; every draw of it is zero on data of those moments."""
    left, right, bound = _between(schedule, world, mean, spread, axis, x0, 1.0, 1.0)
    control, own = _reference(mean, spread, axis)
    low, high = _reaches(schedule, x0)
    one = likelihood.advantage(
        exact.denoiser(own, schedule), schedule, mean + jnp.tanh(x0), jnp.tanh(x0), (low + high) / 2, control=control
    )
    return (left, 1 + one), (right, jnp.ones_like(one)), (bound, jnp.zeros_like(bound))


def _between(schedule, world, mean, spread, axis, x0, fresh, rest):
    """(half the integral, what it is said to be, a bound); fresh: whether x0 has the noise of the clean end already."""
    (control, other), x0 = _reference(mean, spread, axis), mean + jnp.tanh(x0)
    low, high = _reaches(schedule, x0)
    signs, top = jnp.asarray(SIGNS, x0.dtype), high if fresh else jnp.inf
    draw = lambda eps, log_snr: likelihood.advantage(  # noqa: E731
        exact.denoiser(world, schedule), schedule, x0, eps, log_snr, control=control, log_snr_max=top
    )
    found, bound = _integral(lambda log_snr: jnp.mean(jax.vmap(lambda eps: draw(eps, log_snr))(signs)) / 2, low, high)
    p, q = at(schedule, 1 + 0 * low), at(schedule, 0 * low)
    z = p.alpha * x0[None] + p.sigma * jnp.sqrt(-jnp.expm1(low - top)) * signs
    left_over = jnp.mean(jax.vmap(lambda z: _gain(world, other, z, p))(z))
    return found, _gain(world, other, q.alpha * x0, q) - rest * left_over, bound


@i_mmse_between_two_ends.near_miss
def of_noise_upon_the_blur(schedule, world, mean, spread, axis, x0):
    """The integral up to the clean end of z = alpha x0 + sigma eps, taken for the density at x0: it is a mean over draws around x0."""
    return _between(schedule, world, mean, spread, axis, x0, 0.0, 1.0)


@i_mmse_between_two_ends.near_miss
def nothing_is_left_at_the_noisy_end(schedule, world, mean, spread, axis, x0):
    """Without the mean of log p(z)/G(z) at the noisy end, which vanishes only as that goes to infinite noise."""
    return _between(schedule, world, mean, spread, axis, x0, 1.0, 0.0)


@theorem(source="Kong, Brekelmans & Ver Steeg 2023; derived", schedule=PARABOLAS, half_distance=gentle_pairs,
         share=scalars("shares of [0.1, 0.9]", 0.1, 0.9), std=scalars("std of [0.5, 2]", 0.5, 2.0),
         x0=scalars("data of [-2, 2]", -2.0, 2.0), c=positive("variances of [0.3, 3]", 0.3, 3.0), cases=20)  # fmt: skip
def i_mmse_is_the_density_of_the_flow(schedule, half_distance, share, std, x0, c):
    """Of a mixture, whose denoiser is not linear, it is the density at x0 itself of the data blurred as at the clean end: `encode`'s."""
    return _of_a_pair(schedule, half_distance, share, std, x0, c, 1.0)


def _of_a_pair(schedule, half_distance, share, std, x0, c, factor):
    world, control = _pair(half_distance, share, std), Control(jnp.zeros_like(x0)[None], c[None])
    (low, high), denoise = _reaches(schedule, x0[None]), exact.denoiser(world, schedule)
    draws, laws = _rules(np.polynomial.hermite_e.hermegauss, 40, 30, x0.dtype)
    p, q = at(schedule, 1 + 0 * low), at(schedule, 0 * low)

    def plain(z, p):
        return _normal(z, 0.0, p.alpha**2 * c + p.sigma**2)

    def means(log_snr):
        one = lambda eps: likelihood.advantage(  # noqa: E731
            denoise, schedule, x0[None], eps[None], log_snr, control=control, log_snr_max=high
        )
        return dot(laws, jax.vmap(one)(draws)) / 2

    def gain(eps):
        z = p.alpha * x0 + p.sigma * jnp.sqrt(-jnp.expm1(low - high)) * eps
        return _log_density(world, z, p.alpha, p.sigma) - plain(z, p)

    (found, rough), (bound, _) = _integral(lambda log_snr: factor * means(log_snr), low, high)
    left_over, roughly = dot(laws, jax.vmap(gain)(draws))
    doubt = bound + 2 * jnp.abs(found - rough) + 2 * jnp.abs(left_over - roughly)
    return found + left_over + plain(q.alpha * x0, q), _log_density(world, q.alpha * x0, q.alpha, q.sigma), doubt


@i_mmse_is_the_density_of_the_flow.near_miss
def in_half_the_log_snr(schedule, half_distance, share, std, x0, c):
    """The integral without its half: as in the lambda of DPM-Solver."""
    return _of_a_pair(schedule, half_distance, share, std, x0, c, 2.0)


@theorem(
    source="derived; Kingma et al. 2021, Eq. 11, beside Kong, Brekelmans & Ver Steeg 2023",
    schedule=PARABOLAS,
    **REFERENCE,
    cases=60,
)
def i_mmse_is_the_elbo_of_a_blur(schedule, mean, spread, axis, x0):
    """For any denoiser, right or wrong: E log N(z/alpha; m, C + v) at the clean end + half the integral of the advantage is the ELBO
    of the model that starts from the same Gaussian at the noisy end.  One integral, so neither of the two is nearer to the truth."""
    return _elbo(schedule, mean, spread, axis, x0, True)


def _elbo(schedule, mean, spread, axis, x0, blurred):
    (control, law), x0 = _reference(mean, spread, axis), mean + jnp.tanh(x0)
    (low, high), signs = _reaches(schedule, x0), jnp.asarray(SIGNS, x0.dtype)
    wrong = lambda z, t: jnp.tanh(z) * (1 - t / 2) + mean  # noqa: E731
    average = lambda verb, p: jnp.mean(jax.vmap(lambda eps: verb(eps, p.alpha * x0 + p.sigma * eps))(signs))  # noqa: E731

    def errors(log_snr):
        p = at(schedule, schedule.time_at(log_snr))
        told = lambda z: predictions.convert(wrong(z, p.t), z, p, predictions.data, predictions.noise)  # noqa: E731
        return average(lambda eps, z: jnp.sum(jnp.square(told(z) - eps)) / 2, p)

    def gains(log_snr):
        one = lambda eps: likelihood.advantage(wrong, schedule, x0, eps, log_snr, control=control)  # noqa: E731
        return jnp.mean(jax.vmap(one)(signs)) / 2

    (diffusion, bound), (gained, more) = _integral(errors, low, high), _integral(gains, low, high)
    p, q = at(schedule, 1 + 0 * low), at(schedule, 0 * low)
    unit = jnp.eye(2, dtype=x0.dtype)
    prior = average(lambda eps, z: _log_normal(z, p.alpha * x0, p.sigma**2 * unit) - _log_normal(z, *_law(law, p)), p)
    reconstruction = 1 + jnp.log(2 * jnp.pi) - q.log_snr
    clean = average(lambda eps, z: _log_normal(z if blurred else q.alpha * x0, *_law(law, q)), q) + 2 * jnp.log(q.alpha)
    # +-sqrt(2) along two axes: what is not quadratic is the same on both sides
    return clean + gained, -(prior + diffusion + reconstruction), bound + more


@i_mmse_is_the_elbo_of_a_blur.near_miss
def of_the_same_density(schedule, mean, spread, axis, x0):
    """log N(x0; m, C + v) in the place of its mean over another draw of the noise: the ELBO bounds the law blurred once more."""
    return _elbo(schedule, mean, spread, axis, x0, False)


@theorem(source="Lu et al. 2022, 'Maximum likelihood training for score-based diffusion ODEs'; pointwise in x0: derived",
         schedule=PARABOLAS, x0=vectors(1), mean=vectors(3), spread=vectors(3), c=positive("variances of [0.3, 3]", 0.3, 3.0),
         share=scalars("shares of [0.1, 0.9]", 0.1, 0.9), cases=200)  # fmt: skip
def the_flow_of_a_wrong_score_has_a_law_of_its_own(schedule, x0, mean, spread, c, share):
    """Of the law p that the flow of any denoiser carries, right or wrong, d/dlambda E log p(z)/G(z) = half the mean of advantage and
    excess: the flow's log-density is not that of the bound of its SDE, whatever is solved how exactly."""
    return _carried_by_a_wrong_score(schedule, x0, mean, spread, c, share, 1.0)


def _carried_by_a_wrong_score(schedule, x0, mean, spread, c, share, heard):
    """(the slope in log-SNR by autodiff, half the mean of what is told), of normal laws in z/alpha that move as parabolas do."""
    x0, zero = jnp.tanh(x0), 0 * x0[0]
    low, high = schedule.log_snr(zero + 1), schedule.log_snr(zero)
    here, control = low + share * (high - low), Control(jnp.zeros_like(x0), c)
    path = lambda row, log_snr: row[0] + log_snr / 8 * (row[1] + log_snr / 8 * row[2])  # noqa: E731
    law = lambda log_snr: (path(jnp.tanh(mean), log_snr), jnp.exp(path(jnp.tanh(spread), log_snr)))  # noqa: E731

    def gained(log_snr):
        (middle, variance), noise = law(log_snr), jnp.exp(-log_snr)
        draws = x0 + jnp.asarray([1, -1], x0.dtype) * jnp.sqrt(noise - jnp.exp(-high))
        wide = c + noise
        each = jnp.square(draws) / wide - jnp.square(draws - middle) / variance + jnp.log(wide / variance)
        return jnp.mean(each) / 2

    (middle, variance), (slope, growth) = jax.jvp(law, (here,), (jnp.ones_like(here),))
    alpha, sigma = schedule(schedule.time_at(here))
    inside = lambda z: z / alpha - middle  # noqa: E731
    denoise = lambda z, t: z / alpha + 2 * (slope + growth / variance / 2 * inside(z))  # noqa: E731
    carried = lambda z, t: z / alpha - jnp.square(sigma / alpha) * inside(z) / variance  # noqa: E731

    def told(eps):
        advantage = likelihood.advantage(denoise, schedule, x0, eps, here, control=control, log_snr_max=high)
        return advantage + heard * likelihood.excess(denoise, carried, schedule, x0, eps, here, log_snr_max=high)

    one = jnp.ones_like(x0)
    return jax.grad(gained)(here), (told(one) + told(-one)) / 4


@the_flow_of_a_wrong_score_has_a_law_of_its_own.near_miss
def as_an_exact_denoiser_s(schedule, x0, mean, spread, c, share):
    """The advantage alone, as I-MMSE has it."""
    return _carried_by_a_wrong_score(schedule, x0, mean, spread, c, share, 0.0)


@the_flow_of_a_wrong_score_has_a_law_of_its_own.near_miss
def twice_the_excess(schedule, x0, mean, spread, c, share):
    """As if it were a square."""
    return _carried_by_a_wrong_score(schedule, x0, mean, spread, c, share, 2.0)
