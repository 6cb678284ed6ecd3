"""The empirical world at the size of CIFAR-10: 50,000 points in 3,072 dimensions, 586 MiB of float32.

    python -m benchmarks.exact_memory [--points 50000] [--dim 3072] [--batch 16]

Prints a line per verb: seconds for one z and for a batch under `vmap` (compiled before), and how far the peak of the
resident memory stands above what it was with the points in place.
"""

import argparse
import resource
import time

import jax
import jax.numpy as jnp

from diffeq_gen import exact, schedules
from diffeq_gen.types import Point

MIB = 2**20


def peak() -> float:
    """The largest resident memory so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def grad_log_prob(world: exact.Empirical, z: jax.Array, p: Point) -> jax.Array:
    """The score again, by reverse-mode differentiation through the blocks."""
    return jax.grad(lambda z: exact.log_prob(world, z, p))(z)


def main() -> None:
    """Draws the points, then measures every verb."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=3_072)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()

    def fill(i: jax.Array, points: jax.Array) -> jax.Array:
        row = jax.random.normal(jax.random.fold_in(jax.random.key(0), i), (1, options.dim))
        return jax.lax.dynamic_update_slice_in_dim(points, row, i, 0)

    empty = jnp.zeros((options.points, options.dim))
    points = jax.jit(lambda empty: jax.lax.fori_loop(0, options.points, fill, empty), donate_argnums=0)(empty)
    world, p = exact.Empirical(jax.block_until_ready(points)), schedules.at(schedules.Cosine(), 0.1)
    eps = jax.random.normal(jax.random.key(1), (options.batch, options.dim))
    zs = p.alpha * points[: options.batch] + p.sigma * eps
    base = peak()
    print(f"points {points.nbytes / MIB:.0f} MiB, resident {base:.0f} MiB before the first verb")
    for verb in (exact.denoise, exact.log_prob, exact.divergence, grad_log_prob):
        one, many = jax.jit(verb), jax.jit(jax.vmap(verb, (None, 0, None)))
        seconds = []
        for run, z in ((one, zs[0]), (many, zs)):
            jax.block_until_ready(run(world, z, p))
            start = time.perf_counter()
            jax.block_until_ready(run(world, z, p))
            seconds.append(time.perf_counter() - start)
        print(f"{verb.__name__:14s} one z {seconds[0]:6.2f} s   {options.batch} z {seconds[1]:6.2f} s   "
              f"peak +{peak() - base:.0f} MiB")  # fmt: skip


if __name__ == "__main__":
    main()
