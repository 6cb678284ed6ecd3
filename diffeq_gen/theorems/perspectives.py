"""Chapter 17, perspectives: eight things that a diffusion model is, each in a sentence that can be run.

    autoencoder | hierarchy of latent variables | score | reverse SDE | flow | recurrent network | autoregression | expectation

and the three equations that its exact version solves at once: along the flow, along the reverse process, and in time.
After Dieleman 2023, "Perspectives on diffusion"; each sentence joins functions of the library that the other chapters prove apart.
"""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen import equations, exact, losses, paths, predictions, samplers, spectral, traces, variational
from diffeq_gen.exact import Gaussian
from diffeq_gen.schedules import at
from diffeq_gen.theorems.closed_form import _log_density
from diffeq_gen.theorems.domains import (
    earlier,
    empiricals,
    gaussians,
    log_snrs,
    mixtures,
    probabilities,
    scalars,
    smooth_schedules,
    times,
    vectors,
)
from diffeq_gen.theorems.registry import theorem
from diffeq_gen.theorems.spectral_laws import GRID, _covariance, _matrix, _spectra

__all__: list[str] = []


@theorem(source="Dieleman 2022, 'Diffusion models are autoencoders'; Vincent 2011", cases=300, schedule=smooth_schedules,
         world=mixtures(2, 3), x0=vectors(2), eps=vectors(2), guess=vectors(2), t=times)  # fmt: skip
def perspective_autoencoder(schedule, world, x0, eps, guess, t):
    """A network F of eps is a denoising autoencoder of y = x0 + w eps, w = sigma/alpha, with a residual connection: r(y) = y - w F; its
    error is w times that of F, whatever F, and the best has (r - y)/w^2 = grad log p(y)."""
    return _autoencoded(schedule, world, x0, eps, guess, t, 1.0, 2.0)


def _autoencoded(schedule, world, x0, eps, guess, t, kept, rate):
    """`kept` is how much of y goes round the network, `rate` the power of w that the residual is divided by."""
    p = at(schedule, t)
    z, width = paths.perturb(x0, eps, p), p.sigma / p.alpha
    read = lambda network: predictions.denoiser(network, schedule, predictions.noise)(z, t)  # noqa: E731
    plain = lambda prediction, value: losses.denoising_loss(lambda z, t: value, schedule, prediction, x0, eps, t)  # noqa: E731
    best = read(lambda z, t: -p.sigma * jax.grad(lambda z: _log_density(world, z, p.alpha, p.sigma))(z))
    rise = jax.grad(lambda y: _log_density(world, y, jnp.ones_like(t), width))(z / p.alpha)
    rebuilt = kept * (z / p.alpha) - width * guess
    left = read(lambda z, t: guess), plain(predictions.data, rebuilt), best, best
    return left, (
        rebuilt,
        width**2 * plain(predictions.noise, guess),
        z / p.alpha + width**rate * rise,
        exact.denoise(world, z, p),
    )


@perspective_autoencoder.near_miss
def without_the_residual_connection(schedule, world, x0, eps, guess, t):
    """r(y) = -w F: the network alone as the autoencoder."""
    return _autoencoded(schedule, world, x0, eps, guess, t, 0.0, 2.0)


@perspective_autoencoder.near_miss
def a_residual_in_units_of_noise(schedule, world, x0, eps, guess, t):
    """(r - y)/w is the score."""
    return _autoencoded(schedule, world, x0, eps, guess, t, 1.0, 1.0)


late = scalars("times of [0.3, 0.97]", 0.3, 0.97)


@theorem(source="Ho et al. 2020, Eq. 5; Kingma et al. 2021, Eq. 11; chain rule of KL", cases=300, schedule=smooth_schedules,
         world=gaussians(1), t=late, first=probabilities, second=probabilities)  # fmt: skip
def perspective_latent_variable(schedule, world, t, first, second):
    """A diffusion model is a hierarchy of latent variables whose encoder is fixed: E[-ELBO], the KL of prior and steps and the
    reconstruction, is the entropy of the data plus what prior, steps and reconstruction are off the reverse of that encoder."""
    return _hierarchy(schedule, world, (t, first * t, first * second * t), 1.0)


