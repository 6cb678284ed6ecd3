"""Do the proofs see a fault?  Plants one at a time in the mathematics and runs the tests that should fall.

    python -m benchmarks.mutation [--files GLOB ...] [--jobs 2] [--warm N] [--json FILE] [--resume] [--sample N --seed K]

Per file (killed + timeout) / all, then each survivor with its line; what killed the others is in the JSON lines.

One process imports jax, pytest and hypothesis; every mutant is a fork of it in which an import hook serves the faulty
source, so that the source tree is never written to and no interpreter starts twice.  It forks before any JAX backend
exists, which is when that is safe.  A selection must pass without a fault first; that run also sets the time limit.
A fork may take `--warm` faults one after the other: it keeps every module that does not import the faulty one, and what JAX has
compiled for it.  What caught its faults must pass there once more, without a fault, before it is believed.
"""

import argparse
import ast
import collections
import contextlib
import dataclasses
import functools
import gc
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import itertools
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.mutators import Mutant, mutants

__all__ = ["SELECTIONS", "main", "selection"]

ROOT = Path(__file__).resolve().parent.parent
FILES = (
    "schedules/*.py", "clocks.py", "bases.py",
    "paths.py", "predictions.py", "exact.py",
    "equations.py", "weights.py", "guidance.py", "couplings.py",
    "losses.py", "variational.py", "likelihood.py", "samplers/*.py", "corruptions/*.py",
)  # fmt: skip
"""Floors 1 to 4, relative to the package."""

SELECTIONS: dict[str, list[str]] = {}
"""File, relative to the package -> pytest arguments; a file that is not here has the tests that mirror it."""

THEOREMS = "property_tests/test_theorems.py"
PRELOADED = ("numpy", "jax", "jax.numpy", "hypothesis", "pytest", "sympy", "mpmath")
STRICT = ("-x", "-q", "--no-header", "-p", "no:xdist", "--assert=plain")
"""Plain asserts: pytest would rewrite every module of a package that has a plugin, and read it from its file to do so."""

OURS = {"__main__", "benchmarks", "benchmarks.mutation", "benchmarks.mutators"}

OUTCOMES = {0: "survived", 1: "killed", 2: "killed", 3: "killed", 4: "killed", 5: "survived"}
"""By pytest's exit codes: 2 and 4 are errors at collection and in a conftest, which did not arise without the fault; 5 is no test."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """A mutant, the file it is a mutant of, and the tests that should kill it."""

    file: str
    module: str
    mutant: Mutant
    tests: tuple[str, ...]
    place: str = ""
    first: tuple[str, ...] = ()
    """The function it is in, and the theorems that this function's docstring cites: they are asked before the rest."""


def cited(text: str) -> list[str]:
    """The theorems that docstrings name on their last lines, as tests."""
    names = [name for line in re.findall(r"Theorems: ([\w,\s-]+)\.", text) for name in re.split(r",\s+", line)]
    return [f"{THEOREMS}::test_theorem[{name}]" for name in dict.fromkeys(names)]


def places(source: str) -> list[tuple[int, int, str, tuple[str, ...]]]:
    """(first line, last line, name, theorems cited) of every function and class, the inner ones first."""
    kinds = ast.FunctionDef | ast.ClassDef
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    nodes.sort(key=lambda node: node.end_lineno - node.lineno)
    return [(node.lineno, node.end_lineno, node.name, tuple(cited(ast.get_docstring(node) or ""))) for node in nodes]


def faults_of(root: Path, package: Path, file: Path) -> list[Fault]:
    """The faults of one file.  Raises: SystemExit where it has some, and no tests."""
    source, tests = file.read_text(encoding="utf-8"), tuple(selection(root, package, file))
    planted, regions = mutants(source), places(source)
    if planted and not tests:
        sys.exit(f"{file.relative_to(root)} has no tests: name them in SELECTIONS")
    found = []
    for mutant in planted:
        around = [region for region in regions if region[0] <= mutant.line <= region[1]]
        place = around[0][2] if around else ""
        first = tuple(dict.fromkeys(name for region in around for name in region[3]))
        found.append(Fault(file.relative_to(root).as_posix(), name_of(root, file), mutant, tests, place, first))
    return found


