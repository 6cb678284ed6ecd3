"""Chapter 2, forward: the linear SDE behind a schedule, and what it does to laws, entropies and the prior.

    dz = f z dt + g dw,    f = d log(alpha)/dt,    g^2 = -sigma^2 d lambda/dt
    alpha = exp(int f),    sigma^2 = alpha^2 int g^2 / alpha^2

Read backwards, the same integrals turn an SDE into a schedule; where log-SNR rises there is no SDE to read.
"""

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen import clocks, equations, exact, paths, samplers
from diffeq_gen.schedules import VE, VP, Flow, SubVP, at, variance_preserving
from diffeq_gen.theorems.domains import (
    choices,
    earlier,
    gaussians,
    mixtures,
    positive,
    probabilities,
    scalars,
    schedules,
    smooth_schedules,
    times,
    vectors,
    vp_schedules,
)
from diffeq_gen.theorems.refinement import grids
from diffeq_gen.theorems.registry import theorem

__all__: list[str] = []

middle = scalars("times in [0.2, 0.9]", 0.2, 0.9)
least_betas = positive("beta_min in [0.01, 1]", 0.01, 1.0)
beta_rises = positive("beta_max - beta_min in [1, 20]", 1.0, 20.0)


def _slope(f, t):
    return jax.jvp(f, (t,), (jnp.ones_like(t),))[1]


def _solved(f, g_squared, t, rules=(24, 32)):
    """((alpha, sigma^2), truncation) of the shipped quadrature; what two rules differ by bounds the error of the finer one."""
    coarse, fine = (equations.FromSDE(f, g_squared, nodes)(t) for nodes in rules)
    (alpha, sigma), (rough_alpha, rough_sigma) = fine, coarse
    return (alpha, sigma**2), (jnp.abs(alpha - rough_alpha), jnp.abs(sigma**2 - rough_sigma**2))


@theorem(source="Song et al. 2021, App. B; Kingma et al. 2021, Sec. 3", schedule=schedules, z=vectors(2), t=times)
def sde_from_schedule(schedule, z, t):
    """The forward SDE of a schedule has f = d log(alpha)/dt and g^2 = d sigma^2/dt - 2 f sigma^2 = -sigma^2 d lambda/dt."""
    p = at(schedule, t)
    drift, diffusion = equations.forward_sde(schedule)
    f = _slope(lambda t: jnp.log(schedule(t)[0]), t)
    g_squared = _slope(lambda t: schedule(t)[1] ** 2, t) - 2 * f * schedule(t)[1] ** 2
    born = _slope(lambda r: paths.transition(at(schedule, r), p)[0], t)
    left = equations.drift_rate(p), drift(z, t), equations.variance_rate(p), diffusion(t) ** 2
    more = born, -(schedule(t)[1] ** 2) * clocks.log_snr_dot(schedule, t)
    return (*left, *more), (f, f * z, g_squared, g_squared, f, g_squared)


@sde_from_schedule.near_miss
def variance_rate_of_a_driftless_sde(schedule, z, t):
    """g^2 = d sigma^2/dt, the rule of VE, for a schedule whose alpha moves."""
    return equations.variance_rate(at(schedule, t)), _slope(lambda t: schedule(t)[1] ** 2, t)


@sde_from_schedule.near_miss
def drift_is_the_slope_of_alpha(schedule, z, t):
    """f = d alpha/dt, without the logarithm."""
    drift, _ = equations.forward_sde(schedule)
    return drift(z, t), at(schedule, t).alpha_dot * z


def _kernel(schedule, t, share):
    """The SDE started at s: its scale and variance at t by quadrature, and by subtraction of the marginals."""
    s = 0.1 + share * (t - 0.1)
    solved, truncation = _solved(
        lambda r: equations.drift_rate(at(schedule, s + r)),
        lambda r: equations.variance_rate(at(schedule, s + r)),
        t - s, rules=(16, 20),
    )  # fmt: skip
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    scale = alpha_t / alpha_s
    return solved, (scale, sigma_t**2 - scale**2 * sigma_s**2), truncation


