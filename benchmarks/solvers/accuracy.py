"""How far solvers of the probability flow end from its solution, for the same evaluations: on known worlds, and on a network.

    python -m benchmarks.solvers.accuracy [--worlds digits spiral ...] [--starts 2048] [--seed 1] [--keep FOLDER]
    python -m benchmarks.solvers.accuracy --schedule flow --budgets 4 5 6 8 10 15 20 30 50 --all
    python -m benchmarks.solvers.accuracy --run runs/digits
    python -m benchmarks.solvers.accuracy --pictures data/mnist --starts 512

From z/alpha ~ N(0, 80^2 I) to sigma/alpha = 0.002; error: the rms over starts and dimensions of z/alpha, and the median start's, against
1,000 steps of the classical Runge-Kutta rule in log sigma (of a network: 125, which are 500 evaluations).  Peers: all of
`benchmarks.solvers.methods`, each on the best of three grids (uniform in log-SNR, Karras rho = 7, uniform in flow time), the best of
them all at each number of evaluations.  `controlled` is run as it comes: `control_of` 4,000 draws of the world (of the digits: the
thousand that the world is made of; of a network: what it was trained on), `jump`, `control_times`.  A seed makes the worlds, the draws
and the starts; the settings of `controlled` were chosen on 0 and 1.  Worlds are in float64, a network in float32, whose
samples are also compared with held-out data by their sliced Wasserstein distance.  `--all` prints every peer on every grid, `--keep`
a folder in which what a peer did is kept and not done again.

The rms is decided by the few starts that a solver takes to another mode than the flow does, and so by chance: in brackets, the
5th and the 95th percentile of the ratio over 1,000 draws of the starts, with replacement; the best peer is found anew in each.
"""

import argparse
import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.solvers.methods import METHODS, SIGMA_MIN
from benchmarks.solvers.worlds import WORLDS, denoise, draw, pixels
from diffeq_gen import clocks, samplers, schedules, training
from diffeq_gen.training.data import idx_folder
from diffeq_gen.training.evaluation import sliced_wasserstein
from diffeq_gen.types import Denoiser, Sampler, Schedule

BUDGETS = (4, 5, 6, 8, 10, 15, 20)
JUDGED = (5, 6, 8, 10)
SCHEDULES = {"edm": schedules.EDM(), "vp": schedules.VP(), "flow": schedules.Flow()}
SIGMA_MAX = 80.0
"""Of sigma/alpha: where a run begins, whatever the schedule."""

Model = Callable[[jax.Array, jax.Array], jax.Array]
"""(z/alpha, sigma/alpha) -> x0_hat."""


def grids(schedule: Schedule, n: int) -> dict[str, jax.Array]:
    """The three grids of n steps between the two levels of noise."""
    flow = schedules.Flow()
    first, last = (-2 * jnp.log(jnp.array(level)) for level in (SIGMA_MAX, SIGMA_MIN))
    straight = clocks.uniform(n, first=float(flow.time_at(first)), last=float(flow.time_at(last)))
    return {
        "log-SNR": clocks.uniform_log_snr(schedule, n, log_snr_min=first, log_snr_max=last),
        "Karras": clocks.karras(schedule, n, sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX),
        "flow": jax.vmap(lambda t: clocks.time_at(schedule, flow.log_snr(t)))(straight),
    }


def under(schedule: Schedule, model: Model) -> Denoiser:
    """The denoiser of a model under a schedule."""

    def asked(z: jax.Array, t: jax.Array) -> jax.Array:
        alpha, sigma = schedule(t)
        return model(z / alpha, sigma / alpha)

    return asked


def learnt(run: training.Run) -> Model:
    """A trained network: it is asked at the time of its own schedule that has this log-SNR."""

    def asked(x: jax.Array, level: jax.Array) -> jax.Array:
        own = clocks.time_at(run.schedule, -2 * jnp.log(level))
        return run.denoise(run.schedule(own)[0] * x, own)

    return asked


