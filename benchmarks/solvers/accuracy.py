"""How far solvers of the probability flow end from its solution, for the same evaluations: on known worlds, and on a network.

    python -m benchmarks.solvers.accuracy [--worlds digits spiral ...] [--starts 2048] [--seed 1] [--keep FOLDER]
    python -m benchmarks.solvers.accuracy --run runs/digits

From z ~ N(0, 80^2 I) to sigma = 0.002 at alpha = 1; error: the rms over starts and dimensions, and the median start's, against
1,000 steps of the classical Runge-Kutta rule in log sigma (of a network: 125, which are 500 evaluations).  Peers: all of this
library, each on the best of three grids (uniform in log-SNR, Karras rho = 7, uniform in flow time), the best of them all at each
number of evaluations.  `controlled` is run as it comes: `control_of` 4,000 draws of the world (of the digits: the thousand that
the world is made of; of a network: what it was trained on), `jump`, `control_times`.  A seed makes the worlds, the draws and the
starts; 0 is that on which the settings of `controlled` were chosen.  Worlds are in float64, a network in float32, whose samples
are also compared with held-out data by their sliced Wasserstein distance.

The rms is decided by the few starts that a solver takes to another mode than the flow does, and so by chance: in brackets, the
5th and the 95th percentile of the ratio over 1,000 draws of the starts, with replacement; the best peer is found anew in each.
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.solvers.worlds import WORLDS, World, denoise, draw
from diffeq_gen import clocks, samplers, schedules, training
from diffeq_gen.training.evaluation import sliced_wasserstein
from diffeq_gen.types import Denoiser, Sampler

BUDGETS = (4, 5, 6, 8, 10, 15, 20)
JUDGED = (5, 6, 8, 10)
SCHEDULE = schedules.EDM()

PEERS: dict[str, tuple[Callable, dict, int]] = {
    "ddim": (samplers.ddim, {}, 1),
    "Heun (EDM)": (samplers.edm, {}, 2),
    "Heun": (samplers.heun, {}, 2),
    "DPM-Solver-2": (samplers.singlestep, {"rule": "noise"}, 2),
    "DPM-Solver++ 2S": (samplers.singlestep, {}, 2),
    "DPM-Solver-3": (samplers.singlestep, {"order": 3, "rule": "noise"}, 3),
    "DPM-Solver++ 2M": (samplers.multistep, {"two_point": "midpoint"}, 1),
    "data 2": (samplers.multistep, {}, 1),
    "DPM-Solver++ 3M": (samplers.multistep, {"order": 3}, 1),
    "UniPC-1": (samplers.unipc, {"order": 1}, 1),
    "UniPC-2": (samplers.unipc, {"order": 2}, 1),
    "UniPC-3": (samplers.unipc, {"order": 3}, 1),
    "noise 2": (samplers.multistep, {"rule": "noise"}, 1),
    "noise 3": (samplers.multistep, {"order": 3, "rule": "noise"}, 1),
    "LMS-2, DEIS": (samplers.lms, {"order": 2}, 1),
    "LMS-3, DEIS": (samplers.lms, {"order": 3}, 1),
    "LMS-4, DEIS": (samplers.lms, {"order": 4}, 1),
}
"""name -> (factory, options, evaluations a step)."""


def grids(n: int) -> dict[str, jax.Array]:
    """The three grids of n steps over the whole schedule."""
    flow = schedules.Flow()
    ends = [float(flow.time_at(clocks.log_snr(SCHEDULE, t))) for t in (1.0, 0.0)]
    straight = clocks.uniform(n, first=ends[0], last=ends[1])
    return {
        "log-SNR": clocks.uniform_log_snr(SCHEDULE, n),
        "Karras": clocks.uniform(n),
        "flow": jax.vmap(lambda t: SCHEDULE.time_at(flow.log_snr(t)))(straight),
    }


def known(world: World) -> Denoiser:
    """The world's denoiser at each time."""
    return lambda z, t: denoise(world, z, SCHEDULE(t)[1])


def learnt(run: training.Run) -> Denoiser:
    """A trained network's denoiser, at alpha = 1: it is asked at the time of its own schedule that has the same log-SNR."""

    def asked(z: jax.Array, t: jax.Array) -> jax.Array:
        own = clocks.time_at(run.schedule, clocks.log_snr(SCHEDULE, t))
        return run.denoise(run.schedule(own)[0] * z, own)

    return asked


