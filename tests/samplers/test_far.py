"""Every sampler from log-SNR -40 to 40, where alpha or sigma is 2e-9 and a product of two such numbers rounds away."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen import coordinates, samplers, schedules

SAMPLERS = {
    "ddim": samplers.ddim, "ddpm": samplers.ddpm, "churn": samplers.churn, "exponential": samplers.exponential,
    "consistency": samplers.consistency, "edm": samplers.edm, "multistep": samplers.multistep, "unipc": samplers.unipc, "lms": samplers.lms,
    "multistep 4": lambda denoise, schedule: samplers.multistep(denoise, schedule, order=4, corrector=True),
    "multistep 3, noise": lambda denoise, schedule: samplers.multistep(denoise, schedule, order=3, rule="noise"),
    "multistep 2, sde": lambda denoise, schedule: samplers.multistep(denoise, schedule, eta=1.0),
    "er-sde": samplers.er_sde, "singlestep": samplers.singlestep, "deis": samplers.deis, "ipndm": samplers.ipndm,
    "singlestep 3, noise": lambda denoise, schedule: samplers.singlestep(denoise, schedule, order=3, rule="noise"),
    "singlestep 2, sde": lambda denoise, schedule: samplers.singlestep(denoise, schedule, eta=1.0),
    "runge-kutta": lambda denoise, schedule: samplers.runge_kutta(denoise, schedule, coordinate=coordinates.STRAIGHT),
    "controlled": lambda denoise, schedule: samplers.controlled(denoise, schedule, control(denoise)),
    "controlled 3, sde": lambda denoise, schedule: samplers.controlled(denoise, schedule, control(denoise), order=3, eta=1.0),
}  # fmt: skip
LOOSE = {"ipndm": 4e-4, "controlled": 1e-2, "controlled 3, sde": 2e-7}
"""Beyond rounding: Adams-Bashforth weights of equal steps over steps that shrink by 28; a corrector where the equation is stiff."""
X0 = jnp.array([0.7, -1.1])


def control(denoise):
    dtype = denoise(None, 0.5).dtype
    return samplers.Control(jnp.array([0.4, -0.3], dtype), jnp.array([0.5, 0.1], dtype))


def far(t):
    """A variance-preserving schedule whose log-SNR is 40 - 80 t."""
    level = 40 - 80 * t
    return jnp.sqrt(jax.nn.sigmoid(level)), jnp.sqrt(jax.nn.sigmoid(-level))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_run_over_eighty_in_log_snr(name, dtype):
    """Of one point: the run ends there.  Of a bent denoiser: it is finite, and so is its slope."""
    key, times = jax.random.key(0), jnp.linspace(1.0, 0.0, 13)
    z = jnp.array([0.4, -1.3], dtype)

    def end(z, bent):
        denoise = lambda z, t: X0.astype(dtype) + (0 if z is None else bent * jnp.tanh(z))  # noqa: E731
        return samplers.sample(key, SAMPLERS[name](denoise, far), z, times)

    value, slope = jax.jit(lambda z, bent: jax.jvp(lambda z: end(z, bent), (z,), (jnp.ones_like(z),)))(
        jnp.stack([z, z])[0], jnp.asarray(0.0, dtype)
    )
    assert value.dtype == dtype and np.all(np.isfinite(value)) and np.all(np.isfinite(slope))
    np.testing.assert_allclose(value, X0, rtol=64 * float(jnp.finfo(dtype).eps) + LOOSE.get(name, 1e-7))
    bent = jax.jit(lambda z: end(z, jnp.asarray(0.3, dtype)))(z)
    assert np.all(np.isfinite(bent)) and np.all(np.abs(bent) < 3)


def resting(t):
    """Pure noise while t >= 3/4, pure data while t <= 1/4; the scale changes all the way."""
    share = jnp.clip(2 * t - 0.5, 0, 1)
    return (1 - share) * (2 - t), share * (1 + t)


def run(sampler, z, times, noise):
    """All states, step by step: no loop asks that times fall."""

    def body(carry, step):
        z, memory = sampler.step(step[0], carry[1], carry[0], *step[1:])
        return (z, memory), z

    steps = noise, times[:-1], times[1:]
    return jnp.concatenate([z[None], jax.jit(lambda z: jax.lax.scan(body, (z, sampler.init(z)), steps)[1])(z)])


@pytest.mark.parametrize("name", sorted({*SAMPLERS, "pndm", "unipc 3"} - {"consistency", "edm", "runge-kutta"}))
def test_a_schedule_may_rest_at_pure_noise_and_at_pure_data(name):
    """Steps within the rests scale by sigma or by alpha; the run between them is one of its own, but where
    eps_hat is remembered by the time or the number of the step, which knows it in pure noise too."""
    more = {"pndm": samplers.pndm, "unipc 3": lambda *args: samplers.unipc(*args, order=3)}
    sampler = (SAMPLERS | more)[name](lambda z, t: X0 + (0 if z is None else jnp.tanh(z) * t), resting)
    noise = jax.random.normal(jax.random.key(1), (8, sampler.noises, 2))
    times = jnp.array([1.0, 0.9, 0.75, 0.6, 0.4, 0.25, 0.2, 0.1, 0.0])

    z = jnp.array([0.4, -1.3])
    states = run(sampler, z, times, noise)
    np.testing.assert_allclose(states[:3], np.outer((1 + times[:3]) / 2, z), rtol=1e-14)
    np.testing.assert_allclose(states[5:], np.outer((2 - times[5:]) / 1.75, states[5]), rtol=1e-14)
    if name not in ("deis", "ipndm", "pndm"):
        np.testing.assert_allclose(states[2:6], run(sampler, states[2], times[2:6], noise[2:5]), rtol=1e-12)


BACK = ["ddim", "deis", "ipndm", "lms", "multistep", "multistep 3, noise", "multistep 4", "pndm", "runge-kutta",
        "singlestep", "singlestep 3, noise", "unipc"]  # fmt: skip


@pytest.mark.parametrize("name", BACK)
def test_a_run_may_go_back_to_pure_noise(name):
    """Encoding: of data at a point, from alpha x0 + sigma eps to eps."""
    factory = (SAMPLERS | {"pndm": samplers.pndm})[name]
    sampler, eps = factory(lambda z, t: X0, schedules.Flow()), jnp.array([0.4, -1.3])
    times = jnp.linspace(0.25, 1.0, 6)
    z = 0.75 * X0 + 0.25 * eps
    np.testing.assert_allclose(run(sampler, z, times, jnp.zeros((5, 0)))[-1], eps, rtol=1e-12)
