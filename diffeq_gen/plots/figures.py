"""Pictures of runs, of schedules and weights, and of samplers at work.

loss curve | samples | trajectories of DDIM and of the flow's Euler rule | where flows bend | weights on the axis of log-SNR |
spectra of data and noise | guided samples
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from diffeq_gen import clocks, exact, grids, guidance, samplers, schedules, spectral, weights
from diffeq_gen.coordinates import STRAIGHT
from diffeq_gen.plots.frame import frame
from diffeq_gen.types import Denoiser, Sample, Sampler, Schedule

__all__ = [
    "SOLVERS",
    "bending",
    "digits_grid",
    "guided",
    "loss_curve",
    "residuals",
    "samples",
    "schedule_curves",
    "solvers",
    "spectra",
    "trajectories",
    "weight_curves",
]


def loss_curve(steps: Sequence[int], losses: Sequence[float]) -> Figure:
    """Training loss against step."""
    figure, (axis,) = frame()
    axis.plot(steps, losses, lw=1.5)
    axis.set(xlabel="step", ylabel="loss", yscale="log", title="training")
    return figure


def digits_grid(pictures: np.ndarray, *, columns: int = 8) -> np.ndarray:
    """Pictures (n, height, width, 1) side by side with a margin of one pixel, as one grey image in [0, 1]."""
    n, height, width = pictures.shape[:3]
    rows = -(-n // columns)
    grid = np.zeros((rows * (height + 1) + 1, columns * (width + 1) + 1))
    for i, picture in enumerate(np.clip((np.asarray(pictures)[..., 0] + 1) / 2, 0, 1)):
        row, column = divmod(i, columns)
        grid[
            row * (height + 1) + 1 : (row + 1) * (height + 1), column * (width + 1) + 1 : (column + 1) * (width + 1)
        ] = picture
    return grid


def samples(grids: Mapping[str, np.ndarray]) -> Figure:
    """Sheets of pictures (n, height, width, 1), one for each name."""
    figure, axes = frame(len(grids), width=3.4, height=3.8)
    for axis, (name, pictures) in zip(axes, grids.items(), strict=True):
        axis.imshow(digits_grid(pictures), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set(title=name, xticks=[], yticks=[])
        axis.grid(False)
    return figure


def trajectories(key: jax.Array | None = None, *, steps: int = 12, paths: int = 24) -> Figure:
    """DDIM under the cosine schedule and Euler's rule of the straight flow, on a mixture in one dimension, overlaid.

    Both are drawn as z/(alpha + sigma) against sigma/(alpha + sigma), the clock of Gao et al. 2024 in which they are one;
    beside them Euler's rule in the time of the cosine schedule, which is not the same.
    """
    world = exact.Mixture(jnp.array([0.4, 0.6]), jnp.array([[-1.5], [1.0]]), jnp.array([[[0.05]], [[0.02]]]))
    cosine, flow = schedules.Cosine(), schedules.Flow()
    times = clocks.uniform_log_snr(cosine, steps, log_snr_min=-8.0, log_snr_max=8.0)
    tau = jax.vmap(lambda t: clocks.time_at(flow, clocks.log_snr(cosine, t)))(times)
    start = np.random.default_rng(0).standard_normal((paths, 1)) if key is None else jax.random.normal(key, (paths, 1))
    start = jnp.asarray(start, times.dtype)
    key = jax.random.key(0)

    def run(sampler: Any, z: jax.Array, times: jax.Array) -> np.ndarray:
        return np.asarray(jax.vmap(lambda z: samplers.trajectory(key, sampler, z, times))(z))[..., 0]

    alpha, sigma = (np.asarray(part) for part in jax.vmap(cosine)(times))
    norm = alpha + sigma
    ddim = run(samplers.ddim(exact.denoiser(world, cosine), cosine), start, times) / norm
    straight = run(samplers.euler(exact.denoiser(world, flow), flow), start / norm[0], tau)
    naive = run(samplers.euler(exact.denoiser(world, cosine), cosine), start, times) / norm
    figure, axes = frame(2)
    gap = float(np.max(np.abs(ddim - straight)))
    for axis, other, title in zip(
        axes,
        (straight, naive),
        (f"DDIM (dots) = Euler of the flow (lines), to {gap:.0e}", "Euler in cosine time is not"),
        strict=True,
    ):
        axis.plot(tau, other.T, color="C0", lw=1)
        axis.plot(tau, ddim.T, "o", color="C3", ms=2.5)
        axis.set(xlabel="sigma / (alpha + sigma)", ylabel="z / (alpha + sigma)", title=title)
        axis.invert_xaxis()
    return figure


def bending(*, steps: int = 400, paths: int = 15) -> Figure:
    """The probability flow of the schedule alpha = 1 - t, sigma = t, for data ever more spread out: each path beside its chord.

    Straight where the data are a point, and nowhere else, for at t = 1 all set out for the mean: of N(0, c^2) a path is
    z_1 (t^2 + (1 - t)^2 c^2)^{1/2}, a hyperbola, which for c = 1 leaves its chord by (1 - 2^{-1/2}) |z_1|.  In the titles, the most
    that a path with |z_1| <= 2 leaves its chord by.
    """
    normal = lambda std: exact.Gaussian(jnp.array([0.5 * (std == 0)]), jnp.array([[std**2]]))  # noqa: E731
    modes = exact.Mixture(jnp.array([0.4, 0.6]), jnp.array([[-1.5], [1.0]]), jnp.array([[[0.02]], [[0.02]]]))
    named = {"a point": normal(0.0), "N(0, 0.3^2)": normal(0.3), "N(0, 1)": normal(1.0), "two modes": modes}
    figure, axes = frame(len(named), width=3.2, height=3.4)
    flow, times = schedules.Flow(), clocks.uniform(steps)
    start = jnp.linspace(-2.0, 2.0, paths)[:, None]
    for axis, (name, world) in zip(axes, named.items(), strict=True):
        sampler = samplers.ddim(exact.denoiser(world, flow), flow)
        run = jax.vmap(lambda z, sampler=sampler: samplers.trajectory(jax.random.key(0), sampler, z, times))
        z, t = np.asarray(run(start))[..., 0], np.asarray(times)
        chord = z[:, :1] * t + z[:, -1:] * (1 - t)
        axis.plot(t, chord.T, color="0.75", lw=0.8)
        axis.plot(t, z.T, color="C0", lw=1.2)
        axis.set(xlabel="t", title=f"{name}\noff its chord by {np.max(np.abs(z - chord)):.2f}", ylim=(-2.2, 2.2))
        axis.invert_xaxis()
    axes[0].set(ylabel="z")
    return figure


SOLVERS: Mapping[str, tuple[Callable[[Denoiser, Schedule], Sampler], int]] = {
    "DDIM": (samplers.ddim, 1),
    "Heun (EDM)": (samplers.edm, 2),
    "DPM-Solver-2": (lambda denoise, schedule: samplers.singlestep(denoise, schedule, rule="noise"), 2),
    "DPM-Solver-3": (lambda denoise, schedule: samplers.singlestep(denoise, schedule, order=3, rule="noise"), 3),
    "DPM-Solver++(2M)": (lambda denoise, schedule: samplers.multistep(denoise, schedule, two_point="midpoint"), 1),
    "DPM-Solver++(3M), corrected": (lambda denoise, schedule: samplers.multistep(denoise, schedule, order=3), 1),
    "UniPC-2": (samplers.unipc, 1),
    "LMS-4": (samplers.lms, 1),
    "iPNDM-3": (lambda denoise, schedule: samplers.ipndm(denoise, schedule, order=3), 1),
}
"""A solver and the evaluations that one step of it costs."""


def solvers(*, budgets: Sequence[int] = (4, 6, 8, 10, 15, 20, 30, 50), paths: int = 64) -> Figure:
    """Root-mean-square distance from the flow's end, against evaluations of the denoiser, on a mixture in two dimensions.

    Each solver on three grids from sigma = 80 to 0.002, equal steps of log-SNR, Karras', and equal steps of flow time
    sigma/(alpha + sigma); and `controlled` on its own, its control made of 4,000 draws: their moments alone, or the mixture that
    fits them, which is of the family of this world; the end is known from 2,000 steps of Heun's rule in float64.
    """
    means = [[-1.0, 0.5], [0.8, 0.9], [0.4, -1.1]]
    covs = [[[0.04, 0.02], [0.02, 0.03]], [[0.02, 0.0], [0.0, 0.09]], [[0.05, -0.03], [-0.03, 0.04]]]
    figure, axes = frame(3, width=4.4, height=4.4)
    for axis in axes[1:]:
        axis.sharey(axes[0])
    with jax.enable_x64(True):
        schedule = schedules.EDM()
        world = exact.Mixture(jnp.array([0.5, 0.3, 0.2]), jnp.array(means), jnp.array(covs))
        denoise = exact.denoiser(world, schedule)
        start = jnp.asarray(80.0 * np.random.default_rng(0).standard_normal((paths, 2)))
        known = _walk(samplers.edm(denoise, schedule), [start], [clocks.uniform_log_snr(schedule, 2000)])[0]
        named = {
            "equal steps of log-SNR": clocks.uniform_log_snr,
            "Karras, rho = 7": clocks.karras,
            "equal steps of flow time": partial(grids.even, coordinate=STRAIGHT),
        }
        for name, (make, cost) in SOLVERS.items():
            counts = [budget // cost for budget in budgets if budget >= cost]
            times = [grid(schedule, n) for grid in named.values() for n in counts]
            ends = _walk(make(denoise, schedule), [start] * len(times), times)
            errors = [np.sqrt(np.mean(np.sum((end - known) ** 2, axis=1))) for end in ends]
            for axis, part in zip(axes, np.reshape(errors, (len(named), -1)), strict=True):
                axis.plot([n * cost for n in counts], part, "o-", ms=3, lw=1.2, label=name)
        points = exact.draw(jax.random.key(0), world, 4000)
        for name, mixture in (("controlled by the moments", False), ("controlled by a mixture", True)):
            control = samplers.control_of(points, mixture=mixture)
            times = [samplers.control_times(control, schedule, budget) for budget in budgets]
            jump = jax.jit(jax.vmap(lambda z, s, c=control: samplers.jump(c, schedule, z, 1.0, s), in_axes=(0, None)))
            ends = _walk(samplers.controlled(denoise, schedule, control), [jump(start, one[0]) for one in times], times)
            errors = [np.sqrt(np.mean(np.sum((end - known) ** 2, axis=1))) for end in ends]
            for axis in axes:
                axis.plot(budgets, errors, "ks-" if mixture else "k^--", ms=3, lw=1.6, label=name)
        for axis, title in zip(axes, named, strict=True):
            axis.set(xscale="log", yscale="log", xlabel="evaluations", ylabel="distance", title=title)
            axis.set_xticks(budgets, [str(budget) for budget in budgets])
            axis.minorticks_off()
        axes[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _walk(sampler: Sampler, starts: Sequence[jax.Array], grids: Sequence[jax.Array]) -> list[np.ndarray]:
    """Where each grid ends, from as many states as a start holds: one compilation of the step serves them all."""
    step = jax.jit(jax.vmap(lambda memory, z, t, s: sampler.step(z[:0], memory, z, t, s), in_axes=(0, 0, None, None)))
    ends = []
    for z, times in zip(starts, grids, strict=True):
        memory = jax.vmap(sampler.init)(z)
        for t, s in pairwise(times):
            z, memory = step(memory, z, t, s)
        ends.append(np.asarray(z))
    return ends


def weight_curves() -> Figure:
    """Weights w(lambda) of the literature on one axis, as densities of the interval, and how much each shares with EDM's.

    Those that never rise (drawn through) are ELBOs of data with noise added to them; the others (dashed) are not.
    """
    low, high = -12.0, 12.0
    log_snr = jnp.linspace(low, high, 481)
    named = {
        "ELBO": weights.elbo,
        "flow matching = v-MSE, cosine": weights.flow,
        "x0-MSE, flow (InDI)": weights.indi,
        "sigmoid(2 - lambda)": weights.sigmoid(2.0),
        "eps-MSE, cosine": weights.cosine,
        "eps-MSE, linear beta": weights.uniform_times(schedules.VP()),
        "min-SNR, cosine": weights.min_snr(),
        "P2, cosine": weights.p2(),
        "EDM": weights.edm(),
        "flow, logit-normal (SD3)": weights.logit_normal(),
        "flow, mode sampling (SD3)": weights.mode(),
    }
    figure, (axis,) = frame(width=8.0, height=4.6)
    for i, (name, weight) in enumerate(named.items()):
        density = np.asarray(jax.nn.softmax(jax.vmap(weight)(log_snr))) / float(log_snr[1] - log_snr[0])
        shared = float(weights.overlap(weight, weights.edm(), low, high))
        falls = np.all(np.diff(density) <= 1e-6 * density[1:])
        axis.plot(
            log_snr,
            density,
            "-" if falls else "--",
            color=f"C{i}" if i < 10 else "black",
            label=f"{name}: {shared:.2f}",
        )
    axis.set(xlabel="log-SNR lambda", ylabel="w(lambda), of area one", title="what each loss emphasises, and its overlap with EDM",
             ylim=(0, 0.35))  # fmt: skip
    axis.legend(fontsize=7)
    return figure


def spectra(
    pictures: Sample | np.ndarray,
    *,
    schedule: Schedule | None = None,
    times: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
) -> Figure:
    """The spectrum of pictures (n, height, width, channels), less their mean, and of the noise in z/alpha at several times of a
    schedule (flow, if left out); and beside it the last frequency above the noise at every time.

    Dots are the frequencies one by one, the line is their average over rings, dashed the power law that fits it.
    """
    schedule = schedules.Flow() if schedule is None else schedule
    centred = jnp.asarray(pictures) - jnp.mean(jnp.asarray(pictures), axis=0, keepdims=True)
    power = jnp.mean(jax.vmap(spectral.power)(centred), axis=(0, 3))
    every, content = spectral.frequencies(power.shape).ravel()[1:], power.ravel()[1:]
    rings, average = spectral.rings(power.shape)[1:], spectral.rapsd(centred)[1:]
    law = spectral.power_law(rings, average)
    figure, (left, right) = frame(2, width=5.4, height=4.0)
    left.plot(every, content, "o", color="C0", ms=3, alpha=0.4)
    left.plot(rings, average, color="C0", lw=2, label="pictures")
    left.plot(
        rings, law(rings), "--", color="black", lw=1, label=f"{float(law.scale):.2g} / f^{float(law.exponent):.1f}"
    )
    colour = mpl.colormaps["viridis"]
    for t in times:
        level = float(jnp.exp(-clocks.log_snr(schedule, t)))
        left.axhline(level, color=colour(t), lw=1.2)
        left.annotate(f"t = {t:g}", (1.0, level), xycoords=("axes fraction", "data"), fontsize=8, color=colour(t),
                      ha="right", va="bottom")  # fmt: skip
        right.axvline(t, color=colour(t), lw=1.2)
    left.set(
        xscale="log",
        yscale="log",
        xlabel="frequency, cycles a pixel",
        ylabel="power",
        title="pictures, and noise in z/alpha",
    )
    octaves = [2**i for i in range(1, 12) if 2**i <= max(power.shape)]
    left.set_xticks([1 / n for n in octaves], [f"1/{n}" for n in octaves])
    left.xaxis.minorticks_off()
    left.set_ylim(bottom=left.get_ylim()[0] / 4)
    left.legend(fontsize=8, loc="lower left")
    clock = jnp.linspace(0.005, 0.995, 397)
    log_snr = jax.vmap(lambda t: clocks.log_snr(schedule, t))(clock)
    right.plot(
        clock,
        jax.vmap(lambda lam: spectral.crossover(every, content, lam))(log_snr),
        color="C0",
        lw=2,
        label="pictures",
    )
    right.plot(clock, jax.vmap(law.crossover)(log_snr), "--", color="black", lw=1, label="power law")
    right.set(xlabel="t", ylabel="frequency, cycles a pixel", title="the last frequency above the noise",
              ylim=(0, 1.1 * float(jnp.max(every))))  # fmt: skip
    right.invert_xaxis()
    right.legend(fontsize=8, loc="upper left")
    return figure


def guided(*, scales: Sequence[float] = (1.0, 2.0, 4.0), count: int = 20_000, steps: int = 100) -> Figure:
    """Where classifier-free guidance ends, by DDIM and by DDPM, on the tempered law that its score is taken for, in one dimension.

    Half of the data are of the class that is asked for, of two modes, one of which the other class shares.  Samples are drawn as
    histograms with their total variation from p(x0)^{1-omega} p(x0|y)^omega, which is drawn as an area: noise alone makes it 0.02.
    """
    wanted = exact.Mixture(jnp.array([0.5, 0.5]), jnp.array([[-0.8], [1.0]]), jnp.array([[[0.12]], [[0.2]]]))
    other = exact.Gaussian(jnp.array([-1.6]), jnp.array([[0.3]]))
    means, covs = (jnp.concatenate([a, b[None]]) for a, b in ((wanted.means, other.mean), (wanted.covs, other.cov)))
    world, schedule = exact.Mixture(jnp.array([0.25, 0.25, 0.5]), means, covs), schedules.Cosine()
    models = exact.denoiser(wanted, schedule), exact.denoiser(world, schedule)
    times = clocks.uniform_log_snr(schedule, steps, log_snr_min=-10.0, log_snr_max=10.0)
    opening, walking = jax.random.split(jax.random.key(0))
    start, keys = jax.random.normal(opening, (count, 1)), jax.random.split(walking, count)
    x0, edges = jnp.linspace(-3.5, 3.5, 1401), np.linspace(-3.5, 3.5, 71)
    clean = schedules.at(lambda t: (1 + 0 * t, 0 * t), 0.0)
    log_c, log_u = (jax.vmap(lambda x, one=one: exact.log_prob(one, x, clean))(x0[:, None]) for one in (wanted, world))
    figure, axes = frame(len(scales), width=4.2)
    for axis, scale in zip(axes, scales, strict=True):
        density = np.exp((1 - scale) * log_u + scale * log_c)
        density /= np.sum(density) * float(x0[1] - x0[0])
        axis.fill_between(x0, density, color="C7", alpha=0.35, lw=0, label="tempered law")
        masses = np.histogram(x0, edges, weights=density)[0] * float(x0[1] - x0[0])
        denoise = guidance.classifier_free(*models, scale=scale)
        for name, make, color in (("DDIM", samplers.ddim, "C0"), ("DDPM", samplers.ddpm, "C3")):
            sampler = make(denoise, schedule)
            run = jax.vmap(lambda key, z, sampler=sampler: samplers.sample(key, sampler, z, times))
            heights = np.histogram(run(keys, start), edges)[0] / count
            apart = np.sum(np.abs(heights - masses)) / 2
            axis.stairs(heights / np.diff(edges), edges, color=color, lw=1.3, label=f"{name}, {apart:.2f} apart")
        axis.set(xlabel="x0", title=f"omega = {scale:g}", yticks=[])
        axis.legend(fontsize=8, loc="upper left")
    axes[0].set_ylabel("density")
    return figure


def schedule_curves(named: Mapping[str, Schedule]) -> Figure:
    """log-SNR of schedules against time."""
    figure, (axis,) = frame()
    times = jnp.linspace(0.002, 0.998, 400)
    for name, schedule in named.items():
        axis.plot(
            times, np.asarray(jax.vmap(lambda t, schedule=schedule: clocks.log_snr(schedule, t))(times)), label=name
        )
    axis.set(xlabel="t", ylabel="log-SNR", title="schedules")
    axis.legend(fontsize=8)
    return figure


def residuals(ratios: Mapping[str, float]) -> Figure:
    """The worst residual of each theorem in units of its rounding bound: all must stay below one."""
    figure, (axis,) = frame(width=7.0, height=3.0)
    axis.hist([max(value, 1e-4) for value in ratios.values()], bins=np.geomspace(1e-4, 2, 40))
    axis.axvline(1.0, color="C3")
    axis.set(xscale="log", xlabel="worst residual / its bound", ylabel="theorems")
    return figure
