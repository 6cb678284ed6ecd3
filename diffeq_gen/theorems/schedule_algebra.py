"""Chapter 1, schedules and clocks: slopes, log-SNR and its inverse, the families of the literature, shifts and grids.

    at(schedule, t) = (alpha, sigma, d alpha/dt, d sigma/dt),     time_at(log_snr(t)) = t,     alpha^2 = sigma^2 e^lambda

The anchors are the definitions as their papers print them, difference quotients, and products of fractions.
"""

import fractions
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen import clocks, paths, predictions
from diffeq_gen import schedules as families
from diffeq_gen.schedules import at
from diffeq_gen.theorems.domains import (
    choices,
    log_snrs,
    named_schedules,
    positive,
    scalars,
    schedules,
    smooth_schedules,
    times,
    vectors,
    vp_schedules,
)
from diffeq_gen.theorems.registry import theorem

__all__: list[str] = []

LEVELS = 6


def _derivative(f, t):
    """Richardson's extrapolation of central differences of f at t, and the size of its last correction."""
    step = t * (1 - t) / 16
    rows = [jax.tree.map(lambda ahead, behind: (ahead - behind) / 2, f(t + h), f(t - h)) for h in _halvings(step)]
    table = [jax.tree.map(lambda row, h=h: row / h, row) for row, h in zip(rows, _halvings(step), strict=True)]
    for order in range(1, LEVELS):
        last = table[-1]
        table = [
            jax.tree.map(lambda coarse, fine, k=4**order: fine + (fine - coarse) / (k - 1), *pair)
            for pair in itertools.pairwise(table)
        ]
    return table[0], jax.tree.map(lambda best, before: 4 * jnp.abs(best - before), table[0], last)


def _halvings(step):
    return [step / 2**k for k in range(LEVELS)]


@theorem(
    source="Richardson 1911, extrapolated central differences",
    schedule=smooth_schedules, t=times,
)  # fmt: skip
def slopes_are_derivatives(schedule, t):
    """The slopes of a point are the limits of difference quotients of alpha and sigma, and lambda' that of log-SNR."""
    p = at(schedule, t)

    def read(t):
        alpha, sigma = schedule(t)
        return alpha, sigma, jnp.log(alpha / sigma), jnp.log(alpha / sigma)

    right, truncation = _derivative(read, t)
    return (p.alpha_dot, p.sigma_dot, p.log_snr_dot / 2, clocks.log_snr_dot(schedule, t) / 2), right, truncation


@slopes_are_derivatives.near_miss
def half_log_snr(schedule, t):
    """The clock log(alpha/sigma) of DPM-Solver, half as fast, for lambda."""
    right, truncation = _derivative(lambda t: jnp.log(schedule(t)[0] / schedule(t)[1]), t)
    return at(schedule, t).log_snr_dot, right, truncation


@theorem(source="Kingma et al. 2021, Sec. 3.1", schedule=schedules, t=times, s=times)
def log_snr_matches_point(schedule, t, s):
    """lambda is the logarithm of alpha^2/sigma^2 whether read from the schedule, the point or the clock, and the gap of two
    points is the difference of theirs."""
    (alpha, sigma), (alpha_s, sigma_s) = schedule(t), schedule(s)
    p, q = at(schedule, t), at(schedule, s)
    ratio = (alpha / sigma) ** 2
    return (
        (jnp.exp(p.log_snr), jnp.exp(clocks.log_snr(schedule, t)), jnp.exp(paths.gap(p, q) / 2)),
        (ratio, ratio, alpha_s / alpha * (sigma / sigma_s)),
    )


@log_snr_matches_point.near_miss
def log_of_amplitudes(schedule, t, s):
    """lambda = log(alpha/sigma), as DPM-Solver, UniPC, DEIS and k-diffusion name it."""
    alpha, sigma = schedule(t)
    return jnp.exp(clocks.log_snr(schedule, t)), alpha / sigma


