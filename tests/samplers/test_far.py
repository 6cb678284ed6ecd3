"""Every sampler from log-SNR -40 to 40, where alpha or sigma is 2e-9 and a product of two such numbers rounds away."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen import coordinates, samplers

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
