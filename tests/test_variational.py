"""The variational bound: its terms at their corners in both precisions, its draws, and what it bounds."""

import functools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.special
import scipy.stats

from diffeq_gen import clocks, exact, likelihood, losses, paths, predictions, variational
from diffeq_gen.dequantisation import Bins
from diffeq_gen.schedules import VP, Flow, at, variance_preserving


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


LEVELS = Bins.between(-1.0, 1.0, levels=9)
X0, GUESS, EPS = np.array([0.5, -1.0, 0.25]), np.array([0.6, -0.3, 0.2]), np.array([0.3, -1.2, 0.8])


def line(t):
    """lambda = 20 - 40 t."""
    return variance_preserving(20 - 40 * t)


line.log_snr = lambda t: 20 - 40 * t
line.time_at = lambda log_snr: (20 - log_snr) / 40


def kl(mean, var, other_mean, other_var):
    """KL of two Gaussians to fifty digits."""
    with mpmath.workdps(50):
        mean, var, other_mean, other_var = (mpmath.mpf(float(part)) for part in (mean, var, other_mean, other_var))
        ratio = var / other_var
        return float(((mean - other_mean) ** 2 / other_var + ratio - 1 - mpmath.log(ratio)) / 2)


# KLs


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_kl_keeps_its_digits_where_variances_nearly_agree(dtype):
    """e^d - 1 - d is d^2/2 for small d: taken as it stands it has no digits left in float32 from d = 1e-3 on."""
    d = np.array([-60, -5, -1.0001, -0.9999, -1e-3, -1e-6, 0, 1e-6, 1e-3, 0.9999, 1.0001, 5, 60], dtype)
    one = jax.vmap(lambda d: variational.gaussian_kl(jnp.zeros(1, dtype), d, jnp.zeros(1, dtype), jnp.zeros((), dtype)))
    with mpmath.workdps(50):
        wanted = [float((mpmath.expm1(float(part)) - float(part)) / 2) for part in d]
    np.testing.assert_allclose(one(d), wanted, rtol=60 * np.finfo(dtype).eps)
    slope = jax.vmap(jax.grad(lambda d: one(d[None])[0]))(d)
    np.testing.assert_allclose(slope, np.expm1(d.astype(np.float64)) / 2, rtol=60 * np.finfo(dtype).eps)
    assert one(d).dtype == dtype


def test_a_kl_by_hand_and_of_variances_that_are_nothing():
    mean, other, log_var = jnp.array([0.3, -2.0]), jnp.array([1.0, 0.5]), jnp.array([0.7, -1.1])
    wanted = sum(kl(*part, np.exp(0.4)) for part in zip(mean, np.exp(log_var), other, strict=True))
    np.testing.assert_allclose(variational.gaussian_kl(mean, log_var, other, 0.4), wanted, rtol=1e-13)
    assert variational.gaussian_kl(mean, -jnp.inf, other, 0.0) == jnp.inf
    assert variational.gaussian_kl(mean, 0.0, other, -jnp.inf) == jnp.inf


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("log_snr", [-20.0, -8.0, 0.0, 8.0, 20.0])
def test_the_prior_costs_what_it_does_to_the_last_digits(dtype, log_snr):
    """Of a point at the origin as well, where noise alone is left to tell from a prior that is 1 + e^lambda as wide."""
    p = at(line, jnp.asarray(line.time_at(log_snr), dtype))
    with mpmath.workdps(50):
        snr = mpmath.exp(float(p.log_snr))
        share = 1 / (1 + snr)
        spread = float((share - 1 - mpmath.log(share)) / 2)
    size = float(1 / (1 + np.exp(-np.float64(p.log_snr))))
    for x0 in (0.0, 0.5):
        found = variational.prior_kl(jnp.full(3, x0, dtype), p)
        np.testing.assert_allclose(found, 3 * (spread + size * x0**2 / 2), rtol=300 * np.finfo(dtype).eps)
        assert (
            found.dtype == dtype
            and np.isfinite(jax.grad(lambda x0: variational.prior_kl(x0, p))(jnp.full(3, x0, dtype))).all()
        )


