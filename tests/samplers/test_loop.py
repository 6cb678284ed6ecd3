"""The one scan: what it checks, what it draws, and that it is traced once."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen import clocks, samplers
from diffeq_gen.schedules import Cosine, Flow
from diffeq_gen.types import Sampler

KEY = jax.random.key(3)
MEAN = 1.5


def denoise(z, t):
    return jnp.tanh(z) + MEAN


EVERY = {
    "ddim": lambda schedule: samplers.ddim(denoise, schedule),
    "ddim eta": lambda schedule: samplers.ddim(denoise, schedule, eta=0.5),
    "ddpm": lambda schedule: samplers.ddpm(denoise, schedule),
    "ddpm large": lambda schedule: samplers.ddpm(denoise, schedule, variance=1.0),
    "churn": lambda schedule: samplers.churn(denoise, schedule, undone=0.3),
    "exponential": lambda schedule: samplers.exponential(denoise, schedule, eta=0.7),
    "euler": lambda schedule: samplers.euler(denoise, schedule),
    "heun": lambda schedule: samplers.heun(denoise, schedule),
    "edm": lambda schedule: samplers.edm(denoise, schedule),
    "edm churn": lambda schedule: samplers.edm(denoise, schedule, steps=5, s_churn=2.0),
    "euler-maruyama": lambda schedule: samplers.euler_maruyama(denoise, schedule),
}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("shape", [(), (2,), (3, 4, 1)])
def test_shape_and_dtype_are_kept_and_a_key_decides(name, shape, precision):
    sampler, z = EVERY[name](Cosine()), jnp.full(shape, 0.5, precision)
    times = clocks.uniform(5, first=0.9, last=0.1)
    x = samplers.sample(KEY, sampler, z, times)
    assert x.shape == shape and x.dtype == precision and bool(jnp.all(jnp.isfinite(x)))
    assert bool(jnp.all(x == samplers.sample(KEY, sampler, z, times)))
    other = samplers.sample(jax.random.key(4), sampler, z, times)
    assert bool(jnp.all(x == other)) == (sampler.noises == 0)


@pytest.mark.parametrize("name", [name for name in EVERY if not name.startswith(("edm", "euler-maruyama"))])
def test_the_whole_interval_from_pure_noise_to_data_is_finite(name):
    x = samplers.sample(KEY, EVERY[name](Flow()), jnp.ones(3), clocks.uniform(4))
    assert bool(jnp.all(jnp.isfinite(x)))


@pytest.mark.parametrize("name", EVERY)
def test_gradients_flow_to_the_start_and_the_ends_are_safe(name):
    times = clocks.uniform(4, first=0.9)
    slope = jax.grad(lambda z: samplers.sample(KEY, EVERY[name](Flow()), z, times).sum())(jnp.ones(3))
    assert bool(jnp.all(jnp.isfinite(slope)))


def test_one_trace_for_any_number_of_calls():
    chex.clear_trace_counter()

    @chex.assert_max_traces(n=1)
    def counted(z, t):
        return denoise(z, t)

    sampler = samplers.ddim(counted, Flow())
    for seed in range(3):
        samplers.sample(jax.random.key(seed), sampler, jnp.full(2, float(seed)), clocks.uniform(50))


def test_memory_travels_with_the_state():
    def step(noise, memory, z, t, s):
        return z + memory, memory + 1

    sampler = Sampler(lambda z: jnp.zeros((), z.dtype), step)
    assert samplers.sample(KEY, sampler, jnp.zeros(2), clocks.uniform(4)).tolist() == [6.0, 6.0]


def test_the_trajectory_begins_with_the_start():
    sampler, times = EVERY["ddpm"](Flow()), clocks.uniform(6)
    states = samplers.trajectory(KEY, sampler, jnp.ones(2), times)
    assert states.shape == (7, 2) and states[0].tolist() == [1.0, 1.0]
    np.testing.assert_array_equal(states[-1], samplers.sample(KEY, sampler, jnp.ones(2), times))


def test_pmap_and_vmap_agree():
    sampler, times = EVERY["ddim"](Flow()), clocks.uniform(6)
    z = jax.random.normal(KEY, (jax.local_device_count(), 3))
    mapped = jax.vmap(lambda z: samplers.sample(KEY, sampler, z, times))(z)
    np.testing.assert_allclose(jax.pmap(lambda z: samplers.sample(KEY, sampler, z, times))(z), mapped, rtol=1e-12)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([0.2, 0.5], "decreasing sequence"),
        ([0.5, 0.5], "decreasing sequence"),
        ([0.9, 0.5, 0.7], "decreasing sequence"),
        ([0.5], "decreasing sequence of at least two"),
        ([1.5, 0.5], "within \\[0, 1\\], got first=1.5"),
        ([0.5, -0.1], "within \\[0, 1\\]"),
        ([0.9, 0.5, -0.1], "within \\[0, 1\\], got first=0.9.* last=-0.1"),
        ([0.5, float("nan")], "decreasing sequence"),
    ],
)
def test_bad_times_are_named(times, message):
    with pytest.raises(ValueError, match=message):
        samplers.sample(KEY, EVERY["ddim"](Flow()), jnp.ones(2), jnp.array(times))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: samplers.ddim(denoise, Flow(), eta=-1.0), "eta must not be negative, got eta=-1.0"),
        (lambda: samplers.ddpm(denoise, Flow(), variance=1.5), "variance must lie in \\[0, 1\\], got variance=1.5"),
        (lambda: samplers.churn(denoise, Flow(), undone=1.0), "undone must lie in \\[0, 1\\), got undone=1.0"),
        (lambda: samplers.exponential(denoise, Flow(), eta=-0.1), "eta must not be negative"),
        (lambda: samplers.edm(denoise, Flow(), steps=0), "steps must be at least 1"),
        (lambda: samplers.edm(denoise, Flow(), s_churn=-1.0), "s_churn must not be negative"),
        (lambda: samplers.edm(denoise, Flow(), s_noise=-1.0), "s_noise must not be negative"),
        (lambda: samplers.edm(denoise, Flow(), s_min=2.0, s_max=1.0), "s_min must not exceed s_max"),
        (lambda: samplers.euler_maruyama(denoise, Flow(), eta=-1.0), "eta must not be negative"),
    ],
)
def test_bad_options_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def keeping(step, init=lambda z: (), **options):
    return Sampler(init, lambda noise, memory, z, t, s: step(memory, z, t), **options)


@pytest.mark.parametrize("run", [samplers.sample, samplers.trajectory, None])
@pytest.mark.parametrize(
    ("sampler", "error", "message"),
    [
        (
            keeping(lambda memory, z, t: (z[0], memory)),
            ValueError,
            r"keep the shape of z, got \(3,\) from \(2, 3\)|got \(\)",
        ),
        (
            keeping(lambda memory, z, t: (z.astype("float16"), memory)),
            ValueError,
            "the dtype of z, got float16 from float",
        ),
        (keeping(lambda memory, z, t: (z, (*memory, t))), ValueError, "the structure of its memory, got PyTreeDef"),
        (
            keeping(lambda memory, z, t: (z, z[None]), lambda z: z),
            ValueError,
            r"the shapes of its memory, got \(1, (2|2, 3)\) from \((2,|2, 3)\)",
        ),
        (keeping(lambda memory, z, t: (z, z > 0), lambda z: z), ValueError, "the dtypes of its memory, got bool from"),
        (keeping(lambda memory, z, t: z), TypeError, r"a step must return \(z, memory\), got"),
    ],
)
def test_a_step_that_changes_what_is_carried_is_named(run, sampler, error, message):
    times = clocks.uniform(3)
    with pytest.raises(error, match=message):
        if run is None:
            samplers.law(sampler, jnp.ones(2), jnp.eye(2), times)
        else:
            run(KEY, sampler, jnp.ones((2, 3)), times)


def test_a_number_in_memory_may_become_an_array():
    sampler = keeping(lambda memory, z, t: (z, memory + z[0]), lambda z: 0.0)
    assert samplers.sample(KEY, sampler, jnp.ones(2), clocks.uniform(3)).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    "sampler",
    [
        samplers.multistep(denoise, Flow(), order=4),
        samplers.lms(denoise, Flow()),
        samplers.unipc(denoise, Flow(), order=4),
        samplers.started(samplers.multistep(denoise, Flow(), order=4), EVERY["ddim"](Flow()), steps=1),
        samplers.started(EVERY["ddim"](Flow()), samplers.multistep(denoise, Flow(), order=4), steps=1),
    ],
)
def test_fewer_steps_than_an_order_needs_are_named(sampler):
    for run in (samplers.sample, samplers.trajectory):
        with pytest.raises(ValueError, match="the sampler's order needs more steps, got steps=3, fewest=4"):
            run(KEY, sampler, jnp.ones(2), clocks.uniform(3))
    assert samplers.sample(KEY, sampler, jnp.ones(2), clocks.uniform(4)).shape == (2,)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("edm", "alpha and sigma must be positive where a step of edm begins, got alpha=0.0, sigma=1.0, t=1.0"),
        (
            "euler-maruyama",
            "alpha and sigma must be positive where a step of euler_maruyama begins, got alpha=0.0, sigma=1.0",
        ),
    ],
)
def test_a_step_from_pure_noise_that_has_no_value_is_named(name, message):
    sampler, z, one, half = EVERY[name](Flow()), jnp.ones(2), jnp.asarray(1.0), jnp.asarray(0.5)
    noise = jnp.zeros((sampler.noises, 2))
    with pytest.raises(ValueError, match=message):
        sampler.step(noise, sampler.init(z), z, one, half)
    assert bool(jnp.all(jnp.isfinite(sampler.step(noise, sampler.init(z), z, half, 0 * half)[0])))
