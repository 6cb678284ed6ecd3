"""Chapter 9, bounds: what importance weights and the paths of a wrong score say of a likelihood.

The weights of a chain whose denoiser is affine are exponentials of quadratics in its noise: their means are known.  A score that is
(1 + k) times too long keeps Gaussian data Gaussian, x' = -(eta^2 + k(1 + eta^2)) x + eta^2 in tau = log(V_T/V), V = c + sigma^2/alpha^2:
x is by how much the variance is wrong, and (1 + eta^2)^2/(8 eta^2) k^2 the cost of a unit of tau.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen import bounds, exact, paths
from diffeq_gen.schedules import at
from diffeq_gen.theorems.domains import gaussians, positive, scalars, schedules, times, vectors
from diffeq_gen.theorems.estimation import _corners_of
from diffeq_gen.theorems.likelihood_laws import _integral
from diffeq_gen.theorems.registry import theorem
from diffeq_gen.theorems.reverse import _moments
from diffeq_gen.theorems.reverse_flows import _kl
from diffeq_gen.theorems.solver_families import PARABOLAS
from diffeq_gen.theorems.weightings import _normal

__all__: list[str] = []


def _drawn(log_weights, probabilities, count):
    """(E of the bound, E of its exponential) over every outcome of `count` independent draws."""
    outcomes = np.array(list(itertools.product(range(len(log_weights)), repeat=count)))
    chances = jnp.prod(probabilities[outcomes], axis=1)
    said = bounds.importance_weighted(log_weights[outcomes].T)
    return jnp.sum(chances * said), jnp.sum(chances * jnp.exp(said))


@theorem(source="Burda et al. 2016, Theorem 1", kind="inequality", log_weights=vectors(3), share=vectors(3), cases=300)
def more_draws_tighten_the_bound(log_weights, share):
    """E log (w_1 + ... + w_K)/K rises with K towards log E w, and the mean of the weights is unbiased for every K."""
    weights, chances = 3 * jnp.tanh(log_weights), jax.nn.softmax(jnp.tanh(share))
    (one, plain), (two, mean_of_two), (three, _) = (_drawn(weights, chances, count) for count in (1, 2, 3))
    whole = jnp.sum(chances * jnp.exp(weights))
    left = jnp.stack([jnp.sum(chances * weights), one, two, three, plain, whole, mean_of_two, whole])
    return left, jnp.stack([one, two, three, jnp.log(whole), whole, plain, whole, mean_of_two])


@more_draws_tighten_the_bound.near_miss
def the_bound_itself_is_unbiased(log_weights, share):
    """log E w <= E log (w_1 + w_2 + w_3)/3."""
    weights, chances = 3 * jnp.tanh(log_weights), jax.nn.softmax(jnp.tanh(share))
    return jnp.log(jnp.sum(chances * jnp.exp(weights)))[None], _drawn(weights, chances, 3)[0][None]


def _affine(slope, shift):
    """A denoiser whose expected weights are known, different at each time."""
    return lambda z, t: jnp.tanh(slope + t) * z + jnp.tanh(shift)[None]


def _quadratic(schedule, slope, shift, x0, grid):
    """(value, slope, curvature) at no noise of the log weight of a chain along three times."""
    weight = lambda noise: bounds.path_log_weight(noise[:, None], _affine(slope, shift), schedule, x0[None], grid)  # noqa: E731
    none = jnp.zeros_like(grid)
    return weight(none), jax.grad(weight)(none), jax.hessian(weight)(none)


def _log_mean_exp(value, slope, curvature):
    """log E exp(value + slope.e + e.curvature e/2), e ~ N(0, I), one noise after the other."""
    m = jnp.eye(len(slope), dtype=slope.dtype) - curvature
    while len(slope):
        pivot, row = m[0, 0], m[0, 1:]
        value = value + slope[0] ** 2 / pivot / 2 - jnp.log(pivot) / 2
        slope, m = slope[1:] - slope[0] * row / pivot, m[1:, 1:] - row[:, None] * row[None, :] / pivot
    return value


def _chain_density(schedule, slope, shift, x0, grid, variance):
    """log p(x0) of the chain of an affine denoiser: a normal law, step by step."""
    first, last = at(schedule, grid[0]), at(schedule, grid[-1])
    mean, wide = jnp.zeros_like(x0), first.alpha**2 + first.sigma**2
    for t, s in itertools.pairwise(grid):
        p, q = at(schedule, t), at(schedule, s)
        c_z, c_x, std = paths.bridge(p, q)
        factor = c_z + c_x * jnp.tanh(slope + t)
        mean, wide = factor * mean + c_x * jnp.tanh(shift), factor**2 * wide + variance(p, q, std)
    wide = (wide + last.sigma**2) / last.alpha**2
    return _normal(x0, mean / last.alpha, wide)


CHAINS = {"schedule": PARABOLAS, "slope": scalars("numbers of [-1, 1]", -1.0, 1.0), "shift": scalars("numbers of [-2, 2]", -2.0, 2.0),
          "x0": scalars("numbers of [-3, 3]", -3.0, 3.0)}  # fmt: skip
GRID = np.array([0.95, 0.6, 0.15])


@theorem(source="Ho et al. 2020, Eq. 3; Burda et al. 2016", **CHAINS, cases=60)
def chain_weights_are_unbiased(schedule, slope, shift, x0):
    """E_q[p(x0, z)/q(z | x0)] over ancestral paths is the density that the chain of DDPM, of the smaller variance, gives to x0."""
    grid = jnp.asarray(GRID, x0.dtype)
    left = _log_mean_exp(*_quadratic(schedule, slope, shift, x0, grid))
    return left, _chain_density(schedule, slope, shift, x0, grid, lambda p, q, std: std**2)


@chain_weights_are_unbiased.near_miss
def the_chain_of_the_larger_variance(schedule, slope, shift, x0):
    """The density of a chain that draws with the variance of the forward step."""
    grid = jnp.asarray(GRID, x0.dtype)
    left = _log_mean_exp(*_quadratic(schedule, slope, shift, x0, grid))
    forward = lambda p, q, std: paths.transition(p, q)[1] ** 2  # noqa: E731
    return left, _chain_density(schedule, slope, shift, x0, grid, forward)


@chain_weights_are_unbiased.near_miss
def the_elbo_is_the_density(schedule, slope, shift, x0):
    """The mean of the logarithm in the place of the logarithm of the mean."""
    grid = jnp.asarray(GRID, x0.dtype)
    value, _, curvature = _quadratic(schedule, slope, shift, x0, grid)
    density = _chain_density(schedule, slope, shift, x0, grid, lambda p, q, std: std**2)
    return value + jnp.trace(curvature) / 2, density


@theorem(source="Kingma et al. 2021, Eq. 11 to 14", **CHAINS, cases=60)
def mean_log_weight_is_the_discrete_elbo(schedule, slope, shift, x0):
    """E_q log w = -(prior KL + sum expm1(Delta)/2 E|eps - eps_hat|^2 + reconstruction)."""
    return _discrete_elbo(schedule, slope, shift, x0, jnp.expm1)


def _discrete_elbo(schedule, slope, shift, x0, weight):
    grid = jnp.asarray(GRID, x0.dtype)
    value, _, curvature = _quadratic(schedule, slope, shift, x0, grid)
    first, last = at(schedule, grid[0]), at(schedule, grid[-1])
    wide = first.alpha**2 + first.sigma**2
    prior = (first.alpha * x0) ** 2 / wide + first.sigma**2 / wide - 1 - jnp.log(first.sigma**2 / wide)
    cost = prior / 2 + (1 + jnp.log(2 * jnp.pi) - last.log_snr) / 2
    for t, s in itertools.pairwise(grid):
        p, q, factor = at(schedule, t), at(schedule, s), jnp.tanh(slope + t)
        error = (x0 - factor * p.alpha * x0 - jnp.tanh(shift)) ** 2 + (factor * p.sigma) ** 2
        cost = cost + weight(q.log_snr - p.log_snr) / 2 * (p.alpha / p.sigma) ** 2 * error
    return value + jnp.trace(curvature) / 2, -cost


@mean_log_weight_is_the_discrete_elbo.near_miss
def with_the_weight_of_short_steps(schedule, slope, shift, x0):
    """Delta/2 E|eps - eps_hat|^2 a step, as of the integral over log-SNR: too little, for the error is that of the noisier end."""
    return _discrete_elbo(schedule, slope, shift, x0, lambda delta: delta)


def _stretched(schedule, c, k):
    """The exact denoiser of N(0, c), and one whose score is 1 + k times as long."""

    def score(z, t):
        p = at(schedule, t)
        return -z / (p.alpha**2 * c + p.sigma**2)

    def denoiser(length):
        ratio = lambda t: at(schedule, t).sigma ** 2 / at(schedule, t).alpha  # noqa: E731
        return lambda z, t: z / at(schedule, t).alpha + length * ratio(t) * score(z, t)

    return denoiser(1.0), denoiser(1 + k)


def _variance(schedule, c, t):
    """log(c + sigma^2/alpha^2): of what z/alpha varies by."""
    return jnp.log(c + jnp.exp(-at(schedule, t).log_snr))


def _path_kl(schedule, c, k, *etas, factor=1.0):
    """For each eta: (KL of the paths by quadrature of the rate over log-SNR, a bound of its error)."""
    denoise, other = _stretched(schedule, c, k)

    def rates(log_snr):
        p = at(schedule, schedule.time_at(log_snr))
        z = jnp.sqrt(p.alpha**2 * c + p.sigma**2)[None]
        told = [bounds.path_kl_rate(denoise, other, schedule, z, p.t, eta=eta) for eta in etas]
        return factor / -p.log_snr_dot * jnp.stack(told)

    found, doubts = _integral(rates, schedule.log_snr(jnp.ones_like(c)), schedule.log_snr(jnp.zeros_like(c)))
    return list(zip(found, doubts, strict=True))


def _end(schedule, c, k, eta):
    """KL between the variances at the end, from one start, of the score and of that which is too long."""
    length = _variance(schedule, c, jnp.ones_like(c)) - _variance(schedule, c, jnp.zeros_like(c))
    a = eta**2 + k * (1 + eta**2)
    x = jnp.exp(-a * length) - eta**2 / a * jnp.expm1(-a * length)
    return (1 / x - 1 + jnp.log(x)) / 2


STRETCHED = {
    "schedule": PARABOLAS,
    "c": positive("variances of [0.01, 4]", 0.01, 4.0),
    "k": scalars("excess of [0.05, 1]", 0.05, 1.0),
}
etas = positive("eta in [1/4, 4]", 0.25, 4.0)


@theorem(source="Girsanov 1960; Song, Durkan, Murray & Ermon 2021, Theorem 1, for eta = 1; the factor of eta is derived",
         kind="inequality", **STRETCHED, eta=etas, cases=60)  # fmt: skip
def girsanov_bound(schedule, c, k, eta):
    """KL(p_0 || q_0) <= KL of the paths = (1 + eta^2)^2/(8 eta^2) int g^2 E_p|s - s_hat|^2 dt from one start, least at eta = 1."""
    (found, doubt), (least, more) = _path_kl(schedule, c, k, eta, jnp.ones_like(eta))
    left = jnp.stack([_end(schedule, c, k, eta), _end(schedule, c, k, jnp.ones_like(eta)), least])
    return left, jnp.stack([found, least, found]), jnp.stack([doubt, more, doubt + more])


@girsanov_bound.near_miss(witness={"eta": 1.0, "c": 1.0, "k": 0.1})
def with_half_its_factor(schedule, c, k, eta):
    """(1 + eta^2)^2/(16 eta^2): as of a drift and a noise both divided by two."""
    ((found, doubt),) = _path_kl(schedule, c, k, eta, factor=0.5)
    return _end(schedule, c, k, eta)[None], found[None], doubt[None]


@girsanov_bound.near_miss(witness={"c": 0.02})
def the_flow_obeys_it_too(schedule, c, k, eta):
    """KL(p_0 || q_0) of the flow, eta = 0, within the bound of eta = 1: a score too long by k costs it (e^{k tau} - 1 - k tau)/2."""
    ((found, doubt),) = _path_kl(schedule, c, k, jnp.ones_like(eta))
    return _end(schedule, c, k, jnp.zeros_like(eta))[None], found[None], doubt[None]


@girsanov_bound.near_miss
def less_noise_is_a_tighter_bound(schedule, c, k, eta):
    """The bound of eta/2 is no more than that of eta, and so goes down to the flow's."""
    eta = jnp.minimum(eta, 1)
    (found, doubt), (half, more) = _path_kl(schedule, c, k, eta, eta / 2)
    return half[None], found[None], (doubt + more)[None]


