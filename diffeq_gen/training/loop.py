"""A run: configuration in, denoiser out; interrupted anywhere and resumed, it ends as if it had not been.

config --> dataset, network, schedule, prediction, weight --> steps --> checkpoints, metrics.jsonl --> Run
"""

import dataclasses
import difflib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from diffeq_gen import importance, losses, predictions, schedules, weights
from diffeq_gen.importance import Histogram
from diffeq_gen.nets import MLP, UNet, field
from diffeq_gen.training.checkpoint import Checkpoints
from diffeq_gen.training.data import Dataset, batches, digits, idx_folder
from diffeq_gen.training.state import State, initial
from diffeq_gen.training.step import Objective, parallel
from diffeq_gen.types import Denoiser, Key, Prediction, Sample, Schedule, require

__all__ = ["PREDICTIONS", "SCHEDULES", "TIMES", "WEIGHTS", "Config", "Run", "fit", "restore"]

SCHEDULES: Mapping[str, Schedule] = {
    "flow": schedules.Flow(),
    "cosine": schedules.Cosine(),
    "iddpm": schedules.IDDPM(),
    "vp": schedules.VP(),
    "subvp": schedules.SubVP(),
    "ve": schedules.VE(),
    "edm": schedules.EDM(),
    "sigmoid": schedules.Sigmoid(),
    "laplace": schedules.Laplace(),
}
PREDICTIONS: Mapping[str, Prediction] = {
    "data": predictions.data,
    "noise": predictions.noise,
    "v": predictions.v,
    "velocity": predictions.velocity,
    "edm": predictions.edm(0.5),
}
WEIGHTS: Mapping[str, weights.LogWeight | None] = {
    "plain": None,
    "elbo": weights.elbo,
    "flow": weights.flow,
    "cosine": weights.cosine,
    "sigmoid": weights.sigmoid(2.0),
    "edm": weights.edm(),
    "logit-normal": weights.logit_normal(),
}
TIMES: Mapping[str, Callable[[], Any]] = {"uniform": tuple, "learnt": importance.Seen.none}
"""What a run knows of its losses before the first: of nothing, times stay uniform."""
EARLIER = {"times": "uniform"}
"""What runs did that were begun before it was a choice."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run is a run of.  `data` is "digits", or a folder with the IDX files of MNIST or Fashion-MNIST.

    Raises: ValueError naming the nearest name, where one is unknown; or where a number is not positive.
    """

    data: str = "digits"
    net: str = "unet"
    channels: tuple[int, ...] = (32, 64)
    schedule: str = "cosine"
    prediction: str = "v"
    weight: str = "plain"
    times: str = "uniform"
    steps: int = 3000
    batch: int = 128
    learning_rate: float = 2e-3
    clip: float = 1.0
    decay: float = 0.995
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        for name, table in (("schedule", SCHEDULES), ("prediction", PREDICTIONS), ("weight", WEIGHTS), ("net", NETS),
                            ("times", TIMES)):  # fmt: skip
            _named(table, getattr(self, name), name)
        for name in ("steps", "batch", "learning_rate", "clip"):
            require(lambda value: value > 0, f"{name} must be positive", **{name: getattr(self, name)})
        require(lambda decay: 0 <= decay < 1, "decay must lie in [0, 1)", decay=self.decay)

    def dataset(self) -> Dataset:
        """The pictures; read_idx says what is wrong with them."""
        return digits() if self.data == "digits" else idx_folder(Path(self.data))

    def objective(self) -> Objective:
        """The loss of this prediction, weight and schedule, at uniform times or, where they are learnt, at those it is told."""
        net, prediction = NETS[self.net](self), PREDICTIONS[self.prediction]
        schedule, weight = SCHEDULES[self.schedule], WEIGHTS[self.weight]

        def spent(
            key: Key, params: Any, x0: Sample, indices: jax.Array, total: int, density: Histogram | None = None
        ) -> Any:
            times, values = losses.each(
                key, field(net, params, schedule), schedule, x0, prediction=prediction, weight=weight, indices=indices,
                total=total, density=density,
            )  # fmt: skip
            mean = losses.averaged(times, values, density=density)
            return mean if density is None else (mean, (times, values))

        return spent

    def dequantisation(self, step: int) -> Key:
        """The key of the uniform noise that the pictures of a step are given: it follows from seed and step alone."""
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(self.seed), 2), step)

    def optimizer(self) -> optax.GradientTransformation:
        """Adam with clipped gradients; the rate rises over 5 % of the run and falls to zero as a cosine."""
        warmup = max(1, self.steps // 20)
        rate = optax.warmup_cosine_decay_schedule(0.0, self.learning_rate, warmup, max(self.steps, warmup + 1))
        return optax.chain(optax.clip_by_global_norm(self.clip), optax.adam(rate, b2=0.99))

    def start(self, shape: tuple[int, ...]) -> State:
        """The state before the first step, for pictures of this shape."""
        return jax.jit(self._start, static_argnums=0)(shape)

    def _start(self, shape: tuple[int, ...]) -> State:
        key, net_key = jax.random.split(jax.random.key(self.seed))
        params = NETS[self.net](self).init(net_key, jnp.zeros((1, *shape)), jnp.zeros(()))
        return initial(key, params, self.optimizer(), seen=TIMES[self.times]())

    def shapes(self, shape: tuple[int, ...]) -> State:
        """The state's structure without its numbers: nothing is drawn, nothing compiled."""
        return jax.eval_shape(lambda: self._start(shape))


NETS: Mapping[str, Callable[[Config], Any]] = {
    "unet": lambda config: UNet(channels=config.channels),
    "mlp": lambda config: MLP(width=config.channels[-1] * 4, ndim=3),
}


class Run(NamedTuple):
    """A trained (or half-trained) model, with what is needed to sample it and to judge it."""

    config: Config
    dataset: Dataset
    state: State

    @property
    def schedule(self) -> Schedule:
        """The schedule it was trained with; by log-SNR, any other will do."""
        return SCHEDULES[self.config.schedule]

    @property
    def denoise(self) -> Denoiser:
        """(z, t) -> E[x0 | z] by the averaged parameters, for pictures with any leading axes."""
        network = field(NETS[self.config.net](self.config), self.state.ema, self.schedule)
        return predictions.denoiser(network, self.schedule, PREDICTIONS[self.config.prediction])


def fit(
    config: Config, folder: Path, *, resume: bool = False, save_every: int = 1000, log_every: int = 50,
    report: Callable[[int, dict[str, float]], None] = lambda step, metrics: None, stop_at: int | None = None,
) -> Run:  # fmt: skip
    """Trains into `folder`: checkpoints, config.json, and a line of metrics.jsonl every `log_every` steps.

    The pictures are dequantised anew at every step: a model of levels alone gives no density to what lies between them.
    With `resume` it goes on from the newest checkpoint and ends bitwise where an uninterrupted run would.  `stop_at` ends
    it early, as an interruption would, with a checkpoint.
    Raises: ValueError where the folder holds another run, or a run and resume is not asked for; FloatingPointError naming
    the step where loss or gradient are not finite.
    """
    dataset = config.dataset()
    devices = math.gcd(config.batch, len(jax.local_devices()))
    step = parallel(config.objective(), config.optimizer(), decay=config.decay, devices=jax.local_devices()[:devices])
    with Checkpoints(folder, _plain(config), defaults=EARLIER) as checkpoints:
        found = checkpoints.latest(config.shapes(dataset.train.shape[1:]))
        if found is not None and not resume:
            raise ValueError(f"{folder} holds a run at step {int(found.step)}: resume it, or choose another folder")
        state = found if found is not None else config.start(dataset.train.shape[1:])
        first, last = int(state.step), min(config.steps, stop_at or config.steps)
        log = folder / "metrics.jsonl"
        _truncate(log, first)
        order = batches(dataset.train, config.batch, seed=config.seed, start=first)
        for i in range(first, last):
            state, metrics = step(state, dataset.dequantised(config.dequantisation(i), next(order)))
            if (i + 1) % log_every == 0 or i + 1 == last:
                numbers = {name: float(value) for name, value in metrics.items()}
                if not numbers.pop("finite"):
                    raise FloatingPointError(
                        f"loss {numbers['loss']}, gradient norm {numbers['gradient_norm']} by step {i + 1}"
                    )
                with log.open("a") as lines:
                    lines.write(json.dumps({"step": i + 1, **numbers}) + "\n")
                report(i + 1, numbers)
            if (i + 1) % save_every == 0 and i + 1 < last:
                checkpoints.save(state)
        checkpoints.save(state)
    return Run(config, dataset, state)


def restore(folder: Path) -> Run:
    """The run in a folder, at its newest checkpoint.

    Raises: FileNotFoundError where there is none; ValueError where it is damaged.
    """
    path = folder / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"no run in {folder}: it has no config.json")
    try:
        config = Config(**json.loads(path.read_text()))
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    dataset = config.dataset()
    with Checkpoints(folder, _plain(config), defaults=EARLIER) as checkpoints:
        state = checkpoints.latest(config.shapes(dataset.train.shape[1:]))
    if state is None:
        raise FileNotFoundError(f"no checkpoint in {folder}")
    return Run(config, dataset, state)


def _plain(config: Config) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _truncate(log: Path, step: int) -> None:
    """Drops the lines beyond the step from which the run goes on."""
    if log.exists():
        kept = [line for line in log.read_text().splitlines(keepends=True) if json.loads(line)["step"] <= step]
        draft = log.with_suffix(".part")
        draft.write_text("".join(kept))
        draft.replace(log)


def _named(table: Mapping[str, Any], name: str, what: str) -> Any:
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1, cutoff=0.0)
        raise ValueError(f"no {what} is named {name!r}; did you mean {near[0]!r}?")
    return table[name]
