"""How much the training loss of a network varies: at uniform times, at times of a learnt density, under a learnt schedule.

    python -m benchmarks.importance RUN [--draws 65536] [--batch 128] [--seed 0]

RUN is a folder that `diffeq-gen train` left, of which its network, its data and its schedule are read.  Each row is a weight of the
loss, each number the variance of the mean over a batch, at times that are drawn one by one or stratified, over that of uniform times
of the same kind; draws that a density or a schedule is judged by are others than those that it was learnt from.
"""

import argparse
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffeq_gen import importance, losses, schedules, training, weights
from diffeq_gen.importance import Histogram, Seen
from diffeq_gen.nets import field
from diffeq_gen.training.loop import NETS, PREDICTIONS, Run
from diffeq_gen.types import Field, Key, Sample, Schedule

WEIGHTS = {
    "ELBO": weights.elbo,
    "sigmoid, bias 2": weights.sigmoid(2.0),
    "flow matching": weights.flow,
    "eps-MSE, cosine": weights.cosine,
    "EDM": weights.edm(),
}
TARGET = 0.5


def networks(run: Run) -> Callable[[Schedule], Field]:
    """Schedule -> what the averaged network of the run says under it."""
    return functools.partial(field, NETS[run.config.net](run.config), run.state.ema)


def drawn(key: Key, ask: Callable[[Key, Sample], jax.Array], points: Sample, batch: int, draws: int) -> np.ndarray:
    """What `ask` says of batches of pictures, `draws` of them in all: shape (batches, ...)."""

    @jax.jit
    def one(key: Key) -> jax.Array:
        pick, own = jax.random.split(key)
        return ask(own, points[jax.random.randint(pick, (batch,), 0, len(points))])

    return np.stack([np.asarray(one(each), np.float64) for each in jax.random.split(key, draws // batch)])


def alone(key: Key, network: Field, schedule: Schedule, x0: Sample, **options: object) -> tuple[jax.Array, jax.Array]:
    """`losses.each` of pictures that do not share the uniform number of their times."""

    def one(key: Key, x0: Sample) -> tuple[jax.Array, jax.Array]:
        return losses.each(key, network, schedule, x0[None], **options)

    return jax.tree.map(lambda leaf: leaf[:, 0], jax.vmap(one)(jax.random.split(key, len(x0)), x0))


def judged(ask: Callable, network: Field, schedule: Schedule, density: Histogram | None, **options: object) -> Callable:
    """(key, x0) -> losses of a batch, each divided by the density of its time."""

    def values(key: Key, x0: Sample) -> jax.Array:
        times, spent = ask(key, network, schedule, x0, density=density, **options)
        return spent if density is None else spent * jnp.exp(-density.log_density(times))

    return values


def seen_by(key: Key, network: Field, run: Run, points: Sample, draws: int, batch: int, **options: object) -> Seen:
    """Losses at uniform times."""
    ask = lambda key, x0: jnp.stack(losses.each(key, network, run.schedule, x0, **options))  # noqa: E731
    times, spent = np.moveaxis(drawn(key, ask, points, batch, draws), 1, 0).reshape(2, -1)
    return Seen.none().noted(jnp.asarray(times, jnp.float32), jnp.asarray(spent, jnp.float32))


def learnt_schedule(key: Key, run: Run, points: Sample, batch: int, steps: int, **options: object) -> Schedule:
    """A monotone network like the run's schedule, whose heights Adam teaches to make the loss vary least."""
    start, ask = schedules.Monotone.like(run.schedule, ends=importance.ENDS), networks(run)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, steps))
    state = optimizer.init(start.heights)
    way = lambda heights: dataclasses.replace(start, heights=heights)  # noqa: E731

    @jax.jit
    def step(key: Key, heights: jax.Array, state: object) -> tuple[jax.Array, object]:
        pick, own = jax.random.split(key)
        x0 = points[jax.random.randint(pick, (batch,), 0, len(points))]
        slope = jax.grad(lambda heights: losses.squared_loss(own, ask, way(heights), x0, **options))(heights)
        change, state = optimizer.update(slope, state)
        return optax.apply_updates(heights, change), state

    heights = start.heights
    with jax.numpy_dtype_promotion("standard"):
        for one in jax.random.split(key, steps):
            heights, state = step(one, heights, state)
    return way(heights)


def main() -> None:
    """A row for each weight."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--draws", type=int, default=65536)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=500, help="updates of the learnt schedule")
    parser.add_argument("--weights", nargs="+", default=list(WEIGHTS), metavar="NAME")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    run = training.restore(options.run)
    ask, keys = networks(run), jax.random.split(jax.random.key(options.seed), 4)
    points = run.dataset.dequantised(keys[0], run.dataset.train)
    print(
        f"{run.dataset.name}, {int(run.state.step)} updates; variances over that of uniform times drawn one by one, target {TARGET}"
    )
    print(f"  {'':16} {'one by one':>28}   {'stratified':>28}")
    print(f"  {'weight':16} {'density':>18} {'schedule':>9}   {'uniform':>9} {'density':>9} {'schedule':>9}   means")
    for name in options.weights:
        settings = {"prediction": PREDICTIONS[run.config.prediction], "weight": WEIGHTS[name]}
        seen = seen_by(keys[1], ask(run.schedule), run, points, options.draws, options.batch, **settings)
        schedule = learnt_schedule(keys[2], run, points, 4 * options.batch, options.steps, **settings)
        rows = [(alone, run.schedule, None), (alone, run.schedule, seen.density()), (alone, schedule, None),
                (losses.each, run.schedule, None), (losses.each, run.schedule, seen.density(stratified=True)),
                (losses.each, schedule, None)]  # fmt: skip
        found = [drawn(keys[3], judged(each, ask(way), way, density, **settings), points, options.batch, options.draws)
                 for each, way, density in rows]  # fmt: skip
        variances = [each.var() for each in found[:3]] + [options.batch * each.mean(axis=1).var() for each in found[3:]]
        over = [one / variances[0] for one in variances[1:]]
        print(f"  {name:16} {over[0]:18.3f} {over[1]:9.3f}   {over[2]:9.3f} {over[3]:9.3f} {over[4]:9.3f}  "
              f" {' '.join(f'{each.mean():.4g}' for each in found)}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
