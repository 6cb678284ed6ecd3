"""What `training.parallel` costs beside the bare step under `jax.jit`, on one device and on several virtual ones.

    python -m benchmarks.training [--pairs 30] [--batch 128] [--devices 1 2 4 8]

Same objective (a small U-Net on 8 x 8 pictures), same optimizer, same state, carried from step to step as in a run.  One
device answers what the mapping costs.  N virtual devices on fewer cores answer only what division costs, for they share the
cores that one device has to itself; each N runs in an interpreter of its own, beside the same bare step.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

TARGET = 1.03


def measure(pairs: int, batch: int) -> None:
    """The comparison in this process, on all its devices."""
    import jax
    import optax

    from benchmarks.pairs import compare, head, line
    from diffeq_gen import losses, predictions, schedules
    from diffeq_gen.nets import UNet, field
    from diffeq_gen.training import initial, parallel, update

    net, schedule = UNet(channels=(32, 64)), schedules.Cosine()

    def objective(key: Any, params: Any, x0: jax.Array, indices: jax.Array, total: int) -> jax.Array:
        return losses.loss(key, field(net, params, schedule), schedule, x0, prediction=predictions.v,
                           indices=indices, total=total)  # fmt: skip

    optimizer = optax.adam(1e-3)
    x0 = jax.random.normal(jax.random.key(0), (batch, 8, 8, 1))
    params = net.init(jax.random.key(1), x0, jax.numpy.zeros(()))

    def carried(step: Callable) -> Callable[[], Any]:
        state = initial(jax.random.key(2), params, optimizer)

        def turn() -> Any:
            nonlocal state
            state, metrics = step(state, x0)
            return metrics

        return turn

    count = jax.device_count()
    bare = carried(jax.jit(update(objective, optimizer)))
    mapped = carried(parallel(objective, optimizer))
    name = f"{count} device{'s' if count > 1 else ''}, batch {batch}"
    head("training step", ("parallel", "bare jit"), TARGET if count == 1 else None)
    line(name, compare(mapped, bare, pairs=pairs))


def main() -> None:
    """One interpreter for each number of devices, which is fixed when jax starts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--here", action="store_true", help="measure in this process, on the devices that it has")
    options = parser.parse_args()
    if options.here:
        measure(options.pairs, options.batch)
        return
    for count in options.devices:
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
        subprocess.run(
            [sys.executable, "-m", "benchmarks.training", "--here", "--pairs", str(options.pairs), "--batch", str(options.batch)],
            env={**os.environ, "XLA_FLAGS": flags.strip()}, check=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