def solution(model: Model, x: jax.Array, steps: int) -> jax.Array:
    """The end of the probability flow, by the classical Runge-Kutta rule in log sigma."""
    logs = jnp.linspace(jnp.log(SIGMA_MAX), jnp.log(SIGMA_MIN), steps + 1, dtype=x.dtype)
    slope = lambda z, log: z - model(z, jnp.exp(log))  # noqa: E731

    def body(z: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        log, h = pair[0], pair[1] - pair[0]
        a = slope(z, log)
        b = slope(z + h / 2 * a, log + h / 2)
        c = slope(z + h / 2 * b, log + h / 2)
        d = slope(z + h * c, log + h)
        return z + h / 6 * (a + 2 * b + 2 * c + d), None

    return jax.jit(lambda z: jax.lax.scan(body, z, (logs[:-1], logs[1:]))[0])(x)


def ends(schedule: Schedule, sampler: Sampler, starts: jax.Array, times: list[jax.Array]) -> np.ndarray:
    """z/alpha where it ends on each grid of times, all in one compilation: a step of no length is passed over."""
    longest = max(map(len, times))
    table = jnp.stack([jnp.concatenate([row, jnp.full(longest - len(row), row[-1])]) for row in times]).astype(
        starts.dtype
    )

    def run(start: jax.Array, row: jax.Array) -> jax.Array:
        def body(carry: tuple, pair: tuple[jax.Array, jax.Array]) -> tuple[tuple, None]:
            moved = lambda: sampler.step(start[:0], carry[1], carry[0], *pair)  # noqa: E731
            return jax.lax.cond(pair[0] == pair[1], lambda: carry, moved), None

        end = jax.lax.scan(body, (start, sampler.init(start)), (row[:-1], row[1:]))[0][0]
        return end / schedule(row[-1])[0]

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
    name: str, schedule: Schedule, budgets: Sequence[int], model: Model, x: jax.Array, end: np.ndarray, judge: Callable[[np.ndarray], float]
) -> dict[int, Peers]:  # fmt: skip
    """Budget -> one method on every grid that it has steps enough for; a budget for which it has none is left out."""
    method = METHODS[name]
    sampler = method.build(under(schedule, model), schedule)
    cases = [(n, grid, times) for n in budgets if method.steps(n) >= sampler.fewest
             for grid, times in grids(schedule, method.steps(n)).items()]  # fmt: skip
    starts = jnp.stack([x * schedule(times[0])[0] for *_, times in cases])
    rows: dict[int, list[tuple[str, np.ndarray, float]]] = {}
    for (n, grid, _), one in zip(cases, ends(schedule, sampler, starts, [case[2] for case in cases]), strict=True):
        rows.setdefault(n, []).append((f"{name}, {grid}", squares(one, end), judge(one)))
    return {n: Peers(*map(np.array, zip(*row, strict=True))) for n, row in rows.items()}


def every_peer(options: argparse.Namespace, world: str, find: Callable[[str], dict[int, Peers]]) -> dict[int, Peers]:
    """All methods, of which those that were found before for as much as is asked now are read from the folder of `--keep`."""
    asked = f"{world} {options.schedule} {options.seed} {options.starts} {' '.join(map(str, options.budgets))}"
    parts: dict[int, list[Peers]] = {n: [] for n in options.budgets}
    for name in options.methods:
        for n, peers in kept(options.keep, f"{asked} {name}", functools.partial(find, name)).items():
            parts[n].append(peers)
    empty = [n for n, row in parts.items() if not row]
    if empty:
        raise SystemExit(f"no method has steps enough for {empty[0]} evaluations, of {', '.join(options.methods)}")
    return {n: Peers(*map(np.concatenate, zip(*row, strict=True))) for n, row in parts.items()}


def kept(folder: Path | None, asked: str, find: Callable[[], dict[int, Peers]]) -> dict[int, Peers]:
    """What `find` says, or has said before in this folder."""
    if folder is None:
        return find()
    file = folder / f"{re.sub('[^a-z0-9+]+', '-', asked.lower())}.npz"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        found = {f"{n} {part}": getattr(peers, part) for n, peers in find().items() for part in Peers._fields}
        np.savez(file, **found)
    with np.load(file, allow_pickle=False) as stored:
        budgets = sorted({int(key.split()[0]) for key in stored.files})
        return {n: Peers(*(stored[f"{n} {part}"] for part in Peers._fields)) for n in budgets}