def selection(root: Path, package: Path, file: Path) -> list[str]:
    """The tests of a file: its line in `SELECTIONS`, else its namesakes, and the theorems that its docstrings cite."""
    relative = file.relative_to(package)
    if relative.as_posix() in SELECTIONS:
        return SELECTIONS[relative.as_posix()]
    inner = [part for part in relative.parts if part != "__init__.py"]
    chapters = [Path(part).stem for part in inner]
    names = [f"test_{chapter}.py" for chapter in chapters]
    folders = [root / "tests" / Path(*inner[:-1]), root / "tests", root / "property_tests"]
    found = [folder / name for name in reversed(names) for folder in folders if (folder / name).is_file()]
    tests = [path.relative_to(root).as_posix() for path in dict.fromkeys(found)]
    if (root / THEOREMS).is_file() and file.is_file():
        claims = "".join(page.read_text(encoding="utf-8") for page in sorted((package / "theorems").glob("*.py")))
        known = cited(
            "".join(f"Theorems: {name.replace('_', '-')}." for name in re.findall(r"^def (\w+)", claims, re.M))
        )
        tests += [test for test in cited(file.read_text(encoding="utf-8")) if test in known]
    return tests


def name_of(root: Path, file: Path) -> str:
    """The dotted name under which a file is imported."""
    return ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