def solution(denoise: Denoiser, z: jax.Array, steps: int) -> jax.Array:
    """The end of the probability flow, by the classical Runge-Kutta rule in log sigma."""
    logs = jnp.linspace(jnp.log(SCHEDULE.sigma_max), jnp.log(SCHEDULE.sigma_min), steps + 1, dtype=z.dtype)
    slope = lambda z, log: z - denoise(z, SCHEDULE.time_at(-2 * log))  # noqa: E731

    def body(z: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        log, h = pair[0], pair[1] - pair[0]
        a = slope(z, log)
        b = slope(z + h / 2 * a, log + h / 2)
        c = slope(z + h / 2 * b, log + h / 2)
        d = slope(z + h * c, log + h)
        return z + h / 6 * (a + 2 * b + 2 * c + d), None

    return jax.jit(lambda z: jax.lax.scan(body, z, (logs[:-1], logs[1:]))[0])(z)


def ends(sampler: Sampler, starts: jax.Array, times: list[jax.Array]) -> np.ndarray:
    """Where it ends on each grid of times, all in one compilation: a step of no length is passed over."""
    longest = max(map(len, times))
    table = jnp.stack([jnp.concatenate([row, jnp.full(longest - len(row), row[-1])]) for row in times]).astype(
        starts.dtype
    )

    def run(start: jax.Array, row: jax.Array) -> jax.Array:
        def body(carry: tuple, pair: tuple[jax.Array, jax.Array]) -> tuple[tuple, None]:
            moved = lambda: sampler.step(start[:0], carry[1], carry[0], *pair)  # noqa: E731
            return jax.lax.cond(pair[0] == pair[1], lambda: carry, moved), None

        return jax.lax.scan(body, (start, sampler.init(start)), (row[:-1], row[1:]))[0][0]

    return np.asarray(jax.jit(lambda pair: jax.lax.map(lambda pair: run(*pair), pair))((starts, table)), np.float64)


def squares(found: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The mean square over dimensions of each start's error; infinite where it is not a number."""
    each = np.mean(np.square(found - end).reshape(len(end), -1), axis=1)
    return np.where(np.isnan(each), np.inf, each)


class Peers(NamedTuple):
    """Of one budget: names and grids (k,), the squares of their errors (k, starts), what else is said of their ends (k,)."""

    names: np.ndarray
    squares: np.ndarray
    judged: np.ndarray

    def best(self, kind: str) -> tuple[float, str, float]:
        """The smallest error, whose it is, and what else is said of it."""
        error = np.sqrt((np.mean if kind == "rms" else np.median)(self.squares, axis=1))
        i = int(np.argmin(error))
        return float(error[i]), str(self.names[i]), float(self.judged[i])


def peers_at(
    denoise: Denoiser, z: jax.Array, end: np.ndarray, judge: Callable[[np.ndarray], float]
) -> dict[int, Peers]:
    """Budget -> every peer on every grid that it has steps enough for."""
    rows: dict[int, list[tuple[str, np.ndarray, float]]] = {budget: [] for budget in BUDGETS}
    for name, (factory, options, each) in PEERS.items():
        sampler = factory(denoise, SCHEDULE, **options)
        cases = [(n, grid, times) for n in BUDGETS for grid, times in grids(n // each).items()
                 if n // each >= sampler.fewest]  # fmt: skip
        starts = jnp.broadcast_to(z, (len(cases), *z.shape))
        found = ends(sampler, starts, [case[2] for case in cases])
        for (n, grid, _), one in zip(cases, found, strict=True):
            rows[n].append((f"{name}, {grid}", squares(one, end), judge(one)))
    return {n: Peers(*map(np.array, zip(*row, strict=True))) for n, row in rows.items()}


def kept_peers(folder: Path | None, name: str, make: Callable[[], dict[int, Peers]]) -> dict[int, Peers]:
    """What `make` says, or said before in this folder."""
    file = None if folder is None else folder / f"{re.sub('[^a-z0-9]+', '-', name.lower())}.npz"
    if file is None or not file.exists():
        made = make()
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            parts = {f"{n} {part}": getattr(peers, part) for n, peers in made.items() for part in Peers._fields}
            np.savez(file, **parts)
        return made
    with np.load(file, allow_pickle=False) as kept:
        return {n: Peers(*(kept[f"{n} {part}"] for part in Peers._fields)) for n in BUDGETS}


def by_chance(own: np.ndarray, peers: Peers, draws: int = 1000) -> tuple[float, float]:
    """5th and 95th percentile of our rms over the best peer's, over starts drawn anew."""
    n = len(own)
    shares = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=draws) / n
    finite = np.all(np.isfinite(peers.squares), axis=1)
    ratios = np.sqrt(shares @ own / np.min(shares @ peers.squares[finite].T, axis=1))
    return float(np.quantile(ratios, 0.05)), float(np.quantile(ratios, 0.95))


def ours(denoise: Denoiser, points: np.ndarray, z: jax.Array, mixture: bool) -> tuple[int, np.ndarray]:
    """(components of the control, where `controlled` ends at the budgets)."""
    made = samplers.control_of(jnp.asarray(points, z.dtype), mixture=mixture)
    times = [samplers.control_times(made, SCHEDULE, n) for n in BUDGETS]
    jumps = jax.jit(lambda z, s: samplers.jump(made, SCHEDULE, z, 1.0, s))
    starts = jnp.stack([jumps(z, row[0]) for row in times])
    sampler = samplers.controlled(denoise, SCHEDULE, made)
    return 1 if made.known is None else len(made.known.weights), ends(sampler, starts, times)


def compared(
    name: str, denoise: Denoiser, points: np.ndarray, z: jax.Array, steps: int, keep: Path | None,
    judge: Callable[[np.ndarray], float] = lambda one: np.nan,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Control -> its rms error over that of the best peer, at each budget, and the low end of what chance makes of it."""
    end = np.asarray(solution(denoise, z, steps), np.float64)
    peers, of_flow = kept_peers(keep, name, lambda: peers_at(denoise, z, end, judge)), judge(end)
    heard = not np.isnan(of_flow)
    print(f"\n{name}" + (f"; the flow's end has sw {of_flow:.4f}" if heard else ""))
    best = {kind: [peers[n].best(kind) for n in BUDGETS] for kind in ("rms", "median")}
    for kind, row in best.items():
        told = (f"{n}: {error:.3g} ({whose})" for n, (error, whose, _) in zip(BUDGETS, row, strict=True))
        print(f"  best peer, {kind}  " + "  ".join(told))
    ratios = {}
    for label, mixture in (("as it comes", True), ("Gaussian control", False)):
        k, found = ours(denoise, points, z, mixture)
        own = [squares(one, end) for one in found]
        rms = [np.sqrt(np.mean(each)) / error for each, (error, *_) in zip(own, best["rms"], strict=True)]
        median = [np.sqrt(np.median(each)) / error for each, (error, *_) in zip(own, best["median"], strict=True)]
        chance = [by_chance(each, peers[n]) for n, each in zip(BUDGETS, own, strict=True)]
        print(f"  {label} (components: {k}), error over the best peer's")
        rows = zip(BUDGETS, rms, chance, strict=True)
        print("    rms     " + "  ".join(f"{n}: {one:.2f} ({low:.2f}, {high:.2f})" for n, one, (low, high) in rows))
        print("    median  " + "  ".join(f"{n}: {one:.2f}" for n, one in zip(BUDGETS, median, strict=True)), flush=True)
        if heard:
            rows = zip(BUDGETS, found, best["rms"], strict=True)
            row = "  ".join(f"{n}: {judge(one):.4f} ({theirs:.4f})" for n, one, (_, _, theirs) in rows)
            print(f"    sliced Wasserstein distance to held-out data, and the best peer's  {row}", flush=True)
        ratios[label] = np.array([rms, [low for low, _ in chance]])
    return ratios


def on_a_network(folder: Path, starts: int, seed: int, keep: Path | None) -> None:
    """The same on a network that `diffeq-gen train` left."""
    run = training.restore(folder)
    keys = jax.random.split(jax.random.key(seed), 3)
    held_out, points = (
        run.dataset.dequantised(key, part)
        for key, part in zip(keys, (run.dataset.held_out, run.dataset.train), strict=False)
    )
    z = SCHEDULE.sigma_max * jax.random.normal(keys[2], (starts, *held_out.shape[1:]))
    judge = lambda one: sliced_wasserstein(one, held_out)  # noqa: E731
    compared(
        f"{run.dataset.name}, network after {int(run.state.step)} updates", learnt(run), points, z, 125, keep, judge
    )


def main() -> None:
    """Prints a row for each world, its peers and both controls; then geometric means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="*", default=[], help="the first words of their names; left out: all")
    parser.add_argument(
        "--run", type=Path, default=None, help="a folder that diffeq-gen train left, in place of worlds"
    )
    parser.add_argument("--starts", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--keep", type=Path, default=None, help="a folder in which the peers' errors are kept, and not found again"
    )
    options = parser.parse_args()
    if options.run is not None:
        on_a_network(options.run, options.starts, options.seed, options.keep)
        return
    jax.config.update("jax_enable_x64", True)
    rows: dict[str, dict[str, np.ndarray]] = {}
    for name, make in WORLDS.items():
        if options.worlds and name.split()[0] not in options.worlds:
            continue
        world = make(options.seed)
        key = jax.random.key(options.seed)
        z = SCHEDULE.sigma_max * jax.random.normal(key, (options.starts, world.size), jnp.float64)
        points = draw(world, 4000, options.seed) if len(world.weights) < 1000 else world.means
        rows[name] = compared(name, known(world), points, z, 1000, options.keep)
    for label in ("as it comes", "Gaussian control"):
        summary(label, {name: row[label] for name, row in rows.items()})


def summary(label: str, rows: dict[str, np.ndarray]) -> None:
    """Prints the geometric means over mixtures and over digits, and the worst ratio of all."""
    judged, said = np.isin(BUDGETS, JUDGED), []
    for kind, what in ((False, "mixtures"), (True, "digits")):
        logs = [np.log(row[0, judged]) for name, row in rows.items() if ("digits" in name) == kind]
        said += [f"{what} {np.exp(np.mean(logs)):.3f}"] if logs else []
    print(f"\n{label}: geometric mean at 5, 6, 8, 10 evaluations: {', '.join(said)}")
    for i, what in enumerate(("ratio", "5th percentile")):
        worst = max((ratio, name, n) for name, row in rows.items() for n, ratio in zip(BUDGETS, row[i], strict=True))
        print(f"  the largest {what}: {worst[0]:.2f} ({worst[1]}, {worst[2]})")


if __name__ == "__main__":
    main()