@theorem(source="Gao et al. 2024, 'From diffusion to flow matching', with its factor alpha restored; Karras et al. 2022, App. B",
         cases=100, schedule=smooth_schedules, t=middle, share=probabilities)  # fmt: skip
def schedule_from_sde(schedule, t, share):
    """alpha = exp(int f) and sigma^2 = alpha^2 int g^2/alpha^2 return the schedule, from any time s in place of 0."""
    return _kernel(schedule, t, share)


@schedule_from_sde.near_miss
def sigma_without_its_factor_alpha(schedule, t, share):
    """sigma^2 = int g^2/alpha^2, as the blog prints it: that is the variance of z/alpha."""
    (scale, variance), right, truncation = _kernel(schedule, t, share)
    return (scale, variance / scale**2), right, truncation


@theorem(source="Song et al. 2021, VP SDE", cases=500, schedule=vp_schedules, beta_min=least_betas, rise=beta_rises,
         data_variance=positive("data variance in [0.1, 10]", 0.1, 10.0), t=times)  # fmt: skip
def vp_sde(schedule, beta_min, rise, data_variance, t):
    """Where alpha^2 + sigma^2 = 1, f = -g^2/2, and V - 1 decays as alpha^2; f = -beta/2, g^2 = beta with linear beta is VP."""
    p, q, r = at(schedule, t), at(VP(beta_min, beta_min + rise), t), beta_min + rise * t
    solved, truncation = _solved(lambda t: -(beta_min + rise * t) / 2, lambda t: beta_min + rise * t, t)
    variance, change = jax.jvp(lambda t: _variance(schedule, data_variance, t), (t,), (jnp.ones_like(t),))
    left = (
        -2 * equations.drift_rate(p),
        -2 * equations.drift_rate(q),
        equations.variance_rate(q),
        q.alpha**2 + q.sigma**2,
    )
    right = equations.variance_rate(p), r, r, jnp.ones_like(t)
    flow = 2 * equations.drift_rate(p) * variance + equations.variance_rate(p)
    none = jnp.zeros_like(t)
    return (*left, flow, *solved), (*right, change, q.alpha, q.sigma**2), (*(none,) * 5, *truncation)


def _variance(schedule, data_variance, t):
    alpha, sigma = schedule(t)
    return alpha**2 * data_variance + sigma**2


@vp_sde.near_miss
def drift_of_a_whole_beta(schedule, beta_min, rise, data_variance, t):
    """f = -g^2, without the half."""
    p = at(schedule, t)
    return equations.drift_rate(p), -equations.variance_rate(p)


@vp_sde.near_miss
def variance_preserved_whatever_the_data(schedule, beta_min, rise, data_variance, t):
    """Var z_t = 1 for data of any variance, as the name suggests."""
    return _variance(schedule, data_variance, t), jnp.ones_like(t)


@theorem(source="Song et al. 2021, sub-VP SDE", cases=500, beta_min=least_betas, rise=beta_rises, t=times)
def subvp_sde(beta_min, rise, t):
    """f = -beta/2, g^2 = beta (1 - e^{-2B}) give sigma = 1 - e^{-B} = sigma_VP^2 <= sigma_VP and V = 1 - alpha^2 sigma <= 1."""
    p, vp = at(SubVP(beta_min, beta_min + rise), t), at(VP(beta_min, beta_min + rise), t)
    rate, exponent = beta_min + rise * t, beta_min * t + rise * t**2 / 2
    g_squared = lambda t: (beta_min + rise * t) * -jnp.expm1(-2 * beta_min * t - rise * t**2)  # noqa: E731
    solved, truncation = _solved(lambda t: -(beta_min + rise * t) / 2, g_squared, t)
    left = -2 * equations.drift_rate(p), equations.variance_rate(p), p.sigma, p.alpha**2 + p.sigma**2
    right = rate, g_squared(t), vp.sigma**2, 1 - jnp.exp(-exponent) * p.sigma
    none = jnp.zeros_like(t)
    return (*left, *solved), (*right, p.alpha, p.sigma**2), (*(none,) * 4, *truncation)


