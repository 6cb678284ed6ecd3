"""First-order steps at their corners: pure noise, pure data, the largest eta, nothing undone, and steps of one ulp."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen.clocks import log_snr
from diffeq_gen.paths import transition
from diffeq_gen.samplers import churn, consistency, ddim, ddpm, exponential, first_order_step
from diffeq_gen.schedules import VE, VP, Cosine, Flow, at
from tests.samplers.rows import reads_its_first_rows

X0 = np.array([1.5, -0.25])
Z = np.array([0.3, 2.0])
NOISE = np.array([[1.25, -0.5]])

METHODS = {
    "ddim": lambda schedule: ddim(known, schedule),
    "ddim eta": lambda schedule: ddim(known, schedule, eta=0.6),
    "ddim eta one": lambda schedule: ddim(known, schedule, eta=1.0),
    "ddpm": lambda schedule: ddpm(known, schedule),
    "ddpm large": lambda schedule: ddpm(known, schedule, variance=1.0),
    "churn": lambda schedule: churn(known, schedule, undone=0.3),
    "exponential": lambda schedule: exponential(known, schedule, eta=0.7),
}


@pytest.fixture(scope="module", autouse=True)
def sharp():
    """float64, in which the bounds below are sharp; a test that asks for `precision` has its own."""
    with jax.enable_x64(True):
        yield


def known(z, t):
    """Data at one point: every bridge is then exact."""
    return jnp.asarray(X0, z.dtype)


def step(sampler, t, s, z=Z, noise=NOISE, dtype=None):
    dtype = jnp.asarray(1.0).dtype if dtype is None else dtype
    noise = jnp.asarray(noise, dtype)[: sampler.noises]
    return sampler.step(noise, (), jnp.asarray(z, dtype), jnp.asarray(t, dtype), jnp.asarray(s, dtype))[0]


@pytest.mark.parametrize(
    ("silent", "spoken"),
    [
        (ddim(known, VP()), ddim(known, VP(), eta=0.0)),
        (ddpm(known, VP()), ddpm(known, VP(), variance=0.0)),
        (churn(known, VP()), churn(known, VP(), undone=0.5)),
        (exponential(known, VP()), exponential(known, VP(), eta=1.0)),
    ],
    ids=["ddim", "ddpm", "churn", "exponential"],
)
def test_what_is_left_out_is_what_the_docstrings_say(silent, spoken):
    assert silent.noises == spoken.noises
    for t, s in ((0.9999, 0.6), (0.4, 1e-4)):
        np.testing.assert_array_equal(step(silent, t, s), step(spoken, t, s))


@pytest.mark.parametrize(
    ("make", "inside", "outside"),
    [
        (lambda eta: ddim(known, VP(), eta=eta), [0.0, 0.5, 7.0], [-1e-9]),
        (lambda variance: ddpm(known, VP(), variance=variance), [0.0, 0.5, 1.0], [-1e-9, 1 + 1e-9]),
        (lambda undone: churn(known, VP(), undone=undone), [0.0, 0.5, 1 - 1e-9], [-1e-9, 1.0]),
        (lambda eta: exponential(known, VP(), eta=eta), [0.0, 0.5, 7.0], [-1e-9]),
    ],
    ids=["ddim", "ddpm", "churn", "exponential"],
)
def test_knobs_turn_from_end_to_end_and_no_further(make, inside, outside):
    for value in inside:
        make(value)
    for value in outside:
        with pytest.raises(ValueError, match=f"got .*={value}"):
            make(value)


def gain(sampler, t, s):
    """How much of the noise a step lets in."""
    return float(step(sampler, t, s, noise=np.ones((1, 2)))[0] - step(sampler, t, s, noise=np.zeros((1, 2)))[0])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("schedule", [Flow(), Cosine(), VP()], ids=repr)
def test_the_step_to_pure_data_returns_the_denoised(name, schedule):
    clean = at(schedule, jnp.asarray(0.0))
    assert float(clean.sigma) == 0
    np.testing.assert_array_equal(step(METHODS[name](schedule), 0.4, 0.0), clean.alpha * X0)


@pytest.mark.parametrize("name", METHODS)
def test_pure_noise_is_forgotten_by_every_step_that_is_markov(name):
    """At alpha_t = 0 log-SNR is -inf, so that churn of any size is an infinite overshoot."""
    slope = jax.jacfwd(lambda z: step(METHODS[name](Flow()), 1.0, 0.7, z=z))(jnp.asarray(Z))
    assert np.all(np.isfinite(slope))
    if name in ("ddpm", "ddpm large", "ddim eta one", "churn", "exponential"):
        np.testing.assert_array_equal(slope, np.zeros((2, 2)))
    else:
        assert np.all(np.diag(slope) > 0)


def test_deterministic_ddim_keeps_the_noise_it_began_with():
    np.testing.assert_allclose(step(ddim(known, Flow()), 1.0, 0.7), 0.3 * X0 + 0.7 * Z, rtol=1e-14)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("schedule", [Flow(), Cosine(), VP(), VE()], ids=repr)
@pytest.mark.parametrize("t", [1e-3, 0.5, 0.999])
def test_a_step_of_one_ulp_is_no_nan_and_no_leap(name, schedule, t, precision):
    t = np.asarray(t, precision)
    s = np.nextafter(t, np.asarray(0, precision))
    moved = step(METHODS[name](schedule), t, s, dtype=precision)
    assert moved.dtype == precision and np.all(np.isfinite(moved))
    sigma = float(schedule(jnp.asarray(t))[1])
    ulps = 1e3 * np.sqrt(np.finfo(precision).eps)  # noise enters as the root of the step
    np.testing.assert_allclose(moved, Z.astype(precision), atol=ulps * (1 + sigma))


def test_no_noise_is_asked_for_where_none_is_used():
    assert [method(known, Flow(), **option).noises for method, option in [
        (ddim, {}), (ddim, {"eta": 1e-9}), (churn, {"undone": 0}), (churn, {"undone": 0.1}),
        (exponential, {"eta": 0}), (exponential, {}), (ddpm, {}),
    ]] == [0, 1, 0, 1, 0, 1, 1]  # fmt: skip


@pytest.mark.parametrize("s", [0.3, 0.0])
def test_a_knob_at_zero_is_ddim(s):
    plain = step(ddim(known, Cosine()), 0.6, s)
    for sampler in (churn(known, Cosine(), undone=0.0), exponential(known, Cosine(), eta=0.0)):
        np.testing.assert_array_equal(step(sampler, 0.6, s), plain)
    traced = jax.jit(lambda eta: step(ddim(known, Cosine(), eta=eta), 0.6, s))(0.0)
    np.testing.assert_allclose(traced, plain, rtol=1e-14)


def test_to_undo_all_is_to_draw_afresh():
    """undone -> 1 and eta -> its largest value: z_t no longer matters, and the law at s is that of fresh noise."""
    p, q = at(Cosine(), jnp.asarray(0.6)), at(Cosine(), jnp.asarray(0.3))
    fresh = np.asarray(first_order_step(jnp.asarray(X0), jnp.asarray(Z), jnp.asarray(NOISE[0]), p, q, jnp.inf))
    np.testing.assert_allclose(fresh, q.alpha * X0 + q.sigma * NOISE[0], rtol=1e-14)
    np.testing.assert_allclose(step(churn(known, Cosine(), undone=1 - 1e-9), 0.6, 0.3), fresh, rtol=1e-12)
    gained = np.exp(float(log_snr(Cosine(), 0.6) - log_snr(Cosine(), 0.3)))
    largest = (1 - gained) ** -0.5
    np.testing.assert_allclose(step(ddim(known, Cosine(), eta=largest * (1 - 1e-12)), 0.6, 0.3), fresh, rtol=1e-5)
    assert np.all(np.isnan(step(ddim(known, Cosine(), eta=largest * (1 + 1e-6)), 0.6, 0.3)))


@pytest.mark.parametrize("schedule", [Flow(), VP(), VE()], ids=repr)
def test_the_two_variances_of_ddpm_and_what_lies_between(schedule):
    p, q = at(schedule, jnp.asarray(0.6)), at(schedule, jnp.asarray(0.5))
    scale, std = (float(part) for part in transition(p, q))
    small, middle, large = (gain(ddpm(known, schedule, variance=v), 0.6, 0.5) for v in (0.0, 0.25, 1.0))
    np.testing.assert_allclose(large, std, rtol=1e-12)
    by_bayes = (1 / float(q.sigma) ** 2 + scale**2 / std**2) ** -0.5  # precisions of prior and likelihood add
    np.testing.assert_allclose(small, by_bayes, rtol=1e-12)
    np.testing.assert_allclose(np.log(middle), 0.75 * np.log(small) + 0.25 * np.log(large), rtol=1e-12)
    assert small < middle < large


def test_log_snr_that_falls_on_the_way_is_refused():
    with pytest.raises(ValueError, match="log-SNR must not fall from t to s"):
        step(ddpm(known, Flow()), 0.3, 0.6)


def test_consistency_forgets_all_but_the_guess():
    guess, noise, z = np.array([0.3, -2.0]), np.array([[1.0, 0.5]]), np.array([5.0, 7.0])
    for t, s in ((1.0, 0.4), (0.6, 0.0), (1.0, 0.0)):
        alpha, sigma = Cosine()(s)
        moved, _ = consistency(lambda z, t: guess, Cosine()).step(noise, (), z, t, s)
        np.testing.assert_allclose(moved, alpha * guess + sigma * noise[0], rtol=1e-6)


STOCHASTIC = {name: make for name, make in METHODS.items() if name != "ddim"}
STOCHASTIC |= {"consistency": lambda schedule: consistency(known, schedule)}


@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_noise_is_the_first_row(name):
    sampler = STOCHASTIC[name](Flow())
    reads_its_first_rows(sampler)
    assert sampler.noises == 1