class Faulty(importlib.machinery.SourceFileLoader, importlib.abc.MetaPathFinder):
    """Serves one module from a source held in memory; all others come from where they are."""

    def __init__(self, module: str, file: Path, source: str) -> None:
        super().__init__(module, str(file))
        self.source = source

    def find_spec(
        self, fullname: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec of the faulty module; None for every other."""
        if fullname != self.name:
            return None
        package = [str(Path(self.path).parent)] if self.path.endswith("__init__.py") else None
        return importlib.util.spec_from_file_location(
            fullname, self.path, loader=self, submodule_search_locations=package
        )

    def get_code(self, fullname: str) -> object:
        """The faulty source, compiled: nothing is read from a cache, nothing is written to one."""
        return compile(self.source, self.path, "exec", dont_inherit=True)


class First:
    """A plugin of pytest: the tests of these names come first, in this order, and the rest as they were, if at all."""

    def __init__(self, names: Sequence[str], *, alone: bool = False) -> None:
        self.places = {name: place for place, name in enumerate(dict.fromkeys(names))}
        self.alone = alone
        self.killer = ""

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Sorts what was collected; and of a refuted theorem no simpler counterexample is looked for."""
        if "diffeq_gen.theorems.registry" in sys.modules:
            sys.modules["diffeq_gen.theorems.registry"].shrink = lambda broken, domains: None
        items.sort(key=lambda item: self.places.get(item.nodeid, len(self.places)))
        if self.alone:
            items[:] = [item for item in items if item.nodeid in self.places]

    def pytest_runtest_logreport(self, report: Any) -> None:
        """The name of the first that fails."""
        self.killer = self.killer or (report.nodeid if report.failed else "")

    pytest_collectreport = pytest_runtest_logreport


def child(root: Path, batch: Sequence["Task"], log: Path) -> None:
    """The forked process: plants its faults one after the other, and writes a line on each; the last is on none of them."""

    def tell(told: dict[str, object]) -> None:
        with open(f"{log}.told", "a", encoding="utf-8") as file:
            file.write(json.dumps(told) + "\n")

    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with open(log, "w", encoding="utf-8") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    try:
        os.chdir(root)
        sys.path.insert(0, str(root))
        if "jax" in sys.modules:  # a run without a fault fills the cache of compiled code, a mutant only reads it
            slower = 0.0 if batch[0].fault is None else 1e9
            sys.modules["jax"].config.update("jax_persistent_cache_min_compile_time_secs", slower)
        killers: list[str] = []
        for task in batch:
            told = planted(root, task, First([*killers, *task.first]), log)
            if told["killer"]:
                killers[:] = [told["killer"], *(name for name in killers if name != told["killer"])]
            tell(told)
        if len(batch) > 1 and killers:
            forget(root, batch[-1].fault)
            told = planted(root, Task(None, batch[-1].tests), First(killers, alone=True), log)
            tell(told)
    except BaseException:
        traceback.print_exc()
        sys.stdout.flush()
        os._exit(3)
    os._exit(0)


def planted(root: Path, task: "Task", plugin: First, log: Path) -> dict[str, object]:
    """Outcome, seconds and killer of one fault in this process, which is rid of it afterwards."""
    start, finder = time.monotonic(), None
    if task.fault is not None:
        forget(root, task.fault)
        finder = Faulty(task.fault.module, root / task.fault.file, task.fault.mutant.source)
        sys.meta_path.insert(0, finder)
    arguments = [*STRICT, "-o", f"cache_dir={log}.cache", *task.tests]
    try:
        code = int(importlib.import_module("pytest").main(arguments, plugins=[plugin]))
    except BaseException:
        traceback.print_exc()
        code = 3
    finally:
        sys.stdout.flush()
        if finder is not None:
            sys.meta_path.remove(finder)
    gc.collect()
    return {"outcome": OUTCOMES.get(code, "error"), "seconds": round(time.monotonic() - start, 2),
            "killer": plugin.killer}  # fmt: skip


def forget(root: Path, fault: Fault) -> None:
    """Unloads the faulty module, all that import it, and the tests: whole folders of the package, since pages register in them."""
    package = fault.module.split(".")[0]
    loaded = {
        name: Path(module.__file__)
        for name, module in list(sys.modules.items())
        if getattr(module, "__file__", None) and Path(module.__file__).is_relative_to(root) and name not in OURS
    }
    imports = {name: imported(path) for name, path in loaded.items()}
    gone = {fault.module} | {name for name in loaded if name.split(".")[0] != package}
    size = -1
    while size < len(gone):
        size = len(gone)
        gone |= {name for name in loaded if imports[name] & gone}
        folders = {".".join(name.split(".")[:2]) for name in gone if name.count(".") > 1}
        gone |= {name for name in loaded if ".".join(name.split(".")[:2]) in folders}
    for name in gone & set(sys.modules):
        del sys.modules[name]
        parent, _, last = name.rpartition(".")
        if hasattr(sys.modules.get(parent), last):
            delattr(sys.modules[parent], last)


@functools.cache
def imported(path: Path) -> frozenset[str]:
    """Every module that a file may import anywhere in its text, and the packages that are imported with it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names | {name[:i] for name in names for i, letter in enumerate(name) if letter == "."})


@dataclasses.dataclass(frozen=True)
class Task:
    """A fault, the tests to ask, those to begin with, and the seconds that they may take."""

    fault: Fault | None
    tests: tuple[str, ...]
    first: tuple[str, ...] = ()
    limit: float = 900.0


@dataclasses.dataclass
class Running:
    """A fork under way: its faults, and what it has told of the first of them."""

    batch: Sequence[Task]
    log: Path
    start: float
    told: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def read(self) -> None:
        """What it has told since; the clock of the next fault starts anew."""
        path = Path(f"{self.log}.told")
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        lines = [line for line in lines if line.endswith("\n")]
        if len(lines) > len(self.told):
            self.told, self.start = [json.loads(line) for line in lines], time.monotonic()


def forks(root: Path, work: Iterable[Task], jobs: int, warm: int = 1) -> Iterator[dict[str, Any]]:
    """Runs the tasks, `jobs` at a time and `warm` in one process; yields fault, outcome, seconds and killer of each."""
    queue, again = iter(work), collections.deque[Task]()
    running: dict[int, Running] = {}
    exhausted = False
    with tempfile.TemporaryDirectory() as folder:
        try:
            while running or again or not exhausted:
                while len(running) < jobs and (again or not exhausted):
                    batch = [again.popleft() for _ in range(min(warm, len(again)))]
                    batch += itertools.islice(queue, warm - len(batch))
                    exhausted = len(batch) < warm
                    if batch:
                        log = Path(folder) / f"{time.monotonic_ns()}.log"
                        pid = os.fork()
                        if pid == 0:
                            child(root, batch, log)
                        running[pid] = Running(batch, log, time.monotonic())
                for run, told in ended(running):
                    again += run.batch[len(told) :]
                    yield from told
                time.sleep(0.01)
        finally:
            for pid in running:
                stop(pid)


def ended(running: dict[int, Running]) -> Iterator[tuple[Running, list[dict[str, Any]]]]:
    """The forks that have ended, or are past a limit and are ended here, with what became of their faults; they leave `running`.

    Raises: SystemExit where a test that caught a fault fails in the same process without one.
    """
    for pid, run in list(running.items()):
        done, status = os.waitpid(pid, os.WNOHANG)
        run.read()
        here = min(len(run.told), len(run.batch) - 1)
        if not done and time.monotonic() - run.start < run.batch[here].limit:
            continue
        if not done:
            stop(pid)
        del running[pid]
        text = run.log.read_text(encoding="utf-8", errors="replace") if run.log.exists() else ""
        told, after = run.told[: len(run.batch)], run.told[len(run.batch) :]
        if any(check["outcome"] != "survived" for check in after):
            sys.exit(f"what caught a fault fails without one, after {len(told)} in one process:\n{text[-3000:]}")
        if len(told) < len(run.batch):
            crashed = "killed" if done and os.waitstatus_to_exitcode(status) < 0 else "error"
            seconds = round(time.monotonic() - run.start, 2)
            told = [*told, {"outcome": crashed if done else "timeout", "seconds": seconds, "killer": ""}]
        yield run, [{"fault": task.fault, "text": text, **one} for task, one in zip(run.batch, told, strict=False)]


def stop(pid: int) -> None:
    """Ends a fork and what it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def baseline(root: Path, tests: Sequence[str], limit: float) -> float:
    """Seconds of a selection without a fault; it fills the cache of compiled code.

    Raises: SystemExit, with pytest's words, where it does not pass.
    """
    (run,) = forks(root, [Task(None, tuple(tests), limit=limit)], 1)
    if run["outcome"] != "survived":
        sys.exit(f"without a fault, pytest {' '.join(tests)} ends in {run['outcome']}:\n{run['text'][-3000:]}")
    print(f"{run['seconds']:6.1f} s without a fault: {' '.join(tests)}", flush=True)
    return run["seconds"]


def canaries(root: Path, faults: Iterable[Fault], jobs: int, limit: float) -> None:
    """Raises: SystemExit where a file that cannot even be imported passes its tests: then no fault in it is served."""
    dead = Mutant(0, "canary", "", "", "raise ImportError('canary')\n", "canary")
    planted = {fault.file: dataclasses.replace(fault, mutant=dead) for fault in faults}
    for run in forks(root, (Task(fault, fault.tests, limit=limit) for fault in planted.values()), jobs):
        if run["outcome"] != "killed":
            sys.exit(f"the tests of {run['fault'].file} pass without it: {' '.join(run['fault'].tests)}")


def record(run: dict[str, object]) -> dict[str, object]:
    """A line of the JSON file."""
    fault = run["fault"]
    mutant = fault.mutant
    told = {"name": mutant.name, "file": fault.file}
    told |= {name: getattr(mutant, name) for name in ("line", "label", "before", "after")}
    return told | {name: run[name] for name in ("outcome", "seconds", "killer")}


def table(records: Iterable[dict[str, object]]) -> str:
    """Killed, survived and timed out per file, and the survivors."""
    records = list(records)
    outcomes = ("killed", "survived", "timeout", "error")
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for entry in records:
        for file in (entry["file"], "all"):
            counts[file][entry["outcome"]] += 1
    rows = [f"{'file':40}" + "".join(f"{outcome:>10}" for outcome in outcomes) + f"{'score':>9}"]
    for file in [*sorted(set(counts) - {"all"}), "all"]:
        count = counts[file]
        caught = (count["killed"] + count["timeout"]) / max(1, count.total() - count["error"])
        rows.append(f"{file:40}" + "".join(f"{count[outcome]:10}" for outcome in outcomes) + f"{caught:9.1%}")
    for entry in sorted(records, key=lambda entry: (entry["file"], entry["line"])):
        if entry["outcome"] in ("survived", "error"):
            rows.append(f"{entry['outcome']} {entry['file']}:{entry['line']} {entry['label']}: "
                        f"{entry['before']} => {entry['after']}")  # fmt: skip
    return "\n".join(rows)


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", nargs="+", default=list(FILES), metavar="GLOB", help="relative to the package")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--warm", type=int, default=1, help="faults that one process takes, one after the other")
    parser.add_argument("--json", type=Path, default=None, help="one line per mutant, appended")
    parser.add_argument("--resume", action="store_true", help="leave out what the JSON file already tells")
    parser.add_argument("--sample", type=int, default=None, help="so many mutants, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=900.0, help="seconds for a selection without a fault")
    parser.add_argument("--patience", type=float, default=10.0, help="seconds granted beyond four times that")
    parser.add_argument("--preload", nargs="+", default=list(PRELOADED), metavar="MODULE", help="imported once, before")
    parser.add_argument("--list", action="store_true", help="only list the mutants")
    parser.add_argument("--root", type=Path, default=ROOT, help="the folder of the package and its tests")
    parser.add_argument("--package", default="diffeq_gen")
    return parser.parse_args(arguments)


def faults(chosen: argparse.Namespace) -> list[Fault]:
    """The faults asked for.  Raises: SystemExit where a pattern has no file, or a file has no tests."""
    root, package = chosen.root.resolve(), chosen.root.resolve() / chosen.package
    files = list(dict.fromkeys(file for pattern in chosen.files for file in sorted(package.glob(pattern))))
    if not files:
        sys.exit(f"no file of {package} matches {' '.join(chosen.files)}")
    found = []
    for file in files:
        found += faults_of(root, package, file)
    if chosen.sample is not None and chosen.sample < len(found):
        picked = random.Random(chosen.seed).sample(range(len(found)), chosen.sample)
        found = [found[i] for i in sorted(picked)]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Plants the faults and prints the table; 0 where all are caught, 1 where one survives."""
    chosen = options(arguments)
    planted = faults(chosen)
    if chosen.list:
        print(
            *(f"{fault.file}:{fault.mutant.line} {fault.mutant.label}: {fault.mutant.diff}" for fault in planted),
            sep="\n",
        )
        return 0
    root = chosen.root.resolve()
    earlier = []
    if chosen.json is not None and chosen.resume and chosen.json.exists():
        earlier = [
            json.loads(line) for line in chosen.json.read_text(encoding="utf-8").splitlines() if line.endswith("}")
        ]
    known = {(entry["file"], entry["name"]): entry for entry in earlier}
    results = [known[fault.file, fault.mutant.name] for fault in planted if (fault.file, fault.mutant.name) in known]
    left = [fault for fault in planted if (fault.file, fault.mutant.name) not in known]
    with tempfile.TemporaryDirectory() as cache:
        prepare(chosen.preload, Path(cache))
        results += planting(root, left, chosen)
    print(table(results))
    return int(any(entry["outcome"] in ("survived", "error") for entry in results))


def planting(root: Path, left: Sequence[Fault], chosen: argparse.Namespace) -> list[dict[str, object]]:
    """Runs the faults that are left, file by file, tells of each as it ends, and appends it to the JSON file."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the forks are ended too
    results: list[dict[str, object]] = []
    killers: dict[tuple[str, str], list[str]] = collections.defaultdict(list)  # of a function, the latest first

    def begin(fault: Fault) -> tuple[str, ...]:
        """What caught its neighbours, then what its function cites, then what caught anything in its file."""
        return (*killers[fault.file, fault.place], *fault.first, *killers[fault.file, ""])

    for tests, faults in itertools.groupby(left, key=lambda fault: fault.tests):
        here = list(faults)
        canaries(root, here, chosen.jobs, chosen.limit)
        limit = chosen.patience + 4 * baseline(root, tests, chosen.limit)
        tasks = (Task(fault, tests, begin(fault), limit) for fault in here)
        for run in forks(root, tasks, chosen.jobs, chosen.warm):
            entry = record(run)
            results.append(entry)
            for place in {run["fault"].place, ""} if entry["killer"] else ():
                latest = killers[entry["file"], place]
                latest[:] = [entry["killer"], *(name for name in latest if name != entry["killer"])]
            if chosen.json is not None:
                with open(chosen.json, "a", encoding="utf-8") as file:
                    file.write(json.dumps(entry) + "\n")
            if entry["outcome"] != "killed" or len(results) % 50 == 0:
                fault = f"{entry['file']}:{entry['line']} {entry['before']} => {entry['after']}"
                print(f"[{len(results)}/{len(left)}] {entry['outcome']} {fault}", flush=True)
    return results


def prepare(modules: Iterable[str], cache: Path) -> None:
    """What all forks share: imports without a backend; compiled code is kept outside the source tree."""
    sys.pycache_prefix = str(cache / "pycache")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache / "compiled")
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    for module in modules:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)


if __name__ == "__main__":
    sys.exit(main())