def _hierarchy(schedule, world, times, off):
    """(E[-ELBO] as it is trained, the entropy and all gaps), a step counted `off` times, in one dimension and in nats."""
    points = [at(schedule, t) for t in times]
    first, last, var = points[0], points[-1], world.cov[0, 0]
    size, spread = first.alpha**2 + first.sigma**2, first.alpha**2 * var + first.sigma**2
    second = (first.alpha * world.mean[0]) ** 2
    drawn = [world.mean + sign * jnp.sqrt(var) for sign in (-1, 1)]  # two points with the moments of the data
    trained = [sum(variational.prior_kl(x0, first) for x0 in drawn) / 2]
    gaps = [((spread + second) / size - 1 - jnp.log(spread / size)) / 2]
    for p, q in pairwise(points):
        std, unknown = paths.bridge(p, q)[2], jnp.sqrt(exact.posterior_trace(world, world.mean, p))
        trained.append(variational.bridge_kl(world.mean, world.mean + unknown, p, q))
        wider = exact.reverse_kernel(world, world.mean, p, q)[1][0, 0] / std**2
        gaps.append(off * (wider - 1 - jnp.log(wider)) / 2)
    blur = (last.sigma / last.alpha) ** 2
    entropy = lambda var: jnp.log(2 * jnp.pi * jnp.e * var) / 2  # noqa: E731
    gaps.append(jnp.log(blur / exact.posterior_trace(world, world.mean, last)) / 2)
    return sum(trained) + entropy(blur), sum(gaps) + entropy(var)


@perspective_latent_variable.near_miss
def steps_with_the_exact_mean_are_exact(schedule, world, t, first, second):
    """No step is off where x0_hat is exact: but its variance is that of one data point, too small while steps are long."""
    return _hierarchy(schedule, world, (t, first * t, first * second * t), 0.0)


@theorem(source="Song & Ermon 2019; Dieleman 2023", cases=200, noise=vectors(1, 2), schedule=smooth_schedules,
         world=mixtures(2, 3), x0=vectors(2), eps=vectors(2), constant=vectors(), t=times, s=earlier("t"))  # fmt: skip
def perspective_score(noise, schedule, world, x0, eps, constant, t, s):
    """The predicted noise is sigma grad E for any energy with p_t ~ e^{-E}: no sampler sees what p_t is normalised by."""
    return _by_energy(noise, schedule, world, x0, eps, constant, t, s, predictions.score)


def _by_energy(noise, schedule, world, x0, eps, constant, t, s, prediction):
    """One step each of DDIM and DDPM: by -grad E taken for a prediction, and by E[x0 | z]."""
    z = paths.perturb(x0, eps, at(schedule, t))
    energy = lambda z, t: constant * (1 + t) - _log_density(world, z, *schedule(t))  # noqa: E731
    downhill = predictions.denoiser(lambda z, t: -jax.grad(energy)(z, t), schedule, prediction)

    def steps(denoise):
        ddim, ddpm = samplers.ddim(denoise, schedule), samplers.ddpm(denoise, schedule)
        return ddim.step(noise[:0], ddim.init(z), z, t, s)[0], ddpm.step(noise, ddpm.init(z), z, t, s)[0]

    return steps(downhill), steps(exact.denoiser(world, schedule))


@perspective_score.near_miss
def noise_is_the_downhill_slope(noise, schedule, world, x0, eps, constant, t, s):
    """-grad E taken for the noise itself: of the other sign and in other units."""
    return _by_energy(noise, schedule, world, x0, eps, constant, t, s, predictions.noise)


@theorem(source="Anderson 1982; Song et al. 2021", kind="in law", cases=300, schedule=smooth_schedules, world=gaussians(2), z=vectors(2),
         t=times, s=earlier("t"), r=earlier("s"))  # fmt: skip
def perspective_reverse_sde(schedule, world, z, t, s, r):
    """Undone by its reverse kernels, noise is one process in both directions: they carry p_t to p_s with the covariance of z_s and z_t
    that the forward kernel has, and two of them are one. The flow carries p_t to p_s too, and has another covariance."""
    return _undone(schedule, world, z, t, s, r, lambda world, z, p, q: exact.reverse_kernel(world, z, p, q)[0])


def _undone(schedule, world, z, t, s, r, carry):
    p, q, o = at(schedule, t), at(schedule, s), at(schedule, r)
    slope = lambda p, q: jax.jacfwd(lambda z: carry(world, z, p, q))(z)  # noqa: E731
    first, then, scale = slope(p, q), slope(q, o), paths.transition(p, q)[0]
    before, after = exact.marginal(world, p).cov, exact.marginal(world, q).cov
    spread, last, whole = (exact.reverse_kernel(world, z, *pair)[1] for pair in ((p, q), (q, o), (p, o)))
    flow = jax.jacfwd(lambda z: exact.flow_map(world, z, p, q))(z)
    left = first @ before, first @ before @ first.T + spread, flow @ before @ flow.T
    twice = carry(world, carry(world, z, p, q), q, o), then @ spread @ then.T + last
    return (*left, *twice), (scale * after, after, after, carry(world, z, p, o), whole)


