"""What a step of a high-order solver costs beside the evaluations of the network, compiled; and what it remembers.

    python -m benchmarks.solvers.overhead [--pairs 15] [--evaluations 48] [--only time | --only counts] [--network U-Net] [--batch 16]
                                          [--methods ddim "UniPC-2" controlled] [--cpu]

The other side of a ratio is a `lax.scan` written by hand that evaluates the same network as often, at the same times, and does
two multiplications from a table after each.  The rows without a network are not meant for the target: their difference over
the number of evaluations is what the solver adds to one.  Counts do not depend on what else the machine does: XLA's own of the
arithmetic and of the bytes moved by a step, over those of the bare scan's step times the evaluations; and of the memory that it
lays out for a run beside its arguments and its result, at 10 and at 1000 steps.
"""

import argparse
import functools
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.pairs import compare, head, line
from benchmarks.samplers import NETWORKS, by_hand, network
from benchmarks.solvers.methods import METHODS, Method
from diffeq_gen import clocks, samplers, schedules
from diffeq_gen.nets import MLP, UNet
from diffeq_gen.types import Denoiser, Schedule

TARGET = 1.02


def counted(run: Callable[..., jax.Array], *arguments: jax.Array) -> tuple[float, float, int]:
    """(operations, bytes moved, bytes of temporary memory) of the compiled program; the body of a loop counts once."""
    compiled = jax.jit(run).lower(*arguments).compile()
    cost = compiled.cost_analysis()
    return cost["flops"], cost["bytes accessed"], compiled.memory_analysis().temp_size_in_bytes


def bare(denoise: Denoiser, z: jax.Array, times: jax.Array) -> jax.Array:
    """The scan that evaluates, and multiplies twice."""
    return jax.lax.scan(lambda z, t: (0.5 * z + 0.25 * denoise(z, t), None), z, times[:-1])[0]


def solvers(shape: tuple[int, ...], names: Sequence[str]) -> dict[str, Method]:
    """Those of `methods` that are named, and `controlled` by the moments of points of this shape, in a basis of its own."""
    control = samplers.control_of(jax.random.normal(jax.random.key(2), (256, *shape[1:])), mixture=False)
    every = {**METHODS, "controlled": Method(functools.partial(samplers.controlled, control=control))}
    return {name: every[name] for name in names}


def networks(part: str, batch: int | None) -> dict[str, tuple[UNet | MLP | None, tuple[int, ...]]]:
    """Those whose name holds this part, with a batch of their own unless one is given."""
    named = {name: found for name, found in NETWORKS.items() if part in name}
    if batch is None:
        return named
    return {f"{name.split(',')[0]}, batch {batch}": (net, (batch, *shape[1:])) for name, (net, shape) in named.items()}


def seconds(
    schedule: Schedule, pairs: int, evaluations: int, asked: dict, names: Sequence[str], clock: Callable[[], float]
) -> None:  # fmt: skip
    """The table of ratios."""
    key, every = jax.random.key(1), np.asarray(grid(schedule, evaluations))
    head(f"solvers, {evaluations} evaluations", ("sample", "by hand"), TARGET)
    for name, (net, shape) in asked.items():
        denoise, z = network(net, shape), jax.random.normal(key, shape)
        scan = by_hand("ddim", denoise, every)
        for label, method in solvers(shape, names).items():
            sampler, times = method.build(denoise, schedule), grid(schedule, method.steps(evaluations))
            ours = lambda sampler=sampler, z=z, times=times: samplers.sample(key, sampler, z, times)  # noqa: E731
            found = compare(ours, lambda z=z, scan=scan: scan(key, z), pairs=pairs, clock=clock)
            line(f"{label:25} {name.split(',')[0]}", found)


def counts(schedule: Schedule, asked: dict, names: Sequence[str]) -> None:
    """The tables of what XLA counts: the body of the loop alone, so nothing of a first step that is another one."""
    few, many = grid(schedule, 10), grid(schedule, 1000)
    for name, (net, shape) in asked.items():
        if net is None:
            continue
        denoise, z = network(net, shape), jnp.zeros(shape)
        operations, moved, held = counted(lambda z, times, denoise=denoise: bare(denoise, z, times), z, few)
        print(f"  {name:26} {'operations':>10} {'bytes':>8}   memory, 10 steps   1000 steps"
              f"   (bare scan {held / 1024:.1f} KiB)")  # fmt: skip
        for label, method in solvers(shape, names).items():
            sampler = method.build(denoise, schedule)
            run = lambda z, times, sampler=sampler: samplers.sample(jax.random.key(0), sampler, z, times)  # noqa: E731
            here, more = counted(run, z, few), counted(run, z, many)
            print(f"  {label:26} {here[0] / operations / method.each:10.5f} {here[1] / moved / method.each:8.4f}"
                  f" {here[2] / 1024:13.1f} KiB {more[2] / 1024:8.1f} KiB", flush=True)  # fmt: skip


def grid(schedule: Schedule, steps: int) -> jax.Array:
    """Steps of equal length in log-SNR."""
    return clocks.uniform_log_snr(schedule, steps, log_snr_min=-10.0, log_snr_max=10.0)


def main() -> None:
    """Every solver on every network: seconds, then counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--evaluations", type=int, default=48)
    parser.add_argument("--only", choices=("time", "counts"))
    parser.add_argument("--network", default="", help="those networks alone whose name holds this")
    parser.add_argument("--batch", type=int, help="samples at once; left out: as the networks' names say")
    parser.add_argument("--methods", nargs="+", default=[*METHODS, "controlled"], metavar="NAME")
    parser.add_argument(
        "--cpu", action="store_true", help="seconds of the process on its cores, not of the clock on the wall"
    )
    options = parser.parse_args()
    clock = time.process_time if options.cpu else time.perf_counter
    schedule, asked = schedules.Cosine(), networks(options.network, options.batch)
    if options.only != "counts":
        seconds(schedule, options.pairs, options.evaluations, asked, options.methods, clock)
    if options.only != "time":
        counts(schedule, asked, options.methods)


if __name__ == "__main__":
    main()
