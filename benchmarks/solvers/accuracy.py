"""How far solvers of the probability flow end from its solution, on worlds whose denoiser is known, for the same evaluations.

    python -m benchmarks.solvers.accuracy [--worlds digits spiral ...] [--starts 256] [--json FILE]

From z ~ N(0, 80^2 I) to sigma = 0.002 at alpha = 1, in float64; error: the rms over starts and dimensions against 1,000 steps
of the classical Runge-Kutta rule in log sigma.  Peers: all of this library, each on the best of three grids (uniform in log-SNR,
Karras rho = 7, uniform in flow time), the best of them all at each number of evaluations.  `controlled` is run as it comes:
`control_of` 4,000 draws of the world (of the digits: the thousand that the world is made of), `jump`, `control_times`.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.solvers.worlds import WORLDS, World, denoise, draw
from diffeq_gen import clocks, samplers, schedules
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


def solution(world: World, z: jax.Array, steps: int = 1000) -> jax.Array:
    """The end of the probability flow, by the classical Runge-Kutta rule in log sigma."""
    logs = jnp.linspace(jnp.log(SCHEDULE.sigma_max), jnp.log(SCHEDULE.sigma_min), steps + 1)
    slope = lambda z, log: z - denoise(world, z, jnp.exp(log))  # noqa: E731

    def body(z: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        log, h = pair[0], pair[1] - pair[0]
        a = slope(z, log)
        b = slope(z + h / 2 * a, log + h / 2)
        c = slope(z + h / 2 * b, log + h / 2)
        d = slope(z + h * c, log + h)
        return z + h / 6 * (a + 2 * b + 2 * c + d), None

    return jax.jit(lambda z: jax.lax.scan(body, z, (logs[:-1], logs[1:]))[0])(z)


def errors(sampler: Sampler, starts: jax.Array, times: list[jax.Array], end: jax.Array) -> np.ndarray:
    """The rms error on each grid of times, all in one compilation: a step of no length is passed over."""
    longest = max(map(len, times))
    table = jnp.stack([jnp.concatenate([row, jnp.full(longest - len(row), row[-1])]) for row in times])

    def run(start: jax.Array, row: jax.Array) -> jax.Array:
        def body(carry: tuple, pair: tuple[jax.Array, jax.Array]) -> tuple[tuple, None]:
            moved = sampler.step(start[:0], carry[1], carry[0], *pair)
            return jax.tree.map(lambda new, old: jnp.where(pair[0] == pair[1], old, new), moved, carry), None

        (last, _), _ = jax.lax.scan(body, (start, sampler.init(start)), (row[:-1], row[1:]))
        return jnp.sqrt(jnp.mean((last - end) ** 2))

    return np.asarray(jax.jit(lambda pair: jax.lax.map(lambda pair: run(*pair), pair))((starts, table)))


def best_peers(world: World, z: jax.Array, end: jax.Array) -> dict[int, tuple[float, str]]:
    """The smallest error at each budget, and whose it is."""
    best: dict[int, tuple[float, str]] = {budget: (np.inf, "") for budget in BUDGETS}
    for name, (factory, options, each) in PEERS.items():
        cases = [(n, grid, times) for n in BUDGETS for grid, times in grids(n // each).items() if n >= each]
        starts = jnp.broadcast_to(z, (len(cases), *z.shape))
        found = errors(factory(known(world), SCHEDULE, **options), starts, [case[2] for case in cases], end)
        for (n, grid, _), error in zip(cases, found, strict=True):
            best[n] = min(best[n], (float(error), f"{name}, {grid}")) if np.isfinite(error) else best[n]
    return best


def ours(world: World, points: np.ndarray, z: jax.Array, end: jax.Array, mixture: bool) -> tuple[int, np.ndarray]:
    """(components of the control, its errors at the budgets)."""
    made = samplers.control_of(jnp.asarray(points), mixture=mixture)
    times = [samplers.control_times(made, SCHEDULE, n) for n in BUDGETS]
    jumps = jax.jit(lambda z, s: samplers.jump(made, SCHEDULE, z, 1.0, s))
    starts = jnp.stack([jumps(z, row[0]) for row in times])
    sampler = samplers.controlled(known(world), SCHEDULE, made)
    return 1 if made.known is None else len(made.known.weights), errors(sampler, starts, times, end)


def main() -> None:
    """Prints a row for each world, its peers and both controls; then geometric means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="*", default=[], help="the first words of their names; left out: all")
    parser.add_argument("--starts", type=int, default=256)
    parser.add_argument(
        "--json",
        type=Path,
        default=None,
        help="the peers' results are kept here, and not found again",
    )
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    kept = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    ratios: dict[str, dict[str, np.ndarray]] = {"as it comes": {}, "Gaussian control": {}}
    for name, make in WORLDS.items():
        if options.worlds and name.split()[0] not in options.worlds:
            continue
        world = make()
        z = SCHEDULE.sigma_max * jax.random.normal(jax.random.key(7), (options.starts, world.size), jnp.float64)
        end = solution(world, z)
        if name not in kept:
            kept[name] = best_peers(world, z, end)
            if options.json:
                options.json.write_text(json.dumps(kept))
        best = {int(n): tuple(value) for n, value in kept[name].items()}
        points = draw(world, 4000, 11) if len(world.weights) < 1000 else world.means
        print(f"\n{name}: best peer " + "  ".join(f"{n}: {best[n][0]:.3g} ({best[n][1]})" for n in BUDGETS))
        for label, mixture in (("as it comes", True), ("Gaussian control", False)):
            k, found = ours(world, points, z, end, mixture)
            ratios[label][name] = found / np.array([best[n][0] for n in BUDGETS])
            row = "  ".join(f"{n}: {ratio:.2f}" for n, ratio in zip(BUDGETS, ratios[label][name], strict=True))
            print(f"  {label} (components: {k}), error over the best peer's  {row}", flush=True)
    for label, rows in ratios.items():
        judged = np.isin(BUDGETS, JUDGED)
        means = {
            kind: [np.log(row[judged]) for name, row in rows.items() if ("digits" in name) == kind]
            for kind in (False, True)
        }
        said = [
            f"{what} {np.exp(np.mean(means[kind])):.3f}"
            for kind, what in ((False, "mixtures"), (True, "digits"))
            if means[kind]
        ]
        worst = max((ratio, name, n) for name, row in rows.items() for n, ratio in zip(BUDGETS, row, strict=True))
        print(
            f"\n{label}: geometric mean at 5, 6, 8, 10 evaluations: {', '.join(said)}; worst {worst[0]:.2f} ({worst[1]}, {worst[2]})"
        )


if __name__ == "__main__":
    main()