def test_priors_at_the_ends_and_of_other_variances():
    noise, data = at(Flow(), 1.0), at(Flow(), 0.0)
    assert variational.prior_kl(X0, noise) == 0
    assert variational.prior_kl(X0, data) == jnp.inf
    p = at(Flow(), 0.75)
    wanted = sum(kl(0.25 * x, 0.75**2, 0, 2.0) for x in X0)
    np.testing.assert_allclose(variational.prior_kl(X0, p, variance=2.0), wanted, rtol=1e-13)
    wide = 0.25**2 + 0.75**2
    np.testing.assert_allclose(variational.prior_kl(X0, p), variational.prior_kl(X0, p, variance=wide), rtol=1e-13)
    with pytest.raises(ValueError, match=r"variance must be positive, got variance=0.0"):
        variational.prior_kl(X0, p, variance=0.0)


# Steps


def test_a_step_from_noise_alone_is_finite_and_one_to_the_data_is_not():
    """At alpha_t = 0 the noise is not mispredicted and expm1(Delta) infinite: 1/2 e^lambda_s |x0_hat - x0|^2 all the same."""
    found = variational.step_kl(lambda z, t: GUESS, Flow(), X0, EPS, 1.0, 0.25)
    np.testing.assert_allclose(found, 9 / 2 * np.sum((GUESS - X0) ** 2), rtol=1e-13)
    last = lambda guess: variational.step_kl(lambda z, t: guess, Flow(), X0, EPS, 0.25, 0.0)  # noqa: E731
    assert last(GUESS) == jnp.inf and last(X0) == jnp.inf
    assert np.isfinite(jax.grad(last)(GUESS)).all()
    assert variational.bridge_kl(X0, GUESS, at(Flow(), 0.25), at(Flow(), 0.0), v=0.5) == jnp.inf
    with pytest.raises(ValueError, match="x0 and x0_hat must have the same shape"):
        variational.bridge_kl(X0, GUESS[:1], at(Flow(), 0.5), at(Flow(), 0.25))
    with pytest.raises(ValueError, match="log-SNR must not fall"):
        variational.bridge_kl(X0, GUESS, at(Flow(), 0.25), at(Flow(), 0.5))


@pytest.mark.parametrize("ends", [(0.0, 1e-4), (0.4999, 0.5), (0.5, 1.0), (0.0, 1.0), (0.9999, 1.0)])
def test_a_step_in_float32(ends):
    """From the cleanest to the noisiest, and of Delta = 4e-3: as in float64 with the same alpha and sigma."""
    s, t = (np.float32(end) for end in ends)
    p, q = at(line, jnp.asarray(t)), at(line, jnp.asarray(s))
    exact_snr = [(np.float64(one.alpha) / np.float64(one.sigma)) ** 2 for one in (p, q)]
    wanted = (exact_snr[1] - exact_snr[0]) / 2 * np.sum((np.float32(GUESS) - np.float32(X0)).astype(np.float64) ** 2)
    x0, guess = X0.astype(jnp.float32), GUESS.astype(jnp.float32)
    found = variational.bridge_kl(x0, guess, p, q)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, wanted, rtol=2e-4 if ends[1] - ends[0] < 1e-3 else 3e-6)
    for v in (0.0, 0.5, 1.0):
        value, slopes = jax.value_and_grad(lambda g, v: variational.bridge_kl(x0, g, p, q, v=v), (0, 1))(
            guess, jnp.float32(v)
        )
        assert np.isfinite(value) and all(np.isfinite(slope).all() for slope in slopes)


