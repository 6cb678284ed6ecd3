"""Pictures of what the steps of a sampler are made of: predictions weighed, noise undone, noise mirrored.

z_0 = sum_k w_k x0_hat_k + noise        DDPM = DDIM twice as far, and noise back        2 z - DDIM(z) ~ z diffused
"""

import functools
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np

from diffeq_gen import clocks, exact, paths, predictions, samplers, schedules
from diffeq_gen.plots.frame import Figure, frame
from diffeq_gen.types import Point, Prediction, Sampler, Schedule

__all__ = ["churn", "flipped", "renoise"]


def churn(*, steps: int = 50, undone: Sequence[float] = (0.0, 0.25, 0.5, 0.75)) -> Figure:
    """The weight of each prediction in the sample that a chain ends with, where noise undoes a fraction c of every step.

    Left x0_hat, over equal steps of log-SNR from -10 to 10: weights grow as e^{lambda/(2 (1 - c))}, their slope is measured.  Right
    v_hat over equal steps of time, the chain of Gao et al. 2024: all alike without churn, and early ones fade with it.  Weights are
    derivatives of the library's own chain, `samplers.churn`, by what it is told at each step; c = 0 is DDIM, c = 1/2 is DDPM.
    """
    schedule = schedules.Cosine(log_snr_min=-15.0, log_snr_max=15.0)
    even, clock = clocks.uniform_log_snr(schedule, steps, log_snr_min=-10.0, log_snr_max=10.0), clocks.uniform(steps)
    log_snr = np.asarray(jax.vmap(lambda t: clocks.log_snr(schedule, t))(even[:-1]))
    figure, (left, right) = frame(2, height=4.2)
    for i, share in enumerate(undone):
        style = {
            "marker": "o",
            "ms": 3,
            "lw": 1.2,
            "color": mpl.colormaps["viridis"](0.85 * i / max(len(undone) - 1, 1)),
        }
        name = f"c = {share:g}" + {0.0: ", DDIM", 0.5: ", DDPM"}.get(share, "")
        weight = _told(schedule, predictions.data, even, share)
        slope = float(np.polyfit(log_snr[-8:], np.log(weight[-8:]), 1)[0])
        left.plot(log_snr, weight, label=f"{name}: slope {slope:.2f}", **style)
        weight = -_told(schedule, predictions.v, clock, share)
        early = float(np.sum(weight[: steps // 2]) / np.sum(weight))
        right.plot(clock[:-1], weight, label=f"{name}: {100 * early:.0f} %", **style)
    left.set(yscale="log", ylim=(1e-8, 2), xlabel="log-SNR lambda of the step", ylabel="weight of x0_hat in the sample",
             title="weights of x0_hat grow as e^{lambda / (2 (1 - c))}")  # fmt: skip
    right.set(xlabel="time t of the step", ylabel="weight of -v_hat in the sample", ylim=(0, None),
              title="alike without churn; with it, early v_hat fade")  # fmt: skip
    right.invert_xaxis()
    left.legend(fontsize=8, title="undone by noise", title_fontsize=8, loc="upper left")
    right.legend(fontsize=8, title="undone: share of the first half", title_fontsize=8, loc="upper left")
    return figure


def _told(schedule: Schedule, prediction: Prediction, times: jax.Array, undone: float) -> np.ndarray:
    """d z_end / d prediction_k, of a chain of one number that is told its prediction at every step."""

    def end(told: jax.Array) -> jax.Array:
        network = lambda z, t: told[jnp.argmin(jnp.abs(times[:-1] - t))] + 0 * z  # noqa: E731
        sampler = samplers.churn(predictions.denoiser(network, schedule, prediction), schedule, undone=undone)
        return samplers.sample(jax.random.key(0), sampler, jnp.zeros_like(times[0]), times)

    return np.asarray(jax.jacobian(end)(jnp.zeros_like(times[:-1])))


def renoise(*, lengths: Sequence[float] = (0.5, 1.5, 4.0), count: int = 600) -> Figure:
    """A step of DDPM is one of DDIM over twice the log-SNR, and noise back: drawn as z/alpha, where noise moves no mean.

    One state at log-SNR -1 of a mixture in two dimensions, whose data are the grey contours, and steps of several lengths.  DDIM goes
    straight for x0_hat; both clouds lie about where it would be after twice the length, and both exact laws, drawn to two standard
    deviations, are one: the titles say how far apart in a standard deviation.  Gao et al. 2024, 'Deterministic vs. stochastic samplers'.
    """
    figure, axes = frame(len(lengths), width=4.2, height=5.0)
    with jax.enable_x64(True):
        means = jnp.array([[-1.4, -0.6], [1.3, 0.9], [1.0, -1.4]])
        covs = jnp.array([[[0.12, 0.05], [0.05, 0.08]], [[0.08, 0.0], [0.0, 0.14]], [[0.14, -0.05], [-0.05, 0.08]]])
        world = exact.Mixture(jnp.array([0.5, 0.3, 0.2]), means, covs)
        schedule, start, keys = schedules.Cosine(), jnp.array([-1.6, 2.6]), jax.random.split(jax.random.key(0), 2)
        t = clocks.time_at(schedule, jnp.asarray(-1.0))
        z, denoise = schedule(t)[0] * start, exact.denoiser(world, schedule)
        guess, ddim = jax.jit(denoise)(z, t), samplers.ddim(denoise, schedule)
        both = [
            ("DDPM", samplers.ddpm(denoise, schedule), {"color": "C3", "lw": 3, "alpha": 0.5}),
            ("DDIM, and noise", samplers.churned(ddim, schedule, undone=0.5), {"color": "C0", "lw": 1.2, "ls": "--"}),
        ]
        data = _plane(world)
        for axis, length in zip(axes, lengths, strict=True):
            axis.contour(*data, levels=np.geomspace(0.02, 0.8, 5), colors="0.8", linewidths=0.8)
            s, r = (clocks.time_at(schedule, jnp.asarray(-1.0 + n * length)) for n in (1, 2))
            single, double = (_moved(z[None, None], ddim, z[None], t, end)[0] / schedule(end)[0] for end in (s, r))
            scale, laws = float(schedule(s)[0]), []
            for key, (name, sampler, style) in zip(keys, both, strict=True):
                noise = jax.random.normal(key, (count, 1, 2))
                cloud = _moved(noise, sampler, jnp.broadcast_to(z, (count, 2)), t, s)
                mean, cov = samplers.law(sampler, z, jnp.zeros((2, 2)), jnp.stack([t, s]))
                axis.plot(*cloud.T / scale, "o", color=style["color"], ms=2.5, alpha=0.3, mew=0)
                axis.plot(*_ellipse(np.asarray(mean), np.asarray(cov)).T / scale, label=name, zorder=3, **style)
                laws.append((mean, cov))
            std = float(jnp.sqrt(laws[0][1][0, 0]))
            gap = max(float(jnp.max(jnp.abs(a - b))) / unit for a, b, unit in zip(*laws, (std, std**2), strict=True))
            axis.annotate("", double, start, arrowprops={"arrowstyle": "->", "shrinkA": 0, "shrinkB": 0})
            for point, mark, name in ((start, "ko", "z_t"), (single, "kd", "DDIM"), (double, "ks", "DDIM, twice as far"),
                                      (guess, "k*", "x0_hat")):  # fmt: skip
                axis.plot(*point, mark, ms=10 if mark == "k*" else 6, label=name)
            axis.set(xlabel="z / alpha", ylabel="z / alpha" if axis is axes[0] else "", xlim=(-3.4, 2.8), ylim=(-2.4, 3.8),
                     aspect="equal", title=f"a step of {length:g} in log-SNR:\nlaws {gap:.0e} std apart")  # fmt: skip
    axes[0].legend(fontsize=7, loc="upper right")
    return figure


def _plane(world: exact.Mixture) -> tuple[jax.Array, jax.Array, np.ndarray]:
    """The density of data in two dimensions over a grid: (ticks, ticks, heights)."""
    ticks, clean = jnp.linspace(-4.0, 4.0, 161), schedules.at(lambda t: (1 + 0 * t, 0 * t), 0.0)
    density = lambda *x0: jnp.exp(exact.log_prob(world, jnp.stack(x0), clean))  # noqa: E731
    every = jax.jit(jax.vmap(jax.vmap(density, in_axes=(0, None)), in_axes=(None, 0)))
    return ticks, ticks, np.asarray(every(ticks, ticks))


def _ellipse(mean: np.ndarray, cov: np.ndarray) -> np.ndarray:
    """Two standard deviations of N(mean, cov) in two dimensions, all around."""
    angle = np.linspace(0, 2 * np.pi, 181)
    return mean + 2 * np.stack([np.cos(angle), np.sin(angle)], axis=1) @ np.linalg.cholesky(cov).T


def flipped(*, steps: Sequence[int] = (8, 16, 32, 64, 128, 256), particles: int = 25) -> Figure:
    """Mirrored steps of DDIM, 2 z - DDIM(z), and diffusion: other particles of the same laws, as the steps shrink.

    From t = 0.1 to 0.9 of the cosine schedule, on a mixture in one dimension whose exact density is grey.  Right, how far mirrored
    particles are from the exact law in W1 (they keep their order: it is the mean distance of quantiles), at the end of the chain
    and after one step from t = 0.5: of order h, and h^2 a step.  Gao et al. 2024, figure of particles, says identical.
    """
    figure, (left, middle, right) = frame(3, width=4.3, height=3.8)
    with jax.enable_x64(True):
        world = exact.Mixture(jnp.array([0.4, 0.6]), jnp.array([[-1.5], [1.0]]), jnp.array([[[0.03]], [[0.06]]]))
        schedule = schedules.Cosine()
        ddim = samplers.ddim(exact.denoiser(world, schedule), schedule)
        mirrored = Sampler(
            ddim.init, lambda noise, memory, z, t, s: (2 * z - ddim.step(noise, memory, z, t, 2 * t - s)[0], memory), 0
        )
        diffused = Sampler(
            ddim.init, lambda noise, memory, z, t, s: (paths.renoise(z, noise[0], *_pair(schedule, t, s)), memory), 1
        )
        chains = [_away(mirrored, world, schedule, np.linspace(0.1, 0.9, n + 1)) for n in steps]
        singles = [_away(mirrored, world, schedule, np.array([0.5, 0.5 + 0.8 / n])) for n in steps]
        times = np.linspace(0.1, 0.9, steps[-1] + 1)
        start, clock = _quantiles(world, schedule, 0.1, particles), np.linspace(0.1, 0.9, 161)
        for axis, sampler, title in (
            (left, mirrored, "mirrored DDIM: no noise"),
            (middle, diffused, "diffusion: noise alone"),
        ):
            _density(axis, world, schedule, clock)
            axis.plot(times, _driven(sampler, start, times), color="C0", lw=0.8)
            axis.set(xlabel="t", ylabel="z" if axis is left else "", title=title, ylim=(-3.3, 3.3))
            axis.grid(False)
    lengths = 0.8 / np.asarray(steps)
    for errors, name, mark in ((chains, "chain", "o-"), (singles, "one step", "s-")):
        order = np.polyfit(np.log(lengths[-3:]), np.log(errors[-3:]), 1)[0]
        right.plot(lengths, errors, mark, ms=4, lw=1.2, label=f"{name}: order {order:.2f}")
    right.set(
        xscale="log",
        yscale="log",
        xlabel="step h of t",
        ylabel="W1 from the exact law",
        title="the same law as h goes to 0",
    )
    right.legend(fontsize=8, loc="upper left")
    return figure


def _pair(schedule: Schedule, t: jax.Array, s: jax.Array) -> tuple[Point, Point]:
    """The noisier point, s, and the point at t."""
    return schedules.at(schedule, s), schedules.at(schedule, t)


def _driven(sampler: Sampler, z: jax.Array, times: np.ndarray) -> np.ndarray:
    """The states (times, particles) of steps that take particles of one dimension from each time to the next, which is noisier."""
    noise, states = jax.random.normal(jax.random.key(1), (len(times) - 1, len(z), 1, 1)), [z]
    for eps, (t, s) in zip(noise, pairwise(jnp.asarray(times)), strict=True):
        states.append(_moved(eps, sampler, states[-1], t, s))
    return np.asarray(jnp.stack(states))[..., 0]


@functools.partial(jax.jit, static_argnames="sampler")
def _moved(noise: jax.Array, sampler: Sampler, z: jax.Array, t: jax.Array, s: jax.Array) -> jax.Array:
    return jax.vmap(lambda noise, z: sampler.step(noise, (), z, t, s)[0])(noise, z)


def _away(sampler: Sampler, world: exact.Mixture, schedule: Schedule, times: np.ndarray, count: int = 999) -> float:
    """W1 of the law of a map that keeps order, at the last time, from that of the world."""
    end = _driven(sampler, _quantiles(world, schedule, times[0], count), times)[-1]
    return float(np.mean(np.abs(end - np.asarray(_quantiles(world, schedule, times[-1], count))[:, 0])))


@functools.partial(jax.jit, static_argnames="count")
def _quantiles(world: exact.Mixture, schedule: Schedule, t: float, count: int) -> jax.Array:
    """z_t at the probabilities (i + 1/2)/count, in one dimension: shape (count, 1)."""
    law, z = exact.marginal(world, schedules.at(schedule, t)), jnp.linspace(-8.0, 8.0, 200_001)
    parts = jax.vmap(lambda weight, mean, cov: weight * jax.scipy.stats.norm.cdf(z, mean, jnp.sqrt(cov)))
    below = jnp.sum(parts(law.weights, law.means[:, 0], law.covs[:, 0, 0]), axis=0)
    return jnp.interp(jnp.linspace(0.5 / count, 1 - 0.5 / count, count), below, z)[:, None]


def _density(axis: Any, world: exact.Mixture, schedule: Schedule, times: np.ndarray) -> None:
    """p_t(z) in grey, over times and z."""
    z = jnp.linspace(-3.3, 3.3, 201)
    log = lambda t: jax.vmap(lambda z: exact.log_prob(world, z, schedules.at(schedule, t)))(z[:, None])  # noqa: E731
    grey = np.exp(jax.jit(jax.vmap(log))(jnp.asarray(times))).T ** 0.5
    axis.pcolormesh(times, z, grey, cmap="Greys", vmax=1.6, shading="gouraud", rasterized=True)