@theorem(source="Kingma & Gao 2023, App. on noise schedules", log_snr=log_snrs)
def lambda_parametrisations(log_snr):
    """At log-SNR lambda: alpha^2 = sigmoid(lambda) (VP), alpha = sigmoid(lambda/2) (flow), sigma = e^{-lambda/2} (VE)."""
    ratio = jnp.exp(log_snr / 2)
    alpha, sigma = families.variance_preserving(log_snr)
    flow = clocks.time_at(families.Flow(), log_snr)
    straight, noisy = families.Flow()(flow)
    one, exploded = families.VE()(clocks.time_at(families.VE(), log_snr))
    return (
        (alpha**2 + sigma**2, alpha, alpha**2, sigma**2, straight + noisy, straight, flow, one, exploded * ratio),
        (
            1.0 + 0 * ratio, ratio * sigma, jax.nn.sigmoid(log_snr), jax.nn.sigmoid(-log_snr), 1.0 + 0 * ratio, ratio * noisy,
            jax.nn.sigmoid(-log_snr / 2), 1.0 + 0 * ratio, 1.0 + 0 * ratio,
        ),
    )  # fmt: skip


@lambda_parametrisations.near_miss
def flow_with_the_sigmoid_of_vp(log_snr):
    """alpha = sigmoid(lambda) on the flow path: half of lambda forgotten."""
    return families.Flow()(clocks.time_at(families.Flow(), log_snr))[0], jax.nn.sigmoid(log_snr)


@lambda_parametrisations.near_miss
def vp_with_the_clock_of_solvers(log_snr):
    """alpha^2 = sigmoid(2 lambda), right for DPM-Solver's lambda, which is half of ours."""
    return families.variance_preserving(log_snr)[0] ** 2, jax.nn.sigmoid(2 * log_snr)


@theorem(
    source="Song et al. 2021, App. C; Nichol & Dhariwal 2021, Eq. 17; Karras et al. 2022, Eq. 5; Jabri et al. 2022",
    cases=300,
    schedule=named_schedules, t=times,
)  # fmt: skip
def schedule_catalogue(schedule, t):
    """Each family is what its paper prints, its log-SNR is log(alpha^2/sigma^2), and its clock inverts it."""
    (alpha, sigma), log_snr = schedule(t), clocks.log_snr(schedule, t)
    printed = PRINTED.get(type(schedule), lambda schedule, t, alpha, sigma: ((), ()))(schedule, t, alpha, sigma)
    return (
        (clocks.time_at(schedule, log_snr), sigma**2 * jnp.exp(log_snr), printed[0]),
        (t, alpha**2, printed[1]),
    )


@schedule_catalogue.near_miss
def ends_exchanged(schedule, t):
    """Time read from noise to data, as in papers on flows: the schedule's clock gives 1 - t."""
    return clocks.time_at(schedule, clocks.log_snr(schedule, t)), 1 - t


@schedule_catalogue.near_miss
def clock_in_amplitudes(schedule, t):
    """The inverse clock fed with log(alpha/sigma) for log-SNR."""
    return clocks.time_at(schedule, clocks.log_snr(schedule, t) / 2), t


def _flow(schedule, t, alpha, sigma):
    return (alpha + sigma, sigma), (1.0 + 0 * t, t)


def _cosine(schedule, t, alpha, sigma):
    """Log-SNR is the cosine's, shifted, and cut by angles at both ends: tan(theta) = e^{shift/2} sigma/alpha."""
    first, last = (
        jnp.arctan(jnp.exp((schedule.shift - end) / 2)) for end in (schedule.log_snr_max, schedule.log_snr_min)
    )
    theta, root = first + t * (last - first), jnp.exp(schedule.shift / 2)
    return (alpha**2 + sigma**2, root * sigma * jnp.cos(theta)), (1.0 + 0 * t, alpha * jnp.sin(theta))


def _iddpm(schedule, t, alpha, sigma):
    def root(t):
        return jnp.cos((t + schedule.s) / (1 + schedule.s) * math.pi / 2)

    return (alpha**2, sigma**2), ((root(t) / root(0 * t)) ** 2, 1 - (root(t) / root(0 * t)) ** 2)


def _integral_of_beta(schedule, t):
    """The middle-point rule, exact for a beta that is linear in time."""
    return t * (schedule.beta_min + t / 2 * (schedule.beta_max - schedule.beta_min))


def _vp(schedule, t, alpha, sigma):
    return (alpha**2, sigma**2 + alpha**2), (jnp.exp(-_integral_of_beta(schedule, t)), 1.0 + 0 * t)


def _sub_vp(schedule, t, alpha, sigma):
    return (alpha**2, sigma + alpha**2), (jnp.exp(-_integral_of_beta(schedule, t)), 1.0 + 0 * t)