def test_the_learnt_variance_by_hand_and_where_the_small_one_is_nothing():
    p, q = at(VP(), 0.4), at(VP(), 0.3)
    beta = p.sigma**2 - (p.alpha / q.alpha) ** 2 * q.sigma**2
    small = beta * q.sigma**2 / p.sigma**2
    for v, wanted in ((0.0, small), (1.0, beta), (0.25, small**0.75 * beta**0.25)):
        np.testing.assert_allclose(variational.log_variance(v, p, q), np.log(wanted), rtol=1e-12)
    each = variational.log_variance(jnp.array([0.0, 1.0]), p, q)
    np.testing.assert_allclose(each, np.log([small, beta]), rtol=1e-12)
    p, q = at(Flow(), 0.4), at(Flow(), 0.0)
    large = 2 * np.log(0.4)
    for v in (0.0, 0.25, 1.0):
        np.testing.assert_allclose(variational.log_variance(v, p, q), large, rtol=1e-13)
        np.testing.assert_allclose(variational.log_variance(v, p, q, floor=-7.0), v * large - (1 - v) * 7, rtol=1e-13)
    slopes = (
        jax.grad(lambda v: variational.log_variance(v, p, q))(0.5),
        jax.grad(lambda v: variational.log_variance(v, p, q, floor=-7.0))(0.5),
    )
    assert slopes[0] == 0
    np.testing.assert_allclose(slopes[1], large + 7, rtol=1e-13)


# Decoders


def test_the_softmax_over_levels_is_that_of_the_densities():
    """Also with a variance for each entry; and at a million deviations from every level the nearest has it all."""
    mean, log_var = jnp.array([0.43, -0.2, 3.0]), jnp.array([-3.0, 0.5, 1.0])
    every = np.linspace(-1, 1, 9)
    for logs in (log_var, jnp.asarray(-2.0)):
        std = np.exp(np.broadcast_to(logs, (3,)) / 2)
        odds = scipy.stats.norm.logpdf(every[:, None], mean[None], std[None])
        wanted = -sum(scipy.special.log_softmax(odds, axis=0)[index, i] for i, index in enumerate((6, 0, 5)))
        np.testing.assert_allclose(variational.softmax_nll(X0, mean, logs, LEVELS), wanted, rtol=1e-12)
    near = variational.softmax_nll(X0.astype(jnp.float32), X0.astype(jnp.float32) + 0.1, jnp.float32(-200.0), LEVELS)
    assert near == 0 and near.dtype == jnp.float32


def test_the_mass_of_a_bin_is_a_difference_of_phi():
    mean, log_var = jnp.array([0.43, -0.2, 1.5]), jnp.array([-3.0, 0.5, 1.0])
    std = np.exp(log_var / 2)
    below = lambda x: scipy.stats.norm.cdf(x, mean, std)  # noqa: E731
    wanted = below(X0 + 0.125) - np.where(X0 == -1, 0, below(X0 - 0.125))
    np.testing.assert_allclose(variational.bin_nll(X0, mean, log_var, LEVELS), -np.sum(np.log(wanted)), rtol=1e-12)
    top = variational.bin_nll(jnp.ones(1), mean[:1], log_var[:1], LEVELS)
    np.testing.assert_allclose(top, -scipy.stats.norm.logsf(0.875, 0.43, std[0]), rtol=1e-12)