def by_chance(own: np.ndarray, peers: Peers, draws: int = 1000) -> tuple[float, float]:
    """5th and 95th percentile of our rms over the best peer's, over starts drawn anew."""
    n = len(own)
    shares = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=draws) / n
    finite = np.all(np.isfinite(peers.squares), axis=1)
    ratios = np.sqrt(shares @ own / np.min(shares @ peers.squares[finite].T, axis=1))
    return float(np.quantile(ratios, 0.05)), float(np.quantile(ratios, 0.95))


def ours(
    schedule: Schedule, budgets: Sequence[int], model: Model, points: np.ndarray, x: jax.Array, mixture: bool
) -> tuple[int, np.ndarray]:
    """(components of the control, where `controlled` ends at the budgets)."""
    made = samplers.control_of(jnp.asarray(points, x.dtype), mixture=mixture)
    times = [samplers.control_times(made, schedule, n) for n in budgets]
    first = clocks.time_at(schedule, -2 * jnp.log(jnp.array(SIGMA_MAX))).astype(x.dtype)
    jumps = jax.jit(lambda z, s: samplers.jump(made, schedule, z, first, s))
    starts = jnp.stack([jumps(x * schedule(first)[0], row[0]) for row in times])
    sampler = samplers.controlled(under(schedule, model), schedule, made)
    return 1 if made.known is None else len(made.known.weights), ends(schedule, sampler, starts, times)