@subvp_sde.near_miss
def subvp_with_the_exponent_doubled(beta_min, rise, t):
    """sigma = 1 - e^{-2B}, as in a deployed library."""
    return at(SubVP(beta_min, beta_min + rise), t).sigma, -jnp.expm1(-2 * beta_min * t - rise * t**2)


@subvp_sde.near_miss
def subvp_is_the_flow_path(beta_min, rise, t):
    """alpha + sigma = 1: the name sub-VP is also used for the flow path, which is another."""
    p = at(SubVP(beta_min, beta_min + rise), t)
    return p.alpha + p.sigma, jnp.ones_like(t)


@theorem(source="Song et al. 2021, VE SDE; score_sde's marginal_prob", kind="counterexample", cases=500,
         sigma_min=positive("sigma_min in [0.001, 0.1]", 1e-3, 0.1), ratio=positive("sigma_max/sigma_min in [10, 10^4]", 10.0, 1e4),
         t=times)  # fmt: skip
def ve_marginal_offset(sigma_min, ratio, t):
    """The SDE with g^2 = d sigma^2/dt, started from data at t = 0, has kernel variance sigma^2 - sigma_min^2."""
    schedule = VE(sigma_min, sigma_min * ratio)
    rate = lambda t: equations.variance_rate(at(schedule, t))  # noqa: E731
    (_, variance), (_, truncation) = _solved(jnp.zeros_like, rate, t)
    _, std = paths.transition(at(schedule, t), at(schedule, jnp.zeros_like(t)))
    offset = sigma_min**2 * jnp.expm1(2 * t * jnp.log(ratio))
    return (variance, std**2), (offset, offset), (truncation, jnp.zeros_like(t))


@ve_marginal_offset.near_miss(witness={"t": 0.05})
def kernel_variance_is_sigma_squared(sigma_min, ratio, t):
    """Kernel variance sigma^2: the law of the SDE started from data that already carries sigma_min of noise."""
    _, std = paths.transition(
        at(VE(sigma_min, sigma_min * ratio), t), at(VE(sigma_min, sigma_min * ratio), jnp.zeros_like(t))
    )
    return std**2, at(VE(sigma_min, sigma_min * ratio), t).sigma ** 2


@theorem(source="Gao et al. 2024; derived", t=times)
def fm_as_sde(t):
    """The flow path alpha = 1 - t, sigma = t is the SDE with f = -1/(1 - t), g^2 = 2t/(1 - t), g^2/sigma^2 = 2/(t (1 - t))."""
    p = at(Flow(), t)
    f, g_squared = equations.drift_rate(p), equations.variance_rate(p)
    rate = 2 / (t * (1 - t))
    return (f, g_squared, g_squared / p.sigma**2, -p.log_snr_dot), (-1 / (1 - t), 2 * t / (1 - t), rate, rate)


@fm_as_sde.near_miss
def fm_noise_grows_by_its_square_alone(t):
    """g^2 = d(t^2)/dt = 2t: what z loses to the drift is forgotten."""
    return equations.variance_rate(at(Flow(), t)), 2 * t


@theorem(source="derived", kind="counterexample", cases=300, world=mixtures(2, 2), x0=vectors(2), eps=vectors(2), t=times, s=earlier("t"),
         start=scalars("log-SNR at t = 0, in [-4, 4]", -4.0, 4.0), rise=positive("d lambda/dt in [0.1, 5]", 0.1, 5.0),
         tilt=scalars("d log(scale)/dt in [-1, 1]", -1.0, 1.0))  # fmt: skip