def mass(x0, mean, log_var):
    """(-log of the mass of a bin, its slope with the mean) to a hundred and twenty digits."""
    with mpmath.workdps(120):
        std = mpmath.exp(mpmath.mpf(float(log_var)) / 2)
        low, high = ((mpmath.mpf(float(x0)) + half - mpmath.mpf(float(mean))) / std for half in (-0.125, 0.125))
        tail = lambda x: mpmath.erfc(x / mpmath.sqrt(2)) / 2  # noqa: E731
        phi = lambda x: mpmath.exp(-x * x / 2) / mpmath.sqrt(2 * mpmath.pi)  # noqa: E731
        part, rise = (
            (tail(low) - tail(high), phi(high) - phi(low))
            if low + high > 0
            else (tail(-high) - tail(-low), phi(high) - phi(low))
        )
        if x0 == -1:
            part, rise = tail(-high), phi(high)
        elif x0 == 1:
            part, rise = tail(low), -phi(low)
        return float(-mpmath.log(part)), float(rise / std / part)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bins_far_from_z_have_their_digits_and_a_slope(dtype):
    """Bins of 1e-5 to 5e3 deviations, 1e-4 to 1e6 deviations away, open and closed: the logarithm of a mass that underflows."""
    rng = np.random.default_rng(0)
    x0 = np.asarray(rng.choice(np.linspace(-1, 1, 9), 300), dtype)
    mean = np.asarray(x0 + rng.choice([-1, 1], 300) * 10 ** rng.uniform(-4, 1.2, 300), dtype)
    log_var = np.asarray(rng.uniform(-20, 20, 300), dtype)
    one = lambda mean, x0, log_var: variational.bin_nll(x0[None], mean[None], log_var, LEVELS)  # noqa: E731
    found, slope = jax.jit(jax.vmap(jax.value_and_grad(one)))(mean, x0, log_var)
    wanted, rise = np.transpose([mass(*case) for case in zip(x0, mean, log_var, strict=True)])
    ulps = (
        20 if dtype == np.float32 or jax.__version_info__ >= (0, 11) else 250
    )  # jax 0.10's log1p loses 245 next to -0.3
    np.testing.assert_allclose(found, wanted, rtol=ulps * np.finfo(dtype).eps, atol=20 * np.finfo(dtype).eps)
    np.testing.assert_allclose(slope, rise, rtol=3000 * np.finfo(dtype).eps, atol=20 * np.finfo(dtype).eps)
    assert found.dtype == dtype and wanted.max() > 1e7


def test_where_one_form_of_a_bin_ends_and_another_begins():
    """On both sides of each border the mass is the same, and so is its slope."""
    widths, places = (
        np.array([0.4999, 0.5, 0.5001, 2.0, 9.0]),
        np.array([0.0, 0.2499, 0.2501, 1.0, 1.9999, 2.0001, 4.5, 4.9999, 5.0001, 8.0]),
    )
    log_var = 2 * np.log(0.25 / widths)
    one = lambda mean, log_var: variational.bin_nll(jnp.zeros(1), mean[None], log_var, LEVELS)  # noqa: E731
    read = jax.jit(jax.vmap(jax.value_and_grad(one), (0, None)))
    for logs, width in zip(log_var, widths, strict=True):
        means = jnp.asarray(places * 0.25 / width)
        found, slope = read(means, logs)
        wanted, rise = np.transpose([mass(0.0, mean, logs) for mean in means])
        np.testing.assert_allclose(found, wanted, rtol=1e-12)
        np.testing.assert_allclose(slope, rise, rtol=1e-11, atol=1e-14)


def test_reconstruction_reads_z_in_units_of_data():
    p = at(Flow(), 0.1)
    z = paths.perturb(X0, EPS, p)
    for decoder in (variational.softmax_nll, variational.bin_nll):
        wanted = decoder(X0, X0 + EPS / 9, jnp.asarray(2 * np.log(1 / 9)), LEVELS)
        np.testing.assert_allclose(variational.reconstruction(X0, z, p, LEVELS, decoder=decoder), wanted, rtol=1e-12)
    assert variational.reconstruction(X0, z, p, LEVELS) == variational.reconstruction(
        X0, z, p, LEVELS, decoder=variational.softmax_nll
    )


def test_the_slope_of_an_open_bin_whose_edge_is_the_mean():
    """Where the mass is a half, and its logarithm is found on both sides of zero in two ways: phi(0)/std over a half."""
    for x0, mean, sign in ((-1.0, -0.875, 1), (1.0, 0.875, -1)):
        one = lambda mean, x0=x0: variational.bin_nll(jnp.array([x0]), mean[None], jnp.zeros(()), LEVELS)  # noqa: E731
        found, slope = jax.value_and_grad(one)(jnp.asarray(mean))
        np.testing.assert_allclose(found, np.log(2), rtol=1e-14)
        np.testing.assert_allclose(slope, sign * np.sqrt(2 / np.pi), rtol=1e-14)


