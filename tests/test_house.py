"""The house: floors, sizes, names, types, docstrings, theorems. Each rule is asked of each file, by name."""

import ast
import functools
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "diffeq_gen"

FLOORS = {
    "types": 0,
    "schedules": 1, "clocks": 1, "coordinates": 1, "grids": 1, "bases": 1,
    "paths": 2, "predictions": 2, "exact": 2,
    "traces": 3, "equations": 3, "weights": 3, "importance": 3, "spectral": 3, "guidance": 3, "couplings": 3,
    "losses": 4, "score_matching": 4, "samplers": 4, "bounds": 4, "dequantisation": 4, "variational": 4, "likelihood": 4,
    "corruptions": 4, "discrete": 4,
    "distillation": 5, "latent": 5,
    "adapters": 6, "nets": 6, "training": 6,
    "proof": 7, "theorems": 7,
    "plots": 8, "report": 8, "cli_training": 8, "demo": 8, "cli": 8, "pytest_plugin": 8,
}  # fmt: skip
"""Chapter -> floor, in reading order: a file imports from lower floors, from its own folder, or from an earlier chapter
of its own floor."""

LIBRARIES = {0: {"jax", "chex", "numpy"}, 4: {"scipy"}, 6: {"flax", "optax", "orbax", "sklearn", "rich"}}
LIBRARIES[6] |= {"diffrax", "equinox", "lineax"}
LIBRARIES |= {7: {"hypothesis", "sympy", "mpmath"}, 8: {"matplotlib", "tyro", "pytest"}}
"""What a floor may import besides the standard library; a higher floor may all that a lower one may."""

NATURAL = {"overshoot", "pole", "sign", "excinfo", "style"}
"""Arguments of a formula that have one natural value; and those of pytest's own hooks."""

BASES = {
    "NamedTuple",
    "Protocol",
    "Exception",
    "ValueError",
    "Enum",
    "StrEnum",
    "TypedDict",
    "Module",
    "AbstractPath",
    "Item",
    "Collector",
}
"""Nouns are frozen pytrees: nothing to inherit from but what Python, Flax, diffrax and pytest ask for."""

FILES = sorted(PACKAGE.rglob("*.py"))
READING = list(FLOORS)
CHAPTERS = sorted({path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES} - {"__init__", "__main__"})
PUBLIC = [path for path in FILES if not path.stem.startswith("_") or path.stem == "__init__"]
TESTS = sorted(path for tree in ("tests", "property_tests") for path in (ROOT / tree).rglob("*.py"))

