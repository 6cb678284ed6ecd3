"""What a step of a high-order solver costs beside the evaluations of the network, compiled; and what it remembers.

    python -m benchmarks.solvers.overhead [--pairs 15] [--evaluations 48]

The other side of a ratio is a `lax.scan` written by hand that evaluates the same network as often, at the same times, and does
two multiplications from a table after each.  The rows without a network are not meant for the target: their difference over
the number of evaluations is what the solver adds to one.  The last table is the memory that XLA lays out for a run beside its
arguments and its result, at 10 and at 1000 steps.
"""

import argparse
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.pairs import compare, head, line
from benchmarks.samplers import NETWORKS, by_hand, network
from diffeq_gen import clocks, samplers, schedules
from diffeq_gen.types import Denoiser, Sampler, Schedule

TARGET = 1.02

Build = Callable[[Denoiser, Schedule], Sampler]

METHODS: dict[str, tuple[Build, int]] = {
    "ddim": (samplers.ddim, 1),
    "multistep 2": (lambda d, s: samplers.multistep(d, s, order=2), 1),
    "multistep 3": (lambda d, s: samplers.multistep(d, s, order=3), 1),
    "unipc 2": (lambda d, s: samplers.unipc(d, s, order=2), 1),
    "unipc 3": (lambda d, s: samplers.unipc(d, s, order=3), 1),
    "lms 4": (lambda d, s: samplers.lms(d, s, order=4), 1),
    "singlestep 2": (lambda d, s: samplers.singlestep(d, s, order=2), 2),
    "singlestep 3": (lambda d, s: samplers.singlestep(d, s, order=3), 3),
}
"""What builds a solver, and its evaluations a step."""


def temporary(sampler: Sampler, z: jax.Array, times: jax.Array) -> int:
    """Bytes of temporary memory of the compiled run."""
    run = jax.jit(lambda key, z, times: samplers.sample(key, sampler, z, times))
    return run.lower(jax.random.key(0), z, times).compile().memory_analysis().temp_size_in_bytes


def main() -> None:
    """Every solver on every network, then the memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--evaluations", type=int, default=48)
    options = parser.parse_args()
    key, schedule = jax.random.key(1), schedules.Cosine()
    grid = lambda n: clocks.uniform_log_snr(schedule, n, log_snr_min=-10.0, log_snr_max=10.0)  # noqa: E731
    every = np.asarray(grid(options.evaluations))
    head(f"solvers, {options.evaluations} evaluations", ("sample", "by hand"), TARGET)
    for name, (net, shape) in NETWORKS.items():
        denoise, z = network(net, shape), jax.random.normal(key, shape)
        scan = by_hand("ddim", denoise, every)
        for method, (build, stages) in METHODS.items():
            sampler, times = build(denoise, schedule), grid(options.evaluations // stages)
            ours = lambda sampler=sampler, z=z, times=times: samplers.sample(key, sampler, z, times)  # noqa: E731
            line(f"{method:12} {name}", compare(ours, lambda z=z, scan=scan: scan(key, z), pairs=options.pairs))
    net, shape = NETWORKS["U-Net 8 x 8, batch 16"]
    denoise, z = network(net, shape), jnp.zeros(shape)
    print(f"  temporary memory, U-Net 8 x 8, batch 16 {'10 steps':>19} {'1000 steps':>14}")
    for method, (build, _) in METHODS.items():
        few, many = (temporary(build(denoise, schedule), z, grid(steps)) for steps in (10, 1000))
        print(f"  {method:32} {few / 1024:21.1f} KiB {many / 1024:10.1f} KiB", flush=True)


if __name__ == "__main__":
    main()
