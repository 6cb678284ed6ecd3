"""Samplers made of samplers: who takes which step, and who sees it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen import clocks
from diffeq_gen.samplers import (
    churned,
    corrected,
    ddim,
    ddpm,
    denoised,
    heun,
    langevin,
    multistep,
    raised,
    sample,
    singlestep,
    started,
    trajectory,
)
from diffeq_gen.schedules import EDM, VE, VP, Cosine, Flow
from diffeq_gen.types import Sampler

KEY = jax.random.key(0)


def denoise(z, t):
    return jnp.tanh(z) * (1 - t)


@pytest.fixture(autouse=True)
def as_users_run_it():
    with jax.enable_x64(False):
        yield


@pytest.mark.parametrize("steps", [1, 2])
def test_the_starter_takes_the_first_steps_and_the_other_the_rest(steps):
    adding = lambda value: Sampler(lambda z: (), lambda noise, memory, z, t, s: (z + value, memory))  # noqa: E731
    states = trajectory(KEY, started(adding(1.0), adding(10.0), steps=steps), jnp.zeros(2), clocks.uniform(4))
    np.testing.assert_array_equal(states[:, 0], np.cumsum([0.0, *[10.0] * steps, *[1.0] * (4 - steps)]))


def test_what_it_starts_sees_the_steps_that_it_did_not_take():
    schedule, z = Cosine(), jnp.array([0.7, -1.2])
    times = clocks.uniform(2, first=0.9, last=0.3)
    multi, single = multistep(denoise, schedule), singlestep(denoise, schedule)
    left = sample(KEY, started(multi, single, steps=1), z, times)
    middle = single.step(None, (), z, times[0], times[1])[0]
    _, past = multi.step(None, multi.init(z), z, times[0], times[1])
    np.testing.assert_allclose(left, multi.step(None, past, middle, times[1], times[2])[0], rtol=1e-6)


def test_each_is_given_as_much_noise_as_it_asks_for():
    schedule, z = Cosine(), jnp.array([0.7, -1.2])
    times = clocks.uniform(2, first=0.9, last=0.3)
    both = started(ddim(denoise, schedule), ddpm(denoise, schedule), steps=2)
    assert both.noises == 1 and started(ddpm(denoise, schedule), ddim(denoise, schedule), steps=1).noises == 1
    np.testing.assert_allclose(sample(KEY, both, z, times), sample(KEY, ddpm(denoise, schedule), z, times), rtol=1e-6)


def test_no_steps_are_no_start():
    for steps in (0, 0.75):
        with pytest.raises(ValueError, match=f"steps must be at least 1, got steps={steps}"):
            started(None, None, steps=steps)


def test_the_last_state_alone_is_denoised_with_the_last_of_a_float64_grid_too():
    schedule, z, times = Cosine(), jnp.array([0.7, -1.2]), clocks.uniform(7, first=0.9, last=0.1)
    states = trajectory(KEY, ddim(denoise, schedule), z, times)
    for last in (times[-1], 0.1, np.float64(0.1)):
        ended = trajectory(KEY, denoised(ddim(denoise, schedule), denoise, last=last), z, times)
        np.testing.assert_allclose(ended[:-1], states[:-1], rtol=1e-6)
        np.testing.assert_allclose(ended[-1], denoise(states[-1], times[-1]), rtol=1e-6)
    slope = jax.jacrev(lambda z: sample(KEY, denoised(ddim(denoise, schedule), denoise, last=0.1), z, times))(z)
    assert bool(jnp.all(jnp.isfinite(slope)))
    with pytest.raises(ValueError, match=r"last must lie in \[0, 1\], got last=1.5"):
        denoised(None, None, last=1.5)


Z = np.array([0.7, -1.2], np.float32)


@pytest.mark.parametrize("schedule", [Flow(), Cosine(), VP(), VE()], ids=repr)
@pytest.mark.parametrize("name", ["multistep", "heun", "2S-SDE"])
def test_churn_of_any_step_is_finite_from_end_to_end(name, schedule):
    made = {"multistep": multistep, "heun": heun, "2S-SDE": lambda f, s: singlestep(f, s, eta=0.5)}[name]
    for sampler in (
        churned(made(denoise, schedule), schedule, undone=0.3),
        raised(made(denoise, schedule), schedule, gamma=0.2),
        corrected(made(denoise, schedule), langevin(denoise, schedule), steps=2),
    ):
        run = lambda z, sampler=sampler: sample(KEY, sampler, z, clocks.uniform(6))  # noqa: E731
        assert run(jnp.asarray(Z)).dtype == jnp.float32
        assert bool(jnp.all(jnp.isfinite(run(jnp.asarray(Z)))))


def test_nothing_undone_and_nothing_raised_is_the_sampler_itself():
    times, schedule = clocks.uniform(5, first=0.9, last=0.1), Cosine()
    plain = ddim(denoise, schedule)
    assert churned(plain, schedule, undone=0.0) is plain and raised(plain, schedule, gamma=0.0) is plain
    known = sample(KEY, plain, jnp.asarray(Z), times)
    for make in (lambda x: churned(plain, schedule, undone=x), lambda x: raised(plain, schedule, gamma=x)):
        traced = jax.jit(lambda x, make=make: sample(KEY, make(x), jnp.asarray(Z), times))(0.0)
        np.testing.assert_allclose(traced, known, atol=20 * np.sqrt(np.finfo(np.float32).eps))


@pytest.mark.parametrize("schedule", [VP(), VE(), EDM()], ids=repr)
def test_churn_goes_no_further_than_the_schedule_and_keeps_what_it_may(schedule):
    """A step to s close to 0 with nearly all undone, and a step from t = 1 raised: the network is asked within [0, 1]."""
    asked = []

    def asking(z, t):
        asked.append(float(t))
        return 0.5 * z

    noise = jnp.ones((2, 2))
    args = noise, (), jnp.asarray(Z), jnp.asarray(0.5), jnp.asarray(0.01)
    heun_asks = heun(asking, schedule)
    churned(heun_asks, schedule, undone=0.9).step(*args)
    raised(heun_asks, schedule, gamma=100.0).step(*args)
    assert all(0 <= t <= 1 for t in asked) and len(asked) == 4 and asked[2] == 1.0


def still(asked, moved=0.0):
    """A step that moves z by a number and by its own row of noise, and keeps the times it was asked for."""

    def step(noise, memory, z, t, s):
        asked.append((float(t), float(s)))
        return z + moved + 10 * noise[0], memory + 1

    return Sampler(lambda z: 0.0, step, noises=1, fewest=3)


def log_snr(t):
    """Of the cosine schedule."""
    return -2 * np.log(np.tan(np.pi * t / 2))


def renoised(z, eps, clean, noisy):
    """z(noisy) from z(clean) under the cosine schedule: scaled, and what is missing of the variance added."""
    scale = np.cos(np.pi * noisy / 2) / np.cos(np.pi * clean / 2)
    return scale * z + np.sqrt(np.sin(np.pi * noisy / 2) ** 2 - (scale * np.sin(np.pi * clean / 2)) ** 2) * eps


def step_of(sampler, noise, t, s, memory=0.0):
    noise, z = (jnp.asarray(value, "float64") for value in (noise, Z))
    return sampler.step(noise, memory, z, jnp.asarray(t, "float64"), jnp.asarray(s, "float64"))


@pytest.mark.parametrize("undone", [0.25, 0.7])
def test_churn_walks_so_far_that_the_share_undone_is_walked_back(undone):
    """lambda_r - lambda_s = c (lambda_r - lambda_t); its noise is the first row, and comes after the step."""
    with jax.enable_x64(True):
        asked, noise = [], [[0.3, -0.6], [0.05, 0.02]]
        made = churned(still(asked, 0.5), Cosine(), undone=undone)
        end, memory = step_of(made, noise, 0.7, 0.4, memory=5.0)
        ((t, r),) = asked
        assert made.fewest == 3 and made.noises == 2 and (t, memory, made.init(end)) == (0.7, 6.0, 0.0)
        np.testing.assert_allclose(log_snr(r) - log_snr(0.4), undone * (log_snr(r) - log_snr(0.7)), rtol=1e-9)
        np.testing.assert_allclose(
            end, renoised(Z + 0.5 + 10 * np.array(noise[1]), np.array(noise[0]), r, 0.4), rtol=1e-7
        )
        if undone == 0.25:
            half = step_of(churned(still(asked), Cosine()), noise, 0.7, 0.4)[0]
            np.testing.assert_array_equal(half, step_of(churned(still([]), Cosine(), undone=0.5), noise, 0.7, 0.4)[0])


def test_churn_from_pure_noise_goes_to_time_zero_and_to_pure_data_it_is_the_step():
    """Where the way is infinite its share is infinite too; at sigma_s = 0 there is no noise."""
    with jax.enable_x64(True):
        asked, noise = [], [[0.3, -0.6], [0.0, 0.0]]
        made = churned(still(asked), Cosine(), undone=0.3)
        np.testing.assert_allclose(
            step_of(made, noise, 1.0, 0.4)[0], renoised(Z, np.array(noise[0]), 0.0, 0.4), rtol=1e-9
        )
        np.testing.assert_allclose(step_of(made, noise, 0.4, 0.0)[0], Z, rtol=1e-12)
        assert asked == [(1.0, 0.0), (0.4, 0.0)]
        traced = jax.jit(
            lambda undone: step_of(churned(ddim(denoise, Cosine()), Cosine(), undone=undone), noise, 1.0, 0.4)[0]
        )
        np.testing.assert_allclose(traced(0.0), step_of(ddim(denoise, Cosine()), noise, 1.0, 0.4)[0], rtol=1e-6)


def test_noise_is_raised_by_its_factor_before_the_step():
    """sigma/alpha at t_hat is (1 + gamma) times that at t; its noise is the first row.  From pure noise there is none."""
    with jax.enable_x64(True):
        asked, noise = [], [[0.3, -0.6], [0.05, 0.02]]
        made = raised(still(asked, 0.5), Cosine(), gamma=0.2)
        end, memory = step_of(made, noise, 0.7, 0.4, memory=5.0)
        ((t_hat, s),) = asked
        assert made.fewest == 3 and made.noises == 2 and (s, memory, made.init(end)) == (0.4, 6.0, 0.0)
        np.testing.assert_allclose(np.tan(np.pi * t_hat / 2), 1.2 * np.tan(np.pi * 0.7 / 2), rtol=1e-9)
        lifted = renoised(Z.astype(float), np.array(noise[0]), 0.7, t_hat)
        np.testing.assert_allclose(end, lifted + 0.5 + 10 * np.array(noise[1]), rtol=1e-9)
        np.testing.assert_allclose(
            step_of(made, noise, 1.0, 0.4)[0], Z.astype(float) + 0.5 + 10 * np.array(noise[1]), rtol=1e-12
        )
        step_of(made, noise, 0.0, 0.0)
        assert asked[1:] == [(1.0, 0.4), (0.0, 0.0)]
        tenth = step_of(raised(still([]), Cosine()), noise, 0.7, 0.4)[0]
        np.testing.assert_array_equal(tenth, step_of(raised(still([]), Cosine(), gamma=0.1), noise, 0.7, 0.4)[0])


@pytest.mark.parametrize("make", [churned, raised])
def test_the_sampler_has_noise_of_its_own(make):
    adding = Sampler(lambda z: (), lambda noise, memory, z, t, s: (z + noise[0] + 2 * noise[1], memory), noises=2)
    both, z = make(adding, VE()), jnp.zeros(())
    gains = jax.grad(lambda noise: both.step(noise, (), z, jnp.asarray(0.6), jnp.asarray(0.4))[0])(jnp.zeros(3))
    assert both.noises == 3 and float(gains[0]) > 0
    np.testing.assert_array_equal(gains[1:], [1.0, 2.0])


def test_the_corrector_has_its_own_noise_and_memory():
    counting = Sampler(
        lambda z: jnp.zeros((), z.dtype), lambda noise, m, z, t, s: (z + noise[0] + 10 * m, m + 1), noises=1
    )
    both = corrected(counting, counting, steps=3)
    assert both.noises == 4
    z, (own, other) = both.step(
        jnp.asarray([[1.0], [2.0], [4.0], [8.0]]), both.init(jnp.zeros(1)), jnp.zeros(1), 0.5, 0.4
    )
    assert float(z[0]) == 15 + 10 * (0 + 0 + 1 + 2) and (float(own), float(other)) == (1, 3)
    assert corrected(counting, counting).noises == 2 and corrected(still([]), counting).fewest == 3


def test_predictor_and_corrector_are_told_the_ends_of_the_step_and_keep_to_their_own_noise():
    """Two rows for the one, one for each step of the other."""
    predictor = Sampler(lambda z: (), lambda noise, m, z, t, s: (z + t * noise[0] + s * noise[1], m), noises=2)
    corrector = Sampler(lambda z: (), lambda noise, m, z, t, s: (2 * z + 100 * t * noise[0] + 1000 * s, m), noises=1)
    noise = jnp.asarray([[1.0], [2.0], [4.0], [8.0]])
    end, _ = corrected(predictor, corrector, steps=2).step(
        noise, ((), ()), jnp.ones(1), jnp.float32(0.5), jnp.float32(0.25)
    )
    first = 1 + 0.5 * 1 + 0.25 * 2
    assert float(end[0]) == 2 * (2 * first + 50 * 4 + 250) + 50 * 8 + 250


def test_samplers_of_samplers_pass_on_what_they_are():
    own, other = still([]), Sampler(lambda z: 7.0, lambda noise, m, z, t, s: (z, m), noises=4, fewest=2)
    both = started(own, other, steps=1)
    assert (both.noises, both.fewest) == (4, 3) and started(other, own, steps=1).fewest == 3
    assert [float(part) for part in both.init(jnp.ones(2))] == [0.0, 0.0, 7.0]
    last = denoised(own, denoise, last=0.1)
    assert (last.noises, last.fewest, last.init(jnp.ones(2))) == (1, 3, 0.0)


@pytest.mark.parametrize(("s", "ends"), [(0.1, False), (0.05, True), (0.04, True)])
def test_a_step_to_the_last_time_or_beyond_is_denoised(s, ends):
    last = denoised(Sampler(lambda z: (), lambda noise, m, z, t, s: (z + 1, m)), lambda z, t: 10 * z + t, last=0.05)
    s = jnp.asarray(s, jnp.float32)
    moved, _ = last.step(None, (), jnp.ones(2), jnp.float32(0.5), s)
    np.testing.assert_array_equal(moved, 20 + s if ends else 2.0)
    for end in (0.0, 1.0):
        denoised(still([]), None, last=end)
    with pytest.raises(ValueError, match="last must lie"):
        denoised(None, None, last=-0.5)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: churned(None, None, undone=1.0), r"undone must lie in \[0, 1\), got undone=1.0"),
        (lambda: churned(None, None, undone=-0.1), r"undone must lie in \[0, 1\), got undone=-0.1"),
        (lambda: raised(None, None, gamma=-0.1), "gamma must not be negative, got gamma=-0.1"),
        (lambda: corrected(None, None, steps=0), "steps must be at least 1, got steps=0"),
        (lambda: corrected(None, None, steps=0.75), "steps must be at least 1, got steps=0.75"),
    ],
)
def test_bad_input_is_named(make, said):
    with pytest.raises(ValueError, match=said):
        make()