STEPS = 2.0 ** -np.arange(3, 9)


@theorem(
    source="derived; Girsanov 1960",
    kind="order",
    order=2.0,
    precisions=("float64",),
    cases=8,
    **STRETCHED,
    t=times,
    eta=etas,
)
def path_kl_is_the_limit_of_step_kls(schedule, c, k, t, eta):
    """The KL divergence of one step of length h of the reverse SDE, in the mean over p, is h times the rate, up to O(h^3): what is left
    is the bridges' within a step, and scores are gradients, of whose paths a bridge knows no more than an integral over time."""
    steps = jnp.asarray(STEPS, c.dtype)
    return steps, jnp.abs(_step_kl(k, eta, steps) / steps - _rate(schedule, c, k, t, eta, eta))


def _rate(schedule, c, k, t, eta, level):
    """The cost of a unit of tau, by the library."""
    denoise, other = _stretched(schedule, c, k)
    p, one = at(schedule, t), jnp.ones_like(t)
    slope = jax.jvp(lambda t: _variance(schedule, c, t), (t,), (one,))[1]
    z = jnp.sqrt(p.alpha**2 * c + p.sigma**2)[None]
    return bounds.path_kl_rate(denoise, other, schedule, z, t, eta=level) / slope


def _step_kl(k, eta, step):
    """E KL between the exact kernels over tau of the right score and of that which is too long, of z over its deviation."""
    a, b = eta**2, eta**2 + k * (1 + eta**2)
    right, wrong = -jnp.expm1(-a * step), -jnp.expm1(-b * step) * a / b
    gap = jnp.exp(-a * step / 2) * jnp.expm1((a - b) * step / 2)
    return (right / wrong - 1 - jnp.log(right / wrong)) / 2 + gap**2 / wrong / 2


