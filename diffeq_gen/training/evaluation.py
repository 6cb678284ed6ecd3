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
    key: Key, run: Run, *, images: int = 297, samples: int = 500, steps: int = 50, ode_steps: int = 16, draws: int = 512,
    gaps: int = 0, report: Callable[[int, dict[str, float]], None] = lambda images, metrics: None,
) -> dict[str, Any]:  # fmt: skip
    """Bits per dimension of held-out pictures by the probability flow, the ELBO and I-MMSE, and distances of samples to data.

    Uniform dequantisation, one draw per picture, which likelihoods and distances share; the flow is followed, and I-MMSE measured
    against a Gaussian, in the moments of the training pictures.  The ELBO and I-MMSE call the network `draws` times a picture each.
    `*_error` is the standard error over pictures; `*_draws` what one picture's value errs by for want of draws, root mean square, and
    `bits_per_dim_ode_steps` what half of the flow's steps would add, in the mean over the first pictures.
    `ode_minus_immse` and `elbo_minus_immse` are differences picture by picture: their errors are noise, their means are not.  That of
    the ELBO is what another blur of e^{-log_snr_max/2} costs; that of the flow is by how much the network is no exact denoiser, for the
    flow of a wrong score has another law than the SDE that I-MMSE bounds.  On the first `gaps` pictures that is measured, by
    `likelihood.flow_gap` of 64 gradients of the flow's likelihood each: `flow_gap` is what the flow is then to be off I-MMSE by, and
    `flow_gap_left` what it is off by beside that, `*_draws` the error of its mean for want of draws.
    `sw_floor` is the distance of training to held-out data, `sw_noise` that of noise.
    `report` hears after every picture how many are done, and the mean so far.
    Raises: ValueError where draws is no positive multiple of 32, or gaps lies outside [0, images].
    """
    require(lambda gaps: 0 <= gaps <= images, f"gaps must lie in [0, {images}]", gaps=gaps)
    require(lambda draws: draws >= 32 and draws % 32 == 0, "draws must be a positive multiple of 32", draws=draws)
    data_key, train_key, bits_key, sample_key, noise_key = jax.random.split(key, 5)
    test, train = (
        run.dataset.dequantised(data_key, run.dataset.held_out),
        run.dataset.dequantised(train_key, run.dataset.train),
    )
    x0, control = test[:images], samplers.control_of(train, mixture=False)
    found, read = np.zeros((0, 5)), _reader(run, control, ode_steps, draws)
    for one, picture in zip(jax.random.split(bits_key, len(x0)), x0, strict=True):
        found = np.concatenate([found, np.asarray(read(one, picture), np.float64)[None]])
        report(len(found), {f"bits_per_dim_{name}": float(found[:, i].mean()) for i, name in enumerate(WAYS)})
    drawn = draw(sample_key, run.denoise, run.schedule, (samples, *x0.shape[1:]), steps=steps)
    result: dict[str, Any] = {"step": int(run.state.step), "images": len(x0), "dimensions": math.prod(x0.shape[1:]),
                              "samples": samples, "draws": draws, **_summary(found)}  # fmt: skip
    half = _flow(run, control, max(1, ode_steps // 2))
    rough = [float(half(picture)) for picture in x0[:FIRST]]
    result["bits_per_dim_ode_steps"] = float(np.mean(rough - found[:FIRST, 0]))
    if gaps:
        result |= _gaps(bits_key, run, control, ode_steps, x0[:gaps], found)
    result["sw"] = sliced_wasserstein(drawn, test)
    result["sw_floor"] = sliced_wasserstein(train, test)
    result["sw_noise"] = sliced_wasserstein(jax.random.normal(noise_key, drawn.shape), test)
    result["nearest_training_of_samples"] = float(np.mean(nearest(drawn[:images], train)))
    result["nearest_training_of_held_out"] = float(np.mean(nearest(test[:images], train)))
    return result


WAYS = ("ode", "elbo", "immse")
FIRST = 8
"""Pictures that are read by half of the steps as well."""


def _bits(run: Run, nats: jax.Array, x0: Sample) -> jax.Array:
    return likelihood.bits_per_dim(nats, x0.size, bin_width=run.dataset.bin_width)


def _flow(run: Run, control: samplers.Control, steps: int) -> Callable[[Sample], jax.Array]:
    """One picture -> bits per dimension by the flow."""
    settings = {"steps": steps, "control": control}
    return jax.jit(lambda x0: _bits(run, likelihood.log_prob(run.denoise, run.schedule, x0, **settings), x0))


def _reader(
    run: Run, control: samplers.Control, ode_steps: int, draws: int
) -> Callable[[Key, Sample], list[jax.Array]]:  # fmt: skip
    """(key, one picture) -> bits per dimension in each of the three ways, and what those of the last two err by for want of draws.

    The ELBO is a mean over runs of 16 draws, whose spread is its error.
    """
    flow = _flow(run, control, ode_steps)

    @jax.jit
    def read(key: Key, x0: Sample) -> list[jax.Array]:
        elbo_key, key = jax.random.split(key)
        each = jax.vmap(lambda key: likelihood.elbo(key, run.denoise, run.schedule, x0, samples=16))
        bounds = each(jax.random.split(elbo_key, draws // 16))
        value, error = likelihood.immse(key, run.denoise, run.schedule, x0, samples=draws, control=control)
        noises = jnp.std(bounds, ddof=1) / math.sqrt(len(bounds)), error
        per_dim = [noise / (x0.size * math.log(2)) for noise in noises]
        return [flow(x0), _bits(run, jnp.mean(bounds), x0), _bits(run, value, x0), *per_dim]

    return read


def _gaps(
    key: Key, run: Run, control: samplers.Control, ode_steps: int, x0: Sample, found: np.ndarray
) -> dict[str, float]:
    """By how many bits per dimension these pictures' flow is to be off I-MMSE, and is off beside that: means and errors."""
    settings = {"samples": 64, "steps": ode_steps, "control": control}
    read = jax.jit(lambda key, x0: likelihood.flow_gap(key, run.denoise, run.schedule, x0, **settings))
    keys = jax.random.split(jax.random.fold_in(key, 1), len(x0))
    per_dim = -1 / (math.prod(x0.shape[1:]) * math.log(2))
    gap, error = per_dim * np.asarray([read(*pair) for pair in zip(keys, x0, strict=True)], np.float64).T
    left = found[: len(x0), 0] - found[: len(x0), 2] - gap
    noise = np.sqrt(np.sum(error**2 + found[: len(x0), 4] ** 2)) / len(x0)
    return {"flow_gaps": len(x0), "flow_gap": float(gap.mean()), "flow_gap_left": float(left.mean()),
            "flow_gap_left_error": float(left.std() / np.sqrt(len(x0))), "flow_gap_left_draws": float(noise)}  # fmt: skip


def _summary(found: np.ndarray) -> dict[str, float]:
    """Means over pictures, their standard errors, errors for want of draws, and differences: of rows of what `_reader` tells."""
    ode, elbo, immse, *noises = found.T
    columns = {f"bits_per_dim_{name}": column for name, column in zip(WAYS, (ode, elbo, immse), strict=True)}
    columns |= {"ode_minus_immse": ode - immse, "elbo_minus_immse": elbo - immse}
    result: dict[str, float] = {}
    for name, column in columns.items():
        result[name] = float(column.mean())
        result[f"{name}_error"] = float(column.std() / np.sqrt(len(column)))
    for name, noise in zip(WAYS[1:], noises, strict=True):
        result[f"bits_per_dim_{name}_draws"] = float(np.sqrt(np.mean(noise**2)))
    return result
