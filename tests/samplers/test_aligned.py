"""A grid fitted to a solver: never worse, best where the best is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffeq_gen import clocks, exact, grids
from diffeq_gen.coordinates import ANGLE
from diffeq_gen.samplers import aligned, ddim, ddpm
from diffeq_gen.schedules import Cosine, Flow

Z = np.array([[0.7, -1.2], [-1.3, 0.4], [0.2, 2.0]])


@pytest.fixture(scope="module", autouse=True)
def sharp():
    """float64, in which the bounds below are sharp; a test that asks for `precision` has its own."""
    with jax.enable_x64(True):
        yield


def test_for_ddim_on_the_normal_law_it_finds_even_angles():
    """Whose product of cosines is largest: `ddim-on-a-gaussian-is-best-in-the-angle`."""
    start = clocks.uniform_log_snr(Cosine(), 4, log_snr_min=-6.0, log_snr_max=4.0)
    denoise = lambda z, t: Cosine()(t)[0] * z  # noqa: E731
    found = aligned(ddim, denoise, Cosine(), jnp.asarray(Z), start)
    best = grids.even(Cosine(), 4, coordinate=ANGLE, first=start[0], last=start[-1])
    np.testing.assert_allclose(found.times, best, atol=1e-3)
    assert float(found.after) < 0.9 * float(found.before)
    np.testing.assert_array_equal(found.times[jnp.array([0, -1])], start[jnp.array([0, -1])])


def test_it_is_never_worse_however_wild_the_descent():
    with jax.enable_x64(False):
        world = exact.Mixture(
            jnp.array([0.25, 0.75]), jnp.array([[-1.0, 0.5], [1.0, 0.0]]), 0.1 * jnp.stack([jnp.eye(2)] * 2)
        )
        start = clocks.karras(Flow(), 3, sigma_min=0.05, sigma_max=20.0)
        for rate, share in ((0.1, 0.99), (1e3, 1.0)):
            options = {"iterations": 20, "rate": rate, "reference": 32}
            found = aligned(ddim, exact.denoiser(world, Flow()), Flow(), jnp.asarray(Z, "float32"), start, **options)
            assert found.times.dtype == "float32" and bool(jnp.all(jnp.diff(found.times) < 0))
            assert float(found.after) <= share * float(found.before)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"made": ddpm}, "the sampler must be deterministic, got noises=1"),
        ({"rate": 0.0}, "rate must be positive, got rate=0.0"),
        ({"iterations": 0}, "iterations and reference must be positive, got iterations=0"),
        ({"times": jnp.array([1.0, 0.5])}, "log-SNR must rise along the times, and be finite at both ends"),
        ({"times": jnp.array([0.4, 0.5])}, "log-SNR must rise along the times"),
    ],
)
def test_bad_input_is_named(options, said):
    given = {"made": ddim, "times": jnp.array([0.9, 0.5]), **options}
    made, times = given.pop("made"), given.pop("times")
    with pytest.raises(ValueError, match=said):
        aligned(made, lambda z, t: z, Cosine(), jnp.asarray(Z), times, **given)