Function = ast.FunctionDef | ast.AsyncFunctionDef


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def each(name: str, paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(name, paths, ids=named)


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def chapter(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def line(path: Path, node: ast.AST, message: str) -> str:
    return f"{named(path)}:{node.lineno}: {message}"


def tracked() -> list[Path]:
    """The files that are committed, or would be: what git does not ignore; where git is not there, what looks so."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        names = [path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*")]
        names = [name for name in names if not re.search(r"(^|/)(\.|build/|report/|runs/|__pycache__)", name)]
    return [ROOT / name for name in sorted(names) if name and (ROOT / name).is_file()]


TRACKED = tracked()


# Floors


def imports(path: Path) -> Iterator[tuple[ast.AST, str]]:
    """Each import of a file, at the top or inside a function, as an absolute dotted name."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module(path).split(".") if path.stem == "__init__" else module(path).split(".")[:-1]
            start = above[: len(above) - node.level + 1] if node.level else []
            name = ".".join([*start, *([node.module] if node.module else [])])
            if name == "diffeq_gen":
                yield from ((node, f"diffeq_gen.{alias.name}") for alias in node.names)
            else:
                yield node, name


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_chapter_stands_on_a_floor(name):
    assert name in FLOORS


@each("path", [path for path in FILES if chapter(path) in FLOORS])
def test_imports_go_down(path):
    here = chapter(path)
    for node, name in imports(path):
        top, *rest = name.split(".")
        if top == "diffeq_gen":
            there = rest[0] if rest else "__version__"
            if there in ("__version__", here):
                continue
            lower = (FLOORS[there], READING.index(there)) < (FLOORS[here], READING.index(here))
            assert lower, line(path, node, f"{here} (floor {FLOORS[here]}) imports {there} (floor {FLOORS[there]})")
        elif top not in sys.stdlib_module_names:
            allowed = set().union(*(names for floor, names in LIBRARIES.items() if floor <= FLOORS[here]))
            assert top in allowed, line(path, node, f"floor {FLOORS[here]} imports {top}")


# Sizes


@each("path", FILES)
def test_folders_are_two_deep_and_files_fit_a_chapter(path):
    assert len(path.relative_to(ROOT).parts) <= 3
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


# Names


def definitions(path: Path) -> dict[str, ast.AST]:
    """The public functions and classes of a file, in the order of the page; hooks that pytest finds by name are not."""
    found = (node for node in tree(path).body if isinstance(node, Function | ast.ClassDef))
    return {node.name: node for node in found if not node.name.startswith(("_", "pytest_"))}


def is_statement(node: ast.AST) -> bool:
    """A theorem's statement or its near miss: found in the registry by its name, its types are its domains."""
    decorators = (getattr(item, "func", item) for item in getattr(node, "decorator_list", []))
    return any(ast.unparse(item).split(".")[-1] in ("theorem", "near_miss") for item in decorators)


@each("path", PUBLIC)
def test_all_lists_every_public_name_in_order(path):
    """Theorems are found in the registry: a page of them and nothing else hands out no names, `__all__ = []`."""
    page = [name for name, node in definitions(path).items() if not is_statement(node)]
    here = importlib.import_module(module(path))
    listed = list(here.__all__)
    assert len(set(listed)) == len(listed)
    assert all(hasattr(here, name) for name in listed)
    missing = [name for name in page if name not in listed]
    assert not missing, f"{named(path)}: not in __all__: {missing}"
    orders = (None, str.lower, lambda name: (not name.isupper(), not name[0].isupper(), name))  # the last one is ruff's
    by_letter = listed in [sorted(listed, key=order) for order in orders]
    by_page = [name for name in listed if name in page] == page
    assert by_letter or by_page, f"{named(path)}: __all__ follows neither the alphabet nor the page"


CLUMSY = re.compile(r"^_*(get|make|do|handle)_|_(fn|func|util|utils|helper|helpers)$|^_*(utils?|helpers?|common|misc)$")


@each("path", FILES + TESTS)
def test_names_are_nouns_and_verbs(path):
    assert not CLUMSY.search(path.stem), named(path)
    for node in ast.walk(tree(path)):
        if isinstance(node, Function | ast.ClassDef):
            assert not CLUMSY.search(node.name), line(path, node, node.name)


@each("path", [path for path in TRACKED if path.suffix in {".py", ".md", ".toml", ".ipynb", ".yml"}])
def test_nothing_is_put_off_or_passed_over(path):
    text = path.read_text(encoding="utf-8")
    put_off = re.search(r"\b([T]ODO|[F]IXME|[X]XX)\b", text)
    assert not put_off, f"{named(path)}: {put_off.group()}"
    if path.suffix == ".py":
        passed_over = re.search(r"pytest\.([s]kip|[i]mportorskip)|mark\.([s]kip|[x]fail)", text)
        assert not passed_over, f"{named(path)}: {passed_over.group()}"


@each("path", FILES)
def test_package_neither_asserts_nor_prints(path):
    for node in ast.walk(tree(path)):
        assert not isinstance(node, ast.Assert), line(path, node, "assert")
        prints = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        assert not prints, line(path, node, "print")


@each("path", FILES)
def test_there_are_no_base_classes(path):
    for node in ast.walk(tree(path)):
        for base in node.bases if isinstance(node, ast.ClassDef) else []:
            name = ast.unparse(base).split("[")[0].split(".")[-1]
            assert name in BASES, line(path, node, f"class {node.name}({ast.unparse(base)})")


PRODUCTS = {"matmul", "dot", "vdot", "inner", "einsum", "tensordot"}
"""Of these every accelerator has a short version, and takes it where nothing is said."""


@each("path", [path for path in FILES if FLOORS.get(chapter(path), 9) < FLOORS["nets"]])
def test_products_of_matrices_keep_their_digits(path):
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.BinOp):
            assert not isinstance(node.op, ast.MatMult), line(path, node, "a @ b is TF32 on a GPU: use dot(a, b)")
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {f"jnp.{name}" for name in PRODUCTS}:
            said = {option.arg: ast.unparse(option.value) for option in node.keywords}.get("precision")
            assert said == "'highest'", line(path, node, "a product without precision='highest'")


# Signatures


def public_functions(path: Path) -> Iterator[Function]:
    """The functions of a file that a user calls: at the top, and the methods of its public classes."""
    for node in definitions(path).values():
        if is_statement(node):
            continue
        members = node.body if isinstance(node, ast.ClassDef) else [node]
        for member in members:
            called = isinstance(member, Function) and (not member.name.startswith("_") or member.name == "__call__")
            if called:
                yield member


def parameters(node: Function) -> list[ast.arg]:
    listed = [*node.args.posonlyargs, *node.args.args]
    return listed[1:] if listed and listed[0].arg in ("self", "cls") else listed


@each("path", PUBLIC)
def test_public_functions_are_annotated(path):
    for node in public_functions(path):
        arguments = [*parameters(node), *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
        bare = [argument.arg for argument in arguments if argument is not None and argument.annotation is None]
        assert not bare, line(path, node, f"{node.name}: no type for {', '.join(bare)}")
        assert node.returns is not None, line(path, node, f"{node.name}: no type for what it returns")


EARLIER = [
    (("key", "noise"), "*"),
    (("denoise", "field", "sampler", "network"), ("x0", "eps", "z", "p", "q", "t", "s", "times")),
    (("schedule", "world"), ("x0", "eps", "z", "p", "q", "t", "s", "times")),
    (("x0",), ("eps",)),
    (("z",), ("p", "t", "s", "times")),
    (("t",), ("s",)),
]
"""(key | noise, functions, nouns, z, t, s, *, options): the left comes before the right."""


@each("path", PUBLIC)
def test_parameters_keep_the_order_of_the_house(path):
    for node in (node for node in ast.walk(tree(path)) if isinstance(node, Function)):
        names = [argument.arg for argument in parameters(node)]
        body_of_a_scan = node not in tree(path).body and "z" not in names  # its order is (carry, x)
        for firsts, laters in [] if body_of_a_scan else EARLIER:
            for first in (name for name in names if name in firsts):
                before = names[: names.index(first)]
                swapped = [name for name in before if (laters == "*" and name not in firsts) or name in laters]
                assert not swapped, line(path, node, f"{node.name}({', '.join(names)}): {first} comes before {swapped}")


@each("path", PUBLIC)
def test_options_are_keyword_only(path):
    for node in public_functions(path):
        names = [argument.arg for argument in parameters(node)]
        alone = len(names) == 1 or (names and names[-1] in NATURAL)  # main(), main(args); @f, @f(option=...)
        assert alone or not node.args.defaults, line(path, node, f"{node.name}: an option stands after the *")


# Docstrings and theorems


@each("path", FILES)
def test_everything_public_says_what_it_is(path):
    assert ast.get_docstring(tree(path)), f"{named(path)}: a chapter opens with its sentence"
    for node in [*definitions(path).values(), *public_functions(path)]:
        told_by_its_class = node.name == "__call__"
        told = told_by_its_class or ast.get_docstring(node)
        assert told, line(path, node, f"{node.name} has no docstring")


LAST_LINE = re.compile(r"^\s*Theorems?:\s*(?P<names>.*?)(?:\.\s*$|\n\s*\n|\Z)", re.MULTILINE | re.DOTALL)


def cited(path: Path) -> Iterator[tuple[str, str]]:
    """(where, theorem) for each name on a "Theorems: a, b." line of a docstring."""
    for node in ast.walk(tree(path)):
        if isinstance(node, Function | ast.ClassDef | ast.Module):
            text = ast.get_docstring(node) or ""
            for last in LAST_LINE.finditer(text):
                for name in re.split(r"[,\s]+", last["names"].replace("`", "")):
                    if name:
                        yield f"{named(path)}:{getattr(node, 'name', '')}", name


@functools.cache
def registry() -> dict:
    return importlib.import_module("diffeq_gen.theorems").all_theorems()


@each("path", [path for path in FILES if chapter(path) != "theorems"])
def test_every_theorem_that_a_docstring_names_exists(path):
    unknown = [f"{where} names {name}" for where, name in cited(path) if name not in registry()]
    assert not unknown, "\n".join(unknown)


def test_every_theorem_holds_something_up():
    """Read the other way: some docstring below the theorems names it, else nobody would miss it."""
    named_somewhere = {name for path in FILES if chapter(path) != "theorems" for _, name in cited(path)}
    idle = sorted(set(registry()) - named_somewhere)
    assert not idle, f"no docstring names {', '.join(idle)}"


def test_every_theorem_has_a_source_a_kind_a_statement_and_a_near_miss():
    for name, theorem in registry().items():
        assert name == theorem.name
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name), name
        assert theorem.source.strip(), f"{name} has no source"
        assert theorem.statement.strip(), f"{name} has no statement"
        assert theorem.kind, f"{name} has no kind"
        assert theorem.misses, f"{name} has no near miss"


# Pages and tests


def mirrors() -> list[str]:
    """Each chapter, and each file of a folder that has one."""
    return sorted(
        {
            path.relative_to(PACKAGE).with_suffix("").as_posix()
            for path in PUBLIC
            if path.stem != "__init__" and (FLOORS.get(chapter(path), 0) != 7)
        }
    )


@pytest.mark.parametrize("name", mirrors())
def test_every_page_has_its_tests(name):
    folder, _, page = name.rpartition("/")
    places = [ROOT / "tests" / folder / f"test_{page}.py"]
    places += [ROOT / "tests" / f"test_{folder}.py", ROOT / "tests" / folder / f"test_{folder}.py"] if folder else []
    assert any(place.is_file() for place in places), f"none of {[named(place) for place in places]}"


# What is committed

FOREIGN = [  # the [b]rackets keep each pattern from finding itself
    r"/(?:[r]oot|[h]ome|[U]sers|[w]ork|[t]mp)/\w",
    r"[C]:\\",
    r"[p]ypi\.|[p]ythonhosted|[p]kg\.dev|[i]ndex-url|[f]ind-links|[a]rtifactory",
    r"(?i)\b(?:api.?key|secret|password|token)\s*[:=]\s*['\"][^'\"]{8,}",
]


@each("path", TRACKED)
def test_nothing_foreign_is_committed(path):
    data = path.read_bytes()
    assert b"\0" not in data, f"{named(path)} is a binary"
    assert len(data) < 300_000, f"{named(path)} has {len(data)} bytes"
    for pattern in FOREIGN:
        found = re.search(pattern, data.decode())
        assert not found, f"{named(path)}: {found.group()}"


@pytest.mark.parametrize("command", [("check",), ("format", "--check")], ids=" ".join)
def test_ruff(command):
    run = subprocess.run([sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
