"""The commands that train, sample, evaluate and draw: each leaves a folder with numbers and pictures.

diffeq-gen train FOLDER [--data digits | --data IDX-FOLDER] [--prediction v] [--weight plain] [--schedule cosine] ...
diffeq-gen sample FOLDER [--sampler ddim] [--steps 50] [-n 64]
diffeq-gen evaluate FOLDER
diffeq-gen plot NAME [--out FILE]
"""

import dataclasses
import difflib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import tyro

from diffeq_gen.types import Denoiser, Sample, Sampler, Schedule

__all__ = ["SAMPLERS", "evaluate", "history", "plot", "progress", "sample", "train", "write_json"]


RUN = Path("run")
SAMPLERS = (
    "ddim", "ddpm", "churn", "exponential", "euler", "heun", "edm", "euler-maruyama", "multistep", "singlestep", "unipc", "lms",
    "multistep-sde", "singlestep-sde", "er-sde", "runge-kutta", "deis", "ipndm", "pndm", "controlled",
)  # fmt: skip
HIGH_ORDER = ("multistep", "singlestep", "unipc", "lms", "multistep-sde", "singlestep-sde", "er-sde")
"""Those that extrapolate along log-SNR, and so are given steps that are equal in it."""


def _samplers() -> Mapping[str, Callable[[Denoiser, Schedule], Sampler]]:
    from diffeq_gen import samplers
    from diffeq_gen.coordinates import STRAIGHT

    return {
        "ddim": samplers.ddim,
        "ddpm": samplers.ddpm,
        "churn": samplers.churn,
        "exponential": samplers.exponential,
        "euler": samplers.euler,
        "heun": samplers.heun,
        "edm": samplers.edm,
        "euler-maruyama": samplers.euler_maruyama,
        "multistep": samplers.multistep,
        "singlestep": samplers.singlestep,
        "unipc": samplers.unipc,
        "lms": samplers.lms,
        "multistep-sde": lambda denoise, schedule: samplers.multistep(denoise, schedule, eta=1.0),
        "singlestep-sde": lambda denoise, schedule: samplers.singlestep(denoise, schedule, eta=1.0),
        "er-sde": samplers.er_sde,
        "runge-kutta": lambda denoise, schedule: samplers.runge_kutta(denoise, schedule, coordinate=STRAIGHT),
        "deis": samplers.deis,
        "ipndm": samplers.ipndm,
        "pndm": samplers.pndm,
    }


def train(
    folder: tyro.conf.Positional[Path] = RUN,
    /,
    *,
    data: str = "digits",
    net: str = "unet",
    channels: tuple[int, ...] = (32, 64),
    schedule: str = "cosine",
    prediction: str = "v",
    weight: str = "plain",
    times: str = "uniform",
    steps: int = 3000,
    batch: int = 128,
    learning_rate: float = 2e-3,
    clip: float = 1.0,
    decay: float = 0.995,
    seed: int = 0,
    save_every: int = 500,
    resume: bool = False,
) -> int:
    """Train a denoiser on pictures, data-parallel over all local devices.

    Args:
        folder: Where the run is kept: checkpoints, config.json, metrics.jsonl, loss.png, samples.png.
        data: "digits" (8 x 8, in scikit-learn's wheel), or a folder with the IDX files of MNIST or Fashion-MNIST.
        net: unet or mlp.
        channels: Width of each resolution, finest first.
        schedule: flow, cosine, iddpm, vp, subvp, ve, edm, sigmoid or laplace.
        prediction: data, noise, v, velocity or edm.
        weight: plain (squared error of the prediction), elbo, flow, cosine, sigmoid, edm or logit-normal.
        times: uniform, or learnt from the losses seen: of a density that makes the loss vary least, by which each is divided.
        steps: Updates.
        batch: Samples of one update, over all devices.
        learning_rate: Peak rate of Adam.
        clip: Largest norm of a gradient.
        decay: Decay of the averaged parameters.
        seed: Of initialisation, noise and order.
        save_every: Steps between checkpoints.
        resume: Go on from the newest checkpoint.
    """
    from diffeq_gen import plots, training

    config = training.Config(
        data=data, net=net, channels=channels, schedule=schedule, prediction=prediction, weight=weight, times=times,
        steps=steps, batch=batch, learning_rate=learning_rate, clip=clip, decay=decay, seed=seed,
    )  # fmt: skip
    with progress("training", steps) as advance:
        run = training.fit(config, folder, resume=resume, save_every=save_every, log_every=10, report=advance)
    steps_seen, losses = history(folder)
    plots.loss_curve(steps_seen, losses).savefig(folder / "loss.png", dpi=110)
    pictures = _draw(run, "ddim", 64, 50, 0)
    plots.samples({"DDIM, 50 steps": pictures}).savefig(folder / "samples.png", dpi=110)
    _say(f"{folder}: {int(run.state.step)} steps, loss {losses[-1]:.4f}; see {folder / 'samples.png'}")
    return 0