# The bound

TIMES = np.array([0.9, 0.7, 0.66, 0.4, 0.15])


def rest(key, x0, times, decoder=variational.softmax_nll):
    """Prior and reconstruction, given the noise of the last part of the key."""
    first, last = at(VP(), times[0]), at(VP(), times[-1])
    eps = jax.random.normal(jax.random.split(key, 3)[2], x0.shape)
    mean, std = x0 + last.sigma / last.alpha * eps, last.sigma / last.alpha
    prior = sum(kl(first.alpha * x, first.sigma**2, 0, first.alpha**2 + first.sigma**2) for x in x0)
    return prior + decoder(x0, mean, 2 * jnp.log(std), LEVELS)


@pytest.mark.parametrize("decoder", [variational.softmax_nll, variational.bin_nll], ids=["softmax", "bins"])
def test_the_steps_of_a_fixed_guess_telescope(decoder):
    """Whatever the grid, they cost (e^lambda_last - e^lambda_first)/2 |guess - x0|^2, with no noise in them."""
    key, snr = jax.random.key(3), [float((at(VP(), t).alpha / at(VP(), t).sigma) ** 2) for t in TIMES]
    found = variational.vlb(key, lambda z, t: GUESS, VP(), X0, TIMES, bins=LEVELS, decoder=decoder)
    wanted = (snr[-1] - snr[0]) / 2 * np.sum((GUESS - X0) ** 2) + rest(key, X0, TIMES, decoder)
    np.testing.assert_allclose(found, -wanted, rtol=1e-11)
    narrow = variational.vlb(key, lambda z, t: GUESS, VP(), X0, TIMES, bins=LEVELS, decoder=decoder, variance=0.5)
    priors = [float(variational.prior_kl(X0, at(VP(), TIMES[0]), variance=v)) for v in (None, 0.5)]
    np.testing.assert_allclose(narrow - found, priors[0] - priors[1], rtol=1e-10)


def test_what_is_left_out_is_every_step_with_noise_of_its_own():
    seen = []

    def watching(z, t):
        jax.debug.callback(lambda z, t: seen.append((float(t), np.asarray(z))), z, t)
        return 0 * z

    variational.vlb(jax.random.key(3), watching, VP(), X0, TIMES, bins=LEVELS)
    jax.effects_barrier()
    seen.sort(key=lambda pair: -pair[0])
    np.testing.assert_allclose([t for t, _ in seen], TIMES[:-1], rtol=1e-14)
    noises = [(z - at(VP(), t).alpha * X0) / at(VP(), t).sigma for t, z in seen]
    assert len(np.unique(np.round(noises, 6))) == 12 and np.abs(noises).max() < 4


def test_some_of_the_steps_stand_for_all():
    """In each of `samples` strata one is drawn; each as often as its share of a stratum; as many as there are, each is drawn once."""
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = np.asarray(jax.vmap(lambda key: variational._strata(key, 3, 7))(keys))
    counts = np.stack([np.bincount(column, minlength=7) for column in drawn.T])
    shares = np.array([[3, 3, 1, 0, 0, 0, 0], [0, 0, 2, 3, 2, 0, 0], [0, 0, 0, 0, 1, 3, 3]]) / 7
    assert np.all(np.abs(counts - 4000 * shares) <= 5 * np.sqrt(4000 * shares * (1 - shares)))
    assert variational._strata(keys[0], 7, 7).tolist() == list(range(7))
    read = lambda key, samples: variational.vlb(  # noqa: E731
        key, lambda z, t: GUESS, VP(), X0, TIMES, bins=LEVELS, samples=samples)  # fmt: skip
    few = np.asarray(jax.jit(jax.vmap(lambda key: read(key, 2) - read(key, None)))(keys))
    assert few.std() > 0.01 and abs(few.mean()) < 5 * few.std() / np.sqrt(len(few))
    assert read(keys[0], 4) == read(keys[0], None)


