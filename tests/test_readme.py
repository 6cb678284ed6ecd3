"""README.md is run: its examples, its command lines, and the two lines that set the project up."""

import doctest
import functools
import itertools
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from diffeq_gen import cli, theorems

README = Path(__file__).resolve().parent.parent / "README.md"
TEXT = README.read_text(encoding="utf-8")
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def blocks(language: str) -> list[tuple[int, str]]:
    """(line, text) of each fenced block of a language."""
    fenced = re.finditer(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    return [(TEXT.count("\n", 0, block.start(1)), block[1]) for block in fenced]


def lines() -> list[str]:
    return [line for _, text in blocks("sh") for line in text.splitlines() if line.strip()]


REAL = cli._commands()
COMMANDS = [part.strip() for line in lines() for part in line.split("&&") if "diffeq-gen " in part]


def test_its_python_blocks_run_in_the_order_of_the_page():
    names: dict = {"__name__": "readme"}
    for line, text in blocks("python"):
        if ">>>" in text:
            examples = doctest.DocTestParser().get_doctest(text, names, README.name, str(README), line)
            report: list[str] = []
            failed, _ = doctest.DocTestRunner(optionflags=OPTIONS).run(examples, out=report.append, clear_globs=False)
            assert not failed, "".join(report)
            names.update(examples.globs)
        else:
            exec(compile("\n" * line + text, str(README), "exec"), names)


@pytest.mark.parametrize("command", COMMANDS)
def test_its_command_lines_are_understood(command, monkeypatch):
    """Each is parsed to its end, and names theorems that exist; what it would run is left out."""
    _, subcommand, *rest = shlex.split(command)
    parsed: list[str] = []
    monkeypatch.setattr(cli, "_commands", lambda: {name: parse_only(run, parsed) for name, run in REAL.items()})
    assert (cli.main([subcommand, *rest]), parsed) == (0, [subcommand])
    if subcommand in ("show", "verify"):
        for name in itertools.takewhile(lambda word: not word.startswith("-"), rest):
            assert name in theorems.all_theorems()


def parse_only(run: Callable[..., int], parsed: list[str]) -> Callable[..., int]:
    """A command with the same parameters that does nothing."""

    @functools.wraps(run)
    def nothing(*args: object, **options: object) -> int:
        parsed.append(run.__name__)
        return 0

    return nothing


def test_exactly_two_lines_set_it_up():
    """On a machine that has only Python: one runs the demo, one passes the tests; `.ci/run` reads the second."""
    installing = [line for line in lines() if "pip install" in line]
    assert [line.split("&&")[-1].split()[0] for line in installing] == [".venv/bin/diffeq-gen", ".venv/bin/pytest"]
    assert all(line.startswith("python3 -m venv .venv && ") and "-c constraints.txt" in line for line in installing)