def sample(
    folder: tyro.conf.Positional[Path] = RUN,
    /,
    *,
    sampler: str = "ddim",
    steps: int = 50,
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 64,
    seed: int = 0,
    grid: str | None = None,
) -> int:
    """Draw pictures from a trained run into FOLDER/samples-SAMPLER.npy and .png.

    Args:
        folder: The run.
        sampler: ddim, ddpm, churn, exponential, euler, heun, edm, euler-maruyama, multistep, singlestep, unipc, lms, multistep-sde,
            singlestep-sde, er-sde, runge-kutta, deis, ipndm, pndm, or controlled, which reads the training data and is the best
            at few steps.
        steps: Steps of the grid.
        n: Pictures.
        seed: Of the noise.
        grid: Steps equal in time or in log-snr; if left out, log-snr for solvers of high order, time for the others;
            controlled has a grid of its own, and takes no other.
    """
    import numpy as np

    from diffeq_gen import plots, training

    _known(sampler, SAMPLERS, "sampler")
    _positive(steps=steps, n=n)
    run = training.restore(folder)
    pictures = _draw(run, sampler, n, steps, seed, grid)
    with (folder / f"samples-{sampler}.part").open("wb") as draft:
        np.save(draft, pictures, allow_pickle=False)
    (folder / f"samples-{sampler}.part").replace(folder / f"samples-{sampler}.npy")
    plots.samples({f"{sampler}, {steps} steps": pictures[:64]}).savefig(folder / f"samples-{sampler}.png", dpi=110)
    _say(f"{n} pictures in {folder / f'samples-{sampler}.npy'} and .png")
    return 0


def evaluate(
    folder: tyro.conf.Positional[Path] = RUN,
    /,
    *,
    images: int = 297,
    samples: int = 500,
    steps: int = 50,
    ode_steps: int = 16,
    draws: int = 512,
    gaps: int = 0,
    seed: int = 0,
) -> int:  # fmt: skip
    """Held-out bits per dimension by the probability flow, the ELBO and I-MMSE, and distances of samples to data.

    What is told of a difference: its mean is a bias, of the network or of a method; its error is noise, over pictures, of which the
    draws are a part that more of them make smaller.

    Args:
        folder: The run; FOLDER/evaluation.json and evaluation.png are written.
        images: Held-out pictures.
        samples: Pictures drawn for the distances.
        steps: Steps of DDIM.
        ode_steps: Runge-Kutta steps of the likelihood; each costs four evaluations and their exact divergence.
        draws: Calls of the network a picture by the ELBO, and by I-MMSE; a multiple of 32.
        gaps: Held-out pictures, the first, of which it is measured how far the flow of this network is to be off I-MMSE; minutes each.
        seed: Of dequantisation, noise and samples.
    """
    import jax

    from diffeq_gen import plots, training

    _positive(images=images, samples=samples, steps=steps, ode_steps=ode_steps, draws=draws)
    run = training.restore(folder)
    key, images = jax.random.key(seed), min(images, len(run.dataset.held_out))
    with progress("evaluating", images) as advance:
        result = training.evaluate(
            key,
            run,
            images=images,
            samples=samples,
            steps=steps,
            ode_steps=ode_steps,
            draws=draws,
            gaps=gaps,
            report=advance,
        )
    write_json(folder / "evaluation.json", result)
    held_out = run.dataset.scaled(run.dataset.held_out[:64])
    sheets = {"held-out data": held_out, "samples, DDIM": _draw(run, "ddim", 64, steps, seed)}
    plots.samples(sheets).savefig(folder / "evaluation.png", dpi=110)
    width = max(map(len, result))
    for name, value in result.items():
        _say(f"{name:{width}}  {value:.4f}" if isinstance(value, float) else f"{name:{width}}  {value}")
    _say(_differences(result))
    return 0


