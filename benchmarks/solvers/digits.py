"""Solvers on a trained network: distance of what they draw to held-out digits, against the evaluations they take.

    diffeq-gen train runs/digits
    python -m benchmarks.solvers.digits runs/digits [--budgets 4 7 13 25 49] [--pictures 297] [--long 1000]

Every solver starts from the same noise, takes steps of equal length in t or in log-SNR (--grid log-snr), and is
denoised at the end, which is one of its evaluations.  `sw` is the sliced Wasserstein distance to held-out
pictures; the first line has that of as many training pictures.  `flow` is how far, root mean square over pixels, a drawing
lies from the one that `multistep` of order 3 makes of the same noise in 150 steps of the same grid.  The second table is that
of the DDIM paper: DDIM and DDPM by their number of steps, and DDPM once with --long.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from benchmarks.solvers.methods import METHODS, Build
from diffeq_gen import samplers, training
from diffeq_gen.schedules import Flow
from diffeq_gen.training.evaluation import draw, sliced_wasserstein

USUAL = (
    "ddim",
    "data 2",
    "DPM-Solver++ 3M",
    "UniPC-1",
    "UniPC-2",
    "UniPC-3",
    "LMS-4, DEIS",
    "DPM-Solver++ 2S",
    "DPM-Solver++ 3S",
    "Heun (EDM)",
)

Drawn = Callable[[Build, int], np.ndarray]
"""(what builds a solver, its steps) -> what it draws."""


def main() -> None:
    """Both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a folder that diffeq-gen train left")
    parser.add_argument("--budgets", type=int, nargs="+", default=[4, 7, 13, 25, 49])
    parser.add_argument("--long", type=int, default=1000, help="steps of the last DDPM")
    parser.add_argument("--pictures", type=int, default=297)
    parser.add_argument("--only", choices=("solvers", "steps"), help="one of the two tables")
    parser.add_argument("--grid", choices=("time", "log-snr"), default="time", help="along which all steps are equal")
    parser.add_argument("--methods", nargs="+", default=list(USUAL), metavar="NAME", help="of the first table")
    options = parser.parse_args()
    run, key = training.restore(options.run), jax.random.key(0)
    data_key, train_key = jax.random.split(jax.random.key(1))
    held_out = run.dataset.dequantised(data_key, run.dataset.held_out)
    train = run.dataset.dequantised(train_key, run.dataset.train)
    shape = (options.pictures, *held_out.shape[1:])

    def drawn(build: Build, steps: int) -> np.ndarray:
        made = build(run.denoise, run.schedule)
        pictures = draw(key, run.denoise, run.schedule, shape, steps=steps, sampler=made, grid=options.grid)
        return np.asarray(pictures, np.float64)

    def distance(pictures: np.ndarray) -> float:
        return sliced_wasserstein(pictures, held_out)

    floor = [sliced_wasserstein(train[i : i + options.pictures], held_out) for i in range(0, 1200, options.pictures)]
    print(f"step {int(run.state.step)}, {options.pictures} pictures; sw of training pictures {np.mean(floor):.4f}")
    if options.only != "steps":
        against_evaluations(drawn, distance, options.budgets, options.methods)
    if options.only != "solvers":
        against_steps(drawn, distance, options.long)


def against_evaluations(
    drawn: Drawn, distance: Callable[[np.ndarray], float], budgets: list[int], methods: list[str]
) -> None:
    """Every solver by its evaluations: sw, and how far from the flow."""
    flow = drawn(lambda d, s: samplers.multistep(d, s, order=3), 150)
    print(f"  sw of the flow {distance(flow):.4f}")
    print(f"  {'evaluations':14}" + "".join(f"{budget:>16}" for budget in budgets))
    print(f"  {'':14}" + "      sw    flow" * len(budgets), flush=True)
    for name in methods:
        method, cells = METHODS[name], []
        fewest = method.build(lambda z, t: z, Flow()).fewest
        for budget in budgets:
            steps = method.steps(budget - 1)
            if steps < fewest:
                cells.append(" " * 16)
                continue
            pictures = drawn(method.build, steps)
            cells.append(f"{distance(pictures):8.4f}{np.sqrt(np.mean((pictures - flow) ** 2)):8.4f}")
        print(f"  {name:16}" + "".join(cells), flush=True)


def against_steps(drawn: Drawn, distance: Callable[[np.ndarray], float], long: int) -> None:
    """DDIM and DDPM by their steps: sw."""
    steps = (10, 20, 50)
    print(f"  {'steps':14}" + "".join(f"{n:>9}" for n in (*steps, long)))
    noisy: dict[str, Build] = {
        "ddim, eta 0": samplers.ddim,
        "ddim, eta 1/2": lambda d, s: samplers.ddim(d, s, eta=0.5),
        "ddpm": samplers.ddpm,
    }
    for name, build in noisy.items():
        taken = (*steps, long) if name == "ddpm" else steps
        print(f"  {name:14}" + "".join(f"{distance(drawn(build, n)):9.4f}" for n in taken), flush=True)


if __name__ == "__main__":
    main()
