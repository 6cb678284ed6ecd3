"""What came out of a run: bits per dimension, distance to held-out data, and whether it only remembers.

SW_2^2 = mean over directions w of W_2^2(w.x, w.y),   in one dimension W_2 couples sorted samples      Rabin et al. 2011
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen import clocks, likelihood, samplers
from diffeq_gen.schedules import at
from diffeq_gen.training.loop import Run
from diffeq_gen.types import Denoiser, Key, Sample, Schedule, require

__all__ = ["draw", "evaluate", "nearest", "sliced_wasserstein"]


def sliced_wasserstein(x: Sample, y: Sample, *, directions: int = 256, seed: int = 0) -> float:
    """SW_2 between two samples, flattened, on fixed random directions; the larger one is thinned to the size of the smaller.

    In units of the data.  Two samples of one law are not at distance zero: compare with what data against data gives.
    """
    rng = np.random.default_rng(seed)
    x, y = (np.asarray(part, np.float64).reshape(len(part), -1) for part in (x, y))
    n = min(len(x), len(y))
    x, y = (part[rng.permutation(len(part))[:n]] for part in (x, y))
    w = rng.standard_normal((x.shape[1], directions))
    w /= np.linalg.norm(w, axis=0)
    gap = np.sort(x @ w, axis=0) - np.sort(y @ w, axis=0)
    return float(np.sqrt(np.mean(gap**2)))


def nearest(x: Sample, reference: Sample) -> np.ndarray:
    """The distance of every x to its nearest neighbour in the reference, root mean square over the entries."""
    x, reference = (np.asarray(part, np.float64).reshape(len(part), -1) for part in (x, reference))
    squares = np.stack([np.min(np.sum((reference - row) ** 2, axis=1)) for row in x])
    return np.sqrt(squares / x.shape[1])


def draw(
    key: Key, denoise: Denoiser, schedule: Schedule, shape: tuple[int, ...], *, steps: int = 50, sampler: Any = None,
    grid: str | None = None, control: samplers.Control | None = None,
) -> Sample:  # fmt: skip
    """Samples of this shape (n, *event), by DDIM unless another sampler is given, denoised at the end of the grid.

    Its steps are equal in "time", which is the default, or in "log-snr": few steps equal in t end with one that is many times as
    long in log-SNR as that before it, over which solvers of high order extrapolate too far.  With a `control` of the data it is
    `controlled` that draws, along `control_times` and from where `jump` ends: for few steps the best there is.
    Raises: ValueError where grid is neither, or a control is given with a sampler or a grid.
    """
    require(lambda control, grid: control is None or (sampler is None and grid is None),
            "a control has a sampler and a grid of its own",
            control=None if control is None else "a control", grid=grid)  # fmt: skip
    require(lambda grid: grid in (None, "time", "log-snr"), "grid must be time or log-snr", grid=grid)
    start_key, run_key = jax.random.split(key)
    low, high = clocks.log_snr_range(schedule, log_snr_min=-12.0, log_snr_max=12.0)
    t = clocks.time_at(schedule, low).astype(jnp.float32)
    p = at(schedule, t)
    z = jnp.sqrt(p.alpha**2 + p.sigma**2) * jax.random.normal(start_key, shape)
    if control is not None:
        times = samplers.control_times(control, schedule, steps, sigma_min=jnp.exp(-high / 2)).astype(jnp.float32)
        z = samplers.jump(control, schedule, z, t, times[0])
        sampler = samplers.controlled(denoise, schedule, control)
    elif grid == "log-snr":
        times = clocks.uniform_log_snr(schedule, steps, log_snr_min=-12.0, log_snr_max=12.0).astype(jnp.float32)
    else:
        times = jnp.linspace(t, clocks.time_at(schedule, high).astype(jnp.float32), steps + 1)
    sampler = samplers.ddim(denoise, schedule) if sampler is None else sampler

    @jax.jit
    def drawn(z: Sample) -> Sample:
        return denoise(samplers.sample(run_key, sampler, z, times), times[-1])

    return drawn(z)


def evaluate(
    key: Key, run: Run, *, images: int = 297, samples: int = 500, steps: int = 50, ode_steps: int = 16,
    report: Callable[[int, dict[str, float]], None] = lambda images, metrics: None,
) -> dict[str, Any]:  # fmt: skip
    """Bits per dimension of held-out pictures by the probability flow and by the ELBO, and distances of samples to data.

    Uniform dequantisation, one draw per picture, which likelihoods and distances share; the flow is followed in the units of the
    training pictures' moments.  `*_error` is the standard error over pictures.  `sw_floor` is the distance of training to held-out
    data, `sw_noise` that of noise.
    `report` hears after every picture how many are done, and the mean so far.
    """
    data_key, train_key, elbo_key, sample_key, noise_key = jax.random.split(key, 5)
    test, train = (
        run.dataset.dequantised(data_key, run.dataset.held_out),
        run.dataset.dequantised(train_key, run.dataset.train),
    )
    x0 = test[:images]
    d, width = math.prod(x0.shape[1:]), run.dataset.bin_width
    control = samplers.control_of(train, mixture=False)

    @jax.jit
    def read(key: Key, x0: Sample) -> tuple[jax.Array, jax.Array]:
        nats = (
            likelihood.log_prob(run.denoise, run.schedule, x0, steps=ode_steps, control=control),
            likelihood.elbo(key, run.denoise, run.schedule, x0),
        )
        return tuple(likelihood.bits_per_dim(part, d, bin_width=width) for part in nats)

    bits = np.zeros((0, 2))
    for one, picture in zip(jax.random.split(elbo_key, len(x0)), x0, strict=True):
        bits = np.concatenate([bits, np.asarray(read(one, picture), np.float64)[None]])
        report(len(bits), {"bits_per_dim_ode": float(bits[:, 0].mean()), "bits_per_dim_elbo": float(bits[:, 1].mean())})
    drawn = draw(sample_key, run.denoise, run.schedule, (samples, *x0.shape[1:]), steps=steps)
    result: dict[str, Any] = {"step": int(run.state.step), "images": len(x0), "dimensions": d, "samples": samples}
    for name, column in zip(("ode", "elbo"), bits.T, strict=True):
        result[f"bits_per_dim_{name}"] = float(column.mean())
        result[f"bits_per_dim_{name}_error"] = float(column.std() / np.sqrt(len(column)))
    result["sw"] = sliced_wasserstein(drawn, test)
    result["sw_floor"] = sliced_wasserstein(train, test)
    result["sw_noise"] = sliced_wasserstein(jax.random.normal(noise_key, drawn.shape), test)
    result["nearest_training_of_samples"] = float(np.mean(nearest(drawn[:images], train)))
    result["nearest_training_of_held_out"] = float(np.mean(nearest(test[:images], train)))
    return result
