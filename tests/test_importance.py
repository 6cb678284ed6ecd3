"""Times of a density, what is learnt from losses, and what it spares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen import clocks, importance, losses, predictions, weights
from diffeq_gen.importance import Histogram, Seen
from diffeq_gen.schedules import Cosine, Flow, at, checked

HEIGHTS = jnp.array([1.0, 3.0, 4.0])


def three(**options):
    return Histogram(HEIGHTS, **options)


def test_times_are_the_quantiles_of_the_density():
    """Masses 1/8, 3/8, 4/8 of three equal bins of [0.1, 0.7]."""
    density = three(ends=(0.1, 0.7))
    u = jnp.array([0.0, 0.0625, 0.125, 0.3125, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(density.time(u), [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(density.time))(u[1::2]) * jnp.exp(density.log_density(density.time(u[1::2]))),
                               0.6, rtol=1e-5)  # fmt: skip


def test_density_is_read_in_bins_and_at_the_ends():
    density = three(ends=(0.1, 0.7))
    t = jnp.array([0.0, 0.1, 0.299, 0.301, 0.499, 0.501, 0.7, 0.9])
    np.testing.assert_array_equal(density.bin(t), [0, 0, 0, 1, 1, 2, 2, 2])
    np.testing.assert_allclose(jnp.exp(density.log_density(t)), np.array([1, 1, 1, 3, 3, 4, 4, 4]) * 3 / 8, rtol=1e-6)


def test_left_out_are_64_bins_between_the_ends_of_the_losses():
    for density in (importance.uniform(), Seen.none().density(), importance.optimal(jnp.ones(64))):
        assert density.heights.shape == (64,) and density.ends == losses.ENDS == (1e-4, 1 - 1e-4)
        np.testing.assert_allclose(
            density.time(jnp.array([0.0, 0.3, 1.0])), [1e-4, 0.3 * (1 - 2e-4) + 1e-4, 1 - 1e-4], rtol=1e-5
        )
        np.testing.assert_allclose(density.log_density(jnp.array([0.2, 0.9])), 0, atol=1e-6)
    assert importance.uniform(5, ends=(0.2, 0.4)).ends == (0.2, 0.4) == Seen.none(ends=(0.2, 0.4)).density().ends
    assert importance.optimal(jnp.ones(2), ends=(0.2, 0.4)).ends == (0.2, 0.4)


def test_optimal_density_is_the_root_of_the_squares_and_a_share_of_uniform_times():
    np.testing.assert_allclose(importance.optimal(jnp.array([1.0, 9.0]), floor=0.0).heights, [0.5, 1.5])
    np.testing.assert_allclose(importance.optimal(jnp.array([1.0, 9.0]), floor=0.2).heights, [0.6, 1.4], rtol=1e-6)
    np.testing.assert_allclose(importance.optimal(jnp.array([1.0, 9.0])).heights, [0.55, 1.45], rtol=1e-6)
    np.testing.assert_allclose(importance.optimal(jnp.array([0.0, 4.0]), floor=1.0).heights, [1.0, 1.0])


def test_one_bin_is_enough_and_small_squares_are_squares():
    for density in (Histogram(jnp.array([0.25])), importance.uniform(1), Seen.none(bins=1).density()):
        np.testing.assert_allclose(density.relative(), [1.0])
    np.testing.assert_allclose(
        importance.optimal(jnp.array([0.01, 0.04]), floor=0.0).relative(), [2 / 3, 4 / 3], rtol=1e-6
    )


def test_the_floor_left_out_is_a_tenth():
    squares = jnp.array([0.3, 5.0, 0.0])
    np.testing.assert_array_equal(importance.optimal(squares).heights, importance.optimal(squares, floor=0.1).heights)
    seen = Seen.none(bins=2, ends=(0.0, 1.0)).noted(jnp.array([0.1, 0.9, 0.8]), jnp.array([0.3, 5.0, 1.0]))
    for stratified in (False, True):
        left_out, said = seen.density(stratified=stratified), seen.density(stratified=stratified, floor=0.1)
        np.testing.assert_array_equal(left_out.heights, said.heights)


def test_old_losses_count_in_full_or_not_at_all():
    first, second = jnp.array([2.0]), jnp.array([3.0])
    seen = Seen.none(bins=1).noted(jnp.array([0.5]), first)
    np.testing.assert_allclose(seen.variances_of_bins(), 0, atol=1e-6)  # of one loss, where a bin is all there is
    np.testing.assert_allclose(seen.noted(jnp.array([0.5]), second).sums, 5.0)
    np.testing.assert_allclose(seen.noted(jnp.array([0.5]), second, decay=0.0).sums, 3.0)
    half = seen.noted(jnp.array([]), jnp.array([]), decay=0.25)
    np.testing.assert_allclose(half.squares_of_bins(), 4.0)
    np.testing.assert_allclose(half.variances_of_bins(), 0.0, atol=1e-6)


def test_second_moment_is_that_of_losses_over_the_density():
    """Two values by hand: squares 2 and 8 at h = 1/2 and 3/2, in any unit of the heights."""
    density = Histogram(jnp.array([5.0, 15.0]))
    np.testing.assert_allclose(
        importance.second_moment(density, jnp.array([2.0, 8.0])), (2 / 0.5 + 8 / 1.5) / 2, rtol=1e-6
    )


def test_seen_losses_are_told_apart_by_bin_and_fade():
    seen = Seen.none(bins=4, ends=(0.0, 1.0))
    seen = seen.noted(jnp.array([0.1, 0.2, 0.6]), jnp.array([1.0, 2.0, 5.0]))
    seen = seen.noted(jnp.array([0.1, 0.3]), jnp.array([3.0, 1.0]), decay=0.5)
    np.testing.assert_allclose(seen.counts, [2, 1, 0.5, 0])
    np.testing.assert_allclose(seen.sums, [4.5, 1, 2.5, 0])
    np.testing.assert_allclose(seen.squares, [11.5, 1, 12.5, 0])
    np.testing.assert_allclose(seen.squares_of_bins(), [5.75, 1, 25, 25 / 3.5], rtol=1e-6)
    np.testing.assert_allclose(seen.variances_of_bins(), [5.75 - 2.25**2, 0, 0, 25 / 3.5 - (8 / 3.5) ** 2], rtol=1e-5)
    np.testing.assert_allclose(
        seen.density(floor=0.0).heights, importance.optimal(seen.squares_of_bins(), floor=0.0).heights
    )
    np.testing.assert_allclose(
        seen.density(stratified=True, floor=0.0 + 0.3).heights,
        importance.optimal(seen.variances_of_bins(), floor=0.3).heights,
    )
    np.testing.assert_allclose(
        seen.density().heights.min(), 0.1 + 0.9 / np.sqrt(seen.squares_of_bins()).mean(), rtol=1e-6
    )


def test_nothing_seen_is_uniform_and_infinite_losses_are_not_heard():
    none = Seen.none(bins=3)
    np.testing.assert_allclose(none.squares_of_bins(), 1)
    np.testing.assert_allclose(none.variances_of_bins(), 1)
    heard = none.noted(jnp.array([0.1, 0.1, 0.9]), jnp.array([jnp.nan, jnp.inf, 2.0]))
    np.testing.assert_allclose(heard.counts, [0, 0, 1])
    np.testing.assert_allclose(heard.squares, [0, 0, 4])
    np.testing.assert_allclose(heard.sums, [0, 0, 2])


def test_seen_is_carried_through_a_compiled_loop():
    def turn(seen, one):
        return seen.noted(*one, decay=0.9), None

    times, values = jax.random.uniform(jax.random.key(0), (2, 20, 8))
    seen = jax.jit(lambda seen: jax.lax.scan(turn, seen, (times, values))[0])(Seen.none(bins=4))
    np.testing.assert_allclose(seen.counts.sum(), 8 * (1 - 0.9**20) / 0.1, rtol=1e-5)
    assert jax.jit(lambda seen: seen.density())(seen).heights.shape == (4,)


def test_a_loss_is_the_same_under_any_density_and_varies_less_under_the_learnt_one():
    """A silent network of which each time's loss is known but for the noise: 4e5 draws, within five standard errors."""
    schedule, x0 = Flow(), jax.random.normal(jax.random.key(0), (64, 2))
    settings = {"prediction": predictions.noise, "weight": weights.elbo}
    network = lambda z, t: 0 * z  # noqa: E731

    @jax.jit
    def spent(key, density):
        return losses.loss(key, network, schedule, x0[:1], density=density, **settings)

    def learnt():
        seen, keys = Seen.none(bins=32), jax.random.split(jax.random.key(1), 100)
        times, values = jax.vmap(lambda key: losses.each(key, network, schedule, x0, **settings))(keys)
        return seen.noted(times.ravel(), values.ravel()).density(floor=0.02)

    keys = jax.random.split(jax.random.key(2), 20000)
    rows = [
        np.asarray(jax.vmap(lambda key, density=density: spent(key, density))(keys))
        for density in (importance.uniform(32), learnt())
    ]
    errors = [row.std() / np.sqrt(len(row)) for row in rows]
    assert abs(rows[0].mean() - rows[1].mean()) < 5 * np.hypot(*errors)
    assert errors[1] < 0.4 * errors[0]