@perspective_reverse_sde.near_miss
def the_flow_is_the_reverse_process(schedule, world, z, t, s, r):
    """The map of the flow in the place of the mean of the reverse kernel: right at each time, wrong between two."""
    return _undone(schedule, world, z, t, s, r, exact.flow_map)


@theorem(source="Chen et al. 2018; Song et al. 2021, Sec. 4.3", cases=300, schedule=smooth_schedules, world=gaussians(2), x0=vectors(2),
         eps=vectors(2), t=times, s=earlier("t"))  # fmt: skip
def perspective_flow(schedule, world, x0, eps, t, s):
    """The probability flow is an invertible network with an exact likelihood: back and forth is where it was, and
    log p_t(z) = log p_s(z_s) + log |det dz_s/dz|, which changes with s at the rate div u of the denoiser's Jacobian."""
    return _carried(schedule, world, x0, eps, t, s, 1.0)


def _carried(schedule, world, x0, eps, t, s, volume):
    p, q = at(schedule, t), at(schedule, s)
    z = paths.perturb(x0, eps, p)

    def log_volume(s):
        (a, b), (c, d) = jax.jacfwd(lambda z: exact.flow_map(world, z, p, at(schedule, s)))(z)
        return jnp.log(a * d - b * c)

    there, (gained, rate) = exact.flow_map(world, z, p, q), jax.jvp(log_volume, (s,), (jnp.ones_like(s),))
    x0_hat, trace = traces.divergence(lambda z: exact.denoise(world, z, at(schedule, s)), there)
    spread = q.alpha_dot * trace + q.sigma_dot * (2 - q.alpha * trace) / q.sigma
    left = exact.log_prob(world, there, q) + volume * gained, exact.flow_map(world, there, q, p), rate, x0_hat
    return left, (exact.log_prob(world, z, p), z, spread, exact.denoise(world, there, q))


@perspective_flow.near_miss
def a_density_that_is_only_moved(schedule, world, x0, eps, t, s):
    """log p_t(z) = log p_s(z_s): the volume left out."""
    return _carried(schedule, world, x0, eps, t, s, 0.0)


@perspective_flow.near_miss
def the_volume_with_the_other_sign(schedule, world, x0, eps, t, s):
    """log p_t(z) = log p_s(z_s) - log |det dz_s/dz|."""
    return _carried(schedule, world, x0, eps, t, s, -1.0)


SHARES = (1.0, 0.7, 0.45, 0.2)
"""Times of a run, as shares of the first."""


@theorem(source="Dieleman 2023, 'Diffusion models are RNNs'", cases=200, schedule=smooth_schedules, x0=vectors(2), eps=vectors(2),
         mix=scalars("mixing of [-2, 2]", -2.0, 2.0), gain=vectors(3), t=times)  # fmt: skip
def perspective_rnn(schedule, x0, eps, mix, gain, t):
    """A sampler is a recurrent network, whose Jacobian is the product of those of its steps, and it is trained without backpropagation
    through time: with weights of its own in each step, the loss has no derivative across steps."""
    return _recurrent(schedule, x0, eps, mix, gain, t, lambda run, spent: spent, lambda a, b, c: c @ b @ a)


def _recurrent(schedule, x0, eps, mix, gain, t, objective, product):
    """(Jacobian of a run, derivatives of the objective across steps) of three steps of DDIM, each with a gain of its own."""
    ladder = [share * t for share in SHARES]
    turn = jnp.stack([jnp.stack([jnp.ones_like(mix), mix]), jnp.stack([-mix, 0.3 * mix])])
    network = lambda gain: lambda z, t: jnp.tanh(gain * (turn @ z))  # noqa: E731

    def step(gain, z, t, s):
        sampler = samplers.ddim(network(gain), schedule)
        return sampler.step(jnp.zeros((0, 2), z.dtype), sampler.init(z), z, t, s)[0]

    def states(gain, z):
        found = [z]
        for one, (t, s) in zip(gain, pairwise(ladder), strict=True):
            found.append(step(one, found[-1], t, s))
        return found

    def spent(gain):
        each = [
            losses.denoising_loss(network(one), schedule, predictions.data, x0, eps, t)
            for one, t in zip(gain, ladder[:-1], strict=True)
        ]
        return objective(lambda: jnp.mean((states(gain, z)[-1] - x0) ** 2), sum(each))

    z = paths.perturb(x0, eps, at(schedule, t))
    jacobians = [
        jax.jacfwd(lambda z, i=i: step(gain[i], z, *ladder[i : i + 2]))(one)
        for i, one in enumerate(states(gain, z)[:-1])
    ]
    curved = jax.hessian(spent)(gain)
    return (jax.jacfwd(lambda z: states(gain, z)[-1])(z), curved), (product(*jacobians), jnp.diag(jnp.diag(curved)))