def compared(
    name: str, model: Model, points: np.ndarray, x: jax.Array, steps: int, options: argparse.Namespace,
    judge: Callable[[np.ndarray], float] = lambda one: np.nan,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Control -> its rms error over that of the best peer, at each budget, and the low end of what chance makes of it."""
    schedule, budgets = SCHEDULES[options.schedule], options.budgets
    end = np.asarray(solution(model, x, steps), np.float64)
    peers = every_peer(options, name, lambda peer: peers_at(peer, schedule, budgets, model, x, end, judge))
    of_flow = judge(end)
    heard = not np.isnan(of_flow)
    print(f"\n{name}" + (f"; the flow's end has sw {of_flow:.4f}" if heard else ""))
    best = {kind: [peers[n].best(kind) for n in budgets] for kind in ("rms", "median")}
    for kind, row in best.items():
        told = (f"{n}: {error:.3g} ({whose})" for n, (error, whose, _) in zip(budgets, row, strict=True))
        print(f"  best peer, {kind}  " + "  ".join(told))
    if options.all:
        every(peers)
    ratios = {}
    for label, mixture in (("as it comes", True), ("Gaussian control", False)):
        k, found = ours(schedule, budgets, model, points, x, mixture)
        own = [squares(one, end) for one in found]
        rms = [np.sqrt(np.mean(each)) / error for each, (error, *_) in zip(own, best["rms"], strict=True)]
        median = [np.sqrt(np.median(each)) / error for each, (error, *_) in zip(own, best["median"], strict=True)]
        chance = [by_chance(each, peers[n]) for n, each in zip(budgets, own, strict=True)]
        print(f"  {label} (components: {k}), error over the best peer's")
        rows = zip(budgets, rms, chance, strict=True)
        print("    rms     " + "  ".join(f"{n}: {one:.2f} ({low:.2f}, {high:.2f})" for n, one, (low, high) in rows))
        print("    median  " + "  ".join(f"{n}: {one:.2f}" for n, one in zip(budgets, median, strict=True)), flush=True)
        if heard:
            rows = zip(budgets, found, best["rms"], strict=True)
            row = "  ".join(f"{n}: {judge(one):.4f} ({theirs:.4f})" for n, one, (_, _, theirs) in rows)
            print(f"    sliced Wasserstein distance to held-out data, and the best peer's  {row}", flush=True)
        ratios[label] = np.array([rms, [low for low, _ in chance]])
    return ratios


def every(peers: dict[int, Peers]) -> None:
    """Prints the root mean square error of each peer on each grid."""
    told = {
        n: dict(zip(map(str, one.names), np.sqrt(np.mean(one.squares, axis=1)), strict=True))
        for n, one in peers.items()
    }
    print(f"  {'rms error at evaluations':34}" + "".join(f"{n:>9}" for n in told))
    for name in dict.fromkeys(name for row in told.values() for name in row):
        print(f"  {name:34}" + "".join(f"{row[name]:9.2g}" if name in row else f"{'':9}" for row in told.values()))


def on_a_network(options: argparse.Namespace) -> None:
    """The same on a network that `diffeq-gen train` left."""
    run = training.restore(options.run)
    keys = jax.random.split(jax.random.key(options.seed), 3)
    held_out, points = (
        run.dataset.dequantised(key, part)
        for key, part in zip(keys, (run.dataset.held_out, run.dataset.train), strict=False)
    )
    x = SIGMA_MAX * jax.random.normal(keys[2], (options.starts, *held_out.shape[1:]))
    judge = lambda one: sliced_wasserstein(one, held_out)  # noqa: E731
    name = f"{run.dataset.name}, network after {int(run.state.step)} updates"
    compared(name, learnt(run), points, x, 125, options, judge)


def main() -> None:
    """Prints a row for each world, its peers and both controls; then geometric means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="*", default=[], help="the first words of their names; left out: all")
    parser.add_argument(
        "--run", type=Path, default=None, help="a folder that diffeq-gen train left, in place of worlds"
    )
    parser.add_argument("--pictures", type=Path, default=None,
                        help="in place of worlds, a thousand pictures of a folder with the IDX files of MNIST")  # fmt: skip
    parser.add_argument("--starts", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--keep", type=Path, default=None, help="a folder in which the peers' errors are kept, and not found again"
    )
    parser.add_argument("--schedule", choices=tuple(SCHEDULES), default="edm")
    parser.add_argument("--budgets", nargs="+", type=int, default=list(BUDGETS), help="evaluations")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), metavar="NAME", help="the peers; left out: all")
    parser.add_argument("--all", action="store_true", help="print every peer on every grid")
    options = parser.parse_args()
    if options.run is not None:
        on_a_network(options)
        return
    jax.config.update("jax_enable_x64", True)
    worlds, rows = dict(WORLDS), {}
    if options.pictures is not None:
        data = idx_folder(options.pictures)
        worlds = {f"pictures of {data.name}, {data.train[0].size}-D": functools.partial(pixels, data=data)}
    for name, make in worlds.items():
        if options.worlds and name.split()[0] not in options.worlds:
            continue
        world = make(options.seed)
        key = jax.random.key(options.seed)
        x = SIGMA_MAX * jax.random.normal(key, (options.starts, world.size), jnp.float64)
        points = draw(world, 4000, options.seed) if len(world.weights) < 1000 else world.means
        rows[name] = compared(name, functools.partial(denoise, world), points, x, 1000, options)
    for label in ("as it comes", "Gaussian control"):
        summary(label, options.budgets, {name: row[label] for name, row in rows.items()})


def summary(label: str, budgets: Sequence[int], rows: dict[str, np.ndarray]) -> None:
    """Prints the geometric means over mixtures and over digits, and the worst ratio of all."""
    judged, said = np.isin(budgets, JUDGED), []
    for kind, what in ((False, "mixtures"), (True, "pictures")) if judged.any() else ():
        logs = [np.log(row[0, judged]) for name, row in rows.items() if name.startswith(("digits", "pictures")) == kind]
        said += [f"{what} {np.exp(np.mean(logs)):.3f}"] if logs else []
    counts = ", ".join(str(n) for n in budgets if n in JUDGED)
    print(f"\n{label}" + (f": geometric mean at {counts} evaluations: {', '.join(said)}" if said else ""))
    for i, what in enumerate(("ratio", "5th percentile")):
        worst = max((ratio, name, n) for name, row in rows.items() for n, ratio in zip(budgets, row[i], strict=True))
        print(f"  the largest {what}: {worst[0]:.2f} ({worst[1]}, {worst[2]})")


if __name__ == "__main__":
    main()
