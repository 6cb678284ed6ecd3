"""The mutation run: which faults it plants, and that it tells a caught one from one that is not."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.mutation import main, selection
from benchmarks.mutators import mutants

ROOT = Path(__file__).resolve().parents[2]

TOY = '''"""A toy: y = 2 x."""

__all__ = ["twice"]


def twice(x: float) -> float:
    """2 x"""
    if x < 0:
        raise ValueError("x must be at least 0" + " always")
    return 2 * x
'''


def changes(source):
    return {(mutant.before, mutant.after) for mutant in mutants(source)}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("y = a + b", ("a + b", "a - b")),
        ("y = a * b", ("a * b", "a / b")),
        ("y = -a", ("-a", "a")),
        ("y = 0.5 * a", ("0.5", "1")),
        ("y = 3.0 * a", ("3.0", "6.0")),
        ("y = 3.0 * a", ("3.0", "4.0")),
        ("y = 3.0 * a", ("3.0", repr(3.0 * (1 + 1e-6)))),
        ("y = a**2", ("2", "3")),
        ("y = a**2", ("a ** 2", "a")),
        ("y = f(a, b)", ("f(a, b)", "f(b, a)")),
        ("y = a < b", ("a < b", "a <= b")),
        ("y = a < b", ("a < b", "a > b")),
        ("y = a[1:]", ("1", "2")),
        ("y = a[:-1]", ("1", "2")),
        ("for i in range(n): pass", ("range(n)", "range(n + 1)")),
        ("y = jnp.exp(a)", ("jnp.exp", "jnp.expm1")),
        ("y = jnp.log1p(a)", ("jnp.log1p", "jnp.log")),
        ("y = jnp.sin(a)", ("jnp.sin", "jnp.cos")),
        ("y = max(a, b)", ("max", "min")),
        ("def f(t, s): return t", ("t", "s")),
        ("def f(p, q): return g(p.alpha, q)", ("p", "q")),
        ("def f(p, q): return g(p.alpha, q)", ("p.alpha", "p.sigma")),
        ("def f(a, b): return a, b", ("(a, b)", "(b, a)")),
        ("def f(a): return a", ("a", "a * 1.000001")),
        ("def f(a): return a", ("a", "-a")),
    ],
)
def test_every_kind_of_fault_is_planted(source, expected):
    assert expected in changes(source)


def test_words_are_left_alone():
    found = changes(TOY)
    assert found == {
        ("x < 0", "x <= 0"), ("x < 0", "x > 0"), ("0", "1"),
        ("2 * x", "2 / x"), ("2", "3"), ("2", "4"), ("2", "2.000002"),
        ("2 * x", "2 * x * 1.000001"), ("2 * x", "-(2 * x)"),
    }  # fmt: skip


def test_arguments_whose_order_says_nothing_are_not_swapped():
    assert ("jnp.maximum(a, b)", "jnp.maximum(b, a)") not in changes("y = jnp.maximum(a, b)")
    assert ("jnp.maximum", "jnp.minimum") in changes("y = jnp.maximum(a, b)")
    swapped = "zip(x, y)", "zip(y, x)"
    assert swapped not in changes("total = sum(a * b for a, b in zip(x, y))")
    for other in ("a / b for a, b", "a * c for a, b", "a * b for (a, c), b", "a * a for a, b"):
        assert swapped in changes(f"total = sum({other} in zip(x, y))"), other


def test_what_only_lends_its_shape_is_left_alone():
    found = changes("def f(p): return jnp.zeros_like(p.alpha), jnp.ones_like(p.alpha)")
    assert ("p.alpha", "p.sigma") not in found
    assert ("jnp.zeros_like(p.alpha)", "-jnp.zeros_like(p.alpha)") not in found
    assert ("jnp.ones_like(p.alpha)", "-jnp.ones_like(p.alpha)") in found
    assert ("jnp.zeros_like", "jnp.ones_like") in found


def test_a_name_is_swapped_only_where_the_other_is_known():
    assert ("t", "s") not in changes("def f(t): return t")
    assert ("t", "s") in changes("def f(t):\n    s = 1\n    return lambda z: z + t")


def test_every_mutant_is_another_program_and_named_once():
    for path in sorted((ROOT / "diffeq_gen").rglob("paths.py")):
        source = path.read_text(encoding="utf-8")
        found = mutants(source)
        assert len(found) > 50
        assert len({mutant.name for mutant in found}) == len(found)
        for mutant in found:
            assert ast.dump(ast.parse(mutant.source)) != ast.dump(ast.parse(source))


@pytest.fixture
def toy(tmp_path):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "__init__.py").write_text('"""Toy."""\n')
    (tmp_path / "toy" / "double.py").write_text(TOY)
    (tmp_path / "tests").mkdir()
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    return tmp_path


def run(toy, *arguments):
    command = [
        sys.executable,
        "-m",
        "benchmarks.mutation",
        "--root",
        str(toy),
        "--package",
        "toy",
        "--files",
        "*.py",
        "--preload",
        "pytest",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(
        [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


WEAK = "from toy.double import twice\n\n\ndef test_twice():\n    assert abs(twice(3.0) - 6.0) < 1e-3\n"


def test_end_to_end_and_resumed(toy):
    (toy / "toy" / "__init__.py").unlink()  # the toy is one file, and a namespace
    (toy / "tests" / "test_double.py").write_text(WEAK)
    before = {path: path.read_bytes() for path in toy.rglob("*") if path.is_file()}
    results = toy / "results.jsonl"
    first = run(toy, "--json", str(results), "--jobs", "2")
    assert first.returncode == 1, first.stdout + first.stderr
    entries = [json.loads(line) for line in results.read_text().splitlines()]
    survivors = {(entry["before"], entry["after"]) for entry in entries if entry["outcome"] == "survived"}
    assert {entry["outcome"] for entry in entries} == {"killed", "survived"}
    assert survivors == {("x < 0", "x <= 0"), ("0", "1"), ("2", "2.000002"), ("2 * x", "2 * x * 1.000001")}
    assert all("test_double.py::test_twice" in entry["killer"] for entry in entries if entry["outcome"] == "killed")
    assert "survived toy/double.py:" in first.stdout
    after = {path: path.read_bytes() for path in toy.rglob("*") if path.is_file() and path != results}
    assert after == before

    lines = results.read_text().splitlines(keepends=True)
    results.write_text("".join(lines[:-2]) + lines[-1][:10])  # cut short: the last is half a line
    second = run(toy, "--json", str(results), "--resume")
    assert "[2/2]" in second.stdout or second.returncode == 1
    assert second.stdout.split("file  ")[-1] == first.stdout.split("file  ")[-1]


def outcomes(results):
    entries = map(json.loads, results.read_text().splitlines())
    return {(entry["before"], entry["after"]): entry["outcome"] for entry in entries}


def test_faults_that_share_a_process_fare_as_alone(toy):
    """Pages that hold a piece of the faulty one are read anew; one that only reads another page stays as it is."""
    (toy / "toy" / "four.py").write_text("from toy.double import twice\n\n\ndef four(x):\n    return twice(twice(x))\n")
    (toy / "toy" / "other.py").write_text("READ = []\n")
    (toy / "tests" / "test_double.py").write_text(
        "from toy.double import twice\nfrom toy.four import four\nfrom toy.other import READ\n\n\n"
        "def test_twice():\n    READ.append(1)\n    assert abs(twice(3.0) - 6.0) < 1e-3\n\n\n"
        "def test_four():\n    assert abs(four(3.0) - 12.0) < 1e-3\n\n\n"
        "def test_again():\n    print('times', len(READ))\n"
    )
    alone, shared = toy / "alone.jsonl", toy / "shared.jsonl"
    run(toy, "--files", "double.py", "--json", str(alone))
    ended = run(toy, "--files", "double.py", "--json", str(shared), "--warm", "4", "--jobs", "1")
    assert outcomes(alone) == outcomes(shared) and "survived" in outcomes(alone).values(), ended.stdout + ended.stderr


def test_a_process_that_a_fault_has_spoilt_is_not_believed(toy):
    """A test that leaves something behind fails for ever after; the run says so, and nothing is written down."""
    (toy / "toy" / "other.py").write_text("READ = []\n")
    (toy / "tests" / "test_double.py").write_text(
        "from toy.double import twice\nfrom toy.other import READ\n\n\n"
        "def test_twice():\n    READ.append(twice(3.0))\n    assert max(map(abs, READ)) < 6.001\n"
    )
    ended = run(toy, "--files", "double.py", "--json", str(toy / "results.jsonl"), "--warm", "9", "--jobs", "1")
    assert ended.returncode == 1 and "fails without one, after 9 in one process" in ended.stderr, ended.stdout
    assert not (toy / "results.jsonl").exists()


def test_after_a_timeout_the_rest_of_its_process_is_planted_anew(toy):
    (toy / "toy" / "double.py").write_text(
        "def steps(n):\n    i = 0\n    while i < n:\n        i = i + 1\n    return i\n"
    )
    (toy / "tests" / "test_double.py").write_text(
        "from toy.double import steps\n\n\ndef test_steps():\n    assert steps(3) == 3\n"
    )
    alone, shared = toy / "alone.jsonl", toy / "shared.jsonl"
    run(toy, "--files", "double.py", "--json", str(alone), "--patience", "1")
    run(toy, "--files", "double.py", "--json", str(shared), "--patience", "1", "--warm", "50")
    assert outcomes(alone) == outcomes(shared) and "timeout" in outcomes(alone).values()


def test_a_fault_that_never_ends_is_a_timeout(toy):
    (toy / "toy" / "__init__.py").unlink()
    (toy / "toy" / "double.py").write_text(
        "def steps(n):\n    i = 0\n    while i < n:\n        i = i + 1\n    return i\n"
    )
    (toy / "tests" / "test_double.py").write_text(
        "from toy.double import steps\n\n\ndef test_steps():\n    assert steps(3) == 3\n"
    )
    ended = run(toy, "--json", str(toy / "results.jsonl"), "--patience", "1")
    outcomes = {
        entry["after"]: entry["outcome"] for entry in map(json.loads, (toy / "results.jsonl").read_text().splitlines())
    }
    assert outcomes["i - 1"] == "timeout" and outcomes["i * 1.000001"] == "killed", ended.stdout


def test_tests_that_fail_without_a_fault_stop_the_run(toy):
    (toy / "toy" / "__init__.py").unlink()
    (toy / "tests" / "test_double.py").write_text("def test_no():\n    assert 1 == 2\n")
    ended = run(toy)
    assert ended.returncode not in (0, None) and "without a fault" in ended.stderr and "1 == 2" in ended.stderr


def test_a_file_without_tests_and_a_pattern_without_files_are_named(toy):
    with pytest.raises(SystemExit, match=r"double.py has no tests"):
        main(["--root", str(toy), "--package", "toy", "--files", "double.py"])
    with pytest.raises(SystemExit, match=r"no file of .*toy matches nothing"):
        main(["--root", str(toy), "--package", "toy", "--files", "nothing*"])


def test_the_tests_of_a_file_are_its_namesakes(tmp_path):
    for name in ("tests/samplers/test_ode.py", "tests/test_samplers.py", "property_tests/test_samplers.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    package = tmp_path / "package"
    assert selection(tmp_path, package, package / "samplers" / "ode.py") == [
        "tests/samplers/test_ode.py", "tests/test_samplers.py", "property_tests/test_samplers.py",
    ]  # fmt: skip


def test_the_theorems_that_a_file_cites_are_among_its_tests(tmp_path):
    for name in ("tests/test_paths.py", "property_tests/test_theorems.py", "package/theorems/a.py", "package/paths.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    package = tmp_path / "package"
    (package / "theorems" / "a.py").write_text("def one_way():\n    pass\n")
    (package / "paths.py").write_text("# Theorems: one-way, not-yet-written.\n")
    expected = ["tests/test_paths.py", "property_tests/test_theorems.py::test_theorem[one-way]"]
    assert selection(tmp_path, package, package / "paths.py") == expected