def test_what_is_no_bound_is_said():
    read = lambda times, **options: variational.vlb(  # noqa: E731
        jax.random.key(0), lambda z, t: z, Flow(), X0, jnp.array(times), bins=LEVELS, **options)  # fmt: skip
    with pytest.raises(ValueError, match="sigma must be positive at the last time, got sigma=0.0"):
        read([1.0, 0.5, 0.0])
    with pytest.raises(ValueError, match="times must be a decreasing sequence"):
        read([0.5, 0.7])
    for samples in (0, 3):
        with pytest.raises(ValueError, match=r"samples must lie in \[1, 2\], got samples="):
            read([0.9, 0.5, 0.2], samples=samples)
    with pytest.raises(ValueError, match="x0 must lie on the middles of the bins"):
        variational.vlb(jax.random.key(0), lambda z, t: z, Flow(), X0 + 0.1, jnp.array([0.9, 0.1]), bins=LEVELS)


def test_it_bounds_the_probability_of_levels_and_comes_near():
    """Half of the data at -1, a quarter each at 0 and 1: with the exact denoiser the mean of -vlb lies above the entropy, by O(1/T),
    and, of one sample for each of few steps, with the same mean; `elbo` is its limit."""
    points, bins = jnp.array([[-1.0], [-1.0], [0.0], [1.0]]), Bins.between(-1.0, 1.0, levels=3)
    denoise, entropy = exact.denoiser(exact.Empirical(points, block=None), VP()), 1.5 * np.log(2)
    keys = jax.random.split(jax.random.key(2), 4 * 128).reshape(128, 4)

    def mean(bound):
        every = -np.asarray(jax.jit(jax.vmap(jax.vmap(bound)))(keys, jnp.broadcast_to(points, (128, 4, 1))))
        return every.mean(), every.mean(axis=1).std() / np.sqrt(128)

    ends, gaps = {"log_snr_min": -8.0, "log_snr_max": 6.0}, []
    for steps, samples in ((8, None), (64, 16)):
        options = {"bins": bins, "samples": samples}
        times = clocks.uniform_log_snr(VP(), steps, **ends)
        found, error = mean(functools.partial(lambda key, x0, times, options: variational.vlb(
            key, denoise, VP(), x0, times, **options), times=times, options=options))  # fmt: skip
        gaps.append(found - entropy)
        assert gaps[-1] > -5 * error
    assert gaps[0] > 3 * gaps[1] > 0.03
    limit, doubt = mean(lambda key, x0: likelihood.elbo(key, denoise, VP(), x0, samples=64, bins=bins, **ends))
    assert -5 * doubt < limit - entropy < 0.01 + 5 * doubt


def test_the_elbo_of_levels_has_their_reconstruction():
    key, low, high = jax.random.key(4), -4.0, 3.0
    read = lambda **options: likelihood.elbo(  # noqa: E731
        key, lambda z, t: X0, VP(), X0, samples=4, log_snr_min=low, log_snr_max=high, **options)  # fmt: skip
    times = jnp.stack([clocks.time_at(VP(), end) for end in (low, high)])
    np.testing.assert_allclose(read(bins=LEVELS), -rest(key, X0, times), rtol=1e-9)
    assert read(bins=LEVELS) != read()


# Learnt variances


def mixed(value, v):
    return lambda z, t: (value, v)


