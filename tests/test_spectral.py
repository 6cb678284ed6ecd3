"""Spectra against numpy's Fourier transform, Wiener's filter against the covariance of all pixels, and digits against noise."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen import exact, spectral
from diffeq_gen.schedules import VP, Cosine, Flow, at
from diffeq_gen.theorems.spectral_laws import _covariance
from diffeq_gen.training import digits
from diffeq_gen.types import Point

SHAPES = [(1, 1), (1, 4), (5, 1), (2, 2), (3, 5), (4, 6), (8, 8), (7, 4), (4, 5, 3), (2, 3, 4, 2)]


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(0.3, 1.5, shape)


def content(*shape, seed=0):
    """The power of one picture: the same at k as at -k."""
    return jnp.asarray(np.abs(np.fft.fftn(drawn(*shape, seed=seed), axes=(0, 1), norm="ortho")) ** 2)


def point(log_snr, size=1.0):
    alpha, sigma = size * math.exp(log_snr / 4), size * math.exp(-log_snr / 4)
    return Point(0.5, jnp.asarray(alpha), jnp.asarray(sigma), jnp.asarray(0.0), jnp.asarray(0.0))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_spectra_are_those_of_numpy(shape):
    x = drawn(*shape)
    fourier = np.fft.fftn(x, axes=(0, 1), norm="ortho")
    np.testing.assert_allclose(spectral.spectrum(jnp.asarray(x)), fourier.real - fourier.imag, atol=1e-13)
    np.testing.assert_allclose(spectral.power(jnp.asarray(x)), np.abs(fourier) ** 2, atol=1e-13)


@pytest.mark.parametrize("space", [1, 3])
def test_space_is_as_many_axes_as_are_said(space):
    x, axes = drawn(4, 3, 5), tuple(range(space))
    fourier = np.fft.fftn(x, axes=axes, norm="ortho")
    np.testing.assert_allclose(spectral.spectrum(jnp.asarray(x), space=space), fourier.real - fourier.imag, atol=1e-13)
    np.testing.assert_allclose(spectral.power(jnp.asarray(x), space=space), np.abs(fourier) ** 2, atol=1e-13)
    rings = spectral.radial_average(jnp.ones((4, 3, 5)), space=space)
    np.testing.assert_allclose(rings, np.ones((3, 3, 5)[: 4 - space] if space == 1 else (3,)), rtol=1e-15)


def test_a_long_axis_loses_no_digits():
    x = drawn(1024, 2).astype(np.float32)
    found = spectral.spectrum(jnp.asarray(x))
    assert found.dtype == jnp.float32
    fourier = np.fft.fftn(x.astype(np.float64), norm="ortho")
    np.testing.assert_allclose(found, fourier.real - fourier.imag, atol=3e-5)


def test_frequencies_are_cycles_a_pixel():
    for shape in [(4,), (5,), (3, 4), (8, 8), (2, 3, 5)]:
        axes = np.meshgrid(*(np.fft.fftfreq(n) for n in shape), indexing="ij")
        found = spectral.frequencies(shape)
        np.testing.assert_allclose(found, np.sqrt(sum(axis**2 for axis in axes)), atol=1e-15)
        assert found.dtype == jnp.float64
    np.testing.assert_allclose(spectral.frequencies((8,)), np.array([0, 1, 2, 3, 4, 3, 2, 1]) / 8)
    with jax.enable_x64(False):
        assert spectral.frequencies((3,)).dtype == jnp.float32


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (5, 5), (8, 8), (3, 8), (9, 2), (7, 7), (1, 6)], ids=str)
def test_rings_hold_the_nearest_frequencies(shape):
    """Place by place: n |f| within half of r."""
    n, values = max(shape), drawn(*shape)
    radius = np.array(
        [[math.hypot(*(min(k, m - k) / m for k, m in zip(place, shape, strict=True))) * n for place in row]
         for row in [[(i, j) for j in range(shape[1])] for i in range(shape[0])]]
    )  # fmt: skip
    rings = spectral.rings(shape)
    np.testing.assert_allclose(rings, np.arange(n // 2 + 1) / n, atol=1e-15)
    means = [values[(radius > r - 0.5 + 1e-9) & (radius <= r + 0.5 + 1e-9)].mean() for r in range(n // 2 + 1)]
    np.testing.assert_allclose(spectral.radial_average(jnp.asarray(values)), means, rtol=1e-12)


def test_channels_are_averaged_apart_and_a_batch_together():
    x = drawn(6, 4, 5, 3)
    each = jax.vmap(spectral.power)(jnp.asarray(x))
    rings = jax.vmap(spectral.radial_average)(each)
    assert rings.shape == (6, 3, 3)
    for channel in range(3):
        alone = spectral.radial_average(each[0, ..., channel])
        np.testing.assert_allclose(rings[0, :, channel], alone, rtol=1e-12)
    np.testing.assert_allclose(spectral.rapsd(jnp.asarray(x)), np.mean(rings, axis=(0, 2)), rtol=1e-12)
    grey = spectral.rapsd(jnp.asarray(x[..., 0]))
    np.testing.assert_allclose(grey, np.mean(rings[..., 0], axis=0), rtol=1e-12)
    series = spectral.rapsd(jnp.asarray(x[:, :, 0, 0]), space=1)
    lines = np.abs(np.fft.fft(x[:, :, 0, 0], norm="ortho")) ** 2
    wanted = [lines[:, 0].mean(), lines[:, [1, 3]].mean(), lines[:, 2].mean()]
    np.testing.assert_allclose(series, wanted, rtol=1e-12)


@pytest.mark.parametrize("shape", [(16, 16), (9, 12, 2)], ids=str)
def test_noise_has_power_one_in_every_ring(shape):
    """|x_k|^2 has variance 1, or 2 at the few k with k = -k; pairs k, -k share theirs: the mean over m places of n pictures errs by at
    most (2/(m n))^{1/2}.  Five of these: a false alarm in a million."""
    n = 400
    noise = jax.random.normal(jax.random.key(3), (n, *shape))
    found = spectral.rapsd(noise)
    ring = np.rint(max(shape[:2]) * np.asarray(spectral.frequencies(shape[:2]))).astype(int)
    count = np.array([np.sum(ring == r) for r in range(len(found))]) * math.prod(shape[2:])
    assert np.all(np.abs(found - 1) < 5 * np.sqrt(2 / (count * n)))
    assert not np.all(np.abs(1.3 * found - 1) < 5 * np.sqrt(2 / (count * n)))


def test_each_frequency_has_its_own_log_snr():
    power, p = content(3, 4), point(1.3)
    np.testing.assert_allclose(spectral.log_snr_at(power, 1.3), np.log(math.exp(1.3) * power), rtol=1e-12)
    assert spectral.log_snr_at(jnp.asarray(0.0), 1.3) == -jnp.inf
    z = spectral.variance(power, p)
    np.testing.assert_allclose(z, math.exp(0.65) * power + math.exp(-0.65), rtol=1e-12)
    signal = math.exp(0.65) * power
    np.testing.assert_allclose(spectral.share(power, 1.3), signal / z, rtol=1e-12)
    assert spectral.share(jnp.asarray(0.0), 1.3) == 0 and spectral.share(jnp.asarray(1e3), 800.0) == 1
    for log_snr, told in ((-2.0, 0.119), (0.0, 0.5), (2.0, 0.881)):
        np.testing.assert_allclose(spectral.share(jnp.asarray(1.0), log_snr), told, atol=5e-4)


@pytest.mark.parametrize("log_snr", [-30.0, -2.0, 0.0, 1.5, 30.0])
def test_the_filter_is_its_formula(log_snr):
    power, z, p = content(3, 4), jnp.asarray(drawn(3, 4, seed=1)), point(log_snr, size=3.0)
    wanted = p.alpha * power / (p.alpha**2 * power + p.sigma**2) * z
    np.testing.assert_allclose(spectral.wiener(z, power, p), wanted, rtol=1e-12)


def test_the_filter_at_the_ends():
    z, power = jnp.array([2.0, -3.0, 5.0]), jnp.array([4.0, 1e-30, 0.0])
    one, zero = jnp.asarray(1.0), jnp.asarray(0.0)
    ends = {name: Point(zero, alpha, sigma, zero, zero)
            for name, alpha, sigma in (("data", 2 * one, zero), ("noise", zero, 3 * one))}  # fmt: skip
    np.testing.assert_allclose(spectral.wiener(z, power, ends["data"]), [1.0, -1.5, 0.0], rtol=1e-12)
    np.testing.assert_array_equal(spectral.wiener(z, power, ends["noise"]), [0, 0, 0])
    with jax.enable_x64(False):
        for alpha, sigma in ((1.0, 1e-30), (1e-30, 1.0), (1e-25, 1e-25), (1e25, 1e25), (1e-25, 1e5)):
            o = Point(*(jnp.float32(value) for value in (0, alpha, sigma, 0, 0)))
            found = spectral.wiener(jnp.float32(1.0), jnp.float32(1.0), o)
            np.testing.assert_allclose(found, alpha / (alpha**2 + sigma**2), rtol=1e-6)
            assert found.dtype == jnp.float32
            moved = spectral.flow_map(jnp.float32(1.0), jnp.float32(4.0), point(0.0), o)
            np.testing.assert_allclose(moved, math.sqrt((4 * alpha**2 + sigma**2) / 5), rtol=1e-6)


def test_the_filter_has_slopes_where_it_switches():
    """d/dS = alpha sigma^2/(alpha^2 S + sigma^2)^2 z, alpha/sigma^2 z at S = 0; and finite slopes at both ends of the noise."""
    p = point(0.8)
    slope = jax.grad(lambda power: spectral.wiener(jnp.asarray(2.0), power, p))
    for power in (0.0, 0.7):
        wanted = 2 * p.alpha * p.sigma**2 / (p.alpha**2 * power + p.sigma**2) ** 2
        np.testing.assert_allclose(slope(jnp.asarray(power)), wanted, rtol=1e-12)
    gain = lambda sigma: spectral.wiener(jnp.asarray(1.0), jnp.asarray(0.5), Point(0.0, p.alpha, sigma, 0.0, 0.0))  # noqa: E731
    for sigma in (p.alpha, p.sigma):
        wanted = -2 * sigma * p.alpha * 0.5 / (p.alpha**2 * 0.5 + sigma**2) ** 2
        np.testing.assert_allclose(jax.grad(gain)(sigma), wanted, rtol=1e-12)
    assert jax.grad(gain)(jnp.asarray(0.0)) == 0
    rest = jax.grad(lambda power: spectral.wiener(jnp.asarray(1.0), power, Point(0.0, p.alpha, 0 * p.sigma, 0.0, 0.0)))
    assert rest(jnp.asarray(0.0)) == 0


@pytest.mark.parametrize("shape", [(4, 5), (5, 3), (4, 4)], ids=str)
@pytest.mark.parametrize("t", [1e-3, 0.4, 1.0])
def test_the_denoiser_is_that_of_all_pixels(shape, t):
    power, mean, z = content(*shape), jnp.asarray(drawn(*shape, seed=1)), jnp.asarray(drawn(*shape, seed=2))
    world, schedule = exact.Gaussian(mean.ravel(), _covariance(power)), Cosine()
    found = spectral.wiener_denoiser(power, mean, schedule)(z, t)
    np.testing.assert_allclose(found.ravel(), exact.denoise(world, z.ravel(), at(schedule, t)), atol=1e-11)
    p, q = at(schedule, t), at(schedule, 0.3)
    spectrum = spectral.spectrum(z - p.alpha * mean)
    moved = q.alpha * mean + spectral.spectrum(spectral.flow_map(spectrum, power, p, q))
    np.testing.assert_allclose(moved.ravel(), exact.flow_map(world, z.ravel(), p, q), atol=1e-11)


def test_one_power_serves_all_channels_or_each_has_its_own():
    mean, z = jnp.asarray(drawn(4, 3, 2, seed=1)), jnp.asarray(drawn(4, 3, 2, seed=2))
    own = jnp.stack([content(4, 3), content(4, 3, seed=5)], axis=-1)
    found = spectral.wiener_denoiser(own, mean, Flow())(z, 0.4)
    shared = spectral.wiener_denoiser(own[..., 1], mean, Flow())(z, 0.4)
    for channel in range(2):
        alone = spectral.wiener_denoiser(own[..., channel], mean[..., channel], Flow())(z[..., channel], 0.4)
        np.testing.assert_allclose(found[..., channel], alone, rtol=1e-12)
    np.testing.assert_allclose(shared[..., 1], found[..., 1], rtol=1e-12)
    p, q = at(Flow(), 0.4), at(Flow(), 0.2)
    np.testing.assert_allclose(
        spectral.flow_map(z, own[..., 1], p, q)[..., 1], spectral.flow_map(z, own, p, q)[..., 1], rtol=1e-12
    )
    line = spectral.wiener_denoiser(content(5, 1)[:, 0], mean[:1, 0, 0] + jnp.zeros(5), Flow(), space=1)(
        jnp.arange(5.0), 0.4
    )
    assert line.shape == (5,) and bool(jnp.all(jnp.isfinite(line)))


def test_denoisers_compile_batch_and_differentiate():
    power, mean = content(4, 5), jnp.asarray(drawn(4, 5, seed=1))
    denoise = spectral.wiener_denoiser(power, mean, Cosine())
    z = jnp.asarray(drawn(3, 4, 5, seed=2))
    times = jnp.array([0.2, 0.5, 0.9])
    together = jax.jit(jax.vmap(denoise))(z, times)
    for i in range(3):
        np.testing.assert_allclose(together[i], denoise(z[i], times[i]), rtol=1e-12, atol=1e-13)
    jacobian = jax.jacfwd(lambda z: denoise(z, 0.5).ravel())(z[0]).reshape(20, 20)
    world = exact.Gaussian(mean.ravel(), _covariance(power))
    p = at(Cosine(), 0.5)
    wanted = p.alpha / p.sigma**2 * exact.posterior_cov(world, z[0].ravel(), p)
    np.testing.assert_allclose(jacobian, wanted, atol=1e-11)
    built = jax.jit(lambda power: spectral.wiener_denoiser(power, mean, Cosine())(z[0], 0.5))(power)
    np.testing.assert_allclose(built, denoise(z[0], 0.5), rtol=1e-12, atol=1e-13)
    with jax.enable_x64(False):
        low = spectral.wiener_denoiser(power.astype(jnp.float32), mean.astype(jnp.float32), Cosine())
        assert low(z[0].astype(jnp.float32), 0.5).dtype == jnp.float32


def test_a_mode_that_has_no_noise_in_it_is_kept_and_one_without_signal_shrinks_as_sigma():
    p, q = point(2.0), point(6.0)
    moved = spectral.flow_map(jnp.array([1.0, 1.0]), jnp.array([0.0, 1e12]), p, q)
    np.testing.assert_allclose(moved, [q.sigma / p.sigma, q.alpha / p.alpha], rtol=1e-9)
    power = jnp.asarray(drawn(6) ** 2)
    there = spectral.flow_map(jnp.ones(6), power, p, q)
    np.testing.assert_allclose(spectral.flow_map(there, power, q, p), 1.0, rtol=1e-12)


def test_crossover_is_the_last_frequency_above_the_noise():
    frequency, power = jnp.array([0.1, 0.2, 0.3, 0.4]), jnp.array([8.0, 1.0, 4.0, 0.5])
    for log_snr, wanted in ((-3.0, 0.0), (-2.0, 0.1), (-1.0, 0.3), (0.0, 0.3), (1.0, 0.4), (500.0, 0.4), (-500.0, 0.0)):
        assert spectral.crossover(frequency, power, log_snr) == wanted, log_snr
    assert spectral.crossover(frequency, power, 0.0, threshold=4.0) == 0.1  # above, not at
    assert spectral.crossover(frequency, power, 0.0, threshold=0.4) == 0.4
    assert spectral.crossover(frequency, jnp.array([1 + 1e-9, 1.0, 0.0, 0.0]), 0.0) == 0.1
    assert spectral.crossover(frequency, 0 * power, 50.0) == 0
    many = jax.jit(jax.vmap(lambda log_snr: spectral.crossover(frequency, power, log_snr)))(jnp.array([-3.0, 1.0]))
    np.testing.assert_allclose(many, [0.0, 0.4])


def test_a_power_law_is_where_it_says():
    law = spectral.PowerLaw(0.3, 1.7)
    for log_snr, threshold in ((-4.0, 1.0), (0.0, 0.2), (9.0, 3.0)):
        top = law.crossover(log_snr, threshold=threshold)
        np.testing.assert_allclose(law(top), threshold * math.exp(-log_snr), rtol=1e-12)
    assert law.crossover(2.0) == law.crossover(2.0, threshold=1.0)
    np.testing.assert_allclose(law(2.0), 0.3 / 2**1.7, rtol=1e-12)
    for exponent in (0.0, -1.0):
        assert jnp.isnan(spectral.PowerLaw(1.0, exponent).crossover(1.0))
    slope = jax.grad(lambda exponent: spectral.PowerLaw(0.3, exponent).crossover(2.0))(1.7)
    np.testing.assert_allclose(slope, -(math.log(0.3) + 2) / 1.7**2 * law.crossover(2.0), rtol=1e-12)
    assert repr(law) == "PowerLaw(scale=0.3, exponent=1.7)"


def test_a_power_law_is_found_again():
    frequency = jnp.array([0.02, 0.1, 0.15, 0.5])
    for exponent in (2.0, 0.0, -1.0):
        law = spectral.power_law(frequency, 0.7 * frequency**-exponent)
        np.testing.assert_allclose(law.scale, 0.7, rtol=1e-12)
        np.testing.assert_allclose(law.exponent, exponent, atol=1e-12)
    power = jnp.asarray(np.exp(drawn(4)))
    slope, height = np.polyfit(np.log(frequency), np.log(power), 1)
    law = jax.jit(spectral.power_law)(frequency, power)
    np.testing.assert_allclose([law.exponent, np.log(law.scale)], [-slope, height], rtol=1e-10)
    assert jnp.isfinite(spectral.power_law(frequency[:2], power[:2]).scale)


def test_digits_fall_with_frequency_and_their_filter_beats_each_pixel_alone():
    """Of real pictures: RAPSD falls from ring to ring, noise uncovers them in this order, and Wiener's filter has a smaller
    error than the same without its neighbours, and the error that the filter itself predicts."""
    data = digits()
    x0 = data.scaled(data.train)[..., 0].astype(jnp.float64)
    mean = jnp.mean(x0, axis=0)
    rings = spectral.rapsd(x0 - mean[None])
    assert np.all(np.diff(rings[1:]) < 0)
    power = jnp.mean(jax.vmap(spectral.power)(x0 - mean[None]), axis=0)
    np.testing.assert_allclose(jnp.sum(power), jnp.sum(jnp.var(x0, axis=0)), rtol=1e-10)
    tops = [float(spectral.crossover(spectral.rings((8, 8)), rings, log_snr)) for log_snr in (0.0, 1.2, 1.8, 3.0)]
    assert tops == sorted(tops) and tops[0] < tops[-1] == 0.5
    schedule, t = VP(), 0.3
    p = at(schedule, t)
    held = data.scaled(data.held_out)[..., 0].astype(jnp.float64)
    z = p.alpha * held + p.sigma * jax.random.normal(jax.random.key(0), held.shape)
    flat = jnp.full((8, 8), jnp.mean(power))
    errors = [float(jnp.mean(jnp.sum((jax.vmap(lambda z, one=one: spectral.wiener_denoiser(one, mean, schedule)(z, t))(z) - held) ** 2,
                                     axis=(1, 2)))) for one in (power, flat)]  # fmt: skip
    predicted = float(jnp.sum(power * (1 - spectral.share(power, p.log_snr))))
    assert errors[0] < 0.95 * errors[1]
    np.testing.assert_allclose(errors[0], predicted, rtol=0.1)


LINE = jnp.arange(1.0, 4.0)


@pytest.mark.parametrize(
    ("verb", "message"),
    [
        (lambda: spectral.spectrum(LINE), r"space must be the first axes of a sample, one at least, got space=2, shape=\(3,\)"),
        (lambda: spectral.power(LINE, space=0), r"space must be the first axes of a sample, one at least, got space=0"),
        (lambda: spectral.radial_average(LINE), "space must be the first axes of a sample"),
        (lambda: spectral.frequencies(()), r"shape must have an axis, and each a pixel, got shape=\(\)"),
        (lambda: spectral.frequencies((3, 0)), r"shape must have an axis, and each a pixel, got shape=\(3, 0\)"),
        (lambda: spectral.rings((0,)), r"shape must have an axis, and each a pixel, got shape=\(0,\)"),
        (lambda: spectral.rapsd(jnp.ones((3, 4))), r"pictures must be a batch \(n, ...\), with space behind n, got space=2, shape="),
        (lambda: spectral.rapsd(jnp.ones((3, 4)), space=0), "pictures must be a batch"),
        (lambda: spectral.wiener(LINE, LINE[:2], point(0.0)), r"shape of z, or of its first axes, got power=\(2,\), z="),
        (lambda: spectral.flow_map(LINE, LINE[None], point(0.0), point(1.0)), "power must have the shape of z"),
        (lambda: spectral.wiener_denoiser(LINE, LINE, Flow()), "space must be the first axes of a sample"),
        (lambda: spectral.wiener_denoiser(jnp.array([1.0, -1.0, -1.0]), LINE, Flow(), space=1), "power must not be negative"),
        (lambda: spectral.wiener_denoiser(LINE, LINE, Flow(), space=1), "power must not be negative"),
        (lambda: spectral.wiener_denoiser(jnp.array([[4.0, 1], [2, 1], [1, 1]]), jnp.ones((3, 2)), Flow()), "and the same at k as at -k"),
        (lambda: spectral.crossover(LINE, LINE[:2], 0.0), r"frequency and power must have the same shape, got frequency=\(3,\), power="),
        (lambda: spectral.crossover(LINE, LINE, 0.0, threshold=0.0), "threshold must be positive, got threshold=0.0"),
        (lambda: spectral.PowerLaw(0.0, 1.0), "scale must be positive, got scale=0.0"),
        (lambda: spectral.PowerLaw(1.0, 1.0).crossover(0.0, threshold=0.0), "threshold must be positive, got threshold=0.0"),
        (lambda: spectral.power_law(LINE, LINE[:2]), "frequency and power must have the same shape, of two values at least"),
        (lambda: spectral.power_law(LINE[:1], LINE[:1]), "of two values at least"),
        (lambda: spectral.power_law(LINE - 1, LINE), "frequency and power must be positive"),
        (lambda: spectral.power_law(LINE, LINE - 1), "frequency and power must be positive"),
    ],
)  # fmt: skip
def test_errors_name_what_was_given(verb, message):
    with pytest.raises(ValueError, match=message):
        verb()


def test_power_may_be_as_uneven_as_a_mean_over_many_pictures_rounds_it():
    power = jnp.array([4.0, 1.0, 0.0, 1.001])
    spectral.wiener_denoiser(power, LINE[:1] + jnp.zeros(4), Flow(), space=1)
    with pytest.raises(ValueError, match="the same at k as at -k"):
        spectral.wiener_denoiser(power.at[3].set(1.006), LINE[:1] + jnp.zeros(4), Flow(), space=1)
    spectral.wiener_denoiser(jnp.zeros((3, 3)), jnp.zeros((3, 3)), Flow())