def no_sde_if_nonmonotone_snr(world, x0, eps, t, s, start, rise, tilt):
    """Where log-SNR rises, g^2 = -sigma^2 lambda' < 0 and no forward SDE exists; velocity field and DDIM remain exact."""
    schedule = _rising(start, rise, tilt)
    p, q = at(schedule, t), at(schedule, s)
    z = paths.perturb(x0, eps, p)
    log_prob = lambda z, t: exact.log_prob(world, z, at(schedule, t))  # noqa: E731
    still = lambda z, _: log_prob(z, t)  # noqa: E731
    u = equations.probability_flow(exact.denoiser(world, schedule), schedule)
    c_z, c_x, _ = paths.bridge(p, q, jnp.zeros_like(t))
    left = equations.variance_rate(p), equations.continuity(still, u)(z, t), c_z * p.alpha + c_x, c_z * p.sigma
    return left, (-(p.sigma**2) * rise, -_slope(lambda t: log_prob(z, t), t), q.alpha, q.sigma)


def _rising(start, rise, tilt):
    def schedule(t):
        alpha, sigma = variance_preserving(start + rise * t)
        return alpha * jnp.exp(tilt * t), sigma * jnp.exp(tilt * t)

    return schedule


@no_sde_if_nonmonotone_snr.near_miss(witness={"x0": np.array([0.4, -0.3]), "eps": np.array([0.7, 1.1])})
def an_sde_with_the_modulus(world, x0, eps, t, s, start, rise, tilt):
    """g = sqrt(|g^2|) in place of the missing SDE."""
    schedule = _rising(start, rise, tilt)
    p = at(schedule, t)
    z = paths.perturb(x0, eps, p)
    log_prob = lambda z, t: exact.log_prob(world, z, at(schedule, t))  # noqa: E731
    drift = lambda z, t: equations.drift_rate(at(schedule, t)) * z  # noqa: E731
    change = _slope(lambda t: log_prob(z, t), t)
    diffusion = lambda t: jnp.sqrt(jnp.abs(equations.variance_rate(at(schedule, t))))  # noqa: E731
    still = lambda z, _: log_prob(z, t)  # noqa: E731
    return equations.fokker_planck(still, drift, diffusion)(z, t), -change


@theorem(source="Song et al. 2021, App. B", kind="order", order=1, cases=16, beta_min=least_betas, rise=beta_rises)
def ddpm_discrete_limit(beta_min, rise):
    """log prod(1 - beta(t_i)/N) is log alpha^2 of the VP SDE up to O(1/N)."""
    return _betas(beta_min, rise, lambda n: jnp.arange(1.0, n + 1) / n)


def _betas(beta_min, rise, grid):
    sizes = [128 * 2**k for k in range(6)]
    log_abar = 2 * jnp.log(VP(beta_min, beta_min + rise)(jnp.ones_like(beta_min))[0])
    sums = [jnp.sum(jnp.log1p(-(beta_min + rise * grid(n).astype(beta_min.dtype)) / n)) for n in sizes]
    return jnp.asarray([1 / n for n in sizes], beta_min.dtype), jnp.abs(jnp.stack(sums) - log_abar)


@ddpm_discrete_limit.near_miss(order=2)
def midpoints_make_it_second_order(beta_min, rise):
    """Betas read at the middle of each step: the quadrature is exact then, but -sum(beta_i^2)/2 stays."""
    return _betas(beta_min, rise, lambda n: (jnp.arange(0.0, n) + 0.5) / n)


STRONG, WEAK, REVERSE = 0.0, 1.0, 2.0


@theorem(source="Kloeden & Platen 1992, Ch. 10 and 14", kind="order", order=1, cases=24, precisions=("float64",),  # errors reach 1e-5
         schedule=smooth_schedules, world=gaussians(1), eta=scalars("eta in [0.3, 1.5]", 0.3, 1.5),
         which=choices("strong, weak, weak in reverse", STRONG, WEAK, REVERSE))  # fmt: skip