@perspective_rnn.near_miss(witness={"gain": np.array([0.6, -0.4, 0.5]), "mix": 0.8})
def backpropagation_through_time(schedule, x0, eps, mix, gain, t):
    """The error of the last state of a run in the place of the loss: every step waits for all that come after it."""
    return _recurrent(schedule, x0, eps, mix, gain, t, lambda run, spent: run(), lambda a, b, c: c @ b @ a)


@perspective_rnn.near_miss(witness={"gain": np.array([0.6, -0.4, 0.5]), "mix": 0.8})
def steps_in_the_order_of_the_page(schedule, x0, eps, mix, gain, t):
    """The product with the first step last."""
    return _recurrent(schedule, x0, eps, mix, gain, t, lambda run, spent: spent, lambda a, b, c: a @ b @ c)


@theorem(source="Dieleman 2024; derived", cases=200, schedule=smooth_schedules, content=_spectra(*GRID), few=_spectra(2, 2), z=vectors(4),
         t=times, log_snr=log_snrs, distance=scalars("log S_j - log S_k of [0, 20]", 0.0, 20.0))  # fmt: skip
def perspective_autoregressive(schedule, content, few, z, t, log_snr, distance):
    """What z tells of wave k of a Gaussian field, 1 - mse_k/S_k, is sigmoid(lambda + log S_k), nothing of the others in it: where S falls,
    coarse before fine. Two waves are never further apart than tanh(g/4), g = log S_j/S_k: the order is soft."""
    return _told(schedule, content, few, z, t, log_snr, distance, spectral.share)


def _told(schedule, content, few, z, t, log_snr, distance, share):
    p = at(schedule, t)
    cov, waves, small = _covariance(content), _matrix(content), _matrix(few)
    left_open = lambda power: (power * (1 - share(power, p.log_snr))).reshape(-1)  # noqa: E731
    noisy = p.alpha**2 * cov + p.sigma**2 * jnp.eye(content.size, dtype=z.dtype)
    apart = noisy @ (waves.T * left_open(content)[None, :]) @ waves, p.sigma**2 * cov
    posterior = small @ exact.posterior_cov(Gaussian(z, _covariance(few)), z, p) @ small.T
    powers = jnp.exp(jnp.stack([distance / 2, -distance / 2]) - log_snr)
    ahead, behind = share(powers, log_snr)
    return (apart[0], posterior, ahead - behind), (apart[1], jnp.diag(left_open(few)), jnp.tanh(distance / 4))


@perspective_autoregressive.near_miss
def one_wave_after_the_other(schedule, content, few, z, t, log_snr, distance):
    """All of a wave is known from lambda = -log S_k on, and nothing before."""
    return _told(
        schedule,
        content,
        few,
        z,
        t,
        log_snr,
        distance,
        lambda power, log_snr: jnp.where(power > jnp.exp(-log_snr), 1.0, 0.0),
    )


@theorem(source="Dieleman 2023, 'Diffusion models are expectation predictors'; derived", cases=200, schedule=smooth_schedules,
         few=empiricals(2, 5), x0=vectors(2), eps=vectors(2), guess=vectors(2), t=times)  # fmt: skip
def perspective_expectation(schedule, few, x0, eps, guess, t):
    """Of all data that may have become z, the gradient of a squared error has the mean that the exact expectation as target would give,
    and the covariance 4 (det/sigma)^2 Cov(x0 | z): distillation keeps minimiser and gradient, and takes exactly that noise away."""
    return _taught(schedule, few, x0, eps, guess, t, lambda few, r: r @ few.points, _error_factor)


def _error_factor(prediction, p):
    """det/sigma: the error of a prediction over that of x0."""
    return predictions.determinant(prediction, p) / p.sigma


