"""Losses against their definition by hand, and times that fill the interval."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen import losses, predictions, weights
from diffeq_gen.importance import Histogram
from diffeq_gen.schedules import VP, Cosine, Flow, at

X0, EPS, GUESS = jnp.array([1.5, -0.5, 0.3]), jnp.array([0.25, 2.0, -1.0]), jnp.array([1.0, 0.2, 0.1])
THREE = Histogram(jnp.array([1.0, 3.0, 4.0]), ends=(0.1, 0.9))
EVERY = [predictions.data, predictions.noise, predictions.v, predictions.velocity, predictions.edm(0.5)]


def network_of(prediction, schedule):
    """What a network would say that believes x0 to be GUESS, whatever it predicts."""

    def network(z, t):
        return predictions.convert(GUESS, z, at(schedule, t), predictions.data, prediction)

    return network


@pytest.mark.parametrize("schedule", [Flow(), VP()], ids=repr)
@pytest.mark.parametrize("prediction", EVERY, ids=lambda prediction: prediction.__name__)
def test_a_weighted_loss_does_not_depend_on_the_prediction(schedule, prediction):
    """1/2 w (-lambda') |eps_hat - eps|^2, and |eps_hat - eps| = e^{lambda/2} |x0_hat - x0|, by hand."""
    t, weight = 0.3, weights.sigmoid(1.0)
    got = losses.denoising_loss(network_of(prediction, schedule), schedule, prediction, X0, EPS, t, weight=weight)
    alpha, sigma = schedule(jnp.asarray(t))
    log_snr = lambda t: 2 * jnp.log(schedule(t)[0] / schedule(t)[1])  # noqa: E731
    w = 1 / (1 + (alpha / sigma) ** 2 * np.exp(-1.0))
    wanted = 0.5 * w * -jax.grad(log_snr)(t) * (alpha / sigma) ** 2 * np.mean((GUESS - X0) ** 2)
    np.testing.assert_allclose(got, wanted, rtol=1e-11)


def test_a_plain_loss_is_the_squared_error_of_the_prediction():
    got = losses.denoising_loss(lambda z, t: 0 * z, Flow(), predictions.velocity, X0, EPS, 0.3)
    np.testing.assert_allclose(got, np.mean((EPS - X0) ** 2), rtol=1e-14)


def test_the_loss_of_a_silent_network_is_the_mean_square_of_its_target():
    x0 = jax.random.normal(jax.random.key(5), (7, 3)) + 1
    got = losses.loss(jax.random.key(0), lambda z, t: 0 * z, Cosine(), x0, prediction=predictions.data)
    np.testing.assert_allclose(got, np.mean(np.asarray(x0) ** 2), rtol=1e-13)


def test_a_perfect_network_has_no_loss():
    def network(z, t):
        return (z - (1 - t) * X0) / t - X0

    x0 = jnp.broadcast_to(X0, (16, 3))
    assert losses.loss(jax.random.key(0), network, Flow(), x0, prediction=predictions.velocity) < 1e-24


def test_a_part_of_a_batch_draws_what_it_would_within_the_whole():
    x0 = jax.random.normal(jax.random.key(5), (12, 3))
    network = lambda z, t: jnp.tanh(z) * t  # noqa: E731
    whole = losses.loss(jax.random.key(0), network, Cosine(), x0, prediction=predictions.v)
    parts = [
        losses.loss(
            jax.random.key(0),
            network,
            Cosine(),
            x0[i : i + 4],
            prediction=predictions.v,
            indices=jnp.arange(i, i + 4),
            total=12,
        )
        for i in (0, 4, 8)
    ]
    np.testing.assert_allclose(np.mean(parts), whole, rtol=1e-13)


def test_stratified_times_fill_the_interval_and_are_uniform_one_by_one():
    times = losses.stratified_times(jax.random.key(0), jnp.arange(64), 64, ends=(0.0, 1.0))
    assert 0 <= times.min() and times.max() < 1
    counts = np.bincount((np.asarray(times) * 64).astype(int), minlength=64)
    assert counts.tolist() == [1] * 64
    np.testing.assert_allclose(np.mod(times - times[0], 1), np.arange(64) / 64, atol=1e-15)  # in the order of the batch
    first = jax.vmap(lambda key: losses.stratified_times(key, jnp.arange(1), 64)[0])(
        jax.random.split(jax.random.key(1), 2000)
    )
    assert (
        abs(float(first.mean()) - 0.5) < 5 / np.sqrt(12 * 2000)
        and losses.ENDS[0] <= first.min()
        and first.max() <= losses.ENDS[1]
    )


def test_times_run_between_the_ends_in_a_straight_line():
    """Left out they are 1e-4 and 1 - 1e-4; the last of many times, if the first falls just above its end, is just below the other."""
    read = lambda **ends: losses.stratified_times(jax.random.key(3), jnp.arange(5), 5, **ends)  # noqa: E731
    share = read(ends=(0.0, 1.0))
    for ends, times in (((0.25, 0.75), read(ends=(0.25, 0.75))), ((1e-4, 1 - 1e-4), read())):
        np.testing.assert_allclose((times - ends[0]) / (ends[1] - ends[0]), share, rtol=1e-12)
    gaps = np.diff(np.sort(share))
    np.testing.assert_allclose(gaps, 0.2, rtol=1e-12)


def test_every_sample_has_noise_of_its_own():
    """A network that is asked for the noise and says nothing is told |eps|^2: its mean is one, and no two samples agree."""
    x0 = jnp.zeros((4000, 2))
    read = lambda x0: losses.loss(jax.random.key(0), lambda z, t: 0 * z, Cosine(), x0, prediction=predictions.noise)  # noqa: E731
    assert abs(float(read(x0)) - 1) < 5 * np.sqrt(2 / 8000)
    alone = [
        losses.loss(
            jax.random.key(0), lambda z, t: 0 * z, Cosine(), x0[:1], prediction=predictions.noise,
            indices=jnp.array([i]), total=4000,
        )
        for i in range(3)
    ]  # fmt: skip
    assert len({float(value) for value in alone}) == 3


def test_the_target_of_a_student_is_what_its_teacher_says():
    """In any prediction: a student that agrees has no loss, one that is off by one in x0 has (det/sigma)^2, whatever the data were; and
    nothing reaches the teacher's own parameters."""
    schedule, x0 = VP(), jax.random.normal(jax.random.key(5), (8, 3))
    teacher = lambda shift: lambda z, t: jnp.tanh(z) + shift  # noqa: E731
    for prediction in EVERY:

        def student(z, t, prediction=prediction):
            return predictions.convert(jnp.tanh(z) + 1, z, at(schedule, t), predictions.data, prediction)

        read = lambda shift, student=student, prediction=prediction, **more: losses.denoising_loss(  # noqa: E731
            student, schedule, prediction, X0, EPS, 0.3, teacher=teacher(shift), **more)  # fmt: skip
        p = at(schedule, 0.3)
        factor = predictions.determinant(prediction, p) / p.sigma
        np.testing.assert_allclose(read(0.0), factor**2, rtol=1e-10)
        assert read(1.0) < 1e-24 and jax.grad(read)(0.0) == 0
        np.testing.assert_allclose(
            read(0.0, weight=weights.elbo), -p.log_snr_dot / 2 * (p.alpha / p.sigma) ** 2, rtol=1e-10
        )
    options = {"prediction": predictions.data, "teacher": teacher(0.0)}
    student = lambda z, t: jnp.tanh(z) + 1  # noqa: E731
    np.testing.assert_allclose(losses.loss(jax.random.key(0), student, schedule, x0, **options), 1, rtol=1e-12)
    np.testing.assert_allclose(losses.each(jax.random.key(0), student, schedule, x0, **options)[1], 1, rtol=1e-12)


def test_each_is_what_the_loss_is_a_mean_of():
    x0, key, density = jax.random.normal(jax.random.key(5), (7, 3)) + 1, jax.random.key(0), THREE
    settings = {"prediction": predictions.v, "weight": weights.sigmoid(1.0)}
    network = lambda z, t: jnp.tanh(z) * t  # noqa: E731
    times, values = losses.each(key, network, Cosine(), x0, density=density, **settings)
    assert times.shape == values.shape == (7,) and 0.1 <= times.min() and times.max() <= 0.9
    loss = losses.loss(key, network, Cosine(), x0, density=density, **settings)
    np.testing.assert_allclose(loss, np.mean(values / np.asarray([0.375, 1.125, 1.5])[density.bin(times)]), rtol=1e-6)
    np.testing.assert_allclose(losses.loss(key, network, Cosine(), x0, **settings),
                               losses.each(key, network, Cosine(), x0, **settings)[1].mean(), rtol=1e-6)  # fmt: skip


def test_squared_loss_is_the_mean_of_the_squares():
    x0, key = jax.random.normal(jax.random.key(5), (7, 3)) + 1, jax.random.key(0)
    settings = {"prediction": predictions.v, "weight": weights.sigmoid(1.0)}
    network = lambda schedule: lambda z, t: jnp.tanh(z) * schedule(t)[0]  # noqa: E731
    values = losses.each(key, network(Cosine()), Cosine(), x0, **settings)[1]
    np.testing.assert_allclose(
        losses.squared_loss(key, network, Cosine(), x0, **settings), np.mean(np.asarray(values) ** 2), rtol=1e-6
    )