def test_stratified_times_of_a_density_fill_it_evenly_in_any_division_of_the_batch():
    density = three(ends=(0.0, 1.0))
    whole = losses.stratified_times(jax.random.key(0), jnp.arange(64), 64, density=density)
    parts = [losses.stratified_times(jax.random.key(0), jnp.arange(i, i + 32), 64, density=density) for i in (0, 32)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_array_equal(np.bincount(np.asarray(density.bin(whole))), [8, 24, 32])


def test_a_schedule_for_a_density_spends_draw_by_draw_what_importance_does():
    """Key by key, with the slopes that a network is taught by; a plain loss does not."""
    x0, key, params = jax.random.normal(jax.random.key(5), (9, 3)) + 1, jax.random.key(3), jnp.array(0.7)
    density = Histogram(HEIGHTS, ends=losses.ENDS)
    bent = importance.Rescheduled(density, Cosine())
    network = lambda way: lambda params: lambda z, t: jnp.tanh(params * z) * clocks.log_snr(way, t)  # noqa: E731

    def spent(way, density, weight):
        ask = lambda params: losses.loss(  # noqa: E731
            key, network(way)(params), way, x0, prediction=predictions.v, weight=weight, density=density
        )
        return jax.jit(jax.value_and_grad(ask))(params)

    np.testing.assert_allclose(
        spent(bent, None, weights.sigmoid(2.0)), spent(Cosine(), density, weights.sigmoid(2.0)), rtol=1e-5
    )
    assert abs(spent(bent, None, None)[0] / spent(Cosine(), density, None)[0] - 1) > 1e3 * 1e-5


def test_a_schedule_for_a_density_is_one_with_its_own_slopes(precision):
    """It falls as the schedule does, faster where its times are rarer; beyond the ends it is the schedule."""
    density = Histogram(jnp.asarray([1, 3, 4], precision), ends=(0.1, 0.7))
    bent = checked(importance.Rescheduled(density, Flow()))
    t = jnp.asarray([0.05, 0.1, 0.15, 0.25, 0.5, 0.7, 0.8], precision)
    asked = np.array([0.05, 0.1, 0.3, 0.3 + 0.2 * 1 / 3, 0.7 - 0.6 / 3 * (0.2 / 0.3), 0.7, 0.8])
    asked[2] = 0.1 + 0.2 * (0.05 / 0.6) / 0.125
    alpha, sigma = jax.vmap(bent)(t)
    assert sigma.dtype == alpha.dtype == precision
    np.testing.assert_allclose(sigma, asked, rtol=1e-5)
    np.testing.assert_allclose(alpha, 1 - asked, rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(bent.log_snr)(t), 2 * np.log(1 / asked - 1), rtol=1e-5)
    slopes = [float(at(bent, one).sigma_dot) for one in t]
    np.testing.assert_allclose(slopes[2:5], 1 / (np.array([1, 3, 4]) * 3 / 8), rtol=1e-5)
    np.testing.assert_allclose([slopes[0], slopes[-1]], 1)
    np.testing.assert_allclose([slopes[1], slopes[5]], [8 / 3, 2 / 3], rtol=1e-5)
    np.testing.assert_allclose(clocks.time_at(bent, bent.log_snr(t[3])), t[3], rtol=1e-5)
    assert repr(bent) == f"Rescheduled(density={density!r}, schedule=Flow())"


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (lambda: Histogram(jnp.array([1.0, 0.0])), "heights must be a sequence of positive finite numbers, got heights="),
        (lambda: Histogram(jnp.array([1.0, jnp.inf])), "positive finite numbers, got"),
        (lambda: Histogram(jnp.array([1.0, jnp.nan])), "positive finite numbers, got"),
        (lambda: Histogram(jnp.array(1.0)), "must be a sequence of positive"),
        (lambda: Histogram(jnp.ones(0)), "must be a sequence of positive"),
        (lambda: Histogram(jnp.ones(2), ends=(0.5, 0.5)), r"ends must rise, within \[0, 1\], got ends="),
        (lambda: Histogram(jnp.ones(2), ends=(-0.1, 0.5)), "ends must rise"),
        (lambda: Histogram(jnp.ones(2), ends=(0.1, 1.5)), "ends must rise"),
        (lambda: importance.uniform(0), "bins must be positive, got bins=0"),
        (lambda: Seen.none(bins=0), "bins must be positive, got bins=0"),
        (lambda: importance.optimal(jnp.array([1.0, -1.0])), "squares must be finite and not negative, got squares="),
        (lambda: importance.optimal(jnp.array([1.0, jnp.inf])), "squares must be finite and not negative, got squares="),
        (lambda: importance.optimal(jnp.zeros(2)), "squares must not all be zero, got squares="),
        (lambda: importance.optimal(jnp.ones(2), floor=1.1), r"floor must lie in \[0, 1\], got floor=1.1"),
        (lambda: importance.optimal(jnp.ones(2), floor=-0.1), r"floor must lie in \[0, 1\], got floor=-0.1"),
        (lambda: Seen.none().noted(jnp.ones(1), jnp.ones(1), decay=1.5), r"decay must lie in \[0, 1\], got decay=1.5"),
        (lambda: Seen.none().noted(jnp.ones(1), jnp.ones(1), decay=-0.5), r"decay must lie in \[0, 1\], got decay=-0.5"),
    ],
)  # fmt: skip
def test_bad_input_is_named(refused, message):
    with pytest.raises(ValueError, match=message):
        refused()
