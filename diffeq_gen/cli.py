"""The command `diffeq-gen`: prove, train, sample, evaluate, draw.

    diffeq-gen verify [NAME ...] [--schedule PKG:OBJ] [--sampler PKG:OBJ] [--assuming ASSUMPTION] [--cases N]
        [--json FILE] [--prove]
    diffeq-gen theorems | show NAME
    diffeq-gen train | sample | evaluate | plot | demo

Exit code 0: all is well.  1: a theorem was refuted.  2: bad input, told in one sentence on standard error.
"""

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro

from diffeq_gen.cli_training import write_json

__all__ = ["main", "show", "theorems", "verify"]


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0 well, 1 refuted, 2 bad input."""
    try:
        result = tyro.extras.subcommand_cli_from_dict(_commands(), prog="diffeq-gen", description=__doc__, args=args)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    except KeyError as error:
        return _complain(str(error.args[0]))
    except ModuleNotFoundError as error:
        return _complain(f"{error.name} is missing: pip install 'diffeq-gen[demo]'")
    except (ValueError, TypeError, ImportError, OSError, FloatingPointError) as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        return _complain("interrupted")
    return int(result or 0)


def _commands() -> dict[str, Callable[..., Any]]:
    """Each subcommand, imported only when one of its packages may be asked for."""
    from diffeq_gen import cli_training, demo

    training = {name: getattr(cli_training, name) for name in ("train", "sample", "evaluate", "plot")}
    return {"verify": verify, "theorems": theorems, "show": show, **training, "demo": demo.demo}


def _complain(sentence: str) -> int:
    sys.stderr.write(f"diffeq-gen: {' '.join(sentence.split())}\n")
    return 2


def _numerics(*, strict: bool = True) -> None:
    """A compilation cache in the user's cache folder: a second `verify` spends its time on cases, not on compiling.

    Our own code promotes nothing silently; that of a sampler from elsewhere may.
    """
    import jax

    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(home / "diffeq_gen" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_numpy_rank_promotion", "raise" if strict else "allow")
    jax.config.update("jax_numpy_dtype_promotion", "strict" if strict else "standard")


def verify(
    names: tyro.conf.Positional[tuple[str, ...]] = (),
    /,
    *,
    schedule: str | None = None,
    sampler: str | None = None,
    assuming: tuple[str, ...] = (),
    cases: int | None = None,
    seed: int = 0,
    json: Path | None = None,
    prove: bool = False,
    workers: int = 2,
) -> int:
    """Search every theorem for a counterexample, in float64 and float32, and see every near miss refuted.

    Args:
        names: Theorems to check; all of them if left out.
        schedule: A schedule of your own, package.module:name; then only what any schedule must satisfy is checked.
        sampler: A sampler of your own, package.module:name, as (denoise, schedule) -> Sampler; then only what any sampler must
            satisfy is checked, on the schedule given or on many.
        assuming: What you declare of it: variance-preserving (of a schedule), exact-for-a-point, scale-invariant, order-2,
            order-3, order-4 (of a sampler).
        cases: Random cases per theorem and precision.
        seed: Where the random cases begin.
        json: A file for the verdicts, a list with one object per theorem.
        prove: Also attempt a symbolic proof of each identity, for an opaque schedule.
        workers: Processes; threads where there is an accelerator, an object of your own, or little to do.
    """
    _numerics(strict=sampler is None)
    from diffeq_gen.samplers import conform
    from diffeq_gen.theorems import get
    from diffeq_gen.theorems.suite import load, run, select

    if cases is not None and cases < 1:
        raise ValueError(f"cases must be at least 1, got cases={cases}")
    if json is not None and not json.absolute().parent.is_dir():
        raise FileNotFoundError(f"no folder {json.absolute().parent} for --json {json}")
    mine = None if schedule is None else load(schedule)
    method = None if sampler is None else load(sampler)
    chosen = select(names, schedule=mine, sampler=method, assuming=assuming)
    report = None if method is None else conform(method, schedule=mine)
    start, verdicts = time.monotonic(), []
    with _progress(len(chosen)) as advance:
        for verdict in run(
            chosen, cases=cases, seed=seed, workers=workers, schedule=mine, sampler=method, processes=True
        ):
            proof = (
                _symbolic(get(verdict.name))
                if prove
                and mine is None
                and method is None
                and verdict.kind in ("identity", "in law", "counterexample")
                else None
            )
            verdicts.append((verdict, proof))
            advance(verdict)
    order = {entry.name: place for place, entry in enumerate(chosen)}
    verdicts.sort(key=lambda pair: order[pair[0].name])
    if report is not None:
        sys.stdout.write(f"{report}\n\n")
    _table(verdicts, get, time.monotonic() - start)
    if json is not None:
        checks = [{"kind": "check", **check._asdict()} for check in (report.checks if report is not None else ())]
        write_json(json, [*checks, *(_record(verdict, proof, get(verdict.name)) for verdict, proof in verdicts)])
    refuted = [verdict for verdict, _ in verdicts if not verdict]
    for verdict in refuted:
        sys.stdout.write(f"\n{verdict.reason}\n")
    return 1 if refuted or not (report is None or report) else 0


def _symbolic(theorem: Any) -> str:
    try:
        return theorem.prove(seconds=10.0).verdict
    except Exception as error:
        return f"undecided ({type(error).__name__})"


def _progress(total: int) -> Any:
    import contextlib

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    @contextlib.contextmanager
    def shown() -> Any:
        columns = (TextColumn("{task.description:40}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, transient=True, disable=not sys.stderr.isatty(), console=_console(stderr=True)) as bar:
            task = bar.add_task("compiling", total=total)
            yield lambda verdict: bar.update(task, advance=1, description=verdict.name)

    return shown()


def _console(*, stderr: bool = False) -> Any:
    from rich.console import Console

    return Console(stderr=stderr, width=None if sys.stdout.isatty() else 140, highlight=False)


def _table(verdicts: Sequence[tuple[Any, str | None]], get: Callable[[str], Any], seconds: float) -> None:
    from rich.table import Table

    proofs = any(proof for _, proof in verdicts)
    table = Table(box=None, pad_edge=False)
    for column in (
        "theorem",
        "kind",
        "verdict",
        "cases",
        "float64",
        "float32",
        "near misses",
        *(["symbolic"] if proofs else []),
    ):
        table.add_column(column, justify="right" if column in ("cases", "float64", "float32") else "left", no_wrap=True)
    for verdict, proof in verdicts:
        ratios = [
            f"{verdict.residual_over_bound[dtype]:.2g}" if dtype in verdict.residual_over_bound else ""
            for dtype in ("float64", "float32")
        ]
        table.add_row(
            verdict.name, verdict.kind, "holds" if verdict else "[bold red]REFUTED[/]", str(verdict.cases), *ratios,
            f"{verdict.near_misses} refuted" if verdict else "", *([proof or ""] if proofs else []),
        )  # fmt: skip
    console = _console()
    console.print(table)
    held = sum(bool(verdict) for verdict, _ in verdicts)
    proven = sum(proof == "proven" for _, proof in verdicts)
    console.print(
        f"\n{held} of {len(verdicts)} theorems hold{f', {proven} proven symbolically' if proofs else ''}, {seconds:.0f} s. "
        "float64, float32: the worst residual, in units of its rounding bound."
    )


def _record(verdict: Any, proof: str | None, theorem: Any) -> dict[str, Any]:
    fields = dataclasses.asdict(dataclasses.replace(verdict, counterexample=None))
    extra = {"statement": theorem.statement, "source": theorem.source, "chapter": theorem.chapter, "symbolic": proof}
    return {
        **fields,
        **extra,
        "near_misses": [miss.name for miss in theorem.misses],
        "counterexample": verdict.reason or None,
    }


def theorems() -> int:
    """The index of theorems, chapter by chapter."""
    _numerics()
    from diffeq_gen.theorems import CHAPTERS, all_theorems

    for chapter in CHAPTERS:
        entries = [entry for entry in all_theorems().values() if entry.chapter == chapter]
        sys.stdout.write(f"\n{chapter}\n")
        for entry in entries:
            sys.stdout.write(f"  {entry.name:44} {entry.kind:15} {entry.statement}\n")
    return 0


def show(name: tyro.conf.Positional[str], /) -> int:
    """One theorem: its statement, source, domains, code and near misses.

    Args:
        name: The theorem.
    """
    import inspect

    from diffeq_gen.theorems import get

    entry = get(name)
    lines = [entry.name, f"  {entry.statement}", f"  kind     {entry.kind}", f"  source   {entry.source}"]
    lines += [f"  {variable:8} {domain.name}" for variable, domain in entry.domains.items()]
    lines += ["", inspect.getsource(entry.claim)]
    for miss in entry.misses:
        told = f"  {miss.statement}\n" if miss.claim is entry.claim else inspect.getsource(miss.claim)
        lines += [f"near miss, refuted: {miss.name}", "", told]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0
