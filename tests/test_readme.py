"""README.md is run: its examples, its command lines, and the two lines that set the project up."""

import doctest
import re
import shlex
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
def test_its_command_lines_are_understood(command, capsys):
    """Each names a subcommand, options that its help knows, and theorems that exist."""
    _, subcommand, *rest = shlex.split(command)
    with pytest.raises(SystemExit) as leaving:
        cli.main([subcommand, "--help"])
    understood = capsys.readouterr().out
    assert leaving.value.code in (0, None)
    for option in (word.split("=")[0] for word in rest if word.startswith("--")):
        assert re.search(rf"{re.escape(option)}\b", understood), f"{subcommand} has no {option}"
    if subcommand in ("show", "verify"):
        for name in rest[: next((i for i, word in enumerate(rest) if word.startswith("-")), len(rest))]:
            assert name in theorems.all_theorems()


def test_exactly_two_lines_set_it_up():
    """On a machine that has only Python: one runs the demo, one passes the tests; `.ci/run` reads the second."""
    installing = [line for line in lines() if "pip install" in line]
    assert [line.split("&&")[-1].split()[0] for line in installing] == [".venv/bin/diffeq-gen", ".venv/bin/pytest"]
    assert all(line.startswith("python3 -m venv .venv && ") and "-c constraints.txt" in line for line in installing)
