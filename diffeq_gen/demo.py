"""The whole walk on one page: prove the theorems, train on real digits, sample three ways, write report/index.html."""

import shutil
import sys
import time
from pathlib import Path
from typing import Any

from diffeq_gen.cli_training import history, progress, write_json

__all__ = ["demo"]


def demo(
    *, out: Path = Path("report"), steps: int = 600, batch: int = 64, cases: int = 100, images: int = 10
) -> int:  # fmt: skip
    """Prove the theorems, train on digits, sample by three samplers, and write a self-contained HTML report.

    Args:
        out: The folder of the report; a report of the demo that is there already is replaced.
        steps: Updates of the training.
        batch: Pictures of one update.
        cases: Random cases per theorem and precision.
        images: Held-out pictures for the likelihoods.
    """
    import jax
    import numpy as np

    from diffeq_gen import plots, report, training
    from diffeq_gen.cli_training import _draw
    from diffeq_gen.theorems import get
    from diffeq_gen.theorems.suite import run as verify
    from diffeq_gen.theorems.suite import select

    begun = time.monotonic()
    chosen = select()
    verdicts: list[Any] = []
    with progress("proving", len(chosen)) as advance:
        for verdict in verify(chosen, cases=cases, quick=True, processes=True):
            verdicts.append(verdict)
            advance(len(verdicts), {})
    order = {entry.name: place for place, entry in enumerate(chosen)}
    verdicts.sort(key=lambda verdict: order[verdict.name])
    proven = time.monotonic() - begun
    run_folder = out / "run"
    if (run_folder / "config.json").exists():
        shutil.rmtree(run_folder)
    out.mkdir(parents=True, exist_ok=True)
    config = training.Config(steps=steps, batch=batch)
    with progress("training", steps) as advance:
        run = training.fit(config, run_folder, log_every=10, save_every=steps, report=advance)
    trained = time.monotonic() - begun - proven
    _note("sampling and evaluating")
    sheets = {
        "DDIM, 50 steps": _draw(run, "ddim", 64, 50, 0),
        "DDPM, 100 steps": _draw(run, "ddpm", 64, 100, 0),
        "EDM (Heun), 25 steps": _draw(run, "edm", 64, 25, 0),
        "held-out data": np.asarray(run.dataset.scaled(run.dataset.held_out[:64])),
    }
    with progress("evaluating", images) as advance:
        scores = training.evaluate(
            jax.random.key(0), run, images=images, samples=128, ode_steps=8, draws=64, report=advance
        )
    write_json(out / "evaluation.json", scores)
    held = sum(bool(verdict) for verdict in verdicts)
    rows = [
        (verdict.name, verdict.kind, "holds" if verdict else "refuted", verdict.residual_over_bound.get("float64", 0.0),
         verdict.residual_over_bound.get("float32", 0.0), verdict.near_misses, get(verdict.name).statement, get(verdict.name).source)
        for verdict in verdicts
    ]  # fmt: skip
    header = ("theorem", "kind", "verdict", "float64", "float32", "near misses refuted", "statement", "source")
    worst = {
        verdict.name: max(verdict.residual_over_bound.values(), default=0.0)
        for verdict in verdicts
        if verdict.kind != "order"
    }
    sections = {
        f"{held} of {len(verdicts)} theorems hold": "<p>float64, float32: the worst residual found, in units of the rounding bound of "
        f"that very case; {cases} cases each, computed operation by operation, every near miss refuted. {proven:.0f} s.</p>"
        + report.picture(plots.residuals(worst), "the worst residual of each theorem, in units of its bound"),
        "One process, two names": report.picture(
            plots.trajectories(), "DDIM is Euler's rule of the straight flow, whatever the schedule"
        ),
        "What each loss emphasises": report.picture(
            plots.weight_curves(), "weights as functions of log-SNR, scaled to one"
        ),
        f"A model of real digits, {steps} steps, {trained:.0f} s": report.picture(
            plots.loss_curve(*history(run_folder)), "v-prediction, cosine schedule, plain squared error"
        )
        + report.picture(plots.samples(sheets), "one network, three samplers; the last sheet is data it never saw"),
        "Held-out data": report.table(("quantity", "value"), list(scores.items())),
        "The theorems": report.table(header, rows),
    }
    report.write(out / "index.html", report.page("diffeq_gen: proofs, and a model that rests on them", sections))
    _note(f"{out / 'index.html'}: {held} of {len(verdicts)} theorems hold, {time.monotonic() - begun:.0f} s in all")
    for verdict in verdicts:
        if not verdict:
            sys.stdout.write(f"\n{verdict.reason}\n")
    return 0 if held == len(verdicts) else 1


def _note(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