def _ve(schedule, t, alpha, sigma):
    return (alpha, sigma), (1.0 + 0 * t, schedule.sigma_min * (schedule.sigma_max / schedule.sigma_min) ** t)


def _edm(schedule, t, alpha, sigma):
    low, high = schedule.sigma_min ** (1 / schedule.rho), schedule.sigma_max ** (1 / schedule.rho)
    return (alpha, sigma), (1.0 + 0 * t, (high + (1 - t) * (low - high)) ** schedule.rho)


def _sigmoid(schedule, t, alpha, sigma):
    def v(t):
        return jax.nn.sigmoid((schedule.start + t * (schedule.end - schedule.start)) / schedule.tau)

    share = (v(1.0 + 0 * t) - v(t)) / (v(1.0 + 0 * t) - v(0 * t))
    return (alpha**2, alpha**2 + sigma**2), (share, 1.0 + 0 * t)


def _laplace(schedule, t, alpha, sigma):
    """The share of log-SNRs above lambda is t: Laplace's survival function at 2 log(alpha/sigma)."""
    x = (2 * jnp.log(alpha / sigma) - schedule.mean) / schedule.scale
    survival = jnp.where(x > 0, jnp.exp(-jnp.abs(x)) / 2, 1 - jnp.exp(-jnp.abs(x)) / 2)
    return (alpha**2 + sigma**2, survival), (1.0 + 0 * t, t)


PRINTED = {
    families.Flow: _flow, families.Cosine: _cosine, families.IDDPM: _iddpm, families.VP: _vp, families.SubVP: _sub_vp,
    families.VE: _ve, families.EDM: _edm, families.Sigmoid: _sigmoid, families.Laplace: _laplace,
}  # fmt: skip


@theorem(
    source="derived; Dieleman 2024 on the Fisher-information heuristic",
    schedule=vp_schedules, low=scalars("log-SNR at t = 1", -20.0, -5.0), high=scalars("log-SNR at t = 0", 5.0, 20.0), t=times,
)  # fmt: skip
def cosine_is_constant_speed(schedule, low, high, t):
    """The speed |(alpha', sigma')| of a variance-preserving schedule is that of its angle, so the one of constant speed is
    the cosine, clipped or not: the whole angle in unit time."""
    angle_dot = jax.grad(lambda t: jnp.arctan2(schedule(t)[1], schedule(t)[0]))(t)
    speeds = [jnp.hypot(p.alpha_dot, p.sigma_dot) for p in (
        at(schedule, t), at(families.Cosine(), t), at(families.Cosine(log_snr_min=low, log_snr_max=high), t))]  # fmt: skip
    whole = jnp.arctan2(jnp.exp(-low / 2), 1.0) - jnp.arctan2(jnp.exp(-high / 2), 1.0)
    return speeds, [angle_dot, math.pi / 2 + 0 * t, whole]


@cosine_is_constant_speed.near_miss
def shifted_cosine_has_constant_speed(schedule, low, high, t):
    """A cosine schedule keeps its constant speed when its log-SNR is shifted."""
    p = at(families.Cosine(shift=-2.0), t)
    return jnp.hypot(p.alpha_dot, p.sigma_dot), math.pi / 2 + 0 * t


@cosine_is_constant_speed.near_miss
def any_speed_is_constant(schedule, low, high, t):
    """Every variance-preserving schedule moves at the speed of the cosine."""
    p = at(schedule, t)
    return jnp.hypot(p.alpha_dot, p.sigma_dot), math.pi / 2 + 0 * t


@theorem(source="intermediate value theorem", cases=300, schedule=schedules, t=times)
def bisection_inverts_any_schedule(schedule, t):
    """time_at finds the time of any log-SNR that a schedule without closed form takes, and its slope is 1/lambda'."""
    plain = lambda t: schedule(t)  # noqa: E731  hides the closed forms that a user's schedule may have
    log_snr = clocks.log_snr(plain, t)
    found, slope = jax.jvp(lambda value: clocks.time_at(plain, value), (log_snr,), (jnp.ones_like(log_snr),))
    return (found, slope * clocks.log_snr_dot(schedule, t)), (t, 1.0 + 0 * t)


@bisection_inverts_any_schedule.near_miss
def time_is_the_sigmoid_of_the_clock(schedule, t):
    """t = sigmoid(-lambda/2), the flow's clock, for any schedule."""
    return jax.nn.sigmoid(-clocks.log_snr(schedule, t) / 2), t