@path_kl_is_the_limit_of_step_kls.near_miss(witness={"eta": 2.0})
def of_anderson_alone(schedule, c, k, t, eta):
    """The rate g^2/2 |s - s_hat|^2 of eta = 1, whatever eta is."""
    steps = jnp.asarray(STEPS, c.dtype)
    return steps, jnp.abs(_step_kl(k, eta, steps) / steps - _rate(schedule, c, k, t, eta, jnp.ones_like(eta)))


path_kl_is_the_limit_of_step_kls.not_of_order(1, "Up to O(h^2), as of a rule that is not centred.")


@theorem(source="Song, Durkan, Murray & Ermon 2021, Theorem 1 and Corollary 1; derived",
         schedule=schedules, world=gaussians(2), model=gaussians(2), t=times, cases=200)  # fmt: skip
def path_kl_of_two_laws_is_their_kl(schedule, world, model, t):
    """For the scores of two laws of one forward process the bound of eta = 1 is attained: -d KL(p_t || q_t)/dt is the rate."""
    return _rate_and_change(schedule, world, model, t, 1.0)


def _rate_and_change(schedule, world, model, t, eta):
    drawn, _ = _corners_of(world, at(schedule, t))
    one, other = (exact.denoiser(law, schedule) for law in (world, model))
    rate = jax.vmap(lambda z: bounds.path_kl_rate(one, other, schedule, z, t, eta=eta))(drawn)
    apart = lambda t: _kl(_moments(world, schedule, t), _moments(model, schedule, t))  # noqa: E731
    return jnp.sum(rate) / 4, -jax.jvp(apart, (t,), (jnp.ones_like(t),))[1]


@path_kl_of_two_laws_is_their_kl.near_miss
def attained_by_every_member(schedule, world, model, t):
    """The rate of eta = 2."""
    return _rate_and_change(schedule, world, model, t, 2.0)