def em_orders_linear(schedule, world, eta, which):
    """Euler-Maruyama has strong order 1 on the forward SDE (its noise is additive), weak order 1 there and on the reverse family."""
    sizes, dtype = tuple(64 * 2**k for k in range(4)), world.mean.dtype
    forward = jax.vmap(lambda times: _forward_errors(schedule, world, times))(grids(0.2, 0.8, dtype, sizes=sizes))
    reverse = jax.vmap(lambda times: _reverse_error(schedule, world, eta, times))(grids(0.8, 0.4, dtype, sizes=sizes))
    errors = jnp.concatenate([forward, reverse[:, None]], axis=1)
    return 1 / jnp.asarray(sizes, dtype), errors[:, jnp.round(which).astype(jnp.int32)]


def _forward_errors(schedule, world, times):
    """Strong and weak root-mean-square errors over the path; each step's exact noise is coupled to its own.

    With e = z_EM - z, the exact step is z' = Phi z + int Phi_r g_r dw, and the moments of (e, z) close.
    """
    drift, diffusion = equations.forward_sde(schedule)
    nodes, weights = (jnp.asarray(value, world.mean.dtype) for value in np.polynomial.legendre.leggauss(6))

    def body(moments, ends):
        (mean, mean_em, ee, ez, zz), (t, s) = moments, ends
        p, q, h = at(schedule, t), at(schedule, s), s - t
        jump = 1 + h * drift(jnp.ones_like(t), t)
        phi = q.alpha / p.alpha
        inner = t + h * (nodes + 1) / 2
        kernel = jax.vmap(lambda r: q.alpha / schedule(r)[0] * diffusion(r))(inner)
        g = diffusion(t)
        noise = h / 2 * jnp.stack([weights @ (g - kernel) ** 2, weights @ ((g - kernel) * kernel), weights @ kernel**2])
        a = jump - phi
        ee, ez = jump**2 * ee + 2 * jump * a * ez + a**2 * zz + noise[0], phi * (jump * ez + a * zz) + noise[1]
        zz = phi**2 * zz + noise[2]
        moments = phi * mean, jump * mean_em, ee, ez, zz
        return moments, jnp.stack([ee, (moments[1] - moments[0]) ** 2 + (ee + 2 * ez) ** 2])

    first = at(schedule, times[0])
    mean, second = (
        first.alpha * world.mean[0],
        _variance(schedule, world.cov[0, 0], first.t) + (first.alpha * world.mean[0]) ** 2,
    )
    zero = jnp.zeros_like(mean)
    _, squares = jax.lax.scan(body, (mean, mean, zero, zero, second), (times[:-1], times[1:]))
    return jnp.sqrt(jnp.mean(squares, axis=0))


def _reverse_error(schedule, world, eta, times):
    start, end = (exact.marginal(world, at(schedule, t)) for t in (times[0], times[-1]))
    sampler = samplers.euler_maruyama(exact.denoiser(world, schedule), schedule, eta=eta)
    mean, cov = samplers.law(sampler, start.mean, start.cov, times)
    return jnp.abs(mean[0] - end.mean[0]) + jnp.abs(cov[0, 0] - end.cov[0, 0]) / jnp.sqrt(end.cov[0, 0])


em_orders_linear.not_of_order(
    0.5, "Strong order 1/2, as for noise that multiplies the state.", witness={"which": STRONG}
)


em_orders_linear.not_of_order(2, "Weak order 2.", witness={"which": WEAK})


def _entropy(world, p):
    """log det(V)/2 of z, in nats, up to a constant."""
    v = p.alpha**2 * world.cov + p.sigma**2 * jnp.eye(2, dtype=world.cov.dtype)
    return jnp.log(v[0, 0] * v[1, 1] - v[0, 1] * v[1, 0]) / 2


def _fisher(world, p):
    """E|score|^2 by the columns of a root of V, exact because the score is affine and vanishes at the mean."""
    root = jnp.linalg.cholesky(p.alpha**2 * world.cov + p.sigma**2 * jnp.eye(2, dtype=world.cov.dtype))
    scores = jax.vmap(lambda column: exact.score(world, p.alpha * world.mean + column, p))(root.T)
    return jnp.sum(scores**2)