def test_the_hybrid_loss_term_by_term():
    value, v, options = jnp.array([0.3, -0.2, 1.1]), jnp.array([0.2, 0.5, 1.0]), {"steps": 50}
    read = lambda **more: variational.hybrid_loss(  # noqa: E731
        mixed(value, v), VP(), predictions.v, X0, EPS, 0.4, 0.3, **{**options, **more})  # fmt: skip
    p, q = at(VP(), 0.4), at(VP(), 0.3)
    z = paths.perturb(X0, EPS, p)
    plain = losses.denoising_loss(lambda z, t: value, VP(), predictions.v, X0, EPS, 0.4)
    c_z, c_x, std = paths.bridge(p, q)
    means = c_z * z + c_x * X0, c_z * z + c_x * predictions.convert(value, z, p, predictions.v, predictions.data)
    variances = np.exp(variational.log_variance(v, p, q))
    step = sum(kl(a, std**2, b, var) for a, b, var in zip(*means, variances, strict=True))
    np.testing.assert_allclose(read(share=0.5), plain + 0.5 * 50 * step / 3, rtol=1e-10)
    np.testing.assert_allclose(read(share=0.5, bins=LEVELS), read(share=0.5), rtol=1e-14)
    assert read() == read(share=1e-3)


def test_the_last_step_is_the_decoder_s():
    """At sigma_s = 0 the mean is x0_hat and the variance beta, or what a floor makes of beta~; without levels there is no end."""
    p, value, v = at(Flow(), 0.2), jnp.array([0.1, 0.4, -0.3]), jnp.array([0.1, 0.5, 0.9])
    read = lambda value, v, **more: variational.hybrid_loss(  # noqa: E731
        mixed(value, v), Flow(), predictions.data, X0, EPS, 0.2, 0.0, steps=3, share=1.0, **more)  # fmt: skip
    plain = np.mean((value - X0) ** 2)
    wanted = variational.bin_nll(X0, value, jnp.asarray(2 * np.log(0.2)), LEVELS)
    np.testing.assert_allclose(read(value, v, bins=LEVELS), plain + wanted, rtol=1e-12)
    logs = v * 2 * jnp.log(p.sigma) + (1 - v) * -5.0
    np.testing.assert_allclose(
        read(value, v, bins=LEVELS, floor=-5.0), plain + variational.bin_nll(X0, value, logs, LEVELS), rtol=1e-12
    )
    assert read(value, v) == jnp.inf
    slopes = jax.grad(read, (0, 1))(value, v, bins=LEVELS)
    np.testing.assert_allclose(slopes[0], 2 / 3 * (value - X0), rtol=1e-12)
    assert np.all(slopes[1] == 0) and np.all(jax.grad(lambda v: read(value, v, bins=LEVELS, floor=-5.0))(v) != 0)


def test_the_decoder_s_variance_is_in_units_of_the_data():
    """A schedule that ends at alpha = 2: z there is twice x0."""
    twice = lambda t: (2 * (1 - t), 2 * t)  # noqa: E731
    for schedule in (twice, Flow()):
        p, q = at(schedule, 0.2), at(schedule, 0.0)
        found = variational.learnt_step(X0, GUESS, jnp.asarray(0.5), p, q, bins=LEVELS)
        np.testing.assert_allclose(
            found, variational.bin_nll(X0, GUESS, jnp.asarray(2 * np.log(0.2)), LEVELS), rtol=1e-12
        )


def test_steps_of_a_batch_of_which_some_are_the_last_have_slopes_in_float32():
    s = jnp.array([0.0, 1e-3, 0.1, 0.19], jnp.float32)
    value, x0, eps = (part.astype(jnp.float32) for part in (GUESS, X0, EPS))

    def one(value, v, s):
        return variational.hybrid_loss(
            mixed(value, v), Flow(), predictions.data, x0, eps, jnp.float32(0.2), s, steps=9, bins=LEVELS
        )

    read = jax.jit(jax.vmap(jax.value_and_grad(one, (0, 1)), (None, None, 0)))
    for v in (0.0, 1.0):
        found, slopes = read(value, jnp.float32(v), s)
        assert found.dtype == jnp.float32 and np.isfinite(found).all()
        assert all(np.isfinite(slope).all() for slope in slopes)