@theorem(
    source="Lu et al. 2022, Sec. 4",
    cases=100,
    schedule=schedules, below=scalars("log-SNR below the middle", 1.0, 9.0), above=scalars("log-SNR above it", 1.0, 9.0),
)  # fmt: skip
def uniform_log_snr_has_equal_gaps(schedule, below, above):
    """The times of uniform_log_snr fall, from the lowest log-SNR to the highest, in steps of equal log-SNR."""

    def inner(t):
        """The schedule without its ends, where log-SNR may be infinite and the judge can bound no minimum of it."""
        return schedule(1e-6 + (1 - 2e-6) * t)

    middle = clocks.log_snr(inner, 0.5 + 0 * below)
    low, high = middle - below, middle + above
    alpha, sigma = jax.vmap(inner)(clocks.uniform_log_snr(inner, 4, log_snr_min=low, log_snr_max=high))
    (alpha_0, sigma_0), (alpha_1, sigma_1) = inner(jnp.zeros_like(low)), inner(jnp.ones_like(low))
    first = jnp.maximum(2 * jnp.log(alpha_1 / sigma_1), low)
    last = jnp.minimum(2 * jnp.log(alpha_0 / sigma_0), high)
    return alpha, sigma * jnp.exp(jnp.stack([((4 - i) * first + i * last) / 8 for i in range(5)]))


@uniform_log_snr_has_equal_gaps.near_miss
def uniform_times_have_equal_gaps(schedule, below, above):
    """Equal steps of t are equal steps of log-SNR."""
    log_snr = jax.vmap(lambda t: clocks.log_snr(schedule, t))(clocks.uniform(4, first=0.9, last=0.1))
    return jnp.diff(log_snr)[:-1], jnp.diff(log_snr)[1:]


@theorem(
    source="Esser et al. 2024, Eq. 23; Hoogeboom et al. 2023, Sec. 3.1",
    cases=300,
    schedule=schedules, ratio=positive("ratio of pixels", 0.01, 100.0), t=times, s=times,
)  # fmt: skip
def resolution_shift(schedule, ratio, t, s):
    """Shifting by ratio takes log(ratio) from lambda: t -> k t/(1 + (k - 1) t), k = sqrt(ratio), for the flow; and the mean of
    four pixels has four times their SNR."""
    (alpha, sigma), (alpha_s, sigma_s) = schedule(t), schedule(s)
    met = (alpha / sigma * (sigma_s / alpha_s)) ** 2
    shifted = clocks.resolution_shift(schedule, met)(t)
    k = jnp.sqrt(ratio)
    moved = k * t / (1 + (k - 1) * t)
    flow = clocks.resolution_shift(families.Flow(), ratio)
    pooled = jnp.full((4,), 0.25, t.dtype)
    snr_of_mean = (pooled.sum() * alpha) ** 2 / (pooled @ pooled * sigma**2)
    quarter = clocks.ResolutionShift(schedule, 0.25)
    return (
        (shifted, flow(t), clocks.time_at(flow, clocks.log_snr(flow, t)), jnp.exp(quarter.log_snr(t))),
        ((alpha_s, sigma_s), ((1 - t) / (1 + (k - 1) * t), moved), t, snr_of_mean),
    )


@resolution_shift.near_miss
def shifted_the_other_way(schedule, ratio, t, s):
    """t -> t/(k - (k - 1) t): less noise for more pixels."""
    k = jnp.sqrt(ratio)
    return clocks.resolution_shift(families.Flow(), ratio)(t)[1], t / (k - (k - 1) * t)


@resolution_shift.near_miss
def shifted_by_the_ratio_of_pixels(schedule, ratio, t, s):
    """k = ratio of pixels, and not of sides."""
    return clocks.resolution_shift(families.Flow(), ratio)(t)[1], ratio * t / (1 + (ratio - 1) * t)


KNOTS = 33
BETAS = np.linspace(1e-4, 0.3, KNOTS)
KEPT = [math.prod(1 - fractions.Fraction(beta) for beta in BETAS[: i + 1]) for i in range(KNOTS)]