@theorem(source="Stam 1959 (de Bruijn's identity), for any schedule", schedule=schedules, world=gaussians(2), t=times)
def entropy_production(schedule, world, t):
    """d h(z_t)/dt = d f + g^2 E|score|^2 / 2: the drift loses entropy, the noise makes it."""
    p = at(schedule, t)
    made = equations.variance_rate(p) * _fisher(world, p) / 2
    return _slope(lambda t: _entropy(world, at(schedule, t)), t), 2 * equations.drift_rate(p) + made


@entropy_production.near_miss
def de_bruijn_without_drift(schedule, world, t):
    """d h/dt = g^2 E|score|^2 / 2, which is de Bruijn's identity where alpha is constant."""
    p = at(schedule, t)
    return _slope(lambda t: _entropy(world, at(schedule, t)), t), equations.variance_rate(p) * _fisher(world, p) / 2


@entropy_production.near_miss(
    witness={"world": exact.Gaussian(np.array([0.5, -1.0]), np.array([[400.0, 30.0], [30.0, 300.0]]))}
)
def entropy_always_increases(schedule, world, t):
    """d h/dt >= 0 along every forward process: true of VE; data wider than the noise shrinks first under the others."""
    change = _slope(lambda t: _entropy(world, at(schedule, t)), t)
    return change, jnp.abs(change)


@theorem(source="derived; Kingma et al. 2021, prior loss", kind="order", order=2, cases=64, precisions=("float64",),  # errors of 1e-10
         world=gaussians(2), centred=choices("centred or not", 0.0, 1.0))  # fmt: skip
def prior_mismatch(world, centred):
    """Variance preserving: KL(p_T || N(0, I)) = e^lambda |E x|^2/2 + O(e^{2 lambda}), and centred
    e^{2 lambda} |Sigma - I|^2/4 + O(e^{3 lambda}).
    """
    return _mismatch(world, centred, world.mean @ world.mean / 2, 4.0)


def _mismatch(world, centred, leading, divisor):
    """Errors of the leading term; of centred data KL/e^lambda, so that both are of order two in e^lambda."""
    eye = jnp.eye(2, dtype=world.cov.dtype)
    world = exact.Gaussian(world.mean * (1 - centred), world.cov)
    log_snrs = -jnp.log(2.0) * jnp.arange(10, 17, dtype=world.cov.dtype)

    def error(log_snr):
        alpha, sigma = variance_preserving(log_snr)
        law = exact.marginal(world, at(lambda t: (alpha, sigma), jnp.zeros_like(alpha)))
        wide = jnp.linalg.eigvalsh(law.cov - eye)
        kl = (law.mean @ law.mean + jnp.sum(wide - jnp.log1p(wide))) / 2
        ratio = jnp.exp(log_snr)
        of_mean, of_cov = ratio * leading, ratio**2 * jnp.sum((world.cov - eye) ** 2) / divisor
        return jnp.where(centred == 0, jnp.abs(kl - of_mean), jnp.abs(kl - of_cov) / ratio)

    return jnp.exp(log_snrs), jax.vmap(error)(log_snrs)


@prior_mismatch.near_miss(witness={"centred": 0.0})
def second_moment_in_place_of_the_mean(world, centred):
    """KL = e^lambda E|x|^2/2: the spread of the data enters only at the next order."""
    return _mismatch(world, centred, (world.mean @ world.mean + jnp.trace(world.cov)) / 2, 4.0)


@prior_mismatch.near_miss(witness={"centred": 1.0})
def centred_mismatch_of_one_half(world, centred):
    """KL = e^{2 lambda} |Sigma - I|^2/2 for centred data."""
    return _mismatch(world, centred, world.mean @ world.mean / 2, 2.0)
