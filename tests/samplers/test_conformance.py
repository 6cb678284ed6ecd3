"""What a step owes to the loop: each fault is named by the check that it fails, and by no other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen import samplers
from diffeq_gen.samplers.conformance import checked_method
from diffeq_gen.schedules import EDM, Cosine, Flow
from diffeq_gen.types import Sampler

LATE = "finite at s = 0"


def started(denoise, schedule):
    """Two steps of a three-stage method, then a method that remembers."""
    three = samplers.singlestep(denoise, schedule, order=3)
    return samplers.started(samplers.multistep(denoise, schedule, order=3), three, steps=2)


COSTS = {
    samplers.ddim: (1, 0, 1, True), samplers.ddpm: (1, 1, 1, True), samplers.heun: (2, 0, 1, True),
    samplers.edm: (2, 0, 1, False), samplers.euler_maruyama: (1, 1, 1, False), samplers.unipc: (1, 0, 2, True),
    started: (4, 0, 3, True),
}  # fmt: skip


@pytest.mark.parametrize("method", COSTS, ids=lambda method: method.__name__)
def test_ours_conform_at_a_known_cost(method):
    report = samplers.conform(method)
    assert report, str(report)
    assert (report.evaluations, report.noises, report.fewest, report.opens) == COSTS[method]
    assert str(report).startswith("10 of 10 checks hold (checks, not residuals)")


def altered(alter, noises=0, init=lambda z: ()):
    """The method whose step is `alter(noise, memory, moved, z, t, s)`, of a DDIM step."""

    def method(denoise, schedule):
        step = samplers.ddim(denoise, schedule).step
        return Sampler(
            init, lambda noise, memory, z, t, s: alter(noise, memory, step(noise, (), z, t, s)[0], z, t, s), noises
        )

    return method


def asking(_):
    return np.float32(1)


def drawing(noise, memory, moved, z, t, s):
    return moved + 0 * jax.random.normal(jax.random.key(0), z.shape, z.dtype), memory


def branching(noise, memory, moved, z, t, s):
    return (moved if t > 0.5 else z), memory


def one_lost(noise, memory, moved, z, t, s):
    first = jnp.reshape(jnp.arange(z.size) == 0, z.shape)
    return jnp.where(first & (s == 0), jnp.nan, moved), memory


def found_again(noise, memory, moved, z, t, s):
    return jnp.where(t == 1, jnp.nan, jnp.full_like(z, s)), memory


def python_asked(noise, memory, moved, z, t, s):
    return moved * jax.pure_callback(asking, jax.ShapeDtypeStruct((), jnp.float32), t).astype(z.dtype), memory


FAULTS = {
    "another shape": (altered(lambda noise, memory, moved, z, t, s: (moved.ravel(), memory)), {"shape"},
                      "a step makes (1,) of ()"),
    "a float64 leak": (altered(lambda noise, memory, moved, z, t, s: (moved * jnp.asarray(np.float64(1)), memory)), {"dtype"},
                       "a step makes float64 of float32"),
    "a memory that grows": (altered(lambda noise, memory, moved, z, t, s: (moved, (*memory, t))), {"memory"},
                            "the memory is () before a step and (float32[],) after it, for z of shape () in float32"),
    "a draw of its own": (altered(drawing), {"noise"}, "a step draws by itself, or asks Python: random_"),
    "Python asked": (altered(python_asked), {"noise", "vmap"}, "pure_callback"),
    "a branch on the time": (altered(branching), {"traces"}, "TracerBoolConversionError"),
    "a number that grows up": (altered(lambda noise, memory, moved, z, t, s: (moved, memory + t), init=lambda z: 0.0),
                               {"memory", "compiled once"}, "compiled anew: 2 times in 3 steps"),
    "drawn while traced": (altered(lambda noise, memory, moved, z, t, s: (moved + np.random.rand(), memory)), {"repeats"},
                           "two traces of step 1 of one run give"),
    "a logarithm of sigma": (altered(lambda noise, memory, moved, z, t, s: (moved + 0 * jnp.log(s), memory)), {LATE},
                             "z is [nan, nan, nan] after that step"),
    "one number lost at the end": (altered(one_lost), {LATE}, "z is [nan, "),
    "a number lost and found": (altered(found_again), {"finite at t = 1"}, "z is [nan, nan, nan] after that step"),
    "one minus t": (altered(lambda noise, memory, moved, z, t, s: (moved / (1 - t), memory)), {"finite at t = 1", LATE},
                    "after that step"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_fails_its_own_check_and_says_at_what(name):
    method, broken, told = FAULTS[name]
    report = samplers.conform(method)
    failing = {check.name: check.reason for check in report.checks if not check.holds}
    ran = {"compiled once", "repeats", "finite at t = 1", LATE}  # a step that cannot run fails these too
    assert not report and broken <= failing.keys() <= broken | ran, str(report)
    assert any(told in reason for reason in failing.values()), str(report)


@pytest.mark.parametrize(
    ("method", "told"),
    [
        (3, "a method is (denoise, schedule) -> Sampler(init, step, noises), got 3"),
        (lambda denoise: denoise, "got <lambda>|<lambda>() takes 1 positional argument but 2 were given"),
        (lambda denoise, schedule: denoise, "got <lambda>|which makes a function"),
        (samplers.ddim(lambda z, t: z, Flow()), "got a Sampler, whose denoiser can no longer be chosen"),
    ],
)
def test_what_makes_no_sampler_is_refused(method, told):
    with pytest.raises(TypeError) as caught:
        samplers.conform(method)
    assert all(part in str(caught.value) for part in told.split("|"))


def test_a_step_with_noise_and_one_without_are_enough():
    bare = samplers.stateless(lambda denoise, schedule, z, t, s: denoise(z, t) * s + z)
    noisy = samplers.stateless(lambda noise, denoise, schedule, z, t, s: denoise(z, t) * s + noise[1], noises=2)
    z, half, third = jnp.ones(2), jnp.asarray(0.5), jnp.asarray(1 / 3)
    one, two = (checked_method(method, schedule=Flow()) for method in (bare, noisy))
    assert (one.noises, two.noises, one.init(z), two.init(z)) == (0, 2, (), ())
    known = (np.tanh(0.75 + 2 * 0.5) + 0.375 - 0.5) / 3  # in float64, as the tests run
    np.testing.assert_allclose(one.step(jnp.zeros((0, 2)), (), z, half, third)[0], known + 1, rtol=1e-14)
    np.testing.assert_allclose(
        two.step(jnp.array([[9.0, 9.0], [3.0, 3.0]]), (), z, half, third)[0], known + 3, rtol=1e-14
    )
    with pytest.raises(ValueError, match="noises must not be negative, got noises=-1"):
        samplers.stateless(lambda *case: case, noises=-1)


def test_what_is_asked_of_a_step_is_what_it_says():
    """Shapes and dtypes of z as it is traced; times, noise and the first state of the run; and whether it starts at alpha = 0."""
    traced, runs = set(), []

    def method(denoise, schedule):
        def step(noise, memory, z, t, s):
            traced.add((z.shape, z.dtype.name))
            jax.debug.callback(
                lambda *case: runs.append(tuple(np.asarray(one).tolist() for one in case)), t, s, noise, z
            )
            return z, memory

        return Sampler(lambda z: (), step, 2)

    report = samplers.conform(method)
    jax.effects_barrier()
    assert traced == {(shape, dtype) for shape in ((), (3,), (2, 3)) for dtype in ("float32", "float64")}
    single = lambda rows: np.asarray(rows, np.float32).tolist()  # noqa: E731
    noise, z = single([[0.3, -0.7, 0.2], [0.6, -0.7, 0.2]]), [0.5, -1.25, 2.0]
    pairs = [(1.0, 0.6), (0.6, 0.3), (0.3, 0.0)]
    assert runs == [(*single(pair), noise, z) for pair in (*pairs, *pairs, pairs[0])]
    assert report.opens and report.noises == 2


@pytest.mark.parametrize(("given", "asked"), [(None, Cosine(log_snr_min=-15.0)), (EDM(), EDM())], ids=["none", "EDM"])
def test_the_schedules_on_which_a_method_is_asked(given, asked):
    """The cosine from log-SNR -15 on unless one is given, and the straight flow for the start at alpha = 0."""
    seen = []

    def method(denoise, schedule):
        seen.append(repr(schedule))
        return samplers.ddim(denoise, schedule)

    checked_method(method, schedule=given)
    assert seen == [repr(asked)]
    samplers.conform(method, schedule=given)
    assert set(seen[1:-1]) == {repr(asked)} and seen[-1] == repr(Flow())


def many_evaluations(denoise, schedule, z, t, s):
    """Three in a scan, two in a batch, the dearer branch of two and none."""
    z, _ = jax.lax.scan(lambda z, _: (z + s * denoise(z, t), None), z, None, length=3)
    both = jax.vmap(denoise, (0, None))(jnp.stack([z, -z]), t)
    return jax.lax.cond(t > 0.5, lambda: denoise(both[0] + both[1], s), lambda: z)


def unknown_evaluations(denoise, schedule, z, t, s):
    return jax.lax.while_loop(lambda z: jnp.sum(z) > 1e6, lambda z: denoise(z, t), z)


def test_evaluations_are_counted_where_they_happen():
    assert samplers.conform(samplers.stateless(many_evaluations)).evaluations == 6
    assert samplers.conform(samplers.stateless(unknown_evaluations)).evaluations == float("inf")
    assert samplers.conform(samplers.stateless(lambda denoise, schedule, z, t, s: z)).evaluations == 0
    of_matrices = samplers.stateless(lambda denoise, schedule, z, t, s: denoise(z, t) if z.ndim == 2 else z)
    assert samplers.conform(of_matrices).evaluations == 1
    halved = lambda z: jax.lax.while_loop(lambda z: jnp.sum(z) > 1, lambda z: z / 2, z)  # noqa: E731
    nested = lambda denoise, schedule, z, t, s: halved(jax.jit(lambda z: denoise(z, t))(z))  # noqa: E731
    assert samplers.conform(samplers.stateless(nested)).evaluations == 1


def test_a_sampler_of_one_schedule_is_asked_on_that_one():
    def of_edm(denoise, schedule, z, t, s):
        sigma, after = schedule(t)[1], schedule(s)[1]
        return jnp.where(schedule(t)[0] == 1, z + (after - sigma) / sigma * (z - denoise(z, t)), jnp.nan)

    assert samplers.conform(samplers.stateless(of_edm), schedule=EDM())
    assert not samplers.conform(samplers.stateless(of_edm))