@theorem(source="Ho et al. 2020, Sec. 2: abar_i = prod (1 - beta)", knot=choices("knots", *range(KNOTS)))
def tabulated_is_exact_on_knots(knot):
    """On its knots i/(n - 1) a tabulated schedule has alpha^2 = prod(1 - beta) and sigma^2 = 1 - prod(1 - beta); in between its
    log-SNR is linear, and so is its clock."""
    i, t = knot.astype(jnp.int32), knot * (1 / (KNOTS - 1))
    alphas, sigmas = (jnp.asarray([float(x) for x in xs], knot.dtype) for xs in (KEPT, [1 - kept for kept in KEPT]))
    levels = jnp.log(alphas) - jnp.log(sigmas)
    from_betas = families.Tabulated.from_betas(BETAS)
    from_products = families.Tabulated.from_alphas_cumprod(np.array([float(kept) for kept in KEPT]))
    j = jnp.minimum(i, KNOTS - 2)
    between = (jnp.minimum(knot, KNOTS - 2) + 0.25) * (1 / (KNOTS - 1))
    level = 0.75 * levels[j] + 0.25 * levels[j + 1]
    right = [(jnp.sqrt(alphas[i]), jnp.sqrt(sigmas[i]))] * 2 + [level, between]
    left = [from_betas(t), from_products(t), from_betas.log_snr(between), from_betas.time_at(level)]
    # before the claim begins, in float64: sums of n logarithms of one sign; 1 - abar from an abar that is rounded
    sums, difference = 2 * KNOTS * np.finfo(np.float64).eps, np.finfo(np.float64).eps / float(1 - KEPT[0])
    sizes = [jax.tree.map(lambda side: sums * (1 + jnp.abs(side)), part) for part in right]
    return left, right, [sizes[0], jax.tree.map(lambda side: difference * (1 + jnp.abs(side)), right[1]), *sizes[2:]]


@tabulated_is_exact_on_knots.near_miss
def knots_at_i_over_n(knot):
    """Knots at (i + 1)/n, the time that papers give to step i + 1 of n."""
    i = knot.astype(jnp.int32)
    alphas = jnp.asarray([float(kept) for kept in KEPT], knot.dtype)[i]
    return families.Tabulated.from_betas(BETAS)((knot + 1) / (KNOTS + 1))[0] ** 2, alphas


@theorem(source="Lin et al. 2024, Algorithm 1", schedule=vp_schedules, x0=vectors(3), eps=vectors(3), t=times)
def zero_terminal_snr(schedule, x0, eps, t):
    """Rescaled to zero terminal SNR, alpha' is affine in alpha with alpha'(0) = alpha(0) and alpha'(1) = 0, the variance stays
    one; at t = 1 z is pure noise, v = -x0, and eps says nothing about x0."""
    zero, one = 0 * t, 1.0 + 0 * t
    rescaled = families.ZeroTerminalSNR(schedule)
    first, last = at(rescaled, zero), at(rescaled, one)
    # 1 - alpha, without loss of digits, from log-SNR alone
    lost, lost_first, lost_last = (
        -jnp.expm1(-jax.nn.softplus(-clocks.log_snr(schedule, s)) / 2) for s in (t, zero, one)
    )
    (alpha, sigma), kept = rescaled(t), schedule(zero)[0]
    gone = lost_first + kept * (lost - lost_first) / (lost_last - lost_first)
    a, b = predictions.v(last)
    z, v = paths.perturb(x0, eps, last), a * x0 + b * eps
    return (
        (alpha + gone, sigma**2, first.alpha, 1 + last.alpha, z, predictions.convert(v, z, last, predictions.v, predictions.data),
         1 + predictions.determinant(predictions.noise, last)),
        (one, gone * (1 + alpha), kept, one, last.sigma * eps, -v / last.sigma, one),
    )  # fmt: skip


@zero_terminal_snr.near_miss
def shift_without_scale(schedule, x0, eps, t):
    """alpha' = alpha - alpha(1): SNR ends at zero, and the first alpha is lost."""
    return families.ZeroTerminalSNR(schedule)(t)[0], schedule(t)[0] - schedule(1.0 + 0 * t)[0]


@zero_terminal_snr.near_miss
def squares_rescaled(schedule, x0, eps, t):
    """alpha'^2, and not alpha', affine in the old one."""
    squares = [schedule(s)[0] ** 2 for s in (t, 0 * t, 1.0 + 0 * t)]
    return families.ZeroTerminalSNR(schedule)(t)[0] ** 2, squares[1] * (squares[0] - squares[2]) / (
        squares[1] - squares[2]
    )
