"""Solvers on a trained network: distance of what they draw to held-out digits, against the evaluations they take.

    diffeq-gen train runs/digits
    python -m benchmarks.solvers.digits runs/digits [--budgets 4 7 13 25 49] [--pictures 297] [--long 1000]

Every solver starts from the same noise, takes steps of equal length in t (as `diffeq-gen sample` does) or in log-SNR (--grid
log-snr), and is denoised at the end, which is one of its evaluations.  `sw` is the sliced Wasserstein distance to held-out
pictures; the first line has that of as many training pictures.  `flow` is how far, root mean square over pixels, a drawing
lies from the one that `multistep` of order 3 makes of the same noise in 150 steps of the same grid.  The second table is that
of the DDIM paper: DDIM and DDPM by their number of steps, and DDPM once with --long.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from diffeq_gen import clocks, samplers, training
from diffeq_gen.training.evaluation import draw, sliced_wasserstein
from diffeq_gen.types import Denoiser, Sampler, Schedule

Build = Callable[[Denoiser, Schedule], Sampler]

METHODS: dict[str, tuple[Build, int]] = {
    "ddim": (samplers.ddim, 1),
    "multistep 2": (lambda d, s: samplers.multistep(d, s, order=2), 1),
    "multistep 3": (lambda d, s: samplers.multistep(d, s, order=3), 1),
    "unipc 2": (lambda d, s: samplers.unipc(d, s, order=2), 1),
    "unipc 3": (lambda d, s: samplers.unipc(d, s, order=3), 1),
    "lms 4": (lambda d, s: samplers.lms(d, s, order=4), 1),
    "edm": (samplers.edm, 2),
    "singlestep 2": (lambda d, s: samplers.singlestep(d, s, order=2), 2),
    "singlestep 3": (lambda d, s: samplers.singlestep(d, s, order=3), 3),
}
"""What builds a solver, and its evaluations a step."""


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
    parser.add_argument("--grid", choices=("t", "log-snr"), default="t", help="along which all steps are equal")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="of the first table")
    options = parser.parse_args()
    run, key = training.restore(options.run), jax.random.key(0)
    data_key, train_key = jax.random.split(jax.random.key(1))
    held_out = run.dataset.dequantised(data_key, run.dataset.held_out)
    train = run.dataset.dequantised(train_key, run.dataset.train)
    shape = (options.pictures, *held_out.shape[1:])

    def drawn(build: Build, steps: int) -> np.ndarray:
        made = build(run.denoise, run.schedule)
        if options.grid == "t":
            return np.asarray(draw(key, run.denoise, run.schedule, shape, steps=steps, sampler=made), np.float64)
        ends = {"log_snr_min": -12.0, "log_snr_max": 12.0}  # those of `draw`, and its noise
        times = clocks.uniform_log_snr(run.schedule, steps, **ends).astype(jnp.float32)
        start_key, run_key = jax.random.split(key)
        z = jax.random.normal(start_key, shape) * jnp.hypot(*run.schedule(times[0]))
        return np.asarray(run.denoise(samplers.sample(run_key, made, z, times), times[-1]), np.float64)

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
        (build, stages), cells = METHODS[name], []
        for budget in budgets:
            pictures = drawn(build, (budget - 1) // stages)
            cells.append(f"{distance(pictures):8.4f}{np.sqrt(np.mean((pictures - flow) ** 2)):8.4f}")
        print(f"  {name:14}" + "".join(cells), flush=True)


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