def _differences(result: Mapping[str, Any]) -> str:
    """What of the differences between bits per dimension is noise, and where the rest comes from."""
    draws = {name: result[f"bits_per_dim_{name}_draws"] / result["images"] ** 0.5 for name in ("elbo", "immse")}
    noise = {"ode": draws["immse"], "elbo": (draws["elbo"] ** 2 + draws["immse"] ** 2) ** 0.5}
    lines = [
        f"{name.upper()} - I-MMSE  {result[f'{name}_minus_immse']:+.4f} +- {result[f'{name}_minus_immse_error']:.4f} bits per dimension,"
        f" {part:.4f} of it for want of draws; the rest is bias: {why}"
        for name, part, why in (
            ("ode", noise["ode"], "the network is no exact denoiser, and the flow's steps are not short"),
            ("elbo", noise["elbo"], "the ELBO blurs the data once more"),
        )
    ]  # fmt: skip
    if "flow_gap" in result:
        left = f"{result['flow_gap_left']:+.4f} +- {result['flow_gap_left_error']:.4f}, {result['flow_gap_left_draws']:.4f}"
        lines.append(
            f"ODE - I-MMSE is to be {result['flow_gap']:+.4f} on the first {result['flow_gaps']} pictures: the flow of a wrong score has"
            f" a law of its own; it is off that by {left} for want of draws"
        )
    return "\n".join(lines)


def _figures() -> Mapping[str, Callable[[], Any]]:
    from diffeq_gen import plots, schedules

    families = {"flow": schedules.Flow(), "cosine": schedules.Cosine(), "VP": schedules.VP(), "sub-VP": schedules.SubVP(),
                "VE": schedules.VE(), "EDM": schedules.EDM(), "sigmoid": schedules.Sigmoid(), "Laplace": schedules.Laplace()}  # fmt: skip
    return {
        "trajectories": plots.trajectories,
        "weights": plots.weight_curves,
        "schedules": lambda: plots.schedule_curves(families),
        "solvers": plots.solvers,
        "bending": plots.bending,
        "spectrum": lambda: plots.spectra(_digits()),
        "guidance": plots.guided,
        "churn": plots.churn,
        "renoise": plots.renoise,
        "flipped": plots.flipped,
    }


def _digits() -> Sample:
    from diffeq_gen import training

    data = training.digits()
    return data.scaled(data.train)


def plot(name: tyro.conf.Positional[str], /, *, out: Path | None = None) -> int:
    """Draw one of the pictures: trajectories, weights, schedules, the errors of solvers against their evaluations, how flows
    bend with the variance of the data, guidance, the spectrum of the digits and where it meets that of the noise, churn and how much
    each prediction counts, renoise (DDPM as DDIM and noise back), or flipped (DDIM's mirrored steps beside diffusion).

    Args:
        name: Which.
        out: The file, NAME.png if left out.
    """
    _known(name, tuple(_figures()), "picture")
    out = out or Path(f"{name}.png")
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"no folder {out.absolute().parent} for --out {out}")
    _figures()[name]().savefig(out, dpi=130)
    _say(str(out))
    return 0


def history(folder: Path) -> tuple[list[int], list[float]]:
    """(steps, losses) of a run, from its metrics.jsonl."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines], [line["loss"] for line in lines]


def _draw(run: Any, sampler: str, n: int, steps: int, seed: int, grid: str | None = None) -> Any:
    import jax
    import numpy as np

    from diffeq_gen.samplers import control_of
    from diffeq_gen.training.evaluation import draw

    shape, key = (n, *run.dataset.train.shape[1:]), jax.random.key(seed)
    if sampler == "controlled":
        points = run.dataset.dequantised(jax.random.key(0), run.dataset.train)
        control = control_of(points)
        return np.asarray(draw(key, run.denoise, run.schedule, shape, steps=steps, grid=grid, control=control))
    made = _samplers()[sampler](run.denoise, run.schedule)
    grid = grid or ("log-snr" if sampler in HIGH_ORDER else "time")
    return np.asarray(draw(key, run.denoise, run.schedule, shape, steps=steps, sampler=made, grid=grid))


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """A bar on a terminal, a line every ten seconds elsewhere: report(step, metrics) advances it."""
    if sys.stderr.isatty():
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda step, metrics: bar.update(
                task, completed=step, description=", ".join([what, *(f"{k} {v:.4f}" for k, v in metrics.items())])
            )
        return
    last = [time.monotonic()]

    def line(step: int, metrics: dict[str, float]) -> None:
        if time.monotonic() - last[0] >= 10 or step == total:
            last[0] = time.monotonic()
            numbers = " ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            sys.stderr.write(f"{what}: {step}/{total} {numbers}\n")

    yield line


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    draft = path.with_name(path.name + ".part")
    draft.write_text(json.dumps(value, indent=1, default=dataclasses.asdict) + "\n")
    draft.replace(path)


def _known(name: str, names: tuple[str, ...], what: str) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
        raise ValueError(f"no {what} is named {name!r}; did you mean {near[0]!r}?")


def _positive(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {name}={value}")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