def _taught(schedule, few, x0, eps, guess, t, target, factor):
    """(moments of the gradient and the mean loss, over data given z; what a teacher has), predictions of x0 and of the velocity."""
    p, left, right = at(schedule, t), [], []
    z = paths.perturb(x0, eps, p)
    noises = (z[None, :] - p.alpha * few.points) / p.sigma
    r = jax.nn.softmax(-jnp.sum(noises**2, axis=1) / 2)
    for prediction in (predictions.data, predictions.velocity):
        error = lambda guess, x0, eps, prediction=prediction: 2 * losses.denoising_loss(  # noqa: E731
            lambda z, t: guess, schedule, prediction, x0, eps, t)  # fmt: skip
        spent, slopes = jax.vmap(jax.value_and_grad(error), (None, 0, 0))(guess, few.points, noises)
        pairs = slopes[:, None, :] - slopes[None, :, :]
        away = guess - predictions.convert(target(few, r), z, p, predictions.data, prediction)
        left += [r @ slopes, jnp.einsum("i,j,ija,ijb->ab", r, r, pairs, pairs) / 2, r @ spent]
        square = factor(prediction, p) ** 2
        right += [
            2 * away,
            4 * square * exact.posterior_cov(few, z, p),
            away @ away + square * exact.posterior_trace(few, z, p),
        ]
    return left, right


@perspective_expectation.near_miss
def the_likeliest_data_are_the_target(schedule, few, x0, eps, guess, t):
    """The mean gradient leads to the likeliest of the data."""
    return _taught(schedule, few, x0, eps, guess, t, lambda few, r: few.points[jnp.argmax(r)], _error_factor)


@perspective_expectation.near_miss
def all_predictions_are_as_noisy(schedule, few, x0, eps, guess, t):
    """The covariance 4 Cov(x0 | z) whatever is predicted."""
    return _taught(
        schedule, few, x0, eps, guess, t, lambda few, r: r @ few.points, lambda prediction, p: jnp.ones_like(t)
    )


pushes = scalars("errors of [0.5, 2]", 0.5, 2.0)


@theorem(source="Lai et al. 2023; Daras et al. 2023; Song et al. 2023", cases=200, schedule=smooth_schedules, world=gaussians(2),
         x0=vectors(2), eps=vectors(2), push=pushes, t=times, s=earlier("t"))  # fmt: skip
def perspective_consistency_triple(schedule, world, x0, eps, push, t, s):
    """The exact model solves three equations at once: where the flow ends does not change along it (consistency model), x0_hat is a
    martingale of the reverse process (consistent diffusion), and the score solves its Fokker-Planck equation; one error breaks all."""
    flow, martingale, equation = _triple(schedule, world, x0, eps, 0 * push, t, s)
    return (flow[0], martingale[0], equation[0]), (flow[1], martingale[1], equation[1])


def _triple(schedule, world, x0, eps, push, t, s):
    """The two sides of each equation, for a model whose score is off by `push` in every direction."""
    p, q = at(schedule, t), at(schedule, s)
    z = paths.perturb(x0, eps, p)
    score = lambda z, t: exact.score(world, z, at(schedule, t)) + push  # noqa: E731
    denoise = predictions.denoiser(score, schedule, predictions.score)
    slope = lambda verb, t: jax.jvp(verb, (t,), (jnp.ones_like(t),))[1]  # noqa: E731
    ends = slope(lambda t: exact.flow_map(world, z, at(schedule, t), q), t)
    u = equations.probability_flow(denoise, schedule)(z, t)
    moved = jax.jacfwd(lambda z: exact.flow_map(world, z, p, q))(z) @ u
    c_z, c_x, _ = paths.bridge(p, q)
    expected = denoise(c_z * z + c_x * denoise(z, t), s)

    def rate(z):
        spread = jnp.trace(jax.jacfwd(lambda z: score(z, t))(z)) + score(z, t) @ score(z, t)
        return equations.variance_rate(p) / 2 * spread - equations.drift_rate(p) * (z @ score(z, t))

    return (ends, -moved), (expected, denoise(z, t)), (slope(lambda t: score(z, t), t), jax.grad(rate)(z))


@perspective_consistency_triple.near_miss
def off_the_flow(schedule, world, x0, eps, push, t, s):
    """Where the flow of a score that is off ends is where that of the exact one does."""
    return _triple(schedule, world, x0, eps, push, t, s)[0]


@perspective_consistency_triple.near_miss
def no_martingale(schedule, world, x0, eps, push, t, s):
    """The denoiser of a score that is off is a martingale of the reverse process that it makes."""
    return _triple(schedule, world, x0, eps, push, t, s)[1]


@perspective_consistency_triple.near_miss
def off_its_equation(schedule, world, x0, eps, push, t, s):
    """A score that is off by a constant solves its Fokker-Planck equation."""
    return _triple(schedule, world, x0, eps, push, t, s)[2]
