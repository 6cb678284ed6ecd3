"""DEIS and PNDM: what they cost, where they begin and end, how near they come."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen import clocks, exact
from diffeq_gen.samplers import ddim, deis, ipndm, pndm, pseudo_runge_kutta, sample, started
from diffeq_gen.samplers.deis import NODES, PANELS, _moments
from diffeq_gen.schedules import VP, Cosine, Flow, at

KEY = jax.random.key(0)
WORLD = exact.Mixture(np.array([0.25, 0.75]), np.array([[-1.0, 0.5], [1.0, 0.0]]), 0.1 * np.stack([np.eye(2)] * 2))
MADE = {"deis": deis, "ipndm": ipndm, "pndm": pndm, "pseudo_runge_kutta": pseudo_runge_kutta}


@pytest.fixture(autouse=True)
def as_users_run_it():
    with jax.enable_x64(False):
        yield


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("schedule", [Cosine(), VP()], ids=["Cosine", "VP"])
def test_from_pure_noise_to_pure_data_it_ends_finite_with_a_slope(name, schedule):
    sampler, times = MADE[name](exact.denoiser(WORLD, schedule), schedule), clocks.uniform(6)
    run = jax.jit(lambda z: (sample(KEY, sampler, z, times), jax.jacfwd(lambda z: sample(KEY, sampler, z, times))(z)))
    end, slope = run(jnp.array([0.7, -1.2]))
    assert end.shape == (2,) and end.dtype == np.float32
    assert bool(jnp.all(jnp.isfinite(end))) and bool(jnp.all(jnp.isfinite(slope)))


@pytest.mark.parametrize(("name", "each"), [("deis", 1), ("ipndm", 1), ("pseudo_runge_kutta", 4)])
def test_how_often_the_model_is_asked_and_at_which_times(name, each):
    asked = []

    def denoise(z, t):
        asked.append(float(t))
        return 0.5 * z

    sampler, times = MADE[name](denoise, Cosine()), [0.9, 0.6, 0.4, 0.1]
    z, memory = jnp.ones(2), sampler.init(jnp.ones(2))
    for t, s in pairwise(times):
        z, memory = sampler.step(z[None][:0], memory, z, jnp.asarray(t), jnp.asarray(s))
    wanted = [[t, (t + s) / 2, (t + s) / 2, s][:each] for t, s in pairwise(times)]
    np.testing.assert_allclose(asked, np.ravel(wanted), rtol=1e-6)


def test_pndm_takes_three_pseudo_steps_and_then_goes_on_from_them():
    schedule, z = Flow(), jnp.array([0.7, -1.2])
    denoise, times = exact.denoiser(WORLD, schedule), jnp.array([0.9, 0.8, 0.65, 0.5, 0.3])
    state, memory, one = z, ipndm(denoise, schedule).init(z), pseudo_runge_kutta(denoise, schedule)
    for t, s in pairwise(times[:4]):
        _, memory = ipndm(denoise, schedule).step(None, memory, state, t, s)
        state, _ = one.step(None, (), state, t, s)
    state, _ = ipndm(denoise, schedule).step(None, memory, state, times[3], times[4])
    np.testing.assert_allclose(sample(KEY, pndm(denoise, schedule), z, times), state, rtol=2e-5)


def test_pndm_is_what_it_is_made_of_over_a_whole_run():
    schedule, z, times = Flow(), jnp.array([0.7, -1.2]), clocks.uniform(9, first=0.95, last=0.05)
    denoise = exact.denoiser(WORLD, schedule)
    parts = started(ipndm(denoise, schedule), pseudo_runge_kutta(denoise, schedule), steps=3)
    np.testing.assert_allclose(sample(KEY, pndm(denoise, schedule), z, times), sample(KEY, parts, z, times), rtol=1e-5)


def test_pndm_evaluates_once_where_both_of_its_rules_ask():
    """Three evaluations more in each of three steps, 9 in all: Liu et al. 2022, Alg. 2."""
    asked = []

    def denoise(z, t):
        jax.debug.callback(lambda t: asked.append(float(t)), t)
        return jnp.tanh(z)

    jax.block_until_ready(sample(KEY, pndm(denoise, Flow()), jnp.ones(2), jnp.array([0.9, 0.8, 0.6, 0.5, 0.3, 0.1])))
    jax.effects_barrier()
    wanted = [0.9, 0.85, 0.85, 0.8, 0.8, 0.7, 0.7, 0.6, 0.6, 0.55, 0.55, 0.5, 0.5, 0.3]
    np.testing.assert_allclose(sorted(asked), sorted(wanted), rtol=1e-6)


@pytest.mark.parametrize("name", ["deis", "ipndm", "pndm"])
def test_from_pure_noise_the_first_step_is_ddim(name):
    schedule, z = Cosine(), jnp.array([0.7, -1.2])
    denoise = exact.denoiser(WORLD, schedule)
    sampler = MADE[name](denoise, schedule)
    args = jnp.asarray(1.0), jnp.asarray(0.8)
    known = ddim(denoise, schedule).step(None, (), z, *args)[0]
    np.testing.assert_array_equal(sampler.step(z[None], sampler.init(z), z, *args)[0], known)


class Late:
    """Pure noise for the last fifth of its time."""

    def __call__(self, t):
        u = jnp.minimum(t / 0.8, 1)
        return 1 - u, u


@pytest.mark.parametrize("make", [deis, ipndm])
def test_a_step_from_pure_noise_is_ddims_whatever_is_remembered(make):
    """rho is infinite there, and no polynomial leads on from it."""
    sampler, plain = (one(lambda z, t: jnp.tanh(z) * t, Late()) for one in (make, ddim))
    z, kept = jnp.array([0.7, -1.2]), sampler.init(jnp.zeros(2))
    values = tuple(jnp.full(2, float(k)) for k, _ in enumerate(kept.values))
    kept = kept._replace(values=values, times=tuple(jnp.asarray(0.9 + 0.05 * k) for k, _ in enumerate(values)))
    for t, s, same in ((0.8, 0.7, True), (0.7, 0.6, False)):
        ends = [
            one.step(None, old, z, jnp.asarray(t), jnp.asarray(s))[0] for one, old in ((sampler, kept), (plain, ()))
        ]
        assert bool(jnp.all(jnp.isfinite(jnp.stack(ends)))) and bool(jnp.all(ends[0] == ends[1])) == same


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize(("t", "s"), [(0.9, 1.0), (0.2, 0.0)], ids=["to pure noise", "to pure data"])
def test_a_step_of_one_stage_to_an_end_is_ddims(name, t, s):
    """Of those that remember, the first one, and back to pure noise the second too; of the four stages any."""
    schedule, z = Cosine(), jnp.array([0.7, -1.2])
    denoise = exact.denoiser(WORLD, schedule)
    sampler, plain = MADE[name](denoise, schedule), ddim(denoise, schedule)
    _, memory = sampler.step(z[None], sampler.init(z), z, jnp.asarray(0.8), jnp.asarray(t))
    for one in (sampler.init(z), *((memory,) if s == 1 and name != "ipndm" else ())):
        moved, _ = sampler.step(z[None], one, z, jnp.asarray(t), jnp.asarray(s))
        known, _ = plain.step(None, (), z, jnp.asarray(t), jnp.asarray(s))
        np.testing.assert_allclose(moved, known, rtol=3e-6)


@pytest.mark.parametrize("make", [deis, ipndm])
def test_it_remembers_as_many_values_as_its_order_asks_for(make):
    kept = make(lambda z, t: z, Flow(), order=3).init(jnp.zeros(2))
    assert len(kept.values) == len(kept.times) == 2


def test_they_come_nearer_than_ddim():
    """At 12 steps on a mixture, even in t, against 2,000 of DDIM."""
    schedule, z = Cosine(), jnp.array([[0.7, -1.2], [-1.3, 0.4], [0.2, 2.0]])
    denoise = jax.vmap(exact.denoiser(WORLD, schedule), (0, None))
    grid = lambda n: clocks.uniform(n, first=0.95, last=0.05)  # noqa: E731
    known = sample(KEY, ddim(denoise, schedule), z, grid(2000))
    errors = [float(jnp.max(jnp.abs(sample(KEY, make(denoise, schedule), z, grid(12)) - known)))
              for make in (ddim, deis, ipndm, pndm)]  # fmt: skip
    assert max(errors[1:]) < errors[0] / 3


@pytest.mark.parametrize(("t", "s"), [(0.5, 0.0), (0.98, 0.97), (0.98, 0.96), (0.3, 0.2999)])
def test_the_quadrature_is_as_exact_as_the_docstring_says(t, s):
    """Against u = 1 - r: int (r - t) d(r/(1-r)) = 1/u + log u - t/u, also in a step as long as the way to alpha = 0; by 48 nodes."""
    assert len(NODES) * PANELS == 48
    with jax.enable_x64(True):
        moments = _moments(Flow(), at(Flow(), t), at(Flow(), s), 2)
        from mpmath import log, mp, mpf

        mp.dps = 40
        whole = lambda r: (1 - mpf(t)) / (1 - mpf(r)) + log(1 - mpf(r))  # noqa: E731
        known = float(whole(s) - whole(t))
        assert abs(float(moments[1]) - known) < 1e-13 * max(abs(known), abs(t - s))


def test_a_step_to_pure_data_under_a_root_is_as_exact():
    """VP's sigma falls like a root of t: int_0^t (rho - 0) dr by substitution is smooth, and known to many digits elsewhere."""
    from mpmath import expm1, mp, mpf, quad, sqrt

    with jax.enable_x64(True):
        moments = _moments(VP(), at(VP(), 0.1), at(VP(), 0.0), 2)
        mp.dps = 30
        known = quad(lambda r: sqrt(expm1(r * (mpf("0.1") + r * mpf("19.9") / 2))), [0, mpf(1) / 100, mpf("0.1")])
        assert abs(float(moments[1]) - float(known)) < 1e-12 * float(known)


@pytest.mark.parametrize("make", [deis, ipndm])
def test_bad_input_is_named(make):
    with pytest.raises(ValueError, match="order must be 1, 2, 3 or 4, got order=5"):
        make(None, Flow(), order=5)


@pytest.mark.parametrize(("make", "fewest"), [(deis, 3), (ipndm, 4), (pndm, 4)])
def test_too_few_steps_for_the_order_are_named(make, fewest):
    with pytest.raises(ValueError, match=f"the sampler's order needs more steps, got steps=2, fewest={fewest}"):
        sample(KEY, make(lambda z, t: z, Cosine()), jnp.zeros(2), clocks.uniform(2))
